//! The kernels in candle's operations: they run on every device and judge the fast ones in tests.
//!
//! Invariants: same formulas as `cpu`, forward and backward, in the type of their inputs: float64 makes them the judge;
//! no candle call that drops gradients matters here, for no tape is used.

use candle_core::{D, Result, Tensor};

use super::cpu::attention::Heads;
use super::kernel::AdamStep;
use super::packing::Packing;

fn by_rows(x: &Tensor, d: usize) -> Result<Tensor> {
    x.reshape((x.elem_count() / d, d))
}

pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    let rows = by_rows(x, w.elem_count())?;
    let rstd = ((rows.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?).recip()?;
    let y = rows.broadcast_mul(&rstd)?.broadcast_mul(w)?.reshape(x.shape())?;
    Ok((y, rstd))
}

pub fn rms_norm_backward(dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor) -> Result<(Tensor, Tensor)> {
    let d = w.elem_count();
    let (dy, rows) = (by_rows(dy, d)?, by_rows(x, d)?);
    let normed = rows.broadcast_mul(rstd)?;
    let dw = (&dy * &normed)?.sum(0)?;
    let g = dy.broadcast_mul(w)?;
    let c = (&g * &normed)?.mean_keepdim(1)?;
    let dx = (g - normed.broadcast_mul(&c)?)?.broadcast_mul(rstd)?;
    Ok((dx.reshape(x.shape())?, dw))
}

/// `cos`, `sin`: (n, 1, d/2).
pub fn rope(x: &Tensor, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let n = x.dim(0)?;
    let d = x.elem_count() / n / heads;
    let x3 = x.reshape((n, heads, d))?;
    let (a, b) = (x3.narrow(2, 0, d / 2)?, x3.narrow(2, d / 2, d / 2)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape(x.shape())
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate * sigmoid(gate)? * up
}

pub fn swiglu_backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let s = sigmoid(gate)?;
    let silu = (gate * &s)?;
    let slope = (&s * ((gate * (1.0 - &s)?)? + 1.0)?)?;
    Ok(((dy * up)?.mul(&slope)?, (dy * silu)?))
}

/// (n, heads d) -> (h, n, d), key heads repeated for their group.
fn spread(x: &Tensor, heads: usize, repeat: usize, d: usize) -> Result<Tensor> {
    let n = x.dim(0)?;
    let x = x.reshape((n, heads, 1, d))?.expand((n, heads, repeat, d))?.reshape((n, heads * repeat, d))?;
    x.transpose(0, 1)?.contiguous()
}

/// Adds up the gradients of a group: (h, n, d) -> (n, hk d).
fn gather(x: &Tensor, hk: usize) -> Result<Tensor> {
    let (h, n, d) = x.dims3()?;
    x.reshape((hk, h / hk, n, d))?.sum(1)?.transpose(0, 1)?.contiguous()?.reshape((n, hk * d))
}

/// Attention with probabilities (h, n, n) as the saved value.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, packing: &Packing, heads: Heads) -> Result<(Tensor, Tensor)> {
    let Heads { h, hk, d, .. } = heads;
    let n = packing.len();
    let end = packing.vis_end();
    let at = packing.positions();
    let window = heads.window.map_or(u32::MAX, |w| w as u32);
    let mask: Vec<f32> = (0..n)
        .flat_map(|q| {
            end.iter().enumerate().map(move |(k, end)| {
                let sees = k <= q && q < *end as usize && at[q] - at[k] < window;
                if sees { 0.0 } else { f32::NEG_INFINITY }
            })
        })
        .collect();
    let mask = Tensor::from_vec(mask, (n, n), q.device())?.to_dtype(q.dtype())?;
    let (q, k, v) = (spread(q, h, 1, d)?, spread(k, hk, h / hk, d)?, spread(v, hk, h / hk, d)?);
    let p = softmax(&(q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?.broadcast_add(&mask)?)?;
    let out = p.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((n, h * d))?;
    Ok((out, p))
}

fn softmax(s: &Tensor) -> Result<Tensor> {
    let e = s.broadcast_sub(&s.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

pub fn attention_backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    p: &Tensor,
    heads: Heads,
) -> Result<(Tensor, Tensor, Tensor)> {
    let Heads { h, hk, d, .. } = heads;
    let scale = 1.0 / (d as f64).sqrt();
    let (dout, q) = (spread(dout, h, 1, d)?, spread(q, h, 1, d)?);
    let (k, v) = (spread(k, hk, h / hk, d)?, spread(v, hk, h / hk, d)?);
    let dv = p.t()?.contiguous()?.matmul(&dout)?;
    let dp = dout.matmul(&v.t()?)?;
    let delta = (p * &dp)?.sum_keepdim(D::Minus1)?;
    let ds = ((p * dp.broadcast_sub(&delta)?)? * scale)?;
    let dq = gather(&ds.matmul(&k)?, h)?;
    let dk = gather(&ds.t()?.contiguous()?.matmul(&q)?, hk)?;
    Ok((dq, dk, gather(&dv, hk)?))
}

/// The last rows of a cached sequence attend to all of it, causally. q (r, h d), k and v (t, hk d).
pub fn cached(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    let Heads { h, hk, d, .. } = heads;
    let (r, t) = (q.dim(0)?, k.dim(0)?);
    let (q, k, v) = (spread(q, h, 1, d)?, spread(k, hk, h / hk, d)?, spread(v, hk, h / hk, d)?);
    let mut s = (q.matmul(&k.t()?)? * (1.0 / (d as f64).sqrt()))?;
    if r > 1 || heads.window.is_some_and(|w| w < t) {
        let sees = |i: usize, j: usize| j <= t - r + i && heads.window.is_none_or(|w| t - r + i - j < w);
        let mask: Vec<f32> =
            (0..r).flat_map(|i| (0..t).map(move |j| if sees(i, j) { 0.0 } else { f32::NEG_INFINITY })).collect();
        s = s.broadcast_add(&Tensor::from_vec(mask, (r, t), q.device())?.to_dtype(s.dtype())?)?;
    }
    softmax(&s)?.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((r, h * d))
}

pub fn adamw(p: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, s: AdamStep) -> Result<()> {
    let g = (g.to_dtype(p.dtype())? * f64::from(s.scale))?;
    *m = ((&*m * f64::from(s.beta1))? + (&g * f64::from(1.0 - s.beta1))?)?;
    *v = ((&*v * f64::from(s.beta2))? + (g.sqr()? * f64::from(1.0 - s.beta2))?)?;
    let denominator = ((&*v / f64::from(s.correction[1]))?.sqrt()? + f64::from(s.eps))?;
    let update = ((&*m / f64::from(s.correction[0]))? / denominator)?;
    *p = ((&*p * (1.0 - f64::from(s.lr) * f64::from(s.weight_decay)))? - (update * f64::from(s.lr))?)?;
    Ok(())
}
