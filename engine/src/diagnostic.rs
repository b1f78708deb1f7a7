//! What is wrong with a recipe, as values; the command line draws them.
//!
//! Text rules: lower case, no full stop, backticks around the user's text, the fact first, then what was expected.

use std::collections::HashSet;

use serde::Serialize;

use crate::graph::Span;
use crate::source::{SourceId, Sources};

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// Stable, kebab-case: `unknown-key`, `wrong-type`, `missing-input`, `wrong-kind`, `cycle`...
    pub code: &'static str,
    /// The title: `unknown parameter `lerning_rate` of op `sft``.
    pub message: String,
    /// The place with a caret under it, and what to write there.
    pub primary: Option<(Span, String)>,
    /// Other places that matter: the first definition of a duplicate, the steps of a cycle.
    pub related: Vec<(Span, String)>,
    /// `a step has the name `pairs``, without the word `help:`.
    pub help: Vec<String>,
}

impl Diagnostic {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Diagnostic { code, message: message.into(), primary: None, related: Vec::new(), help: Vec::new() }
    }

    /// Puts the caret.
    pub fn at(mut self, span: &Span, label: impl Into<String>) -> Self {
        self.primary = Some((span.clone(), label.into()));
        self
    }

    /// Points at another place that matters.
    pub fn related(mut self, span: &Span, label: impl Into<String>) -> Self {
        self.related.push((span.clone(), label.into()));
        self
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Adds help where there is some.
    pub fn help_opt(mut self, help: Option<String>) -> Self {
        self.help.extend(help);
        self
    }
}

/// Findings as they come in. The same finding in many variants of a step counts once.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: Vec<Diagnostic>,
    seen: HashSet<(&'static str, String, Option<Place>)>,
}

/// A span, as something to hash.
type Place = (SourceId, usize, usize);

impl Findings {
    pub(crate) fn push(&mut self, d: Diagnostic) {
        let place = d.primary.as_ref().map(|(span, _)| (span.source, span.bytes.start, span.bytes.end));
        // a file that is missing is missed once, however many steps read it
        let (message, place) = match d.code {
            "missing-file" => (format!("{} {}", d.message, d.help.join(" ")), None),
            _ => (d.message.clone(), place),
        };
        if self.seen.insert((d.code, message, place)) {
            self.found.push(d);
        }
    }

    /// Adds findings, and drops what others said about the same places: it follows from these.
    pub(crate) fn blame(&mut self, roots: &[Diagnostic]) {
        let places: Vec<&Span> = roots.iter().filter_map(|d| d.primary.as_ref().map(|(span, _)| span)).collect();
        self.found.retain(|d| {
            let spans = d.primary.iter().chain(&d.related).map(|(span, _)| span);
            !spans.into_iter().any(|span| places.contains(&span))
        });
        roots.iter().for_each(|d| self.push(d.clone()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn into_found(self) -> Vec<Diagnostic> {
        self.found
    }

    /// In the order of the text; what points nowhere comes first.
    pub(crate) fn finish(mut self, sources: Sources) -> Diagnostics {
        self.found.sort_by_key(|d| d.primary.as_ref().map(|(span, _)| (span.source, span.bytes.start)));
        Diagnostics { sources, found: self.found }
    }
}

/// The candidate that `name` was most likely meant to be: a few letters away, or one that begins or ends with it.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let holds = |long: &str, short: &str| {
        short.chars().count() >= 4 && long != short && (long.starts_with(short) || long.ends_with(short))
    };
    closest(name, &candidates).or_else(|| candidates.into_iter().find(|c| holds(c, name) || holds(name, c)))
}

fn closest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let far = name.chars().count().max(3) / 3 + 1;
    candidates
        .iter()
        .map(|c| (strsim::damerau_levenshtein(&name.to_lowercase(), &c.to_lowercase()), *c))
        .filter(|(distance, c)| *distance <= far && *distance < c.chars().count().max(2))
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| similarity(name, b.1).total_cmp(&similarity(name, a.1))))
        .map(|(_, c)| c)
}

fn similarity(a: &str, b: &str) -> f64 {
    strsim::jaro_winkler(a, b)
}

/// `` `a`, `b` or `c` ``, or `and`; long lists are cut.
pub fn listed<'a>(items: impl IntoIterator<Item = &'a str>, word: &str) -> String {
    const SHOWN: usize = 12;
    let items: Vec<String> = items.into_iter().map(|i| format!("`{i}`")).collect();
    match items.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        many if many.len() > SHOWN => {
            format!("{} and {} more", many[..SHOWN].join(", "), many.len() - SHOWN)
        }
        [head @ .., last] => format!("{} {word} {last}", head.join(", ")),
    }
}

/// All findings, with the texts they point into.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    pub sources: Sources,
    pub found: Vec<Diagnostic>,
}

/// A finding with line and column, for `--json`. Lines and columns count from 1; columns in characters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Located {
    pub code: &'static str,
    pub message: String,
    pub file: Option<String>,
    pub line: Option<usize>,
    pub column: Option<usize>,
    pub label: Option<String>,
    pub help: Vec<String>,
}

impl Diagnostics {
    /// Every finding with its line and column.
    pub fn located(&self) -> Vec<Located> {
        self.found
            .iter()
            .map(|d| {
                let place = d.primary.as_ref().map(|(span, label)| {
                    let source = self.sources.get(span.source);
                    let before = &source.text[..span.bytes.start.min(source.text.len())];
                    let line = before.matches('\n').count() + 1;
                    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
                    (source.name.clone(), line, column, label.clone())
                });
                let (file, line, column, label) = match place {
                    Some((file, line, column, label)) => (Some(file), Some(line), Some(column), Some(label)),
                    None => (None, None, None, None),
                };
                Located { code: d.code, message: d.message.clone(), file, line, column, label, help: d.help.clone() }
            })
            .collect()
    }
}
