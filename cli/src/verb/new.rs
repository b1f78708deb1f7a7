//! `actloom new`: a recipe to start from, which is the quickstart under another name.

use std::io::{ErrorKind, Write};

use serde_json::json;

use crate::args::{Global, New};
use crate::exit::{Exit, Failure};
use crate::terminal::{out_either, say};

/// A recipe that a test plans and another runs, so what people start from works.
const START: &str = include_str!("../../../recipes/quickstart.toml");

pub fn run(args: &New, global: &Global) -> Result<Exit, Failure> {
    let (path, name) = if args.path.extension() == Some("toml") {
        (args.path.clone(), args.path.file_stem())
    } else {
        (args.path.join("recipe.toml"), args.path.file_name())
    };
    let name = name.ok_or_else(|| Failure::usage(format!("`{}` has no name", args.path), "name a new folder"))?;
    if let Some(folder) = path.parent().filter(|folder| *folder != "") {
        fs_err::create_dir_all(folder)?;
    }
    // Whatever is there is somebody's work.
    let mut file = match fs_err::OpenOptions::new().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::usage(format!("`{path}` exists, expected a free path"), "choose another name"));
        }
        file => file?,
    };
    file.write_all(started(name).as_bytes())?;
    out_either(global.json, &json!({"path": path}), || path.to_string());
    say(&format!("try `actloom plan {path}`, then `actloom run {path} --profile smoke`"));
    Ok(Exit::Done)
}

/// The recipe with another name.
fn started(name: &str) -> String {
    let line = |line: &str| match line.starts_with("name ") {
        true => format!("name  = {}\n", toml_text(name)),
        false => format!("{line}\n"),
    };
    START.lines().map(line).collect()
}

/// A TOML basic string; JSON's escapes are among TOML's.
fn toml_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
