//! Verifiable rewards: what an answer is worth, decided by comparison alone.
//!
//! Invariant: an answer earns only as a whole; nothing quoted inside it counts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parts of the reward; exactly one of them applies to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reward {
    /// The expert's action.
    pub correct: f64,
    /// Another action, but a possible one.
    pub admissible: f64,
    /// Anything else, and answers that did not end in time.
    pub malformed: f64,
}

impl Default for Reward {
    fn default() -> Self {
        Reward { correct: 1.0, admissible: 0.1, malformed: -0.5 }
    }
}

/// What became of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub reward: f64,
    pub correct: bool,
    pub malformed: bool,
    /// Where the right answer stood, for choices.
    pub position: Option<usize>,
}

impl Reward {
    pub fn outcome(&self, correct: bool, admissible: bool) -> Outcome {
        let reward = match (correct, admissible) {
            (true, _) => self.correct,
            (false, true) => self.admissible,
            (false, false) => self.malformed,
        };
        Outcome { reward, correct, malformed: !correct && !admissible, position: None }
    }
}
