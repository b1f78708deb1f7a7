//! What a run leaves beside the recipe: tables on stdout, tables and reports in a folder.
//!
//! Invariants: files that hold the right bytes already are left alone, so that a run that does nothing changes nothing;
//! whatever is written can be made again from the store.

use actloom_engine::cache::{Artifact, Form, Store};
use actloom_engine::graph::Graph;
use actloom_engine::op::Kind;
use actloom_engine::run::{StepSummary, Summary};
use camino::{Utf8Path, Utf8PathBuf};
use petgraph::graph::NodeIndex;
use serde::Serialize;

use crate::exit::Failure;

/// What a table is printed from, the first that is there.
const TABLE_TEXTS: [&str; 2] = ["table.txt", "table.md"];

/// One table or report.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub step: String,
    pub output: &'static str,
    pub kind: Kind,
    /// Where it was put; `None` with `--no-out`.
    pub path: Option<Utf8PathBuf>,
    /// The table's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Reads every table and report among the results of these nodes, and puts them into a folder if there is one.
pub fn collect(
    graph: &Graph,
    store: &Store,
    summary: &Summary,
    nodes: &[NodeIndex],
    folder: Option<&Utf8Path>,
) -> Result<Vec<Shown>, Failure> {
    let mut shown = Vec::new();
    for step in summary.steps.iter().filter(|step| nodes.contains(&step.node)) {
        for port in &graph.nodes[step.node].outputs {
            let artifact = step.action.as_ref().and_then(|action| action.outputs.get(port.name));
            let Some(artifact) = artifact.filter(|_| port.kind == Kind::TABLE || port.kind == Kind::REPORT) else {
                continue;
            };
            let text = if port.kind == Kind::TABLE { table_text(store, artifact)? } else { None };
            let path = match folder {
                Some(folder) => Some(put(store, artifact, folder, step, port.kind)?),
                None => None,
            };
            shown.push(Shown { step: step.name.clone(), output: port.name, kind: port.kind, path, text });
        }
    }
    Ok(shown)
}

fn table_text(store: &Store, artifact: &Artifact) -> Result<Option<String>, Failure> {
    let files = match artifact.form {
        Form::File => return Ok(Some(String::from_utf8_lossy(&store.read_file(artifact, None)?).into_owned())),
        Form::Tree => store.files(artifact)?,
    };
    let Some(name) = TABLE_TEXTS.into_iter().find(|name| files.iter().any(|file| file.path == *name)) else {
        return Ok(None);
    };
    let bytes = store.read_file(artifact, Some(name))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn put(
    store: &Store,
    artifact: &Artifact,
    folder: &Utf8Path,
    step: &StepSummary,
    kind: Kind,
) -> Result<Utf8PathBuf, Failure> {
    let name = file_name(&step.name);
    match artifact.form {
        Form::File => {
            let extension = if kind == Kind::REPORT { ".html" } else { "" };
            let path = folder.join(format!("{name}{extension}"));
            write(&path, &store.read_file(artifact, None)?)?;
            Ok(path)
        }
        Form::Tree => {
            let path = folder.join(name);
            for file in store.files(artifact)? {
                write(&path.join(&file.path), &store.read_file(artifact, Some(&file.path))?)?;
            }
            Ok(path)
        }
    }
}

fn write(path: &Utf8Path, bytes: &[u8]) -> Result<(), Failure> {
    if fs_err::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    Ok(fs_err::write(path, bytes)?)
}

/// A name that every file system takes.
pub fn file_name(name: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '=' | '[' | ']' | ',' | '.');
    let name: String = name.chars().map(|c| if safe(c) { c } else { '_' }).collect();
    if name.starts_with('.') { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_folder() {
        assert_eq!(file_name("table[split=id]"), "table[split=id]");
        assert_eq!(file_name("../a b/c"), "_.._a_b_c");
        assert_eq!(file_name("ACT -> IL"), "ACT_-__IL");
    }
}
