//! The texts that a style comes with, and which placeholders each text has.
//!
//! Invariants: the text of a setting depends on the prompt's other settings alone; the style `bare` says nothing that the
//! environment did not say, as long as an action alone is the answer. These texts belong to the results of every op that
//! uses them: a change of one of them raises the versions of those ops.

use super::{Answer, Form, Prompt, Style, Thinking};

/// A text of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    System,
    Instructions,
    First,
    Turn,
    State,
    History,
    Past,
    Actions,
    Folded,
    Question,
}

impl Slot {
    pub(super) const ALL: [Slot; 10] = [
        Slot::System,
        Slot::Instructions,
        Slot::First,
        Slot::Turn,
        Slot::State,
        Slot::History,
        Slot::Past,
        Slot::Actions,
        Slot::Folded,
        Slot::Question,
    ];

    /// Where a recipe writes it.
    pub(super) fn path(self) -> &'static [&'static str] {
        match self {
            Slot::System => &["prompt", "system"],
            Slot::Instructions => &["prompt", "texts", "instructions"],
            Slot::First => &["prompt", "texts", "first"],
            Slot::Turn => &["prompt", "texts", "turn"],
            Slot::State => &["prompt", "texts", "state"],
            Slot::History => &["prompt", "texts", "history"],
            Slot::Past => &["prompt", "texts", "past"],
            Slot::Actions => &["prompt", "texts", "actions"],
            Slot::Folded => &["prompt", "texts", "folded"],
            Slot::Question => &["prompt", "texts", "question"],
        }
    }

    /// Its placeholders.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Slot::System => &["instructions", "task"],
            Slot::Instructions => &[],
            Slot::First => &["instructions", "task", "observation", "actions"],
            Slot::Turn => &["observation", "actions"],
            Slot::State => &["instructions", "task", "start", "history", "observation", "actions", "step"],
            Slot::History => &["entries", "shown", "taken"],
            Slot::Past => &["step", "observation", "action", "reply"],
            Slot::Actions => &["list", "count"],
            Slot::Folded => &["kinds", "count"],
            Slot::Question => &["first", "second"],
        }
    }

    /// The placeholders without which the text would not do its work.
    pub(super) fn needed(self) -> &'static [&'static str] {
        match self {
            Slot::System | Slot::Instructions | Slot::Folded => &[],
            Slot::First | Slot::Turn | Slot::State => &["observation"],
            Slot::History => &["entries"],
            Slot::Past => &["action"],
            Slot::Actions => &["list"],
            Slot::Question => &["first", "second"],
        }
    }

    /// The form it belongs to, if it belongs to one.
    pub(super) fn form(self) -> Option<Form> {
        match self {
            Slot::First | Slot::Turn => Some(Form::Conversation),
            Slot::State | Slot::History | Slot::Past => Some(Form::Single),
            _ => None,
        }
    }
}

impl Prompt {
    /// A text: the recipe's, else the style's.
    pub(super) fn text(&self, slot: Slot) -> &str {
        let own = self.own(slot);
        own.unwrap_or_else(|| match slot {
            Slot::System => "",
            Slot::Instructions => self.preset_instructions(),
            Slot::First if self.says_nothing() => "{observation}\n\n{actions}",
            Slot::First => "{instructions}\n\nTask: {task}\n\n{observation}\n\n{actions}",
            Slot::Turn => "{observation}\n\n{actions}",
            Slot::State => {
                "{instructions}\n\nTask: {task}\n\n{history}\n\nStep {step}. You see:\n{observation}\n\n{actions}"
            }
            Slot::History => "The last {shown} of your {taken} steps so far:\n{entries}",
            Slot::Past => "Step {step}. You saw:\n{observation}\nYou did: {action}",
            Slot::Actions => "Now you can do one of these:\n{list}",
            Slot::Folded => "Now {count} actions are possible.\nThey begin with: {kinds}",
            Slot::Question => self.preset_question(),
        })
    }

    /// What the recipe itself says.
    pub(super) fn own(&self, slot: Slot) -> Option<&str> {
        let texts = &self.texts;
        let own = match slot {
            Slot::System => &self.system,
            Slot::Instructions => &texts.instructions,
            Slot::First => &texts.first,
            Slot::Turn => &texts.turn,
            Slot::State => &texts.state,
            Slot::History => &texts.history,
            Slot::Past => &texts.past,
            Slot::Actions => &texts.actions,
            Slot::Folded => &texts.folded,
            Slot::Question => &texts.question,
        };
        own.as_deref()
    }

    /// The plain style: whatever the environment says and nothing more.
    pub(super) fn says_nothing(&self) -> bool {
        self.style == Style::Bare && self.answer() == Answer::Bare && self.texts.instructions.is_none()
    }

    fn preset_instructions(&self) -> &'static str {
        // a model whose template opens the reasoning is told nothing about it
        match (self.answer(), self.thinking()) {
            (Answer::Bare, Thinking::None | Thinking::Opened) => "Answer with one action and nothing else.",
            (Answer::Bare, Thinking::Optional) => {
                "Answer with one action and nothing else. You may think first, between <think> and </think>."
            }
            (Answer::Bare, Thinking::Required) => {
                "Think first, between <think> and </think>. Then answer with one action and nothing else."
            }
            (Answer::Tag, Thinking::None | Thinking::Opened) => {
                "Answer with one action between <action> and </action>, and with nothing else."
            }
            (Answer::Tag, Thinking::Optional) => {
                "Answer with one action between <action> and </action>, and with nothing else. You may think first, between <think> and </think>."
            }
            (Answer::Tag, Thinking::Required) => {
                "Think first, between <think> and </think>. Then write one action between <action> and </action>, and nothing else."
            }
            (Answer::Line, Thinking::None | Thinking::Opened) => {
                "Answer with one line that begins with `Action:` and holds one action."
            }
            (Answer::Line, Thinking::Optional) => {
                "End your answer with one line that begins with `Action:` and holds one action. Before it you may write what you think, beginning with `Thought:`."
            }
            (Answer::Line, Thinking::Required) => {
                "Begin your answer with `Thought:` and what you think. End it with one line that begins with `Action:` and holds one action."
            }
        }
    }
}
