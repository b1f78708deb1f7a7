//! The messages of the protocol: JSON lines, version 1.
//!
//! Invariants: what a program says is read into these types or refused with the call, what was found and what was
//! expected; unknown fields are refused; no reward that is not finite or beyond [`MOST`], no score outside 0 to 1 and no
//! action without a text comes through.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::env::{EnvError, Observation};

/// The protocol's version.
pub const PROTOCOL: u32 = 1;

/// Largest reward, whatever its sign.
pub const MOST: f64 = 1e9;

/// What a program says about itself.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hello {
    pub protocol: u32,
    /// Its name, for errors and the provenance.
    pub name: String,
    #[serde(default)]
    pub version: String,
    /// The one for training first.
    pub splits: Vec<Split>,
    /// It answers `admissible`.
    #[serde(default)]
    pub admissible: bool,
    /// It answers `expert`.
    #[serde(default)]
    pub expert: bool,
    /// The same task and the same actions give the same replies.
    #[serde(default)]
    pub deterministic: bool,
    /// Processes that may run at once; as many as one likes where it is left out.
    #[serde(default)]
    pub parallel: Option<usize>,
}

/// A split of its tasks.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Split {
    pub name: String,
    /// How many there are; null where they are made of a seed.
    pub tasks: Option<usize>,
}

/// A task at its beginning.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reset {
    pub observation: String,
    /// The task in words.
    pub goal: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub score: Option<f64>,
    #[serde(default)]
    pub admissible: Option<Vec<String>>,
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Step {
    pub observation: String,
    pub done: bool,
    #[serde(default)]
    pub reward: f64,
    #[serde(default)]
    pub won: bool,
    /// 0 to 1; left out, 1 where the goal holds and 0 elsewhere.
    #[serde(default)]
    pub score: Option<f64>,
    #[serde(default)]
    pub valid: Option<bool>,
    #[serde(default)]
    pub admissible: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admissible {
    pub actions: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expert {
    pub action: Option<String>,
}

/// Who is asked what, for errors.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub env: &'a str,
    pub call: &'a str,
}

impl About<'_> {
    pub(super) fn wrong(self, found: impl Into<String>, expected: impl Into<String>) -> EnvError {
        EnvError::Protocol {
            env: self.env.to_owned(),
            call: self.call.to_owned(),
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// The beginning of a text, for an error.
pub(super) fn beginning(text: &str) -> String {
    const LONGEST: usize = 160;
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("`{}`..", &text[..at]),
        None => format!("`{text}`"),
    }
}

/// Reads a line as the reply to request `id`: its fields, or what the program refused and why.
///
/// # Errors
/// Whatever is no such line; a refusal.
pub(super) fn read(about: About<'_>, id: u64, line: &[u8]) -> Result<Map<String, Value>, EnvError> {
    let object = format!("one line of JSON, an object with `\"id\": {id}`");
    let Ok(line) = std::str::from_utf8(line) else {
        return Err(about.wrong(format!("{}, which is not UTF-8", beginning(&String::from_utf8_lossy(line))), object));
    };
    let line = line.trim();
    let value: Value = match serde_json::from_str(line) {
        Ok(value) => value,
        Err(why) => {
            let hint = if line.starts_with('{') { "" } else { "; whatever else a program says belongs on stderr" };
            return Err(about.wrong(format!("{} ({why})", beginning(line)), format!("{object}{hint}")));
        }
    };
    let Value::Object(mut fields) = value else { return Err(about.wrong(beginning(line), object)) };
    if fields.remove("id").and_then(|found| found.as_u64()) != Some(id) {
        return Err(about.wrong(beginning(line), object));
    }
    match fields.remove("error") {
        None => Ok(fields),
        Some(Value::String(why)) if fields.is_empty() => {
            Err(EnvError::unusable(format!("the environment `{}` refused `{}`: {}", about.env, about.call, why.trim())))
        }
        Some(_) => Err(about.wrong(beginning(line), "`error` to be a text and to stand alone")),
    }
}

/// Reads a reply's fields as what is expected of the call.
///
/// # Errors
/// Names the field that is missing, unknown or of another type.
pub(super) fn typed<T: DeserializeOwned>(
    about: About<'_>,
    fields: Map<String, Value>,
    expected: &str,
) -> Result<T, EnvError> {
    let value = Value::Object(fields);
    let found = beginning(&value.to_string());
    serde_json::from_value(value).map_err(|why| about.wrong(format!("{found} ({why})"), expected))
}

impl Hello {
    /// What of a hello cannot be.
    ///
    /// # Errors
    /// Another version; splits without a name, or twice.
    pub(super) fn checked(self, about: About<'_>) -> Result<Hello, EnvError> {
        if self.protocol != PROTOCOL {
            return Err(about.wrong(format!("`protocol` {}", self.protocol), PROTOCOL.to_string()));
        }
        if self.name.trim().is_empty() || self.splits.is_empty() {
            return Err(about.wrong("no `name` or no `splits`", "both"));
        }
        for (index, split) in self.splits.iter().enumerate() {
            let again = self.splits[..index].iter().any(|other| other.name == split.name);
            if again || split.name.is_empty() || split.name.contains(['/', '\n']) {
                return Err(about.wrong(
                    format!("a split of the name {}", beginning(&split.name)),
                    "names that differ, without `/` and line breaks",
                ));
            }
        }
        if self.parallel == Some(0) {
            return Err(about.wrong("`parallel` 0", "at least 1, or to be left out"));
        }
        Ok(self)
    }
}

fn score(about: About<'_>, score: Option<f64>, won: bool) -> Result<f64, EnvError> {
    let score = score.unwrap_or(f64::from(u8::from(won)));
    if !(0.0..=1.0).contains(&score) {
        return Err(about.wrong(format!("`score` {score}"), "0 to 1"));
    }
    if won && score == 0.0 {
        return Err(about.wrong("`won` true and `score` 0", "a score above 0, or none, where the goal holds"));
    }
    Ok(score)
}

impl Reset {
    /// # Errors
    /// A score that cannot be.
    pub(super) fn observation(&self, about: About<'_>) -> Result<Observation, EnvError> {
        Ok(Observation {
            text: self.observation.clone(),
            reward: 0.0,
            score: score(about, self.score, false)?,
            done: false,
            won: false,
            valid: None,
        })
    }
}

impl Step {
    /// # Errors
    /// Numbers that cannot be.
    pub(super) fn observation(&self, about: About<'_>) -> Result<Observation, EnvError> {
        if !(-MOST..=MOST).contains(&self.reward) {
            return Err(about.wrong(format!("`reward` {}", self.reward), format!("-{MOST:e} to {MOST:e}")));
        }
        Ok(Observation {
            text: self.observation.clone(),
            reward: self.reward,
            score: score(about, self.score, self.won)?,
            done: self.done,
            won: self.won,
            valid: self.valid,
        })
    }
}

/// Admissible actions as everybody takes them: sorted, each once.
///
/// # Errors
/// One that nobody could say.
pub(super) fn sorted(about: About<'_>, mut actions: Vec<String>) -> Result<Vec<String>, EnvError> {
    if actions.iter().any(|action| action.trim().is_empty()) {
        return Err(about.wrong("an admissible action without a text", "texts that are not empty"));
    }
    actions.sort();
    actions.dedup();
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ABOUT: About<'_> = About { env: "e", call: "c" };

    fn all(line: &[u8]) {
        let Ok(fields) = read(ABOUT, 7, line) else { return };
        let step = typed::<Step>(ABOUT, fields.clone(), "x").and_then(|step| step.observation(ABOUT));
        let reset = typed::<Reset>(ABOUT, fields.clone(), "x").and_then(|reset| reset.observation(ABOUT));
        for seen in [step, reset].into_iter().flatten() {
            assert!((0.0..=1.0).contains(&seen.score) && seen.reward.abs() <= MOST);
            assert!(!seen.won || seen.score > 0.0);
        }
        let _ = typed::<Hello>(ABOUT, fields.clone(), "x").and_then(|hello| hello.checked(ABOUT));
        let _ = typed::<Admissible>(ABOUT, fields.clone(), "x");
        let _ = typed::<Expert>(ABOUT, fields, "x");
    }

    const GOOD: [&str; 4] = [
        r#"{"id":7,"observation":"o","done":false,"reward":1e3,"won":true,"score":0.5,"valid":null,"admissible":["a"]}"#,
        r#"{"id":7,"observation":"o\u00e9","goal":"g","kind":"k","score":1}"#,
        r#"{"id":7,"protocol":1,"name":"n","splits":[{"name":"train","tasks":null}],"parallel":3}"#,
        r#"{"id":7,"error":"no"}"#,
    ];

    #[test]
    fn good_lines_are_read() {
        assert_eq!(typed::<Step>(ABOUT, read(ABOUT, 7, GOOD[0].as_bytes()).unwrap(), "x").unwrap().score, Some(0.5));
        assert_eq!(typed::<Reset>(ABOUT, read(ABOUT, 7, GOOD[1].as_bytes()).unwrap(), "x").unwrap().observation, "oé");
        typed::<Hello>(ABOUT, read(ABOUT, 7, GOOD[2].as_bytes()).unwrap(), "x").unwrap().checked(ABOUT).unwrap();
        assert!(read(ABOUT, 7, GOOD[3].as_bytes()).unwrap_err().to_string().ends_with("refused `c`: no"));
        assert!(read(ABOUT, 8, GOOD[0].as_bytes()).is_err(), "an answer to something else");
    }

    #[test]
    fn deep_nesting_and_numbers_that_are_none_are_refused() {
        let deep = format!("{{\"id\":7,\"x\":{}", "[".repeat(1 << 20));
        assert!(read(ABOUT, 7, deep.as_bytes()).is_err());
        for number in ["NaN", "1e999", "Infinity", "1.01", "-0.1", "\"1\"", "true"] {
            let line = format!("{{\"id\":7,\"observation\":\"\",\"done\":true,\"score\":{number}}}");
            let step = read(ABOUT, 7, line.as_bytes()).and_then(|f| typed::<Step>(ABOUT, f, "x")?.observation(ABOUT));
            assert!(step.is_err(), "{number}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            all(&bytes);
        }

        #[test]
        fn no_changed_line_makes_the_reader_panic(
            which in 0usize..4, cut in 0usize..120, at in 0usize..120, byte in any::<u8>()
        ) {
            let mut line = GOOD[which].as_bytes().to_vec();
            let at = at % line.len();
            line[at] = byte;
            all(&line);
            line.truncate(cut);
            all(&line);
        }
    }
}
