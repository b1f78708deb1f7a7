//! `pretrain`: next-token training on unlabelled experience, made from random play as it is needed.
//!
//! An episode of random play is told with a task line written in hindsight: a goal that its actions happened to reach.
//! Some episodes are cut at a step and end in a choice question, "which of two actions came next?", whose answer is
//! what did come next: a true, self-supervised label. Answers begin with a short deduction from what was seen. No
//! expert takes part.
//!
//! Invariant: no room of play has the same receptacles, as a start tells them, as a room of demonstrations or tests,
//! whatever their split. Everything else is met in play: every class of receptacle and of object, also those of `ood`,
//! and every pair of them. What stays new in `ood` are its rooms, and that no expert was seen with such a goal.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common;
use super::training::{self, Defaults, Training};
use crate::artifact::{self, Actor, End, Episode, Pair, SCHEMA_VERSION};
use crate::env::{WorldSettings, household};
use crate::rng::Rng;
use crate::text::prompt::Thinking;
use crate::text::{Dialogue, Message, Prompt, Text, critic_question};
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
    /// How states are put and actions are said.
    #[serde(default)]
    pub prompt: Prompt,
    /// Share of episodes in which a deduction stands before each action, in the form of `reasoned`.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub thoughts: f64,
    /// How states are put in those episodes: as `prompt` if left out. Its `thinking` may not be `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoned: Option<Prompt>,
    /// Share of episodes that end in a choice question.
    #[serde(default = "choices")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub choices: f64,
    /// Share of choices whose answer begins with a deduction, where there are no `questions`.
    #[serde(default = "deductions")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub deductions: f64,
    /// Forms of the choice question, one of which is drawn for each. Left out: in the words of `prompt`, with a short
    /// deduction in a share `deductions` of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<Form>,
    #[serde(flatten)]
    pub training: Training<Anew>,
}

/// A form of the choice question.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// How state and question are put.
    pub prompt: Prompt,
    /// What stands before the choice.
    pub deduction: Deduction,
    /// How often it is drawn, beside the others' shares.
    #[serde(default = "whole")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub share: f64,
}

/// What is deduced from what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Deduction {
    /// Nothing.
    None,
    /// What matters now: `mug 1 is at countertop 1.`
    Short,
    /// First all that is known: what is held, what is where, what is closed.
    Long,
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
fn whole() -> f64 {
    1.0
}

/// An episode of play, with the deductions before each action, short and long.
struct Play {
    episode: Episode,
    deductions: Vec<[String; 2]>,
}

/// Where play takes place: as in demonstrations, and with all that only `ood` has.
const PLAYED: [household::Split; 2] = [household::Split::Train, household::Split::Ood];

/// Makes episodes of play.
struct Player {
    tasks: Vec<household::HouseholdTask>,
    steps: usize,
    seed: u64,
}

impl Player {
    fn new(world: &household::Settings, steps: usize, seed: u64) -> Result<Self, OpError> {
        const TASKS: usize = 4000;
        let mut tasks = Vec::with_capacity(TASKS * PLAYED.len());
        for split in PLAYED {
            tasks.extend(household::tasks_elsewhere(world, split, TASKS, seed)?);
        }
        Ok(Player { tasks, steps, seed })
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
            let mut deductions = Vec::with_capacity(length);
            let turns = actions[..length]
                .iter()
                .map(|action| {
                    let (short, actions) = (thought(&world.deduction()), world.admissible());
                    deductions.push([short.clone(), [world.facts(), vec![short]].concat().join(" ")]);
                    let observation = world.step(action).text;
                    let (action, admissible) = (action.clone(), Some(true));
                    artifact::Turn { action, admissible, observation, actions, reply: None, reward: 0.0 }
                })
                .collect();
            let episode = Episode {
                v: SCHEMA_VERSION,
                task: world.task().clone(),
                actor: Actor::Random,
                decoding: None,
                start,
                turns,
                success: true,
                score: 1.0,
                end: End::Done,
            };
            return Play { episode, deductions };
        }
        panic!("BUG: fifty wanders in a row reached no goal")
    }
}

/// Why a world cannot be played at random with deductions.
pub fn no_play(world: &WorldSettings) -> Problem {
    Problem::new(&["world"], format!("the environment `{}` makes no unlabelled experience", world.name()))
        .help("`household` does")
}

/// Why there is no room to play in.
fn no_room(world: &household::Settings) -> Option<Problem> {
    let failed = PLAYED.into_iter().find_map(|split| household::tasks_elsewhere(world, split, 0, 0).err())?;
    Some(match OpError::from(failed) {
        OpError::Failed { message, help: Some(help) } => Problem::new(&["world"], message).help(help),
        other => Problem::new(&["world"], other.to_string()),
    })
}

/// What was deduced, without the advice that follows: experience is unlabelled.
fn thought(deduction: &str) -> String {
    deduction.split(" next: ").next().unwrap_or(deduction).to_owned()
}

/// Texts of the environment for a tokenizer: observations, actions, deductions, questions.
///
/// # Errors
/// Where no room is left to play in.
pub fn play_texts(world: &household::Settings, count: usize, seed: u64) -> Result<Vec<String>, OpError> {
    let player = Player::new(world, steps(), seed)?;
    let mut texts = Vec::new();
    for index in 0..count as u64 {
        let Play { episode, deductions } = player.play(index);
        texts.push(episode.start);
        for (t, [short, _]) in episode.turns.into_iter().zip(deductions) {
            let shown = [t.action.clone(), t.actions.first().cloned().unwrap_or_default()];
            texts.push(critic_question(&t.observation, &shown));
            texts.extend([short, t.action]);
        }
    }
    Ok(texts)
}

/// One episode as training sequences: one, or one for each state where every state is a message of its own. What a
/// sequence has in common with the one before it is learned there.
fn examples(text: &Text, play: Play, p: &Params, rng: &mut Rng) -> Result<Vec<Example>, OpError> {
    let percent = |share: f64| (share * 100.0).round() as u64;
    let Play { mut episode, deductions } = play;
    let ask = rng.percent(percent(p.choices));
    // half of the questions are about the last steps, which led to the goal: there the answer can be told
    let early = if rng.percent(50) { 0 } else { episode.turns.len().saturating_sub(3) };
    let cut = if ask { rng.between(early, episode.turns.len() - 1) } else { episode.turns.len() };
    // 1. the choice: what came next, and something else that was possible
    let others: Vec<&String> = match episode.turns.get(cut) {
        Some(turn) => turn.actions.iter().filter(|a| **a != turn.action && !idle(a)).collect(),
        None => Vec::new(),
    };
    let mut asked: Option<Pair> = None;
    if let Some(turn) = episode.turns.get(cut).filter(|_| !others.is_empty()) {
        let other = others[rng.below(others.len())].clone();
        let mut shown = [turn.action.clone(), other];
        let expert = usize::from(rng.percent(50));
        if expert == 1 {
            shown.swap(0, 1);
        }
        let past = common::past(&episode, cut, true);
        let (task, actions) = (episode.task.clone(), turn.actions.clone());
        asked = Some(Pair {
            v: SCHEMA_VERSION,
            task,
            episode: 0,
            turn: cut,
            past,
            shown,
            expert,
            actions,
            held_out: false,
        });
    }
    let form = asked.is_some().then(|| drawn_form(p, rng));
    // 2. play, in some episodes with a deduction before each action
    let thinks = p.thoughts > 0.0 && rng.percent(percent(p.thoughts));
    let prompt = match &form {
        _ if thinks => p.reasoned.as_ref().unwrap_or(&p.prompt),
        Some((prompt, _)) => prompt,
        None => &p.prompt,
    };
    if thinks {
        for (turn, [short, _]) in episode.turns.iter_mut().zip(&deductions) {
            turn.reply = Some(prompt.reply(Some(short), &turn.action));
        }
    }
    let mut out: Vec<Example> = Vec::new();
    let mut add = |messages: &[Message]| -> Result<(), OpError> {
        let mut example = Dialogue::told(text, messages, |_| true)?.example;
        // experience is text: every token of it is predicted, once
        let known = out.last().map_or(0, |last| last.ids.iter().zip(&example.ids).take_while(|(a, b)| a == b).count());
        example.learn = (0..example.ids.len()).map(|i| i >= known).collect();
        out.push(example);
        Ok(())
    };
    let state = |turn: usize| -> Result<Vec<Message>, OpError> { common::state(prompt, (0, &episode), turn, thinks) };
    let answered = |turn: usize| -> Result<Vec<Message>, OpError> {
        let mut messages = state(turn)?;
        let action = &episode.turns[turn].action;
        let reply = episode.turns[turn].reply.clone().unwrap_or_else(|| prompt.reply(None, action));
        messages.push(Message::assistant(reply));
        Ok(messages)
    };
    if !prompt.grows() {
        for turn in 0..cut {
            add(&answered(turn)?)?;
        }
    } else if asked.is_none() && cut == episode.turns.len() {
        let mut messages = answered(cut - 1)?;
        let last = &episode.turns[cut - 1];
        messages.push(Message::user(prompt.turn(&last.observation, &[])));
        add(&messages)?;
    } else if asked.is_none() {
        add(&state(cut)?)?;
    }
    if let (Some(mut pair), Some((form, length))) = (asked, form) {
        if thinks {
            pair.past.replies = episode.turns[..cut].iter().map(|turn| turn.reply.clone()).collect();
        }
        let mut messages = common::question(form, &pair)?;
        let deduction = match length {
            Deduction::None => None,
            Deduction::Short => Some(deductions[cut][0].as_str()),
            Deduction::Long => Some(deductions[cut][1].as_str()),
        };
        messages.push(Message::assistant(form.choose(deduction, &pair.shown, pair.expert)));
        add(&messages)?;
    }
    Ok(out)
}

/// How a choice is asked, and what stands before the answer.
fn drawn_form<'p>(p: &'p Params, rng: &mut Rng) -> (&'p Prompt, Deduction) {
    let shares: Vec<u64> = p.questions.iter().map(|form| (form.share * 1000.0).round() as u64).collect();
    match rng.weighted(shares.into_iter()) {
        Some(form) => (&p.questions[form].prompt, p.questions[form].deduction),
        None if rng.percent((p.deductions * 100.0).round() as u64) => (&p.prompt, Deduction::Short),
        None => (&p.prompt, Deduction::None),
    }
}

/// Actions that only look.
fn idle(action: &str) -> bool {
    matches!(action, "help" | "look" | "inventory") || action.starts_with("examine ")
}

/// What is wrong with a prompt that a recipe writes at another place than `prompt`.
fn checked(prompt: &Prompt, at: &[&str]) -> Vec<Problem> {
    let place = |problem: Problem| {
        let below = problem.path.into_iter().skip(1);
        Problem { path: at.iter().map(|s| (*s).to_owned()).chain(below).collect(), ..problem }
    };
    prompt.check().into_iter().map(place).collect()
}

/// The op.
pub struct Pretrain;

impl Op for Pretrain {
    type Params = Params;
    const NAME: &'static str = "pretrain";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "trains a model on unlabelled experience: random play, deductions, choices";

    fn ports(&self, p: &Params) -> Ports {
        p.training.outputs(Ports::new().input("model", Kind::MODEL, "the model to start from"))
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = p.prompt.check();
        match &p.world {
            WorldSettings::Household(world) => problems.extend(no_room(world)),
            other => problems.push(no_play(other)),
        }
        for (place, form) in p.questions.iter().enumerate() {
            problems.extend(checked(&form.prompt, &["questions", &place.to_string(), "prompt"]));
        }
        if let Some(reasoned) = &p.reasoned {
            problems.extend(checked(reasoned, &["reasoned"]));
        }
        let thinks = p.reasoned.as_ref().unwrap_or(&p.prompt);
        if p.thoughts > 0.0 && thinks.thinking() == Thinking::None {
            let message = "there is no place for a deduction before an action";
            let path = if p.reasoned.is_some() { ["reasoned", "thinking"] } else { ["prompt", "thinking"] };
            problems.push(Problem::new(&path, message).help("write `thinking = \"optional\"` or `\"required\"`"));
        }
        problems
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 2, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let (mut model, text) = common::load(ctx, ctx.input("model"))?;
        p.training.prepare(ctx, &mut model, 0)?;
        let seed = ctx.seed("play");
        let WorldSettings::Household(world) = &p.world else {
            panic!("BUG: `{}` was not refused", p.world.name());
        };
        let player = Player::new(world, p.steps, seed)?;
        let plan = sft::Plan { steps: p.updates, facts: Vec::new(), ..p.training.plan() };
        let limit = model.config.max_positions;
        sft::run(ctx, &mut model, &plan, |step| {
            use rayon::prelude::*;
            let episodes: Vec<Vec<Example>> = (0..p.batch as u64)
                .into_par_iter()
                .map(|i| {
                    let index = step * p.batch as u64 + i;
                    let mut of = examples(&text, player.play(index), p, &mut Rng::at(seed, &[index, u64::MAX]))?;
                    of.iter_mut().for_each(|example| example.truncate(limit));
                    Ok(of)
                })
                .collect::<Result<_, OpError>>()?;
            Ok(episodes.into_iter().flatten().collect())
        })?;
        training::publish(ctx, &model, ctx.input("model"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use camino::Utf8Path;
    use serde_json::{Value, json};

    use super::*;
    use crate::text::{THINK_CLOSE, THINK_OPEN, train_tokenizer};

    fn with_text(test: impl FnOnce(&Text, &Player)) {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        let world = household::Settings::default();
        train_tokenizer(&play_texts(&world, 40, 1).unwrap(), 400, path).unwrap();
        let mut text = Text::load(path, &[]).unwrap();
        text.eos = vec![text.id("<|end|>").unwrap()];
        test(&text, &Player::new(&world, 8, 3).unwrap());
    }

    fn params(value: Value) -> Params {
        serde_json::from_value(value).unwrap()
    }

    fn told(text: &Text, player: &Player, p: &Params) -> Vec<(Play, Vec<Example>)> {
        (0..24).map(|i| (player.play(i), examples(text, player.play(i), p, &mut Rng::new(i, 7)).unwrap())).collect()
    }

    #[test]
    fn every_token_of_an_episode_is_learned_once_whatever_the_form_of_the_prompt() {
        let single = json!({
            "form": "single", "history": "all", "actions": "all",
            "texts": { "state": "{history}\n{observation}\n{actions}", "history": "{entries}", "past": "{observation}\n> {action}" },
        });
        with_text(|text, player| {
            for prompt in [json!({}), json!({ "actions": "all" }), single] {
                for (_, examples) in told(text, player, &params(json!({ "prompt": prompt.clone() }))) {
                    let mut seen: Vec<&[u32]> = Vec::new();
                    for example in &examples {
                        for (i, learned) in example.learn.iter().enumerate() {
                            let path = &example.ids[..=i];
                            assert_ne!(seen.contains(&path), *learned, "token {i} under {prompt}");
                            seen.push(path);
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_choice_names_what_came_next_behind_the_deduction_of_its_form() {
        let question = "Think of all.\n{first}\n{second}";
        let form =
            json!({ "prompt": { "thinking": "optional", "texts": { "question": question } }, "deduction": "long" });
        let p = params(json!({ "choices": 1.0, "questions": [form] }));
        with_text(|text, player| {
            let mut asked = 0;
            for (play, examples) in told(text, player, &p) {
                let said = text.decode(&examples[examples.len() - 1].ids).unwrap();
                let Some((_, rest)) = said.split_once("Think of all.") else { continue };
                let (_, rest) = rest.split_once(THINK_OPEN).unwrap();
                let (reasoning, answer) = rest.split_once(THINK_CLOSE).unwrap();
                let turn = play.deductions.iter().position(|[_, long]| long == reasoning).unwrap();
                assert!(play.deductions[turn][1].ends_with(&play.deductions[turn][0]));
                let next = play.episode.turns.iter().zip(&play.deductions).filter(|(_, [_, long])| long == reasoning);
                assert!(next.into_iter().any(|(t, _)| answer.starts_with(&t.action)), "{answer:?}");
                asked += 1;
            }
            assert!(asked > 12, "only {asked} questions");
        });
    }

    #[test]
    fn deductions_stand_before_the_actions_of_the_share_that_is_asked_for() {
        let reasoned = json!({ "thinking": "required", "texts": { "first": "Think.\n{observation}" } });
        let share = |thoughts: f64| {
            let p = params(json!({ "choices": 0.0, "thoughts": thoughts, "reasoned": reasoned.clone() }));
            let mut n = 0;
            with_text(|text, player| {
                for (play, examples) in told(text, player, &p) {
                    let said = text.decode(&examples[0].ids).unwrap();
                    let thinks = said.contains(THINK_OPEN);
                    assert_eq!(thinks, said.contains("Think."));
                    let marks = if thinks { play.episode.turns.len() } else { 0 };
                    assert_eq!(said.matches(THINK_OPEN).count(), marks);
                    n += usize::from(thinks);
                }
            });
            n
        };
        assert_eq!((share(0.0), share(1.0)), (0, 24));
        assert!((4..20).contains(&share(0.5)));
    }

    #[test]
    fn no_room_of_play_begins_like_a_room_of_any_split_at_any_size() {
        use household::{Settings, Size, Split};
        // `You are in the middle of a room. Looking quickly around you, you see ..`: all that is told of the room
        let room = |task: &household::HouseholdTask| {
            let start = task.play().reset().text;
            start.split("\n\n").find(|part| part.contains("you see")).unwrap().to_owned()
        };
        for (size, rooms) in [(Size::Tiny, 0), (Size::Tiny, 1), (Size::Tiny, 7), (Size::Small, 0), (Size::Medium, 0)] {
            let world = Settings { size, rooms, ..Settings::default() };
            let player = Player::new(&world, 8, 3).unwrap();
            let played: BTreeSet<String> = player.tasks.iter().map(&room).collect();
            for split in Split::ALL {
                for task in household::tasks(&world, split, 200, 5) {
                    assert!(!played.contains(&room(&task)), "{size:?}, house {rooms}, {split:?}: {}", room(&task));
                }
            }
            // what is left has every class that the splits have
            let classes = |rooms: &BTreeSet<String>| -> BTreeSet<String> {
                let names = rooms.iter().flat_map(|room| room.split(|c: char| !c.is_alphabetic()));
                names.map(str::to_owned).collect()
            };
            let tested: BTreeSet<String> = Split::ALL
                .iter()
                .flat_map(|split| household::tasks(&world, *split, 200, 5))
                .map(|t| room(&t))
                .collect();
            assert!(classes(&played).is_superset(&classes(&tested)), "{size:?}, house {rooms}");
        }
    }

    #[test]
    fn a_world_whose_splits_take_every_room_of_a_kind_is_refused() {
        let said = |world: Value| {
            let problems = Pretrain.check(&params(json!({ "world": world })));
            problems.into_iter().map(|p| format!("{}: {}", p.path.join("."), p.message)).collect::<Vec<_>>()
        };
        let full = json!({ "env": "household", "layouts": 60 });
        assert_eq!(
            said(full.clone()),
            ["world: no kitchen is left that no split has: `layouts = 60` takes all that the size `tiny` makes"]
        );
        assert!(said(json!({ "env": "household", "layouts": 60, "size": "medium" })).is_empty());
        // a kind of room that no task needs may have none
        assert!(said(json!({ "env": "household", "layouts": 20, "tasks": ["look_at_obj_in_light"] })).is_empty());
        let WorldSettings::Household(world) = params(json!({ "world": full })).world else { panic!("another world") };
        assert!(play_texts(&world, 1, 0).unwrap_err().to_string().contains("no kitchen is left"));
    }

    #[test]
    fn a_deduction_without_a_place_is_refused_by_its_path() {
        let paths = |value: Value| -> Vec<String> {
            Pretrain.check(&params(value)).into_iter().map(|problem| problem.path.join(".")).collect()
        };
        assert_eq!(paths(json!({ "thoughts": 0.5 })), ["prompt.thinking"]);
        assert_eq!(paths(json!({ "thoughts": 0.5, "reasoned": {} })), ["reasoned.thinking"]);
        assert_eq!(paths(json!({ "thoughts": 0.5, "reasoned": { "thinking": "optional" } })), [""; 0]);
        let form = json!({ "prompt": { "texts": { "question": "which?" } }, "deduction": "none" });
        let at = "questions.0.prompt.texts.question";
        assert_eq!(paths(json!({ "questions": [form] })), [at, at]);
    }
}
