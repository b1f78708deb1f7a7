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

#[cfg(test)]
mod tests {
    use actloom_engine::op::DeviceRequest;
    use camino::Utf8PathBuf;

    use super::*;

    fn talk() -> Talk {
        let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
        let source = Source { folder, adapter: None, device: DeviceRequest::Cpu };
        let sampling =
            Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, max_tokens: 9, stop: Vec::new(), seed: 0 };
        Talk::open(&source, Some("be brief"), sampling).unwrap()
    }

    fn say(talk: &mut Talk, line: &str) -> Answer {
        talk.say(line, &|| false, &mut |_| {}).unwrap()
    }

    /// What the model says after `ids`, from an empty cache.
    fn afresh(talk: &Talk, ids: &[u32], n: usize) -> Vec<u32> {
        let mut sequence = talk.model.sequence();
        let mut feed = ids.to_vec();
        let mut said = Vec::new();
        for _ in 0..n {
            let z = talk.model.extend(&mut [(&mut sequence, &feed)]).unwrap().to_vec2::<f32>().unwrap().remove(0);
            let best = (0..z.len()).fold(0, |best, i| if z[i] > z[best] { i } else { best });
            said.push(best as u32);
            feed = vec![best as u32];
        }
        said
    }

    #[test]
    fn the_cache_goes_on_and_changes_no_answer() {
        let mut talk = talk();
        let first = say(&mut talk, "open the door");
        assert_eq!(first.reused, 0);
        let known = talk.ids.clone();
        let second = say(&mut talk, "and now?");
        assert_eq!(second.reused, first.prompt + first.sampled - 1, "all but the last id was in the cache");
        assert_eq!(talk.ids[..known.len()], known, "what was sampled stays as it is");
        let (prompt, answer) = talk.ids.split_at(second.prompt);
        assert_eq!(answer, afresh(&talk, prompt, second.sampled));
    }

    #[test]
    fn an_answer_that_is_stopped_counts_and_the_next_turn_follows_it() {
        let mut talk = talk();
        let stopped = talk.say("open the door", &|| true, &mut |_| {}).unwrap();
        assert_eq!((stopped.end, stopped.sampled), (End::Interrupted, 1));
        let next = say(&mut talk, "and now?");
        assert_eq!(next.reused, stopped.prompt, "the one id that was sampled is not in the cache yet");
        let (prompt, answer) = talk.ids.split_at(next.prompt);
        assert_eq!(answer, afresh(&talk, prompt, next.sampled));
    }

    #[test]
    fn a_turn_that_failed_leaves_the_conversation_and_a_reset_keeps_the_system_text() {
        let mut talk = talk();
        let first = say(&mut talk, "open the door");
        let long = "word ".repeat(3000);
        let error = talk.say(&long, &|| false, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("2048"), "{error}");
        assert_eq!(talk.messages.len(), 3);
        say(&mut talk, "and now?");
        talk.reset();
        let again = say(&mut talk, "open the door");
        assert_eq!((again.text, again.prompt), (first.text, first.prompt));
    }
}
