//! The classes of receptacles and objects that generated rooms are made of, and where things usually lie.
//!
//! Invariants: a class has the same abilities in every room; a pair marked unseen, and every pair with an unseen
//! receptacle class, occurs in no training task, neither as a placement nor as a goal.

use std::sync::LazyLock;

use super::{RoomKind, Size};

/// A class of receptacles.
pub(super) struct ReceptacleClass {
    pub name: &'static str,
    pub openable: bool,
    /// How many of it a room of each size has at most: tiny, small, medium, alfred.
    pub most: [usize; 4],
}

const fn receptacle(name: &'static str, openable: bool, most: [usize; 4]) -> ReceptacleClass {
    ReceptacleClass { name, openable, most }
}

/// Sorted by name.
pub(super) const RECEPTACLES: [ReceptacleClass; 29] = [
    receptacle("armchair", false, [1, 1, 2, 2]),
    receptacle("bathtubbasin", false, [1, 1, 1, 1]),
    receptacle("bed", false, [1, 1, 1, 2]),
    receptacle("cabinet", true, [1, 2, 4, 9]),
    receptacle("cart", false, [1, 1, 1, 1]),
    receptacle("coffeemachine", false, [0, 0, 1, 1]),
    receptacle("coffeetable", false, [1, 1, 1, 2]),
    receptacle("countertop", false, [1, 1, 2, 3]),
    receptacle("desk", false, [1, 1, 1, 2]),
    receptacle("diningtable", false, [1, 1, 1, 2]),
    receptacle("drawer", true, [1, 2, 4, 8]),
    receptacle("dresser", false, [1, 1, 1, 1]),
    receptacle("fridge", true, [1, 1, 1, 1]),
    receptacle("garbagecan", false, [1, 1, 1, 1]),
    receptacle("handtowelholder", false, [0, 0, 1, 2]),
    receptacle("laundryhamper", true, [0, 0, 1, 1]),
    receptacle("microwave", true, [1, 1, 1, 1]),
    receptacle("ottoman", false, [0, 0, 1, 1]),
    receptacle("safe", true, [1, 1, 1, 1]),
    receptacle("shelf", false, [1, 2, 3, 6]),
    receptacle("sidetable", false, [1, 2, 2, 2]),
    receptacle("sinkbasin", false, [1, 1, 1, 2]),
    receptacle("sofa", false, [1, 1, 1, 1]),
    receptacle("stoveburner", false, [0, 0, 2, 4]),
    receptacle("toaster", false, [0, 0, 1, 1]),
    receptacle("toilet", false, [1, 1, 1, 1]),
    receptacle("toiletpaperhanger", false, [0, 0, 1, 1]),
    receptacle("towelholder", false, [0, 0, 1, 1]),
    receptacle("tvstand", false, [1, 1, 1, 1]),
];

/// What the rooms of a kind are made of.
pub(super) struct Room {
    pub kind: RoomKind,
    /// In every layout: what its tasks need.
    pub always: &'static [&'static str],
    pub often: &'static [&'static str],
    /// In unseen layouts only, and in all of them.
    pub unseen: &'static str,
}

pub(super) const ROOMS: [Room; 4] = [
    Room {
        kind: RoomKind::Kitchen,
        always: &["countertop", "fridge", "microwave", "sinkbasin"],
        often: &["cabinet", "drawer", "garbagecan", "shelf", "coffeemachine", "stoveburner", "toaster"],
        unseen: "diningtable",
    },
    Room {
        kind: RoomKind::LivingRoom,
        always: &["sidetable", "sofa"],
        often: &["coffeetable", "drawer", "garbagecan", "shelf", "tvstand", "ottoman", "cabinet"],
        unseen: "armchair",
    },
    Room {
        kind: RoomKind::Bedroom,
        always: &["bed", "desk"],
        often: &["drawer", "dresser", "garbagecan", "shelf", "sidetable", "laundryhamper"],
        unseen: "safe",
    },
    Room {
        kind: RoomKind::Bathroom,
        always: &["sinkbasin", "toilet"],
        often: &[
            "bathtubbasin",
            "cabinet",
            "countertop",
            "drawer",
            "garbagecan",
            "handtowelholder",
            "toiletpaperhanger",
            "towelholder",
        ],
        unseen: "cart",
    },
];

/// One line per class: name; abilities; rooms; where it lies, with how often. Abilities: `c`lean, `h`eat, coo`k`,
/// `s`lice, `r`eceptacle object, k`n`ife, `l`amp, `t`iny lexicon. Rooms: `k`itchen, `l`iving room, `b`edroom,
/// bath`w`ater room. `0`: it may be put there but never starts there. `!`: unseen pair.
const OBJECTS: &str = "\
apple; chkst; k; countertop 3, diningtable 3, fridge 3, !garbagecan 2, microwave 1, sinkbasin 1
bread; hkst; k; countertop 4, diningtable 3, !fridge 2, garbagecan 1, microwave 1
egg; chkt; k; countertop 1, diningtable 1, fridge 4, garbagecan 1, !microwave 2, sinkbasin 1
potato; chkst; k; countertop 2, diningtable 2, fridge 2, garbagecan 1, !microwave 2, sinkbasin 2
tomato; chks; k; countertop 3, diningtable 2, fridge 2, garbagecan 1, microwave 1, !sinkbasin 2
lettuce; cks; k; countertop 3, diningtable 2, fridge 3, !garbagecan 1, sinkbasin 1
mug; chkrt; kb; cabinet 3, cart 0, coffeemachine 2, countertop 2, desk 1, diningtable 1, dresser 0, !fridge 2, microwave 1, shelf 2, sidetable 0, sinkbasin 2
cup; chkrt; k; cabinet 3, countertop 2, diningtable 2, dresser 0, fridge 1, microwave 1, !shelf 2, sinkbasin 1
plate; chkrt; k; cabinet 3, countertop 1, diningtable 2, !fridge 2, microwave 1, shelf 2, sinkbasin 1
bowl; ckrt; kb; cabinet 2, countertop 2, desk 0, diningtable 2, dresser 1, fridge 1, shelf 2, sidetable 0, !sinkbasin 2
spoon; ct; k; countertop 2, diningtable 2, drawer 4, sinkbasin 2
fork; c; k; countertop 2, diningtable 2, drawer 4, !sinkbasin 2
knife; cnt; k; countertop 3, diningtable 2, drawer 3, !sinkbasin 2
butterknife; cn; k; countertop 2, diningtable 2, drawer 3, sinkbasin 1
spatula; c; k; countertop 2, diningtable 1, drawer 3, !sinkbasin 1
ladle; c; k; cabinet 2, countertop 2, diningtable 1, drawer 2, sinkbasin 1
pan; ckr; k; cabinet 1, countertop 2, diningtable 1, fridge 1, sinkbasin 1, stoveburner 4
pot; ckr; k; cabinet 1, countertop 1, diningtable 1, fridge 1, !shelf 1, sinkbasin 1, stoveburner 4
kettle; c; k; cabinet 2, countertop 2, diningtable 1, shelf 1, sinkbasin 1, stoveburner 2
dishsponge; c; kw; bathtubbasin 0, cabinet 1, cart 1, countertop 2, !drawer 2, garbagecan 1, shelf 0, sinkbasin 3, toilet 0
saltshaker; ; k; cabinet 3, countertop 2, diningtable 2, drawer 1, !shelf 2
peppershaker; ; k; cabinet 2, countertop 2, diningtable 2, drawer 2, shelf 1
soapbottle; ; kw; cabinet 2, cart 1, countertop 3, drawer 1, !garbagecan 1, shelf 1, toilet 2
winebottle; k; k; cabinet 2, countertop 2, diningtable 1, fridge 1, garbagecan 1, shelf 1
soapbar; ct; w; bathtubbasin 2, cabinet 1, cart 2, countertop 2, drawer 1, garbagecan 1, shelf 0, sinkbasin 2, !toilet 3
cloth; ct; w; bathtubbasin 3, cabinet 2, cart 2, countertop 2, drawer 1, !garbagecan 2, laundryhamper 0, shelf 0, sinkbasin 1, toilet 1
toiletpaper; t; w; cabinet 2, cart 2, countertop 1, drawer 1, !garbagecan 2, shelf 0, toilet 4, toiletpaperhanger 1
candle; t; w; cabinet 1, cart 2, coffeetable 0, countertop 2, !drawer 2, shelf 0, toilet 3
spraybottle; t; w; cabinet 3, cart 2, countertop 2, drawer 0, garbagecan 1, shelf 0, toilet 2
handtowel; ; w; cabinet 0, cart 0, countertop 0, garbagecan 0, handtowelholder 4, sinkbasin 0
towel; ; w; bathtubbasin 0, towelholder 4
tissuebox; ; lw; cabinet 1, cart 1, coffeetable 2, countertop 2, drawer 0, dresser 1, shelf 1, sidetable 2, !toilet 1, tvstand 0
book; t; lb; armchair 2, bed 3, cabinet 0, coffeetable 2, desk 3, drawer 1, dresser 1, ottoman 0, shelf 3, !sidetable 2, sofa 1, tvstand 1
pillow; t; lb; armchair 3, bed 4, ottoman 0, sofa 4
remotecontrol; t; l; armchair 3, coffeetable 3, drawer 1, dresser 1, ottoman 1, !shelf 2, sidetable 1, sofa 3, tvstand 2
creditcard; t; lb; armchair 2, coffeetable 1, desk 3, drawer 2, dresser 2, ottoman 0, safe 3, !shelf 2, sidetable 1, sofa 0, tvstand 1
keychain; t; lb; armchair 2, coffeetable 2, desk 1, drawer 2, dresser 1, ottoman 0, safe 3, shelf 0, sidetable 2, !sofa 2, tvstand 1
laptop; t; lb; armchair 2, bed 3, coffeetable 2, desk 3, dresser 1, ottoman 0, sidetable 0, sofa 2, !tvstand 2
cellphone; t; b; armchair 1, bed 2, coffeetable 1, desk 3, !drawer 2, dresser 2, safe 3, shelf 0, sidetable 2, sofa 1
newspaper; t; l; armchair 2, bed 0, cabinet 0, coffeetable 3, desk 0, drawer 1, dresser 0, !garbagecan 2, ottoman 0, shelf 1, sidetable 1, sofa 2, tvstand 1
pencil; t; b; coffeetable 1, desk 4, drawer 2, !dresser 2, garbagecan 1, shelf 2, sidetable 1
pen; ; b; coffeetable 0, desk 4, drawer 2, dresser 1, garbagecan 1, !shelf 1, sidetable 1
cd; ; b; cabinet 0, coffeetable 0, desk 3, drawer 2, dresser 1, garbagecan 1, safe 2, shelf 1, !sidetable 1
watch; ; lb; coffeetable 2, desk 1, drawer 2, dresser 2, safe 2, shelf 1, sidetable 2, !tvstand 1
vase; ; l; cabinet 1, coffeetable 2, dresser 1, safe 0, shelf 2, !sidetable 1, tvstand 1
statue; ; l; coffeetable 2, dresser 2, safe 0, shelf 2, sidetable 1, tvstand 1
alarmclock; ; b; desk 3, dresser 2, !shelf 1, sidetable 3
basketball; ; b; armchair 1, bed 1, desk 1, dresser 1, ottoman 0, sofa 0
box; r; l; armchair 1, cabinet 0, coffeetable 2, desk 0, dresser 1, ottoman 1, shelf 0, sidetable 1, sofa 2
wateringcan; ; l; cabinet 1, coffeetable 1, drawer 0, dresser 1, shelf 1, sidetable 2
desklamp; lt; lb; desk 3, dresser 2, sidetable 3
";

/// Where a class of objects may be.
#[derive(Debug)]
pub(super) struct Place {
    /// Index into `RECEPTACLES`.
    pub receptacle: usize,
    pub weight: u64,
    /// In no training task.
    pub unseen: bool,
}

/// A class of objects.
#[derive(Debug)]
pub(super) struct ObjectClass {
    pub name: &'static str,
    pub abilities: &'static str,
    pub rooms: &'static str,
    pub places: Vec<Place>,
}

impl ObjectClass {
    pub fn is_lamp(&self) -> bool {
        self.abilities.contains('l')
    }

    /// Whether rooms of this kind and size have it.
    pub fn belongs(&self, kind: RoomKind, size: Size) -> bool {
        let small = matches!(size, Size::Tiny | Size::Small);
        self.rooms.contains(kind.letter()) && (!small || self.abilities.contains('t'))
    }

    pub fn place(&self, receptacle: usize) -> Option<&Place> {
        self.places.iter().find(|place| place.receptacle == receptacle)
    }
}

/// The index of a receptacle class.
///
/// # Panics
/// If the tables of this file name a class that they do not have.
pub(super) fn receptacle_index(name: &str) -> usize {
    match RECEPTACLES.binary_search_by(|class| class.name.cmp(name)) {
        Ok(index) => index,
        Err(_) => panic!("BUG: `{name}` is no receptacle class"),
    }
}

/// Whether unseen rooms alone have this class.
pub(super) fn is_unseen(receptacle: usize) -> bool {
    ROOMS.iter().any(|room| room.unseen == RECEPTACLES[receptacle].name)
}

static CLASSES: LazyLock<Vec<ObjectClass>> = LazyLock::new(|| {
    let mut classes: Vec<ObjectClass> = OBJECTS.lines().map(read).collect();
    classes.sort_by_key(|class| class.name);
    classes
});

/// Every class of objects, sorted by name.
pub(super) fn objects() -> &'static [ObjectClass] {
    &CLASSES
}

fn place_of(object: &str, receptacle: &str) -> Option<Option<&'static Place>> {
    let classes = objects();
    let at = classes.binary_search_by(|class| class.name.cmp(object)).ok()?;
    let receptacle = RECEPTACLES.binary_search_by(|class| class.name.cmp(receptacle)).ok()?;
    Some(classes[at].place(receptacle))
}

/// How often an object of one class lies in a receptacle of another, as one knows who has lived in seen rooms and has
/// common sense about receptacles that they lack: 0 for never, the least for unseen pairs of seen classes and for
/// classes that are not in the tables.
pub(super) fn prior(object: &str, receptacle: &str) -> u64 {
    match place_of(object, receptacle) {
        None => 1,
        Some(None) => 0,
        Some(Some(place)) if place.unseen && !is_unseen(place.receptacle) => 1,
        Some(Some(place)) => 2 * place.weight,
    }
}

/// Whether a pair of classes is kept out of training tasks.
pub(super) fn held_out(object: &str, receptacle: &str) -> bool {
    place_of(object, receptacle).flatten().is_some_and(|place| place.unseen)
}

fn read(line: &'static str) -> ObjectClass {
    let mut fields = line.split("; ");
    let mut field = || fields.next().unwrap_or_else(|| panic!("BUG: a field is missing in `{line}`"));
    let (name, abilities, rooms, places) = (field(), field(), field(), field());
    let places = places.split(", ").map(|place| {
        let (unseen, place) = match place.strip_prefix('!') {
            Some(place) => (true, place),
            None => (false, place),
        };
        let (class, weight) = place.split_once(' ').unwrap_or_else(|| panic!("BUG: `{place}` has no weight"));
        let weight = weight.parse().unwrap_or_else(|_| panic!("BUG: `{weight}` is no weight"));
        let receptacle = receptacle_index(class);
        Place { receptacle, weight, unseen: unseen || is_unseen(receptacle) }
    });
    ObjectClass { name, abilities, rooms, places: places.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_lines_are_consistent() {
        assert!(RECEPTACLES.is_sorted_by_key(|class| class.name));
        for class in objects() {
            assert!(class.abilities.chars().all(|ability| "chkrsnlt".contains(ability)), "{class:?}");
            assert!(!class.rooms.is_empty() && class.rooms.chars().all(|room| "klbw".contains(room)), "{class:?}");
            let mut places: Vec<usize> = class.places.iter().map(|place| place.receptacle).collect();
            places.dedup();
            assert!(places.is_sorted() && places.len() == class.places.len(), "{class:?}");
        }
    }

    #[test]
    fn every_object_has_a_usual_place_in_some_layout_of_each_of_its_rooms() {
        for class in objects() {
            for room in ROOMS.iter().filter(|room| class.rooms.contains(room.kind.letter())) {
                let usual = class.places.iter().filter(|place| place.weight > 0 && !place.unseen);
                let names: Vec<&str> = usual.map(|place| RECEPTACLES[place.receptacle].name).collect();
                let found = room.always.iter().chain(room.often).any(|name| names.contains(name));
                assert!(found, "{} in {:?}", class.name, room.kind);
            }
        }
    }

    #[test]
    fn rooms_name_receptacle_classes_and_keep_unseen_ones_out_of_seen_layouts() {
        for room in &ROOMS {
            for name in room.always.iter().chain(room.often) {
                assert!(!is_unseen(receptacle_index(name)), "{name}");
            }
            assert!(is_unseen(receptacle_index(room.unseen)));
        }
    }
}
