//! The policy-optimisation losses against TRL 1.16.0's, every case in float64; see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::HashMap;

use actloom_ops::train::objective::advantage::{Advantage, advantages};
use actloom_ops::train::objective::{
    Aggregation, Batch, Bound, Correction, Credit, Level, Objective, Response, Surrogate, Weights,
};
use camino::Utf8PathBuf;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

fn json() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("grpo.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

type Rows = Vec<Vec<f64>>;

fn rows(t: &HashMap<String, Tensor>, name: &str) -> Rows {
    t[name].to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

/// Longest completion allowed in the fixture, which is longer than its rows.
const LONGEST: usize = 16;

/// What all cases share.
struct Given {
    logps: Rows,
    old: Rows,
    reference: Rows,
    sampling: Rows,
    mask: Rows,
    tool_mask: Rows,
    advantages: Vec<f64>,
    gradients: HashMap<String, Rows>,
}

fn given(names: &[&str]) -> Given {
    let t = candle_core::safetensors::load(fixtures().join("grpo.safetensors"), &Device::Cpu).unwrap();
    Given {
        logps: rows(&t, "logps"),
        old: rows(&t, "old"),
        reference: rows(&t, "ref"),
        sampling: rows(&t, "sampling"),
        mask: rows(&t, "mask"),
        tool_mask: rows(&t, "tool_mask"),
        advantages: t["advantages"].to_dtype(DType::F64).unwrap().to_vec1().unwrap(),
        gradients: names.iter().map(|n| ((*n).to_owned(), rows(&t, &format!("grad.{n}")))).collect(),
    }
}

fn objective(case: &Value) -> Objective {
    let kind = case["loss_type"].as_str().unwrap();
    let number = |key: &str| case[key].as_f64().unwrap();
    let correction = case["is_mode"].as_str().map(|mode| {
        let (level, bound) = mode.split_once('_').unwrap();
        let level = if level == "token" { Level::Token } else { Level::Sequence };
        let bound = if bound == "truncate" { Bound::Truncate } else { Bound::Mask };
        Correction { level, bound, cap: number("is_cap") }
    });
    Objective {
        ratio: if case["level"] == "token" { Level::Token } else { Level::Sequence },
        surrogate: if kind == "cispo" { Surrogate::Weight } else { Surrogate::Clip },
        clip_low: number("eps_low"),
        // there the cap itself, here its distance from 1
        clip_high: if kind == "cispo" { number("eps_high") - 1.0 } else { number("eps_high") },
        delta: case["delta"].as_f64(),
        correction,
        kl: number("beta"),
        kl_times_ratio: case["bias_kl"] == true,
        aggregation: match kind {
            "grpo" => Aggregation::Sequence,
            "dr_grpo" => Aggregation::Constant,
            "bnpo" | "dapo" | "cispo" => Aggregation::Token,
            other => panic!("{other}"),
        },
        ..Objective::default()
    }
}

fn evaluate(case: &Value, given: &Given, logps: &Rows, old: Option<&Rows>) -> Batch {
    let objective = objective(case);
    let masks: Vec<Vec<bool>> = given
        .mask
        .iter()
        .zip(&given.tool_mask)
        .map(|(m, tool)| {
            m.iter().zip(tool).map(|(m, tool)| *m != 0.0 && (case["tool_mask"] == false || *tool != 0.0)).collect()
        })
        .collect();
    let weights: Vec<Option<Weights>> = (0..logps.len())
        .map(|b| objective.correction.map(|c| c.weights(&given.old[b], &given.sampling[b], Some(&masks[b]))))
        .collect();
    let responses: Vec<(&[f64], Response<'_, f64>)> = (0..logps.len())
        .map(|b| {
            let of = Response {
                credit: Credit::Response(given.advantages[b]),
                old: old.map(|old| old[b].as_slice()),
                reference: Some(&given.reference[b]),
                mask: Some(&masks[b]),
                weights: weights[b].as_ref(),
            };
            (logps[b].as_slice(), of)
        })
        .collect();
    objective.batch(&responses, LONGEST)
}

#[test]
fn advantages_of_every_kind_are_those_of_the_reference() {
    let json = json();
    let rewards: Vec<Vec<f64>> = numbers(&json["rewards"]).chunks(3).map(<[f64]>::to_vec).collect();
    let kinds = [
        ("grpo_group_std_unbiased_eps1e-4", Advantage::Group),
        ("grpo_batch_std", Advantage::Batch),
        ("grpo_none", Advantage::None),
        ("rloo", Advantage::Rloo),
    ];
    assert_eq!(json["advantages"].as_object().unwrap().len(), kinds.len());
    for (name, kind) in kinds {
        let got = advantages(&rewards, kind).concat();
        for (g, w) in got.iter().zip(numbers(&json["advantages"][name])) {
            assert!((g - w).abs() < 1e-9, "{name}: {got:?}");
        }
    }
}

#[test]
fn losses_gradients_and_metrics_of_every_case_are_those_of_the_reference() {
    let json = json();
    let cases = json["cases"].as_array().unwrap();
    let names: Vec<&str> = cases.iter().map(|c| c["name"].as_str().unwrap()).collect();
    let given = given(&names);
    assert_eq!((cases.len(), json["max_completion_length"].as_u64()), (17, Some(LONGEST as u64)));
    for (case, name) in cases.iter().zip(names) {
        let batch = evaluate(case, &given, &given.logps, (case["old_given"] == true).then_some(&given.old));
        let want = case["loss"].as_f64().unwrap();
        assert!((batch.loss - want).abs() < 1e-9, "{name}: loss {}, expected {want}", batch.loss);
        for (b, (got, want)) in batch.gradients.iter().zip(&given.gradients[name]).enumerate() {
            for (i, (g, w)) in got.iter().zip(want).enumerate() {
                assert!((g - w).abs() < 1e-9, "{name}, response {b}, token {i}: {g}, expected {w}");
            }
        }
        let ((low, high), (lowest, highest)) = (batch.tally.clipped(), batch.tally.extremes());
        for (metric, want) in case["metrics"].as_object().unwrap() {
            let got = match metric.as_str() {
                "clip_ratio/low_mean" => low,
                "clip_ratio/high_mean" | "cispo_clip_ratio" => high,
                "clip_ratio/region_mean" => low + high,
                "clip_ratio/low_min" => lowest,
                "clip_ratio/high_max" => highest,
                "kl" => batch.tally.kl(),
                other => panic!("{name}: no such metric here: {other}"),
            };
            let want = want.as_f64().unwrap();
            assert!((got - want).abs() < 1e-6, "{name}: {metric} {got}, expected {want}");
        }
    }
}

#[test]
fn gradients_of_every_case_are_those_of_finite_differences() {
    let json = json();
    let cases = json["cases"].as_array().unwrap();
    let given = given(&[]);
    let h = 1e-6;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        // on policy, `old` is where the policy stood; a difference moves away from it
        let old = if case["old_given"] == true { &given.old } else { &given.logps };
        let gradients = evaluate(case, &given, &given.logps, Some(old)).gradients;
        for (b, row) in gradients.iter().enumerate() {
            for (i, gradient) in row.iter().enumerate() {
                let moved = |by: f64| {
                    let (mut logps, mut old) = (given.logps.clone(), old.clone());
                    logps[b][i] += by;
                    if case["loss_type"] == "cispo" {
                        old[b][i] += by; // the ratio is a constant there
                    }
                    evaluate(case, &given, &logps, Some(&old)).loss
                };
                let difference = (moved(h) - moved(-h)) / (2.0 * h);
                let off = (difference - gradient).abs();
                assert!(off < 1e-8, "{name}, response {b}, token {i}: {gradient}, difference {difference}");
            }
        }
    }
}
