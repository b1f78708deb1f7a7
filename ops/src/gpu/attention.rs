//! Attention's kernels by their sizes: over packed rows, forward and backward.
//!
//! Invariant: what `kernels/attention.cu` calls `Attention` is [`Args`], field by field.

use candle_core::Result;

use super::driver::{Address, Arg, Driver, Launch};
use super::kernels::Qkv;
use super::tiles::{KEYS, QUERIES};

/// Where an attention's lists are: by query tile, and by key tile.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub n_q: usize,
    pub n_k: usize,
    /// (n_q), or none
    pub at: Address,
    /// (n_k)
    pub vis_end: Address,
    /// (n_k)
    pub positions: Address,
    pub by_query: (Address, Address),
    pub by_key: (Address, Address),
}

/// What the kernels take.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Args {
    q: Address,
    k: Address,
    v: Address,
    q_stride: i64,
    k_stride: i64,
    v_stride: i64,
    at: Address,
    vis_end: Address,
    position: Address,
    first: Address,
    tiles: Address,
    n_q: i32,
    n_k: i32,
    h: i32,
    hk: i32,
    d: i32,
    window: i32,
    scale: f32,
    pad: i32,
}

/// Head dimensions that have kernels of their own, and rows they fetch at once: of keys for queries, of queries for keys, and
/// tiles of keys a warp.
fn own(d: usize) -> Option<Own> {
    let of = |names, key_rows, query_rows, tiles| Some(Own { names, key_rows, query_rows, tiles });
    macro_rules! names {
        ($d:literal) => {
            Names {
                forward: concat!("attention_forward_", $d),
                delta: concat!("attention_delta_", $d),
                dq: concat!("attention_dq_", $d),
                dkv: concat!("attention_dkv_", $d),
            }
        };
    }
    match d {
        32 => of(names!(32), 64, 32, 2),
        64 => of(names!(64), 64, 32, 2),
        128 => of(names!(128), 32, 32, 1),
        _ => None,
    }
}

struct Names {
    forward: &'static str,
    delta: &'static str,
    dq: &'static str,
    dkv: &'static str,
}

struct Own {
    names: Names,
    key_rows: usize,
    query_rows: usize,
    tiles: usize,
}

/// One attention.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    args: Args,
    by_key: (Address, Address),
}

impl Attend {
    /// Over the rows of one merged matrix (n, (h + 2 hk) d), after norms and rotation.
    pub fn packed(qkv: Address, heads: Qkv, window: Option<usize>, plan: &Plan) -> Attend {
        let width = heads.width();
        let k = qkv.plus(2 * heads.h * heads.d);
        let v = k.plus(2 * heads.hk * heads.d);
        Attend::new((qkv, width), (k, width), (v, width), heads, window, plan)
    }

    /// Of queries, keys and values with their strides, in elements.
    pub fn new(
        q: (Address, usize),
        k: (Address, usize),
        v: (Address, usize),
        heads: Qkv,
        window: Option<usize>,
        plan: &Plan,
    ) -> Attend {
        let int = |n: usize| match i32::try_from(n) {
            Ok(n) => n,
            Err(_) => panic!("BUG: an attention of {n} rows"),
        };
        let args = Args {
            q: q.0,
            k: k.0,
            v: v.0,
            q_stride: q.1 as i64,
            k_stride: k.1 as i64,
            v_stride: v.1 as i64,
            at: plan.at,
            vis_end: plan.vis_end,
            position: plan.positions,
            first: plan.by_query.0,
            tiles: plan.by_query.1,
            n_q: int(plan.n_q),
            n_k: int(plan.n_k),
            h: int(heads.h),
            hk: int(heads.hk),
            d: int(heads.d),
            // a window as long as any row is none
            window: window.and_then(|w| i32::try_from(w).ok()).unwrap_or(0),
            scale: 1.0 / (heads.d as f32).sqrt(),
            pad: 0,
        };
        Attend { args, by_key: plan.by_key }
    }

    fn run(&self, device: &dyn Driver, kernel: &'static str, launch: Launch, args: &[Arg]) -> Result<()> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        // SAFETY: the arguments are those of the kernel's source, and the makers of a plan see to sizes
        unsafe { device.launch(kernel, launch, args) }
    }

    fn sizes(&self) -> (usize, usize, usize, usize, usize) {
        let a = &self.args;
        (a.n_q as usize, a.n_k as usize, a.h as usize, a.hk as usize, a.d as usize)
    }

    /// `out` (n_q, h d) and `lse` (h, n_q), float32.
    pub fn forward(&self, device: &dyn Driver, out: Address, lse: Address) -> Result<()> {
        let (n_q, _, h, _, d) = self.sizes();
        let args = [Arg::bytes_of(&self.args), out.into(), lse.into()];
        match own(d) {
            Some(own) => {
                let launch = grid(h, n_q.div_ceil(QUERIES), 128).shared(768 * d + 2048);
                self.run(device, own.names.forward, launch, &args)
            }
            None => self.run(device, "attention_any_forward", grid(h, n_q.div_ceil(8), 256), &args),
        }
    }

    /// Gradients of queries, keys and values into a matrix laid out as the merged one, from that of the output. `delta` has
    /// (h, n_q) float32 to work in.
    pub fn backward(
        &self,
        device: &dyn Driver,
        dqkv: Address,
        dout: Address,
        out: Address,
        lse: Address,
        delta: Address,
    ) -> Result<()> {
        let (n_q, n_k, h, hk, d) = self.sizes();
        let stride = self.args.q_stride;
        let dk = dqkv.plus(2 * h * d);
        let dv = dk.plus(2 * hk * d);
        let transposed = Args { first: self.by_key.0, tiles: self.by_key.1, ..self.args };
        let mut of_delta = vec![delta.into(), dout.into(), out.into(), Arg::int(n_q), Arg::int(h)];
        let of_queries = [Arg::bytes_of(&self.args), dqkv.into(), stride.into(), dout.into(), lse.into(), delta.into()];
        let of_keys = [
            Arg::bytes_of(&transposed),
            dk.into(),
            dv.into(),
            stride.into(),
            stride.into(),
            dout.into(),
            lse.into(),
            delta.into(),
        ];
        match own(d) {
            Some(own) => {
                self.run(device, own.names.delta, Launch::new((n_q * h * d).div_ceil(2048), 256), &of_delta)?;
                let rows = own.key_rows;
                let launch = grid(h, n_q.div_ceil(QUERIES), 128).shared(512 * d + 8 * rows * d + 1024 + 16 * rows);
                self.run(device, own.names.dq, launch, &of_queries)?;
                let rows = own.query_rows;
                let launch = grid(hk, n_k.div_ceil(KEYS), 128 / own.tiles as u32);
                let launch = launch.shared(256 * d + 8 * rows * d + 24 * rows + 512);
                self.run(device, own.names.dkv, launch, &of_keys)
            }
            None => {
                of_delta.push(Arg::int(d));
                self.run(device, "attention_any_delta", Launch::new((n_q * h).div_ceil(8), 256), &of_delta)?;
                self.run(device, "attention_any_dq", grid(h, n_q.div_ceil(8), 256), &of_queries)?;
                self.run(device, "attention_any_dkv", grid(hk, n_k.div_ceil(8), 256), &of_keys)
            }
        }
    }
}

fn grid(x: usize, y: usize, block: u32) -> Launch {
    let launch = Launch::new(x, block);
    Launch { grid: [launch.grid[0], Launch::new(y, block).grid[0], 1], ..launch }
}
