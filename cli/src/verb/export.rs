//! `actloom export`: takes a step's outputs out of the store, as files of one's own.
//!
//! Invariant: what is written are copies that may be changed; nothing that exists is overwritten.

use actloom_engine::cache::{Artifact, Form, Store};
use actloom_engine::plan::{Goal, Verdict, plan, select};
use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use crate::args::{Export, Global};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::outputs::file_name;
use crate::terminal::out_either;

#[derive(Serialize)]
struct Written {
    step: String,
    output: String,
    path: Utf8PathBuf,
    bytes: u64,
}

pub fn run(args: &Export, global: &Global) -> Result<Exit, Failure> {
    let (path, mut words) = load::words(&args.words)?;
    let (Some(folder), [step]) = (words.pop(), words.as_slice()) else {
        return Err(Failure::usage(
            "a step and a folder are wanted",
            "`actloom export [RECIPE] STEP DIR`, for example `actloom export recipe.toml 'act[seed=0]' act-model`",
        ));
    };
    let folder = Utf8PathBuf::from(folder);
    let loaded = load::recipe(path, &args.recipe)?;
    let store = load::store(global)?;
    let steps = vec![step.clone()];
    let asked = select(&loaded.graph, &steps)?;
    let plan = plan(&loaded.graph, &Goal { steps, device: loaded.device, ..Goal::default() }, &store)?;
    let mut written = Vec::new();
    for planned in plan.steps.iter().filter(|planned| asked.contains(&planned.node)) {
        let Verdict::Reuse { action, .. } = &planned.verdict else {
            return Err(Failure::Plain {
                exit: Exit::StepFailed,
                message: format!("`{}` has no result as the recipe stands", planned.name),
                help: Some(format!("`actloom run` makes it; `actloom why` says what differs for `{}`", planned.step)),
            });
        };
        let place = if asked.len() > 1 { folder.join(file_name(&planned.name)) } else { folder.clone() };
        for (name, artifact) in &action.outputs {
            let path = place.join(name);
            copy(&store, artifact, &path)?;
            written.push(Written { step: planned.name.clone(), output: name.clone(), path, bytes: artifact.bytes });
        }
    }
    out_either(global.json, &written, || written.iter().map(|w| format!("{}\n", w.path)).collect());
    Ok(Exit::Done)
}

fn copy(store: &Store, artifact: &Artifact, to: &Utf8Path) -> Result<(), Failure> {
    match artifact.form {
        Form::File => copy_file(store, artifact, to),
        Form::Tree => {
            for file in store.files(artifact)? {
                let part = Artifact { id: file.id, form: Form::File, bytes: file.bytes };
                copy_file(store, &part, &to.join(&file.path))?;
            }
            Ok(())
        }
    }
}

fn copy_file(store: &Store, artifact: &Artifact, to: &Utf8Path) -> Result<(), Failure> {
    let Some(from) = store.path_of(artifact) else {
        return Err(Failure::world(format!("the store has lost the contents of `{to}`")));
    };
    if let Some(parent) = to.parent() {
        fs_err::create_dir_all(parent)?;
    }
    let mut target = match fs_err::File::create_new(to) {
        Ok(target) => target,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::Plain {
                exit: Exit::World,
                message: format!("`{to}` exists already"),
                help: Some("export into a new folder".to_owned()),
            });
        }
        Err(error) => return Err(error.into()),
    };
    std::io::copy(&mut fs_err::File::open(from)?, &mut target)?;
    Ok(())
}
