//! Worlds that agents act in, behind one trait.
//!
//! 1. [`WorldSettings`]: the table `world` of a recipe, one form for each environment.
//! 2. [`Suite`]: an environment with its data: lists tasks by split and opens them.
//! 3. [`Env`]: one instance, playing one task.
//!
//! Invariants: a native environment is deterministic (the same task and the same actions give the same texts, byte for
//! byte), and [`Suite::reproducible`] says so; no call of an environment that is another process goes on for ever.

pub mod command;
mod error;
pub mod household;
mod process;
pub mod scienceworld;
mod settings;
pub mod webshop;

use std::any::Any;

use crate::artifact::Task;
pub use error::EnvError;
pub use settings::WorldSettings;

/// What an agent perceives after a reset or a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    pub text: String,
    /// What the last action earned; 0 after a reset.
    pub reward: f64,
    /// 0 to 1; of the state reached.
    pub score: f64,
    /// The episode is over.
    pub done: bool,
    /// The goal holds.
    pub won: bool,
    /// Whether the environment took the action for one of its own; `None` where it does not say.
    pub valid: Option<bool>,
}

/// A state of one task, to go back to.
pub struct Snapshot(Box<dyn Any + Send + Sync>);

impl Snapshot {
    /// Holds whatever an environment needs to go back.
    pub fn of<T: Any + Send + Sync>(state: T) -> Snapshot {
        Snapshot(Box::new(state))
    }

    /// What [`Snapshot::of`] was given, if it was of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

/// One instance of a world, playing one task.
pub trait Env: Send {
    fn task(&self) -> &Task;

    /// Puts the task's first state back.
    ///
    /// # Errors
    /// Where the environment is another process, whatever can go wrong there.
    fn reset(&mut self) -> Result<Observation, EnvError>;

    /// Acts. Anything that is not possible changes nothing and says so.
    ///
    /// # Errors
    /// As [`Env::reset`].
    fn step(&mut self, action: &str) -> Result<Observation, EnvError>;

    /// Actions that are possible now, sorted; `None` where the environment does not say.
    ///
    /// # Errors
    /// As [`Env::reset`].
    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError>;

    /// What the expert would do now; `None` when there is nothing left to do, or no expert.
    ///
    /// # Errors
    /// As [`Env::reset`].
    fn expert(&mut self) -> Result<Option<String>, EnvError>;

    /// The state now.
    fn snapshot(&self) -> Snapshot;

    /// Goes back to a state of the same task: the state itself in native worlds, a replay of the actions in others.
    ///
    /// # Errors
    /// As [`Env::reset`]; a snapshot of another environment; a replay that does not lead where it led.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError>;
}

/// An environment with its data.
pub trait Suite: Send + Sync {
    /// `household`, as tasks name it.
    fn name(&self) -> &'static str;

    /// Splits that there are, the one for training first.
    fn splits(&self) -> Vec<String>;

    /// How many tasks a split has; `None` where as many are made as are asked for.
    ///
    /// # Errors
    /// A split that there is not; data that cannot be read.
    fn count(&self, split: &str) -> Result<Option<usize>, EnvError>;

    /// What of a split's data is not among its tasks, a line each, for people.
    ///
    /// # Errors
    /// As [`Suite::count`].
    fn passed_over(&self, split: &str) -> Result<Vec<String>, EnvError> {
        let _ = split;
        Ok(Vec::new())
    }

    /// Opens a task; it begins with [`Env::reset`]. `seed` makes the tasks of worlds that make them, and chooses nothing
    /// where tasks are listed.
    ///
    /// # Errors
    /// A split that there is not, an index beyond its end, data that cannot be read.
    fn open(&self, split: &str, index: usize, seed: u64) -> Result<Box<dyn Env>, EnvError>;

    /// Opens a task that an episode names, for going back to its states.
    ///
    /// # Errors
    /// A task that is not of this suite.
    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError>;

    /// How many tasks may be played side by side.
    fn together(&self) -> usize {
        usize::MAX
    }

    /// The same actions give the same texts.
    fn reproducible(&self) -> bool {
        true
    }

    /// What the provenance should say of it: a simulator's version.
    fn identity(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Refuses a split that there is not.
pub(crate) fn no_split(suite: &dyn Suite, split: &str) -> EnvError {
    EnvError::unusable(format!(
        "the environment `{}` has no split `{split}`, expected one of `{}`",
        suite.name(),
        suite.splits().join("`, `")
    ))
}
