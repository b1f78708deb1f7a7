//! An expert episode gone through again, so that other actions can be tried at its states.
//!
//! Invariants: the states are those of the episode: what is perceived on the way is what the episode tells, or the
//! episode is refused; an action that is tried changes no state.

use actloom_engine::op::OpError;

use crate::artifact::{Episode, Outcome};
use crate::env::{Env, Observation, Snapshot, Suite};

/// What came of an action that was tried.
pub struct Tried {
    pub outcome: Outcome,
    /// Whether the environment took it for one of its own; `None` where it does not say.
    pub valid: Option<bool>,
    /// It leads where the expert's action leads, as far as can be perceived.
    pub same: bool,
}

/// What is perceived after the expert's action.
struct After {
    now: Observation,
    /// Admissible actions, once somebody asked.
    actions: Option<Option<Vec<String>>>,
}

/// The states of one episode.
pub struct Replay {
    env: Box<dyn Env>,
    /// Before each turn, and after the last one.
    before: Vec<Snapshot>,
    /// After each turn.
    after: Vec<After>,
}

impl Replay {
    /// Plays the expert's actions. Where a world that does not promise to be reproducible goes another way than it did,
    /// the states from there on are not among [`Replay::states`].
    ///
    /// # Errors
    /// The world's; a world that promises it and begins or goes another way.
    pub fn of(suite: &dyn Suite, number: usize, episode: &Episode) -> Result<Replay, OpError> {
        let mut env = suite.reopen(&episode.task)?;
        let start = env.reset()?;
        let differs = |what: &str, now: &str, told: &str| {
            OpError::with_help(
                format!(
                    "episode {number} (`{} {}`) goes another way here: {what} is `{}`, expected `{}`",
                    episode.task.env,
                    episode.task.id,
                    now.trim(),
                    told.trim()
                ),
                "give the `world` and the `data` that the episodes were made with",
            )
        };
        let (mut before, mut after) = (vec![env.snapshot()], Vec::new());
        if start.text != episode.start {
            if suite.reproducible() {
                return Err(differs("its start", &start.text, &episode.start));
            }
            return Ok(Replay { env, before, after });
        }
        for (at, turn) in episode.turns.iter().enumerate() {
            let now = env.step(&turn.action)?;
            if now.text != turn.observation {
                if suite.reproducible() {
                    let what = format!("the answer to `{}` at turn {at}", turn.action);
                    return Err(differs(&what, &now.text, &turn.observation));
                }
                // the state before it may have been another one already
                break;
            }
            before.push(env.snapshot());
            after.push(After { now, actions: None });
        }
        Ok(Replay { env, before, after })
    }

    /// How many of the episode's states can be gone back to.
    pub fn states(&self) -> usize {
        self.after.len()
    }

    /// Takes an action at the state before turn `turn`. `compare` asks whether it leads where the expert's does.
    ///
    /// # Errors
    /// The world's.
    pub fn attempt(&mut self, turn: usize, action: &str, compare: bool) -> Result<Tried, OpError> {
        self.env.restore(&self.before[turn])?;
        let now = self.env.step(action)?;
        // nothing is possible any more where the episode is over
        let same = compare
            && now == self.after[turn].now
            && (now.done || self.env.admissible()? == self.actions_after(turn)?);
        let Observation { text, reward, done, won, valid, .. } = now;
        Ok(Tried { outcome: Outcome { observation: text, reward, done, won }, valid, same })
    }

    /// Admissible actions after the expert's action.
    fn actions_after(&mut self, turn: usize) -> Result<Option<Vec<String>>, OpError> {
        if let Some(actions) = &self.after[turn].actions {
            return Ok(actions.clone());
        }
        self.env.restore(&self.before[turn + 1])?;
        let actions = self.env.admissible()?;
        self.after[turn].actions = Some(actions.clone());
        Ok(actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Task;
    use crate::env::EnvError;
    use crate::eval::scores::tests::episode;

    /// A number. `more` and `plus` add one, `twice` doubles, `odd` reads the clock of the world.
    struct Count {
        task: Task,
        now: u32,
        /// Steps of all that was ever played here, if the world does not promise to be reproducible.
        clock: Option<u32>,
    }

    impl Env for Count {
        fn task(&self) -> &Task {
            &self.task
        }

        fn reset(&mut self) -> Result<Observation, EnvError> {
            self.now = 1;
            Ok(seen("you are in the kitchen", self.now))
        }

        fn step(&mut self, action: &str) -> Result<Observation, EnvError> {
            self.clock = self.clock.map(|clock| clock + 1);
            match action {
                "more" | "plus" => self.now += 1,
                "twice" => self.now *= 2,
                "odd" => self.now += 2 * self.clock.unwrap_or(0),
                _ => return Ok(Observation { valid: Some(false), ..seen("no", self.now) }),
            }
            Ok(seen(if self.now.is_multiple_of(2) { "even" } else { "odd" }, self.now))
        }

        fn admissible(&mut self) -> Result<Option<Vec<String>>, EnvError> {
            Ok(Some((0..self.now).map(|i| i.to_string()).collect()))
        }

        fn expert(&mut self) -> Result<Option<String>, EnvError> {
            Ok(None)
        }

        fn snapshot(&self) -> Snapshot {
            Snapshot::of(self.now)
        }

        fn restore(&mut self, snapshot: &Snapshot) -> Result<(), EnvError> {
            self.now = *snapshot.get::<u32>().unwrap();
            Ok(())
        }
    }

    fn seen(text: &str, now: u32) -> Observation {
        Observation { text: text.to_owned(), reward: 0.0, score: 0.0, done: false, won: now > 90, valid: None }
    }

    struct Counts {
        reproducible: bool,
    }

    impl Suite for Counts {
        fn name(&self) -> &'static str {
            "counts"
        }

        fn splits(&self) -> Vec<String> {
            vec!["train".to_owned()]
        }

        fn count(&self, _: &str) -> Result<Option<usize>, EnvError> {
            Ok(Some(1))
        }

        fn open(&self, _: &str, _: usize, _: u64) -> Result<Box<dyn Env>, EnvError> {
            self.reopen(&episode("id/0", "look", true, &[]).task)
        }

        fn reopen(&self, task: &Task) -> Result<Box<dyn Env>, EnvError> {
            let clock = (!self.reproducible).then_some(0);
            Ok(Box::new(Count { task: task.clone(), now: 1, clock }))
        }

        fn reproducible(&self) -> bool {
            self.reproducible
        }
    }

    #[test]
    fn every_state_is_gone_back_to_and_no_trial_changes_it() {
        let told =
            episode("id/0", "look", true, &[("more", true, "even"), ("more", true, "odd"), ("twice", true, "even")]);
        let mut replay = Replay::of(&Counts { reproducible: true }, 0, &told).unwrap();
        assert_eq!(replay.states(), 3);
        for _ in 0..2 {
            // 1 -> 2 -> 3 -> 6
            for (turn, action, text, same) in [
                (2, "twice", "even", true),
                (2, "more", "even", false),
                (0, "twice", "even", true),
                (0, "plus", "even", true),
                (1, "twice", "even", false),
                (1, "plus", "odd", true),
                (1, "fly", "no", false),
            ] {
                let tried = replay.attempt(turn, action, true).unwrap();
                assert_eq!((&*tried.outcome.observation, tried.same), (text, same), "{action} at {turn}");
                assert_eq!(tried.valid, (action == "fly").then_some(false));
                assert!(!replay.attempt(turn, action, false).unwrap().same, "nobody asked");
            }
        }
    }

    #[test]
    fn an_episode_that_goes_another_way_is_refused_where_the_world_promises_otherwise() {
        let turns = [("more", true, "even"), ("odd", true, "odd"), ("more", true, "odd")];
        let told = episode("id/0", "look", true, &turns);
        let of = |reproducible: bool, told: &Episode| Replay::of(&Counts { reproducible }, 7, told);
        let Err(said) = of(true, &told) else { panic!("it was not refused") };
        let said = said.to_string();
        assert!(
            said.contains("episode 7 (`household id/0`)") && said.contains("the answer to `odd` at turn 1"),
            "{said}"
        );
        assert!(said.contains("is `even`, expected `odd`"), "{said}");
        // of a world that does not, the states before it are left
        assert_eq!(of(false, &told).unwrap().states(), 1);
        let mut elsewhere = told;
        elsewhere.start = "you are in the garden".to_owned();
        assert!(of(true, &elsewhere).err().unwrap().to_string().contains("its start is"));
        assert_eq!(of(false, &elsewhere).unwrap().states(), 0);
    }
}
