//! Keys and values of sequences that grow, in pages that sequences share, and attention over them.
//!
//! Invariants: a query has the bits it has in a packed row (`attention`), for its scores are the same chains, its softmax
//! runs over the same list, and its output is the same chain, wherever pages begin; a page that two sequences hold is
//! never written; a clone copies no key.
//!
//! Keys and values lie in the panels of `matmul`, so attention is products of its register tiles:
//! scores (queries, keys) = q K^T with K^T as `[d][32 keys]`, output (queries, d) = p V with V as `[keys][32 of d]`.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::attention::{Heads, softmax};
use super::matmul::{NR, strip};
use super::simd::versions;

/// Tokens of a page.
pub const PAGE: usize = 64;
/// Queries that read a page together.
const BLOCK: usize = 12;
/// So few queries wait for memory, not for arithmetic.
const FEW: usize = 4;
/// Keys that are asked for ahead.
const AHEAD: usize = 64;

/// Bytes of free pages that a pool keeps.
const KEPT: usize = 64 << 20;

/// Where the pages of a model come from and go back to: what one sequence gave back the next one takes. A few are kept
/// from one call of the sampler to the next; the allocator would give them to the system and fetch them again.
#[derive(Debug, Default)]
pub struct Pool {
    free: Mutex<Vec<Vec<f32>>>,
}

impl Pool {
    fn take(&self, size: usize) -> Vec<f32> {
        let found = self.free.lock().ok().and_then(|mut free| free.pop());
        found.filter(|data| data.len() == size).unwrap_or_else(|| vec![0.0; size])
    }
}

/// Keys (hk, 2, d, 32) and values (hk, ceil(d / 32), 64, 32) of up to 64 tokens in one layer.
#[derive(Debug)]
struct Page {
    data: Vec<f32>,
    home: Arc<Pool>,
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Ok(mut free) = self.home.free.lock()
            && (free.len() + 1) * self.data.len() * size_of::<f32>() <= KEPT
        {
            free.push(std::mem::take(&mut self.data));
        }
    }
}

/// Offsets within a page.
#[derive(Clone, Copy)]
struct Plan {
    hk: usize,
    d: usize,
}

impl Plan {
    fn value_panels(self) -> usize {
        self.d.div_ceil(NR)
    }

    /// 32 keys of head `g`, `[d][32]`.
    fn keys(self, g: usize, half: usize) -> usize {
        (g * (PAGE / NR) + half) * self.d * NR
    }

    /// 32 dimensions of the values of head `g`, `[64][32]`.
    fn values(self, g: usize, panel: usize) -> usize {
        self.hk * PAGE * self.d + (g * self.value_panels() + panel) * PAGE * NR
    }

    fn size(self) -> usize {
        self.values(self.hk, 0)
    }
}

/// Keys and values of one sequence in one layer. A clone shares all pages and copies the last one when it is written.
#[derive(Clone, Debug, Default)]
pub struct LayerCache {
    pages: Vec<Arc<Page>>,
    len: usize,
    pool: Arc<Pool>,
}

impl LayerCache {
    pub fn new(pool: Arc<Pool>) -> Self {
        LayerCache { pages: Vec::new(), len: 0, pool }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// 32 keys of head `g`, that of token `key` the first.
    fn keys(&self, plan: Plan, g: usize, key: usize) -> &[f32] {
        &self.pages[key / PAGE].data[plan.keys(g, key % PAGE / NR)..][..plan.d * NR]
    }

    /// 32 dimensions of the values of head `g` in a page.
    fn values(&self, plan: Plan, g: usize, page: usize, panel: usize) -> &[f32] {
        &self.pages[page].data[plan.values(g, panel)..][..PAGE * NR]
    }

    /// The page that the next token goes to, this sequence's alone.
    fn open(&mut self, plan: Plan) -> &mut [f32] {
        let fresh = |pool: &Arc<Pool>| Page { data: pool.take(plan.size()), home: pool.clone() };
        if self.len.is_multiple_of(PAGE) {
            self.pages.push(Arc::new(fresh(&self.pool)));
        } else if let Some(last) = self.pages.last_mut()
            && Arc::get_mut(last).is_none()
        {
            let mut copy = fresh(&self.pool);
            copy.data.copy_from_slice(&last.data);
            *last = Arc::new(copy);
        }
        match self.pages.last_mut().and_then(Arc::get_mut) {
            Some(page) => &mut page.data,
            None => panic!("BUG: the last page of a cache is shared"),
        }
    }

    /// Appends rows of keys and values, (rows, hk, d) each.
    pub fn append(&mut self, k: &[f32], v: &[f32], heads: Heads) {
        let Heads { hk, d, .. } = heads;
        let plan = Plan { hk, d };
        let width = hk * d;
        let rows = k.len() / width;
        let mut row = 0;
        while row < rows {
            let at = self.len % PAGE;
            let half = at / NR;
            // a run within one panel of keys
            let run = (NR - at % NR).min(rows - row);
            let (k, v) = (&k[row * width..(row + run) * width], &v[row * width..(row + run) * width]);
            let page = self.open(plan);
            for g in 0..hk {
                let panel = &mut page[plan.keys(g, half)..][..d * NR];
                for (i, column) in panel.chunks_exact_mut(NR).enumerate() {
                    for (j, x) in column[at % NR..][..run].iter_mut().enumerate() {
                        *x = k[j * width + g * d + i];
                    }
                }
                for (p, i) in (0..d).step_by(NR).enumerate() {
                    let n = NR.min(d - i);
                    let panel = &mut page[plan.values(g, p)..][..PAGE * NR];
                    for j in 0..run {
                        panel[(at + j) * NR..][..n].copy_from_slice(&v[j * width + g * d + i..][..n]);
                    }
                }
            }
            self.len += run;
            row += run;
        }
    }
}

versions! {
/// `attention::softmax` of the part `seen`; the rest becomes 0. Returns 1 / sum.
fn weigh(s: &mut [f32], seen: Range<usize>) -> f32 {
    let (_, inverse) = softmax(&mut s[seen.start..seen.end]);
    s[..seen.start].fill(0.0);
    s[seen.end..].fill(0.0);
    inverse
}
}

/// Asks for memory that is read soon.
fn prefetch(data: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in data.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint about memory that the slice holds.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Buffers of [`cached`], kept between calls.
#[derive(Default)]
pub struct Scratch {
    q: Vec<f32>,
    s: Vec<f32>,
    out: Vec<f32>,
}

/// The last `q.len() / (h d)` tokens of a cached sequence attend to it, causally. `q` and `out` are (rows, h, d).
pub fn cached(q: &[f32], cache: &LayerCache, heads: Heads, scratch: &mut Scratch, out: &mut [f32]) {
    let Heads { h, hk, d, window } = heads;
    let plan = Plan { hk, d };
    let (group, rows) = (h / hk, q.len() / (h * d));
    let first = cache.len - rows;
    let step = (BLOCK / group).max(1);
    for t0 in (0..rows).step_by(step) {
        let tokens = step.min(rows - t0);
        // keys begin..end are seen by some query of the block; `begin` lies at the start of a panel
        let start = |t: usize| window.map_or(0, |w| (first + t + 1).saturating_sub(w));
        let (begin, end) = (start(t0) / NR * NR, first + t0 + tokens);
        let stride = (end - begin).next_multiple_of(NR);
        let m = tokens * group;
        scratch.q.resize(m * d, 0.0);
        scratch.s.resize(m * stride, 0.0);
        scratch.out.resize(m * d, 0.0);
        for g in 0..hk {
            // 1. the queries of the heads that share keys, scaled: (tokens, group, d)
            for (t, to) in scratch.q.chunks_exact_mut(group * d).enumerate() {
                let from = &q[((t0 + t) * h + g * group) * d..][..group * d];
                to.iter_mut().zip(from).for_each(|(to, q)| *to = q * heads.scale());
            }
            // 2. scores
            for key in (begin..end).step_by(NR) {
                let panel = cache.keys(plan, g, key);
                if m <= FEW && key + AHEAD < end {
                    prefetch(cache.keys(plan, g, key + AHEAD));
                }
                // SAFETY: m rows of d queries, a panel of d x 32, and m rows of scores with room for 32 at `key`.
                unsafe {
                    let s = scratch.s.as_mut_ptr().add(key - begin);
                    strip(0..m, d, scratch.q.as_ptr(), d, 1, panel.as_ptr(), s, stride, NR, false);
                }
            }
            // 3. softmax over what each query sees; what it does not see weighs 0 and changes no bit of a sum
            let mut inverse = [0f32; 256];
            for (r, s) in scratch.s.chunks_exact_mut(stride).enumerate() {
                let t = t0 + r / group;
                let seen = start(t) - begin..first + t + 1 - begin;
                inverse[r] = weigh(s, seen);
            }
            // 4. weighted values
            for page in begin / PAGE..end.div_ceil(PAGE) {
                let keys = begin.max(page * PAGE)..end.min((page + 1) * PAGE);
                for panel in 0..plan.value_panels() {
                    let width = NR.min(d - panel * NR);
                    let values = cache.values(plan, g, page, panel);
                    if m <= FEW && page + 1 < end.div_ceil(PAGE) {
                        prefetch(cache.values(plan, g, page + 1, panel));
                    }
                    let values = &values[(keys.start - page * PAGE) * NR..];
                    // SAFETY: m rows of scores from `keys.start` on, as many rows of 32 values, m rows of `width` outputs.
                    unsafe {
                        let s = scratch.s.as_ptr().add(keys.start - begin);
                        let o = scratch.out.as_mut_ptr().add(panel * NR);
                        strip(0..m, keys.len(), s, stride, 1, values.as_ptr(), o, d, width, keys.start > begin);
                    }
                }
            }
            for (r, o) in scratch.out.chunks_exact(d).enumerate() {
                let to = &mut out[((t0 + r / group) * h + g * group + r % group) * d..][..d];
                to.iter_mut().zip(o).for_each(|(to, o)| *to = o * inverse[r]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Packing;
    use crate::nn::cpu::packed;
    use crate::rng::Rng;

    #[test]
    fn a_cache_filled_in_any_pieces_forked_or_cut_has_the_bits_of_packed_attention() {
        for (h, hk, d, window) in [(4, 2, 64, None), (3, 3, 20, None), (8, 1, 48, Some(37)), (2, 1, 32, Some(70))] {
            let heads = Heads { h, hk, d, window };
            let n = 200;
            let mut rng = Rng::new(7, h as u64);
            let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
            let (q, k, v) = (random(n * h * d), random(n * hk * d), random(n * hk * d));
            let (mut want, mut stats) = (vec![0f32; n * h * d], vec![0f32; n * h * 2]);
            packed::forward(&q, &k, &v, &Packing::single(n), heads, &mut want, &mut stats);
            let (kv, width, mut scratch) = (hk * d, h * d, Scratch::default());
            let mut run = |cache: &mut LayerCache, rows: Range<usize>| {
                let mut out = vec![f32::NAN; rows.len() * width];
                cache.append(&k[rows.start * kv..rows.end * kv], &v[rows.start * kv..rows.end * kv], heads);
                cached(&q[rows.start * width..rows.end * width], cache, heads, &mut scratch, &mut out);
                assert_eq!(out, want[rows.start * width..rows.end * width], "{heads:?} {rows:?}");
            };
            for pieces in [vec![0, n], vec![0, 1, 40, 64, 65, 130, 199, n], (0..=n).collect()] {
                let mut cache = LayerCache::default();
                pieces.windows(2).for_each(|p| run(&mut cache, p[0]..p[1]));
            }
            // two that fork within a page, and one that is cut back
            let mut one = LayerCache::default();
            run(&mut one, 0..70);
            let mut two = one.clone();
            run(&mut one, 70..n);
            let noise: Vec<f32> = k[..20 * kv].to_vec();
            two.append(&noise, &noise, heads);
            two.truncate(70);
            run(&mut two, 70..n);
        }
    }

    #[test]
    fn pages_of_a_sequence_that_ends_are_used_again() {
        let pool = Arc::new(Pool::default());
        let heads = Heads { h: 1, hk: 1, d: 8, window: None };
        let x = vec![1f32; 8 * 130];
        let mut pages = Vec::new();
        for _ in 0..3 {
            let mut cache = LayerCache::new(pool.clone());
            cache.append(&x, &x, heads);
            pages.push(cache.pages.iter().map(|p| p.data.as_ptr() as usize).collect::<std::collections::BTreeSet<_>>());
        }
        assert_eq!(pages[0].len(), 3);
        assert!(pages.iter().all(|p| *p == pages[0]));
    }
}
