//! Verifiable rewards: what an answer is worth, decided by comparison alone.
//!
//! Invariants: an answer earns only as a whole, nothing quoted inside it counts; a right answer is also possible and
//! well-formed, a possible one is also well-formed; `malformed` applies exactly where no other part does.

use std::collections::BTreeMap;

use actloom_engine::event::Level;
use actloom_engine::op::{OpContext, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parts of the reward of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Reward {
    /// The expert's action.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub correct: f64,
    /// A possible action. Under `exclusive`: another one than the expert's.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub admissible: f64,
    /// Where no other part applies: anything else, and answers that did not end in time.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub malformed: f64,
    /// A reply that ended in time and has the form that the prompt asks for, whatever it says. Left out, the form by
    /// itself is worth nothing: a reply of the right form that says no possible action is `malformed`.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub format: Option<f64>,
    /// Times the response's tokens / `max_tokens`, added in either composition; negative for a price on length.
    #[schemars(range(min = -100.0, max = 100.0))]
    pub length: f64,
    /// What becomes of several parts that apply.
    pub composition: Composition,
}

/// How parts that apply make one reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Composition {
    /// The first that applies, of `correct`, `admissible`, `format`.
    #[default]
    Exclusive,
    /// All that apply add up: the expert's action is possible and well-formed too.
    Sum,
}

impl Default for Reward {
    fn default() -> Self {
        let composition = Composition::Exclusive;
        Reward { correct: 1.0, admissible: 0.1, malformed: -0.5, format: None, length: 0.0, composition }
    }
}

/// What became of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub reward: f64,
    pub correct: bool,
    /// Neither right nor possible.
    pub malformed: bool,
    /// Where the right answer stood, for choices.
    pub position: Option<usize>,
}

impl Reward {
    /// What an answer is worth of whose form nothing is known beyond that of a possible action.
    pub fn outcome(&self, correct: bool, admissible: bool) -> Outcome {
        let outcome = Outcome { reward: 0.0, correct, malformed: !correct && !admissible, position: None };
        self.formed(outcome, false)
    }

    /// The same answer, where it is known whether the reply has the form that was asked for.
    pub fn formed(&self, outcome: Outcome, formed: bool) -> Outcome {
        let reward = self.parts(&outcome, formed).values().sum();
        Outcome { reward, ..outcome }
    }

    /// Warns where some of the questions do not say what is admissible, and the reward would tell.
    pub fn warn_of_bare(&self, ctx: &OpContext<'_>, (bare, all): (usize, usize), what: &str) {
        if bare > 0 && self.admissible != self.malformed {
            ctx.say(
                Level::Warning,
                format!(
                    "no list of admissible actions at {bare} of {all} {what}: an action that is possible and not right counts as \
                     malformed there; write `actions = \"always\"` in the step that made the episodes, or give \
                     `reward.admissible` and `reward.malformed` the same value"
                ),
            );
        }
    }

    /// What is wrong with it: that it cannot tell answers apart.
    pub fn check(&self) -> Vec<Problem> {
        let Reward { correct, admissible, malformed, format, length, .. } = *self;
        let flat =
            length == 0.0 && correct == admissible && correct == malformed && format.is_none_or(|f| f == malformed);
        if !flat || self.composition == Composition::Sum && correct != 0.0 {
            return Vec::new();
        }
        let what = format!("every answer is worth {correct}, so that nothing is better than anything");
        vec![Problem::new(&["reward"], what).help("give `correct` another value than `admissible` and `malformed`")]
    }

    /// What each part adds to an answer's reward, of the parts that there are: 0 where it does not apply.
    pub fn parts(&self, outcome: &Outcome, formed: bool) -> BTreeMap<&'static str, f64> {
        let possible = !outcome.malformed;
        let ranks = [
            ("correct", Some(self.correct), outcome.correct),
            ("admissible", Some(self.admissible), possible),
            ("format", self.format, possible || formed),
        ];
        let mut parts = BTreeMap::new();
        let mut any = false;
        for (name, weight, holds) in ranks {
            let Some(weight) = weight else { continue };
            let applies = holds && (!any || self.composition == Composition::Sum);
            parts.insert(name, if applies { weight } else { 0.0 });
            any |= holds;
        }
        parts.insert("malformed", if any { 0.0 } else { self.malformed });
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(format: Option<f64>, composition: Composition) -> Reward {
        Reward { format, composition, ..Reward::default() }
    }

    #[test]
    fn exactly_one_part_applies_unless_they_are_summed() {
        use Composition::{Exclusive, Sum};
        // right, possible, well-formed -> reward
        let table = [
            (None, Exclusive, [1.0, 0.1, -0.5, -0.5]),
            (Some(0.05), Exclusive, [1.0, 0.1, 0.05, -0.5]),
            (None, Sum, [1.1, 0.1, -0.5, -0.5]),
            (Some(0.05), Sum, [1.15, 0.15, 0.05, -0.5]),
        ];
        for (format, composition, want) in table {
            let facts = [(true, true, true), (false, true, true), (false, false, true), (false, false, false)];
            for ((correct, possible, formed), want) in facts.into_iter().zip(want) {
                let reward = reward(format, composition);
                let got = reward.formed(reward.outcome(correct, possible), formed);
                assert!((got.reward - want).abs() < 1e-12, "{reward:?}, {correct} {possible} {formed}: {got:?}");
                assert_eq!((got.correct, got.malformed), (correct, !possible));
            }
        }
    }

    #[test]
    fn parts_add_up_to_the_reward_and_a_right_answer_is_possible_and_formed() {
        for composition in [Composition::Exclusive, Composition::Sum] {
            for format in [None, Some(0.25)] {
                let reward = reward(format, composition);
                for (correct, possible, formed) in [(true, false, false), (false, true, false), (false, false, true)] {
                    let outcome = reward.formed(reward.outcome(correct, possible), formed);
                    let parts = reward.parts(&outcome, formed);
                    assert_eq!(parts.values().sum::<f64>(), outcome.reward);
                    assert_eq!(parts.contains_key("format"), format.is_some());
                    let applying = parts.values().filter(|v| **v != 0.0).count();
                    assert!(composition == Composition::Sum || applying == 1, "{parts:?}");
                }
                let listed = reward.outcome(true, true);
                assert_eq!(reward.outcome(true, false).reward, listed.reward, "the expert's action is possible");
            }
        }
    }
}
