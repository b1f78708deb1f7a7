//! How a choice between two actions is asked for, said, begun and read.
//!
//! Invariants: a choice is said in the marks of an action; it counts only if it is exactly one of the two, by its text
//! or by its number, and nothing else; what is read back is what is written; where neither `choice` nor `reason` is set,
//! an answer is the action's text, and a reasoning may stand before it whatever is asked of actions.

use std::borrow::Cow;

use actloom_engine::op::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::parse::{self, ACTION_LINE};
use super::{Answer, Prompt, Reply, Thinking};
use crate::text::dialogue::{split_reasoning, which};

/// How a choice between two actions is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Choosing {
    /// By the text of the action.
    #[default]
    Text,
    /// By its number: 1 or 2.
    Index,
}

/// Whether a reasoning stands before a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// An answer that holds one is malformed.
    None,
    /// It may.
    Optional,
    /// It must, and must say something: a letter or a digit.
    Required,
}

/// The numbers of the two actions.
const NUMBERS: [&str; 2] = ["1", "2"];

impl Prompt {
    /// How a choice is said.
    pub fn choosing(&self) -> Choosing {
        self.choice.unwrap_or_default()
    }

    /// Whether a reasoning stands before a choice.
    pub fn reasoning(&self) -> Thinking {
        match (self.reason, self.thinking()) {
            (None, Thinking::None) => Thinking::Optional,
            (None, thinking) => thinking,
            (Some(Reason::None), _) => Thinking::None,
            (Some(_), Thinking::Opened) => Thinking::Opened,
            (Some(Reason::Optional), _) => Thinking::Optional,
            (Some(Reason::Required), _) => Thinking::Required,
        }
    }

    /// The prompt as it puts a state that is asked about: its instructions ask for the reasoning that `reason` names.
    pub(super) fn asking(&self) -> Cow<'_, Prompt> {
        match self.reason {
            None => Cow::Borrowed(self),
            Some(_) => Cow::Owned(Prompt { thinking: Some(self.reasoning()), ..self.clone() }),
        }
    }

    /// What is asked where the recipe has no text of its own.
    pub(super) fn preset_question(&self) -> &'static str {
        match (self.choosing(), self.says_nothing()) {
            (Choosing::Text, _) => "Which action is better?\n{first}\n{second}",
            (Choosing::Index, true) => "Which action is better, 1 or 2?\n1: {first}\n2: {second}",
            (Choosing::Index, false) => {
                "Which action is better, 1 or 2?\n1: {first}\n2: {second}\nWrite the number 1 or 2 in place of the action."
            }
        }
    }

    /// An answer to the question which action is better, taken apart; `None` where it is malformed.
    pub fn read_choice<'a>(&self, answer: &'a str) -> Option<Reply<'a>> {
        if self.is_plain() && !matches!(self.reason, Some(Reason::None | Reason::Required)) {
            return split_reasoning(answer).map(|(reasoning, said)| Reply { reasoning, action: said.trim() });
        }
        let reply = parse::parse(self.answer(), self.reasoning(), answer).ok()?;
        // a template that opens the reasoning leaves it to the model whether there is something in it
        let silent = self.reason == Some(Reason::Required) && !reply.reasoning.is_some_and(parse::says_something);
        (!silent).then_some(reply)
    }

    /// What an answer to the question which action is better says, in the marks of an action.
    pub fn choice<'a>(&self, answer: &'a str) -> Option<&'a str> {
        self.read_choice(answer).map(|reply| reply.action)
    }

    /// Which of the two actions [`Prompt::choice`] names: exactly one of them must be. Between two equal ones nothing can
    /// be chosen.
    pub fn which(&self, said: &str, shown: &[String; 2]) -> Option<usize> {
        match self.choosing() {
            Choosing::Text => which(said, shown),
            Choosing::Index if shown[0] == shown[1] => None,
            Choosing::Index => NUMBERS.iter().position(|number| *number == said),
        }
    }

    /// What names one of the two actions.
    fn named<'a>(&self, shown: &'a [String; 2], index: usize) -> &'a str {
        match self.choosing() {
            Choosing::Text => &shown[index],
            Choosing::Index => NUMBERS[index],
        }
    }

    /// The answer that chooses `shown[index]`.
    pub fn choose(&self, reasoning: Option<&str>, shown: &[String; 2], index: usize) -> String {
        parse::write(self.answer(), self.reasoning(), reasoning, self.named(shown, index))
    }

    /// The beginning of an answer that holds this reasoning and leaves nothing but the choice to be said; empty where no
    /// reasoning is wanted and the form has no mark before the action. It ends where a tokenizer splits anyway.
    pub fn begun(&self, reasoning: &str) -> String {
        let thinking = self.reasoning();
        let silent = reasoning.is_empty() && self.answer() == Answer::Line && thinking != Thinking::Opened;
        let mut begun = parse::write(self.answer(), thinking, Some(reasoning).filter(|_| !silent), "");
        let end = match self.answer() {
            Answer::Bare => begun.len(),
            Answer::Tag => begun.len() - parse::ACTION_OPEN.len() - parse::ACTION_CLOSE.len(),
            Answer::Line => begun.trim_end().len(),
        };
        begun.truncate(end);
        begun
    }

    /// The prompt that reads what [`Prompt::finished`] gives: the reasoning is behind it.
    pub fn at_once(&self) -> Prompt {
        Prompt { reason: Some(Reason::None), ..self.clone() }
    }

    /// An answer that was said behind [`Prompt::begun`], without the reasoning.
    pub fn finished<'a>(&self, rest: &'a str) -> Cow<'a, str> {
        match self.answer() {
            Answer::Line => Cow::Owned(format!("{ACTION_LINE}{rest}")),
            Answer::Bare | Answer::Tag => Cow::Borrowed(rest),
        }
    }

    /// What is said behind [`Prompt::begun`] to choose `shown[index]`.
    pub fn finish(&self, shown: &[String; 2], index: usize) -> String {
        let whole = parse::write(self.answer(), Thinking::None, None, self.named(shown, index));
        match whole.strip_prefix(ACTION_LINE) {
            Some(rest) if self.answer() == Answer::Line => rest.to_owned(),
            _ => whole,
        }
    }

    /// What of `reason` cannot be; paths begin at `prompt`.
    pub(super) fn check_choice(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |what: &str| {
            let help = "write `thinking = \"none\"`, and `enable_thinking = false` where the chat template has it";
            problems.push(Problem::new(&["prompt", "reason"], what).help(help));
        };
        if self.reason == Some(Reason::None) && self.thinking() == Thinking::Opened {
            refuse("a choice is to be said without a reasoning, and the chat template opens one");
        }
        if self.reason == Some(Reason::None) && self.enable_thinking == Some(true) {
            refuse("a choice is to be said without a reasoning, and the model is told to think");
        }
        problems
    }
}
