//! Why an episode failed: one cause for each failed episode, told from the episode's own text.
//!
//! 1. [`Conduct`]: what the turns of an episode add up to.
//! 2. [`Cause::of`]: the first rule that fits.
//!
//! Invariants: every failed episode has exactly one cause and no won one has any, so the shares of causes and of success
//! add up to 1; nothing but the episode is looked at, so the rules are the same for every environment.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::artifact::{End, Episode};

/// How often one action upon one observation is a loop, where nobody says otherwise.
pub const LOOP_AT: usize = 3;

/// Why an episode failed. Declared in the order in which the rules are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The environment ended the episode with a part of the score: not quite the right thing was bought.
    PartialEnd,
    /// The environment ended the episode with nothing: the wrong thing was focused on.
    WrongEnd,
    /// At least half of the turns say no action.
    Malformed,
    /// One action was taken `loop_at` times upon one observation.
    Loop,
    /// At least half of the turns were refused or say no action.
    Invalid,
    /// The text filled the model's context.
    Context,
    /// The steps ran out, and the last third of them still earned something.
    LimitNear,
    /// The steps ran out, and the last third of them earned nothing but showed something new.
    Wander,
    /// The steps ran out, and the last third of them neither earned nor showed anything new.
    Stuck,
}

impl Cause {
    /// In the order in which the rules are tried.
    pub const ALL: [Cause; 9] = [
        Cause::PartialEnd,
        Cause::WrongEnd,
        Cause::Malformed,
        Cause::Loop,
        Cause::Invalid,
        Cause::Context,
        Cause::LimitNear,
        Cause::Wander,
        Cause::Stuck,
    ];

    /// `limit_near`
    pub fn name(self) -> &'static str {
        match self {
            Cause::PartialEnd => "partial_end",
            Cause::WrongEnd => "wrong_end",
            Cause::Malformed => "malformed",
            Cause::Loop => "loop",
            Cause::Invalid => "invalid",
            Cause::Context => "context",
            Cause::LimitNear => "limit_near",
            Cause::Wander => "wander",
            Cause::Stuck => "stuck",
        }
    }

    /// For a page: what the name stands for.
    pub fn about(self) -> &'static str {
        match self {
            Cause::PartialEnd => "the environment ended it with a part of the score",
            Cause::WrongEnd => "the environment ended it with no score",
            Cause::Malformed => "at least half of the turns say no action",
            Cause::Loop => "one action again and again upon one observation",
            Cause::Invalid => "at least half of the turns were refused",
            Cause::Context => "its text filled the model's context",
            Cause::LimitNear => "out of steps, still earning in the last third",
            Cause::Wander => "out of steps, nothing earned but something new seen in the last third",
            Cause::Stuck => "out of steps, nothing earned and nothing new seen in the last third",
        }
    }

    /// Why the episode failed; `None` where it did not.
    pub fn of(episode: &Episode, conduct: &Conduct) -> Option<Cause> {
        let turns = episode.turns.len();
        let half = |part: usize| part > 0 && 2 * part >= turns;
        Some(match episode.end {
            _ if episode.success => return None,
            // what the environment itself decided is decisive, whatever went before
            End::Done if episode.score > 0.0 => Cause::PartialEnd,
            End::Done => Cause::WrongEnd,
            _ if half(conduct.malformed) => Cause::Malformed,
            _ if conduct.looped => Cause::Loop,
            _ if half(conduct.unusable) => Cause::Invalid,
            End::Context => Cause::Context,
            End::Limit if conduct.late_reward => Cause::LimitNear,
            End::Limit if conduct.late_news => Cause::Wander,
            End::Limit => Cause::Stuck,
        })
    }
}

/// What the turns of one episode add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Turns that the environment refused.
    pub invalid: usize,
    /// Turns that say no action.
    pub malformed: usize,
    /// Turns that were refused or say no action.
    pub unusable: usize,
    /// Actions that were taken before upon the same observation.
    pub repeated: usize,
    /// Actions that had failed before in the same state: they had been refused, or had earned nothing and shown again what was shown already.
    /// A failed action leaves the state as it is; a state is known by what the last other action showed.
    pub repeats_failed: usize,
    /// Refused actions that were not the last of the episode, and those of them behind which another action was possible.
    pub refused_before: usize,
    pub recovered: usize,
    /// One action was taken `loop_at` times upon one observation.
    pub looped: bool,
    /// Such an action was refused.
    pub looped_refused: bool,
    /// The last third of the turns earned something.
    pub late_reward: bool,
    /// The last third of the turns showed an observation that was not shown before.
    pub late_news: bool,
}

impl Conduct {
    /// Counts. No action is no action: it neither repeats nor loops.
    pub fn of(episode: &Episode, loop_at: usize) -> Conduct {
        let mut conduct = Conduct::default();
        let mut taken: HashMap<(&str, &str), usize> = HashMap::new();
        let mut shown: HashSet<&str> = HashSet::from([episode.start.as_str()]);
        let late = episode.turns.len() - episode.turns.len().div_ceil(3);
        let mut before = episode.start.as_str();
        // what the last action showed that did not fail, and what failed upon it
        let mut state = before;
        let mut failed: HashSet<(&str, &str)> = HashSet::new();
        for (at, turn) in episode.turns.iter().enumerate() {
            let (refused, empty) = (turn.admissible == Some(false), turn.action.trim().is_empty());
            conduct.invalid += usize::from(refused);
            conduct.malformed += usize::from(empty);
            conduct.unusable += usize::from(refused || empty);
            if !empty {
                let times = taken.entry((before, turn.action.as_str())).or_default();
                *times += 1;
                conduct.repeated += usize::from(*times > 1);
                conduct.looped |= *times >= loop_at;
                conduct.looped_refused |= *times >= loop_at && refused;
                let deed = (state, turn.action.as_str());
                conduct.repeats_failed += usize::from(failed.contains(&deed));
                if refused || (turn.observation == state && turn.reward <= 0.0) {
                    failed.insert(deed);
                } else {
                    state = &turn.observation;
                }
                if refused && let Some(next) = episode.turns.get(at + 1) {
                    conduct.refused_before += 1;
                    let other = next.admissible == Some(true) && next.action != turn.action;
                    conduct.recovered += usize::from(other);
                }
            }
            let new = shown.insert(&turn.observation);
            conduct.late_news |= new && at >= late;
            conduct.late_reward |= turn.reward > 0.0 && at >= late;
            before = &turn.observation;
        }
        conduct
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eval::scores::tests::episode;

    fn cause(episode: &Episode) -> Option<&'static str> {
        Cause::of(episode, &Conduct::of(episode, 3)).map(Cause::name)
    }

    /// A failed episode that ran out of steps; each turn is an action with the observation it led to.
    fn failed(turns: &[(&str, bool, &str)]) -> Episode {
        episode("id/0", "look", false, turns)
    }

    #[test]
    fn a_won_episode_has_no_cause_however_it_was_played() {
        assert_eq!(cause(&episode("id/0", "look", true, &[("look", true, "a mug"); 9])), None);
    }

    #[test]
    fn what_the_environment_ended_is_told_by_its_score_even_after_a_loop() {
        let mut bought = failed(&[("click[next >]", true, "page"); 5]);
        bought.end = End::Done;
        bought.score = 0.75;
        assert_eq!(cause(&bought), Some("partial_end"));
        bought.score = 0.0;
        assert_eq!(cause(&bought), Some("wrong_end"));
        bought.score = -1.0;
        assert_eq!(cause(&bought), Some("wrong_end"));
    }

    #[test]
    fn one_refused_action_said_again_and_again_is_a_loop_upon_a_refusal() {
        // the case study of the paper: the action fails, and the agent says it again
        let mut turns = vec![("go to shelf 1", true, "a shelf")];
        turns.extend([("put mug 1 in/on shelf 1", false, "Nothing happens."); 4]);
        let stubborn = failed(&turns);
        assert_eq!(cause(&stubborn), Some("loop"));
        assert!(Conduct::of(&stubborn, 3).looped_refused);
        let rounds = failed(&[("go a", true, "a"), ("go b", true, "b")].repeat(4));
        assert_eq!(cause(&rounds), Some("loop"), "going round in a circle is a loop too");
        assert!(!Conduct::of(&rounds, 3).looped_refused);
    }

    #[test]
    fn an_action_that_failed_in_a_state_and_is_taken_in_it_again_is_a_repeated_failure() {
        let of = |turns: &[(&str, bool, &str)]| Conduct::of(&failed(turns), 3);
        let no = "Nothing happens.";
        let stubborn = of(&[
            ("go to shelf 1", true, "a shelf"),
            ("put mug 1 in/on shelf 1", false, no),
            ("put mug 1 in/on shelf 1", false, no),
            ("look", true, "a shelf"),
            ("put mug 1 in/on shelf 1", false, no),
            ("look", true, "a shelf"),
            ("go to desk 1", true, "a desk"),
            ("put mug 1 in/on shelf 1", false, no),
            ("go to shelf 1", true, "a shelf"),
            ("put mug 1 in/on shelf 1", false, no),
        ]);
        // the second and third put, the second look, and the put after the way back; not the one at the desk
        assert_eq!(stubborn.repeats_failed, 4);
        assert_eq!((stubborn.refused_before, stubborn.recovered), (4, 3), "the last one was behind nothing");
        let other =
            of(&[("put a", false, no), ("put b", false, no), ("open c", true, "c"), ("", false, no), ("", false, no)]);
        assert_eq!((other.repeats_failed, other.refused_before, other.recovered), (0, 2, 1));
        let moved = of(&[("go a", true, "a"), ("go b", true, "b")].repeat(3));
        assert_eq!((moved.repeats_failed, moved.refused_before), (0, 0), "a circle fails nowhere");
    }

    #[test]
    fn half_the_turns_decide_between_malformed_and_invalid() {
        let half = failed(&[("", false, "Nothing happens."), ("go a", true, "a")]);
        assert_eq!(cause(&half), Some("malformed"));
        let mixed = failed(&[("", false, "no"), ("fly", false, "no no"), ("go a", true, "a"), ("go b", true, "b")]);
        assert_eq!(cause(&mixed), Some("invalid"));
        let fewer = failed(&[("fly", false, "no"), ("go a", true, "a"), ("go b", true, "b")]);
        assert_eq!(cause(&fewer), Some("wander"));
    }

    #[test]
    fn no_action_said_many_times_is_no_loop() {
        let mut turns = vec![("", false, "no"); 4];
        let rooms: Vec<String> = (0..6).map(|i| format!("room {i}")).collect();
        turns.extend(rooms.iter().map(|room| (room.as_str(), true, room.as_str())));
        assert_eq!(cause(&failed(&turns)), Some("wander"));
        assert_eq!(Conduct::of(&failed(&turns), 3).repeated, 0);
    }

    #[test]
    fn a_full_context_is_the_cause_where_conduct_was_fine() {
        let mut full = failed(&[("go a", true, "a")]);
        full.end = End::Context;
        assert_eq!(cause(&full), Some("context"));
        full.turns = failed(&[("look", true, "a"); 4]).turns;
        assert_eq!(cause(&full), Some("loop"), "the loop filled it");
    }

    #[test]
    fn what_the_last_third_brought_tells_near_from_wandering_from_stuck() {
        let mut near = failed(&[("go a", true, "a"), ("go b", true, "b"), ("go c", true, "c")]);
        assert_eq!(cause(&near), Some("wander"));
        near.turns[2].reward = 0.5;
        assert_eq!(cause(&near), Some("limit_near"));
        near.turns[2].reward = 0.0;
        near.turns[0].reward = 0.5;
        assert_eq!(cause(&near), Some("wander"), "what was earned long ago does not count");
        near.turns[2].observation = "a".to_owned();
        assert_eq!(cause(&near), Some("stuck"));
        assert_eq!(cause(&failed(&[])), Some("stuck"), "nothing was done at all");
    }

    #[test]
    fn names_and_files_agree() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.name());
        }
        let mut sorted = Cause::ALL;
        sorted.sort();
        assert_eq!(sorted, Cause::ALL, "the order of the rules is the order of the declaration");
    }

    proptest! {
        #[test]
        fn every_failed_episode_has_a_cause_and_no_won_one(
            turns in proptest::collection::vec((0..4usize, any::<bool>(), 0..4usize), 0..20),
            success: bool, end in 0..3usize, score in 0.0..1.0f64, loop_at in 2..5usize,
        ) {
            let words = ["", "look", "go a", "go b"];
            let turns: Vec<(&str, bool, &str)> = turns.iter().map(|&(a, ok, o)| (words[a], ok, words[o])).collect();
            let mut played = episode("id/0", "look", success, &turns);
            (played.end, played.score) = ([End::Done, End::Limit, End::Context][end], score);
            let conduct = Conduct::of(&played, loop_at);
            prop_assert_eq!(Cause::of(&played, &conduct).is_none(), success);
            prop_assert!(conduct.invalid.max(conduct.malformed) <= conduct.unusable);
            prop_assert!(conduct.recovered <= conduct.refused_before && conduct.refused_before <= conduct.invalid);
            prop_assert!(conduct.repeats_failed + conduct.malformed <= played.turns.len());
            prop_assert!(conduct.unusable <= played.turns.len() && conduct.looped >= conduct.looped_refused);
        }
    }
}
