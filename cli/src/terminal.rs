//! The only way to stdout and stderr.
//!
//! Invariants: stdout gets data, stderr talk; escape sequences are written freely and stripped where they do not belong
//! (no terminal, NO_COLOR, `--color never`); a reader that went away ends the printing, not the work.

use std::io::{IsTerminal, Write};

use serde::Serialize;

/// Writes data, whole, with a newline at the end.
pub fn out(text: &str) {
    write(&mut anstream::stdout(), text);
}

/// Writes a value as one line of JSON.
pub fn out_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(line) => out(&line),
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
    write(&mut anstream::stderr(), text);
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

fn write(stream: &mut impl Write, text: &str) {
    if text.is_empty() {
        return;
    }
    // `actloom cache ls | head` closes the pipe early; there is nobody left to tell.
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let _ = stream.write_all(format!("{text}{newline}").as_bytes()).and_then(|()| stream.flush());
}
