//! Unlabelled experience: deductions in words, random play, and goals found in hindsight.
//!
//! Invariant: deductions and facts say only what follows from the goal and from what was seen, in words of the world.

use super::goal::{Treatment, achieved};
use super::lexicon;
use super::search::{self, Purpose};
use super::world::{Action, has, members, only};
use super::{Goal, Household};
use crate::rng::Rng;

impl Household {
    /// One short line that leads from what was seen to what is next: `mug 1 is at countertop 1. next: take it.`
    /// At most twelve words; `done.` when the goal holds.
    pub fn deduction(&self) -> String {
        if self.won() {
            return "done.".to_owned();
        }
        let world = &self.task.world;
        let Some(step) = search::next(world, &self.state, &self.memory, &self.aim) else {
            return "nothing left to try.".to_owned();
        };
        let object = |o: usize| world.objects[o].name.as_str();
        let class = |o: usize| world.objects[o].class.as_str();
        let receptacle = |r: usize| world.receptacles[r].name.as_str();
        let because = match step.purpose {
            Purpose::Seek { like } => match self.state.held {
                Some(held) => format!("holding {}. need a {}.", object(held), class(like)),
                None if self.one_is_there() => format!("need one more {}.", class(like)),
                None => format!("need a {}.", class(like)),
            },
            Purpose::Fetch { object: o, from } => format!("{} is at {}.", object(o), receptacle(from)),
            Purpose::Treat { object: o, how } => format!("{} is not {} yet.", object(o), how.result()),
            Purpose::Deliver { object: o } => match self.aim.kind.treatment() {
                Some(how) => format!("{} is {}.", object(o), how.result()),
                None => format!("holding {}.", object(o)),
            },
            Purpose::Light { lamp, at } => format!("{} is at {}.", object(lamp), receptacle(at)),
            Purpose::Drop { object: o } => format!("{} is not needed.", object(o)),
        };
        let next = match step.action {
            Action::Go(r) => format!("go to {}", receptacle(r)),
            Action::Open(r) => format!("open {}", receptacle(r)),
            Action::Take { .. } => "take it".to_owned(),
            Action::Move { to, .. } => {
                format!(
                    "{} it{}{}",
                    self.task.voice.wording.verb(),
                    self.task.voice.wording.separator(),
                    receptacle(to)
                )
            }
            Action::Treat { how, .. } => format!("{} it", how.verb()),
            Action::Use(lamp) => format!("use {}", object(lamp)),
            other => world.phrase(other, self.task.voice.wording),
        };
        format!("{because} next: {next}.")
    }

    fn one_is_there(&self) -> bool {
        let there = |r: usize| self.state.inside[r] & self.aim.objects & self.memory.known != 0;
        self.aim.kind == super::TaskKind::PickTwoObjAndPlace && members(self.aim.receptacles).any(there)
    }

    /// What was seen, a line each: where objects are, what is held, which doors are closed.
    pub fn facts(&self) -> Vec<String> {
        let (world, state, memory) = (&self.task.world, &self.state, &self.memory);
        let mut facts = Vec::new();
        if let Some(o) = state.held {
            facts.push(format!("holding {}.", world.objects[o].name));
            for how in Treatment::ALL.into_iter().filter(|&how| has(state.treated(how), o)) {
                facts.push(format!("{} is {}.", world.objects[o].name, how.result()));
            }
        }
        for (r, receptacle) in world.receptacles.iter().enumerate() {
            if memory.closed(world, state, r) {
                facts.push(format!("{} is closed.", receptacle.name));
            }
            for o in members(state.inside[r] & memory.known) {
                facts.push(format!("{} is at {}.", world.objects[o].name, receptacle.name));
            }
        }
        facts
    }

    /// Goals that hold now and did not at the start, sorted: what this episode could have been asked to do.
    pub fn achieved(&self) -> Vec<Goal> {
        achieved(&self.task.world, &self.task.start, &self.state)
    }

    /// A random action that a curious agent might take: seldom idle, fond of taking, treating and bringing elsewhere,
    /// so that goals in hindsight are frequent. It puts nothing where training tasks may not have it.
    pub fn random_action(&self, rng: &mut Rng) -> String {
        let world = &self.task.world;
        let actions = world.actions(&self.state);
        let weight = |action: &Action| self.appeal(*action);
        let choice = rng.weighted(actions.iter().map(weight)).unwrap_or(0);
        world.phrase(actions[choice], self.task.voice.wording)
    }

    fn held_out(&self, object: usize, receptacle: usize) -> bool {
        let world = &self.task.world;
        lexicon::held_out(&world.objects[object].class, &world.receptacles[receptacle].class)
    }

    fn appeal(&self, action: Action) -> u64 {
        let (world, state) = (&self.task.world, &self.state);
        match action {
            Action::Help | Action::Look | Action::Inventory => 0,
            Action::ExamineReceptacle(_) | Action::ExamineObject(_) | Action::Slice { .. } => 1,
            Action::Close(_) => 1,
            Action::Open(_) => 60,
            Action::Take { .. } => 50,
            Action::Move { object, to } if self.held_out(object, to) => 0,
            // Bringing a thing back where it came from achieves nothing.
            Action::Move { object, to } if has(state.left[to], object) => 2,
            Action::Move { .. } => 60,
            Action::Treat { how, object, .. } if has(state.treated(how), object) => 1,
            Action::Treat { .. } => 120,
            Action::Use(lamp) if has(state.toggled, lamp) => 1,
            Action::Use(_) => {
                if state.held.is_some() {
                    150
                } else {
                    20
                }
            }
            Action::Go(r) => match state.held {
                Some(o) => {
                    let able = &world.abilities;
                    let treats = Treatment::ALL
                        .into_iter()
                        .filter(|&how| has(able.treatable(how) & !state.treated(how), o))
                        .any(|how| has(world.appliances(how), r));
                    let takes = has(world.accepts[r], o) && !has(state.left[r], o) && !self.held_out(o, r);
                    let lamp = self.state.inside[r] & able.toggleable & self.memory.known != 0;
                    2 + 8 * u64::from(treats) + 6 * u64::from(takes) + 12 * u64::from(lamp)
                }
                None => {
                    let fresh = u64::from(self.memory.looked & only(r) == 0);
                    let known = self.state.inside[r] & world.abilities.pickupable & self.memory.known != 0;
                    2 + 4 * fresh + 4 * u64::from(known)
                }
            },
        }
    }
}
