//! Warnings of policy optimisation: what goes wrong, why, and what to do about it.
//!
//! Invariants: a warning is a function of the batches seen, never of the clock; what is remembered of them is part of the
//! checkpoint's position, so a resumed run warns as one that was never stopped; each is said at most once in
//! [`QUIET`] batches.

use std::collections::BTreeMap;

/// Batches for which a warning that was said is not said again.
pub const QUIET: u64 = 20;
/// Batches in a row that must be mostly flat.
const FLAT_BATCHES: f64 = 3.0;
/// Share of flat groups that is most of them.
const MOSTLY: f64 = 0.8;
/// How long positions are remembered: the weight of the batch before.
const MEMORY: f64 = 0.9;
/// Answers of each position that a comparison wants, and the difference that is a bias.
const ANSWERS: f64 = 32.0;
const BIAS: f64 = 0.3;
/// Share of its first value below which entropy has collapsed, and accuracy above which that is no loss.
const COLLAPSED: f64 = 0.1;
const MASTERED: f64 = 0.95;

/// What a batch looked like; shares are of attempts but for `truncated`, `malformed`, `formless` and `impossible`, of responses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Share of groups whose rewards are all equal.
    pub flat: f64,
    /// Share of right attempts in those groups.
    pub flat_right: f64,
    pub right: f64,
    pub truncated: f64,
    pub malformed: f64,
    /// Malformed responses that ended and do not have the form that was asked for.
    pub formless: f64,
    /// Malformed responses that have it and say an action that is known not to be possible.
    pub impossible: f64,
    /// For questions whose right answer stood first, second: attempts, and how many were right.
    pub positions: [(f64, f64); 2],
    /// Of a token, in nats, estimated from all that was sampled.
    pub entropy: Option<f64>,
    /// Whether groups without variance are replaced already.
    pub refilled: bool,
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watch {
    memory: BTreeMap<String, f64>,
}

/// Names in a checkpoint's counters begin so.
const PREFIX: &str = "watch_";

impl Watch {
    /// From the counters of a checkpoint.
    pub fn restore(counters: &BTreeMap<String, f64>) -> Self {
        let own = counters.iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?.to_owned(), *value)));
        Watch { memory: own.collect() }
    }

    /// Into the counters of a checkpoint.
    pub fn save(&self, counters: &mut BTreeMap<String, f64>) {
        counters.extend(self.memory.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)));
    }

    fn get(&self, name: &str) -> f64 {
        self.memory.get(name).copied().unwrap_or(0.0)
    }

    fn set(&mut self, name: &str, value: f64) {
        self.memory.insert(name.to_owned(), value);
    }

    /// What is to be said after batch `at`, counted from 1.
    pub fn see(&mut self, at: u64, seen: &Seen) -> Vec<String> {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let mut found: Vec<(&str, String)> = Vec::new();
        // 1. no variance
        let run = if seen.flat >= MOSTLY { self.get("flat") + 1.0 } else { 0.0 };
        self.set("flat", run);
        if run >= FLAT_BATCHES {
            let (what, help) = match seen.flat_right {
                r if r >= 0.9 => ("all right", "the questions are learned: stop, or take harder ones"),
                r if r <= 0.1 => (
                    "all wrong",
                    "the model never finds a right answer: imitate first (`sft`), raise `group` or `temperature`, or look \
                     whether `prompt` lets it say what is rewarded",
                ),
                _ => (
                    "each all alike",
                    "the model always gives the same answer to a question: raise `temperature` or `group`",
                ),
            };
            let refill = if seen.refilled || seen.flat_right <= 0.1 { "" } else { ", or refill batches with `refill`" };
            let flat = percent(seen.flat);
            found.push((
                "no_variance",
                format!("no variance: {flat} of the groups of batch {at} have equal rewards, {what}; {help}{refill}"),
            ));
        }
        // 2. truncation
        if seen.truncated > 0.5 {
            let share = percent(seen.truncated);
            let what =
                format!("truncation: {share} of the responses of batch {at} ran out of tokens; raise `max_tokens`");
            found.push(("truncated", what + ", or punish length with `overlong`"));
        }
        // 3. format; what ran out of tokens is malformed for that reason
        if seen.formless > 0.5 {
            let share = percent(seen.formless);
            found.push((
                "malformed",
                format!(
                    "format collapse: {share} of the responses of batch {at} do not have the form asked for; imitate first \
                     (`sft`), lower `learning_rate`, or reward the form with `reward.format`"
                ),
            ));
        }
        if seen.impossible > 0.5 {
            let share = percent(seen.impossible);
            found.push((
                "impossible",
                format!(
                    "no possible action: {share} of the responses of batch {at} have the form asked for and say an action that \
                     is not possible; imitate first (`sft`), or show the admissible actions in the prompt"
                ),
            ));
        }
        // 4. position
        let mut shares = [0.0; 2];
        let mut enough = true;
        for (p, (n, right)) in seen.positions.iter().enumerate() {
            let (count, sum) = (["first", "second"][p], ["first_right", "second_right"][p]);
            self.set(count, MEMORY * self.get(count) + n);
            self.set(sum, MEMORY * self.get(sum) + right);
            enough &= self.get(count) >= ANSWERS;
            shares[p] = self.get(sum) / self.get(count).max(1.0);
        }
        if enough && (shares[0] - shares[1]).abs() > BIAS {
            let [first, second] = shares.map(percent);
            found.push((
                "position",
                format!(
                    "position bias: {first} right where the better action stands first, {second} where it stands second, over \
                     the batches up to {at}; ask each pair in both orders (`both_orders` of `pairs`) if it is asked in \
                     one, or lower `learning_rate`"
                ),
            ));
        }
        // 5. entropy
        if let Some(entropy) = seen.entropy {
            if !self.memory.contains_key("entropy") {
                self.set("entropy", entropy);
            }
            let first = self.get("entropy");
            if entropy < COLLAPSED * first && seen.right < MASTERED {
                found.push((
                    "collapse",
                    format!(
                        "entropy collapse: a token of batch {at} has {entropy:.3} nats, {first:.3} at first, and {} of the \
                         answers are right; raise `clip_high` or `kl`, or lower `learning_rate`",
                        percent(seen.right)
                    ),
                ));
            }
        }
        let mut say = Vec::new();
        for (kind, text) in found {
            let name = format!("said_{kind}");
            let last = self.get(&name);
            if last == 0.0 || at as f64 >= last + QUIET as f64 {
                self.set(&name, at as f64);
                say.push(text);
            }
        }
        say
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Seen {
        let positions = [(20.0, 12.0), (20.0, 11.0)];
        Seen { flat: 0.3, right: 0.6, flat_right: 0.5, positions, entropy: Some(0.5), ..Seen::default() }
    }

    /// Beginnings of what is said over so many batches of this kind.
    fn said(batches: u64, seen: Seen) -> Vec<String> {
        let mut watch = Watch::default();
        let texts = (1..=batches).flat_map(|at| watch.see(at, &seen)).collect::<Vec<_>>();
        texts.iter().map(|t| t.split(':').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn nothing_is_said_of_batches_that_are_fine() {
        assert_eq!(said(100, fine()), [""; 0]);
        let mastered = Seen { right: 0.99, positions: [(20.0, 20.0); 2], ..fine() };
        let mut watch = Watch::default();
        assert!(watch.see(1, &mastered).is_empty());
        assert!(watch.see(2, &Seen { entropy: Some(0.001), ..mastered }).is_empty(), "certain, and right");
    }

    #[test]
    fn each_cause_is_named_with_what_to_do() {
        let flat = |flat_right| Seen { flat: 0.9, flat_right, ..fine() };
        assert_eq!(said(2, flat(1.0)), [""; 0], "one flat batch is chance");
        for (right, want) in [(1.0, "all right"), (0.0, "all wrong"), (0.5, "each all alike")] {
            let mut watch = Watch::default();
            let texts: Vec<String> = (1..=3).flat_map(|at| watch.see(at, &flat(right))).collect();
            assert!(texts.len() == 1 && texts[0].starts_with("no variance") && texts[0].contains(want), "{texts:?}");
        }
        let refilled = Seen { refilled: true, ..flat(0.5) };
        let mut watch = Watch::default();
        let texts: Vec<String> = (1..=3).flat_map(|at| watch.see(at, &refilled)).collect();
        assert!(texts.len() == 1 && !texts[0].contains("refill"), "what is done already is no advice: {texts:?}");
        assert_eq!(said(1, Seen { truncated: 0.8, malformed: 0.8, ..fine() }), ["truncation"]);
        assert_eq!(
            said(1, Seen { truncated: 0.98, malformed: 0.99, ..fine() }),
            ["truncation"],
            "one in a hundred has no form"
        );
        assert_eq!(said(1, Seen { malformed: 0.6, formless: 0.6, ..fine() }), ["format collapse"]);
        assert_eq!(said(1, Seen { malformed: 0.6, impossible: 0.6, ..fine() }), ["no possible action"]);
        assert_eq!(said(1, Seen { malformed: 0.6, ..fine() }), [""; 0], "nobody knows what is possible");
        assert_eq!(said(5, Seen { positions: [(20.0, 19.0), (20.0, 4.0)], ..fine() }), ["position bias"]);
        assert_eq!(said(1, Seen { positions: [(20.0, 19.0), (20.0, 4.0)], ..fine() }), [""; 0], "too few answers");
        assert_eq!(said(50, Seen { positions: [(20.0, 19.0), (0.0, 0.0)], ..fine() }), [""; 0], "one position alone");
        let mut watch = Watch::default();
        assert!(watch.see(1, &fine()).is_empty());
        let late = watch.see(2, &Seen { entropy: Some(0.04), ..fine() });
        assert!(late.len() == 1 && late[0].starts_with("entropy collapse"), "{late:?}");
    }

    #[test]
    fn a_warning_is_not_repeated_for_a_while_and_a_resumed_watch_says_the_same() {
        let bad = Seen { malformed: 0.9, formless: 0.9, ..fine() };
        assert_eq!(said(QUIET, bad).len(), 1);
        assert_eq!(said(QUIET + 1, bad).len(), 2);
        let (mut whole, mut parts) = (Watch::default(), Watch::default());
        for at in 1..=3 * QUIET {
            let seen = if at % 3 == 0 { Seen { truncated: 0.9, ..fine() } } else { bad };
            let mut counters = BTreeMap::from([("updates".to_owned(), 1.0)]);
            parts.save(&mut counters);
            parts = Watch::restore(&counters);
            assert_eq!(whole.see(at, &seen), parts.see(at, &seen), "batch {at}");
        }
        assert_eq!(whole, parts);
    }
}
