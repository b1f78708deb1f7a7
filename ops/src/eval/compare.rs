//! Differences between two rows, paired by the label of the axis `over` (the seed) and the task.
//!
//! Invariants: only what both sides played is compared, and how much was left out is counted; each difference says how
//! its interval was made. The bootstrap resamples labels, and the tasks of each: tasks of one seed share a policy and are
//! not independent. With one label it resamples tasks, and speaks about other tasks for these two policies alone. With
//! few labels it is still too narrow where they differ (the tests and docs/src/evaluation.md say how much), so the
//! differences of all labels and their standard error stand beside it.

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
    /// The standard error of the mean of `per_over`, from three labels on.
    #[serde(default)]
    pub se_over: Option<f64>,
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
        se_over: None,
    };
    let mut groups: Vec<Vec<f64>> = Vec::new();
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
        groups.push(found);
    }
    if by_task {
        let played = |cell: &[Placed<'_>], other: &[Placed<'_>]| -> usize {
            let lonely =
                |x: &&Placed<'_>| x.over.is_some() && other.iter().all(|y| y.over.is_some() && y.over != x.over);
            cell.iter().filter(lonely).map(|x| x.scores.per_task.len()).sum()
        };
        comparison.unpaired += played(a, b) + played(b, a);
    }
    let each: Vec<f64> = comparison.per_over.iter().map(|d| d.difference).collect();
    if each.len() >= 3 {
        comparison.se_over = stats::sample_std(&each).map(|std| std / (each.len() as f64).sqrt());
    }
    let differences = groups.concat();
    comparison.pairs = differences.len();
    comparison.difference = stats::mean(&differences);
    comparison.interval = if by_task {
        let found = stats::bootstrap_groups(&groups, layout.resamples, layout.seed);
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
    use crate::rng::Rng;

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
    fn seeds_that_disagree_widen_the_interval_and_have_a_standard_error() {
        // `a` wins all tasks of one seed that `b` loses, and is as good in the others
        let all: Vec<usize> = (0..10).collect();
        let at = |policy: &str, seed: &str, won: &[usize]| {
            labelled(&[("policy", policy), ("split", "id"), ("seed", seed)], scores(won))
        };
        let mut results = vec![at("a", "0", &all), at("b", "0", &[])];
        for seed in ["1", "2", "3"] {
            results.extend([at("a", seed, &[2, 3]), at("b", seed, &[2, 3])]);
        }
        let found = &compared(&results, ["a", "b"], &["success"])[0];
        let interval = found.interval.clone().unwrap();
        // three of four seeds say 0: a resample without the first one is not rare
        assert_eq!((found.pairs, found.difference, interval.low), (40, Some(0.25), 0.0));
        assert!(interval.high >= 0.5, "{interval:?}");
        let flat = [vec![1.0; 10], vec![0.0; 30]].concat();
        assert!(stats::bootstrap(&flat, 500, 1).unwrap()[0] > 0.1, "pairs as if they were independent");
        assert!((found.se_over.unwrap() - 0.25).abs() < 1e-12, "{:?}", found.se_over);
        assert_eq!(compared(&results[..4], ["a", "b"], &["success"])[0].se_over, None, "of two seeds there is none");
    }

    /// The share of simulated studies whose interval holds the truth: a seed's difference is normal around it with
    /// deviation `spread`, a task's around its seed's with deviation 1.
    fn coverage(seeds: usize, spread: f64, whole: bool) -> f64 {
        const STUDIES: u64 = 400;
        let holds = |study: u64| {
            let mut rng = Rng::at(5, &[study]);
            let mut group = |_| {
                let shift = spread * rng.normal();
                (0..TASKS).map(|_| shift + rng.normal()).collect::<Vec<f64>>()
            };
            let groups: Vec<Vec<f64>> = (0..seeds).map(&mut group).collect();
            let found = if whole {
                stats::bootstrap_groups(&groups, 200, study)
            } else {
                stats::bootstrap(&groups.concat(), 200, study)
            };
            found.is_some_and(|[low, high]| low <= 0.0 && 0.0 <= high)
        };
        (0..STUDIES).filter(|study| holds(*study)).count() as f64 / STUDIES as f64
    }

    #[test]
    fn an_interval_over_seeds_and_tasks_holds_the_truth_as_often_as_the_documentation_says() {
        // the table in docs/src/evaluation.md, in a smaller simulation
        let unit = 1.0 / (TASKS as f64).sqrt();
        let mut told = String::new();
        let mut wrong = 0;
        for (seeds, ratio, pairs, both) in TOLD {
            let found = [coverage(seeds, ratio * unit, false), coverage(seeds, ratio * unit, true)];
            let far = |found: f64, told: f64| (found - told).abs() > 0.05;
            wrong += usize::from(far(found[0], pairs) || far(found[1], both));
            told.push_str(&format!("({seeds}, {ratio:?}, {:.3}, {:.3}),\n", found[0], found[1]));
        }
        assert_eq!(wrong, 0, "found\n{told}");
    }

    /// Tasks of a seed.
    const TASKS: usize = 20;

    /// Seeds; deviation between seeds; coverage of pairs as if independent, and of seeds and their tasks.
    const TOLD: [(usize, f64, f64, f64); 6] = [
        (3, 0.0, 0.94, 0.97),
        (3, 2.0, 0.63, 0.86),
        (5, 1.0, 0.83, 0.95),
        (5, 2.0, 0.63, 0.91),
        (10, 1.0, 0.83, 0.97),
        (10, 2.0, 0.63, 0.93),
    ];

    #[test]
    fn other_tasks_have_no_common_pair() {
        let mut other = scores(&[0, 1]);
        other.per_task.iter_mut().for_each(|t| t.id = format!("else/{}", t.id));
        let at = |policy, scores| labelled(&[("policy", policy), ("split", "id"), ("seed", "0")], scores);
        let found = &compared(&[at("a", scores(&[0])), at("b", other)], ["a", "b"], &["success"])[0];
        assert_eq!((found.pairs, found.unpaired, found.difference, found.interval.clone()), (0, 20, None, None));
    }
}
