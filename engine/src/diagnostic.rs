//! What is wrong with a recipe, as values; the command line draws them.
//!
//! Text rules: lower case, no full stop, backticks around the user's text, the fact first, then what was expected.

use serde::Serialize;

use crate::graph::Span;
use crate::source::Sources;

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
