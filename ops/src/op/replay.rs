//! An expert episode gone through again, so that other actions can be tried at its states.
//!
//! Invariants: the states are those of the episode: what is perceived on the way is what the episode tells, or the episode
//! is refused; an action that is tried changes no state.

use actloom_engine::op::OpError;

use crate::artifact::{Episode, Outcome};
use crate::env::{Env, Observation, Snapshot, Suite};

/// What came of an action that was tried.
pub struct Tried {
    pub outcome: Outcome,
    /// Whether the environment took it for one of its own; `None` where it does not say.
    pub valid: Option<bool>,
    /// It leads where the expert's action leads, as far as can be perceived.
    pub same: bool,
}

/// What is perceived after the expert's action.
struct After {
    now: Observation,
    /// Admissible actions, once somebody asked.
    actions: Option<Option<Vec<String>>>,
}

/// The states of one episode.
pub struct Replay {
    env: Box<dyn Env>,
    /// Before each turn, and after the last one.
    before: Vec<Snapshot>,
    /// After each turn.
    after: Vec<After>,
}

impl Replay {
    /// Plays the expert's actions. Where a world that does not promise to be reproducible goes another way than it went,
    /// the states from there on are not among [`Replay::states`].
    ///
    /// # Errors
    /// The world's; a world that promises it and goes another way, or begins another way.
    pub fn of(suite: &dyn Suite, number: usize, episode: &Episode) -> Result<Replay, OpError> {
        let mut env = suite.reopen(&episode.task)?;
        let start = env.reset()?;
        let differs = |what: &str, now: &str, told: &str| {
            OpError::with_help(
                format!(
                    "episode {number} (`{} {}`) goes another way here: {what} is `{}`, expected `{}`",
                    episode.task.env,
                    episode.task.id,
                    now.trim(),
                    told.trim()
                ),
                "give the `world` and the `data` that the episodes were made with",
            )
        };
        if start.text != episode.start {
            return Err(differs("its start", &start.text, &episode.start));
        }
        let (mut before, mut after) = (vec![env.snapshot()], Vec::new());
        for (at, turn) in episode.turns.iter().enumerate() {
            let now = env.step(&turn.action)?;
            if now.text != turn.observation {
                if suite.reproducible() {
                    let what = format!("the answer to `{}` at turn {at}", turn.action);
                    return Err(differs(&what, &now.text, &turn.observation));
                }
                // the state before it may have been another one already
                break;
            }
            before.push(env.snapshot());
            after.push(After { now, actions: None });
        }
        Ok(Replay { env, before, after })
    }

    /// How many of the episode's states can be gone back to.
    pub fn states(&self) -> usize {
        self.after.len()
    }

    /// Takes an action at the state before turn `turn`. `compare` asks whether it leads where the expert's does.
    ///
    /// # Errors
    /// The world's.
    pub fn attempt(&mut self, turn: usize, action: &str, compare: bool) -> Result<Tried, OpError> {
        self.env.restore(&self.before[turn])?;
        let now = self.env.step(action)?;
        // nothing is possible any more where the episode is over
        let same = compare
            && now == self.after[turn].now
            && (now.done || self.env.admissible()? == self.actions_after(turn)?);
        let Observation { text, reward, done, won, valid, .. } = now;
        Ok(Tried { outcome: Outcome { observation: text, reward, done, won }, valid, same })
    }

    /// Admissible actions after the expert's action.
    fn actions_after(&mut self, turn: usize) -> Result<Option<Vec<String>>, OpError> {
        if let Some(actions) = &self.after[turn].actions {
            return Ok(actions.clone());
        }
        self.env.restore(&self.before[turn + 1])?;
        let actions = self.env.admissible()?;
        self.after[turn].actions = Some(actions.clone());
        Ok(actions)
    }
}
