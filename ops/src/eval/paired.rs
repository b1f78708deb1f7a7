//! Two policies on the same tasks: differences, and whether more than chance made one of them win.
//!
//! Invariants: only tasks that both sides played are compared, and how many were left out is counted; a task is the same
//! where environment, id and seed are; what repeats of a task would make dependent (McNemar's test) is left out.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::counts::Counting;
use super::scores::TaskScore;
use super::stats::{self, Interval, Method};

/// Numbers that every task has.
pub const PER_TASK: [&str; 3] = ["success", "score", "steps"];

/// A policy against a baseline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paired {
    /// Tasks that both sides played.
    pub tasks: usize,
    /// Tasks that the policy alone played; they are left out.
    pub only_policy: usize,
    /// Tasks that the baseline alone played; they are left out.
    pub only_baseline: usize,
    /// `success`, `score`, `steps`.
    pub metrics: BTreeMap<String, Difference>,
    /// Left out where a task was played more than once on a side.
    pub mcnemar: Option<McNemar>,
}

/// One number on both sides, over the tasks that both played; each task counts once, with its mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub policy: f64,
    pub baseline: f64,
    /// Policy minus baseline.
    pub difference: f64,
    /// Bootstrap over tasks; left out of fewer than two.
    pub interval: Option<Interval>,
}

/// The exact McNemar test of success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McNemar {
    /// Tasks that both won.
    pub both: usize,
    /// Tasks that the policy alone won.
    pub b: usize,
    /// Tasks that the baseline alone won.
    pub c: usize,
    /// Tasks that neither won.
    pub neither: usize,
    /// Two-sided.
    pub p: f64,
}

/// Tasks of two sides.
pub(super) struct Shared<'a> {
    /// In the order of the first side.
    pub both: Vec<(&'a TaskScore, &'a TaskScore)>,
    pub only_first: usize,
    pub only_second: usize,
}

/// The tasks that both sides played.
pub(super) fn shared<'a>(first: &'a [TaskScore], second: &'a [TaskScore]) -> Shared<'a> {
    let theirs: HashMap<_, &TaskScore> = second.iter().map(|t| (t.key(), t)).collect();
    let both: Vec<_> = first.iter().filter_map(|t| Some((t, *theirs.get(&t.key())?))).collect();
    Shared { only_first: first.len() - both.len(), only_second: second.len() - both.len(), both }
}

impl Paired {
    /// Compares. `Err` where no task was played by both, and says what each side played.
    pub(super) fn of(policy: &[TaskScore], baseline: &[TaskScore], counting: &Counting) -> Result<Paired, String> {
        let Shared { both, only_first, only_second } = shared(policy, baseline);
        if both.is_empty() {
            return Err(format!(
                "the episodes and the baseline share no task: the episodes are of {}, the baseline is of {}",
                told(policy),
                told(baseline)
            ));
        }
        let mut metrics = BTreeMap::new();
        for name in PER_TASK {
            let values: Vec<(f64, f64)> =
                both.iter().filter_map(|(p, b)| Some((p.value(name)?, b.value(name)?))).collect();
            let mean = |of: &dyn Fn(&(f64, f64)) -> f64| stats::mean(&values.iter().map(of).collect::<Vec<_>>());
            let differences: Vec<f64> = values.iter().map(|(p, b)| p - b).collect();
            let interval = stats::bootstrap(&differences, counting.resamples, counting.seed);
            if let (Some(policy), Some(baseline), Some(difference)) =
                (mean(&|v| v.0), mean(&|v| v.1), stats::mean(&differences))
            {
                let interval = interval.map(|found| Interval::new(found, Method::Bootstrap));
                metrics.insert(name.to_owned(), Difference { policy, baseline, difference, interval });
            }
        }
        Ok(Paired {
            tasks: both.len(),
            only_policy: only_first,
            only_baseline: only_second,
            metrics,
            mcnemar: mcnemar(&both),
        })
    }
}

fn mcnemar(both: &[(&TaskScore, &TaskScore)]) -> Option<McNemar> {
    let mut counts = [0; 4];
    for (policy, baseline) in both {
        let ([policy], [baseline]) = (policy.episodes.as_slice(), baseline.episodes.as_slice()) else { return None };
        counts[2 * usize::from(policy.success) + usize::from(baseline.success)] += 1;
    }
    let [neither, c, b, both] = counts;
    Some(McNemar { both, b, c, neither, p: stats::mcnemar(b, c) })
}

/// `12 tasks such as household id/0 (seed 7)`.
fn told(tasks: &[TaskScore]) -> String {
    let Some(first) = tasks.first() else { return "none".to_owned() };
    let seed = first.seed.map(|seed| format!(" (seed {seed})")).unwrap_or_default();
    let plural = if tasks.len() == 1 { "" } else { "s" };
    format!("{} task{plural} such as `{} {}`{seed}", tasks.len(), first.env, first.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::Scores;
    use crate::eval::scores::tests::{counting, episode};

    /// Ten tasks, of which these are won; each task takes as many steps as its number says.
    fn played(ids: std::ops::Range<usize>, won: &[usize]) -> Vec<TaskScore> {
        let episodes: Vec<_> = ids
            .map(|i| {
                let turns = vec![("look", true, "a mug"); i + 1 + usize::from(won.contains(&i))];
                episode(&format!("id/{i}"), "look", won.contains(&i), &turns)
            })
            .collect();
        Scores::of_episodes(&episodes, &counting()).per_task
    }

    #[test]
    fn a_policy_is_compared_with_its_baseline_on_shared_tasks_alone() {
        let found = Paired::of(&played(0..10, &[0, 1, 2, 3, 4, 9]), &played(2..13, &[2, 5]), &counting()).unwrap();
        assert_eq!((found.tasks, found.only_policy, found.only_baseline), (8, 2, 3));
        // on tasks 2 to 9: policy won 2, 3, 4, 9; baseline 2, 5
        let success = &found.metrics["success"];
        assert_eq!((success.policy, success.baseline, success.difference), (0.5, 0.25, 0.25));
        assert!((found.metrics["score"].difference - 0.25 * 0.75).abs() < 1e-12);
        assert!((found.metrics["steps"].difference - 0.25).abs() < 1e-12);
        let by_hand = [0.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 1.0];
        let want = stats::bootstrap(&by_hand, counting().resamples, counting().seed).unwrap();
        assert_eq!(success.interval, Some(Interval::new(want, Method::Bootstrap)));
        let mcnemar = found.mcnemar.unwrap();
        assert_eq!((mcnemar.both, mcnemar.b, mcnemar.c, mcnemar.neither), (1, 3, 1, 3));
        assert!((mcnemar.p - 2.0 * (1.0 + 4.0) / 16.0).abs() < 1e-12);
    }

    #[test]
    fn tasks_of_another_seed_are_other_tasks() {
        let ours = played(0..3, &[0]);
        let mut theirs = ours.clone();
        theirs.iter_mut().for_each(|t| t.seed = Some(7));
        assert_eq!(
            Paired::of(&ours, &theirs, &counting()).unwrap_err(),
            "the episodes and the baseline share no task: the episodes are of 3 tasks such as `household id/0`, the baseline \
             is of 3 tasks such as `household id/0` (seed 7)"
        );
    }

    #[test]
    fn repeats_are_compared_by_their_means_and_have_no_mcnemar() {
        let once = played(0..2, &[0]);
        let mut twice = once.clone();
        let mut lost = twice[0].episodes[0].clone();
        lost.success = false;
        twice[0].episodes.push(lost);
        let found = Paired::of(&twice, &once, &counting()).unwrap();
        assert_eq!((found.metrics["success"].difference, found.mcnemar), (-0.25, None));
    }

    #[test]
    fn a_single_task_bears_no_interval() {
        let found = Paired::of(&played(0..1, &[0]), &played(0..1, &[]), &counting()).unwrap();
        assert_eq!((found.metrics["success"].difference, found.metrics["success"].interval.clone()), (1.0, None));
        assert_eq!(found.mcnemar.unwrap().p, 1.0);
    }
}
