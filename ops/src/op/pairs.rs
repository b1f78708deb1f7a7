//! `pairs`: expert action and alternative side by side, in seeded random order, exactly balanced.

use std::collections::BTreeSet;

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::past;
use crate::artifact::{self, Episode, Pair, SCHEMA_VERSION, Samples};
use crate::rng::Rng;

/// Parameters of `pairs`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Pairs at most for one state.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_state: usize,
    /// Share of episodes whose pairs are kept away from training.
    #[serde(default = "tenth")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub held_out: f64,
    /// What is kept of the turns before a state.
    #[serde(default)]
    pub past: Kept,
    /// Pairs for training at most, taken in seeded random order; 0 takes all.
    #[serde(default)]
    pub limit: usize,
}

/// What is kept of the turns before a state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// What was done and seen.
    #[default]
    Texts,
    /// Also what was said and which actions were possible, for prompts that tell them.
    Whole,
}

fn one() -> usize {
    1
}
fn tenth() -> f64 {
    0.1
}

/// The op.
pub struct Pairs;

impl Op for Pairs {
    type Params = Params;
    const NAME: &'static str = "pairs";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "puts the expert's action and an alternative side by side";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .input("states", Kind::EPISODES, "the expert episodes that the alternatives were sampled at")
            .input("alternatives", Kind::SAMPLES, "what the policy would have done")
            .output("pairs", Kind::PAIRS, "one pair a line")
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let samples: Vec<Samples> = artifact::read(ctx.input("alternatives"))?;
        let mut pairs = Vec::new();
        let out: BTreeSet<usize> = {
            let mut order: Vec<usize> = (0..episodes.len()).collect();
            Rng::new(ctx.seed("held-out"), 0).shuffle(&mut order);
            order.truncate((episodes.len() as f64 * p.held_out).round() as usize);
            order.into_iter().collect()
        };
        for line in &samples {
            let episode = episodes.get(line.episode);
            let Some((episode, turn)) = episode.and_then(|e| e.turns.get(line.turn).map(|t| (e, t))) else {
                let (e, t) = (line.episode, line.turn);
                return Err(OpError::failed(format!(
                    "the samples speak of turn {t} of episode {e}, which is not there"
                )));
            };
            if turn.action != line.expert {
                return Err(OpError::with_help(
                    format!("episode {}, turn {}: the samples were made with other episodes", line.episode, line.turn),
                    "give `states` the episodes that `alternatives` was given",
                ));
            }
            for alternative in line.alternatives.iter().take(p.per_state) {
                pairs.push(Pair {
                    v: SCHEMA_VERSION,
                    task: episode.task.clone(),
                    episode: line.episode,
                    turn: line.turn,
                    past: past(episode, line.turn, p.past == Kept::Whole),
                    shown: [line.expert.clone(), alternative.action.clone()],
                    expert: 0,
                    actions: turn.actions.clone(),
                    held_out: out.contains(&line.episode),
                });
            }
        }
        let mut rng = Rng::new(ctx.seed("order"), 0);
        if p.limit > 0 {
            let mut training: Vec<usize> = (0..pairs.len()).filter(|i| !pairs[*i].held_out).collect();
            rng.shuffle(&mut training);
            let drop: BTreeSet<usize> = training.into_iter().skip(p.limit).collect();
            let mut index = 0;
            pairs.retain(|_| {
                index += 1;
                !drop.contains(&(index - 1))
            });
        }
        // exactly half of each part shows the expert second (one more or less where the count is odd)
        for part in [false, true] {
            let mut chosen: Vec<usize> = (0..pairs.len()).filter(|i| pairs[*i].held_out == part).collect();
            rng.shuffle(&mut chosen);
            for i in chosen.iter().take(chosen.len() / 2) {
                pairs[*i].shown.swap(0, 1);
                pairs[*i].expert = 1;
            }
        }
        if pairs.is_empty() {
            return Err(OpError::with_help(
                "there is no pair: every alternative equals the expert's action",
                "raise `per_state` or `temperature` of `alternatives`",
            ));
        }
        ctx.metric(0, "pairs", pairs.iter().filter(|p| !p.held_out).count() as f64);
        ctx.metric(0, "held_out", pairs.iter().filter(|p| p.held_out).count() as f64);
        artifact::write(ctx.output("pairs"), &pairs)
    }
}
