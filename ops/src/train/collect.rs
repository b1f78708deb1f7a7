//! A batch of policy optimisation: which questions, what was drawn at them, and how it compares.
//!
//! 1. [`order`] lists an epoch's questions. 2. [`collect`] draws groups of attempts, adds to their rewards what the loop
//!    adds, and refills the batch where groups have no variance. 3. [`compare`] turns rewards into advantages, [`grouped`]
//!    into what an update takes.
//!
//! Invariants: everything is a function of (seed, position) and the model; no question is drawn twice in a batch; a batch
//! that is refilled holds no group without variance.

use std::collections::BTreeMap;

use actloom_engine::op::{OpContext, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::{Drawn, How, Source};
use super::objective::advantage::{Advantage, advantages};
use super::objective::gigpo;
use super::shape::{self, Shape};
use super::update::{Group, Sample};
use super::watch::Seen;
use crate::model::Model;
use crate::rng::Rng;
use crate::text::Text;

/// In which order an epoch takes its questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Each by itself, shuffled.
    #[default]
    Shuffled,
    /// Those of one episode side by side, so that a batch computes what their prompts share once; episodes are shuffled.
    Families,
}

/// How attempts are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compare {
    pub advantage: Advantage,
    /// Compares episodes step by step, in place of `advantage`.
    pub gigpo: Option<gigpo::Settings>,
}

/// The questions of an epoch, each once.
pub fn order(source: &dyn Source, order: Order, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = Rng::at(seed, &[0, epoch]);
    match order {
        Order::Shuffled => {
            let mut all: Vec<usize> = (0..source.len()).collect();
            rng.shuffle(&mut all);
            all
        }
        Order::Families => {
            let mut families = source.families();
            rng.shuffle(&mut families);
            families.concat()
        }
    }
}

/// Where a batch stands in its epoch, and how often it may be refilled.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub order: &'a [usize],
    pub first: usize,
    /// Groups wanted.
    pub want: usize,
    /// Rounds of drawing more, at most; 0 keeps groups without variance.
    pub refill: u64,
}

/// Sums over all attempts drawn for a batch, those dropped among them.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    pub groups: usize,
    /// Groups without variance, and attempts at them: how many, and how many right.
    pub flat: usize,
    flat_attempts: (f64, f64),
    pub attempts: f64,
    pub reward: f64,
    pub right: f64,
    /// By where the right answer stood: attempts, and how many right.
    pub positions: [(f64, f64); 2],
    pub responses: f64,
    pub truncated: f64,
    pub malformed: f64,
    pub formless: f64,
    pub impossible: f64,
    pub tokens: usize,
    /// Of all tokens, in nats: minus the log-probabilities they were sampled with.
    pub surprise: f64,
    parts: BTreeMap<&'static str, f64>,
    /// Sum and count.
    facts: BTreeMap<&'static str, (f64, f64)>,
}

impl Sums {
    fn add(&mut self, drawn: &Drawn, flat: bool) {
        self.groups += 1;
        self.flat += usize::from(flat);
        for attempt in &drawn.attempts {
            let right = f64::from(u8::from(attempt.outcome.correct));
            self.attempts += 1.0;
            self.reward += attempt.outcome.reward;
            self.right += right;
            if flat {
                self.flat_attempts = (self.flat_attempts.0 + 1.0, self.flat_attempts.1 + right);
            }
            if let Some((n, sum)) = attempt.outcome.position.and_then(|p| self.positions.get_mut(p)) {
                (*n, *sum) = (*n + 1.0, *sum + right);
            }
            self.responses += attempt.samples.len() as f64;
            self.truncated += attempt.truncated as f64;
            self.malformed += attempt.malformed as f64;
            self.formless += attempt.formless as f64;
            self.impossible += attempt.impossible as f64;
            self.surprise -= attempt.samples.iter().flat_map(|s| &s.sampling).map(|l| f64::from(*l)).sum::<f64>();
            self.tokens += attempt.samples.iter().map(|s| s.ids.len()).sum::<usize>();
            for (name, value) in &attempt.facts {
                let (sum, n) = self.facts.entry(name).or_default();
                (*sum, *n) = (*sum + value, *n + 1.0);
            }
        }
        shape::parts(std::slice::from_ref(drawn), &mut self.parts);
    }

    /// Mean reward of an attempt, before anything is taken for divergence.
    pub fn mean_reward(&self) -> f64 {
        self.reward / self.attempts.max(1.0)
    }

    /// Share of right attempts.
    pub fn accuracy(&self) -> f64 {
        self.right / self.attempts.max(1.0)
    }

    /// Mean surprise of a token: what is sampled has the entropy of its distribution as the mean of its surprise, so this
    /// estimates the entropy of all that was drawn, groups without variance among them.
    fn entropy(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.surprise / self.tokens as f64)
    }

    /// What the warnings look at.
    pub fn seen(&self) -> Seen {
        Seen {
            flat: self.flat as f64 / self.groups.max(1) as f64,
            flat_right: self.flat_attempts.1 / self.flat_attempts.0.max(1.0),
            right: self.accuracy(),
            truncated: self.truncated / self.responses.max(1.0),
            malformed: self.malformed / self.responses.max(1.0),
            formless: self.formless / self.responses.max(1.0),
            impossible: self.impossible / self.responses.max(1.0),
            positions: self.positions,
            entropy: self.entropy(),
            refilled: false,
        }
    }

    /// Reports them as metrics of batch `at`.
    pub fn report(&self, ctx: &OpContext<'_>, at: u64) {
        let seen = self.seen();
        ctx.metric(at, "reward", self.mean_reward());
        for (name, sum) in &self.parts {
            ctx.metric(at, &format!("reward_{name}"), sum / self.attempts.max(1.0));
        }
        ctx.metric(at, "accuracy", seen.right);
        ctx.metric(at, "malformed", seen.malformed);
        for (name, (n, right)) in ["accuracy_first", "accuracy_second"].iter().zip(self.positions) {
            if n > 0.0 {
                ctx.metric(at, name, right / n);
            }
        }
        ctx.metric(at, "length", self.tokens as f64 / self.responses.max(1.0));
        ctx.metric(at, "truncated", seen.truncated);
        ctx.metric(at, "zero_variance", seen.flat);
        if let Some(entropy) = seen.entropy {
            ctx.metric(at, "entropy_sampled", entropy);
        }
        for (name, (sum, n)) in &self.facts {
            ctx.metric(at, name, sum / n);
        }
    }
}

/// Draws a batch. With a refill, groups without variance are dropped, and others are drawn at the questions that come next
/// in the epoch's order, from its beginning again after its end, until enough are there, `refill` rounds were drawn, or
/// every question was.
///
/// # Errors
/// The source's; GiGPO of attempts that are no episodes.
pub fn collect(
    ctx: &OpContext<'_>,
    (model, text): (&mut Model, &Text),
    source: &mut dyn Source,
    place: Place<'_>,
    how: &How<'_>,
    (shape, comparison): (&Shape, &Compare),
) -> Result<(Vec<Drawn>, Sums), OpError> {
    let all = place.order.len();
    let (mut kept, mut sums): (Vec<Drawn>, Sums) = (Vec::with_capacity(place.want), Sums::default());
    let mut asked = 0;
    for round in 0..=place.refill {
        let missing = place.want - kept.len();
        // as many as will do if the next groups are as varied as those so far, a batch at most
        let count = match round {
            0 => place.want,
            _ => (missing * asked).div_ceil(kept.len().max(1)).min(place.want),
        };
        let count = count.min(all - asked);
        if missing == 0 || count == 0 {
            break;
        }
        let indices: Vec<usize> = (asked..asked + count).map(|i| place.order[(place.first + i) % all]).collect();
        asked += count;
        let path = [how.stream, &[round]].concat();
        let stream = if round == 0 { how.stream } else { &path };
        let mut drawn = source.draw(ctx, model, text, &indices, &How { stream, ..*how })?;
        shape.apply(&mut drawn, how.max_tokens);
        let flat: Vec<bool> =
            compare(&drawn, comparison)?.iter().map(|group| group.iter().flatten().all(|a| *a == 0.0)).collect();
        for (group, flat) in drawn.into_iter().zip(flat) {
            sums.add(&group, flat);
            if place.refill == 0 || (!flat && kept.len() < place.want) {
                kept.push(group);
            }
        }
    }
    Ok((kept, sums))
}

/// An advantage for each response of each attempt of each group: that of its attempt, or with GiGPO that of its turn.
///
/// # Errors
/// GiGPO of attempts that are no episodes.
pub fn compare(drawn: &[Drawn], comparison: &Compare) -> Result<Vec<Vec<Vec<f64>>>, OpError> {
    let Some(gigpo) = comparison.gigpo else {
        let rewards: Vec<Vec<f64>> =
            drawn.iter().map(|d| d.attempts.iter().map(|a| a.outcome.reward).collect()).collect();
        let spread = |(d, of_group): (&Drawn, Vec<f64>)| {
            d.attempts.iter().zip(of_group).map(|(a, advantage)| vec![advantage; a.samples.len()]).collect()
        };
        return Ok(drawn.iter().zip(advantages(&rewards, comparison.advantage)).map(spread).collect());
    };
    let of_group = |d: &Drawn| {
        for a in &d.attempts {
            let (have, want) = (a.steps.len(), a.samples.len());
            if have != want {
                return Err(OpError::with_help(
                    format!("an attempt at task {} has {have} steps, expected {want}: one for each response", d.index),
                    "compare steps where whole episodes are attempted",
                ));
            }
        }
        let steps = d.attempts.iter().map(|a| a.steps.iter().map(|s| (s.state.as_str(), s.reward)).collect());
        let episodes: Vec<Vec<(&str, f64)>> = steps.collect();
        Ok(gigpo::advantages(&episodes, gigpo).advantage)
    };
    drawn.iter().map(of_group).collect()
}

/// Groups of responses with their advantages.
pub fn grouped(drawn: Vec<Drawn>, advantages: Vec<Vec<Vec<f64>>>) -> Vec<Group> {
    let group = |(d, of_group): (Drawn, Vec<Vec<f64>>)| {
        let advantages = of_group.into_iter().flatten();
        let samples = d.attempts.into_iter().flat_map(|a| a.samples);
        let samples = samples.zip(advantages).map(|(sample, advantage)| Sample { advantage, ..sample }).collect();
        Group { question: d.index, samples }
    };
    drawn.into_iter().zip(advantages).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::Outcome;
    use crate::train::draw::Attempt;
    use crate::train::watch::Watch;

    #[test]
    fn one_malformed_turn_of_four_is_a_quarter_and_no_collapse_and_entropy_is_that_of_all_that_was_drawn() {
        let episode = |logp: f32| Attempt {
            outcome: Outcome { malformed: true, ..Outcome::default() },
            samples: vec![Sample { ids: vec![1, 2], sampling: vec![logp; 2], ..Sample::default() }; 4],
            truncated: 2,
            malformed: 1,
            ..Attempt::default()
        };
        let mut sums = Sums::default();
        assert_eq!(sums.seen().entropy, None, "nothing was drawn");
        sums.add(&Drawn { index: 0, attempts: vec![episode(-1.0), episode(-1.0)] }, true);
        let seen = sums.seen();
        assert_eq!((seen.malformed, seen.truncated, seen.entropy), (0.25, 0.5, Some(1.0)));
        let said = Watch::default().see(1, &seen);
        assert!(said.is_empty(), "every episode has a malformed turn, and few turns are: {said:?}");
        sums.add(&Drawn { index: 1, attempts: vec![episode(-3.0), episode(-3.0)] }, false);
        assert_eq!(sums.seen().entropy, Some(2.0), "groups with and without variance alike");
    }
}
