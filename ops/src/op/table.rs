//! `table`: many scores as one table of rows x columns, with a spread over an axis and paired differences.

use std::collections::{BTreeMap, BTreeSet};

use actloom_engine::diagnostic::{listed, nearest};
use actloom_engine::op::{Arity, InputLabels, Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::eval::scores::Scores;
use crate::eval::table::{Labelled, Layout, Spread, Table};
use crate::report::{dots, text};

/// Tabulates scores.
pub struct Tabulate;

/// Parameters of `table`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TableParams {
    /// The axis whose labels are the rows.
    pub rows: String,
    /// The axis whose labels are the columns; without it the metrics are.
    #[serde(default)]
    pub columns: Option<String>,
    /// The axis to take mean and spread over: `seed`.
    #[serde(default)]
    pub over: Option<String>,
    /// Which numbers to show: `success`, `score`, `return`, `steps`, `steps_won`, `invalid`, `repeated`, `malformed`,
    /// `loops`, `limit`, `context`, causes of failure such as `failure_loop`, `success_at_4` of repeated episodes, and
    /// what a critic adds.
    #[serde(default = "success")]
    pub metrics: Vec<String>,
    /// Pairs of row labels to compare, each `["A", "B"]` for A minus B, paired by `over` and task.
    #[serde(default)]
    pub compare: Vec<[String; 2]>,
    /// What stands beside a mean.
    #[serde(default)]
    pub spread: Spread,
    /// Whether shares are shown in percent.
    #[serde(default = "yes")]
    pub percent: bool,
    /// Resamples of the bootstrap behind the differences' intervals: of labels of `over`, and of the tasks of each.
    #[schemars(range(min = 100, max = 1_000_000))]
    #[serde(default = "resamples")]
    pub resamples: usize,
}

fn success() -> Vec<String> {
    vec!["success".to_owned()]
}

fn yes() -> bool {
    true
}

fn resamples() -> usize {
    10_000
}

impl Op for Tabulate {
    type Params = TableParams;
    const NAME: &'static str = "table";
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "Sets scores out as rows x columns with means, spreads and paired differences";

    fn ports(&self, _params: &TableParams) -> Ports {
        Ports::new()
            .port("results", &[Kind::SCORES], Arity::Many, "The scores, by the axis labels of what made them")
            .labelled()
            .output("table", Kind::TABLE, "table.json, table.csv, table.md, table.tex, and METRIC.svg for each metric")
    }

    fn check(&self, params: &TableParams) -> Vec<Problem> {
        let mut problems = Vec::new();
        let axes = [("rows", Some(&params.rows)), ("columns", params.columns.as_ref()), ("over", params.over.as_ref())];
        for (at, (name, axis)) in axes.iter().enumerate() {
            let Some(axis) = axis else { continue };
            if let Some((first, _)) = axes[..at].iter().find(|(_, other)| *other == Some(axis)) {
                let message = format!("axis `{axis}` is `{first}` already, expected another one");
                problems.push(Problem::new(&[name], message));
            }
        }
        if params.metrics.is_empty() {
            problems.push(Problem::new(&["metrics"], "no metric is named, expected at least one"));
        }
        for (at, metric) in params.metrics.iter().enumerate() {
            if params.metrics[..at].contains(metric) {
                problems
                    .push(Problem::new(&["metrics"], format!("metric `{metric}` is named twice, expected it once")));
            }
        }
        for [a, b] in params.compare.iter().filter(|[a, b]| a == b) {
            problems
                .push(Problem::new(&["compare"], format!("row `{a}` is compared with `{b}`, expected another row")));
        }
        problems
    }

    fn check_inputs(&self, params: &TableParams, inputs: &InputLabels) -> Vec<Problem> {
        let results = inputs.of("results");
        let mut problems = Vec::new();
        let axes = [("rows", Some(&params.rows)), ("columns", params.columns.as_ref()), ("over", params.over.as_ref())];
        for (name, axis) in axes {
            let Some(axis) = axis else { continue };
            if !results.iter().any(|labels| labels.contains_key(axis)) {
                problems.push(no_axis(name, axis, results));
            } else if name != "over"
                && let Some(without) = results.iter().find(|labels| !labels.contains_key(axis))
            {
                let message = format!(
                    "{} has no label on the axis `{axis}`, which `{name}` needs of every result",
                    shown(without)
                );
                let help = format!("give what made it the axis, `each = {{ {axis} = [..] }}`, or leave it out");
                problems.push(Problem::new(&["results"], message).help(help));
            }
        }
        let rows: BTreeSet<&str> =
            results.iter().filter_map(|labels| Some(labels.get(&params.rows)?.as_str())).collect();
        for (at, pair) in params.compare.iter().enumerate().filter(|_| !rows.is_empty()) {
            for (side, row) in pair.iter().enumerate().filter(|(_, row)| !rows.contains(row.as_str())) {
                let message = format!("no row has the label `{row}`, expected a label of the axis `{}`", params.rows);
                let help = match nearest(row, rows.iter().copied()) {
                    Some(near) => format!("there is a row `{near}`"),
                    None => format!("the rows are {}", listed(rows.iter().copied(), "and")),
                };
                problems.push(Problem::new(&["compare", &at.to_string(), &side.to_string()], message).help(help));
            }
        }
        if problems.is_empty() {
            problems.extend(collision(params, results));
        }
        problems
    }

    fn run(&self, params: &TableParams, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let results = ctx
            .inputs("results")
            .iter()
            .map(|input| Ok(Labelled { labels: input.labels.clone(), scores: Scores::read(&input.path)? }));
        let results = results.collect::<Result<Vec<Labelled>, OpError>>()?;
        let layout = Layout {
            rows: params.rows.clone(),
            columns: params.columns.clone(),
            over: params.over.clone(),
            metrics: params.metrics.clone(),
            compare: params.compare.clone(),
            spread: params.spread,
            percent: params.percent,
            resamples: params.resamples,
            seed: ctx.seed("bootstrap"),
        };
        let table = Table::build(&results, &layout)?;
        let folder = ctx.output("table");
        fs_err::create_dir(folder)?;
        let mut json = serde_json::to_string_pretty(&table).map_err(std::io::Error::from)?;
        json.push('\n');
        fs_err::write(folder.join("table.json"), json)?;
        fs_err::write(folder.join("table.csv"), text::csv(&table)?)?;
        fs_err::write(folder.join("table.md"), text::markdown(&table))?;
        fs_err::write(folder.join("table.tex"), text::latex(&table))?;
        for metric in &table.metrics {
            if let Some(picture) = dots::svg(&table, metric) {
                fs_err::write(folder.join(format!("{metric}.svg")), picture)?;
            }
        }
        Ok(())
    }
}

/// An axis that nothing of what arrives has.
fn no_axis(name: &str, axis: &str, results: &[BTreeMap<String, String>]) -> Problem {
    let there: BTreeSet<&str> = results.iter().flat_map(|labels| labels.keys().map(String::as_str)).collect();
    let help = match nearest(axis, there.iter().copied()) {
        _ if there.is_empty() => {
            "the results have no axes: give a step before this one `each`, or use an axis of `[matrix]`".to_owned()
        }
        Some(near) => format!("there is an axis `{near}`"),
        None => format!("the results' axes are {}", listed(there, "and")),
    };
    Problem::new(&[name], format!("no result has the axis `{axis}`")).help(help)
}

/// Two results that fall into one place of the table: the axes they differ in are what the recipe forgot.
fn collision(params: &TableParams, results: &[BTreeMap<String, String>]) -> Option<Problem> {
    let mut places = BTreeMap::new();
    for labels in results {
        let at = |axis: Option<&String>| axis.and_then(|axis| labels.get(axis));
        let place = (at(Some(&params.rows)), at(params.columns.as_ref()), at(params.over.as_ref()));
        let Some(other) = places.insert(place, labels) else { continue };
        let message = format!("{} and {} fall into one place of the table", shown(other), shown(labels));
        let names: BTreeSet<&String> = other.keys().chain(labels.keys()).collect();
        let differ = names.into_iter().filter(|name| other.get(*name) != labels.get(*name)).map(String::as_str);
        let differ: Vec<&str> = differ.collect();
        let help = if differ.is_empty() {
            "list each result once".to_owned()
        } else {
            let axes = listed(differ.iter().copied(), "and");
            let first = differ[0];
            format!("they differ in {axes}: name it in `columns` or `over`, or pick a label, `\"@score[{first}=..]\"`")
        };
        return Some(Problem::new(&["results"], message).help(help));
    }
    None
}

/// How a result is named in messages.
fn shown(labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> = labels.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
    if labels.is_empty() { "a result without labels".to_owned() } else { format!("`[{}]`", labels.join(",")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use actloom_engine::event::OpEvent;
    use actloom_engine::op::{DeviceRequest, DynOp, InputArtifact, LineageNode, OpSink};
    use actloom_engine::stop::Stop;
    use camino::Utf8PathBuf;
    use serde_json::json;

    use super::*;
    use crate::eval::table::tests::results;

    struct Deaf;

    impl OpSink for Deaf {
        fn event(&self, _event: OpEvent) {}
    }

    /// A folder in which an op can run.
    pub(crate) struct Bench {
        dir: tempfile::TempDir,
        pub lineage: Vec<LineageNode>,
    }

    impl Bench {
        pub(crate) fn new() -> Bench {
            Bench { dir: tempfile::tempdir().unwrap(), lineage: Vec::new() }
        }

        pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
            Utf8PathBuf::from_path_buf(self.dir.path().join(name)).unwrap()
        }

        pub(crate) fn input(&self, name: &str, step: &str, labels: &[(&str, &str)]) -> InputArtifact {
            let labels = labels.iter().map(|(a, l)| ((*a).to_owned(), (*l).to_owned())).collect();
            InputArtifact { path: self.path(name), step: step.to_owned(), labels }
        }

        /// Runs an op whose one output goes to the path of that name.
        pub(crate) fn run<T: Op>(
            &self,
            op: &T,
            params: &T::Params,
            inputs: impl IntoIterator<Item = (&'static str, Vec<InputArtifact>)>,
            output: &str,
        ) -> Result<(), OpError> {
            let inputs = inputs.into_iter().map(|(name, artifacts)| (name.to_owned(), artifacts)).collect();
            let outputs = BTreeMap::from([(output.to_owned(), self.path(output))]);
            let stop = Stop::new();
            let scratch = self.path("scratch");
            let lineage = self.lineage.clone();
            let mut ctx = OpContext::new(inputs, outputs, scratch, 5, DeviceRequest::Cpu, lineage, &Deaf, &stop);
            Op::run(op, params, &mut ctx)
        }
    }

    fn params(value: serde_json::Value) -> TableParams {
        serde_json::from_value(value).unwrap()
    }

    fn written() -> (Bench, Vec<InputArtifact>) {
        let bench = Bench::new();
        let inputs = results().into_iter().enumerate().map(|(i, result)| {
            let name = format!("scores{i}.json");
            result.scores.write(&bench.path(&name)).unwrap();
            InputArtifact { path: bench.path(&name), step: String::new(), labels: result.labels }
        });
        let inputs = inputs.collect();
        (bench, inputs)
    }

    #[test]
    fn the_folder_has_its_files_and_the_same_bytes_again() {
        let (bench, inputs) = written();
        let params = params(json!({
            "rows": "policy", "columns": "split", "over": "seed", "compare": [["act", "il"]], "resamples": 200,
        }));
        let read = |name: &str| fs_err::read_to_string(bench.path("table").join(name)).unwrap();
        let names = ["table.json", "table.csv", "table.md", "table.tex", "success.svg"];
        bench.run(&Tabulate, &params, [("results", inputs.clone())], "table").unwrap();
        let first = names.map(read);
        fs_err::remove_dir_all(bench.path("table")).unwrap();
        bench.run(&Tabulate, &params, [("results", inputs)], "table").unwrap();
        assert_eq!(first, names.map(read));
        let table = Table::read(&bench.path("table").join("table.json")).unwrap();
        assert_eq!(table.rows.labels, ["il", "act", "base"]);
        assert!(first[2].starts_with("### success (%)\n\n| policy |"), "{}", first[2]);
    }

    #[test]
    fn the_order_in_which_seeds_are_listed_does_not_matter() {
        let (bench, mut inputs) = written();
        let params = params(json!({"rows": "policy", "columns": "split", "over": "seed"}));
        bench.run(&Tabulate, &params, [("results", inputs.clone())], "table").unwrap();
        let first = Table::read(&bench.path("table").join("table.json")).unwrap();
        fs_err::remove_dir_all(bench.path("table")).unwrap();
        inputs.swap(2, 3);
        bench.run(&Tabulate, &params, [("results", inputs)], "table").unwrap();
        assert_eq!(first, Table::read(&bench.path("table").join("table.json")).unwrap());
    }

    #[test]
    fn a_table_of_another_version_is_refused() {
        let (bench, inputs) = written();
        let params = params(json!({"rows": "policy", "columns": "split", "over": "seed"}));
        bench.run(&Tabulate, &params, [("results", inputs)], "table").unwrap();
        let path = bench.path("table").join("table.json");
        let text = fs_err::read_to_string(&path).unwrap().replacen("\"v\": 1", "\"v\": 9", 1);
        fs_err::write(&path, text).unwrap();
        let error = Table::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("has schema version 9, expected 1"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_found_before_anything_runs() {
        let wrong = json!({
            "rows": "policy", "columns": "policy", "metrics": ["success", "success"], "compare": [["il", "il"]],
        });
        let found = DynOp::check(&Tabulate, &Tabulate.canonical(&wrong).unwrap());
        let found: Vec<String> = found.into_iter().map(|p| format!("{}: {}", p.path.join("."), p.message)).collect();
        assert_eq!(
            found,
            [
                "columns: axis `policy` is `rows` already, expected another one",
                "metrics: metric `success` is named twice, expected it once",
                "compare: row `il` is compared with `il`, expected another row",
            ]
        );
        assert!(DynOp::check(&Tabulate, &Tabulate.canonical(&json!({"rows": "policy"})).unwrap()).is_empty());
    }

    #[test]
    fn the_spread_is_one_of_three_words() {
        let words = ["std", "population", "interval"];
        assert!(words.iter().all(|w| Tabulate.canonical(&json!({"rows": "p", "spread": w})).is_ok()));
        let error = Tabulate.canonical(&json!({"rows": "p", "spread": "sem"})).unwrap_err();
        assert!(error.contains("expected one of `std`, `population`, `interval`"), "{error}");
    }
}
