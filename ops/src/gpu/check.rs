//! Whether a device computes what it should: every kernel against float64 or the processor's own code.
//!
//! 1. Products, attention over packed rows and over pages, statistics of the head, draws, updates: kernel by kernel, over shapes
//!    that are ragged on purpose.
//! 2. Whole models of every family, forward and backward, against the processor's.
//! 3. The same work twice, to the same bits.
//!
//! Invariants: outputs are poisoned before a kernel runs; inputs are fresh for every check; a check that cannot run has failed.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use serde_json::{Value, json};

use super::attention::{Attend, Plan};
use super::cached::{Batch, Cached, Caches};
use super::driver::{Address, Driver, Element, Form, Matrix, Product};
use super::engine::Engine;
use super::kernels::Qkv;
use super::memory::Arena;
use super::parts::{Purpose, Shape};
use super::sample::{Feed, Room};
use super::tape::Keep;
use super::tiles::{Keys, Tiles};
use super::update::Rule;
use super::weights::round;
use crate::infer::sampling::{Draw, Sampling, Scratch, draw};
use crate::model::{Config, Model, Target};
use crate::nn::Packing;
use crate::nn::layer::TokenStats;
use crate::rng::Rng;
use crate::train::optimizer::{AdamW, Optimizer};

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Finding {
    pub what: String,
    /// Largest error, relative to the largest number; infinite where something was not a number.
    pub error: f64,
    /// The largest that is fine.
    pub limit: f64,
}

impl Finding {
    pub fn fine(&self) -> bool {
        self.error <= self.limit
    }
}

/// Memory to check in.
const ROOM: usize = 192 << 20;

struct Bench<'a> {
    device: &'a dyn Driver,
    arena: Arena,
    rng: Rng,
    report: &'a mut dyn FnMut(Finding),
}

/// Runs all checks; each finding is reported as it is made.
///
/// # Errors
/// The device's: what it was asked for could not be done at all.
pub fn check(device: &Arc<dyn Driver>, report: &mut dyn FnMut(Finding)) -> Result<()> {
    let base = device.reserve(ROOM)?;
    let mut bench = Bench { device: &**device, arena: Arena::new(base, ROOM), rng: Rng::new(20, 26), report };
    let done = bench.kernels();
    // SAFETY: nothing more is asked for there
    let released = unsafe { device.release(base) };
    done?;
    released?;
    models(device, report)
}

/// As bf16 holds it.
fn half(x: f32) -> f32 {
    f32::from_bits(u32::from(round(x)) << 16)
}

/// Largest error of `got` in units of the largest `want`.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let scale = want.iter().fold(1e-30, |m: f64, w| m.max(w.abs()));
    let off = |(g, w): (&f32, &f64)| {
        let e = (f64::from(*g) - w).abs() / scale;
        if e.is_nan() { f64::INFINITY } else { e }
    };
    if got.len() == want.len() { got.iter().zip(want).map(off).fold(0.0, f64::max) } else { f64::INFINITY }
}

impl Bench<'_> {
    fn normal(&mut self, n: usize, scale: f64) -> Vec<f32> {
        (0..n).map(|_| half((self.rng.normal() * scale) as f32)).collect()
    }

    fn found(&mut self, what: impl Into<String>, got: &[f32], want: &[f64], limit: f64) {
        let error = error(got, want);
        (self.report)(Finding { what: what.into(), error, limit });
    }

    fn holds(&mut self, what: impl Into<String>, fine: bool) {
        (self.report)(Finding { what: what.into(), error: if fine { 0.0 } else { f64::INFINITY }, limit: 0.0 });
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<Address> {
        let at = self.arena.keep(bytes.len())?;
        // SAFETY: just kept
        unsafe { self.device.write(at, bytes)? };
        Ok(at)
    }

    fn floats(&mut self, x: &[f32]) -> Result<Address> {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    fn halves(&mut self, x: &[f32]) -> Result<Address> {
        let bytes: Vec<u8> = x.iter().flat_map(|x| round(*x).to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    fn words(&mut self, x: &[u32]) -> Result<Address> {
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    /// Room whose every number is none.
    fn poisoned(&mut self, bytes: usize) -> Result<Address> {
        self.bytes(&vec![0xff; bytes])
    }

    fn read(&self, at: Address, n: usize, element: Element) -> Result<Vec<f32>> {
        let mut bytes = vec![0; n * element.bytes()];
        // SAFETY: the checks' own memory
        unsafe { self.device.read(at, &mut bytes)? };
        Ok(match element {
            Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::Bf16 => bytes
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_ne_bytes([b[0], b[1]])) << 16))
                .collect(),
        })
    }

    fn kernels(&mut self) -> Result<()> {
        for (form, m, n, k) in [
            (Form::Rows, 5, 24, 16),
            (Form::Rows, 130, 200, 72),
            (Form::Back, 33, 64, 136),
            (Form::Weight, 64, 40, 77),
            (Form::Rows, 1, 512, 256),
        ] {
            for out in [Element::F32, Element::Bf16] {
                self.product(form, (m, n, k), out)?;
            }
        }
        for (d, h, hk) in [(32, 4, 2), (64, 4, 1), (128, 2, 2), (24, 2, 1)] {
            for window in [None, Some(37)] {
                self.attention(Qkv { h, hk, d }, window)?;
                self.decode(Qkv { h, hk, d }, window)?;
            }
        }
        self.draws()
    }

    fn product(&mut self, form: Form, (m, n, k): (usize, usize, usize), out: Element) -> Result<()> {
        let mark = self.arena.kept();
        let (rows_a, columns_a) = if form == Form::Weight { (k, m) } else { (m, k) };
        let (rows_b, columns_b) = if form == Form::Rows { (n, k) } else { (k, n) };
        let (a, b) = (self.normal(rows_a * columns_a, 1.0), self.normal(rows_b * columns_b, 1.0));
        let before = self.normal(m * n, 3.0);
        let at = |i: usize, l: usize| f64::from(if form == Form::Weight { a[l * m + i] } else { a[i * k + l] });
        let bt = |l: usize, j: usize| f64::from(if form == Form::Rows { b[j * k + l] } else { b[l * n + j] });
        let want: Vec<f64> = (0..m * n).map(|e| (0..k).map(|l| at(e / n, l) * bt(l, e % n)).sum::<f64>()).collect();
        let ma = Matrix::new(self.halves(&a)?, Element::Bf16, rows_a, columns_a);
        let mb = Matrix::new(self.halves(&b)?, Element::Bf16, rows_b, columns_b);
        for add in [false, true] {
            let c = match (add, out) {
                (false, _) => self.poisoned(m * n * out.bytes())?,
                (true, Element::F32) => self.floats(&before)?,
                (true, Element::Bf16) => self.halves(&before)?,
            };
            let c = Matrix::new(c, out, m, n);
            // SAFETY: the checks' own memory, of these sizes
            unsafe { self.device.product(&Product { form, a: ma, b: mb, c, scale: 0.5, add })? };
            let got = self.read(c.at, m * n, out)?;
            let add_to = |(w, b): (&f64, &f32)| 0.5 * w + if add { f64::from(*b) } else { 0.0 };
            let want: Vec<f64> = want.iter().zip(&before).map(add_to).collect();
            let limit = if out == Element::F32 { 1e-5 } else { 5e-3 };
            self.found(format!("product {form:?} {m} x {n} x {k} into {out:?}, add {add}"), &got, &want, limit);
        }
        self.arena.reset(mark);
        Ok(())
    }

    /// Attention forward and backward over trees.
    fn attention(&mut self, heads: Qkv, window: Option<usize>) -> Result<()> {
        let mark = self.arena.kept();
        let mut packing = Packing::new();
        let root = packing.root(60);
        packing.child(root, 30);
        let child = packing.child(root, 71);
        packing.child(child, 20);
        packing.root(100);
        let (n, Qkv { h, hk, d }) = (packing.len(), heads);
        let qkv = self.normal(n * heads.width(), 1.0);
        let dout = self.normal(n * h * d, 1.0);
        let keys = Keys::of(&packing);
        let tiles = Tiles::new(&keys, None, window);
        let plan = Plan {
            n_q: n,
            n_k: n,
            at: Address::NONE,
            vis_end: self.words(&keys.vis_end)?,
            positions: self.words(&keys.positions)?,
            by_query: (self.words(&tiles.by_query.first)?, self.words(&tiles.by_query.tiles)?),
            by_key: (self.words(&tiles.by_key.first)?, self.words(&tiles.by_key.tiles)?),
        };
        let (at, dout_at) = (self.halves(&qkv)?, self.halves(&dout)?);
        let (out, lse) = (self.poisoned(2 * n * h * d)?, self.poisoned(4 * n * h)?);
        let (dqkv, delta) = (self.poisoned(2 * n * heads.width())?, self.poisoned(4 * n * h)?);
        let attend = Attend::packed(at, heads, window, &plan);
        attend.forward(self.device, out, lse)?;
        attend.backward(self.device, dqkv, dout_at, out, lse, delta)?;
        let sees = |q: usize, k: usize| {
            let near = window.is_none_or(|w| (keys.positions[q] as usize) < keys.positions[k] as usize + w);
            k <= q && q < keys.vis_end[k] as usize && near
        };
        let reference = reference(heads, n, (&qkv, &dout), sees);
        let of = format!("attention d {d}, {h} heads over {hk}, window {window:?}");
        let got = self.read(out, n * h * d, Element::Bf16)?;
        self.found(format!("{of}: output"), &got, &reference.out, 1e-2);
        let got = self.read(dqkv, n * heads.width(), Element::Bf16)?;
        for (part, from, to) in
            [("queries", 0, h * d), ("keys", h * d, (h + hk) * d), ("values", (h + hk) * d, heads.width())]
        {
            let width = heads.width();
            let columns = |x: usize| (from..to).contains(&(x % width));
            let got: Vec<f32> = got.iter().enumerate().filter(|(i, _)| columns(*i)).map(|(_, x)| *x).collect();
            let want: Vec<f64> =
                reference.dqkv.iter().enumerate().filter(|(i, _)| columns(*i)).map(|(_, x)| *x).collect();
            self.found(format!("{of}: gradient of {part}"), &got, &want, 1.5e-2);
        }
        self.arena.reset(mark);
        Ok(())
    }

    /// Attention of one token over pages, which lie in disorder.
    fn decode(&mut self, heads: Qkv, window: Option<usize>) -> Result<()> {
        let mark = self.arena.kept();
        let Qkv { h, hk, d } = heads;
        let lengths = [1usize, 64, 65, 700, 0, 333];
        let max_pages = 11;
        let pages = lengths.len() * max_pages;
        let width = hk * d;
        let (k, v) = (self.normal(pages * 64 * width, 1.0), self.normal(pages * 64 * width, 1.0));
        let q = self.normal(lengths.len() * heads.width(), 1.0);
        let table: Vec<u32> = (0..pages as u32).map(|i| (i * 7 + 3) % pages as u32).collect();
        let (k_at, v_at) = (self.halves(&k)?, self.halves(&v)?);
        let (q_at, table_at) = (self.halves(&q)?, self.words(&table)?);
        let lengths_at = self.words(&lengths.map(|l| l as u32))?;
        let out = self.poisoned(2 * lengths.len() * h * d)?;
        for splits in [1, 5] {
            let (parts, stats, done) = Batch::bytes(lengths.len(), splits, heads);
            let (parts, stats, done_at) = (self.poisoned(parts)?, self.poisoned(stats)?, self.arena.keep(done)?);
            // SAFETY: just kept
            unsafe { self.device.clear(done_at, done)? };
            let batch = Batch {
                rows: lengths.len(),
                pages: table_at,
                max_pages,
                lengths: lengths_at,
                splits,
                parts,
                stats,
                done: done_at,
            };
            let caches = Caches { k: k_at, v: v_at, layer: 0 };
            let cached = Cached { caches, slots: Address::NONE, batch: Some(batch), readings: Vec::new() };
            cached.forward(self.device, q_at, out, heads, (0, window))?;
            let got = self.read(out, lengths.len() * h * d, Element::Bf16)?;
            let mut want = vec![0.0; lengths.len() * h * d];
            for (b, length) in lengths.iter().enumerate() {
                let from = window.map_or(0, |w| length.saturating_sub(w));
                let row = |token: usize| {
                    let page = table[b * max_pages + token / 64] as usize;
                    (page * 64 + token % 64) * width
                };
                for head in 0..h {
                    let kv = head / (h / hk) * d;
                    let query = &q[b * heads.width() + head * d..][..d];
                    let score = |t: usize| dot(query, &k[row(t) + kv..][..d]) / (d as f64).sqrt();
                    let scores: Vec<f64> = (from..*length).map(score).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    for (i, s) in scores.iter().enumerate() {
                        let p = (s - top).exp() / total;
                        for e in 0..d {
                            want[(b * h + head) * d + e] += p * f64::from(v[row(from + i) + kv + e]);
                        }
                    }
                }
            }
            let what = format!("decoding d {d}, {h} heads over {hk}, window {window:?}, {splits} splits");
            self.found(what, &got, &want, 1e-2);
        }
        self.arena.reset(mark);
        Ok(())
    }

    /// Draws of the device beside the processor's, from the same logits and uniform numbers.
    fn draws(&mut self) -> Result<()> {
        for (v, settings) in [
            (67, Sampling::plain(1.0, 1)),
            (151_936, Sampling::plain(0.7, 1)),
            (5_000, Sampling { temperature: 0.0, ..Sampling::default() }),
            (32_000, Sampling { top_k: 50, ..Sampling::default() }),
            (32_000, Sampling { top_p: 0.9, temperature: 1.3, ..Sampling::default() }),
            (32_000, Sampling { top_k: 200, top_p: 0.95, min_p: 0.02, ..Sampling::default() }),
        ] {
            let (mark, lent) = (self.arena.kept(), self.arena.lent());
            let rows = 8;
            let stride = (v as usize).next_multiple_of(8);
            let logits: Vec<f32> = (0..rows * stride).map(|_| (self.rng.normal() * 2.5) as f32).collect();
            let at = self.floats(&logits)?;
            let draws: Vec<Draw> =
                (0..rows).map(|r| Draw { settings: settings.clone(), open: None, place: (9, r as u64, 3) }).collect();
            let matrix = Matrix { at, element: Element::F32, rows, columns: v as usize, stride };
            let got = super::sample::draw_from(self.device, &mut self.arena, matrix, &draws)?;
            let (mut same, mut off) = (0, 0.0f64);
            for (r, got) in got.iter().enumerate() {
                let mut rng = Rng::new(9, r as u64);
                for _ in 0..3 {
                    rng.uniform();
                }
                let row = &logits[r * stride..][..v as usize];
                let want = draw(row, &settings, None, &mut rng, &mut Scratch::default());
                if got.id == want.id {
                    same += 1;
                    off = off.max(f64::from((got.logp - want.logp).abs().max((got.full - want.full).abs())));
                }
            }
            let what =
                format!("draws from {v} at {} top_k {} top_p {}", settings.temperature, settings.top_k, settings.top_p);
            // a uniform number at a boundary may fall to the other side of it
            self.holds(format!("{what}: {same} of {rows} tokens are the processor's"), same + 1 >= rows);
            (self.report)(Finding { what: format!("{what}: log-probabilities"), error: off, limit: 2e-5 });
            self.arena.reset(mark);
            self.arena.forget(lent);
        }
        Ok(())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

struct Reference {
    out: Vec<f64>,
    dqkv: Vec<f64>,
}

/// Attention and its gradients by their definition, in float64.
fn reference(heads: Qkv, n: usize, (qkv, dout): (&[f32], &[f32]), sees: impl Fn(usize, usize) -> bool) -> Reference {
    let Qkv { h, hk, d } = heads;
    let (width, scale) = (heads.width(), 1.0 / (d as f64).sqrt());
    let mut out = vec![0.0; n * h * d];
    let mut dqkv = vec![0.0; n * width];
    for head in 0..h {
        let (q, k, v) = (head * d, (h + head / (h / hk)) * d, (h + hk + head / (h / hk)) * d);
        for row in 0..n {
            let query = &qkv[row * width + q..][..d];
            let seen: Vec<usize> = (0..n).filter(|key| sees(row, *key)).collect();
            let scores: Vec<f64> = seen.iter().map(|key| scale * dot(query, &qkv[key * width + k..][..d])).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            let p: Vec<f64> = scores.iter().map(|s| (s - top).exp() / total).collect();
            let go = &dout[(row * h + head) * d..][..d];
            let dp: Vec<f64> = seen.iter().map(|key| dot(go, &qkv[key * width + v..][..d])).collect();
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
            for ((key, p), dp) in seen.iter().zip(&p).zip(&dp) {
                let ds = p * (dp - mean) * scale;
                for e in 0..d {
                    out[(row * h + head) * d + e] += p * f64::from(qkv[key * width + v + e]);
                    dqkv[row * width + q + e] += ds * f64::from(qkv[key * width + k + e]);
                    dqkv[key * width + k + e] += ds * f64::from(query[e]);
                    dqkv[key * width + v + e] += p * f64::from(go[e]);
                }
            }
        }
    }
    Reference { out, dqkv }
}

/// A small config of a family.
fn config(family: &str, d: usize) -> Value {
    let mut config = json!({
        "model_type": family, "vocab_size": 331, "hidden_size": 128, "intermediate_size": 200, "num_hidden_layers": 3,
        "num_attention_heads": 128 / d, "num_key_value_heads": 1, "head_dim": d, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": family == "qwen3", "eos_token_id": 1,
    });
    if family == "olmo3" {
        config["sliding_window"] = json!(40);
        config["layer_types"] = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    }
    config
}

/// Statistics of targets, gradients, their norm, and the weights after an update.
type Outcome = (Vec<TokenStats>, Vec<Vec<f32>>, f64, Vec<Vec<f32>>);

/// Whole models: passes, updates and sampling beside the processor's.
fn models(device: &Arc<dyn Driver>, report: &mut dyn FnMut(Finding)) -> Result<()> {
    let refused = |e: actloom_engine::op::OpError| candle_core::Error::Msg(e.to_string());
    for (family, d) in [("qwen3", 64), ("qwen2", 64), ("llama", 32), ("olmo3", 128), ("qwen3", 16)] {
        let config = Config::from_json(&config(family, d)).map_err(refused)?;
        let mut model = Model::random(config, 7).map_err(refused)?;
        let mut rng = Rng::new(1, d as u64);
        for p in model.params_mut() {
            // larger than fresh weights, so that everything matters, and such as bf16 holds
            let grown = if p.value.rank() == 1 { p.value.clone() } else { (&p.value * 4.0)? };
            let noise: Vec<f32> = (0..grown.elem_count()).map(|_| (rng.normal() * 0.05) as f32).collect();
            let noise = Tensor::from_vec(noise, grown.shape(), &Device::Cpu)?;
            p.value = (grown + noise)?.to_dtype(DType::BF16)?.to_dtype(DType::F32)?;
            p.changed();
        }
        let of = format!("{family}, head dimension {d}");
        let mut found = |what: &str, got: &[f32], want: &[f32], limit: f64| {
            let square = |x: f64| x * x;
            let (mut off, mut size) = (0.0, 1e-30);
            for (g, w) in got.iter().zip(want) {
                off += square(f64::from(*g) - f64::from(*w));
                size += square(f64::from(*w));
            }
            let error = if got.len() == want.len() { f64::sqrt(off / size) } else { f64::INFINITY };
            let error = if error.is_nan() { f64::INFINITY } else { error };
            report(Finding { what: format!("{of}: {what}"), error, limit });
        };
        let mut packing = Packing::new();
        let root = packing.root(70);
        packing.child(root, 40);
        packing.child(root, 33);
        packing.root(90);
        let ids: Vec<u32> = (0..packing.len()).map(|_| rng.below(331) as u32).collect();
        let targets: Vec<Target> =
            (0..packing.len()).step_by(2).map(|row| Target { row: row as u32, id: ids[row / 3] }).collect();
        let coefficient = |i: usize, s: TokenStats| ((i as f32).sin() + 0.1 * s.logp) / 40.0;
        let room = Room { rows: 4, chunk: 128, tokens: 1024, reading: 512 };
        let purpose = Purpose {
            row_tokens: 256,
            keep: Some(Keep::WithoutMlp),
            chunk: 96,
            positions: 512,
            sample: Some(room),
            ..Purpose::default()
        };
        let make = || -> Result<Engine> {
            let mut engine = Engine::new(device.clone(), &Shape::of(&model), purpose)?;
            model.params().into_iter().try_for_each(|p| engine.write(&p.name, &p.value))?;
            engine.written()?;
            Ok(engine)
        };
        // 1. sampling, before anything is trained
        let mut engine = make()?;
        let line = &ids[..80];
        let want: Vec<f32> = model.logits(line, &Packing::single(80))?.narrow(0, 79, 1)?.flatten_all()?.to_vec1()?;
        let mut held = engine.sequence();
        engine.advance(&mut [Feed { held: &mut held, new: &line[..70], logits: false }])?;
        let mut last = Vec::new();
        for token in &line[70..] {
            last = engine.advance(&mut [Feed { held: &mut held, new: std::slice::from_ref(token), logits: true }])?;
        }
        found("logits of decoding over pages", &last, &want, 0.03);
        drop(held);
        // 2. a pass, and an update
        let run = |engine: &mut Engine| -> Result<Outcome> {
            let stats = engine.train(&ids, &packing, &targets, 0.8, coefficient)?;
            let gradients = model.params().into_iter().map(|p| Ok(engine.gradient(&p.name)?.unwrap_or_default()));
            let gradients = gradients.collect::<Result<_>>()?;
            let rule = Rule { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: 1.0 };
            let norm = engine.update(&rule, 1e-3, 1)?.unwrap_or(f64::NAN);
            let weights = model.params().iter().map(|p| engine.read(&p.name)).collect::<Result<_>>()?;
            Ok((stats, gradients, norm, weights))
        };
        let first = run(&mut engine)?;
        drop(engine);
        let second = run(&mut make()?)?;
        let bits = |x: &[Vec<f32>]| x.iter().flatten().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let same = bits(&first.1) == bits(&second.1) && bits(&first.3) == bits(&second.3) && first.0 == second.0;
        let mut processor = Model::new(
            model.config.clone(),
            model.params().into_iter().map(|p| (p.name.clone(), p.value.clone())).collect(),
            &Device::Cpu,
        )
        .map_err(refused)?;
        let stats = processor.train(&ids, &packing, &targets, 0.8, coefficient)?;
        let numbers = |s: &[TokenStats]| s.iter().flat_map(|s| [s.logp, s.entropy]).collect::<Vec<f32>>();
        found("statistics of targets", &numbers(&first.0), &numbers(&stats), 0.02);
        for (p, got) in processor.params().into_iter().zip(&first.1) {
            let Some(grad) = &p.grad else { continue };
            found(&format!("gradient of {}", p.name), got, &grad.flatten_all()?.to_vec1::<f32>()?, 0.08);
        }
        let rule = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, clip: 1.0 };
        let norm = Optimizer::new(rule).step(&mut processor, 1e-3).map_err(refused)?;
        found("norm of the gradient", &[first.2 as f32], &[norm as f32], 0.03);
        report(Finding {
            what: format!("{of}: the same work twice, to the same bits"),
            error: if same { 0.0 } else { f64::INFINITY },
            limit: 0.0,
        });
    }
    Ok(())
}
