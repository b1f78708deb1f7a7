//! `actloom model generate`: texts that a model gives for a prompt.
//!
//! 1. The prompt becomes ids, by the chat template unless it is raw ([`Prompt`]).
//! 2. It is computed once; every sample goes on from it with a random stream of its own.
//! 3. A sample ends by an end id, a stop string, or its length.
//!
//! Invariants: a sample depends on the seed and its number, not on how many there are; log-probabilities are those of the
//! distribution that the id was drawn from.

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::Serialize;
use serde_json::Value;

use super::stream::Stream;
use super::{Source, load_with_text};
use crate::infer::sampling::{Drawn, Sampling, Scratch, draw};
use crate::model::{Model, Sequence, failed};
use crate::rng::Rng;
use crate::text::{Message, Role, Text};

/// What to go on from.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A person's message, or plain text where the model has no template.
    Message(String),
    /// Plain text, continued as it is.
    Raw(String),
    /// A conversation.
    Chat(Vec<Message>),
}

/// Why a sample ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// An end id.
    Eos,
    /// A stop string.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The model takes no longer sequence.
    Context,
    /// Somebody stopped it.
    Interrupted,
}

/// One text.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Without the end token and the stop string.
    pub text: String,
    /// What was drawn, the end token included.
    pub ids: Vec<u32>,
    /// In nats, of each id under the distribution it was drawn from.
    pub logps: Vec<f32>,
    pub end: End,
}

/// The answer to one call.
#[derive(Clone, Debug, Serialize)]
pub struct Generated {
    pub prompt_ids: Vec<u32>,
    /// The prompt went through the model's chat template.
    pub templated: bool,
    pub samples: Vec<Sample>,
}

/// Draws `samples` texts. The text of a single one is given to `show` as it comes.
///
/// # Errors
/// The model's, the template's and the tokenizer's; a prompt that leaves no room.
pub fn generate(
    source: &Source,
    prompt: &Prompt,
    sampling: &Sampling,
    seed: u64,
    samples: usize,
    show: &mut dyn FnMut(&str),
) -> Result<Generated, OpError> {
    let (model, text) = load_with_text(source)?;
    let (ids, templated) = prompt_ids(&text, prompt)?;
    check_room(&model, ids.len())?;
    sampling.check()?;
    let (head, last) = ids.split_at(ids.len() - 1);
    let sequence = read(&model, head)?;
    let mut voices: Vec<Voice<'_>> = (0..samples)
        .map(|number| {
            let rng = Rng::at(seed, &[number as u64]);
            Voice::new(&text, &sampling.stop, sequence.clone(), last.to_vec(), rng)
        })
        .collect();
    drop(sequence);
    // Caches and logits of so many are held at once.
    for group in voices.chunks_mut(crate::infer::BATCH) {
        loop {
            let mut open: Vec<&mut Voice<'_>> = group.iter_mut().filter(|voice| voice.end.is_none()).collect();
            if open.is_empty() {
                break;
            }
            for piece in step(&model, &text, sampling, &mut open)? {
                if samples == 1 {
                    show(&piece);
                }
            }
        }
    }
    let samples = voices.into_iter().map(Voice::into_sample).collect();
    Ok(Generated { prompt_ids: ids, templated, samples })
}

/// A sequence that has seen these ids.
fn read(model: &Model, ids: &[u32]) -> Result<Sequence, OpError> {
    let mut sequence = model.sequence();
    if !ids.is_empty() {
        model.extend(&mut [(&mut sequence, ids)]).map_err(failed)?;
    }
    Ok(sequence)
}

fn prompt_ids(text: &Text, prompt: &Prompt) -> Result<(Vec<u32>, bool), OpError> {
    let (rendered, templated) = match prompt {
        Prompt::Message(content) if text.has_template() => (text.render(&[Message::user(content)], true)?, true),
        Prompt::Message(content) | Prompt::Raw(content) => (content.clone(), false),
        Prompt::Chat(_) if !text.has_template() => {
            return Err(OpError::with_help(
                "the model has no chat template, so a conversation has no text",
                "give the text itself as a prompt",
            ));
        }
        Prompt::Chat(messages) => (text.render(messages, true)?, true),
    };
    let ids = text.encode(&rendered)?;
    if ids.is_empty() {
        return Err(OpError::failed("the prompt is empty, expected at least one token"));
    }
    Ok((ids, templated))
}

/// Refuses a prompt after which nothing can be said.
pub(super) fn check_room(model: &Model, prompt: usize) -> Result<(), OpError> {
    let longest = model.config.max_positions;
    if prompt >= longest {
        return Err(OpError::failed(format!(
            "the prompt has {prompt} tokens, the model takes {longest} with the answer"
        )));
    }
    Ok(())
}

/// A conversation from JSON: `[{"role": "user", "content": "..."}]`.
///
/// # Errors
/// Names the message, from 0, and what is wrong with it.
pub fn read_messages(path: &Utf8Path) -> Result<Vec<Message>, OpError> {
    let wrong = |what: String| {
        OpError::with_help(
            format!("cannot use `{path}`: {what}"),
            r#"expected messages: [{"role": "user", "content": "..."}]"#,
        )
    };
    let json: Value = serde_json::from_slice(&fs_err::read(path)?).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let Some(list) = json.as_array() else { return Err(wrong("not a list".to_owned())) };
    let mut messages = Vec::with_capacity(list.len());
    for (i, message) in list.iter().enumerate() {
        let Some(fields) = message.as_object() else { return Err(wrong(format!("message {i} is not an object"))) };
        if let Some(other) = fields.keys().find(|key| !["role", "content"].contains(&key.as_str())) {
            return Err(wrong(format!("message {i} has a field `{other}`, expected `role` and `content`")));
        }
        let role = match message["role"].as_str() {
            Some("system") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            _ => {
                let found = &message["role"];
                return Err(wrong(format!("message {i} has the role `{found}`, expected system, user or assistant")));
            }
        };
        let Some(content) = message["content"].as_str() else {
            return Err(wrong(format!("message {i} has no text as `content`")));
        };
        messages.push(Message { role, content: content.to_owned() });
    }
    match messages.last() {
        None => Err(wrong("it has no message".to_owned())),
        Some(last) if last.role == Role::Assistant => Err(wrong("the last message is the assistant's".to_owned())),
        Some(_) => Ok(messages),
    }
}

/// One sample in the making.
pub(super) struct Voice<'a> {
    pub sequence: Sequence,
    /// Ids that the cache has not seen.
    pub feed: Vec<u32>,
    pub ids: Vec<u32>,
    pub logps: Vec<f32>,
    pub shown: String,
    pub end: Option<End>,
    stream: Stream<'a>,
    rng: Rng,
    scratch: Scratch,
}

impl<'a> Voice<'a> {
    pub fn new(text: &'a Text, stops: &'a [String], sequence: Sequence, feed: Vec<u32>, rng: Rng) -> Self {
        let stream = Stream::new(text, stops);
        let (ids, logps, shown, scratch) = (Vec::new(), Vec::new(), String::new(), Scratch::default());
        Voice { sequence, feed, ids, logps, shown, end: None, stream, rng, scratch }
    }

    /// Ends it here; returns what it still has to show.
    pub fn interrupt(&mut self) -> Result<String, OpError> {
        self.end = Some(End::Interrupted);
        let piece = self.stream.finish()?;
        self.shown += &piece;
        Ok(piece)
    }

    fn into_sample(self) -> Sample {
        Sample { text: self.shown, ids: self.ids, logps: self.logps, end: self.end.unwrap_or(End::Interrupted) }
    }
}

/// One more token for each voice; returns what each has to show.
pub(super) fn step(
    model: &Model,
    text: &Text,
    sampling: &Sampling,
    voices: &mut [&mut Voice<'_>],
) -> Result<Vec<String>, OpError> {
    let feeds: Vec<Vec<u32>> = voices.iter_mut().map(|voice| std::mem::take(&mut voice.feed)).collect();
    let mut batch: Vec<_> = voices.iter_mut().zip(&feeds).map(|(v, feed)| (&mut v.sequence, feed.as_slice())).collect();
    let logits = model.extend(&mut batch).and_then(|z| z.to_vec2::<f32>()).map_err(failed)?;
    let mut pieces = Vec::with_capacity(voices.len());
    for (voice, z) in voices.iter_mut().zip(logits) {
        let Drawn { id, logp, .. } = draw(&z, sampling, None, &mut voice.rng, &mut voice.scratch);
        if logp.is_nan() {
            return Err(OpError::failed("the model's logits are not numbers; its weights may be damaged"));
        }
        voice.ids.push(id);
        voice.logps.push(logp);
        voice.feed = vec![id];
        let mut piece = String::new();
        if text.eos.contains(&id) || sampling.stop_ids.contains(&id) {
            voice.end = Some(End::Eos);
        } else {
            piece = voice.stream.push(id)?;
            voice.end = if voice.stream.stopped() {
                Some(End::Stop)
            } else if voice.ids.len() >= sampling.max_tokens {
                Some(End::Length)
            } else if voice.sequence.len() + 1 >= model.config.max_positions {
                Some(End::Context)
            } else {
                None
            };
        }
        if voice.end.is_some() {
            piece += &voice.stream.finish()?;
        }
        voice.shown += &piece;
        pieces.push(piece);
    }
    Ok(pieces)
}
