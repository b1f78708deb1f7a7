//! The JSON-lines artifacts that ops exchange: episodes, samples, pairs. One schema version for all of them.
//!
//! Invariants: files hold text, never token ids of a model, so that another model may read them; unknown versions are
//! refused by number; a reader names file and line of what it cannot read. Lines are written in a fixed field order,
//! so equal values give equal bytes.

use std::io::{BufRead, BufReader, BufWriter, Write};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of every schema in this file; the field `v` of each line.
pub const SCHEMA_VERSION: u32 = 1;

/// A task of an environment, as episodes carry it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Environment's name: `household`, `webshop`, `scienceworld`, `command`.
    pub env: String,
    /// Unique within the environment and its settings: `id/17`.
    pub id: String,
    /// The environment's: `train`, `id` (seen rooms), `ood` (unseen rooms).
    pub split: String,
    /// The environment's task type: `pick_heat_then_place_in_recep`.
    pub kind: String,
    /// The goal in words: `put a hot mug in cabinet.`
    pub goal: String,
    /// What the task was made with, where it was made and not listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Who chose the actions of an episode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Actor {
    Expert,
    Policy,
    Random,
}

/// How a policy's actions were decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decoding {
    /// Anything may be said.
    Free,
    /// Held to the admissible actions of the state.
    Admissible,
}

/// One action and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// The action as executed.
    pub action: String,
    /// Whether it was possible in the state it was taken in; `null` where the environment does not say.
    pub admissible: Option<bool>,
    /// What the environment answered.
    pub observation: String,
    /// Admissible actions of the state in which `action` was taken, sorted; empty where nobody asked for them.
    pub actions: Vec<String>,
    /// All that was said, where that is more than the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// What the action earned, where it did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reward: f64,
}

fn is_zero(reward: &f64) -> bool {
    *reward == 0.0
}

/// Why an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// The environment said so.
    Done,
    /// The step limit.
    Limit,
    /// Its text filled the model's context before either.
    Context,
}

/// One line of an episodes file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    pub v: u32,
    pub task: Task,
    pub actor: Actor,
    /// `None` where no policy acted.
    pub decoding: Option<Decoding>,
    /// The observation before the first action.
    pub start: String,
    pub turns: Vec<Turn>,
    pub success: bool,
    /// 0 to 1.
    pub score: f64,
    pub end: End,
}

/// An action sampled at a state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alternative {
    pub action: String,
    pub admissible: bool,
    /// Log-probability of the whole action under the sampling distribution, in nats; left out where the policy does not
    /// say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logp: Option<f64>,
    /// What came of it, where it was executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
}

/// What an environment answers to an action that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    pub observation: String,
    /// What the action earned.
    pub reward: f64,
    /// It ended the episode.
    pub done: bool,
    /// The goal held then.
    pub won: bool,
}

/// One line of a samples file: what a policy would do at one state of an expert episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    pub v: u32,
    /// Line of the episode in the episodes file, from 0.
    pub episode: usize,
    /// The state before `turns[turn]`.
    pub turn: usize,
    pub expert: String,
    /// What was kept, in sampling order.
    pub alternatives: Vec<Alternative>,
    /// Samples that were exactly the expert's action, and dropped.
    pub dropped: usize,
}

/// What was seen and done before a state: the state in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Past {
    /// The first observation.
    pub start: String,
    /// (action, observation) so far.
    pub turns: Vec<(String, String)>,
    /// All that was said at each of the turns, where that is more than the action; empty where nobody asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replies: Vec<Option<String>>,
    /// Admissible actions of the state before each of the turns; empty where nobody asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Vec<String>>,
}

impl Past {
    /// What was seen and done, and nothing else.
    pub fn of_texts(start: String, turns: Vec<(String, String)>) -> Past {
        Past { start, turns, replies: Vec::new(), actions: Vec::new() }
    }
}

/// One line of a pairs file: which of two actions is better at a state?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub v: u32,
    pub task: Task,
    /// Line of the episode in the episodes file, from 0.
    pub episode: usize,
    pub turn: usize,
    pub past: Past,
    /// The two actions in the order shown.
    pub shown: [String; 2],
    /// Which of `shown` is the expert's: 0 or 1.
    pub expert: usize,
    /// Admissible actions of the state, sorted.
    pub actions: Vec<String>,
    /// Kept away from training.
    pub held_out: bool,
}

impl Pair {
    /// The same pair in the other order.
    pub fn swapped(&self) -> Pair {
        let mut other = self.clone();
        other.shown.swap(0, 1);
        other.expert = 1 - other.expert;
        other
    }
}

/// One line of a reflections file: why the expert's action is taken at a state, in the words of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reflection {
    pub v: u32,
    pub task: Task,
    /// Line of the episode in the episodes file, from 0.
    pub episode: usize,
    pub turn: usize,
    pub past: Past,
    /// Admissible actions of the state, sorted.
    pub actions: Vec<String>,
    /// The inner monologue, without the action.
    pub reflection: String,
    /// The expert's action, which the monologue led to.
    pub action: String,
}

/// Anything with the field `v`.
pub trait Versioned {
    fn version(&self) -> u32;

    /// What a line must be beyond its schema.
    ///
    /// # Errors
    /// Says what is out of range, and what was expected.
    fn checked(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Versioned for Episode {
    fn version(&self) -> u32 {
        self.v
    }

    fn checked(&self) -> Result<(), String> {
        let fits = (0.0..=1.0).contains(&self.score);
        if fits { Ok(()) } else { Err(format!("`score` is {}, expected 0 to 1", self.score)) }
    }
}

macro_rules! versioned {
    ($($t:ty),*) => { $(impl Versioned for $t { fn version(&self) -> u32 { self.v } })* };
}
versioned!(Reflection);

impl Versioned for Samples {
    fn version(&self) -> u32 {
        self.v
    }

    fn checked(&self) -> Result<(), String> {
        match self.alternatives.iter().position(|a| a.action.trim().is_empty()) {
            Some(i) => Err(format!("`action` of alternative {i} is empty, expected an action")),
            None => Ok(()),
        }
    }
}

impl Versioned for Pair {
    fn version(&self) -> u32 {
        self.v
    }

    fn checked(&self) -> Result<(), String> {
        if self.expert > 1 {
            return Err(format!("`expert` is {}, expected 0 or 1: which of `shown` is the expert's", self.expert));
        }
        if self.shown.iter().any(|action| action.trim().is_empty()) {
            return Err("an action of `shown` is empty, expected two actions".to_owned());
        }
        if self.shown[0].trim() == self.shown[1].trim() {
            return Err(format!("both of `shown` are `{}`, expected two different actions", self.shown[0]));
        }
        Ok(())
    }
}

/// Reads a JSON-lines file.
///
/// # Errors
/// Names the file and line of what cannot be read or is out of range, and versions that this program does not know.
pub fn read<T: DeserializeOwned + Versioned>(path: &Utf8Path) -> Result<Vec<T>, OpError> {
    let file = fs_err::File::open(path)?;
    let mut items = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let item: T = serde_json::from_str(&line?)
            .map_err(|e| OpError::failed(format!("cannot read line {} of `{path}`: {e}", index + 1)))?;
        if item.version() != SCHEMA_VERSION {
            return Err(OpError::failed(format!(
                "line {} of `{path}` has schema version {}, expected {SCHEMA_VERSION}",
                index + 1,
                item.version()
            )));
        }
        item.checked().map_err(|why| OpError::failed(format!("cannot read line {} of `{path}`: {why}", index + 1)))?;
        items.push(item);
    }
    Ok(items)
}

/// Writes a JSON-lines file.
///
/// # Errors
/// The file system's.
pub fn write<T: Serialize>(path: &Utf8Path, items: &[T]) -> Result<(), OpError> {
    let mut out = BufWriter::new(fs_err::File::create(path)?);
    for item in items {
        serde_json::to_writer(&mut out, item).map_err(std::io::Error::from)?;
        out.write_all(b"\n")?;
    }
    out.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::scores::tests::episode;

    #[test]
    fn a_score_outside_its_range_is_refused_with_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("e.jsonl");
        let good = serde_json::to_string(&episode("id/0", "look", true, &[("look", true, "a mug")])).unwrap();
        let with = |score: &str| {
            let bad = good.replace("\"score\":1.0", &format!("\"score\":{score}"));
            fs_err::write(&path, format!("{good}\n{bad}\n")).unwrap();
            read::<Episode>(&path).map(|read| read.len()).map_err(|e| e.to_string())
        };
        assert_eq!(with("0.5"), Ok(2));
        for score in ["7.0", "-0.1", "1.0001"] {
            let said = with(score).unwrap_err();
            assert!(said.starts_with(&format!("cannot read line 2 of `{path}`: `score` is ")), "{said}");
            assert!(said.ends_with(", expected 0 to 1"), "{said}");
        }
        // what is no number in JSON, or none that a float holds
        for score in ["NaN", "null", "1e999", "-Infinity"] {
            let said = with(score).unwrap_err();
            assert!(said.starts_with(&format!("cannot read line 2 of `{path}`: ")), "{said}");
        }
        let mut odd = episode("id/0", "look", true, &[]);
        odd.score = f64::NAN;
        assert_eq!(odd.checked().unwrap_err(), "`score` is NaN, expected 0 to 1");
    }
    #[test]
    fn a_pair_that_no_answer_could_be_right_to_is_refused_with_what_was_expected() {
        let episode = episode("id/0", "look", true, &[]);
        let shown = ["look", "wait"].map(str::to_owned);
        let past = Past::of_texts(String::new(), Vec::new());
        let (task, actions) = (episode.task, Vec::new());
        let pair = Pair { v: 1, task, episode: 0, turn: 0, past, shown, expert: 1, actions, held_out: false };
        assert_eq!(pair.checked(), Ok(()));
        let other = Pair { expert: 2, ..pair.clone() };
        assert!(other.checked().unwrap_err().starts_with("`expert` is 2, expected 0 or 1"));
        for (first, second, want) in [("", "wait", "is empty"), ("wait", "wait", "two different actions")] {
            let shown = [first, second].map(str::to_owned);
            let said = Pair { shown, ..pair.clone() }.checked().unwrap_err();
            assert!(said.contains(want), "{said}");
        }
        let mut samples =
            Samples { v: 1, episode: 0, turn: 0, expert: String::new(), alternatives: Vec::new(), dropped: 0 };
        let one = Alternative { action: " ".to_owned(), admissible: false, logp: None, outcome: None };
        samples.alternatives.push(one);
        assert!(samples.checked().unwrap_err().contains("alternative 0 is empty"));
    }
}
