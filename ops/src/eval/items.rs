//! Scores of questions that are put and not played: a critic's pairs, the states of an expert.
//!
//! Invariants: every item has the same numbers in the same order, and each number is a ratio of sums over items; a number
//! whose denominator is 0 is `None`; an item is what intervals resample and comparisons pair, so all that belongs together
//! (both orders of a pair) is one, and items are taken as independent of each other.

use std::collections::BTreeMap;

use super::scores::{KindScore, Scores, TaskScore};
use super::stats::{self, Interval, Method};
use super::table::is_share;
use crate::artifact::Task;

/// Resamples behind an interval.
const RESAMPLES: usize = 10_000;

/// What one item adds to a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    name: &'static str,
    above: f64,
    below: f64,
}

impl Part {
    /// `above`: the sum over the item's answers; `below`: how many of them the number is about.
    pub fn new(name: &'static str, above: f64, below: f64) -> Part {
        Part { name, above, below }
    }
}

/// One item.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// Where its state is of.
    pub task: &'a Task,
    /// Tells it from all others of the task.
    pub id: String,
    pub parts: Vec<Part>,
}

impl Scores {
    /// Counts items. `main` is the number that stands for all where only one can: by kind of task.
    pub fn of_items(items: &[Item<'_>], main: &str, seed: u64) -> Scores {
        let all: Vec<&Item<'_>> = items.iter().collect();
        let mut kinds: BTreeMap<&str, Vec<&Item<'_>>> = BTreeMap::new();
        for item in items {
            kinds.entry(&item.task.kind).or_default().push(item);
        }
        let by_kind = kinds.into_iter().filter_map(|(kind, of)| {
            let numbers = Numbers::of(&of);
            let at = numbers.names.iter().position(|name| *name == main)?;
            let success = ratio(&numbers.parts[at])?;
            let episodes = numbers.parts[at].iter().map(|part| part.1).sum::<f64>() as usize;
            let interval = numbers.intervals(at..at + 1, seed).remove(main);
            Some((kind.to_owned(), KindScore { episodes, success, interval, metrics: numbers.values() }))
        });
        let numbers = Numbers::of(&all);
        Scores {
            intervals: numbers.intervals(0..numbers.names.len(), seed),
            by_kind: by_kind.collect(),
            per_task: items.iter().map(listed).collect(),
            ..Scores::of_metrics(numbers.values())
        }
    }
}

/// An item as the scores file lists it.
fn listed(item: &Item<'_>) -> TaskScore {
    let values = item.parts.iter().filter_map(|part| Some((part.name.to_owned(), ratio(&[(part.above, part.below)])?)));
    TaskScore {
        env: item.task.env.clone(),
        id: item.id.clone(),
        seed: item.task.seed,
        kind: item.task.kind.clone(),
        episodes: Vec::new(),
        values: values.collect(),
    }
}

fn ratio(parts: &[(f64, f64)]) -> Option<f64> {
    let sums = parts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    (sums.1 > 0.0).then(|| sums.0 / sums.1)
}

/// Numbers by name, each with what every item adds to numerator and denominator.
struct Numbers {
    names: Vec<&'static str>,
    parts: Vec<Vec<(f64, f64)>>,
}

impl Numbers {
    fn of(items: &[&Item<'_>]) -> Numbers {
        let names = items.first().map_or_else(Vec::new, |item| item.parts.iter().map(|part| part.name).collect());
        let mut parts = vec![Vec::with_capacity(items.len()); names.len()];
        for item in items {
            for (parts, part) in parts.iter_mut().zip(&item.parts) {
                parts.push((part.above, part.below));
            }
        }
        Numbers { names, parts }
    }

    fn values(&self) -> BTreeMap<String, Option<f64>> {
        self.names.iter().map(|name| (*name).to_owned()).zip(self.parts.iter().map(|parts| ratio(parts))).collect()
    }

    /// 95 % intervals of some of the numbers. That of a share to which no item adds more than one answer is Wilson's, any
    /// other the bootstrap's over items.
    fn intervals(&self, which: std::ops::Range<usize>, seed: u64) -> BTreeMap<String, Interval> {
        let single = |at: usize| is_share(self.names[at]) && self.parts[at].iter().all(|part| part.1 <= 1.0);
        let (single, resampled): (Vec<usize>, Vec<usize>) = which.partition(|at| single(*at));
        let wilson = single.into_iter().map(|at| {
            let sum = |of: fn(&(f64, f64)) -> f64| self.parts[at].iter().map(of).sum::<f64>() as usize;
            (at, stats::wilson(sum(|part| part.0), sum(|part| part.1)), Method::Wilson)
        });
        let parts: Vec<Vec<(f64, f64)>> = resampled.iter().map(|at| self.parts[*at].clone()).collect();
        let drawn = stats::bootstrap_ratios(&parts, RESAMPLES, seed);
        let drawn = resampled.into_iter().zip(drawn).map(|(at, drawn)| (at, drawn, Method::Bootstrap));
        let named = |(at, bounds, method): (usize, Option<[f64; 2]>, Method)| {
            Some((self.names[at].to_owned(), Interval::new(bounds?, method)))
        };
        wilson.chain(drawn).filter_map(named).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::episode;

    #[test]
    fn items_count_up_by_hand_and_keep_their_answers_together() {
        let tasks = [episode("id/0", "look", true, &[]).task, episode("id/1", "heat", true, &[]).task];
        let item = |task: usize, id: &str, right: f64, asked: f64, both: f64| Item {
            task: &tasks[task],
            id: id.to_owned(),
            parts: vec![Part::new("accuracy", right, asked), Part::new("consistent", both, f64::from(asked == 2.0))],
        };
        let items = [item(0, "a", 2.0, 2.0, 1.0), item(0, "b", 1.0, 2.0, 0.0), item(1, "c", 0.0, 1.0, 0.0)];
        let scores = Scores::of_items(&items, "accuracy", 1);
        assert_eq!((scores.metrics["accuracy"], scores.metrics["consistent"]), (Some(0.6), Some(0.5)));
        let bootstrap = stats::bootstrap_ratios(&[vec![(2.0, 2.0), (1.0, 2.0), (0.0, 1.0)]], RESAMPLES, 1)[0];
        assert_eq!(scores.intervals["accuracy"], Interval::new(bootstrap.unwrap(), Method::Bootstrap));
        assert_eq!(scores.intervals["consistent"], Interval::new(stats::wilson(1, 2).unwrap(), Method::Wilson));
        assert_eq!((scores.by_kind["look"].success, scores.by_kind["look"].episodes), (0.75, 4));
        assert_eq!((scores.by_kind["heat"].episodes, scores.by_kind["heat"].metrics["consistent"]), (1, None));
        let ids: Vec<_> = scores.per_task.iter().map(|t| (t.id.as_str(), t.value("accuracy"))).collect();
        assert_eq!(ids, [("a", Some(1.0)), ("b", Some(0.5)), ("c", Some(0.0))]);
        assert_eq!(scores.per_task[2].value("consistent"), None, "it was asked in one order");
        assert_eq!(Scores::of_items(&[], "accuracy", 1).metrics, BTreeMap::new());
    }
}
