//! Parameters, and the layers made of kernels: each has `forward` and `backward(dy, saved) -> dx`.
//!
//! Invariants: a backward adds to the gradients of its trainable parameters and marks them as reached; the optimizer
//! refuses a trainable parameter that was not. A low-rank adapter changes the weight that products use, not how they
//! are made: `W' = W + scale B A` is formed once per update, so the sampler and the trainer see the same weights.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::kernel::{self, Kernels, Weight};
use crate::rng::Rng;

/// A named tensor of a model.
pub struct Param {
    pub name: String,
    pub value: Tensor,
    pub trainable: bool,
    /// Sum of gradients since the last step; `None` until a backward reached it.
    pub grad: Option<Tensor>,
    /// Counts changes of `value`: what was made from an older value is stale.
    version: u64,
    ready: Ready,
}

/// A weight prepared for products, and the versions it was made from. Threads that come at once wait for the one that
/// makes it.
#[derive(Default)]
struct Ready(Mutex<Option<([u64; 3], Arc<Weight>)>>);

impl Ready {
    fn get(&self, versions: [u64; 3], make: impl FnOnce() -> Result<Weight>) -> Result<Arc<Weight>> {
        // a thread that panicked here left either nothing or a whole weight
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, weight)) = &*slot
            && *made == versions
        {
            return Ok(weight.clone());
        }
        *slot = None; // the old one's memory first
        let weight = Arc::new(make()?);
        *slot = Some((versions, weight.clone()));
        Ok(weight)
    }
}

impl Param {
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Param { name: name.into(), value, trainable: true, grad: None, version: 0, ready: Ready::default() }
    }

    /// Counts changes of `value`.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Must follow every change of `value`.
    pub fn changed(&mut self) {
        self.version += 1;
    }

    /// The gradient to add to, zero at first. `None` for frozen parameters.
    pub fn grad_mut(&mut self) -> Result<Option<&mut Tensor>> {
        if !self.trainable {
            return Ok(None);
        }
        if self.grad.is_none() {
            self.grad = Some(self.value.zeros_like()?);
        }
        Ok(self.grad.as_mut())
    }
}

/// A layer that maps rows to rows and can be the output of a model.
pub trait Project {
    /// x (n, in) -> (n, out)
    fn forward(&self, k: Kernels, x: &Tensor) -> Result<Tensor>;
    /// What [`Project::backward`] multiplies dy with: prepared once where there are many dy.
    fn prepare(&self, k: Kernels) -> Result<Weight>;
    /// dx, given dy and the forward's input.
    fn backward(&mut self, k: Kernels, dy: &Tensor, x: &Tensor, weight: &Weight) -> Result<Tensor>;
}

/// The matrix itself, y = x W^T: a tied embedding as head.
impl Project for Param {
    fn forward(&self, k: Kernels, x: &Tensor) -> Result<Tensor> {
        kernel::linear(x, &*self.ready.get([self.version, 0, 0], || Weight::new(k, &self.value))?)
    }

    fn prepare(&self, k: Kernels) -> Result<Weight> {
        Weight::backward(k, &self.value)
    }

    fn backward(&mut self, k: Kernels, dy: &Tensor, x: &Tensor, weight: &Weight) -> Result<Tensor> {
        let dx = kernel::linear(dy, weight)?;
        if let Some(dw) = self.grad_mut()? {
            kernel::linear_dw(k, dy, x, dw)?;
        }
        Ok(dx)
    }
}

/// A low-rank addition to a weight: W' = W + scale B A. Hu et al., "LoRA", 2021.
pub struct Adapter {
    /// (rank, in)
    pub a: Param,
    /// (out, rank)
    pub b: Param,
    /// alpha / rank
    pub scale: f64,
    /// Where set, training drops entries of the input of A, and W' is not formed.
    pub dropout: Option<Dropout>,
}

/// Which entries are dropped: a function of the key and the entry's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub rate: f64,
    /// Seed, layer, update and row of the update.
    pub key: [u64; 4],
}

impl Dropout {
    /// Seed and stream of the numbers that decide, one after the other.
    pub fn place(&self) -> (u64, u64) {
        let (seed, stream, _) = Rng::at(self.key[0], &self.key[1..]).place();
        (seed, stream)
    }

    /// x with entries set to zero at random and the others divided by 1 - rate.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let mut rng = Rng::at(self.key[0], &self.key[1..]);
        let keep = (1.0 / (1.0 - self.rate)) as f32;
        let mask: Vec<f32> = (0..x.elem_count()).map(|_| if rng.uniform() < self.rate { 0.0 } else { keep }).collect();
        x * Tensor::from_vec(mask, x.shape(), &Device::Cpu)?.to_device(x.device())?
    }
}

/// y = x W^T + b, with an adapter where one is attached.
pub struct Linear {
    pub w: Param,
    pub b: Option<Param>,
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// As [`Project::backward`], for one dy.
    pub fn backward_once(&mut self, k: Kernels, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let weight = self.prepare(k)?;
        self.backward(k, dy, x, &weight)
    }

    pub fn new(w: Param, b: Option<Param>) -> Self {
        Linear { w, b, adapter: None }
    }

    /// W, or W' where there is an adapter.
    pub fn merged(&self, k: Kernels) -> Result<Tensor> {
        match &self.adapter {
            None => Ok(self.w.value.clone()),
            Some(l) => &self.w.value + (kernel::linear_dx(k, &l.b.value, &l.a.value)? * l.scale)?,
        }
    }

    fn versions(&self) -> [u64; 3] {
        let (a, b) = self.adapter.as_ref().map_or((0, 0), |l| (l.a.version + 1, l.b.version + 1));
        [self.w.version, a, b]
    }

    /// The forward of training: the same as [`Project::forward`] unless an adapter drops entries.
    pub fn forward_train(&self, k: Kernels, x: &Tensor) -> Result<Tensor> {
        let Some((adapter, dropout)) = self.adapter.as_ref().and_then(|l| Some((l, l.dropout?))) else {
            return self.forward(k, x);
        };
        let base = self.w.forward(k, x)?;
        let low = adapter.a.forward(k, &dropout.apply(x)?)?;
        let y = (base + (adapter.b.forward(k, &low)? * adapter.scale)?)?;
        match &self.b {
            Some(b) => kernel::add_bias(k, y, &b.value),
            None => Ok(y),
        }
    }

    /// Every parameter, in checkpoint order.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        let adapter = self.adapter.iter().flat_map(|l| [&l.a, &l.b]);
        std::iter::once(&self.w).chain(&self.b).chain(adapter)
    }

    /// As [`Linear::params`].
    pub fn params_mut(&mut self) -> impl Iterator<Item = &mut Param> {
        let adapter = self.adapter.iter_mut().flat_map(|l| [&mut l.a, &mut l.b]);
        std::iter::once(&mut self.w).chain(&mut self.b).chain(adapter)
    }
}

impl Project for Linear {
    fn forward(&self, k: Kernels, x: &Tensor) -> Result<Tensor> {
        let weight = self.w.ready.get(self.versions(), || Weight::new(k, &self.merged(k)?))?;
        let y = kernel::linear(x, &weight)?;
        match &self.b {
            Some(b) => kernel::add_bias(k, y, &b.value),
            None => Ok(y),
        }
    }

    fn prepare(&self, k: Kernels) -> Result<Weight> {
        // through W' at once, or where entries are dropped through W and the low road each
        match self.adapter.as_ref().and_then(|l| l.dropout) {
            Some(_) => Weight::backward(k, &self.w.value),
            None => Weight::backward(k, &self.merged(k)?),
        }
    }

    fn backward(&mut self, k: Kernels, dy: &Tensor, x: &Tensor, weight: &Weight) -> Result<Tensor> {
        let dropout = self.adapter.as_ref().and_then(|l| l.dropout);
        // 1. dx
        let mut dx = kernel::linear(dy, weight)?;
        // 2. the adapter: with low = x A^T and dlow = scale dy B, dB = scale dy^T low and dA = dlow^T x
        if let Some(l) = &mut self.adapter {
            let input = match dropout {
                Some(dropout) => dropout.apply(x)?,
                None => x.clone(),
            };
            let dlow = (kernel::linear_dx(k, dy, &l.b.value)? * l.scale)?;
            if l.b.trainable {
                let low = (l.a.forward(k, &input)? * l.scale)?;
                if let Some(db) = l.b.grad_mut()? {
                    kernel::linear_dw(k, dy, &low, db)?;
                }
            }
            if let Some(dropout) = dropout {
                // the mask is linear and its own transpose
                dx = (dx + dropout.apply(&kernel::linear_dx(k, &dlow, &l.a.value)?)?)?;
            }
            if let Some(da) = l.a.grad_mut()? {
                kernel::linear_dw(k, &dlow, &input, da)?;
            }
        }
        // 3. the layer's own parameters
        if let Some(db) = self.b.as_mut().map(Param::grad_mut).transpose()?.flatten() {
            kernel::add_columns(k, dy, db)?;
        }
        if let Some(dw) = self.w.grad_mut()? {
            kernel::linear_dw(k, dy, x, dw)?;
        }
        Ok(dx)
    }
}

/// Root mean square norm. Zhang and Sennrich, 2019.
pub struct RmsNorm {
    pub w: Param,
    pub eps: f64,
}

impl RmsNorm {
    /// Returns y and what the backward needs beside x.
    pub fn forward(&self, k: Kernels, x: &Tensor) -> Result<(Tensor, Tensor)> {
        kernel::rms_norm(k, x, &self.w.value, self.eps)
    }

    /// The forward's y again, bit for bit.
    pub fn again(&self, k: Kernels, x: &Tensor) -> Result<Tensor> {
        Ok(self.forward(k, x)?.0)
    }

    pub fn backward(&mut self, k: Kernels, dy: &Tensor, x: &Tensor, rstd: &Tensor) -> Result<Tensor> {
        let w = self.w.value.clone();
        kernel::rms_norm_backward(k, dy, x, &w, rstd, self.w.grad_mut()?)
    }
}

/// Token table; with tied heads also the output matrix.
pub struct Embedding {
    pub w: Param,
}

impl Embedding {
    pub fn forward(&self, k: Kernels, ids: &[u32]) -> Result<Tensor> {
        kernel::embedding(k, &self.w.value, ids)
    }

    pub fn backward(&mut self, k: Kernels, dy: &Tensor, ids: &[u32]) -> Result<()> {
        match self.w.grad_mut()? {
            Some(dw) => kernel::embedding_backward(k, dy, ids, dw),
            None => Ok(()),
        }
    }
}

/// What the head says about one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenStats {
    pub logp: f32,
    pub entropy: f32,
}

/// Rows of logits alive at once.
const HEAD_ROWS: usize = 128;

/// Log-probabilities of targets, without ever holding more than 128 rows of logits.
pub fn score(k: Kernels, x: &Tensor, head: &dyn Project, targets: &[u32], temperature: f32) -> Result<Vec<TokenStats>> {
    let mut out = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(HEAD_ROWS) {
        let n = HEAD_ROWS.min(targets.len() - start);
        let z = head.forward(k, &x.narrow(0, start, n)?.contiguous()?)?;
        let stats = kernel::row_stats(&z, &targets[start..start + n], temperature)?;
        out.extend(stats.into_iter().map(|s| TokenStats { logp: s.logp, entropy: s.entropy }));
    }
    Ok(out)
}

/// Forward and backward of the head in one sweep: `coefficient(row, stats)` is d objective / d logp of that row, where the
/// objective is *minimised*. Returns the statistics and dx; adds to the head's gradient.
pub fn score_backward(
    k: Kernels,
    x: &Tensor,
    head: &mut dyn Project,
    targets: &[u32],
    temperature: f32,
    mut coefficient: impl FnMut(usize, TokenStats) -> f32,
) -> Result<(Vec<TokenStats>, Tensor)> {
    let mut all = Vec::with_capacity(targets.len());
    let mut dx = Vec::new();
    let weight = head.prepare(k)?;
    for start in (0..targets.len()).step_by(HEAD_ROWS) {
        let n = HEAD_ROWS.min(targets.len() - start);
        let rows = x.narrow(0, start, n)?.contiguous()?;
        let z = head.forward(k, &rows)?;
        let targets = &targets[start..start + n];
        let stats = kernel::row_stats(&z, targets, temperature)?;
        let mut coefficients = Vec::with_capacity(n);
        for (i, s) in stats.iter().enumerate() {
            let s = TokenStats { logp: s.logp, entropy: s.entropy };
            coefficients.push(coefficient(start + i, s));
            all.push(s);
        }
        let dz = kernel::row_backward(z, targets, temperature, &stats, &coefficients)?;
        dx.push(head.backward(k, &dz, &rows, &weight)?);
    }
    let dx = if dx.is_empty() { Tensor::zeros((0, x.dim(1)?), x.dtype(), x.device())? } else { Tensor::cat(&dx, 0)? };
    Ok((all, dx))
}

/// Rows of x by index, and their scatter in the backward.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.index_select(&Tensor::new(rows, x.device())?, 0)
}

/// dx (n, width) with `dy` added at `rows`, which must be distinct or repeated in any order.
pub fn scatter_rows(k: Kernels, dy: &Tensor, rows: &[u32], n: usize, device: &Device) -> Result<Tensor> {
    let mut dx = Tensor::zeros((n, dy.dim(1)?), dy.dtype(), device)?;
    kernel::embedding_backward(k, dy, rows, &mut dx)?;
    Ok(dx)
}
