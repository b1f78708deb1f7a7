//! Conversations as token ids: states, answers, and the critic's question.
//!
//! Invariants: ids are appended, never remade: what was sampled is what is trained on; which tokens are learned is
//! known by construction; a choice counts only if the whole answer after the reasoning is one of the actions shown.

use std::ops::Deref;

use actloom_engine::op::OpError;

use super::tokenizer::{Message, Text};
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
    /// Ids so far, with the mask of what is learned.
    pub example: Example,
    /// Ids that a closed answer still owes, after its end token.
    owed: Vec<u32>,
    /// The text up to the end of an answer and whether its end token is among the ids, where only the next turn shows
    /// how the template closes it: some put an empty reasoning before the last answer and before no other.
    unsettled: Option<(String, bool)>,
}

/// What a user's turn did to the ids of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Added {
    /// These came after the others.
    More(Vec<u32>),
    /// The template shows earlier turns in another way now (without their reasoning), so all ids were made again.
    Anew(Vec<u32>),
}

impl<T: Deref<Target = Text>> Dialogue<T> {
    pub fn new(text: T) -> Self {
        Dialogue { text, messages: Vec::new(), example: Example::default(), owed: Vec::new(), unsettled: None }
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

    /// A user's turn, and the opening of the answer to it. Returns the ids it added.
    ///
    /// # Errors
    /// The template's and the tokenizer's; a template that shows earlier turns in another way now.
    pub fn user(&mut self, content: &str) -> Result<Vec<u32>, OpError> {
        match self.turn(content)? {
            Added::More(ids) => Ok(ids),
            Added::Anew(_) => Err(OpError::failed(
                "the chat template rewrites earlier turns, so a conversation cannot be extended token by token",
            )),
        }
    }

    /// As [`Dialogue::user`], for conversations that nothing is learned from: they may be made anew.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn turn(&mut self, content: &str) -> Result<Added, OpError> {
        let from = self.messages.len();
        self.messages.push(Message::user(said(content)));
        let unsettled = self.unsettled.take();
        if unsettled.is_none()
            && let Ok(rendered) = self.text.render_from(&self.messages, from, true)
        {
            let mut ids = std::mem::take(&mut self.owed);
            ids.extend(self.text.encode(&rendered)?);
            self.example.push(&ids, false);
            return Ok(Added::More(ids));
        }
        let whole = self.text.render(&self.messages, true)?;
        if let Some((before, ended)) = unsettled
            && let Some(rest) = whole.strip_prefix(&before)
        {
            let ids = self.closing(rest, ended)?;
            self.example.push(&ids, false);
            return Ok(Added::More(ids));
        }
        self.owed.clear();
        let ids = self.text.encode(&whole)?;
        self.example = Example::default();
        self.example.push(&ids, false);
        Ok(Added::Anew(ids))
    }

    /// Ids of what follows an answer, without the end token that it has already.
    fn closing(&self, rest: &str, ended: bool) -> Result<Vec<u32>, OpError> {
        let mut ids = self.text.encode(rest)?;
        if ended && ids.first().is_some_and(|id| self.text.eos.contains(id)) {
            ids.remove(0);
        }
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

    /// An answer given as ids, the end token included if it was reached. How the template closes it may show only with
    /// the next turn.
    ///
    /// # Errors
    /// The template's and the tokenizer's.
    pub fn answered(&mut self, content: &str, ids: &[u32], learn: bool) -> Result<(), OpError> {
        self.example.push(ids, learn);
        let open = self.text.render(&self.messages, true)?;
        self.messages.push(Message::assistant(content));
        let whole = self.text.render(&self.messages, false)?;
        let ended = ids.last().is_some_and(|id| self.text.eos.contains(id));
        match whole.strip_prefix(&open).and_then(|rest| rest.strip_prefix(content)) {
            Some(rest) => self.owed = self.closing(rest, ended)?,
            None => self.unsettled = Some((open + content, ended)),
        }
        Ok(())
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

/// Which of the two actions an answer chose: the text after the reasoning must be exactly one of them.
pub fn parse_choice(answer: &str, shown: &[String; 2]) -> Option<usize> {
    let (_, choice) = split_reasoning(answer)?;
    let choice = choice.trim();
    match (choice == shown[0], choice == shown[1]) {
        (true, false) => Some(0),
        (false, true) => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_answer_that_is_one_of_the_actions_is_a_choice() {
        let shown = ["go to fridge 1".to_owned(), "open fridge 1".to_owned()];
        let choice = |answer: &str| parse_choice(answer, &shown);
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
        assert_eq!(parse_choice("look", &same), None, "two equal actions cannot be chosen between");
    }
}
