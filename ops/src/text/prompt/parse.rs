//! Replies taken apart: reasoning, and the action that is said.
//!
//! 1. The reasoning is split off, where there may be one.
//! 2. The rest must be the action in its form, and nothing else.
//! 3. The action must be one line without marks.
//!
//! Invariants: an action is a contiguous piece of the reply, outside its reasoning; a mark at any place but its own
//! refuses the reply, in whatever case it is written; every reply is read a fixed number of times, whatever is in it.

use serde::{Deserialize, Serialize};

use super::{Answer, Thinking};
use crate::text::{THINK_CLOSE, THINK_OPEN};

/// Begins an action in the form `tag`.
pub const ACTION_OPEN: &str = "<action>";
/// Ends an action in the form `tag`.
pub const ACTION_CLOSE: &str = "</action>";
/// Begins the line of the action in the form `line`.
pub const ACTION_LINE: &str = "Action:";
/// Begins the reasoning in the form `line`.
pub const THOUGHT_LINE: &str = "Thought:";
/// The words that lines of the form `line` begin with; the last is the environment's to say.
const LABELS: [&str; 3] = ["thought", "action", "observation"];

/// Why a reply is no action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Malformed {
    /// Nothing is said where the action should be.
    Empty,
    /// Marks of reasoning or of the action are missing, doubled, nested or out of place.
    Marks,
    /// The action goes over more than one line.
    Lines,
    /// The reasoning that must come first is missing.
    Reasoning,
}

/// A reply taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    pub reasoning: Option<&'a str>,
    pub action: &'a str,
}

/// Whatever begins like this is a mark, in any case of its letters.
const THINK_MARKS: [&str; 2] = ["<think", "</think"];
const ACTION_MARKS: [&str; 2] = ["<action", "</action"];
/// How special tokens of chat templates begin.
const CONTROL_MARKS: [&str; 2] = ["<|", "<\u{ff5c}"];

/// Whether a text holds one of the marks.
fn holds(text: &str, marks: &[&str]) -> bool {
    let bytes = text.as_bytes();
    let begins = |at: usize| {
        let rest = &bytes[at..];
        marks.iter().any(|m| rest.len() >= m.len() && rest[..m.len()].eq_ignore_ascii_case(m.as_bytes()))
    };
    bytes.iter().enumerate().any(|(at, byte)| *byte == b'<' && begins(at))
}

/// Whether a line begins like this, in any case of its letters.
fn begins(line: &str, mark: &str) -> bool {
    let line = line.trim_start().as_bytes();
    line.len() >= mark.len() && line[..mark.len()].eq_ignore_ascii_case(mark.as_bytes())
}

/// Whatever a terminal or a tokenizer may take for a new line.
const BREAKS: [char; 7] = ['\n', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}'];

fn breaks(text: &str) -> bool {
    text.contains(BREAKS)
}

/// Letters of full width as plain ones.
fn plain(c: char) -> char {
    let narrow = u32::from(c).wrapping_sub(0xfee0);
    if (0x21..=0x7e).contains(&narrow) { char::from_u32(narrow).unwrap_or(c) } else { c }
}

/// Whatever may be taken for a colon.
fn is_colon(c: char) -> bool {
    matches!(
        plain(c),
        ':' | '\u{2d0}'
            | '\u{2f8}'
            | '\u{589}'
            | '\u{5c3}'
            | '\u{2236}'
            | '\u{a789}'
            | '\u{fe13}'
            | '\u{fe30}'
            | '\u{fe55}'
    )
}

/// Letters that nothing shows of.
fn is_blank(c: char) -> bool {
    matches!(c, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}')
}

/// Whether there is a letter or a digit in a text.
pub(crate) fn says_something(text: &str) -> bool {
    text.chars().any(|c| c.is_alphanumeric() && !is_blank(c))
}

/// The label that a line begins with, however it is dressed up: quoted, numbered, in other letters, with another colon.
fn label(line: &str) -> Option<&'static str> {
    let is_letter = |c: &char| c.is_alphabetic() && !is_blank(*c) && !is_colon(*c);
    let mut word = String::new();
    let mut chars = line.chars().skip_while(|c| !is_letter(c));
    for c in chars.by_ref() {
        if is_letter(&c) {
            word.push(plain(c).to_ascii_lowercase());
            if word.len() > "observation".len() {
                return None;
            }
        } else if is_colon(c) {
            return LABELS.into_iter().find(|label| *label == word);
        } else if LABELS.contains(&word.as_str()) {
            // `Action 2:`, `**Action**:`
            let colon = chars.find(|c| is_letter(c) || is_colon(*c)).is_some_and(is_colon);
            return LABELS.into_iter().find(|label| colon && *label == word);
        } else if c.is_whitespace() || c.is_ascii() {
            return None;
        }
    }
    None
}

/// Whether a line of a reasoning begins like one of the form's own.
fn labelled(text: &str, labels: &[&str]) -> bool {
    text.split(BREAKS).filter_map(label).any(|found| labels.contains(&found))
}

/// The reasoning between marks at the beginning, and the rest.
fn split(thinking: Thinking, reply: &str) -> Result<(Option<&str>, &str), Malformed> {
    let open = match thinking {
        Thinking::None => None,
        Thinking::Opened => Some(reply),
        Thinking::Optional | Thinking::Required => reply.strip_prefix(THINK_OPEN),
    };
    match open {
        None => Ok((None, reply)),
        Some(inner) => {
            let (reasoning, rest) = inner.split_once(THINK_CLOSE).ok_or(Malformed::Marks)?;
            Ok((Some(reasoning), rest.trim()))
        }
    }
}

/// The reasoning and the action of the form `line`: the last line is the action's, all before it is one thought.
fn lines(thinking: Thinking, rest: &str) -> Result<(Option<&str>, &str), Malformed> {
    let mut action = None;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        if begins(line, ACTION_LINE) {
            if action.is_some() || !line[indent..].starts_with(ACTION_LINE) {
                return Err(Malformed::Marks);
            }
            action = Some((at, at + indent + ACTION_LINE.len()));
        } else if action.is_some() || (begins(line, THOUGHT_LINE) && at > 0) {
            // `rest` has no blank end, so something is said after the action
            return Err(Malformed::Marks);
        }
        at += line.len();
    }
    let (start, said) = action.ok_or(Malformed::Marks)?;
    let before = rest[..start].trim();
    let thought = match before.strip_prefix(THOUGHT_LINE) {
        Some(thought) if thinking != Thinking::None => Some(thought.trim()),
        None if before.is_empty() => None,
        _ => return Err(Malformed::Marks),
    };
    let action = rest[said..].trim();
    // what was said before the mark, too: `Thought: Action: a`
    if label(action).is_some() || thought.is_some_and(|thought| labelled(thought, &LABELS)) {
        return Err(Malformed::Marks);
    }
    Ok((thought, action))
}

/// Takes a reply apart.
pub(super) fn parse(answer: Answer, thinking: Thinking, reply: &str) -> Result<Reply<'_>, Malformed> {
    let reply = reply.trim();
    if reply.is_empty() {
        return Err(Malformed::Empty);
    }
    if answer == Answer::Bare && thinking == Thinking::None {
        return Ok(Reply { reasoning: None, action: reply });
    }
    // 1. the reasoning
    let (mut reasoning, rest) = split(thinking, reply)?;
    // 2. the rest, in its form
    let action = match answer {
        Answer::Bare => rest,
        Answer::Tag => {
            let inner = rest.strip_prefix(ACTION_OPEN).ok_or(Malformed::Marks)?;
            inner.strip_suffix(ACTION_CLOSE).ok_or(Malformed::Marks)?.trim()
        }
        Answer::Line if reasoning.is_some_and(|text| labelled(text, &LABELS[1..])) => return Err(Malformed::Marks),
        Answer::Line if reasoning.is_some() => lines(Thinking::None, rest)?.1,
        Answer::Line => {
            let (thought, action) = lines(thinking, rest)?;
            reasoning = thought;
            action
        }
    };
    // 3. no mark is left anywhere
    let actions: &[&str] = if answer == Answer::Tag { &ACTION_MARKS } else { &[] };
    let marked = |text: &str| [&THINK_MARKS[..], actions, &CONTROL_MARKS].iter().any(|marks| holds(text, marks));
    if marked(action) || reasoning.is_some_and(marked) {
        return Err(Malformed::Marks);
    }
    if action.is_empty() {
        return Err(Malformed::Empty);
    }
    if breaks(action) {
        return Err(Malformed::Lines);
    }
    if thinking == Thinking::Required && !reasoning.is_some_and(says_something) {
        return Err(Malformed::Reasoning);
    }
    Ok(Reply { reasoning, action })
}

/// Writes a reply that [`parse`] reads back.
pub(super) fn write(answer: Answer, thinking: Thinking, reasoning: Option<&str>, action: &str) -> String {
    let between = if answer == Answer::Bare { "" } else { "\n" };
    let thought = match (thinking, reasoning) {
        (Thinking::None, _) | (_, None) => String::new(),
        (Thinking::Opened, Some(text)) => format!("{text}{THINK_CLOSE}{between}"),
        (_, Some(text)) if answer == Answer::Line => format!("{THOUGHT_LINE} {text}\n"),
        (_, Some(text)) => format!("{THINK_OPEN}{text}{THINK_CLOSE}{between}"),
    };
    match answer {
        Answer::Bare => thought + action,
        Answer::Tag => format!("{thought}{ACTION_OPEN}{action}{ACTION_CLOSE}"),
        Answer::Line => format!("{thought}{ACTION_LINE} {action}"),
    }
}
