//! Matrix products on the processor: C = A B or C += A B in float32.
//!
//! Invariant: every element of C is one chain of fused multiply-adds over k in ascending order. So the result does not
//! depend on the number of rows, the tiling, the number of threads or the processor: a row alone has the bits it has in
//! a batch, and the sampler's logits are the trainer's.
//!
//! 1. B is packed into panels of 32 columns, `[k][32]` (weights once per update, activations at each call).
//! 2. Row blocks or panels are shared out to threads.
//! 3. Tiles of up to 12 rows by 32 columns run in registers.

use rayon::prelude::*;

use super::simd::{Isa, isa};

/// Columns of a panel.
pub const NR: usize = 32;
/// Steps of k between writing a tile back: the panel slice stays in the second-level cache.
const KC: usize = 512;
/// Multiply-adds below which threads cost more than they give.
const PARALLEL: usize = 1 << 20;

/// B in panels of 32 columns.
#[derive(Clone, Debug)]
pub struct Packed {
    k: usize,
    n: usize,
    data: Vec<f32>,
}

impl Packed {
    /// Packs B given row by row: (k, n).
    pub fn rows(b: &[f32], k: usize, n: usize) -> Packed {
        assert_eq!(b.len(), k * n, "BUG: B is not k x n");
        Self::fill(k, n, |panel, j0, width| {
            for (dst, src) in panel.chunks_exact_mut(NR).zip(b.chunks_exact(n.max(1))) {
                dst[..width].copy_from_slice(&src[j0..j0 + width]);
            }
        })
    }

    /// Packs the transpose of a matrix given row by row: `bt` is (n, k).
    pub fn transposed(bt: &[f32], n: usize, k: usize) -> Packed {
        assert_eq!(bt.len(), k * n, "BUG: B^T is not n x k");
        Self::fill(k, n, |panel, j0, width| {
            for j in 0..width {
                let src = &bt[(j0 + j) * k..(j0 + j + 1) * k];
                for (kk, x) in src.iter().enumerate() {
                    panel[kk * NR + j] = *x;
                }
            }
        })
    }

    fn fill(k: usize, n: usize, pack: impl Fn(&mut [f32], usize, usize) + Sync) -> Packed {
        let panels = n.div_ceil(NR);
        let mut data = vec![0f32; panels * k * NR];
        if k > 0 {
            let one = |(p, panel): (usize, &mut [f32])| pack(panel, p * NR, NR.min(n - p * NR));
            if k * n >= PARALLEL {
                data.par_chunks_mut(k * NR).enumerate().for_each(one);
            } else {
                data.chunks_mut(k * NR).enumerate().for_each(one);
            }
        }
        Packed { k, n, data }
    }

    pub fn k(&self) -> usize {
        self.k
    }

    pub fn n(&self) -> usize {
        self.n
    }
}

/// A as it lies in memory: element (i, kk) is `data[i * row + kk * col]`.
#[derive(Clone, Copy)]
pub struct Lhs<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

impl<'a> Lhs<'a> {
    /// (m, k), row by row.
    pub fn rows(data: &'a [f32], k: usize) -> Self {
        Lhs { data, row: k, col: 1 }
    }

    /// The transpose of (k, m), given row by row.
    pub fn transposed(data: &'a [f32], m: usize) -> Self {
        Lhs { data, row: 1, col: m }
    }
}

struct Out(*mut f32);
// SAFETY: every task writes its own rows or columns.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// C (m, n) = A B, or C += A B where `accumulate`.
///
/// # Panics
/// When the sizes do not fit: a bug in the caller.
pub fn matmul(a: Lhs<'_>, b: &Packed, c: &mut [f32], m: usize, accumulate: bool) {
    let (k, n) = (b.k, b.n);
    assert_eq!(c.len(), m * n, "BUG: C is not m x n");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    assert!(a.data.len() > (m - 1) * a.row + (k - 1) * a.col, "BUG: A is too short");
    let out = Out(c.as_mut_ptr());
    let panels = n.div_ceil(NR);
    let block = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
        let out = &out;
        for k0 in (0..k).step_by(KC) {
            let kc = KC.min(k - k0);
            for p in cols.clone() {
                let panel = &b.data[(p * k + k0) * NR..(p * k + k0 + kc) * NR];
                let width = NR.min(n - p * NR);
                // SAFETY: the tile lies within A, the panel and C (asserted above); tasks write disjoint tiles.
                unsafe {
                    let a0 = a.data.as_ptr().add(k0 * a.col);
                    let c0 = out.0.add(p * NR);
                    strip(rows.clone(), kc, a0, a.row, a.col, panel.as_ptr(), c0, n, width, accumulate || k0 > 0);
                }
            }
        }
    };
    let threads = rayon::current_num_threads();
    if m * n * k < PARALLEL || threads == 1 {
        for r in (0..m).step_by(192) {
            block(r..m.min(r + 192), 0..panels);
        }
    } else if m >= 24 * threads {
        // chunks of whole tiles, a few per thread so that an uneven machine still ends together
        let chunk = m.div_ceil(threads * 4).div_ceil(12).max(4) * 12;
        (0..m.div_ceil(chunk)).into_par_iter().for_each(|i| block(i * chunk..m.min((i + 1) * chunk), 0..panels));
    } else {
        let chunk = panels.div_ceil(threads * 4).max(1);
        (0..panels.div_ceil(chunk)).into_par_iter().for_each(|i| block(0..m, i * chunk..panels.min((i + 1) * chunk)));
    }
}

/// Rows `rows` of one panel, tile by tile.
///
/// # Safety
/// `a` must be valid for all (row, kk), `b` for `kc * 32`, `c` for `width` columns of each row with stride `n`.
pub(super) unsafe fn strip(
    rows: std::ops::Range<usize>,
    kc: usize,
    a: *const f32,
    row: usize,
    col: usize,
    b: *const f32,
    c: *mut f32,
    n: usize,
    width: usize,
    load: bool,
) {
    let isa = isa();
    let mut r = rows.start;
    while r < rows.end {
        // SAFETY: given by the caller for every row of the range.
        unsafe {
            let (a, c) = (a.add(r * row), c.add(r * n));
            let left = rows.end - r;
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => {
                    macro_rules! tile {
                        ($($m:literal)*) => { match left {
                            $($m => x86::tile512::<$m>(kc, a, row, col, b, c, n, width, load),)*
                            _ => x86::tile512::<12>(kc, a, row, col, b, c, n, width, load),
                        } };
                    }
                    tile!(1 2 3 4 5 6 7 8 9 10 11);
                    r += left.min(12);
                }
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => {
                    macro_rules! tile {
                        ($($m:literal)*) => { match left {
                            $($m => x86::tile256::<$m>(kc, a, row, col, b, c, n, width, load),)*
                            _ => x86::tile256::<6>(kc, a, row, col, b, c, n, width, load),
                        } };
                    }
                    tile!(1 2 3 4 5);
                    r += left.min(6);
                }
                Isa::Portable => {
                    tile_portable(kc, a, col, b, c, width, load);
                    r += 1;
                }
            }
        }
    }
}

/// One row by 32 columns in plain Rust.
///
/// # Safety
/// As [`strip`].
unsafe fn tile_portable(kc: usize, a: *const f32, col: usize, b: *const f32, c: *mut f32, width: usize, load: bool) {
    let mut acc = [0f32; NR];
    // SAFETY: given by the caller.
    unsafe {
        if load {
            for (j, x) in acc.iter_mut().enumerate().take(width) {
                *x = *c.add(j);
            }
        }
        for kk in 0..kc {
            let x = *a.add(kk * col);
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = x.mul_add(*b.add(kk * NR + j), *acc);
            }
        }
        for (j, x) in acc.iter().enumerate().take(width) {
            *c.add(j) = *x;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Register tiles with AVX-512 and AVX2.

    use std::arch::x86_64::*;

    use super::NR;

    /// M rows by 32 columns: 2 M accumulators of 16 lanes.
    ///
    /// # Safety
    /// As [`super::strip`]; the processor has AVX-512F.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn tile512<const M: usize>(
        kc: usize,
        a: *const f32,
        row: usize,
        col: usize,
        b: *const f32,
        c: *mut f32,
        n: usize,
        width: usize,
        load: bool,
    ) {
        let bits = if width >= NR { u32::MAX } else { (1u32 << width) - 1 };
        let (lo, hi) = (bits as u16, (bits >> 16) as u16);
        // SAFETY: given by the caller; masked lanes are not touched.
        unsafe {
            let mut acc = [[_mm512_setzero_ps(); 2]; M];
            if load {
                for (i, acc) in acc.iter_mut().enumerate() {
                    acc[0] = _mm512_maskz_loadu_ps(lo, c.add(i * n));
                    acc[1] = _mm512_maskz_loadu_ps(hi, c.add(i * n).wrapping_add(16));
                }
            }
            for kk in 0..kc {
                let b0 = _mm512_loadu_ps(b.add(kk * NR));
                let b1 = _mm512_loadu_ps(b.add(kk * NR + 16));
                for (i, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(i * row + kk * col));
                    acc[0] = _mm512_fmadd_ps(x, b0, acc[0]);
                    acc[1] = _mm512_fmadd_ps(x, b1, acc[1]);
                }
            }
            for (i, acc) in acc.iter().enumerate() {
                _mm512_mask_storeu_ps(c.add(i * n), lo, acc[0]);
                _mm512_mask_storeu_ps(c.add(i * n).wrapping_add(16), hi, acc[1]);
            }
        }
    }

    /// M rows by 32 columns as two halves of 2 M accumulators of 8 lanes.
    ///
    /// # Safety
    /// As [`super::strip`]; the processor has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn tile256<const M: usize>(
        kc: usize,
        a: *const f32,
        row: usize,
        col: usize,
        b: *const f32,
        c: *mut f32,
        n: usize,
        width: usize,
        load: bool,
    ) {
        for half in 0..2 {
            let j0 = half * 16;
            if j0 >= width {
                return;
            }
            let cols = (width - j0).min(16);
            // SAFETY: given by the caller; a narrow edge goes through a buffer.
            unsafe {
                let mut edge = [[0f32; 16]; M];
                if load {
                    for (i, edge) in edge.iter_mut().enumerate() {
                        std::ptr::copy_nonoverlapping(c.add(i * n + j0), edge.as_mut_ptr(), cols);
                    }
                }
                let mut acc = [[_mm256_setzero_ps(); 2]; M];
                for (acc, edge) in acc.iter_mut().zip(&edge) {
                    acc[0] = _mm256_loadu_ps(edge.as_ptr());
                    acc[1] = _mm256_loadu_ps(edge.as_ptr().add(8));
                }
                for kk in 0..kc {
                    let b0 = _mm256_loadu_ps(b.add(kk * NR + j0));
                    let b1 = _mm256_loadu_ps(b.add(kk * NR + j0 + 8));
                    for (i, acc) in acc.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*a.add(i * row + kk * col));
                        acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                        acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
                    }
                }
                for (i, acc) in acc.iter().enumerate() {
                    let mut edge = [0f32; 16];
                    _mm256_storeu_ps(edge.as_mut_ptr(), acc[0]);
                    _mm256_storeu_ps(edge.as_mut_ptr().add(8), acc[1]);
                    std::ptr::copy_nonoverlapping(edge.as_ptr(), c.add(i * n + j0), cols);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// The definition: one chain of fused multiply-adds for each element.
    fn chain(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize, n: usize) {
        for i in 0..m {
            for j in 0..n {
                for kk in 0..k {
                    c[i * n + j] = a[i * k + kk].mul_add(b[kk * n + j], c[i * n + j]);
                }
            }
        }
    }

    #[test]
    fn every_shape_has_exactly_the_bits_of_the_definition() {
        for (m, k, n) in [(1, 5, 3), (7, 33, 31), (13, 64, 32), (25, 128, 65), (40, 1500, 70), (300, 128, 96)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let mut want = random(m * n, 3);
            let mut got = want.clone();
            chain(&a, &b, &mut want, m, k, n);
            matmul(Lhs::rows(&a, k), &Packed::rows(&b, k, n), &mut got, m, true);
            assert_eq!(got, want, "{m} x {k} x {n}");

            let bt: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
            let at: Vec<f32> = (0..m * k).map(|i| a[(i % m) * k + i / m]).collect();
            let mut plain = vec![0f32; m * n];
            chain(&a, &b, &mut plain, m, k, n);
            let mut got = vec![f32::NAN; m * n];
            matmul(Lhs::transposed(&at, m), &Packed::transposed(&bt, n, k), &mut got, m, false);
            assert_eq!(got, plain, "transposed {m} x {k} x {n}");
        }
    }

    #[test]
    fn the_tiles_of_every_instruction_set_agree() {
        let (m, k, n) = (6, 37, 32);
        let (a, b) = (random(m * k, 1), random(k * n, 2));
        let packed = Packed::rows(&b, k, n);
        let mut want = vec![0f32; m * n];
        chain(&a, &b, &mut want, m, k, n);
        for width in [1usize, 15, 16, 17, 31, 32] {
            let mut got = vec![-1f32; m * n];
            for i in 0..m {
                // SAFETY: the buffers have the sizes named.
                unsafe {
                    tile_portable(
                        k,
                        a[i * k..].as_ptr(),
                        1,
                        packed.data.as_ptr(),
                        got[i * n..].as_mut_ptr(),
                        width,
                        false,
                    )
                };
            }
            let check = |got: &[f32], what: &str| {
                for i in 0..m {
                    assert_eq!(got[i * n..i * n + width], want[i * n..i * n + width], "{what} {width}");
                    assert!(
                        got[i * n + width..(i + 1) * n].iter().all(|x| *x == -1.0),
                        "{what} {width} wrote past its edge"
                    );
                }
            };
            check(&got, "portable");
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    let mut got = vec![-1f32; m * n];
                    // SAFETY: as above, and the processor was asked.
                    unsafe {
                        x86::tile256::<6>(k, a.as_ptr(), k, 1, packed.data.as_ptr(), got.as_mut_ptr(), n, width, false)
                    };
                    check(&got, "avx2");
                }
                if is_x86_feature_detected!("avx512f") {
                    let mut got = vec![-1f32; m * n];
                    // SAFETY: as above, and the processor was asked.
                    unsafe {
                        x86::tile512::<6>(k, a.as_ptr(), k, 1, packed.data.as_ptr(), got.as_mut_ptr(), n, width, false)
                    };
                    check(&got, "avx512");
                }
            }
        }
    }
}
