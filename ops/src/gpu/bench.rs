//! How fast a device does what ops ask of it, beside what it can do at all.
//!
//! 1. Ceilings: bytes copied on the device a second, and bf16 products.
//! 2. Attention alone, forward and backward, as a share of the products' ceiling.
//! 3. Models of the shapes of Qwen3 with random weights: supervised training, updates of low-rank adapters, updates of policy
//!    optimisation with and without shared prompts, scoring, decoding.
//!
//! Invariants: what is timed was warmed up; a time is the device's, waited for; every figure says on what it was taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actloom_engine::op::OpError;
use candle_core::{Device, Result, Tensor};
use serde::Serialize;
use serde_json::json;

use super::attention::{Attend, Plan as Lists};
use super::driver::{Address, Driver, Element, Matrix, Product};
use super::engine::Engine;
use super::kernels::Qkv;
use super::memory::Arena;
use super::parts::{Addition, Purpose, Shape};
use super::sample::{Feed, Room};
use super::tape::Keep;
use super::tiles::{Keys, Tiles};
use super::update::Rule;
use crate::infer::sampling::{Draw, Sampling};
use crate::model::{Config, Target};
use crate::nn::Packing;
use crate::rng::Rng;

/// A figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// Of the ceiling that bounds it, where there is one.
    pub share: Option<f64>,
    /// What it was taken on.
    pub of: String,
}

/// What a device can do at all.
#[derive(Clone, Copy, Debug)]
struct Ceilings {
    /// Bytes read and written a second.
    bytes: f64,
    /// Floating-point operations a second.
    flops: f64,
}

/// Seconds of one round, the best of three, after one to warm up.
fn best(device: &dyn Driver, mut round: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for i in 0..4 {
        device.wait()?;
        let since = Instant::now();
        round()?;
        device.wait()?;
        if i > 0 {
            best = best.min(since.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Sizes of a Qwen3 model by its name.
fn qwen3(name: &str) -> Option<[usize; 5]> {
    // hidden, intermediate, layers, heads, tied
    Some(match name {
        "0.6B" => [1024, 3072, 28, 16, 1],
        "1.7B" => [2048, 6144, 28, 16, 1],
        "4B" => [2560, 9728, 36, 32, 1],
        "8B" => [4096, 12288, 36, 32, 0],
        _ => return None,
    })
}

/// The models that can be asked for.
pub const MODELS: &[&str] = &["0.6B", "1.7B", "4B", "8B"];

fn config(name: &str, layers: Option<usize>) -> std::result::Result<Config, OpError> {
    let Some([hidden, inner, all, heads, tied]) = qwen3(name) else {
        return Err(OpError::failed(format!("`{name}`, expected one of {}", MODELS.join(", "))));
    };
    Config::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers.unwrap_or(all), "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40_960,
        "tie_word_embeddings": tied == 1, "attention_bias": false, "eos_token_id": 151_645,
    }))
}

/// Linear layers that adapters are put on.
const ADAPTED: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

fn shape(config: &Config, train: Train) -> Shape {
    let mut shape = Shape::plain(config, train == Train::Full);
    if let Train::Lora(rank) = train {
        let layers: Vec<String> =
            (0..config.layers).flat_map(|i| ADAPTED.map(|part| format!("model.layers.{i}.{part}"))).collect();
        for layer in layers {
            let of = shape.parameters.iter().find(|p| p.0 == format!("{layer}.weight"));
            let Some((_, dims, _)) = of.cloned() else { continue };
            shape.parameters.push((format!("{layer}.lora_A.weight"), vec![rank, dims[1]], true));
            shape.parameters.push((format!("{layer}.lora_B.weight"), vec![dims[0], rank], true));
            shape.additions.push(Addition { layer, scale: 2.0, drops: false });
        }
    }
    shape
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Train {
    Full,
    Lora(usize),
    Nothing,
}

/// An engine with weights that are random enough: blocks of one pool, scaled.
fn engine(device: &Arc<dyn Driver>, config: &Config, train: Train, purpose: Purpose) -> Result<Engine> {
    let shape = shape(config, train);
    let mut engine = Engine::new(device.clone(), &shape, purpose)?;
    let mut rng = Rng::new(4, 2);
    let pool: Vec<f32> = (0..1 << 16).map(|_| (rng.normal() * 0.02) as f32).collect();
    for (i, (name, dims, _)) in shape.parameters.iter().enumerate() {
        let n: usize = dims.iter().product();
        let value = match dims.len() {
            1 => vec![1.0; n],
            _ => pool.iter().cycle().skip(i * 31).take(n).copied().collect(),
        };
        engine.write(name, &Tensor::from_vec(value, dims.as_slice(), &Device::Cpu)?)?;
    }
    engine.written()?;
    Ok(engine)
}

/// Everything, within about so much time; figures are reported as they are taken, and what did not fit is said.
///
/// # Errors
/// A model that is not known; the device's.
pub fn bench(
    device: &Arc<dyn Driver>,
    models: &[String],
    layers: Option<usize>,
    limit: Duration,
    report: &mut dyn FnMut(Figure),
    say: &mut dyn FnMut(String),
) -> std::result::Result<(), OpError> {
    let failed = |e: candle_core::Error| OpError::failed(e.to_string());
    let since = Instant::now();
    let ceilings = ceilings(device, report).map_err(failed)?;
    attention(device, ceilings, report).map_err(failed)?;
    for name in models {
        let config = config(name, layers)?;
        let name = match layers {
            Some(n) => format!("{name} cut to {n} layers"),
            None => name.clone(),
        };
        let jobs: [(&str, Job); 5] =
            [("decode", decode), ("score", score), ("lora", lora), ("sft", sft), ("grpo", grpo)];
        for (job, run) in jobs {
            if since.elapsed() > limit {
                say(format!("{name}, {job}: left out, {:.0} s have passed", since.elapsed().as_secs_f64()));
                continue;
            }
            if let Err(error) = run(device, &name, &config, ceilings, report) {
                say(format!("{name}, {job}: {error}"));
            }
        }
    }
    Ok(())
}

type Job = fn(&Arc<dyn Driver>, &str, &Config, Ceilings, &mut dyn FnMut(Figure)) -> Result<()>;

fn ceilings(device: &Arc<dyn Driver>, report: &mut dyn FnMut(Figure)) -> Result<Ceilings> {
    let (free, _) = device.free()?;
    let bytes = (free / 4).min(2 << 30) / 256 * 256;
    let base = device.reserve(2 * bytes)?;
    let mut run = || -> Result<Ceilings> {
        // SAFETY: within what was reserved
        let copy = best(&**device, || unsafe { device.copy(base.plus(bytes), base, bytes) })?;
        let n = (8192usize).min(((bytes / 8) as f64).sqrt() as usize / 256 * 256);
        let matrix = |i: usize| Matrix::new(base.plus(2 * n * n * i), Element::Bf16, n, n);
        // SAFETY: three matrices of these sizes fit
        let product = best(&**device, || unsafe {
            (0..8).try_for_each(|_| device.product(&Product::rows(matrix(0), matrix(1), matrix(2))))
        })?;
        let ceilings = Ceilings { bytes: 2.0 * bytes as f64 / copy, flops: 16.0 * (n as f64).powi(3) / product };
        let of = device.name();
        report(Figure {
            what: "copy on the device, read and written".into(),
            value: ceilings.bytes / 1e9,
            unit: "GB/s",
            share: None,
            of: of.clone(),
        });
        let what = format!("bf16 product {n} x {n} x {n}");
        report(Figure { what, value: ceilings.flops / 1e12, unit: "TFLOP/s", share: None, of });
        Ok(ceilings)
    };
    let done = run();
    // SAFETY: nothing more is asked for there
    unsafe { device.release(base)? };
    done
}

fn attention(device: &Arc<dyn Driver>, ceilings: Ceilings, report: &mut dyn FnMut(Figure)) -> Result<()> {
    const ROOM: usize = 1 << 30;
    let base = device.reserve(ROOM)?;
    let mut run = || -> Result<()> {
        for (heads, n) in [(Qkv { h: 16, hk: 8, d: 128 }, 4096), (Qkv { h: 16, hk: 8, d: 64 }, 4096)] {
            let mut arena = Arena::new(base, ROOM);
            let mut words = |x: &[u32]| -> Result<Address> {
                let at = arena.keep(4 * x.len())?;
                let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_ne_bytes()).collect();
                // SAFETY: just kept
                unsafe { device.write(at, &bytes)? };
                Ok(at)
            };
            let keys = Keys::of(&Packing::single(n));
            let tiles = Tiles::new(&keys, None, None);
            let lists = Lists {
                n_q: n,
                n_k: n,
                at: Address::NONE,
                vis_end: words(&keys.vis_end)?,
                positions: words(&keys.positions)?,
                by_query: (words(&tiles.by_query.first)?, words(&tiles.by_query.tiles)?),
                by_key: (words(&tiles.by_key.first)?, words(&tiles.by_key.tiles)?),
            };
            let mut room = |columns: usize, bytes: usize| arena.keep(bytes * n * columns);
            let (qkv, dqkv) = (room(heads.width(), 2)?, room(heads.width(), 2)?);
            let (out, dout) = (room(heads.h * heads.d, 2)?, room(heads.h * heads.d, 2)?);
            let (lse, delta) = (room(heads.h, 4)?, room(heads.h, 4)?);
            // SAFETY: just kept
            unsafe {
                device.clear(qkv, 2 * n * heads.width())?;
                device.clear(dout, 2 * n * heads.h * heads.d)?;
            }
            let attend = Attend::packed(qkv, heads, None, &lists);
            let forward = best(&**device, || (0..8).try_for_each(|_| attend.forward(&**device, out, lse)))? / 8.0;
            let backward =
                best(&**device, || (0..8).try_for_each(|_| attend.backward(&**device, dqkv, dout, out, lse, delta)))?
                    / 8.0;
            // two products of half a square each, as the causal mask leaves; the backward counts five
            let flops = 2.0 * (n as f64).powi(2) * (heads.h * heads.d) as f64;
            for (what, flops, seconds) in [("forward", flops, forward), ("backward", 2.5 * flops, backward)] {
                report(Figure {
                    what: format!("attention {what}, {n} tokens, {} heads of {}", heads.h, heads.d),
                    value: flops / seconds / 1e12,
                    unit: "TFLOP/s",
                    share: Some(flops / seconds / ceilings.flops),
                    of: device.name(),
                });
            }
        }
        Ok(())
    };
    let done = run();
    // SAFETY: nothing more is asked for there
    unsafe { device.release(base)? };
    done
}

/// Floating-point operations of a forward over so many tokens, without attention and head.
fn products(config: &Config) -> f64 {
    let (h, i) = (config.hidden_size as f64, config.intermediate_size as f64);
    let (q, kv) = ((config.heads * config.head_dim) as f64, (config.kv_heads * config.head_dim) as f64);
    2.0 * config.layers as f64 * (h * (q + 2.0 * kv) + q * h + 3.0 * h * i)
}

/// Tokens of the vocabulary, as random as the seed.
fn tokens(config: &Config, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, 1);
    (0..n).map(|_| rng.below(config.vocab_size) as u32).collect()
}

fn every_next(ids: &[u32]) -> Vec<Target> {
    (0..ids.len() - 1).map(|row| Target { row: row as u32, id: ids[row + 1] }).collect()
}

fn train(
    device: &Arc<dyn Driver>,
    (name, job): (&str, &str),
    config: &Config,
    how: (Train, usize),
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    let (train, n) = how;
    let purpose = Purpose { row_tokens: n, chunk: 2048, positions: n, ..Purpose::default() };
    let mut engine = engine(device, config, train, purpose)?;
    let kept = match engine.plan().keep {
        Keep::All | Keep::Nothing => "all of the forward kept",
        Keep::WithoutMlp => "gate and up made again",
        Keep::Inputs => "inputs of blocks kept",
    };
    let ids = tokens(config, n, 5);
    let (targets, packing) = (every_next(&ids), Packing::single(n));
    let rule = Rule { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: 1.0 };
    let mut number = 0;
    let seconds = best(&**device, || {
        number += 1;
        engine.train(&ids, &packing, &targets, 1.0, |_, _| -1.0 / n as f32)?;
        match engine.update(&rule, 1e-6, number)? {
            Ok(_) => Ok(()),
            Err(name) => candle_core::bail!("the gradient of `{name}` is not finite"),
        }
    })?;
    let head = 2.0 * (config.hidden_size * config.vocab_size) as f64;
    // full: forward, and twice that back; adapters: no gradient of the weights
    let times = if train == Train::Full { 3.0 } else { 2.0 };
    let flops = times * n as f64 * (products(config) + head);
    let plan = engine.plan().to_string();
    report(Figure {
        what: format!("{name}: {job}, packed to {n} tokens, {kept}"),
        value: n as f64 / seconds,
        unit: "tok/s",
        share: Some(flops / seconds / ceilings.flops),
        of: format!("{}; {plan}", device.name()),
    });
    Ok(())
}

fn sft(
    device: &Arc<dyn Driver>,
    name: &str,
    config: &Config,
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    train(device, (name, "supervised update, all weights"), config, (Train::Full, 2048), ceilings, report)
}

fn lora(
    device: &Arc<dyn Driver>,
    name: &str,
    config: &Config,
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    train(device, (name, "update of adapters of rank 16"), config, (Train::Lora(16), 4096), ceilings, report)
}

fn score(
    device: &Arc<dyn Driver>,
    name: &str,
    config: &Config,
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    let n = 4096;
    let purpose = Purpose { row_tokens: n, chunk: 2048, positions: n, ..Purpose::default() };
    let mut engine = engine(device, config, Train::Nothing, purpose)?;
    let ids = tokens(config, n, 6);
    let (targets, packing) = (every_next(&ids), Packing::single(n));
    let seconds = best(&**device, || engine.score(&ids, &packing, &targets, 1.0).map(|_| ()))?;
    let flops = n as f64 * (products(config) + 2.0 * (config.hidden_size * config.vocab_size) as f64);
    report(Figure {
        what: format!("{name}: log-probabilities of {n} tokens"),
        value: n as f64 / seconds,
        unit: "tok/s",
        share: Some(flops / seconds / ceilings.flops),
        of: device.name(),
    });
    Ok(())
}

/// Eight responses to each prompt, three times as long as one of them, as trees and each by itself.
fn grpo(
    device: &Arc<dyn Driver>,
    name: &str,
    config: &Config,
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    let (group, response) = (8, 128);
    let prompt = 3 * response;
    let rows = group * (prompt + response);
    let purpose = Purpose { row_tokens: rows, chunk: 2048, positions: 2048, ..Purpose::default() };
    let mut engine = engine(device, config, Train::Lora(16), purpose)?;
    let mut seconds = [0.0; 2];
    for (shared, seconds) in [false, true].into_iter().zip(&mut seconds) {
        let mut packing = Packing::new();
        let mut targets = Vec::new();
        let mut root = 0;
        for i in 0..group {
            if i == 0 || !shared {
                root = packing.root(prompt);
            }
            let before = packing.len();
            let child = packing.child(root, response);
            let first = packing.before(packing.rows(child).start).unwrap_or(before);
            targets.push(Target { row: first as u32, id: 7 });
            targets.extend((before..before + response - 1).map(|row| Target { row: row as u32, id: 8 }));
        }
        let ids = tokens(config, packing.len(), 7);
        *seconds = best(&**device, || engine.train(&ids, &packing, &targets, 1.0, |_, _| 1e-4).map(|_| ()))?;
    }
    let tokens = (group * response) as f64;
    let of = format!("{}, {group} responses of {response} tokens, prompt of {prompt}", device.name());
    let what = format!("{name}: policy update with shared prompts, tokens of responses");
    report(Figure { what, value: tokens / seconds[1], unit: "tok/s", share: None, of: of.clone() });
    let what = format!("{name}: policy update, shared prompts beside repeated ones");
    report(Figure { what, value: seconds[0] / seconds[1], unit: "times as fast", share: None, of });
    let _ = ceilings;
    Ok(())
}

fn decode(
    device: &Arc<dyn Driver>,
    name: &str,
    config: &Config,
    ceilings: Ceilings,
    report: &mut dyn FnMut(Figure),
) -> Result<()> {
    let context = 1024;
    let steps = 32;
    let positions = context + 4 * steps + 8;
    let per_token = 2 * 2 * config.layers * config.kv_heads * config.head_dim;
    for batch in [1usize, 64, 256] {
        let room = Room { rows: batch, chunk: 4096, tokens: batch * positions, reading: 8192 };
        let purpose = Purpose { row_tokens: 256, chunk: 256, positions, sample: Some(room), ..Purpose::default() };
        let mut engine = match engine(device, config, Train::Nothing, purpose) {
            Ok(engine) => engine,
            Err(_) if batch > 64 => continue, // does not fit: the smaller batches were reported
            Err(error) => return Err(error),
        };
        let mut held: Vec<_> = (0..batch).map(|_| engine.sequence()).collect();
        for (i, held) in held.iter_mut().enumerate() {
            let prompt = tokens(config, context, i as u64);
            engine.advance(&mut [Feed { held, new: &prompt, logits: false }])?;
        }
        let mut last = vec![vec![11u32]; batch];
        let settings = Sampling::plain(1.0, 1);
        let mut position = 0;
        let seconds = best(&**device, || {
            for _ in 0..steps {
                let draws: Vec<Draw> = (0..batch as u64)
                    .map(|i| Draw { settings: settings.clone(), open: None, place: (1, i, position) })
                    .collect();
                let mut feeds: Vec<Feed<'_>> = held
                    .iter_mut()
                    .zip(&last)
                    .map(|(held, new)| Feed { held, new: new.as_slice(), logits: true })
                    .collect();
                let drawn = engine.advance_drawing(&mut feeds, &draws)?;
                last = drawn.into_iter().map(|d| vec![d.id]).collect();
                position += 1;
            }
            Ok(())
        })?;
        let weights = products(config) + 2.0 * (config.hidden_size * config.vocab_size) as f64;
        let read = weights + (batch * (context + steps) * per_token) as f64;
        report(Figure {
            what: format!("{name}: decoding {batch} sequences after {context} tokens"),
            value: (batch * steps) as f64 / seconds,
            unit: "tok/s",
            share: Some(read * steps as f64 / seconds / ceilings.bytes),
            of: device.name(),
        });
    }
    Ok(())
}
