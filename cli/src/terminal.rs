//! The only way to stdout and stderr.
//!
//! Invariants: stdout gets data, stderr talk; escape sequences are written freely and stripped where they do not belong
//! (no terminal, NO_COLOR, `--color never`); a reader that went away ends the printing, not the work; data that could not
//! be written for any other reason is remembered, and the program fails at its end.

use std::io::{Error, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

/// Why data did not reach stdout.
static LOST: OnceLock<Error> = OnceLock::new();

/// Whether the reader of stdout went away.
static GONE: AtomicBool = AtomicBool::new(false);

/// Writes data, whole, with a newline at the end.
pub fn out(text: &str) {
    note(write(&mut anstream::stdout(), text));
}

/// Writes a part of a text at once, as it is: what a model says is data, escape sequences and all.
pub fn out_part(text: &str) {
    let mut stream = std::io::stdout();
    note(stream.write_all(text.as_bytes()).and_then(|()| stream.flush()));
}

fn note(written: std::io::Result<()>) {
    match written {
        // `actloom cache ls | head` closes the pipe early; there is nobody left to tell.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => GONE.store(true, Ordering::Relaxed),
        Err(error) => drop(LOST.set(error)),
        Ok(()) => {}
    }
}

/// Whether nobody reads stdout any more, for those who would go on for ever.
pub fn gone() -> bool {
    GONE.load(Ordering::Relaxed)
}

/// The first error of stdout, a closed pipe excepted.
pub fn lost() -> Option<&'static Error> {
    LOST.get()
}

/// Writes a value as one line of JSON; nothing is stripped from it, for its texts are data.
pub fn out_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(line) => out_part(&(line + "\n")),
        Err(error) => panic!("BUG: what is to be printed is no JSON: {error}"),
    }
}

/// Writes data as JSON or, where that was not asked for, as text.
pub fn out_either(as_json: bool, value: &impl Serialize, text: impl FnOnce() -> String) {
    if as_json {
        out_json(value);
    } else {
        out(&text());
    }
}

/// Talks to the person at the terminal.
pub fn say(text: &str) {
    // Where talk cannot be heard there is no place to say so.
    let _ = write(&mut anstream::stderr(), text);
}

/// The text as stderr takes it, for those who write there by another way.
pub fn painted(text: &str) -> String {
    match anstream::AutoStream::choice(&std::io::stderr()) {
        anstream::ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// Whether somebody watches stderr.
pub fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

fn write(stream: &mut impl Write, text: &str) -> std::io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    stream.write_all(format!("{text}{newline}").as_bytes())?;
    stream.flush()
}
