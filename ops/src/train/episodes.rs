//! What a whole episode earns: the reward of each of its turns, their sum, and the states they are compared at.
//!
//! The return of an episode is the sum of its turns' rewards. A turn's reward is a sum of parts, each a weight of
//! [`Returns`]: what the environment says of the action, and at the last turn what it says of the episode.
//!
//! Invariants: only what the environment said of an action counts, never a word of the reply beside it; a turn is either
//! malformed, or inadmissible, or neither; the rewards of an episode are a function of it alone.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::Step;
use crate::artifact::{Episode, Turn};

/// Weights of the parts that the rewards of an episode's turns are made of. All parts that apply add up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Returns")]
pub struct Returns {
    /// At the last turn, if the goal holds then.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub success: f64,
    /// At the last turn, times the environment's score from 0 to 1.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub score: f64,
    /// At each turn, times what the environment says the action earned.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub earned: f64,
    /// At each turn whose action was not possible.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub invalid: f64,
    /// At each turn whose reply says no action: it was cut off, or is not in the form of the prompt. Then `invalid` does
    /// not count.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub malformed: f64,
    /// At each turn, so that a short way is worth more than a long one.
    #[schemars(range(min = -1e6, max = 1e6))]
    pub turn: f64,
}

impl Default for Returns {
    fn default() -> Self {
        Returns { success: 1.0, score: 0.0, earned: 0.0, invalid: -0.1, malformed: -0.1, turn: 0.0 }
    }
}

/// Which states of a task's episodes count as equal, for the comparison of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Equal {
    /// Those with the same observation, as published. Replies that say nothing of the state, such as `Nothing happens.`,
    /// are equal wherever they were met.
    #[default]
    Observation,
    /// Those with the same observation and the same admissible actions: to be preferred wherever the environment tells these,
    /// for free replies often meet such texts.
    Actions,
}

/// The reply says no action.
pub fn is_malformed(turn: &Turn) -> bool {
    turn.action.is_empty()
}

/// The environment took the action for none that is possible. A malformed reply says none, and is not counted twice.
pub fn is_invalid(turn: &Turn) -> bool {
    !is_malformed(turn) && turn.admissible == Some(false)
}

/// The parts of each turn's reward, by name.
fn parts<'a>(episode: &'a Episode, returns: &'a Returns) -> impl Iterator<Item = [(&'static str, f64); 6]> + 'a {
    let last = episode.turns.len().saturating_sub(1);
    episode.turns.iter().enumerate().map(move |(t, turn)| {
        let when = |holds: bool, weight: f64| if holds { weight } else { 0.0 };
        [
            ("success", when(t == last && episode.success, returns.success)),
            ("score", when(t == last, returns.score * episode.score)),
            ("earned", returns.earned * turn.reward),
            ("invalid", when(is_invalid(turn), returns.invalid)),
            ("malformed", when(is_malformed(turn), returns.malformed)),
            ("turn", returns.turn),
        ]
    })
}

/// The reward of each turn.
pub fn rewards(episode: &Episode, returns: &Returns) -> Vec<f64> {
    parts(episode, returns).map(|parts| parts.iter().map(|(_, value)| value).sum()).collect()
}

/// Sums over the episode of those parts whose weight is not 0.
pub fn totals(episode: &Episode, returns: &Returns) -> BTreeMap<&'static str, f64> {
    let weights = [
        ("success", returns.success),
        ("score", returns.score),
        ("earned", returns.earned),
        ("invalid", returns.invalid),
        ("malformed", returns.malformed),
        ("turn", returns.turn),
    ];
    let mut totals: BTreeMap<&'static str, f64> =
        weights.into_iter().filter(|(_, weight)| *weight != 0.0).map(|(name, _)| (name, 0.0)).collect();
    for (name, value) in parts(episode, returns).flatten() {
        if let Some(total) = totals.get_mut(name) {
            *total += value;
        }
    }
    totals
}

/// Each turn as a step: the state it acted at, and its reward. `None` where states are to be told apart by their
/// admissible actions and one of them has none.
pub fn steps(episode: &Episode, returns: &Returns, equal: Equal) -> Option<Vec<Step>> {
    let state = |t: usize| {
        let seen = t.checked_sub(1).map_or(&episode.start, |before| &episode.turns[before].observation);
        match equal {
            Equal::Observation => Some(seen.clone()),
            Equal::Actions => {
                let actions = &episode.turns[t].actions;
                (!actions.is_empty()).then(|| format!("{seen}\n{}", actions.join("\n")))
            }
        }
    };
    let step = |(t, reward)| Some(Step { state: state(t)?, reward });
    rewards(episode, returns).into_iter().enumerate().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{Actor, End, SCHEMA_VERSION, Task};

    fn turn(action: &str, admissible: Option<bool>, reward: f64) -> Turn {
        let actions = vec!["go".to_owned(), "look".to_owned()];
        Turn { action: action.into(), admissible, observation: format!("after {action}"), actions, reply: None, reward }
    }

    fn episode(turns: Vec<Turn>, success: bool, score: f64) -> Episode {
        let text = |s: &str| s.to_owned();
        let (env, id, split, kind, goal) = (text("toy"), text("0"), text("train"), text("k"), text("g"));
        let task = Task { env, id, split, kind, goal, seed: None };
        let (v, actor, end) = (SCHEMA_VERSION, Actor::Policy, if success { End::Done } else { End::Limit });
        Episode { v, task, actor, decoding: None, start: text("start"), turns, success, score, end }
    }

    #[test]
    fn what_an_episode_earns_is_the_sum_of_its_parts_at_the_turns_they_belong_to() {
        let turns = vec![turn("go", Some(true), 0.0), turn("fly", Some(false), 0.0), turn("look", Some(true), 0.25)];
        let won = episode(turns.clone(), true, 1.0);
        assert_eq!(rewards(&won, &Returns::default()), [0.0, -0.1, 1.0]);
        let all = Returns { success: 10.0, score: 2.0, earned: 4.0, invalid: -1.0, malformed: -3.0, turn: -0.5 };
        assert_eq!(rewards(&won, &all), [-0.5, -1.5, 12.5]);
        let lost = episode(turns, false, 0.5);
        assert_eq!(rewards(&lost, &all), [-0.5, -1.5, 1.5]);
        let totals = totals(&won, &all);
        assert_eq!(totals.values().sum::<f64>(), rewards(&won, &all).iter().sum::<f64>());
        assert_eq!((totals["success"], totals["invalid"], totals["turn"]), (10.0, -1.0, -1.5));
    }

    #[test]
    fn winning_by_accident_does_not_pay_back_what_was_wrong_before() {
        let wrong = |n: usize| (0..n).map(|_| turn("fly", Some(false), 0.0));
        let straight = episode(vec![turn("go", Some(true), 0.0)], true, 1.0);
        let accident = episode(wrong(3).chain([turn("go", Some(true), 0.0)]).collect(), true, 1.0);
        let sum = |e: &Episode| rewards(e, &Returns::default()).iter().sum::<f64>();
        assert_eq!(sum(&straight), 1.0);
        assert!((sum(&accident) - 0.7).abs() < 1e-12);
        // a game that its last, impossible action ended: the action still costs
        let ended = episode(vec![turn("fly", Some(false), 0.0)], true, 1.0);
        assert!((sum(&ended) - 0.9).abs() < 1e-12);
    }

    #[test]
    fn a_reply_without_an_action_is_malformed_and_not_inadmissible_too() {
        let returns = Returns { invalid: -1.0, malformed: -3.0, ..Returns::default() };
        let silent = episode(vec![turn("", Some(false), 0.0), turn("", None, 0.0)], false, 0.0);
        assert_eq!(rewards(&silent, &returns), [-3.0, -3.0]);
        let unknown = episode(vec![turn("fly", None, 0.0)], false, 0.0);
        assert_eq!(rewards(&unknown, &returns), [0.0], "where the environment does not say, nothing is invalid");
    }

    #[test]
    fn parts_without_a_weight_are_not_told_and_an_episode_of_no_turn_earns_nothing() {
        let none = episode(Vec::new(), true, 1.0);
        assert!(rewards(&none, &Returns::default()).is_empty());
        let names: Vec<&str> = totals(&none, &Returns::default()).into_keys().collect();
        assert_eq!(names, ["invalid", "malformed", "success"]);
    }

    #[test]
    fn a_step_is_at_the_observation_before_its_action() {
        let turns = vec![turn("go", Some(true), 0.0), turn("look", Some(true), 0.0)];
        let mut it = episode(turns, false, 0.0);
        let states = |e: &Episode, equal| -> Option<Vec<String>> {
            Some(steps(e, &Returns::default(), equal)?.into_iter().map(|s| s.state).collect())
        };
        assert_eq!(states(&it, Equal::Observation).unwrap(), ["start", "after go"]);
        assert_eq!(states(&it, Equal::Actions).unwrap(), ["start\ngo\nlook", "after go\ngo\nlook"]);
        it.turns[1].actions.clear();
        assert_eq!(states(&it, Equal::Actions), None);
    }
}
