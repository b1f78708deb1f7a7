//! Small models of every family, with weights in which a forgotten norm, bias or window shows.

use actloom_ops::model::{Config, Model};
use actloom_ops::rng::Rng;
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

/// What all configs have in common; the family adds its own.
fn sizes(family: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": family,
        "vocab_size": 67,
        "hidden_size": 24,
        "intermediate_size": 34,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 256,
        "tie_word_embeddings": false,
        "eos_token_id": 1,
    });
    for (field, value) in more.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

/// q/k norm by head, a head dimension of its own, tied embeddings.
pub fn qwen3() -> Value {
    sizes("qwen3", json!({ "head_dim": 10, "tie_word_embeddings": true, "attention_bias": false }))
}

/// Biases on q, k and v; the head dimension is hidden / heads.
pub fn qwen2() -> Value {
    sizes("qwen2", json!({ "rope_theta": 1e6 }))
}

/// Rope scaling, with an original length short enough that all three ranges of frequencies occur.
pub fn llama() -> Value {
    let scaling = json!({
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    sizes("llama", json!({ "head_dim": 12, "rope_theta": 500.0, "rms_norm_eps": 1e-5, "rope_scaling": scaling }))
}

/// Norms after attention and MLP, q/k norm over all heads at once, sliding windows and yarn where there are none.
pub fn olmo3() -> Value {
    let scaling = json!({
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 8.0,
        "beta_slow": 1.0,
        "attention_factor": 1.1,
        "original_max_position_embeddings": 64,
    });
    let types = ["sliding_attention", "full_attention", "sliding_attention"];
    sizes("olmo3", json!({ "rope_theta": 500.0, "sliding_window": 5, "layer_types": types, "rope_scaling": scaling }))
}

/// A model of this config with norms of 1 + 0.1 normal, biases of 0.3 normal and matrices of 0.15 normal.
pub fn random(config: &Value, seed: u64) -> Model {
    let mut model = Model::random(Config::from_json(config).unwrap(), seed).unwrap();
    for (i, p) in model.params_mut().into_iter().enumerate() {
        let mut rng = Rng::at(seed, &[1, i as u64]);
        let (mean, std) = match (p.name.contains("norm"), p.name.ends_with("bias")) {
            (true, _) => (1.0, 0.1),
            (_, true) => (0.0, 0.3),
            _ => (0.0, 0.15),
        };
        let data: Vec<f32> = (0..p.value.elem_count()).map(|_| (mean + std * rng.normal()) as f32).collect();
        p.value = Tensor::from_vec(data, p.value.shape(), &Device::Cpu).unwrap();
        p.changed();
    }
    model
}

pub fn ids(rng: &mut Rng, n: usize, vocabulary: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(vocabulary) as u32).collect()
}
