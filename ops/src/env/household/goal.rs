//! The six kinds of task, their goals in words, and when a goal holds.
//!
//! Invariant: whether a goal holds depends on the state alone, never on how it was reached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::lexicon;
use super::world::{Set, State, World, has, members};

/// The kinds of task, named as in ALFRED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Put one object into a receptacle.
    PickAndPlaceSimple,
    /// Hold an object where a lamp is on.
    LookAtObjInLight,
    /// Put a cleaned object into a receptacle.
    PickCleanThenPlaceInRecep,
    /// Put a heated object into a receptacle.
    PickHeatThenPlaceInRecep,
    /// Put a cooled object into a receptacle.
    PickCoolThenPlaceInRecep,
    /// Put two objects of a class into the same receptacle.
    PickTwoObjAndPlace,
}

impl TaskKind {
    /// All six, in declaration order.
    pub const ALL: [TaskKind; 6] = [
        TaskKind::PickAndPlaceSimple,
        TaskKind::LookAtObjInLight,
        TaskKind::PickCleanThenPlaceInRecep,
        TaskKind::PickHeatThenPlaceInRecep,
        TaskKind::PickCoolThenPlaceInRecep,
        TaskKind::PickTwoObjAndPlace,
    ];

    /// As ALFRED writes it: `pick_heat_then_place_in_recep`.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::PickAndPlaceSimple => "pick_and_place_simple",
            TaskKind::LookAtObjInLight => "look_at_obj_in_light",
            TaskKind::PickCleanThenPlaceInRecep => "pick_clean_then_place_in_recep",
            TaskKind::PickHeatThenPlaceInRecep => "pick_heat_then_place_in_recep",
            TaskKind::PickCoolThenPlaceInRecep => "pick_cool_then_place_in_recep",
            TaskKind::PickTwoObjAndPlace => "pick_two_obj_and_place",
        }
    }

    /// What has to be done to the object before it is put away.
    pub(super) fn treatment(self) -> Option<Treatment> {
        match self {
            TaskKind::PickCleanThenPlaceInRecep => Some(Treatment::Clean),
            TaskKind::PickHeatThenPlaceInRecep => Some(Treatment::Heat),
            TaskKind::PickCoolThenPlaceInRecep => Some(Treatment::Cool),
            _ => None,
        }
    }
}

/// What appliances do to objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Treatment {
    Clean,
    Heat,
    Cool,
}

impl Treatment {
    pub const ALL: [Treatment; 3] = [Treatment::Clean, Treatment::Heat, Treatment::Cool];

    pub fn verb(self) -> &'static str {
        match self {
            Treatment::Clean => "clean",
            Treatment::Heat => "heat",
            Treatment::Cool => "cool",
        }
    }

    /// What an object is afterwards.
    pub fn result(self) -> &'static str {
        match self {
            Treatment::Clean => "clean",
            Treatment::Heat => "hot",
            Treatment::Cool => "cool",
        }
    }

    /// The class of receptacle that does it.
    pub fn appliance(self) -> &'static str {
        match self {
            Treatment::Clean => "sinkbasin",
            Treatment::Heat => "microwave",
            Treatment::Cool => "fridge",
        }
    }
}

impl State {
    /// Objects that have been treated so.
    pub fn treated(&self, how: Treatment) -> Set {
        match how {
            Treatment::Clean => self.clean,
            Treatment::Heat => self.hot,
            Treatment::Cool => self.cool,
        }
    }
}

/// What is to become true, over classes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Goal {
    pub kind: TaskKind,
    /// Class of the object: `mug`.
    pub object: String,
    /// Class of the receptacle, or of the lamp: `cabinet`, `desklamp`.
    pub place: String,
}

impl Goal {
    /// The goal in words, with a full stop: `put a hot mug in cabinet.`
    pub fn text(&self) -> String {
        let (object, place) = (&self.object, &self.place);
        match (self.kind, self.kind.treatment()) {
            (TaskKind::LookAtObjInLight, _) => format!("look at {object} under the {place}."),
            (TaskKind::PickTwoObjAndPlace, _) => format!("put two {object} in {place}."),
            (_, Some(how)) => format!("put a {} {object} in {place}.", how.result()),
            (_, None) => format!("put a {object} in {place}."),
        }
    }

    /// Whether the goal is about a pair of classes that is kept out of training tasks.
    pub fn held_out(&self) -> bool {
        lexicon::held_out(&self.object, &self.place)
    }

    pub(super) fn aim(&self, world: &World) -> Aim {
        let mut objects = world.objects_of(&self.object);
        if let Some(how) = self.kind.treatment() {
            objects &= world.abilities.treatable(how);
        }
        let (receptacles, lamps) = match self.kind {
            TaskKind::LookAtObjInLight => (0, world.objects_of(&self.place) & world.abilities.toggleable),
            _ => (world.receptacles_of(&self.place), 0),
        };
        Aim { kind: self.kind, objects, receptacles, lamps }
    }
}

/// A goal over the entities of one world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Aim {
    pub kind: TaskKind,
    /// Any of these objects.
    pub objects: Set,
    /// Into any of these receptacles.
    pub receptacles: Set,
    /// Under any of these lamps.
    pub lamps: Set,
}

impl Aim {
    /// Whether the goal is reached.
    pub fn holds(&self, world: &World, state: &State) -> bool {
        match self.kind {
            TaskKind::LookAtObjInLight => {
                state.held.is_some_and(|o| has(self.objects, o))
                    && members(world.here[state.at]).any(|r| state.inside[r] & self.lamps & state.toggled != 0)
            }
            TaskKind::PickTwoObjAndPlace => {
                members(self.receptacles).any(|r| (state.inside[r] & self.objects).count_ones() >= 2)
            }
            kind => {
                let fit = kind.treatment().map_or(Set::MAX, |how| state.treated(how));
                members(self.receptacles).any(|r| state.inside[r] & self.objects & fit != 0)
            }
        }
    }
}

/// The goals that hold in `now` and did not in `start`, sorted.
pub(super) fn achieved(world: &World, start: &State, now: &State) -> Vec<Goal> {
    let goal =
        |kind, o: usize, place: &str| Goal { kind, object: world.objects[o].class.clone(), place: place.to_owned() };
    let mut goals = Vec::new();
    for (r, receptacle) in world.receptacles.iter().enumerate() {
        for o in members(now.inside[r] & world.abilities.pickupable) {
            let kinds = TaskKind::ALL.into_iter().filter(|kind| *kind != TaskKind::LookAtObjInLight);
            goals.extend(kinds.map(|kind| goal(kind, o, &receptacle.class)));
        }
    }
    if let Some(held) = now.held {
        let lit = members(world.here[now.at]).fold(0, |set, r| set | now.inside[r]) & now.toggled;
        goals.extend(members(lit).map(|lamp| goal(TaskKind::LookAtObjInLight, held, &world.objects[lamp].class)));
    }
    goals.sort();
    goals.dedup();
    goals.retain(|goal| {
        let aim = goal.aim(world);
        aim.holds(world, now) && !aim.holds(world, start)
    });
    goals
}
