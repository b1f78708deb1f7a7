//! What ops that learn from files share: which form a file has, how long an example may be, how much is trained, in
//! which order.
//!
//! Invariants: the form of a file is read off the keys of its first line, never guessed; no example is lost silently: each
//! is learned whole, or counted, or refused with its place; the order is a function of the seed and the pass.

use std::io::{BufRead, BufReader};

use actloom_engine::op::{OpError, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::artifact::{Episode, Outcome, Samples, Turn};
use crate::rng::Rng;
use crate::train::batch::Example;

/// What the lines of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Episodes,
    Conversations,
    Reflections,
    Pairs,
}

impl Form {
    /// The key that only lines of this form have.
    const KEYS: [(&'static str, Form); 4] = [
        ("messages", Form::Conversations),
        ("turns", Form::Episodes),
        ("reflection", Form::Reflections),
        ("shown", Form::Pairs),
    ];

    /// The form of a file; `None` where it has no line.
    ///
    /// # Errors
    /// A folder; a first line that is no JSON object, or of no form that can be learned from.
    pub fn of(path: &Utf8Path) -> Result<Option<Form>, OpError> {
        if !fs_err::metadata(path)?.is_file() {
            return Err(OpError::failed(format!("`{path}` is a folder, expected a file of JSON lines")));
        }
        for line in BufReader::new(fs_err::File::open(path)?).lines() {
            let line = line.map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
            if line.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(&line)
                .map_err(|e| OpError::failed(format!("cannot read the first line of `{path}` as JSON: {e}")))?;
            if let Some((_, form)) = Form::KEYS.into_iter().find(|(key, _)| !value[*key].is_null()) {
                return Ok(Some(form));
            }
            let keys: Vec<String> =
                value.as_object().into_iter().flatten().map(|(key, _)| format!("`{key}`")).collect();
            let found = match keys.len() {
                0 => "is no JSON object with keys".to_owned(),
                _ => format!("has the keys {}", keys.join(", ")),
            };
            let message = format!(
                "the first line of `{path}` {found}, expected one of `messages` (a conversation), `turns` (an episode), \
                 `reflection` (a reflection) or `shown` (a pair)"
            );
            let help = if value["alternatives"].is_null() {
                r#"a conversation is a line like {"messages": [{"role": "user", "content": ".."}, ..]}"#
            } else {
                "these are samples: `pairs` makes pairs of them, and `worldmodel` learns from their outcomes"
            };
            return Err(OpError::with_help(message, help));
        }
        Ok(None)
    }
}

/// What becomes of an example that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLong {
    /// The step fails and names its line.
    #[default]
    Refuse,
    /// It is left out, and counted.
    Drop,
    /// Its end is cut off, and it is counted.
    Truncate,
}

/// How long an example may be, and what became of longer ones.
#[derive(Clone, Debug)]
pub struct Fit {
    longest: usize,
    on_long: OnLong,
    pub dropped: usize,
    pub cut: usize,
    /// Examples without anything to learn.
    pub empty: usize,
}

impl Fit {
    /// At most `max_length` tokens, or where that is 0 what the model takes.
    pub fn new(max_length: usize, positions: usize, on_long: OnLong) -> Self {
        let longest = if max_length == 0 { positions } else { max_length.min(positions) };
        Fit { longest, on_long, dropped: 0, cut: 0, empty: 0 }
    }

    /// Whether something of so many tokens is taken whole; what is not is counted as dropped.
    ///
    /// # Errors
    /// Where longer ones are refused, names the place.
    pub fn takes(&mut self, length: usize, place: &str) -> Result<bool, OpError> {
        if length <= self.longest {
            return Ok(true);
        }
        if self.on_long == OnLong::Refuse {
            return Err(OpError::with_help(
                format!("{place} has {length} tokens, expected at most {}", self.longest),
                "write another `on_long`, or raise `max_length` up to the model's positions",
            ));
        }
        self.dropped += 1;
        Ok(false)
    }

    /// The example as it is learned; `None` where it is left out.
    ///
    /// # Errors
    /// Where longer ones are refused, names the place.
    pub fn fit(&mut self, mut example: Example, place: &str) -> Result<Option<Example>, OpError> {
        if example.ids.len() > self.longest && self.on_long == OnLong::Truncate {
            example.truncate(self.longest);
            self.cut += 1;
        } else if !self.takes(example.ids.len(), place)? {
            return Ok(None);
        }
        let learns = example.targets() > 0;
        self.empty += usize::from(!learns);
        Ok(learns.then_some(example))
    }

    /// The counts, as metrics.
    pub fn facts(&self) -> [(&'static str, f64); 3] {
        let Fit { dropped, cut, empty, .. } = self;
        [("dropped_examples", *dropped as f64), ("truncated_examples", *cut as f64), ("empty_examples", *empty as f64)]
    }
}

/// Passes and updates are two ways to say the same.
pub fn check_amount(epochs: Option<u64>, updates: Option<u64>) -> Vec<Problem> {
    if epochs.is_some() && updates.is_some() {
        let message = "`epochs` and `updates` both say how much is trained, expected one of them";
        vec![Problem::new(&["updates"], message).help("leave one of them out")]
    } else {
        Vec::new()
    }
}

/// Which items an update takes: a fresh order in each pass, cut into batches.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    items: usize,
    batch: usize,
    seed: u64,
}

impl Order {
    pub fn new(items: usize, batch: usize, seed: u64) -> Self {
        Order { items, batch, seed }
    }

    /// Updates in all: `updates`, or so many as `epochs` passes take.
    pub fn updates(&self, epochs: u64, updates: Option<u64>) -> u64 {
        updates.unwrap_or(epochs * self.per_pass())
    }

    fn per_pass(&self) -> u64 {
        self.items.div_ceil(self.batch) as u64
    }

    /// The items of update `step`, counted from 0.
    pub fn at(&self, step: u64) -> Vec<usize> {
        let (pass, batch) = (step / self.per_pass(), (step % self.per_pass()) as usize);
        let mut order: Vec<usize> = (0..self.items).collect();
        Rng::at(self.seed, &[pass]).shuffle(&mut order);
        order[batch * self.batch..self.items.min((batch + 1) * self.batch)].to_vec()
    }
}

/// An error with the line it is about.
pub fn at_line(path: &Utf8Path, line: usize, error: OpError) -> OpError {
    match error {
        OpError::Failed { message, help } => {
            OpError::Failed { message: format!("line {line} of `{path}`: {message}"), help }
        }
        other => other,
    }
}

/// The state that a line of samples is about.
///
/// # Errors
/// Samples of other episodes.
pub fn sampled_at<'a>(episodes: &'a [Episode], line: &Samples) -> Result<(&'a Episode, &'a Turn), OpError> {
    let (e, t) = (line.episode, line.turn);
    let help = "give `states` the episodes that `alternatives` was given";
    let Some((episode, turn)) = episodes.get(e).and_then(|episode| Some((episode, episode.turns.get(t)?))) else {
        let message = format!("the samples speak of turn {t} of episode {e}, which is not there");
        return Err(OpError::with_help(message, help));
    };
    if turn.action != line.expert {
        let message = format!("episode {e}, turn {t}: the samples were made with other episodes");
        return Err(OpError::with_help(message, help));
    }
    Ok((episode, turn))
}

/// The first `most` alternatives of a state with what came of them; 0 takes all.
///
/// # Errors
/// An alternative that was not executed.
pub fn outcomes(line: &Samples, most: usize) -> Result<Vec<(&str, &Outcome)>, OpError> {
    let most = if most == 0 { usize::MAX } else { most };
    let some = line.alternatives.iter().take(most);
    some.map(|alternative| match &alternative.outcome {
        Some(outcome) => Ok((alternative.action.as_str(), outcome)),
        None => Err(OpError::with_help(
            format!(
                "the alternative `{}` at turn {} of episode {} has no outcome",
                alternative.action, line.turn, line.episode
            ),
            "write `execute = true` in the step that sampled the alternatives",
        )),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pass_takes_every_item_once_and_updates_cut_passes_anywhere() {
        let order = Order::new(7, 3, 5);
        assert_eq!((order.updates(4, None), order.updates(4, Some(5))), (12, 5));
        let pass = |from: u64| (from..from + 3).flat_map(|step| order.at(step)).collect::<Vec<usize>>();
        let (first, second) = (pass(0), pass(3));
        for pass in [&first, &second] {
            let mut sorted = pass.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<usize>>());
        }
        assert_ne!(first, second, "each pass has an order of its own");
        assert_eq!(order.at(2).len(), 1);
    }

    #[test]
    fn a_file_is_told_by_the_keys_of_its_first_line_and_refused_by_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("data.jsonl");
        let form = |text: &str| {
            fs_err::write(&path, text).unwrap();
            Form::of(&path).map_err(|e| match e {
                OpError::Failed { message, help } => format!("{message}; {}", help.unwrap_or_default()),
                other => other.to_string(),
            })
        };
        assert_eq!(form("\n\n{\"messages\": []}\nrest"), Ok(Some(Form::Conversations)));
        assert_eq!(form("{\"v\": 1, \"turns\": []}"), Ok(Some(Form::Episodes)));
        assert_eq!(form("{\"v\": 1, \"reflection\": \"\"}"), Ok(Some(Form::Reflections)));
        assert_eq!(form("{\"v\": 1, \"shown\": []}"), Ok(Some(Form::Pairs)));
        assert_eq!(form(" \n"), Ok(None));
        for (text, says) in [
            ("{\"v\": 1, \"alternatives\": []}", "`alternatives`"),
            ("{\"v\": 1, \"alternatives\": []}", "these are samples: `pairs` makes pairs of them"),
            ("{\"prompt\": \"a\"}", "has the keys `prompt`"),
            ("[1]", "is no JSON object with keys"),
            ("{", "as JSON"),
        ] {
            let said = form(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        let said = Form::of(Utf8Path::from_path(folder.path()).unwrap()).unwrap_err().to_string();
        assert!(said.contains("is a folder, expected a file"), "{said}");
    }
}
