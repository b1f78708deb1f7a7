//! `rollout`: a policy plays tasks, many side by side; its episodes are saved.
//!
//! Each task has a random stream of its own, so an episode does not depend on which others are played beside it.

use std::sync::Arc;
use std::time::Instant;

use actloom_engine::event::Level;
use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports, Problem, Resources};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, Filters, kept};
use super::worlds::{Game, Record, Tasks};
use crate::artifact::{self, Actor, Decoding, End, Episode, SCHEMA_VERSION, Turn};
use crate::env::webshop::{self, SearchHint};
use crate::env::{EnvError, WorldSettings};
use crate::eval::stats;
use crate::policy::{Answer, Ask, Finish, Policy, Session, begin, open_with};
use crate::rng::Rng;
use crate::text::Prompt;
use crate::text::prompt::{Said, Scene};

/// How actions are decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// Anything may be said; what is not admissible changes nothing.
    #[default]
    Free,
    /// Held to the admissible actions of the state.
    Admissible,
}

/// Parameters of `rollout`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The environment and its settings.
    #[serde(default)]
    pub world: WorldSettings,
    /// Which tasks: of the household `id` in seen rooms, `ood` in unseen ones.
    pub split: String,
    /// How many tasks are played; 0 takes all, where they are listed.
    #[schemars(range(min = 0, max = 10000000))]
    pub tasks: usize,
    /// How many tasks at the beginning of the split are passed over.
    #[serde(default)]
    pub first: usize,
    /// Episodes of each task; each has a random stream of its own.
    #[serde(default = "once")]
    #[schemars(range(min = 1, max = 100000))]
    pub episodes: usize,
    /// Longest episode, in steps.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: usize,
    /// How states are put, and how replies are read.
    #[serde(default)]
    pub prompt: Prompt,
    /// 0 takes the likeliest token.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    #[serde(default)]
    pub decoding: Decode,
    /// Longest reply, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
    /// Whether admissible actions are written down.
    #[serde(default)]
    pub actions: Record,
}

impl Params {
    /// What cannot be.
    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = self.world.check(Some(&self.split));
        problems.extend(self.prompt.check());
        if let WorldSettings::Webshop(webshop::Settings { search: SearchHint::Blank, .. }) = self.world
            && self.decoding == Decode::Admissible
        {
            let what = "a search would be held to the words `<your query>`, which is a blank to be filled in";
            problems.push(
                Problem::new(&["decoding"], what)
                    .help("write `search = \"words\"` in `world`, or `decoding = \"free\"`"),
            );
        }
        if self.decoding == Decode::Admissible && !self.prompt.can_be_held() {
            let what = "replies must hold a reasoning, which cannot be held to the admissible actions";
            problems.push(Problem::new(&["decoding"], what).help("write `decoding = \"free\"`"));
        }
        problems
    }
}

fn once() -> usize {
    1
}
fn max_steps() -> usize {
    50
}
fn temperature() -> f64 {
    0.4
}
fn max_tokens() -> usize {
    32
}

/// A game with the conversation about it.
pub(crate) struct Played {
    pub game: Game,
    /// `None` where the next state is put as a whole.
    session: Option<Session>,
    /// The text leaves no room for a reply.
    pub full: bool,
}

impl Played {
    pub(crate) fn new(game: Game) -> Played {
        Played { game, session: None, full: false }
    }

    /// What was played so far.
    pub(crate) fn episode(self, policy: &mut dyn Policy, decoding: Decode) -> Episode {
        let Played { game, session, full } = self;
        if let Some(session) = session {
            policy.close(session);
        }
        Episode {
            v: SCHEMA_VERSION,
            task: game.env.task().clone(),
            actor: Actor::Policy,
            decoding: Some(match decoding {
                Decode::Free => Decoding::Free,
                Decode::Admissible => Decoding::Admissible,
            }),
            start: game.start,
            turns: game.turns,
            success: game.now.won,
            score: game.now.score,
            end: match (game.now.done, full) {
                (true, _) => End::Done,
                (false, true) => End::Context,
                (false, false) => End::Limit,
            },
        }
    }
}

/// What was answered in a game.
pub(crate) struct Replied {
    /// Number of the game.
    pub game: usize,
    /// Ids of all that was said before, where the policy knows them.
    pub prompt: Option<Arc<[u32]>>,
    pub answer: Answer,
}

/// The op.
pub struct Rollout;

/// Most games that are played side by side, which are what a killed run loses.
pub(crate) const GAMES: usize = 96;

/// One game to be played: a task, and which of its episodes.
#[derive(Clone, Copy)]
struct Turned {
    task: usize,
    again: usize,
}

impl Turned {
    /// What its random stream is told apart by. The first episode of a task has the same whatever `episodes` is.
    fn stream(self) -> usize {
        self.task | self.again << 40
    }
}

impl Op for Rollout {
    type Params = Params;
    const NAME: &'static str = "rollout";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "lets a policy play tasks and saves the episodes";

    fn ports(&self, p: &Params) -> Ports {
        let ports = Ports::new().port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "who plays");
        p.world.port(ports).output("episodes", Kind::EPISODES, "one episode a line")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        p.check()
    }

    fn resources(&self, _: &Params) -> Resources {
        Resources { cpu: 1, gpu: 1 }
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let mut policy = common::open_policy_for(ctx, ctx.input("policy"), &p.prompt)?;
        let tasks = Tasks::open(ctx, &p.world, &p.split, p.first, p.tasks)?;
        let seed = ctx.seed("actions");
        let together = policy.width().min(tasks.suite.together()).clamp(1, GAMES);
        let mut clock = Clock::default();
        let each = |task| (0..p.episodes).map(move |again| Turned { task, again });
        let games: Vec<Turned> = (0..tasks.count()).flat_map(each).collect();
        let mut episodes: Vec<Episode> = Vec::with_capacity(games.len());
        while episodes.len() < games.len() {
            let first = episodes.len();
            let _span = tracing::debug_span!("games", first).entered();
            let some = &games[first..games.len().min(first + together)];
            episodes.extend(kept(ctx, &format!("games-from-{first}"), || {
                play(ctx, &mut *policy, p, &tasks, some, seed, &mut clock)
            })?);
            let won = episodes.iter().filter(|e| e.success).count();
            let note = format!("success {:.0} %", 100.0 * won as f64 / episodes.len() as f64);
            ctx.progress(episodes.len() as u64, games.len() as u64, "episodes", note);
        }
        common::note_policy(ctx, &*policy);
        ctx.note("reproducible", policy.identity().reproducible && tasks.suite.reproducible());
        ctx.note("time", clock.told());
        if clock.cut > 0 {
            ctx.say(
                Level::Warning,
                format!(
                    "{} of {} replies were cut off after {} tokens and are no actions: raise `max_tokens`",
                    clock.cut, clock.replies, p.max_tokens
                ),
            );
        }
        let crowded = episodes.iter().filter(|e| e.end == End::Context).count();
        if crowded > 0 {
            let (all, limit) = (episodes.len(), policy.positions().map_or_else(String::new, |n| format!("{n} ")));
            ctx.say(
                Level::Warning,
                format!("{crowded} of {all} episodes ended early: their text filled the model's {limit}positions"),
            );
        }
        let n = episodes.len() as f64;
        ctx.metric(0, "success", episodes.iter().filter(|e| e.success).count() as f64 / n);
        ctx.metric(0, "score", episodes.iter().map(|e| e.score).sum::<f64>() / n);
        ctx.metric(0, "steps", episodes.iter().map(|e| e.turns.len()).sum::<usize>() as f64 / n);
        artifact::write(ctx.output("episodes"), &episodes)
    }
}

/// Where the time went. It belongs to the provenance: no result may hold a time.
#[derive(Default)]
pub(crate) struct Clock {
    /// Seconds of each step in the environment.
    steps: Vec<f64>,
    policy: f64,
    environment: f64,
    /// Replies asked for, and those that were cut off.
    replies: usize,
    cut: usize,
}

impl Clock {
    fn told(&mut self) -> serde_json::Value {
        self.steps.sort_by(f64::total_cmp);
        let at = |q: f64| stats::quantile(&self.steps, q).map(|s| s * 1e3);
        serde_json::json!({
            "steps": self.steps.len(),
            "environment_step_ms": { "median": at(0.5), "p99": at(0.99), "max": self.steps.last().map(|s| s * 1e3) },
            "environment_s": self.environment,
            "policy_s": self.policy,
        })
    }
}

/// Where a game stands, as the model is told.
fn scene<T>(game: &Game, tell: impl FnOnce(&Scene<'_>) -> T) -> T {
    let turns = &game.turns;
    let said: Vec<Said<'_>> = turns
        .iter()
        .enumerate()
        .map(|(i, turn)| Said {
            reply: turn.reply.as_deref(),
            action: &turn.action,
            observation: &turn.observation,
            actions: turns.get(i + 1).map_or(game.known_actions(), |next: &Turn| &next.actions),
        })
        .collect();
    let first = turns.first().map_or(game.known_actions(), |turn| &turn.actions);
    tell(&Scene { task: game.env.task(), start: &game.start, first, turns: &said })
}

/// Plays tasks side by side. Each has its own random stream, by its number within the step.
fn play(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    tasks: &Tasks,
    some: &[Turned],
    seed: u64,
    clock: &mut Clock,
) -> Result<Vec<Episode>, OpError> {
    // 1. start the games
    let started = Instant::now();
    let games = some.par_iter().map(|game| tasks.game(game.task)).collect::<Result<Vec<_>, EnvError>>()?;
    let streams: Vec<usize> = some.iter().map(|game| game.stream()).collect();
    let mut games: Vec<Played> = games.into_iter().map(Played::new).collect();
    clock.environment += started.elapsed().as_secs_f64();
    // 2. every game that goes on takes a step, all together
    for step in 0..p.max_steps {
        let stream = |i: usize| Rng::at(seed, &[streams[i] as u64, step as u64]);
        if advance(policy, p, &mut games, &stream, &|| ctx.stopping(), clock)?.is_empty() {
            break;
        }
    }
    // 3. write them down
    let write = |mut played: Played| {
        clock.steps.append(&mut played.game.spent);
        played.episode(policy, p.decoding)
    };
    Ok(games.into_iter().map(write).collect())
}

/// Lets every game that goes on take a step, and tells what was answered. `stream` is what a game's answer is drawn from.
pub(crate) fn advance(
    policy: &mut dyn Policy,
    p: &Params,
    games: &mut [Played],
    stream: &dyn Fn(usize) -> Rng,
    stopping: &dyn Fn() -> bool,
    clock: &mut Clock,
) -> Result<Vec<Replied>, OpError> {
    let listed = p.decoding == Decode::Admissible || p.prompt.lists_actions();
    let asked = Instant::now();
    if listed || p.actions == Record::Always {
        let going = games.par_iter_mut().filter(|g| !g.game.now.done && !g.full);
        going.try_for_each(|g| g.game.actions().map(|_| ()))?;
    }
    let told = Instant::now();
    let mut playing: Vec<usize> = Vec::new();
    for (i, played) in games.iter_mut().enumerate() {
        if !played.game.now.done && !played.full {
            put(policy, &p.prompt, played, p.max_tokens)?;
            if !played.full {
                playing.push(i);
            }
        }
    }
    if playing.is_empty() {
        return Ok(Vec::new());
    }
    let prompts: Vec<Option<Arc<[u32]>>> =
        playing.iter().map(|i| policy.ids(games[*i].session?).map(Arc::from)).collect();
    let answers = ask(policy, p, games, &playing, stream, stopping)?;
    clock.environment += (told - asked).as_secs_f64();
    clock.policy += told.elapsed().as_secs_f64();
    let acted = Instant::now();
    clock.replies += answers.len();
    clock.cut += answers.iter().filter(|answer| answer.finish == Finish::Length).count();
    for (i, answer) in playing.iter().zip(&answers) {
        games[*i].full |= answer.finish == Finish::Room;
    }
    let mut replies: Vec<Option<&Answer>> = vec![None; games.len()];
    for (i, answer) in playing.iter().zip(&answers) {
        replies[*i] = Some(answer).filter(|answer| answer.finish != Finish::Room);
    }
    games.par_iter_mut().zip(&replies).try_for_each(|(played, answer)| match answer {
        Some(answer) => act(&p.prompt, &mut played.game, answer, p.actions),
        None => Ok(()),
    })?;
    clock.environment += acted.elapsed().as_secs_f64();
    // a conversation that grows is told at once what came of the action
    for &i in &playing {
        let Played { game, session, full } = &mut games[i];
        if let Some(open) = *session
            && !p.prompt.grows()
        {
            policy.close(open);
            *session = None;
        } else if let Some(open) = *session
            && !*full
            && !game.now.done
        {
            if listed {
                game.actions()?;
            }
            policy.user(open, &p.prompt.turn(&game.now.text, game.known_actions()))?;
        }
    }
    let told = playing.into_iter().zip(prompts).zip(answers);
    Ok(told.map(|((game, prompt), answer)| Replied { game, prompt, answer }).collect())
}

/// Puts the state to the policy, unless its conversation has it already; a game whose state leaves no room for a reply
/// is full.
fn put(policy: &mut dyn Policy, prompt: &Prompt, played: &mut Played, room: usize) -> Result<(), OpError> {
    let session = match played.session {
        Some(session) => session,
        None => {
            let messages = scene(&played.game, |scene| match prompt.lacks(scene) {
                None => Ok(prompt.messages(scene)),
                Some(what) => Err(OpError::with_help(
                    format!("the environment `{}` does not say {what}, and the prompt tells them", scene.task.env),
                    "write `actions = \"none\"` in `prompt`",
                )),
            })?;
            // a first state that does not fit is a mistake in the settings; one that came of playing ends the game
            let first = played.game.turns.is_empty();
            let session = if first { open_with(policy, &messages, 0)? } else { begin(policy, &messages)? };
            played.session = Some(session);
            session
        }
    };
    let length = policy.tokens(session).zip(policy.positions());
    played.full = length.is_some_and(|(tokens, limit)| tokens + room + 1 >= limit);
    Ok(())
}

/// Asks for the next reply in every game that goes on.
fn ask(
    policy: &mut dyn Policy,
    p: &Params,
    games: &[Played],
    playing: &[usize],
    stream: &dyn Fn(usize) -> Rng,
    stopping: &dyn Fn() -> bool,
) -> Result<Vec<Answer>, OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    let mut allowed: Vec<Vec<String>> = vec![Vec::new(); playing.len()];
    if p.decoding == Decode::Admissible {
        for (allowed, i) in allowed.iter_mut().zip(playing) {
            let actions = games[*i].game.known_actions();
            if actions.is_empty() {
                return Err(OpError::with_help(
                    format!("the environment `{}` does not say which actions are admissible", p.world.name()),
                    "write `decoding = \"free\"`",
                ));
            }
            *allowed = actions.iter().map(|action| p.prompt.reply(None, action)).collect();
        }
    }
    let mut asks = Vec::with_capacity(playing.len());
    for (i, allowed) in playing.iter().zip(&allowed) {
        let Some(session) = games[*i].session else { panic!("BUG: a game is asked whose state was not put") };
        asks.push(Ask { session, allowed, sampling: &sampling, rng: stream(*i), keep: p.prompt.grows() });
    }
    policy.answer(&asks, stopping)
}

/// Does what a reply says. A reply that never ended, or that says no action, is no action, whatever is in it.
fn act(prompt: &Prompt, game: &mut Game, answer: &Answer, record: Record) -> Result<(), EnvError> {
    let said = answer.ended().and_then(|text| prompt.parse(text).ok());
    let action = said.map_or_else(String::new, |reply| reply.action.to_owned());
    let reply = (answer.text.trim() != action).then(|| answer.text.clone());
    game.step(action, reply, record)
}
