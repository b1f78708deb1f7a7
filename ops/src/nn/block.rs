//! Transformer blocks made of layers: attention and SwiGLU, each around the residual stream.
//!
//! Invariants: a block has one forward; training, scoring and sampling differ only in how queries find their keys, which
//! is a function given to it. What the backward can make again from what is kept (norms, rotations, activations) is
//! made again, by the same kernels and to the same bits.

use std::borrow::Cow;

use candle_core::{Result, Tensor};

use super::kernel::{self, Kernels, RopeTable};
use super::layer::{Linear, Param, Project, RmsNorm, select_rows};
use super::{Heads, Packing};

/// Self-attention with rotary positions, grouped queries and, in some families, norms of queries and keys.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Over each head, or over all heads at once: as wide as its weight.
    pub norms: Option<(RmsNorm, RmsNorm)>,
    pub heads: Heads,
    /// Which of the model's rotary tables.
    pub rope: usize,
}

/// SwiGLU. Shazeer, "GLU variants improve Transformer", 2020.
pub struct Mlp {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// x + f(norm(x))
    Before,
    /// x + norm(f(x))
    After,
}

/// Attention and MLP, each with its norm, each added to the residual stream.
pub struct Block {
    pub place: NormPlace,
    pub attention_norm: RmsNorm,
    pub attention: Attention,
    pub mlp_norm: RmsNorm,
    pub mlp: Mlp,
}

/// What a block keeps for its backward. Rows are tokens.
pub struct Saved {
    /// Input of the block.
    x: Tensor,
    /// Queries and keys before norm and rotation, with the norms' 1 / root.
    q: Tensor,
    k: Tensor,
    roots: Roots,
    v: Tensor,
    /// Softmax statistics of attention.
    stats: Tensor,
    /// Output of attention, before `o`.
    attended: Tensor,
    /// Residual stream between attention and MLP.
    mid: Tensor,
    gate: Tensor,
    up: Tensor,
    /// 1 / root of the two norms.
    norm_roots: (Tensor, Tensor),
    /// Inputs of norms that stand after: outputs of `o` and `down`.
    after: Option<(Tensor, Tensor)>,
}

/// What a forward is for.
#[derive(Clone, Copy)]
pub enum Want<'a> {
    /// The output, and what the backward needs.
    Saved,
    /// The output of these rows, or of all. Keys and values are made of all in any case.
    Only(Option<&'a [u32]>),
}

/// What the rows of a forward share.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub kernels: Kernels,
    pub positions: &'a [u32],
    pub ropes: &'a [RopeTable],
}

/// 1 / root of the norms of queries and keys.
type Roots = Option<(Tensor, Tensor)>;

impl Attention {
    /// Queries with norm and rotation, and the norm's root. What comes in is left as it is.
    fn place_q(&self, r: Rows<'_>, positions: &[u32], q: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        self.place(r, positions, q, self.norms.as_ref().map(|(norm, _)| norm), self.heads.h)
    }

    /// As [`Attention::place_q`], keys.
    fn place_k(&self, r: Rows<'_>, k: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        self.place(r, r.positions, k, self.norms.as_ref().map(|(_, norm)| norm), self.heads.hk)
    }

    fn place(
        &self,
        r: Rows<'_>,
        positions: &[u32],
        x: &Tensor,
        norm: Option<&RmsNorm>,
        heads: usize,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (x, root) = match norm {
            Some(norm) => norm.forward(r.kernels, x).map(|(x, root)| (x, Some(root)))?,
            None => (x.copy()?, None), // rotation is in place
        };
        Ok((kernel::rope(r.kernels, x, heads, &r.ropes[self.rope], positions, 1.0)?, root))
    }

    /// The way back of [`Attention::place`].
    fn place_backward(&mut self, r: Rows<'_>, dq: Tensor, dk: Tensor, saved: &Saved) -> Result<(Tensor, Tensor)> {
        let (kn, rope) = (r.kernels, &r.ropes[self.rope]);
        let dq = kernel::rope(kn, dq, self.heads.h, rope, r.positions, -1.0)?;
        let dk = kernel::rope(kn, dk, self.heads.hk, rope, r.positions, -1.0)?;
        match (&mut self.norms, &saved.roots) {
            (Some((qn, kn_)), Some((rq, rk))) => {
                Ok((qn.backward(kn, &dq, &saved.q, rq)?, kn_.backward(kn, &dk, &saved.k, rk)?))
            }
            _ => Ok((dq, dk)),
        }
    }
}

/// `f(x)` with its norm: what is added to the residual stream, the norm's root, and f's output where the norm needs it.
fn normed_after(
    kn: Kernels,
    place: NormPlace,
    norm: &RmsNorm,
    y: Tensor,
    root: Option<Tensor>,
) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
    match place {
        NormPlace::Before => Ok((y, root, None)),
        NormPlace::After => {
            let (normed, root) = norm.forward(kn, &y)?;
            Ok((normed, Some(root), Some(y)))
        }
    }
}

/// x with the norm that stands before, if it does.
fn normed_before(kn: Kernels, place: NormPlace, norm: &RmsNorm, x: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
    match place {
        NormPlace::Before => norm.forward(kn, x).map(|(y, root)| (y, Some(root))),
        NormPlace::After => Ok((x.clone(), None)),
    }
}

impl Block {
    /// Output of the block for rows x (n, hidden). `attend(q, k, v)` gives the output of attention and its softmax
    /// statistics.
    pub fn forward(
        &self,
        r: Rows<'_>,
        x: &Tensor,
        want: Want<'_>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<(Tensor, Option<Tensor>)>,
    ) -> Result<(Tensor, Option<Saved>)> {
        let kn = r.kernels;
        let (keep, only) = match want {
            Want::Saved => (true, None),
            Want::Only(rows) => (false, rows),
        };
        let linear = |l: &Linear, x: &Tensor| if keep { l.forward_train(kn, x) } else { l.forward(kn, x) };
        // 1. x + attention
        let a = &self.attention;
        let (mut h, root) = normed_before(kn, self.place, &self.attention_norm, x)?;
        let (k0, v) = (linear(&a.k, &h)?, linear(&a.v, &h)?);
        let (k, rk) = a.place_k(r, &k0)?;
        let (mut x, mut positions) = (x.clone(), Cow::Borrowed(r.positions));
        if let Some(only) = only {
            (x, h) = (select_rows(&x, only)?, select_rows(&h, only)?);
            positions = only.iter().map(|row| r.positions[*row as usize]).collect();
        }
        let q0 = linear(&a.q, &h)?;
        drop(h);
        let (q, rq) = a.place_q(r, &positions, &q0)?;
        let (attended, stats) = attend(&q, &k, &v)?;
        drop((q, k));
        let y = linear(&a.o, &attended)?;
        let (mut mid, root1, after1) = normed_after(kn, self.place, &self.attention_norm, y, root)?;
        kernel::add_into(kn, &mut mid, &x)?;
        // 2. mid + MLP
        let m = &self.mlp;
        let (h, root) = normed_before(kn, self.place, &self.mlp_norm, &mid)?;
        let (gate, up) = (linear(&m.gate, &h)?, linear(&m.up, &h)?);
        drop(h);
        let y = linear(&m.down, &kernel::swiglu(kn, &gate, &up)?)?;
        let (mut out, root2, after2) = normed_after(kn, self.place, &self.mlp_norm, y, root)?;
        kernel::add_into(kn, &mut out, &mid)?;
        if !keep {
            return Ok((out, None));
        }
        let (Some(r1), Some(r2), Some(stats)) = (root1, root2, stats) else {
            panic!("BUG: rows are kept but attention gave no statistics")
        };
        let norm_roots = (r1, r2);
        let (after, roots) = (after1.zip(after2), rq.zip(rk));
        Ok((out, Some(Saved { x, q: q0, k: k0, roots, v, stats, attended, mid, gate, up, norm_roots, after })))
    }

    /// d objective / d x, given that of the output; adds to the gradients of the block's parameters.
    pub fn backward(&mut self, r: Rows<'_>, dy: &Tensor, s: Saved, packing: &Packing) -> Result<Tensor> {
        let kn = r.kernels;
        let after = self.place == NormPlace::After;
        // 1. the MLP: out = mid + down(swiglu(gate, up)), with its norm
        let m = &mut self.mlp;
        let ddown = match &s.after {
            Some((_, down)) => self.mlp_norm.backward(kn, dy, down, &s.norm_roots.1)?,
            None => dy.clone(),
        };
        let da = m.down.backward_once(kn, &ddown, &kernel::swiglu(kn, &s.gate, &s.up)?)?;
        let (dgate, dup) = kernel::swiglu_backward(kn, &da, &s.gate, &s.up)?;
        drop((da, ddown));
        let h = if after { s.mid.clone() } else { self.mlp_norm.again(kn, &s.mid)? };
        let mut dh = m.gate.backward_once(kn, &dgate, &h)?;
        kernel::add_into(kn, &mut dh, &m.up.backward_once(kn, &dup, &h)?)?;
        drop((dgate, dup, h));
        let mut dmid = if after { dh } else { self.mlp_norm.backward(kn, &dh, &s.mid, &s.norm_roots.1)? };
        kernel::add_into(kn, &mut dmid, dy)?;
        // 2. attention: mid = x + o(attention(q, k, v)), with its norm
        let do_ = match &s.after {
            Some((o, _)) => self.attention_norm.backward(kn, &dmid, o, &s.norm_roots.0)?,
            None => dmid.clone(),
        };
        let a = &mut self.attention;
        let dattended = a.o.backward_once(kn, &do_, &s.attended)?;
        let ((q, _), (k, _)) = (a.place_q(r, r.positions, &s.q)?, a.place_k(r, &s.k)?);
        let (dq, dk, dv) = kernel::attention_backward(kn, &dattended, &q, &k, &s.v, &s.stats, packing, a.heads)?;
        drop((q, k, dattended, do_));
        let (dq, dk) = a.place_backward(r, dq, dk, &s)?;
        let h = if after { s.x.clone() } else { self.attention_norm.again(kn, &s.x)? };
        let mut dh = a.q.backward_once(kn, &dq, &h)?;
        kernel::add_into(kn, &mut dh, &a.k.backward_once(kn, &dk, &h)?)?;
        kernel::add_into(kn, &mut dh, &a.v.backward_once(kn, &dv, &h)?)?;
        let mut dx = if after { dh } else { self.attention_norm.backward(kn, &dh, &s.x, &s.norm_roots.0)? };
        kernel::add_into(kn, &mut dx, &dmid)?;
        Ok(dx)
    }

    /// The linear layers with the names that checkpoints give them.
    pub fn linears(&self) -> [(&'static str, &Linear); 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [
            ("self_attn.q_proj", &a.q),
            ("self_attn.k_proj", &a.k),
            ("self_attn.v_proj", &a.v),
            ("self_attn.o_proj", &a.o),
            ("mlp.gate_proj", &m.gate),
            ("mlp.up_proj", &m.up),
            ("mlp.down_proj", &m.down),
        ]
    }

    /// As [`Block::linears`].
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        [
            ("self_attn.q_proj", &mut a.q),
            ("self_attn.k_proj", &mut a.k),
            ("self_attn.v_proj", &mut a.v),
            ("self_attn.o_proj", &mut a.o),
            ("mlp.gate_proj", &mut m.gate),
            ("mlp.up_proj", &mut m.up),
            ("mlp.down_proj", &mut m.down),
        ]
    }

    /// Every parameter, in checkpoint order.
    pub fn params(&self) -> Vec<&Param> {
        let (a, m) = (&self.attention, &self.mlp);
        let mut out = vec![&self.attention_norm.w];
        out.extend([&a.q, &a.k, &a.v, &a.o].into_iter().flat_map(Linear::params));
        out.extend(a.norms.iter().flat_map(|(q, k)| [&q.w, &k.w]));
        out.push(&self.mlp_norm.w);
        out.extend([&m.gate, &m.up, &m.down].into_iter().flat_map(Linear::params));
        out
    }

    /// As [`Block::params`].
    pub fn params_mut(&mut self) -> Vec<&mut Param> {
        let (a, m) = (&mut self.attention, &mut self.mlp);
        let mut out = vec![&mut self.attention_norm.w];
        out.extend([&mut a.q, &mut a.k, &mut a.v, &mut a.o].into_iter().flat_map(Linear::params_mut));
        out.extend(a.norms.iter_mut().flat_map(|(q, k)| [&mut q.w, &mut k.w]));
        out.push(&mut self.mlp_norm.w);
        out.extend([&mut m.gate, &mut m.up, &mut m.down].into_iter().flat_map(Linear::params_mut));
        out
    }
}
