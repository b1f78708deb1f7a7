//! What an agent has seen in an episode, so that experts and deductions use no more than that.
//!
//! Invariant: only the agent changes the world, so what was seen once is known from then on.

use super::world::{Action, Set, State, World, has, only};

/// What is known of a room beside the names of its receptacles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Receptacles whose contents have been seen.
    pub looked: Set,
    /// Receptacles found closed or open.
    pub visited: Set,
    /// Objects whose whereabouts are known.
    pub known: Set,
}

impl Memory {
    /// Takes in what an action that has just been applied showed.
    pub fn note(&mut self, world: &World, state: &State, action: Action) {
        match action {
            Action::Go(r) | Action::Open(r) | Action::ExamineReceptacle(r) => {
                self.visited |= only(r);
                if world.reachable(state, r) {
                    self.looked |= only(r);
                    self.known |= state.inside[r];
                }
            }
            Action::Take { object, .. } | Action::Move { object, .. } | Action::Use(object) => {
                self.known |= only(object);
            }
            _ => {}
        }
    }

    /// Whether a receptacle is known to be closed.
    pub fn closed(&self, world: &World, state: &State, r: usize) -> bool {
        has(self.visited, r) && !world.reachable(state, r)
    }
}
