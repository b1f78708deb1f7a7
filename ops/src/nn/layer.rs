//! Parameters, and the layers made of kernels: each has `forward` and `backward(dy, saved) -> dx`.
//!
//! Invariant: a backward adds to the gradients of its trainable parameters and marks them as reached; the optimizer
//! refuses a trainable parameter that was not.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};

use super::kernel::{self, Kernels, Weight};

/// A named tensor of a model.
pub struct Param {
    pub name: String,
    pub value: Tensor,
    pub trainable: bool,
    /// Sum of gradients since the last step; `None` until a backward reached it.
    pub grad: Option<Tensor>,
    packed: OnceLock<Weight>,
}

impl Param {
    pub fn new(name: impl Into<String>, value: Tensor) -> Self {
        Param { name: name.into(), value, trainable: true, grad: None, packed: OnceLock::new() }
    }

    /// The weight prepared for products, made once per update.
    fn weight(&self, kernels: Kernels) -> Result<&Weight> {
        if self.packed.get().is_none() {
            // where two threads come at once both pack, to the same bytes, and one is dropped
            drop(self.packed.set(Weight::new(kernels, &self.value)?));
        }
        match self.packed.get() {
            Some(weight) => Ok(weight),
            None => panic!("BUG: a packed weight went missing"),
        }
    }

    /// Must follow every change of `value`.
    pub fn changed(&mut self) {
        self.packed = OnceLock::new();
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

/// y = x W^T, without bias.
pub struct Linear {
    pub w: Param,
}

impl Linear {
    pub fn forward(&self, k: Kernels, x: &Tensor) -> Result<Tensor> {
        kernel::linear(x, self.w.weight(k)?)
    }

    /// `x` is the forward's input.
    pub fn backward(&mut self, k: Kernels, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dx = kernel::linear_dx(k, dy, &self.w.value)?;
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

/// Logits of hidden states x (n, hidden) against an output matrix (v, hidden).
pub fn logits(k: Kernels, x: &Tensor, head: &Param) -> Result<Tensor> {
    kernel::linear(x, head.weight(k)?)
}

/// Log-probabilities of targets, without ever holding more than 128 rows of logits.
pub fn score(k: Kernels, x: &Tensor, head: &Param, targets: &[u32], temperature: f32) -> Result<Vec<TokenStats>> {
    let mut out = Vec::with_capacity(targets.len());
    for start in (0..targets.len()).step_by(HEAD_ROWS) {
        let n = HEAD_ROWS.min(targets.len() - start);
        let z = logits(k, &x.narrow(0, start, n)?.contiguous()?, head)?;
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
    head: &mut Param,
    targets: &[u32],
    temperature: f32,
    mut coefficient: impl FnMut(usize, TokenStats) -> f32,
) -> Result<(Vec<TokenStats>, Tensor)> {
    let mut all = Vec::with_capacity(targets.len());
    let mut dx = Vec::new();
    for start in (0..targets.len()).step_by(HEAD_ROWS) {
        let n = HEAD_ROWS.min(targets.len() - start);
        let rows = x.narrow(0, start, n)?.contiguous()?;
        let z = logits(k, &rows, head)?;
        let targets = &targets[start..start + n];
        let stats = kernel::row_stats(&z, targets, temperature)?;
        let mut coefficients = Vec::with_capacity(n);
        for (i, s) in stats.iter().enumerate() {
            let s = TokenStats { logp: s.logp, entropy: s.entropy };
            coefficients.push(coefficient(start + i, s));
            all.push(s);
        }
        let dz = kernel::row_backward(z, targets, temperature, &stats, &coefficients)?;
        dx.push(kernel::linear_dx(k, &dz, &head.value)?);
        if let Some(dw) = head.grad_mut()? {
            kernel::linear_dw(k, &dz, &rows, dw)?;
        }
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
