//! Checkpoints of a training run: weights, moments, counters; atomic as a set.
//!
//! 1. Everything is written and synced into `next/`. 2. `next/` is renamed to `at-N/`. 3. Older ones are removed.
//!
//! What is frozen is not in it: it is what the step's inputs say. A crash between any two leaves a whole checkpoint behind. There is no generator state: random streams are functions
//! of (seed, position).

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::optimizer::{Optimizer, Settings};
use crate::model::{Model, failed, save_tensors};

/// Where a training run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Updates done.
    pub step: u64,
    /// Whatever counters the method keeps beside it; `optimizer` is the optimizer's own count where it differs.
    pub counters: BTreeMap<String, f64>,
}

fn sync_folder(folder: &Utf8Path) -> Result<(), OpError> {
    for entry in fs_err::read_dir(folder)? {
        fs_err::File::open(entry?.path())?.sync_all()?;
    }
    fs_err::File::open(folder)?.sync_all()?;
    Ok(())
}

fn checkpoints(scratch: &Utf8Path) -> Result<Vec<(u64, Utf8PathBuf)>, OpError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(scratch)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix("at-").and_then(|n| n.parse().ok()) {
            found.push((step, scratch.join(name)));
        }
    }
    found.sort();
    Ok(found)
}

/// Saves a checkpoint into the step's scratch folder.
///
/// # Errors
/// The file system's.
pub fn save(scratch: &Utf8Path, model: &Model, optimizer: &Optimizer, position: &Position) -> Result<(), OpError> {
    let next = scratch.join("next");
    if next.exists() {
        fs_err::remove_dir_all(&next)?;
    }
    fs_err::create_dir_all(&next)?;
    let trained = model.params().into_iter().filter(|p| p.trainable);
    let weights: Vec<(String, &Tensor)> = trained.map(|p| (p.name.clone(), &p.value)).collect();
    save_tensors(&next.join("weights.safetensors"), &weights)?;
    save_tensors(&next.join("moments.safetensors"), &optimizer.tensors())?;
    fs_err::write(next.join("position.json"), serde_json::to_vec(position).map_err(std::io::Error::from)?)?;
    sync_folder(&next)?;
    let target = scratch.join(format!("at-{}", position.step));
    if target.exists() {
        fs_err::remove_dir_all(&target)?;
    }
    fs_err::rename(&next, &target)?;
    fs_err::File::open(scratch)?.sync_all()?;
    for (step, path) in checkpoints(scratch)? {
        if step != position.step {
            fs_err::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// An error that says from where the step can go on.
pub fn with_last(scratch: &Utf8Path, error: OpError) -> OpError {
    let OpError::Failed { message, help } = error else { return error };
    let last = match checkpoints(scratch).ok().and_then(|mut found| found.pop()) {
        Some((step, folder)) => {
            format!("the last checkpoint is that of update {step}, `{folder}`; a re-run goes on from it")
        }
        None => "no checkpoint was written yet; a re-run begins anew".to_owned(),
    };
    OpError::Failed { message, help: Some(help.map_or(last.clone(), |help| format!("{help}; {last}"))) }
}

/// Loads the newest checkpoint into `model`, which is as it was when training began; `None` where there is none.
///
/// # Errors
/// When it cannot be read, or is of a model in which something else is trained.
pub fn load(
    scratch: &Utf8Path,
    model: &mut Model,
    settings: &Settings,
) -> Result<Option<(Optimizer, Position)>, OpError> {
    let Some((_, folder)) = checkpoints(scratch)?.pop() else { return Ok(None) };
    let read = |name: &str| -> Result<BTreeMap<String, Tensor>, OpError> {
        let path = folder.join(name);
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
        let device = &model.device;
        tensors.into_iter().map(|(k, t)| Ok((k, t.to_device(device).map_err(failed)?))).collect()
    };
    let mut weights = read("weights.safetensors")?;
    let moments = read("moments.safetensors")?;
    let path = folder.join("position.json");
    let position: Position = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    for p in model.params_mut().into_iter().filter(|p| p.trainable) {
        let Some(value) = weights.remove(&p.name) else {
            return Err(OpError::failed(format!("checkpoint `{folder}` has no tensor `{}`", p.name)));
        };
        p.value = value;
        p.changed();
    }
    if let Some(name) = weights.keys().next() {
        return Err(OpError::failed(format!("checkpoint `{folder}` has a tensor `{name}` that is not trained")));
    }
    let steps = position.counters.get("optimizer").map_or(position.step, |n| *n as u64);
    let optimizer = Optimizer::restore(settings.clone(), steps, moments)?;
    Ok(Some((optimizer, position)))
}
