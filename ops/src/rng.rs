//! The one generator of random numbers: Philox 4x32-10, counter-based.
//!
//! Invariants: a stream is a pure function of (seed, stream), so nothing depends on the order in which streams are
//! used; a checkpoint never stores generator state. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    seed: u64,
    stream: u64,
    counter: u64,
    block: [u32; 4],
    used: usize,
}

fn round(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    let p0 = u64::from(c[0]) * 0xD251_1F53;
    let p1 = u64::from(c[2]) * 0xCD9E_8D57;
    [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32]
}

/// Ten rounds of Philox 4x32.
fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for i in 0..10 {
        if i > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c = round(c, k);
    }
    c
}

/// The `counter`-th block of words of the stream `stream` of `seed`, counted from 0.
pub fn block(seed: u64, stream: u64, counter: u64) -> [u32; 4] {
    let two = |x: u64| [x as u32, (x >> 32) as u32];
    let ([a, b], [c, d]) = (two(counter), two(stream));
    philox([a, b, c, d], two(seed))
}

impl Rng {
    /// The stream `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Rng { seed, stream, counter: 0, block: [0; 4], used: 4 }
    }

    /// A stream named by several numbers, such as (epoch, index).
    pub fn at(seed: u64, path: &[u64]) -> Self {
        let mut stream = 0x9E37_79B9_7F4A_7C15u64;
        for part in path {
            // splitmix64's mixer: one-to-one, so paths of equal length never collide in one step
            stream = (stream ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
            stream = (stream ^ (stream >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            stream = (stream ^ (stream >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            stream ^= stream >> 31;
        }
        Rng::new(seed, stream)
    }

    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = block(self.seed, self.stream, self.counter);
            self.counter += 1;
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// (seed, stream, uniform numbers drawn so far), for a device that draws the next one.
    ///
    /// # Panics
    /// Where something else than whole pairs of words was drawn: a bug in the caller.
    pub fn place(&self) -> (u64, u64, u64) {
        let words = self.counter * 4 - (4 - self.used as u64);
        assert!(words.is_multiple_of(2), "BUG: half a uniform number was drawn");
        (self.seed, self.stream, words / 2)
    }

    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n, without bias.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "BUG: a number below 0 was asked for");
        let n = n as u64;
        let zone = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let x = self.next_u64();
            if x <= zone {
                return (x % n) as usize;
            }
        }
    }

    /// Uniform in low..=high, without bias.
    ///
    /// # Panics
    /// When `high` is below `low`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True with a chance of `percent` in 100.
    pub fn percent(&mut self, percent: u64) -> bool {
        (self.below(100) as u64) < percent
    }

    /// An index, as likely as its weight; `None` where all weights are 0.
    pub fn weighted(&mut self, weights: impl Iterator<Item = u64> + Clone) -> Option<usize> {
        let total: u64 = weights.clone().sum();
        if total == 0 {
            return None;
        }
        let mut left = self.below(total as usize) as u64;
        for (index, weight) in weights.enumerate() {
            if left < weight {
                return Some(index);
            }
            left -= weight;
        }
        None
    }

    /// Standard normal, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.uniform();
        (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_uniform_numbers() {
        let mut rng = Rng::new(u64::MAX - 5, 7);
        for n in 0..9 {
            assert_eq!(rng.place(), (u64::MAX - 5, 7, n));
            rng.uniform();
        }
    }

    #[test]
    fn philox_gives_the_published_vectors() {
        // known-answer vectors of Random123
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn streams_do_not_depend_on_one_another_and_moments_are_right() {
        let mut a = Rng::at(7, &[1, 2]);
        let mut b = Rng::at(7, &[2, 1]);
        assert_ne!(a.next_u64(), b.next_u64());
        let n = 20_000;
        let mut r = Rng::new(3, 0);
        let xs: Vec<f64> = (0..n).map(|_| r.normal()).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let var = xs.iter().map(|x| x * x).sum::<f64>() / n as f64 - mean * mean;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "mean {mean}, variance {var}");
    }

    #[test]
    fn any_change_in_any_word_of_a_path_gives_other_numbers() {
        let paths = [&[][..], &[0], &[0, 0], &[1, 0], &[0, 1], &[1], &[2]];
        let mut firsts: Vec<u64> = paths.iter().map(|path| Rng::at(0, path).next_u64()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), paths.len());
    }

    #[test]
    fn choices_follow_their_weights() {
        let mut rng = Rng::at(0, &[7]);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[rng.weighted([1, 0, 2].into_iter()).unwrap()] += 1;
        }
        assert!((900..1100).contains(&counts[0]) && counts[1] == 0, "{counts:?}");
        assert_eq!(rng.weighted([0, 0].into_iter()), None);
        assert!((0..1000).all(|_| (3..=5).contains(&rng.between(3, 5))));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::new(1, 1).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
