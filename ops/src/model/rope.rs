//! Rotary embeddings as configs describe them: a base, and how frequencies are stretched for long contexts.
//!
//! Invariant: frequencies are computed in the precision and the order of transformers (float32, from the float32 power
//! of the base), so that positions in the thousands agree.

use actloom_engine::op::OpError;
use serde_json::{Map, Value, json};

use super::config::{Fields, refuse};

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: Scaling,
}

/// How frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    None,
    /// Positions divided by `factor`. Chen et al., "Extending context window", 2023.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: usize,
    },
    /// Peng et al., "YaRN", 2023: a ramp over dimensions, and cosines and sines multiplied by `attention`.
    Yarn {
        factor: f64,
        fast: f64,
        slow: f64,
        original: usize,
        attention: f64,
        truncate: bool,
    },
}

impl Rope {
    pub fn new(theta: f64) -> Rope {
        Rope { theta, scaling: Scaling::None }
    }

    /// Embedding of full layers, and of sliding layers where it differs. `only_full`: a flat scaling is for full layers.
    pub fn read(f: &Fields<'_>, positions: usize, only_full: bool) -> Result<(Rope, Option<Rope>), OpError> {
        let base = match f.get("rope_theta") {
            Value::Null => None,
            value => {
                let theta = value.as_f64().filter(|x| *x > 0.0);
                Some(theta.ok_or_else(|| refuse("rope_theta", value, "a positive number"))?)
            }
        };
        let none = Map::new();
        match f.get("rope_parameters") {
            Value::Object(all) if all.contains_key("full_attention") || all.contains_key("sliding_attention") => {
                let part = |name: &str| match all.get(name) {
                    Some(Value::Object(p)) => one(p, &format!("rope_parameters.{name}"), base, positions).map(Some),
                    Some(Value::Null) | None => Ok(None),
                    Some(value) => Err(refuse(&format!("rope_parameters.{name}"), value, "a table")),
                };
                let (full, sliding) = (part("full_attention")?, part("sliding_attention")?);
                match (full, sliding) {
                    (Some(full), sliding) => Ok((full.clone(), sliding.filter(|s| *s != full))),
                    (None, Some(sliding)) => Ok((sliding, None)),
                    (None, None) => Err(neither()),
                }
            }
            Value::Object(p) => {
                let rope = one(p, "rope_parameters", base, positions)?;
                if let Value::Object(other) = f.get("rope_scaling")
                    && one(other, "rope_scaling", Some(rope.theta), positions)? != rope
                {
                    return Err(OpError::failed(
                        "`rope_scaling` and `rope_parameters` of the model's config disagree, expected one of them",
                    ));
                }
                Ok(split(rope, only_full))
            }
            Value::Null => {
                let scaling = match f.get("rope_scaling") {
                    Value::Null => &none,
                    Value::Object(p) => p,
                    value => return Err(refuse("rope_scaling", value, "a table or null")),
                };
                Ok(split(one(scaling, "rope_scaling", base, positions)?, only_full))
            }
            value => Err(refuse("rope_parameters", value, "a table")),
        }
    }

    /// Writes both spellings.
    pub fn write(&self, sliding: Option<&Rope>, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
        put("rope_theta", json!(self.theta));
        let parameters = |rope: &Rope| {
            let mut p = rope.scaling.to_json();
            p.insert("rope_theta".into(), json!(rope.theta));
            Value::Object(p)
        };
        if self.scaling != Scaling::None {
            put("rope_scaling", Value::Object(self.scaling.to_json()));
        }
        match sliding {
            None => put("rope_parameters", parameters(self)),
            Some(sliding) => put(
                "rope_parameters",
                json!({ "full_attention": parameters(self), "sliding_attention": parameters(sliding) }),
            ),
        };
    }

    /// Radians per position of each pair of dimensions, (d/2), and the factor on cosines and sines.
    pub fn frequencies(&self, d: usize) -> (Vec<f32>, f32) {
        let power = |i: usize| self.theta.powf(f64::from((2 * i) as f32 / d as f32)) as f32;
        let plain = |i: usize| 1.0 / power(i);
        let half = 0..d / 2;
        match self.scaling {
            Scaling::None => (half.map(plain).collect(), 1.0),
            Scaling::Linear { factor } => (half.map(|i| plain(i) / factor as f32).collect(), 1.0),
            Scaling::Llama3 { factor, low, high, original } => {
                let (factor, low, high, original) = (factor as f32, low as f32, high as f32, original as f32);
                let stretch = |i: usize| {
                    let f = plain(i);
                    let wave = 2.0 * std::f32::consts::PI / f;
                    if wave < original / high {
                        f
                    } else if wave > original / low {
                        f / factor
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (half.map(stretch).collect(), 1.0)
            }
            Scaling::Yarn { factor, fast, slow, original, attention, truncate } => {
                let turns = |n: f64| {
                    let length = original as f64 / (n * 2.0 * std::f64::consts::PI);
                    d as f64 * length.ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (turns(fast), turns(slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(d as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretch = |i: usize| {
                    let keep = 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                    (1.0 / (factor as f32 * power(i))) * (1.0 - keep) + plain(i) * keep
                };
                (half.map(stretch).collect(), attention as f32)
            }
        }
    }
}

fn neither() -> OpError {
    OpError::failed("the model's config has neither `rope_theta` nor `rope_parameters.rope_theta`")
}

/// A flat description: the same for all layers, or scaled in full layers only.
fn split(rope: Rope, only_full: bool) -> (Rope, Option<Rope>) {
    let sliding = (only_full && rope.scaling != Scaling::None).then(|| Rope::new(rope.theta));
    (rope, sliding)
}

/// One table of rope parameters; `field` is its name for messages.
fn one(p: &Map<String, Value>, field: &str, base: Option<f64>, positions: usize) -> Result<Rope, OpError> {
    let get = |name: &str| p.get(name).unwrap_or(&Value::Null);
    let number = |name: &str, default: Option<f64>| match (get(name), default) {
        (Value::Null, Some(default)) => Ok(default),
        (value, _) => value
            .as_f64()
            .filter(|x| *x > 0.0)
            .ok_or_else(|| refuse(&format!("{field}.{name}"), value, "a positive number")),
    };
    let whole = |name: &str| match get(name) {
        Value::Null => Ok(positions),
        value => {
            let n = value.as_u64().filter(|n| *n > 0);
            n.map(|n| n as usize).ok_or_else(|| refuse(&format!("{field}.{name}"), value, "a positive whole number"))
        }
    };
    let theta = match (get("rope_theta"), base) {
        (Value::Null, Some(base)) => base,
        (Value::Null, None) => return Err(neither()),
        _ => number("rope_theta", None)?,
    };
    let kind = if get("rope_type").is_null() { get("type") } else { get("rope_type") };
    let known: &[&str] = match kind.as_str() {
        Some("linear") => &["factor"],
        Some("llama3") => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        Some("yarn") => {
            &["factor", "attention_factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "truncate"]
        }
        _ => &[],
    };
    if !matches!(kind.as_str(), None | Some("default" | "linear" | "llama3" | "yarn")) {
        return Err(refuse(&format!("{field}.rope_type"), kind, "`default`, `linear`, `llama3` or `yarn`"));
    }
    for (name, value) in p {
        let shared = ["rope_theta", "rope_type", "type"].contains(&name.as_str());
        let whole_head = name == "partial_rotary_factor" && value.as_f64() == Some(1.0);
        if !shared && !whole_head && !known.contains(&name.as_str()) && !value.is_null() {
            return Err(OpError::failed(format!(
                "`{field}.{name}` = `{value}` in the model's config is not supported"
            )));
        }
    }
    let scaling = match kind {
        Value::Null => Scaling::None,
        kind => match kind.as_str() {
            Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: number("factor", None)? },
            Some("llama3") => Scaling::Llama3 {
                factor: number("factor", None)?,
                low: number("low_freq_factor", None)?,
                high: number("high_freq_factor", None)?,
                original: whole("original_max_position_embeddings")?,
            },
            Some("yarn") => {
                let factor = number("factor", None)?;
                let usual = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
                Scaling::Yarn {
                    factor,
                    fast: number("beta_fast", Some(32.0))?,
                    slow: number("beta_slow", Some(1.0))?,
                    original: whole("original_max_position_embeddings")?,
                    attention: number("attention_factor", Some(usual))?,
                    truncate: get("truncate").as_bool().unwrap_or(true),
                }
            }
            _ => {
                return Err(refuse(&format!("{field}.rope_type"), kind, "`default`, `linear`, `llama3` or `yarn`"));
            }
        },
    };
    Ok(Rope { theta, scaling })
}

impl Scaling {
    /// As `rope_scaling` spells it.
    fn to_json(&self) -> Map<String, Value> {
        let value = match *self {
            Scaling::None => json!({ "rope_type": "default" }),
            Scaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
            Scaling::Llama3 { factor, low, high, original } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }),
            Scaling::Yarn { factor, fast, slow, original, attention, truncate } => json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": fast,
                "beta_slow": slow,
                "original_max_position_embeddings": original,
                "attention_factor": attention,
                "truncate": truncate,
            }),
        };
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}
