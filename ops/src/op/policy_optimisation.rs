//! Parameters that `act` and `rl` share: one policy-optimisation loop, two kinds of question.

use std::collections::BTreeSet;

use actloom_engine::op::{OpError, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::{Defaults, Training};
use crate::artifact::Task;
use crate::reward::Reward;
use crate::text::Prompt;
use crate::train::collect::{Compare, Order};
use crate::train::grpo::Settings;
use crate::train::objective::advantage::Advantage;
use crate::train::objective::{Aggregation, Bound, Correction, KlEstimator, Level, Objective, Surrogate};
use crate::train::shape::{KlIn, Overlong, Shape};
use crate::train::validation::Validate;

/// Published objectives by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean over each response's tokens, then over responses. Shao et al., 2024.
    Grpo,
    /// Mean over all tokens of the update, as the defaults are.
    Bnpo,
    /// Divided by a constant length; advantages are not divided by their deviation. Liu et al., 2025.
    DrGrpo,
    /// Mean over all tokens, and a wider range above 1 than below. Yu et al., 2025.
    Dapo,
    /// One ratio for each response, and a very narrow range. Zheng et al., 2025.
    Gspo,
    /// The ratio is a capped constant weight. MiniMax, 2025.
    Cispo,
    /// A response is compared with the mean of the others; nothing is divided by a deviation. Ahmadian et al., 2024.
    Rloo,
}

/// What an objective by name is made of, and the clip range it comes with.
struct Made {
    ratio: Level,
    surrogate: Surrogate,
    aggregation: Aggregation,
    advantage: Advantage,
    clip_low: f64,
    clip_high: f64,
}

impl Loss {
    fn made(this: Option<Loss>) -> Made {
        let plain = Made {
            ratio: Level::Token,
            surrogate: Surrogate::Clip,
            aggregation: Aggregation::Token,
            advantage: Advantage::Group,
            clip_low: 0.2,
            clip_high: 0.2,
        };
        match this {
            None | Some(Loss::Bnpo) => plain,
            Some(Loss::Grpo) => Made { aggregation: Aggregation::Sequence, ..plain },
            Some(Loss::DrGrpo) => Made { aggregation: Aggregation::Constant, advantage: Advantage::None, ..plain },
            Some(Loss::Dapo) => Made { clip_high: 0.28, ..plain },
            Some(Loss::Gspo) => Made {
                ratio: Level::Sequence,
                aggregation: Aggregation::Sequence,
                clip_low: 3e-4,
                clip_high: 4e-4,
                ..plain
            },
            Some(Loss::Cispo) => Made { surrogate: Surrogate::Weight, clip_high: 4.0, ..plain },
            Some(Loss::Rloo) => Made { advantage: Advantage::Rloo, ..plain },
        }
    }
}

/// Where a weight for the gap between sampler and trainer applies, and what happens above its cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// A weight a token; above the cap it is the cap.
    TokenTruncate,
    /// A weight a token; above the cap it is 0.
    TokenMask,
    /// A weight a response; above the cap it is the cap.
    SequenceTruncate,
    /// A weight a response; above the cap it is 0.
    SequenceMask,
}

impl Gap {
    fn parts(self) -> (Level, Bound) {
        match self {
            Gap::TokenTruncate => (Level::Token, Bound::Truncate),
            Gap::TokenMask => (Level::Token, Bound::Mask),
            Gap::SequenceTruncate => (Level::Sequence, Bound::Truncate),
            Gap::SequenceMask => (Level::Sequence, Bound::Mask),
        }
    }
}

/// Refuses tasks of the input `validation` that are trained on. A task is one of its environment, number and seed.
///
/// # Errors
/// Names the first such task.
pub fn apart<'a>(
    training: impl Iterator<Item = &'a Task>,
    mut validation: impl Iterator<Item = &'a Task>,
) -> Result<(), OpError> {
    let key = |task: &'a Task| (task.env.as_str(), task.id.as_str(), task.seed);
    let known: BTreeSet<_> = training.map(key).collect();
    let Some(task) = validation.find(|task| known.contains(&key(task))) else { return Ok(()) };
    let seed = task.seed.map(|seed| format!(" (seed {seed})")).unwrap_or_default();
    Err(OpError::with_help(
        format!(
            "task `{}`{seed} of `{}` in the input `validation` is also trained on, expected other tasks",
            task.id, task.env
        ),
        "take `validation` from another split, or from tasks that what is trained on does not hold",
    ))
}

/// A value as a recipe writes it.
fn written<T: Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// Parameters of `act` and `rl`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// G: responses sampled for each prompt.
    #[serde(default = "group")]
    #[schemars(range(min = 2, max = 4096))]
    pub group: usize,
    /// Passes over the prompts.
    #[serde(default = "epochs")]
    #[schemars(range(min = 1, max = 10000))]
    pub epochs: u64,
    /// Prompts in one batch of sampling.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Parts that a pass cuts the batch into, with an optimizer update for each: as even as can be, and no more than there are
    /// prompts. More than one makes the clip range matter.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub updates: usize,
    /// Passes over each batch, each cut into `updates` parts: the first in the batch's order, later ones in a seeded other order.
    /// Log-probabilities before training stay those of sampling, so more than one makes the clip range matter.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub passes: usize,
    /// Only so many prompts, taken in order; 0 takes all.
    #[serde(default)]
    pub limit: usize,
    /// In which order an epoch takes its prompts.
    #[serde(default)]
    pub order: Order,
    /// Rounds of sampling, at most, that replace groups whose rewards are all equal by groups at the prompts that come next
    /// (DAPO's dynamic sampling); what is still missing then stays missing. 0 keeps such groups.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub refill: u64,
    #[serde(flatten)]
    pub training: Training<Sampled>,
    /// Temperature of sampling; the trainer divides its logits by the same.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.01, max = 10.0))]
    pub temperature: f64,
    /// Longest response, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 1048576))]
    pub max_tokens: usize,
    /// How states are put, and how replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// What a response is worth.
    #[serde(default)]
    pub reward: Reward,
    /// Punishes responses that come close to `max_tokens` (DAPO's soft overlong punishment).
    #[serde(default)]
    pub overlong: Option<Overlong>,
    /// A published objective by name: what it is made of is fixed, its clip range is a default. GiGPO is no loss but a way to
    /// compare episodes: `gigpo` in the table `episodes` of `rl`.
    #[serde(default)]
    pub loss: Option<Loss>,
    /// What has a ratio: `token` if no `loss` says otherwise.
    #[serde(default)]
    pub ratio: Option<Level>,
    /// How the ratio becomes a loss: `clip` if no `loss` says otherwise.
    #[serde(default)]
    pub surrogate: Option<Surrogate>,
    /// How far below 1 the ratio may fall before it stops counting (for bad responses): 0.2 if no `loss` says otherwise.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub clip_low: Option<f64>,
    /// How far above 1 the ratio may rise before it stops counting (for good responses): 0.2 if no `loss` says otherwise.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub clip_high: Option<f64>,
    /// Largest ratio that counts for bad responses too (two-sided clipping); above 1 + `clip_high`.
    #[serde(default)]
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub delta: Option<f64>,
    /// How token losses become one number: `token` if no `loss` says otherwise.
    #[serde(default)]
    pub aggregation: Option<Aggregation>,
    /// How rewards become advantages: `group` if no `loss` says otherwise.
    #[serde(default)]
    pub advantage: Option<Advantage>,
    /// Weight of the divergence from the starting model.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub kl: f64,
    /// Where it counts.
    #[serde(default)]
    pub kl_in: KlIn,
    /// How that divergence is estimated from a token.
    #[serde(default)]
    pub kl_estimator: KlEstimator,
    /// Multiplies the estimate by the ratio, so that it holds for responses of an older policy.
    #[serde(default)]
    pub kl_times_ratio: bool,
    /// Importance weights for the gap between the sampler's log-probabilities and the trainer's.
    #[serde(default)]
    pub correction: Option<Gap>,
    /// Largest such weight: 2 unless given.
    #[serde(default)]
    #[schemars(range(min = 0.0001, max = 1000.0))]
    pub correction_cap: Option<f64>,
    /// Asks the model now and then what it is not trained on, keeps the best, and may end early.
    #[serde(default)]
    pub validate: Option<Validate>,
}

/// Defaults of training on what the model itself says.
pub struct Sampled;

impl Defaults for Sampled {
    const LEARNING_RATE: f64 = 1e-6;
    const CHECKPOINT: u64 = 20;
    const SAMPLES: bool = true;
}

fn group() -> usize {
    8
}
fn epochs() -> u64 {
    3
}
fn batch() -> usize {
    32
}
fn one() -> usize {
    1
}
fn temperature() -> f64 {
    1.0
}
fn max_tokens() -> usize {
    48
}

impl Params {
    /// The objective and the advantages: what `loss` names, changed by what is set beside it.
    pub fn objective(&self) -> (Objective, Advantage) {
        let made = Loss::made(self.loss);
        let correction = self.correction.map(|gap| {
            let (level, bound) = gap.parts();
            Correction { level, bound, cap: self.correction_cap.unwrap_or(2.0) }
        });
        let objective = Objective {
            ratio: self.ratio.unwrap_or(made.ratio),
            surrogate: self.surrogate.unwrap_or(made.surrogate),
            clip_low: self.clip_low.unwrap_or(made.clip_low),
            clip_high: self.clip_high.unwrap_or(made.clip_high),
            delta: self.delta,
            correction,
            kl: if self.kl_in == KlIn::Loss { self.kl } else { 0.0 },
            kl_estimator: self.kl_estimator,
            kl_times_ratio: self.kl_times_ratio,
            aggregation: self.aggregation.unwrap_or(made.aggregation),
        };
        (objective, self.advantage.unwrap_or(made.advantage))
    }

    /// Settings that contradict each other.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = self.training.check_sampled();
        problems.extend(self.prompt.check());
        if let Some(loss) = self.loss {
            let made = Loss::made(self.loss);
            let fixed = [
                ("ratio", self.ratio.map(written), written(made.ratio)),
                ("surrogate", self.surrogate.map(written), written(made.surrogate)),
                ("aggregation", self.aggregation.map(written), written(made.aggregation)),
                ("advantage", self.advantage.map(written), written(made.advantage)),
            ];
            for (name, set, want) in fixed {
                if let Some(set) = set.filter(|set| *set != want) {
                    let loss = written(loss);
                    let message = format!("`{name}` is `{set}`, but the loss `{loss}` has `{want}`");
                    let help = "leave `loss` out to combine settings freely, or leave this one out";
                    problems.push(Problem::new(&[name], message).help(help));
                }
            }
        }
        problems.extend(self.reward.check());
        let (objective, _) = self.objective();
        if objective.surrogate == Surrogate::Weight {
            for (name, set) in [("clip_low", self.clip_low.is_some()), ("delta", self.delta.is_some())] {
                if set {
                    let message =
                        format!("`{name}` does nothing where the ratio is a weight, expected `clip_high` alone");
                    problems.push(Problem::new(&[name], message));
                }
            }
        } else if let Some(delta) = self.delta.filter(|delta| *delta <= 1.0 + objective.clip_high) {
            let message =
                format!("`delta` is {delta}, expected more than 1 + `clip_high` = {}", 1.0 + objective.clip_high);
            problems.push(Problem::new(&["delta"], message));
        }
        if self.kl_in == KlIn::Reward {
            if self.kl == 0.0 {
                let message = "`kl_in` is `reward`, but `kl` is 0, expected its weight";
                problems.push(Problem::new(&["kl_in"], message));
            }
            if self.kl_times_ratio {
                let message = "`kl_times_ratio` is for a divergence in the loss, and `kl_in` is `reward`";
                problems.push(Problem::new(&["kl_times_ratio"], message));
            }
        } else if self.kl == 0.0 && self.kl_times_ratio {
            let message = "`kl_times_ratio` is set, but `kl` is 0, expected its weight";
            problems.push(Problem::new(&["kl_times_ratio"], message));
        }
        // one that is written as it is by default cannot be told from one that is left out
        if self.kl == 0.0 && self.kl_estimator != KlEstimator::default() {
            let estimator = written(self.kl_estimator);
            let message = format!("`kl_estimator` is `{estimator}`, but `kl` is 0, expected its weight");
            problems.push(Problem::new(&["kl_estimator"], message));
        }
        if let Some(overlong) = self.overlong.filter(|overlong| overlong.buffer > self.max_tokens) {
            let (buffer, longest) = (overlong.buffer, self.max_tokens);
            let message = format!("`buffer` is {buffer}, expected at most `max_tokens` = {longest}");
            problems.push(Problem::new(&["overlong", "buffer"], message));
        }
        if self.correction_cap.is_some() && self.correction.is_none() {
            let message = "there is no weight to cap, expected a `correction` beside `correction_cap`";
            problems.push(Problem::new(&["correction_cap"], message));
        }
        problems
    }

    /// Settings of the loop.
    pub fn settings(&self, seed: u64) -> Settings {
        let (objective, advantage) = self.objective();
        Settings {
            group: self.group,
            epochs: self.epochs,
            batch: self.batch,
            order: self.order,
            refill: self.refill,
            updates: self.updates,
            passes: self.passes,
            lr: self.training.learning_rate,
            schedule: self.training.schedule,
            warmup: self.training.warmup,
            optimizer: self.training.optimizer.clone(),
            checkpoint_every: self.training.checkpoint_every,
            temperature: self.temperature as f32,
            max_tokens: self.max_tokens,
            objective,
            compare: Compare { advantage, gigpo: None },
            shape: Shape { length: self.reward.length, overlong: self.overlong },
            kl_in_reward: if self.kl_in == KlIn::Reward { self.kl } else { 0.0 },
            validate: self.validate,
            row_tokens: self.training.row_tokens,
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn params(value: Value) -> Params {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn without_a_name_the_objective_is_the_default_one() {
        assert_eq!(params(json!({})).objective(), (Objective::default(), Advantage::Group));
        assert_eq!(params(json!({ "loss": "bnpo" })).objective(), params(json!({})).objective());
        assert!(params(json!({ "aggregation": "sequence", "clip_high": 0.3, "delta": 1.4 })).check().is_empty());
    }

    #[test]
    fn names_expand_to_settings_and_keep_what_is_said_beside_them() {
        let (gspo, _) = params(json!({ "loss": "gspo", "clip_low": 0.001 })).objective();
        assert_eq!((gspo.ratio, gspo.aggregation), (Level::Sequence, Aggregation::Sequence));
        assert_eq!((gspo.clip_low, gspo.clip_high), (0.001, 4e-4));
        let (dr, advantage) = params(json!({ "loss": "dr_grpo", "advantage": "none" })).objective();
        assert_eq!((dr.aggregation, advantage), (Aggregation::Constant, Advantage::None));
        let (dapo, _) =
            params(json!({ "loss": "dapo", "correction": "token_mask", "correction_cap": 3.0 })).objective();
        assert_eq!((dapo.clip_low, dapo.clip_high), (0.2, 0.28));
        let correction = Correction { level: Level::Token, bound: Bound::Mask, cap: 3.0 };
        assert_eq!(dapo.correction, Some(correction));
        let (grpo, _) = params(json!({ "loss": "grpo" })).objective();
        assert_eq!(grpo, Objective { aggregation: Aggregation::Sequence, ..Objective::default() });
        let (cispo, _) = params(json!({ "loss": "cispo" })).objective();
        assert_eq!((cispo.surrogate, cispo.clip_high), (Surrogate::Weight, 4.0));
        let rloo = params(json!({ "loss": "rloo" })).objective();
        assert_eq!(rloo, (Objective::default(), Advantage::Rloo));
    }

    #[test]
    fn a_divergence_counts_in_the_loss_or_in_the_reward_and_never_in_both() {
        for (place, want) in [("loss", (0.1, 0.0)), ("reward", (0.0, 0.1))] {
            let settings = params(json!({ "kl": 0.1, "kl_in": place })).settings(1);
            assert_eq!((settings.objective.kl, settings.kl_in_reward), want);
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_by_their_path() {
        let cases = [
            (json!({ "loss": "gspo", "ratio": "token" }), "ratio"),
            (json!({ "loss": "grpo", "surrogate": "weight" }), "surrogate"),
            (json!({ "loss": "dapo", "aggregation": "sequence" }), "aggregation"),
            (json!({ "loss": "dr_grpo", "advantage": "group" }), "advantage"),
            (json!({ "loss": "cispo", "clip_low": 0.1 }), "clip_low"),
            (json!({ "surrogate": "weight", "delta": 9.0 }), "delta"),
            (json!({ "clip_high": 0.5, "delta": 1.5 }), "delta"),
            (json!({ "correction_cap": 2.0 }), "correction_cap"),
            (json!({ "kl_in": "reward" }), "kl_in"),
            (json!({ "kl_in": "reward", "kl": 0.1, "kl_times_ratio": true }), "kl_times_ratio"),
            (json!({ "kl_times_ratio": true }), "kl_times_ratio"),
            (json!({ "kl_estimator": "k1" }), "kl_estimator"),
            (json!({ "loss": "rloo", "advantage": "group" }), "advantage"),
        ];
        for (value, path) in cases {
            let problems = params(value.clone()).check();
            let paths: Vec<&[String]> = problems.iter().map(|p| p.path.as_slice()).collect();
            assert_eq!(paths, [[path.to_owned()]], "{value}: {problems:?}");
        }
        let long = params(json!({ "max_tokens": 8, "overlong": { "buffer": 9 } })).check();
        assert_eq!(long.iter().map(|p| p.path.join(".")).collect::<Vec<_>>(), ["overlong.buffer"]);
        let both = params(json!({ "loss": "dr_grpo", "advantage": "rloo", "aggregation": "token" })).check();
        assert_eq!(both.len(), 2, "all of them are said: {both:?}");
        assert_eq!(both[0].message, "`aggregation` is `token`, but the loss `dr_grpo` has `constant`");
    }
}
