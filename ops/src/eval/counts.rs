//! Numbers of episodes, each a ratio of sums over tasks, with intervals that keep a task's episodes together.
//!
//! Invariants: one list of names for the whole and for each kind of task; a number whose denominator is 0 is `None`.

use std::collections::{BTreeMap, HashMap};

use super::stats::{self, Interval, Method};
use super::taxonomy::{Cause, Conduct};
use crate::artifact::{End, Episode, Task};

/// How episodes are counted.
#[derive(Clone, Copy, Debug)]
pub struct Counting {
    /// An episode loops when one (observation, action) occurs this often in it.
    pub loop_at: usize,
    /// Of the bootstrap; 0 makes no interval but Wilson's.
    pub resamples: usize,
    /// Of the bootstrap.
    pub seed: u64,
}

/// What makes two episodes ones of the same task.
pub(super) type Key<'a> = (&'a str, &'a str, Option<u64>);

pub(super) fn key(task: &Task) -> Key<'_> {
    (&task.env, &task.id, task.seed)
}

/// An episode with what was counted in it.
pub(super) struct Counted<'a> {
    pub episode: &'a Episode,
    pub conduct: Conduct,
    pub cause: Option<Cause>,
}

impl Counted<'_> {
    pub(super) fn of(episode: &Episode, loop_at: usize) -> Counted<'_> {
        let conduct = Conduct::of(episode, loop_at);
        Counted { episode, conduct, cause: Cause::of(episode, &conduct) }
    }

    /// What the episode adds to each number: name, numerator, denominator.
    fn parts(&self) -> Vec<(String, f64, f64)> {
        let Counted { episode: e, conduct, cause } = self;
        let share = |is: bool| f64::from(u8::from(is));
        let steps = e.turns.len() as f64;
        // an episode that was cut off by the context would pass for a short one
        let (whole, won) = (share(e.end != End::Context), share(e.success));
        let fixed = [
            ("success", won, 1.0),
            ("score", e.score, 1.0),
            ("return", e.turns.iter().map(|turn| turn.reward).sum(), 1.0),
            ("steps", steps * whole, whole),
            ("steps_won", steps * won, won),
            ("limit", share(e.end == End::Limit), 1.0),
            ("context", share(e.end == End::Context), 1.0),
            ("loops", share(conduct.looped), 1.0),
            ("loops_refused", share(conduct.looped_refused), 1.0),
            ("invalid", conduct.invalid as f64, steps),
            ("repeated", conduct.repeated as f64, steps),
            ("malformed", conduct.malformed as f64, steps),
            ("repeats_failed", conduct.repeats_failed as f64, steps),
            ("recovered", conduct.recovered as f64, conduct.refused_before as f64),
        ];
        let fixed = fixed.into_iter().map(|(name, above, below)| (name.to_owned(), above, below));
        let causes = Cause::ALL.into_iter().map(|c| (format!("failure_{}", c.name()), share(*cause == Some(c)), 1.0));
        fixed.chain(causes).collect()
    }
}

/// Numbers with their parts: what each task adds to numerator and denominator.
pub(super) struct Numbers {
    names: Vec<String>,
    parts: Vec<Vec<(f64, f64)>>,
    /// Of all episodes: won, and how many there are.
    won: (usize, usize),
    /// Every task was played once, so that episodes are independent.
    once: bool,
}

impl Numbers {
    pub(super) fn of(episodes: &[&Counted<'_>]) -> Numbers {
        let mut numbers = Numbers { names: Vec::new(), parts: Vec::new(), won: (0, episodes.len()), once: true };
        let mut places: HashMap<Key<'_>, usize> = HashMap::new();
        // by task: won, and how many there are
        let mut tries: Vec<(usize, usize)> = Vec::new();
        for counted in episodes {
            let place = *places.entry(key(&counted.episode.task)).or_insert(tries.len());
            if place == tries.len() {
                tries.push((0, 0));
            }
            tries[place].0 += usize::from(counted.episode.success);
            tries[place].1 += 1;
            numbers.won.0 += usize::from(counted.episode.success);
            for (at, (name, above, below)) in counted.parts().into_iter().enumerate() {
                if at == numbers.names.len() {
                    numbers.names.push(name);
                    numbers.parts.push(Vec::new());
                }
                numbers.parts[at].resize(tries.len(), (0.0, 0.0));
                let part = &mut numbers.parts[at][place];
                *part = (part.0 + above, part.1 + below);
            }
        }
        numbers.once = tries.iter().all(|(_, n)| *n == 1);
        let least = tries.iter().map(|(_, n)| *n).min().unwrap_or(0);
        for k in tries_told(least) {
            let parts = tries.iter().filter_map(|&(won, n)| Some((stats::success_at(k, won, n)?, 1.0)));
            numbers.parts.push(parts.collect());
            numbers.names.push(format!("success_at_{k}"));
        }
        numbers
    }

    /// Name -> number.
    pub(super) fn values(&self) -> BTreeMap<String, Option<f64>> {
        let value = |parts: &Vec<(f64, f64)>| {
            let sums = parts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
            (sums.1 > 0.0).then(|| sums.0 / sums.1)
        };
        self.names.iter().cloned().zip(self.parts.iter().map(value)).collect()
    }

    /// 95 % intervals. That of `success` is Wilson's where every task was played once, else the bootstrap's over tasks,
    /// as all others are.
    pub(super) fn intervals(&self, counting: &Counting) -> BTreeMap<String, Interval> {
        let found = stats::bootstrap_ratios(&self.parts, counting.resamples, counting.seed);
        let named = self.names.iter().cloned().zip(found);
        let mut intervals: BTreeMap<String, Interval> =
            named.filter_map(|(name, found)| Some((name, Interval::new(found?, Method::Bootstrap)))).collect();
        if let Some(wilson) = self.wilson() {
            intervals.insert("success".to_owned(), wilson);
        }
        intervals
    }

    /// The interval of success alone.
    pub(super) fn success_interval(&self, counting: &Counting) -> Option<Interval> {
        self.wilson().or_else(|| {
            let success = self.names.iter().position(|name| name == "success")?;
            let found = stats::bootstrap_ratios(&self.parts[success..=success], counting.resamples, counting.seed);
            Some(Interval::new(found.into_iter().next()??, Method::Bootstrap))
        })
    }

    fn wilson(&self) -> Option<Interval> {
        let (won, n) = self.won;
        Some(Interval::new(stats::wilson(won, n).filter(|_| self.once)?, Method::Wilson))
    }
}

/// How many tries success is told for: 2, 4, 8, ... and all that every task has; none where some task has one.
fn tries_told(least: usize) -> Vec<usize> {
    let mut told: Vec<usize> = std::iter::successors(Some(2), |k| Some(k * 2)).take_while(|k| *k < least).collect();
    if least > 1 {
        told.push(least);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_powers_of_two_and_all_there_are() {
        assert!(tries_told(0).is_empty());
        assert!(tries_told(1).is_empty());
        assert_eq!(tries_told(2), [2]);
        assert_eq!(tries_told(3), [2, 3]);
        assert_eq!(tries_told(8), [2, 4, 8]);
        assert_eq!(tries_told(9), [2, 4, 8, 9]);
    }
}
