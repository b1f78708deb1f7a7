//! `actloom play` in pipes: exact output, exit codes, and what is written.
//!
//! Invariant: the world is the smallest of the household's, and the model the tiny one of the parity vectors.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder with the tiny model in it, as `model`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/tests/fixtures/parity/model");
        std::os::unix::fs::symlink(model.canonicalize().unwrap(), dir.path().join("model")).unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Plays with these lines on stdin.
    fn go(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
        command.arg("play").args(args).current_dir(self.0.path()).env_clear();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // whoever does not read its input closes it
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Code, stdout and stderr.
    fn shown(&self, args: &[&str], input: &str) -> String {
        let output = self.go(args, input);
        let part = |name: &str, bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            if text.is_empty() { String::new() } else { format!("--- {name}\n{text}") }
        };
        let code = output.status.code().unwrap();
        format!("code {code}\n{}{}", part("stdout", &output.stdout), part("stderr", &output.stderr))
    }

    /// What every line of stdout says.
    fn events(&self, args: &[&str], input: &str) -> Vec<Value> {
        let output = self.go(&[args, &["--json"]].concat(), input);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

const TASK: &[&str] = &["household", "2", "--split", "id", "--seed", "1"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [TASK, more].concat()
}

#[test]
fn a_session_in_a_pipe_says_what_the_world_says_and_where_the_game_stands() {
    let lines = "/actions go\n1\nfly\n\n/undo\n/hint\n/actions take\n/help\n/quit\nlook\n";
    let shown = Place::new().shown(TASK, lines);
    assert!(shown.starts_with("code 0\n--- stdout\nhousehold tiny/id/2, "), "{shown}");
    // in order: the list, an action by its number, one that is refused, what is taken back, a hint
    let mut rest = shown.as_str();
    for part in [
        " go to ",
        "> ",
        "\nstep 1: reward 0, score 0\n",
        "> fly\nNothing happens.\n",
        "step 2: reward 0, score 0, not admissible\n",
        "step 1 again: score 0\n",
        "hint: ",
        "--- stderr\n",
        "/actions [WORDS] [PAGE]",
    ] {
        let at = rest.find(part).unwrap_or_else(|| panic!("no `{part}` after what came before it in\n{shown}"));
        rest = &rest[at + part.len()..];
    }
    assert!(!shown.contains("step 3"), "what stands behind `/quit` is not read: {shown}");
    assert!(!shown.contains('\u{1b}'), "a pipe gets no colour: {shown:?}");
}

#[test]
fn a_game_is_won_by_hints_alone_and_its_episode_is_written() {
    let place = Place::new();
    let mut lines = String::new();
    let mut steps = 0;
    // what the expert says depends on all that was done, so the session is played again with one more action each time
    let last = loop {
        let events = place.events(TASK, &format!("{lines}/hint\n"));
        let Some(action) = events.last().unwrap()["action"].as_str() else { break events };
        lines += &format!("{action}\n");
        steps += 1;
        assert!(steps < 40, "{lines}");
        let events = place.events(TASK, &lines);
        if events.last().unwrap()["event"] == "over" {
            break events;
        }
    };
    let over = last.last().unwrap();
    assert_eq!((&over["won"], &over["steps"], &over["end"]), (&true.into(), &steps.into(), &"done".into()));
    let step = &last[last.len() - 2];
    assert_eq!((&step["event"], &step["done"], &step["score"]), (&"step".into(), &true.into(), &1.0.into()));
    for _ in 0..2 {
        let output = place.go(&with(&["--out", "mine.jsonl"]), &lines);
        assert_eq!(output.status.code(), Some(0));
    }
    let text = fs_err::read_to_string(place.path("mine.jsonl")).unwrap();
    let written: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((written.len(), &written[0]), (2, &written[1]));
    assert_eq!((&written[0]["actor"], &written[0]["success"]), (&"expert".into(), &true.into()));
    assert_eq!(written[0]["turns"].as_array().unwrap().len(), steps);
}

#[test]
fn a_model_plays_to_the_end_in_a_pipe() {
    let place = Place::new();
    let model = ["--model", "model", "--device", "cpu", "--max-tokens", "6", "--max-steps", "2"];
    let free = place.events(&with(&[&model[..], &["--prompt-set", "style=react"]].concat()), "");
    let names: Vec<&str> = free.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["start", "reply", "step", "reply", "step", "over"]);
    assert!(free[1]["refused"].is_string(), "a model of noise says no thought: {}", free[1]);
    assert_eq!((&free[2]["action"], &free[2]["valid"], &free[5]["end"]), (&"".into(), &false.into(), &"limit".into()));
    let held = with(&[&model[..], &["--decoding", "admissible", "--out", "it.jsonl"]].concat());
    assert_eq!(place.events(&held, "")[2]["valid"], true);
    let episode: Value = serde_json::from_str(&fs_err::read_to_string(place.path("it.jsonl")).unwrap()).unwrap();
    assert_eq!((&episode["actor"], &episode["decoding"]), (&"policy".into(), &"admissible".into()));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_played() {
    let place = Place::new();
    let refused = |args: &[&str], parts: &[&str]| {
        let shown = place.shown(args, "look\n");
        assert!(shown.starts_with("code 2\n--- stderr\nerror: "), "{shown}");
        assert!(parts.iter().all(|part| shown.contains(part)), "{parts:?} in {shown}");
    };
    refused(&with(&["--set", "siez=small"]), &["`siez`", "help: ", "`size`"]);
    refused(&with(&["--set", "size=huge"]), &["`huge`", "`small`"]);
    refused(&["household", "0", "--split", "tests"], &["`tests`", "`id`"]);
    refused(&["household", "id/x", "--split", "id"], &["has no task `id/x`", "`tiny/id/0`"]);
    refused(&with(&["--data", "nowhere"]), &["nowhere"]);
    refused(&with(&["--model", "model", "--prompt-set", "stile=react"]), &["`stile`", "`style`"]);
    refused(&with(&["--model", "nobody"]), &["nobody"]);
    refused(&["household", "ood/1", "--split", "id"], &["it is in `ood`", "`--split ood`"]);
    refused(&["webshop"], &["give `--data DIR`", "`actloom export`"]);
    refused(&with(&["--out", "/dev/zero"]), &["no regular file"]);
    let notes = place.path("notes.txt");
    fs_err::write(&notes, "buy milk\n").unwrap();
    refused(&with(&["--out", "notes.txt"]), &["`notes.txt` holds something else than episodes"]);
    assert_eq!(fs_err::read_to_string(&notes).unwrap(), "buy milk\n");
    let cold = place.shown(&with(&["--model", "model", "--temperature", "-1"]), "");
    assert!(cold.starts_with("code 2") && cold.contains("expected a number, 0 or above"), "{cold}");
    assert_eq!(place.go(&with(&["--temperature", "1"]), "").status.code(), Some(2), "it needs a model");
    assert_eq!(place.go(&["kitchen"], "").status.code(), Some(2));
}

#[test]
fn a_line_that_asks_for_nothing_ends_a_script_with_an_error() {
    let place = Place::new();
    let shown = place.shown(&with(&["--out", "mine.jsonl"]), "look\n/fly\nlook\n");
    assert!(shown.starts_with("code 2\n") && shown.contains("step 1:") && !shown.contains("step 2:"), "{shown}");
    assert!(shown.contains("error: `/fly` is no command; `/help` lists them, `/do TEXT` says anything"), "{shown}");
    assert_eq!(fs_err::read_to_string(place.path("mine.jsonl")).unwrap().lines().count(), 1, "what was played is kept");
}

#[test]
fn a_line_that_is_no_text_is_named() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
    command.arg("play").args(with(&["--out", "mine.jsonl"])).current_dir(place.0.path()).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"look\n\xff\nlook\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error.contains("error: line 2 of stdin is not UTF-8"), "{error}");
    assert_eq!(fs_err::read_to_string(place.path("mine.jsonl")).unwrap().lines().count(), 1);
}

#[test]
fn nothing_is_played_for_nobody() {
    let place = Place::new();
    let begin = |stdout: Stdio, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
        command.arg("play").args(with(more)).current_dir(place.0.path()).env_clear();
        command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap()
    };
    // a reader that goes away
    for more in [&[][..], &["--json"]] {
        let mut child = begin(Stdio::piped(), more);
        drop(child.stdout.take());
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = 0;
        // lines without end, until nobody takes them
        while stdin.write_all(b"/actions\n").is_ok() {
            lines += 1;
            assert!(lines < 1_000_000, "it reads on and on");
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
    }
    // a full disk
    if Path::new("/dev/full").exists() {
        for more in [&[][..], &["--json"]] {
            let full = fs_err::OpenOptions::new().write(true).open("/dev/full").unwrap().into_file();
            let mut child = begin(full.into(), more);
            let _ = child.stdin.take().unwrap().write_all(b"look\n");
            let output = child.wait_with_output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(4), "{error}");
            assert!(error.starts_with("error: cannot write to stdout"), "{error}");
        }
    }
}

#[test]
fn where_nothing_was_played_no_file_is_made() {
    let place = Place::new();
    let output = place.go(&with(&["--out", "mine.jsonl"]), "");
    assert_eq!(output.status.code(), Some(0));
    assert!(!place.path("mine.jsonl").exists());
}

#[test]
fn an_interrupted_game_is_written_down() {
    for signal in ["-INT", "-TERM"] {
        interrupted(signal);
    }
}

fn interrupted(signal: &str) {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
    command.arg("play").args(with(&["--out", "mine.jsonl"])).current_dir(place.0.path()).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"look\n").unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    while !lines.next().unwrap().unwrap().starts_with("step 1:") {}
    let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs_err::read_to_string(place.path("mine.jsonl")).unwrap().lines().count(), 1);
}
