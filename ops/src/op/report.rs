//! `report`: the graph, the tables, the curves and a few episodes as one HTML file.

use actloom_engine::op::{Arity, InputArtifact, Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifact::{self, Episode};
use crate::eval::scores::Scores;
use crate::eval::table::Table;
use crate::report::curves::Metrics;
use crate::report::page::{self, Contents};
use crate::report::play::Picker;

/// Reports.
pub struct Report;

/// Parameters of `report`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportParams {
    /// The page's title.
    #[serde(default = "title")]
    pub title: String,
    /// A line below the title.
    #[serde(default)]
    pub subtitle: String,
}

fn title() -> String {
    "actloom report".to_owned()
}

/// What a file turned out to hold; folders are tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Scores,
    Metrics,
    Episodes,
}

impl Op for Report {
    type Params = ReportParams;
    const NAME: &'static str = "report";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Draws the graph, tables, curves and a few episodes on one self-contained HTML page";

    fn ports(&self, _params: &ReportParams) -> Ports {
        let kinds = [Kind::TABLE, Kind::SCORES, Kind::METRICS, Kind::EPISODES];
        Ports::new()
            .port("inputs", &kinds, Arity::Many, "What to show: tables, scores, metrics of steps, episodes")
            .named()
            .output("report", Kind::REPORT, "One HTML file that needs nothing but itself")
    }

    fn run(&self, params: &ReportParams, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut contents = Contents {
            title: params.title.clone(),
            about: params.subtitle.clone(),
            lineage: ctx.lineage().to_vec(),
            ..Contents::default()
        };
        let mut picker = Picker::default();
        let inputs = ctx.inputs("inputs");
        for (at, input) in inputs.iter().enumerate() {
            add(&mut contents, &mut picker, input)?;
            ctx.progress(at as u64 + 1, inputs.len() as u64, "inputs", input.step.clone());
        }
        contents.episodes = picker.picked();
        fs_err::write(ctx.output("report"), page::html(&contents))?;
        Ok(())
    }
}

/// `il[seed=0,start=act]`.
fn display(input: &InputArtifact) -> String {
    if input.labels.is_empty() {
        return input.step.clone();
    }
    let labels: Vec<String> = input.labels.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
    format!("{}[{}]", input.step, labels.join(","))
}

fn add(contents: &mut Contents, picker: &mut Picker, input: &InputArtifact) -> Result<(), OpError> {
    let name = display(input);
    if fs_err::metadata(&input.path)?.is_dir() {
        contents.tables.push((name, Table::read(&input.path.join("table.json"))?));
        return Ok(());
    }
    let text = fs_err::read_to_string(&input.path)?;
    match holds(&text) {
        Some(Holds::Metrics) => contents.metrics.push(Metrics::parse(&input.path, &text, &input.step, &input.labels)?),
        Some(Holds::Episodes) => {
            let episodes: Vec<Episode> = artifact::read(&input.path)?;
            picker.see(&name, &episodes);
        }
        Some(Holds::Scores) => contents.scores.push((name, Scores::read(&input.path)?)),
        None => {
            return Err(OpError::failed(format!(
                "cannot tell what `{}` of step `{}` holds, expected a table, scores, metrics or episodes",
                input.path, input.step
            )));
        }
    }
    Ok(())
}

/// Tells a file's kind from its content: an op sees paths, not kinds.
fn holds(text: &str) -> Option<Holds> {
    let Some(first) = text.lines().next() else {
        // A step that recorded nothing has an empty metrics file.
        return Some(Holds::Metrics);
    };
    let has = |value: &Value, keys: &[&str]| keys.iter().all(|key| value.get(key).is_some());
    match serde_json::from_str::<Value>(first) {
        Ok(line) if has(&line, &["step", "name", "value"]) => Some(Holds::Metrics),
        Ok(line) if has(&line, &["task", "turns"]) => Some(Holds::Episodes),
        // Scores may be indented, so that the first line alone is no JSON.
        _ => serde_json::from_str::<Value>(text).is_ok_and(|all| all.is_object()).then_some(Holds::Scores),
    }
}

#[cfg(test)]
mod tests {
    use actloom_engine::op::LineageNode;
    use serde_json::json;

    use super::*;
    use crate::eval::scores::tests::episode;
    use crate::eval::table::tests::results;
    use crate::op::table::tests::Bench;
    use crate::op::table::{TableParams, Tabulate};

    const EVIL: &str = "<script>alert('x')</script>\" onload=\"y";

    /// A folder with one input of each kind; text from outside is hostile wherever it can be.
    fn written(bench: &mut Bench) -> Vec<InputArtifact> {
        let mut scores = results();
        scores.iter_mut().for_each(|r| {
            let policy = r.labels.get_mut("policy").unwrap();
            *policy = format!("{policy}{EVIL}");
        });
        let inputs: Vec<InputArtifact> = scores
            .into_iter()
            .enumerate()
            .map(|(i, r)| {
                r.scores.write(&bench.path(&format!("{i}.json"))).unwrap();
                InputArtifact { path: bench.path(&format!("{i}.json")), step: "score".to_owned(), labels: r.labels }
            })
            .collect();
        let params: TableParams =
            serde_json::from_value(json!({"rows": "policy", "columns": "split", "over": "seed"})).unwrap();
        bench.run(&Tabulate, &params, [("results", inputs.clone())], "table").unwrap();
        let episodes = [
            episode(EVIL, EVIL, true, &[(EVIL, true, EVIL)]),
            episode("b", "look", false, &[(EVIL, false, EVIL), ("look", true, EVIL)]),
        ];
        artifact::write(&bench.path("episodes.jsonl"), &episodes).unwrap();
        let record =
            |step: u64, name: &str| json!({"step": step, "name": name, "value": 1.5 / step as f64}).to_string();
        let metrics = [record(1, "loss"), record(2, "loss"), record(1, EVIL)].join("\n");
        fs_err::write(bench.path("metrics.jsonl"), metrics).unwrap();
        fs_err::write(bench.path("empty.jsonl"), "").unwrap();
        let node = |step: &str, inputs: &[&str]| LineageNode {
            step: step.to_owned(),
            op: EVIL.to_owned(),
            variants: 2,
            inputs: inputs.iter().map(|s| (*s).to_owned()).collect(),
        };
        bench.lineage = vec![node(EVIL, &[]), node("score", &[EVIL])];
        let mut all = vec![bench.input("table", "table", &[])];
        all.extend(inputs);
        all.push(bench.input("episodes.jsonl", EVIL, &[("seed", EVIL)]));
        all.push(bench.input("metrics.jsonl", EVIL, &[("seed", EVIL)]));
        all.push(bench.input("empty.jsonl", "idle", &[]));
        all
    }

    fn params() -> ReportParams {
        ReportParams { title: EVIL.to_owned(), subtitle: EVIL.to_owned() }
    }

    fn page(bench: &Bench, inputs: Vec<InputArtifact>) -> String {
        bench.run(&Report, &params(), [("inputs", inputs)], "report").unwrap();
        fs_err::read_to_string(bench.path("report")).unwrap()
    }

    #[test]
    fn hostile_text_stays_text_wherever_it_stands() {
        let mut bench = Bench::new();
        let inputs = written(&mut bench);
        let html = page(&bench, inputs);
        assert_eq!(html.matches("<script").count(), 1, "the page's own");
        assert!(!html.contains("onload=\"y"));
        // Title twice, about, labels in tables and figures, graph, charts, episodes.
        assert!(html.matches("&lt;script&gt;").count() > 20);
        for section in ["results", "graph", "curves", "scores", "episodes"] {
            assert!(html.contains(&format!("<section id=\"{section}\">")), "{section}");
        }
    }

    #[test]
    fn the_page_leads_nowhere_and_is_the_same_again() {
        let mut bench = Bench::new();
        let inputs = written(&mut bench);
        let html = page(&bench, inputs.clone());
        assert!(!html.is_empty());
        for outside in ["http:", "https:", "url(//", "src=", "@import", "<link", "<iframe"] {
            assert!(!html.contains(outside), "{outside}");
        }
        let folder = bench.path("");
        assert!(!html.contains(folder.as_str()), "no path stands in the page");
        assert_eq!(html, page(&bench, inputs));
    }

    #[test]
    fn tags_are_closed_in_the_order_they_were_opened() {
        let mut bench = Bench::new();
        let inputs = written(&mut bench);
        let html = page(&bench, inputs);
        let body = html.split("<body>").nth(1).unwrap().split("<script>").next().unwrap();
        let mut open: Vec<&str> = Vec::new();
        for tag in body.split('<').skip(1) {
            let tag = tag.split('>').next().unwrap();
            let name = tag.trim_start_matches('/').split_whitespace().next().unwrap().trim_end_matches('/');
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_file_of_no_known_kind_is_named() {
        let bench = Bench::new();
        fs_err::write(bench.path("odd"), "hello\n").unwrap();
        let inputs = vec![bench.input("odd", "play", &[])];
        let error = bench.run(&Report, &params(), [("inputs", inputs)], "report").unwrap_err().to_string();
        assert!(error.contains("of step `play` holds, expected a table, scores, metrics or episodes"), "{error}");
    }
}
