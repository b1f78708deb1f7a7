//! Makes rooms and tasks: layouts, then placements and goals in them.
//!
//! 1. A pool of layouts per kind of room: seen (train and id) or unseen (ood).
//! 2. For task `i` of a split: a kind, a room, a layout, objects, a goal.
//! 3. Drawn again until the goal is open, the problem belongs to the split, and an ood goal is about a pair of object
//!    and receptacle that no training task has.
//!
//! Invariants: task `i` depends on settings, split, seed and `i` alone; layouts depend on the settings alone, so that
//! every seed plays in the same rooms; train and id share no problem; every goal can be reached; no room of `elsewhere`
//! has the same receptacles as a room of any split.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::goal::{Goal, TaskKind, Treatment};
use super::lexicon::{self, ObjectClass, Place, RECEPTACLES, ROOMS, Room};
use super::world::{Abilities, Object, Receptacle, State, World, only};
use super::{HouseholdTask, Novelty, RoomKind, Settings, Size, Split};
use crate::artifact::Task;
use crate::env::EnvError;
use crate::rng::Rng;

/// Draws before a problem is given up; the tables make one in a few succeed.
const ATTEMPTS: u64 = 20_000;

/// How much one room holds.
struct Measure {
    receptacles: (usize, usize),
    objects: (usize, usize),
    /// How many objects of a class at most (a task of two may need one more).
    same: usize,
    /// Chance in 100 that a receptacle stands where the one before it stands.
    shared: u64,
}

impl Size {
    fn measure(self) -> Measure {
        match self {
            Size::Tiny => Measure { receptacles: (4, 7), objects: (3, 7), same: 1, shared: 0 },
            Size::Small => Measure { receptacles: (6, 10), objects: (6, 12), same: 2, shared: 0 },
            Size::Medium => Measure { receptacles: (10, 16), objects: (12, 28), same: 3, shared: 10 },
            Size::Alfred => Measure { receptacles: (16, 26), objects: (28, 52), same: 4, shared: 20 },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Size::Tiny => "tiny",
            Size::Small => "small",
            Size::Medium => "medium",
            Size::Alfred => "alfred",
        }
    }
}

impl TaskKind {
    /// Kinds of room that the task fits.
    fn rooms(self) -> &'static [RoomKind] {
        match self {
            TaskKind::PickAndPlaceSimple | TaskKind::PickTwoObjAndPlace => &RoomKind::ALL,
            TaskKind::LookAtObjInLight => &[RoomKind::LivingRoom, RoomKind::Bedroom],
            TaskKind::PickCleanThenPlaceInRecep => &[RoomKind::Kitchen, RoomKind::Bathroom],
            TaskKind::PickHeatThenPlaceInRecep | TaskKind::PickCoolThenPlaceInRecep => &[RoomKind::Kitchen],
        }
    }
}

/// The receptacles of a room: class and location of each, in listing order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Layout {
    receptacles: Vec<(usize, usize)>,
}

impl Layout {
    fn draw(room: &Room, size: Size, unseen: bool, rng: &mut Rng) -> Layout {
        let measure = size.measure();
        let wanted = rng.between(measure.receptacles.0, measure.receptacles.1);
        let most = |class: usize| RECEPTACLES[class].most[size as usize];
        let mut classes: Vec<usize> = room.always.iter().map(|name| lexicon::receptacle_index(name)).collect();
        if unseen {
            classes.push(lexicon::receptacle_index(room.unseen));
        }
        let often = || room.often.iter().chain(room.always).map(|name| lexicon::receptacle_index(name));
        while classes.len() < wanted {
            let left = |class: usize| most(class) - classes.iter().filter(|&&c| c == class).count().min(most(class));
            let Some(choice) = rng.weighted(often().map(|class| left(class) as u64)) else { break };
            classes.extend(often().nth(choice));
        }
        classes.sort_unstable();
        let mut location = 0;
        let receptacles = classes.into_iter().enumerate().map(|(index, class)| {
            if index > 0 && !rng.percent(measure.shared) {
                location += 1;
            }
            (class, location)
        });
        Layout { receptacles: receptacles.collect() }
    }

    fn has(&self, class: usize) -> bool {
        self.receptacles.iter().any(|&(c, _)| c == class)
    }

    /// What a start tells of it: the class of each receptacle, in order.
    fn told(&self) -> Vec<usize> {
        self.receptacles.iter().map(|&(class, _)| class).collect()
    }

    /// Where the layouts of a kind of room are drawn from.
    fn source(room: &Room, settings: &Settings, unseen: bool) -> Rng {
        Rng::at(0, &[settings.rooms, room.kind as u64, u64::from(unseen), settings.size as u64])
    }

    /// The layouts of a kind of room, all different while the tables allow it.
    fn pool(room: &Room, settings: &Settings, unseen: bool) -> Vec<Layout> {
        let wanted = if unseen { settings.unseen_layouts } else { settings.layouts };
        let mut rng = Layout::source(room, settings, unseen);
        let mut pool: Vec<Layout> = Vec::new();
        for _ in 0..wanted.max(1) {
            let mut layout = Layout::draw(room, settings.size, unseen, &mut rng);
            for _ in 0..200 {
                if !pool.contains(&layout) {
                    break;
                }
                layout = Layout::draw(room, settings.size, unseen, &mut rng);
            }
            pool.push(layout);
        }
        pool
    }
}

/// Layouts by kind of room, for one split.
pub(super) struct Rooms {
    pools: Vec<Vec<Layout>>,
}

impl Rooms {
    pub fn of(settings: &Settings, split: Split) -> Rooms {
        Rooms { pools: ROOMS.iter().map(|room| Layout::pool(room, settings, split.is_unseen())).collect() }
    }

    /// Rooms of the house `other`, all different, none of which has the same receptacles, as a start tells them, as a
    /// room of any split of `settings`.
    ///
    /// # Errors
    /// Names the kind of room that is left without a layout, where the tasks need it.
    pub fn elsewhere(settings: &Settings, other: &Settings, split: Split) -> Result<Rooms, EnvError> {
        /// Draws for the layouts of a kind of room: small rooms have few, and many draws hit one that is taken.
        const DRAWS: usize = 4000;
        let taken: BTreeSet<Vec<usize>> = [false, true]
            .into_iter()
            .flat_map(|unseen| ROOMS.iter().flat_map(move |room| Layout::pool(room, settings, unseen)))
            .map(|layout| layout.told())
            .collect();
        let unseen = split.is_unseen();
        let wanted = if unseen { other.unseen_layouts } else { other.layouts } as usize;
        let mut pools = Vec::with_capacity(ROOMS.len());
        for room in &ROOMS {
            let mut rng = Layout::source(room, other, unseen);
            let mut pool: Vec<Layout> = Vec::new();
            for _ in 0..DRAWS {
                if pool.len() == wanted {
                    break;
                }
                let layout = Layout::draw(room, other.size, unseen, &mut rng);
                if !taken.contains(&layout.told()) && !pool.contains(&layout) {
                    pool.push(layout);
                }
            }
            if pool.is_empty() && settings.kinds().iter().any(|kind| kind.rooms().contains(&room.kind)) {
                let (key, count) = match unseen {
                    true => ("unseen_layouts", settings.unseen_layouts),
                    false => ("layouts", settings.layouts),
                };
                return Err(EnvError::with_help(
                    format!(
                        "no {} is left that no split has: `{key} = {count}` takes all that the size `{}` makes",
                        room.kind.name(),
                        settings.size.name()
                    ),
                    format!("write a lower `{key}`, or a larger `size`"),
                ));
            }
            pools.push(pool);
        }
        Ok(Rooms { pools })
    }
}

/// An object of a room that is being made: its class and its receptacle.
type Placed = (&'static ObjectClass, usize);

/// What is being made.
struct Draft<'a> {
    layout: &'a Layout,
    /// In order of class.
    objects: Vec<Placed>,
    goal: Goal,
    target: Option<usize>,
}

/// Task `index` of a split.
pub(super) fn task(settings: &Settings, rooms: &Rooms, split: Split, index: usize, seed: u64) -> HouseholdTask {
    let kinds = settings.kinds();
    let words = [settings.rooms, settings.size as u64, seed, split as u64];
    let mut block: Vec<TaskKind> = kinds.clone();
    Rng::at(0, &[&words[..], &[1, (index / kinds.len()) as u64]].concat()).shuffle(&mut block);
    let kind = block[index % kinds.len()];
    for attempt in 0..ATTEMPTS {
        let mut rng = Rng::at(0, &[&words[..], &[2, index as u64, attempt]].concat());
        let Some(draft) = Draft::draw(settings, rooms, split, kind, &mut rng) else { continue };
        let novelty = draft.novelty();
        let fits = match split {
            Split::Train => novelty.is_empty() && draft.fingerprint() % 4 != 0,
            Split::Id => novelty.is_empty() && draft.fingerprint() % 4 == 0,
            Split::Ood => !novelty.is_empty(),
            Split::OodLayout => novelty.is_empty(),
            Split::OodPair => novelty == [Novelty::Pair],
            Split::OodReceptacle => novelty.contains(&Novelty::Receptacle),
        };
        let (world, start) = draft.build();
        if !fits || draft.goal.aim(&world).holds(&world, &start) {
            continue;
        }
        let task = Task {
            env: "household".to_owned(),
            id: format!("{}/{}/{index}", settings.size.name(), split.name()),
            split: split.name().to_owned(),
            kind: kind.name().to_owned(),
            goal: draft.goal.text(),
            seed: Some(seed),
        };
        return HouseholdTask {
            task,
            goal: draft.goal,
            world: Arc::new(world),
            start: Arc::new(start),
            novelty,
            voice: settings.wording.into(),
            expert: settings.expert,
        };
    }
    panic!("BUG: no {} task in {ATTEMPTS} draws", kind.name())
}

impl<'a> Draft<'a> {
    /// A room with a goal in it; `None` where the draw leads nowhere.
    fn draw(settings: &Settings, rooms: &'a Rooms, split: Split, kind: TaskKind, rng: &mut Rng) -> Option<Draft<'a>> {
        let room_kind = kind.rooms()[rng.below(kind.rooms().len())];
        let pool = &rooms.pools[room_kind as usize];
        let layout = &pool[rng.below(pool.len())];
        let (size, unseen) = (settings.size, split.is_unseen());
        let usual = |place: &&Place| layout.has(place.receptacle) && place.weight > 0 && (unseen || !place.unseen);
        // Unseen pairs are drawn more often than their weight where they may be drawn at all: they are what is tested.
        let weight = |place: &Place| if place.unseen { 3 * place.weight } else { place.weight };

        let belong: Vec<&'static ObjectClass> =
            lexicon::objects().iter().filter(|class| class.belongs(room_kind, size)).collect();
        let lamp = belong.iter().copied().find(|class| class.is_lamp());
        let movable: Vec<_> = belong.into_iter().filter(|class| !class.is_lamp()).collect();
        let treatment = kind.treatment();
        let able: Vec<_> = movable.iter().copied().filter(|class| treatment.is_none_or(|how| class.can(how))).collect();
        let class = able[rng.below(able.len())];

        let (place, target) = if kind == TaskKind::LookAtObjInLight {
            (lamp?.name, None)
        } else {
            let skip = treatment.map(|how| lexicon::receptacle_index(how.appliance()));
            let places: Vec<&Place> =
                class.places.iter().filter(usual).filter(|place| Some(place.receptacle) != skip).collect();
            let place = places[rng.weighted(places.iter().map(|place| weight(place)))?];
            (RECEPTACLES[place.receptacle].name, Some(place.receptacle))
        };
        let goal = Goal { kind, object: class.name.to_owned(), place: place.to_owned() };

        let measure = size.measure();
        let mut classes = vec![class];
        if kind == TaskKind::PickTwoObjAndPlace {
            classes.push(class);
        }
        if kind == TaskKind::LookAtObjInLight || (lamp.is_some() && rng.percent(50)) {
            classes.extend(lamp);
        }
        let wanted = rng.between(measure.objects.0, measure.objects.1);
        let mut spare: Vec<_> = movable
            .iter()
            .flat_map(|other| std::iter::repeat_n(*other, measure.same))
            .filter(|other| measure.same > 1 || other.name != class.name)
            .collect();
        rng.shuffle(&mut spare);
        classes.extend(spare.into_iter().take(wanted.saturating_sub(classes.len())));

        let mut objects = Vec::new();
        for (nth, class) in classes.into_iter().enumerate() {
            let places: Vec<&Place> = class.places.iter().filter(usual).collect();
            let Some(choice) = rng.weighted(places.iter().map(|place| weight(place))) else {
                // The goal's own objects must be somewhere; others need not be.
                if nth == 0 || (nth == 1 && kind == TaskKind::PickTwoObjAndPlace) || class.is_lamp() {
                    return None;
                }
                continue;
            };
            let of = |r: &usize| layout.receptacles[*r].0 == places[choice].receptacle;
            let instances: Vec<usize> = (0..layout.receptacles.len()).filter(of).collect();
            objects.push((class, instances[rng.below(instances.len())]));
        }
        objects.sort_by_key(|(class, _)| class.name);
        Some(Draft { layout, objects, goal, target })
    }

    /// Pairs that no training task has, and that this goal is about.
    fn novelty(&self) -> Vec<Novelty> {
        let mut found = BTreeSet::new();
        let mut note = |class: &ObjectClass, receptacle: usize| {
            if class.place(receptacle).is_some_and(|place| place.unseen) {
                found.insert(if lexicon::is_unseen(receptacle) { Novelty::Receptacle } else { Novelty::Pair });
            }
        };
        for &(class, r) in self.objects.iter().filter(|(class, _)| class.name == self.goal.object) {
            note(class, self.layout.receptacles[r].0);
            if let Some(target) = self.target {
                note(class, target);
            }
        }
        found.into_iter().collect()
    }

    /// The same for equal problems, whichever split draws them.
    fn fingerprint(&self) -> u64 {
        let mut words: Vec<u64> = Vec::new();
        let mut word = |text: &str| words.extend(text.bytes().map(u64::from));
        word(&self.goal.text());
        for &(class, location) in &self.layout.receptacles {
            word(RECEPTACLES[class].name);
            word(&location.to_string());
        }
        for (class, r) in &self.objects {
            word(class.name);
            word(&r.to_string());
        }
        Rng::at(0, &words).next_u64()
    }

    fn build(&self) -> (World, State) {
        let classes = self.layout.receptacles.iter().map(|&(class, _)| RECEPTACLES[class].name);
        let receptacles: Vec<Receptacle> = numbered(classes)
            .zip(&self.layout.receptacles)
            .map(|(name, &(class, location))| {
                let class = &RECEPTACLES[class];
                Receptacle { name, class: class.name.to_owned(), location, openable: class.openable }
            })
            .collect();
        let objects: Vec<Object> = numbered(self.objects.iter().map(|(class, _)| class.name))
            .zip(&self.objects)
            .map(|(name, (class, _))| Object {
                name,
                class: class.name.to_owned(),
                contents: class.abilities.contains('r').then_some(0),
            })
            .collect();
        let with = |ability: char| {
            let able = self.objects.iter().enumerate().filter(|(_, (class, _))| class.abilities.contains(ability));
            able.fold(0, |set, (o, _)| set | only(o))
        };
        let lamps = with('l');
        let everything = (0..objects.len()).fold(0, |set, o| set | only(o));
        let abilities = Abilities {
            pickupable: everything & !lamps,
            cleanable: with('c'),
            heatable: with('h'),
            coolable: with('k'),
            toggleable: lamps,
            sliceable: with('s'),
            sharp: with('n'),
        };
        let accepts = self.layout.receptacles.iter().map(|&(receptacle, _)| {
            let fit = self.objects.iter().enumerate().filter(|(_, (class, _))| class.place(receptacle).is_some());
            fit.fold(0, |set, (o, _)| set | only(o))
        });
        let accepts: Vec<_> = accepts.collect();
        let locations = self.layout.receptacles.last().map_or(0, |(_, location)| location + 1);
        let mut start = State {
            at: locations, // the middle of the room, where nothing stands
            held: None,
            opened: 0,
            inside: vec![0; receptacles.len()],
            left: vec![0; receptacles.len()],
            lying: vec![0; locations + 1],
            clean: 0,
            hot: 0,
            cool: 0,
            sliced: 0,
            toggled: 0,
        };
        for (o, &(_, r)) in self.objects.iter().enumerate() {
            start.inside[r] |= only(o);
            start.lying[self.layout.receptacles[r].1] |= only(o);
        }
        let places = (0..=locations).map(|location| format!("loc {}", locations + 1 - location)).collect();
        (World::new(receptacles, objects, abilities, accepts, places), start)
    }
}

impl ObjectClass {
    fn can(&self, how: Treatment) -> bool {
        self.abilities.contains(match how {
            Treatment::Clean => 'c',
            Treatment::Heat => 'h',
            Treatment::Cool => 'k',
        })
    }
}

/// `cabinet 2`, `cabinet 1`, `drawer 1`: numbers count down within a class, as in the original.
fn numbered<'a>(classes: impl Iterator<Item = &'a str> + Clone) -> impl Iterator<Item = String> {
    let all: Vec<&str> = classes.collect();
    let names: Vec<String> = (0..all.len())
        .map(|index| format!("{} {}", all[index], all[index..].iter().filter(|class| **class == all[index]).count()))
        .collect();
    names.into_iter()
}
