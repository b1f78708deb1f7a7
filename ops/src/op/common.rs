//! What several ops share: worlds by name, models from folders, states as conversations.

use actloom_engine::op::{OpContext, OpError};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::say_memory;
use crate::artifact::{Episode, Pair, Past, Reflection, Task, Turn};
use crate::model::{self, Model, open_device};
use crate::policy::{self, Policy, Sampling};
use crate::text::prompt::{Said, Scene, Thinking};
use crate::text::{Dialogue, Message, Prompt, Text};

/// What is cut off the distribution before a token is drawn, in this order, and texts that end an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Filters {
    /// Only the k likeliest tokens, and those as likely as the k-th; 0: all.
    #[schemars(range(min = 0, max = 10000000))]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1: all.
    #[schemars(range(min = 0.000001, max = 1.0))]
    pub top_p: f64,
    /// Only tokens at least this share as likely as the likeliest; 0: all.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_p: f64,
    /// Texts that end an answer; the answer ends before them.
    pub stop: Vec<String>,
}

impl Default for Filters {
    fn default() -> Self {
        Filters { top_k: 0, top_p: 1.0, min_p: 0.0, stop: Vec::new() }
    }
}

impl Filters {
    /// Settings of the sampler.
    pub fn sampling(&self, temperature: f64, max_tokens: usize) -> Sampling {
        let Filters { top_k, top_p, min_p, stop } = self.clone();
        Sampling { temperature, top_k, top_p, min_p, max_tokens, stop, stop_ids: Vec::new() }
    }
}

/// Loads a model that will be trained, and its text side, onto the step's device, which is noted in the provenance.
///
/// # Errors
/// Names what is missing.
pub fn load(ctx: &OpContext<'_>, folder: &Utf8Path) -> Result<(Model, Text), OpError> {
    load_for(ctx, folder, &Prompt::default())
}

/// As [`load`], with the chat template set as the prompt asks.
///
/// # Errors
/// As [`load`], and a template that cannot be set so.
pub fn load_for(ctx: &OpContext<'_>, folder: &Utf8Path, prompt: &Prompt) -> Result<(Model, Text), OpError> {
    let (device, why) = open_device(ctx.device())?;
    ctx.note("device", why);
    ctx.computes_on(kind(&device))?;
    let model = model::load(folder, &device)?;
    let mut text = Text::load(folder, &model.config.eos)?;
    text.set(&prompt.variables())?;
    if text.vocabulary() > model.config.vocab_size {
        let (have, want) = (model.config.vocab_size, text.vocabulary());
        return Err(OpError::failed(format!("the tokenizer of `{folder}` has {want} entries, the model {have}")));
    }
    Ok((model, text))
}

/// What a checkpoint is bound to.
fn kind(device: &candle_core::Device) -> &'static str {
    if device.is_cpu() { "cpu" } else { "cuda" }
}

/// Opens whoever acts and notes in the provenance who that is.
///
/// # Errors
/// Names what is missing.
pub fn open_policy(ctx: &OpContext<'_>, path: &Utf8Path) -> Result<Box<dyn Policy>, OpError> {
    open_policy_for(ctx, path, &Prompt::default())
}

/// As [`open_policy`], with the chat template set as the prompt asks.
///
/// # Errors
/// As [`open_policy`], and a template that cannot be set so.
pub fn open_policy_for(ctx: &OpContext<'_>, path: &Utf8Path, prompt: &Prompt) -> Result<Box<dyn Policy>, OpError> {
    let mut policy = policy::open(path, ctx.device())?;
    if policy.identity().make != "endpoint" {
        ctx.computes_on(kind(&open_device(ctx.device())?.0))?;
    }
    policy.set(&prompt.variables())?;
    policy.join_reasoning(prompt.thinking() != Thinking::None);
    note_policy(ctx, &*policy);
    say_memory(ctx, policy.memory()?);
    Ok(policy)
}

/// Notes who acted, what it cost, and whether the same would come again. A server says what it serves only when it is
/// asked, so this is called again at the end.
pub fn note_policy(ctx: &OpContext<'_>, policy: &dyn Policy) {
    let who = policy.identity();
    if who.make != "endpoint" {
        ctx.note("device", who.at.as_str());
    }
    ctx.note("reproducible", who.reproducible);
    ctx.note("policy", serde_json::json!({ "who": who, "cost": policy.cost() }));
}

/// The state before turn `turn` of an episode. `whole` keeps all that a prompt might tell, and not only what was seen
/// and done.
pub fn past(episode: &Episode, turn: usize, whole: bool) -> Past {
    let turns = &episode.turns[..turn];
    let said = turns.iter().map(|t| (t.action.clone(), t.observation.clone())).collect();
    let mut past = Past::of_texts(episode.start.clone(), said);
    if whole {
        if turns.iter().any(|t| t.reply.is_some()) {
            past.replies = turns.iter().map(|t| t.reply.clone()).collect();
        }
        if turns.iter().any(|t| !t.actions.is_empty()) {
            past.actions = turns.iter().map(|t| t.actions.clone()).collect();
        }
    }
    past
}

/// Puts the state before turn `turn` of an episode, which is number `number` of its file. `replies` tells what was said
/// where that is more than what was done.
///
/// # Errors
/// An episode that does not hold what the prompt tells.
pub fn state(
    prompt: &Prompt,
    (number, episode): (usize, &Episode),
    turn: usize,
    replies: bool,
) -> Result<Vec<Message>, OpError> {
    let actions = |at: usize| episode.turns.get(at).map_or(&[][..], |turn: &Turn| &turn.actions);
    let turns: Vec<Said<'_>> = episode.turns[..turn]
        .iter()
        .enumerate()
        .map(|(at, turn)| Said {
            reply: turn.reply.as_deref().filter(|_| replies),
            action: &turn.action,
            observation: &turn.observation,
            actions: actions(at + 1),
        })
        .collect();
    let scene = Scene { task: &episode.task, start: &episode.start, first: actions(0), turns: &turns };
    match prompt.lacks(&scene) {
        None => Ok(prompt.messages(&scene)),
        Some(what) => Err(OpError::with_help(
            format!("episode {number} does not hold {what} before turn {turn}, and the prompt tells them"),
            "write `actions = \"always\"` in the step that made the episodes, or `actions = \"none\"` in `prompt`",
        )),
    }
}

/// A state as a line of an artifact keeps it.
pub struct Recalled<'a> {
    /// What the line is: `pair`, `reflection`.
    pub line: &'static str,
    /// Line of the episode in the episodes file, from 0.
    pub episode: usize,
    pub turn: usize,
    pub task: &'a Task,
    pub past: &'a Past,
    /// Admissible actions of the state.
    pub actions: &'a [String],
}

impl<'a> From<&'a Pair> for Recalled<'a> {
    fn from(pair: &'a Pair) -> Self {
        let Pair { episode, turn, task, past, actions, .. } = pair;
        Recalled { line: "pair", episode: *episode, turn: *turn, task, past, actions }
    }
}

impl<'a> From<&'a Reflection> for Recalled<'a> {
    fn from(reflection: &'a Reflection) -> Self {
        let Reflection { episode, turn, task, past, actions, .. } = reflection;
        Recalled { line: "reflection", episode: *episode, turn: *turn, task, past, actions }
    }
}

impl Recalled<'_> {
    /// Puts the state.
    ///
    /// # Errors
    /// A line that does not hold what the prompt tells.
    pub fn messages(&self, prompt: &Prompt) -> Result<Vec<Message>, OpError> {
        self.put(prompt, |scene| prompt.messages(scene))
    }

    fn put(&self, prompt: &Prompt, put: impl FnOnce(&Scene<'_>) -> Vec<Message>) -> Result<Vec<Message>, OpError> {
        let Past { start, turns, replies, actions } = self.past;
        let Recalled { line, episode, turn, .. } = self;
        for (what, n) in [("replies", replies.len()), ("actions", actions.len())] {
            if n > 0 && n != turns.len() {
                let want = turns.len();
                return Err(OpError::failed(format!(
                    "the {line} at turn {turn} of episode {episode} has {n} `{what}` of its past, expected {want}"
                )));
            }
        }
        let known = |at: usize| match at {
            _ if at == turns.len() => self.actions,
            _ => actions.get(at).map_or(&[][..], Vec::as_slice),
        };
        let said: Vec<Said<'_>> = turns
            .iter()
            .enumerate()
            .map(|(at, (action, observation))| Said {
                reply: replies.get(at).and_then(Option::as_deref).filter(|_| prompt.tells_replies()),
                action,
                observation,
                actions: known(at + 1),
            })
            .collect();
        let scene = Scene { task: self.task, start, first: known(0), turns: &said };
        match prompt.lacks(&scene) {
            None => Ok(put(&scene)),
            Some(what) => Err(OpError::with_help(
                format!("the {line} at turn {turn} of episode {episode} does not hold {what} of its past"),
                format!(
                    "write `past = \"whole\"` in the step that made the {line}s, or `actions = \"none\"` in `prompt`"
                ),
            )),
        }
    }
}

/// Puts the question of a pair.
///
/// # Errors
/// A pair that does not hold what the prompt tells.
pub fn question(prompt: &Prompt, pair: &Pair) -> Result<Vec<Message>, OpError> {
    Recalled::from(pair).put(prompt, |scene| prompt.question(scene, &pair.shown))
}

/// The ids of a state, open for an answer.
///
/// # Errors
/// The template's and the tokenizer's; a state longer than the model takes.
pub fn prompt_ids(text: &Text, messages: &[Message], model: &Model, room: usize) -> Result<Vec<u32>, OpError> {
    let dialogue = Dialogue::told(text, messages, |_| false)?;
    check_length(dialogue.ids().len(), model, room)?;
    Ok(dialogue.example.ids)
}

/// Refuses a prompt that leaves no room for its answer.
///
/// # Errors
/// Says how long it is and what the model takes.
pub fn check_length(prompt: usize, model: &Model, room: usize) -> Result<(), OpError> {
    let limit = model.config.max_positions;
    if prompt + room > limit {
        return Err(OpError::with_help(
            format!("a prompt of {prompt} tokens and an answer of {room} do not fit the model's {limit} positions"),
            "raise `max_positions` of the model, or shorten the episodes",
        ));
    }
    Ok(())
}

/// What `make` makes, kept in the step's scratch folder under `name` until the step ends: after a stop, parts that were
/// finished are read instead of made again.
///
/// # Errors
/// Those of `make` and of the file system.
pub fn kept<T: Serialize + serde::de::DeserializeOwned>(
    ctx: &OpContext<'_>,
    name: &str,
    make: impl FnOnce() -> Result<T, OpError>,
) -> Result<T, OpError> {
    let path = ctx.scratch().join(format!("{name}.json"));
    if path.exists() {
        return serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|e| OpError::failed(format!("cannot read the checkpoint `{path}`: {e}")));
    }
    let value = make()?;
    let next = ctx.scratch().join("next.json");
    let mut file = fs_err::File::create(&next)?;
    serde_json::to_writer(&mut file, &value).map_err(std::io::Error::from)?;
    file.sync_all()?;
    fs_err::rename(next, path)?;
    Ok(value)
}
