//! ScienceWorld on the real simulator: its captured episodes, bad input, two machines, and machines that are killed.
//!
//! External: needs Java and the JAR, which is found as in a recipe. It is passed over with a line where there is none,
//! unless `ACTLOOM_EXTERNAL=1` says that everything external is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot play should stop")]
#![expect(clippy::print_stderr, reason = "what was passed over, and what was measured, is for the reader")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actloom_ops::env::EnvError;
use actloom_ops::env::scienceworld::tasks::KINDS;
use actloom_ops::env::scienceworld::{
    Java, Launch, Limits, Machine, Requests, Running, Settings, Simplification, State, open, open_with,
};
use serde::Deserialize;

fn java() -> Option<Java> {
    let found = Java::find(None, 768);
    let must = std::env::var("ACTLOOM_EXTERNAL").is_ok_and(|value| value == "1");
    match found {
        Ok(java) => Some(java),
        Err(error) => {
            assert!(!must, "ACTLOOM_EXTERNAL=1 and {error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn fixture(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/scienceworld").join(name)
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    task: String,
    #[serde(default)]
    var: u32,
    #[serde(default)]
    simp: String,
    cmd: String,
    obs: String,
    score: f64,
    done: bool,
    moves: i32,
    task_desc: Option<String>,
}

/// Captured episodes, in order.
fn episodes() -> Vec<Vec<Row>> {
    let file = std::fs::File::open(fixture("gold.jsonl.gz")).unwrap();
    let mut episodes: Vec<Vec<Row>> = Vec::new();
    for line in BufReader::new(flate2::read::GzDecoder::new(file)).lines() {
        let row: Row = serde_json::from_str(&line.unwrap()).unwrap();
        match episodes.last_mut() {
            Some(rows) if (&rows[0].task, rows[0].var, &rows[0].simp) == (&row.task, row.var, &row.simp) => {
                rows.push(row)
            }
            _ => episodes.push(vec![row]),
        }
    }
    episodes
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// A text as its lines in order of the alphabet, without what differs from load to load: the temperatures of unknown
/// substances, and the order of things, which also numbers choices.
fn bag(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| {
            let line = line.trim();
            let line = match line.split_once(":\t") {
                Some((number, choice)) if number.parse::<u32>().is_ok() => choice,
                _ => line,
            };
            let mut words: Vec<String> = line
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(|word| if word.parse::<f64>().is_ok() { "#".to_owned() } else { word.to_owned() })
                .collect();
            words.sort_unstable();
            words.join(" ")
        })
        .collect();
    lines.sort_unstable();
    lines
}

/// Where chance decides: plants grow, and a circuit may take a step more to settle. Such an episode only ends as captured.
fn by_chance(task: &str) -> bool {
    task.starts_with("grow-") || task.starts_with("mendelian-") || task.starts_with("power-component")
}

/// Scores, ends and moves are equal at every step where chance has no part in them. Texts are equal up to order and numbers, but for a few in which one of
/// several things of the same name was looked at, or a substance had another temperature and so another state.
#[test]
fn captured_episodes_go_as_captured() {
    let Some(java) = java() else { return };
    let mut machine = Machine::start(&java, Limits::default()).unwrap();
    let (mut texts, mut equal, mut off) = (0, 0, Vec::new());
    for rows in episodes() {
        let (first, name) = (&rows[0], format!("{}/{} {}", rows[0].task, rows[0].var, rows[0].simp));
        machine.load(&first.task, first.var, &first.simp, false).unwrap();
        let mut last = None;
        for row in &rows {
            let said = machine.step(&row.cmd).unwrap();
            let state = machine.state().unwrap();
            let want = State { score: row.score, completed: row.done, moves: row.moves };
            last = Some((state, want));
            if by_chance(&row.task) {
                continue;
            }
            assert_eq!(state, want, "{name}: after `{}`: {said}", row.cmd);
            texts += 1;
            equal += usize::from(lines(&said) == lines(&row.obs));
            if bag(&said) != bag(&row.obs) {
                off.push(format!("{name}: `{}`: {said} / {}", row.cmd, row.obs));
            }
        }
        let (state, want) = last.unwrap();
        assert_eq!((state.score, state.completed), (want.score, want.completed), "{name}");
        assert_eq!(machine.description().unwrap(), *first.task_desc.as_ref().unwrap());
    }
    eprintln!("{equal} of {texts} texts are equal by lines, {} differ by more than order and numbers", off.len());
    assert!(equal * 100 >= texts * 95, "only {equal} of {texts} texts have the captured lines");
    assert!(off.len() * 100 <= texts, "{} of {texts} texts differ: {}", off.len(), off.join("\n"));
}

#[test]
fn games_reach_the_captured_scores_through_the_environment() {
    let Some(java) = java() else { return };
    let java: Arc<dyn Launch> = Arc::new(java);
    for simp in ["", "easy"] {
        let easy = if simp.is_empty() { Vec::new() } else { vec![Simplification::Easy] };
        let settings = Settings { simplifications: easy, machines: 1, ..Settings::default() };
        let suite = open_with(&settings, Arc::clone(&java)).unwrap();
        for rows in episodes().iter().filter(|rows| rows[0].simp == simp && rows.len() < 50) {
            let id = format!("{}/{}", rows[0].task, rows[0].var);
            let n = suite.count("test").unwrap().unwrap();
            let open = |i| suite.open("test", i, 0).unwrap();
            let mut env = (0..n).map(open).find(|env| env.task().id == id).unwrap();
            let start = env.reset().unwrap();
            assert!(start.text.starts_with(rows[0].task_desc.as_ref().unwrap()), "{id}: {}", start.text);
            let mut last = start;
            for row in &rows[1..] {
                last = env.step(&row.cmd).unwrap();
                let want = (row.score * 100.0).round_ties_even() / 100.0;
                assert!(last.score == want || by_chance(&row.task), "{id}: {}: {}", row.cmd, last.score);
                assert_eq!(last.valid, Some(true), "{id}: {}: {}", row.cmd, last.text);
            }
            assert!(last.done && last.won, "{id}");
        }
    }
}

#[test]
fn bad_input_is_answered_as_captured() {
    let Some(java) = java() else { return };
    let settings =
        Settings { simplifications: Vec::new(), requests: Requests::Original, machines: 1, ..Settings::default() };
    let suite = open_with(&settings, Arc::new(java)).unwrap();
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(fixture("badinput.json")).unwrap()).unwrap();
    for row in &rows {
        let seen = env.step(&row.cmd).unwrap();
        assert_eq!((bag(&seen.text), seen.score, seen.done), (bag(&row.obs), row.score, row.done), "{}", row.cmd);
        let unknown = row.obs.starts_with("No known action") || row.obs.starts_with("Unknown action");
        assert_eq!(seen.valid, Some(!unknown), "{}", row.cmd);
    }
    // a failed task
    let failed = env.step("focus on agent").unwrap();
    assert_eq!((failed.score, failed.done, failed.won), (0.0, true, false));
    // nothing of it is left in the next game of the machine
    let start = env.reset().unwrap();
    assert_eq!((start.score, start.done), (0.0, false));
}

#[test]
fn a_question_is_put_aside_or_answered_and_admissible_actions_are_its_numbers() {
    let Some(java) = java() else { return };
    let settings = Settings { simplifications: Vec::new(), machines: 1, ..Settings::default() };
    let suite = open_with(&settings, Arc::new(java)).unwrap();
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    assert!(env.admissible().unwrap().unwrap().contains(&"open door to kitchen".to_owned()));
    for action in ["open door to kitchen", "go to kitchen", "pick up orange"] {
        env.step(action).unwrap();
    }
    let asked = env.snapshot();
    assert_eq!(env.admissible().unwrap().unwrap(), ["0", "1"]);
    assert_eq!(env.step("open cupboard").unwrap().text, "The cupboard is now open.");
    for _ in 0..4 {
        env.restore(&asked).unwrap();
        let taken = env.step("pick up orange (in bowl, in counter, in kitchen)").unwrap();
        assert_eq!(taken.text, "You move the orange to the inventory.");
        let held = env.snapshot();
        env.restore(&asked).unwrap();
        env.restore(&held).unwrap();
        let inventory = env.step("inventory").unwrap().text;
        assert_eq!(inventory.matches("an orange").count(), 2, "{inventory}");
    }
}

/// Remembers the processes that it starts.
struct Watched(Java, Arc<Mutex<Vec<u32>>>);

impl Launch for Watched {
    fn launch(&self, deadline: Duration) -> Result<(Box<dyn Running>, u16), EnvError> {
        let (running, port) = self.0.launch(deadline)?;
        self.1.lock().unwrap().extend(running.id());
        Ok((running, port))
    }

    fn identity(&self) -> serde_json::Value {
        self.0.identity()
    }
}

fn runs(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_machine_is_replaced_and_the_game_goes_on() {
    let Some(java) = java() else { return };
    let ids = Arc::new(Mutex::new(Vec::new()));
    let suite =
        open_with(&Settings { machines: 1, ..Settings::default() }, Arc::new(Watched(java, Arc::clone(&ids)))).unwrap();
    let rows = episodes().into_iter().find(|rows| rows[0].task == "chemistry-mix" && rows[0].simp == "easy").unwrap();
    let open = |i| suite.open("test", i, 0).unwrap();
    let id = format!("chemistry-mix/{}", rows[0].var);
    let mut env = (0..100).map(open).find(|env| env.task().id == id).unwrap();
    env.reset().unwrap();
    for (i, row) in rows[1..].iter().enumerate() {
        if i == 9 || i == 14 {
            let id = *ids.lock().unwrap().last().unwrap();
            // SAFETY: it only sends a signal, to a child of this test that nobody waited for
            unsafe { libc::kill(id as libc::pid_t, libc::SIGKILL) };
        }
        let seen = env.step(&row.cmd).unwrap();
        assert_eq!(seen.score, (row.score * 100.0).round_ties_even() / 100.0, "{}", row.cmd);
    }
    let ids = ids.lock().unwrap().clone();
    assert_eq!(ids.len(), 3);
    drop(env);
    drop(suite);
    assert!(ids.iter().all(|id| !runs(*id)), "a machine is left");
}

#[test]
fn two_machines_play_at_once_and_the_expert_wins() {
    let Some(java) = java() else { return };
    let identity = java.identity();
    assert_eq!(identity["jar"].as_str().map(str::len), Some(64), "{identity}");
    assert!(identity["java"].as_str().unwrap().contains("version"), "{identity}");
    let tasks =
        ["find-plant", "chemistry-mix", "power-component", "lifespan-longest-lived"].map(str::to_owned).to_vec();
    let settings = Settings { tasks, machines: 2, ..Settings::default() };
    let suite = open(&settings, None).unwrap();
    let suite = &*suite;
    std::thread::scope(|scope| {
        for i in 0..8 {
            scope.spawn(move || {
                let mut env = suite.open("train", i, 0).unwrap();
                let mut last = env.reset().unwrap();
                while let Some(action) = env.expert().unwrap() {
                    last = env.step(&action).unwrap();
                }
                assert!(last.won && last.score == 1.0, "{}: {}", env.task().id, last.text);
            });
        }
    });
}

/// Not a test: the parent of the test below, which runs this program again.
#[test]
#[ignore = "is run by another test, to be killed"]
fn a_parent_that_is_killed() {
    let Ok(path) = std::env::var("ACTLOOM_TEST_CHILD") else { return };
    let machine = Machine::start(&Java::find(None, 768).unwrap(), Limits::default()).unwrap();
    std::fs::write(format!("{path}.part"), machine.id().unwrap().to_string()).unwrap();
    std::fs::rename(format!("{path}.part"), path).unwrap();
    std::thread::sleep(Duration::from_secs(100));
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_parent_leaves_no_machine() {
    if java().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("child");
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_parent_that_is_killed", "--ignored"])
        .env("ACTLOOM_TEST_CHILD", &path)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let clock = Instant::now();
    while !path.exists() {
        assert!(clock.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(10));
    }
    let id: u32 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    assert!(runs(id));
    parent.kill().unwrap();
    parent.wait().unwrap();
    while runs(id) {
        assert!(clock.elapsed() < Duration::from_secs(120), "the machine goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn memory(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Seconds on a processor, so far.
fn spent(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // ticks of 10 ms, in the program and in the kernel
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Wall clock and processor time of many calls.
#[derive(Default)]
struct Cost {
    calls: u32,
    wall: f64,
    processor: f64,
}

impl Cost {
    fn of<T>(&mut self, id: u32, calls: usize, act: impl FnOnce() -> T) -> T {
        let (clock, before) = (Instant::now(), spent(id));
        let done = act();
        self.wall += clock.elapsed().as_secs_f64();
        self.processor += spent(id) - before;
        self.calls += calls as u32;
        done
    }

    fn told(&self) -> String {
        let each = |time: f64| 1e3 * time / f64::from(self.calls);
        format!("{:.1} ms ({:.1} on a processor)", each(self.wall), each(self.processor))
    }
}

/// Prints what a machine costs: `cargo test --release -p actloom-ops --test scienceworld_real -- --ignored measure
/// --nocapture`
#[cfg(target_os = "linux")]
#[test]
#[ignore = "measures, and asserts nothing that can be asserted of a noisy machine"]
fn measure() {
    let Some(java) = java() else { return };
    let clock = Instant::now();
    let mut machine = Machine::start(&java, Limits::default()).unwrap();
    let id = machine.id().unwrap();
    eprintln!("start: {:.2} s, {:.2} on a processor", clock.elapsed().as_secs_f64(), spent(id));
    let all = episodes();
    let easy: Vec<&Vec<Row>> = all.iter().filter(|rows| rows[0].simp == "easy").collect();
    for (name, list) in [("cold, without lists", false), ("without lists", false), ("with lists", true)] {
        let (mut load, mut play, mut listed) = (Cost::default(), Cost::default(), 0);
        for rows in &easy {
            load.of(id, 1, || {
                machine.load(&rows[0].task, rows[0].var, "easy", false).unwrap();
                machine.step("look around").unwrap();
            });
            play.of(id, rows.len() - 1, || {
                for row in &rows[1..] {
                    listed += if list { machine.actions().unwrap().len() } else { 0 };
                    machine.step(&row.cmd).unwrap();
                    machine.state().unwrap();
                }
            });
        }
        let each = listed as f64 / f64::from(play.calls);
        eprintln!(
            "{name}: load {}, step {}, {:.0} steps/s, {each:.0} actions, {:.0} MiB",
            load.told(),
            play.told(),
            f64::from(play.calls) / play.wall,
            memory(id)
        );
    }
    let mut most: BTreeMap<usize, f64> = BTreeMap::new();
    for i in 0..1000 {
        let kind = &KINDS[i % KINDS.len()];
        machine.load(kind.name, (i / KINDS.len()) as u32 % kind.variations, "easy", false).unwrap();
        machine.step("look around").unwrap();
        machine.actions().unwrap();
        if i % 250 == 249 {
            most.insert(i + 1, memory(id));
        }
    }
    eprintln!("MiB after so many loads: {most:.0?}");
}
