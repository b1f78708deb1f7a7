//! Worlds that agents act in, behind one trait.
//!
//! Invariant: an environment is deterministic: the same task and the same actions give the same texts, byte for byte.

pub mod household;

use crate::artifact::Task;

/// What an agent perceives after a reset or a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    pub text: String,
    /// 0 to 1; of the state reached.
    pub score: f64,
    /// The episode is over.
    pub done: bool,
    /// The goal holds.
    pub won: bool,
}

/// One instance of a world, playing one task at a time.
pub trait Env: Send {
    fn task(&self) -> &Task;
    /// Puts the task's first state back.
    fn reset(&mut self) -> Observation;
    /// Acts. Anything that is not admissible changes nothing and says so.
    fn step(&mut self, action: &str) -> Observation;
    /// Actions that would change or show something now, sorted.
    fn admissible(&self) -> Vec<String>;
    /// What the expert would do now; `None` when the goal holds.
    fn expert(&mut self) -> Option<String>;
}
