//! `actloom chat`: a person tries a model, line by line.
//!
//! Invariants: stdout gets the answers as they come, each ended by a newline; marks, hints and speeds go to stderr, marks
//! and speeds only where a person sits at both ends; Ctrl-C ends the answer, not the program.

use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use actloom_ops::tool::generate::End;
use actloom_ops::tool::talk::{Answer, Talk};
use owo_colors::OwoColorize;

use super::model::source;
use super::model_generate::sampling;
use crate::args::Chat;
use crate::exit::{Exit, Failure};
use crate::terminal::{is_watched, lost, out_part, painted, say};
use crate::text;

const HELP: &str = "\
/reset        forget the conversation
/system TEXT  begin a new one under this system text; without TEXT under none
/help         this
/quit         end; so does Ctrl-D
Ctrl-C ends an answer, not the program";

pub fn run(args: &Chat) -> Result<Exit, Failure> {
    let person = std::io::stdin().is_terminal() && is_watched();
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&stop))?;
    let sampling = sampling(&args.sampling, args.max_tokens);
    let mut talk = Talk::open(&source(&args.source), args.system.as_deref(), sampling, args.sampling.seed)?;
    if !talk.has_template() {
        say("the model has no chat template: what you write is continued as plain text");
        if args.system.is_some() {
            return Err(Failure::usage("a system text needs a chat template", "leave `--system` out"));
        }
    }
    if person {
        say("/help lists commands, Ctrl-D ends");
    }
    let mut failed = None;
    let mut input = std::io::stdin().lock();
    while let Some(line) = line(&mut input, person, &stop)? {
        match command(line.trim()) {
            Command::Quit => break,
            Command::Nothing => {}
            Command::Help => say(HELP),
            Command::Reset => {
                talk.reset();
                say("forgotten");
            }
            Command::System(_) if !talk.has_template() => say("a system text needs a chat template"),
            Command::System(text) => {
                talk.restart(text);
                say("a new conversation");
            }
            Command::Unknown(word) => say(&format!("`{word}` is no command; /help lists them")),
            Command::Say => match answer(&mut talk, &line, &stop, person) {
                Ok(()) => {}
                // A person goes on; a script has to know.
                Err(error) if person => error.tell(false),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            },
        }
        if lost().is_some() {
            break;
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Exit::Done),
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Command<'a> {
    Say,
    Reset,
    System(Option<&'a str>),
    Help,
    Quit,
    Nothing,
    Unknown(&'a str),
}

fn command(line: &str) -> Command<'_> {
    if line.is_empty() {
        return Command::Nothing;
    }
    if !line.starts_with('/') {
        return Command::Say;
    }
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    match (word, rest) {
        ("/reset", "") => Command::Reset,
        ("/system", "") => Command::System(None),
        ("/system", text) => Command::System(Some(text)),
        ("/help", "") => Command::Help,
        ("/quit" | "/exit", "") => Command::Quit,
        _ => Command::Unknown(line),
    }
}

/// The next line without its newline; `None` at the end of the input.
fn line(input: &mut impl BufRead, person: bool, stop: &AtomicBool) -> Result<Option<String>, Failure> {
    if person {
        // Where the mark cannot be written there is no place to say so.
        let _ = write!(std::io::stderr(), "{}", painted(&"> ".bold().to_string()));
    }
    let mut line = String::new();
    let read = input.read_line(&mut line)?;
    // a Ctrl-C at the mark ends nothing
    stop.store(false, Ordering::Relaxed);
    if read == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
}

fn answer(talk: &mut Talk, line: &str, stop: &AtomicBool, person: bool) -> Result<(), Failure> {
    let clock = Instant::now();
    let mut first = None;
    let mut ended = false;
    let spoken = talk.say(line, &|| stop.load(Ordering::Relaxed) || lost().is_some(), &mut |piece| {
        first.get_or_insert_with(|| clock.elapsed());
        if !piece.is_empty() {
            out_part(piece);
            ended = piece.ends_with('\n');
        }
    });
    if first.is_some() && !ended {
        out_part("\n");
    }
    let Answer { end, prompt, reused, sampled, .. } = spoken?;
    if end == End::Length || end == End::Context || end == End::Interrupted {
        let why = match end {
            End::Length => "cut at --max-tokens",
            End::Context => "cut: the model takes no longer conversation; /reset forgets this one",
            _ => "stopped",
        };
        say(&format!("({why})").dimmed().to_string());
    }
    if person {
        let (wait, took) = (first.unwrap_or_default(), clock.elapsed());
        // the first token's time is the prompt's
        let speed = (sampled.max(1) - 1) as f64 / (took - wait).as_secs_f64().max(1e-9);
        let read = prompt - reused;
        say(&format!(
            "({}, {} tok/s; {} read in {})",
            text::counted(sampled, "token"),
            text::count(speed),
            text::counted(read, "token"),
            text::duration(wait)
        )
        .dimmed()
        .to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_unless_they_begin_with_a_slash() {
        assert_eq!(command("hello /reset"), Command::Say);
        assert_eq!(command("/reset"), Command::Reset);
        assert_eq!(command("/system be brief"), Command::System(Some("be brief")));
        assert_eq!(command("/system"), Command::System(None));
        assert_eq!(command("/rest"), Command::Unknown("/rest"));
        assert_eq!((command(""), command("/quit")), (Command::Nothing, Command::Quit));
    }
}
