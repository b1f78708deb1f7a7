//! `model`: a model of a real architecture with seeded random weights, and a tokenizer trained on the environment's text.

use std::io::{BufRead, BufReader};

use actloom_engine::op::{Arity, InputArtifact, Kind, Op, OpContext, OpError, Ports, Problem};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pretrain::{no_play, play_texts};
use crate::env::WorldSettings;
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
    pub world: WorldSettings,
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

/// Every text in JSON lines of episodes or conversations: all strings but the names of things.
fn spoken(inputs: &[InputArtifact]) -> Result<Vec<String>, OpError> {
    fn collect(value: Value, texts: &mut Vec<String>) {
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(items) => items.into_iter().for_each(|item| collect(item, texts)),
            Value::Object(fields) => {
                let names = ["role", "env", "id", "split", "kind", "actor", "decoding", "end"];
                let said = fields.into_iter().filter(|(name, _)| !names.contains(&name.as_str()));
                said.for_each(|(_, value)| collect(value, texts));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut texts = Vec::new();
    for InputArtifact { path, .. } in inputs {
        for (index, line) in BufReader::new(fs_err::File::open(path)?).lines().enumerate() {
            let line = line?;
            if !line.trim().is_empty() {
                let value = serde_json::from_str(&line)
                    .map_err(|e| OpError::failed(format!("cannot read line {} of `{path}`: {e}", index + 1)))?;
                collect(value, &mut texts);
            }
        }
    }
    if texts.is_empty() {
        return Err(OpError::failed("the input `text` holds no text to train a tokenizer on"));
    }
    Ok(texts)
}

/// The op.
pub struct NewModel;

impl Op for NewModel {
    type Params = Params;
    const NAME: &'static str = "model";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "makes a model with random weights and trains its tokenizer on the environment's text";

    fn ports(&self, _: &Params) -> Ports {
        Ports::new()
            .port(
                "text",
                &[Kind::EPISODES, Kind::CONVERSATIONS],
                Arity::ManyOptional,
                "what the tokenizer is trained on, instead of random play in `world`",
            )
            .output("model", Kind::MODEL, "a Hugging Face folder")
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
        if !matches!(p.world, WorldSettings::Household(_)) {
            problems.push(no_play(&p.world));
        }
        problems
    }

    fn run(&self, p: &Params, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        let texts = match &p.world {
            _ if !ctx.inputs("text").is_empty() => spoken(ctx.inputs("text"))?,
            WorldSettings::Household(world) => play_texts(world, p.texts, ctx.seed("texts"))?,
            other => panic!("BUG: `{}` was not refused", other.name()),
        };
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
