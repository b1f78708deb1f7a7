//! What is added to a reward after the judge: for length, for running out of tokens, for divergence.
//!
//! Invariants: what is added to an attempt is the sum of what is added to its responses, and where it is an episode each
//! step's reward gets its response's part; every addition is also a part of the attempt by name.

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::{Attempt, Drawn};
use super::objective::{Bound, Correction, KlEstimator, Level, Objective};
use super::update::{self, Group};
use crate::model::Model;

/// Soft punishment of long responses. Yu et al., "DAPO", 2025, equation 13, times `penalty`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overlong {
    /// What a response of `max_tokens` tokens loses.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub penalty: f64,
    /// Tokens before `max_tokens` over which the loss grows from 0, linearly.
    #[schemars(range(min = 1, max = 1048576))]
    pub buffer: usize,
}

impl Default for Overlong {
    fn default() -> Self {
        Overlong { penalty: 1.0, buffer: 16 }
    }
}

impl Overlong {
    /// What a response of `tokens` tokens gets, where `longest` are allowed: between -`penalty` and 0.
    pub fn at(&self, tokens: usize, longest: usize) -> f64 {
        let free = longest.saturating_sub(self.buffer);
        if tokens <= free {
            return 0.0;
        }
        -self.penalty * ((tokens - free) as f64 / self.buffer as f64).min(1.0)
    }
}

/// Where the divergence from the reference counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlIn {
    /// As a term of the loss, with its gradient.
    #[default]
    Loss,
    /// As a price in the reward of each response, without a gradient.
    Reward,
}

/// What is added to rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Times tokens / longest.
    pub length: f64,
    pub overlong: Option<Overlong>,
}

/// Adds `amounts`, one for each response, to an attempt.
fn add(attempt: &mut Attempt, name: &'static str, amounts: &[f64]) {
    let total: f64 = amounts.iter().sum();
    attempt.outcome.reward += total;
    for (step, amount) in attempt.steps.iter_mut().zip(amounts) {
        step.reward += amount;
    }
    *attempt.parts.entry(name).or_insert(0.0) += total;
}

impl Shape {
    /// Adds to the rewards of what was drawn; a response has at most `longest` tokens.
    pub fn apply(&self, drawn: &mut [Drawn], longest: usize) {
        for attempt in drawn.iter_mut().flat_map(|d| &mut d.attempts) {
            let tokens: Vec<usize> = attempt.samples.iter().map(|s| s.ids.len()).collect();
            if self.length != 0.0 {
                let of = |n: &usize| self.length * *n as f64 / longest.max(1) as f64;
                add(attempt, "length", &tokens.iter().map(of).collect::<Vec<f64>>());
            }
            if let Some(overlong) = self.overlong {
                let of = |n: &usize| overlong.at(*n, longest);
                add(attempt, "overlong", &tokens.iter().map(of).collect::<Vec<f64>>());
            }
        }
    }
}

/// Takes `weight` times the estimated divergence from `reference`, summed over a response's tokens, from the rewards of
/// what was drawn. Returns the sum of all estimates, unweighted.
///
/// # Errors
/// candle's; a log-probability that is not finite.
pub fn charge(
    reference: &Model,
    drawn: &mut [Drawn],
    (weight, estimator): (f64, KlEstimator),
    how: &update::Settings,
) -> Result<f64, OpError> {
    // asked for a correction, `score` keeps what the given model says of each response; with a divergence in the
    // objective it passes over none
    let correction = Some(Correction { level: Level::Token, bound: Bound::Truncate, cap: 1.0 });
    let how = update::Settings { objective: Objective { kl: 1.0, correction, ..Objective::default() }, ..*how };
    let group = |d: &Drawn| Group {
        question: d.index,
        samples: d.attempts.iter().flat_map(|a| a.samples.iter().cloned()).collect(),
    };
    let mut groups: Vec<Group> = drawn.iter().map(group).collect();
    update::score(reference, &mut groups, &how)?;
    let mut scored = groups.into_iter().flat_map(|g| g.samples);
    let mut total = 0.0;
    for attempt in drawn.iter_mut().flat_map(|d| &mut d.attempts) {
        let mut amounts = Vec::with_capacity(attempt.samples.len());
        for (sample, of) in attempt.samples.iter().zip(scored.by_ref()) {
            let reference = of.scored.unwrap_or_default();
            let token = |(r, l): (&f32, &f32)| estimator.value(f64::from(*r) - f64::from(*l));
            let sum: f64 = reference.iter().zip(&sample.sampling).map(token).sum();
            total += sum;
            amounts.push(-weight * sum);
        }
        add(attempt, "kl", &amounts);
    }
    Ok(total)
}

/// Sums of the parts of rewards over attempts.
pub fn parts(drawn: &[Drawn], sums: &mut BTreeMap<&'static str, f64>) {
    for (name, value) in drawn.iter().flat_map(|d| &d.attempts).flat_map(|a| &a.parts) {
        *sums.entry(name).or_insert(0.0) += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::Reward;
    use crate::train::draw::Step;
    use crate::train::update::Sample;

    #[test]
    fn a_response_is_punished_only_in_the_buffer_and_at_most_by_the_penalty() {
        let overlong = Overlong { penalty: 2.0, buffer: 4 };
        let got: Vec<f64> = (0..=11).map(|n| overlong.at(n, 10)).collect();
        assert_eq!(got, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5, -1.0, -1.5, -2.0, -2.0]);
        // a buffer longer than a response may be begins at its first token
        assert_eq!(Overlong { penalty: 1.0, buffer: 20 }.at(10, 10), -0.5);
    }

    #[test]
    fn what_is_added_to_an_episode_is_what_is_added_to_its_steps() {
        let sample = |n: usize| Sample { ids: vec![0; n], ..Sample::default() };
        let step = |reward| Step { state: "s".to_owned(), reward };
        let attempt = Attempt {
            outcome: Reward::default().outcome(true, true),
            samples: vec![sample(2), sample(10)],
            steps: vec![step(0.0), step(1.0)],
            truncated: 1,
            ..Attempt::default()
        };
        let mut drawn = [Drawn { index: 0, attempts: vec![attempt] }];
        let overlong = Some(Overlong { penalty: 1.0, buffer: 5 });
        Shape { length: -0.1, overlong }.apply(&mut drawn, 10);
        let attempt = &drawn[0].attempts[0];
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(attempt.outcome.reward, 1.0 - 0.12 - 1.0), "{attempt:?}");
        assert!(close(attempt.steps[0].reward, -0.02) && close(attempt.steps[1].reward, 1.0 - 0.1 - 1.0));
        assert!(close(attempt.parts["length"], -0.12) && close(attempt.parts["overlong"], -1.0));
    }
}
