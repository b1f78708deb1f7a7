//! From words on the command line to a resolved recipe, and to a store.
//!
//! Invariants: a word that names a file, or a folder with one recipe in it, is the recipe, any other word is a step; a
//! recipe is guessed only where there is exactly one to guess.

use std::env;

use actloom_engine::cache::Store;
use actloom_engine::graph::Graph;
use actloom_engine::op::DeviceRequest;
use actloom_engine::recipe::parse;
use actloom_engine::resolve::resolve;
use actloom_ops::registry::registry;
use camino::{Utf8Path, Utf8PathBuf};

use crate::args::{Global, Recipe, Words};
use crate::device;
use crate::exit::Failure;

/// A recipe, ready to be planned.
pub struct Loaded {
    pub graph: Graph,
    pub device: DeviceRequest,
}

/// Resolves a recipe; without a path, the only one in this folder.
pub fn recipe(path: Option<Utf8PathBuf>, options: &Recipe) -> Result<Loaded, Failure> {
    let path = match path {
        Some(path) => path,
        None => discover(Utf8Path::new("."))?,
    };
    let recipe = parse(&path, &options.overrides())?;
    let graph = resolve(&recipe, &registry())?;
    let device = device::settle(options.device, &graph);
    Ok(Loaded { graph, device })
}

/// The recipe and the steps that the words name.
pub fn words(words: &Words) -> Result<(Option<Utf8PathBuf>, Vec<String>), Failure> {
    let mut rest = words.rest.clone();
    let Some(first) = &words.first else { return Ok((None, rest)) };
    let path = Utf8Path::new(first);
    if path.is_dir() {
        // A step may share its name with a folder; it is the recipe's only if there is one in it.
        match recipes_in(path)?.as_slice() {
            [] => {}
            _ => return Ok((Some(discover(path)?), rest)),
        }
    } else if path.extension() == Some("toml") || path.is_file() {
        return Ok((Some(path.to_owned()), rest));
    }
    rest.insert(0, first.clone());
    Ok((None, rest))
}

/// The only recipe in a folder.
fn discover(folder: &Utf8Path) -> Result<Utf8PathBuf, Failure> {
    let mut found = recipes_in(folder)?;
    let place = if folder == "." { "in this folder".to_owned() } else { format!("in `{folder}`") };
    match found.len() {
        0 => Err(Failure::usage(
            format!("there is no recipe {place}"),
            "name one: `actloom run RECIPE`; `actloom new DIR` writes one to start from",
        )),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<String> = found.iter().map(|path| format!("`{path}`")).collect();
            Err(Failure::usage(
                format!("there are {} recipes {place}, expected one or a name", names.len()),
                format!("name one of {}", names.join(", ")),
            ))
        }
    }
}

/// TOML files with a `[step.…]` table, sorted.
fn recipes_in(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let Ok(path) = Utf8PathBuf::from_path_buf(entry?.path()) else { continue };
        let is_recipe = || {
            let text = fs_err::read_to_string(&path).unwrap_or_default();
            text.lines().any(|line| line.trim_start().starts_with("[step."))
        };
        if path.extension() == Some("toml") && path.is_file() && is_recipe() {
            found.push(path.strip_prefix(".").map(Utf8Path::to_owned).unwrap_or(path));
        }
    }
    found.sort();
    Ok(found)
}

/// Opens the store that the command line names, or the user's.
pub fn store(global: &Global) -> Result<Store, Failure> {
    let root = match &global.store {
        Some(root) => root.clone(),
        None => cache_folder()?.join("actloom"),
    };
    Ok(Store::open(&root)?)
}

/// `$XDG_CACHE_HOME`, or `.cache` at home.
fn cache_folder() -> Result<Utf8PathBuf, Failure> {
    let absolute = |name| env::var(name).ok().map(Utf8PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .ok_or_else(|| Failure::usage("there is no HOME to keep a store in", "choose a folder with `--store DIR`"))
}
