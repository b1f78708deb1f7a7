//! What a person or a script asks of environments: which there are, what tasks they have, whether a captured transcript
//! comes out again.
//!
//! Invariants: plain data in and out; a transcript that cannot be read is an error that names its line, never a
//! difference.

use actloom_engine::op::{OpError, seed_for};
use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::artifact::Task;
use crate::env::household::{self, Household};
use crate::env::{Observation, Suite, WorldSettings, scienceworld, webshop};
use crate::tool::play::Wrong;

/// An environment that there is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct World {
    pub name: &'static str,
    /// Empty where they are the program's own.
    pub splits: Vec<&'static str>,
    pub needs: &'static str,
    pub about: &'static str,
}

/// Every environment.
pub fn list() -> Vec<World> {
    vec![
        World {
            name: "household",
            splits: household::SPLITS.to_vec(),
            needs: "nothing; or ALFWorld's games",
            about: "ALFWorld: text rooms of receptacles and objects, six kinds of task",
        },
        World {
            name: "webshop",
            splits: webshop::SPLITS.to_vec(),
            needs: "a catalogue (op `catalogue`)",
            about: "WebShop: find and buy the product that an instruction describes",
        },
        World {
            name: "scienceworld",
            splits: scienceworld::SPLITS.to_vec(),
            needs: "Java and `scienceworld.jar`",
            about: "ScienceWorld: thirty kinds of experiment in a simulated house",
        },
        World {
            name: "command",
            splits: Vec::new(),
            needs: "a program of yours",
            about: "any program that speaks JSON lines",
        },
    ]
}

/// Settings of an environment from `key=value` words, as a recipe's table `world` has them: `size=small`,
/// `tasks=["look_at_obj_in_light"]`, `a.b=1`.
///
/// # Errors
/// Names the word, the environment or the setting that cannot be.
pub fn settings(env: &str, words: &[String]) -> Result<WorldSettings, Wrong> {
    if !list().iter().any(|world| world.name == env) {
        let names: Vec<&str> = list().iter().map(|world| world.name).collect();
        return Err(Wrong::asked(
            format!("there is no environment `{env}`"),
            format!("there are `{}`", names.join("`, `")),
        ));
    }
    let mut table = Map::from_iter([("env".to_owned(), json!(env))]);
    for word in words {
        let Some((path, value)) = word.split_once('=') else {
            return Err(Wrong::asked(format!("`{word}` sets nothing"), "expected `key=value`"));
        };
        let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        let (folders, key) = match path.rsplit_once('.') {
            Some((folders, key)) => (folders.split('.').collect(), key),
            None => (Vec::new(), path),
        };
        let mut at = &mut table;
        for folder in folders {
            let inner = at.entry(folder).or_insert_with(|| json!({}));
            at = match inner.as_object_mut() {
                Some(inner) => inner,
                None => return Err(asked(format!("`{word}` sets a part of `{folder}`, which is no table"))),
            };
        }
        at.insert(key.to_owned(), value);
    }
    serde_json::from_value(Value::Object(table)).map_err(|e| asked(format!("the settings of `{env}` cannot be: {e}")))
}

fn asked(message: String) -> Wrong {
    Wrong::Asked { message, help: None }
}

/// Where an environment's data is: what was given, or the catalogue in a folder that `export` wrote.
///
/// # Errors
/// An environment that is nothing without, and there is none.
pub fn data(env: &str, given: Option<&Utf8Path>) -> Result<Option<Utf8PathBuf>, Wrong> {
    match given {
        _ if env != "webshop" => Ok(given.map(Utf8Path::to_owned)),
        Some(given) => {
            let (outer, inner) = (given.join(CATALOGUE), given.join("catalogue"));
            let exported = !outer.exists() && inner.join(CATALOGUE).is_file();
            Ok(Some(if exported { inner } else { given.to_owned() }))
        }
        None => Err(Wrong::asked(
            "the environment `webshop` has no catalogue",
            "give `--data DIR`; a recipe step `op = \"catalogue\"` and `actloom export` make one",
        )),
    }
}

/// What every catalogue's folder holds.
const CATALOGUE: &str = "catalogue.json";

/// How many tasks a split has.
///
/// # Errors
/// The world's; a split that there is not.
pub(super) fn count(suite: &dyn Suite, split: &str) -> Result<Option<usize>, Wrong> {
    let splits = suite.splits();
    // only these are known before the program runs
    if suite.name() == "command" && !splits.iter().any(|there| there == split) {
        return Err(Wrong::asked(
            format!("`{split}` is no split of the environment `command`"),
            format!("it has `{}`", splits.join("`, `")),
        ));
    }
    Ok(suite.count(split)?)
}

/// Some tasks of a split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskList {
    pub split: String,
    /// How many the split has; none where as many are made as are asked for.
    pub there: Option<usize>,
    pub tasks: Vec<Task>,
    /// What of the data is not among the tasks.
    pub passed_over: Vec<String>,
}

/// Lists tasks: `count` of them from the first on, all that are listed if it is 0. Without a split, the first one. Made tasks are
/// those that a step with this seed plays.
///
/// # Errors
/// Settings, a split or a number that cannot be; the world's.
pub fn tasks(
    settings: &WorldSettings,
    data: Option<&Utf8Path>,
    split: Option<&str>,
    count: usize,
    seed: u64,
) -> Result<TaskList, Wrong> {
    if let Some(problem) = settings.check(split).into_iter().next() {
        return Err(Wrong::Asked { message: problem.message, help: problem.help });
    }
    let suite = settings.open(self::data(settings.name(), data)?.as_deref())?;
    let split = match split {
        Some(split) => split.to_owned(),
        None => match suite.splits().into_iter().next() {
            Some(first) => first,
            None => return Err(asked(format!("the environment `{}` has no splits", suite.name()))),
        },
    };
    let there = self::count(&*suite, &split)?;
    let wanted = match (there, count) {
        (Some(there), 0) => there,
        (Some(there), count) => count.min(there),
        (None, 0) => {
            return Err(Wrong::asked(
                format!("the split `{split}` of `{}` makes as many tasks as are asked for", suite.name()),
                "say how many are wanted: `--count N`",
            ));
        }
        (None, count) => count,
    };
    let tasks = (0..wanted).map(|index| Ok(suite.open(&split, index, seed_for(seed, "tasks"))?.task().clone()));
    let tasks = tasks.collect::<Result<_, Wrong>>()?;
    Ok(TaskList { there, tasks, passed_over: suite.passed_over(&split)?, split })
}

/// A row of a captured transcript. What is not there is not compared.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Row {
    /// `null` is a reset.
    #[serde(deserialize_with = "present")]
    cmd: Option<String>,
    obs: String,
    score: Option<f64>,
    done: Option<bool>,
    won: Option<bool>,
    admissible: Option<Vec<String>>,
}

/// `null` is a value; nothing is not.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(value)
}

/// How a replay came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replay {
    pub equal: bool,
    /// Rows compared, the one that differs included.
    pub rows: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// The first thing that is not as it was captured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Of the transcript, from 1.
    pub line: usize,
    /// None for a reset.
    pub command: Option<String>,
    /// `obs`, `score`, `done`, `won` or `admissible`.
    pub field: &'static str,
    pub expected: Value,
    pub found: Value,
    /// Of lists: what the game does not offer and the transcript does.
    pub missing: Vec<String>,
    /// Of lists: what the game offers and the transcript does not.
    pub surplus: Vec<String>,
}

/// Replays a captured transcript on a household game: a `game.tw-pddl`, or a bare `initial_state.pddl`, whose task line
/// is then that of the transcript's first observation and whose commands are worded `move .. to`.
///
/// # Errors
/// A file that cannot be read, a game that is none, a transcript that is none (with its line).
pub fn check(game: &Utf8Path, transcript: &Utf8Path) -> Result<Replay, OpError> {
    let rows = rows(&household::text_of(transcript)?)
        .map_err(|e| OpError::failed(format!("the transcript `{transcript}`, {e}")))?;
    let text = household::text_of(game)?;
    let mut game = household::read_game(&text, "check")
        .map_err(|e| OpError::failed(format!("cannot read the game `{game}`: {e}")))?;
    if !game.worded {
        match rows.first().and_then(|(_, row)| household::task_line(&row.obs)) {
            Some(line) => game.task = game.task.with_line(line),
            None => {
                return Err(OpError::failed(format!(
                    "the transcript `{transcript}`, line 1: the observation has no line `{}...`, expected the game's \
                     first observation",
                    household::TASK
                )));
            }
        }
    }
    Ok(replay(game.task.play(), &rows))
}

/// Rows with their lines.
fn rows(text: &str) -> Result<Vec<(usize, Row)>, String> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() {
            continue;
        }
        let row: Row = serde_json::from_str(line).map_err(|e| format!("line {number}: {e}"))?;
        if rows.is_empty() && row.cmd.is_some() {
            return Err(format!("line {number}: the first row has a command, expected `\"cmd\": null`, a reset"));
        }
        rows.push((number, row));
    }
    if rows.is_empty() {
        return Err("line 1: found nothing, expected rows of JSON".to_owned());
    }
    Ok(rows)
}

fn replay(mut world: Household, rows: &[(usize, Row)]) -> Replay {
    for (compared, (line, row)) in rows.iter().enumerate() {
        let observed = match &row.cmd {
            None => world.reset(),
            Some(command) => world.step(command),
        };
        if let Some((field, expected, found)) = difference(row, &observed, || world.admissible()) {
            let (missing, surplus) = (beside(&expected, &found), beside(&found, &expected));
            let command = row.cmd.clone();
            let difference = Difference { line: *line, command, field, expected, found, missing, surplus };
            return Replay { equal: false, rows: compared + 1, difference: Some(difference) };
        }
    }
    Replay { equal: true, rows: rows.len(), difference: None }
}

/// The first field that differs, with what it should be and what it is.
fn difference(
    row: &Row,
    observed: &Observation,
    admissible: impl FnOnce() -> Vec<String>,
) -> Option<(&'static str, Value, Value)> {
    if row.obs != observed.text {
        return Some(("obs", json!(row.obs), json!(observed.text)));
    }
    if let Some(score) = row.score.filter(|score| *score != observed.score) {
        return Some(("score", json!(score), json!(observed.score)));
    }
    if let Some(done) = row.done.filter(|done| *done != observed.done) {
        return Some(("done", json!(done), json!(observed.done)));
    }
    if let Some(won) = row.won.filter(|won| *won != observed.won) {
        return Some(("won", json!(won), json!(observed.won)));
    }
    let expected = row.admissible.as_ref()?;
    let found = admissible();
    (*expected != found).then(|| ("admissible", json!(expected), json!(found)))
}

/// Texts of one list that another lacks.
fn beside(list: &Value, other: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let list = value.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let other: std::collections::HashSet<String> = texts(other).into_iter().collect();
    texts(list).into_iter().filter(|text| !other.contains(text)).collect()
}
