//! `actloom play`: one game, played by a person or by a policy, without a terminal.
//!
//! 1. [`Asked::open`]: settings as recipes have them, a world, one of its tasks.
//! 2. [`person`]: lines are actions or commands ([`line`]). [`watch`]: a policy acts.
//! 3. Whatever happens is an [`Event`]; [`Face`] shows it and brings the lines.
//!
//! Invariants: a policy plays as in `rollout` with the same seed, parameters and number of the task; taking an action
//! back leaves no trace in the episode; what was played can be written down at any moment.

pub mod line;
mod open;
mod out;

use std::collections::VecDeque;

use actloom_engine::op::OpError;
use serde::Serialize;

use self::line::{Line, page};
use crate::artifact::{Actor, End, Episode, SCHEMA_VERSION, Task};
use crate::env::{Observation, Snapshot};
use crate::op::rollout::{Clock, Played, advance};
use crate::op::worlds::{Game, Record};
use crate::policy::{self, Finish};
use crate::rng::Rng;
pub use open::{Asked, Model, Opened, Wrong};
pub use out::{append, fits};

/// Longest game of a person, in steps, where nothing else was asked for.
pub const STEPS: usize = 1000;

/// Actions that can be taken back one by one.
pub const UNDO: usize = 100;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A game begins, for the first time or again.
    Start { task: Task, observation: String },
    /// A policy spoke. `reasoning` is what it thought first, `refused` why it says no action.
    Reply { text: String, reasoning: Option<String>, refused: Option<String> },
    /// An action was taken.
    Step {
        step: usize,
        action: String,
        /// Whether the environment took it for one of its own; null where it does not say.
        valid: Option<bool>,
        observation: String,
        reward: f64,
        score: f64,
        done: bool,
        won: bool,
    },
    /// The last action was taken back.
    Undone { step: usize, observation: String, score: f64 },
    /// Actions that are possible now, by number from 1; null where the environment does not say.
    Actions { actions: Option<Vec<(usize, String)>>, of: usize, page: usize, pages: usize },
    /// What the expert would do.
    Hint {
        action: Option<String>,
        /// Why there is none, where that is not the end of the task.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// What can be said.
    Help,
    /// A line that asks for nothing that can be done.
    Mistake { message: String },
    /// The game is over.
    Over { won: bool, score: f64, steps: usize, end: End },
}

/// Whoever sits in front: shows what happens and brings lines.
pub trait Face {
    /// The next line; `None` at the end of the input, or when the person wants to stop.
    ///
    /// # Errors
    /// The stream's.
    fn line(&mut self) -> Result<Option<String>, OpError>;

    fn show(&mut self, event: &Event);

    /// Waits until the person wants to see the next step of a policy; `false` ends it.
    ///
    /// # Errors
    /// The stream's.
    fn wait(&mut self) -> Result<bool, OpError>;

    /// The person wants to stop.
    fn stopping(&self) -> bool;

    /// Lists are shown in pages, mistakes are forgiven, and a game that is over can be taken up again.
    fn patient(&self) -> bool;
}

/// A game that a person plays.
struct Table {
    game: Game,
    /// The state before the first turn.
    start: (Snapshot, Observation),
    /// The states before each of the last turns, no more than [`UNDO`].
    past: VecDeque<(Snapshot, Observation)>,
    most: usize,
}

impl Table {
    fn over(&self) -> bool {
        self.game.now.done || self.game.turns.len() >= self.most
    }
}

/// Lets a person play; what was played, and the first mistake of a face that is not patient.
///
/// # Errors
/// The world's and the face's.
pub fn person(opened: Opened, face: &mut dyn Face) -> Result<(Episode, Option<String>), OpError> {
    let game = Game::begin(opened.env)?;
    face.show(&Event::Start { task: game.env.task().clone(), observation: game.start.clone() });
    let start = (game.env.snapshot(), game.now.clone());
    let mut table = Table { game, start, past: VecDeque::new(), most: opened.most.unwrap_or(STEPS) };
    let mut mistake = None;
    while face.patient() || !table.over() {
        let Some(line) = face.line()? else { break };
        match answer(&mut table, &line, face)? {
            Answered::Quit => break,
            Answered::Mistake(message) => {
                face.show(&Event::Mistake { message: message.clone() });
                if !face.patient() {
                    mistake = Some(message);
                    break;
                }
            }
            Answered::Done => {}
        }
    }
    let Table { game, .. } = table;
    let episode = Episode {
        v: SCHEMA_VERSION,
        task: game.env.task().clone(),
        // a person's play is a demonstration
        actor: Actor::Expert,
        decoding: None,
        end: if game.now.done { End::Done } else { End::Limit },
        start: game.start,
        turns: game.turns,
        success: game.now.won,
        score: game.now.score,
    };
    Ok((episode, mistake))
}

enum Answered {
    Done,
    Quit,
    Mistake(String),
}

fn answer(table: &mut Table, line: &str, face: &mut dyn Face) -> Result<Answered, OpError> {
    match Line::read(line) {
        Line::Nothing => {}
        Line::Quit => return Ok(Answered::Quit),
        Line::Help => face.show(&Event::Help),
        Line::Unknown(word) => {
            return Ok(Answered::Mistake(format!(
                "`{word}` is no command; `/help` lists them, `/do TEXT` says anything"
            )));
        }
        Line::Unfit(line, expected) => {
            let word = line.split_whitespace().next().unwrap_or_default();
            return Ok(Answered::Mistake(format!("`{line}` cannot be, expected {expected} after `{word}`")));
        }
        Line::Actions { filter, number } => {
            let paged = face.patient();
            let actions = table.game.actions()?;
            let event = match page(actions, filter, number, paged) {
                _ if actions.is_empty() => Event::Actions { actions: None, of: 0, page: 1, pages: 1 },
                Ok((shown, of, pages)) => Event::Actions { actions: Some(shown), of, page: number, pages },
                Err(message) => return Ok(Answered::Mistake(message)),
            };
            face.show(&event);
        }
        Line::Hint => {
            let done = table.game.now.done;
            let action = if done { None } else { table.game.env.expert()? };
            let why = if action.is_none() && !done { lost(&table.game.env.task().env) } else { None };
            face.show(&Event::Hint { action, why: why.map(str::to_owned) });
        }
        Line::Undo => {
            let Some((before, now)) = table.past.pop_back() else {
                return Ok(Answered::Mistake(match table.game.turns.len() {
                    0 => "there is no action to take back".to_owned(),
                    _ => format!("only the last {UNDO} actions can be taken back; `/restart` takes back all"),
                }));
            };
            table.game.back(&before, now)?;
            let Observation { text, score, .. } = table.game.now.clone();
            face.show(&Event::Undone { step: table.game.turns.len(), observation: text, score });
        }
        Line::Restart => {
            if !table.game.turns.is_empty() {
                table.game.back(&table.start.0, table.start.1.clone())?;
                table.game.turns.clear();
                table.past.clear();
            }
            let task = table.game.env.task().clone();
            face.show(&Event::Start { task, observation: table.game.start.clone() });
        }
        Line::Number(number) => {
            let actions = table.game.actions()?;
            let text = number.to_string();
            let action = match actions.get(number.wrapping_sub(1)) {
                // an environment may ask for a number, or not say what is possible
                _ if actions.is_empty() || actions.contains(&text) => text,
                Some(action) => action.clone(),
                None => {
                    let most = actions.len();
                    return Ok(Answered::Mistake(format!("there is no action {number}, expected 1 to {most}")));
                }
            };
            return act(table, action, face);
        }
        Line::Action(action) => return act(table, action.to_owned(), face),
    }
    Ok(Answered::Done)
}

fn act(table: &mut Table, action: String, face: &mut dyn Face) -> Result<Answered, OpError> {
    if table.over() {
        return Ok(Answered::Mistake("the game is over; `/undo`, `/restart` or `/quit`".to_owned()));
    }
    if table.game.env.task().env == "webshop" && action.contains(QUERY) {
        return Ok(Answered::Mistake(format!("`{QUERY}` stands for words of yours: type `search[words]`")));
    }
    table.past.push_back((table.game.env.snapshot(), table.game.now.clone()));
    if table.past.len() > UNDO {
        table.past.pop_front();
    }
    table.game.step(action, None, Record::Always)?;
    face.show(&stepped(&table.game));
    if table.over() {
        face.show(&over(&table.game, if table.game.now.done { End::Done } else { End::Limit }));
    }
    Ok(Answered::Done)
}

/// What WebShop's list of actions has in the place of a query.
const QUERY: &str = "<your query>";

/// Why an expert of an environment has nothing to say before the end.
fn lost(env: &str) -> Option<&'static str> {
    // it knows one way, from the beginning
    (env == "scienceworld").then_some("the gold path was left, or ends here; `/undo` or `/restart` lead back to it")
}

fn stepped(game: &Game) -> Event {
    let Observation { text, reward, score, done, won, .. } = game.now.clone();
    let (action, valid) = game.turns.last().map(|turn| (turn.action.clone(), turn.admissible)).unwrap_or_default();
    Event::Step { step: game.turns.len(), action, valid, observation: text, reward, score, done, won }
}

fn over(game: &Game, end: End) -> Event {
    Event::Over { won: game.now.won, score: game.now.score, steps: game.turns.len(), end }
}

/// Lets a policy play while somebody watches; what was played, and whether it was stopped before its end.
///
/// # Errors
/// The world's, the policy's and the face's.
pub fn watch(opened: Opened, face: &mut dyn Face) -> Result<(Episode, bool), OpError> {
    let Some(player) = opened.player else { panic!("BUG: nobody is there to be watched") };
    let params = player.params;
    let mut policy = policy::open(&player.path, player.device)?;
    policy.set(&params.prompt.variables())?;
    let mut games = [Played::new(Game::begin(opened.env)?)];
    let game = &games[0].game;
    face.show(&Event::Start { task: game.env.task().clone(), observation: game.start.clone() });
    let (mut clock, mut stopped) = (Clock::default(), false);
    for step in 0..params.max_steps {
        if games[0].game.now.done || games[0].full {
            break;
        }
        if face.stopping() || !face.wait()? {
            stopped = true;
            break;
        }
        let stream = |_: usize| Rng::at(player.seed, &[opened.index as u64, step as u64]);
        let answers = match advance(&mut *policy, &params, &mut games, &stream, &|| face.stopping(), &mut clock) {
            Err(OpError::Interrupted) => {
                stopped = true;
                break;
            }
            answers => answers?,
        };
        let Some(replied) = answers.into_iter().next().filter(|_| !games[0].full) else { break };
        face.show(&reply(&params.prompt, &replied.answer));
        face.show(&stepped(&games[0].game));
    }
    if !stopped {
        let end = match (games[0].game.now.done, games[0].full) {
            (true, _) => End::Done,
            (false, true) => End::Context,
            (false, false) => End::Limit,
        };
        face.show(&over(&games[0].game, end));
    }
    let [played] = games;
    Ok((played.episode(&mut *policy, params.decoding), stopped))
}

fn reply(prompt: &crate::text::Prompt, answer: &policy::Answer) -> Event {
    let text = answer.text.clone();
    let (reasoning, refused) = match answer.ended().map(|said| prompt.parse(said)) {
        Some(Ok(reply)) => (reply.reasoning.map(|thought| thought.trim().to_owned()), None),
        Some(Err(why)) => {
            let why = serde_json::to_value(why).ok().and_then(|why| why.as_str().map(str::to_owned));
            (None, Some(why.unwrap_or_default()))
        }
        None => (None, Some(if answer.finish == Finish::Length { "cut" } else { "unended" }.to_owned())),
    };
    Event::Reply { text, reasoning, refused }
}

#[cfg(test)]
mod tests;
