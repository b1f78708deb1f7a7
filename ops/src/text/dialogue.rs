//! Conversations as token ids: states, answers, and the critic's question.
//!
//! Invariants: ids are appended, never remade: what was sampled is what is trained on; which tokens are learned is
//! known by construction; a choice counts only if the whole answer after the reasoning is one of the actions shown.

use std::ops::Deref;

use actloom_engine::op::OpError;

use super::tokenizer::{Message, Role, Text};
use crate::artifact::Past;
use crate::train::batch::Example;

/// Begins a reasoning.
pub const THINK_OPEN: &str = "<think>";
/// Ends a reasoning.
pub const THINK_CLOSE: &str = "</think>";
/// TextWorld's greeting, which says nothing about the task.
const BANNER: &str = "-= Welcome to TextWorld, ALFRED! =-\n\n";

/// What a user's turn says: TextWorld's greeting is left out.
pub fn said(content: &str) -> &str {
    content.strip_prefix(BANNER).unwrap_or(content)
}

/// A conversation that grows turn by turn. After a user's turn it is open for an answer. `T` holds the model's text
/// side: a reference, or an `Arc` where the conversation outlives the function.
#[derive(Clone)]
pub struct Dialogue<T> {
    text: T,
    messages: Vec<Message>,
    /// Messages at the end that have no ids yet: a system text waits for the first user's turn.
    waiting: usize,
    /// Ids so far, with the mask of what is learned.
    pub example: Example,
    /// Ids that a closed answer still owes, after its end token.
    owed: Vec<u32>,
    /// The beginning of an answer that is not given yet.
    begun: String,
    /// The template renders the last answer otherwise than it was given, as Qwen3's does. The conversation then grows by
    /// what was said and by what the template writes between turns, and is never rendered as a whole.
    rewrites: bool,
}

impl<T: Deref<Target = Text>> Dialogue<T> {
    pub fn new(text: T) -> Self {
        Dialogue {
            text,
            messages: Vec::new(),
            waiting: 0,
            example: Example::default(),
            owed: Vec::new(),
            begun: String::new(),
            rewrites: false,
        }
    }

    /// The conversation at a state: first observation, then actions and observations. Actions are learned where
    /// `learn` says so.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn at(text: T, past: &Past, learn: bool) -> Result<Self, OpError> {
        let mut dialogue = Dialogue::new(text);
        dialogue.user(&past.start)?;
        for (action, observation) in &past.turns {
            dialogue.assistant(action, learn)?;
            dialogue.user(observation)?;
        }
        Ok(dialogue)
    }

    /// A conversation of messages; of the answers in it, by their number, are learned those that `learn` says.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn told(text: T, messages: &[Message], learn: impl Fn(usize) -> bool) -> Result<Self, OpError> {
        let mut dialogue = Dialogue::new(text);
        let mut answers = 0;
        for message in messages {
            match message.role {
                Role::System => dialogue.system(&message.content)?,
                Role::User => {
                    dialogue.user(&message.content)?;
                }
                Role::Assistant => {
                    dialogue.assistant(&message.content, learn(answers))?;
                    answers += 1;
                }
            }
        }
        Ok(dialogue)
    }

    /// What the model is told before anything else.
    ///
    /// # Errors
    /// When something was said already.
    pub fn system(&mut self, content: &str) -> Result<(), OpError> {
        if !self.messages.is_empty() {
            return Err(OpError::failed(
                "a system text stands in the middle of a conversation, expected at its beginning",
            ));
        }
        self.messages.push(Message::system(content));
        self.waiting = 1;
        Ok(())
    }

    /// A user's turn, and the opening of the answer to it. Returns the ids it added.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn user(&mut self, content: &str) -> Result<Vec<u32>, OpError> {
        let from = self.messages.len() - std::mem::take(&mut self.waiting);
        self.messages.push(Message::user(said(content)));
        let mut ids = std::mem::take(&mut self.owed);
        let rest = if self.rewrites { None } else { self.text.render_from(&self.messages, from, true).ok() };
        match rest {
            Some(rest) => ids.extend(self.text.encode(&rest)?),
            // Not the first turn: that one has nothing before it to rewrite.
            None if from > 0 => {
                self.rewrites = true;
                ids = self.text.encode(&self.text.after_answer(said(content))?)?;
                self.drop_second_end(&mut ids);
            }
            None => ids.extend(self.text.encode(&self.text.render_from(&self.messages, from, true)?)?),
        }
        self.example.push(&ids, false);
        Ok(ids)
    }

    /// The beginning of the answer to the last user's turn, which then goes on from it. Returns the ids it added.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn begin(&mut self, content: &str) -> Result<Vec<u32>, OpError> {
        let ids = self.text.encode(content)?;
        self.example.push(&ids, false);
        self.begun.push_str(content);
        Ok(ids)
    }

    /// An answer given as text, with its end token.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn assistant(&mut self, content: &str, learn: bool) -> Result<(), OpError> {
        let mut ids = self.text.encode(content)?;
        ids.extend(self.text.eos.first());
        self.answered(content, &ids, learn)
    }

    /// An answer given as ids, the end token included if it was reached; behind what was begun, where something was.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn answered(&mut self, content: &str, ids: &[u32], learn: bool) -> Result<(), OpError> {
        self.example.push(ids, learn);
        let content = std::mem::take(&mut self.begun) + content;
        if self.rewrites {
            return Ok(());
        }
        let open = self.text.render(&self.messages, true)?;
        self.messages.push(Message::assistant(&content));
        let whole = self.text.render(&self.messages, false)?;
        match whole.strip_prefix(&open).and_then(|rest| rest.strip_prefix(&*content)) {
            Some(closing) => {
                let mut closing = self.text.encode(closing)?;
                self.drop_second_end(&mut closing);
                self.owed = closing;
            }
            None => self.rewrites = true,
        }
        Ok(())
    }

    /// The end token that a template writes behind an answer is not written twice.
    fn drop_second_end(&self, ids: &mut Vec<u32>) {
        let is_end = |id: Option<&u32>| id.is_some_and(|id| self.text.eos.contains(id));
        if is_end(self.example.ids.last()) && is_end(ids.first()) {
            ids.remove(0);
        }
    }

    pub fn ids(&self) -> &[u32] {
        &self.example.ids
    }
}

/// The last observation with the question which of two actions is better.
pub fn critic_question(observation: &str, shown: &[String; 2]) -> String {
    format!("{observation}\nWhich action is better?\n{}\n{}", shown[0], shown[1])
}

/// Splits an answer into its reasoning and what follows. `None` where the marks are not one pair at the beginning.
pub fn split_reasoning(answer: &str) -> Option<(Option<&str>, &str)> {
    let (reasoning, rest) = match answer.strip_prefix(THINK_OPEN) {
        Some(inner) => {
            let (reasoning, rest) = inner.split_once(THINK_CLOSE)?;
            (Some(reasoning), rest)
        }
        None => (None, answer),
    };
    let marks = |text: &str| text.contains(THINK_OPEN) || text.contains(THINK_CLOSE);
    if marks(rest) || reasoning.is_some_and(marks) { None } else { Some((reasoning, rest)) }
}

/// Which of the two actions is said: exactly one of them must be.
pub fn which(said: &str, shown: &[String; 2]) -> Option<usize> {
    match (said == shown[0], said == shown[1]) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Prompt;

    #[test]
    fn only_a_whole_answer_that_is_one_of_the_actions_is_a_choice() {
        let shown = ["go to fridge 1".to_owned(), "open fridge 1".to_owned()];
        let choice = |answer: &str| Prompt::default().choice(answer).and_then(|said| which(said, &shown));
        assert_eq!(choice("go to fridge 1"), Some(0));
        assert_eq!(choice("<think>need mug.</think>open fridge 1"), Some(1));
        assert_eq!(choice("<think>open fridge 1</think>\n go to fridge 1 "), Some(0));
        for bad in [
            "",
            "go to fridge",
            "go to fridge 1 open fridge 1",
            "I choose go to fridge 1",
            "Go to fridge 1",
            "<think>open fridge 1",
            "open fridge 1</think>",
            "<think>a</think><think>b</think>open fridge 1",
            "<think><think>a</think>open fridge 1",
            "<think>a</think>open fridge 1</think>",
            "open fridge 1<|user|>",
            "open fridge 1\nopen fridge 1",
            "aller au fridge 1",
        ] {
            assert_eq!(choice(bad), None, "{bad:?}");
        }
        let same = ["look".to_owned(), "look".to_owned()];
        assert_eq!(which("look", &same), None, "two equal actions cannot be chosen between");
    }
}
