//! `rollout`: a policy plays tasks, many side by side; its episodes are saved.
//!
//! Each task has a random stream of its own, so an episode does not depend on which others are played beside it.

use actloom_engine::op::{Arity, Kind, Op, OpContext, OpError, Ports};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{self, EnvName, Filters, kept};
use crate::artifact::{self, Actor, Decoding, End, Episode, SCHEMA_VERSION, Turn};
use crate::env::{Env, Observation, household};
use crate::policy::{Ask, Finish, Policy, Session};
use crate::rng::Rng;

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
    #[serde(default)]
    pub env: EnvName,
    /// Settings of the environment.
    #[serde(default)]
    pub world: household::Settings,
    /// Which tasks: `id` in seen rooms, `ood` in unseen ones.
    pub split: household::Split,
    /// How many tasks are played.
    #[schemars(range(min = 1, max = 10000000))]
    pub tasks: usize,
    /// Longest episode, in steps.
    #[serde(default = "max_steps")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_steps: usize,
    /// 0 takes the likeliest token.
    #[serde(default = "temperature")]
    #[schemars(range(min = 0.0, max = 10.0))]
    pub temperature: f64,
    #[serde(default)]
    pub filters: Filters,
    #[serde(default)]
    pub decoding: Decode,
    /// Longest action, in tokens.
    #[serde(default = "max_tokens")]
    #[schemars(range(min = 1, max = 100000))]
    pub max_tokens: usize,
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

/// One game being played.
struct Game {
    world: household::Household,
    now: Observation,
    start: String,
    turns: Vec<Turn>,
    session: Session,
    full: bool,
}

/// The op.
pub struct Rollout;

/// Games that are played side by side.
const GAMES: usize = 96;

impl Op for Rollout {
    type Params = Params;
    const NAME: &'static str = "rollout";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "lets a policy play tasks and saves the episodes";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new().port("policy", &[Kind::MODEL, Kind::POLICY], Arity::One, "who plays").output(
            "episodes",
            Kind::EPISODES,
            "one episode a line",
        )
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let EnvName::Household = p.env;
        let mut policy = common::open_policy(ctx, ctx.input("policy"))?;
        let tasks = household::tasks(&p.world, p.split, p.tasks, ctx.seed("tasks"));
        let seed = ctx.seed("actions");
        let mut episodes: Vec<Episode> = Vec::with_capacity(tasks.len());
        for (chunk, tasks) in tasks.chunks(GAMES).enumerate() {
            let _span = tracing::debug_span!("games", chunk).entered();
            episodes.extend(kept(ctx, &format!("games-{chunk}"), || {
                let mut episodes = Vec::with_capacity(tasks.len());
                for some in tasks.chunks(policy.width()) {
                    episodes.extend(play(ctx, &mut *policy, p, some, chunk * GAMES + episodes.len(), seed)?);
                }
                Ok(episodes)
            })?);
            let won = episodes.iter().filter(|e| e.success).count();
            ctx.progress(
                episodes.len() as u64,
                p.tasks as u64,
                "episodes",
                format!("success {:.0} %", 100.0 * won as f64 / episodes.len() as f64),
            );
        }
        common::note_policy(ctx, &*policy);
        let crowded = episodes.iter().filter(|e| e.end == End::Context).count();
        if crowded > 0 {
            let (all, limit) = (episodes.len(), policy.positions().map_or_else(String::new, |n| format!("{n} ")));
            ctx.say(
                actloom_engine::event::Level::Warning,
                format!("{crowded} of {all} episodes ended early: their text filled the model's {limit}positions"),
            );
        }
        let n = episodes.len() as f64;
        ctx.metric(0, "success", episodes.iter().filter(|e| e.success).count() as f64 / n);
        ctx.metric(0, "steps", episodes.iter().map(|e| e.turns.len()).sum::<usize>() as f64 / n);
        artifact::write(ctx.output("episodes"), &episodes)
    }
}

/// Plays tasks side by side. `first` numbers them within the step, so that each has its own random stream.
fn play(
    ctx: &OpContext<'_>,
    policy: &mut dyn Policy,
    p: &Params,
    tasks: &[household::HouseholdTask],
    first: usize,
    seed: u64,
) -> Result<Vec<Episode>, OpError> {
    let sampling = p.filters.sampling(p.temperature, p.max_tokens);
    // 1. start the games
    let mut games = Vec::with_capacity(tasks.len());
    for task in tasks {
        let mut world = task.play();
        let now = world.reset();
        let session = policy.open();
        policy.user(session, &now.text)?;
        let start = now.text.clone();
        games.push(Game { world, now, start, turns: Vec::new(), session, full: false });
    }
    // 2. every game that goes on takes a step, all together
    for step in 0..p.max_steps {
        let mut playing: Vec<usize> = Vec::new();
        for (i, game) in games.iter_mut().enumerate() {
            if !game.now.done && !game.full {
                let length = policy.tokens(game.session).zip(policy.positions());
                if length.is_none_or(|(tokens, limit)| tokens + p.max_tokens + 1 < limit) {
                    playing.push(i);
                } else {
                    game.full = true;
                }
            }
        }
        if playing.is_empty() {
            break;
        }
        let allowed: Vec<Vec<String>> = match p.decoding {
            Decode::Free => vec![Vec::new(); playing.len()],
            Decode::Admissible => playing.iter().map(|i| games[*i].world.admissible()).collect(),
        };
        let asks: Vec<Ask<'_>> = playing
            .iter()
            .zip(&allowed)
            .map(|(i, allowed)| Ask {
                session: games[*i].session,
                allowed,
                sampling: &sampling,
                rng: Rng::at(seed, &[(first + i) as u64, step as u64]),
                keep: true,
            })
            .collect();
        for (i, answer) in playing.into_iter().zip(policy.answer(&asks, &|| ctx.stopping())?) {
            let game = &mut games[i];
            if answer.finish == Finish::Room {
                game.full = true;
                continue;
            }
            // a reply that never ended is no action, whatever it says
            let action = answer.ended().map_or_else(String::new, |text| text.trim().to_owned());
            let actions = game.world.admissible();
            let admissible = actions.contains(&action);
            game.now = game.world.step(&action);
            policy.user(game.session, &game.now.text)?;
            game.turns.push(Turn { action, admissible, observation: game.now.text.clone(), actions });
        }
    }
    // 3. write them down
    let mut episodes = Vec::with_capacity(games.len());
    for game in games {
        policy.close(game.session);
        episodes.push(Episode {
            v: SCHEMA_VERSION,
            task: game.world.problem().task().clone(),
            actor: Actor::Policy,
            decoding: Some(match p.decoding {
                Decode::Free => Decoding::Free,
                Decode::Admissible => Decoding::Admissible,
            }),
            start: game.start,
            turns: game.turns,
            success: game.now.won,
            score: game.now.score,
            end: match (game.now.done, game.full) {
                (true, _) => End::Done,
                (false, true) => End::Context,
                (false, false) => End::Limit,
            },
        });
    }
    Ok(episodes)
}
