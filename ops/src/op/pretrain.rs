//! `pretrain`: next-token training on unlabelled experience, made from random play as it is needed.
//!
//! An episode of random play is told with a task line written in hindsight: a goal that its actions happened to reach.
//! Some episodes are cut at a step and end in a choice question, "which of two actions came next?", whose answer is
//! what did come next: a true, self-supervised label. Answers begin with a short deduction from what was seen. No
//! expert takes part. Play visits *other houses* than those of demonstrations and tests, so no tested room is seen
//! here, but every class of thing is.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common;
use super::training::{self, Defaults, Training};
use crate::artifact::Past;
use crate::env::{WorldSettings, household};
use crate::rng::Rng;
use crate::text::{Dialogue, THINK_CLOSE, THINK_OPEN, Text, critic_question};
use crate::train::batch::Example;
use crate::train::sft;

/// Parameters of `pretrain`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The environment that is played at random: `household`.
    #[serde(default)]
    pub world: WorldSettings,
    /// Updates.
    #[serde(default = "updates")]
    #[schemars(range(min = 1, max = 10000000))]
    pub updates: u64,
    /// Episodes in an update.
    #[serde(default = "batch")]
    #[schemars(range(min = 1, max = 100000))]
    pub batch: usize,
    /// Longest episode of play, in steps.
    #[serde(default = "steps")]
    #[schemars(range(min = 1, max = 1000))]
    pub steps: usize,
    /// Share of episodes that end in a choice question.
    #[serde(default = "choices")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub choices: f64,
    /// Share of choices whose answer begins with a deduction.
    #[serde(default = "deductions")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub deductions: f64,
    #[serde(flatten)]
    pub training: Training<Anew>,
}

/// Defaults of training a model from its random beginnings.
pub struct Anew;

impl Defaults for Anew {
    const LEARNING_RATE: f64 = 3e-3;
    const WARMUP: u64 = 50;
    const CHECKPOINT: u64 = 200;
}

fn updates() -> u64 {
    2000
}
fn batch() -> usize {
    16
}
fn steps() -> usize {
    10
}
fn choices() -> f64 {
    0.5
}
fn deductions() -> f64 {
    0.8
}

/// An episode of play: what was seen and done, with the deduction before each action.
struct Play {
    start: String,
    turns: Vec<Turn>,
}

struct Turn {
    deduction: String,
    action: String,
    observation: String,
    admissible: Vec<String>,
}

/// The houses of play: same kind of world, other rooms.
fn elsewhere(world: &household::Settings) -> household::Settings {
    household::Settings { rooms: world.rooms.wrapping_add(1_000_003), layouts: 60, unseen_layouts: 60, ..world.clone() }
}

/// Makes episodes of play.
struct Player {
    tasks: Vec<household::HouseholdTask>,
    steps: usize,
    seed: u64,
}

impl Player {
    fn new(world: &household::Settings, steps: usize, seed: u64) -> Self {
        const TASKS: usize = 4000;
        let world = elsewhere(world);
        let mut tasks = household::tasks(&world, household::Split::Train, TASKS, seed);
        tasks.extend(household::tasks(&world, household::Split::Ood, TASKS, seed));
        Player { tasks, steps, seed }
    }

    /// Episode `index`; a wander that reached no goal is tried again elsewhere.
    fn play(&self, index: u64) -> Play {
        for attempt in 0..50 {
            let mut rng = Rng::at(self.seed, &[index, attempt]);
            let task = &self.tasks[rng.below(self.tasks.len())];
            let mut world = task.play();
            world.reset();
            let mut actions = Vec::new();
            let mut reached = None;
            for _ in 0..self.steps {
                let action = world.random_action(&mut rng);
                let before = world.achieved();
                world.step(&action);
                actions.push(action);
                let fresh: Vec<_> = world.achieved().into_iter().filter(|g| !before.contains(g)).collect();
                if !fresh.is_empty() {
                    reached = Some((fresh[rng.below(fresh.len())].clone(), actions.len()));
                }
            }
            let Some((goal, length)) = reached else { continue };
            let mut world = task.with_goal(goal).play();
            let start = world.reset().text;
            let turns = actions[..length]
                .iter()
                .map(|action| {
                    let (deduction, admissible) = (thought(&world.deduction()), world.admissible());
                    let observation = world.step(action).text;
                    Turn { deduction, action: action.clone(), observation, admissible }
                })
                .collect();
            return Play { start, turns };
        }
        panic!("BUG: fifty wanders in a row reached no goal")
    }
}

/// Why a world cannot be played at random with deductions.
pub fn no_play(world: &WorldSettings) -> Problem {
    Problem::new(&["world"], format!("the environment `{}` makes no unlabelled experience", world.name()))
        .help("`household` does")
}

/// What was deduced, without the advice that follows: experience is unlabelled.
fn thought(deduction: &str) -> String {
    deduction.split(" next: ").next().unwrap_or(deduction).to_owned()
}

/// Texts of the environment for a tokenizer: observations, actions, deductions, questions.
pub fn play_texts(world: &household::Settings, count: usize, seed: u64) -> Vec<String> {
    let player = Player::new(world, steps(), seed);
    let mut texts = Vec::new();
    for index in 0..count as u64 {
        let play = player.play(index);
        texts.push(play.start);
        for t in play.turns {
            let shown = [t.action.clone(), t.admissible.first().cloned().unwrap_or_default()];
            texts.push(critic_question(&t.observation, &shown));
            texts.extend([t.deduction, t.action]);
        }
    }
    texts
}

/// One episode as a training sequence.
fn example(text: &Text, play: &Play, p: &Params, rng: &mut Rng) -> Result<Example, OpError> {
    let percent = |share: f64| (share * 100.0).round() as u64;
    let ask = rng.percent(percent(p.choices));
    // half of the questions are about the last steps, which led to the goal: there the answer can be told
    let early = if rng.percent(50) { 0 } else { play.turns.len().saturating_sub(3) };
    let cut = if ask { rng.between(early, play.turns.len() - 1) } else { play.turns.len() };
    let mut turns: Vec<(String, String)> =
        play.turns[..cut].iter().map(|t| (t.action.clone(), t.observation.clone())).collect();
    let others: Vec<&String> = match play.turns.get(cut) {
        Some(turn) => turn.admissible.iter().filter(|a| **a != turn.action && !idle(a)).collect(),
        None => Vec::new(),
    };
    let mut start = play.start.clone();
    let question = play.turns.get(cut).filter(|_| !others.is_empty());
    if let Some(turn) = question {
        let other = others[rng.below(others.len())].clone();
        let mut shown = [turn.action.clone(), other];
        if rng.percent(50) {
            shown.swap(0, 1);
        }
        let seen = turns.last_mut().map_or(&mut start, |t| &mut t.1);
        *seen = critic_question(seen, &shown);
    }
    let mut dialogue = Dialogue::at(text, &Past::of_texts(start, turns), true)?;
    if let Some(turn) = question {
        let reasoning = if rng.percent(percent(p.deductions)) {
            format!("{THINK_OPEN}{}{THINK_CLOSE}", turn.deduction)
        } else {
            String::new()
        };
        dialogue.assistant(&format!("{reasoning}{}", turn.action), true)?;
    }
    let mut example = dialogue.example;
    example.learn.fill(true); // experience is text: every token of it is predicted
    Ok(example)
}

/// Actions that only look.
fn idle(action: &str) -> bool {
    matches!(action, "help" | "look" | "inventory") || action.starts_with("examine ")
}

/// The op.
pub struct Pretrain;

impl Op for Pretrain {
    type Params = Params;
    const NAME: &'static str = "pretrain";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "trains a model on unlabelled experience: random play, deductions, choices";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from"))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        if matches!(p.world, WorldSettings::Household(_)) { Vec::new() } else { vec![no_play(&p.world)] }
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 2, gpu: 0 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load(ctx, ctx.input("model"))?;
        p.training.prepare(ctx, &mut model)?;
        let seed = ctx.seed("play");
        let WorldSettings::Household(world) = &p.world else {
            panic!("BUG: `{}` was not refused", p.world.name());
        };
        let player = Player::new(world, p.steps, seed);
        let plan = sft::Plan { steps: p.updates, facts: Vec::new(), ..p.training.plan() };
        let limit = model.config.max_positions;
        sft::run(ctx, &mut model, &plan, |step| {
            use rayon::prelude::*;
            (0..p.batch as u64)
                .into_par_iter()
                .map(|i| {
                    let index = step * p.batch as u64 + i;
                    let mut example = example(&text, &player.play(index), p, &mut Rng::at(seed, &[index, u64::MAX]))?;
                    example.truncate(limit);
                    Ok(example)
                })
                .collect()
        })?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}
