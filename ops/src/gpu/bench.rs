//! How fast a device does what ops ask of it, beside what it can do at all.
//!
//! 1. Ceilings: bytes copied on the device a second, and bf16 products.
//! 2. Attention alone, forward and backward, as a share of the products' ceiling.
//! 3. Models of the shapes of Qwen3 with random weights: supervised training, updates of low-rank adapters, updates of policy
//!    optimisation with and without shared prompts, scoring, decoding.
//!
//! Invariants: what is timed was warmed up; a time is the device's, waited for; no numbers are zeros, which a device multiplies with
//! less power and so faster; every figure says on what it was taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actloom_engine::op::OpError;
use candle_core::{Error, Result};
use serde::Serialize;
use serde_json::json;

use super::attention::{Attend, Plan as Lists};
use super::driver::{Address, Driver, Element, Matrix, Product};
use super::engine::Engine;
use super::kernels::Qkv;
use super::memory::Arena;
use super::parts::{Addition, Purpose, Shape};
use super::plan::Plan;
use super::sample::{Feed, Flight, Room, just_drawn};
use super::tape::Keep;
use super::tiles::{Keys, Tiles};
use super::update::Rule;
use super::weights::{fill, round};
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
pub const MODELS: [&str; 4] = ["0.6B", "1.7B", "4B", "8B"];

/// Layers of the deepest.
pub const LAYERS: u32 = 36;

/// A model, cut to so many layers if it has more.
fn config(name: &str, layers: Option<usize>) -> std::result::Result<Config, OpError> {
    let Some([hidden, inner, all, heads, tied]) = qwen3(name) else {
        return Err(OpError::failed(format!("`{name}`, expected one of {}", MODELS.join(", "))));
    };
    Config::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers.map_or(all, |n| n.min(all)), "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
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

/// Why a job came to no end.
enum Stop {
    /// What it needs is more than the device has.
    Room(String),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error)
    }
}

type Done = std::result::Result<(), Stop>;

/// Everything, within about so much time; figures are reported as they are taken, and what could not be taken is said. False where
/// that was for another reason than time and memory.
///
/// # Errors
/// A model that is not known.
pub fn bench(
    device: &Arc<dyn Driver>,
    models: &[String],
    layers: Option<usize>,
    limit: Duration,
    report: &mut dyn FnMut(Figure),
    say: &mut dyn FnMut(String),
) -> std::result::Result<bool, OpError> {
    let configs = models.iter().map(|name| config(name, layers)).collect::<std::result::Result<Vec<_>, _>>()?;
    let since = Instant::now();
    let mut fine = true;
    let ceilings = ceilings(device, report)
        .inspect_err(|error| {
            say(format!("what the device can do: {error}"));
            fine = false;
        })
        .ok();
    if let Err(error) = attention(device, ceilings, report) {
        say(format!("attention: {error}"));
        fine = false;
    }
    for (name, config) in models.iter().zip(&configs) {
        let name = match config.layers {
            n if qwen3(name).is_some_and(|sizes| n < sizes[2]) => format!("{name} cut to {n} layers"),
            _ => name.clone(),
        };
        let mut bench = Bench { device, name, config, ceilings, since, limit, report, say };
        for (job, run) in JOBS {
            if bench.is_late(job) {
                continue;
            }
            match run(&mut bench) {
                Ok(()) => {}
                Err(Stop::Room(why)) => bench.tell(job, &format!("does not fit: {why}")),
                Err(Stop::Failed(error)) => {
                    bench.tell(job, &error.to_string());
                    fine = false;
                }
            }
        }
    }
    Ok(fine)
}

/// Numbers of a normal distribution, so many that rows of matrices do not repeat soon.
fn pool(scale: f64) -> Vec<f32> {
    let mut rng = Rng::new(4, 2);
    (0..(1 << 16) - 8).map(|_| (rng.normal() * scale) as f32).collect()
}

fn halves(pool: &[f32]) -> Vec<u8> {
    pool.iter().flat_map(|x| round(*x).to_ne_bytes()).collect()
}

/// Work in reserved memory, which is given back whatever becomes of it; of two errors the work's counts.
fn within<T>(device: &dyn Driver, bytes: usize, work: impl FnOnce(Address) -> Result<T>) -> Result<T> {
    let base = device.reserve(bytes)?;
    let done = work(base);
    // SAFETY: nothing more is asked for there
    let released = unsafe { device.release(base) };
    let done = done?;
    released?;
    Ok(done)
}

fn ceilings(device: &Arc<dyn Driver>, report: &mut dyn FnMut(Figure)) -> Result<Ceilings> {
    let (free, _) = device.free()?;
    let bytes = (free / 4).min(2 << 30) / 256 * 256;
    within(&**device, 2 * bytes, |base| {
        // SAFETY: within what was reserved
        unsafe { fill(&**device, base, &halves(&pool(1.0)), 2 * bytes)? };
        // SAFETY: as above
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
    })
}

fn attention(device: &Arc<dyn Driver>, ceilings: Option<Ceilings>, report: &mut dyn FnMut(Figure)) -> Result<()> {
    const ROOM: usize = 1 << 30;
    let numbers = halves(&pool(1.0));
    within(&**device, ROOM, |base| {
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
                fill(&**device, qkv, &numbers, 2 * n * heads.width())?;
                fill(&**device, dout, &numbers, 2 * n * heads.h * heads.d)?;
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
                    share: ceilings.map(|most| flops / seconds / most.flops),
                    of: device.name(),
                });
            }
        }
        Ok(())
    })
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

/// What jobs are about.
struct Bench<'a> {
    device: &'a Arc<dyn Driver>,
    name: String,
    config: &'a Config,
    ceilings: Option<Ceilings>,
    since: Instant,
    limit: Duration,
    report: &'a mut dyn FnMut(Figure),
    say: &'a mut dyn FnMut(String),
}

type Job = fn(&mut Bench<'_>) -> Done;

/// In the order in which they are done.
const JOBS: [(&str, Job); 5] = [
    ("decode", |bench| bench.decode()),
    ("score", |bench| bench.score()),
    ("lora", |bench| bench.lora()),
    ("sft", |bench| bench.sft()),
    ("grpo", |bench| bench.grpo()),
];

impl Bench<'_> {
    fn tell(&mut self, job: &str, what: &str) {
        (self.say)(format!("{}, {job}: {what}", self.name));
    }

    /// Whether nothing more is begun, which is said.
    fn is_late(&mut self, job: &str) -> bool {
        let late = self.since.elapsed() > self.limit;
        if late {
            self.tell(job, "left out, the time is over");
        }
        late
    }

    fn figure(&mut self, what: &str, value: f64, unit: &'static str, share: Option<f64>, on: Option<String>) {
        let of = std::iter::once(self.device.name()).chain(on).collect::<Vec<_>>().join("; ");
        (self.report)(Figure { what: format!("{}: {what}", self.name), value, unit, share, of });
    }

    /// An engine with weights that are random enough: blocks of one pool.
    fn engine(&self, train: Train, purpose: Purpose) -> std::result::Result<Engine, Stop> {
        let shape = shape(self.config, train);
        let mut engine = Engine::new(self.device.clone(), &shape, purpose).map_err(|error| {
            let free = self.device.free().map_or(0, |free| free.0);
            let least = Plan::new(&shape, &purpose, Keep::Inputs, self.device.processors(), free);
            match least.is_ok_and(|plan| plan.bytes() > free && free > 0) {
                true => Stop::Room(error.to_string()),
                false => Stop::Failed(error),
            }
        })?;
        let pool = pool(0.02);
        for (i, (name, dims, _)) in shape.parameters.iter().enumerate() {
            match dims.len() {
                1 => engine.repeat(name, &[1.0])?,
                _ => engine.repeat(name, &pool[i * 31 % (1 << 15)..])?,
            }
        }
        engine.written()?;
        Ok(engine)
    }

    /// Floating-point operations of a token in the head.
    fn head(&self) -> f64 {
        2.0 * (self.config.hidden_size * self.config.vocab_size) as f64
    }

    fn train(&mut self, job: &str, train: Train, n: usize) -> Done {
        let purpose = Purpose { row_tokens: n, chunk: 2048, positions: n, ..Purpose::default() };
        let mut engine = self.engine(train, purpose)?;
        let kept = match engine.plan().keep {
            Keep::All | Keep::Nothing => "all of the forward kept",
            Keep::WithoutMlp => "gate and up made again",
            Keep::Inputs => "inputs of blocks kept",
        };
        let ids = tokens(self.config, n, 5);
        let (targets, packing) = (every_next(&ids), Packing::single(n));
        let mut number = 0;
        let seconds = best(&**self.device, || {
            engine.train(&ids, &packing, &targets, 1.0, |_, _| -1.0 / n as f32)?;
            update(&mut engine, &mut number)
        })?;
        // full: forward, and twice that back; adapters: no gradient of the weights
        let times = if train == Train::Full { 3.0 } else { 2.0 };
        let flops = times * n as f64 * (products(self.config) + self.head());
        let share = self.ceilings.map(|most| flops / seconds / most.flops);
        let what = format!("{job}, packed to {n} tokens, {kept}");
        self.figure(&what, n as f64 / seconds, "tok/s", share, Some(engine.plan().to_string()));
        Ok(())
    }

    fn sft(&mut self) -> Done {
        self.train("supervised update, all weights", Train::Full, 2048)
    }

    fn lora(&mut self) -> Done {
        self.train("update of adapters of rank 16", Train::Lora(16), 4096)
    }

    fn score(&mut self) -> Done {
        let n = 4096;
        let purpose = Purpose { row_tokens: n, chunk: 2048, positions: n, ..Purpose::default() };
        let mut engine = self.engine(Train::Nothing, purpose)?;
        let ids = tokens(self.config, n, 6);
        let (targets, packing) = (every_next(&ids), Packing::single(n));
        let seconds = best(&**self.device, || engine.score(&ids, &packing, &targets, 1.0).map(|_| ()))?;
        let flops = n as f64 * (products(self.config) + self.head());
        let share = self.ceilings.map(|most| flops / seconds / most.flops);
        self.figure(&format!("log-probabilities of {n} tokens"), n as f64 / seconds, "tok/s", share, None);
        Ok(())
    }

    /// Eight responses to each prompt, three times as long as one of them, as trees and each by itself.
    fn grpo(&mut self) -> Done {
        let (group, response) = (8, 128);
        let prompt = 3 * response;
        let rows = group * (prompt + response);
        let purpose = Purpose { row_tokens: rows, chunk: 2048, positions: 2048, ..Purpose::default() };
        let mut engine = self.engine(Train::Lora(16), purpose)?;
        let mut seconds = [0.0; 2];
        let mut number = 0;
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
            let ids = tokens(self.config, packing.len(), 7);
            *seconds = best(&**self.device, || {
                engine.train(&ids, &packing, &targets, 1.0, |_, _| 1e-4)?;
                update(&mut engine, &mut number)
            })?;
        }
        let tokens = (group * response) as f64;
        let on = format!("{group} responses of {response} tokens, prompt of {prompt}");
        let what = "policy update with shared prompts, tokens of responses";
        self.figure(what, tokens / seconds[1], "tok/s", None, Some(on.clone()));
        let what = "policy update, shared prompts beside repeated ones";
        self.figure(what, seconds[0] / seconds[1], "times as fast", None, Some(on));
        Ok(())
    }

    fn decode(&mut self) -> Done {
        for batch in [1, 64, 256] {
            let job = format!("decode {batch}");
            if batch > 1 && self.is_late(&job) {
                continue;
            }
            match self.decode_beside(batch) {
                // fewer fitted; of more it is said, too
                Err(Stop::Room(why)) if batch > 1 => self.tell(&job, &format!("does not fit: {why}")),
                done => done?,
            }
        }
        Ok(())
    }

    /// So many sequences side by side.
    fn decode_beside(&mut self, batch: usize) -> Done {
        let context = 1024;
        let steps = 32;
        let positions = context + 4 * steps + 8;
        let per_token = 2 * 2 * self.config.layers * self.config.kv_heads * self.config.head_dim;
        let room = Room { rows: batch, chunk: 4096, tokens: batch * positions, reading: 8192 };
        let purpose = Purpose { row_tokens: 256, chunk: 256, positions, sample: Some(room), ..Purpose::default() };
        let mut engine = self.engine(Train::Nothing, purpose)?;
        let mut held: Vec<_> = (0..batch).map(|_| engine.sequence()).collect();
        for (i, held) in held.iter_mut().enumerate() {
            let prompt = tokens(self.config, context, i as u64);
            engine.advance(&mut [Feed { held, new: &prompt, logits: false }])?;
        }
        // tokens are looked at a step late, as by the sampler
        let (mut new, mut before): (Vec<u32>, Option<Flight>) = (vec![11; batch], None);
        let settings = Sampling::plain(1.0, 1);
        let mut position = 0;
        let seconds = best(&**self.device, || {
            for _ in 0..steps {
                let draws: Vec<Draw> = (0..batch as u64)
                    .map(|i| Draw { settings: settings.clone(), open: None, place: (1, i, position) })
                    .collect();
                let mut feeds: Vec<Feed<'_>> =
                    held.iter_mut().zip(new.chunks(1)).map(|(held, new)| Feed { held, new, logits: true }).collect();
                let flight = engine.draw(&mut feeds, &draws, before.as_mut())?;
                if let Some(mut seen) = before.replace(flight) {
                    seen.wait()?;
                }
                new = (0..batch).map(just_drawn).collect();
                position += 1;
            }
            before.as_mut().map_or(Ok(()), |last| last.wait().map(|_| ()))
        })?;
        // two bytes of each weight, which are two operations of each token
        let read = products(self.config) + self.head() + (batch * (context + steps) * per_token) as f64;
        let share = self.ceilings.map(|most| read * steps as f64 / seconds / most.bytes);
        let what = format!("decoding {batch} sequences after {context} tokens");
        self.figure(&what, (batch * steps) as f64 / seconds, "tok/s", share, None);
        Ok(())
    }
}

/// An update as trainers do it.
fn update(engine: &mut Engine, number: &mut u64) -> Result<()> {
    let rule = Rule { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: 1.0 };
    *number += 1;
    match engine.update(&rule, 1e-6, *number)? {
        Ok(_) => Ok(()),
        Err(name) => candle_core::bail!("the gradient of `{name}` is not finite"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Arg, Dry, Launch, Recorded, Ticket};
    use super::*;

    /// Computes nothing, in so much memory; may fail at every launch.
    struct Still {
        memory: usize,
        broken: bool,
    }

    const DRY: Dry = Dry { processors: 8 };

    impl Driver for Still {
        fn name(&self) -> String {
            "a still device".to_owned()
        }

        fn processors(&self) -> usize {
            DRY.processors()
        }

        fn free(&self) -> Result<(usize, usize)> {
            Ok((self.memory, self.memory))
        }

        fn reserve(&self, bytes: usize) -> Result<Address> {
            DRY.reserve(bytes)
        }

        unsafe fn release(&self, _at: Address) -> Result<()> {
            match self.broken {
                true => candle_core::bail!("memory was not given back"),
                false => Ok(()),
            }
        }

        unsafe fn launch(&self, _kernel: &'static str, _launch: Launch, _args: &[Arg]) -> Result<()> {
            match self.broken {
                true => candle_core::bail!("a launch failed"),
                false => Ok(()),
            }
        }

        unsafe fn product(&self, product: &Product) -> Result<()> {
            // SAFETY: touches nothing
            unsafe { DRY.product(product) }
        }

        unsafe fn clear(&self, _at: Address, _bytes: usize) -> Result<()> {
            Ok(())
        }

        unsafe fn write(&self, _to: Address, _from: &[u8]) -> Result<()> {
            Ok(())
        }

        unsafe fn read(&self, _from: Address, to: &mut [u8]) -> Result<()> {
            // all bits set is also what an update says when no gradient was bad
            to.fill(0xff);
            Ok(())
        }

        unsafe fn read_later(&self, from: Address, bytes: usize) -> Result<Box<dyn Ticket>> {
            // SAFETY: touches nothing of the device
            unsafe { DRY.read_later(from, bytes) }
        }

        unsafe fn copy(&self, _to: Address, _from: Address, _bytes: usize) -> Result<()> {
            Ok(())
        }

        fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recorded>> {
            DRY.record(work)
        }

        fn wait(&self) -> Result<()> {
            Ok(())
        }
    }

    /// Whether all was fine, what was measured, and what was said.
    fn measured(memory: usize, broken: bool, limit: u64) -> (bool, Vec<String>, Vec<String>) {
        let device: Arc<dyn Driver> = Arc::new(Still { memory, broken });
        let (mut figures, mut said) = (Vec::new(), Vec::new());
        let (models, limit) = (["0.6B".to_owned()], Duration::from_secs(limit));
        let mut report = |figure: Figure| figures.push(figure.what);
        // a trace may follow where the environment asks for one
        let mut say = |text: String| said.extend(text.lines().next().map(str::to_owned));
        let fine = bench(&device, &models, Some(1), limit, &mut report, &mut say);
        (fine.unwrap(), figures, said)
    }

    #[test]
    fn every_job_is_measured_and_what_does_not_fit_or_comes_too_late_is_said_and_no_failure() {
        let (fine, figures, said) = measured(200 << 30, false, 600);
        assert!(fine && said.is_empty(), "{said:?}");
        // two ceilings, attention twice in both directions, three decodings, one of each other job and two of the last
        assert_eq!(figures.len(), 2 + 4 + 3 + 3 + 2, "{figures:#?}");
        let (fine, figures, said) = measured(1 << 30, false, 600);
        assert!(fine && figures.len() < 14);
        let all = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
        let sft = "0.6B cut to 1 layers, sft: does not fit: there is no room for ";
        assert!(all(sft) == 1 && said.iter().all(|line| line.contains("does not fit")), "{said:#?}");
        for (mib, fits) in [(1024, 2), (600, 1)] {
            let (_, figures, said) = measured(mib << 20, false, 600);
            let decoded = figures.iter().filter(|what| what.contains("decoding ")).count();
            let refused = said.iter().filter(|line| line.contains(", decode ")).count();
            assert!(decoded == fits && refused == 3 - fits, "{mib} MiB: {figures:#?}\n{said:#?}");
        }
        let (fine, _, said) = measured(200 << 30, false, 0);
        assert!(fine && said.len() == 5 && said.iter().all(|line| line.ends_with("the time is over")), "{said:#?}");
    }

    #[test]
    fn a_job_that_fails_is_a_failure_with_its_own_error_and_the_others_are_tried() {
        let (fine, figures, said) = measured(200 << 30, true, 600);
        assert!(!fine && figures.iter().all(|what| !what.contains("0.6B")), "{figures:#?}");
        // giving memory back fails, too, which is not what is said
        let jobs = said.iter().filter(|line| line.starts_with("0.6B") && line.contains("a launch failed")).count();
        assert!(jobs == 5 && said.iter().any(|line| line == "attention: a launch failed"), "{said:#?}");
    }

    #[test]
    fn no_model_has_more_layers_than_may_be_asked_for_or_than_it_has() {
        let layers = |name, most| config(name, most).unwrap().layers;
        assert_eq!(MODELS.iter().map(|name| layers(name, None) as u32).max(), Some(LAYERS));
        assert_eq!(["0.6B", "8B"].map(|name| layers(name, Some(30))), [28, 30]);
    }

    #[test]
    fn a_model_that_is_not_known_is_refused_before_anything_is_measured() {
        let device: Arc<dyn Driver> = Arc::new(Still { memory: 1 << 30, broken: false });
        let models = ["0.6B".to_owned(), "7B".to_owned()];
        let mut nothing = |figure: Figure| panic!("{figure:?}");
        let error = bench(&device, &models, None, Duration::ZERO, &mut nothing, &mut |line| panic!("{line}"));
        assert!(error.unwrap_err().to_string().contains("`7B`, expected one of 0.6B"));
    }
}
