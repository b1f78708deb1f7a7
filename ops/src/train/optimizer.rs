//! AdamW with clipping by global norm and groups of parameters.
//!
//! Invariants: a trainable parameter that no backward reached is an error, never a skip; a gradient that is not finite
//! stops with the parameter's name before anything is changed; state is saved and restored to the bit; a frozen
//! parameter has no state.

use std::collections::BTreeMap;

use actloom_engine::op::{OpError, seed_for};
use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gpu::update::Rule;
use crate::model::{Model, failed};
use crate::nn::kernel::{self, AdamStep};

/// Settings of AdamW. Loshchilov and Hutter, 2019.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
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
    /// Decoupled weight decay, on every parameter that no group says otherwise of.
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

/// Parameters by name, and what differs for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names in the checkpoint's spelling: `*` is any text, `?` any one character.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The learning rate is multiplied by this.
    #[serde(default = "same")]
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub learning_rate_scale: f64,
    /// Instead of the optimizer's `weight_decay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub weight_decay: Option<f64>,
    /// Not trained at all: no gradient, no state.
    #[serde(default)]
    pub frozen: bool,
}

fn same() -> f64 {
    1.0
}

/// What numbers of a moment are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    #[default]
    Float32,
    /// Rounded at random, so that what many small gradients add is not lost; the step itself is made before.
    Bfloat16,
}

impl Precision {
    fn is_default(&self) -> bool {
        *self == Precision::default()
    }

    /// Bytes of a number on a GPU; the processor keeps what it has rounded as float32.
    pub fn bytes(self) -> usize {
        match self {
            Precision::Float32 => 4,
            Precision::Bfloat16 => 2,
        }
    }
}

/// What the moments of a parameter are rounded by: numbers of their own for every parameter and update.
pub fn rounding_seed(name: &str) -> u64 {
    seed_for(0, name)
}

/// Settings of the optimizer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    #[serde(flatten)]
    pub adamw: AdamW,
    /// How both moments are stored. In bfloat16 they take 4 bytes of a parameter instead of 8 on a GPU; results are others, and as
    /// good.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    #[schemars(extend("default" = "float32"))]
    pub moments: Precision,
    /// Parameters that are treated otherwise; the first group whose pattern fits a name counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

impl From<AdamW> for Settings {
    fn from(adamw: AdamW) -> Self {
        Settings { adamw, ..Settings::default() }
    }
}

impl Settings {
    fn group(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| fits(&group.pattern, name))
    }

    /// Freezes what groups freeze. Call it when adapters are attached, before anything is trained.
    ///
    /// # Errors
    /// Names a pattern that fits no parameter, or none that an earlier group leaves to it; a model of which nothing is
    /// left to train.
    pub fn apply(&self, model: &mut Model) -> Result<(), OpError> {
        let mut used = vec![false; self.groups.len()];
        for p in model.params_mut() {
            if let Some(group) = self.group(&p.name) {
                used[group] = true;
                p.trainable &= !self.groups[group].frozen;
            }
        }
        if let Some(unused) = used.iter().position(|used| !used) {
            let pattern = &self.groups[unused].pattern;
            let names: Vec<&str> = model.params().iter().map(|p| p.name.as_str()).collect();
            if names.iter().any(|name| fits(pattern, name)) {
                return Err(OpError::with_help(
                    format!("the group `{pattern}` of the optimizer is left no parameter by the groups before it"),
                    "the first group that fits a name counts; put the narrower pattern first",
                ));
            }
            return Err(OpError::with_help(
                format!("the group `{pattern}` of the optimizer fits no parameter"),
                format!("the model has `{}`, `{}` and so on", names[0], names[names.len() / 2]),
            ));
        }
        if model.params().iter().all(|p| !p.trainable) {
            return Err(OpError::failed("every parameter is frozen, expected something to train"));
        }
        Ok(())
    }
}

/// Whether a name fits a pattern of `*` and `?`.
fn fits(pattern: &str, name: &str) -> bool {
    let mut pattern = pattern.chars();
    match pattern.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern.as_str();
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter().any(|at| fits(rest, &name[at..]))
        }
        Some(wanted) => {
            let mut name = name.chars();
            name.next().is_some_and(|is| wanted == '?' || wanted == is) && fits(pattern.as_str(), name.as_str())
        }
    }
}

/// The first trainable parameter whose gradient is not finite.
///
/// # Errors
/// candle's.
pub fn not_finite(model: &Model) -> Result<Option<String>, OpError> {
    for p in model.params().into_iter().filter(|p| p.trainable) {
        if let Some(grad) = &p.grad
            && !kernel::sum_squares(model.kernels, grad).map_err(failed)?.is_finite()
        {
            return Ok(Some(p.name.clone()));
        }
    }
    Ok(None)
}

/// First and second moments of one parameter.
struct Moments {
    m: Tensor,
    v: Tensor,
}

/// AdamW and its state.
pub struct Optimizer {
    settings: Settings,
    state: BTreeMap<String, Moments>,
    steps: u64,
}

impl Optimizer {
    pub fn new(settings: impl Into<Settings>) -> Self {
        Optimizer { settings: settings.into(), state: BTreeMap::new(), steps: 0 }
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
        if let Some(done) = self.step_on_gpu(model, lr) {
            return done;
        }
        let kernels = model.kernels;
        let mut total = 0.0;
        for p in model.params_mut().iter().filter(|p| p.trainable) {
            let Some(grad) = &p.grad else {
                return Err(OpError::failed(format!("no gradient reached the trainable parameter `{}`", p.name)));
            };
            let squares = kernel::sum_squares(kernels, grad).map_err(failed)?;
            if !squares.is_finite() {
                return Err(self.not_finite(&p.name));
            }
            total += squares;
        }
        let norm = total.sqrt();
        let clip = self.settings.adamw.clip;
        let scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.steps += 1;
        let s = self.settings.adamw;
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
            let mut step = step;
            if let Some(group) = self.settings.group(&p.name).map(|group| &self.settings.groups[group]) {
                step.lr = (lr * group.learning_rate_scale) as f32;
                step.weight_decay = group.weight_decay.unwrap_or(s.weight_decay) as f32;
            }
            kernel::adamw(kernels, &mut p.value, &grad, &mut moments.m, &mut moments.v, step).map_err(failed)?;
            if self.settings.moments == Precision::Bfloat16 {
                let seed = rounding_seed(&p.name);
                for (which, moment) in [&mut moments.m, &mut moments.v].into_iter().enumerate() {
                    kernel::round_at_random(kernels, moment, (seed, self.steps, which as u64)).map_err(failed)?;
                }
            }
            p.changed();
        }
        Ok(norm)
    }

    fn not_finite(&self, name: &str) -> OpError {
        OpError::with_help(
            format!("the gradient of `{name}` is not finite at update {}", self.steps + 1),
            "lower the learning rate, or check the rewards; the weights before this update were kept",
        )
    }

    /// [`Optimizer::step`] where the model's passes run on a device, which has gradients and moments. Whether a backward reached
    /// a parameter is not known there: one that none reached has a gradient of zeros.
    fn step_on_gpu(&mut self, model: &Model, lr: f64) -> Option<Result<f64, OpError>> {
        let settings = &self.settings;
        let s = settings.adamw;
        let number = self.steps + 1;
        let restored = std::mem::take(&mut self.state);
        let done = model.update_on_gpu(|engine| {
            engine.set_groups(|name| {
                let group = settings.group(name).map(|group| &settings.groups[group]);
                let decay = group.and_then(|g| g.weight_decay).unwrap_or(s.weight_decay);
                (group.map_or(1.0, |g| g.learning_rate_scale), decay as f32)
            })?;
            for (name, moments) in &restored {
                engine.write_moments(name, &moments.m, &moments.v)?;
            }
            engine.update(&Rule { beta1: s.beta1, beta2: s.beta2, eps: s.eps, clip: s.clip }, lr, number)
        });
        let Some(done) = done else {
            self.state = restored;
            return None;
        };
        Some(match done.map_err(failed) {
            Ok(Ok(norm)) => {
                self.steps = number;
                Ok(norm)
            }
            Ok(Err(name)) => Err(self.not_finite(&name)),
            Err(error) => Err(error),
        })
    }

    /// Moments by name: `m.NAME` and `v.NAME`.
    ///
    /// # Errors
    /// The device's, where they are on one.
    pub fn tensors(&self, model: &Model) -> Result<Vec<(String, Tensor)>, OpError> {
        let on_device = model.ask_gpu(|engine| {
            let mut all = Vec::new();
            for p in model.params().into_iter().filter(|p| p.trainable && self.state.is_empty()) {
                let (m, v) = engine.moments(&p.name)?;
                for (kind, moment) in [("m", m), ("v", v)] {
                    all.push((format!("{kind}.{}", p.name), Tensor::from_vec(moment, p.value.shape(), &Device::Cpu)?));
                }
            }
            Ok(all)
        });
        let mut all = match on_device {
            Some(all) => all.map_err(failed)?,
            None => Vec::new(),
        };
        all.extend(self.state.iter().map(|(name, s)| (format!("m.{name}"), s.m.clone())));
        all.extend(self.state.iter().map(|(name, s)| (format!("v.{name}"), s.v.clone())));
        Ok(all)
    }

    /// An optimizer that goes on where another stopped.
    ///
    /// # Errors
    /// When a moment has no partner.
    pub fn restore(
        settings: impl Into<Settings>,
        steps: u64,
        mut tensors: BTreeMap<String, Tensor>,
    ) -> Result<Self, OpError> {
        let names: Vec<String> = tensors.keys().filter_map(|k| k.strip_prefix("m.").map(str::to_owned)).collect();
        let mut state = BTreeMap::new();
        for name in names {
            match (tensors.remove(&format!("m.{name}")), tensors.remove(&format!("v.{name}"))) {
                (Some(m), Some(v)) => state.insert(name, Moments { m, v }),
                _ => return Err(OpError::failed(format!("the checkpoint lacks the second moment of `{name}`"))),
            };
        }
        Ok(Optimizer { settings: settings.into(), state, steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_whole_names() {
        for (pattern, name, expected) in [
            ("*norm*", "model.layers.0.input_layernorm.weight", true),
            ("*norm", "model.norm.weight", false),
            ("model.layers.?.mlp.*", "model.layers.3.mlp.up_proj.weight", true),
            ("model.layers.?.mlp.*", "model.layers.12.mlp.up_proj.weight", false),
            ("*", "", true),
            ("**a*b*", "xaxxbx", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn settings_read_flat_and_refuse_what_they_do_not_know() {
        let read = |text| serde_json::from_str::<Settings>(text);
        let settings = read(r#"{"beta2":0.99,"groups":[{"match":"*norm*","weight_decay":0}]}"#).unwrap();
        assert_eq!((settings.adamw.beta2, settings.adamw.beta1), (0.99, 0.9));
        assert_eq!(settings.groups[0].weight_decay, Some(0.0));
        assert!(read(r#"{"betta2":0.99}"#).unwrap_err().to_string().contains("betta2"));
        assert!(read(r#"{"groups":[{"match":"*","decay":1}]}"#).is_err());
    }
}
