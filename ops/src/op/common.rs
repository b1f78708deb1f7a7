//! What several ops share: worlds by name, models from folders, states as conversations.

use actloom_engine::op::{OpContext, OpError};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::{Episode, Past};
use crate::infer::Choice;
use crate::model::{self, Model, open_device};
use crate::text::{Dialogue, Text};

/// Environments by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EnvName {
    /// ALFWorld's text world of rooms, receptacles and objects.
    #[default]
    Household,
}

/// Loads a model and its text side onto the step's device, which is noted in the provenance.
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

/// Holds an answer to one of these actions.
///
/// # Errors
/// The tokenizer's; a model without an end token.
pub fn held_to(text: &Text, actions: &[String]) -> Result<Choice, OpError> {
    let Some(end) = text.eos.first() else {
        return Err(OpError::failed("the model has no end token, which an answer held to a list of actions needs"));
    };
    Choice::new(actions.iter().map(|a| text.encode(a)).collect::<Result<Vec<_>, _>>()?, *end)
}
