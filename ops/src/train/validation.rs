//! Validation while training: the best model is kept, and training ends where nothing is gained.
//!
//! Invariants: validation changes neither weights nor the random streams of training; its own stream is the same every
//! time; of equal rewards the earlier model is the better; what is known of it is part of the checkpoint's position, so
//! that a resumed run keeps and ends as one that was never stopped.

use std::collections::BTreeMap;

use actloom_engine::op::{OpContext, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::{How, Source};
use crate::model::Model;
use crate::text::Text;

/// When the model is asked what it is not trained on, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Validate {
    /// Batches between two validations; one is made before the first batch and one after the last in any case.
    #[schemars(range(min = 1))]
    pub every: u64,
    /// Only the first so many questions; 0 asks all.
    pub limit: usize,
    /// Temperature of the answers; 0 takes the likeliest token.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    /// Validations without a better reward after which training ends; 0: it never ends early.
    pub patience: u64,
    /// Which model becomes the output.
    pub keep: Keep,
}

impl Default for Validate {
    fn default() -> Self {
        Validate { every: 10, limit: 0, temperature: 0.0, patience: 0, keep: Keep::Best }
    }
}

/// Which model becomes the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// That with the best mean reward on validation, of those validated; the earlier of equals. The model that training
    /// starts from is one of them.
    #[default]
    Best,
    /// The last one.
    Last,
}

/// What validations have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Track {
    /// Batches before the best model, and its reward.
    pub best: Option<(u64, f64)>,
    /// Validations since then.
    pub without_gain: u64,
}

impl Track {
    /// From the counters of a checkpoint.
    pub fn restore(counters: &BTreeMap<String, f64>) -> Self {
        let get = |name: &str| counters.get(name).copied();
        let best = get("best_step").zip(get("best_reward")).map(|(step, reward)| (step as u64, reward));
        Track { best, without_gain: get("without_gain").unwrap_or(0.0) as u64 }
    }

    /// Into the counters of a checkpoint.
    pub fn save(&self, counters: &mut BTreeMap<String, f64>) {
        if let Some((step, reward)) = self.best {
            counters.insert("best_step".to_owned(), step as f64);
            counters.insert("best_reward".to_owned(), reward);
        }
        counters.insert("without_gain".to_owned(), self.without_gain as f64);
    }

    /// Takes up a validation after `step` batches; whether it is the best so far.
    pub fn see(&mut self, step: u64, reward: f64) -> bool {
        let better = self.best.is_none_or(|(_, best)| reward > best);
        if better {
            self.best = Some((step, reward));
            self.without_gain = 0;
        } else {
            self.without_gain += 1;
        }
        better
    }

    /// Training has gone on for long enough without a gain.
    pub fn over(&self, settings: &Validate) -> bool {
        settings.patience > 0 && self.without_gain >= settings.patience
    }
}

/// Asks every question once; the mean reward and the share of right answers. Questions are compared by the judge's reward
/// alone: nothing is added for length or divergence.
///
/// # Errors
/// The source's; no question to ask.
pub fn ask(
    ctx: &OpContext<'_>,
    (model, text): (&mut Model, &Text),
    source: &mut dyn Source,
    settings: &Validate,
    (max_tokens, seed): (usize, u64),
) -> Result<(f64, f64), OpError> {
    let _span = tracing::debug_span!("validate").entered();
    let n = match settings.limit {
        0 => source.len(),
        limit => limit.min(source.len()),
    };
    let indices: Vec<usize> = (0..n).collect();
    let how = How { group: 1, temperature: settings.temperature as f32, max_tokens, seed, stream: &[2] };
    let drawn = source.draw(ctx, model, text, &indices, &how)?;
    let outcomes: Vec<_> = drawn.iter().flat_map(|d| &d.attempts).map(|a| a.outcome).collect();
    if outcomes.is_empty() {
        return Err(OpError::failed("there is nothing to validate on"));
    }
    let n = outcomes.len() as f64;
    let reward = outcomes.iter().map(|o| o.reward).sum::<f64>() / n;
    Ok((reward, outcomes.iter().filter(|o| o.correct).count() as f64 / n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_rewards_the_earlier_is_best_and_patience_counts_validations_without_gain() {
        let settings = Validate { patience: 2, ..Validate::default() };
        let mut track = Track::default();
        let seen: Vec<(bool, bool)> = [(0, 0.1), (4, 0.5), (8, 0.5), (12, 0.7), (16, 0.2), (20, 0.7)]
            .iter()
            .map(|(step, reward)| (track.see(*step, *reward), track.over(&settings)))
            .collect();
        let (gain, none) = ((true, false), (false, false));
        assert_eq!(seen, [gain, gain, none, gain, none, (false, true)]);
        assert_eq!(track.best, Some((12, 0.7)));
        assert!(!track.over(&Validate::default()), "without patience it never ends early");
        let mut counters = BTreeMap::new();
        track.save(&mut counters);
        assert_eq!(Track::restore(&counters), track);
        assert_eq!(Track::restore(&BTreeMap::new()), Track::default());
    }
}
