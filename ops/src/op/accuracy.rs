//! `accuracy`: next-action accuracy: how often a policy says what the expert does at the states of its episodes.
//!
//! Nothing is played: each state is put as the expert reached it, so the number says how well actions are imitated and not
//! what they lead to. ACT's first version reports ScienceWorld so.
//!
//! Invariants: each state is one item of the scores, so that two policies are compared state by state; intervals take the
//! states as independent of each other.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, Filters};
use crate::artifact::{self, Episode};
use crate::eval::items::{Item, Part};
use crate::eval::scores::Scores;
use crate::eval::stats;
use crate::policy::{Ask, Policy, open_with};
use crate::rng::Rng;
use crate::text::Prompt;

/// Parameters of `accuracy`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// How states are put, and how replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// Only so many states, taken in seeded random order; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// 0 takes the likeliest token.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    /// Longest reply, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
}

fn max_tokens() -> usize {
    32
}

/// The op.
pub struct Accuracy;

impl Op for Accuracy {
    type Params = Params;
    const NAME: &'static str = "accuracy";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "counts how often a policy says what the expert does at the states of its episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "who is asked")
            .input("states", Kind::EPISODES, "expert episodes; each turn is a state")
            .output(
                "scores",
                Kind::SCORES,
                "next-action accuracy, also by task type and by state, and what the other replies were",
            )
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.prompt.check()
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = common::open_policy_for(ctx, ctx.input("policy"), &p.prompt)?;
        let episodes: Vec<Episode> = artifact::read(ctx.input("states"))?;
        let mut states: Vec<(usize, usize)> = Vec::new();
        for (e, episode) in episodes.iter().enumerate() {
            states.extend((0..episode.turns.len()).map(|turn| (e, turn)));
        }
        if p.limit > 0 {
            Rng::new(ctx.seed("states"), 0).shuffle(&mut states);
            states.truncate(p.limit);
            states.sort_unstable();
        }
        if states.is_empty() {
            return Err(OpError::failed("there is no state to ask about: the episodes have no turns"));
        }
        let seed = ctx.seed("samples");
        let mut found: Vec<Found> = Vec::with_capacity(states.len());
        for (chunk, part) in states.chunks(CHUNK).enumerate() {
            found.extend(common::kept(ctx, &format!("states-{chunk}"), || {
                ask(ctx, &mut *policy, p, &episodes, part, seed)
            })?);
            ctx.progress(found.len() as u64, states.len() as u64, "states", "");
        }
        common::note_policy(ctx, &*policy);
        let scores = scores(&episodes, &states, &found, ctx.seed("bootstrap"));
        for (name, value) in &scores.metrics {
            if let Some(value) = value {
                ctx.metric(0, name, *value);
            }
        }
        scores.write(ctx.output("scores"))
    }
}

/// States between two checkpoints.
const CHUNK: usize = 96;

/// What became of one reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Found {
    Expert,
    /// Another action that is possible.
    Other,
    /// An action that is not among the admissible ones that the episode holds.
    Impossible,
    /// The reply says no action, or did not end.
    Malformed,
}

fn ask(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    episodes: &[Episode],
    states: &[(usize, usize)],
    seed: u64,
) -> Result<Vec<Found>, OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let mut found = Vec::with_capacity(states.len());
    for some in states.chunks(policy.width()) {
        let mut asks = Vec::with_capacity(some.len());
        for (e, turn) in some {
            let state = common::state(&p.prompt, (*e, &episodes[*e]), *turn, p.prompt.tells_replies())?;
            let session = open_with(policy, &state, p.max_tokens)?;
            let rng = Rng::at(seed, &[*e as u64, *turn as u64]);
            asks.push(Ask { session, allowed: &[], sampling: &sampling, rng, keep: false });
        }
        let answers = policy.answer(&asks, &|| ctx.stopping())?;
        for (((e, turn), answer), ask) in some.iter().zip(&answers).zip(&asks) {
            policy.close(ask.session);
            let turn = &episodes[*e].turns[*turn];
            found.push(match answer.ended().map(|text| p.prompt.parse(text)) {
                Some(Ok(reply)) if reply.action == turn.action => Found::Expert,
                Some(Ok(reply)) if turn.actions.is_empty() || turn.actions.iter().any(|a| a == reply.action) => {
                    Found::Other
                }
                Some(Ok(_)) => Found::Impossible,
                Some(Err(_)) | None => Found::Malformed,
            });
        }
    }
    Ok(found)
}

fn scores(episodes: &[Episode], states: &[(usize, usize)], found: &[Found], seed: u64) -> Scores {
    let items = states.iter().zip(found).map(|(&(e, turn), &found)| {
        let part = |name, what: Found| Part::new(name, f64::from(found == what), 1.0);
        Item {
            task: &episodes[e].task,
            id: format!("{} episode {e} turn {turn}", episodes[e].task.id),
            parts: vec![
                part("next_action", Found::Expert),
                part("other_action", Found::Other),
                part("impossible", Found::Impossible),
                part("malformed", Found::Malformed),
            ],
        }
    });
    let mut scores = Scores::of_items(&items.collect::<Vec<_>>(), "next_action", seed);
    // a mean over kinds weighs each of them the same, however long its episodes are
    let per_kind: Vec<f64> = scores.by_kind.values().map(|kind| kind.success).collect();
    scores.metrics.insert("next_action_by_kind".to_owned(), stats::mean(&per_kind));
    scores.metrics.insert("states".to_owned(), Some(found.len() as f64));
    scores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::episode;
    use crate::eval::stats::{Interval, Method};

    #[test]
    fn shares_of_what_was_said_add_up_and_kinds_weigh_the_same() {
        let turns = [("look", true, "a"), ("look", true, "b"), ("look", true, "c")];
        let episodes = [episode("id/0", "look", true, &turns), episode("id/1", "heat", true, &turns[..1])];
        let states = [(0, 0), (0, 1), (0, 2), (1, 0)];
        let found = [Found::Expert, Found::Other, Found::Impossible, Found::Expert];
        let scores = scores(&episodes, &states, &found, 0);
        let metric = |name: &str| scores.metrics[name].unwrap();
        assert_eq!(metric("next_action"), 0.5);
        assert!((metric("next_action_by_kind") - (1.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
        let parts = ["next_action", "other_action", "impossible", "malformed"].map(metric);
        assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(scores.by_kind["look"].episodes, 3);
        let wilson = |won, n| Some(Interval::new(stats::wilson(won, n).unwrap(), Method::Wilson));
        assert_eq!(scores.intervals.get("next_action").cloned(), wilson(2, 4));
        assert_eq!(scores.by_kind["heat"].interval, wilson(1, 1));
        // each state by itself, so that another policy can be compared with it there
        let of: Vec<_> = scores.per_task.iter().map(|t| (t.id.as_str(), t.value("next_action"))).collect();
        assert_eq!(of[1], ("id/0 episode 0 turn 1", Some(0.0)));
        assert_eq!(of[3], ("id/1 episode 1 turn 0", Some(1.0)));
        assert_eq!((scores.per_task[2].value("impossible"), scores.per_task[2].value("success")), (Some(1.0), None));
    }
}
