//! A model on a device: parameters, one arena for training and sampling in turn, and the passes over packed rows.
//!
//! 1. `Engine::new` lays parameters out, reserves memory once, and writes what the model holds.
//! 2. `train` is forward, head and backward of one packed row; gradients add up until `update` takes them.
//! 3. `score` and `logits` are forwards that keep nothing.
//!
//! Invariants: after `new` nothing is reserved; a pass leaves the arena as it found it, whatever becomes of it; a model's tensors on
//! the host are as old as the last `read_back`.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::attention::Plan as Attention;
use super::driver::{Address, Driver, Dry, Element, Matrix, Product, Recorded};
use super::head::Head;
use super::kernels::{Kernels, Qkv, Sorted};
use super::layout::Layout;
use super::memory::{Arena, Mark};
use super::pages::{Held, PAGE, Pool};
use super::sample::{Bucket, Cache, Decoding, Feed, Room, bucket, draw_from, drawn, page_bytes};
use super::tape::{Factors, Keep, Kept, Layer, Linear, Pass, Rows, Sizes, Stream};
use super::tiles::{Keys, Lists, Tiles};
use super::update::{Rule, Update};
use super::weights::{Vector, Weight, Weights};
use crate::infer::sampling::{Draw, Drawn};
use crate::model::{Config, Model, Target};
use crate::nn::Packing;
use crate::nn::kernel::RopeTable;
use crate::nn::layer::TokenStats;

/// What an engine is made for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// Tokens of a packed row, at most.
    pub row_tokens: usize,
    pub keep: Keep,
    /// Rows of logits at once.
    pub chunk: usize,
    /// Positions of a sequence, at most.
    pub positions: usize,
    /// Sampling, if it is wanted.
    pub sample: Option<Room>,
}

impl Default for Purpose {
    fn default() -> Self {
        Purpose { row_tokens: 2048, keep: Keep::All, chunk: 1024, positions: 4096, sample: None }
    }
}

/// A low-rank addition to a linear layer: its name without `.weight`, and what it is multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    pub layer: String,
    pub scale: f32,
}

/// A model's parameters as an engine wants to know them.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Config,
    /// (name, shape, trained), factors of additions among them.
    pub parameters: Vec<(String, Vec<usize>, bool)>,
    pub additions: Vec<Addition>,
}

impl Shape {
    /// Of a model as it is: what is trained in it, and its adapters.
    pub fn of(model: &Model) -> Shape {
        let params = model.params();
        let parameters = params.iter().map(|p| (p.name.clone(), p.value.dims().to_vec(), p.trainable)).collect();
        let addition = |(layer, linear): (String, &crate::nn::layer::Linear)| {
            let adapter = linear.adapter.as_ref()?;
            Some(Addition { layer, scale: adapter.scale as f32 })
        };
        let additions = model.linears().into_iter().filter_map(addition).collect();
        Shape { config: model.config.clone(), parameters, additions }
    }

    /// All parameters trained, or none.
    pub fn plain(config: &Config, trained: bool) -> Shape {
        let parameters = super::layout::parameters(config, trained);
        Shape { config: config.clone(), parameters, additions: Vec::new() }
    }
}

/// What stands below the arena that passes use, and where.
pub(super) struct Parts {
    pub sizes: Sizes,
    weights: Weights,
    pub layers: Vec<Layer>,
    pub embed: Weight,
    norm: Vector,
    pub head: Weight,
    pub ropes: Vec<(Address, Address)>,
}

/// The engine.
pub struct Engine {
    device: Arc<dyn Driver>,
    base: Address,
    arena: Arena,
    plan: Plan,
    purpose: Purpose,
    parts: Parts,
    update: Option<Update>,
    cache: Option<(Cache, Arc<Pool>)>,
    /// What stands below all passes, and below those that sample.
    floor: Mark,
    ceiling: Mark,
    /// Nothing but pages was written where pages stand.
    clean: bool,
    /// Decoding steps by their bucket.
    recorded: HashMap<Bucket, Arc<dyn Recorded>>,
    /// Windows that layers have.
    windows: Vec<Option<usize>>,
}

impl Parts {
    fn new(shape: &Shape, purpose: &Purpose, arena: &mut Arena) -> Result<Parts> {
        let config = &shape.config;
        let weights = Weights::reserve(Layout::new(&shape.parameters)?, arena)?;
        let heads = Qkv { h: config.heads, hk: config.kv_heads, d: config.head_dim };
        let whole = config.family.qk_norm_is_whole().unwrap_or(false);
        let sizes = Sizes {
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads,
            whole,
            eps: config.rms_norm_eps as f32,
        };
        if !Kernels::norm_fits(sizes.hidden) || !sizes.inner.is_multiple_of(8) || !heads.d.is_multiple_of(8) {
            bail!(
                "hidden size {}, intermediate size {} and head dimension {}: the kernels of a GPU want multiples of 8, and a hidden \
                 size of 8192 at most",
                sizes.hidden,
                sizes.inner,
                heads.d
            );
        }
        let names = config.family.norm_names();
        let layers = (0..config.layers).map(|i| {
            let name = |part: &str| format!("model.layers.{i}.{part}");
            let linear = |stems: &[&str]| -> Linear {
                let w = weights.weight(&stems.iter().map(|s| name(&format!("{s}.weight"))).collect::<Vec<_>>());
                let bias = weights.find_vector(&name(&format!("{}.bias", stems[0])));
                let mut first = 0;
                let mut factors = Vec::new();
                for stem in stems {
                    let rows = weights.weight(&[name(&format!("{stem}.weight"))]).value.rows;
                    if let Some(addition) = shape.additions.iter().find(|a| a.layer == name(stem)) {
                        let factor = |part: &str| weights.weight(&[name(&format!("{stem}.{part}.weight"))]);
                        let (a, b) = (factor("lora_A"), factor("lora_B"));
                        let base = weights.base(&name(&format!("{stem}.weight")));
                        factors.push(Factors { rows: (first, rows), a, b, scale: addition.scale, base });
                    }
                    first += rows;
                }
                Linear { w, bias, factors }
            };
            let norm = |part: &str| weights.vector(&name(&format!("{part}.weight")));
            let qkv = linear(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
            let (o, gate_up) = (linear(&["self_attn.o_proj"]), linear(&["mlp.gate_proj", "mlp.up_proj"]));
            let down = linear(&["mlp.down_proj"]);
            let slides = config.slides(i);
            let prefix = format!("model.layers.{i}.");
            let trained = weights.layout.parts.iter().any(|p| p.updated && p.name.starts_with(&prefix));
            Layer {
                index: i,
                place: config.family.norm_place(),
                norm: norm(names.0),
                qkv,
                norms: config.family.qk_norm_is_whole().map(|_| (norm("self_attn.q_norm"), norm("self_attn.k_norm"))),
                o,
                mlp_norm: norm(names.1),
                gate_up,
                down,
                rope: usize::from(slides && config.sliding_rope.is_some()),
                window: config.window.filter(|_| slides),
                trained,
            }
        });
        let layers = layers.collect();
        let embed = weights.weight(&["model.embed_tokens.weight".to_owned()]);
        let head = if config.tied { embed } else { weights.weight(&["lm_head.weight".to_owned()]) };
        let norm = weights.vector("model.norm.weight");
        let bytes = 4 * purpose.positions * heads.d / 2;
        let mut table = || Ok((arena.keep(bytes)?, arena.keep(bytes)?));
        let ropes = std::iter::once(&config.rope).chain(&config.sliding_rope).map(|_| table());
        let ropes = ropes.collect::<Result<_>>()?;
        Ok(Parts { sizes, weights, layers, embed, norm, head, ropes })
    }
}

/// Numbers of the host that a pass needs on the device, one after another.
#[derive(Default)]
pub(super) struct Sheet {
    words: Vec<u32>,
}

impl Sheet {
    /// Where the words will be, from the sheet's beginning.
    pub(super) fn put(&mut self, words: &[u32]) -> usize {
        // every place is a multiple of 16 bytes
        self.words.resize(self.words.len().next_multiple_of(4), 0);
        self.words.extend_from_slice(words);
        4 * (self.words.len() - words.len())
    }

    pub(super) fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    pub(super) fn write(&self, device: &dyn Driver, at: Address) -> Result<()> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        // SAFETY: lent for these words
        unsafe { device.write(at, &bytes) }
    }
}

/// Rows by what they are added to: `order` of rows, where each thing's begin, and which things.
fn sorted(to: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..to.len() as u32).collect();
    order.sort_by_key(|row| to[*row as usize]); // stable: rows of a thing stay in order
    let (mut starts, mut things) = (Vec::new(), Vec::new());
    for (i, row) in order.iter().enumerate() {
        if things.last() != Some(&to[*row as usize]) {
            things.push(to[*row as usize]);
            starts.push(i as u32);
        }
    }
    starts.push(order.len() as u32);
    (order, starts, things)
}

/// A packed row on the device.
struct Row {
    n: usize,
    ids: Address,
    positions: Address,
    plans: Vec<(Option<usize>, Attention)>,
    /// Rows that predict, their targets, and the former by row.
    rows: Address,
    targets: Address,
    wanted: usize,
    by_row: Sorted,
    /// Rows by their token, and the distinct tokens.
    by_token: Sorted,
    tokens: Address,
    distinct: usize,
}

/// A forward's end: the rows that predict, added up, and after the final norm.
pub(super) struct Ends {
    sum: Address,
    root: Address,
    pub h: Matrix,
}

/// Work of one pass; with a dry device and arena, the same work without anything done.
pub(super) struct Work<'a> {
    pub device: &'a dyn Driver,
    pub parts: &'a Parts,
    pub arena: &'a mut Arena,
    pub purpose: &'a Purpose,
    pub windows: &'a [Option<usize>],
}

impl<'a> Work<'a> {
    fn kernels(&self) -> Kernels<'a> {
        Kernels(self.device)
    }

    /// Brings what the host knows of a packed row to the device.
    fn row(&mut self, ids: &[u32], packing: &Packing, targets: &[Target]) -> Result<Row> {
        let mut sheet = Sheet::default();
        let keys = Keys::of(packing);
        let rows: Vec<u32> = targets.iter().map(|t| t.row).collect();
        let labels: Vec<u32> = targets.iter().map(|t| t.id).collect();
        let (ids_at, positions) = (sheet.put(ids), sheet.put(&keys.positions));
        let (vis_end, rows_at, labels_at) = (sheet.put(&keys.vis_end), sheet.put(&rows), sheet.put(&labels));
        // rows that nothing is predicted from have no entries
        let (order, starts, things) = sorted(&rows);
        let mut all = Vec::with_capacity(ids.len() + 1);
        let mut at = 0;
        for row in 0..=ids.len() as u32 {
            while at < things.len() && things[at] < row {
                at += 1;
            }
            all.push(starts[at.min(starts.len() - 1)]);
        }
        let by_row = (sheet.put(&order), sheet.put(&all));
        let (order, starts, tokens) = sorted(ids);
        let by_token = (sheet.put(&order), sheet.put(&starts), sheet.put(&tokens));
        let lists = |sheet: &mut Sheet, l: &Lists| (sheet.put(&l.first), sheet.put(&l.tiles));
        let mut plans = Vec::new();
        for window in self.windows {
            let tiles = Tiles::new(&keys, None, *window);
            plans.push((*window, lists(&mut sheet, &tiles.by_query), lists(&mut sheet, &tiles.by_key)));
        }
        let base = self.arena.lend(sheet.bytes())?;
        sheet.write(self.device, base)?;
        let two = |(a, b): (usize, usize)| (base.plus(a), base.plus(b));
        let n = ids.len();
        let plan = |(window, by_query, by_key): (Option<usize>, _, _)| {
            let at = Address::NONE;
            let (vis_end, positions) = (base.plus(vis_end), base.plus(positions));
            (window, Attention { n_q: n, n_k: n, at, vis_end, positions, by_query: two(by_query), by_key: two(by_key) })
        };
        Ok(Row {
            n,
            ids: base.plus(ids_at),
            positions: base.plus(positions),
            plans: plans.into_iter().map(plan).collect(),
            rows: base.plus(rows_at),
            targets: base.plus(labels_at),
            wanted: rows.len(),
            by_row: Sorted { order: base.plus(by_row.0), starts: base.plus(by_row.1) },
            by_token: Sorted { order: base.plus(by_token.0), starts: base.plus(by_token.1) },
            tokens: base.plus(by_token.2),
            distinct: tokens.len(),
        })
    }

    fn pass<'p>(&'p mut self, row: &'p Row) -> Pass<'p> {
        Pass {
            device: self.device,
            arena: self.arena,
            sizes: self.parts.sizes,
            n: row.n,
            ropes: &self.parts.ropes,
            positions: row.positions,
            attention: Rows::Packed(&row.plans),
        }
    }

    /// The lowest block whose backward reaches something to learn.
    fn lowest(&self) -> usize {
        let layers = &self.parts.layers;
        match self.parts.weights.layout.part("model.embed_tokens.weight").updated {
            true => 0,
            false => layers.iter().position(|l| l.trained).unwrap_or(layers.len()),
        }
    }

    /// All blocks: the stream that comes out, and what the backward of the blocks from `lowest` on starts from.
    fn forward(&mut self, row: &Row, keep: Keep) -> Result<(Stream, Vec<Kept>)> {
        let bytes = 2 * row.n * self.parts.sizes.hidden;
        let out = Stream { x: self.arena.keep(bytes)?, delta: self.arena.keep(bytes)? };
        let table = self.parts.embed.value;
        self.kernels().gather_rows(out.x, table.at, row.ids, row.n, table.columns)?;
        let mut stream = Stream { x: out.x, delta: Address::NONE };
        let lowest = if keep == Keep::Nothing { usize::MAX } else { self.lowest() };
        let mut all = Vec::new();
        let parts = self.parts;
        let mut pass = self.pass(row);
        for (i, layer) in parts.layers.iter().enumerate() {
            let (next, kept) = pass.forward(layer, stream, out, if i >= lowest { keep } else { Keep::Nothing })?;
            stream = next;
            all.extend(kept);
        }
        Ok((stream, all))
    }

    /// The final norm of the rows that predict.
    pub(super) fn ends(&mut self, (rows, m): (Address, usize), stream: Stream) -> Result<Ends> {
        let hidden = self.parts.sizes.hidden;
        let mut keep = |bytes| self.arena.keep(bytes);
        let (sum, root, h) = (keep(2 * m * hidden)?, keep(4 * m)?, keep(2 * m * hidden)?);
        let (k, norm, none) = (self.kernels(), self.parts.norm.value, Address::NONE);
        k.gather_rows(sum, stream.x, rows, m, hidden)?;
        let eps = self.parts.sizes.eps;
        if stream.delta == none {
            k.rms_norm(h, root, none, sum, none, none, norm, (m, hidden), eps)?;
        } else {
            k.gather_rows(h, stream.delta, rows, m, hidden)?;
            k.rms_norm(h, root, sum, sum, h, none, norm, (m, hidden), eps)?;
        }
        Ok(Ends { sum, root, h: Matrix::new(h, Element::Bf16, m, hidden) })
    }

    /// Logits of all rows, chunk by chunk to the host.
    fn logits(&mut self, row: &Row) -> Result<Vec<f32>> {
        let (stream, _) = self.forward(row, Keep::Nothing)?;
        let ends = self.ends((row.rows, row.wanted), stream)?;
        let (w, chunk) = (self.parts.head.value, self.purpose.chunk);
        let at = self.arena.lend(4 * chunk.min(row.wanted) * w.rows)?;
        let mut out = Vec::with_capacity(row.wanted * w.rows);
        for first in (0..row.wanted).step_by(chunk) {
            let rows = chunk.min(row.wanted - first);
            let logits = Matrix::new(at, Element::F32, rows, w.rows);
            let mut bytes = vec![0; logits.bytes()];
            // SAFETY: lent for these rows
            unsafe {
                self.device.product(&Product::rows(ends.h.rows(first, rows), w, logits))?;
                self.device.read(at, &mut bytes)?;
            }
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])));
        }
        Ok(out)
    }

    fn merge(&mut self) -> Result<()> {
        for layer in &self.parts.layers {
            for linear in [&layer.qkv, &layer.o, &layer.gate_up, &layer.down] {
                for f in &linear.factors {
                    let merged = linear.w.value.rows(f.rows.0, f.rows.1);
                    let (rows, columns) = (merged.rows, merged.columns);
                    let lent = self.arena.lent();
                    let sum = Matrix::new(self.arena.lend(4 * rows * columns)?, Element::F32, rows, columns);
                    // SAFETY: lent for this product
                    unsafe { self.device.product(&Product::back(f.b.value, f.a.value, sum))? };
                    self.kernels().merge(merged.at, f.base, sum.at, f.scale, rows * columns)?;
                    self.arena.forget(lent);
                }
            }
        }
        Ok(())
    }

    fn score(&mut self, row: &Row, temperature: f32) -> Result<Vec<TokenStats>> {
        let (stream, _) = self.forward(row, Keep::Nothing)?;
        let ends = self.ends((row.rows, row.wanted), stream)?;
        let head = Head { device: self.device, w: self.parts.head, chunk: self.purpose.chunk, temperature };
        head.score(self.arena, ends.h, row.targets)
    }

    fn train(
        &mut self,
        row: &Row,
        temperature: f32,
        coefficient: &mut dyn FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        let (hidden, m, none) = (self.parts.sizes.hidden, row.wanted, Address::NONE);
        let (stream, kept) = self.forward(row, self.purpose.keep)?;
        let ends = self.ends((row.rows, row.wanted), stream)?;
        let bytes = 2 * row.n * hidden;
        let d = self.arena.keep(bytes)?;
        let spare = Stream { x: self.arena.keep(bytes)?, delta: self.arena.keep(bytes)? };
        // 1. the head, down to the rows that predict
        let lent = self.arena.lent();
        let dh = Matrix::new(self.arena.lend(2 * m * hidden)?, Element::Bf16, m, hidden);
        let head = Head { device: self.device, w: self.parts.head, chunk: self.purpose.chunk, temperature };
        let stats = head.train(self.arena, ends.h, dh, row.targets, coefficient)?;
        let norm = self.parts.norm;
        let partial = match norm.grad {
            Some(_) => self.arena.lend(4 * Kernels::norm_partial(m, hidden))?,
            None => none,
        };
        let k = self.kernels();
        k.rms_norm_backward(dh.at, norm.grad, partial, dh.at, ends.sum, norm.value, ends.root, none, (m, hidden))?;
        k.scatter_rows(d, dh.at, row.by_row, row.n, hidden)?;
        self.arena.forget(lent);
        // 2. the blocks, down to the lowest that learns
        let lowest = self.lowest();
        let parts = self.parts;
        let mut pass = self.pass(row);
        for (layer, kept) in parts.layers[lowest..].iter().zip(&kept).rev() {
            pass.backward(layer, kept, d, spare)?;
        }
        // 3. the embedding
        if let Some(grad) = parts.embed.grad {
            self.kernels().embedding_backward(grad.at, d, row.by_token, row.tokens, row.distinct, hidden)?;
        }
        Ok(stats)
    }
}

impl Engine {
    /// An engine on `device` for a model of this shape; parameters are written afterwards.
    ///
    /// # Errors
    /// When it does not fit, with what is missing; sizes that the kernels do not take; the device's.
    pub fn new(device: Arc<dyn Driver>, shape: &Shape, purpose: Purpose) -> Result<Engine> {
        let (free, all) = device.free()?;
        let plan = Plan::new(shape, &purpose, device.processors(), free)?;
        let needed = plan.bytes();
        if needed > free {
            bail!(
                "{plan}, but {} has {} of {} free{}",
                device.name(),
                gib(free),
                gib(all),
                plan.advice(shape, &purpose, free)
            );
        }
        let base = device.reserve(needed)?;
        let mut arena = Arena::new(base, needed);
        let parts = Parts::new(shape, &purpose, &mut arena)?;
        let flat = parts.weights.flat;
        for at in [flat.grad, flat.m, flat.v] {
            // SAFETY: just reserved
            unsafe { device.clear(at, 4 * parts.weights.layout.trained)? };
        }
        let config = &shape.config;
        for (rope, (cos, sin)) in std::iter::once(&config.rope).chain(&config.sliding_rope).zip(&parts.ropes) {
            let (frequencies, scale) = rope.frequencies(config.head_dim);
            let mut table = RopeTable::new(frequencies, scale);
            table.reserve(purpose.positions);
            let (c, s) = table.rows(purpose.positions);
            let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_ne_bytes()).collect::<Vec<u8>>();
            // SAFETY: reserved for these positions
            unsafe {
                device.write(*cos, &bytes(c))?;
                device.write(*sin, &bytes(s))?;
            }
        }
        let update = match parts.weights.layout.trained {
            0 => None,
            _ => Some(Update::new(&*device, &parts.weights, &mut arena, |_| (1.0, 0.0))?),
        };
        // passes of training and sampling take turns in the same memory: pages stand where activations stand at other times
        let floor = arena.kept();
        let cache = match &purpose.sample {
            None => None,
            Some(room) => {
                let room = Room { tokens: plan.tokens, ..*room };
                let cache = Cache::reserve(&*device, &mut arena, parts.layers.len(), parts.sizes.heads, &room)?;
                Some((cache, Pool::new(cache.pages)))
            }
        };
        let ceiling = arena.kept();
        arena.reset(floor);
        let windows = windows(&parts);
        Ok(Engine {
            device,
            base,
            arena,
            plan,
            purpose,
            parts,
            update,
            cache,
            floor,
            ceiling,
            clean: true,
            recorded: HashMap::new(),
            windows,
        })
    }

    /// What was reserved, and for what.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What runs it.
    pub fn device(&self) -> &dyn Driver {
        &*self.device
    }

    /// Most bytes in use so far, and all that were reserved.
    pub fn memory(&self) -> (usize, usize) {
        (self.arena.peak(), self.arena.capacity())
    }

    /// Writes a parameter.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, name: &str, value: &Tensor) -> Result<()> {
        self.parts.weights.write(&*self.device, name, value)
    }

    /// Must follow the writing of parameters: makes the merged weights.
    ///
    /// # Errors
    /// The device's.
    pub fn written(&mut self) -> Result<()> {
        self.merge()
    }

    /// Merges additions into what products read: W' = W + scale B A.
    fn merge(&mut self) -> Result<()> {
        self.pass(|work| work.merge())
    }

    /// A parameter as it is now.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&self, name: &str) -> Result<Vec<f32>> {
        self.parts.weights.read(&*self.device, name)
    }

    /// A parameter's gradient as it has added up; `None` where it is not trained.
    ///
    /// # Errors
    /// The device's.
    pub fn gradient(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.parts.weights.gradient(&*self.device, name)
    }

    /// One pass over rows, after which the arena is as it was.
    fn pass<T>(&mut self, work: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
        if let Some((_, pool)) = self.cache.as_ref().filter(|(_, pool)| pool.held() > 0) {
            // what was sampled is kept where this pass would work, unless there is room behind it
            let held = pool.held();
            if self.arena.capacity() < self.plan.parameters + self.plan.cache + self.plan.passes {
                bail!(
                    "{held} pages of sequences are in use where a pass over rows works: let go of the sequences first"
                );
            }
            return self.within(self.ceiling, work);
        }
        self.clean = false;
        self.within(self.floor, work)
    }

    /// Work above a mark.
    fn within<T>(&mut self, mark: Mark, work: impl FnOnce(&mut Work<'_>) -> Result<T>) -> Result<T> {
        let lent = self.arena.lent();
        self.arena.raise(mark);
        let done = work(&mut Work {
            device: &*self.device,
            parts: &self.parts,
            arena: &mut self.arena,
            purpose: &self.purpose,
            windows: &self.windows,
        });
        self.arena.reset(self.floor);
        self.arena.forget(lent);
        done
    }

    /// As [`crate::model::Model::train`].
    ///
    /// # Errors
    /// When the row does not fit; the device's.
    pub fn train(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
        mut coefficient: impl FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        self.pass(|work| {
            let row = work.row(ids, packing, targets)?;
            work.train(&row, temperature, &mut coefficient)
        })
    }

    /// As [`crate::model::Model::score`].
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn score(
        &mut self,
        ids: &[u32],
        packing: &Packing,
        targets: &[Target],
        temperature: f32,
    ) -> Result<Vec<TokenStats>> {
        if targets.is_empty() {
            return Ok(Vec::new());
        }
        self.pass(|work| {
            let row = work.row(ids, packing, targets)?;
            work.score(&row, temperature)
        })
    }

    /// As [`crate::model::Model::logits`]: rows of v, one after another.
    ///
    /// # Errors
    /// As [`Engine::train`].
    pub fn logits(&mut self, ids: &[u32], packing: &Packing) -> Result<Vec<f32>> {
        let targets: Vec<Target> = (0..ids.len() as u32).map(|row| Target { row, id: 0 }).collect();
        self.pass(|work| {
            let row = work.row(ids, packing, &targets)?;
            work.logits(&row)
        })
    }

    /// An empty sequence.
    ///
    /// # Panics
    /// When the engine was not made for sampling: a bug in the caller.
    pub fn sequence(&self) -> Held {
        match &self.cache {
            Some((_, pool)) => Held::new(pool),
            None => panic!("BUG: a sequence of an engine that does not sample"),
        }
    }

    /// A step of sampling.
    fn step<T>(&mut self, work: impl FnOnce(&mut Work<'_>, &Cache) -> Result<T>) -> Result<T> {
        let Some((cache, _)) = self.cache.clone() else { panic!("BUG: a step of an engine that does not sample") };
        if !std::mem::replace(&mut self.clean, true) {
            cache.clear(&*self.device)?;
        }
        self.within(self.ceiling, |step| work(step, &cache))
    }

    /// New tokens of sequences, and the logits (m, v), row after row, of those that want them.
    ///
    /// # Errors
    /// When no page is left or a sequence grows too long, and then no sequence has changed; the device's.
    ///
    /// # Panics
    /// As [`Engine::sequence`].
    pub fn advance(&mut self, feeds: &mut [Feed<'_>]) -> Result<Vec<f32>> {
        self.step(|work, cache| {
            let Some(logits) = work.advance(cache, feeds)? else { return Ok(Vec::new()) };
            let mut bytes = vec![0; logits.bytes()];
            // SAFETY: as long as the matrix
            unsafe { work.device.read(logits.at, &mut bytes)? };
            let float = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
            let rows = bytes.chunks(4 * logits.stride);
            Ok(rows.flat_map(|row| row.chunks_exact(4).take(logits.columns).map(float)).collect())
        })
    }

    /// New tokens of sequences, and a token drawn for each of those that want logits.
    ///
    /// # Errors
    /// As [`Engine::advance`]; a list of allowed tokens that is empty.
    ///
    /// # Panics
    /// As [`Engine::advance`].
    pub fn advance_drawing(&mut self, feeds: &mut [Feed<'_>], draws: &[Draw]) -> Result<Vec<Drawn>> {
        let one = |feed: &Feed<'_>| feed.logits && feed.new.len() == 1;
        if !feeds.is_empty() && feeds.iter().all(one) && draws.iter().all(|draw| draw.open.is_none()) {
            return self.decode(feeds, draws);
        }
        self.step(|work, cache| match work.advance(cache, feeds)? {
            Some(logits) => draw_from(work.device, work.arena, logits, draws),
            None => Ok(Vec::new()),
        })
    }

    /// A token to each sequence, and the next from each: as one piece of work, recorded when a bucket of its size comes first.
    fn decode(&mut self, feeds: &mut [Feed<'_>], draws: &[Draw]) -> Result<Vec<Drawn>> {
        self.step(|work, cache| work.grow(cache, feeds).map(|_| ()))?;
        let pages = feeds.iter().map(|feed| feed.held.ids().count()).max().unwrap_or(0);
        let rows: Vec<(u32, &Held)> = feeds.iter().map(|feed| (feed.new[0], &*feed.held)).collect();
        let step = Decoding::new(bucket(rows.len(), pages), &rows, draws);
        let recorded = self.recorded.get(&step.bucket).cloned();
        let known = recorded.is_some();
        let tokens = self.step(|work, cache| {
            let at = work.place(&step)?;
            match recorded {
                // SAFETY: what was recorded works where this step's numbers are: the arena gives the same places again
                Some(recorded) => unsafe { recorded.replay()? },
                None => work.decode(cache, &step, at)?,
            }
            drawn(work.device, at.1, rows.len())
        })?;
        if !known {
            // the first run has loaded the kernels and planned the products, which cannot be done while recording
            let recorded = self.step(|work, cache| {
                let at = work.place(&step)?;
                let device = work.device;
                device.record(&mut || work.decode(cache, &step, at))
            })?;
            self.recorded.insert(step.bucket, recorded.into());
        }
        Ok(tokens)
    }

    /// Sets factors of learning rates and weight decays by name.
    ///
    /// # Errors
    /// The device's.
    pub fn set_groups(&mut self, settings: impl Fn(&str) -> (f64, f32)) -> Result<()> {
        match &mut self.update {
            Some(update) => update.set(&*self.device, settings),
            None => Ok(()),
        }
    }

    /// First and second moments of a trained parameter.
    ///
    /// # Errors
    /// The device's.
    pub fn moments(&self, name: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        self.parts.weights.moments(&*self.device, name)
    }

    /// As [`Engine::moments`], the other way.
    ///
    /// # Errors
    /// The device's.
    pub fn write_moments(&self, name: &str, m: &Tensor, v: &Tensor) -> Result<()> {
        self.parts.weights.write_moments(&*self.device, name, m, v)
    }

    /// One optimizer step; see [`Update::step`].
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// When nothing is trained: a bug in the caller.
    pub fn update(&mut self, rule: &Rule, rate: f64, number: u64) -> Result<std::result::Result<f64, String>> {
        let Some(update) = &self.update else { panic!("BUG: an update of a model of which nothing is trained") };
        let done = update.step(&*self.device, &self.parts.weights, rule, rate, number)?;
        if done.is_ok() {
            self.merge()?;
        }
        Ok(done)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: nothing is asked for after this
        let _ = unsafe { self.device.release(self.base) };
    }
}

/// Bytes that an engine reserves, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights, masters, gradients, moments, tables.
    pub parameters: usize,
    /// Passes over packed rows: what is kept of a forward, what is lent, logits.
    pub passes: usize,
    /// Steps of sampling, without what is in pages.
    pub steps: usize,
    /// Pages of keys and values.
    pub cache: usize,
    /// Tokens that fit into them.
    pub tokens: usize,
}

/// Share of the free memory that is taken where pages may take all there is.
const SHARE: f64 = 0.6;

impl Plan {
    /// Found by doing, without a device, the work of the largest row and the largest step.
    ///
    /// # Errors
    /// Sizes that the kernels do not take.
    pub fn new(shape: &Shape, purpose: &Purpose, processors: usize, free: usize) -> Result<Plan> {
        let (mut arena, device) = (Arena::dry(), Dry { processors });
        let parts = Parts::new(shape, purpose, &mut arena)?;
        let trained = parts.weights.layout.trained > 0;
        if trained {
            Update::new(&device, &parts.weights, &mut arena, |_| (1.0, 0.0))?;
        }
        let parameters = arena.peak();
        let windows = windows(&parts);
        let dry = |work: &mut dyn FnMut(&mut Work<'_>) -> Result<()>| -> Result<usize> {
            let mut arena = Arena::dry();
            work(&mut Work { device: &device, parts: &parts, arena: &mut arena, purpose, windows: &windows })?;
            Ok(arena.peak())
        };
        let n = purpose.row_tokens;
        let ids: Vec<u32> = (0..n).map(|i| (i % shape.config.vocab_size) as u32).collect();
        let targets: Vec<Target> = (0..n as u32).map(|row| Target { row, id: 0 }).collect();
        let passes = dry(&mut |work| {
            let row = work.row(&ids, &Packing::single(n), &targets)?;
            match trained {
                true => work.train(&row, 1.0, &mut |_, _| 0.0).map(|_| ()),
                false => work.score(&row, 1.0).map(|_| ()),
            }
        })?;
        let passes = passes.max(dry(&mut |work| work.merge())?);
        let Some(room) = purpose.sample else {
            return Ok(Plan { parameters, passes, steps: 0, cache: 0, tokens: 0 });
        };
        let (layers, heads) = (parts.layers.len(), parts.sizes.heads);
        let cache_of = |tokens: usize| -> Result<(usize, Cache)> {
            let mut arena = Arena::dry();
            let cache = Cache::reserve(&device, &mut arena, layers, heads, &Room { tokens, ..room })?;
            Ok((arena.peak(), cache))
        };
        let enough = cache_of(purpose.positions * 2 + room.chunk)?.1;
        let steps = dry(&mut |work| work.largest(&enough, &room))?;
        let decoding = Decoding::dry(bucket(room.rows, purpose.positions.div_ceil(PAGE)));
        let steps = steps.max(dry(&mut |work| {
            let at = work.place(&decoding)?;
            work.decode(&enough, &decoding, at)
        })?);
        let tokens = match room.tokens {
            0 => {
                let budget = ((free as f64 * SHARE) as usize).max(parameters + passes);
                let left = budget.saturating_sub(parameters + steps + cache_of(0)?.0);
                // one sequence at least
                (left / page_bytes(layers, heads) * PAGE).max(purpose.positions)
            }
            tokens => tokens,
        };
        Ok(Plan { parameters, passes, steps, cache: cache_of(tokens)?.0, tokens })
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.parameters + self.passes.max(self.cache + self.steps)
    }

    /// What would fit into so much, as the end of a sentence.
    fn advice(&self, shape: &Shape, purpose: &Purpose, free: usize) -> String {
        let mut help = Vec::new();
        let fits = |purpose: Purpose, shape: &Shape| {
            Plan::new(shape, &purpose, 132, free).is_ok_and(|plan| plan.bytes() <= free)
        };
        let sample = purpose.sample.map(|room| Room { tokens: 0, ..room });
        let small = Purpose { sample, ..*purpose };
        if purpose.keep != Keep::Inputs && fits(Purpose { keep: Keep::Inputs, ..small }, shape) {
            help.push("`recompute = true`");
        }
        if purpose.row_tokens > 512 && fits(Purpose { row_tokens: 512, ..small }, shape) {
            help.push("a smaller `row_tokens`");
        }
        let frozen = Shape {
            parameters: shape.parameters.iter().cloned().map(|p| (p.0, p.1, false)).collect(),
            ..shape.clone()
        };
        if shape.additions.is_empty() && fits(small, &frozen) {
            help.push("`lora`");
        }
        match help.is_empty() {
            true => "; a smaller model, or a device with more memory".to_owned(),
            false => format!("; what would fit: {}", help.join(", or ")),
        }
    }
}

/// Bytes as people read them.
fn gib(bytes: usize) -> String {
    match bytes {
        0..0x400_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (all, parameters, passes) = (gib(self.bytes()), gib(self.parameters), gib(self.passes));
        write!(
            f,
            "{all} of device memory: {parameters} for parameters and what trains them, {passes} for passes over rows"
        )?;
        if self.cache > 0 {
            let (cache, steps, tokens) = (gib(self.cache), gib(self.steps), self.tokens);
            write!(f, ", or in turn {cache} for keys and values of {tokens} tokens and {steps} for steps")?;
        }
        Ok(())
    }
}

/// Windows that layers have, none among them.
fn windows(parts: &Parts) -> Vec<Option<usize>> {
    let mut windows: Vec<Option<usize>> = parts.layers.iter().map(|l| l.window).collect();
    windows.sort_unstable();
    windows.dedup();
    windows
}
