//! `alternatives`: what a policy itself would do at each state of expert episodes.

use std::collections::BTreeSet;

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, Filters, kept};
use crate::artifact::{self, Alternative, Episode, SCHEMA_VERSION, Samples, Turn};
use crate::policy::{Ask, Policy, open_with};
use crate::rng::Rng;
use crate::text::Prompt;

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
    #[serde(default)]
    pub filters: Filters,
    /// How states are put, and how replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// Longest reply, in tokens; a longer one is cut off and counts as not ended.
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
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "samples a policy's own actions at the states of expert episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "whose actions are sampled")
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state")
            .output("samples", Kind::SAMPLES, "actions that differ from the expert's, one state a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.prompt.check()
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = common::open_policy_for(ctx, ctx.input("policy"), &p.prompt)?;
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let seed = ctx.seed("samples");
        let mut lines = Vec::new();
        let mut counts = Counts::default();
        for (chunk, part) in episodes.chunks(CHUNK).enumerate() {
            let first = chunk * CHUNK;
            let (more, n) = kept(ctx, &format!("episodes-{first}"), || {
                let (mut lines, mut counts) = (Vec::new(), Counts::default());
                for (i, episode) in part.iter().enumerate() {
                    sample(ctx, &mut *policy, p, (first + i, episode), seed, &mut lines, &mut counts)?;
                }
                Ok((lines, counts))
            })?;
            lines.extend(more);
            counts.add(n);
            ctx.progress((first + part.len()) as u64, episodes.len() as u64, "episodes", "");
        }
        common::note_policy(ctx, &*policy);
        let left: usize = lines.iter().map(|l| l.alternatives.len()).sum();
        let share = |n: usize, of: usize| n as f64 / of.max(1) as f64;
        ctx.metric(0, "sampled", counts.drawn as f64);
        ctx.metric(0, "kept", left as f64);
        ctx.metric(0, "equal_to_expert", share(counts.equal, counts.drawn));
        ctx.metric(0, "unfinished", share(counts.unfinished, counts.drawn));
        if !p.prompt.is_plain() {
            ctx.metric(0, "malformed", share(counts.malformed, counts.drawn));
        }
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
    malformed: usize,
    admissible: usize,
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.drawn += other.drawn;
        self.equal += other.equal;
        self.unfinished += other.unfinished;
        self.malformed += other.malformed;
        self.admissible += other.admissible;
    }
}

/// Samples at every state of one episode.
fn sample(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    (e, episode): (usize, &Episode),
    seed: u64,
    lines: &mut Vec<Samples>,
    counts: &mut Counts,
) -> Result<(), OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let states: Vec<usize> = (0..episode.turns.len()).collect();
    for some in states.chunks(policy.width()) {
        let mut asks = Vec::with_capacity(some.len() * p.per_state);
        for turn in some {
            let state = common::state(&p.prompt, (e, episode), *turn, p.prompt.tells_replies())?;
            let session = open_with(policy, &state, p.max_tokens)?;
            asks.extend((0..p.per_state).map(|k| Ask {
                session,
                allowed: &[],
                sampling: &sampling,
                rng: Rng::at(seed, &[e as u64, *turn as u64, k as u64]),
                keep: false,
            }));
        }
        let answers = policy.answer(&asks, &|| ctx.stopping())?;
        for ((turn, answers), asks) in some.iter().zip(answers.chunks(p.per_state)).zip(asks.chunks(p.per_state)) {
            policy.close(asks[0].session);
            let said = answers.iter().map(|a| (a.ended(), a.logps.as_deref()));
            let (alternatives, dropped) = alternatives(&p.prompt, &episode.turns[*turn], said, counts);
            let expert = episode.turns[*turn].action.clone();
            lines.push(Samples { v: SCHEMA_VERSION, episode: e, turn: *turn, expert, alternatives, dropped });
        }
    }
    Ok(())
}

/// What is kept of the answers at one state, and how many were the expert's action.
fn alternatives<'a>(
    prompt: &Prompt,
    state: &Turn,
    answers: impl Iterator<Item = (Option<&'a str>, Option<&'a [f32]>)>,
    counts: &mut Counts,
) -> (Vec<Alternative>, usize) {
    let (mut alternatives, mut dropped) = (Vec::new(), 0);
    let mut seen = BTreeSet::new();
    for (text, logps) in answers {
        counts.drawn += 1;
        let Some(text) = text else {
            counts.unfinished += 1;
            continue;
        };
        let (action, reasoned) = match prompt.parse(text) {
            Ok(reply) => (reply.action.to_owned(), reply.reasoning.is_some()),
            Err(_) => {
                counts.malformed += 1;
                continue;
            }
        };
        if action == state.action {
            dropped += 1;
            counts.equal += 1;
        } else if seen.insert(action.clone()) {
            let admissible = state.actions.contains(&action);
            counts.admissible += usize::from(admissible);
            // what a reasoning led to is not as likely as the reasoning with it
            let logp = logps.filter(|_| !reasoned).map(|l| l.iter().map(|l| f64::from(*l)).sum());
            alternatives.push(Alternative { action, admissible, logp, outcome: None });
        }
    }
    (alternatives, dropped)
}
