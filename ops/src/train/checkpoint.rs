//! Checkpoints of a training run: weights, moments, counters; atomic as a set.
//!
//! 1. Everything is written and synced into `next/`. 2. `next/` is renamed to `at-N/`. 3. Older ones are removed.
//!
//! What is frozen is not in it: it is what the step's inputs say. A crash between any two leaves a whole checkpoint behind.
//! There is no generator state: random streams are functions of (seed, position). Models that are kept for the end stand
//! beside it as `best-N/`, weights alone; one goes only after a checkpoint was written that does not name it.

use std::collections::BTreeMap;

use actloom_engine::op::{OpContext, OpError};
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::optimizer::{Optimizer, Settings};
use crate::model::{Model, failed, save_tensors};
use crate::nn::kernel;

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

/// Takes up a run where its last checkpoint left it, metrics included, or begins one; says which: `true` if it is new.
///
/// # Errors
/// Those of [`load`] and of the metrics' file.
pub fn begin(
    ctx: &OpContext<'_>,
    model: &mut Model,
    settings: &Settings,
) -> Result<(Optimizer, Position, bool), OpError> {
    match load(ctx.scratch(), model, settings)? {
        Some((optimizer, position)) => {
            ctx.resume_metrics(position.step)?;
            Ok((optimizer, position, false))
        }
        None => Ok((Optimizer::new(settings.clone()), Position::default(), true)),
    }
}

/// After an update: a checkpoint every so many of them, and where the run is asked to stop. The last update of all needs
/// none.
///
/// # Errors
/// `Interrupted` once a checkpoint is there; the file system's.
pub fn after_update(
    ctx: &OpContext<'_>,
    model: &mut Model,
    optimizer: &Optimizer,
    position: &Position,
    (steps, every): (u64, u64),
) -> Result<(), OpError> {
    let stopping = ctx.stopping();
    if position.step < steps && (stopping || position.step.is_multiple_of(every)) {
        ctx.sync_metrics()?;
        save(ctx.scratch(), model, optimizer, position)?;
        if stopping {
            return Err(OpError::Interrupted);
        }
    }
    Ok(())
}

/// Refuses a model with a trained parameter that is not finite; what a device has trained is brought to the host for it.
///
/// # Errors
/// Names it.
pub fn check_finite(model: &mut Model, step: u64) -> Result<(), OpError> {
    model.read_back().map_err(failed)?;
    for p in model.params().into_iter().filter(|p| p.trainable) {
        if !kernel::sum_squares(model.kernels, &p.value).map_err(failed)?.is_finite() {
            let message = format!("`{}` is not finite after update {step}", p.name);
            return Err(OpError::with_help(message, "lower the learning rate"));
        }
    }
    Ok(())
}

/// Saves a checkpoint into the step's scratch folder, in place of the one before.
///
/// # Errors
/// A parameter that is not finite, by name: the checkpoint before is kept; the file system's.
pub fn save(scratch: &Utf8Path, model: &mut Model, optimizer: &Optimizer, position: &Position) -> Result<(), OpError> {
    check_finite(model, position.step).map_err(|e| with_last(scratch, e))?;
    let next = scratch.join("next");
    if next.exists() {
        fs_err::remove_dir_all(&next)?;
    }
    fs_err::create_dir_all(&next)?;
    save_weights(&next, model)?;
    let moments = optimizer.tensors(model)?;
    let moments: Vec<(String, &Tensor)> = moments.iter().map(|(name, t)| (name.clone(), t)).collect();
    save_tensors(&next.join("moments.safetensors"), &moments)?;
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

fn kept(scratch: &Utf8Path, step: u64) -> Utf8PathBuf {
    scratch.join(format!("best-{step}"))
}

/// Keeps the model as it is after `step`, for [`take_kept`].
///
/// # Errors
/// A parameter that is not finite, by name; the file system's.
pub fn keep(scratch: &Utf8Path, model: &mut Model, step: u64) -> Result<(), OpError> {
    check_finite(model, step).map_err(|e| with_last(scratch, e))?;
    let next = scratch.join("next");
    if next.exists() {
        fs_err::remove_dir_all(&next)?;
    }
    fs_err::create_dir_all(&next)?;
    save_weights(&next, model)?;
    sync_folder(&next)?;
    let target = kept(scratch, step);
    if target.exists() {
        fs_err::remove_dir_all(&target)?;
    }
    fs_err::rename(&next, &target)?;
    fs_err::File::open(scratch)?.sync_all()?;
    Ok(())
}

/// Sets the model to what was kept after `step`.
///
/// # Errors
/// When it cannot be read, or is of a model in which something else is trained.
pub fn take_kept(scratch: &Utf8Path, model: &mut Model, step: u64) -> Result<(), OpError> {
    load_weights(&kept(scratch, step), model)
}

/// Removes every kept model but that of `step`.
///
/// # Errors
/// The file system's.
pub fn forget_others(scratch: &Utf8Path, step: u64) -> Result<(), OpError> {
    for entry in fs_err::read_dir(scratch)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("best-").and_then(|n| n.parse::<u64>().ok());
        if number.is_some_and(|n| n != step) {
            fs_err::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn save_weights(folder: &Utf8Path, model: &Model) -> Result<(), OpError> {
    let trained = model.params().into_iter().filter(|p| p.trainable);
    let weights: Vec<(String, &Tensor)> = trained.map(|p| (p.name.clone(), &p.value)).collect();
    save_tensors(&folder.join("weights.safetensors"), &weights)
}

fn read_tensors(path: &Utf8Path, device: &Device) -> Result<BTreeMap<String, Tensor>, OpError> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    tensors.into_iter().map(|(k, t)| Ok((k, t.to_device(device).map_err(failed)?))).collect()
}

fn load_weights(folder: &Utf8Path, model: &mut Model) -> Result<(), OpError> {
    let mut weights = read_tensors(&folder.join("weights.safetensors"), &model.device)?;
    for p in model.params_mut().into_iter().filter(|p| p.trainable) {
        let Some(value) = weights.remove(&p.name) else {
            return Err(OpError::failed(format!("checkpoint `{folder}` has no tensor `{}`", p.name)));
        };
        p.value = value;
        p.changed();
    }
    match weights.keys().next() {
        Some(name) => Err(OpError::failed(format!("checkpoint `{folder}` has a tensor `{name}` that is not trained"))),
        None => Ok(()),
    }
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
    let moments = read_tensors(&folder.join("moments.safetensors"), &model.device)?;
    let path = folder.join("position.json");
    let position: Position = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    load_weights(&folder, model)?;
    let steps = position.counters.get("optimizer").map_or(position.step, |n| *n as u64);
    let optimizer = Optimizer::restore(settings.clone(), steps, moments)?;
    Ok(Some((optimizer, position)))
}
