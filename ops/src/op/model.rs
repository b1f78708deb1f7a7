//! `model`: a model of a real architecture with seeded random weights, and a tokenizer trained on the environment's text.

use actloom_engine::op::{Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::EnvName;
use super::pretrain::play_texts;
use crate::env::household;
use crate::model::{self, Config, Family};
use crate::text::{Text, train_tokenizer};

/// Parameters of `model`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    #[serde(default)]
    pub architecture: Family,
    /// Width of the residual stream.
    #[serde(default = "d128")]
    #[schemars(range(min = 8, max = 16384))]
    pub hidden_size: usize,
    /// Width inside the MLP.
    #[serde(default = "d352")]
    #[schemars(range(min = 8, max = 65536))]
    pub intermediate_size: usize,
    #[serde(default = "d3")]
    #[schemars(range(min = 1, max = 256))]
    pub layers: usize,
    /// Query heads.
    #[serde(default = "d4")]
    #[schemars(range(min = 1, max = 256))]
    pub heads: usize,
    /// Key/value heads, which query heads share evenly.
    #[serde(default = "d4")]
    #[schemars(range(min = 1, max = 256))]
    pub kv_heads: usize,
    /// Dimension of a head; even.
    #[serde(default = "d32")]
    #[schemars(range(min = 2, max = 256))]
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    #[serde(default = "d1024")]
    #[schemars(range(min = 64, max = 1048576))]
    pub max_positions: usize,
    /// Base of the rotary embedding.
    #[serde(default = "theta")]
    #[schemars(range(min = 1.0))]
    pub rope_theta: f64,
    /// Entries of the tokenizer: 256 bytes, the special tokens, and merges.
    #[serde(default = "d512")]
    #[schemars(range(min = 300, max = 1000000))]
    pub vocab_size: usize,
    /// The environment whose text the tokenizer is trained on.
    #[serde(default)]
    pub env: EnvName,
    /// Settings of the environment.
    #[serde(default)]
    pub world: household::Settings,
    /// Episodes of random play the tokenizer is trained on.
    #[serde(default = "d400")]
    #[schemars(range(min = 1, max = 1000000))]
    pub texts: usize,
}

fn d128() -> usize {
    128
}
fn d352() -> usize {
    352
}
fn d3() -> usize {
    3
}
fn d4() -> usize {
    4
}
fn d32() -> usize {
    32
}
fn d1024() -> usize {
    1024
}
fn d512() -> usize {
    512
}
fn d400() -> usize {
    400
}
fn theta() -> f64 {
    10_000.0
}

/// The op.
pub struct NewModel;

impl Op for NewModel {
    type Params = Params;
    const NAME: &'static str = "model";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "makes a model with random weights and trains its tokenizer on the environment's text";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new().output("model", Kind::MODEL, "a Hugging Face folder")
    }

    fn check(&self, p: &Params) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !p.heads.is_multiple_of(p.kv_heads) {
            problems.push(Problem::new(
                &["kv_heads"],
                format!("{} heads cannot share {} key/value heads evenly", p.heads, p.kv_heads),
            ));
        }
        if !p.head_dim.is_multiple_of(2) {
            problems.push(Problem::new(&["head_dim"], format!("`{}` is odd, expected an even number", p.head_dim)));
        }
        problems
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let EnvName::Household = p.env;
        let texts = play_texts(&p.world, p.texts, ctx.seed("texts"));
        let folder = ctx.output("model").to_owned();
        train_tokenizer(&texts, p.vocab_size, &folder)?;
        let text = Text::load(&folder, &[])?;
        let (eos, pad) = (text.id("<|end|>")?, text.id("<|pad|>")?);
        let config = Config::from_json(&serde_json::json!({
            "model_type": p.architecture.name(),
            "vocab_size": text.vocabulary(),
            "hidden_size": p.hidden_size,
            "intermediate_size": p.intermediate_size,
            "num_hidden_layers": p.layers,
            "num_attention_heads": p.heads,
            "num_key_value_heads": p.kv_heads,
            "head_dim": p.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": p.rope_theta,
            "max_position_embeddings": p.max_positions,
            "tie_word_embeddings": true,
            "eos_token_id": [eos],
            "pad_token_id": pad,
        }))?;
        let generation = serde_json::json!({ "eos_token_id": [eos], "pad_token_id": pad, "do_sample": true });
        fs_err::write(folder.join("generation_config.json"), format!("{generation:#}\n"))?;
        let tokens: usize = texts.iter().map(|t| text.encode(t).map(|ids| ids.len())).sum::<Result<usize, _>>()?;
        let bytes: usize = texts.iter().map(String::len).sum();
        ctx.metric(0, "parameters", config.parameters() as f64);
        ctx.metric(0, "vocabulary", text.vocabulary() as f64);
        ctx.metric(0, "bytes_per_token", bytes as f64 / tokens as f64);
        model::save(&model::Model::random(config, ctx.seed("weights"))?, &folder)
    }
}
