//! `actloom show`: what a step made, what it measured, and where that came from.

use std::collections::BTreeMap;

use actloom_engine::cache::{Action, Form, Store};
use actloom_engine::plan::{Goal, Planned, Verdict, plan, select};
use camino::Utf8PathBuf;
use owo_colors::OwoColorize;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::{sentence, waits_for};
use crate::args::{Global, Show};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::out_either;
use crate::text;

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    op: &'a str,
    /// `None` where the step has no result as the recipe stands.
    action: Option<&'a Action>,
    outputs: Vec<Output>,
    /// The last value of every metric, by name.
    metrics: BTreeMap<String, Metric>,
    #[serde(skip)]
    verdict: &'a Verdict,
}

#[derive(Serialize)]
struct Output {
    name: String,
    /// Files of a folder; one entry for a file. `path` leads into the store: read it, leave it.
    files: Vec<FileOf>,
}

#[derive(Serialize)]
struct FileOf {
    name: String,
    bytes: u64,
    path: Option<Utf8PathBuf>,
}

#[derive(Deserialize, Serialize)]
struct Metric {
    step: u64,
    #[serde(skip_serializing)]
    name: String,
    value: Option<f64>,
}

pub fn run(args: &Show, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&args.words)?;
    if steps.is_empty() {
        return Err(Failure::usage(
            "no step is named",
            "`actloom show [RECIPE] STEP`; `actloom plan --all` lists them",
        ));
    }
    let loaded = load::recipe(path, &args.recipe)?;
    let store = load::store(global)?;
    let asked = select(&loaded.graph, &steps)?;
    let plan = plan(&loaded.graph, &Goal { steps, device: loaded.device, ..Goal::default() }, &store)?;
    let mut shown = Vec::new();
    for step in plan.steps.iter().filter(|step| asked.contains(&step.node)) {
        shown.push(look(&store, step)?);
    }
    out_either(global.json, &shown, || shown.iter().map(page).collect::<Vec<_>>().join("\n"));
    Ok(Exit::Done)
}

fn look<'a>(store: &Store, step: &'a Planned) -> Result<Shown<'a>, Failure> {
    let mut shown = Shown {
        name: &step.name,
        op: step.op,
        action: None,
        outputs: Vec::new(),
        metrics: BTreeMap::new(),
        verdict: &step.verdict,
    };
    let Verdict::Reuse { action, .. } = &step.verdict else { return Ok(shown) };
    shown.action = Some(action);
    for (name, artifact) in &action.outputs {
        let files = match artifact.form {
            Form::File => vec![FileOf { name: name.clone(), bytes: artifact.bytes, path: store.path_of(artifact) }],
            Form::Tree => {
                let files = store.files(artifact)?.into_iter();
                let in_store =
                    |id, bytes| store.path_of(&actloom_engine::cache::Artifact { id, form: Form::File, bytes });
                files
                    .map(|file| FileOf { path: in_store(file.id, file.bytes), name: file.path, bytes: file.bytes })
                    .collect()
            }
        };
        shown.outputs.push(Output { name: name.clone(), files });
    }
    if let Some(metrics) = action.outputs.get("metrics") {
        let bytes = store.read_file(metrics, None)?;
        for metric in
            String::from_utf8_lossy(&bytes).lines().filter_map(|line| serde_json::from_str::<Metric>(line).ok())
        {
            shown.metrics.insert(metric.name.clone(), metric);
        }
    }
    Ok(shown)
}

fn page(shown: &Shown<'_>) -> String {
    let Shown { name, op, action, outputs, metrics, verdict } = shown;
    let mut page = format!("{} {}\n", name.bold(), format!("(op {op})").dimmed());
    let Some(action) = action else {
        let why = match verdict {
            Verdict::Pending { because, .. } => waits_for(because),
            Verdict::Run { reasons, .. } => sentence(reasons),
            Verdict::Reuse { .. } => String::new(),
        };
        return page + &format!("  no result as the recipe stands: {why}\n");
    };
    page += &format!("key {}\n\n{}\n", action.key, "outputs".bold());
    for Output { name, files } in outputs {
        let artifact = &action.outputs[name];
        page += &format!("  {} {}, {}\n", name.green(), text::bytes(artifact.bytes), artifact.id.short().dimmed());
        for file in files {
            let path = file.path.as_ref().map(ToString::to_string).unwrap_or_default();
            let label = if artifact.form == Form::Tree {
                format!("{} {}", file.name, text::bytes(file.bytes))
            } else {
                String::new()
            };
            page += &format!("    {label}{}{}\n", if label.is_empty() { "" } else { "  " }, path.dimmed());
        }
    }
    if !metrics.is_empty() {
        page += &format!("\n{}\n", "metrics (last values)".bold());
        let rows = metrics.iter().map(|(name, metric)| {
            let value = metric.value.map_or("not finite".to_owned(), |value| value.to_string());
            vec![format!("  {name}"), value, format!("step {}", metric.step)]
        });
        page += text::columns(&["", "", ""], rows).trim_start_matches('\n');
    }
    page += &format!("\n{}\n", "parameters".bold());
    page += &entries(&action.manifest["params"]);
    page += &format!("\n{}\n", "provenance".bold());
    page += &entries(&action.provenance);
    page
}

/// The entries of an object, a line each; what says nothing is left out.
fn entries(value: &Value) -> String {
    let Some(object) = value.as_object() else { return String::new() };
    let says = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(entries) => !entries.is_empty(),
        _ => true,
    };
    let line = |(name, value): (&String, &Value)| match value {
        Value::String(words) => format!("  {name}: {}\n", text::time(words)),
        value => format!("  {name}: {value}\n"),
    };
    object.iter().filter(|(_, value)| says(value)).map(line).collect()
}
