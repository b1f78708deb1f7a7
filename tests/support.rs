//! Runs the program in folders of its own and reads what it prints.
//!
//! Invariants: no variable of the caller's environment reaches the program's choices; a program that does not end within
//! [`PATIENCE`] is killed and fails its test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Far more than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The recipe that most tests run.
pub fn quickstart() -> String {
    std::fs::read_to_string(root().join("recipes/quickstart.toml")).unwrap()
}

/// A folder with a copy of the quickstart and a store.
pub struct Place {
    dir: TempDir,
    events: Vec<Value>,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap(), events: Vec::new() };
        place.write("quickstart.toml", &quickstart());
        place
    }

    /// A place with the same recipe and a copy of the other's store, for tests that change what is in it.
    pub fn copy_of(other: &Place) -> Place {
        let place = Place::new();
        copy(&other.path("store"), &place.path("store"));
        place
    }

    /// What happened in the run that made this place; only [`smoke`]'s remembers.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()))
    }

    /// The program in this folder, with this folder's store.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_actloom")), args)
    }

    /// Another build of the program.
    pub fn command_of(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ACTLOOM_")) {
            command.env_remove(name);
        }
        command.args(args).current_dir(self.dir.path());
        command.env("ACTLOOM_STORE", self.path("store")).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        let began = Instant::now();
        let child = Running::start(self.command(args));
        let ran = child.finish();
        Ran { took: began.elapsed(), ..ran }
    }

    /// Runs the program, which has to succeed.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "`actloom {}` failed:\n{}", args.join(" "), ran.stderr);
        ran
    }

    /// Runs the program with `--json`, which has to succeed and print one value.
    pub fn json(&self, args: &[&str]) -> Value {
        let ran = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{args:?} printed no JSON: {error}"))
    }

    /// The ids of every output of every step, by the step's name, as the records in the store have them.
    pub fn ids(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        ids_of(&self.json(&["cache", "ls"]))
    }

    /// How often each step was really run, over all runs in the journal that this store has.
    pub fn times_published(&self) -> BTreeMap<String, usize> {
        let mut times = BTreeMap::new();
        for run in std::fs::read_dir(self.path("store/v1/runs")).unwrap().map(|entry| entry.unwrap().path()) {
            let Ok(events) = std::fs::read_to_string(run.join("events.jsonl")) else { continue };
            for event in lines(&events) {
                if event["event"] == "published" {
                    *times.entry(text(&event["node"])).or_insert(0) += 1;
                }
            }
        }
        times
    }

    pub fn verify_is_clean(&self) {
        let ran = self.run(&["cache", "verify"]);
        assert_eq!(ran.code, Some(0), "the store is not sound:\n{}", ran.stdout);
    }
}

/// Of the records that `cache ls --json` prints, the ids by step and output.
fn ids_of(actions: &Value) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    for action in actions.as_array().unwrap() {
        let outputs = action["outputs"].as_object().unwrap();
        let of_step = outputs.iter().map(|(name, artifact)| (name.clone(), text(&artifact["id"]))).collect();
        ids.insert(text(&action["provenance"]["node"]), of_step);
    }
    ids
}

/// What a program that has ended left behind.
pub struct Ran {
    /// `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    /// The first progress of the step that was stopped, where one was.
    pub began_at: Option<u64>,
}

/// A program that runs; killed when it is dropped.
pub struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<std::thread::JoinHandle<String>>,
    read: String,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdout = child.stdout.take().map(BufReader::new);
        watch(child.id());
        Running { child, stdout, stderr: Some(stderr), read: String::new() }
    }

    /// The next event of a run with `--json`; `None` at its end.
    pub fn event(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
        self.read += &line;
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Reads events until one pleases; whether one did.
    pub fn wait_for(&mut self, mut pleases: impl FnMut(&Value) -> bool) -> bool {
        while let Some(event) = self.event() {
            if pleases(&event) {
                return true;
            }
        }
        false
    }

    /// Sends a signal by its name: `INT`, `KILL`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Ran {
        self.stdout.as_mut().unwrap().read_to_string(&mut self.read).unwrap();
        let status: ExitStatus = self.child.wait().unwrap();
        unwatch(self.child.id());
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Ran {
            code: status.code(),
            stdout: std::mem::take(&mut self.read),
            stderr,
            took: Duration::ZERO,
            began_at: None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.stderr.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        unwatch(self.child.id());
    }
}

fn signal(id: u32, name: &str) {
    let status = Command::new("kill").args([format!("-{name}"), id.to_string()]).status().unwrap();
    assert!(status.success(), "cannot send {name} to the program");
}

/// Programs that run now, and when each has to be done.
static WATCHED: std::sync::Mutex<BTreeMap<u32, Instant>> = std::sync::Mutex::new(BTreeMap::new());

/// From now on the program may take [`PATIENCE`]; then it is killed, which its test notices.
fn watch(id: u32) {
    static DOG: std::sync::Once = std::sync::Once::new();
    DOG.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                // The lock is held while killing, so that an id is never one that somebody else got since.
                let mut watched = WATCHED.lock().unwrap();
                let late: Vec<u32> =
                    watched.iter().filter(|(_, due)| Instant::now() > **due).map(|(id, _)| *id).collect();
                for id in late {
                    signal(id, "KILL");
                    watched.remove(&id);
                }
            }
        });
    });
    WATCHED.lock().unwrap().insert(id, Instant::now() + PATIENCE);
}

fn unwatch(id: u32) {
    WATCHED.lock().unwrap().remove(&id);
}

/// The quickstart's smoke run, made once. Read it, leave it.
pub fn smoke() -> &'static Place {
    static SMOKE: OnceLock<Place> = OnceLock::new();
    SMOKE.get_or_init(|| {
        let mut place = Place::new();
        let ran = place.ok(&["run", "quickstart.toml", "--profile", "smoke", "--json"]);
        eprintln!("the smoke run took {:.1} s", ran.took.as_secs_f64());
        place.events = lines(&ran.stdout);
        place
    })
}

/// JSON lines.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("`{line}` is no JSON: {e}"))).collect()
}

/// A JSON string's text.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("expected a string, got {value}")).to_owned()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}
