//! Families of models: one short file each, which says what its `config.json` means and where its norms stand.
//!
//! To add one: a file with `read` and `write`, and a line in each function of this one. No new layer, no new backward.

mod llama;
mod olmo3;
mod qwen2;
mod qwen3;

use actloom_engine::op::OpError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::{Config, Fields, refuse};
use crate::nn::block::NormPlace;

/// An architecture, as `model_type` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Norms of queries and keys over each head, no biases.
    #[default]
    Qwen3,
    /// Biases on queries, keys and values. Qwen2 and Qwen2.5.
    Qwen2,
    /// Llama 3.x, with its scaling of rotary frequencies.
    Llama,
    /// Norms after attention and MLP, norms over all queries and all keys, sliding layers.
    Olmo3,
}

/// Every family.
pub const FAMILIES: [Family; 4] = [Family::Qwen3, Family::Qwen2, Family::Llama, Family::Olmo3];

impl Family {
    pub fn by_name(model_type: &Value) -> Result<Family, OpError> {
        let found = FAMILIES.into_iter().find(|f| model_type == f.name());
        found.ok_or_else(|| refuse("model_type", model_type, "`qwen3`, `qwen2`, `llama` or `olmo3`"))
    }

    /// `model_type`.
    pub fn name(self) -> &'static str {
        match self {
            Family::Qwen3 => "qwen3",
            Family::Qwen2 => "qwen2",
            Family::Llama => "llama",
            Family::Olmo3 => "olmo3",
        }
    }

    /// The class that transformers builds.
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Qwen3 => "Qwen3ForCausalLM",
            Family::Qwen2 => "Qwen2ForCausalLM",
            Family::Llama => "LlamaForCausalLM",
            Family::Olmo3 => "Olmo3ForCausalLM",
        }
    }

    /// Where the norms of a block stand.
    pub fn norm_place(self) -> NormPlace {
        if self == Family::Olmo3 { NormPlace::After } else { NormPlace::Before }
    }

    /// Names of the norms of attention and MLP.
    pub fn norm_names(self) -> (&'static str, &'static str) {
        match self.norm_place() {
            NormPlace::Before => ("input_layernorm", "post_attention_layernorm"),
            NormPlace::After => ("post_attention_layernorm", "post_feedforward_layernorm"),
        }
    }

    /// Whether queries and keys have norms, and whether these are over all heads at once.
    pub fn qk_norm_is_whole(self) -> Option<bool> {
        match self {
            Family::Qwen3 => Some(false),
            Family::Olmo3 => Some(true),
            Family::Qwen2 | Family::Llama => None,
        }
    }
}

/// Reads what only this family has.
pub fn read(family: Family, f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    match family {
        Family::Qwen3 => qwen3::read(f, config),
        Family::Qwen2 => qwen2::read(f, config),
        Family::Llama => llama::read(f, config),
        Family::Olmo3 => olmo3::read(f, config),
    }
}

/// Writes what only this family has.
pub fn write(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    match config.family {
        Family::Qwen3 => qwen3::write(config, put),
        Family::Qwen2 => qwen2::write(config, put),
        Family::Llama => llama::write(config, put),
        Family::Olmo3 => olmo3::write(config, put),
    }
}

/// `layer_types` as transformers spells them.
fn layer_types(config: &Config) -> Value {
    (0..config.layers).map(|i| if config.slides(i) { "sliding_attention" } else { "full_attention" }).collect()
}
