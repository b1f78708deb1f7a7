//! `actloom export`: takes what a step made out of the store, as files of one's own.
//!
//! Invariants: what is written is a copy, writable, with nothing leading back into the store; nothing that is there is
//! overwritten, and nothing is written where something is in the way or a result is missing.

use actloom_engine::cache::{Artifact, Form, Store};
use actloom_engine::plan::{Goal, Planned, Verdict, plan, select};
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::args::{Export, Global, Words};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::outputs::file_name;
use crate::terminal::{out_either, say};
use crate::text;

/// One output, on its way out.
#[derive(Serialize)]
struct Exported {
    step: String,
    output: String,
    path: Utf8PathBuf,
    files: Vec<FileOf>,
}

#[derive(Serialize)]
struct FileOf {
    path: Utf8PathBuf,
    bytes: u64,
    #[serde(skip)]
    inner: Option<String>,
    #[serde(skip)]
    executable: bool,
}

pub fn run(args: &Export, global: &Global) -> Result<Exit, Failure> {
    let (path, step, dir) = words(&args.words)?;
    let loaded = load::recipe(path, &args.recipe)?;
    let store = load::store(global)?;
    let steps = vec![step];
    let asked = select(&loaded.graph, &steps)?;
    let plan = plan(&loaded.graph, &Goal { steps, device: loaded.device, ..Goal::default() }, &store)?;
    let asked: Vec<&Planned> = plan.steps.iter().filter(|step| asked.contains(&step.node)).collect();

    // 1. What goes where; nothing is touched yet.
    let mut all: Vec<(Artifact, Exported)> = Vec::new();
    let mut folders = Vec::new();
    for step in &asked {
        let Verdict::Reuse { action, .. } = &step.verdict else { return Err(not_made(&step.name)) };
        let folder = if asked.len() > 1 { dir.join(file_name(&step.name)) } else { dir.clone() };
        if folders.contains(&folder) {
            return Err(Failure::usage(
                format!("two variants would go to `{folder}`"),
                format!("name one: `actloom export '{}' DIR`", step.name),
            ));
        }
        for (output, artifact) in &action.outputs {
            let path = folder.join(output);
            let files = files(&store, artifact, &path)?;
            all.push((artifact.clone(), Exported { step: step.name.clone(), output: output.clone(), path, files }));
        }
        folders.push(folder);
    }
    if let Some((_, taken)) = all.iter().find(|(_, output)| fs_err::symlink_metadata(&output.path).is_ok()) {
        return Err(Failure::usage(
            format!("`{}` exists, expected a free path", taken.path),
            "nothing is overwritten; choose another folder",
        ));
    }

    // 2. Copies, each checked against its id as it is read.
    for (artifact, output) in &all {
        if artifact.form == Form::Tree {
            fs_err::create_dir_all(&output.path)?;
        }
        for file in &output.files {
            write(&file.path, &store.read_file(artifact, file.inner.as_deref())?, file.executable)?;
        }
    }

    let listed: Vec<&Exported> = all.iter().map(|(_, output)| output).collect();
    out_either(global.json, &listed, || listed.iter().map(|output| format!("{}\n", output.path)).collect());
    let files: usize = listed.iter().map(|output| output.files.len()).sum();
    let bytes = listed.iter().flat_map(|output| &output.files).map(|file| file.bytes).sum();
    say(&format!("wrote {}, {}", text::counted(files, "file"), text::bytes(bytes)));
    Ok(Exit::Done)
}

/// `[RECIPE] STEP DIR`.
fn words(words: &[String]) -> Result<(Option<Utf8PathBuf>, String, Utf8PathBuf), Failure> {
    let wrong = |message: String| Failure::usage(message, "one step at a time: `actloom export [RECIPE] STEP DIR`");
    match words {
        [step, dir] => Ok((None, step.clone(), dir.into())),
        [recipe, step, dir] => match load::words(&Words { first: Some(recipe.clone()), rest: vec![step.clone()] })? {
            (Some(path), _) => Ok((Some(path), step.clone(), dir.into())),
            (None, _) => Err(wrong(format!("`{recipe}` is no recipe"))),
        },
        _ => Err(wrong("expected a step and a folder".to_owned())),
    }
}

fn not_made(step: &str) -> Failure {
    Failure::Plain {
        exit: Exit::StepFailed,
        message: format!("`{step}` has no result as the recipe stands"),
        help: Some(format!("make it: `actloom run [RECIPE] '{step}'`, with the same options")),
    }
}

fn files(store: &Store, artifact: &Artifact, path: &Utf8Path) -> Result<Vec<FileOf>, Failure> {
    let files = store.files(artifact)?.into_iter();
    Ok(files
        .map(|file| match artifact.form {
            Form::File => FileOf { path: path.to_owned(), bytes: file.bytes, inner: None, executable: false },
            Form::Tree => FileOf {
                path: path.join(&file.path),
                bytes: file.bytes,
                inner: Some(file.path),
                executable: file.executable,
            },
        })
        .collect())
}

fn write(path: &Utf8Path, bytes: &[u8], executable: bool) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(path)?;
    std::io::Write::write_all(&mut file, bytes)?;
    #[cfg(unix)]
    if executable {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata()?.permissions().mode();
        // Whoever may read it may run it.
        file.set_permissions(std::fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))?;
    }
    Ok(())
}
