//! Conversations as training examples: JSON lines of `{"messages": [{"role", "content"}, ..]}`.
//!
//! 1. Each answer's prompt is rendered by the model's own template, as a sampler would render it.
//! 2. What the whole conversation up to the answer says beyond that prompt is the answer; it is learned up to and with
//!    its end token.
//! 3. The next answer continues the same sequence where its prompt begins with it, token by token; where the template
//!    rewrites what was said before (as Qwen3's drops earlier reasoning), it becomes an example of its own.
//!
//! Invariants: nothing is searched for in a text but the one end token that the template writes behind an answer; before
//! every learned answer stand exactly the tokens that a sampler would be given; what cannot be done so is refused with its
//! line.

use std::io::{BufRead, BufReader};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde_json::{Map, Value};

use super::batch::Example;
use crate::text::{Message, Role, Text};

/// One conversation, and which of its messages are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    pub messages: Vec<Message>,
    pub learn: Vec<bool>,
}

impl Conversation {
    /// Reads one line.
    ///
    /// # Errors
    /// What is missing, malformed or would change the rendering and is not supported, by name.
    pub fn parse(line: &str) -> Result<Conversation, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let Some(messages) = value["messages"].as_array() else {
            return Err("expected an object with a list `messages`".to_owned());
        };
        for key in ["tools", "functions", "documents", "chat_template", "chat_template_kwargs"] {
            if !empty(&value[key]) {
                return Err(format!("`{key}` is not supported, expected `messages` alone"));
            }
        }
        let mut conversation = Conversation { messages: Vec::new(), learn: Vec::new() };
        for (index, message) in messages.iter().enumerate() {
            let (message, learn) = read(message).map_err(|why| format!("message {}: {why}", index + 1))?;
            conversation.messages.push(message);
            conversation.learn.push(learn);
        }
        Ok(conversation)
    }
}

fn empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

fn read(message: &Value) -> Result<(Message, bool), String> {
    let fields = message.as_object().ok_or("expected an object with `role` and `content`")?;
    let role = match message["role"].as_str() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return Err(format!("role `{}`, expected `system`, `user` or `assistant`", message["role"])),
    };
    let Some(content) = message["content"].as_str() else {
        return Err(format!("`content` is `{}`, expected text", message["content"]));
    };
    let learn = match &message["weight"] {
        Value::Null => role == Role::Assistant,
        weight if role == Role::Assistant && (weight == 0 || weight == 1) => weight == 1,
        weight => return Err(format!("`weight` is `{weight}`, expected 0 or 1 on an answer")),
    };
    let known = ["role", "content", "weight"];
    if let Some((key, _)) = fields.iter().find(|(key, value)| !known.contains(&key.as_str()) && !empty(value)) {
        return Err(format!("`{key}` is not supported, expected `role`, `content` and `weight`"));
    }
    Ok((Message { role, content: content.to_owned() }, learn))
}

/// Reads a file; line numbers from 1 come with the conversations. Blank lines are passed over.
///
/// # Errors
/// Names the file and line of what cannot be read.
pub fn read_file(path: &Utf8Path) -> Result<Vec<(usize, Conversation)>, OpError> {
    let mut out = Vec::new();
    for (index, line) in BufReader::new(fs_err::File::open(path)?).lines().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let conversation = Conversation::parse(&line)
                .map_err(|why| OpError::failed(format!("cannot read line {} of `{path}`: {why}", index + 1)))?;
            out.push((index + 1, conversation));
        }
    }
    Ok(out)
}

/// An example in the making.
struct Open {
    example: Example,
    /// What it says, up to the end token of its last answer.
    said: String,
}

/// The examples of one conversation, and how many answers they teach.
///
/// # Errors
/// A template whose answers have no end, or that rewrites the prompt of an answer; text that holds an end token.
pub fn examples(text: &Text, conversation: &Conversation) -> Result<(Vec<Example>, usize), OpError> {
    let ends: Vec<String> = text.eos.iter().map(|id| text.decode(&[*id])).collect::<Result<_, _>>()?;
    let mut done = Vec::new();
    let mut open: Option<Open> = None;
    let mut answers = 0;
    let messages = &conversation.messages;
    if let Some(end) = ends.iter().find(|end| messages.iter().any(|m| m.content.contains(end.as_str()))) {
        return Err(OpError::failed(format!(
            "a message holds the end token `{end}`, which would end it for the model"
        )));
    }
    for (index, message) in messages.iter().enumerate() {
        if message.role != Role::Assistant || !conversation.learn[index] {
            continue;
        }
        // 1. the prompt, as a sampler would have it
        let prompt = text.render(&messages[..index], true)?;
        let prompt_ids = text.encode(&prompt)?;
        // 2. the answer, as the template writes it, with its end token
        let whole = text.render(&messages[..=index], false)?;
        let Some(rest) = whole.strip_prefix(&prompt) else {
            return Err(OpError::failed(format!(
                "the chat template does not begin message {} with the prompt for it, so no mask could be exact",
                index + 1
            )));
        };
        let end = ends.iter().filter_map(|end| Some(rest.find(end.as_str())? + end.len())).min();
        let Some(answer) = end.map(|end| &rest[..end]) else {
            return Err(OpError::failed("the chat template ends an answer without an end token of the model"));
        };
        let answer_ids = text.encode(answer)?;
        if !answer_ids.last().is_some_and(|id| text.eos.contains(id)) {
            return Err(OpError::failed("the tokenizer does not keep the end token of an answer in one piece"));
        }
        // 3. on in the same sequence, where that is what a sampler would see
        let continued = match open.take() {
            Some(before) => match continued(text, before, &prompt, &prompt_ids)? {
                Ok(example) => Some(example),
                Err(finished) => {
                    done.push(finished);
                    None
                }
            },
            None => None,
        };
        let mut example = continued.unwrap_or_else(|| {
            let mut example = Example::default();
            example.push(&prompt_ids, false);
            example
        });
        example.push(&answer_ids, true);
        answers += 1;
        open = Some(Open { example, said: prompt + answer });
    }
    done.extend(open.map(|open| open.example));
    Ok((done, answers))
}

/// The open example with the rest of a prompt behind it; or itself, finished, where that is not the prompt's ids.
fn continued(text: &Text, mut open: Open, prompt: &str, ids: &[u32]) -> Result<Result<Example, Example>, OpError> {
    let Some(between) = prompt.strip_prefix(&open.said) else { return Ok(Err(open.example)) };
    let between = text.encode(between)?;
    let known = open.example.ids.len();
    if ids.len() != known + between.len() || ids[..known] != open.example.ids || ids[known..] != between {
        return Ok(Err(open.example));
    }
    open.example.push(&between, false);
    Ok(Ok(open.example))
}
