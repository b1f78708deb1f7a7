//! Families and adapters against numbers from PyTorch (transformers, peft); see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::HashMap;

use actloom_ops::model::{self, Model, lora};
use actloom_ops::nn::Packing;
use actloom_ops::train::batch::Row;
use camino::Utf8PathBuf;
use candle_core::{DType, Device, Tensor};

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

fn tensors(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join(name), &Device::Cpu).unwrap()
}

fn json() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("model.json")).unwrap()).unwrap()
}

fn load(folder: &str) -> Model {
    model::load(&fixtures().join(folder), &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn ids(t: &Tensor) -> Vec<u32> {
    t.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
}

fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}, tolerance {tolerance}");
}

#[test]
fn logits_of_the_other_families_agree() {
    let t = tensors("other_models.safetensors");
    for folder in ["model-untied", "model-qwen2", "model-llama"] {
        let model = load(folder);
        for i in 0..2 {
            let ids = ids(&t[&format!("{folder}.ids.{i}")]);
            let got = model.logits(&ids, &Packing::single(ids.len())).unwrap();
            close(&flat(&got), &flat(&t[&format!("{folder}.logits.{i}")]), 5e-5, folder);
        }
    }
}

#[test]
fn logits_and_greedy_ids_of_olmo_agree_within_and_beyond_its_window() {
    let t = tensors("olmo3.safetensors");
    let model = load("model-olmo3");
    for i in 0..3 {
        let ids = ids(&t[&format!("model-olmo3.ids.{i}")]);
        let got = model.logits(&ids, &Packing::single(ids.len())).unwrap();
        close(&flat(&got), &flat(&t[&format!("model-olmo3.logits.{i}")]), 5e-5, &format!("sequence {i}"));
    }
    let mut all = ids(&t["model-olmo3.ids.1"]);
    for want in ids(&t["model-olmo3.greedy"]) {
        let rows = model.logits(&all, &Packing::single(all.len())).unwrap().to_vec2::<f32>().unwrap();
        let last = rows.last().unwrap();
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as u32, want);
        all.push(want);
    }
}

#[test]
fn both_spellings_of_the_rotary_base_are_read_and_one_must_be_there() {
    for folder in ["model-llama", "model-qwen2"] {
        let bytes = std::fs::read(fixtures().join(folder).join("config.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let read = |drop: &[&str]| {
            let mut json = json.clone();
            drop.iter().for_each(|field| {
                json.as_object_mut().unwrap().remove(*field);
            });
            model::Config::from_json(&json)
        };
        let whole = read(&[]).unwrap();
        assert_eq!(read(&["rope_parameters"]).unwrap().rope, whole.rope);
        assert_eq!(read(&["rope_theta", "rope_scaling"]).unwrap().rope, whole.rope);
        let error = read(&["rope_theta", "rope_scaling", "rope_parameters"]).unwrap_err().to_string();
        assert!(error.contains("neither `rope_theta` nor `rope_parameters.rope_theta`"), "{error}");
        assert_eq!(model::Config::from_json(&whole.to_json()).unwrap().rope, whole.rope, "what is written is read");
    }
}

/// The two sequences of the fixture with the labels that count.
fn row() -> Row {
    let t = tensors("forward.safetensors");
    let (ids, mask) = (t["input_ids"].to_vec2::<i64>().unwrap(), t["attention_mask"].to_vec2::<i64>().unwrap());
    let labels = t["labels_part"].to_vec2::<i64>().unwrap();
    let mut row = Row::default();
    for i in 0..2 {
        let n = mask[i].iter().filter(|m| **m == 1).count();
        let ids: Vec<u32> = ids[i][..n].iter().map(|id| *id as u32).collect();
        row.add(i, None, &ids, |t| labels[i][t] != -100);
    }
    row
}

fn train(model: &mut Model, row: &Row) -> f64 {
    let n = row.targets.len() as f32;
    let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -1.0 / n).unwrap();
    -stats.iter().map(|s| f64::from(s.logp)).sum::<f64>() / f64::from(n)
}

#[test]
fn adapters_of_peft_give_its_logits_losses_and_gradients() {
    let t = tensors("lora.safetensors");
    let ids = ids(&t["input_ids"]);
    for folder in ["lora", "lora-all"] {
        let mut model = load("model");
        lora::load_adapter(&mut model, &fixtures().join(folder)).unwrap();
        let want = flat(&t[&format!("{folder}.merged_logits")]);
        let got = model.logits(&ids, &Packing::single(ids.len())).unwrap();
        close(&flat(&got), &want, 5e-5, folder);
        let loss = train(&mut model, &row());
        let said = json()["lora"][folder]["loss_part_f64"].as_f64().unwrap();
        assert!((loss - said).abs() < 1e-5, "{folder}: loss {loss}, expected {said}");
        for p in model.params() {
            assert_eq!(p.grad.is_some(), p.trainable, "frozen parameters have no gradient memory: {}", p.name);
        }
        if folder == "lora" {
            let mut seen = 0;
            for p in model.params().iter().filter(|p| p.trainable) {
                let want = flat(&t[&format!("lora.grad.base_model.model.{}", p.name)]);
                let got = flat(p.grad.as_ref().unwrap());
                let norm = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let difference: Vec<f32> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
                assert!(norm(&difference) <= 2e-5 * norm(&want), "{}: {}", p.name, norm(&difference) / norm(&want));
                seen += 1;
            }
            assert_eq!(seen, t.keys().filter(|k| k.starts_with("lora.grad.")).count());
        }
        let before = flat(&model.logits(&ids, &Packing::single(ids.len())).unwrap());
        lora::merge(&mut model).unwrap();
        let merged = flat(&model.logits(&ids, &Packing::single(ids.len())).unwrap());
        assert_eq!(merged, before, "merging changes no bit");
    }
}

#[test]
fn an_adapter_written_is_the_adapter_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    for folder in ["lora", "lora-all"] {
        let mut model = load("model");
        lora::load_adapter(&mut model, &fixtures().join(folder)).unwrap();
        lora::save_adapter(&model, &dir.join(folder), "base").unwrap();
        let file = |dir: Utf8PathBuf| {
            candle_core::safetensors::load(dir.join(folder).join("adapter_model.safetensors"), &Device::Cpu).unwrap()
        };
        let (ours, theirs) = (file(dir.clone()), file(fixtures()));
        assert_eq!(ours.len(), theirs.len());
        for (name, tensor) in theirs {
            assert_eq!(flat(&ours[&name]), flat(&tensor), "{name}");
        }
        let mut again = load("model");
        lora::load_adapter(&mut again, &dir.join(folder)).unwrap();
    }
}

#[test]
fn recomputed_rows_change_no_bit_of_the_gradients() {
    for folder in ["model", "model-llama", "model-qwen2"] {
        let mut plain = load(folder);
        let mut again = load(folder);
        again.recompute = true;
        let vocabulary = plain.config.vocab_size as u32;
        let mut row = row();
        row.ids.iter_mut().for_each(|id| *id %= vocabulary);
        row.targets.iter_mut().for_each(|t| t.id %= vocabulary);
        assert_eq!(train(&mut plain, &row), train(&mut again, &row));
        for (a, b) in plain.params().iter().zip(again.params()) {
            assert_eq!(flat(a.grad.as_ref().unwrap()), flat(b.grad.as_ref().unwrap()), "{}", a.name);
        }
    }
}

/// A small model of each family, all of its features on.
fn random(family: &str) -> Model {
    let mut config = serde_json::json!({
        "model_type": family,
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "tie_word_embeddings": family != "olmo3",
        "rope_theta": 10000.0,
        "eos_token_id": 1,
    });
    let more = match family {
        "qwen3" => {
            serde_json::json!({ "attention_bias": true, "use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2 })
        }
        "llama" => serde_json::json!({ "attention_bias": true, "mlp_bias": true, "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16 } }),
        "olmo3" => serde_json::json!({ "sliding_window": 6, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16 } }),
        _ => serde_json::json!({}),
    };
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let config = model::Config::from_json(&config).unwrap();
    let mut model = Model::random(config, 7).unwrap();
    // weights that matter: norms off one, biases off zero
    let mut rng = actloom_ops::rng::Rng::new(3, 0);
    for p in model.params_mut() {
        let noise: Vec<f32> = (0..p.value.elem_count()).map(|_| (rng.normal() * 0.15) as f32).collect();
        p.value = (&p.value + Tensor::from_vec(noise, p.value.shape(), &Device::Cpu).unwrap()).unwrap();
        p.changed();
    }
    model
}

/// Loss of a packed row with a shared prefix, in the precision of the kernels given.
fn forest() -> Row {
    let mut rng = actloom_ops::rng::Rng::new(11, 0);
    let mut ids = |n: usize| (0..n).map(|_| rng.below(97) as u32).collect::<Vec<_>>();
    let mut row = Row::default();
    let root = row.add(0, None, &ids(9), |i| i > 4);
    row.add(1, Some(root), &ids(4), |_| true);
    row.add(2, Some(root), &ids(7), |_| true);
    row.add(3, None, &ids(12), |_| true);
    row
}

#[test]
fn every_parameter_of_every_family_gets_the_gradient_of_finite_differences() {
    for family in ["qwen3", "qwen2", "llama", "olmo3"] {
        let (mut model, row) = (random(family), forest());
        train(&mut model, &row);
        let n = row.targets.len() as f64;
        for index in 0..model.params().len() {
            let (name, grad, value) = {
                let params = model.params();
                let p = params[index];
                (p.name.clone(), flat(p.grad.as_ref().unwrap()), p.value.clone())
            };
            assert!(grad.iter().all(|g| g.is_finite()) && grad.iter().any(|g| *g != 0.0), "{family} {name}");
            // along the gradient itself the slope is its norm
            let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let step = 2e-3 / norm.max(1e-3);
            let mut loss = |sign: f64| {
                let moved: Vec<f32> = flat(&value)
                    .iter()
                    .zip(&grad)
                    .map(|(x, g)| (f64::from(*x) + sign * step * f64::from(*g)) as f32)
                    .collect();
                let mut params = model.params_mut();
                params[index].value = Tensor::from_vec(moved, value.shape(), &Device::Cpu).unwrap();
                params[index].changed();
                drop(params);
                let stats = model.score(&row.ids, &row.packing, &row.targets, 1.0).unwrap();
                -stats.iter().map(|s| f64::from(s.logp)).sum::<f64>() / n
            };
            let slope = (loss(1.0) - loss(-1.0)) / (2.0 * step);
            let mut params = model.params_mut();
            params[index].value = value;
            params[index].changed();
            let want = norm * norm;
            assert!((slope - want).abs() <= 0.03 * want + 2e-4, "{family} {name}: slope {slope}, gradient {want}");
        }
    }
}

#[test]
fn sampling_over_a_cache_has_the_bits_of_the_packed_row_in_every_family() {
    for family in ["qwen3", "qwen2", "llama", "olmo3"] {
        let model = random(family);
        let ids: Vec<u32> = (0..23).map(|i| (i * 37 + 5) % 97).collect();
        let want = model.logits(&ids, &Packing::single(ids.len())).unwrap().to_vec2::<f32>().unwrap();
        let mut sequence = model.sequence();
        let mut at = 0;
        for n in [7, 1, 1, 9, 1, 4] {
            let got = model.extend(&mut [(&mut sequence, &ids[at..at + n])]).unwrap().to_vec2::<f32>().unwrap();
            at += n;
            assert_eq!(got[0], want[at - 1], "{family} after {at}");
        }
    }
}

#[test]
fn what_would_change_the_result_unnoticed_is_refused_by_name() {
    let config = |more: serde_json::Value| {
        let bytes = std::fs::read(fixtures().join("model-qwen2/config.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        model::Config::from_json(&json).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(config(serde_json::json!({ "use_mrope": false, "unsloth_version": "1" })), Ok(()));
    let error = config(serde_json::json!({ "use_mrope": true, "softcap": 3.0 })).unwrap_err();
    assert!(error.contains("`use_mrope` = `true`, `softcap` = `3.0`"), "{error}");
    let error =
        config(serde_json::json!({ "rope_parameters": { "rope_type": "dynamic", "factor": 4.0 } })).unwrap_err();
    assert!(error.contains("rope_type"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let dir = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    // an adapter that begins by changing the base
    let from = std::fs::read_to_string(fixtures().join("lora/adapter_config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&from).unwrap();
    json["init_lora_weights"] = "pissa".into();
    std::fs::write(dir.join("adapter_config.json"), json.to_string()).unwrap();
    std::fs::copy(fixtures().join("lora/adapter_model.safetensors"), dir.join("adapter_model.safetensors")).unwrap();
    let error = lora::load_adapter(&mut load("model"), &dir).unwrap_err().to_string();
    assert!(error.contains("`init_lora_weights`") && error.contains("pissa"), "{error}");

    // a tied model whose file has another head
    let tensors = |head: f64| {
        let mut tensors = model::load_tensors(&fixtures().join("model")).unwrap();
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), (table + head).unwrap());
        Model::new(load("model").config, tensors, &Device::Cpu).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(tensors(0.0), Ok(()));
    let error = tensors(1.0).unwrap_err();
    assert!(error.contains("`lm_head.weight` differs"), "{error}");
}

#[test]
fn gradients_of_an_adapter_that_drops_entries_are_those_of_finite_differences() {
    let (mut model, row) = (random("qwen2"), forest());
    let settings = lora::Lora { rank: 3, alpha: 6.0, targets: vec!["all".into()], dropout: 0.4 };
    lora::attach(&mut model, &settings, 5).unwrap();
    lora::set_dropout(&mut model, 2, 1);
    let mut rng = actloom_ops::rng::Rng::new(8, 0);
    for p in model.params_mut().into_iter().filter(|p| p.name.contains("lora_B")) {
        let noise: Vec<f32> = (0..p.value.elem_count()).map(|_| (rng.normal() * 0.2) as f32).collect();
        p.value = Tensor::from_vec(noise, p.value.shape(), &Device::Cpu).unwrap();
        p.changed();
    }
    // the trainer's own loss: the sampler drops nothing
    let loss = |model: &mut Model| {
        let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| 0.0).unwrap();
        -stats.iter().map(|s| f64::from(s.logp)).sum::<f64>() / row.targets.len() as f64
    };
    let trained = train(&mut model, &row);
    assert_eq!(trained, loss(&mut model), "the same entries are dropped again");
    let scored = model.score(&row.ids, &row.packing, &row.targets, 1.0).unwrap();
    let whole = -scored.iter().map(|s| f64::from(s.logp)).sum::<f64>() / row.targets.len() as f64;
    assert!((whole - trained).abs() > 1e-4, "nothing was dropped");
    let mut seen = 0;
    for index in 0..model.params().len() {
        if !model.params()[index].trainable {
            continue;
        }
        let (name, grad, value) = {
            let params = model.params();
            (params[index].name.clone(), flat(params[index].grad.as_ref().unwrap()), params[index].value.clone())
        };
        let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let step = 2e-3 / norm.max(1e-3);
        let mut at = |sign: f64| {
            let before = flat(&value);
            let moved: Vec<f32> =
                before.iter().zip(&grad).map(|(x, g)| (f64::from(*x) + sign * step * f64::from(*g)) as f32).collect();
            let moved = Tensor::from_vec(moved, value.shape(), &Device::Cpu).unwrap();
            let mut params = model.params_mut();
            params[index].value = moved;
            params[index].changed();
            drop(params);
            loss(&mut model)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        let mut params = model.params_mut();
        params[index].value = value;
        params[index].changed();
        let want = norm * norm;
        assert!((slope - want).abs() <= 0.03 * want + 2e-4, "{name}: slope {slope}, gradient {want}");
        seen += 1;
    }
    assert_eq!(seen, 4 * 7 * 2);
}
