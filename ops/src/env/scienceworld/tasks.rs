//! The simulator's thirty tasks, their variations and splits.
//!
//! Invariant: this table is that of simulator 1.2.3; a simulator that says otherwise is refused when it is started.

/// One of the thirty.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The benchmark's number: `1-1`.
    pub id: &'static str,
    /// `boil`
    pub name: &'static str,
    pub variations: u32,
}

/// All tasks, by number.
pub static KINDS: [Kind; 30] = [
    Kind { id: "1-1", name: "boil", variations: 30 },
    Kind { id: "1-2", name: "melt", variations: 30 },
    Kind { id: "1-3", name: "freeze", variations: 30 },
    Kind { id: "1-4", name: "change-the-state-of-matter-of", variations: 30 },
    Kind { id: "2-1", name: "use-thermometer", variations: 540 },
    Kind { id: "2-2", name: "measure-melting-point-known-substance", variations: 436 },
    Kind { id: "2-3", name: "measure-melting-point-unknown-substance", variations: 300 },
    Kind { id: "3-1", name: "power-component", variations: 20 },
    Kind { id: "3-2", name: "power-component-renewable-vs-nonrenewable-energy", variations: 20 },
    Kind { id: "3-3", name: "test-conductivity", variations: 900 },
    Kind { id: "3-4", name: "test-conductivity-of-unknown-substances", variations: 600 },
    Kind { id: "4-1", name: "find-living-thing", variations: 300 },
    Kind { id: "4-2", name: "find-non-living-thing", variations: 300 },
    Kind { id: "4-3", name: "find-plant", variations: 300 },
    Kind { id: "4-4", name: "find-animal", variations: 300 },
    Kind { id: "5-1", name: "grow-plant", variations: 126 },
    Kind { id: "5-2", name: "grow-fruit", variations: 126 },
    Kind { id: "6-1", name: "chemistry-mix", variations: 32 },
    Kind { id: "6-2", name: "chemistry-mix-paint-secondary-color", variations: 36 },
    Kind { id: "6-3", name: "chemistry-mix-paint-tertiary-color", variations: 36 },
    Kind { id: "7-1", name: "lifespan-longest-lived", variations: 125 },
    Kind { id: "7-2", name: "lifespan-shortest-lived", variations: 125 },
    Kind { id: "7-3", name: "lifespan-longest-lived-then-shortest-lived", variations: 125 },
    Kind { id: "8-1", name: "identify-life-stages-1", variations: 14 },
    Kind { id: "8-2", name: "identify-life-stages-2", variations: 10 },
    Kind { id: "9-1", name: "inclined-plane-determine-angle", variations: 168 },
    Kind { id: "9-2", name: "inclined-plane-friction-named-surfaces", variations: 1386 },
    Kind { id: "9-3", name: "inclined-plane-friction-unnamed-surfaces", variations: 162 },
    Kind { id: "10-1", name: "mendelian-genetics-known-plant", variations: 120 },
    Kind { id: "10-2", name: "mendelian-genetics-unknown-plant", variations: 480 },
];

/// Splits, the one for training first.
pub const SPLITS: [&str; 3] = ["train", "dev", "test"];

impl Kind {
    /// The variations of a split; `None` where there is no such split. Half of them are for training, a quarter each for
    /// the others, and what is left over for the test.
    pub fn range(&self, split: &str) -> Option<std::ops::Range<u32>> {
        let (n, quarter) = (self.variations, self.variations / 4);
        match split {
            "train" => Some(0..2 * quarter),
            "dev" => Some(2 * quarter..3 * quarter),
            "test" => Some(3 * quarter..n),
            _ => None,
        }
    }

    /// Whether it is about circuits, and so not to be had without them.
    pub fn is_electrical(&self) -> bool {
        self.name.contains("power-component") || self.name.contains("conductivity")
    }
}

/// The task of a name, in any of the forms in use: `boil`, `1-1`, `task-1-boil`, `task-1-(boil)`.
pub fn find(name: &str) -> Option<usize> {
    if let Some(at) = KINDS.iter().position(|kind| kind.id == name) {
        return Some(at);
    }
    let mut plain = name.replace(['(', ')'], "").replace("mendellian", "mendelian");
    // `task-3b-` and `task-10-`
    if let Some((number, rest)) = plain.strip_prefix("task-").and_then(|rest| rest.split_once('-'))
        && !number.is_empty()
        && number.chars().all(|c| c.is_ascii_digit() || c == 'a' || c == 'b')
    {
        plain = rest.to_owned();
    }
    KINDS.iter().position(|kind| kind.name == plain)
}

/// Which tasks a split has, in order: the first variation of every task, then the second of each, and so on, so that a
/// short beginning has all kinds in it. Of each task at most `most` variations; 0 takes all.
pub fn order(kinds: &[usize], split: &str, most: usize) -> Option<Vec<(usize, u32)>> {
    let mut ranges = Vec::with_capacity(kinds.len());
    for kind in kinds {
        ranges.push((*kind, KINDS[*kind].range(split)?));
    }
    let rounds = ranges.iter().map(|(_, range)| range.len()).max().unwrap_or(0);
    let rounds = if most == 0 { rounds } else { rounds.min(most) };
    let mut tasks = Vec::new();
    for round in 0..rounds {
        tasks.extend(ranges.iter().filter_map(|(kind, range)| Some((*kind, range.clone().nth(round)?))));
    }
    Some(tasks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_variations_and_splits_are_the_simulators() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/scienceworld/tasks.json");
        type Row = (String, u32, usize, usize, usize, [u32; 2], [u32; 2], [u32; 2]);
        let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(rows.len(), KINDS.len());
        for (name, variations, train, dev, test, ..) in &rows {
            let kind = &KINDS[find(name).unwrap()];
            assert_eq!(kind.variations, *variations);
            let lengths = SPLITS.map(|split| kind.range(split).unwrap().len());
            assert_eq!(lengths, [*train, *dev, *test], "{name}");
        }
        for (name, .., train, dev, test) in &rows {
            let kind = &KINDS[find(name).unwrap()];
            let ends = SPLITS.map(|split| kind.range(split).unwrap()).map(|range| [range.start, range.end - 1]);
            assert_eq!(ends, [*train, *dev, *test], "{name}");
        }
        let all: Vec<usize> = (0..KINDS.len()).collect();
        assert_eq!(SPLITS.map(|split| order(&all, split, 0).unwrap().len()), [3592, 1796, 1819]);
    }

    #[test]
    fn a_short_beginning_of_a_split_has_all_kinds_of_tasks() {
        let all: Vec<usize> = (0..KINDS.len()).collect();
        let tasks = order(&all, "test", 0).unwrap();
        assert_eq!(tasks[..30].iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), all);
        assert_eq!(tasks[0], (0, 21));
        assert_eq!(tasks[30], (0, 22));
        let mut once = tasks.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), tasks.len());
        assert_eq!(order(&all, "test", 3).unwrap(), tasks[..90]);
        assert_eq!(order(&[2, 0], "dev", 2).unwrap(), [(2, 14), (0, 14), (2, 15), (0, 15)]);
        assert_eq!(order(&all, "ood", 0), None);
    }

    #[test]
    fn tasks_are_known_by_all_their_names() {
        for name in ["boil", "1-1", "task-1-boil", "task-1-(boil)"] {
            assert_eq!(find(name), Some(0), "{name}");
        }
        assert_eq!(KINDS[find("task-10-mendellian-genetics-(known-plant)").unwrap()].id, "10-1");
        assert_eq!(KINDS[find("task-3b-test-conductivity").unwrap()].id, "3-3");
        for name in ["", "task-", "task--boil", "11-1", "Boil"] {
            assert_eq!(find(name), None, "{name}");
        }
    }
}
