//! `demos`: the environment's expert plays tasks; its episodes are saved.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::kept;
use super::worlds::{Record, Tasks};
use crate::artifact::{self, Actor, End, Episode, SCHEMA_VERSION};
use crate::env::{EnvError, WorldSettings};

/// Parameters of `demos`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The environment and its settings.
    #[serde(default)]
    pub world: WorldSettings,
    /// Which tasks: `train`, and the environment's others.
    #[serde(default = "train")]
    pub split: String,
    /// How many tasks are played; 0 takes all, where they are listed.
    #[schemars(range(min = 0, max = 10000000))]
    pub count: usize,
    /// How many tasks at the beginning of the split are passed over.
    #[serde(default)]
    pub first: usize,
    /// Longest episode, in steps.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: usize,
    /// Shortest episode that is kept, in steps.
    #[serde(default)]
    pub min_steps: usize,
    /// Only episodes that reach their goal are kept.
    #[serde(default = "yes")]
    pub only_success: bool,
    /// Lowest score of an episode that is kept.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_score: f64,
    /// Whether admissible actions are written down.
    #[serde(default)]
    pub actions: Record,
}

fn train() -> String {
    "train".to_owned()
}
fn max_steps() -> usize {
    50
}
fn yes() -> bool {
    true
}

/// The op.
pub struct Demos;

/// Tasks between two checkpoints.
const CHUNK: usize = 256;

impl Op for Demos {
    type Params = Params;
    const NAME: &'static str = "demos";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "lets the environment's expert play tasks and saves the episodes";

    fn ports(&self, p: &Params) -> Ports {
        p.world.port(Ports::new()).output("episodes", Kind::EPISODES, "one episode a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.world.check(Some(&p.split))
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let tasks = Tasks::open(ctx, &p.world, &p.split, p.first, p.count)?;
        ctx.note("reproducible", tasks.suite.reproducible());
        let together = tasks.suite.together().min(CHUNK);
        let mut episodes: Vec<Episode> = Vec::with_capacity(tasks.count());
        let mut played = 0;
        while played < tasks.count() {
            let part = played..tasks.count().min(played + CHUNK);
            episodes.extend(kept(ctx, &format!("tasks-{played}"), || {
                let mut episodes = Vec::with_capacity(part.len());
                for some in part.clone().collect::<Vec<_>>().chunks(together) {
                    if ctx.stopping() {
                        return Err(OpError::Interrupted);
                    }
                    let play = |index: &usize| expert_episode(&tasks, *index, p);
                    episodes.extend(some.par_iter().map(play).collect::<Result<Vec<_>, EnvError>>()?);
                }
                Ok(episodes)
            })?);
            played = part.end;
            ctx.progress(played as u64, tasks.count() as u64, "episodes", "");
        }
        let won = episodes.iter().filter(|e| e.success).count();
        if episodes.iter().all(|e| e.turns.is_empty()) {
            return Err(OpError::failed(format!("the environment `{}` has no expert for these tasks", p.world.name())));
        }
        episodes.retain(|e| {
            (e.success || !p.only_success) && e.score >= p.min_score && (p.min_steps..).contains(&e.turns.len())
        });
        if episodes.is_empty() {
            return Err(OpError::with_help(
                format!("none of {played} episodes is kept; the expert finished {won} of them"),
                "raise `max_steps`, or ask for less by `only_success`, `min_score` or `min_steps`",
            ));
        }
        let n = episodes.len() as f64;
        ctx.metric(0, "episodes", n);
        ctx.metric(0, "success", won as f64 / played as f64);
        ctx.metric(0, "score", episodes.iter().map(|e| e.score).sum::<f64>() / n);
        ctx.metric(0, "steps", episodes.iter().map(|e| e.turns.len()).sum::<usize>() as f64 / n);
        artifact::write(ctx.output("episodes"), &episodes)
    }
}

fn expert_episode(tasks: &Tasks, index: usize, p: &Params) -> Result<Episode, EnvError> {
    let mut game = tasks.game(index)?;
    while !game.now.done && game.turns.len() < p.max_steps {
        let Some(action) = game.env.expert()? else { break };
        game.step(action, None, p.actions)?;
    }
    Ok(Episode {
        v: SCHEMA_VERSION,
        task: game.env.task().clone(),
        actor: Actor::Expert,
        decoding: None,
        start: game.start,
        turns: game.turns,
        success: game.now.won,
        score: game.now.score,
        end: if game.now.done { End::Done } else { End::Limit },
    })
}
