//! How a state is put to a model, and how its reply is read as an action.
//!
//! Invariants: one value of [`Prompt`] says how states are written in training and in play alike; a reply is an action
//! only as a whole, and nothing quoted inside it counts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tokenizer::Message;
use crate::artifact::Task;

/// How states are put and actions are read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    /// What the model is told first; nothing where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How much of what came before is shown, and in which form.
    pub form: Form,
}

/// How a state's past is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Observations are the user's turns and actions the model's.
    #[default]
    Conversation,
    /// One user's turn tells task, past and present.
    Single,
}

/// A state of an episode.
pub struct Scene<'a> {
    pub task: &'a Task,
    /// The first observation.
    pub start: &'a str,
    /// Admissible actions at the start, sorted; empty where they are not known.
    pub first: &'a [String],
    /// What was done and seen so far.
    pub turns: &'a [Said<'a>],
}

/// One earlier turn.
pub struct Said<'a> {
    /// All that was said, if more than the action.
    pub reply: Option<&'a str>,
    pub action: &'a str,
    pub observation: &'a str,
    /// Admissible actions after it; empty where they are not known.
    pub actions: &'a [String],
}

/// Why a reply is no action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// Nothing is said where the action should be.
    Empty,
    /// Marks of reasoning or of the action are missing, doubled, nested or out of place.
    Marks,
    /// The action goes over more than one line.
    Lines,
}

/// A reply taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    pub reasoning: Option<&'a str>,
    pub action: &'a str,
}

impl Prompt {
    /// A state as messages; the last is the user's.
    pub fn messages(&self, scene: &Scene<'_>) -> Vec<Message> {
        let mut messages = vec![Message::user(scene.start)];
        for turn in scene.turns {
            messages.push(Message::assistant(turn.reply.unwrap_or(turn.action)));
            messages.push(Message::user(turn.observation));
        }
        messages
    }

    /// The user's turn after an action, in a conversation that grows.
    pub fn turn(&self, observation: &str, _actions: &[String]) -> String {
        observation.to_owned()
    }

    /// Whether the messages of a state begin those of the next one, so that a conversation can grow.
    pub fn grows(&self) -> bool {
        self.form == Form::Conversation
    }

    /// Whether states tell the admissible actions.
    pub fn lists_actions(&self) -> bool {
        false
    }

    /// The reply that says an action.
    pub fn reply(&self, _reasoning: Option<&str>, action: &str) -> String {
        action.to_owned()
    }

    /// The action that a reply says.
    ///
    /// # Errors
    /// Why it says none.
    pub fn parse<'a>(&self, reply: &'a str) -> Result<Reply<'a>, Malformed> {
        match reply.trim() {
            "" => Err(Malformed::Empty),
            action => Ok(Reply { reasoning: None, action }),
        }
    }
}
