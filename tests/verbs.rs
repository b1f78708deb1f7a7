//! Every verb from the outside: JSON for programs, exit codes as documented, and words that help when something is wrong.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Place, Ran, lines, quickstart, root, smoke, text};

/// What `--help` promises.
const DONE: Option<i32> = Some(0);
const STEP_FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const RECIPE: Option<i32> = Some(3);
const WORLD: Option<i32> = Some(4);
const UNSOUND: Option<i32> = Some(5);

/// The messages of a failure with `--json`, which stand on stderr for people as well.
fn errors(ran: &Ran) -> Vec<String> {
    let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {:?}", ran.stdout));
    let errors = told["errors"].as_array().unwrap();
    assert!(!errors.is_empty());
    let messages: Vec<String> = errors.iter().map(|error| text(&error["message"])).collect();
    for message in &messages {
        assert!(ran.stderr.contains(message.as_str()), "{message:?} is not in\n{}", ran.stderr);
    }
    messages
}

/// Runs something that is wrong; it has to end with this code and to say all of these words.
fn wrong(place: &Place, code: Option<i32>, args: &[&str], words: &[&str]) {
    let ran = place.run(&[args, &["--json"]].concat());
    assert_eq!(ran.code, code, "`actloom {}`:\n{}", args.join(" "), ran.stderr);
    errors(&ran);
    let ran = place.run(args);
    assert_eq!(ran.code, code, "`actloom {}`", args.join(" "));
    for word in words {
        assert!(ran.stderr.contains(word), "`actloom {}` does not say {word:?}:\n{}", args.join(" "), ran.stderr);
    }
    assert_eq!(ran.stdout, "", "`actloom {}` failed and printed data", args.join(" "));
}

#[test]
fn every_verb_prints_json() {
    let recipe = ["quickstart.toml", "--profile", "smoke"];
    for verb in ["plan", "why", "graph"] {
        let printed = smoke().json(&[&[verb], &recipe[..]].concat());
        let steps = if verb == "why" { &printed } else { &printed["steps"] };
        assert!(steps.as_array().is_some_and(|steps| steps.len() > 20), "{verb}: {printed}");
    }
    let shown = smoke().json(&["show", "quickstart.toml", "table", "--profile", "smoke"]);
    assert_eq!(shown[0]["name"], "table");
    assert!(smoke().json(&["ops"]).as_array().is_some_and(|ops| ops.iter().any(|op| op["name"] == "act")));
    assert_eq!(smoke().json(&["ops", "act"])["name"], "act");
    assert!(smoke().json(&["schema"])["properties"]["step"].is_object());
    let runs = smoke().json(&["runs"]);
    assert_eq!(runs[0]["recipe"], "quickstart");
    assert_eq!(runs[0]["ending"], "finished");
    assert!(smoke().json(&["cache", "ls"]).as_array().is_some_and(|actions| actions.len() > 20));
    assert!(smoke().json(&["cache", "du"])["bytes"].as_u64() > Some(0));
    assert_eq!(smoke().json(&["cache", "verify"])["problems"], Value::Array(Vec::new()));
    assert!(smoke().json(&["cache", "gc"])["plan"].is_object());
    let place = Place::new();
    assert_eq!(place.json(&["new", "mine"])["path"], "mine/recipe.toml");
    // A run tells its events, then its summary.
    let (last, events) = smoke().events().split_last().unwrap();
    assert_eq!(events[0]["event"], "run_started");
    assert!(events.iter().all(|event| event["event"].is_string()));
    assert_eq!((&last["event"], &last["failed"], &last["skipped"]), (&"summary".into(), &0.into(), &0.into()));
    let outputs: BTreeSet<String> = last["outputs"].as_array().unwrap().iter().map(|o| text(&o["step"])).collect();
    assert_eq!(outputs, BTreeSet::from(["report".to_owned(), "table".to_owned()]));
}

#[test]
fn text_goes_to_stdout_and_talk_to_stderr() {
    for args in [
        &["plan", "quickstart.toml"][..],
        &["why", "quickstart.toml", "act"],
        &["graph", "quickstart.toml"],
        &["graph", "quickstart.toml", "--format", "mermaid", "--expand"],
        &["ops"],
        &["runs"],
        &["cache", "ls"],
        &["cache", "du"],
    ] {
        let ran = smoke().ok(args);
        assert!(!ran.stdout.is_empty() && ran.stdout.ends_with('\n'), "{args:?}: {:?}", ran.stdout);
        assert_eq!(ran.stderr, "", "{args:?} talks although all is well");
        assert!(!ran.stdout.contains('\u{1b}'), "{args:?} colours what no terminal reads");
    }
    let dot = smoke().ok(&["graph", "quickstart.toml"]).stdout;
    assert!(dot.starts_with("digraph") && dot.contains("alternatives"), "{dot}");
}

#[test]
fn a_failing_step_takes_its_descendants_along_and_nothing_else() {
    let place = Place::copy_of(smoke());
    // All pairs are held out, so there is none to train on; imitation without ACT does not care.
    let args =
        ["run", "quickstart.toml", "--profile", "smoke", "--set", "step.pairs.held_out=1.0", "act", "il", "--json"];
    let ran = place.run(&args);
    assert_eq!(ran.code, STEP_FAILED, "{}", ran.stderr);
    let events = lines(&ran.stdout);
    let summary = events.last().unwrap();
    let in_state = |state: &str| -> BTreeSet<String> {
        let steps = summary["steps"].as_array().unwrap().iter().filter(|step| step["state"] == state);
        steps.map(|step| text(&step["name"])).collect()
    };
    assert_eq!(in_state("failed"), BTreeSet::from(["act[seed=0]".to_owned(), "act[seed=1]".to_owned()]));
    let skipped = in_state("skipped");
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    assert!(skipped.iter().all(|name| name.starts_with("il[") && name.contains("start=act")), "{skipped:?}");
    assert!(in_state("reused").iter().any(|name| name.contains("start=initial")), "{summary:#}");
    assert!(ran.stderr.contains("failed act[seed=0]"), "{}", ran.stderr);
    assert_eq!(place.json(&["runs"]).as_array().unwrap().last().unwrap()["ending"], "failed");
    place.verify_is_clean();
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let place = Place::new();
    for args in [&["fly"][..], &["run", "--no-such-flag"], &["plan", "--color", "pink"], &["cache"], &[]] {
        let ran = place.run(args);
        assert_eq!(ran.code, USAGE, "{args:?}");
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{args:?}");
    }
    wrong(&place, USAGE, &["run", "quickstart.toml", "akt"], &["no step `akt`", "`act`"]);
    wrong(&place, USAGE, &["why", "quickstart.toml", "act[seed=9]"], &["`seed`", "`9`"]);
    wrong(&place, USAGE, &["run", "quickstart.toml", "--force", "tabel"], &["tabel", "`table`"]);
    wrong(&place, USAGE, &["ops", "akt"], &["no op `akt`", "`act`"]);
    wrong(&place, USAGE, &["show", "quickstart.toml"], &["no step is named"]);
    wrong(&place, USAGE, &["plan", "--log", "a=b=c"], &["a=b=c"]);
    place.write("second.toml", &quickstart());
    wrong(&place, USAGE, &["plan"], &["2 recipes", "`quickstart.toml`", "`second.toml`"]);
}

#[test]
fn a_wrong_recipe_ends_with_3_and_says_everything_that_is_wrong() {
    let place = Place::new();
    wrong(&place, RECIPE, &["plan", "no-such.toml"], &["no-such.toml"]);
    wrong(&place, RECIPE, &["run", "quickstart.toml", "--profile", "smok"], &["`smok`", "`smoke`"]);
    let set = |value: &'static str| ["plan", "quickstart.toml", "--set", value];
    wrong(&place, RECIPE, &set("step.act.learning_rat=1"), &["learning_rat", "learning_rate"]);
    wrong(&place, RECIPE, &set("step.act.group=many"), &["group", "an integer"]);
    wrong(&place, RECIPE, &set("step.nobody.group=3"), &["nobody"]);
    wrong(&place, RECIPE, &set("nonsense"), &["nonsense", "="]);
    let broken = quickstart().replace("[step.act]", "[step.act]\ngroop = 8").replace("\"@base\"", "\"@bass\"");
    place.write("broken.toml", &broken);
    wrong(&place, RECIPE, &["run", "broken.toml"], &["broken.toml:", "`groop`", "`group`", "`bass`", "`base`", "^"]);
    // A wrong recipe is found before anything runs.
    let store = place.path("store/v1/runs");
    assert!(!store.exists() || std::fs::read_dir(store).unwrap().next().is_none());
}

#[test]
fn a_store_that_cannot_be_used_ends_with_4() {
    let place = Place::new();
    place.write("a-file", "not a folder");
    wrong(&place, WORLD, &["plan", "quickstart.toml", "--store", "a-file"], &["a-file"]);
    wrong(&place, WORLD, &["cache", "ls", "--store", "a-file/deeper"], &["a-file"]);
    wrong(&place, WORLD, &["plan", "quickstart.toml", "--trace", "no/such/folder/trace.json"], &["no/such/folder"]);
}

/// A file of the store that holds a result's bytes.
fn an_object(place: &Place) -> PathBuf {
    let shown = place.json(&["show", "quickstart.toml", "demos[seed=0]", "--profile", "smoke"]);
    PathBuf::from(text(&shown[0]["outputs"][0]["files"][0]["path"]))
}

#[test]
fn a_damaged_store_ends_verify_with_5_and_is_made_whole_by_the_next_run() {
    let place = Place::copy_of(smoke());
    let object = an_object(&place);
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[0] ^= 1;
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, bytes).unwrap();
    let ran = place.run(&["cache", "verify"]);
    assert_eq!(ran.code, UNSOUND, "{}", ran.stdout);
    let printed = place.run(&["cache", "verify", "--json"]);
    assert_eq!(printed.code, UNSOUND);
    let report: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 1, "{report:#}");
    let repaired = place.run(&["cache", "verify", "--repair"]);
    assert_eq!(repaired.code, UNSOUND);
    // What is gone is made again, to the same bytes; nothing that reads it notices.
    let plan = place.json(&["plan", "quickstart.toml", "--profile", "smoke", "act"]);
    assert_ne!(plan["counts"]["run"], 0, "{plan:#}");
    let ran = place.ok(&["run", "quickstart.toml", "--profile", "smoke", "act", "--json"]);
    let published: Vec<Value> =
        lines(&ran.stdout).into_iter().filter(|e| e["event"] == "published").map(|e| e["node"].clone()).collect();
    assert_eq!(published, ["demos[seed=0]"]);
    place.verify_is_clean();
    assert_eq!(place.ids(), smoke().ids());
}

#[test]
fn a_trace_is_what_chrome_reads() {
    let place = Place::copy_of(smoke());
    place.ok(&["run", "quickstart.toml", "--profile", "smoke", "--trace", "trace.json", "--force", "table"]);
    let events: Value = serde_json::from_str(&place.read("trace.json")).unwrap();
    let events = events.as_array().unwrap();
    let mut open = 0i64;
    for event in events {
        let phase = text(&event["ph"]);
        assert!(["B", "E", "i", "M", "X"].contains(&phase.as_str()), "{event}");
        assert!(phase == "M" || event["ts"].is_number(), "{event}");
        open += i64::from(phase == "B") - i64::from(phase == "E");
    }
    assert_eq!(open, 0, "spans were begun and never ended");
    let names: BTreeSet<&str> = events.iter().filter_map(|event| event["name"].as_str()).collect();
    assert!(names.contains("plan"), "{names:?}");
}

#[test]
fn ops_name_mentions_every_parameter_that_the_schema_has() {
    let schema = smoke().json(&["schema"]);
    let ops = smoke().json(&["ops"]);
    let mut checked = 0;
    for op in ops.as_array().unwrap().iter().map(|op| text(&op["name"])) {
        let page = smoke().ok(&["ops", &op]).stdout;
        assert!(page.contains(&op) && page.contains("Parameters") && page.contains("Outputs"), "{page}");
        for name in properties_of(&schema, &op) {
            assert!(page.contains(&format!("  {name} ")), "`actloom ops {op}` says nothing of `{name}`:\n{page}");
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} parameters were looked for");
}

/// What a step with this op may have beside what every step may have, off the recipe's schema.
fn properties_of(schema: &Value, op: &str) -> Vec<String> {
    let branches = find_branches(schema, op);
    assert!(!branches.is_empty(), "the schema does not know op `{op}`");
    let own = ["op", "each", "seed", "about", "needs", "pin_device", "resources", "cpu", "gpu", "after"];
    let names = branches.iter().flat_map(|properties| properties.keys().cloned());
    names.filter(|name| !own.contains(&name.as_str())).collect()
}

/// The `properties` of every subschema whose `op` is this one.
fn find_branches<'s>(schema: &'s Value, op: &str) -> Vec<&'s serde_json::Map<String, Value>> {
    let mut found = Vec::new();
    if let Some(properties) = schema.get("properties").and_then(Value::as_object)
        && properties.get("op").is_some_and(|it| it["const"] == op)
    {
        found.push(properties);
    }
    match schema {
        Value::Object(entries) => found.extend(entries.values().flat_map(|value| find_branches(value, op))),
        Value::Array(items) => found.extend(items.iter().flat_map(|value| find_branches(value, op))),
        _ => {}
    }
    found
}

#[test]
fn the_schema_takes_the_quickstart_and_refuses_unknown_keys() {
    let schema = smoke().json(&["schema"]);
    jsonschema::meta::validate(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let as_json = |recipe: &str| serde_json::to_value(recipe.parse::<toml::Table>().unwrap()).unwrap();
    let recipe = quickstart();
    let told: Vec<String> = validator.iter_errors(&as_json(&recipe)).map(|error| error.to_string()).collect();
    assert!(told.is_empty(), "{told:#?}");
    for (from, to) in [
        ("[matrix]", "[matricks]"),
        ("[step.act]", "[step.act]\nepoks = 6"),
        ("[step.initial]", "[step.initial]\nbatch = \"many\""),
        ("\"pretrain\"", "\"pretrane\""),
    ] {
        let changed = recipe.replacen(from, to, 1);
        assert_ne!(changed, recipe, "the quickstart has no `{from}`");
        assert!(!validator.is_valid(&as_json(&changed)), "the schema takes `{to}`");
    }
}

#[test]
fn new_makes_a_recipe_that_plans_and_spares_what_is_there() {
    let place = Place::new();
    let ran = place.ok(&["new", "mine"]);
    assert_eq!(ran.stdout.trim(), "mine/recipe.toml");
    let plan = place.json(&["plan", "mine"]);
    assert_eq!(plan["recipe"], "mine");
    assert!(plan["counts"]["run"].as_u64() > Some(0));
    let before = place.read("mine/recipe.toml");
    wrong(&place, USAGE, &["new", "mine"], &["mine/recipe.toml", "exists"]);
    assert_eq!(place.read("mine/recipe.toml"), before);
    place.ok(&["new", "other.toml"]);
    assert_eq!(place.json(&["plan", "other.toml"])["recipe"], "other");
}

#[test]
fn gc_plans_first_and_collects_only_when_told() {
    let place = Place::copy_of(smoke());
    let bytes = || place.json(&["cache", "du"])["bytes"].as_u64().unwrap();
    let results = || place.json(&["cache", "ls"]).as_array().unwrap().len();
    let (size, count) = (bytes(), results());
    let ran = place.ok(&["cache", "gc", "--max-bytes", "0"]);
    assert!(ran.stderr.contains("nothing was removed") && ran.stderr.contains("--apply"), "{}", ran.stderr);
    assert_eq!((bytes(), results()), (size, count), "a plan removed something");
    assert_eq!(place.ids(), smoke().ids());
    // What a recipe would reuse can be kept.
    let half = (size / 2).to_string();
    let planned = place.json(&["cache", "gc", "--max-bytes", &half]);
    assert_eq!(planned["collected"], Value::Null);
    assert!(planned["plan"]["actions"].as_array().is_some_and(|actions| !actions.is_empty()), "{planned}");
    let applied = place.json(&["cache", "gc", "--max-bytes", &half, "--apply"]);
    assert_eq!(applied["plan"]["actions"], planned["plan"]["actions"], "what was done is not what was planned");
    assert!(bytes() < size && results() < count);
    place.verify_is_clean();
    let ran = place.ok(&["cache", "gc", "--max-bytes", "0", "--apply"]);
    assert!(ran.stdout.contains("freed"), "{}", ran.stdout);
    assert_eq!(results(), 0);
    place.verify_is_clean();
    let plan = place.json(&["plan", "quickstart.toml", "--profile", "smoke"]);
    assert_eq!(plan["counts"]["reuse"], 0);
    // Why it has to run again is known.
    let ran = place.ok(&["why", "quickstart.toml", "model", "--profile", "smoke"]);
    assert!(ran.stdout.contains("removed from the store"), "{}", ran.stdout);
}

#[test]
fn help_documents_every_exit_code() {
    let ran = smoke().ok(&["--help"]);
    for code in [DONE, STEP_FAILED, USAGE, RECIPE, WORLD, UNSOUND, Some(130)].into_iter().flatten() {
        let line = format!("{code} ");
        assert!(ran.stdout.lines().any(|it| it.trim_start().starts_with(&line)), "no exit code {code} in --help");
    }
    for verb in ["run", "plan", "why", "graph", "ops", "schema", "show", "runs", "cache", "new"] {
        let help = smoke().ok(&[verb, "--help"]);
        assert!(help.stdout.contains("Usage:") && help.stdout.contains("--json"), "{verb}");
    }
}

#[test]
fn the_reference_in_the_book_is_what_the_ops_say() {
    let place = Place::new();
    let page = place.ok(&["ops", "--markdown"]).stdout;
    let book = std::fs::read_to_string(root().join("docs/src/ops.md")).unwrap();
    assert!(page == book, "write it again: actloom ops --markdown > docs/src/ops.md");
}
