//! The order of things: a pure state machine that says which step may be looked at, started or must be skipped.
//!
//! ```text
//! Want -> Ready -> Reused
//!               -> Queued -> Running -> Published | Failed | Interrupted | Reused
//!                            Running -> Waiting -> Ready      (somebody else works on the same key)
//! Want, Ready, Queued, Waiting -> Skipped                     (a dependency did not finish, or the run stops)
//! ```
//!
//! Invariants: no clock, no thread, no file; a node is looked at only when all its dependencies have results; the
//! needs of running nodes never exceed the capacity; among queued nodes the one with the longest chain of nodes behind
//! it starts first, ties by graph order, and one that does not fit keeps its share from those behind it, so nothing
//! starves. A transition that the drawing above does not have is a bug and panics.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use crate::op::Resources;

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not part of the goal.
    Unwanted,
    /// Waits for dependencies.
    Want,
    /// Dependencies have results; nobody looked yet whether this one has.
    Ready,
    /// Has to run and waits for resources.
    Queued,
    Running,
    /// Somebody else holds the lock of its key.
    Waiting,
    Reused,
    Published,
    Failed,
    Skipped,
    Interrupted,
}

impl State {
    /// Nothing more will happen to it.
    pub fn is_final(self) -> bool {
        use State::{Failed, Interrupted, Published, Reused, Skipped, Unwanted};
        matches!(self, Unwanted | Reused | Published | Failed | Skipped | Interrupted)
    }

    /// Dependents can read its outputs.
    pub fn has_result(self) -> bool {
        matches!(self, State::Reused | State::Published)
    }
}

/// The whole machine.
#[derive(Clone, Debug)]
pub struct Schedule {
    states: Vec<State>,
    /// Dependencies without a result.
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    needs: Vec<Resources>,
    /// Place in the start order, and its inverse.
    rank: Vec<usize>,
    by_rank: Vec<usize>,
    free: Resources,
    ready: BTreeSet<usize>,
    queued: BTreeSet<usize>,
    open: usize,
    active: usize,
}

impl Schedule {
    /// A machine over `dependencies[node]`. `wanted` must contain the dependencies of what it contains. A node that
    /// needs more cores than there are gets all of them.
    ///
    /// # Panics
    /// When the graph has a cycle or a node needs more GPUs than there are: the caller checks both.
    pub fn new(dependencies: &[Vec<usize>], needs: &[Resources], wanted: &[bool], capacity: Resources) -> Self {
        let count = dependencies.len();
        let mut dependents = vec![Vec::new(); count];
        for (node, sources) in dependencies.iter().enumerate().filter(|(node, _)| wanted[*node]) {
            for &source in sources {
                assert!(wanted[source], "BUG: node {node} is wanted and its dependency {source} is not");
                dependents[source].push(node);
            }
        }
        let mut chain = vec![1usize; count];
        for node in topological(dependencies).into_iter().rev() {
            chain[node] = 1 + dependents[node].iter().map(|&d| chain[d]).max().unwrap_or(0);
        }
        let mut by_rank: Vec<usize> = (0..count).collect();
        by_rank.sort_by_key(|&node| (Reverse(chain[node]), node));
        let mut rank = vec![0; count];
        for (place, &node) in by_rank.iter().enumerate() {
            rank[node] = place;
        }
        let needs = needs
            .iter()
            .zip(wanted)
            .map(|(need, wanted)| {
                assert!(!wanted || need.gpu <= capacity.gpu, "BUG: a step wants more GPUs than the run has");
                Resources { cpu: need.cpu.min(capacity.cpu), gpu: need.gpu }
            })
            .collect();
        let mut schedule = Schedule {
            states: wanted.iter().map(|&w| if w { State::Want } else { State::Unwanted }).collect(),
            missing: dependencies.iter().map(Vec::len).collect(),
            dependents,
            needs,
            rank,
            by_rank,
            free: capacity,
            ready: BTreeSet::new(),
            queued: BTreeSet::new(),
            open: wanted.iter().filter(|&&w| w).count(),
            active: 0,
        };
        for node in 0..count {
            if schedule.states[node] == State::Want && schedule.missing[node] == 0 {
                schedule.enter_ready(node);
            }
        }
        schedule
    }

    pub fn state(&self, node: usize) -> State {
        self.states[node]
    }

    pub fn states(&self) -> &[State] {
        &self.states
    }

    /// What running nodes leave over.
    pub fn free(&self) -> Resources {
        self.free
    }

    /// Every wanted node has come to an end.
    pub fn is_finished(&self) -> bool {
        self.open == 0
    }

    /// Something outside is at work (running or waiting), so a message will come.
    pub fn is_active(&self) -> bool {
        self.active > 0
    }

    /// The next node to look at. It stays ready until the caller says [`reuse`](Self::reuse), [`queue`](Self::queue)
    /// or [`fail`](Self::fail).
    pub fn ready(&self) -> Option<usize> {
        self.ready.first().map(|&rank| self.by_rank[rank])
    }

    /// Its result is in the store.
    pub fn reuse(&mut self, node: usize) {
        match self.states[node] {
            State::Ready => {
                self.ready.remove(&self.rank[node]);
            }
            State::Running => self.release(node),
            state => illegal(node, state, State::Reused),
        }
        self.finish_with_result(node, State::Reused);
    }

    /// It has to run.
    pub fn queue(&mut self, node: usize) {
        self.expect(node, State::Ready, State::Queued);
        self.ready.remove(&self.rank[node]);
        self.queued.insert(self.rank[node]);
        self.states[node] = State::Queued;
    }

    /// Takes the next queued node that fits and sets it running.
    pub fn start(&mut self) -> Option<usize> {
        let mut left = self.free;
        let found = self.queued.iter().copied().find(|&rank| {
            let need = self.needs[self.by_rank[rank]];
            let fits = need.cpu <= left.cpu && need.gpu <= left.gpu;
            left.cpu = left.cpu.saturating_sub(need.cpu);
            left.gpu = left.gpu.saturating_sub(need.gpu);
            fits
        })?;
        self.queued.remove(&found);
        let node = self.by_rank[found];
        self.free.cpu -= self.needs[node].cpu;
        self.free.gpu -= self.needs[node].gpu;
        self.states[node] = State::Running;
        self.active += 1;
        Some(node)
    }

    /// Somebody else holds its key: it gives its resources back and waits.
    pub fn wait(&mut self, node: usize) {
        self.expect(node, State::Running, State::Waiting);
        self.release(node);
        self.states[node] = State::Waiting;
        self.active += 1;
    }

    /// Its key is free again: look at it once more.
    pub fn wake(&mut self, node: usize) {
        self.expect(node, State::Waiting, State::Ready);
        self.active -= 1;
        self.enter_ready(node);
    }

    /// It ran and its result is in the store.
    pub fn publish(&mut self, node: usize) {
        self.expect(node, State::Running, State::Published);
        self.release(node);
        self.finish_with_result(node, State::Published);
    }

    /// It came to nothing, while running or while being looked at. Returns what is skipped for it, in graph order.
    pub fn fail(&mut self, node: usize) -> Vec<usize> {
        match self.states[node] {
            State::Ready => {
                self.ready.remove(&self.rank[node]);
            }
            State::Running => self.release(node),
            state => illegal(node, state, State::Failed),
        }
        self.finish(node, State::Failed);
        self.skip_dependents(node)
    }

    /// It stopped on demand. Returns what is skipped for it, in graph order.
    pub fn interrupt(&mut self, node: usize) -> Vec<usize> {
        self.expect(node, State::Running, State::Interrupted);
        self.release(node);
        self.finish(node, State::Interrupted);
        self.skip_dependents(node)
    }

    /// Skips everything that is not running, nor waiting (a waiting node is skipped when it wakes). Returns what it
    /// skipped, in graph order.
    pub fn stop(&mut self) -> Vec<usize> {
        let skipped: Vec<usize> = (0..self.states.len())
            .filter(|&node| matches!(self.states[node], State::Want | State::Ready | State::Queued))
            .collect();
        for &node in &skipped {
            self.ready.remove(&self.rank[node]);
            self.queued.remove(&self.rank[node]);
            self.finish(node, State::Skipped);
        }
        skipped
    }

    fn enter_ready(&mut self, node: usize) {
        self.states[node] = State::Ready;
        self.ready.insert(self.rank[node]);
    }

    fn release(&mut self, node: usize) {
        self.free.cpu += self.needs[node].cpu;
        self.free.gpu += self.needs[node].gpu;
        self.active -= 1;
    }

    fn finish(&mut self, node: usize, state: State) {
        self.states[node] = state;
        self.open -= 1;
    }

    fn finish_with_result(&mut self, node: usize, state: State) {
        self.finish(node, state);
        for index in 0..self.dependents[node].len() {
            let dependent = self.dependents[node][index];
            self.missing[dependent] -= 1;
            if self.missing[dependent] == 0 && self.states[dependent] == State::Want {
                self.enter_ready(dependent);
            }
        }
    }

    fn skip_dependents(&mut self, node: usize) -> Vec<usize> {
        let mut skipped = BTreeSet::new();
        let mut next = vec![node];
        while let Some(node) = next.pop() {
            for &dependent in &self.dependents[node] {
                // Only a node in `Want` can have an unfinished dependency.
                if self.states[dependent] == State::Want && skipped.insert(dependent) {
                    next.push(dependent);
                }
            }
        }
        for &node in &skipped {
            self.finish(node, State::Skipped);
        }
        skipped.into_iter().collect()
    }

    fn expect(&self, node: usize, from: State, to: State) {
        if self.states[node] != from {
            illegal(node, self.states[node], to);
        }
    }
}

fn illegal(node: usize, from: State, to: State) -> ! {
    panic!("BUG: node {node} cannot go from {from:?} to {to:?}")
}

/// Every node after its dependencies; of those that could come next, the first in graph order.
///
/// # Panics
/// When there is a cycle.
pub fn topological(dependencies: &[Vec<usize>]) -> Vec<usize> {
    let mut missing: Vec<usize> = dependencies.iter().map(Vec::len).collect();
    let mut dependents = vec![Vec::new(); dependencies.len()];
    for (node, sources) in dependencies.iter().enumerate() {
        for &source in sources {
            dependents[source].push(node);
        }
    }
    let mut next: BinaryHeap<Reverse<usize>> =
        (0..dependencies.len()).filter(|&node| missing[node] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(dependencies.len());
    while let Some(Reverse(node)) = next.pop() {
        order.push(node);
        for &dependent in &dependents[node] {
            missing[dependent] -= 1;
            if missing[dependent] == 0 {
                next.push(Reverse(dependent));
            }
        }
    }
    assert_eq!(order.len(), dependencies.len(), "BUG: the graph has a cycle");
    order
}

/// Marks the given nodes and everything they depend on.
pub fn ancestors(dependencies: &[Vec<usize>], nodes: impl IntoIterator<Item = usize>) -> Vec<bool> {
    let mut marked = vec![false; dependencies.len()];
    let mut next: Vec<usize> = nodes.into_iter().collect();
    while let Some(node) = next.pop() {
        if !std::mem::replace(&mut marked[node], true) {
            next.extend(&dependencies[node]);
        }
    }
    marked
}
