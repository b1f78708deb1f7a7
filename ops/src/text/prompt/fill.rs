//! Texts with placeholders: `{task}` is replaced, `{{` and `}}` are braces.
//!
//! Invariants: what is filled in is never read again, so nothing in an observation can become a placeholder; a line
//! whose placeholders are all empty is left out, with the blank lines behind it; a text whose placeholders were checked
//! always fills.

use std::borrow::Cow;

/// A piece of a line.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    Name(&'a str),
}

/// The pieces of a line, or what of it cannot be read.
fn pieces(line: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(at);
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        if from.starts_with("{{") || from.starts_with("}}") {
            pieces.push(Piece::Text(&from[..1]));
            rest = &from[2..];
            continue;
        }
        let end = from.find(|c: char| c != '{' && !c.is_ascii_alphanumeric() && c != '_');
        match end.filter(|end| from.starts_with('{') && *end > 1 && from[*end..].starts_with('}')) {
            Some(end) => {
                pieces.push(Piece::Name(&from[1..end]));
                rest = &from[end + 1..];
            }
            None => {
                return Err(format!("a `{}` stands alone, expected a placeholder such as `{{task}}`", &from[..1]));
            }
        }
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Ok(pieces)
}

/// Names of the placeholders of a text, in order.
///
/// # Errors
/// What of the text cannot be read.
pub(crate) fn names(text: &str) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    for line in text.split('\n') {
        names.extend(pieces(line)?.into_iter().filter_map(|piece| match piece {
            Piece::Name(name) => Some(name),
            Piece::Text(_) => None,
        }));
    }
    Ok(names)
}

/// The text with its placeholders filled in.
pub(crate) fn fill<'v>(text: &str, value: impl Fn(&str) -> Option<Cow<'v, str>>) -> String {
    let mut lines: Vec<String> = Vec::new();
    // the blank lines after a line that was left out
    let mut dropping = false;
    let mut dropped = false;
    for line in text.split('\n') {
        if dropping && line.is_empty() {
            continue;
        }
        dropping = false;
        let Ok(pieces) = pieces(line) else { panic!("BUG: the text `{line}` of a prompt was not checked") };
        let mut out = String::new();
        let (mut named, mut said) = (false, false);
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Name(name) => {
                    let Some(value) = value(name) else {
                        panic!("BUG: the placeholder `{name}` of a prompt was not checked")
                    };
                    named = true;
                    said |= !value.is_empty();
                    out.push_str(&value);
                }
            }
        }
        if named && !said {
            (dropping, dropped) = (true, true);
        } else {
            lines.push(out);
        }
    }
    if dropped {
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> String {
        fill(text, |name| match name {
            "a" => Some("A {b}".into()),
            "none" => Some("".into()),
            "two" => Some("1\n\n2\n".into()),
            _ => None,
        })
    }

    #[test]
    fn placeholders_are_replaced_once_and_empty_lines_go() {
        assert_eq!(filled("x {a} {{a}} }}{{"), "x A {b} {a} }{");
        assert_eq!(filled("{a}\n\nb: {none}\n\n\nc"), "A {b}\n\nc");
        assert_eq!(filled("{two}\n\n{none}"), "1\n\n2\n", "what is filled in stays as it is");
        assert_eq!(filled("{a}{none}\n"), "A {b}\n");
        assert_eq!(filled(""), "");
    }

    #[test]
    fn a_brace_that_is_no_placeholder_is_refused() {
        for bad in ["{", "}", "a { b", "{}", "{a b}", "{a", "a}", "{ä}", "{a}}"] {
            assert!(names(bad).is_err(), "{bad}");
        }
        assert_eq!(names("{{{a}}} {b_1}\n{c}"), Ok(vec!["a", "b_1", "c"]));
    }
}
