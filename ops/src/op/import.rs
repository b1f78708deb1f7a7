//! `import`: demonstrations of others, as episodes.
//!
//! 1. An item of a file (a line, or an entry of one JSON array) is an episode of ours, or a conversation in one of two
//!    shapes.
//! 2. A conversation is taken apart: the texts before a reply are what was observed, the reply says an action.
//!
//! Invariants: an item is imported whole or not at all; whatever is left out is counted; what cannot be read is named by
//! file, line and message. Replies are read by the same parser as in play.

use std::io::{BufRead, BufReader};

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::artifact::{self, Actor, End, Episode, SCHEMA_VERSION, Task, Turn};
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
    /// What happens where a reply says no action.
    #[serde(default)]
    pub on_malformed: OnMalformed,
}

fn train() -> String {
    "train".to_owned()
}

/// The op.
pub struct Import;

impl Op for Import {
    type Params = Params;
    const NAME: &'static str = "import";
    const VERSION: u32 = 1;
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
    let begins = file.fill_buf()?;
    let begins = begins.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(begins).trim_ascii_start();
    if begins.starts_with(b"[") {
        let text = std::io::read_to_string(file)?;
        let items: Vec<Value> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|e| OpError::failed(format!("cannot import `{path}`: {e}")))?;
        return items.into_iter().enumerate().try_for_each(|(at, item)| visit(Ok(item), Place::Entry(at + 1)));
    }
    for (at, line) in file.lines().enumerate() {
        let line = line?;
        let line = line.trim_start_matches('\u{feff}');
        if !line.trim().is_empty() {
            visit(serde_json::from_str(line).map_err(|e| e.to_string()), Place::Line(at + 1))?;
        }
    }
    Ok(())
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
    if !(0.0..=1.0).contains(&episode.score) {
        return Err(format!("`score` is {}, expected 0 to 1", episode.score));
    }
    Ok(episode)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    System,
    User,
    Agent,
}

/// A message of a conversation.
struct Said<'a> {
    who: Who,
    text: &'a str,
    /// It is marked as one that nothing is to be learned from.
    marked: bool,
}

/// How a shape names things: who speaks, and what is said.
struct Names {
    who: &'static str,
    text: &'static str,
    agent: &'static [&'static str],
    user: &'static [&'static str],
}

const OPENAI: &Names = &Names { who: "role", text: "content", agent: &["assistant"], user: &["user"] };
const SHAREGPT: &Names = &Names { who: "from", text: "value", agent: &["gpt", "assistant"], user: &["human", "user"] };

fn said<'a>(messages: &'a Value, names: &Names) -> Result<Vec<Said<'a>>, String> {
    let Some(messages) = messages.as_array() else {
        return Err(format!("expected a list of messages, each with `{}` and `{}`", names.who, names.text));
    };
    let one =
        |(at, message): (usize, &'a Value)| one(message, names).map_err(|why| format!("message {}: {why}", at + 1));
    messages.iter().enumerate().map(one).collect()
}

fn one<'a>(message: &'a Value, names: &Names) -> Result<Said<'a>, String> {
    let Names { who, text, agent, user } = names;
    let fields = message.as_object().ok_or(format!("expected an object with `{who}` and `{text}`"))?;
    let speaker = fields.get(*who).and_then(Value::as_str).unwrap_or_default();
    let speaker = match speaker {
        "system" => Who::System,
        name if agent.contains(&name) => Who::Agent,
        name if user.contains(&name) => Who::User,
        name => {
            return Err(format!("`{who}` is `{name}`, expected `system`, `{}` or `{}`", user[0], agent[0]));
        }
    };
    let Some(text) = fields.get(*text).and_then(Value::as_str) else {
        return Err(format!("`{text}` is no text"));
    };
    // what says more than a text is not left out in silence
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    if let Some(call) = ["tool_calls", "function_call"].into_iter().find(|k| fields.get(*k).is_some_and(|v| !empty(v)))
    {
        return Err(format!("`{call}` is not supported, expected an action as text"));
    }
    let marked = fields.get("weight").is_some_and(|weight| weight.as_f64() == Some(0.0))
        || fields.get("loss").is_some_and(|loss| *loss == Value::Bool(false));
    Ok(Said { who: speaker, text, marked: marked && speaker == Who::Agent })
}

/// A conversation as an episode; `None` where it is dropped.
fn conversation(
    item: &Map<String, Value>,
    messages: Vec<Said<'_>>,
    p: &Params,
    number: usize,
    tally: &mut Tally,
) -> Result<Option<Episode>, String> {
    let outcome = Outcome::of(item)?;
    let task = task(item, p, number)?;
    // 1. what is passed over
    let replies = || messages.iter().enumerate().filter(|(_, m)| m.who == Who::Agent);
    let skip = p.skip.max(replies().take_while(|(_, m)| m.marked).count());
    let begin = match skip {
        0 => 0,
        _ => replies().nth(skip - 1).map_or(messages.len(), |(at, _)| at + 1),
    };
    if replies().nth(skip).is_none() {
        let all = replies().count();
        return Err(format!("it has no reply to learn from: {all} replies, of which {skip} are passed over"));
    }
    let mut found = Tally { skipped: skip, ..Tally::default() };
    // 2. observations and replies in turn
    let mut start = None;
    let mut turns: Vec<Turn> = Vec::new();
    let mut heard: Option<String> = None;
    for (at, Said { who, text, marked }) in messages.iter().enumerate() {
        let wrong = |why: &str| format!("message {}: {why}", at + 1);
        match who {
            Who::System if turns.is_empty() && start.is_none() => found.system += 1,
            Who::System => return Err(wrong("a system text after a reply, expected it at the beginning")),
            _ if at < begin => {}
            Who::User => {
                let text = observed(text, &p.strip);
                heard = Some(heard.map_or_else(|| text.to_owned(), |before| format!("{before}\n{text}")));
            }
            Who::Agent => {
                let observation = heard.take().ok_or_else(|| wrong("a reply to nothing, expected an observation"))?;
                match turns.last_mut() {
                    None => start = Some(observation),
                    Some(last) => last.observation = observation,
                }
                if *marked {
                    return Err(wrong("a reply that is not to be learned stands after one that is"));
                }
                let action = match p.prompt.parse(text) {
                    Ok(reply) => reply.action.to_owned(),
                    Err(why) if p.on_malformed == OnMalformed::Refuse => {
                        let why = serde_json::to_value(why).map_err(|e| e.to_string())?;
                        let why = why.as_str().unwrap_or_default();
                        return Err(wrong(&format!("the reply says no action ({why}): `{}`", shortened(text))));
                    }
                    Err(_) => {
                        found.malformed += 1;
                        String::new()
                    }
                };
                let reply = (text.trim() != action).then(|| (*text).to_owned());
                turns.push(Turn {
                    action,
                    admissible: None,
                    observation: String::new(),
                    actions: Vec::new(),
                    reply,
                    reward: 0.0,
                });
            }
        }
    }
    if let (Some(last), Some(observation)) = (turns.last_mut(), heard) {
        last.observation = observation;
    }
    if let (Some(last), Some(reward)) = (turns.last_mut(), outcome.reward) {
        last.reward = reward;
    }
    tally.skipped += found.skipped;
    tally.system += found.system;
    tally.malformed += found.malformed;
    if found.malformed > 0 && p.on_malformed == OnMalformed::Drop {
        tally.dropped += 1;
        return Ok(None);
    }
    Ok(Some(Episode {
        v: SCHEMA_VERSION,
        task,
        actor: Actor::Expert,
        decoding: None,
        start: start.unwrap_or_default(),
        turns,
        success: outcome.success,
        score: outcome.score,
        end: End::Done,
    }))
}

/// What was observed, without what is taken off.
fn observed<'a>(text: &'a str, strip: &[String]) -> &'a str {
    let text = text.trim();
    let stripped = strip.iter().find_map(|begin| text.strip_prefix(begin.as_str()));
    stripped.unwrap_or(text).trim_start()
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let line: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(80).is_some() { format!("{line}..") } else { line }
}

/// How it went.
struct Outcome {
    success: bool,
    score: f64,
    reward: Option<f64>,
}

impl Outcome {
    /// From `score`, `reward` and `success`, whichever there are. What says nothing is a demonstration that succeeded.
    fn of(item: &Map<String, Value>) -> Result<Outcome, String> {
        let number = |name: &str| match item.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(format!("`{name}` is `{value}`, expected a number")),
        };
        let success = match item.get("success") {
            None | Some(Value::Null) => None,
            Some(Value::Bool(success)) => Some(*success),
            // as some write it
            Some(value) if value.as_f64() == Some(0.0) || value.as_f64() == Some(1.0) => {
                Some(value.as_f64() == Some(1.0))
            }
            Some(value) => return Err(format!("`success` is `{value}`, expected true or false")),
        };
        let (score, reward) = (number("score")?, number("reward")?);
        let of_reward = reward.filter(|reward| (0.0..=1.0).contains(reward));
        let score = score.or(of_reward).unwrap_or(if success == Some(false) { 0.0 } else { 1.0 });
        if !(0.0..=1.0).contains(&score) {
            return Err(format!("`score` is {score}, expected 0 to 1"));
        }
        Ok(Outcome { success: success.unwrap_or(score >= 1.0), score, reward })
    }
}

/// The task: from `task` (an object as in episodes, or its id), `id`, `goal` and `kind`, whichever there are.
fn task(item: &Map<String, Value>, p: &Params, number: usize) -> Result<Task, String> {
    let nothing = Map::new();
    let (named, fields) = match item.get("task") {
        Some(Value::Object(fields)) => (None, fields),
        other => (other, &nothing),
    };
    let known = ["env", "id", "split", "kind", "goal", "seed"];
    if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(format!("`task` has `{key}`, expected one of `{}`", known.join("`, `")));
    }
    let text = |name: &str, value: Option<&Value>| match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) if name == "id" || name == "task" => Ok(Some(number.to_string())),
        Some(value) => Err(format!("`{name}` is `{}`, expected a text", shortened(&value.to_string()))),
    };
    let of = |name: &str| match text(name, fields.get(name))? {
        Some(value) => Ok(Some(value)),
        None => text(name, item.get(name)),
    };
    let env = text("env", fields.get("env"))?.unwrap_or_else(|| p.env.clone());
    if env != p.env {
        return Err(format!("its task is of `{env}`, expected `{}`", p.env));
    }
    let seed = match fields.get("seed") {
        None | Some(Value::Null) => None,
        Some(seed) => Some(seed.as_u64().ok_or(format!("`seed` is `{seed}`, expected a whole number, 0 or above"))?),
    };
    let id = text("task", named)?.map_or_else(|| of("id"), |id| Ok(Some(id)))?;
    Ok(Task {
        env,
        id: id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("imported/{number}")),
        split: text("split", fields.get("split"))?.unwrap_or_else(|| p.split.clone()),
        kind: of("kind")?.unwrap_or_else(|| "imported".to_owned()),
        goal: of("goal")?.unwrap_or_default(),
        seed,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::eval::scores::tests::episode;
    use crate::op::table::tests::Bench;

    fn params(more: Value) -> Params {
        let mut params = json!({"env": "household"});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(params).unwrap()
    }

    fn one(item: Value, more: Value) -> Result<Option<Episode>, String> {
        read(item, &params(more), 0, &mut Tally::default())
    }

    /// A run over files of these contents.
    fn run(files: &[&str], more: Value) -> Result<Vec<Episode>, String> {
        let bench = Bench::new();
        let inputs: Vec<_> = (0..files.len()).map(|i| bench.input(&format!("{i}.jsonl"), "", &[])).collect();
        for (input, text) in inputs.iter().zip(files) {
            fs_err::write(&input.path, text).unwrap();
        }
        let folder = bench.path("").to_string();
        bench
            .run(&Import, &params(more), [("data", inputs)], "episodes")
            .map_err(|e| e.to_string().replace(&folder, ""))?;
        Ok(artifact::read(&bench.path("episodes")).unwrap())
    }

    fn talk() -> Value {
        json!({"messages": [
            {"role": "system", "content": "you are in a house"},
            {"role": "user", "content": "a kitchen. your task is to: look"},
            {"role": "assistant", "content": "look"},
            {"role": "user", "content": "a mug"},
            {"role": "assistant", "content": " take mug "},
            {"role": "user", "content": "you take the mug"},
        ]})
    }

    #[test]
    fn messages_become_observations_and_actions_in_turn() {
        let episode = one(talk(), json!({})).unwrap().unwrap();
        assert_eq!(episode.start, "a kitchen. your task is to: look");
        let turns: Vec<_> = episode.turns.iter().map(|t| (t.action.as_str(), t.observation.as_str())).collect();
        assert_eq!(turns, [("look", "a mug"), ("take mug", "you take the mug")]);
        assert_eq!((episode.success, episode.score, episode.end), (true, 1.0, End::Done));
        assert_eq!((episode.task.id.as_str(), episode.task.split.as_str()), ("imported/0", "train"));
    }

    #[test]
    fn both_shapes_say_the_same() {
        let shared = json!({"conversations": [
            {"from": "human", "value": "a kitchen. your task is to: look"},
            {"from": "gpt", "value": "look"},
            {"from": "human", "value": "a mug"},
            {"from": "gpt", "value": " take mug "},
            {"from": "human", "value": "you take the mug"},
        ]});
        assert_eq!(one(shared, json!({})), one(talk(), json!({})));
    }

    #[test]
    fn examples_at_the_beginning_are_passed_over() {
        let mut item = talk();
        let messages = item["messages"].as_array_mut().unwrap();
        messages.insert(1, json!({"role": "user", "content": "say OK"}));
        messages.insert(2, json!({"role": "assistant", "content": "OK"}));
        assert_eq!(one(item.clone(), json!({"skip": 1})), one(talk(), json!({})));
        item["messages"][2]["weight"] = 0.into();
        assert_eq!(one(item.clone(), json!({})), one(talk(), json!({})), "what is marked is passed over too");
        let why = one(item.clone(), json!({"skip": 3})).unwrap_err();
        assert_eq!(why, "it has no reply to learn from: 3 replies, of which 3 are passed over");
        item["messages"][2]["weight"] = 1.into();
        item["messages"][4]["weight"] = 0.into();
        let why = one(item, json!({})).unwrap_err();
        assert_eq!(why, "message 5: a reply that is not to be learned stands after one that is");
    }

    #[test]
    fn texts_before_a_reply_are_one_observation_and_labels_are_taken_off() {
        let item = json!({"conversations": [
            {"from": "human", "value": "You are in a house."}, {"from": "human", "value": "Observation: a mug"},
            {"from": "gpt", "value": "look"},
        ]});
        let episode = one(item, json!({"strip": ["Observation:"]})).unwrap().unwrap();
        assert_eq!((episode.start.as_str(), episode.turns[0].observation.as_str()), ("You are in a house.\na mug", ""));
    }

    #[test]
    fn task_and_outcome_are_taken_from_the_fields_that_there_are() {
        let with = |more: Value| {
            let mut item = talk();
            item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            one(item, json!({})).map(Option::unwrap)
        };
        let full = with(json!({
            "task": {"id": "id/7", "kind": "look", "seed": 3, "split": "id"}, "goal": "look.", "reward": 0.5,
        }));
        let full = full.unwrap();
        assert_eq!((full.task.id.as_str(), full.task.kind.as_str(), full.task.seed), ("id/7", "look", Some(3)));
        assert_eq!((full.task.goal.as_str(), full.task.split.as_str()), ("look.", "id"));
        assert_eq!((full.success, full.score, full.turns[1].reward, full.turns[0].reward), (false, 0.5, 0.5, 0.0));
        let lost = with(json!({"id": 12, "success": 0})).unwrap();
        assert_eq!((lost.task.id.as_str(), lost.success, lost.score), ("12", false, 0.0));
        let paid = with(json!({"reward": 87.5, "task": "a"})).unwrap();
        assert_eq!((paid.task.id.as_str(), paid.score, paid.turns[1].reward), ("a", 1.0, 87.5));
        assert_eq!(with(json!({"score": 1.5})).unwrap_err(), "`score` is 1.5, expected 0 to 1");
        assert_eq!(with(json!({"success": "yes"})).unwrap_err(), "`success` is `\"yes\"`, expected true or false");
        assert!(with(json!({"task": {"env": "webshop"}})).unwrap_err().contains("expected `household`"));
        assert!(with(json!({"task": {"gaol": "x"}})).unwrap_err().starts_with("`task` has `gaol`"));
        assert_eq!(with(json!({"goal": ["x"]})).unwrap_err(), "`goal` is `[\"x\"]`, expected a text");
    }

    #[test]
    fn replies_without_an_action_are_refused_dropped_or_kept() {
        let good = talk().to_string();
        let mut bad = talk();
        bad["messages"][4]["content"] = "  ".into();
        let both = format!("{good}\n\n{bad}\n");
        let error = run(&[&good, &both], json!({})).unwrap_err();
        assert_eq!(error, "cannot import line 3 of `1.jsonl`: message 5: the reply says no action (empty): `  `");
        assert_eq!(run(&[&both], json!({"on_malformed": "drop"})).unwrap().len(), 1);
        let kept = run(&[&both], json!({"on_malformed": "keep"})).unwrap();
        assert_eq!((kept.len(), kept[1].turns[1].action.as_str(), kept[1].turns.len()), (2, "", 2));
        let error = run(&[&bad.to_string()], json!({"on_malformed": "drop"})).unwrap_err();
        assert_eq!(error, "nothing was imported; 1 episodes were dropped");
    }

    #[test]
    fn our_episodes_are_held_against_their_schema() {
        let ours = episode("id/0", "look", true, &[("look", true, "a mug")]);
        let line = serde_json::to_string(&ours).unwrap();
        assert_eq!(run(&[&line], json!({})).unwrap(), std::slice::from_ref(&ours));
        let wrong = |change: &dyn Fn(&mut Episode)| {
            let mut episode = ours.clone();
            change(&mut episode);
            one(serde_json::to_value(&episode).unwrap(), json!({})).unwrap_err()
        };
        assert_eq!(wrong(&|e| e.v = 7), "schema version is 7, expected 1");
        assert_eq!(wrong(&|e| e.score = 2.0), "`score` is 2, expected 0 to 1");
        assert_eq!(wrong(&|e| e.task.env = "webshop".to_owned()), "its task is of `webshop`, expected `household`");
        assert_eq!(wrong(&|e| e.task.id = String::new()), "its task has no `id`");
        let mut odd = serde_json::to_value(&ours).unwrap();
        odd["messages"] = json!([]);
        assert!(one(odd, json!({})).unwrap_err().starts_with("it has several of"));
    }

    #[test]
    fn one_array_is_read_as_lines_are() {
        let array = format!("\u{feff} [\n{},\n{}\n]", talk(), talk());
        assert_eq!(run(&[&array], json!({})), run(&[&format!("{}\n{}", talk(), talk())], json!({})));
        let error = run(&["[{}, {\"messages\": 3}]"], json!({})).unwrap_err();
        assert_eq!(
            error,
            "cannot import entry 1 of `0.jsonl`: expected one of `turns`, `messages` and `conversations`"
        );
    }

    #[test]
    fn what_is_no_conversation_is_refused_by_message() {
        let wrong = |messages: Value| one(json!({ "messages": messages }), json!({})).unwrap_err();
        let user = json!({"role": "user", "content": "a mug"});
        let agent = json!({"role": "assistant", "content": "look"});
        assert_eq!(wrong(json!([agent])), "message 1: a reply to nothing, expected an observation");
        assert_eq!(wrong(json!([user, agent, agent])), "message 3: a reply to nothing, expected an observation");
        assert_eq!(wrong(json!([user])), "it has no reply to learn from: 0 replies, of which 0 are passed over");
        let tool = json!({"role": "tool", "content": "x"});
        assert_eq!(wrong(json!([user, tool])), "message 2: `role` is `tool`, expected `system`, `user` or `assistant`");
        assert_eq!(wrong(json!([user, {"role": "assistant", "content": null}])), "message 2: `content` is no text");
        let call = json!({"role": "assistant", "content": "", "tool_calls": [1]});
        assert!(wrong(json!([user, call])).starts_with("message 2: `tool_calls` is not supported"));
        assert!(wrong(json!([user, agent, {"role": "system", "content": ""}])).starts_with("message 3: a system text"));
        assert!(wrong(json!({})).starts_with("expected a list of messages"));
    }

    #[test]
    fn a_line_that_nests_too_deep_is_an_error() {
        let deep = "[".repeat(100_000);
        assert!(run(&[&deep], json!({})).unwrap_err().contains("recursion limit"));
        let inside = format!("{{\"messages\": {deep}");
        assert!(run(&[&inside], json!({})).unwrap_err().contains("line 1"));
    }

    proptest! {
        /// Whatever a file holds, it is read or refused; bytes that are no text too.
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bench = Bench::new();
            let input = bench.input("x", "", &[]);
            fs_err::write(&input.path, bytes).unwrap();
            let run = bench.run(&Import, &params(json!({})), [("data", vec![input])], "episodes");
            prop_assert!(run.is_err());
        }

        /// A valid file, cut or with a piece exchanged.
        #[test]
        fn cut_and_changed_conversations_are_read_or_refused(
            at in 0.0..1.0f64, piece in "[\\[\\]{}\",:a0-]{0,6}", cut: bool, skip in 0..4usize,
        ) {
            let mut text = talk().to_string();
            let at = (at * text.len() as f64) as usize;
            if cut { text.truncate(at) } else { text.replace_range(at..at + 1, &piece) }
            if let Ok(episodes) = run(&[&text], json!({ "skip": skip, "on_malformed": "keep" })) {
                prop_assert!(episodes.iter().all(|e| !e.turns.is_empty()));
            }
        }

        /// No shape of a message makes a panic, and every import has as many turns as replies that were not passed over.
        #[test]
        fn any_order_of_speakers_is_read_or_refused(
            who in proptest::collection::vec((0..4usize, any::<bool>()), 0..12), skip in 0..4usize,
        ) {
            let roles = ["system", "user", "assistant", "assistant"];
            let messages: Vec<Value> = who
                .iter()
                .map(|&(who, marked)| json!({"role": roles[who], "content": "x", "weight": u8::from(!marked)}))
                .collect();
            let replies = who.iter().filter(|(who, _)| *who > 1).count();
            let mut tally = Tally::default();
            if let Ok(Some(episode)) = read(json!({ "messages": messages }), &params(json!({"skip": skip})), 0, &mut tally) {
                prop_assert_eq!(episode.turns.len() + tally.skipped, replies);
                prop_assert!(tally.skipped >= skip);
            }
        }
    }
}
