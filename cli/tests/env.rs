//! `actloom env`: exact output, exit codes, refusals.
//!
//! Invariant: the games are problems with transcripts that the original engine wrote.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/tests/fixtures/alfworld").join(name)
}

/// Code, stdout and stderr of `actloom env`.
fn env(args: &[&str]) -> (i32, String, String) {
    let ran = Command::new(env!("CARGO_BIN_EXE_actloom")).arg("env").args(args).env_clear().output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ran.status.code().unwrap(), text(ran.stdout), text(ran.stderr))
}

fn check(transcript: &Path, more: &[&str]) -> (i32, String, String) {
    let game = fixture("g6_light.initial_state.pddl");
    let args = ["check", "--game", game.to_str().unwrap(), "--transcript", transcript.to_str().unwrap()];
    env(&[&args[..], more].concat())
}

#[test]
fn environments_and_their_tasks_are_listed() {
    let (code, out, _) = env(&["list"]);
    assert_eq!(code, 0);
    for name in ["household", "webshop", "scienceworld", "command"] {
        assert!(out.lines().any(|line| line.trim_start().starts_with(name)), "{out}");
    }
    let (code, out, _) =
        env(&["tasks", "household", "--split", "id", "--count", "2", "--set", "tasks=[\"look_at_obj_in_light\"]"]);
    assert_eq!(code, 0);
    assert!(out.contains("tiny/id/1") && out.contains("look_at_obj_in_light") && !out.contains("tiny/id/2"), "{out}");
    let (_, out, _) = env(&["tasks", "household", "--count", "1", "--json"]);
    let list: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&list["tasks"][0]["id"], &list["split"]), (&"tiny/train/0".into(), &"train".into()));
    let (code, out, error) = env(&["tasks", "attic"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.starts_with("error: there is no environment `attic`\n  help: there are `household`"), "{error}");
}

#[test]
fn what_cannot_be_asked_is_a_mistake_of_the_command_line() {
    for (args, says) in [
        (&["household", "--split", "nope"][..], "`nope` is no split"),
        (&["household", "--set", "siez=small"], "`siez`"),
        (&["household", "--set", "size"], "`size` sets nothing"),
        (&["household", "--count", "0"], "--count N"),
        (&["webshop"], "give `--data DIR`; a recipe step `op = \"catalogue\"` and `actloom export` make one"),
    ] {
        let (code, out, error) = env(&[&["tasks"], args].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {error}");
        assert!(error.contains(says), "{args:?}: {error}");
    }
    let (code, _, error) = env(&["tasks", "household", "--data", "/no/such/games"]);
    assert_eq!(code, 4, "{error}");
}

#[test]
fn a_transcript_that_comes_out_again_is_one_line_and_code_0() {
    let transcript = fixture("g6_light.planner.jsonl");
    assert_eq!(check(&transcript, &[]), (0, "equal: 6 rows\n".to_owned(), String::new()));
    let (code, out, _) = check(&transcript, &["--json"]);
    assert_eq!((code, out.as_str()), (0, "{\"equal\":true,\"rows\":6}\n"));
}

#[test]
fn the_first_difference_is_shown_and_the_code_is_1() {
    let rows = fs_err::read_to_string(fixture("g6_light.probes.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    fs_err::write(&path, rows.replacen("you see nothing.\"", "you see a ghost.\"", 1)).unwrap();
    let shown = "different: line 2, after `look`: `obs`\n\
        \x20 expected  \"You are in the middle of a room. Looking quickly around you, you see a ghost.\"\n\
        \x20 found     \"You are in the middle of a room. Looking quickly around you, you see nothing.\"\n";
    assert_eq!(check(&path, &[]), (1, shown.to_owned(), String::new()));
    fs_err::write(&path, rows.replacen("\"go to bed 1\"", "\"fly to bed 1\"", 1)).unwrap();
    let shown = "different: line 1, after a reset: `admissible`\n  missing: fly to bed 1\n  too much: go to bed 1\n";
    assert_eq!(check(&path, &[]), (1, shown.to_owned(), String::new()));
    let (code, out, _) = check(&path, &["--json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &found["difference"]["missing"][0]), (1, &"fly to bed 1".into()));
    fs_err::write(&path, &rows[..rows.len() - 20]).unwrap();
    let (code, out, error) = check(&path, &[]);
    assert_eq!((code, out.as_str()), (4, ""));
    assert!(error.contains(&format!("rows.jsonl`, line {}: EOF", rows.lines().count())), "{error}");
}
