//! Inputs that are there already: `{ path = "models/Qwen3-0.6B" }`, with `get = ".."` to say where it comes from.
//!
//! Where a relative path begins: in the folder of the file in which its text begins, be that the recipe, a file that it
//! extends, or the definition of a variable; in the working folder where it begins on the command line. `~` is the home
//! folder. Invariants: the path that comes out is absolute, and something that can be opened stands there; what kind of
//! artifact it holds is not looked at, for only the op can tell.

use std::env::home_dir;
use std::io::ErrorKind;

use camino::{Utf8Path, Utf8PathBuf};

use super::check::at;
use super::template;
use crate::diagnostic::Diagnostic;
use crate::graph::{Outside, Span};
use crate::recipe::{Table, Value};
use crate::source::Sources;

/// The key that says so.
const KEY: &str = "path";
/// What may stand beside it: how to come by what is not there.
const GET: &str = "get";

/// Whether a table wants to be a path.
pub(super) fn is_path(table: &Table) -> bool {
    table.get(KEY).is_some()
}

/// The label of a path on an axis: its last part. `None` where that is not known yet.
pub(super) fn label(table: &Table) -> Option<String> {
    let text = table.get(KEY).filter(|_| table.iter().all(|(key, _)| [KEY, GET].contains(&&*key.text)))?.as_str()?;
    let name = Utf8Path::new(text).file_name()?;
    (!text.contains('$')).then(|| name.to_owned())
}

/// Reads `{ path = ".." }`, with variables replaced.
pub(super) fn read(sources: &Sources, table: &Table) -> Result<Outside, Box<Diagnostic>> {
    let Some((_, value)) = table.entry(KEY) else { panic!("BUG: a table without `path` was taken for one") };
    if let Some((key, _)) = table.iter().find(|(key, _)| ![KEY, GET].contains(&&*key.text)) {
        let d = Diagnostic::new("unknown-key", format!("unknown key `{}` beside `path`", key.text));
        return Err(Box::new(
            d.at(&key.span, "not known here")
                .help("a file or folder is `{ path = \"..\" }`, or `{ path = \"..\", get = \"where to get it\" }`"),
        ));
    }
    let get = match table.entry(GET) {
        None => None,
        Some((_, get)) => match get.as_str() {
            Some(text) => Some(text),
            None => {
                let d = Diagnostic::new(
                    "wrong-type",
                    format!("`get` is {}, expected a text that says where to get the path", get.type_name()),
                );
                return Err(Box::new(at(d, get, "expected a text".to_owned())));
            }
        },
    };
    let Some(text) = value.as_str().filter(|text| !text.is_empty()) else {
        let what = if value.as_str().is_some() { "empty" } else { value.type_name() };
        let d = Diagnostic::new("wrong-type", format!("`path` is {what}, expected the path of a file or folder"));
        return Err(Box::new(at(d, value, "expected a path".to_owned())));
    };
    let wrong = |message: String, label: &str| at(Diagnostic::new("missing-file", message), value, label.to_owned());
    let path = match absolute(sources, value, text) {
        Ok(path) => path,
        Err(why) => return Err(Box::new(wrong(format!("cannot tell where `{text}` is: {why}"), "unclear"))),
    };
    match open(&path) {
        Ok(()) => Ok(Outside { path, written: text.to_owned() }),
        Err(error) => {
            let (message, label) = match error.kind() {
                ErrorKind::NotFound => (format!("there is no file or folder `{text}`"), "nothing is there"),
                ErrorKind::PermissionDenied => (format!("cannot read `{text}`: permission denied"), "not readable"),
                _ => (format!("cannot read `{text}`: {error}"), "not readable"),
            };
            let d = wrong(message, label);
            let d = if path == text { d } else { d.help(format!("looked at `{path}`")) };
            Err(Box::new(d.help_opt(get.map(|get| format!("get it: {get}")))))
        }
    }
}

fn open(path: &Utf8Path) -> std::io::Result<()> {
    if std::fs::metadata(path)?.is_dir() {
        std::fs::read_dir(path).map(drop)
    } else {
        std::fs::File::open(path).map(drop)
    }
}

fn absolute(sources: &Sources, value: &Value, text: &str) -> Result<Utf8PathBuf, String> {
    let written = if text == "~" { Some("") } else { text.strip_prefix("~/") };
    let path = match written {
        Some(rest) => {
            let home = home_dir().ok_or("there is no home folder")?;
            Utf8PathBuf::from_path_buf(home).map_err(|_| "the home folder's name is not UTF-8")?.join(rest)
        }
        None => {
            let file = sources.get(begins(sources, value).source).path.as_deref();
            file.and_then(Utf8Path::parent).unwrap_or(Utf8Path::new("")).join(text)
        }
    };
    // `a/../b` is left alone: with links it is not `b`.
    camino::absolute_utf8(if path.as_str().is_empty() { Utf8Path::new(".") } else { &path }).map_err(|e| e.to_string())
}

/// The place at which the text of a value begins: that of the variable it begins with, and so on.
fn begins<'v>(sources: &Sources, value: &'v Value) -> &'v Span {
    let mut place = &value.span;
    for (name, definition) in value.via.iter().flat_map(|via| via.iter()) {
        let raw = sources.get(place.source).text.get(place.bytes.clone()).unwrap_or("");
        if template::first(raw.trim_start_matches(['"', '\''])) == Some(name) {
            place = definition;
        }
    }
    place
}
