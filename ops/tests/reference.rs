//! Logits against candle-transformers' float models, an implementation that is neither ours nor PyTorch's: random
//! models that we save are loaded by it.
//!
//! It has no Olmo 3 (its Olmo 2 knows neither windows nor layers of several kinds): that family is compared with Python,
//! and with Olmo 2 here where it is the same, without windows and scaling. Its sliding windows are one token wider than
//! those of transformers, so they are not compared either.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

mod small;

use actloom_ops::model;
use actloom_ops::nn::Packing;
use actloom_ops::rng::Rng;
use camino::Utf8Path;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, olmo2, qwen2, qwen3};
use serde_json::{Value, json};

/// Logits after the last of these tokens, which follow as many as the number says.
type Other = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

/// The other side's model of a folder that we wrote.
fn other(folder: &Utf8Path) -> Other {
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let family = config["model_type"].as_str().unwrap().to_owned();
    // fields that it wants and that mean nothing without windows
    config["max_window_layers"] = json!(0);
    if family == "qwen2" {
        config["sliding_window"] = json!(100_000);
    }
    match family.as_str() {
        "qwen3" => {
            let mut m = qwen3::ModelForCausalLM::new(&serde_json::from_value(config).unwrap(), weights).unwrap();
            Box::new(move |ids, at| m.forward(ids, at))
        }
        "qwen2" => {
            let mut m = qwen2::ModelForCausalLM::new(&serde_json::from_value(config).unwrap(), weights).unwrap();
            Box::new(move |ids, at| m.forward(ids, at))
        }
        "olmo3" => {
            let mut m = olmo2::Model::new(&serde_json::from_value(config).unwrap(), weights).unwrap();
            Box::new(move |ids, at| m.forward(ids, at))
        }
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let m = llama::Llama::load(weights, &config).unwrap();
            let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
            Box::new(move |ids, at| m.forward(ids, at, &mut cache))
        }
        other => panic!("no reference for `{other}`"),
    }
}

/// Our logits of a sequence in a packed row, and over the cache, are the other side's of the sequence alone.
fn compare(config: &Value, seed: u64) {
    let what = format!("{config}, seed {seed}");
    let ours = small::random(config, seed);
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8Path::from_path(folder.path()).unwrap();
    model::save(&ours, folder).unwrap();
    let ours = model::load(folder, &Device::Cpu).unwrap();
    let mut theirs = other(folder);

    let mut rng = Rng::new(seed, 0);
    let vocabulary = ours.config.vocab_size;
    let (ids, before) = (small::ids(&mut rng, 37, vocabulary), small::ids(&mut rng, 5, vocabulary));
    let mut packing = Packing::new();
    packing.root(before.len());
    packing.root(ids.len());
    let rows = ours.logits(&[before, ids.clone()].concat(), &packing).unwrap().to_vec2::<f32>().unwrap();
    let mut sequence = ours.sequence();
    let mut at = 0;
    for len in [20, 1, 1, 9, 1, 5] {
        let new = &ids[at..at + len];
        let want = theirs(&Tensor::new(new, &Device::Cpu).unwrap().unsqueeze(0).unwrap(), at).unwrap();
        let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let cached = ours.extend(&mut [(&mut sequence, new)]).unwrap().to_vec2::<f32>().unwrap().remove(0);
        at += len;
        assert_eq!(rows[5 + at - 1], cached, "{what}: the cache changed bits");
        assert_eq!(want.len(), cached.len());
        let worst = cached.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 5e-5, "{what}: logits after {at} tokens are off by {worst}");
        assert!(want.iter().any(|z| z.abs() > 0.1), "{what}: logits that say nothing");
    }
}

/// Sizes of a few random models: (hidden, heads, key heads, MLP, layers, vocabulary).
const SHAPES: [[usize; 6]; 4] =
    [[24, 4, 2, 34, 3, 67], [32, 2, 1, 50, 1, 128], [48, 6, 6, 31, 2, 101], [64, 4, 1, 96, 5, 320]];

fn family(mut config: Value) {
    for (seed, [hidden, heads, kv, mlp, layers, vocabulary]) in SHAPES.into_iter().enumerate() {
        config["hidden_size"] = json!(hidden);
        config["num_attention_heads"] = json!(heads);
        config["num_key_value_heads"] = json!(kv);
        config["intermediate_size"] = json!(mlp);
        config["num_hidden_layers"] = json!(layers);
        config["vocab_size"] = json!(vocabulary);
        // theirs has a head dimension of its own in qwen3 alone
        if config["model_type"] == "llama" {
            config["head_dim"] = json!(hidden / heads);
        }
        if config["model_type"] == "olmo3" {
            config["layer_types"] = json!(vec!["full_attention"; layers]);
        }
        for tied in [false, true] {
            config["tie_word_embeddings"] = json!(tied);
            compare(&config, seed as u64 + 10);
        }
    }
}

#[test]
fn qwen3_has_the_logits_of_candle_transformers() {
    family(small::qwen3());
}

#[test]
fn qwen2_has_the_logits_of_candle_transformers() {
    family(small::qwen2());
}

#[test]
fn llama_has_the_logits_of_candle_transformers() {
    family(small::llama());
    let mut plain = small::llama();
    plain["rope_scaling"] = Value::Null;
    family(plain);
}

#[test]
fn olmo3_without_windows_and_scaling_has_the_logits_of_olmo2_in_candle_transformers() {
    let mut plain = small::olmo3();
    plain["rope_scaling"] = Value::Null;
    plain["sliding_window"] = Value::Null;
    family(plain);
}
