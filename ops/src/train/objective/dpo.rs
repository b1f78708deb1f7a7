//! Direct preference optimisation: a loss over pairs of answers, and its gradient. Rafailov et al., 2023.
//!
//! For a pair, h = (logp - ref) of the chosen answer - (logp - ref) of the rejected one, log-probabilities summed over the
//! answer's tokens. A batch's loss is the mean over its pairs. d loss / d logp of every token of an answer is that of the
//! answer's sum. With smoothing e a label is wrong with probability e: the sigmoid loss becomes
//! -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), cDPO (Mitchell, 2023).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::math::{sigmoid, softplus};

/// What is done with the margin h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preference {
    /// -log sigmoid(beta h). DPO.
    #[default]
    Sigmoid,
    /// max(0, 1 - beta h). SLiC; Zhao et al., 2023.
    Hinge,
    /// (h - 1 / (2 beta))^2. IPO; Azar et al., 2023.
    Ipo,
}

/// Log-probabilities of the two answers of a pair, each summed over its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pair {
    pub chosen: f64,
    pub rejected: f64,
    pub reference_chosen: f64,
    pub reference_rejected: f64,
}

/// What one pair adds to a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Judged {
    /// Its own loss, not divided by the number of pairs.
    pub loss: f64,
    /// d batch loss / d log-probability of the chosen answer; the rejected one's is its negative.
    pub gradient: f64,
    /// beta h.
    pub logit: f64,
    /// beta (logp - ref) of each answer.
    pub reward_chosen: f64,
    pub reward_rejected: f64,
}

/// The objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub preference: Preference,
    pub beta: f64,
    /// How probable it is that a label is wrong; for the sigmoid loss alone.
    pub smoothing: f64,
}

impl Objective {
    /// Loss and gradient of one pair; `of` is the number of pairs in the whole batch, which may come in parts.
    pub fn judge(&self, p: &Pair, of: usize) -> Judged {
        let Objective { preference, beta, smoothing } = *self;
        let (chosen, rejected) = (p.chosen - p.reference_chosen, p.rejected - p.reference_rejected);
        let h = chosen - rejected;
        let logit = beta * h;
        let (loss, slope) = match preference {
            Preference::Sigmoid => (
                (1.0 - smoothing) * softplus(-logit) + smoothing * softplus(logit),
                beta * (smoothing * sigmoid(logit) - (1.0 - smoothing) * sigmoid(-logit)),
            ),
            Preference::Hinge if logit < 1.0 => (1.0 - logit, -beta),
            Preference::Hinge => (0.0, 0.0),
            Preference::Ipo => {
                let off = h - 0.5 / beta;
                (off * off, 2.0 * off)
            }
        };
        let gradient = slope / of as f64;
        Judged { loss, gradient, logit, reward_chosen: beta * chosen, reward_rejected: beta * rejected }
    }
}
