//! What policy optimisation learns from: groups of attempts that are compared with each other.
//!
//! 1. A [`Source`] lists what can be attempted (questions with known answers, tasks of an environment) and draws groups of
//!    attempts at some of it from the model that is being trained.
//! 2. The loop compares the attempts of a group, turns rewards into advantages, and takes updates.
//!
//! An attempt at a question is one response; an attempt at a task is an episode, one response a turn.
//!
//! Invariants: what is drawn is a function of the model, the index and the seed, never of what is drawn beside it; every
//! response holds exactly the ids that were sampled and the prompt ids that they were sampled from.

use std::collections::BTreeMap;

use actloom_engine::op::{OpContext, OpError};

use super::update::Sample;
use crate::model::Model;
use crate::reward::Outcome;
use crate::text::Text;

/// One attempt at a question or a task.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What it was worth as a whole. Its `reward` is what is compared.
    pub outcome: Outcome,
    /// One response, or one for each turn of an episode. Their advantages are the loop's business.
    pub samples: Vec<Sample>,
    /// For each response of an episode: the state it acted at, and what the action earned. Empty for a question.
    pub steps: Vec<Step>,
    /// Responses that ran out of tokens.
    pub truncated: usize,
    /// Parts of the reward by name, for the report.
    pub parts: BTreeMap<&'static str, f64>,
}

/// One turn of an episode.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Equal states are compared with each other by GiGPO: what was perceived, as text.
    pub state: String,
    pub reward: f64,
}

/// Attempts at one thing.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Index of the question or task.
    pub index: usize,
    pub attempts: Vec<Attempt>,
}

/// What can be attempted.
pub trait Source {
    /// How many questions or tasks there are.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Questions that belong together, such as those about one episode: a batch that keeps them together computes what
    /// their prompts share once. Each index is in exactly one of the lists.
    fn families(&self) -> Vec<Vec<usize>> {
        (0..self.len()).map(|index| vec![index]).collect()
    }

    /// Draws a group of attempts at each of `indices`. The stream of attempt `g` at place `p` of the list is told apart by
    /// `stream`, p and g.
    ///
    /// # Errors
    /// The sampler's, an environment's, a reward that is not finite, `Interrupted`.
    fn draw(
        &mut self,
        ctx: &OpContext<'_>,
        model: &mut Model,
        text: &Text,
        indices: &[usize],
        how: &How<'_>,
    ) -> Result<Vec<Drawn>, OpError>;
}

/// How attempts are drawn.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Attempts at each thing.
    pub group: usize,
    pub temperature: f32,
    /// Longest response, in tokens.
    pub max_tokens: usize,
    pub seed: u64,
    /// Parts of the random streams' name: the batch, the refill, or that it is a validation.
    pub stream: &'a [u64],
}
