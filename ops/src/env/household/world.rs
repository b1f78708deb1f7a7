//! A room, its state and what commands do to it: ALFWorld's rules over indices and bit sets.
//!
//! Invariants: a `World` never changes, a `State` belongs to the world that made it; an action that `allowed` refuses is
//! never applied; receptacles and objects are numbered in listing order (that of their original ids).

use super::Wording;
use super::goal::Treatment;

/// Objects, or receptacles, as bits.
pub(super) type Set = u128;

/// How many objects one room may have, and how many receptacles.
pub(super) const LIMIT: usize = 128;

/// The members of a set, ascending.
pub(super) fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if set == 0 {
            return None;
        }
        let lowest = set.trailing_zeros() as usize;
        set &= set - 1;
        Some(lowest)
    })
}

/// The set with one member.
pub(super) fn only(index: usize) -> Set {
    1 << index
}

/// Whether a set has a member.
pub(super) fn has(set: Set, index: usize) -> bool {
    set >> index & 1 == 1
}

/// A fixed place that holds objects.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Receptacle {
    /// `cabinet 2`
    pub name: String,
    /// `cabinet`
    pub class: String,
    pub location: usize,
    pub openable: bool,
}

/// A thing that lies in receptacles.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    /// `mug 1`
    pub name: String,
    /// `mug`
    pub class: String,
    /// Objects said to be inside this one; `None` where it cannot hold any.
    pub contents: Option<Set>,
}

/// Which objects may be treated how.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Abilities {
    pub pickupable: Set,
    pub cleanable: Set,
    pub heatable: Set,
    pub coolable: Set,
    pub toggleable: Set,
    pub sliceable: Set,
    /// Knives.
    pub sharp: Set,
}

impl Abilities {
    /// The objects that can be treated so.
    pub fn treatable(&self, treatment: Treatment) -> Set {
        match treatment {
            Treatment::Clean => self.cleanable,
            Treatment::Heat => self.heatable,
            Treatment::Cool => self.coolable,
        }
    }
}

/// What a name in a command refers to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Named {
    Receptacle(usize),
    Object(usize),
}

/// Everything about a room that stays as it is.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub receptacles: Vec<Receptacle>,
    pub objects: Vec<Object>,
    pub abilities: Abilities,
    /// By receptacle: what may be put there.
    pub accepts: Vec<Set>,
    /// By location: the receptacles there.
    pub here: Vec<Set>,
    /// By location: its name in `You arrive at loc 3.`, which old game files print.
    pub places: Vec<String>,
    /// Receptacles that can be opened.
    pub openable: Set,
    /// Receptacles by treatment: sink basins, microwaves, fridges.
    appliances: [Set; 3],
    /// Receptacles in the order of their names.
    by_name: Vec<usize>,
    /// Sorted by name.
    names: Vec<(String, Named)>,
}

/// What changes while a room is lived in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub at: usize,
    pub held: Option<usize>,
    pub opened: Set,
    /// By receptacle: what is in it.
    pub inside: Vec<Set>,
    /// By receptacle: what was taken from it and not put back. The original engine notes these as negated facts, and
    /// its `look` finds them: an object that went from one receptacle to another of the same location is `next to` them.
    pub left: Vec<Set>,
    /// By location: objects there. What is in a receptacle may, by a careless problem file, lie elsewhere.
    pub lying: Vec<Set>,
    pub clean: Set,
    pub hot: Set,
    pub cool: Set,
    pub sliced: Set,
    pub toggled: Set,
}

/// A command with its names resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    Look,
    Inventory,
    Help,
    Go(usize),
    Open(usize),
    Close(usize),
    Take { object: usize, from: usize },
    Move { object: usize, to: usize },
    ExamineReceptacle(usize),
    ExamineObject(usize),
    Treat { how: Treatment, object: usize, with: usize },
    Use(usize),
    Slice { object: usize, with: usize },
}

impl World {
    /// Puts the tables together. `accepts` has one set per receptacle.
    pub fn new(
        receptacles: Vec<Receptacle>,
        objects: Vec<Object>,
        abilities: Abilities,
        accepts: Vec<Set>,
        places: Vec<String>,
    ) -> World {
        let mut here = vec![0; places.len()];
        let mut openable = 0;
        let mut appliances = [0; 3];
        let mut names = Vec::with_capacity(receptacles.len() + objects.len());
        for (r, receptacle) in receptacles.iter().enumerate() {
            here[receptacle.location] |= only(r);
            if receptacle.openable {
                openable |= only(r);
            }
            for how in Treatment::ALL {
                if receptacle.class == how.appliance() {
                    appliances[how as usize] |= only(r);
                }
            }
            names.push((receptacle.name.clone(), Named::Receptacle(r)));
        }
        for (o, object) in objects.iter().enumerate() {
            names.push((object.name.clone(), Named::Object(o)));
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let mut by_name: Vec<usize> = (0..receptacles.len()).collect();
        by_name.sort_by(|&a, &b| receptacles[a].name.cmp(&receptacles[b].name));
        World { receptacles, objects, abilities, accepts, here, places, openable, appliances, by_name, names }
    }

    /// Receptacles that treat objects so.
    pub fn appliances(&self, how: Treatment) -> Set {
        self.appliances[how as usize]
    }

    /// Receptacles of a class.
    pub fn receptacles_of(&self, class: &str) -> Set {
        let of = self.receptacles.iter().enumerate().filter(|(_, receptacle)| receptacle.class == class);
        of.fold(0, |set, (r, _)| set | only(r))
    }

    /// Objects of a class.
    pub fn objects_of(&self, class: &str) -> Set {
        let of = self.objects.iter().enumerate().filter(|(_, object)| object.class == class);
        of.fold(0, |set, (o, _)| set | only(o))
    }

    fn named(&self, name: &str) -> Option<Named> {
        let at = self.names.binary_search_by(|(known, _)| known.as_str().cmp(name)).ok()?;
        Some(self.names[at].1)
    }

    fn receptacle(&self, name: &str) -> Option<usize> {
        match self.named(name)? {
            Named::Receptacle(r) => Some(r),
            Named::Object(_) => None,
        }
    }

    fn object(&self, name: &str) -> Option<usize> {
        match self.named(name)? {
            Named::Object(o) => Some(o),
            Named::Receptacle(_) => None,
        }
    }

    /// The action that a command names, if all of it is known here.
    pub fn parse(&self, command: &str, wording: Wording) -> Option<Action> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let pair = |separator: &str| rest.split_once(separator);
        Some(match verb {
            "look" if rest.is_empty() => Action::Look,
            "inventory" if rest.is_empty() => Action::Inventory,
            "help" if rest.is_empty() => Action::Help,
            "go" => Action::Go(self.receptacle(rest.strip_prefix("to ")?)?),
            "open" => Action::Open(self.receptacle(rest)?),
            "close" => Action::Close(self.receptacle(rest)?),
            "take" => {
                let (object, from) = pair(" from ")?;
                Action::Take { object: self.object(object)?, from: self.receptacle(from)? }
            }
            _ if verb == wording.verb() => {
                let (object, to) = pair(wording.separator())?;
                Action::Move { object: self.object(object)?, to: self.receptacle(to)? }
            }
            "examine" => match self.named(rest)? {
                Named::Receptacle(r) => Action::ExamineReceptacle(r),
                Named::Object(o) => Action::ExamineObject(o),
            },
            "use" => Action::Use(self.object(rest)?),
            "slice" => {
                let (object, with) = pair(" with ")?;
                Action::Slice { object: self.object(object)?, with: self.object(with)? }
            }
            _ => {
                let how = Treatment::ALL.into_iter().find(|how| how.verb() == verb)?;
                let (object, with) = pair(" with ")?;
                Action::Treat { how, object: self.object(object)?, with: self.receptacle(with)? }
            }
        })
    }

    /// The command that names an action.
    pub fn phrase(&self, action: Action, wording: Wording) -> String {
        let receptacle = |r: usize| self.receptacles[r].name.as_str();
        let object = |o: usize| self.objects[o].name.as_str();
        match action {
            Action::Look => "look".to_owned(),
            Action::Inventory => "inventory".to_owned(),
            Action::Help => "help".to_owned(),
            Action::Go(r) => ["go to ", receptacle(r)].concat(),
            Action::Open(r) => ["open ", receptacle(r)].concat(),
            Action::Close(r) => ["close ", receptacle(r)].concat(),
            Action::Take { object: o, from } => ["take ", object(o), " from ", receptacle(from)].concat(),
            Action::Move { object: o, to } => {
                [wording.verb(), " ", object(o), wording.separator(), receptacle(to)].concat()
            }
            Action::ExamineReceptacle(r) => ["examine ", receptacle(r)].concat(),
            Action::ExamineObject(o) => ["examine ", object(o)].concat(),
            Action::Treat { how, object: o, with } => [how.verb(), " ", object(o), " with ", receptacle(with)].concat(),
            Action::Use(o) => ["use ", object(o)].concat(),
            Action::Slice { object: o, with } => ["slice ", object(o), " with ", object(with)].concat(),
        }
    }

    /// Whether a hand can reach into a receptacle (the agent being there).
    pub fn reachable(&self, state: &State, r: usize) -> bool {
        !self.receptacles[r].openable || has(state.opened, r)
    }

    fn is_here(&self, state: &State, r: usize) -> bool {
        self.receptacles[r].location == state.at
    }

    /// Whether an action is possible now.
    pub fn allowed(&self, state: &State, action: Action) -> bool {
        let able = &self.abilities;
        match action {
            Action::Look | Action::Inventory | Action::Help => true,
            Action::Go(r) => !self.is_here(state, r),
            Action::Open(r) => self.is_here(state, r) && self.receptacles[r].openable && !has(state.opened, r),
            Action::Close(r) => self.is_here(state, r) && self.receptacles[r].openable && has(state.opened, r),
            Action::Take { object, from } => {
                state.held.is_none()
                    && self.is_here(state, from)
                    && has(state.inside[from] & able.pickupable, object)
                    && self.reachable(state, from)
            }
            Action::Move { object, to } => {
                state.held == Some(object)
                    && self.is_here(state, to)
                    && has(self.accepts[to], object)
                    && self.reachable(state, to)
            }
            Action::ExamineReceptacle(r) => self.is_here(state, r),
            Action::ExamineObject(o) => state.held == Some(o),
            Action::Treat { how, object, with } => {
                state.held == Some(object)
                    && self.is_here(state, with)
                    && has(self.appliances(how), with)
                    && has(able.treatable(how), object)
            }
            Action::Use(o) => has(able.toggleable, o) && members(self.here[state.at]).any(|r| has(state.inside[r], o)),
            Action::Slice { object, with } => {
                state.held == Some(with) && has(able.sharp, with) && has(able.sliceable & state.lying[state.at], object)
            }
        }
    }

    /// Does what an allowed action does.
    pub fn apply(&self, state: &mut State, action: Action) {
        match action {
            Action::Look
            | Action::Inventory
            | Action::Help
            | Action::ExamineReceptacle(_)
            | Action::ExamineObject(_) => {}
            Action::Go(r) => state.at = self.receptacles[r].location,
            Action::Open(r) => state.opened |= only(r),
            Action::Close(r) => state.opened &= !only(r),
            Action::Take { object, from } => {
                state.inside[from] &= !only(object);
                state.left[from] |= only(object);
                state.lying[state.at] &= !only(object);
                state.held = Some(object);
            }
            Action::Move { object, to } => {
                state.inside[to] |= only(object);
                state.left[to] &= !only(object);
                state.lying[state.at] |= only(object);
                state.held = None;
            }
            Action::Treat { how: Treatment::Clean, object, .. } => state.clean |= only(object),
            Action::Treat { how: Treatment::Heat, object, .. } => {
                state.hot |= only(object);
                state.cool &= !only(object);
            }
            Action::Treat { how: Treatment::Cool, object, .. } => {
                state.cool |= only(object);
                state.hot &= !only(object);
            }
            Action::Use(o) => state.toggled |= only(o),
            Action::Slice { object, .. } => state.sliced |= only(object),
        }
    }

    /// Every possible action, nearly in the order of their commands.
    pub fn actions(&self, state: &State) -> Vec<Action> {
        let able = &self.abilities;
        let here = self.here[state.at];
        let near = || self.by_name.iter().copied().filter(move |&r| has(here, r));
        let mut actions = Vec::with_capacity(self.receptacles.len() + 16);
        let treat = |actions: &mut Vec<Action>, how: Treatment| {
            let Some(object) = state.held.filter(|&o| has(able.treatable(how), o)) else { return };
            let with = near().filter(|&r| has(self.appliances(how), r));
            actions.extend(with.map(|with| Action::Treat { how, object, with }));
        };
        treat(&mut actions, Treatment::Clean);
        actions.extend(near().filter(|&r| has(self.openable & state.opened, r)).map(Action::Close));
        treat(&mut actions, Treatment::Cool);
        actions.extend(near().map(Action::ExamineReceptacle));
        actions.extend(state.held.map(Action::ExamineObject));
        actions.extend(self.by_name.iter().copied().filter(|&r| !has(here, r)).map(Action::Go));
        treat(&mut actions, Treatment::Heat);
        actions.extend([Action::Help, Action::Inventory, Action::Look]);
        match state.held {
            Some(object) => {
                let to = near().filter(|&r| has(self.accepts[r], object) && self.reachable(state, r));
                actions.extend(to.map(|to| Action::Move { object, to }));
            }
            None => {
                for from in near().filter(|&r| self.reachable(state, r)) {
                    let takes = members(state.inside[from] & able.pickupable);
                    actions.extend(takes.map(|object| Action::Take { object, from }));
                }
            }
        }
        actions.extend(near().filter(|&r| has(self.openable & !state.opened, r)).map(Action::Open));
        if let Some(with) = state.held.filter(|&o| has(able.sharp, o)) {
            let slices = members(able.sliceable & state.lying[state.at]);
            actions.extend(slices.map(|object| Action::Slice { object, with }));
        }
        let in_view = members(here).fold(0, |set, r| set | state.inside[r]);
        actions.extend(members(able.toggleable & in_view).map(Action::Use));
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Settings, Size, Split, tasks};
    use super::*;
    use crate::rng::Rng;

    /// Every action that has a name in this world.
    fn conceivable(world: &World) -> Vec<Action> {
        let (receptacles, objects) = (0..world.receptacles.len(), 0..world.objects.len());
        let mut all = vec![Action::Look, Action::Inventory, Action::Help];
        for r in receptacles {
            all.extend([Action::Go(r), Action::Open(r), Action::Close(r), Action::ExamineReceptacle(r)]);
            for object in objects.clone() {
                all.extend([Action::Take { object, from: r }, Action::Move { object, to: r }]);
                all.extend(Treatment::ALL.map(|how| Action::Treat { how, object, with: r }));
            }
        }
        for object in objects.clone() {
            all.extend([Action::ExamineObject(object), Action::Use(object)]);
            all.extend(objects.clone().map(|with| Action::Slice { object, with }));
        }
        all
    }

    #[test]
    fn the_list_of_actions_is_exactly_what_is_allowed_and_commands_name_actions() {
        for (index, task) in
            tasks(&Settings { size: Size::Alfred, ..Settings::default() }, Split::Ood, 12, 3).iter().enumerate()
        {
            let world = &task.world;
            let mut play = task.play();
            let mut rng = Rng::at(0, &[index as u64]);
            for _ in 0..60 {
                let mut listed = world.actions(&play.state);
                let mut allowed = conceivable(world);
                allowed.retain(|action| world.allowed(&play.state, *action));
                for action in &allowed {
                    for wording in [Wording::Move, Wording::Put] {
                        assert_eq!(world.parse(&world.phrase(*action, wording), wording), Some(*action));
                    }
                }
                let phrase = |action: &Action| world.phrase(*action, Wording::Move);
                listed.sort_by_key(phrase);
                allowed.sort_by_key(phrase);
                assert_eq!(listed, allowed);
                let command = play.random_action(&mut rng);
                play.step(&command);
            }
        }
    }
}
