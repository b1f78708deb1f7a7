//! `critic`: how often a model says of two actions which is better, each pair asked in both orders.

use std::collections::BTreeMap;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::act::judge;
use super::common::{self, Filters};
use crate::artifact::{self, Pair};
use crate::eval::scores::Scores;
use crate::policy::{Ask, Policy, open_with};
use crate::reward::{Outcome, Reward};
use crate::rng::Rng;
use crate::text::Prompt;

/// Which pairs are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those kept away from training.
    #[default]
    HeldOut,
    All,
}

/// Parameters of `critic`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    #[serde(default)]
    pub which: Which,
    /// Only the first so many pairs; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// 0 takes the likeliest token.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// How states are put, and how answers are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// Longest answer, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
}

fn max_tokens() -> usize {
    48
}

/// The op.
pub struct Critic;

impl Op for Critic {
    type Params = Params;
    const NAME: &'static str = "critic";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "asks a model which of two actions is better, in both orders, and counts";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("model", &[Kind::MODEL, Kind::POLICY], Arity::One, "who is asked")
            .input("pairs", Kind::PAIRS, "what is asked")
            .output(
                "scores",
                Kind::SCORES,
                "accuracy, by position of the right answer, and the share of malformed answers",
            )
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.prompt.check()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = common::open_policy_for(ctx, ctx.input("model"), &p.prompt)?;
        let mut pairs: Vec<Pair> = artifact::read(ctx.input("pairs"))?;
        if p.which == Which::HeldOut {
            pairs.retain(|pair| pair.held_out);
        }
        if p.limit > 0 {
            pairs.truncate(p.limit);
        }
        if pairs.is_empty() {
            return Err(OpError::with_help(
                "there is no pair to ask",
                "raise `held_out` of `pairs`, or take `which = \"all\"`",
            ));
        }
        let both: Vec<Pair> = pairs
            .into_iter()
            .flat_map(|pair| {
                let mut other = pair.clone();
                other.shown.swap(0, 1);
                other.expert = 1 - other.expert;
                [pair, other]
            })
            .collect();
        let seed = ctx.seed("samples");
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(both.len());
        for (chunk, pairs) in both.chunks(CHUNK).enumerate() {
            let first = chunk * CHUNK;
            outcomes.extend(common::kept(ctx, &format!("questions-{first}"), || {
                ask(ctx, &mut *policy, p, pairs, first, seed)
            })?);
            ctx.progress(outcomes.len() as u64, both.len() as u64, "questions", "");
        }
        common::note_policy(ctx, &*policy);
        let share = |f: &dyn Fn(usize) -> bool, of: &dyn Fn(usize) -> bool| {
            let n = (0..outcomes.len()).filter(|i| of(*i)).count();
            (0..outcomes.len()).filter(|i| of(*i) && f(*i)).count() as f64 / n.max(1) as f64
        };
        let right = |i: usize| outcomes[i].correct;
        let at = |position: usize| move |o: &Outcome| o.position == Some(position);
        let (first, second) = (at(0), at(1));
        let metrics: BTreeMap<String, Option<f64>> = [
            ("accuracy", share(&right, &|_| true)),
            ("accuracy_first", share(&right, &|i| first(&outcomes[i]))),
            ("accuracy_second", share(&right, &|i| second(&outcomes[i]))),
            ("consistent", share(&|i| outcomes[i].correct && outcomes[i ^ 1].correct, &|i| i % 2 == 0)),
            ("malformed", share(&|i| outcomes[i].malformed, &|_| true)),
            ("questions", outcomes.len() as f64),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Some(value)))
        .collect();
        for (name, value) in &metrics {
            ctx.metric(0, name, value.unwrap_or_default());
        }
        Scores::of_metrics(metrics).write(ctx.output("scores"))
    }
}

/// Questions between two checkpoints.
const CHUNK: usize = 96;

/// Asks some of the questions; `first` is the number of the first of them, each has its own random stream.
fn ask(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    pairs: &[Pair],
    first: usize,
    seed: u64,
) -> Result<Vec<Outcome>, OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let mut outcomes = Vec::with_capacity(pairs.len());
    for pairs in pairs.chunks(policy.width()) {
        let mut asks = Vec::with_capacity(pairs.len());
        for (i, pair) in pairs.iter().enumerate() {
            let session = open_with(policy, &common::question(&p.prompt, pair)?, p.max_tokens)?;
            let rng = Rng::at(seed, &[(first + outcomes.len() + i) as u64]);
            asks.push(Ask { session, allowed: &[], sampling: &sampling, rng, keep: false });
        }
        let answers = policy.answer(&asks, &|| ctx.stopping())?;
        for ((pair, answer), ask) in pairs.iter().zip(answers).zip(asks) {
            policy.close(ask.session);
            outcomes.push(judge(pair, &p.prompt, &Reward::default(), answer.ended()));
        }
    }
    Ok(outcomes)
}
