//! `alternatives`: what a policy itself would do at each state of expert episodes.

use std::collections::BTreeSet;

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, kept, past, state_ids};
use crate::artifact::{self, Alternative, Episode, SCHEMA_VERSION, Samples};
use crate::infer::{Request, Sampling, complete};
use crate::model::Model;
use crate::rng::Rng;
use crate::text::Text;

/// Parameters of `alternatives`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Samples at each state.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub per_state: usize,
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    /// Longest action, in tokens; a longer one is cut off and counts as not ended.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
}

fn one() -> usize {
    1
}
fn temperature() -> f64 {
    1.0
}
fn max_tokens() -> usize {
    32
}

/// The op.
pub struct Alternatives;

impl Op for Alternatives {
    type Params = Params;
    const NAME: &'static str = "alternatives";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "samples a policy's own actions at the states of expert episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .input("policy", Kind::MODEL, "whose actions are sampled")
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state")
            .output("samples", Kind::SAMPLES, "actions that differ from the expert's, one state a line")
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (model, text) = common::load(ctx, ctx.input("policy"))?;
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let seed = ctx.seed("samples");
        let mut lines = Vec::new();
        let mut counts = Counts::default();
        for (chunk, part) in episodes.chunks(CHUNK).enumerate() {
            let first = chunk * CHUNK;
            let (more, n) = kept(ctx, &format!("episodes-{first}"), || {
                let (mut lines, mut counts) = (Vec::new(), Counts::default());
                for (i, episode) in part.iter().enumerate() {
                    sample(ctx, &model, &text, p, (first + i, episode), seed, &mut lines, &mut counts)?;
                }
                Ok((lines, counts))
            })?;
            lines.extend(more);
            counts.add(n);
            ctx.progress((first + part.len()) as u64, episodes.len() as u64, "episodes", "");
        }
        let left: usize = lines.iter().map(|l| l.alternatives.len()).sum();
        let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
        ctx.metric(0, "sampled", counts.drawn as f64);
        ctx.metric(0, "kept", left as f64);
        ctx.metric(0, "equal_to_expert", share(counts.equal, counts.drawn));
        ctx.metric(0, "unfinished", share(counts.unfinished, counts.drawn));
        ctx.metric(0, "admissible", share(counts.admissible, left));
        artifact::write(ctx.output("samples"), &lines)
    }
}

/// Episodes between two checkpoints.
const CHUNK: usize = 16;

/// What became of the samples.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Counts {
    drawn: usize,
    equal: usize,
    unfinished: usize,
    admissible: usize,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.drawn += other.drawn;
        self.equal += other.equal;
        self.unfinished += other.unfinished;
        self.admissible += other.admissible;
    }
}

/// Samples at every state of one episode.
fn sample(
    ctx: &OpContext<'_>,
    model: &Model,
    text: &Text,
    p: &Params,
    (e, episode): (usize, &Episode),
    seed: u64,
    lines: &mut Vec<Samples>,
    counts: &mut Counts,
) -> Result<(), OpError> {
    let mut requests = Vec::new();
    for turn in 0..episode.turns.len() {
        let ids = state_ids(text, &past(episode, turn), model, p.max_tokens)?;
        for k in 0..p.per_state {
            let rng = Rng::at(seed, &[e as u64, turn as u64, k as u64]);
            requests.push(Request::new(ids.as_slice(), Sampling::plain(p.temperature, p.max_tokens), rng));
        }
    }
    let completions = complete(model, text, requests, &|| ctx.stopping())?;
    for (turn, samples) in completions.chunks(p.per_state).enumerate() {
        let state = &episode.turns[turn];
        let (mut alternatives, mut dropped) = (Vec::new(), 0);
        let mut seen = BTreeSet::new();
        for c in samples {
            counts.drawn += 1;
            if !c.ended() {
                counts.unfinished += 1;
                continue;
            }
            let action = c.text.trim().to_owned();
            if action == state.action {
                dropped += 1;
                counts.equal += 1;
            } else if !action.is_empty() && seen.insert(action.clone()) {
                let possible = state.actions.contains(&action);
                counts.admissible += usize::from(possible);
                let logp = c.logps.iter().map(|l| f64::from(*l)).sum();
                alternatives.push(Alternative { action, admissible: possible, logp });
            }
        }
        lines.push(Samples {
            v: SCHEMA_VERSION,
            episode: e,
            turn,
            expert: state.action.clone(),
            alternatives,
            dropped,
        });
    }
    Ok(())
}
