//! Causal attention on the processor over packed rows; `cache` has the same over a cache.
//!
//! Invariant: a query's result depends only on the list of keys it sees, in order: scores are chains over the head
//! dimension, the softmax sum has 16 fixed lanes over that list, the output is one chain over it. So packing, shared
//! prefixes and caching change no bit.
//!
//! Rows are cut into segments that form trees (`nn::Packing`): a token sees all of its segment's ancestors and its own
//! segment up to itself, which is the rule `k <= q && q < vis_end[k]` in depth-first order.

use std::ops::Range;

use rayon::prelude::*;

use super::simd::{LANES, axpy, exp, max16, tree16, versions};
use crate::nn::packing::Packing;

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

/// `out[i] = sum_d q[d] * kt[d][at + i]`, chains over d.
#[inline(always)]
fn project(q: &[f32], kt: &[f32], stride: usize, at: usize, out: &mut [f32]) {
    const W: usize = 64;
    let n = out.len();
    let mut j = 0;
    while j + W <= n {
        let mut acc = [0f32; W];
        for (i, q) in q.iter().enumerate() {
            let k = &kt[i * stride + at + j..][..W];
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = q.mul_add(*k, *acc);
            }
        }
        out[j..j + W].copy_from_slice(&acc);
        j += W;
    }
    while j < n {
        let w = LANES.min(n - j);
        let mut acc = [0f32; LANES];
        for (i, q) in q.iter().enumerate() {
            let k = &kt[i * stride + at + j..][..w];
            for (acc, k) in acc.iter_mut().zip(k) {
                *acc = q.mul_add(*k, *acc);
            }
        }
        out[j..j + w].copy_from_slice(&acc[..w]);
        j += w;
    }
}

/// `out[d] += sum_j p[j] * v[j][d]`, chains over j. `v` starts at the first row.
#[inline(always)]
fn combine(p: &[f32], v: &[f32], stride: usize, out: &mut [f32]) {
    const W: usize = 32;
    let d = out.len();
    let mut i = 0;
    while i + W <= d {
        let mut acc = [0f32; W];
        acc.copy_from_slice(&out[i..i + W]);
        for (j, p) in p.iter().enumerate() {
            let v = &v[j * stride + i..][..W];
            for (acc, v) in acc.iter_mut().zip(v) {
                *acc = p.mul_add(*v, *acc);
            }
        }
        out[i..i + W].copy_from_slice(&acc);
        i += W;
    }
    for i in i..d {
        for (j, p) in p.iter().enumerate() {
            out[i] = p.mul_add(v[j * stride + i], out[i]);
        }
    }
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

/// Keys and values of one head: keys transposed `[d][stride]`, values by rows.
pub(super) struct HeadView<'a> {
    pub kt: &'a [f32],
    pub stride: usize,
    pub v: &'a [f32],
    pub v_stride: usize,
}

/// One query against the keys of `ranges`; writes the output, returns (max, 1 / sum). `s` is scratch.
#[inline(always)]
pub(super) fn attend(
    q: &[f32],
    scale: f32,
    kv: &HeadView<'_>,
    ranges: &[Range<usize>],
    s: &mut Vec<f32>,
    out: &mut [f32],
) -> (f32, f32) {
    let mut scaled = [0f32; 256];
    let scaled = &mut scaled[..q.len()];
    for (s, q) in scaled.iter_mut().zip(q) {
        *s = q * scale;
    }
    s.resize(ranges.iter().map(Range::len).sum(), 0.0);
    let mut at = 0;
    for r in ranges {
        project(scaled, kv.kt, kv.stride, r.start, &mut s[at..at + r.len()]);
        at += r.len();
    }
    let (max, inverse) = softmax(s);
    out.fill(0.0);
    let mut at = 0;
    for r in ranges {
        combine(&s[at..at + r.len()], &kv.v[r.start * kv.v_stride..], kv.v_stride, out);
        at += r.len();
    }
    for o in out.iter_mut() {
        *o *= inverse;
    }
    (max, inverse)
}

/// `(n, hk, d)` -> one head as `[d][n]`, rows `rows` only.
fn transpose_head(x: &[f32], heads: usize, d: usize, head: usize, rows: Range<usize>) -> Vec<f32> {
    let n = rows.len();
    let mut out = vec![0f32; d * n];
    for (j, row) in rows.enumerate() {
        let src = &x[(row * heads + head) * d..][..d];
        for (i, x) in src.iter().enumerate() {
            out[i * n + j] = *x;
        }
    }
    out
}

struct Shared(*mut f32);
// SAFETY: tasks write the rows and heads that are theirs alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// The range lies in the buffer and no other task touches it.
    #[expect(clippy::mut_from_ref, reason = "tasks share the buffer and write disjoint parts")]
    unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: given by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Trees x key heads, each a task.
fn tasks(packing: &Packing, heads: Heads) -> Vec<(usize, usize)> {
    (0..packing.trees().len()).flat_map(|t| (0..heads.hk).map(move |g| (t, g))).collect()
}

/// Runs tasks on threads where there is enough to do.
fn run_tasks(tasks: Vec<(usize, usize)>, n: usize, f: impl Fn((usize, usize)) + Sync + Send) {
    if n < 48 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// Packed causal attention. `q` and `out` are (n, h, d), `k` and `v` (n, hk, d), `stats` (n, h, 2): row maximum and
/// 1 / sum, for the backward.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], packing: &Packing, heads: Heads, out: &mut [f32], stats: &mut [f32]) {
    let (out, stats) = (Shared(out.as_mut_ptr()), Shared(stats.as_mut_ptr()));
    run_tasks(tasks(packing, heads), packing.len(), |(tree, g)| {
        let rows = packing.trees()[tree].clone();
        let kt = transpose_head(k, heads.hk, heads.d, g, rows.clone());
        forward_tree(q, &kt, &v[g * heads.d..], packing, rows, heads, g, &out, &stats);
    });
}

versions! {
fn forward_tree(q: &[f32], kt: &[f32], v: &[f32], packing: &Packing, rows: Range<usize>, heads: Heads, g: usize, out: &Shared, stats: &Shared) {
    let Heads { h, hk, d, .. } = heads;
    let group = h / hk;
    let (mut s, mut ranges) = (Vec::new(), Vec::new());
    for t in rows.clone() {
        packing.visible(t, &mut ranges);
        heads.clip(&mut ranges);
        for r in &mut ranges {
            *r = r.start - rows.start..r.end - rows.start;
        }
        let view = HeadView { kt, stride: rows.len(), v: &v[rows.start * hk * d..], v_stride: hk * d };
        for head in g * group..(g + 1) * group {
            let at = t * h + head;
            // SAFETY: token t belongs to this tree and `head` to this group: this task's own.
            let (o, st) = unsafe { (out.slice(at * d, d), stats.slice(at * 2, 2)) };
            let (max, inverse) = attend(&q[at * d..][..d], heads.scale(), &view, &ranges, &mut s, o);
            st[0] = max;
            st[1] = inverse;
        }
    }
}
}

/// Gradient of [`forward`]: writes `dq`, `dk`, `dv`.
pub fn backward(
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    stats: &[f32],
    packing: &Packing,
    heads: Heads,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
) {
    dk.fill(0.0);
    dv.fill(0.0);
    let (dq, dk, dv) = (Shared(dq.as_mut_ptr()), Shared(dk.as_mut_ptr()), Shared(dv.as_mut_ptr()));
    run_tasks(tasks(packing, heads), packing.len(), |(tree, g)| {
        let rows = packing.trees()[tree].clone();
        let kt = transpose_head(k, heads.hk, heads.d, g, rows.clone());
        let vt = transpose_head(v, heads.hk, heads.d, g, rows.clone());
        let out = [&dq, &dk, &dv];
        backward_tree(dout, q, k, &kt, &vt, stats, packing, rows, heads, g, out);
    });
}

versions! {
fn backward_tree(dout: &[f32], q: &[f32], k: &[f32], kt: &[f32], vt: &[f32], stats: &[f32], packing: &Packing, rows: Range<usize>, heads: Heads, g: usize, out: [&Shared; 3]) {
    let Heads { h, hk, d, .. } = heads;
    let (group, n, scale) = (h / hk, rows.len(), heads.scale());
    let [dq, dk, dv] = out;
    let (mut p, mut dp, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
    let mut scaled = vec![0f32; d];
    for t in rows.clone() {
        packing.visible(t, &mut ranges);
        heads.clip(&mut ranges);
        let seen: usize = ranges.iter().map(Range::len).sum();
        p.resize(seen, 0.0);
        dp.resize(seen, 0.0);
        for head in g * group..(g + 1) * group {
            let at = t * h + head;
            let (query, go) = (&q[at * d..][..d], &dout[at * d..][..d]);
            let (max, inverse) = (stats[at * 2], stats[at * 2 + 1]);
            for (s, q) in scaled.iter_mut().zip(query) {
                *s = q * scale;
            }
            let mut i = 0;
            for r in &ranges {
                let local = r.start - rows.start;
                project(&scaled, kt, n, local, &mut p[i..i + r.len()]);
                project(go, vt, n, local, &mut dp[i..i + r.len()]);
                i += r.len();
            }
            let mut lanes = [0f32; LANES];
            for (p, dp) in p.chunks_mut(LANES).zip(dp.chunks(LANES)) {
                for ((p, dp), lane) in p.iter_mut().zip(dp).zip(&mut lanes) {
                    *p = exp(*p - max) * inverse;
                    *lane = p.mul_add(*dp, *lane);
                }
            }
            let delta = tree16(lanes);
            for (dp, p) in dp.iter_mut().zip(&p) {
                *dp = p * (*dp - delta) * scale;
            }
            // SAFETY: row t and this head are this task's own.
            let grad_q = unsafe { dq.slice(at * d, d) };
            grad_q.fill(0.0);
            let mut i = 0;
            for r in &ranges {
                combine(&dp[i..i + r.len()], &k[(r.start * hk + g) * d..], hk * d, grad_q);
                for (j, key) in r.clone().enumerate() {
                    // SAFETY: key rows of this tree and key head g are this task's own.
                    let (gk, gv) = unsafe { (dk.slice((key * hk + g) * d, d), dv.slice((key * hk + g) * d, d)) };
                    axpy(dp[i + j], query, gk);
                    axpy(p[i + j], go, gv);
                }
                i += r.len();
            }
        }
    }
}
}
