//! What `demos` and `rollout` share: a world, a split of it, and the games of its tasks.

use std::sync::Arc;

use actloom_engine::op::{OpContext, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::Turn;
use crate::env::{Env, EnvError, Observation, Snapshot, Suite, WorldSettings};

/// Whether admissible actions are written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// Of every state, where the environment tells them.
    #[default]
    Always,
    /// Only where something else asked for them: reading them is most of a step's time in ScienceWorld.
    Needed,
}

/// An opened world, and which of its tasks are played.
pub struct Tasks {
    pub suite: Arc<dyn Suite>,
    split: String,
    first: usize,
    count: usize,
    seed: u64,
}

impl Tasks {
    /// Opens the world of a step. `count` 0 takes every task of a split that lists them.
    ///
    /// # Errors
    /// The world's, and more tasks than there are.
    pub fn open(
        ctx: &OpContext<'_>,
        world: &WorldSettings,
        split: &str,
        first: usize,
        count: usize,
    ) -> Result<Tasks, OpError> {
        let suite = world.open(ctx.input_opt("data"))?;
        ctx.note("world", suite.identity());
        Tasks::of(suite.into(), split, first, count, ctx.seed("tasks"))
    }

    /// Tasks of a world that is open. `seed` makes the tasks of worlds that make them.
    ///
    /// # Errors
    /// As [`Tasks::open`].
    pub fn of(suite: Arc<dyn Suite>, split: &str, first: usize, count: usize, seed: u64) -> Result<Tasks, OpError> {
        let there = suite.count(split)?;
        let count = match there {
            _ if count > 0 => count,
            Some(all) => all.saturating_sub(first),
            None => {
                return Err(OpError::with_help(
                    format!("the split `{split}` of `{}` makes as many tasks as are asked for", suite.name()),
                    "say how many are wanted",
                ));
            }
        };
        if let Some(all) = there
            && (first + count > all || count == 0)
        {
            return Err(OpError::with_help(
                format!(
                    "the split `{split}` of `{}` has {all} tasks, expected at least {}",
                    suite.name(),
                    first + count.max(1)
                ),
                "ask for fewer tasks; 0 takes all",
            ));
        }
        Ok(Tasks { suite, split: split.to_owned(), first, count, seed })
    }

    /// Other tasks of the same world, which is not opened again.
    ///
    /// # Errors
    /// As [`Tasks::open`].
    pub fn others(&self, split: &str, first: usize, count: usize) -> Result<Tasks, OpError> {
        Tasks::of(self.suite.clone(), split, first, count, self.seed)
    }

    /// How many are played.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Opens task `index` of those that are played.
    ///
    /// # Errors
    /// The world's.
    pub fn game(&self, index: usize) -> Result<Game, EnvError> {
        Game::begin(self.suite.open(&self.split, self.first + index, self.seed)?)
    }
}

/// One game being played.
pub struct Game {
    pub env: Box<dyn Env>,
    pub now: Observation,
    pub start: String,
    pub turns: Vec<Turn>,
    /// Admissible actions now, if somebody asked.
    actions: Vec<String>,
    known: bool,
    /// Seconds of each step in the environment.
    pub spent: Vec<f64>,
}

impl Game {
    /// Starts a task.
    ///
    /// # Errors
    /// The world's.
    pub fn begin(mut env: Box<dyn Env>) -> Result<Game, EnvError> {
        let now = env.reset()?;
        let start = now.text.clone();
        Ok(Game { env, now, start, turns: Vec::new(), actions: Vec::new(), known: false, spent: Vec::new() })
    }

    /// Takes the last action back: `before` and `now` are the state before it and what was perceived then.
    ///
    /// # Errors
    /// The world's.
    pub fn back(&mut self, before: &Snapshot, now: Observation) -> Result<(), EnvError> {
        self.env.restore(before)?;
        self.now = now;
        self.turns.pop();
        self.known = false;
        Ok(())
    }

    /// Admissible actions now; empty where the environment does not say.
    ///
    /// # Errors
    /// The world's.
    pub fn actions(&mut self) -> Result<&[String], EnvError> {
        if !self.known {
            self.actions = self.env.admissible()?.unwrap_or_default();
            self.known = true;
        }
        Ok(&self.actions)
    }

    /// What is known of the admissible actions now.
    pub fn known_actions(&self) -> &[String] {
        &self.actions
    }

    /// Acts and writes it down. `reply` is all that was said, where that is more than the action.
    ///
    /// # Errors
    /// The world's.
    pub fn step(&mut self, action: String, reply: Option<String>, record: Record) -> Result<(), EnvError> {
        if record == Record::Always {
            self.actions()?;
        }
        let clock = std::time::Instant::now();
        self.now = self.env.step(&action)?;
        self.spent.push(clock.elapsed().as_secs_f64());
        let actions = std::mem::take(&mut self.actions);
        let listed = (self.known && !actions.is_empty()).then(|| actions.contains(&action));
        self.known = false;
        self.turns.push(Turn {
            action,
            admissible: self.now.valid.or(listed),
            observation: self.now.text.clone(),
            actions,
            reply,
            reward: self.now.reward,
        });
        Ok(())
    }
}
