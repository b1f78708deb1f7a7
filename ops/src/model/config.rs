//! `config.json` of a Qwen3 model.
//!
//! Invariant: a field that changes what the model computes is either honoured or refused by name; `rope_theta` is read
//! in both spellings and must be in one of them.

use actloom_engine::op::OpError;
use serde_json::{Value, json};

/// Sizes and constants of a Qwen3 model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub max_positions: usize,
    pub tied: bool,
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
}

/// Fields that say nothing about what the forward computes here.
const INERT: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "initializer_range",
    "max_window_layers",
    "model_type",
    "pad_token_id",
    "rope_parameters",
    "rope_theta",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
];

fn refuse(field: &str, found: &Value, expected: &str) -> OpError {
    OpError::failed(format!("`{field}` of the model's config is `{found}`, expected {expected}"))
}

fn whole(json: &Value, field: &str) -> Result<usize, OpError> {
    let value = json.get(field).unwrap_or(&Value::Null);
    value.as_u64().filter(|n| *n > 0).map(|n| n as usize).ok_or_else(|| refuse(field, value, "a positive whole number"))
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or not supported.
    pub fn from_json(json: &Value) -> Result<Config, OpError> {
        let Some(fields) = json.as_object() else { return Err(OpError::failed("the model's config is not an object")) };
        if json["model_type"] != "qwen3" {
            return Err(refuse("model_type", &json["model_type"], "`qwen3`"));
        }
        let known = [
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "max_position_embeddings",
            "tie_word_embeddings",
            "eos_token_id",
        ];
        for (field, value) in fields {
            let fine = match field.as_str() {
                f if known.contains(&f) || INERT.contains(&f) => true,
                "hidden_act" => value == "silu",
                "attention_bias" | "use_sliding_window" => value == false,
                "sliding_window" | "rope_scaling" | "quantization_config" => value.is_null(),
                "layer_types" => value.as_array().is_some_and(|types| types.iter().all(|t| t == "full_attention")),
                _ => value.is_null(),
            };
            if !fine {
                return Err(OpError::failed(format!("`{field}` = `{value}` in the model's config is not supported")));
            }
        }
        let theta = match (&json["rope_theta"], &json["rope_parameters"]) {
            (Value::Number(n), _) => n.as_f64(),
            (_, Value::Object(rope)) => {
                let kind = rope.get("rope_type").unwrap_or(&Value::Null);
                if !kind.is_null() && kind != "default" {
                    return Err(refuse("rope_parameters.rope_type", kind, "`default`"));
                }
                rope.get("rope_theta").and_then(Value::as_f64)
            }
            _ => None,
        };
        let rope_theta = theta.ok_or_else(|| {
            OpError::failed("the model's config has neither `rope_theta` nor `rope_parameters.rope_theta`")
        })?;
        let eos = match &json["eos_token_id"] {
            Value::Number(n) => n.as_u64().map(|n| vec![n as u32]),
            Value::Array(ids) => ids.iter().map(|n| n.as_u64().map(|n| n as u32)).collect(),
            Value::Null => Some(Vec::new()),
            _ => None,
        };
        let heads = whole(json, "num_attention_heads")?;
        let config = Config {
            vocab_size: whole(json, "vocab_size")?,
            hidden_size: whole(json, "hidden_size")?,
            intermediate_size: whole(json, "intermediate_size")?,
            layers: whole(json, "num_hidden_layers")?,
            heads,
            kv_heads: if json["num_key_value_heads"].is_null() { heads } else { whole(json, "num_key_value_heads")? },
            head_dim: if json["head_dim"].is_null() { 128 } else { whole(json, "head_dim")? },
            rms_norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            rope_theta,
            max_positions: whole(json, "max_position_embeddings")?,
            tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
            eos: eos.ok_or_else(|| refuse("eos_token_id", &json["eos_token_id"], "a token id or a list of them"))?,
            pad: json["pad_token_id"].as_u64().map(|n| n as u32),
        };
        config.check()?;
        Ok(config)
    }

    /// Whether the sizes fit together.
    ///
    /// # Errors
    /// Names the two that do not.
    pub fn check(&self) -> Result<(), OpError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let (h, k) = (self.heads, self.kv_heads);
            return Err(OpError::failed(format!("{h} attention heads cannot share {k} key/value heads evenly")));
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > 256 {
            return Err(OpError::failed(format!(
                "head dimension {}, expected an even number up to 256",
                self.head_dim
            )));
        }
        Ok(())
    }

    /// What transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied,
            "attention_bias": false,
            "attention_dropout": 0.0,
            "use_sliding_window": false,
            "sliding_window": null,
            "initializer_range": 0.02,
            "eos_token_id": self.eos,
            "pad_token_id": self.pad,
            "torch_dtype": "float32",
            "dtype": "float32",
        })
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let (d, q, kv) = (self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let layer = d * (2 * q + 2 * kv) + 3 * d * self.intermediate_size + 2 * d + 2 * self.head_dim;
        self.vocab_size * d * if self.tied { 1 } else { 2 } + self.layers * layer + d
    }
}
