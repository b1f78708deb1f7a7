//! Tasks by split, and sessions as the rest of the program sees them.
//!
//! Invariants: a task is a goal, named by its place in the original's order; every session shares one store.

use std::sync::Arc;

use super::expert::{Plan, instruction_words};
use super::goals::Goal;
use super::session::{Session, Shop};
use super::{SPLITS, SearchHint, Settings, Store};
use crate::artifact::Task;
use crate::env::{Env, EnvError, Observation, Snapshot, Suite, no_split};

/// The store with its goals.
pub struct Webshop {
    shop: Arc<Shop>,
    goals: Vec<Arc<Goal>>,
}

impl Webshop {
    /// # Errors
    /// A store without goals, or that cannot be read.
    pub fn new(settings: Settings, store: Arc<dyn Store>) -> Result<Webshop, EnvError> {
        let goals: Vec<Arc<Goal>> = store.goals()?.into_iter().map(Arc::new).collect();
        if goals.is_empty() {
            return Err(EnvError::with_help(
                "the catalogue has no goals, expected one or more",
                "make it with `items_human_ins.json`, or with synthetic goals",
            ));
        }
        Ok(Webshop { shop: Arc::new(Shop { store, settings }), goals })
    }

    /// Goals of a split: the first 500 are for tests and the next 1,000 for evaluation, or a fifth each of 1,500 or
    /// fewer.
    fn range(&self, split: &str) -> Result<std::ops::Range<usize>, EnvError> {
        let all = self.goals.len();
        let (test, eval) = if all > 1500 { (500, 1500) } else { (all / 5, all / 5 * 2) };
        match split {
            "test" => Ok(0..test),
            "eval" => Ok(test..eval),
            "train" => Ok(eval..all),
            _ => Err(no_split(self, split)),
        }
    }

    fn session(&self, split: &str, number: usize) -> Box<dyn Env> {
        let goal = &self.goals[number];
        let task = Task {
            env: self.name().to_owned(),
            id: format!("goal/{number}"),
            split: split.to_owned(),
            kind: goal.category.clone(),
            goal: goal.instruction_text.clone(),
            seed: None,
        };
        let session = Session::new(goal.clone(), number);
        Box::new(Shopping { shop: self.shop.clone(), task, number, session, plan: None })
    }
}

impl Suite for Webshop {
    fn name(&self) -> &'static str {
        "webshop"
    }

    fn splits(&self) -> Vec<String> {
        SPLITS.map(str::to_owned).to_vec()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, EnvError> {
        self.range(split).map(|range| Some(range.len()))
    }

    fn open(&self, split: &str, index: usize, _seed: u64) -> Result<Box<dyn Env>, EnvError> {
        let range = self.range(split)?;
        let number = range.start.checked_add(index).filter(|number| range.contains(number)).ok_or_else(|| {
            EnvError::unusable(format!(
                "the split `{split}` of `webshop` has {} tasks, expected one below that, not task {index}",
                range.len()
            ))
        })?;
        Ok(self.session(split, number))
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
        let number = task.id.strip_prefix("goal/").and_then(|number| number.parse::<usize>().ok());
        let known = number.filter(|number| {
            task.env == self.name()
                && self.goals.get(*number).is_some_and(|goal| goal.instruction_text == task.goal)
                && self.range(&task.split).is_ok_and(|range| range.contains(number))
        });
        match known {
            Some(number) => Ok(self.session(&task.split, number)),
            None => Err(EnvError::with_help(
                format!("the task `{}` is not of this catalogue", task.id),
                "open it with the catalogue, and the settings, that its episode was played with",
            )),
        }
    }

    fn identity(&self) -> serde_json::Value {
        serde_json::json!({ "products": self.shop.store.len(), "goals": self.goals.len() })
    }
}

/// One session that is being played.
struct Shopping {
    shop: Arc<Shop>,
    task: Task,
    number: usize,
    session: Session,
    /// Made when it is first asked for.
    plan: Option<Option<Plan>>,
}

impl Shopping {
    fn observe(&self, valid: Option<bool>) -> Observation {
        let session = &self.session;
        let score = session.reward.as_ref().map_or(0.0, |reward| reward.total);
        Observation {
            text: session.page.write(self.shop.settings.observation, &session.url, &session.visited),
            // a step that buys earns all there is; later ones change nothing
            reward: if valid == Some(true) { score } else { 0.0 },
            score,
            done: session.reward.is_some(),
            won: score >= 1.0,
            valid,
        }
    }
}

impl Env for Shopping {
    fn task(&self) -> &Task {
        &self.task
    }

    fn reset(&mut self) -> Result<Observation, EnvError> {
        self.session = Session::new(self.session.goal.clone(), self.number);
        Ok(self.observe(None))
    }

    fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
        let valid = self.session.act(&self.shop, action)?;
        Ok(self.observe(Some(valid)))
    }

    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
        let page = &self.session.page;
        let mut actions: Vec<String> = page
            .clickables()
            .iter()
            .filter(|name| self.session.can_click(name))
            .map(|name| format!("click[{name}]"))
            .collect();
        if page.searchable {
            let words = match self.shop.settings.search {
                SearchHint::Blank => String::new(),
                SearchHint::Words => instruction_words(&self.task.goal),
            };
            actions.push(if words.is_empty() { BLANK.to_owned() } else { format!("search[{words}]") });
        }
        actions.sort();
        Ok(Some(actions))
    }

    fn expert(&mut self) -> Result<Option<String>, EnvError> {
        let plan = match &self.plan {
            Some(plan) => plan,
            None => self.plan.insert(Plan::of(self.shop.store.as_ref(), &self.session.goal)?),
        };
        Ok(plan.as_ref().and_then(|plan| plan.next(&self.session)))
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of((self.number, self.session.clone()))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
        match snapshot.get::<(usize, Session)>() {
            Some((number, session)) if *number == self.number => {
                self.session = session.clone();
                Ok(())
            }
            _ => Err(EnvError::unusable(format!("a snapshot of something else than the task `{}`", self.task.id))),
        }
    }
}

/// How the list of actions says that anything can be searched.
const BLANK: &str = "search[<your query>]";
