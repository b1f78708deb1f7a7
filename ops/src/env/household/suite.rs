//! The household's tasks by split: as many as wanted, made from settings and a seed.
//!
//! Invariant: task `i` of a split depends on settings, split, seed and `i` alone.

use camino::Utf8Path;

use super::games::Games;
use super::generate::{self, Rooms};
use super::{Settings, Split};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Suite, no_split};

/// Splits, by the names of generated rooms and by those of ALFWorld's folders: `id` is `valid_seen`, `ood` is
/// `valid_unseen`.
pub const SPLITS: [&str; 8] =
    ["train", "id", "ood", "ood_layout", "ood_pair", "ood_receptacle", "valid_seen", "valid_unseen"];

/// Opens the household.
///
/// # Errors
/// Names the path of what is no game.
pub fn open(settings: &Settings, data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
    match data {
        None => Ok(Box::new(Generated::new(settings.clone()))),
        Some(path) => Ok(Box::new(Games::find(settings.clone(), path)?)),
    }
}

/// Rooms and tasks that are made.
struct Generated {
    settings: Settings,
    /// By split.
    rooms: [Rooms; 6],
}

impl Generated {
    fn new(settings: Settings) -> Generated {
        let rooms = Split::ALL.map(|split| Rooms::of(&settings, split));
        Generated { settings, rooms }
    }

    fn split(&self, name: &str) -> Result<Split, EnvError> {
        match name {
            "valid_seen" => Ok(Split::Id),
            "valid_unseen" => Ok(Split::Ood),
            _ => Split::ALL.into_iter().find(|split| split.name() == name).ok_or_else(|| no_split(self, name)),
        }
    }
}

impl Suite for Generated {
    fn name(&self) -> &'static str {
        "household"
    }

    fn splits(&self) -> Vec<String> {
        Split::ALL.iter().map(|split| split.name().to_owned()).collect()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, EnvError> {
        self.split(split).map(|_| None)
    }

    fn open(&self, split: &str, index: usize, seed: u64) -> Result<Box<dyn Env>, EnvError> {
        let split = self.split(split)?;
        Ok(Box::new(generate::task(&self.settings, &self.rooms[split as usize], split, index, seed).play()))
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
        let index = task.id.rsplit_once('/').and_then(|(_, index)| index.parse().ok());
        let opened = match (index, task.seed) {
            (Some(index), Some(seed)) => self.open(&task.split, index, seed)?,
            _ => return Err(EnvError::unusable(format!("`{}` is no task of generated rooms", task.id))),
        };
        if opened.task() == task {
            Ok(opened)
        } else {
            Err(EnvError::with_help(
                format!("the task `{}` is another one here: `{}`", task.id, opened.task().goal),
                "take the `world` that the episodes were played in",
            ))
        }
    }
}
