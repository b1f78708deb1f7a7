//! The trial that settled the training engine: one SFT step of model A (8 x 512 tokens) on candle's tape.
//!
//! `tape_trial plain|fused|layers [RUNS]`: `plain` is candle's differentiable operations alone, `fused` puts our kernels
//! on the tape as custom operations with written gradients, `layers` is the explicit layers that the project trains
//! with. Prints the loss before the first update, processor seconds and peak memory as JSON.
//!
//! Invariant: all three compute one function from the same weights; the first loss says so.

use std::io::Write;
use std::time::Instant;

use actloom_engine::op::OpError;
use actloom_ops::model::{Config, Model};
use actloom_ops::nn::cpu::{packed, rows};
use actloom_ops::nn::kernel::{self, AdamStep, Kernels};
use actloom_ops::nn::{Heads, Packing};
use actloom_ops::rng::Rng;
use actloom_ops::train::batch::Row;
use actloom_ops::train::optimizer::{AdamW, Optimizer};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, Var, bail};
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const B: usize = 8;
const T: usize = 512;
const HEADS: Heads = Heads { h: 4, hk: 2, d: 64, window: None };
const EPS: f32 = 1e-6;

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&data[start..end]),
        _ => bail!("a custom operation takes contiguous float32"),
    }
}

/// x, w -> RMSNorm of x.
struct Norm;

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }
    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (slice(x, lx)?, slice(w, lw)?);
        let (mut y, mut r) = (vec![0f32; x.len()], vec![0f32; x.len() / w.len()]);
        rows::rms_norm(x, w, EPS, &mut y, &mut r);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }
    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, dy) = (x.contiguous()?, dy.contiguous()?);
        let (_, rstd) = kernel::rms_norm(Kernels::Cpu, &x, w, f64::from(EPS))?;
        let mut dw = w.zeros_like()?;
        let dx = kernel::rms_norm_backward(Kernels::Cpu, &dy, &x, w, &rstd, Some(&mut dw))?;
        Ok((Some(dx), Some(dw)))
    }
}

/// gate, up -> silu(gate) up.
struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }
    fn cpu_fwd(&self, g: &CpuStorage, lg: &Layout, u: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (g, u) = (slice(g, lg)?, slice(u, lu)?);
        let mut y = vec![0f32; g.len()];
        rows::swiglu(g, u, &mut y);
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }
    fn bwd(&self, g: &Tensor, u: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dg, du) = kernel::swiglu_backward(Kernels::Cpu, &dy.contiguous()?, g, u)?;
        Ok((Some(dg), Some(du)))
    }
}

/// q (n, h d), k and v (n, hk d) -> causal attention (n, h d).
struct Attention(Packing);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, lq)?, slice(k, lk)?, slice(v, lv)?);
        let mut out = vec![0f32; q.len()];
        let mut stats = vec![0f32; self.0.len() * HEADS.h * 2];
        packed::forward(q, k, v, &self.0, HEADS, &mut out, &mut stats);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }
    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // the tape keeps no second output: the row statistics are made again
        let (_, stats) = kernel::attention(Kernels::Cpu, q, k, v, &self.0, HEADS)?;
        let (dq, dk, dv) =
            kernel::attention_backward(Kernels::Cpu, &dy.contiguous()?, q, k, v, &stats, &self.0, HEADS)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}

/// The model's tensors as variables, and what the forward needs beside them.
struct Tape {
    fused: bool,
    layers: usize,
    vars: Vec<(String, Var)>,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    packing: Packing,
}

impl Tape {
    fn new(model: &Model, fused: bool) -> Result<Tape> {
        let vars = model.params().into_iter().map(|p| Ok((p.name.clone(), Var::from_tensor(&p.value)?)));
        let half = HEADS.d / 2;
        let angle = |p: usize, i: usize| f64::from(p as f32 * 1e6f64.powf(-2.0 * i as f64 / HEADS.d as f64) as f32);
        let table = |f: fn(f64) -> f64| {
            let data: Vec<f32> = (0..T * half).map(|x| f(angle(x / half, x % half)) as f32).collect();
            Tensor::from_vec(data, (1, T, 1, half), &Device::Cpu)
        };
        let mask: Vec<f32> = (0..T * T).map(|x| if x % T <= x / T { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mut packing = Packing::new();
        (0..B).for_each(|_| {
            packing.root(T);
        });
        Ok(Tape {
            fused,
            layers: model.config.layers,
            vars: vars.collect::<Result<_>>()?,
            cos: table(f64::cos)?,
            sin: table(f64::sin)?,
            mask: Tensor::from_vec(mask, (1, 1, T, T), &Device::Cpu)?,
            packing,
        })
    }

    fn var(&self, name: &str) -> Result<&Tensor> {
        match self.vars.iter().find(|(n, _)| n == name) {
            Some((_, var)) => Ok(var.as_tensor()),
            None => bail!("the model has no tensor `{name}`"),
        }
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let w = self.var(name)?;
        if self.fused {
            return x.contiguous()?.apply_op2(w, Norm);
        }
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean + f64::from(EPS))?.sqrt()?)?.broadcast_mul(w)
    }

    /// x (b, t, heads, d)
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let half = HEADS.d / 2;
        let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let first = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let second = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Tensor::cat(&[first, second], 3)
    }

    /// q (b, t, h, d), k and v (b, t, hk, d) -> (b t, h d)
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let Heads { h, hk, d, .. } = HEADS;
        if self.fused {
            let flat = |x: &Tensor, heads: usize| x.reshape((B * T, heads * d))?.contiguous();
            return flat(q, h)?.apply_op3(&flat(k, hk)?, &flat(v, hk)?, Attention(self.packing.clone()));
        }
        let wide = |x: &Tensor| -> Result<Tensor> {
            let x = x.transpose(1, 2)?.unsqueeze(2)?.broadcast_as((B, hk, h / hk, T, d))?;
            x.reshape((B, h, T, d))?.contiguous()
        };
        let q = (q.transpose(1, 2)?.contiguous()? * (1.0 / (d as f64).sqrt()))?;
        let s = q.matmul(&wide(k)?.t()?.contiguous()?)?.broadcast_add(&self.mask)?; // (b, h, t, t)
        let e = s.broadcast_sub(&s.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
        p.matmul(&wide(v)?)?.transpose(1, 2)?.reshape((B * T, h * d))
    }

    /// Mean negative log-probability of each token given those before it.
    fn loss(&self, ids: &Tensor) -> Result<Tensor> {
        let Heads { h, hk, d, .. } = HEADS;
        let embed = self.var("model.embed_tokens.weight")?;
        let mut x = embed.index_select(&ids.flatten_all()?, 0)?; // (b t, hidden)
        for i in 0..self.layers {
            let linear = |x: &Tensor, name: &str| x.matmul(&self.var(&format!("model.layers.{i}.{name}.weight"))?.t()?);
            let norm = |x: &Tensor, name: &str| self.norm(x, &format!("model.layers.{i}.{name}.weight"));
            let a = norm(&x, "input_layernorm")?;
            let q = norm(&linear(&a, "self_attn.q_proj")?.reshape((B, T, h, d))?, "self_attn.q_norm")?;
            let k = norm(&linear(&a, "self_attn.k_proj")?.reshape((B, T, hk, d))?, "self_attn.k_norm")?;
            let v = linear(&a, "self_attn.v_proj")?.reshape((B, T, hk, d))?;
            let attn = self.attention(&self.rope(&q)?, &self.rope(&k)?, &v)?;
            x = (x + linear(&attn, "self_attn.o_proj")?)?;
            let a = norm(&x, "post_attention_layernorm")?;
            let (gate, up) = (linear(&a, "mlp.gate_proj")?, linear(&a, "mlp.up_proj")?);
            let y = if self.fused { gate.apply_op2(&up, SwiGlu)? } else { (gate.silu()? * up)? };
            x = (x + linear(&y, "mlp.down_proj")?)?;
        }
        let x = self.norm(&x, "model.norm.weight")?.reshape((B, T, ()))?.narrow(1, 0, T - 1)?;
        let z = x.flatten(0, 1)?.contiguous()?.matmul(&embed.t()?)?; // (b (t - 1), v)
        let targets = ids.narrow(1, 1, T - 1)?.flatten_all()?.unsqueeze(1)?;
        let z = z.broadcast_sub(&z.max_keepdim(1)?.detach())?;
        let lse = z.exp()?.sum_keepdim(1)?.log()?;
        (lse - z.gather(&targets.contiguous()?, 1)?)?.mean_all()
    }
}

fn update(tape: &Tape, grads: &GradStore, state: &mut [(Tensor, Tensor)], t: i32) -> Result<()> {
    let step = AdamStep {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.01,
        scale: 1.0,
        correction: [(1.0 - 0.9f64.powi(t)) as f32, (1.0 - 0.95f64.powi(t)) as f32],
    };
    for ((name, var), (m, v)) in tape.vars.iter().zip(state) {
        let Some(grad) = grads.get(var.as_tensor()) else { bail!("no gradient reached `{name}`") };
        let mut p = var.as_detached_tensor().copy()?;
        kernel::adamw(Kernels::Cpu, &mut p, &grad.contiguous()?, m, v, step)?;
        var.set(&p)?;
    }
    Ok(())
}

/// User and system seconds so far, and the peak of memory in MiB.
fn used() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, f)| f);
    let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<f64>().ok());
    (ticks / 100.0, peak.map_or(f64::NAN, |kb| kb / 1024.0))
}

/// The mean loss of one step, which it takes.
type Step = Box<dyn FnMut() -> Result<f64>>;

fn on_tape(model: &Model, ids: Vec<u32>, fused: bool) -> Result<Step> {
    let tape = Tape::new(model, fused)?;
    let ids = Tensor::from_vec(ids, (B, T), &Device::Cpu)?;
    let zeros = |(_, v): &(String, Var)| Ok((v.zeros_like()?, v.zeros_like()?));
    let mut state: Vec<(Tensor, Tensor)> = tape.vars.iter().map(zeros).collect::<Result<_>>()?;
    let mut t = 0;
    Ok(Box::new(move || {
        t += 1;
        let loss = tape.loss(&ids)?;
        update(&tape, &loss.backward()?, &mut state, t)?;
        loss.to_dtype(DType::F64)?.to_scalar::<f64>()
    }))
}

fn on_layers(mut model: Model, ids: &[u32]) -> Step {
    let mut row = Row::default();
    ids.chunks(T).enumerate().for_each(|(i, ids)| {
        row.add(i, None, ids, |_| true);
    });
    let n = row.targets.len() as f64;
    let mut optimizer = Optimizer::new(AdamW { clip: 0.0, ..AdamW::default() });
    Box::new(move || {
        let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| (-1.0 / n) as f32)?;
        optimizer.step(&mut model, 1e-4).map_err(candle_core::Error::wrap)?;
        Ok(-stats.iter().map(|s| f64::from(s.logp)).sum::<f64>() / n)
    })
}

fn trial(engine: &str, runs: usize) -> Result<serde_json::Value> {
    let config = Config::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "hidden_act": "silu",
    }));
    let model = config.and_then(|c| Model::random(c, 1)).map_err(candle_core::Error::wrap)?;
    let mut rng = Rng::new(17, 0);
    let ids: Vec<u32> = (0..B * T).map(|_| rng.next_u32() % 2048).collect();
    let mut step = match engine {
        "plain" => on_tape(&model, ids, false)?,
        "fused" => on_tape(&model, ids, true)?,
        "layers" => on_layers(model, &ids),
        other => bail!("the engine `{other}` is not known, expected `plain`, `fused` or `layers`"),
    };
    let first = step()?;
    let (mut walls, mut processors) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (wall, before) = (Instant::now(), used().0);
        step()?;
        walls.push(wall.elapsed().as_secs_f64());
        processors.push(used().0 - before);
    }
    let least = |x: &[f64]| x.iter().copied().fold(f64::MAX, f64::min);
    Ok(json!({
        "engine": engine, "tokens": B * T, "runs": runs, "first_loss": first,
        "tokens_per_processor_second": (B * T * runs) as f64 / processors.iter().sum::<f64>(),
        "wall_best": least(&walls), "processor_best": least(&processors), "peak_mib": used().1,
    }))
}

fn main() -> std::result::Result<(), OpError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(engine) = words.first() else {
        return Err(OpError::failed("expected `plain`, `fused` or `layers`, then the number of runs"));
    };
    let runs = words.get(1).and_then(|r| r.parse().ok()).unwrap_or(3);
    let out = trial(engine, runs).map_err(|e| OpError::failed(e.to_string()))?;
    writeln!(std::io::stdout(), "{out}").map_err(|e| OpError::failed(e.to_string()))
}
