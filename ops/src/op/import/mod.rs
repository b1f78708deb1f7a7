//! `import`: demonstrations of others, as episodes.
//!
//! 1. An item of a file (a line, or an entry of one JSON array) is an episode of ours, or a conversation in one of two
//!    shapes.
//! 2. A conversation is taken apart: the texts before a reply are what was observed, the reply says an action.
//!
//! Invariants: an item is imported whole or not at all; whatever is left out is counted; what cannot be read is named by
//! file, line and message. Replies are read by the same parser as in play.

mod conversation;
mod fields;

use std::io::{BufRead, BufReader, Read};

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::conversation::{OPENAI, SHAREGPT, conversation, said};
use crate::artifact::{self, Episode, SCHEMA_VERSION, Versioned};
use crate::text::Prompt;

/// What happens where a reply says no action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnMalformed {
    /// The step fails and names file, line and message.
    #[default]
    Refuse,
    /// The whole episode is left out, and counted.
    Drop,
    /// The turn stays as one without an action, as in play.
    Keep,
}

/// Parameters of `import`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The environment that the demonstrations are of: `household`, `webshop`, `scienceworld`, or a name of your own.
    pub env: String,
    /// The split that their tasks are of.
    #[serde(default = "train")]
    pub split: String,
    /// How replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// How many replies at the beginning of each conversation are passed over, with all that stands before them: answers
    /// to instructions, worked examples. Replies marked `"weight": 0` or `"loss": false` are passed over without it.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub skip: usize,
    /// Texts that are taken off the beginning of what was observed, such as `Observation:`.
    #[serde(default)]
    pub strip: Vec<String>,
    /// What is earned for a perfect episode, by which every `reward` is divided: 100 where rewards go from 0 to 100.
    #[serde(default = "one")]
    #[schemars(range(min = 0.001, max = 1_000_000))]
    pub scale: f64,
    /// What happens where a reply says no action.
    #[serde(default)]
    pub on_malformed: OnMalformed,
}

fn train() -> String {
    "train".to_owned()
}

fn one() -> f64 {
    1.0
}

/// The op.
pub struct Import;

impl Op for Import {
    type Params = Params;
    const NAME: &'static str = "import";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "reads demonstrations from episodes and conversations in JSON lines";

    fn ports(&self, _p: &Params) -> Ports {
        let about = "JSON lines, or one JSON array: episodes, `messages`, or ShareGPT's `conversations`";
        Ports::new().port("data", &[Kind::EPISODES, Kind::CONVERSATIONS], Arity::Many, about).output(
            "episodes",
            Kind::EPISODES,
            "one episode a line",
        )
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (name, text) in [("env", &p.env), ("split", &p.split)] {
            if text.trim().is_empty() {
                problems.push(Problem::new(&[name], format!("`{name}` is empty, expected a name")));
            }
        }
        for (at, text) in p.strip.iter().enumerate().filter(|(_, text)| text.is_empty()) {
            problems.push(Problem::new(&["strip", &at.to_string()], format!("`{text}` takes nothing off")));
        }
        if !(0.001..=1e6).contains(&p.scale) {
            problems.push(Problem::new(&["scale"], format!("`scale` is {}, expected 0.001 to 1000000", p.scale)));
        }
        problems
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut episodes = Vec::new();
        let mut tally = Tally::default();
        for input in ctx.inputs("data") {
            each_item(&input.path, |item, place| {
                let read = item.and_then(|item| read(item, p, episodes.len() + tally.dropped, &mut tally));
                episodes.extend(read.map_err(|why| refused(&why, place, &input.path))?);
                Ok(())
            })?;
        }
        if episodes.is_empty() && tally.dropped == 0 {
            let paths: Vec<_> = ctx.inputs("data").iter().map(|input| format!("`{}`", input.path)).collect();
            let hold = if paths.len() == 1 { "holds" } else { "hold" };
            let paths = paths.join(", ");
            return Err(OpError::failed(format!("{paths} {hold} no item, expected JSON lines or one JSON array")));
        }
        if episodes.is_empty() {
            return Err(OpError::with_help(
                format!("nothing was imported; {} episodes were dropped", tally.dropped),
                "`on_malformed = \"refuse\"` says what is wrong with the first of them",
            ));
        }
        let n = episodes.len() as f64;
        ctx.metric(0, "episodes", n);
        ctx.metric(0, "dropped_episodes", tally.dropped as f64);
        ctx.metric(0, "malformed", tally.malformed as f64);
        ctx.metric(0, "skipped_replies", tally.skipped as f64);
        ctx.metric(0, "system_texts", tally.system as f64);
        ctx.metric(0, "success", episodes.iter().filter(|e| e.success).count() as f64 / n);
        ctx.metric(0, "score", episodes.iter().map(|e| e.score).sum::<f64>() / n);
        ctx.metric(0, "steps", episodes.iter().map(|e| e.turns.len()).sum::<usize>() as f64 / n);
        artifact::write(ctx.output("episodes"), &episodes)
    }
}

/// What was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    dropped: usize,
    malformed: usize,
    skipped: usize,
    system: usize,
}

fn refused(why: &str, place: Place, path: &Utf8Path) -> OpError {
    let what = match place {
        Place::Line(n) => format!("line {n}"),
        Place::Entry(n) => format!("entry {n}"),
    };
    OpError::failed(format!("cannot import {what} of `{path}`: {why}"))
}

/// Where an item stands, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Line(usize),
    Entry(usize),
}

/// Visits every item of a file: lines, or the entries of one array. Blank lines are passed over.
fn each_item(
    path: &Utf8Path,
    mut visit: impl FnMut(Result<Value, String>, Place) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let mut file = BufReader::new(fs_err::File::open(path)?);
    let head = file.fill_buf()?;
    let wide = head.starts_with(b"\xFF\xFE") || head.starts_with(b"\xFE\xFF");
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    if wide {
        return Err(refused("it is written in UTF-16, expected UTF-8", Place::Line(1), path));
    }
    let array = head.starts_with(b"[");
    let mut bytes = Vec::new();
    if array {
        file.read_to_end(&mut bytes)?;
        let text = text(&bytes).map_err(|(before, why)| refused(&why, Place::Line(before + 1), path))?;
        let items: Vec<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| OpError::failed(format!("cannot import `{path}`: {e}")))?;
        return items.into_iter().enumerate().try_for_each(|(at, item)| visit(Ok(item), Place::Entry(at + 1)));
    }
    for at in 1.. {
        bytes.clear();
        if file.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let place = Place::Line(at);
        let line = text(&bytes).map_err(|(_, why)| refused(&why, place, path))?;
        let line = line.trim_start_matches('\u{feff}');
        if !line.trim().is_empty() {
            visit(serde_json::from_str(line).map_err(|e| e.to_string()), place)?;
        }
    }
    Ok(())
}

/// Bytes as text, or how many lines stand before what is none, and what it is.
fn text(bytes: &[u8]) -> Result<&str, (usize, String)> {
    let lines = |until: usize| bytes[..until].iter().filter(|byte| **byte == b'\n').count();
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err((lines(at), "it holds zero bytes, as UTF-16 does, expected UTF-8".to_owned()));
    }
    std::str::from_utf8(bytes).map_err(|e| {
        let (at, before) = (e.valid_up_to(), lines(e.valid_up_to()));
        let column = at - bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1) + 1;
        (
            before,
            format!("its byte {column} is `0x{:02x}`, which is no UTF-8: it may be Latin-1, expected UTF-8", bytes[at]),
        )
    })
}

/// One item; `None` where it is dropped.
fn read(item: Value, p: &Params, number: usize, tally: &mut Tally) -> Result<Option<Episode>, String> {
    let Value::Object(item) = item else {
        return Err("expected an object".to_owned());
    };
    match (item.contains_key("turns"), item.get("messages"), item.get("conversations")) {
        (true, None, None) => ours(item, p).map(Some),
        (false, Some(messages), None) => conversation(&item, said(messages, OPENAI)?, p, number, tally),
        (false, None, Some(messages)) => conversation(&item, said(messages, SHAREGPT)?, p, number, tally),
        (false, None, None) => Err("expected one of `turns`, `messages` and `conversations`".to_owned()),
        _ => Err("it has several of `turns`, `messages` and `conversations`, expected one".to_owned()),
    }
}

/// An episode of ours.
fn ours(item: Map<String, Value>, p: &Params) -> Result<Episode, String> {
    let episode: Episode = serde_json::from_value(Value::Object(item)).map_err(|e| e.to_string())?;
    if episode.v != SCHEMA_VERSION {
        return Err(format!("schema version is {}, expected {SCHEMA_VERSION}", episode.v));
    }
    if episode.task.env != p.env {
        return Err(format!("its task is of `{}`, expected `{}`", episode.task.env, p.env));
    }
    if episode.task.id.is_empty() {
        return Err("its task has no `id`".to_owned());
    }
    episode.checked()?;
    Ok(episode)
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let line: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(80).is_some() { format!("{line}..") } else { line }
}

#[cfg(test)]
mod tests;
