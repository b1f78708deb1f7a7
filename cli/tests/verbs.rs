//! Every verb as people and scripts meet it: exact output, exit codes, JSON, and what a kill leaves behind.
//!
//! Invariant: the recipe here takes milliseconds even unoptimised: the expert plays, the rest counts and tabulates.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const RECIPE: &str = r#"name = "small"
about = "the expert against itself"

[matrix]
seed = [0, 1]

[step.demos]
op    = "demos"
world = { env = "household", size = "tiny" }
count = 6
seed  = "$seed"

[step.score]
op       = "eval"
episodes = "@demos"

[step.table]
op      = "table"
results = "@score[*]"
rows    = "seed"
metrics = ["success"]

[step.report]
op     = "report"
inputs = ["@table"]

[profile.more]
set = { "step.demos.count" = 7 }
"#;

/// A folder with a recipe and a store of its own.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("small.toml"), RECIPE).unwrap();
        Place(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
        command.args(args).current_dir(self.path()).env_clear().env("ACTLOOM_STORE", self.path().join("store"));
        command.stdin(Stdio::null());
        command
    }

    fn go(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Code, stdout and stderr of a command, with what changes from run to run taken out.
    fn shown(&self, args: &[&str]) -> String {
        let output = self.go(args);
        let part = |name: &str, bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            if text.is_empty() { String::new() } else { format!("--- {name}\n{text}") }
        };
        let code = output.status.code().unwrap();
        let text = format!("code {code}\n{}{}", part("stdout", &output.stdout), part("stderr", &output.stderr));
        text.replace(self.path().to_str().unwrap(), "HERE")
    }

    fn code(&self, args: &[&str]) -> i32 {
        self.go(args).status.code().unwrap()
    }

    fn stdout(&self, args: &[&str]) -> String {
        String::from_utf8(self.go(args).stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(args)).unwrap()
    }

    /// Content ids of every output of a step.
    fn contents(&self, args: &[&str]) -> Vec<Value> {
        let shown = self.json(&[args, &["--json"]].concat());
        shown.as_array().unwrap().iter().map(|step| step["action"]["outputs"].clone()).collect()
    }
}

macro_rules! snapshot {
    ($text:expr) => {{
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(r"\b[0-9a-f]{64}\b", "ID");
        settings.add_filter(r"objects/[0-9a-f]{2}/", "objects/../");
        settings.add_filter(r"\b[0-9a-f]{12}\b", "SHORT");
        settings.add_filter(r"\d{8}-\d{6}-[0-9a-f]{4}", "RUN");
        settings.add_filter(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME");
        settings.add_filter(r"\b[0-9.]+ (ms|s)\b", "TOOK");
        settings.add_filter(r"seconds: [0-9.e-]+", "seconds: N");
        settings.add_filter(r"peak_process_bytes: \d+", "peak_process_bytes: N");
        settings.add_filter(r#""threads":\d+"#, r#""threads":N"#);
        settings.add_filter(r"[0-9.]+ k?B", "SIZE");
        settings.bind(|| insta::assert_snapshot!($text));
    }};
}

#[test]
fn help_lists_verbs_and_exit_codes() {
    snapshot!(Place::new().shown(&["--help"]));
}

#[test]
fn a_plan_folds_equal_variants() {
    snapshot!(Place::new().shown(&["plan"]));
}

#[test]
fn a_run_prints_its_table_and_says_where_things_are() {
    let place = Place::new();
    snapshot!(place.shown(&["run", "--jobs", "1"]));
    let out = place.path().join("out/small");
    for file in ["report.html", "table/table.json", "table/table.csv", "table/table.md", "table/table.tex"] {
        assert!(out.join(file).is_file(), "{file}");
    }
}

#[test]
fn a_second_run_does_nothing_and_prints_the_same_table() {
    let place = Place::new();
    let first = place.stdout(&["run"]);
    assert!(first.contains("100.0"), "{first}");
    let when = || fs_err::metadata(place.path().join("out/small/report.html")).unwrap().modified().unwrap();
    let before = when();
    let clock = Instant::now();
    let second = place.go(&["run", "small.toml"]);
    assert!(clock.elapsed() < Duration::from_secs(2), "a run that does nothing took {:?}", clock.elapsed());
    assert_eq!(String::from_utf8(second.stdout).unwrap(), first);
    let talk = String::from_utf8(second.stderr).unwrap();
    assert!(talk.contains("\n6 steps reused, in "), "{talk}");
    assert_eq!(when(), before, "files that are right are left alone");
    assert_eq!(place.code(&["run", "--no-out", "--out", "x"]), 2);
}

#[test]
fn one_change_is_planned_explained_and_run_alone() {
    let place = Place::new();
    place.go(&["run", "--no-out"]);
    assert!(!place.path().join("out").exists());
    snapshot!(place.shown(&["plan", "--set", "step.table.metrics=[\"steps\"]"]));
    snapshot!(place.shown(&["plan", "--profile", "more", "--all"]));
    snapshot!(place.shown(&["why", "demos[seed=1]", "--profile", "more"]));
    snapshot!(place.shown(&["why", "small.toml", "table"]));
    snapshot!(place.shown(&["run", "score", "--set", "matrix.seed=[1, 2]", "--jobs", "1"]));
}

#[test]
fn why_traces_a_pending_step_to_what_has_to_run() {
    let place = Place::new();
    place.go(&["run", "--no-out"]);
    let change = ["--set", "step.demos.count=7"];
    snapshot!(place.shown(&["why", "report", change[0], change[1]]));
    snapshot!(place.shown(&["plan", change[0], change[1]]));
    let answer = place.json(&["why", "table", change[0], change[1], "--json"]);
    assert_eq!(answer[0]["roots"][0]["steps"], serde_json::json!(["demos[seed=0]", "demos[seed=1]"]));
}

#[test]
fn a_step_with_a_checkpoint_was_interrupted_and_did_not_never_run() {
    let place = Place::new();
    let key = place.json(&["plan", "demos[seed=0]", "--json"])["steps"][0]["key"].as_str().unwrap().to_owned();
    let scratch = place.path().join("store/v1/scratch").join(key).join("op");
    fs_err::create_dir_all(&scratch).unwrap();
    assert!(place.stdout(&["why", "demos[seed=0]"]).contains("never ran"), "an empty folder is no checkpoint");
    fs_err::write(scratch.join("state"), "1").unwrap();
    snapshot!(place.shown(&["why", "demos"]));
    snapshot!(place.shown(&["plan"]));
}

#[test]
fn a_label_that_does_not_exist_is_answered_with_those_that_do() {
    let place = Place::new();
    for name in ["demos[lr=0.01]", "demos[sed=0]", "demos[seed=3]", "table[seed=0]"] {
        snapshot!(place.shown(&["plan", "small.toml", name]));
    }
}

#[test]
fn why_compares_a_new_step_with_the_nearest_result() {
    let place = Place::new();
    place.go(&["run", "demos"]);
    let renamed = RECIPE.replace("step.demos", "step.games").replace("@demos", "@games").replace("= 6", "= 8");
    fs_err::write(place.path().join("other.toml"), renamed).unwrap();
    snapshot!(place.shown(&["why", "other.toml", "games[seed=0]"]));
}

#[test]
fn show_tells_what_a_step_made_and_how() {
    let place = Place::new();
    snapshot!(place.shown(&["show", "score[seed=0]"]));
    place.go(&["run", "score"]);
    snapshot!(place.shown(&["show", "score[seed=0]"]));
    let shown = place.json(&["show", "demos", "--json"]);
    assert_eq!(shown.as_array().unwrap().len(), 2);
    let file = shown[0]["outputs"].as_array().unwrap().iter().find(|output| output["name"] != "metrics").unwrap();
    let path = file["files"][0]["path"].as_str().unwrap();
    assert_eq!(fs_err::read_to_string(path).unwrap().lines().count(), 6, "the path leads to the episodes");
    assert_eq!(place.code(&["show"]), 2);
}

#[test]
fn export_hands_out_writable_files_and_overwrites_nothing() {
    let place = Place::new();
    let output = place.go(&["export", "demos[seed=0]", "mine"]);
    let talk = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(
        talk.contains("has no result") && talk.contains("'demos[seed=0]'") && talk.contains("actloom run"),
        "{talk}"
    );
    assert!(!place.path().join("mine").exists());

    place.go(&["run", "--no-out"]);
    let listed = place.json(&["export", "small.toml", "demos[seed=0]", "mine", "--json"]);
    let output = listed.as_array().unwrap().iter().find(|output| output["output"] != "metrics").unwrap();
    let file = place.path().join(output["files"][0]["path"].as_str().unwrap());
    assert!(file.starts_with(place.path().join("mine").join(output["output"].as_str().unwrap())));
    assert_eq!(fs_err::read_to_string(&file).unwrap().lines().count(), 6);
    fs_err::OpenOptions::new().append(true).open(&file).unwrap();
    fs_err::write(&file, "mine now").unwrap();
    assert_eq!(place.code(&["cache", "verify"]), 0, "the store has its own");
    assert_eq!(place.code(&["export", "demos[seed=0]", "mine"]), 2);
    assert_eq!(fs_err::read_to_string(&file).unwrap(), "mine now");

    // A folder keeps its files' paths; several variants get a folder each.
    assert_eq!(place.code(&["export", "table", "mine"]), 2, "its metrics would lie on those of the demos");
    assert_eq!(place.stdout(&["export", "table", "other"]), "other/metrics\nother/table\n");
    assert!(place.path().join("other/table/table.json").is_file());
    assert_eq!(place.code(&["export", "score", "scores"]), 0);
    for seed in ["score[seed=0]", "score[seed=1]"] {
        assert!(place.path().join("scores").join(seed).join("metrics").is_file());
    }
    assert_eq!(place.code(&["export", "nothing.toml", "table", "x"]), 3);
    assert_eq!(place.code(&["export", "table"]), 2);
}

#[test]
fn a_profile_has_a_folder_of_its_own() {
    let place = Place::new();
    place.go(&["run"]);
    let table = place.path().join("out/small/table/table.md");
    let before = fs_err::read(&table).unwrap();
    let lines = place.stdout(&["run", "--profile", "more", "--json"]);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["out"], "out/small-more");
    assert!(last["outputs"].as_array().unwrap().iter().any(|output| output["path"] == "out/small-more/table"));
    assert!(place.path().join("out/small-more/table/table.md").is_file());
    assert_eq!(fs_err::read(&table).unwrap(), before);
}

#[test]
fn a_gpu_that_is_demanded_and_not_there_ends_the_run_before_it_begins() {
    if cfg!(feature = "cuda") {
        return;
    }
    let place = Place::new();
    let output = place.go(&["run", "--device", "cuda"]);
    let talk = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4), "{talk}");
    assert!(talk.contains("cannot open CUDA device 0") && talk.contains("help: "), "{talk}");
    assert_eq!(place.stdout(&["runs"]), "no runs yet\n");
}

#[test]
fn what_a_device_cannot_be_asked_is_refused_before_one_is_opened() {
    let place = Place::new();
    for wrong in [
        &["--model", "7B"][..],
        &["--model", "0.6B,7B"],
        &["--model", ""],
        &["--layers", "0"],
        &["--layers", "37"],
        &["--layers", "all"],
    ] {
        assert_eq!(place.code(&[&["device", "bench", "--device", "cpu"], wrong].concat()), 2, "{wrong:?}");
    }
    // these are right, and there is no GPU
    let right = ["device", "bench", "--device", "cpu", "--model", "0.6B,8B", "--layers", "36"];
    assert_eq!(place.code(&right), 4);
    for (more, says) in [(&[][..], "there is no GPU"), (&["--reference", "/nowhere"], "there is no file `/nowhere/")] {
        let output = place.go(&[&["device", "check", "--device", "cpu"], more].concat());
        let talk = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(4) && talk.contains(says) && talk.contains("help: "), "{talk}");
        assert!(output.stdout.is_empty());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn data_that_cannot_be_written_is_a_failure_and_a_closed_pipe_is_none() {
    let place = Place::new();
    let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = place.command(&["ops"]).stdout(full.into_parts().0).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot write to stdout"));

    let mut child = place.command(&["ops"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn runs_lists_endings() {
    let place = Place::new();
    snapshot!(place.shown(&["runs"]));
    place.go(&["run"]);
    place.go(&["run"]);
    snapshot!(place.shown(&["runs"]));
    let runs = place.json(&["runs", "--json"]);
    assert_eq!((&runs[0]["ending"], &runs[1]["summary"]["reused"]), (&"finished".into(), &6.into()));
}

#[test]
fn the_store_is_listed_measured_verified_and_collected() {
    let place = Place::new();
    assert_eq!(place.stdout(&["cache", "ls"]), "no results yet\n");
    place.go(&["run", "table", "--jobs", "1"]);
    snapshot!(place.shown(&["cache", "ls"]));
    assert_eq!(place.json(&["cache", "du", "--json"])["usage"]["actions"]["count"], 5);
    assert_eq!(place.code(&["cache", "verify"]), 0);

    assert_eq!(
        place.json(&["cache", "gc", "--json", "--max-bytes", "1", "--keep", "small.toml"])["plan"]["actions"],
        Value::Array(vec![])
    );
    let planned = place.go(&["cache", "gc", "--max-bytes", "1"]);
    assert!(String::from_utf8(planned.stderr).unwrap().contains("`--apply` removes it"));
    assert_eq!(place.json(&["cache", "du", "--json"])["usage"]["actions"]["count"], 5, "a plan removes nothing");
    assert_eq!(place.code(&["cache", "gc", "--max-bytes", "1", "--apply"]), 0);
    assert_eq!(place.json(&["cache", "du", "--json"])["usage"]["actions"]["count"], 0);
    snapshot!(place.shown(&["plan", "demos"]));
}

#[test]
fn verify_finds_what_somebody_wrote_over() {
    let place = Place::new();
    place.go(&["run", "demos[seed=0]"]);
    let shown = place.json(&["show", "demos[seed=0]", "--json"]);
    let outputs = shown[0]["outputs"].as_array().unwrap();
    let path = outputs.iter().find(|o| o["name"] != "metrics").unwrap()["files"][0]["path"].as_str().unwrap();
    let bytes = fs_err::read(path).unwrap();
    fs_err::remove_file(path).unwrap();
    fs_err::write(path, vec![b'x'; bytes.len()]).unwrap();
    let output = place.go(&["cache", "verify"]);
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("does not hash to its name") && text.contains("1 problem"), "{text}");
}

#[test]
fn a_damaged_record_locks_nothing_and_its_step_mends_it() {
    let place = Place::new();
    place.go(&["run", "demos", "--no-out"]);
    let shown = place.json(&["show", "demos[seed=0]", "--json"]);
    let key = shown[0]["action"]["key"].as_str().unwrap();
    let record = place.path().join("store/v1/actions").join(&key[..2]).join(format!("{key}.json"));
    let damage = || fs_err::write(&record, "{\"check\":").unwrap();

    damage();
    let plan = place.go(&["plan", "demos"]);
    let talk = String::from_utf8(plan.stderr).unwrap();
    assert_eq!(plan.status.code(), Some(0), "{talk}");
    assert!(talk.contains(record.to_str().unwrap()) && talk.contains("cache verify --repair"), "{talk}");
    assert_eq!(place.json(&["cache", "ls", "--json"]).as_array().unwrap().len(), 1);
    let gc = place.go(&["cache", "gc"]);
    assert_eq!(gc.status.code(), Some(4));
    assert!(String::from_utf8(gc.stderr).unwrap().contains("`actloom cache verify --repair`"));
    assert_eq!(place.code(&["run", "demos", "--no-out"]), 0);
    assert_eq!(place.code(&["cache", "verify"]), 0, "the run wrote the record again");

    damage();
    let repair = place.go(&["cache", "verify", "--repair"]);
    assert_eq!(repair.status.code(), Some(5));
    let talk = String::from_utf8(repair.stderr).unwrap();
    assert!(talk.contains("removed 1 damaged file; the store is sound now"), "{talk}");
    assert_eq!(place.code(&["cache", "verify"]), 0);

    fs_err::write(place.path().join("store/v1/mine"), "").unwrap();
    for args in [&["cache", "verify"][..], &["cache", "verify", "--repair"]] {
        let talk = String::from_utf8(place.go(args).stderr).unwrap();
        assert!(talk.contains("`--repair` has nothing to do here"), "{talk}");
    }
}

#[test]
fn a_new_recipe_can_be_planned_as_it_is() {
    let place = Place::new();
    assert_eq!(place.stdout(&["new", "my study"]), "my study/recipe.toml\n");
    let plan = place.json(&["plan", "my study", "--json"]);
    assert_eq!(plan["recipe"], "my study");
    assert_eq!(plan["counts"]["reuse"], 0);
    assert_eq!(place.code(&["new", "my study"]), 2, "what is there is not written over");
    assert_eq!(place.stdout(&["new", "one.toml"]), "one.toml\n");
    // Two recipes in this folder now: neither is guessed.
    snapshot!(place.shown(&["plan"]));
}

#[test]
fn graphs_ops_and_schema_print() {
    let place = Place::new();
    snapshot!(place.shown(&["graph"]));
    snapshot!(place.shown(&["graph", "--format", "mermaid", "--expand"]));
    let graph = place.json(&["graph", "--json"]);
    assert_eq!(graph["steps"][2]["inputs"]["episodes"][0]["step"], "demos[seed=0]");
    let ops = place.json(&["ops", "--json"]);
    assert!(ops.as_array().unwrap().iter().any(|op| op["name"] == "demos"));
    let reference = place.stdout(&["ops", "demos"]);
    assert!(reference.contains("Parameters\n") && reference.contains("count an integer"), "{reference}");
    snapshot!(place.shown(&["ops", "demo"]));
    assert_eq!(place.json(&["schema"])["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn errors_have_their_exit_codes_and_say_what_to_do() {
    let place = Place::new();
    snapshot!(place.shown(&["run", "small.toml", "tabel"]));
    snapshot!(place.shown(&["run", "missing.toml"]));
    snapshot!(place.shown(&["plan", "--set", "step.demos.cuont=3"]));
    snapshot!(place.shown(&["run", "--device", "gpu"]));
    let errors = place.json(&["plan", "--set", "step.demos.count=-3", "--json"]);
    assert!(errors["errors"][0]["message"].as_str().unwrap().contains("count"), "{errors}");
    fs_err::write(place.path().join("file"), "").unwrap();
    assert_eq!(place.code(&["runs", "--store", "file"]), 4);
    assert_eq!(place.code(&["runs", "--log", "a=b=c"]), 2);
    fs_err::remove_file(place.path().join("small.toml")).unwrap();
    snapshot!(place.shown(&["run"]));
}

#[test]
fn a_failed_step_is_exit_code_1_and_named() {
    let place = Place::new();
    // Which metrics there are shows only when the scores are there.
    let broken = format!(
        "{RECIPE}\n[step.wrong]\nop = \"table\"\nresults = \"@score[*]\"\nrows = \"seed\"\nmetrics = [\"nothing\"]\n"
    );
    fs_err::write(place.path().join("small.toml"), broken).unwrap();
    let output = place.go(&["run", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["event"], "run_started");
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["failed"], &last["published"]), (&"summary".into(), &1.into(), &6.into()));
    assert!(last["outputs"].as_array().unwrap().iter().any(|output| output["kind"] == "report"));
    assert!(lines.iter().any(|line| line["event"] == "failed" && line["node"] == "wrong"));
}

#[test]
fn colour_is_written_only_when_wanted() {
    let place = Place::new();
    let escapes = |args: &[&str], variable: Option<(&str, &str)>| {
        let output = place.command(args).envs(variable).output().unwrap();
        output.stdout.contains(&0x1b) || output.stderr.contains(&0x1b)
    };
    assert!(!escapes(&["why", "demos"], None), "not into a pipe");
    assert!(escapes(&["why", "demos", "--color", "always"], None));
    assert!(!escapes(&["why", "demos", "--color", "never"], Some(("CLICOLOR_FORCE", "1"))));
    assert!(!escapes(&["why", "nothing"], Some(("NO_COLOR", "1"))));
}

#[test]
fn a_trace_holds_the_steps() {
    let place = Place::new();
    place.go(&["run", "demos", "--trace", "trace.json"]);
    let trace: Value = serde_json::from_slice(&fs_err::read(place.path().join("trace.json")).unwrap()).unwrap();
    let names: Vec<&str> = trace.as_array().unwrap().iter().filter_map(|event| event["name"].as_str()).collect();
    assert!(["plan", "run", "step", "put"].iter().all(|name| names.contains(name)), "{names:?}");
}

/// The recipe with enough episodes that a signal can hit it.
const LONG: [&str; 6] = ["run", "--set", "step.demos.count=30000", "--no-out", "--jobs", "2"];

/// Starts the long run and waits until an op is at work.
fn started(place: &Place) -> std::process::Child {
    let child = place.command(&LONG).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let scratch = place.path().join("store/v1/scratch");
    let clock = Instant::now();
    while fs_err::read_dir(&scratch).map_or(0, Iterator::count) == 0 {
        assert!(clock.elapsed() < Duration::from_secs(60), "nothing started");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &std::process::Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_killed_run_leaves_a_sound_store_and_the_next_one_ends_as_if_nothing_had_been() {
    let (place, other) = (Place::new(), Place::new());
    let mut child = started(&place);
    signal(&child, "-KILL");
    assert_eq!(child.wait().unwrap().code(), None, "it died of the signal");
    assert_eq!(place.code(&["cache", "verify"]), 0);
    assert_eq!(place.json(&["runs", "--json"])[0]["ending"], "killed");
    let short = ["--set", "step.demos.count=40"];
    for place in [&place, &other] {
        assert_eq!(place.code(&[&["run", "--no-out"][..], &short].concat()), 0);
    }
    let table = ["show", "table", short[0], short[1]];
    assert_eq!(place.contents(&table), other.contents(&table));
    assert_eq!(place.code(&["cache", "gc", "--apply"]), 0);
    assert_eq!(place.json(&["cache", "du", "--json"])["usage"]["stage"]["count"], 0, "what the kill left is gone");
}

#[test]
fn an_interrupted_run_is_exit_code_130_and_the_next_one_finishes() {
    for name in ["-INT", "-TERM", "-USR1"] {
        let place = Place::new();
        let child = started(&place);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{name}");
        let talk = String::from_utf8(output.stderr).unwrap();
        assert!(talk.contains(" not started\n") && !talk.contains("skipped"), "{talk}");
        assert_eq!(place.json(&["runs", "--json"])[0]["ending"], "interrupted");
        assert_eq!(place.code(&["run", "demos", "--no-out"]), 0);
    }
}

#[test]
fn two_processes_run_each_step_once() {
    let place = Place::new();
    let args = ["run", "demos", "--set", "step.demos.count=300", "--no-out", "--json"];
    let runs: Vec<_> =
        (0..3).map(|_| place.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()).collect();
    let mut published = 0;
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        let text = String::from_utf8(output.stdout).unwrap();
        let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        published += last["published"].as_u64().unwrap();
        assert_eq!(last["published"].as_u64().unwrap() + last["reused"].as_u64().unwrap(), 2);
    }
    assert_eq!(published, 2);
}
