//! The kernels of `rows.cu` by their sizes: one function each, which knows how its kernel is spread.
//!
//! Invariant: what a function is given is large enough for the sizes beside it; that is all a caller has to see to.

use candle_core::Result;

use super::driver::{Address, Arg, Driver, Launch};

/// Threads of a warp.
const WARP: usize = 32;
/// Threads of blocks whose kernels take any number.
const BLOCK: usize = 256;
/// Tokens whose sums of a norm's gradient are one row, and those of a bias's.
const NORM_ROWS: usize = 8;
const BIAS_ROWS: usize = 64;
/// Blocks of a grid's second side, at most.
const SIDE: usize = 65_535;

/// Heads of a merged matrix of queries, keys and values: (n, (h + 2 hk) d).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qkv {
    pub h: usize,
    pub hk: usize,
    pub d: usize,
}

impl Qkv {
    /// Elements of a row.
    pub fn width(self) -> usize {
        (self.h + 2 * self.hk) * self.d
    }
}

/// Norms of queries and keys, and rotary positions.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Weights of the norms, or none.
    pub norms: Option<(Address, Address)>,
    /// A norm over all heads at once, instead of over each.
    pub whole: bool,
    pub eps: f32,
    /// (positions, d / 2) each.
    pub cos: Address,
    pub sin: Address,
    /// (n)
    pub positions: Address,
}

/// Where keys and values go beside the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pub k: Address,
    pub v: Address,
    /// (n)
    pub slots: Address,
}

/// Rows in the order of what they are added to: see the kernels.
#[derive(Clone, Copy, Debug)]
pub struct Sorted {
    pub order: Address,
    pub starts: Address,
}

/// Launches kernels.
#[derive(Clone, Copy)]
pub struct Kernels<'a>(pub &'a dyn Driver);

fn warps(threads: usize) -> u32 {
    (threads.next_multiple_of(WARP)) as u32
}

/// A thread for each eight elements of a row, and rows on the grid's second side.
fn by_rows(n: usize, width: usize) -> Launch {
    let threads = (width / 8).min(BLOCK);
    let block = warps(threads);
    let grid = (width / 8).div_ceil(block as usize);
    Launch { grid: [grid as u32, n.min(SIDE) as u32, 1], block: [block, 1, 1], shared: 0 }
}

/// A row a block, and parts of the row on the grid's second side.
fn row_blocks(n: usize, width: usize) -> Launch {
    let block = warps((width / 8).min(BLOCK));
    let parts = (width / 8).div_ceil(block as usize);
    let launch = Launch::new(n, block);
    Launch { grid: [launch.grid[0], parts as u32, 1], ..launch }
}

/// Any number of elements, eight a thread.
fn by_elements(count: usize) -> Launch {
    Launch::new(count.div_ceil(8 * BLOCK).clamp(1, 1 << 20), BLOCK as u32)
}

/// Which entries of an addition's input are dropped: those whose uniform number is below the rate, in the order in which a
/// stream of [`crate::rng::Rng`] gives them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropped {
    pub rate: f64,
    pub seed: u64,
    pub stream: u64,
}

impl Dropped {
    /// What is left is multiplied by this, so that its expected value is what it was.
    pub fn kept(&self) -> f32 {
        (1.0 / (1.0 - self.rate)) as f32
    }
}

impl Kernels<'_> {
    fn run(&self, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(()); // nothing to do
        }
        // SAFETY: the arguments are those of the kernel's source, and the callers of this file's functions see to sizes
        unsafe { self.0.launch(kernel, launch, args) }
    }

    /// Rows whose norm the kernels can take.
    pub fn norm_fits(width: usize) -> bool {
        width.is_multiple_of(8) && width <= 8192
    }

    /// y = (residual +) norm(x (+ delta)) w, with x + delta in `sum` and the roots in `root`.
    pub fn rms_norm(
        &self,
        y: Address,
        root: Address,
        sum: Address,
        x: Address,
        delta: Address,
        residual: Address,
        w: Address,
        (n, width): (usize, usize),
        eps: f32,
    ) -> Result<()> {
        let args = [
            y.into(),
            root.into(),
            sum.into(),
            x.into(),
            delta.into(),
            residual.into(),
            w.into(),
            Arg::int(width),
            eps.into(),
        ];
        self.run("rms_norm", Launch::new(n, warps(width / 8)), &args)
    }

    /// Floats of `partial` in [`Kernels::rms_norm_backward`].
    pub fn norm_partial(n: usize, width: usize) -> usize {
        n.div_ceil(NORM_ROWS) * width
    }

    /// dx = (residual +) gradient; dw += the weight's, with `partial` to work in, unless dw is not there.
    pub fn rms_norm_backward(
        &self,
        dx: Address,
        dw: Option<Address>,
        partial: Address,
        dy: Address,
        x: Address,
        w: Address,
        root: Address,
        residual: Address,
        (n, width): (usize, usize),
    ) -> Result<()> {
        let args = [
            dx.into(),
            dw.map_or(Address::NONE, |_| partial).into(),
            dy.into(),
            x.into(),
            w.into(),
            root.into(),
            residual.into(),
            Arg::int(n),
            Arg::int(width),
        ];
        self.run("rms_norm_backward", Launch::new(n.div_ceil(NORM_ROWS), warps(width / 8)), &args)?;
        match dw {
            Some(dw) => self.add_partials(dw, partial, n.div_ceil(NORM_ROWS), width),
            None => Ok(()),
        }
    }

    fn add_partials(&self, out: Address, partial: Address, parts: usize, width: usize) -> Result<()> {
        let args = [out.into(), partial.into(), Arg::int(parts), Arg::int(width)];
        self.run("add_partials", Launch::new(width.div_ceil(WARP), 1024), &args)
    }

    /// Threads of a token in `norm_rotate`.
    fn turn_threads(q: Qkv) -> usize {
        (q.h + q.hk) * q.d.div_ceil(16).next_power_of_two()
    }

    /// Whether so many heads of this size fit into a block, with a backward or without.
    pub fn turn_fits(q: Qkv, trained: bool) -> bool {
        Self::turn_threads(q) <= if trained { 640 } else { 1024 }
    }

    /// Norm and rotation of queries and keys, from `qkv` to `out`; values are copied.
    pub fn norm_rotate(
        &self,
        out: Address,
        qkv: Address,
        q: Qkv,
        turn: &Turn,
        pages: Option<Pages>,
        n: usize,
    ) -> Result<()> {
        let (qn, kn) = turn.norms.unwrap_or((Address::NONE, Address::NONE));
        let pages = pages.unwrap_or(Pages { k: Address::NONE, v: Address::NONE, slots: Address::NONE });
        let with_v = out != qkv;
        let args = [
            out.into(),
            pages.k.into(),
            pages.v.into(),
            qkv.into(),
            qn.into(),
            kn.into(),
            turn.cos.into(),
            turn.sin.into(),
            turn.positions.into(),
            pages.slots.into(),
            Arg::int(q.h),
            Arg::int(q.hk),
            Arg::int(q.d),
            Arg::from(i32::from(turn.whole)),
            Arg::from(i32::from(with_v)),
            turn.eps.into(),
        ];
        self.run("norm_rotate", Launch::new(n, warps(Self::turn_threads(q))), &args)
    }

    /// Floats of the two `partial` in [`Kernels::norm_rotate_backward`].
    pub fn turn_partials(n: usize, q: Qkv, whole: bool) -> (usize, usize) {
        let rows = n.div_ceil(NORM_ROWS);
        if whole { (rows * q.h * q.d, rows * q.hk * q.d) } else { (rows * q.d, rows * q.d) }
    }

    /// dqkv from the gradient of what [`Kernels::norm_rotate`] made, whose values' part is taken over; gradients of the norms'
    /// weights are added to `dnorms`, with `partials` to work in.
    pub fn norm_rotate_backward(
        &self,
        dqkv: Address,
        dnorms: Option<(Address, Address)>,
        partials: (Address, Address),
        dout: Address,
        qkv: Address,
        q: Qkv,
        turn: &Turn,
        n: usize,
    ) -> Result<()> {
        let (qn, kn) = turn.norms.unwrap_or((Address::NONE, Address::NONE));
        let (qp, kp) = if dnorms.is_some() { partials } else { (Address::NONE, Address::NONE) };
        let args = [
            dqkv.into(),
            qp.into(),
            kp.into(),
            dout.into(),
            turn.norms.map_or(Address::NONE, |_| qkv).into(),
            qn.into(),
            kn.into(),
            turn.cos.into(),
            turn.sin.into(),
            turn.positions.into(),
            Arg::int(n),
            Arg::int(q.h),
            Arg::int(q.hk),
            Arg::int(q.d),
            Arg::from(i32::from(turn.whole)),
            Arg::from(i32::from(dqkv != dout)),
            turn.eps.into(),
        ];
        let block = warps(Self::turn_threads(q)).min(640);
        let launch = Launch::new(n.div_ceil(NORM_ROWS), block).shared(32 * block as usize);
        self.run("norm_rotate_backward", launch, &args)?;
        if let Some((dq, dk)) = dnorms {
            let (qw, kw) = if turn.whole { (q.h * q.d, q.hk * q.d) } else { (q.d, q.d) };
            self.add_partials(dq, qp, n.div_ceil(NORM_ROWS), qw)?;
            self.add_partials(dk, kp, n.div_ceil(NORM_ROWS), kw)?;
        }
        Ok(())
    }

    /// y (n, width) += b
    pub fn add_bias(&self, y: Address, b: Address, n: usize, width: usize) -> Result<()> {
        self.run("add_bias", by_rows(n, width), &[y.into(), b.into(), Arg::int(n), Arg::int(width)])
    }

    /// Floats of `partial` in [`Kernels::add_columns`].
    pub fn bias_partial(n: usize, width: usize) -> usize {
        n.div_ceil(BIAS_ROWS) * width
    }

    /// db += sum of the rows of dy (n, width)
    pub fn add_columns(&self, db: Address, partial: Address, dy: Address, n: usize, width: usize) -> Result<()> {
        let rows = n.div_ceil(BIAS_ROWS);
        let launch = Launch { grid: [by_rows(1, width).grid[0], rows as u32, 1], ..by_rows(1, width) };
        self.run("column_sums", launch, &[partial.into(), dy.into(), Arg::int(n), Arg::int(width)])?;
        self.add_partials(db, partial, rows, width)
    }

    /// y (n, width) = silu(gate) up, from x (n, 2 width)
    pub fn swiglu(&self, y: Address, x: Address, n: usize, width: usize) -> Result<()> {
        self.run("swiglu", by_rows(n, width), &[y.into(), x.into(), Arg::int(n), Arg::int(width)])
    }

    /// dx (n, 2 width), and the forward's output again in y.
    pub fn swiglu_backward(
        &self,
        dx: Address,
        y: Address,
        dy: Address,
        x: Address,
        n: usize,
        width: usize,
    ) -> Result<()> {
        let args = [dx.into(), y.into(), dy.into(), x.into(), Arg::int(n), Arg::int(width)];
        self.run("swiglu_backward", by_rows(n, width), &args)
    }

    /// out (n, width) = rows of a table; ids with the highest bit set are places of `drawn`
    pub fn gather_rows(
        &self,
        out: Address,
        table: Address,
        (ids, drawn): (Address, Address),
        n: usize,
        width: usize,
    ) -> Result<()> {
        let args = [out.into(), table.into(), ids.into(), drawn.into(), Arg::int(width)];
        self.run("gather_rows", row_blocks(n, width), &args)
    }

    /// dtable += dy, by `distinct` tokens.
    pub fn embedding_backward(
        &self,
        dtable: Address,
        dy: Address,
        sorted: Sorted,
        tokens: Address,
        distinct: usize,
        width: usize,
    ) -> Result<()> {
        let args =
            [dtable.into(), dy.into(), sorted.order.into(), sorted.starts.into(), tokens.into(), Arg::int(width)];
        self.run("embedding_backward", row_blocks(distinct, width), &args)
    }

    /// dx (n, width) = sums of rows of dy, zero where there are none
    pub fn scatter_rows(&self, dx: Address, dy: Address, sorted: Sorted, n: usize, width: usize) -> Result<()> {
        let args = [dx.into(), dy.into(), sorted.order.into(), sorted.starts.into(), Arg::int(width)];
        self.run("scatter_rows", row_blocks(n, width), &args)
    }

    /// y = a + b
    pub fn add(&self, y: Address, a: Address, b: Address, count: usize) -> Result<()> {
        self.run("add", by_elements(count), &[y.into(), a.into(), b.into(), Arg::long(count)])
    }

    /// y = (a +) x with entries dropped: times `dropped`, and the others times `kept`.
    pub fn drop(
        &self,
        y: Address,
        a: Address,
        x: Address,
        count: usize,
        how: &Dropped,
        (kept, dropped): (f32, f32),
    ) -> Result<()> {
        let place = [how.seed.into(), how.stream.into(), how.rate.into(), kept.into(), dropped.into()];
        let args: Vec<Arg> = [y.into(), a.into(), x.into(), Arg::long(count)].into_iter().chain(place).collect();
        self.run("drop", by_elements(count), &args)
    }

    /// merged = w + scale product, from a bf16 w.
    pub fn merge(&self, merged: Address, w: Address, product: Address, scale: f32, count: usize) -> Result<()> {
        let args = [merged.into(), w.into(), product.into(), scale.into(), Arg::long(count)];
        self.run("merge", by_elements(count), &args)
    }
}
