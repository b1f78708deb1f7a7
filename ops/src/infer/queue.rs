//! The work of one call: what waits, what runs, what is done, and the memory that is spoken for.
//!
//! Invariants: a job starts when the prefix it goes on from is there and its longest possible sequence fits into the
//! budget (a job alone always starts, so nothing waits for ever); memory is given back when the last sequence that
//! needs it ends. Which worker does what, and when, changes no result.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actloom_engine::op::OpError;

use super::share::{Job, Plan};
use super::{Completion, Request};
use crate::model::{Model, Sequence, failed};
use crate::nn::cpu::cache::PAGE;

/// Memory spoken for; given back when dropped.
#[derive(Debug)]
pub(super) struct Hold {
    bytes: usize,
    used: Arc<AtomicUsize>,
    /// The prefix whose pages are shared lives as long as this.
    _parent: Option<Arc<Hold>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A job that was started.
pub(super) struct Started {
    pub job: Job,
    pub sequence: Sequence,
    /// What the sequence has not seen yet.
    pub feed: Vec<u32>,
    /// `None` for a prefix.
    pub request: Option<Request>,
    pub hold: Arc<Hold>,
}

struct State {
    waiting: VecDeque<Job>,
    requests: Vec<Option<Request>>,
    /// Finished prefixes that somebody will still go on from.
    ready: Vec<Option<(Sequence, Arc<Hold>)>>,
    /// How many jobs still have to start from a prefix.
    heirs: Vec<usize>,
    done: Vec<Option<Completion>>,
    running: usize,
    workers: usize,
    failed: Option<OpError>,
}

/// Shared by the workers of one call.
pub(super) struct Queue<'a> {
    pub model: &'a Model,
    plan: Plan,
    prompts: Vec<Vec<u32>>,
    budget: usize,
    used: Arc<AtomicUsize>,
    stopped: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl<'a> Queue<'a> {
    /// `requests` without their prompts, which are `prompts`.
    pub fn new(model: &'a Model, requests: Vec<Request>, prompts: Vec<Vec<u32>>, plan: Plan, budget: usize) -> Self {
        let mut heirs = vec![0; plan.prefixes.len()];
        for job in &plan.jobs {
            if let Some(parent) = parent(&plan, *job) {
                heirs[parent] += 1;
            }
        }
        let state = State {
            waiting: plan.jobs.iter().copied().collect(),
            done: requests.iter().map(|_| None).collect(),
            requests: requests.into_iter().map(Some).collect(),
            ready: heirs.iter().map(|_| None).collect(),
            heirs,
            running: 0,
            workers: 0,
            failed: None,
        };
        Queue {
            model,
            plan,
            prompts,
            budget,
            used: Arc::default(),
            stopped: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job that can start; where none can, waits for one if `wait`. `None`: nothing to do now, or, after a
    /// wait, ever.
    ///
    /// # Errors
    /// candle's.
    pub fn take(&self, wait: bool) -> Result<Option<Started>, OpError> {
        let mut state = self.lock();
        loop {
            if self.stopped() || state.waiting.is_empty() {
                return Ok(None);
            }
            let can = |job: &Job| parent(&self.plan, *job).is_none_or(|p| state.ready[p].is_some());
            if let Some(at) = state.waiting.iter().position(can) {
                let need = self.need(&state, state.waiting[at]);
                if state.running == 0 || self.used.load(Ordering::Relaxed) + need <= self.budget {
                    return self.start(&mut state, at, need).map(Some);
                }
            }
            if !wait {
                return Ok(None);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Bytes of the longest sequence that a job may come to, less what it shares.
    fn need(&self, state: &State, job: Job) -> usize {
        let len = match job {
            Job::Prefix(p) => self.plan.prefixes[p].len,
            Job::Request(i, _) => {
                let answer = state.requests[i].as_ref().map_or(0, |r| r.sampling.max_tokens);
                (self.prompts[i].len() + answer).min(self.model.config.max_positions)
            }
        };
        let shared = parent(&self.plan, job).map_or(0, |p| self.plan.prefixes[p].len / PAGE);
        (len.div_ceil(PAGE) - shared) * PAGE * self.model.token_bytes()
    }

    fn start(&self, state: &mut State, at: usize, need: usize) -> Result<Started, OpError> {
        let Some(job) = state.waiting.remove(at) else { panic!("BUG: a waiting job went missing") };
        state.running += 1;
        let above = parent(&self.plan, job);
        let mut request = match job {
            Job::Prefix(_) => None,
            Job::Request(i, _) => state.requests[i].take(),
        };
        let prompt = match job {
            Job::Prefix(p) => &self.prompts[self.plan.prefixes[p].of][..self.plan.prefixes[p].len],
            Job::Request(i, _) => &self.prompts[i],
        };
        let (mut sequence, mut held) = (None, None);
        if let Some(p) = above {
            state.heirs[p] -= 1;
            // the last to go on from a prefix takes it along
            let found = if state.heirs[p] == 0 { state.ready[p].take() } else { state.ready[p].clone() };
            (sequence, held) = found.unzip();
        } else if let Some(mut from) = request.as_mut().and_then(|r| r.from.take()) {
            // at least the last token of the prompt is fed
            let same = from.ids().iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
            from.truncate(same).map_err(failed)?;
            sequence = Some(from);
        }
        let sequence = sequence.unwrap_or_else(|| self.model.sequence());
        let feed = prompt[sequence.len()..].to_vec();
        self.used.fetch_add(need, Ordering::Relaxed);
        let hold = Arc::new(Hold { bytes: need, used: self.used.clone(), _parent: held });
        Ok(Started { job, sequence, feed, request, hold })
    }

    /// A prefix was computed.
    pub fn prefix(&self, id: usize, sequence: Sequence, hold: Arc<Hold>) {
        let mut state = self.lock();
        state.ready[id] = Some((sequence, hold));
        state.running -= 1;
        drop(state);
        self.changed.notify_all();
    }

    /// A request was completed; its memory is the caller's from here on.
    pub fn complete(&self, index: usize, completion: Completion, hold: Arc<Hold>) {
        drop(hold);
        let mut state = self.lock();
        state.done[index] = Some(completion);
        state.running -= 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the work of everybody; the first error is kept.
    pub fn fail(&self, error: OpError) {
        self.lock().failed.get_or_insert(error);
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// A worker begins; it is counted until the guard is dropped.
    pub fn enlist(&self) -> Enlisted<'_, 'a> {
        self.lock().workers += 1;
        Enlisted(self)
    }

    /// Waits until all workers are gone, and looks now and then whether to stop.
    pub fn watch(&self, stopping: &dyn Fn() -> bool) {
        let mut state = self.lock();
        while state.workers > 0 {
            let waited = self.changed.wait_timeout(state, Duration::from_millis(20));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if !self.stopped() && stopping() {
                drop(state);
                self.fail(OpError::Interrupted);
                state = self.lock();
            }
        }
    }

    /// All completions, in the order of the requests.
    ///
    /// # Errors
    /// The first that a worker met.
    pub fn finish(self) -> Result<Vec<Completion>, OpError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        match state.failed {
            Some(error) => Err(error),
            None => Ok(state.done.into_iter().flatten().collect()),
        }
    }
}

/// The prefix that a job goes on from.
fn parent(plan: &Plan, job: Job) -> Option<usize> {
    match job {
        Job::Prefix(p) => plan.prefixes[p].parent,
        Job::Request(_, parent) => parent,
    }
}

/// A worker's presence. One that panics stops the others, which would wait for its jobs.
pub(super) struct Enlisted<'q, 'a>(&'q Queue<'a>);

impl Drop for Enlisted<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stopped.store(true, Ordering::Relaxed);
        }
        self.0.lock().workers -= 1;
        self.0.changed.notify_all();
    }
}
