//! How alike two texts are, word by word: `token_set_ratio` of thefuzz 0.22.1, which rapidfuzz computes.
//!
//! Invariants: 0 to 100; the order of words and their repeats do not matter.

use std::collections::{BTreeSet, HashMap};

/// What is compared: letters and digits, lowercase; characters from U+0080 to U+00FF are dropped.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|c| !('\u{80}'..='\u{ff}').contains(c))
        .flat_map(|c| {
            let kept = if c.is_alphanumeric() || c == '_' { c } else { ' ' };
            kept.to_lowercase()
        })
        .collect()
}

/// 100 when all words of one text are among those of the other; 0 when either has none.
pub fn token_set_ratio(a: &str, b: &str) -> u32 {
    let (a, b) = (plain(a), plain(b));
    let a: BTreeSet<&str> = a.split_whitespace().collect();
    let b: BTreeSet<&str> = b.split_whitespace().collect();
    if a.is_empty() || b.is_empty() {
        return 0;
    }
    let common: Vec<&str> = a.intersection(&b).copied().collect();
    let only_a: Vec<&str> = a.difference(&b).copied().collect();
    let only_b: Vec<&str> = b.difference(&a).copied().collect();
    if !common.is_empty() && (only_a.is_empty() || only_b.is_empty()) {
        return 100;
    }
    let only_a: Vec<char> = only_a.join(" ").chars().collect();
    let only_b: Vec<char> = only_b.join(" ").chars().collect();
    let shared = common.join(" ").chars().count();
    // a space joins the common words to the others
    let space = usize::from(shared > 0);
    let (whole_a, whole_b) = (shared + space + only_a.len(), shared + space + only_b.len());
    let score = |distance: usize, length: usize| 100.0 - 100.0 * distance as f64 / length as f64;
    let distance = only_a.len() + only_b.len() - 2 * common_subsequence(&only_a, &only_b);
    let mut best = score(distance, whole_a + whole_b);
    if shared > 0 {
        best = best.max(score(space + only_a.len(), shared + whole_a));
        best = best.max(score(space + only_b.len(), shared + whole_b));
    }
    best.round_ties_even() as u32
}

/// Length of the longest common subsequence, 64 columns at a time: Hyyrö, "Bit-parallel LCS-length computation
/// revisited", 2004.
fn common_subsequence(a: &[char], b: &[char]) -> usize {
    let blocks = a.len().div_ceil(64);
    let mut masks: HashMap<char, Vec<u64>> = HashMap::new();
    for (i, c) in a.iter().enumerate() {
        masks.entry(*c).or_insert_with(|| vec![0; blocks])[i / 64] |= 1 << (i % 64);
    }
    let mut open = vec![u64::MAX; blocks];
    for c in b {
        let Some(mask) = masks.get(c) else { continue };
        let mut carry = false;
        for (row, mask) in open.iter_mut().zip(mask) {
            let hit = *row & mask;
            let (sum, first) = row.overflowing_add(hit);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            carry = first || second;
            *row = sum | (*row & !hit);
        }
    }
    // columns beyond the last never close: nothing matches there, and what is carried there is or-ed with its ones
    open.iter().map(|row| row.count_zeros() as usize).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(a: &[char], b: &[char]) -> usize {
        let mut row = vec![0usize; b.len() + 1];
        for x in a {
            let mut diagonal = 0;
            for (j, y) in b.iter().enumerate() {
                let above = row[j + 1];
                row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
                diagonal = above;
            }
        }
        row[b.len()]
    }

    proptest! {
        #[test]
        fn the_fast_subsequence_is_the_slow_one(a in "[abc]{0,200}", b in "[abc]{0,200}") {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            prop_assert_eq!(common_subsequence(&a, &b), naive(&a, &b));
        }

        #[test]
        fn any_two_texts_are_alike_from_0_to_100_and_either_way(a in ".{0,40}", b in ".{0,40}") {
            let score = token_set_ratio(&a, &b);
            prop_assert!(score <= 100);
            prop_assert_eq!(score, token_set_ratio(&b, &a));
        }
    }
}
