//! The policy-optimisation loss against TRL 1.16.0's, on the cases this program has; see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::HashMap;

use actloom_ops::train::grpo::{Settings, advantages, token_gradient};
use camino::Utf8PathBuf;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

fn json() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("grpo.json")).unwrap()).unwrap()
}

fn rows(t: &HashMap<String, Tensor>, name: &str) -> Vec<Vec<f32>> {
    t[name].to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

#[test]
fn group_advantages_are_those_of_the_reference() {
    let json = json();
    let numbers = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
    let want = numbers(&json["advantages"]["grpo_group_std_unbiased_eps1e-4"]);
    let got: Vec<f32> = numbers(&json["rewards"]).chunks(3).flat_map(advantages).collect();
    for (g, w) in got.iter().zip(&want) {
        assert!((f64::from(*g) - w).abs() < 1e-6, "{got:?}, expected {want:?}");
    }
    assert_eq!(advantages(&[0.3, 0.3, 0.3]), [0.0; 3]);
}

#[test]
fn token_gradients_and_clip_shares_are_those_of_the_reference() {
    let json = json();
    let t = candle_core::safetensors::load(fixtures().join("grpo.safetensors"), &Device::Cpu).unwrap();
    let (logps, olds, refs, mask) = (rows(&t, "logps"), rows(&t, "old"), rows(&t, "ref"), rows(&t, "mask"));
    let advantages: Vec<f32> = t["advantages"].to_dtype(DType::F32).unwrap().to_vec1().unwrap();
    let tokens: f32 = mask.iter().flatten().sum();
    let mut compared = Vec::new();
    for case in json["cases"].as_array().unwrap() {
        let kind = case["loss_type"].as_str().unwrap();
        let ours = ["grpo", "bnpo", "dapo"].contains(&kind)
            && case["level"] == "token"
            && case["delta"].is_null()
            && case["is_mode"].is_null()
            && case["tool_mask"] == false
            && case["bias_kl"] == false;
        if !ours {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let number = |key: &str| case[key].as_f64().unwrap() as f32;
        let settings = Settings {
            clip_low: number("eps_low"),
            clip_high: number("eps_high"),
            kl: number("beta"),
            ..Settings::default()
        };
        let want = rows(&t, &format!("grad.{name}"));
        let (mut low_count, mut high_count) = (0.0, 0.0);
        for b in 0..logps.len() {
            let length: f32 = mask[b].iter().sum();
            // `grpo` averages by sequence first; the others divide by all tokens
            let weight = if kind == "grpo" { 1.0 / (length * logps.len() as f32) } else { 1.0 / tokens };
            for i in 0..logps[b].len() {
                if mask[b][i] == 0.0 {
                    assert_eq!(want[b][i], 0.0);
                    continue;
                }
                let old = if case["old_given"] == true { olds[b][i] } else { logps[b][i] };
                let reference = (settings.kl > 0.0).then_some(refs[b][i]);
                let (gradient, low, high) = token_gradient(logps[b][i], old, reference, advantages[b], &settings);
                low_count += f64::from(u8::from(low));
                high_count += f64::from(u8::from(high));
                let off = (gradient * weight - want[b][i]).abs();
                assert!(off < 1e-7, "{name}, response {b}, token {i}: off by {off}");
            }
        }
        let share = |key: &str| case["metrics"][key].as_f64().unwrap();
        assert!((low_count / f64::from(tokens) - share("clip_ratio/low_mean")).abs() < 1e-6, "{name}");
        assert!((high_count / f64::from(tokens) - share("clip_ratio/high_mean")).abs() < 1e-6, "{name}");
        compared.push(name.to_owned());
    }
    assert!(compared.len() >= 8, "only {compared:?} were compared");
}
