//! Does what a plan says: a loop around the [`Schedule`](crate::schedule::Schedule) with threads for the steps.
//!
//! 1. Settle every ready node: its inputs are known, so is its key; a result in the store is reused.
//! 2. Start queued nodes within the run's resources: lock the key, look once more, run.
//! 3. Wait for a message: a report, an end, a lock that somebody else gave back. Nothing is polled but foreign locks.
//!
//! Invariants: the calling thread alone touches the schedule, the reporter and the journal; one lock per key, so nobody
//! runs a step twice, in this process or another; a failed step takes only its descendants with it; a journal that
//! cannot be written costs a warning, never a result.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, Scope, scope, sleep};
use std::time::{Duration, Instant};

use actloom_cache::{Action, ActionKey, KeyLock, Store, StoreError};
use petgraph::graph::NodeIndex;
use serde::Serialize;
use tracing::{info_span, warn};

use crate::event::{Event, OpEvent, Reporter};
use crate::executor::{Executor, InProcess};
use crate::graph::{Graph, Source};
use crate::journal::{Journal, RunLog};
use crate::key::{self, Key};
use crate::op::{DeviceRequest, Resources};
use crate::plan::{Plan, Planned, Verdict};
use crate::schedule::{Schedule, State};
use crate::step::{self, Outcome, StepRun};
use crate::stop::Stop;

/// The version that provenance names.
const PROGRAM: &str = env!("CARGO_PKG_VERSION");
/// How often somebody else's lock is tried, at first and at most.
const LOCK_FIRST: Duration = Duration::from_millis(10);
const LOCK_MOST: Duration = Duration::from_millis(500);
/// Training code may recurse and keep large arrays on its stack.
const STACK: usize = 16 << 20;

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// What all running steps together may occupy. A step that wants more cores than that gets all of them.
    pub slots: Resources,
    /// After a failure, go on with what does not depend on it.
    pub keep_going: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions { slots: Resources::default(), keep_going: true }
    }
}

/// Why a run did not begin. Once it has begun, everything that goes wrong is some step's failure.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("step `{step}` wants {wants} GPUs and the run has {has}")]
    NoGpu { step: String, wants: u32, has: u32 },
    #[error("cannot write the journal of runs: {0}")]
    Journal(std::io::Error),
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Id of the run in the journal.
    pub run: String,
    pub recipe: String,
    /// Somebody asked it to stop.
    pub stopped: bool,
    pub published: usize,
    pub reused: usize,
    pub failed: usize,
    pub skipped: usize,
    pub interrupted: usize,
    pub seconds: f64,
    /// Every node of the goal, in the recipe's order.
    pub steps: Vec<StepSummary>,
}

/// What came of one node.
#[derive(Clone, Debug, Serialize)]
pub struct StepSummary {
    #[serde(skip)]
    pub node: NodeIndex,
    pub name: String,
    pub state: State,
    pub key: Option<ActionKey>,
    /// What went wrong, or which node this one was skipped for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(skip)]
    pub action: Option<Arc<Action>>,
}

impl Summary {
    /// Everything wanted has a result.
    pub fn is_complete(&self) -> bool {
        self.failed + self.skipped + self.interrupted == 0
    }
}

/// Runs a plan in this process.
///
/// # Errors
/// A step that wants more GPUs than there are, or a journal that cannot be written; nothing has started then.
pub fn run(
    graph: &Graph,
    plan: &Plan,
    store: &Store,
    reporter: &mut dyn Reporter,
    stop: &Stop,
    options: &RunOptions,
) -> Result<Summary, RunError> {
    run_with(graph, plan, store, &InProcess, reporter, stop, options)
}

/// Runs a plan with another executor.
///
/// # Errors
/// See [`run`].
pub fn run_with(
    graph: &Graph,
    plan: &Plan,
    store: &Store,
    executor: &dyn Executor,
    reporter: &mut dyn Reporter,
    stop: &Stop,
    options: &RunOptions,
) -> Result<Summary, RunError> {
    let clock = Instant::now();
    let needs = needs(graph, plan, options)?;
    let log = Journal::of(store).begin(plan, PROGRAM).map_err(RunError::Journal)?;
    let id = log.record.id.clone();
    let _span = info_span!("run", id = %id, recipe = %plan.recipe).entered();
    let mut planned: Vec<Option<&Planned>> = vec![None; graph.nodes.node_count()];
    for step in &plan.steps {
        planned[step.node.index()] = Some(step);
    }
    let wanted: Vec<bool> = planned.iter().map(Option::is_some).collect();
    let count = wanted.len();
    let world = World { graph, plan, store, executor, stop, run: &id };
    let mut the_loop = Loop {
        world: &world,
        planned,
        reporter,
        log: Some(log),
        schedule: Schedule::new(&key::graph_dependencies(graph), &needs, &wanted, options.slots),
        keep_going: options.keep_going,
        halted: false,
        results: vec![None; count],
        keys: vec![None; count],
        causes: vec![None; count],
        locks: HashMap::new(),
        at_work: HashMap::new(),
        twins: HashMap::new(),
        made: HashSet::new(),
    };
    the_loop.tell(&Event::RunStarted {
        run: id.clone(),
        recipe: plan.recipe.clone(),
        steps: plan.counts.steps,
        reused: plan.counts.reuse,
        to_run: plan.counts.run + plan.counts.pending,
    });
    let (sender, receiver) = channel();
    scope(|scope| the_loop.go(scope, &sender, &receiver));
    Ok(the_loop.finish(clock.elapsed()))
}

/// What every node occupies, with GPUs struck out where the run is held to the CPU or has found nothing else.
fn needs(graph: &Graph, plan: &Plan, options: &RunOptions) -> Result<Vec<Resources>, RunError> {
    let on_cpu = match plan.device {
        DeviceRequest::Cpu => true,
        DeviceRequest::Auto => options.slots.gpu == 0,
        DeviceRequest::Cuda(_) => false,
    };
    let strike = |r: Resources| if on_cpu { Resources { gpu: 0, ..r } } else { r };
    let mut needs: Vec<Resources> = graph.nodes.node_weights().map(|node| strike(node.resources)).collect();
    for step in &plan.steps {
        let need = &mut needs[step.node.index()];
        if matches!(step.verdict, Verdict::Reuse { .. }) {
            // It takes nothing, unless gc is faster than this run and it has to be made again.
            need.gpu = need.gpu.min(options.slots.gpu);
        } else if need.gpu > options.slots.gpu {
            return Err(RunError::NoGpu { step: step.name.clone(), wants: need.gpu, has: options.slots.gpu });
        }
    }
    Ok(needs)
}

/// What the threads may read.
struct World<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    store: &'a Store,
    executor: &'a dyn Executor,
    stop: &'a Stop,
    run: &'a str,
}

/// What the threads say.
enum Message {
    Op(usize, OpEvent),
    Done(usize, Outcome),
    /// `None` when the run stopped while it waited.
    Lock(usize, Result<Option<KeyLock>, StoreError>),
}

struct Loop<'a, 'r> {
    world: &'a World<'a>,
    planned: Vec<Option<&'a Planned>>,
    reporter: &'r mut dyn Reporter,
    log: Option<RunLog>,
    schedule: Schedule,
    keep_going: bool,
    /// No new step starts.
    halted: bool,
    results: Vec<Option<Arc<Action>>>,
    keys: Vec<Option<Key>>,
    causes: Vec<Option<String>>,
    /// Locks that were waited for, until their node starts.
    locks: HashMap<usize, KeyLock>,
    /// Keys that run in this process, and the nodes with the same key that wait for them.
    at_work: HashMap<ActionKey, usize>,
    twins: HashMap<ActionKey, Vec<usize>>,
    /// Keys published by this run: forcing them twice is pointless.
    made: HashSet<ActionKey>,
}

impl<'a> Loop<'a, '_> {
    fn go<'s>(&mut self, scope: &'s Scope<'s, '_>, sender: &Sender<Message>, receiver: &Receiver<Message>)
    where
        'a: 's,
    {
        loop {
            self.halt_if_asked();
            while !self.halted {
                if let Some(node) = self.schedule.ready() {
                    self.settle(node);
                } else if let Some(node) = self.schedule.start() {
                    self.start(node, scope, sender);
                } else {
                    break;
                }
                self.halt_if_asked();
            }
            if self.schedule.is_finished() {
                return;
            }
            assert!(self.schedule.is_active(), "BUG: nothing runs and the run is not finished");
            match receiver.recv() {
                Ok(message) => self.hear(message),
                Err(_) => panic!("BUG: the scheduler hung up on itself"),
            }
        }
    }

    fn halt_if_asked(&mut self) {
        let stopped = self.world.stop.is_set();
        if stopped || self.halted {
            self.halted = true;
            let cause = if stopped { "the run was stopped" } else { "another step failed" };
            for node in self.schedule.stop() {
                self.locks.remove(&node);
                self.skipped(node, cause);
            }
        }
    }

    /// Finds out whether a ready node has a result already.
    fn settle(&mut self, node: usize) {
        match self.look(node) {
            Ok(Some(action)) => self.reused(node, action),
            Ok(None) => self.schedule.queue(node),
            Err(message) => self.failed(node, message, None),
        }
    }

    fn look(&mut self, node: usize) -> Result<Option<Arc<Action>>, String> {
        let planned = self.plan_of(node);
        let world = self.world;
        if let Verdict::Reuse { action, .. } = &planned.verdict
            && self.claim(action)?
        {
            return Ok(Some(Arc::clone(action)));
        }
        let known = match self.keys[node].take() {
            Some(key) => key,
            None => key::key(world.graph, NodeIndex::new(node), world.plan.device, |source| match source {
                Source::Step { node, output } => self.result(node.index()).outputs[output].id,
                Source::Outside(outside) => world.plan.paths[&outside.path].id,
            })
            .map_err(|error| error.to_string())?,
        };
        let key = known.key;
        self.keys[node] = Some(known);
        if planned.forced && !self.made.contains(&key) {
            return Ok(None);
        }
        let as_text = |error: StoreError| error.to_string();
        match world.store.action(&key).map_err(as_text)? {
            Some(action) if self.claim(&action)? && world.store.complete(&action).map_err(as_text)? => {
                Ok(Some(Arc::new(action)))
            }
            _ => Ok(None),
        }
    }

    /// Keeps gc from a result that this run stands on; false where gc was faster.
    fn claim(&self, action: &Action) -> Result<bool, String> {
        match self.world.store.used(&action.key) {
            Ok(()) => Ok(true),
            Err(StoreError::Gone { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs a node that has its resources, unless somebody else does or did.
    fn start<'s>(&mut self, node: usize, scope: &'s Scope<'s, '_>, sender: &Sender<Message>)
    where
        'a: 's,
    {
        let world = self.world;
        let Some(key) = self.keys[node].clone() else { panic!("BUG: a node without a key was queued") };
        if self.at_work.contains_key(&key.key) {
            self.schedule.wait(node);
            self.twins.entry(key.key).or_default().push(node);
            return;
        }
        let lock = match self.locks.remove(&node) {
            Some(lock) => Ok(Some(lock)),
            None => world.store.lock(&key.key),
        };
        let lock = match lock {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                self.schedule.wait(node);
                let why = "another process works on it".to_owned();
                self.tell(&Event::Queued { node: self.name(node), why });
                let sender = sender.clone();
                let waiting = spawn(scope, format!("wait {}", self.name(node)), move || {
                    let _ = sender.send(Message::Lock(node, wait_for_lock(world, &key.key)));
                });
                if let Err(error) = waiting {
                    self.schedule.wake(node);
                    self.failed(node, error, None);
                }
                return;
            }
            Err(error) => return self.failed(node, error.to_string(), None),
        };
        // Between the look and the lock another process may have finished it.
        match self.look(node) {
            Ok(Some(action)) => return self.reused(node, action),
            Ok(None) => {}
            Err(message) => return self.failed(node, message, None),
        }
        let index = NodeIndex::new(node);
        let artifacts =
            step::artifacts(world.graph, index, &world.plan.paths, |source| self.results[source].as_deref());
        self.at_work.insert(key.key, node);
        self.tell(&Event::Started { node: self.name(node), op: self.plan_of(node).op.to_owned() });
        let step = StepRun {
            graph: world.graph,
            node: index,
            key,
            artifacts,
            device: world.plan.device,
            forced: self.plan_of(node).forced,
            run: world.run,
            program: PROGRAM,
            store: world.store,
            executor: world.executor,
            stop: world.stop,
        };
        let sender = sender.clone();
        let running = spawn(scope, self.name(node), move || {
            let forward = |event| {
                let _ = sender.send(Message::Op(node, event));
            };
            // Ops are caught by their executor; this is for the engine's own bugs, which must not hang the run.
            let outcome = catch_unwind(AssertUnwindSafe(|| step.perform(&forward))).unwrap_or_else(|_| {
                let message = "the engine panicked while it ran this step".to_owned();
                Outcome::Failed { message, help: Some("this is a bug in actloom".to_owned()) }
            });
            drop(lock);
            let _ = sender.send(Message::Done(node, outcome));
        });
        if let Err(message) = running {
            self.done(node, Outcome::Failed { message, help: None });
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Op(node, report) => self.tell(&Event::Op { node: self.name(node), report }),
            Message::Lock(node, lock) => {
                self.schedule.wake(node);
                match lock {
                    Ok(Some(lock)) => {
                        self.locks.insert(node, lock);
                    }
                    // The loop sees the stop itself.
                    Ok(None) => {}
                    Err(error) => self.failed(node, error.to_string(), None),
                }
            }
            Message::Done(node, outcome) => self.done(node, outcome),
        }
    }

    fn done(&mut self, node: usize, outcome: Outcome) {
        let key = self.keys[node].as_ref().map(|key| key.key);
        let twins = key.and_then(|key| {
            self.at_work.remove(&key);
            self.twins.remove(&key)
        });
        for &twin in twins.iter().flatten() {
            self.schedule.wake(twin);
        }
        match outcome {
            Outcome::Published { action, took } => {
                self.made.insert(action.key);
                self.remember(node, action.key);
                let bytes = step::bytes(&action);
                self.results[node] = Some(Arc::new(*action));
                self.schedule.publish(node);
                self.tell(&Event::Published { node: self.name(node), took, bytes });
            }
            Outcome::Interrupted => {
                self.tell(&Event::Interrupted { node: self.name(node) });
                let skipped = self.schedule.interrupt(node);
                self.skipped_for(node, &skipped);
            }
            Outcome::Failed { message, help } => {
                // The same key fails the same way.
                for twin in twins.into_iter().flatten() {
                    self.failed(twin, message.clone(), help.clone());
                }
                self.failed(node, message, help);
            }
        }
    }

    fn reused(&mut self, node: usize, action: Arc<Action>) {
        self.locks.remove(&node);
        self.remember(node, action.key);
        self.results[node] = Some(action);
        self.schedule.reuse(node);
        self.tell(&Event::Reused { node: self.name(node) });
    }

    fn failed(&mut self, node: usize, message: String, help: Option<String>) {
        self.locks.remove(&node);
        self.causes[node] = Some(message.clone());
        self.tell(&Event::Failed { node: self.name(node), message, help });
        let skipped = self.schedule.fail(node);
        self.skipped_for(node, &skipped);
        if !self.keep_going {
            self.halted = true;
        }
    }

    fn skipped_for(&mut self, node: usize, skipped: &[usize]) {
        let cause = self.name(node);
        for &node in skipped {
            self.skipped(node, &cause);
        }
    }

    fn skipped(&mut self, node: usize, cause: &str) {
        self.causes[node] = Some(cause.to_owned());
        self.tell(&Event::Skipped { node: self.name(node), cause: cause.to_owned() });
    }

    fn tell(&mut self, event: &Event) {
        self.reporter.event(event);
        self.journal(|log| log.event(event));
    }

    fn remember(&mut self, node: usize, key: ActionKey) {
        let name = self.name(node);
        self.journal(|log| log.result(&name, key));
    }

    fn journal(&mut self, write: impl FnOnce(&mut RunLog) -> std::io::Result<()>) {
        if let Some(log) = &mut self.log
            && let Err(error) = write(log)
        {
            warn!("cannot write the journal of runs, going on without it: {error}");
            self.log = None;
        }
    }

    fn plan_of(&self, node: usize) -> &'a Planned {
        match self.planned[node] {
            Some(planned) => planned,
            None => panic!("BUG: node {node} is not part of the plan"),
        }
    }

    fn name(&self, node: usize) -> String {
        self.plan_of(node).name.clone()
    }

    fn result(&self, node: usize) -> &Action {
        match &self.results[node] {
            Some(action) => action,
            None => panic!("BUG: `{}` has no result yet", self.name(node)),
        }
    }

    fn finish(mut self, took: Duration) -> Summary {
        let count = |state: State| self.schedule.states().iter().filter(|&&s| s == state).count();
        let (published, reused, failed) = (count(State::Published), count(State::Reused), count(State::Failed));
        let (skipped, interrupted) = (count(State::Skipped), count(State::Interrupted));
        self.tell(&Event::RunFinished { published, reused, failed, skipped, interrupted, took });
        let steps = self.world.plan.steps.iter().map(|step| {
            let index = step.node.index();
            let action = self.results[index].clone();
            StepSummary {
                node: step.node,
                name: step.name.clone(),
                state: self.schedule.state(index),
                key: action.as_ref().map(|a| a.key).or(self.keys[index].as_ref().map(|key| key.key)),
                cause: self.causes[index].clone(),
                action,
            }
        });
        let summary = Summary {
            run: self.world.run.to_owned(),
            recipe: self.world.plan.recipe.clone(),
            stopped: self.world.stop.is_set(),
            published,
            reused,
            failed,
            skipped,
            interrupted,
            seconds: took.as_secs_f64(),
            steps: steps.collect(),
        };
        if let Some(Err(error)) = self.log.take().map(|log| log.finish(&summary)) {
            warn!("cannot write the journal of runs: {error}");
        }
        summary
    }
}

fn spawn<'s>(scope: &'s Scope<'s, '_>, name: String, work: impl FnOnce() + Send + 's) -> Result<(), String> {
    // The name of a thread must not hold a zero byte; names of steps do not.
    match Builder::new().name(name).stack_size(STACK).spawn_scoped(scope, work) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot start a thread: {error}")),
    }
}

/// Tries until the lock is free or the run stops.
fn wait_for_lock(world: &World<'_>, key: &ActionKey) -> Result<Option<KeyLock>, StoreError> {
    let mut pause = LOCK_FIRST;
    while !world.stop.is_set() {
        if let Some(lock) = world.store.lock(key)? {
            return Ok(Some(lock));
        }
        sleep(pause);
        pause = (pause * 2).min(LOCK_MOST);
    }
    Ok(None)
}
