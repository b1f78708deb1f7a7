//! Conversations taken apart: who spoke, what was observed, which actions were said.
//!
//! Invariants: whatever is passed over is counted; a message that cannot be read is named by its number, from 1.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::fields::{self, Outcome};
use super::{OnMalformed, Params, Tally, shortened};
use crate::artifact::{Actor, End, Episode, SCHEMA_VERSION, Turn};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    System,
    User,
    Agent,
}

/// A message of a conversation.
pub(super) struct Said<'a> {
    who: Who,
    text: Cow<'a, str>,
    /// It is marked as one that nothing is to be learned from.
    marked: bool,
}

/// How a shape names things: who speaks, and what is said.
pub(super) struct Names {
    who: &'static str,
    text: &'static str,
    agent: &'static [&'static str],
    user: &'static [&'static str],
}

pub(super) const OPENAI: &Names = &Names { who: "role", text: "content", agent: &["assistant"], user: &["user"] };
pub(super) const SHAREGPT: &Names =
    &Names { who: "from", text: "value", agent: &["gpt", "assistant"], user: &["human", "user"] };
/// Who else speaks for the environment, in both shapes.
const TOOLS: [&str; 3] = ["tool", "function", "observation"];

pub(super) fn said<'a>(messages: &'a Value, names: &Names) -> Result<Vec<Said<'a>>, String> {
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
        name if user.contains(&name) || TOOLS.contains(&name) => Who::User,
        name => {
            let (user, agent, tools) = (user[0], agent[0], TOOLS.join("`, `"));
            return Err(format!("`{who}` is `{name}`, expected `system`, `{user}`, `{agent}`, `{tools}`"));
        }
    };
    let text = match fields.get(*text) {
        Some(Value::String(text)) => Cow::from(text),
        Some(Value::Array(parts)) => joined(text, parts)?.into(),
        _ => return Err(format!("`{text}` is no text")),
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

/// The text of a message in parts: each is `{"type": "text", "text": ".."}`.
fn joined(name: &str, parts: &[Value]) -> Result<String, String> {
    let mut texts = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        let wrong = |why: String| Err(format!("part {} of `{name}` {why}", at + 1));
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some("text"), None) => return wrong("has no text, expected `text`".to_owned()),
            (Some(other), _) => return wrong(format!("is `{other}`, expected `text`")),
            (None, _) => return wrong("has no `type`, expected `text`".to_owned()),
        }
    }
    Ok(texts.join("\n"))
}

/// A conversation as an episode; `None` where it is dropped.
pub(super) fn conversation(
    item: &Map<String, Value>,
    messages: Vec<Said<'_>>,
    p: &Params,
    number: usize,
    tally: &mut Tally,
) -> Result<Option<Episode>, String> {
    let outcome = Outcome::of(item, p.scale)?;
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
                let observation =
                    heard.take().ok_or_else(|| match at.checked_sub(1).map(|before| messages[before].who) {
                        Some(Who::Agent) => {
                            wrong(&format!("a second reply in a row, expected an observation after message {at}"))
                        }
                        _ => wrong("a reply to nothing, expected an observation"),
                    })?;
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
                let reply = (text.trim() != action).then(|| text.clone().into_owned());
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
    let start = start.unwrap_or_default();
    Ok(Some(Episode {
        v: SCHEMA_VERSION,
        task: fields::task(item, &start, p, number)?,
        actor: Actor::Expert,
        decoding: None,
        start,
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
