//! The best products for some words, exactly, without reading most postings.
//!
//! Products are gone through in windows. In each, words whose best worth there cannot lift a product over the worst one
//! held, even all together, are not read but only asked about products that the other words name (MaxScore: Turtle and
//! Flood, "Query evaluation: strategies and optimizations", 1995; with block maxima as in Ding and Suel, 2011).
//!
//! Invariants: the answer is that of adding up every word for every product: highest score first, of equal ones the
//! product that comes first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::postings::Cursor;
use super::score::Worth;
use crate::env::EnvError;

/// Products in a window.
const WINDOW: u32 = 4096;
/// Sums in another order may differ in their last bits; bounds are raised by more than that.
const SLACK: f64 = 1.0 + 1e-12;

/// A word of a query.
pub struct Term<'m> {
    pub cursor: Cursor<'m>,
    /// Its idf, times how often the query has it.
    pub weight: f32,
    /// Highest score in the window.
    best: f64,
}

impl<'m> Term<'m> {
    pub fn new(cursor: Cursor<'m>, weight: f32) -> Term<'m> {
        Term { cursor, weight, best: 0.0 }
    }
}

/// The best `hits` products with their scores. `lengths` has the byte of every product.
///
/// # Errors
/// An index that contradicts itself.
pub fn best(mut terms: Vec<Term<'_>>, lengths: &[u8], worth: &Worth, hits: usize) -> Result<Vec<(u32, f32)>, EnvError> {
    let products = u32::try_from(lengths.len()).map_err(|_| super::postings::damaged())?;
    // the worst on top; scores are not negative, so their bits are in order
    let mut held: BinaryHeap<Reverse<(u32, Reverse<u32>)>> = BinaryHeap::new();
    let mut bar = if hits == 0 { f64::INFINITY } else { -1.0 };
    let mut sums = vec![0f64; WINDOW as usize];
    let mut named = vec![0u64; WINDOW as usize / 64];
    let mut reach = vec![0f64; terms.len()];
    let mut from = 0;
    while from < products {
        let to = products.min(from.saturating_add(WINDOW));
        for term in &mut terms {
            term.best = f64::from(term.weight * term.cursor.best(from, to)?);
        }
        terms.sort_by(|a, b| a.best.total_cmp(&b.best));
        // what the words up to each could give together
        let mut sum = 0.0;
        for (reach, term) in reach.iter_mut().zip(&terms) {
            sum += term.best;
            *reach = sum * SLACK;
        }
        let read = reach.partition_point(|reach| *reach <= bar);
        for term in &mut terms[read..] {
            let weight = term.weight;
            term.cursor.each(from, to, |id, count| {
                let slot = (id - from) as usize;
                sums[slot] += f64::from(weight * worth.of(count, lengths[id as usize]));
                named[slot / 64] |= 1 << (slot % 64);
            })?;
        }
        for (group, bits) in named.iter_mut().enumerate() {
            while *bits != 0 {
                let slot = group * 64 + bits.trailing_zeros() as usize;
                *bits &= *bits - 1;
                let mut sum = std::mem::take(&mut sums[slot]);
                let id = from + slot as u32;
                let mut left = read;
                while left > 0 && sum + reach[left - 1] > bar {
                    left -= 1;
                    let term = &mut terms[left];
                    if term.best > 0.0 {
                        let count = term.cursor.count(id)?;
                        if count > 0 {
                            sum += f64::from(term.weight * worth.of(count, lengths[id as usize]));
                        }
                    }
                }
                let score = sum as f32;
                // equal is not enough: it comes later
                if left == 0 && f64::from(score) > bar {
                    held.push(Reverse((score.to_bits(), Reverse(id))));
                    if held.len() > hits {
                        held.pop();
                    }
                    if held.len() == hits
                        && let Some(Reverse((bits, _))) = held.peek()
                    {
                        bar = f64::from(f32::from_bits(*bits));
                    }
                }
            }
        }
        from = to;
    }
    Ok(held.into_sorted_vec().into_iter().map(|Reverse((bits, Reverse(id)))| (id, f32::from_bits(bits))).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::postings::write;
    use super::super::score::encode_length;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn what_is_passed_over_would_not_have_been_among_the_best(
            seed in any::<u64>(),
            rates in prop::collection::vec(1u64..60, 1..9),
            hits in 0usize..60,
        ) {
            let mut rng = crate::rng::Rng::new(seed, 0);
            let products = 9000u32;
            let lengths: Vec<u8> = (0..products).map(|_| encode_length(rng.between(4, 90) as u32)).collect();
            let worth = Worth::new(u64::from(products), 300_000);
            let lists: Vec<Vec<(u32, u32)>> = rates
                .iter()
                .map(|rate| {
                    let has = |id| rng.percent(*rate).then(|| (id, if rng.percent(20) { 3 } else { 1 }));
                    (0..products).filter_map(has).collect()
                })
                .collect();
            let weights: Vec<f32> = lists.iter().map(|l| super::super::score::idf(9000, l.len() as u64)).collect();
            let mut all = vec![0f64; products as usize];
            for (list, weight) in lists.iter().zip(&weights) {
                for (id, count) in list {
                    all[*id as usize] += f64::from(weight * worth.of(*count, lengths[*id as usize]));
                }
            }
            let mut want: Vec<(u32, f32)> =
                all.iter().enumerate().filter(|(_, s)| **s > 0.0).map(|(id, s)| (id as u32, *s as f32)).collect();
            want.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            want.truncate(hits);
            let disk: Vec<(Vec<u8>, Vec<u8>)> = lists
                .iter()
                .map(|list| {
                    let (mut bytes, mut entries) = (Vec::new(), Vec::new());
                    write(list, &lengths, &worth, &mut bytes, &mut entries);
                    (bytes, entries)
                })
                .collect();
            let terms = lists.iter().zip(&weights).zip(&disk).map(|((list, weight), (bytes, entries))| {
                Term::new(Cursor::new(list.len(), products, bytes, entries).unwrap(), *weight)
            });
            prop_assert_eq!(best(terms.collect(), &lengths, &worth, hits).unwrap(), want);
        }
    }
}
