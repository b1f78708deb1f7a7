//! ScienceWorld: the real simulator, which runs on Java.
//!
//! 1. [`protocol`]: what is said on the wire. 2. [`Machine`]: one simulator. 3. [`Java`]: where it is and how it starts.
//! 4. `pool`: several machines, one for each game. 5. `play`: a game. 6. `suite`: tasks by split.
//!
//! Invariants: scores, ends and counts of moves of a task and its actions are always the same; texts are not: the order
//! of things in a listing and the temperature of an unknown substance differ from load to load, in the original too.

mod java;
mod machine;
mod play;
mod pool;
pub mod protocol;
mod suite;
pub mod tasks;

use std::sync::Arc;
use std::time::Duration;

use actloom_engine::diagnostic::{listed, nearest};
use actloom_engine::op::Problem;
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnvError, Suite};
pub use java::Java;
pub use machine::{CLASS, Launch, Limits, Machine, Running, State};
pub use tasks::SPLITS;

/// What makes tasks easier; the simulator's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Simplification {
    /// All of them but open containers, and but no electricity in tasks about electricity.
    Easy,
    /// One action goes to any room.
    TeleportAction,
    /// Flower pots water themselves.
    SelfWateringFlowerPots,
    /// Containers are open.
    OpenContainers,
    /// Doors are open.
    OpenDoors,
    /// Nothing can be connected; not for tasks about electricity.
    NoElectricalAction,
}

impl Simplification {
    /// As the simulator writes it.
    fn name(self) -> &'static str {
        match self {
            Simplification::Easy => "easy",
            Simplification::TeleportAction => "teleportAction",
            Simplification::SelfWateringFlowerPots => "selfWateringFlowerPots",
            Simplification::OpenContainers => "openContainers",
            Simplification::OpenDoors => "openDoors",
            Simplification::NoElectricalAction => "noElectricalAction",
        }
    }
}

/// Which score an episode has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Score {
    /// That of the state reached; 0 where the task is failed.
    #[default]
    Last,
    /// The best so far.
    Best,
}

/// What becomes of an action that does not answer an open question ("which of these do you mean?").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Requests {
    /// It is done: the question is put aside first, which costs a move. Answers may be numbers, or choices in words.
    #[default]
    Kept,
    /// It is lost, as in the original: the simulator takes whatever comes next for the answer.
    Original,
}

/// How the environment is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Which of the thirty tasks: `boil`, or by number, `1-1`. All of them where it is empty.
    pub tasks: Vec<String>,
    /// At most so many variations of each task in a split, the first ones; 0 takes all.
    pub variations: usize,
    /// What makes tasks easier; nothing where it is empty.
    pub simplifications: Vec<Simplification>,
    /// Which score an episode has.
    pub score: Score,
    /// An episode ends when the simulator has counted more moves than this, as with `envStepLimit` of the Python package
    /// (there 100): looking is free, waiting costs several. 0 for no such end.
    #[schemars(range(min = 0, max = 100000))]
    pub moves: usize,
    /// What becomes of an action that does not answer an open question.
    pub requests: Requests,
    /// Whether the first observation tells the inventory, too.
    pub inventory: bool,
    /// Whether admissible actions can be had; listing them takes ten times as long as a step.
    pub valid_actions: bool,
    /// How many simulators run side by side, and so how many games; 0 takes one for each core, at most 8.
    #[schemars(range(min = 0, max = 256))]
    pub machines: usize,
    /// Heap of one simulator, in MiB.
    #[schemars(range(min = 128, max = 65536))]
    pub memory: usize,
    /// Longest time of a call, in seconds. The expert's path of some tasks takes 15 s on a slow computer.
    #[schemars(range(min = 1.0, max = 86400.0))]
    pub deadline: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            tasks: Vec::new(),
            variations: 0,
            simplifications: vec![Simplification::Easy],
            score: Score::Last,
            moves: 0,
            requests: Requests::Kept,
            inventory: false,
            valid_actions: true,
            machines: 0,
            memory: 768,
            deadline: 120.0,
        }
    }
}

impl Settings {
    /// What cannot be.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let names: Vec<&str> = tasks::KINDS.iter().map(|kind| kind.name).collect();
        let mut seen = Vec::new();
        for (i, name) in self.tasks.iter().enumerate() {
            let path = ["world".to_owned(), "tasks".to_owned(), i.to_string()];
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match tasks::find(name) {
                None => {
                    let help = match nearest(name, names.iter().copied()) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("the tasks are {}", listed(names.iter().copied(), "and")),
                    };
                    problems.push(Problem::new(&path, format!("`{name}` is no task of ScienceWorld")).help(help));
                }
                Some(at) if seen.contains(&at) => {
                    problems.push(Problem::new(&path, format!("the task `{}` is named twice", tasks::KINDS[at].name)));
                }
                Some(at) => seen.push(at),
            }
        }
        let electrical = self.kinds().into_iter().find(|at| tasks::KINDS[*at].is_electrical());
        if let Some(at) = electrical.filter(|_| self.simplifications.contains(&Simplification::NoElectricalAction)) {
            let message = format!("the task `{}` cannot be done with `noElectricalAction`", tasks::KINDS[at].name);
            problems.push(
                Problem::new(&["world", "simplifications"], message).help(
                    "name the tasks that are wanted, or take `easy`, which leaves electricity where it is needed",
                ),
            );
        }
        if !(1.0..=86400.0).contains(&self.deadline) {
            let message = format!("`deadline` is {}, expected 1 to 86400 seconds", self.deadline);
            problems.push(Problem::new(&["world", "deadline"], message));
        }
        problems
    }

    /// Indices of the tasks, in the order in which they are named.
    fn kinds(&self) -> Vec<usize> {
        if self.tasks.is_empty() {
            return (0..tasks::KINDS.len()).collect();
        }
        self.tasks.iter().filter_map(|name| tasks::find(name)).collect()
    }

    /// As the simulator takes them.
    fn simplifications(&self) -> String {
        self.simplifications.iter().map(|one| one.name()).collect::<Vec<_>>().join(",")
    }

    fn size(&self) -> usize {
        match self.machines {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8),
            n => n,
        }
    }

    fn limits(&self) -> Limits {
        Limits { deadline: Duration::from_secs_f64(self.deadline), ..Limits::default() }
    }
}

/// Opens the environment with the real simulator.
///
/// # Errors
/// Names what is missing, and what to install.
pub fn open(settings: &Settings, data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
    open_with(settings, Arc::new(Java::find(data, settings.memory)?))
}

/// Opens the environment with any simulator that speaks the protocol.
///
/// # Errors
/// Settings that cannot be.
pub fn open_with(settings: &Settings, launch: Arc<dyn Launch>) -> Result<Box<dyn Suite>, EnvError> {
    Ok(Box::new(suite::Scienceworld::new(settings, launch)?))
}
