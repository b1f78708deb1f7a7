//! Machines, shared by the games of a suite: a game has one for itself as long as it lives.
//!
//! Invariants: there are never more than `size` of them; nobody waits for ever: a wait ends with an error when no game
//! has done anything for longer than a call may take; a machine that is dead, or that has loaded many tasks, is never
//! handed out again.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::machine::{Launch, Limits, Machine, NAME};
use super::tasks::{KINDS, Kind};
use crate::env::EnvError;

/// Tasks after which a machine is replaced: what a JVM holds beside its heap grows with its age.
const LOADS: usize = 1000;

/// Machines that games take and give back.
pub struct Pool {
    launch: Arc<dyn Launch>,
    limits: Limits,
    size: usize,
    /// Tasks whose variations are held against the first machine's.
    kinds: Vec<&'static Kind>,
    state: Mutex<Held>,
    moved: Condvar,
}

struct Held {
    free: Vec<Machine>,
    /// Places of machines that are taken.
    taken: usize,
    /// Games that wait for their machine right now.
    busy: usize,
    /// When a game last did something.
    last: Instant,
    /// The table of tasks is the simulator's.
    checked: bool,
}

impl Pool {
    pub fn new(launch: Arc<dyn Launch>, limits: Limits, size: usize, kinds: Vec<&'static Kind>) -> Arc<Pool> {
        let held = Held { free: Vec::new(), taken: 0, busy: 0, last: Instant::now(), checked: false };
        Arc::new(Pool { launch, limits, size: size.max(1), kinds, state: Mutex::new(held), moved: Condvar::new() })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    fn state(&self) -> MutexGuard<'_, Held> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place among the machines, as soon as there is one.
    ///
    /// # Errors
    /// Where all of them are held and nothing happens.
    pub fn take(self: &Arc<Self>) -> Result<Lease, EnvError> {
        let patience = self.limits.deadline;
        let begun = Instant::now();
        let mut state = self.state();
        loop {
            let machine = state.free.pop();
            if machine.is_some() || state.taken < self.size {
                state.taken += 1;
                return Ok(Lease { pool: Arc::clone(self), machine });
            }
            if state.busy == 0 && state.last.max(begun).elapsed() >= patience {
                return Err(EnvError::with_help(
                    format!(
                        "all {} machines of the environment `{NAME}` are held by games in which nothing happens, \
                         expected one to be given back within {} s",
                        self.size,
                        patience.as_secs_f64()
                    ),
                    "play fewer games side by side, or raise `machines` of the world",
                ));
            }
            state = self.moved.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start(&self) -> Result<Machine, EnvError> {
        let mut machine = Machine::start(&*self.launch, self.limits)?;
        if !self.state().checked {
            check(&mut machine, &self.kinds)?;
            self.state().checked = true;
        }
        Ok(machine)
    }
}

/// Holds the table of tasks against the simulator's.
fn check(machine: &mut Machine, kinds: &[&Kind]) -> Result<(), EnvError> {
    let names = machine.tasks()?;
    for kind in kinds {
        if !names.iter().any(|name| name == kind.name) {
            return Err(EnvError::unusable(format!(
                "the simulator has no task `{}`, expected the {} tasks of version 1.2.3",
                kind.name,
                KINDS.len()
            )));
        }
        let found = machine.variations(kind.name)?;
        if i64::from(found) != i64::from(kind.variations) {
            return Err(EnvError::unusable(format!(
                "the simulator has {found} variations of `{}`, expected {} as in version 1.2.3",
                kind.name, kind.variations
            )));
        }
    }
    Ok(())
}

/// A place among the machines; given back when dropped.
pub struct Lease {
    pool: Arc<Pool>,
    machine: Option<Machine>,
}

impl Lease {
    /// Does something with the machine; one that is not there or dead is started, and then `fresh` is told.
    ///
    /// # Errors
    /// Of the start, and of what is done.
    pub fn with<T>(&mut self, act: impl FnOnce(&mut Machine, bool) -> Result<T, EnvError>) -> Result<T, EnvError> {
        let _busy = Busy::new(&self.pool);
        let usable = self.machine.take().filter(|machine| !machine.is_dead());
        let fresh = usable.is_none();
        let machine = match usable {
            Some(machine) => machine,
            None => self.pool.start()?,
        };
        act(self.machine.insert(machine), fresh)
    }
}

/// Counts a game that waits for its machine, even if it panics.
struct Busy<'a>(&'a Pool);

impl Busy<'_> {
    fn new(pool: &Pool) -> Busy<'_> {
        pool.state().busy += 1;
        Busy(pool)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.busy -= 1;
        state.last = Instant::now();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let machine = self.machine.take().filter(|machine| !machine.is_dead() && machine.loads() < LOADS);
        let mut state = self.pool.state();
        state.taken -= 1;
        state.last = Instant::now();
        state.free.extend(machine);
        drop(state);
        self.pool.moved.notify_one();
    }
}
