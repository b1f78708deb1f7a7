//! The expert that searches: looks where things usually are, remembers what it saw, and does what is next.
//!
//! Invariants: it uses the names of receptacles, what `Memory` holds and common sense (which class lies where, what
//! fits where), nothing else of the state; it keeps no plan, so it goes on from wherever others' actions have led;
//! every step it proposes is possible and, until the goal holds, brings the search or the task further.

use std::cmp::Reverse;

use super::goal::{Aim, TaskKind, Treatment};
use super::lexicon;
use super::memory::Memory;
use super::world::{Action, Set, State, World, has, members, only};

/// What to do now, and to what end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Step {
    pub action: Action,
    pub purpose: Purpose,
}

/// To what end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Purpose {
    /// Find an object like this one, not yet seen.
    Seek { like: usize },
    /// Take an object that was seen in a receptacle.
    Fetch { object: usize, from: usize },
    /// Clean, heat or cool what is held.
    Treat { object: usize, how: Treatment },
    /// Bring what is held where it belongs.
    Deliver { object: usize },
    /// Bring what is held under a lamp that was seen in a receptacle.
    Light { lamp: usize, at: usize },
    /// Get rid of what is held and not needed.
    Drop { object: usize },
}

/// The next step, `None` where the search is at its end.
pub(super) fn next(world: &World, state: &State, memory: &Memory, aim: &Aim) -> Option<Step> {
    Search { world, state, memory, aim }.next()
}

struct Search<'a> {
    world: &'a World,
    state: &'a State,
    memory: &'a Memory,
    aim: &'a Aim,
}

impl Search<'_> {
    fn next(&self) -> Option<Step> {
        match self.state.held {
            Some(object) if has(self.aim.objects, object) => self.use_held(object),
            Some(object) => self.drop(object),
            None => self.fetch(),
        }
    }

    fn is_here(&self, r: usize) -> bool {
        self.world.receptacles[r].location == self.state.at
    }

    /// Does `action` to a receptacle, once there and once it is open.
    fn reach(&self, r: usize, action: Action) -> Action {
        if !self.is_here(r) {
            Action::Go(r)
        } else if !self.world.reachable(self.state, r) {
            Action::Open(r)
        } else {
            action
        }
    }

    /// The receptacle that an object was seen in.
    fn seen_in(&self, object: usize) -> Option<usize> {
        if !has(self.memory.known, object) {
            return None;
        }
        (0..self.world.receptacles.len()).find(|&r| has(self.state.inside[r], object))
    }

    /// The receptacle of a set that is the least trouble: here, then not known to be closed, then by name.
    fn easiest(&self, set: Set) -> Option<usize> {
        let closed = |r| self.memory.closed(self.world, self.state, r);
        members(set).min_by_key(|&r| (!self.is_here(r), closed(r), &self.world.receptacles[r].name))
    }

    fn use_held(&self, object: usize) -> Option<Step> {
        if self.aim.kind == TaskKind::LookAtObjInLight {
            return self.light();
        }
        if let Some(how) = self.aim.kind.treatment().filter(|&how| !has(self.state.treated(how), object)) {
            let with = self.easiest(self.world.appliances(how))?;
            let action = if self.is_here(with) { Action::Treat { how, object, with } } else { Action::Go(with) };
            return Some(Step { action, purpose: Purpose::Treat { object, how } });
        }
        let to = self.target(object)?;
        Some(Step { action: self.reach(to, Action::Move { object, to }), purpose: Purpose::Deliver { object } })
    }

    /// Where the held object goes: beside its like, if two are wanted.
    fn target(&self, object: usize) -> Option<usize> {
        let fit = members(self.aim.receptacles).filter(|&r| has(self.world.accepts[r], object));
        let fit = fit.fold(0, |set, r| set | only(r));
        match self.home() {
            Some(home) if has(fit, home) => Some(home),
            _ => self.easiest(fit),
        }
    }

    /// Of two objects wanted, where the first was put.
    fn home(&self) -> Option<usize> {
        if self.aim.kind != TaskKind::PickTwoObjAndPlace {
            return None;
        }
        members(self.aim.receptacles).find(|&r| self.state.inside[r] & self.aim.objects & self.memory.known != 0)
    }

    fn light(&self) -> Option<Step> {
        let lamps = members(self.aim.lamps).filter_map(|lamp| Some((lamp, self.seen_in(lamp)?)));
        match lamps.min_by_key(|&(lamp, at)| (!self.is_here(at), lamp)) {
            Some((lamp, at)) => {
                let action = if self.is_here(at) { Action::Use(lamp) } else { Action::Go(at) };
                Some(Step { action, purpose: Purpose::Light { lamp, at } })
            }
            None => self.seek(members(self.aim.lamps).next()?),
        }
    }

    fn fetch(&self) -> Option<Step> {
        let home = self.home();
        let ready = |o| self.aim.kind.treatment().is_some_and(|how| has(self.state.treated(how), o));
        let seen = members(self.aim.objects & self.world.abilities.pickupable)
            .filter_map(|object| Some((object, self.seen_in(object)?)))
            .filter(|&(_, from)| Some(from) != home);
        let best = seen.min_by_key(|&(object, from)| {
            (!ready(object), !self.is_here(from), self.memory.closed(self.world, self.state, from), Reverse(object))
        });
        match best {
            Some((object, from)) => Some(Step {
                action: self.reach(from, Action::Take { object, from }),
                purpose: Purpose::Fetch { object, from },
            }),
            None => self.seek(members(self.aim.objects).next()?),
        }
    }

    /// Looks into the next receptacle where such an object may be.
    fn seek(&self, like: usize) -> Option<Step> {
        let class = &self.world.objects[like].class;
        let unknown = (0..self.world.receptacles.len()).filter(|&r| !has(self.memory.looked, r));
        let next = unknown.min_by_key(|&r| {
            let receptacle = &self.world.receptacles[r];
            let prior = lexicon::prior(class, &receptacle.class);
            (prior == 0, !self.is_here(r), Reverse(prior), &receptacle.name)
        })?;
        Some(Step { action: self.reach(next, Action::ExamineReceptacle(next)), purpose: Purpose::Seek { like } })
    }

    fn drop(&self, object: usize) -> Option<Step> {
        let fit = (0..self.world.receptacles.len()).filter(|&r| has(self.world.accepts[r], object));
        let to = fit.min_by_key(|&r| {
            let receptacle = &self.world.receptacles[r];
            let shut = receptacle.openable && !(has(self.memory.visited, r) && has(self.state.opened, r));
            (!self.is_here(r), shut, &receptacle.name)
        })?;
        Some(Step { action: self.reach(to, Action::Move { object, to }), purpose: Purpose::Drop { object } })
    }
}
