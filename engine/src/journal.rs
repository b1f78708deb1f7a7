//! What ran: a folder for every run, and the last key of every step of every recipe.
//!
//! ```text
//! runs/<run id>/run.json        recipe, start, counts of the plan, what had to run and why
//!               events.jsonl    every event but progress and metrics, with seconds since the start; locked while alive
//!               summary.json    how it ended; absent when the run was killed
//! runs/last/<recipe>.jsonl      {"node", "key"}, the last line of a node counts
//! ```
//!
//! Invariants: nothing here decides what is reused, it only explains, so nothing is synced to disk and a lost or torn
//! line costs an explanation, never a result. A run that reuses everything writes a few small files and no more.

use std::collections::BTreeMap;
use std::fs::TryLockError;
use std::io::{BufWriter, ErrorKind, Write};
use std::time::Instant;

use actloom_cache::{ActionKey, Store};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::{Event, OpEvent};
use crate::plan::{Plan, Verdict};

/// The journal of a store.
#[derive(Clone, Debug)]
pub struct Journal {
    dir: Utf8PathBuf,
}

/// The start of a run, as `run.json` keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    pub id: String,
    pub recipe: String,
    pub started: Timestamp,
    /// Version of the program.
    pub program: String,
    /// `plan::Counts` of the plan.
    pub plan: Value,
    /// The planned steps that were not simply reused.
    pub to_run: Vec<Value>,
}

/// How a run ended, or that it did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    Finished,
    Failed,
    Interrupted,
    /// A process is at it.
    Running,
    /// The process ended without a summary.
    Killed,
}

/// One line of `actloom runs`.
#[derive(Clone, Debug, Serialize)]
pub struct RunInfo {
    #[serde(flatten)]
    pub record: RunRecord,
    pub ending: Ending,
    /// `run::Summary` without the steps; `None` unless it ended by itself.
    pub summary: Option<Value>,
}

#[derive(Serialize, Deserialize)]
struct LastLine {
    node: String,
    key: ActionKey,
}

impl Journal {
    pub fn of(store: &Store) -> Journal {
        Journal { dir: store.runs_dir() }
    }

    /// The last key of every node of a recipe, by the node's display name.
    ///
    /// # Errors
    /// The file system's. A file that is not there is an empty answer, and a line that cannot be read is passed over.
    pub fn last(&self, recipe: &str) -> std::io::Result<BTreeMap<String, ActionKey>> {
        let text = match fs_err::read_to_string(self.last_path(recipe)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(error),
        };
        let lines = text.lines().filter_map(|line| serde_json::from_str::<LastLine>(line).ok());
        Ok(lines.map(|line| (line.node, line.key)).collect())
    }

    /// Every run, oldest first.
    ///
    /// # Errors
    /// The file system's. A folder without a readable `run.json` is passed over: it is being made, or was never.
    pub fn runs(&self) -> std::io::Result<Vec<RunInfo>> {
        let entries = match fs_err::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut runs = Vec::new();
        for entry in entries {
            let Ok(dir) = Utf8PathBuf::from_path_buf(entry?.path()) else { continue };
            if let Some(info) = read_run(&dir)? {
                runs.push(info);
            }
        }
        runs.sort_by(|a, b| (a.record.started, &a.record.id).cmp(&(b.record.started, &b.record.id)));
        Ok(runs)
    }

    /// Opens a folder for a run that starts now.
    pub(crate) fn begin(&self, plan: &Plan, program: &str) -> std::io::Result<RunLog> {
        let started = Timestamp::now();
        let stamp = started.strftime("%Y%m%d-%H%M%S");
        fs_err::create_dir_all(&self.dir)?;
        let mut salt = started.subsec_nanosecond() as u32 ^ std::process::id().rotate_left(8);
        let (id, dir) = loop {
            let id = format!("{stamp}-{:04x}", salt & 0xffff);
            let dir = self.dir.join(&id);
            match fs_err::create_dir(&dir) {
                Ok(()) => break (id, dir),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => salt = salt.wrapping_add(1),
                Err(error) => return Err(error),
            }
        };
        let events = fs_err::File::create(dir.join("events.jsonl"))?;
        events.file().lock()?;
        let to_run = plan.steps.iter().filter(|step| !matches!(step.verdict, Verdict::Reuse { .. }));
        let record = RunRecord {
            id,
            recipe: plan.recipe.clone(),
            started,
            program: program.to_owned(),
            plan: serde_json::to_value(plan.counts)?,
            to_run: to_run.map(serde_json::to_value).collect::<Result<_, _>>()?,
        };
        fs_err::write(dir.join("run.json"), serde_json::to_vec(&record)?)?;
        Ok(RunLog {
            record,
            dir,
            events: BufWriter::new(events),
            clock: Instant::now(),
            last_path: self.last_path(&plan.recipe),
            last: self.last(&plan.recipe)?,
            last_file: None,
        })
    }

    fn last_path(&self, recipe: &str) -> Utf8PathBuf {
        // Bytes that some file system dislikes are written in hex, so distinct recipes keep distinct files.
        let mut name = String::new();
        for byte in recipe.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
                name.push(byte as char);
            } else {
                name.push_str(&format!("%{byte:02x}"));
            }
        }
        self.dir.join("last").join(format!("{name}.jsonl"))
    }
}

fn read_run(dir: &Utf8Path) -> std::io::Result<Option<RunInfo>> {
    let Some(record) = read_json::<RunRecord>(&dir.join("run.json"))? else { return Ok(None) };
    let mut summary = read_json::<Value>(&dir.join("summary.json"))?;
    let ending = match &mut summary {
        Some(summary) => {
            if let Some(summary) = summary.as_object_mut() {
                summary.remove("steps");
            }
            let count = |name: &str| summary[name].as_u64().unwrap_or(0);
            match (summary["stopped"] == true || count("interrupted") > 0, count("failed") > 0) {
                (true, _) => Ending::Interrupted,
                (false, true) => Ending::Failed,
                (false, false) => Ending::Finished,
            }
        }
        None => match fs_err::File::open(dir.join("events.jsonl")).map(|file| file.file().try_lock()) {
            Ok(Err(TryLockError::WouldBlock)) => Ending::Running,
            _ => Ending::Killed,
        },
    };
    Ok(Some(RunInfo { record, ending, summary }))
}

/// `None` where there is no such file or it is torn.
fn read_json<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> std::io::Result<Option<T>> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The open folder of one run.
#[derive(Debug)]
pub(crate) struct RunLog {
    pub(crate) record: RunRecord,
    dir: Utf8PathBuf,
    events: BufWriter<fs_err::File>,
    clock: Instant,
    last_path: Utf8PathBuf,
    last: BTreeMap<String, ActionKey>,
    last_file: Option<fs_err::File>,
}

impl RunLog {
    pub(crate) fn event(&mut self, event: &Event) -> std::io::Result<()> {
        if let Event::Op { report: OpEvent::Progress(_) | OpEvent::Metric { .. }, .. } = event {
            return Ok(());
        }
        #[derive(Serialize)]
        struct Line<'a> {
            t: f64,
            #[serde(flatten)]
            event: &'a Event,
        }
        let t = (self.clock.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        serde_json::to_writer(&mut self.events, &Line { t, event })?;
        self.events.write_all(b"\n")?;
        // Reuse comes in thousands; everything else is rare and worth having after a kill.
        if matches!(event, Event::Reused { .. }) { Ok(()) } else { self.events.flush() }
    }

    /// Remembers the key under which a node has its result now.
    pub(crate) fn result(&mut self, node: &str, key: ActionKey) -> std::io::Result<()> {
        if self.last.get(node) == Some(&key) {
            return Ok(());
        }
        let file = match &mut self.last_file {
            Some(file) => file,
            None => {
                if let Some(dir) = self.last_path.parent() {
                    fs_err::create_dir_all(dir)?;
                }
                let file = fs_err::OpenOptions::new().create(true).append(true).open(&self.last_path)?;
                self.last_file.insert(file)
            }
        };
        let mut line = serde_json::to_vec(&LastLine { node: node.to_owned(), key })?;
        line.push(b'\n');
        // One write of an appending file: concurrent runs do not tear each other's lines.
        file.write_all(&line)?;
        self.last.insert(node.to_owned(), key);
        Ok(())
    }

    pub(crate) fn finish(mut self, summary: &impl Serialize) -> std::io::Result<()> {
        fs_err::write(self.dir.join("summary.json"), serde_json::to_vec(summary)?)?;
        self.events.flush()
    }
}
