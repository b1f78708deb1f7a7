//! AdamW with clipping by global norm.
//!
//! Invariants: a trainable parameter that no backward reached is an error, never a skip; a gradient that is not finite
//! stops with the parameter's name before anything is changed; state is saved and restored to the bit.

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{Model, failed};
use crate::nn::kernel::{self, AdamStep};

/// Settings of AdamW. Loshchilov and Hutter, 2019.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Decay of the first moment.
    #[schemars(range(min = 0.0, max = 0.9999))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[schemars(range(min = 0.0, max = 0.99999))]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub eps: f64,
    /// Decoupled weight decay, on every parameter.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; 0 turns clipping off.
    #[schemars(range(min = 0.0))]
    pub clip: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, clip: 1.0 }
    }
}

/// First and second moments of one parameter.
struct Moments {
    m: Tensor,
    v: Tensor,
}

/// AdamW and its state.
pub struct Optimizer {
    settings: AdamW,
    state: BTreeMap<String, Moments>,
    steps: u64,
}

impl Optimizer {
    pub fn new(settings: AdamW) -> Self {
        Optimizer { settings, state: BTreeMap::new(), steps: 0 }
    }

    /// Updates taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update with the gradients that have added up in the model, which are cleared. Returns their global norm
    /// before clipping.
    ///
    /// # Errors
    /// Names a trainable parameter without a gradient, or one whose gradient is not finite.
    pub fn step(&mut self, model: &mut Model, lr: f64) -> Result<f64, OpError> {
        let kernels = model.kernels;
        let mut total = 0.0;
        for p in model.params_mut().iter().filter(|p| p.trainable) {
            let Some(grad) = &p.grad else {
                return Err(OpError::failed(format!("no gradient reached the trainable parameter `{}`", p.name)));
            };
            let squares = kernel::sum_squares(kernels, grad).map_err(failed)?;
            if !squares.is_finite() {
                return Err(OpError::with_help(
                    format!("the gradient of `{}` is not finite at update {}", p.name, self.steps + 1),
                    "lower the learning rate, or check the rewards; the weights before this update were kept",
                ));
            }
            total += squares;
        }
        let norm = total.sqrt();
        let clip = self.settings.clip;
        let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let s = self.settings;
        let t = self.steps as i32;
        let step = AdamStep {
            lr: lr as f32,
            beta1: s.beta1 as f32,
            beta2: s.beta2 as f32,
            eps: s.eps as f32,
            weight_decay: s.weight_decay as f32,
            scale: scale as f32,
            correction: [(1.0 - s.beta1.powi(t)) as f32, (1.0 - s.beta2.powi(t)) as f32],
        };
        for p in model.params_mut().into_iter().filter(|p| p.trainable) {
            let Some(grad) = p.grad.take() else { continue };
            if !self.state.contains_key(&p.name) {
                let zero = p.value.zeros_like().map_err(failed)?;
                let other = p.value.zeros_like().map_err(failed)?;
                self.state.insert(p.name.clone(), Moments { m: zero, v: other });
            }
            let Some(moments) = self.state.get_mut(&p.name) else { continue };
            kernel::adamw(kernels, &mut p.value, &grad, &mut moments.m, &mut moments.v, step).map_err(failed)?;
            p.changed();
        }
        Ok(norm)
    }

    /// Moments by name: `m.NAME` and `v.NAME`.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let m = self.state.iter().map(|(name, s)| (format!("m.{name}"), &s.m));
        let v = self.state.iter().map(|(name, s)| (format!("v.{name}"), &s.v));
        m.chain(v).collect()
    }

    /// An optimizer that goes on where another stopped.
    ///
    /// # Errors
    /// When a moment has no partner.
    pub fn restore(settings: AdamW, steps: u64, mut tensors: BTreeMap<String, Tensor>) -> Result<Self, OpError> {
        let names: Vec<String> = tensors.keys().filter_map(|k| k.strip_prefix("m.").map(str::to_owned)).collect();
        let mut state = BTreeMap::new();
        for name in names {
            match (tensors.remove(&format!("m.{name}")), tensors.remove(&format!("v.{name}"))) {
                (Some(m), Some(v)) => state.insert(name, Moments { m, v }),
                _ => return Err(OpError::failed(format!("the checkpoint lacks the second moment of `{name}`"))),
            };
        }
        Ok(Optimizer { settings, state, steps })
    }
}
