//! A small counter-based generator for worlds and random play.
//!
//! Invariant: number `n` of a generator depends on its key and on `n` alone, so tasks do not depend on their
//! neighbours and worlds are the same on every machine.

/// Draws number after number from a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    key: u64,
    drawn: u64,
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit over all.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Step of the counter; odd, so that it visits all of `u64`.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// A generator for these words: any change in any of them gives other numbers.
    pub fn of(words: &[u64]) -> Rng {
        let key = words.iter().fold(words.len() as u64, |key, word| mix(key.wrapping_add(STEP) ^ mix(*word)));
        Rng { key, drawn: 0 }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.drawn += 1;
        mix(self.key.wrapping_add(self.drawn.wrapping_mul(STEP)))
    }

    /// A number from 0 to `n - 1`.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "BUG: a choice among none");
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// True with a chance of `percent` in 100.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent as usize
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

    /// Any order, each as likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_first_release() {
        let mut rng = Rng::of(&[1, 2, 3]);
        assert_eq!([rng.bits(), rng.bits()], [15_805_195_602_745_993_416, 1_355_146_681_354_733_885]);
    }

    #[test]
    fn any_change_in_any_word_gives_other_numbers() {
        let keys = [&[][..], &[0], &[0, 0], &[1, 0], &[0, 1], &[1], &[2]];
        let mut firsts: Vec<u64> = keys.iter().map(|words| Rng::of(words).bits()).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), keys.len());
    }

    #[test]
    fn choices_follow_their_weights() {
        let mut rng = Rng::of(&[7]);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[rng.weighted([1, 0, 2].into_iter()).unwrap()] += 1;
        }
        assert!((900..1100).contains(&counts[0]) && counts[1] == 0, "{counts:?}");
        assert_eq!(rng.weighted([0, 0].into_iter()), None);
        assert!((0..1000).all(|_| (3..=5).contains(&rng.between(3, 5))));
    }
}
