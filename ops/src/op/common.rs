//! What several ops share: worlds by name, models from folders, states as conversations.

use actloom_engine::op::{OpContext, OpError};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::{Episode, Past};
use crate::model::{self, Model, open_device};
use crate::policy::{self, Policy, Sampling};
use crate::text::{Dialogue, Text};

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
    let (device, why) = open_device(ctx.device())?;
    ctx.note("device", why);
    let model = model::load(folder, &device)?;
    let text = Text::load(folder, &model.config.eos)?;
    if text.vocabulary() > model.config.vocab_size {
        let (have, want) = (model.config.vocab_size, text.vocabulary());
        return Err(OpError::failed(format!("the tokenizer of `{folder}` has {want} entries, the model {have}")));
    }
    Ok((model, text))
}

/// Opens whoever acts and notes in the provenance who that is.
///
/// # Errors
/// Names what is missing.
pub fn open_policy(ctx: &OpContext<'_>, path: &Utf8Path) -> Result<Box<dyn Policy>, OpError> {
    let policy = policy::open(path, ctx.device())?;
    note_policy(ctx, &*policy);
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

/// The state before turn `turn` of an episode.
pub fn past(episode: &Episode, turn: usize) -> Past {
    Past {
        start: episode.start.clone(),
        turns: episode.turns[..turn].iter().map(|t| (t.action.clone(), t.observation.clone())).collect(),
    }
}

/// The ids of a state, open for an action.
///
/// # Errors
/// The template's and the tokenizer's; a state longer than the model takes.
pub fn state_ids(text: &Text, past: &Past, model: &Model, room: usize) -> Result<Vec<u32>, OpError> {
    let dialogue = Dialogue::at(text, past, false)?;
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
