//! Many scores, by the labels of the variants that made them, as one table: rows x columns, spread over an axis.
//!
//! Invariants: every row meets every column, and a cell that nothing fills is there and named in `missing`; labels keep
//! the order in which the results show them (the recipe's); no two results are ever merged unless the recipe named the
//! axis they differ in; beside every mean stands how many results and episodes it comes from.

use std::collections::{BTreeMap, BTreeSet};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::compare::{self, Comparison};
use super::scores::{Decoded, Scores};
use super::stats;
pub use super::stats::{Interval, Method};

/// Version of `table.json`; its field `v`.
pub const TABLE_VERSION: u32 = 1;

/// What stands behind a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// The sample standard deviation, with n - 1 below: what another seed would vary by.
    #[default]
    Std,
    /// The population standard deviation, with n below: how far these seeds lie apart.
    Population,
    /// A 95 % interval of the mean: Student's t over two or more values; of a single result the one that `eval` wrote.
    Interval,
}

/// One result with the labels of its variant.
#[derive(Clone, Debug)]
pub struct Labelled {
    pub labels: BTreeMap<String, String>,
    pub scores: Scores,
}

/// What the table is to show.
#[derive(Clone, Debug)]
pub struct Layout {
    pub rows: String,
    pub columns: Option<String>,
    pub over: Option<String>,
    pub metrics: Vec<String>,
    pub compare: Vec<[String; 2]>,
    pub spread: Spread,
    pub percent: bool,
    pub resamples: usize,
    /// Of the bootstrap.
    pub seed: u64,
}

/// An axis of the recipe and its labels in order of first appearance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    pub axis: String,
    pub labels: Vec<String>,
}

/// One result in a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its label on the axis `over`; `None` where its step is not multiplied by that axis.
    pub over: Option<String>,
    pub decoding: Option<Decoded>,
    pub episodes: usize,
}

/// One metric in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// One a part, in the order of `Cell::parts`; `None` where the result does not have it.
    pub values: Vec<Option<f64>>,
    /// How many values there are.
    pub n: usize,
    pub mean: Option<f64>,
    pub std: Option<f64>,
    pub population: Option<f64>,
    pub interval: Option<Interval>,
}

/// Where a row meets a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub row: String,
    pub column: Option<String>,
    pub parts: Vec<Part>,
    /// Labels of the axis `over` that other cells have and this one does not.
    pub lacking: Vec<String>,
    pub metrics: BTreeMap<String, Stat>,
}

/// Something the table should hold and does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub row: String,
    pub column: Option<String>,
    /// `None`: the whole cell.
    pub metric: Option<String>,
    /// `None`: for every label of the axis `over`.
    pub over: Option<String>,
}

/// `table.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub v: u32,
    pub rows: Axis,
    pub columns: Option<Axis>,
    pub over: Option<Axis>,
    pub metrics: Vec<String>,
    pub spread: Spread,
    pub percent: bool,
    /// Row by row.
    pub cells: Vec<Cell>,
    pub comparisons: Vec<Comparison>,
    pub missing: Vec<Missing>,
}

/// Whether a metric is a share of something, so that percent means something.
pub fn is_share(metric: &str) -> bool {
    let name = metric.strip_prefix("critic_").unwrap_or(metric);
    let known = [
        "success",
        "score",
        "limit",
        "context",
        "loops",
        "loops_refused",
        "invalid",
        "repeated",
        "malformed",
        "repeats_failed",
        "recovered",
        "reasoned",
        "found",
        "consistent",
        "agreement",
        "next_action",
        "next_action_by_kind",
        "other_action",
        "impossible",
    ];
    let begins = ["failure_", "success_at_"].iter().any(|start| name.starts_with(start));
    known.contains(&name) || begins || name.contains("accuracy") || name.ends_with("_share") || name.ends_with("_rate")
}

/// Finds a cell's results: one list a cell, row by row.
pub(super) struct Grid<'a> {
    pub results: Vec<Vec<Placed<'a>>>,
}

/// A result at its place.
#[derive(Clone, Copy)]
pub(super) struct Placed<'a> {
    pub over: Option<&'a str>,
    pub scores: &'a Scores,
}

impl Table {
    /// Builds the table.
    ///
    /// # Errors
    /// An axis, metric or row that no result has (names what there is); a result without a label for its row or column;
    /// two results in one place.
    pub fn build(results: &[Labelled], layout: &Layout) -> Result<Table, OpError> {
        let rows = axis(results, &layout.rows)?;
        let columns = layout.columns.as_deref().map(|name| axis(results, name)).transpose()?;
        let over = layout.over.as_deref().map(|name| axis(results, name)).transpose()?;
        check_metrics(results, &layout.metrics)?;
        check_rows(&rows, &layout.compare)?;
        let grid = place(results, &rows, columns.as_ref(), over.as_ref())?;

        let width = columns.as_ref().map_or(1, |c| c.labels.len());
        let column = |at: usize| columns.as_ref().map(|c| c.labels[at % width].clone());
        let cells: Vec<Cell> = grid
            .results
            .iter()
            .enumerate()
            .map(|(at, placed)| {
                cell(rows.labels[at / width].clone(), column(at), placed, over.as_ref(), &layout.metrics)
            })
            .collect();
        let comparisons = compare::all(&grid, &rows, columns.as_ref(), layout);
        let missing = cells.iter().flat_map(|cell| missing(cell, &layout.metrics)).collect();
        Ok(Table {
            v: TABLE_VERSION,
            rows,
            columns,
            over,
            metrics: layout.metrics.clone(),
            spread: layout.spread,
            percent: layout.percent,
            cells,
            comparisons,
            missing,
        })
    }

    /// The cell of a row and a column, by number.
    pub fn cell(&self, row: usize, column: usize) -> &Cell {
        &self.cells[row * self.width() + column]
    }

    /// How many columns there are for one metric.
    pub fn width(&self) -> usize {
        self.columns.as_ref().map_or(1, |c| c.labels.len())
    }

    /// Reads `table.json`.
    ///
    /// # Errors
    /// Names the path, and the version that is not known.
    pub fn read(path: &Utf8Path) -> Result<Table, OpError> {
        let text = fs_err::read_to_string(path)?;
        let table: Table = serde_json::from_str(&text)
            .map_err(|e| OpError::failed(format!("cannot read a table from `{path}`: {e}")))?;
        if table.v != TABLE_VERSION {
            return Err(OpError::failed(format!(
                "table `{path}` has schema version {}, expected {TABLE_VERSION}",
                table.v
            )));
        }
        Ok(table)
    }
}

/// "`a`, `b`", for messages.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// How a result is named in messages: `[policy=il,seed=0]`.
fn shown(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
    format!("[{}]", labels.join(","))
}

fn axis(results: &[Labelled], name: &str) -> Result<Axis, OpError> {
    let mut labels: Vec<String> = Vec::new();
    for label in results.iter().filter_map(|r| r.labels.get(name)) {
        if !labels.contains(label) {
            labels.push(label.clone());
        }
    }
    if !labels.is_empty() {
        return Ok(Axis { axis: name.to_owned(), labels });
    }
    let there: BTreeSet<&str> = results.iter().flat_map(|r| r.labels.keys().map(String::as_str)).collect();
    if there.is_empty() {
        return Err(OpError::with_help(
            format!("no result has the axis `{name}`: the results have no axes at all"),
            "give a step before this one `each`, or use an axis of `[matrix]`",
        ));
    }
    Err(OpError::failed(format!("no result has the axis `{name}`, expected one of {}", listed(there))))
}

fn check_metrics(results: &[Labelled], metrics: &[String]) -> Result<(), OpError> {
    let there: BTreeSet<&str> = results.iter().flat_map(|r| r.scores.metrics.keys().map(String::as_str)).collect();
    match metrics.iter().find(|metric| !there.contains(metric.as_str())) {
        Some(metric) => {
            Err(OpError::failed(format!("no result has the metric `{metric}`, expected one of {}", listed(there))))
        }
        None => Ok(()),
    }
}

fn check_rows(rows: &Axis, compare: &[[String; 2]]) -> Result<(), OpError> {
    match compare.iter().flatten().find(|row| !rows.labels.contains(row)) {
        Some(row) => Err(OpError::failed(format!(
            "cannot compare row `{row}`: axis `{}` has {}",
            rows.axis,
            listed(rows.labels.iter().map(String::as_str))
        ))),
        None => Ok(()),
    }
}

/// Puts every result into its cell.
fn place<'a>(
    results: &'a [Labelled],
    rows: &Axis,
    columns: Option<&Axis>,
    over: Option<&Axis>,
) -> Result<Grid<'a>, OpError> {
    let width = columns.map_or(1, |c| c.labels.len());
    let mut grid: Vec<Vec<(Placed<'a>, &'a BTreeMap<String, String>)>> = vec![Vec::new(); rows.labels.len() * width];
    for result in results {
        let at = |axis: &Axis| {
            let label = result.labels.get(&axis.axis);
            label.and_then(|label| axis.labels.iter().position(|l| l == label)).ok_or_else(|| {
                OpError::failed(format!(
                    "result {} has no label on the axis `{}`, which the table needs of every result",
                    shown(&result.labels),
                    axis.axis
                ))
            })
        };
        let cell = &mut grid[at(rows)? * width + columns.map_or(Ok(0), at)?];
        let over = over.and_then(|axis| result.labels.get(&axis.axis)).map(String::as_str);
        if let Some((_, other)) = cell.iter().find(|(placed, _)| placed.over == over) {
            return Err(collision(&result.labels, other));
        }
        cell.push((Placed { over, scores: &result.scores }, &result.labels));
    }
    // In the axis' order, whatever the order in which a recipe lists the results of one cell.
    let rank = |placed: &Placed<'_>| over.and_then(|o| o.labels.iter().position(|l| Some(l.as_str()) == placed.over));
    let results = grid.into_iter().map(|cell| {
        let mut cell: Vec<Placed<'a>> = cell.into_iter().map(|(placed, _)| placed).collect();
        cell.sort_by_key(rank);
        cell
    });
    Ok(Grid { results: results.collect() })
}

/// Two results in one place: the axes they differ in are what the recipe forgot.
fn collision(a: &BTreeMap<String, String>, b: &BTreeMap<String, String>) -> OpError {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differ: Vec<&str> = names.into_iter().filter(|n| a.get(*n) != b.get(*n)).map(String::as_str).collect();
    let message = format!("results {} and {} fall into one place of the table", shown(b), shown(a));
    if differ.is_empty() {
        return OpError::with_help(message, "list each result once");
    }
    OpError::with_help(
        format!("{message}: they differ in {}, which is neither `rows`, `columns` nor `over`", listed(differ)),
        "name the axis in the table, or pick one label of it: `\"@score[axis=label]\"`",
    )
}

fn cell(row: String, column: Option<String>, placed: &[Placed<'_>], over: Option<&Axis>, metrics: &[String]) -> Cell {
    let parts: Vec<Part> = placed
        .iter()
        .map(|p| Part { over: p.over.map(str::to_owned), decoding: p.scores.decoding, episodes: p.scores.episodes })
        .collect();
    // A step that the axis does not multiply stands for all of its labels; an empty cell is missing as a whole.
    let whole = parts.is_empty() || parts.iter().any(|part| part.over.is_none());
    let lacking = over
        .filter(|_| !whole)
        .map(|axis| axis.labels.iter().filter(|l| parts.iter().all(|p| p.over.as_ref() != Some(*l))).cloned().collect())
        .unwrap_or_default();
    let metrics = metrics.iter().map(|metric| (metric.clone(), stat(placed, metric))).collect();
    Cell { row, column, parts, lacking, metrics }
}

fn stat(placed: &[Placed<'_>], metric: &str) -> Stat {
    let values: Vec<Option<f64>> = placed.iter().map(|p| p.scores.metrics.get(metric).copied().flatten()).collect();
    let there: Vec<f64> = values.iter().copied().flatten().collect();
    let interval = match stats::t_interval(&there) {
        Some([low, high]) => {
            let (least, most) = if is_share(metric) { (0.0, 1.0) } else { (f64::NEG_INFINITY, f64::INFINITY) };
            Some(Interval { low: low.max(least), high: high.min(most), method: Method::Student })
        }
        None if there.len() == 1 => {
            let of = placed.iter().zip(&values).find(|(_, value)| value.is_some()).map(|(p, _)| p.scores);
            of.and_then(|scores| scores.intervals.get(metric)).cloned()
        }
        None => None,
    };
    Stat {
        n: there.len(),
        mean: stats::mean(&there),
        std: stats::sample_std(&there),
        population: if there.len() < 2 { None } else { stats::population_std(&there) },
        interval,
        values,
    }
}

fn missing(cell: &Cell, metrics: &[String]) -> Vec<Missing> {
    let gap = |metric: Option<&str>, over: Option<&str>| Missing {
        row: cell.row.clone(),
        column: cell.column.clone(),
        metric: metric.map(str::to_owned),
        over: over.map(str::to_owned),
    };
    if cell.parts.is_empty() {
        return vec![gap(None, None)];
    }
    let mut gaps: Vec<Missing> = cell.lacking.iter().map(|over| gap(None, Some(over))).collect();
    for metric in metrics {
        let stat = &cell.metrics[metric];
        if stat.n == 0 {
            gaps.push(gap(Some(metric), None));
            continue;
        }
        let without = cell.parts.iter().zip(&stat.values).filter(|(_, value)| value.is_none());
        gaps.extend(without.map(|(part, _)| gap(Some(metric), part.over.as_deref())));
    }
    gaps
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::scores::tests::{counting, episode};

    /// Scores of ten tasks of which the named ones are won.
    pub(crate) fn scores(won: &[usize]) -> Scores {
        let episodes: Vec<_> = (0..10)
            .map(|i| episode(&format!("id/{i}"), "look", won.contains(&i), &[("look", true, "a mug")]))
            .collect();
        Scores::of_episodes(&episodes, &counting())
    }

    pub(crate) fn labelled(labels: &[(&str, &str)], scores: Scores) -> Labelled {
        Labelled { labels: labels.iter().map(|(a, l)| ((*a).to_owned(), (*l).to_owned())).collect(), scores }
    }

    pub(crate) fn layout() -> Layout {
        Layout {
            rows: "policy".to_owned(),
            columns: Some("split".to_owned()),
            over: Some("seed".to_owned()),
            metrics: vec!["success".to_owned()],
            compare: Vec::new(),
            spread: Spread::Std,
            percent: true,
            resamples: 500,
            seed: 1,
        }
    }

    /// `il` on both splits with two seeds, `act` on one split with one seed, `base` on one split without seeds.
    pub(crate) fn results() -> Vec<Labelled> {
        let at = |policy, split, seed, won: &[usize]| {
            labelled(&[("policy", policy), ("split", split), ("seed", seed)], scores(won))
        };
        vec![
            at("il", "id", "0", &[0, 1, 2, 3]),
            at("il", "id", "1", &[0, 1]),
            at("il", "ood", "0", &[0]),
            at("il", "ood", "1", &[0]),
            at("act", "id", "0", &[0, 1, 2, 3, 4]),
            labelled(&[("policy", "base"), ("split", "ood")], scores(&[])),
        ]
    }

    fn refused(results: &[Labelled], layout: &Layout) -> (String, Option<String>) {
        match Table::build(results, layout).unwrap_err() {
            OpError::Failed { message, help } => (message, help),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn means_and_spreads_are_those_of_the_values_over_the_axis() {
        let table = Table::build(&results(), &layout()).unwrap();
        let stat = &table.cell(0, 0).metrics["success"];
        assert_eq!(stat.values, [Some(0.4), Some(0.2)]);
        assert!((stat.mean.unwrap() - 0.3).abs() < 1e-12);
        assert!((stat.std.unwrap() - 0.02f64.sqrt()).abs() < 1e-12);
        assert!((stat.population.unwrap() - 0.1).abs() < 1e-12);
        let interval = stat.interval.clone().unwrap();
        assert_eq!((interval.low, interval.high, interval.method), (0.0, 1.0, Method::Student));
    }

    #[test]
    fn labels_keep_the_order_of_the_results_and_cells_go_row_by_row() {
        let table = Table::build(&results(), &layout()).unwrap();
        assert_eq!(table.rows.labels, ["il", "act", "base"]);
        assert_eq!(table.columns.as_ref().unwrap().labels, ["id", "ood"]);
        let places: Vec<_> = table.cells.iter().map(|c| (c.row.as_str(), c.column.as_deref().unwrap())).collect();
        assert_eq!(places[..3], [("il", "id"), ("il", "ood"), ("act", "id")]);
    }

    #[test]
    fn missing_cells_and_missing_seeds_are_named() {
        let table = Table::build(&results(), &layout()).unwrap();
        let gap = |row: &str, column: &str, over: Option<&str>| Missing {
            row: row.to_owned(),
            column: Some(column.to_owned()),
            metric: None,
            over: over.map(str::to_owned),
        };
        assert_eq!(table.missing, [gap("act", "id", Some("1")), gap("act", "ood", None), gap("base", "id", None)]);
    }

    #[test]
    fn one_value_has_no_spread_and_wilson_as_its_interval() {
        let table = Table::build(&results(), &layout()).unwrap();
        let stat = &table.cell(1, 0).metrics["success"];
        assert_eq!((stat.n, stat.std, stat.population), (1, None, None));
        let interval = stat.interval.clone().unwrap();
        assert_eq!(interval.method, Method::Wilson);
        assert_eq!([interval.low, interval.high], stats::wilson(5, 10).unwrap());
    }

    #[test]
    fn a_metric_that_only_some_results_have_is_missing_where_it_is_not() {
        let mut results = results();
        results[0].scores.metrics.insert("critic_accuracy".to_owned(), Some(0.7));
        let mut layout = layout();
        layout.metrics.push("critic_accuracy".to_owned());
        let table = Table::build(&results, &layout).unwrap();
        assert_eq!(table.cell(0, 0).metrics["critic_accuracy"].n, 1);
        let of_il: Vec<_> = table.missing.iter().filter(|m| m.row == "il").collect();
        assert_eq!(of_il[0].over.as_deref(), Some("1"));
        assert_eq!((of_il[1].column.as_deref(), of_il[1].over.as_deref()), (Some("ood"), None));
        assert!(of_il.iter().all(|m| m.metric.as_deref() == Some("critic_accuracy")));
    }

    #[test]
    fn unknown_axes_metrics_and_rows_name_what_there_is() {
        let mut wrong = layout();
        wrong.rows = "polcy".to_owned();
        assert_eq!(
            refused(&results(), &wrong).0,
            "no result has the axis `polcy`, expected one of `policy`, `seed`, `split`"
        );
        let bare = [labelled(&[], scores(&[]))];
        assert!(refused(&bare, &layout()).0.ends_with("the results have no axes at all"));
        let mut wrong = layout();
        wrong.metrics = vec!["sucess".to_owned()];
        assert!(
            refused(&results(), &wrong).0.starts_with("no result has the metric `sucess`, expected one of `context`")
        );
        let mut wrong = layout();
        wrong.compare = vec![["il".to_owned(), "rl".to_owned()]];
        assert_eq!(refused(&results(), &wrong).0, "cannot compare row `rl`: axis `policy` has `il`, `act`, `base`");
    }

    #[test]
    fn a_result_without_a_row_is_refused() {
        let mut results = results();
        results.push(labelled(&[("split", "id")], scores(&[])));
        assert_eq!(
            refused(&results, &layout()).0,
            "result [split=id] has no label on the axis `policy`, which the table needs of every result"
        );
    }

    #[test]
    fn two_results_in_one_place_name_the_axis_they_differ_in() {
        let mut no_over = layout();
        no_over.over = None;
        let (message, help) = refused(&results(), &no_over);
        assert_eq!(
            message,
            "results [policy=il,seed=0,split=id] and [policy=il,seed=1,split=id] fall into one place of the table: \
             they differ in `seed`, which is neither `rows`, `columns` nor `over`"
        );
        assert!(help.unwrap().contains("@score[axis=label]"));
        let twice = [results()[0].clone(), results()[0].clone()];
        assert_eq!(refused(&twice, &layout()).1.as_deref(), Some("list each result once"));
    }

    #[test]
    fn without_columns_there_is_one_unnamed_column() {
        let mut layout = layout();
        layout.columns = None;
        let table = Table::build(&results()[..2], &layout).unwrap();
        assert_eq!((table.cells.len(), table.width(), table.cell(0, 0).column.as_deref()), (1, 1, None));
    }

    #[test]
    fn the_file_reads_back_as_the_same_table() {
        let table = Table::build(&results(), &layout()).unwrap();
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
    }

    proptest! {
        /// Every result lands in exactly one cell, and every gap is named.
        #[test]
        fn nothing_is_dropped(there in proptest::collection::btree_set((0..4u8, 0..3u8, 0..3u8), 1..30)) {
            let name = |n: u8| n.to_string();
            let results: Vec<Labelled> = there
                .iter()
                .map(|&(p, s, k)| {
                    labelled(&[("policy", &name(p)), ("split", &name(s)), ("seed", &name(k))], scores(&[0]))
                })
                .collect();
            let table = Table::build(&results, &layout()).unwrap();
            let parts: usize = table.cells.iter().map(|c| c.parts.len()).sum();
            prop_assert_eq!(parts, results.len());
            let seeds = table.over.as_ref().unwrap().labels.len();
            let gaps: usize = table.missing.iter().map(|m| if m.over.is_some() { 1 } else { seeds }).sum();
            prop_assert_eq!(parts + gaps, table.cells.len() * seeds);
        }
    }
}
