//! Sampling: requests in, completions out, many decoded side by side over pages of keys and values that they share.
//!
//! 1. `share` finds beginnings that prompts have in common.
//! 2. `queue` hands jobs to workers while memory lasts.
//! 3. `worker` decodes: one step advances all its sequences, and prompts are read in chunks beside them.
//! 4. `sampling` draws tokens, `choice` holds an answer to a list, `stop` finds its end.
//!
//! Invariants: a request's answer is a function of its prompt, settings and random stream; nothing else (what is beside
//! it, order, threads, sharing, chunks) changes a bit, for kernels are batch-invariant and streams are its own.
//! Log-probabilities come from the code that the trainer uses, so they are equal to the bit.

pub mod choice;
mod queue;
pub mod sampling;
mod share;
mod stop;
mod worker;

use std::sync::Arc;

use actloom_engine::op::OpError;

use self::queue::Queue;
use crate::model::{Model, Sequence, failed};
use crate::nn::Kernels;
use crate::rng::Rng;
use crate::text::Text;

pub use self::choice::Choice;
pub use self::sampling::Sampling;
pub use self::stop::Watch;

/// One thing to be continued.
pub struct Request {
    /// All that is said before the answer, at least one token.
    pub prompt: Vec<u32>,
    /// A sequence that has seen a beginning of the prompt, such as that of the last completion of a conversation: what it
    /// has in common with the prompt is not computed again.
    pub from: Option<Sequence>,
    pub sampling: Sampling,
    /// Answers to be held to; `None`: free.
    pub choice: Option<Arc<Choice>>,
    pub rng: Rng,
}

impl Request {
    /// A free answer to a prompt.
    pub fn new(prompt: impl Into<Vec<u32>>, sampling: Sampling, rng: Rng) -> Self {
        Request { prompt: prompt.into(), from: None, sampling, choice: None, rng }
    }
}

/// Why an answer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// One of the model's end tokens or of `stop_ids`; it is the last id and not in the text.
    End,
    /// A text of `stop`; the text ends before it, the ids are those sampled.
    StopString,
    /// `max_tokens` were said.
    Length,
    /// The model takes no longer sequence.
    Context,
}

/// What became of a request.
pub struct Completion {
    /// Prompt and answer but for the last sampled token, to go on from.
    pub sequence: Sequence,
    /// Sampled tokens, the end token included if it was reached.
    pub ids: Vec<u32>,
    /// Log-probability of each, under the distribution it was drawn from.
    pub logps: Vec<f32>,
    /// Log-probability of each under the model's whole distribution at temperature 1.
    pub full_logps: Vec<f32>,
    /// The answer without end token and stop string. Special tokens stay in it.
    pub text: String,
    pub finish: Finish,
}

impl Completion {
    /// An end token was reached.
    pub fn ended(&self) -> bool {
        self.finish == Finish::End
    }
}

/// What sampling has to know of a tokenizer.
pub trait Tokens: Sync {
    /// Any of these ends an answer.
    fn eos(&self) -> &[u32];

    /// The text of token ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's.
    fn decode(&self, ids: &[u32]) -> Result<String, OpError>;
}

impl Tokens for Text {
    fn eos(&self) -> &[u32] {
        &self.eos
    }

    fn decode(&self, ids: &[u32]) -> Result<String, OpError> {
        Text::decode(self, ids)
    }
}

/// Largest number of requests that decode side by side.
pub const BATCH: usize = 96;

/// How much is done at once. None of it changes a result.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of keys and values; a request that needs more runs alone.
    pub memory: usize,
    /// Sequences that decode side by side.
    pub rows: usize,
    /// Tokens of a step, prompts and answers together.
    pub chunk: usize,
    /// Beginnings of so many tokens are computed once for all prompts that have them; `None`: never.
    pub share: Option<usize>,
    /// Threads that decode on their own; `None`: as many as pay.
    pub workers: Option<usize>,
}

impl Limits {
    /// What suits where a model's passes run.
    ///
    /// # Errors
    /// The device's.
    pub fn of(model: &Model) -> Result<Self, OpError> {
        Ok(match model.sampling_room().map_err(failed)? {
            None => Limits::default(),
            Some((rows, chunk, tokens)) => {
                Limits { memory: tokens * model.token_bytes(), rows, chunk, workers: Some(1), ..Limits::default() }
            }
        })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { memory: 4 << 30, rows: BATCH, chunk: 256, share: Some(16), workers: None }
    }
}

/// Completes every request; the order of the answers is that of the requests. `stopping` ends early with `Interrupted`.
///
/// # Errors
/// The model's, settings and prompts that mean nothing, and `Interrupted`.
pub fn complete(
    model: &Model,
    tokens: &dyn Tokens,
    requests: Vec<Request>,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<Completion>, OpError> {
    complete_within(model, tokens, requests, &Limits::of(model)?, stopping)
}

/// [`complete`] within other limits.
///
/// # Errors
/// As [`complete`].
pub fn complete_within(
    model: &Model,
    tokens: &dyn Tokens,
    mut requests: Vec<Request>,
    limits: &Limits,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<Completion>, OpError> {
    let _span = tracing::debug_span!("complete", requests = requests.len()).entered();
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    for request in &requests {
        check(model, request)?;
    }
    let prompts: Vec<Vec<u32>> = requests.iter_mut().map(|r| std::mem::take(&mut r.prompt)).collect();
    let fresh = requests.iter().zip(&prompts).map(|(r, p)| r.from.is_none().then_some(p.as_slice()));
    let plan = share::plan(&fresh.collect::<Vec<_>>(), limits.share.unwrap_or(usize::MAX));
    let workers = limits.workers.unwrap_or_else(|| workers(model, requests.len())).max(1);
    let rows = limits.rows.min(requests.len()).div_ceil(workers).max(1);
    let queue = Queue::new(model, requests, prompts, plan, limits.memory);
    if workers == 1 {
        worker::work(&queue, tokens, rows, limits.chunk, Some(stopping));
        return queue.finish();
    }
    // a worker's kernels run on its own thread: two workers never wait for each other within a step
    let pools = (0..workers)
        .map(|_| rayon::ThreadPoolBuilder::new().num_threads(1).build())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| OpError::failed(format!("cannot start a thread for sampling: {e}")))?;
    std::thread::scope(|scope| {
        for pool in &pools {
            let (enlisted, queue) = (queue.enlist(), &queue);
            scope.spawn(move || {
                let _enlisted = enlisted;
                pool.install(|| worker::work(queue, tokens, rows, limits.chunk, None));
            });
        }
        queue.watch(stopping);
    });
    queue.finish()
}

/// Refuses a request that cannot be answered.
fn check(model: &Model, request: &Request) -> Result<(), OpError> {
    request.sampling.check()?;
    if request.prompt.is_empty() {
        return Err(OpError::failed("the prompt has no token"));
    }
    let vocabulary = model.config.vocab_size;
    match &request.choice {
        Some(choice) if choice.largest() as usize >= vocabulary => Err(OpError::failed(format!(
            "an allowed answer has the token id {}, expected one below the vocabulary's size {vocabulary}",
            choice.largest()
        ))),
        _ => Ok(()),
    }
}

/// Threads that pay: rows are divided among them, and each reads all weights in every step.
fn workers(model: &Model, requests: usize) -> usize {
    /// Weights that stay in the caches: a few rows are enough to be worth reading them.
    const CACHED: usize = 32 << 20;
    if model.kernels != Kernels::Cpu {
        return 1;
    }
    let weights: usize = model.params().into_iter().map(|p| p.value.elem_count() * size_of::<f32>()).sum();
    let rows = if weights <= CACHED { 4 } else { 24 };
    (requests / rows).clamp(1, rayon::current_num_threads())
}
