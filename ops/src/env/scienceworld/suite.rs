//! ScienceWorld's tasks by split.
//!
//! Invariants: listing tasks starts nothing; the expert's paths are made on machines of their own, so that no game is
//! disturbed by one, and each only once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Settings;
use super::machine::{Launch, NAME};
use super::play::Play;
use super::pool::Pool;
use super::tasks::{KINDS, Kind, SPLITS, find, order};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Suite, no_split};

/// What the games of a suite share.
pub(super) struct Shared {
    pub settings: Settings,
    pub simplifications: String,
    pub pool: Arc<Pool>,
    /// Makes the expert's paths: loads that make one leave a mark on the simulator.
    experts: Arc<Pool>,
    paths: Mutex<HashMap<(&'static str, u32), Arc<Vec<String>>>>,
}

impl Shared {
    /// The expert's path; empty where it has none.
    pub fn gold(&self, kind: &'static Kind, variation: u32) -> Result<Arc<Vec<String>>, EnvError> {
        let key = (kind.name, variation);
        if let Some(path) = self.paths.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(path));
        }
        let mut lease = self.experts.take()?;
        let make = |lease: &mut super::pool::Lease| {
            lease.with(|machine, _| {
                machine.load(kind.name, variation, &self.simplifications, true)?;
                machine.gold()
            })
        };
        let mut path = match make(&mut lease) {
            // on a new machine, once
            Err(EnvError::Ended { .. } | EnvError::Protocol { .. }) => make(&mut lease)?,
            path => path?,
        };
        if path.first().is_some_and(|first| first.starts_with("ERROR")) {
            path.clear();
        }
        let path = Arc::new(path);
        self.paths.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&path));
        Ok(path)
    }
}

/// The tasks of the settings.
pub(super) struct Scienceworld {
    shared: Arc<Shared>,
    launch: Arc<dyn Launch>,
    /// By split.
    tasks: Vec<Vec<(usize, u32)>>,
}

impl Scienceworld {
    pub fn new(settings: &Settings, launch: Arc<dyn Launch>) -> Result<Scienceworld, EnvError> {
        if let Some(problem) = settings.check().into_iter().next() {
            return Err(EnvError::Unusable { message: problem.message, help: problem.help });
        }
        let kinds = settings.kinds();
        let tasks = SPLITS.iter().filter_map(|split| order(&kinds, split, settings.variations)).collect();
        let named: Vec<&'static Kind> = kinds.iter().map(|at| &KINDS[*at]).collect();
        let (limits, size) = (settings.limits(), settings.size());
        let shared = Shared {
            settings: settings.clone(),
            simplifications: settings.simplifications(),
            pool: Pool::new(Arc::clone(&launch), limits, size, named.clone()),
            experts: Pool::new(Arc::clone(&launch), limits, size.div_ceil(4), named),
            paths: Mutex::new(HashMap::new()),
        };
        Ok(Scienceworld { shared: Arc::new(shared), launch, tasks })
    }

    fn split(&self, name: &str) -> Result<&[(usize, u32)], EnvError> {
        match SPLITS.iter().position(|split| *split == name) {
            Some(at) => Ok(&self.tasks[at]),
            None => Err(no_split(self, name)),
        }
    }

    fn play(&self, kind: &'static Kind, variation: u32, task: Task) -> Box<dyn Env> {
        Box::new(Play::new(Arc::clone(&self.shared), kind, variation, task))
    }
}

impl Suite for Scienceworld {
    fn name(&self) -> &'static str {
        NAME
    }

    fn splits(&self) -> Vec<String> {
        SPLITS.iter().map(|s| (*s).to_owned()).collect()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, EnvError> {
        self.split(split).map(|tasks| Some(tasks.len()))
    }

    fn open(&self, split: &str, index: usize, _seed: u64) -> Result<Box<dyn Env>, EnvError> {
        let tasks = self.split(split)?;
        let Some((kind, variation)) = tasks.get(index).map(|(at, variation)| (&KINDS[*at], *variation)) else {
            return Err(EnvError::unusable(format!(
                "the split `{split}` of `{NAME}` has {} tasks, expected more than {index}",
                tasks.len()
            )));
        };
        let task = Task {
            env: NAME.to_owned(),
            id: format!("{}/{variation}", kind.name),
            split: split.to_owned(),
            kind: kind.name.to_owned(),
            // the simulator says it
            goal: String::new(),
            seed: None,
        };
        Ok(self.play(kind, variation, task))
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
        let parts = task.id.rsplit_once('/').and_then(|(name, variation)| Some((find(name)?, variation.parse().ok()?)));
        let Some(at) = parts.filter(|_| task.env == NAME) else {
            return Err(EnvError::unusable(format!("`{}` is no task of the environment `{NAME}`", task.id)));
        };
        if !self.split(&task.split)?.contains(&at) {
            return Err(EnvError::with_help(
                format!("the split `{}` has no task `{}`", task.split, task.id),
                "take the `world` that the episodes were played in",
            ));
        }
        Ok(self.play(&KINDS[at.0], at.1, task.clone()))
    }

    fn together(&self) -> usize {
        self.shared.pool.size()
    }

    fn reproducible(&self) -> bool {
        false
    }

    fn identity(&self) -> serde_json::Value {
        self.launch.identity()
    }
}
