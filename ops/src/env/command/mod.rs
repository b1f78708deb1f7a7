//! An environment that is a program of the user's own: JSON lines on stdin and stdout.
//!
//! 1. [`Settings`]: the command, and how long it may take.
//! 2. `message`: what is said. 3. `link`: one process. 4. `instance`: one task played in it.
//!
//! Invariants: nothing that a program does makes a call go on for ever, fills the memory or goes unnoticed; processes end
//! with this one, in whatever way it ends; what a program is not asked it need not know.

mod instance;
mod link;
mod message;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actloom_engine::op::Problem;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::instance::Instance;
pub use self::link::LONGEST;
use self::link::{Link, Start};
pub use self::message::PROTOCOL;
use self::message::{Hello, Split};
use super::{Env, EnvError, Suite};
use crate::artifact::Task;

/// Stands for the path of the input `data`.
const DATA: &str = "{data}";

/// How the environment is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The program and its arguments: `["python3", "{data}"]`. `{data}` stands for the path of the input `data`, whose
    /// content belongs to the result's key; a program that is found otherwise does not.
    pub command: Vec<String>,
    /// Longest wait for one answer, in seconds.
    #[schemars(range(min = 0.001, max = 86400.0))]
    pub deadline: f64,
    /// Processes that run at once, each with one task.
    #[schemars(range(min = 1, max = 1024))]
    pub processes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { command: Vec::new(), deadline: 60.0, processes: 4 }
    }
}

impl Settings {
    /// What cannot be.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.command.first().is_none_or(|program| program.trim().is_empty()) {
            let what = "there is no program to start";
            let help = "write `command = [\"python3\", \"{data}\"]`, and the program as the input `data`";
            problems.push(Problem::new(&["world", "command"], what).help(help));
        }
        problems
    }

    fn start(&self, data: Option<&Utf8Path>) -> Result<Start, EnvError> {
        let named = self.command.iter().any(|part| part.contains(DATA));
        let part = |part: &String| match data {
            Some(path) => OsString::from(part.replace(DATA, path.as_str())),
            None => OsString::from(part),
        };
        let (Some(program), false) = (self.command.first(), data.is_none() && named) else {
            return Err(EnvError::with_help(
                "`command` of the world names `{data}`, and there is no input of that name, or it is empty",
                "give the step the input `data`: the program's file or folder",
            ));
        };
        if data.is_some() && !named {
            return Err(EnvError::with_help(
                "`command` of the world does not name the input `data` that the step has",
                "write `{data}` where the program's path belongs",
            ));
        }
        Ok(Start {
            program: part(program),
            arguments: self.command[1..].iter().map(part).collect(),
            deadline: Duration::from_secs_f64(self.deadline),
        })
    }
}

/// Opens the environment.
///
/// # Errors
/// Names what is missing, and what of its hello is wrong.
pub fn open(settings: &Settings, data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
    let start = settings.start(data)?;
    let (link, hello) = Link::open(&start)?;
    let together = hello.parallel.map_or(settings.processes, |most| most.min(settings.processes));
    let pool = Pool { program: Program { start, hello }, idle: Mutex::new(vec![link]), together };
    Ok(Box::new(Plugged { pool: Arc::new(pool) }))
}

/// The program, as it is started and as it answered.
struct Program {
    start: Start,
    hello: Hello,
}

impl Program {
    fn split(&self, name: &str) -> Result<&Split, EnvError> {
        self.hello.splits.iter().find(|split| split.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.hello.splits.iter().map(|split| split.name.as_str()).collect();
            EnvError::unusable(format!(
                "the environment `{}` has no split `{name}`, expected one of `{}`",
                self.hello.name,
                names.join("`, `")
            ))
        })
    }
}

/// Processes that play nothing now, and how more are started.
struct Pool {
    program: Program,
    idle: Mutex<Vec<Link>>,
    together: usize,
}

impl Pool {
    /// A process that plays nothing.
    fn take(&self) -> Result<Link, EnvError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| self.fresh(), Ok)
    }

    /// A new process.
    fn fresh(&self) -> Result<Link, EnvError> {
        let (link, hello) = Link::open(&self.program.start)?;
        if hello == self.program.hello {
            return Ok(link);
        }
        Err(EnvError::unusable(format!(
            "two processes of the environment `{}` say different hellos, expected the same",
            self.program.hello.name
        )))
    }

    /// Takes a process back; what cannot be used again ends.
    fn give(&self, link: Link) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if link.is_sound() && idle.len() < self.together {
            idle.push(link);
        } else {
            drop(idle);
            drop(link);
        }
    }
}

/// The program as a suite.
struct Plugged {
    pool: Arc<Pool>,
}

impl Suite for Plugged {
    fn name(&self) -> &'static str {
        "command"
    }

    fn splits(&self) -> Vec<String> {
        self.pool.program.hello.splits.iter().map(|split| split.name.clone()).collect()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, EnvError> {
        Ok(self.pool.program.split(split)?.tasks)
    }

    fn open(&self, split: &str, index: usize, seed: u64) -> Result<Box<dyn Env>, EnvError> {
        match self.count(split)? {
            Some(count) if index >= count => Err(EnvError::unusable(format!(
                "the split `{split}` of `{}` has {count} tasks, expected an index below, found {index}",
                self.pool.program.hello.name
            ))),
            _ => Ok(Box::new(Instance::open(Arc::clone(&self.pool), split, index, seed)?)),
        }
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
        let index = task.id.strip_prefix(task.split.as_str()).and_then(|rest| rest.strip_prefix('/')?.parse().ok());
        let opened = match index {
            Some(index) => self.open(&task.split, index, task.seed.unwrap_or(0))?,
            None => return Err(EnvError::unusable(format!("`{}` is no task of a program", task.id))),
        };
        if opened.task() == task {
            return Ok(opened);
        }
        Err(EnvError::with_help(
            format!("the task `{}` is another one here: `{}`", task.id, opened.task().goal),
            "take the program that the episodes were played in",
        ))
    }

    fn together(&self) -> usize {
        self.pool.together
    }

    fn reproducible(&self) -> bool {
        self.pool.program.hello.deterministic
    }

    fn identity(&self) -> serde_json::Value {
        let Hello { name, version, protocol, .. } = &self.pool.program.hello;
        json!({ "program": name, "version": version, "protocol": protocol })
    }
}
