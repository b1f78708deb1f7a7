//! One pass over packed rows: from what the host knows to gradients.
//!
//! Invariant: nothing here knows whether a device is there; the plan of memory runs the same code.

use candle_core::Result;

use super::attention::Plan as Attention;
use super::driver::{Address, Driver, Element, Matrix, Product};
use super::head::Head;
use super::kernels::{Dropped, Kernels, Sorted};
use super::memory::Arena;
use super::parts::{Parts, Purpose};
use super::tape::{Keep, Kept, Pass, Rows, Stream};
use super::tiles::{Keys, Lists, Tiles};
use crate::model::Target;
use crate::nn::Packing;
use crate::nn::layer::TokenStats;

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
pub(super) struct Row {
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
    /// What is kept of a forward that has a backward.
    pub keep: Keep,
    pub windows: &'a [Option<usize>],
    /// What additions drop in a forward that has a backward.
    pub dropped: &'a [Option<Dropped>],
}

impl<'a> Work<'a> {
    fn kernels(&self) -> Kernels<'a> {
        Kernels(self.device)
    }

    /// Brings what the host knows of a packed row to the device.
    pub(super) fn row(&mut self, ids: &[u32], packing: &Packing, targets: &[Target]) -> Result<Row> {
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

    fn pass<'p>(&'p mut self, row: &'p Row, trained: bool) -> Pass<'p> {
        Pass {
            device: self.device,
            arena: self.arena,
            sizes: self.parts.sizes,
            n: row.n,
            ropes: &self.parts.ropes,
            positions: row.positions,
            attention: Rows::Packed(&row.plans),
            dropped: if trained { self.dropped } else { &[] },
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
        self.kernels().gather_rows(out.x, table.at, (row.ids, Address::NONE), row.n, table.columns)?;
        let mut stream = Stream { x: out.x, delta: Address::NONE };
        let lowest = if keep == Keep::Nothing { usize::MAX } else { self.lowest() };
        let mut all = Vec::new();
        let parts = self.parts;
        let mut pass = self.pass(row, keep != Keep::Nothing);
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
        k.gather_rows(sum, stream.x, (rows, Address::NONE), m, hidden)?;
        let eps = self.parts.sizes.eps;
        if stream.delta == none {
            k.rms_norm(h, root, none, sum, none, none, norm, (m, hidden), eps)?;
        } else {
            k.gather_rows(h, stream.delta, (rows, Address::NONE), m, hidden)?;
            k.rms_norm(h, root, sum, sum, h, none, norm, (m, hidden), eps)?;
        }
        Ok(Ends { sum, root, h: Matrix::new(h, Element::Bf16, m, hidden) })
    }

    /// Logits of all rows, chunk by chunk to the host.
    pub(super) fn logits(&mut self, row: &Row) -> Result<Vec<f32>> {
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

    pub(super) fn merge(&mut self) -> Result<()> {
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

    pub(super) fn score(&mut self, row: &Row, temperature: f32) -> Result<Vec<TokenStats>> {
        let (stream, _) = self.forward(row, Keep::Nothing)?;
        let ends = self.ends((row.rows, row.wanted), stream)?;
        let head = Head { device: self.device, w: self.parts.head, chunk: self.purpose.chunk, temperature };
        head.score(self.arena, ends.h, row.targets)
    }

    pub(super) fn train(
        &mut self,
        row: &Row,
        temperature: f32,
        coefficient: &mut dyn FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        let (hidden, m, none) = (self.parts.sizes.hidden, row.wanted, Address::NONE);
        let (stream, kept) = self.forward(row, self.keep)?;
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
        let mut pass = self.pass(row, true);
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
