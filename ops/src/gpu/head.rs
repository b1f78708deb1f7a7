//! The head in chunks of tokens: logits, their statistics, and gradients, in one sweep.
//!
//! Two chunks' logits are alive at once: while the host makes coefficients of one, the device makes the next.
//!
//! Invariant: a row's numbers do not depend on the chunk it stands in beyond what the product of its size gives.

use candle_core::Result;

use super::driver::{Address, Arg, Driver, Element, Launch, Matrix, Product};
use super::memory::Arena;
use super::weights::Weight;
use crate::nn::layer::TokenStats;

/// Threads that share a row of logits: as many as in `sample`, whose sums are the same then.
const BLOCK: u32 = 1024;
/// Bytes of a row's statistics: log-probability, entropy, log of the sum, largest.
const STATS: usize = 16;

/// The matrix of the head, and how much of its work is done at once.
pub struct Head<'a> {
    pub device: &'a dyn Driver,
    /// (v, hidden)
    pub w: Weight,
    /// Rows of logits in a chunk.
    pub chunk: usize,
    pub temperature: f32,
}

/// A chunk's place.
struct Place {
    /// First row and rows.
    rows: (usize, usize),
    logits: Matrix,
    stats: Address,
}

impl Head<'_> {
    fn v(&self) -> usize {
        self.w.value.rows
    }

    /// Elements from one row of logits to the next.
    fn stride(&self) -> usize {
        self.v().next_multiple_of(8)
    }

    fn logits(&self, at: Address, rows: usize, element: Element) -> Matrix {
        Matrix { at, element, rows, columns: self.v(), stride: self.stride() }
    }

    fn launch(&self, kernel: &'static str, rows: usize, args: &[Arg]) -> Result<()> {
        // SAFETY: the arguments are those of the kernel's source; buffers were made for these rows
        unsafe { self.device.launch(kernel, Launch::new(rows, BLOCK), args) }
    }

    /// Logits of some rows of h, and what they say about their targets, which stays on the device.
    fn forward(&self, place: &Place, h: Matrix, targets: Address) -> Result<()> {
        let (first, rows) = place.rows;
        let h = h.rows(first, rows);
        // SAFETY: the chunk's logits have these rows
        unsafe { self.device.product(&Product::rows(h, self.w.value, place.logits))? };
        let args = [
            place.stats.into(),
            place.logits.at.into(),
            targets.plus(4 * first).into(),
            Arg::int(self.v()),
            Arg::long(self.stride()),
            self.temperature.into(),
        ];
        self.launch("head_stats", rows, &args)
    }

    /// The statistics of all rows of h (n, hidden), whose targets (n) are on the device.
    pub fn score(&self, arena: &mut Arena, h: Matrix, targets: Address) -> Result<Vec<TokenStats>> {
        let n = h.rows;
        let lent = arena.lent();
        let rows = self.chunk.min(n);
        let stats = arena.lend(STATS * n)?;
        let logits = arena.lend(4 * rows * self.stride())?;
        for first in (0..n).step_by(self.chunk) {
            let rows = self.chunk.min(n - first);
            let logits = self.logits(logits, rows, Element::F32);
            self.forward(&Place { rows: (first, rows), logits, stats: stats.plus(STATS * first) }, h, targets)?;
        }
        let mut bytes = vec![0; STATS * n];
        // SAFETY: as long as it was lent
        unsafe { self.device.read(stats, &mut bytes)? };
        arena.forget(lent);
        Ok(read(&bytes))
    }

    /// Statistics of all rows, and their gradient: dh (n, hidden) is written, the head's own added up. `coefficient(row,
    /// statistics)` is d objective / d logp of that row.
    pub fn train(
        &self,
        arena: &mut Arena,
        h: Matrix,
        dh: Matrix,
        targets: Address,
        mut coefficient: impl FnMut(usize, TokenStats) -> f32,
    ) -> Result<Vec<TokenStats>> {
        let n = h.rows;
        let lent = arena.lent();
        let most = self.chunk.min(n);
        let mut buffers = Vec::with_capacity(2);
        for _ in 0..2.min(n.div_ceil(self.chunk)) {
            buffers.push((arena.lend(4 * most * self.stride())?, arena.lend(STATS * most)?));
        }
        let gradients = arena.lend(2 * most * self.stride())?;
        let coefficients = arena.lend(4 * most)?;
        let mut all = Vec::with_capacity(n);
        let mut pending = None;
        let places = (0..n).step_by(self.chunk).enumerate().map(|(i, first)| {
            let rows = self.chunk.min(n - first);
            let (logits, stats) = buffers[i % 2];
            Place { rows: (first, rows), logits: self.logits(logits, rows, Element::F32), stats }
        });
        for place in places.map(Some).chain([None]) {
            let next = match place {
                Some(place) => {
                    self.forward(&place, h, targets)?;
                    // SAFETY: the statistics are written again after the ticket's wait alone
                    let ticket = unsafe { self.device.read_later(place.stats, STATS * place.rows.1)? };
                    Some((place, ticket))
                }
                None => None,
            };
            let Some((place, ticket)) = std::mem::replace(&mut pending, next) else { continue };
            let (first, rows) = place.rows;
            let stats = read(&ticket.wait()?);
            let made = stats.iter().enumerate().map(|(i, s)| coefficient(first + i, *s));
            let bytes: Vec<u8> = made.flat_map(f32::to_ne_bytes).collect();
            all.extend(stats);
            // SAFETY: buffers were made for these rows
            unsafe { self.device.write(coefficients, &bytes)? };
            let args = [
                gradients.into(),
                place.stats.into(),
                place.logits.at.into(),
                targets.plus(4 * first).into(),
                coefficients.into(),
                Arg::int(self.v()),
                Arg::long(self.stride()),
                self.temperature.into(),
            ];
            self.launch("head_gradient", rows, &args)?;
            let dz = self.logits(gradients, rows, Element::Bf16);
            // SAFETY: as above
            unsafe {
                self.device.product(&Product::back(dz, self.w.value, dh.rows(first, rows)))?;
                if let Some(grad) = self.w.grad {
                    self.device.product(&Product::weight(dz, h.rows(first, rows), grad))?;
                }
            }
        }
        arena.forget(lent);
        Ok(all)
    }
}

fn read(bytes: &[u8]) -> Vec<TokenStats> {
    let float = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
    bytes.chunks_exact(STATS).map(|s| TokenStats { logp: float(&s[..4]), entropy: float(&s[4..8]) }).collect()
}
