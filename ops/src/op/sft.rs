//! `sft`: imitation: maximum likelihood of the actions of episodes, given everything before them.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, past};
use crate::artifact::{self, Episode};
use crate::rng::Rng;
use crate::text::Dialogue;
use crate::train::batch::Example;
use crate::train::optimizer::AdamW;
use crate::train::schedule::Schedule;
use crate::train::sft;

/// Parameters of `sft`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Only the first so many episodes; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// Passes over the episodes.
    #[serde(default = "epochs")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: u64,
    /// Episodes in an update.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    #[serde(default = "lr")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub learning_rate: f64,
    #[serde(default)]
    pub schedule: Schedule,
    /// Updates of warm-up.
    #[serde(default)]
    pub warmup: u64,
    #[serde(default)]
    pub optimizer: AdamW,
    /// Tokens of a packed row.
    #[serde(default = "row_tokens")]
    #[schemars(range(min = 64, max = 1048576))]
    pub row_tokens: usize,
}

fn epochs() -> u64 {
    3
}
fn batch() -> usize {
    8
}
fn lr() -> f64 {
    1e-5
}
fn row_tokens() -> usize {
    4096
}

/// The op.
pub struct Sft;

impl Op for Sft {
    type Params = Params;
    const NAME: &'static str = "sft";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "imitates the actions of episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .input("model", Kind::MODEL, "the model to start from")
            .port("data", &[Kind::EPISODES], Arity::Many, "episodes whose actions are imitated")
            .output("model", Kind::MODEL, "the trained model")
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load(ctx, ctx.input("model"))?;
        let mut episodes: Vec<Episode> = Vec::new();
        for input in ctx.inputs("data") {
            episodes.extend(artifact::read::<Episode>(&input.path)?);
        }
        if p.limit > 0 {
            episodes.truncate(p.limit);
        }
        let mut examples = Vec::with_capacity(episodes.len());
        for episode in episodes.iter().filter(|e| !e.turns.is_empty()) {
            let last = episode.turns.len() - 1;
            let mut dialogue = Dialogue::at(&text, &past(episode, last), true)?;
            dialogue.assistant(&episode.turns[last].action, true)?;
            common::check_length(dialogue.ids().len(), &model, 0)?;
            examples.push(dialogue.example);
        }
        if examples.is_empty() {
            return Err(OpError::failed("the episodes hold no action to imitate"));
        }
        let actions = episodes.iter().map(|e| e.turns.len()).sum::<usize>();
        let facts = vec![("examples", examples.len() as f64), ("actions", actions as f64)];
        let per_epoch = examples.len().div_ceil(p.batch) as u64;
        let plan = sft::Plan {
            steps: p.epochs * per_epoch,
            lr: p.learning_rate,
            schedule: p.schedule,
            warmup: p.warmup,
            optimizer: p.optimizer,
            row_tokens: p.row_tokens,
            facts,
        };
        let seed = ctx.seed("order");
        sft::run(ctx, &mut model, &plan, |step| {
            let (epoch, batch) = (step / per_epoch, (step % per_epoch) as usize);
            let mut order: Vec<usize> = (0..examples.len()).collect();
            Rng::at(seed, &[epoch]).shuffle(&mut order);
            let chosen = &order[batch * p.batch..examples.len().min((batch + 1) * p.batch)];
            Ok::<Vec<Example>, OpError>(chosen.iter().map(|i| examples[*i].clone()).collect())
        })?;
        common::publish(ctx, &model, ctx.input("model"))
    }
}
