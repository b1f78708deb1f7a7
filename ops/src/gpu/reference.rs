//! A model on a device against numbers that PyTorch wrote: a folder with `model`, `forward.safetensors` and `grads.safetensors`, as
//! `ops/tests/fixtures/parity/README.md` tells them.
//!
//! Losses of preferences and of policy optimisation are functions of log-probabilities on the host, the same for every device; what
//! a device can do wrong is in logits and gradients.

use std::collections::HashMap;
use std::sync::Arc;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use candle_core::{DType, Device, Tensor};

use super::check::Finding;
use super::driver::Driver;
use super::engine::Engine;
use super::parts::{Purpose, Shape};
use crate::model::{self, failed};
use crate::train::batch::Row;

/// How far logits, and gradients, may be off, as a share of their norm: bf16 has eight bits.
const LOGITS: f64 = 0.03;
const GRADIENTS: f64 = 0.08;

fn flat(t: &Tensor) -> candle_core::Result<Vec<f32>> {
    t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// |got - want| / |want|
fn off(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let apart: f64 = got.iter().zip(want).map(|(g, w)| square(f64::from(*g) - f64::from(*w))).sum();
    let size: f64 = want.iter().map(|w| square(f64::from(*w))).sum();
    let error = (apart / size).sqrt();
    if got.len() == want.len() && error.is_finite() { error } else { f64::INFINITY }
}

/// What is compared of a fixture's sequences.
struct Sequences {
    tensors: HashMap<String, Tensor>,
    ids: Vec<Vec<u32>>,
}

impl Sequences {
    fn read(folder: &Utf8Path) -> Result<Sequences, OpError> {
        let tensors = read(folder, "forward.safetensors")?;
        let of = |name: &str| of(&tensors, folder, name)?.to_vec2::<i64>().map_err(failed);
        let (ids, mask) = (of("input_ids")?, of("attention_mask")?);
        let kept = |(ids, mask): (&Vec<i64>, &Vec<i64>)| {
            ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()
        };
        let ids = ids.iter().zip(&mask).map(kept).collect();
        Ok(Sequences { tensors, ids })
    }

    /// All of them in one row, with the targets that the labels name.
    fn row(&self, folder: &Utf8Path, labels: &str) -> Result<Row, OpError> {
        let labels = of(&self.tensors, folder, labels)?.to_vec2::<i64>().map_err(failed)?;
        let mut row = Row::default();
        for (i, ids) in self.ids.iter().enumerate() {
            row.add(i, None, ids, |t| labels[i].get(t).is_some_and(|label| *label != -100));
        }
        Ok(row)
    }
}

fn read(folder: &Utf8Path, name: &str) -> Result<HashMap<String, Tensor>, OpError> {
    let path = folder.join(name);
    candle_core::safetensors::load(&path, &Device::Cpu)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))
}

fn of<'t>(tensors: &'t HashMap<String, Tensor>, folder: &Utf8Path, name: &str) -> Result<&'t Tensor, OpError> {
    tensors.get(name).ok_or_else(|| OpError::failed(format!("the numbers in `{folder}` have no tensor `{name}`")))
}

/// Compares logits, losses and gradients.
///
/// # Errors
/// A folder that does not hold what it should; the device's.
pub fn check(device: &Arc<dyn Driver>, folder: &Utf8Path, report: &mut dyn FnMut(Finding)) -> Result<(), OpError> {
    let sequences = Sequences::read(folder)?;
    let gradients = read(folder, "grads.safetensors")?;
    let model = model::load(&folder.join("model"), &Device::Cpu)?;
    let mut found = |what: String, error: f64, limit: f64| report(Finding { what, error, limit });
    let positions = model.config.max_positions;
    let purpose = Purpose { row_tokens: 256, chunk: 96, positions, ..Purpose::default() };
    for labels in ["all", "part"] {
        let mut engine = Engine::new(device.clone(), &Shape::of(&model), purpose).map_err(failed)?;
        for p in model.params() {
            engine.write(&p.name, &p.value).map_err(failed)?;
        }
        engine.written().map_err(failed)?;
        let row = sequences.row(folder, &format!("labels_{labels}"))?;
        if labels == "all" {
            let logits = engine.logits(&row.ids, &row.packing).map_err(failed)?;
            let want = of(&sequences.tensors, folder, "logits")?;
            let vocabulary = model.config.vocab_size;
            let mut at = 0;
            for (i, ids) in sequences.ids.iter().enumerate() {
                let want =
                    want.get(i).and_then(|t| t.narrow(0, 0, ids.len())).and_then(|t| flat(&t)).map_err(failed)?;
                let end = at + ids.len() * vocabulary;
                found(format!("logits of sequence {i} by PyTorch"), off(&logits[at..end], &want), LOGITS);
                at = end;
            }
        }
        let n = row.targets.len() as f32;
        engine.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -1.0 / n).map_err(failed)?;
        for p in model.params() {
            let Some(want) = gradients.get(&format!("{labels}.{}", p.name)) else { continue };
            let got = engine.gradient(&p.name).map_err(failed)?.unwrap_or_default();
            let error = off(&got, &flat(want).map_err(failed)?);
            found(format!("gradient of {} by PyTorch, {labels} targets", p.name), error, GRADIENTS);
        }
    }
    Ok(())
}
