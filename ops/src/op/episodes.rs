//! Whole episodes of an environment as attempts: what `rl` learns from where it plays.
//!
//! 1. [`Settings`]: the table `episodes` of a recipe.
//! 2. [`Episodes`]: tasks as a [`Source`]. The model under training plays them itself, many side by side; nothing of it is
//!    copied or saved.
//! 3. Each reply is a sample with the ids it was drawn after; each turn has its reward and the state it was taken at.
//!
//! Invariants: replies are drawn from the distribution that the trainer scores (a temperature and nothing else); an
//! episode has a random stream of its own, so that it does not depend on which others are played beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use actloom_engine::op::{OpContext, OpError, Problem};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Filters;
use super::rollout::{self, Clock, Decode, GAMES, Played, Replied, advance};
use super::worlds::{Record, Tasks};
use crate::artifact::{End, Episode};
use crate::env::{EnvError, WorldSettings};
use crate::model::Model;
use crate::policy::{Finish, Policy, lend};
use crate::reward::Outcome;
use crate::rng::Rng;
use crate::text::{Prompt, Text};
use crate::train::draw::{Attempt, Drawn, How, Source};
use crate::train::episodes::{self, Equal, Returns};
use crate::train::objective::gigpo::Gigpo;
use crate::train::update::Sample;

/// Which tasks are played, and what playing them is worth.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EpisodesSettings")]
pub struct Settings {
    /// The environment and its settings.
    #[serde(default)]
    pub world: WorldSettings,
    /// Which tasks: of the household `train`.
    pub split: String,
    /// How many tasks there are to learn from; 0 takes all, where they are listed.
    #[schemars(range(min = 0, max = 10000000))]
    pub tasks: usize,
    /// How many tasks at the beginning of the split are passed over.
    #[serde(default)]
    pub first: usize,
    /// Longest episode, in steps.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: usize,
    /// Whether admissible actions are asked for where nobody needs them: where the environment does not say of an action
    /// whether it was possible, this is how it is known.
    #[serde(default)]
    pub actions: Record,
    /// Only `free`: see there.
    #[serde(default)]
    pub decoding: Decode,
    /// What the turns of an episode are worth.
    #[serde(default)]
    pub reward: Returns,
    /// Compares steps too, and not only whole episodes; it takes the place of `advantage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gigpo: Option<Gigpo>,
    /// Which states `gigpo` takes for equal.
    #[serde(default)]
    pub equal: Equal,
    /// Other tasks of the same world, on which the model is validated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// Tasks of a validation. Nothing is learned from them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "EpisodesValidation")]
pub struct Validation {
    /// Which tasks; those of the split that is trained on only where `first` keeps them apart.
    pub split: String,
    /// How many; 0 takes all, where they are listed.
    #[schemars(range(min = 0, max = 10000000))]
    pub tasks: usize,
    /// How many tasks at the beginning of the split are passed over.
    #[serde(default)]
    pub first: usize,
    /// Here replies may be held to the admissible actions, for nothing is learned from them.
    #[serde(default)]
    pub decoding: Decode,
}

fn max_steps() -> usize {
    50
}

impl Settings {
    /// What cannot be; paths begin at `episodes`.
    pub fn check(&self, prompt: &Prompt) -> Vec<Problem> {
        let mut problems = self.world.check(Some(&self.split));
        if self.decoding == Decode::Admissible {
            let what = "a reply held to a list is drawn from another distribution than the one that is trained";
            let help = "write `decoding = \"free\"`, and let `reward.invalid` tell the model what is not possible; \
                        with `actions = \"all\"` in `prompt` it is shown what is";
            problems.push(Problem::new(&["decoding"], what).help(help));
        }
        let Returns { success, score, earned, invalid, malformed, turn } = self.reward;
        if [success, score, earned, invalid, malformed, turn].iter().all(|part| *part == 0.0) {
            let what = "every part is 0, so that no episode is better than another";
            problems.push(Problem::new(&["reward"], what).help("give `success` or `score` a value"));
        }
        if self.equal == Equal::Actions && self.actions != Record::Always {
            let what = "states are told apart by their admissible actions, which are not always asked for";
            problems.push(Problem::new(&["equal"], what).help("write `actions = \"always\"`"));
        }
        if self.equal != Equal::default() && self.gigpo.is_none() {
            let what = "no steps are compared, expected a table `gigpo` beside `equal`";
            problems.push(Problem::new(&["equal"], what));
        }
        if let Some(validation) = &self.validation {
            problems.extend(self.check_validation(validation, prompt));
        }
        for problem in &mut problems {
            problem.path.insert(0, "episodes".to_owned());
        }
        problems
    }

    fn check_validation(&self, validation: &Validation, prompt: &Prompt) -> Vec<Problem> {
        let play = rollout::Params { decoding: validation.decoding, ..self.play(&validation.split, prompt) };
        let mut problems: Vec<Problem> =
            play.check().into_iter().filter(|p| ["split", "decoding"].contains(&p.path[0].as_str())).collect();
        let end = |first: usize, tasks: usize| if tasks == 0 { usize::MAX } else { first.saturating_add(tasks) };
        let (ours, theirs) = (end(self.first, self.tasks), end(validation.first, validation.tasks));
        if validation.split == self.split && validation.first < ours && self.first < theirs {
            let what = "some of these tasks are trained on";
            let help = "take another split, or pass over the tasks of `episodes` with `first`";
            problems.push(Problem::new(&["first"], what).help(help));
        }
        for problem in &mut problems {
            problem.path.insert(0, "validation".to_owned());
        }
        problems
    }

    /// How a split is played, but for what each draw says itself.
    fn play(&self, split: &str, prompt: &Prompt) -> rollout::Params {
        rollout::Params {
            world: self.world.clone(),
            split: split.to_owned(),
            tasks: self.tasks,
            first: self.first,
            episodes: 1,
            max_steps: self.max_steps,
            prompt: prompt.clone(),
            temperature: 1.0,
            filters: Filters::default(),
            decoding: self.decoding,
            max_tokens: 1,
            actions: self.actions,
        }
    }
}

/// Tasks to attempt, each attempt an episode.
pub struct Episodes {
    tasks: Tasks,
    play: rollout::Params,
    reward: Returns,
    equal: Equal,
    text: Arc<Text>,
}

/// Who plays at a place: one of the attempts at one of the tasks.
struct Seat {
    /// Place of the task in the list, and which of the attempts at it.
    place: usize,
    attempt: usize,
    /// What was said, turn by turn.
    samples: Vec<Sample>,
    truncated: usize,
}

impl Episodes {
    /// Tasks that the model will play as `prompt` tells them. `text` is the text side of the model.
    pub fn new(tasks: Tasks, settings: &Settings, prompt: &Prompt, text: Arc<Text>) -> Self {
        let play = settings.play(&settings.split, prompt);
        Episodes { tasks, play, reward: settings.reward, equal: settings.equal, text }
    }

    /// The tasks of the validation, if there is one, in the same world.
    ///
    /// # Errors
    /// More tasks than there are.
    pub fn validation(&self, settings: &Settings) -> Result<Option<Self>, OpError> {
        let Some(validation) = &settings.validation else { return Ok(None) };
        let Validation { split, tasks, first, decoding } = validation;
        let tasks = self.tasks.others(split, *first, *tasks)?;
        let play = rollout::Params { decoding: *decoding, ..settings.play(split, &self.play.prompt) };
        Ok(Some(Episodes { tasks, play, reward: self.reward, equal: Equal::Observation, text: self.text.clone() }))
    }

    /// Lets a policy play a group of episodes at each of some tasks. Only one that knows its token ids and their
    /// log-probabilities can be learned from.
    ///
    /// # Errors
    /// The world's and the policy's; a first state that fills the context; a return that is not finite.
    pub fn play(&self, policy: &mut dyn Policy, indices: &[usize], how: &How<'_>) -> Result<Vec<Drawn>, OpError> {
        let play = rollout::Params {
            temperature: f64::from(how.temperature),
            max_tokens: how.max_tokens,
            ..self.play.clone()
        };
        let together = self.tasks.suite.together().clamp(1, GAMES);
        let count = indices.len() * how.group;
        let mut drawn: Vec<Drawn> = indices
            .iter()
            .map(|index| Drawn { index: *index, attempts: vec![Attempt::default(); how.group] })
            .collect();
        let (mut seats, mut games): (Vec<Seat>, Vec<Played>) = (Vec::new(), Vec::new());
        let (mut next, mut clock) = (0, Clock::default());
        loop {
            // 1. games that are over leave their seats
            for at in (0..games.len()).rev() {
                let over = games[at].game.now.done || games[at].full || games[at].game.turns.len() >= play.max_steps;
                if over {
                    let (seat, played) = (seats.swap_remove(at), games.swap_remove(at));
                    let (place, attempt) = (seat.place, seat.attempt);
                    let episode = played.episode(policy, play.decoding);
                    drawn[place].attempts[attempt] = self.attempt(indices[place], &episode, seat)?;
                }
            }
            // 2. others take them
            let some: Vec<usize> = (next..count.min(next + together - games.len())).collect();
            next += some.len();
            let open = |n: &usize| self.tasks.game(indices[n / how.group]).map(Played::new);
            games.extend(some.par_iter().map(open).collect::<Result<Vec<Played>, EnvError>>()?);
            let sit = |n: usize| (n / how.group, n % how.group);
            seats.extend(some.into_iter().map(sit).map(|(place, attempt)| Seat {
                place,
                attempt,
                samples: Vec::new(),
                truncated: 0,
            }));
            if games.is_empty() {
                return Ok(drawn);
            }
            // 3. all take a turn
            let stream = |i: usize| {
                let Seat { place, attempt, samples, .. } = &seats[i];
                let own = [*place as u64, *attempt as u64, samples.len() as u64];
                Rng::at(how.seed, &[how.stream, &own].concat())
            };
            for Replied { game, prompt, answer } in advance(policy, &play, &mut games, &stream, &|| false, &mut clock)?
            {
                let (Some(prompt), Some(ids), Some(sampling)) = (prompt, answer.ids, answer.logps) else {
                    return Err(OpError::failed("a policy that does not say its token ids cannot be learned from"));
                };
                seats[game].samples.push(Sample { prompt, ids, sampling, ..Sample::default() });
                seats[game].truncated += usize::from(answer.finish == Finish::Length);
            }
        }
    }

    /// An episode that is over, as an attempt.
    fn attempt(&self, index: usize, episode: &Episode, seat: Seat) -> Result<Attempt, OpError> {
        let (turns, id) = (&episode.turns, &episode.task.id);
        if turns.is_empty() && episode.end == End::Context {
            return Err(OpError::with_help(
                format!("the first state of task {index} (`{id}`) leaves no room for a reply in the model's context"),
                "lower `max_tokens`, or take a model with more positions",
            ));
        }
        let Some(steps) = episodes::steps(episode, &self.reward, self.equal) else {
            return Err(OpError::with_help(
                format!("a state of task {index} (`{id}`) has no admissible actions, by which states are told apart"),
                "write `equal = \"observation\"`",
            ));
        };
        let reward: f64 = steps.iter().map(|step| step.reward).sum();
        if !reward.is_finite() {
            return Err(OpError::failed(format!(
                "the return of attempt {} at task {index} (`{id}`) is {reward}, expected a finite number",
                seat.attempt + 1
            )));
        }
        let malformed = turns.iter().filter(|turn| episodes::is_malformed(turn)).count();
        let outcome = Outcome { reward, correct: episode.success, malformed: malformed > 0, position: None };
        let (parts, facts) = (episodes::totals(episode, &self.reward), told(episode));
        let (samples, truncated) = (seat.samples, seat.truncated);
        Ok(Attempt {
            outcome,
            samples,
            steps,
            truncated,
            malformed,
            formless: malformed - truncated.min(malformed),
            impossible: 0,
            parts,
            facts,
        })
    }
}

/// What is told of an episode beside what it earned.
fn told(episode: &Episode) -> BTreeMap<&'static str, f64> {
    let turns = &episode.turns;
    let share = |n: usize| n as f64 / turns.len().max(1) as f64;
    let of = |holds: bool| f64::from(u8::from(holds));
    BTreeMap::from([
        ("success", of(episode.success)),
        ("score", episode.score),
        ("turns", turns.len() as f64),
        ("invalid", share(turns.iter().filter(|turn| episodes::is_invalid(turn)).count())),
        ("context", of(episode.end == End::Context)),
    ])
}

impl Source for Episodes {
    fn len(&self) -> usize {
        self.tasks.count()
    }

    fn draw(
        &mut self,
        _ctx: &OpContext<'_>,
        model: &mut Model,
        _text: &Text,
        indices: &[usize],
        how: &How<'_>,
    ) -> Result<Vec<Drawn>, OpError> {
        self.play(&mut lend(model, self.text.clone()), indices, how)
    }
}
