//! A world of two rooms: `go left`, then `open door` wins, `go right` and `wait` change nothing, and nothing else is possible.

use actloom_ops::artifact::Task;
use actloom_ops::env::{Env, EnvError, Observation, Snapshot, Suite};

/// What a task asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rule {
    /// First `go left`, then `open door`.
    #[default]
    Two,
    /// Whatever is said in the tasks of even number wins, and in the others ends.
    Parity,
    /// Each observation is longer than the last.
    Long,
}

#[derive(Clone, Default)]
pub struct Rooms {
    pub rule: Rule,
    /// How many games at once; 0 for any number.
    pub together: usize,
}

struct Game {
    rule: Rule,
    index: usize,
    task: Task,
    left: bool,
    steps: usize,
}

pub const LEFT: &str = "You see a door.";
pub const FORK: &str = "You stand at a fork.";
pub const NOTHING: &str = "Nothing happens.";

pub fn task(index: usize) -> Task {
    let text = |s: &str| s.to_owned();
    let (env, id, split, kind, goal) =
        (text("rooms"), format!("train/{index}"), text("train"), text("x"), text("leave"));
    Task { env, id, split, kind, goal, seed: None }
}

impl Game {
    fn see(&self, text: &str, valid: bool, reward: f64, won: bool) -> Observation {
        let score = if won { 1.0 } else { f64::from(u8::from(self.left)) / 2.0 };
        Observation { text: text.to_owned(), reward, score, done: won, won, valid: Some(valid) }
    }
}

impl Env for Game {
    fn task(&self) -> &Task {
        &self.task
    }

    fn reset(&mut self) -> Result<Observation, EnvError> {
        (self.left, self.steps) = (false, 0);
        Ok(self.see(FORK, true, 0.0, false))
    }

    fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
        self.steps += 1;
        if self.rule == Rule::Parity {
            let won = self.index.is_multiple_of(2);
            return Ok(Observation { done: true, ..self.see(NOTHING, true, 0.0, won) });
        }
        if self.rule == Rule::Long {
            return Ok(self.see(&"You see a door. ".repeat(4 * self.steps), true, 0.0, false));
        }
        Ok(match (action, self.left) {
            ("go left", false) => {
                self.left = true;
                self.see(LEFT, true, 0.5, false)
            }
            ("open door", true) => self.see("You are out.", true, 0.5, true),
            ("go left" | "go right" | "wait", _) => self.see(if self.left { LEFT } else { FORK }, true, 0.0, false),
            _ => self.see(NOTHING, false, 0.0, false),
        })
    }

    fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
        let actions: &[&str] =
            if self.left { &["go left", "go right", "open door", "wait"] } else { &["go left", "go right", "wait"] };
        Ok(Some(actions.iter().map(|s| (*s).to_owned()).collect()))
    }

    fn expert(&mut self) -> Result<Option<String>, EnvError> {
        Ok(None)
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of((self.left, self.steps))
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
        (self.left, self.steps) = *snapshot.get().unwrap();
        Ok(())
    }
}

impl Suite for Rooms {
    fn name(&self) -> &'static str {
        "rooms"
    }

    fn splits(&self) -> Vec<String> {
        vec!["train".to_owned(), "id".to_owned()]
    }

    fn count(&self, _: &str) -> Result<Option<usize>, EnvError> {
        Ok(Some(8))
    }

    fn open(&self, _: &str, index: usize, _: u64) -> Result<Box<dyn Env>, EnvError> {
        Ok(Box::new(Game { rule: self.rule, index, task: task(index), left: false, steps: 0 }))
    }

    fn reopen(&self, _: &Task) -> Result<Box<dyn Env>, EnvError> {
        panic!("nobody goes back")
    }

    fn together(&self) -> usize {
        if self.together == 0 { usize::MAX } else { self.together }
    }
}
