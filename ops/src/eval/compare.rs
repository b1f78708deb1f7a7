//! Differences between two rows, paired by the label of the axis `over` (the seed) and the task.
//!
//! Invariants: only what both sides played is compared, and how much was left out is counted; each difference says how
//! its interval was made. The bootstrap resamples (seed, task) pairs: it speaks about other tasks for policies such as
//! these, so the per-seed differences stand beside it and tell whether the seeds agree.

use serde::{Deserialize, Serialize};

use super::paired::{Shared, shared};
use super::scores::Scores;
use super::stats::{self, Interval, Method};
use super::table::{Axis, Grid, Layout, Placed};

/// `a` minus `b` in one column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    pub a: String,
    pub b: String,
    pub column: Option<String>,
    pub metric: String,
    /// How many pairs stand behind the difference; of (seed, task) where `by_task`, of seeds otherwise.
    pub pairs: usize,
    pub by_task: bool,
    /// Tasks or seeds that only one side has.
    pub unpaired: usize,
    /// The mean of `a - b` over pairs; `None` where there is no pair.
    pub difference: Option<f64>,
    /// 95 %.
    pub interval: Option<Interval>,
    /// The mean difference of every label of the axis `over`.
    pub per_over: Vec<Difference>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub over: Option<String>,
    pub difference: f64,
}

impl Comparison {
    /// In how many labels of the axis `over` side `a` has the higher number.
    pub fn higher(&self) -> usize {
        self.per_over.iter().filter(|d| d.difference > 0.0).count()
    }
}

/// Every comparison: as listed, then by metric, then by column.
pub(super) fn all(grid: &Grid<'_>, rows: &Axis, columns: Option<&Axis>, layout: &Layout) -> Vec<Comparison> {
    let width = columns.map_or(1, |c| c.labels.len());
    let mut found = Vec::new();
    for metric in &layout.metrics {
        for [a, b] in &layout.compare {
            for at in 0..width {
                let cell = |row: &String| {
                    let row = rows.labels.iter().position(|label| label == row);
                    row.map_or(&[][..], |row| grid.results[row * width + at].as_slice())
                };
                let mut comparison = of_cells(cell(a), cell(b), metric, layout);
                (comparison.a, comparison.b) = (a.clone(), b.clone());
                comparison.column = columns.map(|c| c.labels[at].clone());
                found.push(comparison);
            }
        }
    }
    found
}

/// Two results that belong together.
struct Partners<'a> {
    over: Option<&'a str>,
    a: &'a Scores,
    b: &'a Scores,
}

/// The results of two cells that belong together, and how many found no partner. A result without a label belongs to
/// every label of the other side: its step is not multiplied by the axis.
fn partners<'a>(a: &[Placed<'a>], b: &[Placed<'a>]) -> (Vec<Partners<'a>>, usize) {
    let meet = |x: &Placed<'_>, y: &Placed<'_>| x.over.is_none() || y.over.is_none() || x.over == y.over;
    let mut pairs = Vec::new();
    for x in a {
        for y in b.iter().filter(|y| meet(x, y)) {
            pairs.push(Partners { over: x.over.or(y.over), a: x.scores, b: y.scores });
        }
    }
    let alone = a.iter().filter(|x| b.iter().all(|y| !meet(x, y))).count()
        + b.iter().filter(|y| a.iter().all(|x| !meet(x, y))).count();
    (pairs, alone)
}

/// The differences of the tasks both sides played, in the order of `a`, and how many only one side played.
fn task_differences(a: &Scores, b: &Scores, metric: &str) -> (Vec<f64>, usize) {
    let Shared { both, only_first, only_second } = shared(&a.per_task, &b.per_task);
    let differences = both.iter().filter_map(|(x, y)| Some(x.value(metric)? - y.value(metric)?)).collect();
    (differences, only_first + only_second)
}

fn of_cells(a: &[Placed<'_>], b: &[Placed<'_>], metric: &str, layout: &Layout) -> Comparison {
    let (partners, alone) = partners(a, b);
    let by_task = a.iter().chain(b).any(|x| x.scores.by_task(metric))
        && partners.iter().all(|p| p.a.by_task(metric) && p.b.by_task(metric));
    let mut comparison = Comparison {
        a: String::new(),
        b: String::new(),
        column: None,
        metric: metric.to_owned(),
        pairs: 0,
        by_task,
        unpaired: if by_task { 0 } else { alone },
        difference: None,
        interval: None,
        per_over: Vec::new(),
    };
    let mut differences: Vec<f64> = Vec::new();
    for Partners { over, a, b } in partners {
        let found = if by_task {
            let (found, unpaired) = task_differences(a, b, metric);
            comparison.unpaired += unpaired;
            found
        } else {
            let value = |scores: &Scores| scores.metrics.get(metric).copied().flatten();
            let both = value(a).zip(value(b));
            comparison.unpaired += usize::from(both.is_none());
            both.map(|(x, y)| x - y).into_iter().collect()
        };
        if let Some(difference) = stats::mean(&found) {
            comparison.per_over.push(Difference { over: over.map(str::to_owned), difference });
        }
        differences.extend(found);
    }
    if by_task {
        let played = |cell: &[Placed<'_>], other: &[Placed<'_>]| -> usize {
            let lonely =
                |x: &&Placed<'_>| x.over.is_some() && other.iter().all(|y| y.over.is_some() && y.over != x.over);
            cell.iter().filter(lonely).map(|x| x.scores.per_task.len()).sum()
        };
        comparison.unpaired += played(a, b) + played(b, a);
    }
    comparison.pairs = differences.len();
    comparison.difference = stats::mean(&differences);
    comparison.interval = if by_task {
        let found = stats::bootstrap(&differences, layout.resamples, layout.seed);
        found.map(|found| Interval::new(found, Method::Bootstrap))
    } else if differences.len() < 3 {
        // with one degree of freedom the interval says more about Student's t than about the methods
        None
    } else {
        stats::t_interval(&differences).map(|found| Interval::new(found, Method::Student))
    };
    comparison
}

#[cfg(test)]
mod tests {
    use crate::eval::stats;
    use crate::eval::table::tests::{labelled, layout, results, scores};
    use crate::eval::table::{Labelled, Method, Table};

    use super::Comparison;

    fn compared(results: &[Labelled], pair: [&str; 2], metrics: &[&str]) -> Vec<Comparison> {
        let mut layout = layout();
        layout.compare = vec![pair.map(str::to_owned)];
        layout.metrics = metrics.iter().map(|m| (*m).to_owned()).collect();
        Table::build(results, &layout).unwrap().comparisons
    }

    #[test]
    fn pairs_are_of_equal_seed_and_task() {
        // act[0] wins 0 to 4, il[0] wins 0 to 3: one of ten differs. il[1] has no partner.
        let found = &compared(&results(), ["act", "il"], &["success"])[0];
        assert_eq!((found.pairs, found.unpaired, found.by_task), (10, 10, true));
        assert!((found.difference.unwrap() - 0.1).abs() < 1e-12);
        assert_eq!((found.per_over.len(), found.per_over[0].over.as_deref(), found.higher()), (1, Some("0"), 1));
        let interval = found.interval.clone().unwrap();
        let mut by_hand = vec![0.0; 10];
        by_hand[4] = 1.0;
        assert_eq!(interval.method, Method::Bootstrap);
        assert_eq!([interval.low, interval.high], stats::bootstrap(&by_hand, 500, 1).unwrap());
    }

    #[test]
    fn a_row_without_seeds_is_compared_with_every_seed_of_the_other() {
        let found = &compared(&results(), ["il", "base"], &["success"])[1];
        assert_eq!((found.pairs, found.unpaired), (20, 0));
        assert_eq!(found.per_over.iter().map(|d| d.over.as_deref()).collect::<Vec<_>>(), [Some("0"), Some("1")]);
        assert!((found.difference.unwrap() - 0.1).abs() < 1e-12);
    }

    #[test]
    fn a_missing_cell_gives_a_difference_that_is_missing_and_listed() {
        let found = &compared(&results(), ["act", "il"], &["success"])[1];
        assert_eq!((found.column.as_deref(), found.pairs, found.difference), (Some("ood"), 0, None));
        assert_eq!(found.unpaired, 20);
    }

    #[test]
    fn metrics_without_tasks_are_paired_by_seed_with_students_interval() {
        let with = |policy: &str, seed: &str, accuracy: f64| {
            let mut scores = scores(&[0]);
            scores.metrics.insert("critic_accuracy".to_owned(), Some(accuracy));
            labelled(&[("policy", policy), ("split", "id"), ("seed", seed)], scores)
        };
        let mut results = vec![with("a", "0", 0.7), with("a", "1", 0.8), with("b", "0", 0.6), with("b", "1", 0.5)];
        let found = &compared(&results, ["a", "b"], &["critic_accuracy"])[0];
        assert_eq!((found.pairs, found.interval.clone()), (2, None), "two seeds bear no interval");
        results.extend([with("a", "2", 0.9), with("b", "2", 0.7)]);
        let found = &compared(&results, ["a", "b"], &["critic_accuracy"])[0];
        assert_eq!((found.pairs, found.by_task, found.higher()), (3, false, 3));
        assert!((found.difference.unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(found.interval.clone().unwrap().method, Method::Student);
    }

    #[test]
    fn other_tasks_have_no_common_pair() {
        let mut other = scores(&[0, 1]);
        other.per_task.iter_mut().for_each(|t| t.id = format!("else/{}", t.id));
        let at = |policy, scores| labelled(&[("policy", policy), ("split", "id"), ("seed", "0")], scores);
        let found = &compared(&[at("a", scores(&[0])), at("b", other)], ["a", "b"], &["success"])[0];
        assert_eq!((found.pairs, found.unpaired, found.difference, found.interval.clone()), (0, 20, None, None));
    }
}
