//! Kernels over candle tensors: on the processor our own (`cpu`), elsewhere candle's operations (`plain`).
//!
//! Invariant: both make the same function; `Kernels` is chosen once per model and never changes silently.

use std::cell::RefCell;
use std::ops::{Deref, Range};
use std::sync::Arc;

use candle_core::{CpuStorage, D, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::cpu::attention::Heads;
use super::cpu::cache::{self, LayerCache, Scratch};
use super::cpu::matmul::{Lhs, Packed, matmul};
use super::cpu::{packed, rows};
use super::packing::Packing;
use super::plain;

pub use super::cpu::cache::Pool;
pub use super::cpu::rows::AdamStep;

/// Which implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Our own, on the processor.
    Cpu,
    /// candle's operations, on any device.
    Plain,
}

impl Kernels {
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() { Kernels::Cpu } else { Kernels::Plain }
    }
}

/// A contiguous float32 tensor on the processor, read in place.
pub struct View<G> {
    guard: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for View<G> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.range.clone()],
            _ => panic!("BUG: a view is made of float32 on the processor"),
        }
    }
}

/// Reads a tensor in place.
///
/// # Errors
/// When it is not contiguous float32 on the processor.
pub fn view(t: &Tensor) -> Result<View<impl Deref<Target = Storage> + '_>> {
    let (guard, layout) = t.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel got a tensor that is not contiguous") };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(View { guard, range: start..end }),
        _ => bail!("a kernel got {:?} on {:?}, expected float32 on the processor", t.dtype(), t.device()),
    }
}

struct Mutate<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Mutate<F> {
    fn name(&self) -> &'static str {
        "mutate"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("cannot write into a strided tensor") };
        match storage {
            CpuStorage::F32(data) => {
                (self.0.borrow_mut())(&mut data[start..end]);
                Ok(())
            }
            _ => bail!("cannot write in place into {:?}, expected float32", storage_dtype(storage)),
        }
    }
}

fn storage_dtype(s: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    s.dtype()
}

/// Writes a tensor of the processor in place. No view of the same tensor may be alive.
///
/// # Errors
/// When it is not contiguous float32 on the processor.
pub fn mutate(t: &Tensor, f: impl FnMut(&mut [f32])) -> Result<()> {
    t.inplace_op1(&Mutate(RefCell::new(f)))
}

fn tensor(data: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape.into(), &Device::Cpu)
}

/// Adds `b` into `a`, in place where that is possible.
pub fn add_into(kernels: Kernels, a: &mut Tensor, b: &Tensor) -> Result<()> {
    if kernels == Kernels::Cpu {
        let b = view(b)?;
        mutate(a, |a| rows::add(a, &b))
    } else {
        *a = (&*a + b)?;
        Ok(())
    }
}

/// A weight (out, in) prepared for `x W^T`; the packing of the processor, or the tensor itself.
pub enum Weight {
    Cpu(Packed),
    Plain(Tensor),
}

impl Weight {
    pub fn new(kernels: Kernels, w: &Tensor) -> Result<Weight> {
        match kernels {
            Kernels::Cpu => {
                let (n, k) = w.dims2()?;
                Ok(Weight::Cpu(Packed::transposed(&view(w)?, n, k)))
            }
            Kernels::Plain => Ok(Weight::Plain(w.t()?)),
        }
    }
}

impl Weight {
    /// The weight prepared for `dy W`: what [`linear`] makes of it is the gradient of a layer's input.
    pub fn backward(kernels: Kernels, w: &Tensor) -> Result<Weight> {
        match kernels {
            Kernels::Cpu => {
                let (out, input) = w.dims2()?;
                Ok(Weight::Cpu(Packed::rows(&view(w)?, out, input)))
            }
            Kernels::Plain => Ok(Weight::Plain(w.clone())),
        }
    }
}

/// x (n, in) times W^T -> (n, out)
pub fn linear(x: &Tensor, w: &Weight) -> Result<Tensor> {
    match w {
        Weight::Cpu(packed) => {
            let n = x.dim(0)?;
            let mut y = vec![0f32; n * packed.n()];
            matmul(Lhs::rows(&view(x)?, packed.k()), packed, &mut y, n, false);
            tensor(y, (n, packed.n()))
        }
        Weight::Plain(wt) => x.matmul(wt),
    }
}

/// dx = dy W for W (out, in).
pub fn linear_dx(kernels: Kernels, dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    match kernels {
        Kernels::Cpu => {
            let (out, input) = w.dims2()?;
            let n = dy.dim(0)?;
            let mut dx = vec![0f32; n * input];
            matmul(Lhs::rows(&view(dy)?, out), &Packed::rows(&view(w)?, out, input), &mut dx, n, false);
            tensor(dx, (n, input))
        }
        Kernels::Plain => dy.matmul(w),
    }
}

/// dw += dy^T x
pub fn linear_dw(kernels: Kernels, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()> {
    match kernels {
        Kernels::Cpu => {
            let (n, out) = dy.dims2()?;
            let input = x.dim(1)?;
            let packed = Packed::rows(&view(x)?, n, input);
            let dy = view(dy)?;
            mutate(dw, |dw| matmul(Lhs::transposed(&dy, out), &packed, dw, out, true))
        }
        Kernels::Plain => {
            *dw = (&*dw + dy.t()?.matmul(x)?)?;
            Ok(())
        }
    }
}

/// y (n, out) + b, in place where possible.
pub fn add_bias(kernels: Kernels, y: Tensor, b: &Tensor) -> Result<Tensor> {
    match kernels {
        Kernels::Cpu => {
            let b = view(b)?;
            mutate(&y, |y| {
                y.chunks_exact_mut(b.len()).for_each(|row| row.iter_mut().zip(b.iter()).for_each(|(y, b)| *y += b));
            })?;
            Ok(y)
        }
        Kernels::Plain => y.broadcast_add(b),
    }
}

/// db += sum of the rows of dy (n, out), in row order.
pub fn add_columns(kernels: Kernels, dy: &Tensor, db: &mut Tensor) -> Result<()> {
    match kernels {
        Kernels::Cpu => {
            let dy = view(dy)?;
            mutate(db, |db| {
                dy.chunks_exact(db.len()).for_each(|row| db.iter_mut().zip(row).for_each(|(b, g)| *b += g));
            })
        }
        Kernels::Plain => {
            *db = (&*db + dy.sum(0)?)?;
            Ok(())
        }
    }
}

/// RMSNorm over the last `w.len()` elements; returns y and 1 / sqrt(mean square + eps) by row.
pub fn rms_norm(kernels: Kernels, x: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    match kernels {
        Kernels::Cpu => {
            let d = w.elem_count();
            let xs = view(x)?;
            let mut y = vec![0f32; xs.len()];
            let mut r = vec![0f32; xs.len() / d];
            rows::rms_norm(&xs, &view(w)?, eps as f32, &mut y, &mut r);
            let n = r.len();
            Ok((tensor(y, x.shape().clone())?, tensor(r, (n, 1))?))
        }
        Kernels::Plain => plain::rms_norm(x, w, eps),
    }
}

/// Gradient of [`rms_norm`]: dx; adds to `dw`.
pub fn rms_norm_backward(
    kernels: Kernels,
    dy: &Tensor,
    x: &Tensor,
    w: &Tensor,
    rstd: &Tensor,
    dw: Option<&mut Tensor>,
) -> Result<Tensor> {
    match kernels {
        Kernels::Cpu => {
            let mut dx = vec![0f32; x.elem_count()];
            let mut grad = vec![0f32; w.elem_count()];
            rows::rms_norm_backward(&view(dy)?, &view(x)?, &view(w)?, &view(rstd)?, &mut dx, &mut grad);
            if let Some(dw) = dw {
                mutate(dw, |dw| dw.iter_mut().zip(&grad).for_each(|(a, b)| *a += b))?;
            }
            tensor(dx, x.shape().clone())
        }
        Kernels::Plain => {
            let (dx, grad) = plain::rms_norm_backward(dy, x, w, rstd)?;
            if let Some(dw) = dw {
                *dw = (&*dw + grad)?;
            }
            Ok(dx)
        }
    }
}

/// Cosines and sines of the rotary embedding, (positions, d/2), grown as needed.
pub struct RopeTable {
    frequencies: Vec<f32>,
    scale: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// `frequencies` (d/2) in radians per position; cosines and sines are multiplied by `scale`. Su et al.,
    /// "RoFormer", 2021.
    pub fn new(frequencies: Vec<f32>, scale: f32) -> Self {
        RopeTable { frequencies, scale, cos: Vec::new(), sin: Vec::new() }
    }

    /// Cosines and sines of the first `positions`, (positions, d/2) each.
    ///
    /// # Panics
    /// Where the table is shorter: a bug in the caller.
    pub fn rows(&self, positions: usize) -> (&[f32], &[f32]) {
        let n = positions * self.frequencies.len();
        (&self.cos[..n], &self.sin[..n])
    }

    /// Positions that the table has.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.frequencies.len()
    }

    /// Makes the table long enough for every position below `positions`.
    pub fn reserve(&mut self, positions: usize) {
        let have = self.positions();
        for p in have..positions.max(have).next_multiple_of(64) {
            for frequency in &self.frequencies {
                let angle = f64::from(p as f32 * frequency);
                self.cos.push(angle.cos() as f32 * self.scale);
                self.sin.push(angle.sin() as f32 * self.scale);
            }
        }
    }
}

/// Rotates the heads of x (n, heads, d) by their positions; `sign` -1 turns back.
pub fn rope(
    kernels: Kernels,
    x: Tensor,
    heads: usize,
    table: &RopeTable,
    positions: &[u32],
    sign: f32,
) -> Result<Tensor> {
    match kernels {
        Kernels::Cpu => {
            mutate(&x, |x| rows::rope(x, heads, 2 * table.frequencies.len(), &table.cos, &table.sin, positions, sign))?;
            Ok(x)
        }
        Kernels::Plain => {
            let half = table.frequencies.len();
            let gather = |t: &[f32]| -> Result<Tensor> {
                let rows: Vec<f32> =
                    positions.iter().flat_map(|p| &t[*p as usize * half..(*p as usize + 1) * half]).copied().collect();
                Tensor::from_vec(rows, (positions.len(), 1, half), x.device())?.to_dtype(x.dtype())
            };
            plain::rope(&x, heads, &gather(&table.cos)?, &(gather(&table.sin)? * f64::from(sign))?)
        }
    }
}

/// silu(gate) * up
pub fn swiglu(kernels: Kernels, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match kernels {
        Kernels::Cpu => {
            let mut y = vec![0f32; gate.elem_count()];
            rows::swiglu(&view(gate)?, &view(up)?, &mut y);
            tensor(y, gate.shape().clone())
        }
        Kernels::Plain => plain::swiglu(gate, up),
    }
}

/// Gradients of [`swiglu`]: (dgate, dup).
pub fn swiglu_backward(kernels: Kernels, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    match kernels {
        Kernels::Cpu => {
            let n = gate.elem_count();
            let (mut dg, mut du) = (vec![0f32; n], vec![0f32; n]);
            rows::swiglu_backward(&view(dy)?, &view(gate)?, &view(up)?, &mut dg, &mut du);
            Ok((tensor(dg, gate.shape().clone())?, tensor(du, gate.shape().clone())?))
        }
        Kernels::Plain => plain::swiglu_backward(dy, gate, up),
    }
}

/// Packed causal attention: q (n, h d), k and v (n, hk d) -> out (n, h d) and what the backward needs.
pub fn attention(
    kernels: Kernels,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    packing: &Packing,
    heads: Heads,
) -> Result<(Tensor, Tensor)> {
    match kernels {
        Kernels::Cpu => {
            let n = packing.len();
            let mut out = vec![0f32; n * heads.h * heads.d];
            let mut stats = vec![0f32; n * heads.h * 2];
            packed::forward(&view(q)?, &view(k)?, &view(v)?, packing, heads, &mut out, &mut stats);
            Ok((tensor(out, (n, heads.h * heads.d))?, tensor(stats, (n, heads.h, 2))?))
        }
        Kernels::Plain => plain::attention(q, k, v, packing, heads),
    }
}

/// Gradients of [`attention`]: (dq, dk, dv).
pub fn attention_backward(
    kernels: Kernels,
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    stats: &Tensor,
    packing: &Packing,
    heads: Heads,
) -> Result<(Tensor, Tensor, Tensor)> {
    match kernels {
        Kernels::Cpu => {
            let (mut dq, mut dk, mut dv) =
                (vec![0f32; q.elem_count()], vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
            packed::backward(
                &view(dout)?,
                &view(q)?,
                &view(k)?,
                &view(v)?,
                &view(stats)?,
                packing,
                heads,
                &mut dq,
                &mut dk,
                &mut dv,
            );
            Ok((tensor(dq, q.shape().clone())?, tensor(dk, k.shape().clone())?, tensor(dv, v.shape().clone())?))
        }
        Kernels::Plain => plain::attention_backward(dout, q, k, v, stats, heads),
    }
}

/// Keys and values of one sequence in one layer. A clone copies none of them.
#[derive(Clone)]
pub enum Cache {
    Cpu(LayerCache),
    /// (t, hk d) each.
    Plain(Option<(Tensor, Tensor)>),
}

impl Cache {
    pub fn new(kernels: Kernels, pool: &Arc<Pool>) -> Self {
        match kernels {
            Kernels::Cpu => Cache::Cpu(LayerCache::new(pool.clone())),
            Kernels::Plain => Cache::Plain(None),
        }
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        match self {
            Cache::Cpu(cache) => cache.truncate(len),
            Cache::Plain(Some((k, v))) if k.dim(0)? > len => {
                (*k, *v) = (k.narrow(0, 0, len)?.contiguous()?, v.narrow(0, 0, len)?.contiguous()?);
            }
            Cache::Plain(_) => {}
        }
        Ok(())
    }
}

/// One sequence's part of [`cached_attention`].
pub struct CachedPart<'a> {
    pub cache: &'a mut Cache,
    /// Rows of k and v that are appended.
    pub rows: Range<usize>,
    /// So many of its last tokens attend: the next rows of q.
    pub queries: usize,
}

/// Appends rows of k and v to each sequence's cache and lets its last tokens attend: (queries of all parts, h d).
pub fn cached_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    parts: Vec<CachedPart<'_>>,
    heads: Heads,
) -> Result<Tensor> {
    let (n, width) = q.dims2()?;
    let kv = heads.hk * heads.d;
    if parts.iter().all(|p| matches!(p.cache, Cache::Cpu(_))) {
        let (q, k, v) = (view(q)?, view(k)?, view(v)?);
        let (mut q, k, v) = (&*q, &*k, &*v);
        let mut out = vec![0f32; n * width];
        let mut rest = out.as_mut_slice();
        let mut jobs = Vec::with_capacity(parts.len());
        for CachedPart { cache, rows, queries } in parts {
            let (mine, tail) = std::mem::take(&mut rest).split_at_mut(queries * width);
            let (asks, others) = q.split_at(queries * width);
            (rest, q) = (tail, others);
            if let Cache::Cpu(cache) = cache {
                jobs.push((cache, rows, asks, mine));
            }
        }
        let work: usize = jobs.iter().map(|(c, _, q, _)| q.len() * (c.len() + 1)).sum();
        type Job<'a> = (&'a mut LayerCache, Range<usize>, &'a [f32], &'a mut [f32]);
        let one = |scratch: &mut Scratch, (cache, rows, q, out): Job<'_>| {
            cache.append(&k[rows.start * kv..rows.end * kv], &v[rows.start * kv..rows.end * kv], heads);
            cache::cached(q, cache, heads, scratch, out);
        };
        if work < 1 << 21 || rayon::current_num_threads() == 1 {
            let mut scratch = Scratch::default();
            jobs.into_iter().for_each(|job| one(&mut scratch, job));
        } else {
            jobs.into_par_iter().for_each_init(Scratch::default, one);
        }
        return tensor(out, (n, width));
    }
    let mut outs = Vec::with_capacity(parts.len());
    let mut at = 0;
    for CachedPart { cache, rows, queries } in parts {
        let Cache::Plain(cache) = cache else { bail!("a batch mixes caches of two kinds") };
        let (new_k, new_v) = (k.narrow(0, rows.start, rows.len())?, v.narrow(0, rows.start, rows.len())?);
        let (k, v) = match cache.take() {
            Some((k, v)) => (Tensor::cat(&[&k, &new_k], 0)?, Tensor::cat(&[&v, &new_v], 0)?),
            None => (new_k.contiguous()?, new_v.contiguous()?),
        };
        if queries > 0 {
            outs.push(plain::cached(&q.narrow(0, at, queries)?, &k, &v, heads)?);
        }
        at += queries;
        *cache = Some((k, v));
    }
    if outs.is_empty() { Ok(q.clone()) } else { Tensor::cat(&outs, 0) }
}

/// Rows `ids` of a table, (n, width).
pub fn embedding(kernels: Kernels, table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let width = table.dim(1)?;
    match kernels {
        Kernels::Cpu => {
            let table = view(table)?;
            let mut out = Vec::with_capacity(ids.len() * width);
            for id in ids {
                out.extend_from_slice(&table[*id as usize * width..][..width]);
            }
            tensor(out, (ids.len(), width))
        }
        Kernels::Plain => table.index_select(&Tensor::new(ids, table.device())?, 0),
    }
}

/// dtable[id] += dy, in row order.
pub fn embedding_backward(kernels: Kernels, dy: &Tensor, ids: &[u32], dtable: &mut Tensor) -> Result<()> {
    match kernels {
        Kernels::Cpu => {
            let width = dtable.dim(1)?;
            let dy = view(dy)?;
            mutate(dtable, |table| {
                for (row, id) in dy.chunks_exact(width).zip(ids) {
                    for (t, g) in table[*id as usize * width..][..width].iter_mut().zip(row) {
                        *t += g;
                    }
                }
            })
        }
        Kernels::Plain => {
            *dtable = dtable.index_add(&Tensor::new(ids, dtable.device())?, dy, 0)?;
            Ok(())
        }
    }
}

/// Log-probability and entropy of each row's target under softmax(logits / temperature).
pub fn row_stats(logits: &Tensor, targets: &[u32], temperature: f32) -> Result<Vec<rows::RowStats>> {
    let host;
    let logits = if logits.device().is_cpu() {
        logits
    } else {
        host = logits.to_device(&Device::Cpu)?;
        &host
    };
    let width = logits.dim(D::Minus1)?;
    let z = view(logits)?;
    Ok(z.par_chunks_exact(width).zip(targets).map(|(z, t)| rows::row_stats(z, *t as usize, temperature)).collect())
}

/// Logits -> gradient of sum(coefficient * logp), in place where possible.
pub fn row_backward(
    logits: Tensor,
    targets: &[u32],
    temperature: f32,
    stats: &[rows::RowStats],
    coefficients: &[f32],
) -> Result<Tensor> {
    let device = logits.device().clone();
    let width = logits.dim(D::Minus1)?;
    let logits = logits.to_device(&Device::Cpu)?;
    mutate(&logits, |z| {
        z.par_chunks_exact_mut(width).enumerate().for_each(|(i, z)| {
            rows::row_backward(z, targets[i] as usize, temperature, stats[i], coefficients[i]);
        });
    })?;
    logits.to_device(&device)
}

/// One AdamW step of one parameter, in place where possible.
pub fn adamw(
    kernels: Kernels,
    p: &mut Tensor,
    g: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: AdamStep,
) -> Result<()> {
    match kernels {
        Kernels::Cpu => {
            let g = view(g)?;
            let (mut of_m, mut of_v) = (Ok(()), Ok(()));
            mutate(p, |p| of_m = mutate(m, |m| of_v = mutate(v, |v| rows::adamw(p, &g, m, v, step))))?;
            of_m.and(of_v)
        }
        Kernels::Plain => plain::adamw(p, g, m, v, step),
    }
}

/// Rounds a moment to bfloat16 at random, in place where possible; see [`rows::round_at_random`].
pub fn round_at_random(kernels: Kernels, moment: &mut Tensor, at: (u64, u64, u64)) -> Result<()> {
    match kernels {
        Kernels::Cpu => mutate(moment, |x| rows::round_at_random(x, at)),
        Kernels::Plain => {
            let mut numbers: Vec<f32> = moment.flatten_all()?.to_vec1()?;
            rows::round_at_random(&mut numbers, at);
            *moment = Tensor::from_vec(numbers, moment.shape(), moment.device())?;
            Ok(())
        }
    }
}

/// Sum of squares, in float64 on the processor.
pub fn sum_squares(kernels: Kernels, t: &Tensor) -> Result<f64> {
    match kernels {
        Kernels::Cpu => Ok(rows::sum_squares(&view(t)?)),
        Kernels::Plain => Ok(f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?)),
    }
}
