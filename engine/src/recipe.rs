//! Reads a recipe's text into tables that remember where every key and value stands.
//!
//! 1. read the file and, through `extends`, the files below it;
//! 2. merge them, the extending file's tables over the base's, key by key;
//! 3. apply the chosen profile, then `--set`.
//!
//! Invariants: no name is looked up and no type is checked here ([`crate::resolve`] does that); entries keep the order
//! in which they are written, a base file's first; every key and value points into the text it came from, be that a
//! file or the command line.

mod overrides;
mod text;

use std::collections::HashMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use crate::diagnostic::{Diagnostic, Diagnostics, Findings};
use crate::graph::Span;
use crate::source::{Source, SourceId, Sources};

/// The variables a value came through: name and place of definition, the one mentioned in the step first.
pub type Via = Option<Arc<Vec<(String, Span)>>>;

/// A TOML value and where it stands.
#[derive(Clone, Debug)]
pub struct Value {
    pub span: Span,
    /// Set where a variable supplied the value; `span` is then the place that mentions the variable.
    pub via: Via,
    pub data: Data,
}

#[derive(Clone, Debug)]
pub enum Data {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Value>),
    Table(Table),
}

/// A key and where it stands.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub span: Span,
    pub via: Via,
}

/// Keys and values in the order written, with look-up by name.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<(Key, Value)>,
    index: HashMap<String, usize>,
}

impl Table {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entry(key).map(|(_, value)| value)
    }

    pub fn entry(&self, key: &str) -> Option<(&Key, &Value)> {
        self.index.get(key).map(|&i| (&self.entries[i].0, &self.entries[i].1))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.text.as_str())
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a value; one that is there keeps its position in the order.
    pub fn insert(&mut self, key: Key, value: Value) {
        match self.index.get(&key.text) {
            Some(&i) => self.entries[i] = (key, value),
            None => {
                self.index.insert(key.text.clone(), self.entries.len());
                self.entries.push((key, value));
            }
        }
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.index.get(key).map(|&i| &mut self.entries[i].1)
    }

    /// Puts `over` on top, key by key, tables within tables too.
    fn merge(&mut self, over: Table) {
        for (key, value) in over.entries {
            match (self.get_mut(&key.text), value) {
                (
                    Some(Value { data: Data::Table(below), span, .. }),
                    Value { data: Data::Table(above), span: newer, .. },
                ) => {
                    below.merge(above);
                    *span = newer;
                    let i = self.index[&key.text];
                    self.entries[i].0 = key;
                }
                (_, value) => self.insert(key, value),
            }
        }
    }
}

impl Value {
    /// What it is, with an article: `an integer`.
    pub fn type_name(&self) -> &'static str {
        match self.data {
            Data::String(_) => "text",
            Data::Integer(_) => "an integer",
            Data::Float(_) => "a number",
            Data::Boolean(true) => "`true`",
            Data::Boolean(false) => "`false`",
            Data::Datetime(_) => "a date",
            Data::Array(_) => "a list",
            Data::Table(_) => "a table",
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::String(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_table(&self) -> Option<&Table> {
        match &self.data {
            Data::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The JSON value; dates become text, numbers that are not finite become `null`.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.data {
            Data::String(text) | Data::Datetime(text) => json!(text),
            Data::Integer(n) => json!(n),
            Data::Float(n) => json!(n),
            Data::Boolean(b) => json!(b),
            Data::Array(items) => items.iter().map(Value::to_json).collect(),
            Data::Table(table) => table
                .iter()
                .map(|(key, value)| (key.text.clone(), value.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    /// Equal as data, wherever they stand.
    pub fn same(&self, other: &Value) -> bool {
        self.to_json() == other.to_json()
    }
}

/// A recipe's text as one table.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub sources: Sources,
    /// The file given, or a made-up name for text; its stem is the recipe's name where the recipe gives none.
    pub path: Utf8PathBuf,
    /// Everything but `extends`.
    pub root: Table,
    /// Overrides that name nothing; [`crate::resolve`] reports them with everything else.
    pub(crate) overrides: Vec<Diagnostic>,
    /// Numbers that cannot be held; reported alike. What else is found at these places follows from them.
    pub(crate) numbers: Vec<Diagnostic>,
    /// The profiles that are not chosen.
    pub(crate) unchosen: Vec<Unchosen>,
}

/// A profile that is not chosen, and what the recipe would be if it were.
#[derive(Clone, Debug)]
pub(crate) struct Unchosen {
    pub root: Table,
    /// Where its keys and values stand: what is found there is its fault.
    pub places: Vec<Span>,
}

/// What the command line changes.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--profile NAME`.
    pub profile: Option<String>,
    /// `--set PATH=VALUE`, in order.
    pub set: Vec<String>,
}

/// Reads a recipe file.
///
/// # Errors
/// Files that cannot be read, text that is no TOML, `extends` that runs in a circle. A profile or `--set` that names
/// nothing is no error yet: it is reported by [`crate::resolve::resolve`], together with all else that is wrong.
pub fn parse(path: &Utf8Path, overrides: &Overrides) -> Result<Recipe, Diagnostics> {
    let mut reader = Reader::default();
    let root = match fs_err::read_to_string(path) {
        Ok(text) => {
            reader.chain.push((identity(path), None));
            reader.read(path, text)
        }
        Err(error) => {
            let d = Diagnostic::new("missing-file", format!("cannot read the recipe `{path}`: {}", reason(&error)));
            reader.findings.push(d);
            Table::default()
        }
    };
    reader.finish(path, root, overrides)
}

/// Reads a recipe from text; `extends` is relative to the folder of `path`, which need not exist.
///
/// # Errors
/// As [`parse`].
pub fn parse_text(path: &Utf8Path, text: &str, overrides: &Overrides) -> Result<Recipe, Diagnostics> {
    let mut reader = Reader::default();
    reader.chain.push((identity(path), None));
    let root = reader.read(path, text.to_owned());
    reader.finish(path, root, overrides)
}

/// One path for one file, however it is written.
fn identity(path: &Utf8Path) -> Utf8PathBuf {
    path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned())
}

/// The system's words without the path, which the message has already.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

#[derive(Default)]
struct Reader {
    sources: Sources,
    findings: Findings,
    numbers: Vec<Diagnostic>,
    /// Files being read, each with the `extends` that led to it.
    chain: Vec<(Utf8PathBuf, Option<Span>)>,
}

impl Reader {
    fn read(&mut self, path: &Utf8Path, text: String) -> Table {
        let id = self.sources.add(Source { name: path.to_string(), path: Some(path.to_owned()), text });
        let text::Read { mut root, syntax, numbers } = text::read(&self.sources.get(id).text, id);
        for d in syntax {
            self.findings.push(d);
        }
        self.numbers.extend(numbers);
        let Some(extends) = root.get("extends").cloned() else { return root };
        root = root.entries.into_iter().filter(|(key, _)| key.text != "extends").collect();
        match self.base(path, &extends) {
            Some(mut base) => {
                base.merge(root);
                base
            }
            None => root,
        }
    }

    /// The table that `extends` names.
    fn base(&mut self, path: &Utf8Path, extends: &Value) -> Option<Table> {
        let Some(name) = extends.as_str() else {
            self.findings.push(
                Diagnostic::new("wrong-type", format!("`extends` is {}, expected text", extends.type_name()))
                    .at(&extends.span, "expected the path of a recipe"),
            );
            return None;
        };
        let base = path.parent().unwrap_or(Utf8Path::new("")).join(name);
        let id = identity(&base);
        if let Some(first) = self.chain.iter().position(|(seen, _)| *seen == id) {
            let mut d = Diagnostic::new("extends-cycle", format!("`{path}` extends itself through `{name}`"))
                .at(&extends.span, "comes back to a file that is being read");
            for (_, span) in self.chain[first..].iter().skip(1) {
                if let Some(span) = span {
                    d = d.related(span, "by way of this");
                }
            }
            self.findings.push(d);
            return None;
        }
        match fs_err::read_to_string(&base) {
            Ok(text) => {
                self.chain.push((id, Some(extends.span.clone())));
                let table = self.read(&base, text);
                self.chain.pop();
                Some(table)
            }
            Err(error) => {
                self.findings.push(
                    Diagnostic::new("missing-file", format!("cannot read `{base}`: {}", reason(&error)))
                        .at(&extends.span, "extended here"),
                );
                None
            }
        }
    }

    fn finish(mut self, path: &Utf8Path, mut root: Table, overrides: &Overrides) -> Result<Recipe, Diagnostics> {
        // Overrides of a recipe that was not read whole would only be noise.
        if !self.findings.is_empty() {
            self.numbers.into_iter().for_each(|d| self.findings.push(d));
            return Err(self.findings.finish(self.sources));
        }
        let mut found = Findings::default();
        let mut numbers = self.numbers;
        let unchosen = overrides::apply(&mut root, &mut self.sources, overrides, &mut found, &mut numbers);
        let overrides = found.into_found();
        Ok(Recipe { sources: self.sources, path: path.to_owned(), root, overrides, numbers, unchosen })
    }
}

impl FromIterator<(Key, Value)> for Table {
    fn from_iter<I: IntoIterator<Item = (Key, Value)>>(iter: I) -> Self {
        let mut table = Table::default();
        for (key, value) in iter {
            table.insert(key, value);
        }
        table
    }
}

pub(crate) fn span(source: SourceId, bytes: std::ops::Range<usize>) -> Span {
    Span { source, bytes }
}
