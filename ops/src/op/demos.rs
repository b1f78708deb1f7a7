//! `demos`: the environment's expert plays tasks; its episodes are saved.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::EnvName;
use crate::artifact::{self, Actor, End, Episode, SCHEMA_VERSION, Turn};
use crate::env::{Env, household};

/// Parameters of `demos`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    #[serde(default)]
    pub env: EnvName,
    /// Settings of the environment.
    #[serde(default)]
    pub world: household::Settings,
    /// Which tasks.
    #[serde(default = "train")]
    pub split: household::Split,
    /// How many tasks are played.
    #[schemars(range(min = 1, max = 10000000))]
    pub count: usize,
    /// Longest episode, in steps.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: usize,
    /// Only episodes that reach their goal are kept.
    #[serde(default = "yes")]
    pub only_success: bool,
}

fn train() -> household::Split {
    household::Split::Train
}
fn max_steps() -> usize {
    50
}
fn yes() -> bool {
    true
}

/// The op.
pub struct Demos;

impl Op for Demos {
    type Params = Params;
    const NAME: &'static str = "demos";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "lets the environment's expert play tasks and saves the episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new().output("episodes", Kind::EPISODES, "one episode a line")
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let EnvName::Household = p.env;
        let tasks = household::tasks(&p.world, p.split, p.count, ctx.seed("tasks"));
        let mut episodes = Vec::with_capacity(tasks.len());
        for (i, task) in tasks.iter().enumerate() {
            if ctx.stopping() {
                return Err(OpError::Interrupted);
            }
            let episode = expert_episode(task, p.max_steps);
            if episode.success || !p.only_success {
                episodes.push(episode);
            }
            if i.is_multiple_of(64) {
                ctx.progress(i as u64, tasks.len() as u64, "episodes", "");
            }
        }
        if episodes.is_empty() {
            return Err(OpError::with_help("the expert finished no task", "raise `max_steps`"));
        }
        let n = episodes.len() as f64;
        ctx.metric(0, "episodes", n);
        ctx.metric(0, "success", episodes.iter().filter(|e| e.success).count() as f64 / tasks.len() as f64);
        ctx.metric(0, "steps", episodes.iter().map(|e| e.turns.len()).sum::<usize>() as f64 / n);
        artifact::write(ctx.output("episodes"), &episodes)
    }
}

fn expert_episode(task: &household::HouseholdTask, max_steps: usize) -> Episode {
    let mut world = task.play();
    let mut now = world.reset();
    let start = now.text.clone();
    let mut turns = Vec::new();
    while !now.done && turns.len() < max_steps {
        let Some(action) = world.expert() else { break };
        let actions = world.admissible();
        let admissible = actions.contains(&action);
        now = world.step(&action);
        turns.push(Turn { action, admissible, observation: now.text.clone(), actions });
    }
    Episode {
        v: SCHEMA_VERSION,
        task: task.task().clone(),
        actor: Actor::Expert,
        decoding: None,
        start,
        turns,
        success: now.won,
        score: now.score,
        end: if now.done { End::Done } else { End::Limit },
    }
}
