//! Whoever acts: one trait, and three makes of it.
//!
//! 1. [`Own`]: a model of ours, through the sampler that training uses.
//! 2. [`Gguf`]: quantized weights, which can be sampled and not trained.
//! 3. [`Endpoint`]: an OpenAI-compatible server.
//!
//! Invariants: an op that acts knows only the trait; an answer depends on the conversation, the sampling and the random
//! stream of its own ask, never on what is asked beside it; what a make cannot say (ids, log-probabilities, lengths) is
//! `None`, never a guess; who answered, and whether the same answers would come again, is told by [`Policy::identity`].

mod endpoint;
pub mod gguf;
mod http;
mod local;
mod own;
mod quantized;

pub use endpoint::{Api, Choices, Endpoint, POLICY_FILE_VERSION, PolicyFile, Settings};
pub use gguf::Gguf;
pub use own::{Own, lend};
pub use quantized::Quantized;

pub use crate::infer::Sampling;

use actloom_engine::op::{DeviceRequest, OpError};
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::rng::Rng;
use crate::text::{Message, Role};

/// A conversation that a policy holds, with whatever it has computed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session(usize);

/// A question to a policy: what is the next turn of this conversation?
pub struct Ask<'a> {
    pub session: Session,
    /// Answers to be held to; empty means free.
    pub allowed: &'a [String],
    pub sampling: &'a Sampling,
    /// The stream that the answer is drawn from.
    pub rng: Rng,
    /// The answer becomes the conversation's next turn. At most one ask of a batch may keep a session's answer, and then
    /// no other may ask it.
    pub keep: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The policy ended it, or one of the stop strings did.
    End,
    /// It was cut off.
    Length,
    /// The conversation fills what the policy can read, and nothing was said.
    Room,
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Without the end token. Special tokens stay in it, so that none can hide.
    pub text: String,
    /// Token ids, the end token included if it was reached.
    pub ids: Option<Vec<u32>>,
    /// Log-probability of each token under the distribution it was drawn from.
    pub logps: Option<Vec<f32>>,
    pub finish: Finish,
}

impl Answer {
    /// The text, if the answer came to its end.
    pub fn ended(&self) -> Option<&str> {
        (self.finish == Finish::End).then_some(&*self.text)
    }
}

/// Who acts, as the provenance tells it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Identity {
    /// `own`, `gguf` or `endpoint`.
    pub make: &'static str,
    /// What was loaded, or what the server says it serves.
    pub served: Vec<String>,
    /// Models that a server lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listed: Vec<String>,
    /// Where: a device and why, or a server's address.
    pub at: String,
    /// Equal inputs and seeds give equal answers.
    pub reproducible: bool,
}

/// What was spent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub answers: u64,
    /// Tokens that were read, not counting those of a conversation that had been read before.
    pub read: u64,
    /// Tokens that were sampled.
    pub sampled: u64,
    /// Requests that had to be made again.
    pub retries: u64,
}

/// Whoever acts.
pub trait Policy {
    fn identity(&self) -> Identity;

    fn cost(&self) -> Cost;

    /// How many conversations it is best asked side by side.
    fn width(&self) -> usize;

    /// Reserves what it needs on a device: what for, `None` where it needs nothing there.
    ///
    /// # Errors
    /// When it does not fit, with what would.
    fn memory(&self) -> Result<Option<String>, OpError> {
        Ok(None)
    }

    /// Whether a reasoning that comes apart from its answer, as some servers send it, is put before the answer in its
    /// marks. Models of ours say both in one text.
    fn join_reasoning(&mut self, _join: bool) {}

    /// Shows these variables to the chat template in every conversation that is opened from now on.
    ///
    /// # Errors
    /// A template that does not have them; a policy without one.
    fn set(&mut self, variables: &Map<String, Value>) -> Result<(), OpError> {
        match variables.keys().next() {
            None => Ok(()),
            Some(name) => Err(OpError::failed(format!("this policy has no chat template, expected none for `{name}`"))),
        }
    }

    /// A new conversation, with no turn yet.
    fn open(&mut self) -> Session;

    /// Drops a conversation and all that was computed for it.
    fn close(&mut self, session: Session);

    /// Tells what stands before the first turn.
    ///
    /// # Errors
    /// When something was said already.
    fn system(&mut self, session: Session, content: &str) -> Result<(), OpError>;

    /// Appends a user's turn; the conversation is then open for an answer.
    ///
    /// # Errors
    /// Those of the template and the tokenizer.
    fn user(&mut self, session: Session, content: &str) -> Result<(), OpError>;

    /// Appends an answer that was given before.
    ///
    /// # Errors
    /// Those of the template and the tokenizer.
    fn assistant(&mut self, session: Session, content: &str) -> Result<(), OpError>;

    /// Whether it can be given the beginning of an answer: [`Policy::begin`].
    fn begins(&self) -> bool {
        false
    }

    /// Puts the beginning of the next answer; what is then answered goes on from it, and is told without it.
    ///
    /// # Errors
    /// A policy that cannot; the tokenizer's.
    fn begin(&mut self, _session: Session, _text: &str) -> Result<(), OpError> {
        Err(cannot_begin(&self.identity()))
    }

    /// Length of the conversation in tokens, where that is known.
    fn tokens(&self, session: Session) -> Option<usize>;

    /// The conversation as token ids, where they are known: what the next answer is drawn after.
    fn ids(&self, _session: Session) -> Option<&[u32]> {
        None
    }

    /// Longest conversation in tokens, where that is known.
    fn positions(&self) -> Option<usize>;

    /// Answers every ask, in their order. `stopping` ends early with [`OpError::Interrupted`].
    ///
    /// # Errors
    /// The make's own, and `Interrupted`.
    fn answer(&mut self, asks: &[Ask<'_>], stopping: &dyn Fn() -> bool) -> Result<Vec<Answer>, OpError>;
}

/// Why a policy cannot be given the beginning of an answer.
pub fn cannot_begin(who: &Identity) -> OpError {
    OpError::with_help(
        format!("`{}` cannot be given the beginning of an answer: its server writes the whole of it", who.at),
        "take weights that are here (a model folder or a `.gguf` file), or an endpoint with `api = \"completions\"` and \
         the model's `template`",
    )
}

/// As [`begin`], for messages that must leave room for an answer.
///
/// # Errors
/// Those of [`begin`], and a prompt that leaves no room for an answer of `room` tokens.
pub fn open_with(policy: &mut dyn Policy, messages: &[Message], room: usize) -> Result<Session, OpError> {
    let session = begin(policy, messages)?;
    check_room(policy, session, room)?;
    Ok(session)
}

/// Opens a conversation with messages, of which the last is the user's, however long they are.
///
/// # Errors
/// Those of the template and the tokenizer.
pub fn begin(policy: &mut dyn Policy, messages: &[Message]) -> Result<Session, OpError> {
    let session = policy.open();
    for message in messages {
        match message.role {
            Role::System => policy.system(session, &message.content)?,
            Role::User => policy.user(session, &message.content)?,
            Role::Assistant => policy.assistant(session, &message.content)?,
        }
    }
    Ok(session)
}

/// Refuses a conversation that leaves no room for an answer of `room` tokens.
///
/// # Errors
/// Says how long it is and what the policy takes.
pub fn check_room(policy: &dyn Policy, session: Session, room: usize) -> Result<(), OpError> {
    match (policy.tokens(session), policy.positions()) {
        (Some(prompt), Some(limit)) if prompt + room > limit => Err(OpError::with_help(
            format!("a prompt of {prompt} tokens and an answer of {room} do not fit the model's {limit} positions"),
            "take a policy with more positions, or shorten the episodes",
        )),
        _ => Ok(()),
    }
}

/// What can be at a path that is asked to act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// A Hugging Face folder.
    Own,
    /// This file.
    Gguf(Utf8PathBuf),
    /// This file.
    Endpoint(Utf8PathBuf),
}

/// Tells the three makes apart by what is at the path: a folder with `config.json`; a `.gguf` file or a folder that holds
/// exactly one; a `policy.json`, or a folder that holds one, or a file of another name that says the same.
///
/// # Errors
/// When it is none of them, or several.
pub fn make_of(path: &Utf8Path) -> Result<Make, OpError> {
    let gguf = |p: &Utf8Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let found = fs_err::metadata(path)?;
    if found.is_file() {
        let mut magic = [0; 4];
        let read = std::io::Read::read(&mut fs_err::File::open(path)?, &mut magic)?;
        if gguf(path) || &magic[..read] == b"GGUF" {
            return Ok(Make::Gguf(path.to_owned()));
        }
        // what a step made has no name of its own in the store
        let says_so =
            || serde_json::from_slice::<serde_json::Value>(&fs_err::read(path).ok()?).ok()?.get("endpoint").cloned();
        if magic.starts_with(b"{") && found.len() < 1 << 20 && says_so().is_some() {
            return Ok(Make::Endpoint(path.to_owned()));
        }
        return Err(OpError::failed(format!(
            "`{path}` is no policy, expected a model folder, a `.gguf` file or a `policy.json`"
        )));
    }
    let mut quantized = Vec::new();
    for entry in path.read_dir_utf8().map_err(|e| OpError::failed(format!("cannot read the folder `{path}`: {e}")))? {
        let entry = entry.map_err(|e| OpError::failed(format!("cannot read the folder `{path}`: {e}")))?;
        if gguf(entry.path()) {
            quantized.push(entry.path().to_owned());
        }
    }
    quantized.sort();
    let (own, endpoint) = (path.join("config.json").exists(), path.join("policy.json"));
    match (own, quantized.as_slice(), endpoint.exists()) {
        (true, _, false) => Ok(Make::Own),
        (false, [one], false) => Ok(Make::Gguf(one.clone())),
        (false, [], true) => Ok(Make::Endpoint(endpoint)),
        (false, [], false) => Err(OpError::failed(format!(
            "the folder `{path}` holds no policy, expected a `config.json` with weights, a `.gguf` file or a `policy.json`"
        ))),
        (false, [first, .., last], false) => Err(OpError::with_help(
            format!("the folder `{path}` holds {} `.gguf` files, expected one", quantized.len()),
            format!("name the file: `{first}` or `{last}`"),
        )),
        _ => Err(OpError::failed(format!(
            "the folder `{path}` holds a `policy.json` beside a model, expected one of them"
        ))),
    }
}

/// Opens whoever is at a path.
///
/// # Errors
/// Those of [`make_of`] and of the make's loader.
pub fn open(path: &Utf8Path, device: DeviceRequest) -> Result<Box<dyn Policy>, OpError> {
    Ok(match make_of(path)? {
        Make::Own => Box::new(own::load(path, device)?),
        Make::Gguf(file) => Box::new(gguf::load(&file, device)?),
        Make::Endpoint(file) => Box::new(Endpoint::load(&file)?),
    })
}

/// Refuses a path whose policy can act and not learn.
///
/// # Errors
/// Says what is there, why it cannot be trained, and what can.
pub fn refuse_training(path: &Utf8Path) -> Result<(), OpError> {
    let help = "train a Hugging Face folder of the same model (`config.json`, safetensors, `tokenizer.json`); \
                LoRA keeps the memory small";
    match make_of(path) {
        Ok(Make::Gguf(file)) => Err(OpError::with_help(
            format!(
                "`{file}` is a GGUF file: it can act in `rollout`, `alternatives` and `critic`, but not be trained, for a \
                 gradient step is smaller than the distance between two quantized values"
            ),
            help,
        )),
        Ok(Make::Endpoint(file)) => Err(OpError::with_help(
            format!("`{file}` names a server, which can be sampled but not trained: its weights are not here"),
            help,
        )),
        // whatever else is wrong with the folder, the loader says better
        Ok(Make::Own) | Err(_) => Ok(()),
    }
}
