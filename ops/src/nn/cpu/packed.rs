//! Causal attention over packed rows, forward and backward, in blocks of queries.
//!
//! Invariant: a query's arithmetic is that of `cache::cached`: chains over its own list of keys, in order; a block only says which
//! queries are computed side by side. Gradients of keys and values are chains over their queries in ascending order.
//!
//! 1. A task is one tree and one key head; its keys and values are laid out in panels of 32, once.
//! 2. Consecutive tokens of one segment, with all query heads of the key head, make a block: their lists differ in a
//!    few keys at the ends.
//! 3. Scores, outputs and gradients are tiles of `matmul`; the ragged ends go row by row in the forward, and are zeros
//!    in the backward.

use std::ops::Range;

use rayon::prelude::*;

use super::attention::{Heads, combine, softmax};
use super::matmul::{NR, strip};
use super::simd::{LANES, exp, tree16, versions};
use crate::nn::packing::Packing;

/// Rows (tokens x heads) of a block. No result depends on it.
const BLOCK: usize = 48;
/// Rows of a tile.
const TILE: usize = 12;

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

/// Runs `f(rows of the tree, key head)` for every tree and key head, on threads where there is enough to do.
fn run_tasks(packing: &Packing, heads: Heads, f: impl Fn((Range<usize>, usize)) + Sync + Send) {
    let tasks = packing.trees().iter().flat_map(|t| (0..heads.hk).map(move |g| (t.clone(), g)));
    let tasks: Vec<_> = tasks.filter(|(rows, _)| !rows.is_empty()).collect();
    if packing.len() < 48 {
        tasks.into_iter().for_each(f);
    } else {
        tasks.into_par_iter().for_each(f);
    }
}

/// Where each row of a tree has its column in panels of 32: a segment starts a panel. Also the number of columns.
fn columns(packing: &Packing, rows: &Range<usize>) -> (Vec<usize>, usize) {
    let mut columns = Vec::with_capacity(rows.len());
    let mut next = 0usize;
    let mut row = rows.start;
    while row < rows.end {
        let end = packing.segment_end(row);
        next = next.next_multiple_of(NR);
        columns.extend(next..next + (end - row));
        next += end - row;
        row = end;
    }
    (columns, next.next_multiple_of(NR))
}

/// One head of x (n, heads, d), rows `rows`, as panels `[column / 32][d][32]`.
fn across(
    x: &[f32],
    heads: usize,
    d: usize,
    head: usize,
    rows: &Range<usize>,
    columns: &(Vec<usize>, usize),
) -> Vec<f32> {
    let mut out = vec![0f32; columns.1 * d];
    for (row, column) in rows.clone().zip(&columns.0) {
        let panel = &mut out[column / NR * NR * d..][..d * NR];
        let src = &x[(row * heads + head) * d..][..d];
        for (x, to) in src.iter().zip(panel[column % NR..].iter_mut().step_by(NR)) {
            *to = *x;
        }
    }
    out
}

/// One head of x (n, heads, d), rows `rows`, as panels `[d / 32][row][32]`.
fn along(x: &[f32], heads: usize, d: usize, head: usize, rows: &Range<usize>) -> Vec<f32> {
    let n = rows.len();
    let mut out = vec![0f32; d.div_ceil(NR) * n * NR];
    for (p, panel) in out.chunks_exact_mut(n * NR).enumerate() {
        let width = NR.min(d - p * NR);
        for (row, to) in rows.clone().zip(panel.chunks_exact_mut(NR)) {
            to[..width].copy_from_slice(&x[(row * heads + head) * d + p * NR..][..width]);
        }
    }
    out
}

/// Consecutive tokens of one segment, and the keys that at least one of them sees.
#[derive(Default)]
struct Block {
    tokens: Range<usize>,
    /// Rows of the tree, in list order, counted from the tree's first.
    list: Vec<Range<usize>>,
    /// Places of each token's list in the block's.
    seen: Vec<Range<usize>>,
    /// Width of a row of scores, and where the list begins in it.
    stride: usize,
    start: usize,
    len: usize,
}

impl Block {
    /// The block that starts at `first`; `None` at the end of the tree.
    fn next(&mut self, packing: &Packing, tree: &Range<usize>, columns: &[usize], heads: Heads, first: usize) -> bool {
        if first >= tree.end {
            return false;
        }
        let most = (BLOCK * heads.hk / heads.h).max(1);
        self.tokens = first..packing.segment_end(first).min(first + most);
        packing.visible(self.tokens.end - 1, &mut self.list);
        let all: usize = self.list.iter().map(Range::len).sum();
        let n = self.tokens.len();
        // what the window shows of the first token's list, the longest way back
        let hidden = heads.window.map_or(0, |w| (all + 1 - n).saturating_sub(w));
        Heads { window: Some(all - hidden), ..heads }.clip(&mut self.list);
        self.len = all - hidden;
        self.seen.clear();
        for i in 0..n {
            let end = self.len - (n - 1 - i);
            self.seen.push(heads.window.map_or(0, |w| end.saturating_sub(w))..end);
        }
        self.stride = 0;
        for r in &mut self.list {
            *r = r.start - tree.start..r.end - tree.start;
            self.stride += (columns[r.start] % NR + r.len()).next_multiple_of(NR);
        }
        self.start = self.list.first().map_or(0, |r| columns[r.start] % NR);
        true
    }

    /// Parts of the list's `range`: (place in the list, rows of the tree).
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let mut at = 0;
        self.list.iter().filter_map(move |r| {
            let (from, to) = (at, at + r.len());
            at = to;
            let (lo, hi) = (range.start.max(from), range.end.min(to));
            (lo < hi).then(|| (lo, r.start + lo - from..r.start + hi - from))
        })
    }

    /// Products of `rows` rows of `a` (rows, d) with every key of the list, from panels made by [`across`]; row i's
    /// list begins at `out[i * stride + start]`.
    fn products(&self, a: &[f32], d: usize, rows: usize, panels: &[f32], columns: &[usize], out: &mut Vec<f32>) {
        assert!(a.len() >= rows * d, "BUG: a block has fewer rows than it says");
        out.resize((rows * self.stride).max(out.len()), 0.0);
        let mut at = 0;
        for r in &self.list {
            let (from, to) = (columns[r.start] / NR, (columns[r.start] + r.len()).div_ceil(NR));
            for panel in panels[from * NR * d..to * NR * d].chunks_exact(NR * d) {
                // SAFETY: `a` has rows x d, the panel d x 32, and `out` 32 columns at `at` in each row of `stride`.
                unsafe {
                    let c = out.as_mut_ptr().add(at);
                    strip(0..rows, d, a.as_ptr(), d, 1, panel.as_ptr(), c, self.stride, NR, false);
                }
                at += NR;
            }
        }
        if self.list.len() > 1 {
            for row in out[..rows * self.stride].chunks_exact_mut(self.stride) {
                let (mut from, mut to) = (0, self.start);
                for r in &self.list {
                    let lead = columns[r.start] % NR;
                    row.copy_within(from + lead..from + lead + r.len(), to);
                    from += (lead + r.len()).next_multiple_of(NR);
                    to += r.len();
                }
            }
        }
    }

    /// `out += a b` for rows `rows`: `a` holds weights by place in the list, laid out as by [`Block::products`], `b` is
    /// made by [`along`] over `n` rows, `out` is (rows, d). Only the list's `range` counts.
    fn weighted(
        &self,
        a: &[f32],
        rows: Range<usize>,
        range: Range<usize>,
        b: &[f32],
        n: usize,
        d: usize,
        out: &mut [f32],
    ) {
        assert!(a.len() >= rows.end * self.stride && out.len() >= rows.end * d, "BUG: a block has too few rows");
        for (at, keys) in self.parts(range) {
            for (p, panel) in b.chunks_exact(n * NR).enumerate() {
                let panel = &panel[keys.start * NR..keys.end * NR];
                // SAFETY: `a` has `stride` columns from each row, the panel one row for each key, `out` d columns.
                unsafe {
                    let a = a.as_ptr().add(self.start + at);
                    let c = out.as_mut_ptr().add(p * NR);
                    strip(rows.clone(), keys.len(), a, self.stride, 1, panel.as_ptr(), c, d, NR.min(d - p * NR), true);
                }
            }
        }
    }
}

/// Packed causal attention. `q` and `out` are (n, h, d), `k` and `v` (n, hk, d), `stats` (n, h, 2): row maximum and
/// 1 / sum, for the backward.
pub fn forward(q: &[f32], k: &[f32], v: &[f32], packing: &Packing, heads: Heads, out: &mut [f32], stats: &mut [f32]) {
    let (out, stats) = (Shared(out.as_mut_ptr()), Shared(stats.as_mut_ptr()));
    run_tasks(packing, heads, |(tree, g)| forward_tree(q, k, v, packing, tree, heads, g, &out, &stats));
}

versions! {
fn forward_tree(q: &[f32], k: &[f32], v: &[f32], packing: &Packing, tree: Range<usize>, heads: Heads, g: usize, out: &Shared, stats: &Shared) {
    let Heads { h, hk, d, .. } = heads;
    let (group, n, scale) = (h / hk, tree.len(), heads.scale());
    let columns = columns(packing, &tree);
    let (keys, values) = (across(k, hk, d, g, &tree, &columns), along(v, hk, d, g, &tree));
    let (mut block, mut first) = (Block::default(), tree.start);
    let (mut a, mut s, mut o) = (Vec::new(), Vec::new(), Vec::new());
    while block.next(packing, &tree, &columns.0, heads, first) {
        first = block.tokens.end;
        let rows = block.tokens.len() * group;
        // 1. scaled queries (rows, d): token by token, the group's heads beside each other
        a.clear();
        for t in block.tokens.clone() {
            a.extend(q[(t * h + g * group) * d..][..group * d].iter().map(|q| q * scale));
        }
        // 2. scores and their softmax
        block.products(&a, d, rows, &keys, &columns.0, &mut s);
        for (i, seen) in block.seen.iter().enumerate() {
            for j in 0..group {
                let row = (i * group + j) * block.stride + block.start;
                let (max, inverse) = softmax(&mut s[row + seen.start..row + seen.end]);
                // SAFETY: the tree's tokens and the group's heads are this task's own.
                let stats = unsafe { stats.slice(((block.tokens.start + i) * h + g * group + j) * 2, 2) };
                stats[0] = max;
                stats[1] = inverse;
            }
        }
        // 3. outputs: what all rows of a tile see in one sweep, before and after it what each sees beside
        o.clear();
        o.resize(rows * d, 0.0);
        for r0 in (0..rows).step_by(TILE) {
            let r1 = rows.min(r0 + TILE);
            let (from, to) = (block.seen[(r1 - 1) / group].start, block.seen[r0 / group].end);
            let to = to.max(from);
            for early in [true, false] {
                for r in r0..r1 {
                    let seen = &block.seen[r / group];
                    let range = if early { seen.start..from.min(seen.end) } else { to.max(seen.start)..seen.end };
                    for (at, keys) in block.parts(range) {
                        let p = &s[r * block.stride + block.start + at..][..keys.len()];
                        combine(p, &v[((tree.start + keys.start) * hk + g) * d..], hk * d, &mut o[r * d..(r + 1) * d]);
                    }
                }
                if early {
                    block.weighted(&s, r0..r1, from..to, &values, n, d, &mut o);
                }
            }
        }
        for (i, t) in block.tokens.clone().enumerate() {
            for j in 0..group {
                let at = t * h + g * group + j;
                // SAFETY: as above.
                let (out, inverse) = unsafe { (out.slice(at * d, d), stats.slice(at * 2 + 1, 1)[0]) };
                for (out, o) in out.iter_mut().zip(&o[(i * group + j) * d..]) {
                    *out = o * inverse;
                }
            }
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
    run_tasks(packing, heads, |(tree, g)| {
        backward_tree(dout, [q, k, v], stats, packing, tree, heads, g, [&dq, &dk, &dv]);
    });
}

versions! {
fn backward_tree(dout: &[f32], qkv: [&[f32]; 3], stats: &[f32], packing: &Packing, tree: Range<usize>, heads: Heads, g: usize, out: [&Shared; 3]) {
    let Heads { h, hk, d, .. } = heads;
    let (group, n, scale) = (h / hk, tree.len(), heads.scale());
    let [q, k, v] = qkv;
    let [dq, dk, dv] = out;
    let columns = columns(packing, &tree);
    let (keys, values) = (across(k, hk, d, g, &tree, &columns), across(v, hk, d, g, &tree, &columns));
    let key_rows = along(k, hk, d, g, &tree);
    let (mut block, mut first) = (Block::default(), tree.start);
    let (mut a, mut go, mut p, mut ds, mut o) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    while block.next(packing, &tree, &columns.0, heads, first) {
        first = block.tokens.end;
        let rows = block.tokens.len() * group;
        // 1. scaled queries and output gradients (rows, d)
        a.clear();
        go.clear();
        for t in block.tokens.clone() {
            let here = (t * h + g * group) * d..(t * h + (g + 1) * group) * d;
            a.extend(q[here.clone()].iter().map(|q| q * scale));
            go.extend_from_slice(&dout[here]);
        }
        // 2. probabilities p, and the gradient of scores ds = p (dp - sum p dp) scale; zero where a row does not see
        block.products(&a, d, rows, &keys, &columns.0, &mut p);
        block.products(&go, d, rows, &values, &columns.0, &mut ds);
        for r in 0..rows {
            let seen = &block.seen[r / group];
            let here = r * block.stride + block.start..r * block.stride + block.start + block.len;
            let (p, ds) = (&mut p[here.clone()], &mut ds[here]);
            for x in [&mut *p, &mut *ds] {
                x[..seen.start].fill(0.0);
                x[seen.end..].fill(0.0);
            }
            let at = ((block.tokens.start + r / group) * h + g * group + r % group) * 2;
            score_gradient(&mut p[seen.clone()], &mut ds[seen.clone()], stats[at], stats[at + 1], scale);
        }
        // 3. dq = ds k
        o.clear();
        o.resize(rows * d, 0.0);
        block.weighted(&ds, 0..rows, 0..block.len, &key_rows, n, d, &mut o);
        for (i, t) in block.tokens.clone().enumerate() {
            // SAFETY: the tree's tokens and the group's heads are this task's own.
            let dq = unsafe { dq.slice((t * h + g * group) * d, group * d) };
            dq.copy_from_slice(&o[i * group * d..][..group * d]);
        }
        // 4. dk += ds^T q, dv += p^T dout: chains over tokens, then heads
        a.clear();
        for t in block.tokens.clone() {
            a.extend_from_slice(&q[(t * h + g * group) * d..][..group * d]);
        }
        for (weights, x, to) in [(&ds, &a, dk), (&p, &go, dv)] {
            let panels = along(x, 1, d, 0, &(0..rows));
            for (at, keys) in block.parts(0..block.len) {
                for (i, panel) in panels.chunks_exact(rows * NR).enumerate() {
                    let first = ((tree.start + keys.start) * hk + g) * d + i * NR;
                    // SAFETY: `weights` has a column for each key in every row of the block, the panel a row for each
                    // of those; the tree's keys and this key head are this task's own.
                    unsafe {
                        let (a, c) = (weights.as_ptr().add(block.start + at), to.0.add(first));
                        let (b, width) = (panel.as_ptr(), NR.min(d - i * NR));
                        strip(0..keys.len(), rows, a, 1, block.stride, b, c, hk * d, width, true);
                    }
                }
            }
        }
    }
}
}

/// Scores -> probabilities in `p`; gradients of probabilities -> gradients of scores in `ds`.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], max: f32, inverse: f32, scale: f32) {
    let mut lanes = [0f32; LANES];
    let (mut ps, mut dps) = (p.chunks_exact_mut(LANES), ds.chunks_exact(LANES));
    for (p, dp) in (&mut ps).zip(&mut dps) {
        for i in 0..LANES {
            p[i] = exp(p[i] - max) * inverse;
            lanes[i] = p[i].mul_add(dp[i], lanes[i]);
        }
    }
    for ((p, dp), lane) in ps.into_remainder().iter_mut().zip(dps.remainder()).zip(&mut lanes) {
        *p = exp(*p - max) * inverse;
        *lane = p.mul_add(*dp, *lane);
    }
    let delta = tree16(lanes);
    for (dp, p) in ds.iter_mut().zip(p) {
        *dp = *p * (*dp - delta) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::dot;
    use super::*;
    use crate::rng::Rng;

    /// `out[i] = sum_d q[d] * kt[d][at + i]`, chains over d.
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

    /// Keys and values of one head: keys transposed `[d][stride]`, values by rows.
    struct HeadView<'a> {
        kt: &'a [f32],
        stride: usize,
        v: &'a [f32],
        v_stride: usize,
    }

    /// One query against the keys of `ranges`; writes the output, returns (max, 1 / sum). `s` is scratch.
    fn attend(
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

    fn random(n: usize, stream: u64) -> Vec<f32> {
        let mut rng = Rng::new(4, stream);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// Trees of every kind: a lone token, a long root, branches of branches, an empty segment.
    fn packing() -> Packing {
        let mut p = Packing::new();
        let a = p.root(37);
        let b = p.child(a, 50);
        p.child(b, 3);
        p.child(a, 70);
        p.root(1);
        p.root(133);
        let r = p.root(33);
        let empty = p.child(r, 0);
        p.child(empty, 9);
        (0..4).for_each(|_| {
            p.child(r, 9);
        });
        p
    }

    const SHAPES: [Heads; 5] = [
        Heads { h: 4, hk: 2, d: 64, window: None },
        Heads { h: 3, hk: 3, d: 16, window: None },
        Heads { h: 6, hk: 2, d: 40, window: Some(3) },
        Heads { h: 4, hk: 1, d: 128, window: Some(41) },
        Heads { h: 2, hk: 2, d: 7, window: Some(500) },
    ];

    #[test]
    fn a_block_has_the_bits_of_its_queries_one_by_one() {
        let p = packing();
        for heads in SHAPES {
            let Heads { h, hk, d, .. } = heads;
            let n = p.len();
            let (q, k, v) = (random(n * h * d, 1), random(n * hk * d, 2), random(n * hk * d, 3));
            let (mut out, mut stats) = (vec![f32::NAN; n * h * d], vec![f32::NAN; n * h * 2]);
            forward(&q, &k, &v, &p, heads, &mut out, &mut stats);
            let (mut ranges, mut s, mut want) = (Vec::new(), Vec::new(), vec![0f32; d]);
            for t in 0..n {
                p.visible(t, &mut ranges);
                heads.clip(&mut ranges);
                for head in 0..h {
                    let g = head / (h / hk);
                    let kt: Vec<f32> = (0..d * n).map(|x| k[((x % n) * hk + g) * d + x / n]).collect();
                    let view = HeadView { kt: &kt, stride: n, v: &v[g * d..], v_stride: hk * d };
                    let at = t * h + head;
                    let (max, inverse) = attend(&q[at * d..][..d], heads.scale(), &view, &ranges, &mut s, &mut want);
                    assert_eq!(stats[at * 2..at * 2 + 2], [max, inverse], "{heads:?}, row {t}");
                    assert_eq!(out[at * d..][..d], want, "{heads:?}, row {t}");
                }
            }
        }
    }

    #[test]
    fn gradients_are_chains_over_queries_in_order() {
        let p = packing();
        for heads in SHAPES {
            let Heads { h, hk, d, .. } = heads;
            let n = p.len();
            let (q, k, v) = (random(n * h * d, 1), random(n * hk * d, 2), random(n * hk * d, 3));
            let go = random(n * h * d, 4);
            let (mut out, mut stats) = (vec![0f32; n * h * d], vec![0f32; n * h * 2]);
            forward(&q, &k, &v, &p, heads, &mut out, &mut stats);
            let mut got = [vec![f32::NAN; n * h * d], vec![f32::NAN; n * hk * d], vec![f32::NAN; n * hk * d]];
            let [dq, dk, dv] = &mut got;
            backward(&go, &q, &k, &v, &stats, &p, heads, dq, dk, dv);

            let chain = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |sum, (a, b)| a.mul_add(*b, sum));
            let mut want = [vec![0f32; n * h * d], vec![0f32; n * hk * d], vec![0f32; n * hk * d]];
            let [dq, dk, dv] = &mut want;
            let mut ranges = Vec::new();
            for t in 0..n {
                p.visible(t, &mut ranges);
                heads.clip(&mut ranges);
                let seen: Vec<usize> = ranges.iter().cloned().flatten().collect();
                for head in 0..h {
                    let (g, at) = (head / (h / hk), t * h + head);
                    let scaled: Vec<f32> = q[at * d..][..d].iter().map(|q| q * heads.scale()).collect();
                    let key = |row: usize| (row * hk + g) * d..(row * hk + g + 1) * d;
                    let prob = |row: &usize| exp(chain(&scaled, &k[key(*row)]) - stats[at * 2]) * stats[at * 2 + 1];
                    let probs: Vec<f32> = seen.iter().map(prob).collect();
                    let dps: Vec<f32> = seen.iter().map(|r| chain(&go[at * d..][..d], &v[key(*r)])).collect();
                    let delta = dot(&probs, &dps);
                    for ((row, prob), dp) in seen.iter().zip(&probs).zip(&dps) {
                        let ds = prob * (dp - delta) * heads.scale();
                        for i in 0..d {
                            let (here, there) = (at * d + i, key(*row).start + i);
                            dq[here] = ds.mul_add(k[there], dq[here]);
                            dk[there] = ds.mul_add(q[here], dk[there]);
                            dv[there] = prob.mul_add(go[here], dv[there]);
                        }
                    }
                }
            }
            assert_eq!(got, want, "{heads:?}");
        }
    }
}
