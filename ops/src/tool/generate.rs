//! `actloom model generate`: texts that a model gives for a prompt.
//!
//! 1. The prompt becomes ids, by the chat template unless it is raw ([`Prompt`]). 2. It is computed once; every sample
//! goes on from it with a random stream of its own. 3. A sample ends by an end id, a stop string, or its length.
//!
//! Invariants: a sample depends on the seed and its number, not on how many there are; log-probabilities are those of the
//! distribution that the id was drawn from.

use actloom_engine::op::OpError;
use camino::Utf8Path;
use serde::Serialize;
use serde_json::Value;

use super::stream::Stream;
use super::{Source, load_with_text};
use crate::infer::prefill;
use crate::model::{Model, Sequence, failed};
use crate::nn::cpu::rows::row_stats;
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

/// How ids are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest id (the lowest of equals).
    pub temperature: f32,
    /// Keep the `k` likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep what has at least this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    pub max_tokens: usize,
    pub stop: Vec<String>,
    pub seed: u64,
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
    samples: usize,
    show: &mut dyn FnMut(&str),
) -> Result<Generated, OpError> {
    let (model, text) = load_with_text(source)?;
    let (ids, templated) = prompt_ids(&text, prompt)?;
    check_room(&model, ids.len())?;
    let (sequence, feed) = prefill(&model, &ids)?;
    let mut voices: Vec<Voice<'_>> = (0..samples)
        .map(|number| {
            let rng = Rng::at(sampling.seed, &[number as u64]);
            Voice::new(&text, &sampling.stop, sequence.clone(), feed.clone(), rng)
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
}

impl<'a> Voice<'a> {
    pub fn new(text: &'a Text, stops: &'a [String], sequence: Sequence, feed: Vec<u32>, rng: Rng) -> Self {
        let stream = Stream::new(text, stops);
        Voice { sequence, feed, ids: Vec::new(), logps: Vec::new(), shown: String::new(), end: None, stream, rng }
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
        let (id, logp) = draw(&z, sampling, &mut voice.rng);
        voice.ids.push(id);
        voice.logps.push(logp);
        voice.feed = vec![id];
        let mut piece = String::new();
        if text.eos.contains(&id) {
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

/// An id drawn from the filtered distribution, and its log-probability there. Filters work in the order temperature,
/// top-k, top-p, min-p, each on what the one before kept.
fn draw(logits: &[f32], sampling: &Sampling, rng: &mut Rng) -> (u32, f32) {
    let best = logits.iter().enumerate().fold(0, |best, (i, z)| if *z > logits[best] { i } else { best });
    if sampling.temperature == 0.0 {
        return (best as u32, row_stats(logits, best, 1.0).logp);
    }
    let lse = row_stats(logits, best, sampling.temperature).lse;
    let logp = |i: usize| logits[i] / sampling.temperature - lse;
    let mut kept: Vec<(usize, f64)> = (0..logits.len()).map(|i| (i, f64::from(logp(i)).exp())).collect();
    if sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0 {
        // equals in the order of their ids, so that a filter's edge is always the same
        kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if sampling.top_k > 0 {
            kept.truncate(sampling.top_k);
        }
        if sampling.top_p < 1.0 {
            let share = f64::from(sampling.top_p) * kept.iter().map(|(_, p)| p).sum::<f64>();
            let mut sum = 0.0;
            let reaches = |(_, p): &(usize, f64)| {
                sum += p;
                sum >= share
            };
            let keep = kept.iter().position(reaches).map_or(kept.len(), |at| at + 1);
            kept.truncate(keep);
        }
        let least = f64::from(sampling.min_p) * kept[0].1;
        kept.retain(|(_, p)| *p >= least);
    }
    let total: f64 = kept.iter().map(|(_, p)| p).sum();
    let mut left = rng.uniform() * total;
    let mut chosen = best;
    for (i, p) in &kept {
        if *p > 0.0 {
            chosen = *i;
            left -= p;
            if left < 0.0 {
                break;
            }
        }
    }
    (chosen as u32, (f64::from(logp(chosen)) - total.ln()) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, max_tokens: 1, stop: Vec::new(), seed: 0 }
    }

    fn seen(sampling: &Sampling) -> Vec<u32> {
        // probabilities 0.5, 0.25, 0.125, 0.125
        let z = [0.0, 2.0, 1.0, 0.0].map(|x: f32| x * std::f32::consts::LN_2);
        let mut rng = Rng::new(1, 1);
        let mut seen: Vec<u32> = (0..300).map(|_| draw(&z, sampling, &mut rng).0).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn filters_keep_what_they_say() {
        assert_eq!(seen(&sampling()), [0, 1, 2, 3]);
        assert_eq!(seen(&Sampling { top_k: 3, ..sampling() }), [0, 1, 2], "of equals the lowest id stays");
        assert_eq!(seen(&Sampling { top_p: 0.6, ..sampling() }), [1, 2]);
        assert_eq!(seen(&Sampling { min_p: 0.4, ..sampling() }), [1, 2]);
        assert_eq!(seen(&Sampling { temperature: 0.0, ..sampling() }), [1]);
    }

    #[test]
    fn log_probabilities_are_those_of_what_is_kept() {
        let z = [0.0f32, 0.0, 0.0, 0.0];
        let mut rng = Rng::new(2, 2);
        let (_, logp) = draw(&z, &Sampling { top_k: 2, ..sampling() }, &mut rng);
        assert!((logp + std::f32::consts::LN_2).abs() < 1e-6, "{logp}");
        let (_, logp) = draw(&z, &sampling(), &mut rng);
        assert!((logp + 2.0 * std::f32::consts::LN_2).abs() < 1e-6, "{logp}");
    }
}
