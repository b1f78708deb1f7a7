//! One task played in a process of the program.
//!
//! Invariants: a process that crashed is replaced once a call, and only where the program says that it is deterministic:
//! the task is played again and every observation must be the one that was; states are gone back to in the same way.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::link::Link;
use super::message::{About, Admissible, Expert, Reset, Step, beginning, sorted, typed};
use super::{Pool, Program};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Observation, Snapshot};

/// A task being played.
pub(super) struct Instance {
    pool: Arc<Pool>,
    task: Task,
    index: usize,
    /// Of a task that is made; those that are listed have none.
    seed: Option<u64>,
    /// `None` after it broke off.
    link: Option<Link>,
    start: Observation,
    history: Vec<(String, Observation)>,
    /// Admissible actions now, where a reply told them.
    admissible: Option<Vec<String>>,
}

/// A state: what was done and seen.
struct State {
    task: Task,
    history: Vec<(String, Observation)>,
}

/// What a process says of a task at its beginning.
struct Begun {
    goal: String,
    kind: String,
    start: Observation,
    /// Sorted, where it told them.
    admissible: Option<Vec<String>>,
}

fn begin(link: &mut Link, program: &Program, split: &str, index: usize, seed: Option<u64>) -> Result<Begun, EnvError> {
    let about = About { env: &program.hello.name, call: "reset" };
    let fields = link.call("reset", json!({ "split": split, "index": index, "seed": seed }))?;
    let expected = "`observation`, `goal`, and if need be `kind`, `score`, `admissible`";
    let begun = typed::<Reset>(about, fields, expected)
        .and_then(|reset| {
            let start = reset.observation(about)?;
            let admissible = reset.admissible.map(|actions| sorted(about, actions)).transpose()?;
            Ok(Begun { goal: reset.goal, kind: reset.kind, start, admissible })
        })
        .inspect_err(|_| link.distrust())?;
    Ok(begun)
}

fn act(link: &mut Link, program: &Program, action: &str) -> Result<(Observation, Option<Vec<String>>), EnvError> {
    let about = About { env: &program.hello.name, call: "step" };
    let fields = link.call("step", json!({ "action": action }))?;
    let expected = "`observation`, `done`, and if need be `reward`, `won`, `score`, `valid`, `admissible`";
    typed::<Step>(about, fields, expected)
        .and_then(|step| {
            let observation = step.observation(about)?;
            Ok((observation, step.admissible.map(|actions| sorted(about, actions)).transpose()?))
        })
        .inspect_err(|_| link.distrust())
}

impl Instance {
    /// Opens a task in a process of the pool.
    pub(super) fn open(pool: Arc<Pool>, split: &str, index: usize, seed: u64) -> Result<Instance, EnvError> {
        let seed = pool.program.split(split)?.tasks.is_none().then_some(seed);
        let begun = |link: &mut Link| begin(link, &pool.program, split, index, seed);
        let mut link = pool.take()?;
        let first = match begun(&mut link) {
            // an idle process may have died since
            Err(EnvError::Ended { .. }) => {
                link = pool.fresh()?;
                begun(&mut link)
            }
            other => other,
        };
        let Begun { goal, kind, start, admissible } = match first {
            Ok(begun) => begun,
            Err(error) => {
                pool.give(link);
                return Err(error);
            }
        };
        let task = Task {
            env: "command".to_owned(),
            id: format!("{split}/{index}"),
            split: split.to_owned(),
            kind,
            goal,
            seed,
        };
        Ok(Instance { pool, task, index, seed, link: Some(link), start, history: Vec::new(), admissible })
    }

    fn name(&self) -> &str {
        &self.pool.program.hello.name
    }

    /// Begins the task again, in the process it has or in a new one.
    fn begin_again(&mut self) -> Result<(), EnvError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self.pool.fresh()?,
        };
        let begun = begin(&mut link, &self.pool.program, &self.task.split, self.index, self.seed);
        self.link = link.is_sound().then_some(link);
        let Begun { goal, kind, start, admissible } = begun?;
        self.history.clear();
        self.admissible = admissible;
        if self.pool.program.hello.deterministic {
            let same = goal == self.task.goal && kind == self.task.kind && start == self.start;
            if !same {
                return Err(self.differs(0, &self.start.text, &start.text));
            }
        }
        self.start = start;
        Ok(())
    }

    fn differs(&self, step: usize, was: &str, is: &str) -> EnvError {
        EnvError::with_help(
            format!(
                "the environment `{}` says that it is deterministic, and task `{}` played again differs after {step} actions: {} where it was {}",
                self.name(),
                self.task.id,
                beginning(is),
                beginning(was),
            ),
            "a program that draws at random must draw from the seed of `reset`, or say `\"deterministic\": false`",
        )
    }

    /// Plays these actions from the beginning; every observation must be the one that was.
    fn replay(&mut self, history: &[(String, Observation)]) -> Result<(), EnvError> {
        self.begin_again()?;
        for (step, (action, was)) in history.iter().enumerate() {
            let is = self.once(action)?;
            if is != *was {
                return Err(self.differs(step + 1, &was.text, &is.text));
            }
        }
        Ok(())
    }

    /// Acts, in the process it has.
    fn once(&mut self, action: &str) -> Result<Observation, EnvError> {
        let Some(link) = &mut self.link else { return Err(self.broken("step")) };
        let done = act(link, &self.pool.program, action);
        if !link.is_sound() {
            self.link = None;
        }
        let (observation, admissible) = done?;
        self.admissible = admissible;
        self.history.push((action.to_owned(), observation.clone()));
        Ok(observation)
    }

    fn broken(&self, call: &str) -> EnvError {
        EnvError::Ended {
            env: self.name().to_owned(),
            call: call.to_owned(),
            why: "it broke off before, expected a reset".to_owned(),
        }
    }

    /// Does something; where the process ended over it, once more in a new one that was brought to the same state.
    fn lasting<T>(&mut self, what: impl Fn(&mut Instance) -> Result<T, EnvError>) -> Result<T, EnvError> {
        match what(self) {
            Err(error @ EnvError::Ended { .. }) => {
                if !self.pool.program.hello.deterministic {
                    return Err(error);
                }
                tracing::warn!("{error}; it is started again");
                let history = std::mem::take(&mut self.history);
                self.link = None;
                self.replay(&history)?;
                what(self)
            }
            other => other,
        }
    }

    /// Asks something that changes nothing.
    fn ask(&mut self, call: &str) -> Result<Map<String, Value>, EnvError> {
        let Some(link) = &mut self.link else { return Err(self.broken(call)) };
        let answer = link.call(call, json!({}));
        if !link.is_sound() {
            self.link = None;
        }
        answer
    }

    /// Breaks with a process whose answer was of the wrong form.
    fn wrong(&mut self, error: EnvError) -> EnvError {
        if let Some(mut link) = self.link.take() {
            link.distrust();
        }
        error
    }
}

impl Env for Instance {
    fn task(&self) -> &Task {
        &self.task
    }

    fn reset(&mut self) -> Result<Observation, EnvError> {
        // a task that was just opened is at its beginning
        if !self.history.is_empty() || self.link.is_none() {
            match self.begin_again() {
                Err(EnvError::Ended { .. }) => self.begin_again()?,
                other => other?,
            }
        }
        Ok(self.start.clone())
    }

    fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
        self.lasting(|env| env.once(action))
    }

    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
        if let Some(known) = &self.admissible {
            return Ok(Some(known.clone()));
        }
        if !self.pool.program.hello.admissible {
            return Ok(None);
        }
        let fields = self.lasting(|env| env.ask("admissible"))?;
        let name = self.name().to_owned();
        let about = About { env: &name, call: "admissible" };
        let told = typed::<Admissible>(about, fields, "`actions`, a list of texts");
        let told = told.and_then(|told| sorted(about, told.actions));
        let actions = told.map_err(|error| self.wrong(error))?;
        self.admissible = Some(actions.clone());
        Ok(Some(actions))
    }

    fn expert(&mut self) -> Result<Option<String>, EnvError> {
        if !self.pool.program.hello.expert {
            return Ok(None);
        }
        let fields = self.lasting(|env| env.ask("expert"))?;
        let name = self.name().to_owned();
        let about = About { env: &name, call: "expert" };
        let told = typed::<Expert>(about, fields, "`action`, a text or null");
        Ok(told.map_err(|error| self.wrong(error))?.action)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(State { task: self.task.clone(), history: self.history.clone() })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
        let Some(state) = snapshot.get::<State>().filter(|state| state.task == self.task) else {
            return Err(EnvError::unusable(format!("the snapshot is not of the task `{}`", self.task.id)));
        };
        if !self.pool.program.hello.deterministic {
            return Err(EnvError::with_help(
                format!("the environment `{}` cannot go back to a state: it is not deterministic", self.name()),
                "a program whose tasks depend on the seed of `reset` alone may say `\"deterministic\": true`",
            ));
        }
        if self.link.is_some() && self.history == state.history {
            return Ok(());
        }
        match self.replay(&state.history) {
            Err(EnvError::Ended { .. }) => self.replay(&state.history),
            other => other,
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.give(link);
        }
    }
}
