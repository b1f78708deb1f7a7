//! Causal attention of one query; `packed` has it for packed rows, `cache` over a cache.
//!
//! Invariant: a query's result depends only on the list of keys it sees, in order: scores are chains over the head
//! dimension, the softmax sum has 16 fixed lanes over that list, the output is one chain over it. So packing, shared
//! prefixes and caching change no bit.
//!
//! Rows are cut into segments that form trees (`nn::Packing`): a token sees all of its segment's ancestors and its own
//! segment up to itself, which is the rule `k <= q && q < vis_end[k]` in depth-first order.

use std::ops::Range;

use super::simd::{LANES, exp, max16, tree16};

/// Shape of one attention: `h` query heads share `hk` key/value heads of dimension `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub h: usize,
    pub hk: usize,
    pub d: usize,
    /// A token sees itself and the `window - 1` tokens before it in its sequence; `None`: all of them.
    pub window: Option<usize>,
}

impl Heads {
    pub(super) fn scale(self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Leaves of `ranges` what the window shows: their last `window` rows.
    pub fn clip(self, ranges: &mut Vec<Range<usize>>) {
        let Some(window) = self.window else { return };
        let mut hidden = ranges.iter().map(Range::len).sum::<usize>().saturating_sub(window);
        ranges.retain_mut(|r| {
            let cut = hidden.min(r.len());
            hidden -= cut;
            r.start += cut;
            r.start < r.end
        });
    }
}

/// `out[d] += sum_j p[j] * v[j][d]`, chains over j. `v` starts at the first row.
#[inline(always)]
pub(super) fn combine(p: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
    let d = out.len();
    let mut i = 0;
    while i < d {
        i += match d - i {
            64.. => combine_columns::<64>(p, &v[i..], stride, &mut out[i..]),
            32.. => combine_columns::<32>(p, &v[i..], stride, &mut out[i..]),
            16.. => combine_columns::<16>(p, &v[i..], stride, &mut out[i..]),
            _ => combine_columns::<1>(p, &v[i..], stride, &mut out[i..]),
        };
    }
}

/// The first `W` columns of [`combine`].
#[inline(always)]
fn combine_columns<const W: usize>(p: &[f32], v: &[f32], stride: usize, out: &mut [f32]) -> usize {
    let mut acc = [0f32; W];
    acc.copy_from_slice(&out[..W]);
    for (j, p) in p.iter().enumerate() {
        let v = &v[j * stride..][..W];
        for (acc, v) in acc.iter_mut().zip(v) {
            *acc = p.mul_add(*v, *acc);
        }
    }
    out[..W].copy_from_slice(&acc);
    W
}

/// Softmax in place; returns (max, 1 / sum).
#[inline(always)]
pub(super) fn softmax(s: &mut [f32]) -> (f32, f32) {
    let max = max16(s);
    let mut lanes = [0f32; LANES];
    let mut chunks = s.chunks_exact_mut(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(*x - max);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
        *x = exp(*x - max);
        *lane += *x;
    }
    (max, 1.0 / tree16(lanes))
}
