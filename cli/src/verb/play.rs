//! `actloom play`: a person plays a task line by line, or watches a model play it.
//!
//! Invariants: stdout gets what the environment and the model say, and where the game stands; marks and hints go to
//! stderr, and only where a person sits at both ends. In a pipe the game runs to its end and a line that asks for nothing
//! is an error. Ctrl-C and SIGTERM end the game, and what was played is still written down; a second one ends the program.
//! So does a reader of stdout that went away, or cannot be written to.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use actloom_engine::op::OpError;
use actloom_ops::artifact::End;
use actloom_ops::tool::play::{self, Asked, Event, Face, Model, Wrong, line};
use owo_colors::OwoColorize;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::{Global, Play};
use crate::exit::{Exit, Failure};
use crate::terminal::{gone, is_watched, lost, out, out_json, painted, say};
use crate::text::counted;

pub fn run(args: &Play, global: &Global) -> Result<Exit, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, Exit::Interrupted as i32, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    if let Some(path) = &args.out {
        // before an hour is played: can it be added to at all?
        play::fits(path)?;
    }
    let opened = asked(args).open()?;
    let person = std::io::stdin().is_terminal() && is_watched();
    if person && args.model.is_some() {
        say("Enter plays the next step, Ctrl-D ends");
    } else if person {
        say("/help lists commands, Ctrl-D ends");
    }
    let reads = person || args.model.is_none();
    let mut front = Front { json: global.json, person, lines: reads.then(lines), read: 0, unreadable: None, stop };
    let (episode, mistake) = if args.model.is_some() {
        (play::watch(opened, &mut front)?.0, None)
    } else {
        play::person(opened, &mut front)?
    };
    if let Some(path) = &args.out {
        if episode.turns.is_empty() {
            say("nothing was played, so nothing is written");
        } else {
            play::append(path, &episode)?;
            say(&format!("{} of `{}` in `{path}`", counted(episode.turns.len(), "step"), episode.task.id));
        }
    }
    match mistake.or(front.unreadable.take()) {
        Some(message) => Err(Failure::usage(message, "a line is an action, its number, or a command")),
        None if front.stop.load(Ordering::Relaxed) => Ok(Exit::Interrupted),
        None => Ok(Exit::Done),
    }
}

fn asked(args: &Play) -> Asked {
    let model = args.model.as_ref().map(|path| Model {
        path: path.clone(),
        device: args.device,
        prompt: args.prompt_set.clone(),
        temperature: args.temperature,
        max_tokens: args.max_tokens.map(|n| n as usize),
        decoding: args.decoding.clone(),
    });
    Asked {
        env: args.env.clone(),
        task: args.task.clone(),
        split: args.split.clone(),
        data: args.data.clone(),
        seed: args.seed,
        set: args.set.clone(),
        max_steps: args.max_steps.map(|n| n as usize),
        model,
    }
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Failure {
        match wrong {
            Wrong::Asked { message, help } => Failure::Plain { exit: Exit::Usage, message, help },
            Wrong::World(error) => error.into(),
        }
    }
}

/// Longest line of stdin, in bytes.
const LONGEST: u64 = 1 << 20;

/// Lines of stdin, with their ends, from a thread of their own, so that Ctrl-C is heard while one is waited for.
fn lines() -> Receiver<std::io::Result<Vec<u8>>> {
    let (send, lines) = sync_channel(1);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = stdin.by_ref().take(LONGEST).read_until(b'\n', &mut line).map(|_| line);
            // nothing is the end of the input, and after an error there is no more
            let end = read.as_ref().is_ok_and(Vec::is_empty);
            let last = read.is_err();
            if end || send.send(read).is_err() || last {
                break;
            }
        }
    });
    lines
}

/// The terminal, or the two ends of a pipe.
struct Front {
    json: bool,
    /// Somebody sits at both ends.
    person: bool,
    lines: Option<Receiver<std::io::Result<Vec<u8>>>>,
    /// Lines that were read.
    read: usize,
    /// What was wrong with the last one, if that ended the game.
    unreadable: Option<String>,
    stop: Arc<AtomicBool>,
}

impl Front {
    fn read(&mut self, mark: &str) -> Result<Option<String>, OpError> {
        // whoever nobody listens to says nothing more, be there lines for ever
        if self.stopping() {
            return Ok(None);
        }
        if self.person {
            // Where the mark cannot be written there is no place to say so.
            let _ = write!(std::io::stderr(), "{}", painted(&mark.bold().to_string()));
        }
        let Some(lines) = &self.lines else { return Ok(None) };
        let line = loop {
            match lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => break line?,
                Err(RecvTimeoutError::Timeout) if !self.stopping() => {}
                Err(_) => return Ok(None),
            }
        };
        self.read += 1;
        let wrong = match String::from_utf8(line) {
            Ok(line) if line.len() as u64 == LONGEST && !line.ends_with('\n') => {
                format!("line {} of stdin is longer than {LONGEST} bytes, expected an action or a command", self.read)
            }
            Ok(line) => return Ok(Some(line)),
            Err(_) => format!("line {} of stdin is not UTF-8, expected an action or a command", self.read),
        };
        if self.person {
            say(&wrong);
            return Ok(Some(String::new()));
        }
        self.unreadable = Some(wrong);
        Ok(None)
    }
}

impl Face for Front {
    fn line(&mut self) -> Result<Option<String>, OpError> {
        self.read("> ")
    }

    fn show(&mut self, event: &Event) {
        match event {
            // those who are not patient are told at the end
            Event::Mistake { message } if self.person => say(message),
            Event::Mistake { .. } => {}
            event if self.json => out_json(event),
            Event::Help => say(line::HELP),
            event => out(&text(event)),
        }
    }

    fn wait(&mut self) -> Result<bool, OpError> {
        Ok(!self.person || self.read("[Enter]")?.is_some_and(|line| !["/quit", "/exit"].contains(&line.trim())))
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || lost().is_some() || gone()
    }

    fn patient(&self) -> bool {
        self.person
    }
}

/// An event as people read it.
fn text(event: &Event) -> String {
    match event {
        Event::Start { task, observation } => {
            let kind = if task.kind.is_empty() { String::new() } else { format!(", {}", task.kind) };
            format!("{}\n{observation}", format!("{} {}{kind}", task.env, task.id).dimmed())
        }
        Event::Reply { text, reasoning, refused } => {
            let thought = reasoning.as_deref().unwrap_or_default();
            let said = if refused.is_some() { text } else { thought };
            let lines: Vec<String> = said.lines().map(|line| line.dimmed().to_string()).collect();
            let why = refused.as_ref().map(|why| format!("(no action: {why})").red().to_string());
            lines.into_iter().chain(why).collect::<Vec<_>>().join("\n")
        }
        Event::Step { step, action, valid, observation, reward, score, .. } => {
            let refused = if *valid == Some(false) { ", not admissible" } else { "" };
            let stands = format!("step {step}: reward {reward}, score {score}{refused}").dimmed().to_string();
            format!("{} {}\n{observation}\n{stands}", ">".bold(), action.bold())
        }
        Event::Undone { step, observation, score } => {
            format!("{observation}\n{}", format!("step {step} again: score {score}").dimmed())
        }
        Event::Actions { actions: None, .. } => "the environment does not say what is possible".to_owned(),
        Event::Actions { of: 0, .. } => "no such action is possible now".to_owned(),
        Event::Actions { actions: Some(actions), of, page, pages } => {
            let rows = actions.iter().map(|(number, action)| format!("{:>4} {action}", number.dimmed()));
            let more = (*pages > 1).then(|| format!("page {page} of {pages}, {}", counted(*of, "action")));
            rows.chain(more.map(|more| more.dimmed().to_string())).collect::<Vec<_>>().join("\n")
        }
        Event::Hint { action: Some(action), .. } => format!("hint: {action}"),
        Event::Hint { why: Some(why), .. } => format!("hint: {why}"),
        Event::Hint { .. } => "hint: the expert has nothing to do".to_owned(),
        Event::Over { won, score, steps, end } => {
            let how = match (won, end) {
                (true, _) => "won".green().bold().to_string(),
                (false, End::Done) => "ended without success".red().bold().to_string(),
                // `--max-steps` may allow more
                (false, End::Limit) => format!("{} (`--max-steps`)", "out of steps".red().bold()),
                (false, End::Context) => "the text fills the model's context".red().bold().to_string(),
            };
            format!("{how}: {}, score {score}", counted(*steps, "step"))
        }
        Event::Help | Event::Mistake { .. } => String::new(),
    }
}
