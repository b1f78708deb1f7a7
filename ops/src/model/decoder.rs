//! A decoder-only language model: embedding, pre-norm blocks of attention (q/k norm, RoPE, grouped queries) and SwiGLU, final norm, head.
//!
//! 1. `forward` runs a packed row and keeps what the backward needs. 2. `backward` walks the layers the other way.
//! 3. `train` is both with the head between them. 4. `extend` is the same forward over caches, for sampling.

use std::collections::BTreeMap;
use std::sync::Arc;

use actloom_engine::op::OpError;
use candle_core::{DType, Device, Result, Tensor};

use super::config::Config;
use super::failed;
use crate::nn::kernel::{self, Cache, CachedPart, Kernels, Pool, RopeTable};
use crate::nn::layer::{self, Embedding, Linear, Param, RmsNorm, TokenStats};
use crate::nn::{Heads, Packing};
use crate::rng::Rng;

struct Block {
    norm1: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What one block keeps for its backward. Rows are tokens.
struct Saved {
    x: Tensor,
    h1: Tensor,
    r1: Tensor,
    q0: Tensor,
    rq: Tensor,
    k0: Tensor,
    rk: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    stats: Tensor,
    attn: Tensor,
    mid: Tensor,
    h2: Tensor,
    r2: Tensor,
    gate: Tensor,
    up: Tensor,
}

/// A token to be predicted, and the row that predicts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub row: u32,
    pub id: u32,
}

/// Keys and values of one sequence, all layers.
///
/// A clone shares them: sequences with a common beginning hold it once, and each goes on alone.
#[derive(Clone)]
pub struct Sequence {
    layers: Vec<Cache>,
    ids: Vec<u32>,
}

impl Sequence {
    /// Tokens seen so far.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The tokens seen so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// # Errors
    /// candle's.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.ids.truncate(len);
        self.layers.iter_mut().try_for_each(|c| c.truncate(len))
    }
}

/// What one sequence takes part with in [`Model::advance`].
pub struct Step<'a> {
    pub sequence: &'a mut Sequence,
    pub new: &'a [u32],
    /// Logits after the last new token are wanted.
    pub logits: bool,
}

/// A model with its parameters.
pub struct Model {
    pub config: Config,
    pub device: Device,
    pub kernels: Kernels,
    embed: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None` where the embedding is the head.
    head: Option<Param>,
    rope: RopeTable,
}

/// Names and shapes of every tensor, in checkpoint spelling.
fn shapes(c: &Config) -> Vec<(String, Vec<usize>)> {
    let (d, m, q, kv) = (c.hidden_size, c.intermediate_size, c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![c.vocab_size, d])];
    for i in 0..c.layers {
        for (name, shape) in [
            ("input_layernorm", vec![d]),
            ("self_attn.q_proj", vec![q, d]),
            ("self_attn.k_proj", vec![kv, d]),
            ("self_attn.v_proj", vec![kv, d]),
            ("self_attn.o_proj", vec![d, q]),
            ("self_attn.q_norm", vec![c.head_dim]),
            ("self_attn.k_norm", vec![c.head_dim]),
            ("post_attention_layernorm", vec![d]),
            ("mlp.gate_proj", vec![m, d]),
            ("mlp.up_proj", vec![m, d]),
            ("mlp.down_proj", vec![d, m]),
        ] {
            out.push((format!("model.layers.{i}.{name}.weight"), shape));
        }
    }
    out.push(("model.norm.weight".to_owned(), vec![d]));
    if !c.tied {
        out.push(("lm_head.weight".to_owned(), vec![c.vocab_size, d]));
    }
    out
}

impl Model {
    /// Random weights: normal with standard deviation 0.02 (divided by sqrt(2 layers) where a block writes to the
    /// residual stream, as GPT-2 does), norms one.
    ///
    /// # Errors
    /// When the sizes do not fit together.
    pub fn random(config: Config, seed: u64) -> std::result::Result<Model, OpError> {
        config.check()?;
        let mut tensors = BTreeMap::new();
        for (index, (name, shape)) in shapes(&config).into_iter().enumerate() {
            let n: usize = shape.iter().product();
            let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let std = if residual { 0.02 / (2.0 * config.layers as f64).sqrt() } else { 0.02 };
            let mut rng = Rng::at(seed, &[index as u64]);
            let data: Vec<f32> =
                if shape.len() == 1 { vec![1.0; n] } else { (0..n).map(|_| (rng.normal() * std) as f32).collect() };
            tensors.insert(name, Tensor::from_vec(data, shape, &Device::Cpu).map_err(failed)?);
        }
        Model::new(config, tensors, &Device::Cpu)
    }

    /// A model from named tensors, converted to float32 on `device`.
    ///
    /// # Errors
    /// Names the tensor that is missing, superfluous or of the wrong shape.
    pub fn new(
        config: Config,
        mut tensors: BTreeMap<String, Tensor>,
        device: &Device,
    ) -> std::result::Result<Model, OpError> {
        let mut params = BTreeMap::new();
        for (name, shape) in shapes(&config) {
            let Some(tensor) = tensors.remove(&name) else {
                return Err(OpError::failed(format!("the checkpoint has no tensor `{name}`")));
            };
            if tensor.dims() != shape {
                let found = tensor.dims();
                return Err(OpError::failed(format!("tensor `{name}` has shape {found:?}, expected {shape:?}")));
            }
            let value = tensor.to_dtype(DType::F32).and_then(|t| t.to_device(device)).map_err(failed)?;
            params.insert(name.clone(), Param::new(name, value));
        }
        if config.tied {
            tensors.remove("lm_head.weight"); // some writers store the tied matrix twice
        }
        if let Some(name) = tensors.keys().next() {
            return Err(OpError::failed(format!("the checkpoint has a tensor `{name}` that the model does not know")));
        }
        let mut take = |name: &str| match params.remove(name) {
            Some(param) => param,
            None => panic!("BUG: `{name}` is not in the list of shapes"),
        };
        let eps = config.rms_norm_eps;
        let blocks = (0..config.layers)
            .map(|i| {
                let mut p = |name: &str| take(&format!("model.layers.{i}.{name}.weight"));
                Block {
                    norm1: RmsNorm { w: p("input_layernorm"), eps },
                    q: Linear { w: p("self_attn.q_proj") },
                    k: Linear { w: p("self_attn.k_proj") },
                    v: Linear { w: p("self_attn.v_proj") },
                    o: Linear { w: p("self_attn.o_proj") },
                    q_norm: RmsNorm { w: p("self_attn.q_norm"), eps },
                    k_norm: RmsNorm { w: p("self_attn.k_norm"), eps },
                    norm2: RmsNorm { w: p("post_attention_layernorm"), eps },
                    gate: Linear { w: p("mlp.gate_proj") },
                    up: Linear { w: p("mlp.up_proj") },
                    down: Linear { w: p("mlp.down_proj") },
                }
            })
            .collect();
        let mut rope = RopeTable::new(config.rope_theta, config.head_dim);
        rope.reserve(config.max_positions);
        Ok(Model {
            embed: Embedding { w: take("model.embed_tokens.weight") },
            blocks,
            norm: RmsNorm { w: take("model.norm.weight"), eps },
            head: if config.tied { None } else { Some(take("lm_head.weight")) },
            kernels: Kernels::of(device),
            device: device.clone(),
            rope,
            config,
        })
    }

    fn heads(&self) -> Heads {
        Heads { h: self.config.heads, hk: self.config.kv_heads, d: self.config.head_dim, window: None }
    }

    /// Every parameter, in checkpoint order.
    pub fn params(&self) -> Vec<&Param> {
        let mut out = vec![&self.embed.w];
        for b in &self.blocks {
            out.extend([&b.norm1.w, &b.q.w, &b.k.w, &b.v.w, &b.o.w, &b.q_norm.w, &b.k_norm.w]);
            out.extend([&b.norm2.w, &b.gate.w, &b.up.w, &b.down.w]);
        }
        out.push(&self.norm.w);
        out.extend(&self.head);
        out
    }

    /// Every parameter, in checkpoint order.
    pub fn params_mut(&mut self) -> Vec<&mut Param> {
        let mut out = vec![&mut self.embed.w];
        for b in &mut self.blocks {
            out.extend([&mut b.norm1.w, &mut b.q.w, &mut b.k.w, &mut b.v.w, &mut b.o.w, &mut b.q_norm.w]);
            out.extend([&mut b.k_norm.w, &mut b.norm2.w, &mut b.gate.w, &mut b.up.w, &mut b.down.w]);
        }
        out.push(&mut self.norm.w);
        out.extend(&mut self.head);
        out
    }

    fn head(&self) -> &Param {
        self.head.as_ref().unwrap_or(&self.embed.w)
    }

    fn head_mut(&mut self) -> &mut Param {
        self.head.as_mut().unwrap_or(&mut self.embed.w)
    }

    fn check_row(&self, ids: &[u32], positions: usize) -> Result<()> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            candle_core::bail!("token id {id} is not below the vocabulary's size {}", self.config.vocab_size);
        }
        if positions > self.config.max_positions {
            candle_core::bail!("a sequence of {positions} tokens, the model takes {}", self.config.max_positions);
        }
        Ok(())
    }

    /// q, k (rotated, with their values before the norm) and v of normed rows.
    fn project(&self, b: &Block, h: &Tensor, positions: &[u32]) -> Result<[Tensor; 7]> {
        let (kn, c) = (self.kernels, &self.config);
        let (q0, k0, v) = (b.q.forward(kn, h)?, b.k.forward(kn, h)?, b.v.forward(kn, h)?);
        let (q, rq) = b.q_norm.forward(kn, &q0)?;
        let (k, rk) = b.k_norm.forward(kn, &k0)?;
        let q = kernel::rope(kn, q, c.heads, &self.rope, positions, 1.0)?;
        let k = kernel::rope(kn, k, c.kv_heads, &self.rope, positions, 1.0)?;
        Ok([q0, rq, k0, rk, q, k, v])
    }

    /// Hidden states before the final norm, (n, hidden), and the saved activations where `keep`.
    fn forward(&self, ids: &[u32], packing: &Packing, keep: bool) -> Result<(Tensor, Vec<Saved>)> {
        let positions = packing.positions();
        self.check_row(ids, positions.iter().max().map_or(0, |p| *p as usize + 1))?;
        let kn = self.kernels;
        let mut saved = Vec::new();
        let mut x = self.embed.forward(kn, ids)?; // (n, hidden)
        for b in &self.blocks {
            let (h1, r1) = b.norm1.forward(kn, &x)?;
            let [q0, rq, k0, rk, q, k, v] = self.project(b, &h1, positions)?;
            let (attn, stats) = kernel::attention(kn, &q, &k, &v, packing, self.heads())?;
            let mut mid = b.o.forward(kn, &attn)?;
            kernel::add_into(kn, &mut mid, &x)?;
            let (h2, r2) = b.norm2.forward(kn, &mid)?;
            let (gate, up) = (b.gate.forward(kn, &h2)?, b.up.forward(kn, &h2)?);
            let mut y = b.down.forward(kn, &kernel::swiglu(kn, &gate, &up)?)?;
            kernel::add_into(kn, &mut y, &mid)?;
            let input = std::mem::replace(&mut x, y);
            if keep {
                saved.push(Saved { x: input, h1, r1, q0, rq, k0, rk, q, k, v, stats, attn, mid, h2, r2, gate, up });
            }
        }
        Ok((x, saved))
    }

    /// Gradients of all parameters below the final norm, given d objective / d hidden.
    fn backward(&mut self, mut dx: Tensor, ids: &[u32], packing: &Packing, saved: Vec<Saved>) -> Result<()> {
        let (kn, heads) = (self.kernels, self.heads());
        let positions = packing.positions();
        for (b, s) in self.blocks.iter_mut().zip(saved).rev() {
            // x + down(swiglu(gate(h2), up(h2)))
            let a = kernel::swiglu(kn, &s.gate, &s.up)?;
            let da = b.down.backward(kn, &dx, &a)?;
            let (dgate, dup) = kernel::swiglu_backward(kn, &da, &s.gate, &s.up)?;
            let mut dh2 = b.gate.backward(kn, &dgate, &s.h2)?;
            kernel::add_into(kn, &mut dh2, &b.up.backward(kn, &dup, &s.h2)?)?;
            let mut dmid = b.norm2.backward(kn, &dh2, &s.mid, &s.r2)?;
            kernel::add_into(kn, &mut dmid, &dx)?;
            // x + o(attention(..))
            let dattn = b.o.backward(kn, &dmid, &s.attn)?;
            let (dq, dk, dv) = kernel::attention_backward(kn, &dattn, &s.q, &s.k, &s.v, &s.stats, packing, heads)?;
            let dq = kernel::rope(kn, dq, heads.h, &self.rope, positions, -1.0)?;
            let dk = kernel::rope(kn, dk, heads.hk, &self.rope, positions, -1.0)?;
            let dq = b.q_norm.backward(kn, &dq, &s.q0, &s.rq)?;
            let dk = b.k_norm.backward(kn, &dk, &s.k0, &s.rk)?;
            let mut dh1 = b.q.backward(kn, &dq, &s.h1)?;
            kernel::add_into(kn, &mut dh1, &b.k.backward(kn, &dk, &s.h1)?)?;
            kernel::add_into(kn, &mut dh1, &b.v.backward(kn, &dv, &s.h1)?)?;
            dx = b.norm1.backward(kn, &dh1, &s.x, &s.r1)?;
            kernel::add_into(kn, &mut dx, &dmid)?;
        }
        self.embed.backward(kn, &dx, ids)
    }

    /// Forward and backward of one packed row. `coefficient(i, stats)` is d objective / d logp of `targets[i]`, for an
    /// objective that is minimised; gradients add up until the optimizer takes them.
    ///
    /// # Errors
    /// candle's, and rows that the model cannot take.
    pub fn train(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
        coefficient: impl FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        let kn = self.kernels;
        let (x, saved) = self.forward(ids, packing, true)?;
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let labels: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let x = layer::select_rows(&x, &rows)?;
        let (h, r) = self.norm.forward(kn, &x)?;
        let (stats, dh) = layer::score_backward(kn, &h, self.head_mut(), &labels, temperature, coefficient)?;
        let dx = self.norm.backward(kn, &dh, &x, &r)?;
        let dx = layer::scatter_rows(kn, &dx, &rows, ids.len(), &self.device)?;
        self.backward(dx, ids, packing, saved)?;
        Ok(stats)
    }

    /// Log-probability and entropy of each target, no gradient.
    ///
    /// # Errors
    /// As [`Model::train`].
    pub fn score(
        &self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
    ) -> Result<Vec<TokenStats>> {
        let (x, _) = self.forward(ids, packing, false)?;
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let labels: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let (h, _) = self.norm.forward(self.kernels, &layer::select_rows(&x, &rows)?)?;
        layer::score(self.kernels, &h, self.head(), &labels, temperature)
    }

    /// Logits (n, v) of every row.
    ///
    /// # Errors
    /// As [`Model::train`].
    pub fn logits(&self, ids: &[u32], packing: &Packing) -> Result<Tensor> {
        let (x, _) = self.forward(ids, packing, false)?;
        layer::logits(self.kernels, &self.norm.forward(self.kernels, &x)?.0, self.head())
    }

    /// An empty sequence to extend.
    pub fn sequence(&self) -> Sequence {
        self.sequence_in(&Arc::default())
    }

    /// An empty sequence that takes its memory from `pool`.
    pub fn sequence_in(&self, pool: &Arc<Pool>) -> Sequence {
        Sequence { layers: vec![Cache::new(self.kernels, pool); self.config.layers], ids: Vec::new() }
    }

    /// Bytes of keys and values of one token.
    pub fn token_bytes(&self) -> usize {
        self.config.layers * self.config.kv_heads * self.config.head_dim * 2 * size_of::<f32>()
    }

    /// Appends tokens to each sequence and returns the logits (sequences, v) after each one's last.
    ///
    /// # Errors
    /// As [`Model::train`].
    ///
    /// # Panics
    /// When a sequence is extended by nothing: a bug in the caller.
    pub fn extend(&self, batch: &mut [(&mut Sequence, &[u32])]) -> Result<Tensor> {
        let steps = batch.iter_mut().map(|(sequence, new)| Step { sequence, new, logits: true }).collect();
        self.advance(steps)
    }

    /// Appends tokens to sequences and returns the logits (m, v) after the last token of each of the m that want them.
    /// What only they need, the last layer and the head, is computed for them alone.
    ///
    /// # Errors
    /// As [`Model::train`].
    ///
    /// # Panics
    /// When a sequence is extended by nothing: a bug in the caller.
    pub fn advance(&self, mut steps: Vec<Step<'_>>) -> Result<Tensor> {
        let (kn, c) = (self.kernels, &self.config);
        let (mut ids, mut positions): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut last = Vec::new();
        for step in &steps {
            assert!(!step.new.is_empty(), "BUG: a sequence was extended by no token");
            let have = step.sequence.len();
            self.check_row(step.new, have + step.new.len())?;
            positions.extend((have..have + step.new.len()).map(|p| p as u32));
            ids.extend_from_slice(step.new);
            if step.logits {
                last.push(ids.len() as u32 - 1);
            }
        }
        let mut x = self.embed.forward(kn, &ids)?; // (n, hidden)
        for (i, b) in self.blocks.iter().enumerate() {
            let (mut h, _) = b.norm1.forward(kn, &x)?;
            let (k, _) = b.k_norm.forward(kn, &b.k.forward(kn, &h)?)?;
            let k = kernel::rope(kn, k, c.kv_heads, &self.rope, &positions, 1.0)?;
            let v = b.v.forward(kn, &h)?;
            let tail = i + 1 == self.blocks.len();
            if tail {
                // nobody looks at the other rows from here on
                (x, h) = (layer::select_rows(&x, &last)?, layer::select_rows(&h, &last)?);
                positions = last.iter().map(|row| positions[*row as usize]).collect();
            }
            let (q, _) = b.q_norm.forward(kn, &b.q.forward(kn, &h)?)?;
            let q = kernel::rope(kn, q, c.heads, &self.rope, &positions, 1.0)?;
            let mut from = 0;
            let parts = steps.iter_mut().map(|s| {
                let rows = from..from + s.new.len();
                from = rows.end;
                let queries = if tail { usize::from(s.logits) } else { rows.len() };
                CachedPart { cache: &mut s.sequence.layers[i], rows, queries }
            });
            let attn = kernel::cached_attention(&q, &k, &v, parts.collect(), self.heads())?;
            let mut mid = b.o.forward(kn, &attn)?;
            kernel::add_into(kn, &mut mid, &x)?;
            let (h2, _) = b.norm2.forward(kn, &mid)?;
            let a = kernel::swiglu(kn, &b.gate.forward(kn, &h2)?, &b.up.forward(kn, &h2)?)?;
            x = b.down.forward(kn, &a)?;
            kernel::add_into(kn, &mut x, &mid)?;
        }
        for step in &mut steps {
            step.sequence.ids.extend_from_slice(step.new);
        }
        let (h, _) = self.norm.forward(kn, &x)?;
        layer::logits(kn, &h, self.head())
    }
}
