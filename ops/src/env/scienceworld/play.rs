//! One game of the simulator.
//!
//! Invariants: a game begins with `load` and a free look, never with the simulator's `reset`, which keeps what an earlier
//! load set; scores are read only after a step, for they are the last game's before; a machine that ends is replaced and
//! the game replayed on the new one, where every score, end and count of moves must be what it was.

use std::sync::Arc;

use super::machine::{Machine, State};
use super::pool::Lease;
use super::suite::Shared;
use super::tasks::Kind;
use super::{Requests, Score};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Observation, Snapshot};

/// How often a call is tried again after its machine ended.
const RETRIES: usize = 2;

/// How the simulator begins to ask which of several actions is meant.
const QUESTION: &str = "Ambiguous request: Please enter the number";

/// How it begins to say that an input is none of its own.
const UNKNOWN: [&str; 2] = ["No known action matches that input.", "Unknown action."];

/// An input and what came of it.
#[derive(Clone, Debug, PartialEq)]
struct Deed {
    input: String,
    /// The choice that a number stood for: the order of choices differs from load to load.
    choice: Option<String>,
    state: State,
}

/// What the simulator says at the beginning.
#[derive(Clone, Debug, Default)]
struct Start {
    look: String,
    goal: String,
    inventory: Option<String>,
}

/// The choices of an open question.
type Choices = Vec<(String, String)>;

/// Where a game stands, as agents are told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    /// Hundredths, as the Python package rounds them.
    last: i32,
    best: i32,
    done: bool,
    won: bool,
}

impl Progress {
    fn see(&mut self, state: State, most: usize) {
        let hundredths = (state.score * 100.0).round_ties_even().clamp(-100.0, 100.0) as i32;
        self.last = hundredths.max(0);
        self.best = self.best.max(self.last);
        let spent = most > 0 && usize::try_from(state.moves).is_ok_and(|moves| moves > most);
        self.done |= state.completed || hundredths < 0 || spent;
        self.won = state.completed && hundredths == 100;
    }

    fn hundredths(&self, score: Score) -> i32 {
        match score {
            Score::Last => self.last,
            Score::Best => self.best,
        }
    }
}

/// A state of a game, to go back to.
struct Saved {
    task: String,
    actions: Vec<String>,
    deeds: Vec<Deed>,
}

/// One game.
pub struct Play {
    shared: Arc<Shared>,
    kind: &'static Kind,
    variation: u32,
    task: Task,
    lease: Option<Lease>,
    /// The machine is where `deeds` lead.
    ready: bool,
    start: Start,
    /// Inputs so far.
    deeds: Vec<Deed>,
    /// The agent's actions so far: one more than inputs where a question was put aside.
    actions: Vec<String>,
    /// The question that is open now.
    asked: Option<Choices>,
    progress: Progress,
}

impl Play {
    pub(super) fn new(shared: Arc<Shared>, kind: &'static Kind, variation: u32, task: Task) -> Play {
        Play {
            shared,
            kind,
            variation,
            task,
            lease: None,
            ready: false,
            start: Start::default(),
            deeds: Vec::new(),
            actions: Vec::new(),
            asked: None,
            progress: Progress::default(),
        }
    }

    /// Does something on a machine that is where this game is; twice more where the machine ends.
    fn attempt<T>(&mut self, act: impl Fn(&mut Machine) -> Result<T, EnvError>) -> Result<T, EnvError> {
        let mut tries = 0;
        loop {
            let lease = match &mut self.lease {
                Some(lease) => lease,
                None => {
                    self.ready = false;
                    self.lease.insert(self.shared.pool.take()?)
                }
            };
            let (shared, kind, variation) = (&self.shared, self.kind, self.variation);
            let (ready, deeds, start, asked) = (self.ready, &self.deeds, &mut self.start, &mut self.asked);
            let result = lease.with(|machine, fresh| {
                if fresh || !ready {
                    *start = begin(machine, shared, kind, variation)?;
                    *asked = replay(machine, deeds, None, kind, variation)?;
                }
                act(machine)
            });
            self.ready = result.is_ok();
            match result {
                Err(EnvError::Ended { .. } | EnvError::Protocol { .. }) if tries < RETRIES => tries += 1,
                result => return result,
            }
        }
    }

    /// Gives the simulator one input and remembers what came of it.
    fn input(&mut self, input: &str, choice: Option<String>) -> Result<String, EnvError> {
        let before = self.asked.take();
        let result = self.attempt(|machine| {
            let reply = machine.step(input)?;
            Ok((reply, machine.state()?))
        });
        let (reply, state) = match result {
            Ok(result) => result,
            Err(error) => {
                self.asked = before;
                return Err(error);
            }
        };
        self.asked = choices(&reply);
        self.deeds.push(Deed { input: input.to_owned(), choice, state });
        self.progress.see(state, self.shared.settings.moves);
        Ok(reply)
    }

    fn observation(&self, text: String, before: Progress, valid: Option<bool>) -> Observation {
        let score = self.shared.settings.score;
        let (now, then) = (self.progress.hundredths(score), before.hundredths(score));
        Observation {
            text,
            reward: f64::from(now - then) / 100.0,
            score: f64::from(now) / 100.0,
            done: self.progress.done,
            won: self.progress.won,
            valid,
        }
    }

    /// Progress after the deeds; at the beginning there is none.
    fn reckon(&mut self) {
        self.progress = Progress::default();
        for deed in &self.deeds {
            self.progress.see(deed.state, self.shared.settings.moves);
        }
    }
}

impl Env for Play {
    fn task(&self) -> &Task {
        &self.task
    }

    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.ready = false;
        self.deeds.clear();
        self.actions.clear();
        self.asked = None;
        self.progress = Progress::default();
        self.attempt(|_| Ok(()))?;
        let Start { look, goal, inventory } = &self.start;
        if self.task.goal.is_empty() {
            self.task.goal.clone_from(goal);
        } else if self.task.goal != *goal {
            return Err(EnvError::with_help(
                format!("the task `{}` is another one here: `{goal}`", self.task.id),
                "take the `world` and the simulator that the episodes were played in",
            ));
        }
        let mut text = format!("{goal}\n\n{look}");
        if let Some(inventory) = inventory {
            text.push_str("\n\n");
            text.push_str(inventory.trim_end());
        }
        Ok(self.observation(text, Progress::default(), None))
    }

    fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
        let before = self.progress;
        let (mut input, mut choice) = (action.to_owned(), None);
        if let Some(asked) = &self.asked {
            let said = action.trim();
            let by_number = asked.iter().find(|(number, _)| number == said);
            let one =
                by_number.or_else(|| (self.shared.settings.requests == Requests::Kept).then(|| meant(asked, said))?);
            match one {
                Some((number, text)) => {
                    // an answer with spaces around it would be taken for another one
                    input = if self.shared.settings.requests == Requests::Kept { number.clone() } else { input };
                    choice = Some(text.clone());
                }
                // whatever comes now is taken for the answer: put the question aside first
                None if self.shared.settings.requests == Requests::Kept && !said.is_empty() => {
                    self.input("", None)?;
                }
                None => {}
            }
        }
        let text = self.input(&input, choice)?;
        self.actions.push(action.to_owned());
        let valid = !UNKNOWN.iter().any(|unknown| text.starts_with(unknown));
        Ok(self.observation(text, before, Some(valid)))
    }

    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
        if !self.shared.settings.valid_actions {
            return Ok(None);
        }
        let mut actions = self.attempt(Machine::actions)?;
        actions.sort_unstable();
        actions.dedup();
        Ok(Some(actions))
    }

    fn expert(&mut self) -> Result<Option<String>, EnvError> {
        if self.progress.done {
            return Ok(None);
        }
        let gold = self.shared.gold(self.kind, self.variation)?;
        Ok(gold.strip_prefix(self.actions.as_slice()).and_then(|rest| rest.first().cloned()))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(Saved { task: self.task.id.clone(), actions: self.actions.clone(), deeds: self.deeds.clone() })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
        let saved = snapshot.get::<Saved>().filter(|saved| saved.task == self.task.id);
        let Some(saved) = saved else {
            return Err(EnvError::unusable(format!("the snapshot is not one of the task `{}`", self.task.id)));
        };
        let on = self.ready && saved.deeds.starts_with(&self.deeds);
        self.ready = on;
        if on {
            // it lies ahead: go on from here
            let (kind, variation, ahead) = (self.kind, self.variation, &saved.deeds[self.deeds.len()..]);
            let open = self.asked.clone();
            self.asked = self.attempt(|machine| replay(machine, ahead, open.clone(), kind, variation))?;
        }
        self.deeds.clone_from(&saved.deeds);
        self.actions.clone_from(&saved.actions);
        self.reckon();
        if !on {
            self.attempt(|_| Ok(()))?;
        }
        Ok(())
    }
}

/// Loads the task and looks around.
fn begin(machine: &mut Machine, shared: &Shared, kind: &Kind, variation: u32) -> Result<Start, EnvError> {
    machine.load(kind.name, variation, &shared.simplifications, false)?;
    // the first step sets scores right that are still the last game's
    let look = machine.step("look around")?;
    let goal = machine.description()?.trim().to_owned();
    let inventory = if shared.settings.inventory { Some(machine.inventory()?) } else { None };
    Ok(Start { look, goal, inventory })
}

/// Does the deeds again; returns the question that is open in the end.
fn replay(
    machine: &mut Machine,
    deeds: &[Deed],
    mut asked: Option<Choices>,
    kind: &Kind,
    variation: u32,
) -> Result<Option<Choices>, EnvError> {
    for (i, deed) in deeds.iter().enumerate() {
        // the same choice, not the same number; by its number only where texts changed with the load
        let number = deed.choice.as_ref().zip(asked.as_ref()).and_then(|(choice, asked)| {
            let same = |at: &&(String, String)| at.1 == *choice;
            let kept = asked.iter().find(|at| at.0 == deed.input).filter(same);
            kept.or_else(|| asked.iter().find(same)).map(|at| at.0.clone())
        });
        let reply = machine.step(number.as_ref().unwrap_or(&deed.input))?;
        let state = machine.state()?;
        if state != deed.state {
            return Err(EnvError::unusable(format!(
                "variation {variation} of `{}` does not lead where it led: after `{}`, input {} of a replay, {}, before {}",
                kind.name,
                deed.input.escape_debug(),
                i + 1,
                told(&state),
                told(&deed.state)
            )));
        }
        asked = choices(&reply);
    }
    Ok(asked)
}

fn told(state: &State) -> String {
    let end = if state.completed { ", completed" } else { "" };
    format!("score {} at move {}{end}", state.score, state.moves)
}

/// The numbered choices of a reply, if it asks for one.
fn choices(reply: &str) -> Option<Choices> {
    let lines = reply.starts_with(QUESTION).then(|| reply.lines().skip(1))?;
    let choice = |line: &str| {
        let (number, text) = line.split_once(':')?;
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| (number.to_owned(), text.trim().to_owned()))
    };
    Some(lines.filter_map(choice).collect())
}

/// The one choice that is said in words, in full or without the place in parentheses; none where several are.
fn meant<'a>(asked: &'a Choices, said: &str) -> Option<&'a (String, String)> {
    let full = |text: &str| text.eq_ignore_ascii_case(said);
    if let Some(one) = asked.iter().find(|(_, text)| full(text)) {
        return Some(one);
    }
    let mut short = asked.iter().filter(|(_, text)| text.split_once(" (").is_some_and(|(head, _)| full(head)));
    short.next().filter(|_| short.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: &str = "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):\n\
                         0:\tpick up orange (in inventory, in agent, in kitchen)\n\
                         1:\tpick up orange (in bowl, in counter, in kitchen)\n2:\tpick up red orange (in bowl)\n";

    #[test]
    fn choices_are_read_and_answered_by_number_or_in_words() {
        let asked = choices(ASKED).unwrap_or_default();
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[1], ("1".to_owned(), "pick up orange (in bowl, in counter, in kitchen)".to_owned()));
        let number = |said: &str| meant(&asked, said).map(|(number, _)| number.as_str());
        assert_eq!(number("Pick up orange (in bowl, in counter, in kitchen)"), Some("1"));
        assert_eq!(number("pick up red orange"), Some("2"));
        assert_eq!(number("pick up orange"), None);
        assert_eq!(number(""), None);
        assert_eq!(choices("The door is now open."), None);
    }

    #[test]
    fn scores_are_rounded_as_the_python_package_rounds_them() {
        let see = |score: f64, completed| {
            let mut progress = Progress { last: 50, best: 60, ..Progress::default() };
            progress.see(State { score, completed, moves: 7 }, 0);
            (progress.last, progress.best, progress.done, progress.won)
        };
        assert_eq!(see(0.7166666666666667, false), (72, 72, false, false));
        assert_eq!(see(0.125, false), (12, 60, false, false));
        assert_eq!(see(1.0, true), (100, 100, true, true));
        assert_eq!(see(0.5, true), (50, 60, true, false));
        assert_eq!(see(-1.0, false), (0, 60, true, false));
        let mut progress = Progress::default();
        progress.see(State { score: 0.0, completed: false, moves: 8 }, 7);
        assert!(progress.done);
    }
}
