//! Programs as environments: the example is played, and nothing that a program does goes unnoticed or on for ever.
//!
//! What misbehaves is a shell script, whose answers are fixed by the numbers of the requests; the example needs Python,
//! and is skipped without it unless `ACTLOOM_EXTERNAL=1`.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot start its programs should stop")]

use std::time::{Duration, Instant};

use actloom_ops::env::{Env, EnvError, Suite, WorldSettings, command};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    /// A program that says these lines of shell; `$DIR` is this folder.
    fn program(&self, script: &str) -> Result<Box<dyn Suite>, EnvError> {
        self.program_with(script, json!({}))
    }

    fn program_with(&self, script: &str, more: Value) -> Result<Box<dyn Suite>, EnvError> {
        let path = self.path("program.sh");
        std::fs::write(&path, format!("DIR='{}'\n{script}\n", self.0.path().display())).unwrap();
        let mut settings = json!({ "env": "command", "command": ["sh", "{data}"], "deadline": 20.0 });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<WorldSettings>(settings).unwrap().open(Some(&path))
    }
}

const HELLO: &str = r#"read -r line
echo '{"id":1,"protocol":1,"name":"odd","splits":[{"name":"train","tasks":3}],"admissible":true,"expert":true,"deterministic":true}'
"#;
const FICKLE: &str = r#"read -r line
echo '{"id":1,"protocol":1,"name":"odd","splits":[{"name":"train","tasks":3}]}'
"#;
const RESET: &str = r#"read -r line
echo '{"id":2,"observation":"a room","goal":"go"}'
"#;

fn error<T>(result: Result<T, EnvError>) -> String {
    match result {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

fn first(suite: &dyn Suite) -> Result<Box<dyn Env>, EnvError> {
    suite.open("train", 0, 0)
}

#[test]
fn whatever_a_hello_is_not_is_said() {
    for (script, says) in [
        ("exit 3", "ended during `hello`: exit status: 3"),
        ("echo no luck >&2; exit 3", "it said `no luck`"),
        ("echo hello", "`hello` with `hello` ("),
        ("printf 'half'", "in the middle of a line of 4 bytes"),
        (r#"echo '{"id":1}'"#, "missing field `protocol`"),
        (
            r#"echo '{"id":2,"protocol":1,"name":"x","splits":[]}'"#,
            "expected one line of JSON, an object with `\"id\": 1`",
        ),
        (
            r#"echo '{"id":1,"protocol":2,"name":"x","splits":[{"name":"a","tasks":1}]}'"#,
            "with `protocol` 2, expected 1",
        ),
        (r#"echo '{"id":1,"protocol":1,"name":"x","splits":[]}'"#, "no `splits`"),
        (r#"echo '{"id":1,"protocol":1,"name":"x","splits":[{"name":"a","tasks":-1}]}'"#, "invalid value"),
        (
            r#"echo '{"id":1,"protocol":1,"name":"x","splits":[{"name":"a","tasks":1},{"name":"a","tasks":1}]}'"#,
            "names that differ",
        ),
        (r#"echo '{"id":1,"protocol":1,"name":"x","splits":[{"name":"a","tasks":1}],"parallel":0}'"#, "`parallel` 0"),
        (
            r#"echo '{"id":1,"protocol":1,"name":"x","splits":[{"name":"a","tasks":1}],"snapshots":true}'"#,
            "unknown field `snapshots`",
        ),
        (r#"echo '{"id":1,"error":"not today"}'"#, "refused `hello`: not today"),
    ] {
        let said = error(Place::new().program(&format!("read -r line\n{script}")));
        assert!(said.contains(says), "{script}: {said}");
    }
}

#[test]
fn settings_that_start_nothing_are_refused() {
    let of = |value: Value| serde_json::from_value::<command::Settings>(value).unwrap();
    assert_eq!(command::Settings::default().check().len(), 1);
    let missing = error(command::open(&of(json!({ "command": ["actloom-no-such-program"] })), None));
    assert!(missing.contains("cannot start `actloom-no-such-program`"), "{missing}");
    let data = error(command::open(&of(json!({ "command": ["sh", "{data}"] })), None));
    assert!(data.contains("there is no input of that name"), "{data}");
    let unnamed = error(command::open(&of(json!({ "command": ["sh"] })), Some(Utf8Path::new("x"))));
    assert!(unnamed.contains("does not name the input `data`"), "{unnamed}");
    assert!(serde_json::from_value::<command::Settings>(json!({ "comand": [] })).is_err());
}

#[test]
fn whatever_a_reset_or_a_step_is_not_is_said() {
    for (line, says) in [
        (r#"{"id":2,"observation":"o"}"#, "missing field `goal`"),
        (r#"{"id":2,"observation":1,"goal":"g"}"#, "invalid type: integer `1`, expected a string"),
        (r#"{"id":2,"observation":"o","goal":"g","score":2}"#, "`score` 2, expected 0 to 1"),
        (r#"{"id":2,"observation":"o","goal":"g","image":""}"#, "unknown field `image`"),
        (r#"{"id":2,"observation":"o","goal":"g","admissible":["a",""]}"#, "an admissible action without a text"),
        (r#"{"id":2,"error":"no such task"}"#, "refused `reset`: no such task"),
        (r#"{"id":2,"error":"no","observation":"o"}"#, "`error` to be a text and to stand alone"),
        (r#"["id",2]"#, "`[\"id\",2]`, expected one line of JSON"),
        ("", "EOF while parsing"),
    ] {
        let place = Place::new();
        let suite = place.program(&format!("{HELLO}read -r line\necho '{line}'\nread -r line")).unwrap();
        let said = error(first(&*suite));
        assert!(said.contains(says) && said.contains("`odd`") && said.contains("`reset`"), "{line}: {said}");
    }
    for (line, says) in [
        (r#"{"id":3,"observation":"o"}"#, "missing field `done`"),
        (r#"{"id":3,"observation":"o","done":"no"}"#, "invalid type: string \"no\", expected a boolean"),
        (r#"{"id":3,"observation":"o","done":false,"score":NaN}"#, "expected one line of JSON"),
        (r#"{"id":3,"observation":"o","done":false,"score":-0.5}"#, "`score` -0.5, expected 0 to 1"),
        (r#"{"id":3,"observation":"o","done":false,"reward":1e999}"#, "number out of range"),
        (r#"{"id":3,"observation":"o","done":false,"reward":-1e10}"#, "`reward` -10000000000, expected -1e9 to 1e9"),
        (r#"{"id":3,"observation":"o","done":true,"won":true,"score":0}"#, "`won` true and `score` 0, expected"),
        (r#"{"id":3,"observation":"o","done":true,"admissible":[" "]}"#, "an admissible action without a text"),
        (r#"{"id":3,"observation":"o","done":false,"goal":"g"}"#, "unknown field `goal`"),
        (r#"{"id":2,"observation":"o","done":false}"#, "an object with `\"id\": 3`"),
        ("I was thinking\n", "whatever else a program says belongs on stderr"),
    ] {
        let place = Place::new();
        let suite = place.program(&format!("{HELLO}{RESET}read -r line\necho '{line}'\nread -r line")).unwrap();
        let mut env = first(&*suite).unwrap();
        assert_eq!(env.reset().unwrap().text, "a room");
        let said = error(env.step("x"));
        assert!(said.contains(says) && said.contains("`step`"), "{line}: {said}");
        assert!(env.step("x").is_err(), "a program that broke the protocol is not asked on");
    }
    let place = Place::new();
    let suite = place.program(&format!("{HELLO}{RESET}read -r line\necho '{{\"id\":3,\"actions\":\"all\"}}'")).unwrap();
    let said = error(first(&*suite).unwrap().admissible());
    assert!(said.contains("expected `actions`, a list of texts"), "{said}");
    let said = error(suite.open("dev", 0, 0));
    assert!(said.contains("has no split `dev`, expected one of `train`"), "{said}");
    assert!(error(suite.open("train", 3, 0)).contains("has 3 tasks"));
}

#[test]
fn a_program_that_hangs_is_given_up_and_is_gone() {
    let place = Place::new();
    let hang = format!("echo $$ > $DIR/pid\n{HELLO}{RESET}sleep 1000");
    let suite = place.program_with(&hang, json!({ "deadline": 4.0 })).unwrap();
    let mut env = first(&*suite).unwrap();
    let clock = Instant::now();
    let said = error(env.step("x"));
    assert_eq!(said, "the environment `odd` did not answer `step` within 4 s");
    assert!(clock.elapsed() < Duration::from_secs(60));
    let id: u32 = std::fs::read_to_string(place.path("pid")).unwrap().trim().parse().unwrap();
    if cfg!(target_os = "linux") {
        let runs = std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(!runs, "the process goes on");
    }
}

#[test]
fn a_line_without_end_fills_no_memory() {
    let place = Place::new();
    let suite = place.program(&format!("{HELLO}{RESET}read -r line\nwhile :; do printf '%065536d' 0; done")).unwrap();
    let said = error(first(&*suite).unwrap().step("x"));
    assert!(said.contains(&format!("a line of more than {} bytes", command::LONGEST)), "{said}");
}

/// Answers `step` two times, then ends, unless it did so before.
const CRASHES: &str = r#"while read -r line; do
  id=${line#*'"id":'}; id=${id%%[,\}]*}
  case "$line" in
    *'"reset"'*) echo "{\"id\":$id,\"observation\":\"a room\",\"goal\":\"go\"}"; n=0 ;;
    *'"step"'*)
      n=$((n + 1))
      if [ $n = 3 ] && [ ! -e $DIR/crashed ]; then touch $DIR/crashed; echo out of luck >&2; exit 9; fi
      extra=""; if [ -e $DIR/crashed ] && [ -e $DIR/unfaithful ]; then extra=" now"; fi
      echo "{\"id\":$id,\"observation\":\"step $n$extra\",\"done\":false}" ;;
    *) exit 0 ;;
  esac
done"#;

#[test]
fn a_crash_is_made_good_by_playing_again_where_the_program_is_deterministic() {
    let place = Place::new();
    let suite = place.program(&format!("{HELLO}{CRASHES}")).unwrap();
    let mut env = first(&*suite).unwrap();
    let seen: Vec<String> = (0..5).map(|_| env.step("x").unwrap().text).collect();
    assert_eq!(seen, ["step 1", "step 2", "step 3", "step 4", "step 5"]);
    assert!(place.path("crashed").exists(), "it never crashed");
    // the same, but the second time the world is another one
    let place = Place::new();
    std::fs::write(place.path("unfaithful"), "").unwrap();
    let suite = place.program(&format!("{HELLO}{CRASHES}")).unwrap();
    let mut env = first(&*suite).unwrap();
    env.step("x").unwrap();
    env.step("x").unwrap();
    let said = error(env.step("x"));
    assert!(
        said.contains("task `train/0` played again differs after 1 actions: `step 1 now` where it was `step 1`"),
        "{said}"
    );
    // and a program that promises nothing
    let place = Place::new();
    let suite = place.program(&format!("{FICKLE}{CRASHES}")).unwrap();
    assert!(!suite.reproducible());
    let mut env = first(&*suite).unwrap();
    env.step("x").unwrap();
    let state = env.snapshot();
    env.step("x").unwrap();
    let said = error(env.step("x"));
    assert!(said.contains("ended during `step`: exit status: 9; it said `out of luck`"), "{said}");
    assert!(error(env.restore(&state)).contains("cannot go back to a state: it is not deterministic"));
    // it begins again, in a new process
    assert_eq!(env.reset().unwrap().text, "a room");
    assert_eq!(env.step("x").unwrap().text, "step 1");
    assert_eq!((env.admissible().unwrap(), env.expert().unwrap()), (None, None));
}

#[test]
fn processes_are_taken_up_again_and_end_with_the_suite() {
    let place = Place::new();
    let count = format!("echo $$ >> $DIR/pids\n{HELLO}{CRASHES}");
    let suite = place.program_with(&count, json!({ "processes": 2 })).unwrap();
    assert_eq!(suite.together(), 2);
    for _ in 0..3 {
        let (mut one, mut other) = (suite.open("train", 0, 0).unwrap(), suite.open("train", 1, 0).unwrap());
        assert_eq!(one.step("x").unwrap().text, "step 1");
        assert_eq!(other.step("x").unwrap().text, "step 1");
    }
    let pids = std::fs::read_to_string(place.path("pids")).unwrap();
    assert_eq!(pids.lines().count(), 2, "{pids}");
    drop(suite);
    for id in pids.lines().filter(|_| cfg!(target_os = "linux")) {
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists(), "{id} goes on");
    }
}

/// The example, if there is Python here.
fn lamps() -> Option<Box<dyn Suite>> {
    let there = std::process::Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        assert!(std::env::var_os("ACTLOOM_EXTERNAL").is_none_or(|v| v != "1"), "`python3` is missing");
        return None;
    }
    let path = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../recipes/envs/lamps.py");
    let settings = json!({ "env": "command", "command": ["python3", "{data}"], "processes": 3 });
    Some(serde_json::from_value::<WorldSettings>(settings).unwrap().open(Some(&path)).unwrap())
}

#[test]
fn the_example_is_played_to_its_end_by_its_expert() {
    let Some(suite) = lamps() else { return };
    assert_eq!((suite.name(), suite.splits(), suite.together()), ("command", vec!["train".into(), "test".into()], 3));
    assert_eq!((suite.count("train").unwrap(), suite.count("test").unwrap()), (None, Some(50)));
    assert_eq!(suite.identity(), json!({ "program": "lamps", "version": "1", "protocol": 1 }));
    for (split, index) in [("train", 0), ("train", 1), ("train", 2), ("test", 0), ("test", 49)] {
        let mut env = suite.open(split, index, 7).unwrap();
        let start = env.reset().unwrap();
        assert!(start.text.ends_with("Your task is to: put out all lamps."), "{}", start.text);
        let mut steps = 0;
        loop {
            let action = env.expert().unwrap().unwrap();
            let actions = env.admissible().unwrap().unwrap();
            assert!(actions.contains(&action) && actions.is_sorted());
            let now = env.step(&action).unwrap();
            steps += 1;
            assert!(steps < 30 && now.valid == Some(true) && now.won == now.done);
            if now.done {
                assert_eq!(now.score, 1.0);
                break;
            }
        }
        assert_eq!(env.expert().unwrap(), None);
        let task = env.task().clone();
        assert_eq!((task.id.clone(), task.seed), (format!("{split}/{index}"), (split == "train").then_some(7)));
        assert_eq!(suite.reopen(&task).unwrap().reset().unwrap(), start);
    }
}

#[test]
fn the_example_goes_back_to_a_state_by_playing_again() {
    let Some(suite) = lamps() else { return };
    let mut env = suite.open("test", 1, 0).unwrap();
    env.reset().unwrap();
    let first = env.step("pull cord").unwrap();
    let (state, actions) = (env.snapshot(), env.admissible().unwrap());
    let next = env.step("pull cord").unwrap();
    assert_ne!(first.text, next.text);
    let nothing = env.step("fly").unwrap();
    assert_eq!((nothing.text.as_str(), nothing.valid), ("Nothing happens.", Some(false)));
    env.restore(&state).unwrap();
    assert_eq!(env.admissible().unwrap(), actions);
    assert_eq!(env.step("pull cord").unwrap(), next);
    let other = suite.open("test", 2, 0).unwrap().snapshot();
    assert!(error(env.restore(&other)).contains("the snapshot is not of the task `test/1`"));
}
