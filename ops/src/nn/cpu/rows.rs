//! Kernels over rows: RMSNorm, rotary embedding, SwiGLU, log-softmax, AdamW.
//!
//! Invariant: a row's result depends on that row alone, and sums over rows run in fixed chunks in ascending order, so
//! neither batch nor thread count changes a bit.

use rayon::prelude::*;

use super::simd::{LANES, dot, exp, max16, tree16, versions};

/// Rows a task takes; also the chunk of sums over rows.
const CHUNK: usize = 64;
/// Elements below which threads cost more than they give.
const PARALLEL: usize = 1 << 15;

/// Runs `f(chunk index, rows of a, rows of b)` over chunks of 64 rows, on threads where it pays.
fn by_chunks<A: Send, B: Send>(
    a: &mut [A],
    aw: usize,
    b: &mut [B],
    bw: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    if a.len().max(b.len()) < PARALLEL {
        a.chunks_mut(CHUNK * aw).zip(b.chunks_mut(CHUNK * bw)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
    } else {
        a.par_chunks_mut(CHUNK * aw).zip(b.par_chunks_mut(CHUNK * bw)).enumerate().for_each(|(i, (a, b))| f(i, a, b));
    }
}

versions! {
fn rms_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let d = w.len();
    for ((x, y), r) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rstd) {
        let scale = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
        *r = scale;
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * scale * w;
        }
    }
}
}

/// y = x / sqrt(mean(x^2) + eps) * w for each row of `w.len()` elements; `rstd` keeps 1 / sqrt(..) for the backward.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32]) {
    let d = w.len();
    by_chunks(y, d, rstd, 1, |i, y, r| rms_rows(&x[i * CHUNK * d..][..y.len()], w, eps, y, r));
}

versions! {
fn rms_rows_backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let d = w.len();
    for (((dy, x), dx), r) in dy.chunks_exact(d).zip(x.chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(rstd) {
        let r = *r;
        let mut acc = [0f32; LANES];
        let whole = d - d % LANES;
        for ((g, x), w) in dy.chunks_exact(LANES).zip(x.chunks_exact(LANES)).zip(w.chunks_exact(LANES)) {
            for i in 0..LANES {
                acc[i] = (g[i] * w[i]).mul_add(x[i], acc[i]);
            }
        }
        for (i, acc) in (whole..d).zip(&mut acc) {
            *acc = (dy[i] * w[i]).mul_add(x[i], *acc);
        }
        let c = tree16(acc) * r * r / d as f32;
        let (dx, dw) = (&mut dx[..d], &mut dw[..d]);
        for i in 0..d {
            dx[i] = r * (dy[i] * w[i] - x[i] * c);
            dw[i] = (dy[i] * r).mul_add(x[i], dw[i]);
        }
    }
}
}

/// Gradient of [`rms_norm`]: writes `dx`, adds to `dw`.
pub fn rms_norm_backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let d = w.len();
    let rows = rstd.len();
    let mut partial = vec![0f32; rows.div_ceil(CHUNK) * d];
    let one = |i: usize, dx: &mut [f32], part: &mut [f32]| {
        let at = i * CHUNK;
        let n = dx.len() / d;
        rms_rows_backward(&dy[at * d..][..n * d], &x[at * d..][..n * d], w, &rstd[at..at + n], dx, part);
    };
    if dx.len() < PARALLEL {
        dx.chunks_mut(CHUNK * d).zip(partial.chunks_mut(d)).enumerate().for_each(|(i, (dx, p))| one(i, dx, p));
    } else {
        dx.par_chunks_mut(CHUNK * d).zip(partial.par_chunks_mut(d)).enumerate().for_each(|(i, (dx, p))| one(i, dx, p));
    }
    for part in partial.chunks_exact(d) {
        for (dw, p) in dw.iter_mut().zip(part) {
            *dw += p;
        }
    }
}

versions! {
fn rope_rows(x: &mut [f32], heads: usize, d: usize, cos: &[f32], sin: &[f32], positions: &[u32], sign: f32) {
    let half = d / 2;
    for (row, position) in x.chunks_exact_mut(heads * d).zip(positions) {
        let at = *position as usize * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in row.chunks_exact_mut(d) {
            let (a, b) = head.split_at_mut(half);
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let s = sign * s;
                let (x, y) = (*a, *b);
                *a = x.mul_add(*c, -(y * s));
                *b = y.mul_add(*c, x * s);
            }
        }
    }
}
}

/// Rotates pairs (i, i + d/2) of each head by position x frequency, in place. `sign` -1 turns back (the gradient).
/// `x` is (n, heads, d); `cos` and `sin` are (positions, d/2).
pub fn rope(x: &mut [f32], heads: usize, d: usize, cos: &[f32], sin: &[f32], positions: &[u32], sign: f32) {
    let width = heads * d;
    if x.len() < PARALLEL {
        rope_rows(x, heads, d, cos, sin, positions, sign);
    } else {
        x.par_chunks_mut(CHUNK * width).enumerate().for_each(|(i, x)| {
            let n = x.len() / width;
            rope_rows(x, heads, d, cos, sin, &positions[i * CHUNK..i * CHUNK + n], sign);
        });
    }
}

versions! {
fn swiglu_rows(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for ((g, u), y) in gate.iter().zip(up).zip(y) {
        *y = g / (1.0 + exp(-g)) * u;
    }
}
}

/// y = silu(gate) * up
pub fn swiglu(gate: &[f32], up: &[f32], y: &mut [f32]) {
    if y.len() < PARALLEL {
        swiglu_rows(gate, up, y);
    } else {
        y.par_chunks_mut(PARALLEL / 2).enumerate().for_each(|(i, y)| {
            let at = i * (PARALLEL / 2);
            swiglu_rows(&gate[at..at + y.len()], &up[at..at + y.len()], y);
        });
    }
}

versions! {
fn swiglu_rows_backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for ((((dy, g), u), dg), du) in dy.iter().zip(gate).zip(up).zip(dgate).zip(dup) {
        let s = 1.0 / (1.0 + exp(-g));
        *du = dy * g * s;
        *dg = dy * u * s * (1.0 + g * (1.0 - s));
    }
}
}

/// Gradient of [`swiglu`].
pub fn swiglu_backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    const STEP: usize = PARALLEL / 2;
    if dy.len() < PARALLEL {
        swiglu_rows_backward(dy, gate, up, dgate, dup);
    } else {
        dgate.par_chunks_mut(STEP).zip(dup.par_chunks_mut(STEP)).enumerate().for_each(|(i, (dg, du))| {
            let at = i * STEP..i * STEP + dg.len();
            swiglu_rows_backward(&dy[at.clone()], &gate[at.clone()], &up[at], dg, du);
        });
    }
}

/// What one row of logits says about a target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Log-probability of the target, in nats.
    pub logp: f32,
    /// Entropy of the distribution, in nats.
    pub entropy: f32,
    /// log sum exp of the tempered logits.
    pub lse: f32,
}

versions! {
/// Log-softmax of `logits / temperature` at `target`, and the entropy. The only such code: sampler and trainer share it.
pub fn row_stats(logits: &[f32], target: usize, temperature: f32) -> RowStats {
    let scale = 1.0 / temperature;
    let max = max16(logits) * scale; // rounding keeps the order: the largest product is that of the largest logit
    let (mut sum, mut weighted) = ([0f32; LANES], [0f32; LANES]);
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for z in chunks {
        for i in 0..LANES {
            let d = z[i] * scale - max;
            let p = exp(d);
            sum[i] += p;
            // 0 x (-infinity) is 0 here: a forbidden token adds nothing
            weighted[i] += if p > 0.0 { p * d } else { 0.0 };
        }
    }
    for (i, z) in rest.iter().enumerate() {
        let d = z * scale - max;
        let p = exp(d);
        sum[i] += p;
        weighted[i] += if p > 0.0 { p * d } else { 0.0 };
    }
    let total = tree16(sum);
    let log_total = f64::from(total).ln() as f32;
    RowStats {
        logp: logits[target] * scale - max - log_total,
        entropy: log_total - tree16(weighted) / total,
        lse: max + log_total,
    }
}
}

versions! {
/// Turns logits into the gradient of `coefficient * logp(target)`, in place:
/// `coefficient / temperature * (onehot - softmax)`.
pub fn row_backward(logits: &mut [f32], target: usize, temperature: f32, stats: RowStats, coefficient: f32) {
    let scale = 1.0 / temperature;
    let c = coefficient * scale;
    for z in logits.iter_mut() {
        *z = -c * exp(*z * scale - stats.lse);
    }
    logits[target] += c;
}
}

/// Hyper-parameters of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// The gradient is multiplied by this first (clipping).
    pub scale: f32,
    /// 1 - beta1^t and 1 - beta2^t.
    pub correction: [f32; 2],
}

versions! {
fn adamw_rows(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: AdamStep) {
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * s.scale;
        *m = s.beta1.mul_add(*m, (1.0 - s.beta1) * g);
        *v = s.beta2.mul_add(*v, (1.0 - s.beta2) * g * g);
        let update = (*m / s.correction[0]) / ((*v / s.correction[1]).sqrt() + s.eps);
        *p = *p * (1.0 - s.lr * s.weight_decay) - s.lr * update;
    }
}
}

/// One AdamW step in place. Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
pub fn adamw(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: AdamStep) {
    if p.len() < PARALLEL {
        return adamw_rows(p, g, m, v, s);
    }
    const STEP: usize = PARALLEL / 2;
    p.par_chunks_mut(STEP)
        .zip(g.par_chunks(STEP))
        .zip(m.par_chunks_mut(STEP).zip(v.par_chunks_mut(STEP)))
        .for_each(|((p, g), (m, v))| adamw_rows(p, g, m, v, s));
}

/// Rounds moments to bf16 at random, so that the expected value is the number before: up by the probability of how far it is
/// beyond the bf16 below. `at` is (seed, stream, which): eight numbers take 16 bits each of the stream's block 2 i + which, two a
/// word, the lower first; i counts the eights.
pub fn round_at_random(x: &mut [f32], (seed, stream, which): (u64, u64, u64)) {
    let one = |(i, eight): (usize, &mut [f32])| {
        let words = crate::rng::block(seed, stream, 2 * i as u64 + which);
        for (e, x) in eight.iter_mut().enumerate() {
            let random = words[e / 2] >> (16 * (e % 2)) & 0xffff;
            *x = f32::from_bits((x.to_bits() + random) & 0xffff_0000);
        }
    };
    if x.len() < PARALLEL {
        x.chunks_mut(8).enumerate().for_each(one);
    } else {
        x.par_chunks_mut(8).enumerate().for_each(one);
    }
}

versions! {
fn squares(x: &[f32]) -> f64 {
    let mut lanes = [0f64; LANES];
    for x in x.chunks(LANES) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane += f64::from(*x) * f64::from(*x);
        }
    }
    lanes.iter().sum()
}
}

/// Sum of squares in float64, in fixed order.
pub fn sum_squares(x: &[f32]) -> f64 {
    x.chunks(4096).map(squares).sum()
}

/// a += b
pub fn add(a: &mut [f32], b: &[f32]) {
    let one = |(a, b): (&mut [f32], &[f32])| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    if a.len() < PARALLEL {
        one((a, b));
    } else {
        a.par_chunks_mut(PARALLEL / 2).zip(b.par_chunks(PARALLEL / 2)).for_each(one);
    }
}
