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
use std::sync::Arc;

use actloom_engine::op::{OpContext, OpError};

use super::update::Sample;
use crate::infer::{Request, Sampling, complete};
use crate::model::Model;
use crate::reward::Outcome;
use crate::rng::Rng;
use crate::text::Text;

/// One attempt at a question or a task.
#[derive(Clone, Debug, Default)]
pub struct Attempt {
    /// What it was worth as a whole. Its `reward` is what is compared.
    pub outcome: Outcome,
    /// One response, or one for each turn of an episode. Their advantages are the loop's business.
    pub samples: Vec<Sample>,
    /// For each response of an episode: the state it acted at, and what the action earned. Empty for a question.
    pub steps: Vec<Step>,
    /// Responses that ran out of tokens.
    pub truncated: usize,
    /// Responses that are malformed: neither right nor possible; of an episode: that say no action.
    pub malformed: usize,
    /// Malformed responses that ended and do not have the form that was asked for.
    pub formless: usize,
    /// Malformed responses that have it and say an action that is known not to be possible.
    pub impossible: usize,
    /// Parts of the reward by name, for the report.
    pub parts: BTreeMap<&'static str, f64>,
    /// What else is to be told of it: the mean of each is a metric of its name.
    pub facts: BTreeMap<&'static str, f64>,
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

/// Questions with an answer that can be judged by itself.
pub trait Questions {
    /// How many there are.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As [`Source::families`].
    fn families(&self) -> Vec<Vec<usize>> {
        (0..self.len()).map(|index| vec![index]).collect()
    }

    /// Prompt of question `index`.
    fn prompt(&self, index: usize) -> &[u32];

    /// Judges an answer; `text` is `None` where it did not end in time.
    fn judge(&self, index: usize, text: Option<&str>) -> Outcome;

    /// Whether an answer has the form that was asked for, whatever it says.
    fn formed(&self, text: Option<&str>) -> bool;

    /// Whether it is known what is possible at question `index`.
    fn knows(&self, index: usize) -> bool;

    /// What each part of the reward added to the outcome of an answer, for the report.
    fn parts(&self, _index: usize, _text: Option<&str>, _outcome: &Outcome) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }
}

/// Questions as a source: an attempt is one response.
pub struct Asked<Q>(pub Q);

impl<Q: Questions> Source for Asked<Q> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn families(&self) -> Vec<Vec<usize>> {
        self.0.families()
    }

    fn draw(
        &mut self,
        _ctx: &OpContext<'_>,
        model: &mut Model,
        text: &Text,
        indices: &[usize],
        how: &How<'_>,
    ) -> Result<Vec<Drawn>, OpError> {
        let mut requests = Vec::with_capacity(indices.len() * how.group);
        for (place, index) in indices.iter().enumerate() {
            for g in 0..how.group {
                let sampling = Sampling::plain(f64::from(how.temperature), how.max_tokens);
                let path = [how.stream, &[place as u64, g as u64]].concat();
                requests.push(Request::new(self.0.prompt(*index), sampling, Rng::at(how.seed, &path)));
            }
        }
        let mut completions = complete(model, text, requests, &|| false)?.into_iter();
        let mut drawn = Vec::with_capacity(indices.len());
        for index in indices {
            let prompt: Arc<[u32]> = self.0.prompt(*index).into();
            let mut attempts = Vec::with_capacity(how.group);
            for c in completions.by_ref().take(how.group) {
                let ended = c.ended();
                let answer = ended.then_some(c.text.as_str());
                let outcome = self.0.judge(*index, answer);
                if !outcome.reward.is_finite() {
                    let (r, reward) = (attempts.len() + 1, outcome.reward);
                    return Err(OpError::failed(format!(
                        "the reward of response {r} of {} to question {index} is {reward}, expected a finite number",
                        how.group
                    )));
                }
                attempts.push(Attempt {
                    parts: self.0.parts(*index, answer, &outcome),
                    outcome,
                    samples: vec![Sample {
                        prompt: prompt.clone(),
                        ids: c.ids,
                        sampling: c.logps,
                        ..Sample::default()
                    }],
                    truncated: usize::from(!ended),
                    malformed: usize::from(outcome.malformed),
                    formless: usize::from(outcome.malformed && ended && !self.0.formed(answer)),
                    impossible: usize::from(outcome.malformed && self.0.formed(answer) && self.0.knows(*index)),
                    ..Attempt::default()
                });
            }
            drawn.push(Drawn { index: *index, attempts });
        }
        Ok(drawn)
    }
}
