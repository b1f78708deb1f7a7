//! Blocks forward and backward over device memory: what `nn::block` does, with its neighbours fused and matrices merged.
//!
//! 1. The residual stream comes in two parts, x and what is still to be added to it: the next norm adds them.
//! 2. Forward keeps what the backward needs, as much as [`Keep`] says; the rest is lent until the block ends.
//! 3. Backward makes again what was not kept, by the same kernels and to the same bits.
//!
//! Invariants: activations are bf16, statistics float32; what a block lends it gives back; what it keeps is given back by
//! whoever marked it.

use candle_core::Result;

use super::attention::{Attend, Plan};
use super::cached::Cached;
use super::driver::{Address, Driver, Element, Matrix, Product};
use super::kernels::{Dropped, Kernels, Qkv, Turn};
use super::memory::Arena;
use super::weights::{Vector, Weight};
use crate::nn::block::NormPlace;

/// How much of a forward is kept for the backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All that is not cheap to make again.
    #[default]
    All,
    /// Gate and up are made again: about a third of the forward's products.
    WithoutMlp,
    /// Each block's input: the forward runs again.
    Inputs,
    /// Nothing: there is no backward.
    Nothing,
}

/// A trained low-rank addition to some rows of a weight.
#[derive(Clone, Copy, Debug)]
pub struct Factors {
    /// Rows of the weight: first, count.
    pub rows: (usize, usize),
    /// (rank, in)
    pub a: Weight,
    /// (rows, rank)
    pub b: Weight,
    pub scale: f32,
    /// Which of the model's additions it is.
    pub index: usize,
    /// Those rows of the weight without the addition, bf16.
    pub base: Address,
}

/// A linear layer, or several that read the same input.
#[derive(Clone, Debug)]
pub struct Linear {
    /// (out, in), merged with its additions.
    pub w: Weight,
    pub bias: Option<Vector>,
    pub factors: Vec<Factors>,
}

/// A block's parameters.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Counted from 0.
    pub index: usize,
    pub place: NormPlace,
    pub norm: Vector,
    pub qkv: Linear,
    /// Norms of queries and keys.
    pub norms: Option<(Vector, Vector)>,
    pub o: Linear,
    pub mlp_norm: Vector,
    /// Gate over up.
    pub gate_up: Linear,
    pub down: Linear,
    /// Which of the model's rotary tables.
    pub rope: usize,
    pub window: Option<usize>,
    /// Something in it learns.
    pub trained: bool,
}

/// Sizes that all blocks share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    pub hidden: usize,
    pub inner: usize,
    pub heads: Qkv,
    /// Norms of queries and keys over all heads at once.
    pub whole: bool,
    pub eps: f32,
}

/// The residual stream: x and what is still to be added, if anything; (n, hidden) each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    pub x: Address,
    pub delta: Address,
}

/// What a block's backward starts from.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The stream that came in, added up.
    x: Address,
    rest: Option<Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    root: Address,
    /// Before norms and rotation.
    qkv: Address,
    lse: Address,
    attended: Address,
    mid: Address,
    mlp_root: Address,
    gate_up: Option<Address>,
    /// Inputs of norms that stand after.
    after: Option<(Address, Address)>,
}

/// One pass over packed rows.
pub struct Pass<'a> {
    pub device: &'a dyn Driver,
    pub arena: &'a mut Arena,
    pub sizes: Sizes,
    /// Rows.
    pub n: usize,
    /// (cos, sin) of each rotary table.
    pub ropes: &'a [(Address, Address)],
    /// (n)
    pub positions: Address,
    pub attention: Rows<'a>,
    /// By addition: what is dropped from its input; empty where nothing is.
    pub dropped: &'a [Option<Dropped>],
}

/// What rows attend to.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// One another: plans by the window that layers have.
    Packed(&'a [(Option<usize>, Plan)]),
    /// What is in pages. There is no backward.
    Cached(&'a Cached),
}

impl<'a> Pass<'a> {
    fn kernels(&self) -> Kernels<'a> {
        Kernels(self.device)
    }

    fn half(&self, columns: usize) -> usize {
        2 * self.n * columns
    }

    fn rows(&self, at: Address, columns: usize) -> Matrix {
        Matrix::new(at, Element::Bf16, self.n, columns)
    }

    fn product(&self, product: &Product) -> Result<()> {
        // SAFETY: matrices are of this pass's rows and of weights, both as large as they say
        unsafe { self.device.product(product) }
    }

    fn turn(&self, layer: &Layer) -> Turn {
        let (cos, sin) = self.ropes[layer.rope];
        let norms = layer.norms.map(|(q, k)| (q.value, k.value));
        Turn { norms, whole: self.sizes.whole, eps: self.sizes.eps, cos, sin, positions: self.positions }
    }

    /// Attention of packed rows.
    fn packed(&self, layer: &Layer, qkv: Address) -> Attend {
        let Rows::Packed(plans) = self.attention else { panic!("BUG: rows over pages have no backward") };
        let plan = plans.iter().find(|(window, _)| *window == layer.window);
        let Some((_, plan)) = plan else { panic!("BUG: there is no plan for a window of {:?}", layer.window) };
        Attend::packed(qkv, self.sizes.heads, layer.window, plan)
    }

    /// What an addition drops.
    fn dropped(&self, f: &Factors) -> Option<Dropped> {
        self.dropped.get(f.index).copied().flatten()
    }

    /// y (n, out) = x (n, in) W^T + b, where W has its additions already; what an addition should not have seen of x is taken out.
    fn linear(&mut self, l: &Linear, x: Address, y: Address) -> Result<()> {
        let w = l.w.value;
        self.product(&Product::rows(self.rows(x, w.columns), w, self.rows(y, w.rows)))?;
        for f in &l.factors {
            let Some(dropped) = self.dropped(f) else { continue };
            let (rank, lent) = (f.a.value.rows, self.arena.lent());
            let (less, low) = (self.arena.lend(self.half(w.columns))?, self.arena.lend(self.half(rank))?);
            let less_of = (dropped.kept() - 1.0, -1.0);
            self.kernels().drop(less, Address::NONE, x, self.n * w.columns, &dropped, less_of)?;
            let low = self.rows(low, rank);
            self.product(&Product::rows(self.rows(less, w.columns), f.a.value, low))?;
            let y = self.rows(y, w.rows).columns(f.rows.0, f.rows.1);
            self.product(&Product { scale: f.scale, add: true, ..Product::rows(low, f.b.value, y) })?;
            self.arena.forget(lent);
        }
        match l.bias {
            Some(bias) => self.kernels().add_bias(y, bias.value, self.n, w.rows),
            None => Ok(()),
        }
    }

    /// Gradients of a linear layer's own parameters, and dx (n, in) = dy W.
    fn linear_backward(&mut self, l: &Linear, dy: Address, x: Address, dx: Address) -> Result<()> {
        let w = l.w.value;
        let (dy_rows, x_rows) = (self.rows(dy, w.rows), self.rows(x, w.columns));
        self.product(&Product::back(dy_rows, w, self.rows(dx, w.columns)))?;
        if let Some(grad) = l.w.grad {
            self.product(&Product::weight(dy_rows, x_rows, grad))?;
        }
        let lent = self.arena.lent();
        // low = x A^T, dlow = scale dy B: dB = scale dy^T low, dA = dlow^T x; x as the addition sees it
        for f in &l.factors {
            let (rank, mark, dropped) = (f.a.value.rows, self.arena.lent(), self.dropped(f));
            let x_rows = match dropped {
                Some(dropped) => {
                    let seen = self.arena.lend(self.half(w.columns))?;
                    let of = (dropped.kept(), 0.0);
                    self.kernels().drop(seen, Address::NONE, x, self.n * w.columns, &dropped, of)?;
                    self.rows(seen, w.columns)
                }
                None => x_rows,
            };
            let dy = dy_rows.columns(f.rows.0, f.rows.1);
            let (low, dlow) = (self.arena.lend(self.half(rank))?, self.arena.lend(self.half(rank))?);
            let (low, dlow) = (self.rows(low, rank), self.rows(dlow, rank));
            if let Some(grad) = f.b.grad {
                self.product(&Product::rows(x_rows, f.a.value, low))?;
                self.product(&Product { scale: f.scale, ..Product::weight(dy, low, grad) })?;
            }
            if let Some(grad) = f.a.grad {
                self.product(&Product { scale: f.scale, ..Product::back(dy, f.b.value, dlow) })?;
                self.product(&Product::weight(dlow, x_rows, grad))?;
                if let Some(dropped) = dropped {
                    // dx has the gradient of all of x: the mask is linear and its own transpose
                    let through = self.arena.lend(self.half(w.columns))?;
                    self.product(&Product::back(dlow, f.a.value, self.rows(through, w.columns)))?;
                    let less_of = (dropped.kept() - 1.0, -1.0);
                    self.kernels().drop(dx, dx, through, self.n * w.columns, &dropped, less_of)?;
                }
            }
            if dropped.is_some() {
                self.arena.forget(mark);
            }
        }
        if let Some(grad) = l.bias.and_then(|b| b.grad) {
            let partial = self.arena.lend(4 * Kernels::bias_partial(self.n, w.rows))?;
            self.kernels().add_columns(grad, partial, dy, self.n, w.rows)?;
        }
        self.arena.forget(lent);
        Ok(())
    }

    /// dx = (residual +) gradient of a norm, given its input and root; adds to its weight's gradient.
    fn norm_backward(
        &mut self,
        norm: Vector,
        dx: Address,
        dy: Address,
        x: Address,
        root: Address,
        residual: Address,
    ) -> Result<()> {
        let (n, width) = (self.n, self.sizes.hidden);
        let lent = self.arena.lent();
        let partial = match norm.grad {
            Some(_) => self.arena.lend(4 * Kernels::norm_partial(n, width))?,
            None => Address::NONE,
        };
        let done =
            self.kernels().rms_norm_backward(dx, norm.grad, partial, dy, x, norm.value, root, residual, (n, width));
        self.arena.forget(lent);
        done
    }

    /// y = norm(x), no more.
    fn norm(&self, norm: Vector, y: Address, x: Address) -> Result<()> {
        let none = Address::NONE;
        self.kernels().rms_norm(y, none, none, x, none, none, norm.value, (self.n, self.sizes.hidden), self.sizes.eps)
    }

    /// One block. The stream that goes out is kept in `out`, two addresses of (n, hidden), and may be the one that came in.
    pub fn forward(
        &mut self,
        layer: &Layer,
        stream: Stream,
        out: Stream,
        keep: Keep,
    ) -> Result<(Stream, Option<Kept>)> {
        let lent = self.arena.lent();
        let result = self.forward_within(layer, stream, out, keep);
        self.arena.forget(lent);
        result
    }

    fn forward_within(
        &mut self,
        layer: &Layer,
        stream: Stream,
        out: Stream,
        keep: Keep,
    ) -> Result<(Stream, Option<Kept>)> {
        let (n, s, none) = (self.n, self.sizes, Address::NONE);
        let (hidden, heads) = (self.half(s.hidden), s.heads);
        let before = layer.place == NormPlace::Before;
        let all = matches!(keep, Keep::All | Keep::WithoutMlp);
        // memory: kept, or lent
        let place =
            |arena: &mut Arena, keep: bool, bytes: usize| if keep { arena.keep(bytes) } else { arena.lend(bytes) };
        let a = &mut *self.arena;
        // a stream in one part is copied where it is kept, for it goes on in the same place
        let whole = stream.delta == none;
        let x = if whole && keep == Keep::Nothing { stream.x } else { place(a, keep != Keep::Nothing, hidden)? };
        let root = place(a, all, 4 * n)?;
        let qkv = place(a, all, 2 * n * heads.width())?;
        let lse = place(a, all, 4 * n * heads.h)?;
        let attended = place(a, all, 2 * n * heads.h * heads.d)?;
        let mid = if all { a.keep(hidden)? } else { out.x };
        let mlp_root = place(a, all, 4 * n)?;
        let gate_up = place(a, keep == Keep::All, 4 * n * s.inner)?;
        let after = if before { None } else { Some((place(a, all, hidden)?, place(a, all, hidden)?)) };
        let (h, turned) = (a.lend(hidden)?, a.lend(2 * n * heads.width())?);
        let k = self.kernels();
        let shape = (n, s.hidden);
        if whole && x != stream.x {
            // SAFETY: both are (n, hidden)
            unsafe { self.device.copy(x, stream.x, hidden)? };
        }
        // 1. attention
        if before {
            let sum = if whole { none } else { x };
            k.rms_norm(h, root, sum, stream.x, stream.delta, none, layer.norm.value, shape, s.eps)?;
        }
        self.linear(&layer.qkv, if before { h } else { x }, qkv)?;
        let turn = self.turn(layer);
        match self.attention {
            Rows::Packed(_) => {
                k.norm_rotate(turned, qkv, heads, &turn, None, n)?;
                self.packed(layer, turned).forward(self.device, attended, lse)?;
            }
            Rows::Cached(cached) => {
                k.norm_rotate(turned, qkv, heads, &turn, Some(cached.pages(layer.index)), n)?;
                cached.forward(self.device, turned, attended, heads, (layer.index, layer.window))?;
            }
        }
        let y = match after {
            Some((y, _)) => y,
            None => h,
        };
        self.linear(&layer.o, attended, y)?;
        // 2. MLP
        let input = if before { h } else { mid };
        if before {
            k.rms_norm(h, mlp_root, mid, x, y, none, layer.mlp_norm.value, shape, s.eps)?;
        } else {
            k.rms_norm(mid, root, none, y, none, x, layer.norm.value, shape, s.eps)?;
        }
        self.linear(&layer.gate_up, input, gate_up)?;
        let lent = self.arena.lent();
        let act = self.arena.lend(self.half(s.inner))?;
        k.swiglu(act, gate_up, n, s.inner)?;
        let stream = match after {
            None => {
                self.linear(&layer.down, act, out.delta)?;
                Stream { x: mid, delta: out.delta }
            }
            Some((_, down)) => {
                self.linear(&layer.down, act, down)?;
                k.rms_norm(out.x, mlp_root, none, down, none, mid, layer.mlp_norm.value, shape, s.eps)?;
                Stream { x: out.x, delta: none }
            }
        };
        self.arena.forget(lent);
        let rest = all.then_some(Rest {
            root,
            qkv,
            lse,
            attended,
            mid,
            mlp_root,
            gate_up: (keep == Keep::All).then_some(gate_up),
            after,
        });
        Ok((stream, (keep != Keep::Nothing).then_some(Kept { x, rest })))
    }

    /// The gradient of a block's input, given that of its output, both in `d` (n, hidden); adds to the gradients of its
    /// parameters. `spare` is a stream to run a forward again with.
    pub fn backward(&mut self, layer: &Layer, kept: &Kept, d: Address, spare: Stream) -> Result<()> {
        let (lent, marked) = (self.arena.lent(), self.arena.kept());
        let rest = match kept.rest {
            Some(rest) => rest,
            None => {
                let stream = Stream { x: kept.x, delta: Address::NONE };
                let again = self.forward(layer, stream, spare, Keep::All)?.1;
                match again.and_then(|kept| kept.rest) {
                    Some(rest) => rest,
                    None => panic!("BUG: a block kept nothing"),
                }
            }
        };
        self.backward_within(layer, kept.x, &rest, d)?;
        self.arena.forget(lent);
        self.arena.reset(marked);
        Ok(())
    }

    fn backward_within(&mut self, layer: &Layer, x: Address, s: &Rest, d: Address) -> Result<()> {
        let (n, sizes, none) = (self.n, self.sizes, Address::NONE);
        let (hidden, heads) = (self.half(sizes.hidden), sizes.heads);
        let before = layer.place == NormPlace::Before;
        let k = self.kernels();
        let h = self.arena.lend(hidden)?;
        let dh = self.arena.lend(hidden)?;
        let lent = self.arena.lent();
        // 1. MLP: out = mid + down(swiglu(gate_up(h))), with its norm
        let act = self.arena.lend(self.half(sizes.inner))?;
        let dact = self.arena.lend(self.half(sizes.inner))?;
        if before {
            self.norm(layer.mlp_norm, h, s.mid)?;
        }
        let input = if before { h } else { s.mid };
        let gate_up = match s.gate_up {
            Some(gate_up) => gate_up,
            None => {
                let gate_up = self.arena.lend(2 * self.half(sizes.inner))?;
                self.linear(&layer.gate_up, input, gate_up)?;
                gate_up
            }
        };
        let ddown = match s.after {
            Some((_, down)) => {
                self.norm_backward(layer.mlp_norm, dh, d, down, s.mlp_root, none)?;
                dh
            }
            None => d,
        };
        k.swiglu(act, gate_up, n, sizes.inner)?;
        self.linear_backward(&layer.down, ddown, act, dact)?;
        let dgate_up = self.arena.lend(2 * self.half(sizes.inner))?;
        k.swiglu_backward(dgate_up, act, dact, gate_up, n, sizes.inner)?;
        self.linear_backward(&layer.gate_up, dgate_up, input, dh)?;
        // d becomes the gradient of mid
        if before {
            self.norm_backward(layer.mlp_norm, d, dh, s.mid, s.mlp_root, d)?;
        } else {
            k.add(d, d, dh, n * sizes.hidden)?;
        }
        self.arena.forget(lent);
        // 2. attention: mid = x + o(attention(qkv(h))), with its norm
        let do_ = match s.after {
            Some((o, _)) => {
                self.norm_backward(layer.norm, dh, d, o, s.root, none)?;
                dh
            }
            None => d,
        };
        let width = self.half(heads.width());
        let dattended = self.arena.lend(self.half(heads.h * heads.d))?;
        self.linear_backward(&layer.o, do_, s.attended, dattended)?;
        let (turned, dturned) = (self.arena.lend(width)?, self.arena.lend(width)?);
        let turn = self.turn(layer);
        k.norm_rotate(turned, s.qkv, heads, &turn, None, n)?;
        let attend = self.packed(layer, turned);
        let inner = self.arena.lent();
        let delta = self.arena.lend(4 * n * heads.h)?;
        attend.backward(self.device, dturned, dattended, s.attended, s.lse, delta)?;
        self.arena.forget(inner);
        // in place: gradients of queries and keys turn back, those of values stay
        let dnorms = layer.norms.and_then(|(q, k)| q.grad.zip(k.grad));
        let (qp, kp) = Kernels::turn_partials(n, heads, sizes.whole);
        let partials = match dnorms {
            Some(_) => (self.arena.lend(4 * qp)?, self.arena.lend(4 * kp)?),
            None => (none, none),
        };
        k.norm_rotate_backward(dturned, dnorms, partials, dturned, s.qkv, heads, &turn, n)?;
        if before {
            self.norm(layer.norm, h, x)?;
        }
        self.linear_backward(&layer.qkv, dturned, if before { h } else { x }, dh)?;
        if before {
            self.norm_backward(layer.norm, d, dh, x, s.root, d)?;
        } else {
            k.add(d, d, dh, n * sizes.hidden)?;
        }
        Ok(())
    }
}
