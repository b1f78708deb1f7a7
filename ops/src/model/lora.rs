//! Low-rank adapters: attached to linear layers, stored as PEFT stores them, merged into the weights.
//!
//! Invariants: attaching freezes everything else; a fresh adapter changes no bit of what the model computes; what PEFT
//! would compute differently is refused by name; equal adapters write equal bytes.

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::io::save_tensors;
use super::{Model, failed};
use crate::nn::layer::{Adapter, Dropout, Param};
use crate::rng::Rng;

/// PEFT's settings file.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before a layer's name.
const PREFIX: &str = "base_model.model.";

/// Settings of new adapters. Hu et al., "LoRA: low-rank adaptation of large language models", 2021.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rank of the addition to a weight.
    #[schemars(range(min = 1, max = 4096))]
    pub rank: usize,
    /// The addition is multiplied by alpha / rank.
    #[schemars(range(min = 0.0))]
    pub alpha: f64,
    /// Names of layers, by their last part: `q_proj`, `down_proj`. `["all"]` is every linear layer but the head.
    pub targets: Vec<String>,
    /// Share of the entries of a layer's input that training hides from its adapter. Above 0 the trainer computes
    /// something else than the sampler.
    #[schemars(range(min = 0.0, max = 0.99))]
    pub dropout: f64,
}

impl Default for Lora {
    fn default() -> Self {
        Lora { rank: 16, alpha: 32.0, targets: vec!["all".into()], dropout: 0.0 }
    }
}

/// Whether a layer is meant by `targets`, as PEFT reads them: a whole name, or its end after a dot.
fn is_target(name: &str, targets: &[String]) -> bool {
    targets.iter().any(|t| match t.as_str() {
        "all" | "all-linear" => name != "lm_head",
        t => name == t || name.strip_suffix(t).is_some_and(|head| head.ends_with('.')),
    })
}

/// Freezes the model and gives each target an adapter: A uniform in +-1/sqrt(in) (as PEFT draws it), B zero.
///
/// # Errors
/// Names a target that no layer has; a model with adapters; a rank of 0.
pub fn attach(model: &mut Model, lora: &Lora, seed: u64) -> Result<(), OpError> {
    if lora.rank == 0 {
        return Err(OpError::failed("the rank of an adapter is 0, expected a positive number"));
    }
    let names: Vec<String> = model.linears().into_iter().map(|(name, _)| name).collect();
    if let Some(target) = lora.targets.iter().find(|t| !names.iter().any(|n| is_target(n, std::slice::from_ref(t)))) {
        let mut known: Vec<&str> = names.iter().map(|n| n.rsplit('.').next().unwrap_or(n)).collect();
        known.sort_unstable();
        known.dedup();
        let tied = if target == "lm_head" { "; this model's head is its embedding" } else { "" };
        return Err(OpError::failed(format!(
            "no linear layer is called `{target}`, expected `all` or some of {}{tied}",
            known.join(", ")
        )));
    }
    freeze(model)?;
    let device = model.device.clone();
    for (index, (name, linear)) in model.linears_mut().into_iter().enumerate() {
        if !is_target(&name, &lora.targets) {
            continue;
        }
        let (out, input) = linear.w.value.dims2().map_err(failed)?;
        let bound = 1.0 / (input as f64).sqrt();
        let mut rng = Rng::at(seed, &[index as u64]);
        let a: Vec<f32> = (0..lora.rank * input).map(|_| ((2.0 * rng.uniform() - 1.0) * bound) as f32).collect();
        let a = Tensor::from_vec(a, (lora.rank, input), &device).map_err(failed)?;
        let b = Tensor::zeros((out, lora.rank), DType::F32, &device).map_err(failed)?;
        linear.adapter = Some(adapter(&name, a, b, lora.alpha / lora.rank as f64));
        if lora.dropout > 0.0
            && let Some(adapter) = &mut linear.adapter
        {
            adapter.dropout = Some(Dropout { rate: lora.dropout, key: [seed, index as u64, 0, 0] });
        }
    }
    Ok(())
}

fn freeze(model: &mut Model) -> Result<(), OpError> {
    if is_attached(model) {
        return Err(OpError::failed("the model already has adapters, expected one without"));
    }
    model.freeze();
    Ok(())
}

fn adapter(layer: &str, a: Tensor, b: Tensor, scale: f64) -> Adapter {
    let part = |name: &str, value| Param::new(format!("{layer}.{name}.weight"), value);
    Adapter { a: part("lora_A", a), b: part("lora_B", b), scale, dropout: None }
}

/// Whether the model has adapters.
pub fn is_attached(model: &Model) -> bool {
    model.linears().iter().any(|(_, l)| l.adapter.is_some())
}

/// Sets which entries the next forward and backward drop: a function of the update and the row within it. Nothing
/// where no adapter drops.
pub fn set_dropout(model: &mut Model, update: u64, row: u64) {
    for (_, linear) in model.linears_mut() {
        if let Some(dropout) = linear.adapter.as_mut().and_then(|l| l.dropout.as_mut()) {
            (dropout.key[2], dropout.key[3]) = (update, row);
        }
    }
}

/// Adds every adapter to its weight and drops it. Frozen parameters stay frozen.
///
/// # Errors
/// candle's.
pub fn merge(model: &mut Model) -> Result<(), OpError> {
    let kernels = model.kernels;
    for (_, linear) in model.linears_mut() {
        if linear.adapter.is_some() {
            linear.w.value = linear.merged(kernels).map_err(failed)?;
            linear.w.changed();
            linear.adapter = None;
        }
    }
    Ok(())
}

/// Writes the adapters as a PEFT folder; `base` goes into `base_model_name_or_path`.
///
/// # Errors
/// A model without adapters, or whose adapters differ in rank or scale; the file system's.
pub fn save_adapter(model: &Model, folder: &Utf8Path, base: &str) -> Result<(), OpError> {
    let mut tensors: BTreeMap<String, &Tensor> = BTreeMap::new();
    let mut modules: Vec<String> = Vec::new();
    let mut shape: Option<(usize, f64, f64)> = None;
    for (name, linear) in model.linears() {
        let Some(l) = &linear.adapter else { continue };
        tensors.insert(format!("{PREFIX}{}", l.a.name), &l.a.value);
        tensors.insert(format!("{PREFIX}{}", l.b.name), &l.b.value);
        modules.push(name.rsplit('.').next().unwrap_or(&name).to_owned());
        let this = (l.a.value.dim(0).map_err(failed)?, l.scale, l.dropout.map_or(0.0, |d| d.rate));
        if *shape.get_or_insert(this) != this {
            return Err(OpError::failed(format!("the adapter of `{name}` has another rank or scale than the first")));
        }
    }
    let Some((rank, scale, dropout)) = shape else {
        return Err(OpError::failed("the model has no adapters to write"));
    };
    modules.sort();
    modules.dedup();
    let alpha = scale * rank as f64;
    let whole = alpha.fract() == 0.0;
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": if whole { json!(alpha as i64) } else { json!(alpha) },
        "lora_dropout": dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
        "modules_to_save": null,
        "use_rslora": false,
        "use_dora": false,
    });
    fs_err::create_dir_all(folder)?;
    fs_err::write(folder.join(ADAPTER_CONFIG), format!("{config:#}\n"))?;
    let list: Vec<(String, &Tensor)> = tensors.into_iter().collect();
    save_tensors(&folder.join(ADAPTER_WEIGHTS), &list)
}

/// Freezes the model and attaches the adapters of a PEFT folder.
///
/// # Errors
/// Names the setting that is not supported, the tensor that fits no layer, or the layer that lacks one.
pub fn load_adapter(model: &mut Model, folder: &Utf8Path) -> Result<(), OpError> {
    let path = folder.join(ADAPTER_CONFIG);
    let config: Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    let settings = Settings::read(&config, &path)?;
    let path = folder.join(ADAPTER_WEIGHTS);
    let loaded = candle_core::safetensors::load(&path, &Device::Cpu)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    let mut tensors: BTreeMap<String, Tensor> = loaded.into_iter().collect();
    freeze(model)?;
    let device = model.device.clone();
    for (name, linear) in model.linears_mut() {
        let mut take = |part: &str| {
            let tensor = tensors.remove(&format!("{PREFIX}{name}.{part}.weight"))?;
            Some(tensor.to_dtype(DType::F32).and_then(|t| t.to_device(&device)).map_err(failed))
        };
        let (a, b) = match (take("lora_A"), take("lora_B")) {
            (Some(a), Some(b)) => (a?, b?),
            (None, None) => continue,
            _ => return Err(OpError::failed(format!("`{path}` has one half of the adapter of `{name}`"))),
        };
        let (out, input) = linear.w.value.dims2().map_err(failed)?;
        let rank = settings.rank(&name);
        if a.dims() != [rank, input] || b.dims() != [out, rank] {
            let (found_a, found_b) = (a.dims().to_vec(), b.dims().to_vec());
            return Err(OpError::failed(format!(
                "the adapter of `{name}` has shapes {found_a:?} and {found_b:?}, expected {:?} and {:?}",
                [rank, input],
                [out, rank]
            )));
        }
        linear.adapter = Some(adapter(&name, a, b, settings.scale(&name)));
    }
    if let Some(name) = tensors.keys().next() {
        return Err(OpError::failed(format!("`{path}` has a tensor `{name}` that fits no linear layer of the model")));
    }
    if !is_attached(model) {
        return Err(OpError::failed(format!("`{path}` holds no adapter")));
    }
    Ok(())
}

/// What an `adapter_config.json` says of each layer.
struct Settings {
    rank: usize,
    alpha: f64,
    ranks: BTreeMap<String, f64>,
    alphas: BTreeMap<String, f64>,
    rank_stabilized: bool,
}

impl Settings {
    fn read(config: &Value, path: &Utf8Path) -> Result<Settings, OpError> {
        let refuse = |field: &str, expected: &str| {
            let found = &config[field];
            OpError::failed(format!("`{field}` in `{path}` is `{found}`, expected {expected}"))
        };
        if config["peft_type"] != "LORA" {
            return Err(refuse("peft_type", "`LORA`"));
        }
        for field in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora", "use_bdlora"] {
            if config[field].as_bool() == Some(true) {
                return Err(refuse(field, "`false`"));
            }
        }
        // these start by changing the base weights, which PEFT does again at every load
        if !matches!(config["init_lora_weights"].as_str(), None | Some("gaussian" | "orthogonal" | "eva")) {
            return Err(refuse("init_lora_weights", "`true`, or a way to begin that leaves the base weights alone"));
        }
        if !matches!(config["bias"].as_str(), None | Some("none")) {
            return Err(refuse("bias", "`none`"));
        }
        for field in ["modules_to_save", "trainable_token_indices", "alora_invocation_tokens", "target_parameters"] {
            if !config[field].is_null() && config[field].as_array().is_none_or(|list| !list.is_empty()) {
                return Err(refuse(field, "null"));
            }
        }
        let map = |field: &str| -> Result<BTreeMap<String, f64>, OpError> {
            let Some(map) = config[field].as_object() else { return Ok(BTreeMap::new()) };
            let entry = |(k, v): (&String, &Value)| Some((k.clone(), v.as_f64()?));
            map.iter().map(entry).collect::<Option<_>>().ok_or_else(|| refuse(field, "numbers by layer"))
        };
        let rank = config["r"].as_u64().filter(|r| *r > 0).ok_or_else(|| refuse("r", "a positive whole number"))?;
        Ok(Settings {
            rank: rank as usize,
            alpha: config["lora_alpha"].as_f64().ok_or_else(|| refuse("lora_alpha", "a number"))?,
            ranks: map("rank_pattern")?,
            alphas: map("alpha_pattern")?,
            rank_stabilized: config["use_rslora"].as_bool().unwrap_or(false),
        })
    }

    fn pattern(map: &BTreeMap<String, f64>, layer: &str) -> Option<f64> {
        map.iter().find(|(k, _)| is_target(layer, std::slice::from_ref(k))).map(|(_, v)| *v)
    }

    fn rank(&self, layer: &str) -> usize {
        Self::pattern(&self.ranks, layer).map_or(self.rank, |r| r as usize)
    }

    fn scale(&self, layer: &str) -> f64 {
        let (rank, alpha) = (self.rank(layer) as f64, Self::pattern(&self.alphas, layer).unwrap_or(self.alpha));
        alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }
}
