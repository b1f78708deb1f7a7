//! Keys and values of sequences that grow, and attention over them.
//!
//! Invariant: a query goes through `attention::attend`, so it has the bits it has in a packed row.

use super::attention::{HeadView, Heads, attend};
use super::simd::versions;

/// Keys and values of one sequence in one layer, grown by doubling: keys (hk, d, capacity), values (capacity, hk, d).
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    kt: Vec<f32>,
    v: Vec<f32>,
    len: usize,
    capacity: usize,
}

impl LayerCache {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends rows of keys and values, (rows, hk, d) each.
    pub fn append(&mut self, k: &[f32], v: &[f32], heads: Heads) {
        let Heads { hk, d, .. } = heads;
        let rows = k.len() / (hk * d);
        if self.len + rows > self.capacity {
            let capacity = (self.len + rows).next_power_of_two().max(64);
            let mut kt = vec![0f32; hk * d * capacity];
            for (new, old) in kt.chunks_exact_mut(capacity).zip(self.kt.chunks_exact(self.capacity.max(1))) {
                new[..self.len].copy_from_slice(&old[..self.len]);
            }
            self.kt = kt;
            self.v.resize(capacity * hk * d, 0.0);
            self.capacity = capacity;
        }
        for (j, row) in k.chunks_exact(hk * d).enumerate() {
            for (i, x) in row.iter().enumerate() {
                self.kt[i * self.capacity + self.len + j] = *x;
            }
        }
        self.v[self.len * hk * d..][..v.len()].copy_from_slice(v);
        self.len += rows;
    }
}

versions! {
/// The last `q.len() / (h d)` tokens of a cached sequence attend to it, causally. `q` and `out` are (rows, h, d).
pub fn cached(q: &[f32], cache: &LayerCache, heads: Heads, out: &mut [f32]) {
    let Heads { h, hk, d, .. } = heads;
    let rows = q.len() / (h * d);
    let first = cache.len - rows;
    let mut s = Vec::new();
    for t in 0..rows {
        let start = heads.window.map_or(0, |w| (first + t + 1).saturating_sub(w));
        for head in 0..h {
            let g = head / (h / hk);
            let view = HeadView {
                kt: &cache.kt[g * d * cache.capacity..(g + 1) * d * cache.capacity],
                stride: cache.capacity,
                v: &cache.v[g * d..],
                v_stride: hk * d,
            };
            let at = (t * h + head) * d;
            attend(&q[at..at + d], heads.scale(), &view, std::slice::from_ref(&(start..first + t + 1)), &mut s, &mut out[at..at + d]);
        }
    }
}
}
