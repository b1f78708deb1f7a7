//! `actloom model`: one model, looked at, asked, or written in another form.
//!
//! Invariants: stdout gets what was asked for (the description, the text, a list of written files with `--json`); folders
//! that exist are refused before anything is read.

use actloom_ops::model::FloatType;
use actloom_ops::tool;
use camino::Utf8Path;
use serde_json::json;

use super::{model_generate, model_info};
use crate::args::{Convert, Dtype, Form, Global, Logits, Merge, Model, Source};
use crate::exit::{Exit, Failure};
use crate::terminal::{out_json, say};
use crate::text;

pub fn run(args: &Model, global: &Global) -> Result<Exit, Failure> {
    match args {
        Model::Info(verb) => model_info::run(verb, global),
        Model::Logits(verb) => logits(verb, global),
        Model::Generate(verb) => model_generate::run(verb, global),
        Model::Merge(verb) => merge(verb, global),
        Model::Convert(verb) => convert(verb, global),
    }
}

/// The model as the library takes it.
pub fn source(args: &Source) -> tool::Source {
    tool::Source { folder: args.dir.clone(), adapter: args.adapter.clone(), device: args.device }
}

fn logits(args: &Logits, global: &Global) -> Result<Exit, Failure> {
    let report = tool::logits::logits(&tool::logits::Job {
        source: source(&args.source),
        tokens: &args.tokens,
        out: &args.out,
        greedy: args.greedy.unwrap_or(0) as usize,
    })?;
    if global.json {
        out_json(&report);
    }
    let (lists, size) = (text::counted(report.lists, "list"), text::bytes(report.bytes));
    say(&format!("wrote {}: {lists}, {}, {size}", args.out, text::counted(report.tokens, "token")));
    Ok(Exit::Done)
}

fn convert(args: &Convert, global: &Global) -> Result<Exit, Failure> {
    let Form { out, shard_size, .. } = &args.form;
    free(out)?;
    let written = tool::convert::convert(&args.dir, out, dtype(&args.form), *shard_size)?;
    tell(out, &written, global);
    Ok(Exit::Done)
}

fn merge(args: &Merge, global: &Global) -> Result<Exit, Failure> {
    let Form { out, shard_size, .. } = &args.form;
    free(out)?;
    let written = tool::merge::merge(&args.dir, &args.adapter, out, dtype(&args.form), *shard_size)?;
    tell(out, &written, global);
    Ok(Exit::Done)
}

fn dtype(form: &Form) -> Option<FloatType> {
    form.dtype.map(|dtype| match dtype {
        Dtype::Float32 => FloatType::Float32,
        Dtype::Bfloat16 => FloatType::Bfloat16,
        Dtype::Float16 => FloatType::Float16,
    })
}

/// Nothing is overwritten.
fn free(path: &Utf8Path) -> Result<(), Failure> {
    match fs_err::symlink_metadata(path) {
        Ok(_) => Err(Failure::usage(
            format!("`{path}` exists, expected a free path"),
            "nothing is overwritten; choose another folder",
        )),
        Err(_) => Ok(()),
    }
}

/// What was written, and where.
fn tell(folder: &Utf8Path, written: &[tool::Written], global: &Global) {
    if global.json {
        out_json(&json!({ "path": folder, "files": written }));
    }
    let bytes = written.iter().map(|file| file.bytes).sum();
    say(&format!("wrote {folder}: {}, {}", text::counted(written.len(), "file"), text::bytes(bytes)));
}
