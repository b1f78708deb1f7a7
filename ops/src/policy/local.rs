//! Policies whose weights are here: conversations as token ids, over caches that go on from turn to turn.
//!
//! Invariants: ids are appended, and made again from text only where the template shows earlier turns in another way (as
//! servers do with every request); a conversation that several asks share is read once.

use std::collections::BTreeSet;
use std::sync::Arc;

use actloom_engine::op::OpError;
use serde_json::{Map, Value};

use super::{Answer, Ask, Cost, Finish, Identity, Policy, Sampling, Session};
use crate::infer::Choice;
use crate::rng::Rng;
use crate::text::{Dialogue, Text};

/// One thing to be continued.
pub struct Job<'a, S> {
    /// What has been read; it goes on.
    pub sequence: S,
    /// What is read before the first sample; at least one token.
    pub feed: Vec<u32>,
    /// Answers to be held to, as ids with their end token; empty means free.
    pub allowed: Vec<Vec<u32>>,
    pub sampling: &'a Sampling,
    pub rng: Rng,
}

/// The list that an answer is held to, if there is one.
///
/// # Errors
/// A model without an end token, which would leave an answer open.
pub fn held_to(allowed: Vec<Vec<u32>>, text: &Text) -> Result<Option<Choice>, OpError> {
    match (allowed.is_empty(), text.eos.first()) {
        (true, _) => Ok(None),
        (false, Some(end)) => Choice::new(allowed, *end).map(Some),
        (false, None) => {
            Err(OpError::failed("the model has no end token, which an answer held to a list of actions needs"))
        }
    }
}

/// What became of it.
pub struct Done<S> {
    /// After everything but the last sampled token.
    pub sequence: S,
    /// Sampled tokens, the end token included if it was reached.
    pub ids: Vec<u32>,
    pub logps: Vec<f32>,
    /// Without end token and stop string.
    pub text: String,
    /// An end token or a stop string was reached.
    pub ended: bool,
}

/// Weights that can be sampled.
pub trait Weights {
    /// What has been read of one conversation.
    type Sequence: Clone;

    fn sequence(&self) -> Self::Sequence;

    fn positions(&self) -> usize;

    /// Conversations that are best held side by side.
    fn width(&self) -> usize;

    /// What is reserved on a device, and for what; `None` on the host.
    fn memory(&self) -> Result<Option<String>, OpError> {
        Ok(None)
    }

    /// Jobs that are best given at once.
    fn together(&self) -> usize;

    /// Beginnings that jobs have in common are read once without being told.
    fn shares(&self) -> bool;

    /// Reads tokens.
    fn read(&self, sequence: &mut Self::Sequence, ids: &[u32]) -> Result<(), OpError>;

    fn complete(
        &self,
        text: &Text,
        jobs: Vec<Job<'_, Self::Sequence>>,
        stopping: &dyn Fn() -> bool,
    ) -> Result<Vec<Done<Self::Sequence>>, OpError>;
}

impl<W: Weights> Weights for &W {
    type Sequence = W::Sequence;

    fn sequence(&self) -> W::Sequence {
        (**self).sequence()
    }

    fn positions(&self) -> usize {
        (**self).positions()
    }

    fn width(&self) -> usize {
        (**self).width()
    }

    fn together(&self) -> usize {
        (**self).together()
    }

    fn shares(&self) -> bool {
        (**self).shares()
    }

    fn read(&self, sequence: &mut W::Sequence, ids: &[u32]) -> Result<(), OpError> {
        (**self).read(sequence, ids)
    }

    fn complete(
        &self,
        text: &Text,
        jobs: Vec<Job<'_, W::Sequence>>,
        stopping: &dyn Fn() -> bool,
    ) -> Result<Vec<Done<W::Sequence>>, OpError> {
        (**self).complete(text, jobs, stopping)
    }
}

struct Talk<S> {
    dialogue: Dialogue<Arc<Text>>,
    /// `None` while it is being continued.
    sequence: Option<S>,
    /// Ids that the sequence has not read yet.
    feed: Vec<u32>,
}

/// A policy made of weights and their text side.
pub struct Local<W: Weights> {
    weights: W,
    text: Arc<Text>,
    identity: Identity,
    talks: Vec<Option<Talk<W::Sequence>>>,
    cost: Cost,
}

impl<W: Weights> Local<W> {
    pub(super) fn new(weights: W, text: Arc<Text>, identity: Identity) -> Self {
        Local { weights, text, identity, talks: Vec::new(), cost: Cost::default() }
    }

    fn talk(&mut self, session: Session) -> &mut Talk<W::Sequence> {
        match self.talks.get_mut(session.0).and_then(Option::as_mut) {
            Some(talk) => talk,
            None => panic!("BUG: a conversation is used that is not open"),
        }
    }

    /// Ids of the answers a policy may be held to, each with its end token.
    fn allowed(&self, answers: &[String]) -> Result<Vec<Vec<u32>>, OpError> {
        let text = &self.text;
        answers
            .iter()
            .map(|a| {
                let mut ids = text.encode(a)?;
                ids.extend(text.eos.first());
                Ok(ids)
            })
            .collect()
    }
}

impl<W: Weights> Policy for Local<W> {
    fn identity(&self) -> Identity {
        self.identity.clone()
    }

    fn cost(&self) -> Cost {
        self.cost
    }

    fn width(&self) -> usize {
        self.weights.width()
    }

    fn memory(&self) -> Result<Option<String>, OpError> {
        self.weights.memory()
    }

    fn set(&mut self, variables: &Map<String, Value>) -> Result<(), OpError> {
        if variables.is_empty() {
            return Ok(());
        }
        match Arc::get_mut(&mut self.text) {
            Some(text) => text.set(variables),
            None => Err(OpError::failed("the chat template was set while a conversation was open")),
        }
    }

    fn open(&mut self) -> Session {
        let dialogue = Dialogue::new(self.text.clone());
        let talk = Talk { dialogue, sequence: Some(self.weights.sequence()), feed: Vec::new() };
        let free = self.talks.iter().position(Option::is_none).unwrap_or(self.talks.len());
        if free == self.talks.len() {
            self.talks.push(None);
        }
        self.talks[free] = Some(talk);
        Session(free)
    }

    fn close(&mut self, session: Session) {
        self.talks[session.0] = None;
    }

    fn system(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        self.talk(session).dialogue.system(content)
    }

    fn user(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        let talk = self.talk(session);
        let ids = talk.dialogue.user(content)?;
        talk.feed.extend(ids);
        Ok(())
    }

    fn assistant(&mut self, session: Session, content: &str) -> Result<(), OpError> {
        let talk = self.talk(session);
        let from = talk.dialogue.ids().len();
        talk.dialogue.assistant(content, false)?;
        let new = talk.dialogue.ids()[from..].to_vec();
        talk.feed.extend(new);
        Ok(())
    }

    fn begins(&self) -> bool {
        true
    }

    fn begin(&mut self, session: Session, text: &str) -> Result<(), OpError> {
        let talk = self.talk(session);
        let ids = talk.dialogue.begin(text)?;
        talk.feed.extend(ids);
        Ok(())
    }

    fn tokens(&self, session: Session) -> Option<usize> {
        self.talks.get(session.0)?.as_ref().map(|talk| talk.dialogue.ids().len())
    }

    fn ids(&self, session: Session) -> Option<&[u32]> {
        Some(self.talks.get(session.0)?.as_ref()?.dialogue.ids())
    }

    fn positions(&self) -> Option<usize> {
        Some(self.weights.positions())
    }

    fn answer(&mut self, asks: &[Ask<'_>], stopping: &dyn Fn() -> bool) -> Result<Vec<Answer>, OpError> {
        let mut answers = Vec::with_capacity(asks.len());
        for asks in asks.chunks(self.weights.together()) {
            answers.extend(self.some(asks, stopping)?);
        }
        Ok(answers)
    }
}

impl<W: Weights> Local<W> {
    /// Answers asks that are given to the weights at once.
    fn some(&mut self, asks: &[Ask<'_>], stopping: &dyn Fn() -> bool) -> Result<Vec<Answer>, OpError> {
        // 1. what is asked, and of which caches
        let mut jobs = Vec::with_capacity(asks.len());
        let mut counted = BTreeSet::new();
        for ask in asks {
            let allowed = self.allowed(ask.allowed)?;
            let Some(talk) = self.talks.get_mut(ask.session.0).and_then(Option::as_mut) else {
                panic!("BUG: a conversation is asked that is not open");
            };
            let Some(sequence) = talk.sequence.as_mut() else {
                panic!("BUG: a conversation is continued twice at once");
            };
            if talk.feed.is_empty() {
                return Err(OpError::failed("a conversation without a turn was asked for an answer"));
            }
            if !ask.keep && talk.feed.len() > 1 && !self.weights.shares() {
                let (head, last) = talk.feed.split_at(talk.feed.len() - 1);
                self.weights.read(sequence, head)?;
                self.cost.read += head.len() as u64;
                talk.feed = last.to_vec();
            }
            let (sequence, feed) = if ask.keep {
                let Some(sequence) = talk.sequence.take() else { panic!("BUG: it was there a moment ago") };
                (sequence, std::mem::take(&mut talk.feed))
            } else {
                (sequence.clone(), talk.feed.clone())
            };
            if !self.weights.shares() || counted.insert(ask.session.0) {
                self.cost.read += feed.len() as u64;
            }
            jobs.push(Job { sequence, feed, allowed, sampling: ask.sampling, rng: ask.rng.clone() });
        }
        // 2. all of them together
        let done = self.weights.complete(&self.text, jobs, stopping)?;
        // 3. what was said
        let mut answers = Vec::with_capacity(asks.len());
        for (ask, done) in asks.iter().zip(done) {
            let text = done.text;
            self.cost.answers += 1;
            self.cost.sampled += done.ids.len() as u64;
            if ask.keep {
                let talk = self.talk(ask.session);
                talk.dialogue.answered(&text, &done.ids, false)?;
                talk.feed.extend(done.ids.last());
                talk.sequence = Some(done.sequence);
            }
            let finish = if done.ended { Finish::End } else { Finish::Length };
            answers.push(Answer { text, ids: Some(done.ids), logps: Some(done.logps), finish });
        }
        Ok(answers)
    }
}
