//! `config.json`: what a model computes, whatever its family calls it.
//!
//! Invariants: a field that changes what the model computes is either honoured or refused by name; the rotary base is
//! read in both spellings (`rope_theta`, `rope_parameters`) and must be in one of them; what is written back keeps every
//! field that was read.

use actloom_engine::op::OpError;
use serde_json::{Map, Value, json};

use super::family::{self, Family};
use super::rope::Rope;

/// Sizes and constants of a decoder-only model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    /// Rotary embedding of layers that see everything.
    pub rope: Rope,
    /// Rotary embedding of sliding layers, where it differs.
    pub sliding_rope: Option<Rope>,
    /// Tokens a sliding layer sees, itself included, and which layers slide; empty where none does.
    pub window: Option<usize>,
    pub sliding: Vec<bool>,
    /// Biases on q, k, v; on o; in the MLP.
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    pub max_positions: usize,
    pub tied: bool,
    pub eos: Vec<u32>,
    pub pad: Option<u32>,
    /// Fields of the file that do not matter here, kept for writing.
    pub rest: Map<String, Value>,
}

/// Fields that say nothing about what the forward computes here. They are kept.
const INERT: &[&str] = &[
    "architectures",
    "bos_token_id",
    "initializer_range",
    "transformers_version",
    "use_cache",
    "_name_or_path",
    "pretraining_tp",
    "attention_dropout",
    "max_window_layers",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "unsloth_version",
    "unsloth_fixed",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "is_llama_config",
    "auto_map",
    "use_bfloat16",
    "torchscript",
    "is_decoder",
    "is_encoder_decoder",
    "task_specific_params",
    "finetuning_task",
    "id2label",
    "label2id",
    "problem_type",
    "tokenizer_class",
    "prefix",
    "chunk_size_feed_forward",
];

/// Fields that are inert at one value; any other is refused.
const INERT_AT: &[(&str, bool)] = &[("use_mrope", false), ("rope_interleaved", false), ("add_cross_attention", false)];

/// Fields that this file or a family reads and writes itself.
const OWN: &[&str] = &[
    "model_type",
    "dtype",
    "torch_dtype",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "max_position_embeddings",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "use_sliding_window",
    "sliding_window",
    "layer_types",
    "eos_token_id",
    "pad_token_id",
];

/// The refusal of a field's value.
pub fn refuse(field: &str, found: &Value, expected: &str) -> OpError {
    OpError::failed(format!("`{field}` of the model's config is `{found}`, expected {expected}"))
}

/// A parsed `config.json`, read field by field.
pub struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The value, null where there is none.
    pub fn get(&self, field: &str) -> &'a Value {
        self.0.get(field).unwrap_or(&Value::Null)
    }

    pub fn whole(&self, field: &str) -> Result<usize, OpError> {
        let value = self.get(field);
        let n = value.as_u64().filter(|n| *n > 0).map(|n| n as usize);
        n.ok_or_else(|| refuse(field, value, "a positive whole number"))
    }

    pub fn whole_or(&self, field: &str, default: usize) -> Result<usize, OpError> {
        if self.get(field).is_null() { Ok(default) } else { self.whole(field) }
    }

    pub fn number_or(&self, field: &str, default: f64) -> Result<f64, OpError> {
        match self.get(field) {
            Value::Null => Ok(default),
            value => value.as_f64().filter(|x| *x > 0.0).ok_or_else(|| refuse(field, value, "a positive number")),
        }
    }

    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool, OpError> {
        match self.get(field) {
            Value::Null => Ok(default),
            value => value.as_bool().ok_or_else(|| refuse(field, value, "`true` or `false`")),
        }
    }

    /// Which layers slide, by `layer_types`; `None` where the field is missing.
    pub fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>, OpError> {
        let value = self.get("layer_types");
        if value.is_null() {
            return Ok(None);
        }
        let expected = format!("a list of {layers} times `full_attention` or `sliding_attention`");
        let types: Option<Vec<bool>> = value.as_array().filter(|t| t.len() == layers).and_then(|types| {
            let slides = |t: &Value| match t.as_str()? {
                "full_attention" => Some(false),
                "sliding_attention" => Some(true),
                _ => None,
            };
            types.iter().map(slides).collect()
        });
        types.map(Some).ok_or_else(|| refuse("layer_types", value, &expected))
    }

    /// Refuses a field that is neither null nor one of `accepted`.
    pub fn only(&self, field: &str, accepted: &[Value]) -> Result<(), OpError> {
        let value = self.get(field);
        if value.is_null() || accepted.contains(value) {
            return Ok(());
        }
        let list: Vec<String> = accepted.iter().map(|v| format!("`{v}`")).collect();
        Err(refuse(field, value, &list.join(" or ")))
    }
}

impl Config {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, malformed or not supported.
    pub fn from_json(json: &Value) -> Result<Config, OpError> {
        let Some(object) = json.as_object() else { return Err(OpError::failed("the model's config is not an object")) };
        let f = Fields(object);
        let family = Family::by_name(f.get("model_type"))?;
        let unsupported: Vec<String> =
            Self::unsupported(object).into_iter().map(|(field, value)| format!("`{field}` = `{value}`")).collect();
        if !unsupported.is_empty() {
            let are = if unsupported.len() == 1 { "is" } else { "are" };
            let list = unsupported.join(", ");
            return Err(OpError::failed(format!("{list} in the model's config {are} not supported")));
        }
        f.only("hidden_act", &[json!("silu")])?;
        f.only("attention_dropout", &[json!(0), json!(0.0)])?;
        let eos = match f.get("eos_token_id") {
            Value::Number(n) => n.as_u64().map(|n| vec![n as u32]),
            Value::Array(ids) => ids.iter().map(|n| n.as_u64().map(|n| n as u32)).collect(),
            Value::Null => Some(Vec::new()),
            _ => None,
        };
        let (heads, hidden) = (f.whole("num_attention_heads")?, f.whole("hidden_size")?);
        let max_positions = f.whole("max_position_embeddings")?;
        let (rope, sliding_rope) = Rope::read(&f, max_positions, family == Family::Olmo3)?;
        let mut config = Config {
            family,
            vocab_size: f.whole("vocab_size")?,
            hidden_size: hidden,
            intermediate_size: f.whole("intermediate_size")?,
            layers: f.whole("num_hidden_layers")?,
            heads,
            kv_heads: f.whole_or("num_key_value_heads", heads)?,
            head_dim: f.whole_or("head_dim", (hidden / heads).max(1))?,
            rms_norm_eps: f.number_or("rms_norm_eps", 1e-6)?,
            rope,
            sliding_rope,
            window: None,
            sliding: Vec::new(),
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            max_positions,
            tied: f.flag_or("tie_word_embeddings", false)?,
            eos: eos.ok_or_else(|| refuse("eos_token_id", f.get("eos_token_id"), "a token id or a list of them"))?,
            pad: f.get("pad_token_id").as_u64().map(|n| n as u32),
            rest: object
                .iter()
                .filter(|(k, _)| !OWN.contains(&k.as_str()))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        };
        family::read(family, &f, &mut config)?;
        config.check()?;
        Ok(config)
    }

    /// Fields of a `config.json` that are neither known nor null, with their values.
    pub fn unsupported(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
        let known = |k: &str| OWN.contains(&k) || INERT.contains(&k);
        let inert = |k: &str, v: &Value| INERT_AT.iter().any(|(field, at)| *field == k && v == at);
        object.iter().filter(|(k, v)| !known(k) && !inert(k, v) && !v.is_null()).collect()
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

    /// Whether layer `i` slides.
    pub fn slides(&self, layer: usize) -> bool {
        self.window.is_some() && self.sliding.get(layer).copied().unwrap_or(false)
    }

    /// What transformers reads: the fields that matter, in both spellings, and those that were read and do not.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        let mut put = |field: &str, value: Value| out.insert(field.to_owned(), value);
        put("architectures", json!([self.family.architecture()]));
        put("model_type", json!(self.family.name()));
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.layers));
        put("num_attention_heads", json!(self.heads));
        put("num_key_value_heads", json!(self.kv_heads));
        put("head_dim", json!(self.head_dim));
        put("hidden_act", json!("silu"));
        put("rms_norm_eps", json!(self.rms_norm_eps));
        self.rope.write(self.sliding_rope.as_ref(), &mut put);
        put("max_position_embeddings", json!(self.max_positions));
        put("tie_word_embeddings", json!(self.tied));
        family::write(self, &mut put);
        put("attention_dropout", json!(0.0));
        put("initializer_range", json!(0.02));
        put("eos_token_id", json!(self.eos));
        put("pad_token_id", json!(self.pad));
        put("torch_dtype", json!("float32"));
        put("dtype", json!("float32"));
        for (field, value) in &self.rest {
            out.insert(field.clone(), value.clone());
        }
        Value::Object(out)
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Names and shapes of every tensor, in checkpoint order and spelling.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (d, m, q, kv) =
            (self.hidden_size, self.intermediate_size, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let names = self.family.norm_names();
        let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for i in 0..self.layers {
            let mut put = |name: &str, part: &str, shape: Vec<usize>| {
                out.push((format!("model.layers.{i}.{name}.{part}"), shape));
            };
            let mut linear = |name: &str, rows: usize, columns: usize, bias: bool| {
                put(name, "weight", vec![rows, columns]);
                if bias {
                    put(name, "bias", vec![rows]);
                }
            };
            linear("self_attn.q_proj", q, d, self.qkv_bias);
            linear("self_attn.k_proj", kv, d, self.qkv_bias);
            linear("self_attn.v_proj", kv, d, self.qkv_bias);
            linear("self_attn.o_proj", d, q, self.o_bias);
            linear("mlp.gate_proj", m, d, self.mlp_bias);
            linear("mlp.up_proj", m, d, self.mlp_bias);
            linear("mlp.down_proj", d, m, self.mlp_bias);
            put(names.0, "weight", vec![d]);
            put(names.1, "weight", vec![d]);
            if let Some(whole) = self.family.qk_norm_is_whole() {
                put("self_attn.q_norm", "weight", vec![if whole { q } else { self.head_dim }]);
                put("self_attn.k_norm", "weight", vec![if whole { kv } else { self.head_dim }]);
            }
        }
        out.push(("model.norm.weight".to_owned(), vec![d]));
        if !self.tied {
            out.push(("lm_head.weight".to_owned(), vec![self.vocab_size, d]));
        }
        out
    }
}
