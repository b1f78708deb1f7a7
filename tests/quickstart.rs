//! The quickstart's smoke run: the same bytes everywhere, nothing done twice, and exactly what a change touches done anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::{Place, Ran, lines, quickstart, smoke, text};

/// The table's rows, as the recipe names them.
pub const ROWS: [&str; 6] = ["initial", "ACT", "IL", "ACT -> IL", "RL", "ACT -> RL"];

/// A change to `act` that keeps it as small as it is.
const CHANGE: &str = "step.act.learning_rate=0.001";

/// The documented promise is 100 ms on an idle machine; tests share theirs.
const AT_ONCE: Duration = Duration::from_secs(1);

fn table(place: &Place, file: &str) -> String {
    place.read(&format!("out/quickstart-smoke/table/{file}"))
}

/// What the recipe writes, so that a recipe with other numbers needs no other test.
fn parameter(step: &str, name: &str) -> Value {
    let recipe: toml::Table = quickstart().parse().unwrap();
    serde_json::to_value(&recipe["step"][step][name]).unwrap()
}

/// The steps of a plan by verdict.
fn verdicts(plan: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut by_verdict = BTreeMap::<String, BTreeSet<String>>::new();
    for step in plan["steps"].as_array().unwrap() {
        by_verdict.entry(text(&step["verdict"])).or_default().insert(text(&step["name"]));
    }
    by_verdict
}

/// These steps and all that read from them, however indirectly, off the printed graph.
fn descendants(graph: &Value, of: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    loop {
        let before = found.len();
        for step in graph["steps"].as_array().unwrap() {
            let mut sources = step["inputs"].as_object().unwrap().values().flat_map(|port| port.as_array().unwrap());
            if step["step"] == of || sources.any(|source| found.contains(source["step"].as_str().unwrap())) {
                found.insert(text(&step["name"]));
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The steps that a run with `--json` really ran.
fn published(ran: &Ran) -> BTreeSet<String> {
    let events = lines(&ran.stdout);
    events.iter().filter(|event| event["event"] == "published").map(|event| text(&event["node"])).collect()
}

fn names(graph: &Value) -> BTreeSet<String> {
    graph["steps"].as_array().unwrap().iter().map(|step| text(&step["name"])).collect()
}

#[test]
fn two_runs_in_different_places_make_the_same_bytes() {
    let other = Place::new();
    // Another number of cores and another folder for results are no part of a key, nor of a result.
    other.ok(&["run", "quickstart.toml", "--profile", "smoke", "--jobs", "1", "--out", "elsewhere"]);
    let (ours, theirs) = (smoke().ids(), other.ids());
    let differ: Vec<&String> = ours.keys().filter(|name| ours.get(*name) != theirs.get(*name)).collect();
    assert!(differ.is_empty(), "these steps made other bytes: {differ:?}");
    assert_eq!(ours.len(), theirs.len());
    for file in ["table.json", "table.csv", "table.md"] {
        assert_eq!(table(smoke(), file), other.read(&format!("elsewhere/quickstart-smoke/table/{file}")), "{file}");
    }
    let show = |place: &Place| place.json(&["show", "quickstart.toml", "table", "--profile", "smoke"]);
    assert_eq!(show(smoke())[0]["action"]["outputs"], show(&other)[0]["action"]["outputs"]);
}

#[test]
fn every_step_of_the_recipe_has_a_result_and_no_step_ran_twice() {
    let graph = smoke().json(&["graph", "quickstart.toml", "--profile", "smoke"]);
    let ids = smoke().ids();
    assert_eq!(ids.keys().cloned().collect::<BTreeSet<_>>(), names(&graph));
    assert!(ids.values().all(|outputs| !outputs.is_empty()));
    let times = smoke().times_published();
    assert_eq!(times.keys().cloned().collect::<BTreeSet<_>>(), names(&graph));
    assert!(times.values().all(|times| *times == 1), "{times:?}");
}

#[test]
fn running_again_reuses_everything_at_once() {
    let place = Place::copy_of(smoke());
    let again = || place.ok(&["run", "quickstart.toml", "--profile", "smoke"]);
    let first = again();
    let written = |path: &Path| -> SystemTime { std::fs::metadata(path).unwrap().modified().unwrap() };
    let report = place.path("out/quickstart-smoke/report.html");
    let before = written(&report);
    // The machine may be busy with other tests: the quickest of a few says what the program needs.
    let quickest = (0..5).map(|_| again().took).min().unwrap();
    eprintln!("the smoke run again took {:.0} ms", quickest.as_secs_f64() * 1000.0);
    assert!(quickest < AT_ONCE, "reusing everything took {quickest:?}");
    assert_eq!(written(&report), before, "a run that does nothing wrote the report again");
    assert_eq!(first.stdout, again().stdout);
    for row in ROWS {
        assert!(first.stdout.contains(row), "the printed table has no row `{row}`:\n{}", first.stdout);
    }
    let json = place.ok(&["run", "quickstart.toml", "--profile", "smoke", "--json"]);
    assert!(published(&json).is_empty(), "{:?}", published(&json));
    assert_eq!(place.ids(), smoke().ids());
    // The copied journal has the first run; none of those that followed ran a step.
    assert!(place.times_published().values().all(|times| *times == 1));
}

#[test]
fn a_change_to_act_touches_act_and_what_follows_it() {
    let options = ["--profile", "smoke", "--set", CHANGE];
    let graph = smoke().json(&[&["graph", "quickstart.toml"], &options[..]].concat());
    let touched = descendants(&graph, "act");
    assert!(touched.contains("act[seed=0]") && touched.contains("table") && !touched.contains("base"), "{touched:?}");
    assert!(touched.contains("il[seed=1,start=act]") || touched.contains("il[start=act,seed=1]"), "{touched:?}");

    let plan = smoke().json(&[&["plan", "quickstart.toml"], &options[..]].concat());
    let mut verdicts = verdicts(&plan);
    let reuse = verdicts.remove("reuse").unwrap();
    assert_eq!(reuse, names(&graph).difference(&touched).cloned().collect());
    assert_eq!(verdicts["run"], BTreeSet::from(["act[seed=0]".to_owned(), "act[seed=1]".to_owned()]));
    assert_eq!(verdicts["run"].union(&verdicts["pending"]).cloned().collect::<BTreeSet<_>>(), touched);
}

#[test]
fn a_run_after_a_change_to_act_does_what_the_plan_said() {
    let place = Place::copy_of(smoke());
    // One seed and imitation only: what the whole costs is a second smoke run.
    let goal = ["il[seed=0]", "judge[seed=0,method=ACT]", "--profile", "smoke", "--set", CHANGE];
    let plan = place.json(&[&["plan", "quickstart.toml"], &goal[..]].concat());
    let planned: BTreeSet<String> =
        verdicts(&plan).into_iter().filter(|(verdict, _)| verdict != "reuse").flat_map(|(_, steps)| steps).collect();
    let ran = place.ok(&[&["run", "quickstart.toml", "--json"], &goal[..]].concat());
    assert_eq!(published(&ran), planned);
    assert!(planned.iter().any(|name| name.starts_with("judge")), "{planned:?}");
    assert!(planned.contains("act[seed=0]") && !planned.contains("act[seed=1]"), "{planned:?}");
    let (before, after) = (smoke().ids(), place.ids());
    assert_ne!(before["act[seed=0]"]["model"], after["act[seed=0]"]["model"]);
    place.verify_is_clean();
}

#[test]
fn why_names_the_parameter_with_old_and_new() {
    let options = ["--profile", "smoke", "--set", CHANGE];
    let ran = smoke().ok(&[&["why", "quickstart.toml", "act[seed=0]"], &options[..]].concat());
    let old = parameter("act", "learning_rate");
    assert!(ran.stdout.contains(&format!("`learning_rate` {old} -> 0.001")), "{}", ran.stdout);
    let answers = smoke().json(&[&["why", "quickstart.toml", "act[seed=0]"], &options[..]].concat());
    assert_eq!(answers.as_array().unwrap().len(), 1);
    let reasons = answers[0]["reasons"].as_array().unwrap();
    assert_eq!(reasons.len(), 1, "one change is one reason: {reasons:?}");
    assert_eq!(reasons[0]["reason"], "param_changed");
    assert_eq!(reasons[0]["path"], "learning_rate");
    assert_eq!((&reasons[0]["old"], &reasons[0]["new"]), (&old, &Value::from(0.001)));
    // What did not change says so.
    let ran = smoke().ok(&[&["why", "quickstart.toml", "base"], &options[..]].concat());
    assert!(ran.stdout.contains("base is reused"), "{}", ran.stdout);
}

#[test]
fn a_renamed_step_and_a_renamed_recipe_hit_the_cache() {
    let place = Place::copy_of(smoke());
    let renamed = quickstart()
        .replace("[step.alternatives]", "[step.others]")
        .replace("\"@alternatives\"", "\"@others\"")
        .replace("[step.initial]", "[step.start_here]")
        .replace("\"@initial\"", "\"@start_here\"")
        .replace("start=initial", "start=start_here")
        .replace("name  = \"quickstart\"", "name  = \"another\"");
    assert!(renamed.contains("@others") && renamed.contains("@start_here") && renamed.contains("another"));
    place.write("renamed.toml", &renamed);
    // Axis labels follow the steps' names; only the steps that print labels or lineage may notice.
    let plan = place.json(&["plan", "renamed.toml", "--profile", "smoke", "act", "il", "rl", "exam"]);
    assert_eq!(plan["counts"]["reuse"], plan["counts"]["steps"], "{plan:#}");
    let names = verdicts(&plan).remove("reuse").unwrap();
    assert!(names.contains("others[seed=0]") && names.contains("start_here[seed=1]"), "{names:?}");
    let ran = place.ok(&["run", "renamed.toml", "--profile", "smoke", "act", "--json"]);
    assert!(published(&ran).is_empty());
}

#[test]
fn the_table_is_whole_in_every_format() {
    let table_json: Value = serde_json::from_str(&table(smoke(), "table.json")).unwrap();
    assert_eq!(table_json["rows"]["labels"], Value::from(ROWS.to_vec()));
    assert_eq!(table_json["columns"]["labels"], Value::from(vec!["id", "ood"]));
    assert_eq!(table_json["missing"], Value::Array(Vec::new()), "cells are missing");
    let metrics: Vec<String> = table_json["metrics"].as_array().unwrap().iter().map(text).collect();
    let asked = parameter("table", "metrics");
    assert_eq!(metrics, asked.as_array().unwrap().iter().map(text).collect::<Vec<_>>());
    let cells = table_json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), ROWS.len() * 2);
    for cell in cells {
        for metric in &metrics {
            let stat = &cell["metrics"][metric];
            assert_eq!(stat["n"], 2, "{metric} of {cell}");
            assert!(stat["mean"].as_f64().is_some_and(f64::is_finite), "{metric} of {cell}");
        }
        let success = cell["metrics"]["success"]["mean"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&success), "{success}");
    }
    assert!(!table_json["comparisons"].as_array().unwrap().is_empty());
    let (csv, markdown) = (table(smoke(), "table.csv"), table(smoke(), "table.md"));
    for row in ROWS {
        assert!(csv.contains(row), "table.csv has no row `{row}`");
        let cells = markdown.lines().filter(|line| line.trim_start_matches("| ").starts_with(row));
        assert!(cells.count() >= 1, "table.md has no row `{row}`");
    }
    // The reader has to know whether the model chose among the admissible actions only.
    assert!(markdown.contains("admissible"), "table.md does not say how actions were decoded");
}

#[test]
fn the_report_needs_nothing_but_itself() {
    let page = smoke().read("out/quickstart-smoke/report.html");
    assert!(page.starts_with("<!doctype html>") || page.starts_with("<!DOCTYPE html>"));
    // A name space is a name, not an address that is fetched; what begins with `#` is a part of the page.
    let page = page.replace("http://www.w3.org/2000/svg", "").replace("url(#", "");
    for reference in ["http://", "https://", "src=", "@import", "url(", "<link", "<iframe"] {
        assert!(!page.contains(reference), "the report refers to something outside: `{reference}`");
    }
    for part in ["<svg", "actloom quickstart", "ACT -&gt; IL", "<table"] {
        assert!(page.contains(part), "the report has no `{part}`");
    }
}

#[test]
fn what_a_run_measured_can_be_shown() {
    let shown = smoke().json(&["show", "quickstart.toml", "act", "--profile", "smoke"]);
    let variants = shown.as_array().unwrap();
    assert_eq!(variants.len(), 2);
    for variant in variants {
        let metrics = variant["metrics"].as_object().unwrap();
        assert!(!metrics.is_empty());
        assert!(metrics.values().all(|metric| metric["value"].is_number()), "a metric is not finite: {metrics:?}");
        let files = variant["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "model").unwrap();
        let names: BTreeSet<String> =
            files["files"].as_array().unwrap().iter().map(|file| text(&file["name"])).collect();
        // The layout of a Hugging Face model folder.
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
            assert!(names.contains(name), "the model has no {name}: {names:?}");
        }
        for file in files["files"].as_array().unwrap() {
            assert!(Path::new(&text(&file["path"])).is_file(), "{file}");
        }
    }
}
