//! Parameters that `act` and `rl` share: one policy-optimisation loop, two kinds of question.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::{Defaults, Training};
use crate::reward::Reward;
use crate::train::grpo::{Aggregation, Settings};

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
    /// Optimizer updates taken on each batch; more than one makes the clip range matter.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub updates: usize,
    /// Only so many prompts, taken in order; 0 takes all.
    #[serde(default)]
    pub limit: usize,
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
    /// What a response is worth; exactly one part applies.
    #[serde(default)]
    pub reward: Reward,
    /// How far below 1 the ratio may fall before it stops counting (for bad responses).
    #[serde(default = "clip")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub clip_low: f64,
    /// How far above 1 the ratio may rise before it stops counting (for good responses).
    #[serde(default = "clip")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub clip_high: f64,
    /// Weight of the k3 divergence from the starting model, in the loss.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub kl: f64,
    #[serde(default)]
    pub aggregation: Aggregation,
}

/// Defaults of training on what the model itself says.
pub struct Sampled;

impl Defaults for Sampled {
    const LEARNING_RATE: f64 = 1e-6;
    const CHECKPOINT: u64 = 20;
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
fn clip() -> f64 {
    0.2
}

impl Params {
    /// Settings of the loop.
    pub fn settings(&self, seed: u64) -> Settings {
        Settings {
            group: self.group,
            epochs: self.epochs,
            batch: self.batch,
            updates: self.updates,
            lr: self.training.learning_rate,
            schedule: self.training.schedule,
            warmup: self.training.warmup,
            optimizer: self.training.optimizer.clone(),
            checkpoint_every: self.training.checkpoint_every,
            temperature: self.temperature as f32,
            max_tokens: self.max_tokens,
            clip_low: self.clip_low as f32,
            clip_high: self.clip_high as f32,
            kl: self.kl as f32,
            aggregation: self.aggregation,
            row_tokens: self.training.row_tokens,
            seed,
        }
    }
}
