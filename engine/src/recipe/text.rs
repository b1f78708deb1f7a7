//! TOML text to tables with places.
//!
//! Invariants: every syntax error of a text is reported, not only the first; a duplicate names both places.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::{Data, Key, Table, Value, span};
use crate::diagnostic::Diagnostic;
use crate::source::SourceId;

/// What a text says, and what is wrong with it.
pub(super) struct Read {
    /// As far as it could be read.
    pub root: Table,
    /// It is no TOML.
    pub syntax: Vec<Diagnostic>,
    /// Numbers that are TOML and nothing this program can hold; something harmless stands in their place.
    pub numbers: Vec<Diagnostic>,
}

/// Reads a whole text.
pub(super) fn read(text: &str, source: SourceId) -> Read {
    let (root, errors) = DeTable::parse_recoverable(text);
    // Whatever stands below a header that is there twice is there twice too, and not worth a word.
    let repeated: Vec<usize> = errors
        .iter()
        .filter(|error| error.message() == "duplicate key")
        .filter_map(|error| header_above(text, error.span()?.end))
        .filter(|header| {
            let end = text[*header..].find('\n').map_or(text.len(), |i| header + i);
            errors
                .iter()
                .any(|e| e.message() == "duplicate key" && e.span().is_some_and(|s| (*header..end).contains(&s.start)))
        })
        .collect();
    let below = |error: &&toml::de::Error| {
        let Some(span) = error.span().filter(|_| error.message() == "duplicate key") else { return false };
        let header = header_above(text, span.start);
        let within = header.is_some_and(|h| !text[h..floor(text, span.start)].contains('\n'));
        !within && header.is_some_and(|h| repeated.contains(&h))
    };
    let syntax: Vec<Diagnostic> =
        errors.iter().filter(|error| !below(error)).map(|error| syntax(text, source, error)).collect();
    let mut numbers = Vec::new();
    let root = table(root.get_ref(), source, 0, &mut numbers);
    Read { root, syntax, numbers }
}

/// One value, standing at `offset` of its source; `None` where the text is no TOML value.
pub(super) fn read_value(text: &str, source: SourceId, offset: usize, found: &mut Vec<Diagnostic>) -> Option<Value> {
    let parsed = DeValue::parse(text).ok()?;
    Some(value(parsed.get_ref(), parsed.span(), source, offset, found))
}

/// The segments of a dotted key such as `step.act."odd name"`; `None` where it is none.
pub(super) fn read_path(text: &str) -> Option<Vec<String>> {
    // The text is put into a document, so what would end the line or the key must not pass.
    if text.contains(['\n', '\r', '=', '#', '{', '[']) {
        return None;
    }
    let document = format!("{text} = 0");
    let parsed = DeTable::parse(&document).ok()?;
    let mut path = Vec::new();
    let mut table = parsed.get_ref();
    loop {
        let (key, value) = table.iter().next()?;
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

fn syntax(text: &str, source: SourceId, error: &toml::de::Error) -> Diagnostic {
    let bytes = error.span().unwrap_or(0..0);
    let bytes = floor(text, bytes.start)..floor(text, bytes.end);
    if error.message() == "duplicate key" {
        let name = text[bytes.clone()].trim_matches(['"', '\'']);
        let d = Diagnostic::new("duplicate", format!("`{name}` is defined twice"))
            .at(&span(source, bytes.clone()), "defined again here");
        return match first_definition(text, &bytes) {
            Some(first) => d.related(&span(source, first), "first defined here"),
            None => d,
        };
    }
    Diagnostic::new("syntax", format!("this is not TOML: {}", error.message()))
        .at(&span(source, bytes), error.message().to_owned())
}

/// Where the last line that begins with `[` before `at`, or around it, starts.
fn header_above(text: &str, at: usize) -> Option<usize> {
    let text = &text[..floor(text, at)];
    let starts = text.rmatch_indices('\n').map(|(i, _)| i + 1).chain([0]);
    starts.into_iter().find(|start| text[*start..].trim_start_matches([' ', '\t']).starts_with('['))
}

fn floor(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Where the key that is repeated at `again` stands for the first time. The parser says only where the repetition is.
fn first_definition(text: &str, again: &Range<usize>) -> Option<Range<usize>> {
    let line_start = text[..again.start].rfind('\n').map_or(0, |i| i + 1);
    let line = text[line_start..again.end].trim_start();
    // An inline table: the parsed document kept its first key.
    let (document, _) = DeTable::parse_recoverable(text);
    if let Some(found) = within_inline(document.get_ref(), again, &text[again.clone()]) {
        return Some(found);
    }
    // Otherwise everything above the line is sound up to here, and the path is the header's and the key's.
    let (above, _) = DeTable::parse_recoverable(&text[..line_start]);
    let mut path = Vec::new();
    if let Some(header) = line.strip_prefix('[') {
        path.extend(read_path(header.trim_start_matches('['))?);
    } else {
        path.extend(last_header(&text[..line_start]).map_or(Some(Vec::new()), |header| read_path(&header))?);
        path.extend(read_path(line)?);
    }
    let mut table = above.get_ref();
    let (last, parents) = path.split_last()?;
    for name in parents {
        table = match table.get(name.as_str())?.get_ref() {
            DeValue::Table(inner) => inner,
            DeValue::Array(items) => items.last()?.get_ref().as_table()?,
            _ => return None,
        };
    }
    table.iter().find(|(key, _)| key.get_ref() == last).map(|(key, _)| key.span())
}

/// The text between the brackets of the last table header.
fn last_header(text: &str) -> Option<String> {
    let line = text.lines().rev().map(str::trim_start).find(|line| line.starts_with('['))?;
    let line = line.trim_start_matches('[');
    Some(line[..line.find(']')?].to_owned())
}

fn within_inline(table: &DeTable<'_>, again: &Range<usize>, name: &str) -> Option<Range<usize>> {
    for (_, value) in table {
        let covers = value.span().start < again.start && again.end < value.span().end;
        match value.get_ref() {
            DeValue::Table(inner) => {
                if let Some(found) = within_inline(inner, again, name) {
                    return Some(found);
                }
                if covers {
                    let key = name.trim_matches(['"', '\'']);
                    return inner.iter().find(|(k, _)| k.get_ref() == key).map(|(k, _)| k.span());
                }
            }
            DeValue::Array(items) => {
                for item in items.iter() {
                    if let DeValue::Table(inner) = item.get_ref()
                        && let Some(found) = within_inline(inner, again, name)
                    {
                        return Some(found);
                    }
                }
            }
            _ => {}
        }
    }
    None
}

fn table(from: &DeTable<'_>, source: SourceId, offset: usize, found: &mut Vec<Diagnostic>) -> Table {
    // The parser sorts keys by name; places give the order written.
    let mut entries: Vec<_> = from.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
        .into_iter()
        .map(|(key, v)| {
            let at = key.span();
            let key = Key {
                text: key.get_ref().to_string(),
                span: span(source, at.start + offset..at.end + offset),
                via: None,
            };
            (key, value(v.get_ref(), v.span(), source, offset, found))
        })
        .collect()
}

fn value(from: &DeValue<'_>, at: Range<usize>, source: SourceId, offset: usize, found: &mut Vec<Diagnostic>) -> Value {
    let at = span(source, at.start + offset..at.end + offset);
    let data = match from {
        DeValue::String(text) => Data::String(text.to_string()),
        DeValue::Integer(n) => Data::Integer(i64::from_str_radix(n.as_str(), n.radix()).unwrap_or_else(|_| {
            let d = Diagnostic::new("out-of-range", format!("`{n}` does not fit into 64 bits"))
                .at(&at, "expected an integer of 64 bits");
            found.push(d);
            0
        })),
        DeValue::Float(n) => {
            let number: f64 = n.as_str().parse().unwrap_or(f64::NAN);
            if !number.is_finite() {
                let d = Diagnostic::new("out-of-range", format!("`{n}` is not a finite number"))
                    .at(&at, "expected a finite number");
                found.push(d);
            }
            Data::Float(number)
        }
        DeValue::Boolean(b) => Data::Boolean(*b),
        DeValue::Datetime(date) => Data::Datetime(date.to_string()),
        DeValue::Array(items) => {
            Data::Array(items.iter().map(|v| value(v.get_ref(), v.span(), source, offset, found)).collect())
        }
        DeValue::Table(inner) => Data::Table(table(inner, source, offset, found)),
    };
    Value { span: at, via: None, data }
}
