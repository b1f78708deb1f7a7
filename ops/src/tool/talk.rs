//! `actloom chat`: a conversation with a model whose cache goes on from turn to turn.
//!
//! Invariants: ids that were sampled stay as they are in later prompts; the cache is reused wherever the new prompt begins
//! with what it has seen, and begun anew where the template rewrites earlier turns; a turn that failed leaves the
//! conversation as it was before.

use actloom_engine::op::OpError;

use super::generate::{End, Sampling, Voice, check_room, step};
use super::{Source, load_with_text};
use crate::model::{Model, Sequence};
use crate::rng::Rng;
use crate::text::{Message, Role, Text};

/// One conversation.
pub struct Talk {
    model: Model,
    text: Text,
    sampling: Sampling,
    messages: Vec<Message>,
    /// The cache, which has seen the first of `ids`.
    sequence: Sequence,
    /// Every id so far, and their text.
    ids: Vec<u32>,
    so_far: String,
    turns: u64,
}

/// What one turn was.
#[derive(Clone, Debug)]
pub struct Answer {
    pub text: String,
    pub end: End,
    /// Ids of the whole prompt, and how many of them the cache had seen.
    pub prompt: usize,
    pub reused: usize,
    /// Ids that were sampled.
    pub sampled: usize,
}

impl Talk {
    /// Loads the model.
    ///
    /// # Errors
    /// Names what is missing or not supported.
    pub fn open(source: &Source, system: Option<&str>, sampling: Sampling) -> Result<Talk, OpError> {
        let (model, text) = load_with_text(source)?;
        let sequence = model.sequence();
        let mut talk = Talk {
            model,
            text,
            sampling,
            messages: Vec::new(),
            sequence,
            ids: Vec::new(),
            so_far: String::new(),
            turns: 0,
        };
        talk.restart(system);
        Ok(talk)
    }

    /// Whether turns are rendered; without a template what is said is continued as plain text.
    pub fn has_template(&self) -> bool {
        self.text.has_template()
    }

    /// Forgets the conversation but not the system text.
    pub fn reset(&mut self) {
        let system = self.messages.first().filter(|m| m.role == Role::System).map(|m| m.content.clone());
        self.restart(system.as_deref());
    }

    /// Begins anew under another system text, or none.
    pub fn restart(&mut self, system: Option<&str>) {
        self.messages =
            system.into_iter().map(|text| Message { role: Role::System, content: text.to_owned() }).collect();
        self.forget();
    }

    fn forget(&mut self) {
        self.sequence = self.model.sequence();
        self.ids.clear();
        self.so_far.clear();
    }

    /// One turn: `show` gets the answer as it comes; `stopping` ends it early, and what was said counts.
    ///
    /// # Errors
    /// The model's, the template's and the tokenizer's; a conversation that is too long.
    pub fn say(
        &mut self,
        line: &str,
        stopping: &dyn Fn() -> bool,
        show: &mut dyn FnMut(&str),
    ) -> Result<Answer, OpError> {
        let before = self.messages.len();
        self.messages.push(Message::user(line));
        let turn = self.turn(line, stopping, show);
        match &turn {
            Ok(answer) => self.messages.push(Message::assistant(&answer.text)),
            Err(_) => {
                self.messages.truncate(before);
                // the cache may have seen half of it
                self.forget();
            }
        }
        turn
    }

    fn turn(&mut self, line: &str, stopping: &dyn Fn() -> bool, show: &mut dyn FnMut(&str)) -> Result<Answer, OpError> {
        // 1. The prompt; ids that are known stay as they are.
        let whole =
            if self.has_template() { self.text.render(&self.messages, true)? } else { self.so_far.clone() + line };
        let ids = match whole.strip_prefix(&self.so_far) {
            Some(new) => [self.ids.as_slice(), &self.text.encode(new)?].concat(),
            None => self.text.encode(&whole)?,
        };
        if ids.is_empty() {
            return Err(OpError::failed("there is nothing to continue"));
        }
        check_room(&self.model, ids.len())?;

        // 2. What of it the cache has seen.
        let seen = self.sequence.len();
        if !(seen < ids.len() && self.ids.len() >= seen && ids[..seen] == self.ids[..seen]) {
            self.sequence = self.model.sequence();
        }
        let reused = self.sequence.len();
        let feed = ids[reused..].to_vec();

        // 3. The answer.
        let sequence = std::mem::replace(&mut self.sequence, self.model.sequence());
        let rng = Rng::at(self.sampling.seed, &[self.turns]);
        self.turns += 1;
        let mut voice = Voice::new(&self.text, &self.sampling.stop, sequence, feed, rng);
        while voice.end.is_none() {
            for piece in step(&self.model, &self.text, &self.sampling, &mut [&mut voice])? {
                show(&piece);
            }
            if voice.end.is_none() && stopping() {
                show(&voice.interrupt()?);
            }
        }
        let Voice { sequence, ids: sampled, shown, end, .. } = voice;
        let answer = Answer {
            text: shown,
            end: end.unwrap_or(End::Interrupted),
            prompt: ids.len(),
            reused,
            sampled: sampled.len(),
        };
        self.sequence = sequence;
        self.so_far = whole + &self.text.decode(&sampled)?;
        self.ids = ids;
        self.ids.extend(sampled);
        Ok(answer)
    }
}
