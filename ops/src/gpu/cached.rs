//! Attention of rows whose keys and values are in pages: one new token of a sequence, or several.
//!
//! 1. Rows with one new token stand first, and are a batch of `kernels/paged.cu`.
//! 2. Sequences with more read their pages into rows, one after another, and attend as packed rows do.
//!
//! Invariant: keys and values of the new tokens are in the pages before anything attends.

use candle_core::Result;

use super::attention::{Attend, Plan};
use super::driver::{Address, Arg, Driver, Launch};
use super::kernels::{Pages, Qkv};

/// Bytes of shared memory of a decoding block.
const SHARED: usize = 98_304;
/// Query heads of a key head that the fast kernels take.
const GROUP: usize = 8;
/// Blocks that share a sequence's pages, at most.
pub const SPLITS: usize = 64;
/// Pages that a block reads alone where some sequence may have more.
const LONG: usize = 32;

/// Where the caches of all layers are.
#[derive(Clone, Copy, Debug)]
pub struct Caches {
    pub k: Address,
    pub v: Address,
    /// Bytes of a layer's keys, or values.
    pub layer: usize,
}

/// What the decoding kernels take.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Decode {
    q: Address,
    q_stride: i64,
    k: Address,
    v: Address,
    pages: Address,
    lengths: Address,
    out: Address,
    parts: Address,
    stats: Address,
    done: Address,
    max_pages: i32,
    h: i32,
    hk: i32,
    d: i32,
    splits: i32,
    window: i32,
    scale: f32,
    pad: i32,
}

/// Sequences with one new token.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub rows: usize,
    /// (rows, max_pages)
    pub pages: Address,
    pub max_pages: usize,
    /// (rows), the new token among them
    pub lengths: Address,
    pub splits: usize,
    pub parts: Address,
    pub stats: Address,
    pub done: Address,
}

impl Batch {
    /// Bytes of `parts`, `stats` and `done`.
    pub fn bytes(rows: usize, splits: usize, heads: Qkv) -> (usize, usize, usize) {
        let all = rows * heads.h * splits;
        (4 * all * heads.d, 8 * all, 4 * rows * heads.hk)
    }

    /// Blocks that share a sequence's pages on a device of so many processors: two for each, and more where one sequence may be
    /// much longer than the others.
    pub fn splits(rows: usize, max_pages: usize, heads: Qkv, processors: usize) -> usize {
        let filling = 2 * processors / (rows * heads.hk).max(1);
        filling.max(max_pages / LONG).clamp(1, SPLITS)
    }
}

/// A sequence with several new tokens: its pages, and where its keys stand among all rows of keys.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub pages: Address,
    pub first: usize,
    pub tokens: usize,
}

/// Some sequences with several new tokens, as many as there is room to read.
#[derive(Clone, Debug)]
pub struct Readings {
    pub sequences: Vec<Reading>,
    /// The first of their rows.
    pub from: usize,
    pub plans: Vec<(Option<usize>, Plan)>,
    /// (keys, hk d) each, bf16
    pub k: Address,
    pub v: Address,
    /// (h, queries)
    pub lse: Address,
}

/// What rows attend to.
#[derive(Clone, Debug)]
pub struct Cached {
    pub caches: Caches,
    /// (n)
    pub slots: Address,
    pub batch: Option<Batch>,
    pub readings: Vec<Readings>,
}

impl Cached {
    /// Where new keys and values of a layer go.
    pub fn pages(&self, layer: usize) -> Pages {
        let at = layer * self.caches.layer;
        Pages { k: self.caches.k.plus(at), v: self.caches.v.plus(at), slots: self.slots }
    }

    /// out (n, h d) of the rows of `turned` (n, (h + 2 hk) d).
    pub fn forward(
        &self,
        device: &dyn Driver,
        turned: Address,
        out: Address,
        heads: Qkv,
        (layer, window): (usize, Option<usize>),
    ) -> Result<()> {
        let pages = self.pages(layer);
        if let Some(batch) = self.batch {
            decode(device, turned, out, heads, window, (pages, batch))?;
        }
        for readings in &self.readings {
            self.read(device, readings, (turned, out), heads, (pages, window))?;
        }
        Ok(())
    }

    fn read(
        &self,
        device: &dyn Driver,
        r: &Readings,
        (turned, out): (Address, Address),
        heads: Qkv,
        (pages, window): (Pages, Option<usize>),
    ) -> Result<()> {
        let width = heads.hk * heads.d;
        for s in &r.sequences {
            let to = 2 * s.first * width;
            let args = [
                r.k.plus(to).into(),
                r.v.plus(to).into(),
                Arg::long(width),
                Arg::long(width),
                pages.k.into(),
                pages.v.into(),
                s.pages.into(),
                Arg::I32(0),
                Arg::int(width),
            ];
            // SAFETY: arguments of the kernel's source; there is room for all tokens of all sequences
            unsafe { device.launch("cache_gather", Launch::new(s.tokens, 128), &args)? };
        }
        let Some((_, plan)) = r.plans.iter().find(|(of, _)| *of == window) else {
            panic!("BUG: there is no plan for a window of {window:?}")
        };
        let q = turned.plus(2 * r.from * heads.width());
        let attend = Attend::new((q, heads.width()), (r.k, width), (r.v, width), heads, window, plan);
        attend.forward(device, out.plus(2 * r.from * heads.h * heads.d), r.lse)
    }
}

fn decode(
    device: &dyn Driver,
    q: Address,
    out: Address,
    heads: Qkv,
    window: Option<usize>,
    (pages, batch): (Pages, Batch),
) -> Result<()> {
    let args = Decode {
        q,
        q_stride: heads.width() as i64,
        k: pages.k,
        v: pages.v,
        pages: batch.pages,
        lengths: batch.lengths,
        out,
        parts: batch.parts,
        stats: batch.stats,
        done: batch.done,
        max_pages: batch.max_pages as i32,
        h: heads.h as i32,
        hk: heads.hk as i32,
        d: heads.d as i32,
        splits: batch.splits as i32,
        window: window.and_then(|w| i32::try_from(w).ok()).unwrap_or(0),
        scale: 1.0 / (heads.d as f32).sqrt(),
        pad: 0,
    };
    let grid = [heads.hk as u32, batch.splits as u32, batch.rows as u32];
    let (kernel, shared) = match heads.d {
        _ if heads.h / heads.hk > GROUP => ("attention_decode_any", 0),
        32 => ("attention_decode_32", SHARED),
        64 => ("attention_decode_64", SHARED),
        128 => ("attention_decode_128", SHARED),
        _ => ("attention_decode_any", 0),
    };
    let launch = Launch { grid, block: [128, 1, 1], shared: 0 }.shared(shared);
    // SAFETY: arguments of the kernel's source, over buffers made for this batch
    unsafe { device.launch(kernel, launch, &[Arg::bytes_of(&args)]) }
}
