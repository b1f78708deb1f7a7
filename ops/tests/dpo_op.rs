//! DPO on pairs: gradients against an unpacked computation and finite differences; what is trained on and what is not.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

mod bench;
#[path = "bench/pair.rs"]
mod pairs_of;

use actloom_engine::op::OpError;
use actloom_ops::model::{self, Model, Target};
use actloom_ops::nn::Packing;
use actloom_ops::train::dpo::{Logps, Preferred, Settings, Sums, accumulate, score};
use actloom_ops::train::objective::dpo::{Objective, Preference};
use bench::{Bench, failure, of};
use camino::Utf8PathBuf;
use candle_core::{Device, Tensor};
use pairs_of::pair;
use serde_json::{Value, json};

fn load() -> Model {
    model::load(&bench::model(), &Device::Cpu).unwrap()
}

fn preferred(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Preferred {
    let place = "a test".to_owned();
    Preferred { place, prompt: prompt.to_vec(), chosen: chosen.to_vec(), rejected: rejected.to_vec() }
}

/// Three pairs of unequal lengths, one with a common beginning of its answers.
fn pairs() -> Vec<Preferred> {
    vec![
        preferred(&[5, 9, 2, 7], &[11, 3, 317], &[11, 4, 8, 8, 317]),
        preferred(&[30, 31], &[32, 317], &[33, 317]),
        preferred(&[5, 9, 2, 7, 6, 1, 90], &[12, 13, 14, 15, 16, 317], &[317]),
    ]
}

/// References that put the pairs on different sides of every loss's bends.
const REFERENCE: [Logps; 3] = [
    Logps { chosen: -14.0, rejected: -31.0 },
    Logps { chosen: -13.0, rejected: -10.0 },
    Logps { chosen: -36.0, rejected: -4.5 },
];

fn settings(preference: Preference, smoothing: f64, sft_weight: f64, row_tokens: usize) -> Settings {
    Settings { objective: Objective { preference, beta: 0.3, smoothing }, sft_weight, row_tokens }
}

fn gradients(model: &Model) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    model.params().iter().map(|p| (p.name.clone(), flat(p.grad.as_ref().unwrap()))).collect()
}

fn packed(settings: &Settings) -> (Vec<(String, Vec<f32>)>, Sums) {
    let pairs = pairs();
    let mut model = load();
    let sums = accumulate(&mut model, &pairs.iter().collect::<Vec<_>>(), &REFERENCE, settings).unwrap();
    (gradients(&model), sums)
}

/// Log-probability of an answer behind its prompt, each sequence by itself; with a coefficient, its gradient too.
fn alone(model: &mut Model, prompt: &[u32], answer: &[u32], coefficient: Option<f32>) -> f64 {
    let ids = [prompt, answer].concat();
    let at = |i: usize| Target { row: (prompt.len() + i - 1) as u32, id: answer[i] };
    let targets: Vec<Target> = (0..answer.len()).map(at).collect();
    let packing = Packing::single(ids.len());
    let stats = match coefficient {
        Some(c) => model.train(&ids, &packing, &targets, 1.0, |_, _| c).unwrap(),
        None => model.score(&ids, &packing, &targets, 1.0).unwrap(),
    };
    stats.iter().map(|s| f64::from(s.logp)).sum()
}

/// The loss of the formula and d loss / d h of a pair, written out again.
fn formula(kind: Preference, beta: f64, e: f64, h: f64) -> (f64, f64) {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let x = beta * h;
    match kind {
        Preference::Sigmoid => (
            -(1.0 - e) * sigmoid(x).ln() - e * sigmoid(-x).ln(),
            -beta * (1.0 - e) * (1.0 - sigmoid(x)) + beta * e * sigmoid(x),
        ),
        Preference::Hinge => ((1.0 - x).max(0.0), if x < 1.0 { -beta } else { 0.0 }),
        Preference::Ipo => ((h - 1.0 / (2.0 * beta)).powi(2), 2.0 * (h - 1.0 / (2.0 * beta))),
    }
}

/// The whole loss, one sequence at a time.
fn whole_loss(model: &mut Model, settings: &Settings) -> f64 {
    let pairs = pairs();
    let (mut loss, mut nll, mut tokens) = (0.0, 0.0, 0);
    for (pair, reference) in pairs.iter().zip(REFERENCE) {
        let chosen = alone(model, &pair.prompt, &pair.chosen, None);
        let rejected = alone(model, &pair.prompt, &pair.rejected, None);
        let h = chosen - reference.chosen - rejected + reference.rejected;
        let Objective { preference, beta, smoothing } = settings.objective;
        loss += formula(preference, beta, smoothing, h).0 / pairs.len() as f64;
        nll -= chosen;
        tokens += pair.chosen.len();
    }
    loss + settings.sft_weight * nll / tokens as f64
}

#[test]
fn gradients_are_those_of_every_sequence_by_itself_however_they_are_packed() {
    let cases = [
        (Preference::Sigmoid, 0.0, 0.0),
        (Preference::Sigmoid, 0.1, 0.5),
        (Preference::Hinge, 0.0, 0.0),
        (Preference::Ipo, 0.0, 0.2),
    ];
    for (kind, smoothing, weight) in cases {
        let pairs = pairs();
        let mut model = load();
        let tokens: usize = pairs.iter().map(|p| p.chosen.len()).sum();
        let (mut loss, mut right) = (0.0, 0.0);
        for (pair, reference) in pairs.iter().zip(REFERENCE) {
            let chosen = alone(&mut model, &pair.prompt, &pair.chosen, None);
            let rejected = alone(&mut model, &pair.prompt, &pair.rejected, None);
            let h = chosen - reference.chosen - rejected + reference.rejected;
            let (l, slope) = formula(kind, 0.3, smoothing, h);
            loss += l;
            right += f64::from(u8::from(h > 0.0));
            let slope = slope / pairs.len() as f64;
            alone(&mut model, &pair.prompt, &pair.chosen, Some((slope - weight / tokens as f64) as f32));
            alone(&mut model, &pair.prompt, &pair.rejected, Some(-slope as f32));
        }
        let want = gradients(&model);
        assert!(right > 0.0 && right < 3.0, "the references should put pairs on both sides");
        for row_tokens in [64, 20, 1] {
            let (got, sums) = packed(&settings(kind, smoothing, weight, row_tokens));
            assert!((sums.loss - loss).abs() < 1e-4 * loss.abs().max(1.0), "{kind:?}: {} {loss}", sums.loss);
            assert_eq!((sums.right, sums.pairs, sums.chosen_tokens), (right, 3.0, tokens as f64));
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                let (off, size) =
                    (norm(&mut got.iter().zip(want).map(|(a, b)| a - b)), norm(&mut want.iter().copied()));
                assert!(off <= 2e-5 * size && size > 0.0, "{kind:?}, rows of {row_tokens}, {name}: {off} of {size}");
            }
        }
    }
}

#[test]
fn a_step_along_the_gradient_changes_the_loss_by_what_the_gradient_says() {
    for (kind, smoothing, weight) in [(Preference::Sigmoid, 0.1, 0.5), (Preference::Ipo, 0.0, 0.0)] {
        let settings = settings(kind, smoothing, weight, 64);
        let (gradients, _) = packed(&settings);
        let square: f64 = gradients.iter().flat_map(|(_, g)| g).map(|x| f64::from(x * x)).sum();
        // far enough for float32 to see, near enough for the loss to be straight
        let size = 0.02 / square;
        let at = |by: f64| {
            let mut model = load();
            for (p, (_, g)) in model.params_mut().into_iter().zip(&gradients) {
                let g = Tensor::from_vec(g.clone(), p.value.shape(), &Device::Cpu).unwrap();
                p.value = (&p.value + (g * by).unwrap()).unwrap();
                p.changed();
            }
            whole_loss(&mut model, &settings)
        };
        let slope = (at(size) - at(-size)) / (2.0 * size);
        assert!((slope / square - 1.0).abs() < 0.01, "{kind:?}: {slope}, expected {square}");
    }
}

fn data(bench: &Bench) -> Utf8PathBuf {
    bench.lines(
        "pairs.jsonl",
        &[
            pair("a room", "go to desk 1", "open box 2", false),
            pair("a hall", "take mug 1", "look", false),
            pair("a cellar", "zzz zzz", "go up", true),
            pair("a shed", "open box 2", "go to desk 1", false),
            pair("a yard", "look", "take mug 1", false),
        ],
    )
}

fn params() -> Value {
    json!({ "epochs": 4, "batch": 2, "learning_rate": 0.003, "row_tokens": 64, "beta": 0.5 })
}

#[test]
fn training_starts_at_equal_answers_and_ends_at_the_experts() {
    let bench = Bench::new();
    for on in ["actions", "choices"] {
        let mut params = params();
        params["on"] = json!(on);
        params["epochs"] = json!(20);
        let inputs = [("model", &*bench::model()), ("pairs", &*data(&bench))];
        let metrics = bench.run("dpo", &params, &inputs, on, u64::MAX).unwrap();
        assert_eq!((of(&metrics, "pairs"), of(&metrics, "held_out_pairs")), (vec![4.0], vec![1.0]));
        let (loss, margin) = (of(&metrics, "loss"), of(&metrics, "margin"));
        assert_eq!(loss.len(), 40);
        assert!((loss[0] - 2f64.ln()).abs() < 1e-9 && margin[0] == 0.0, "{on}: {loss:?} {margin:?}");
        assert!(loss[39] < loss[0] && margin[39] > 0.0, "{on}: {loss:?} {margin:?}");
        assert_eq!(of(&metrics, "accuracy")[38..], [1.0, 1.0], "{on}");
        for i in 0..40 {
            let at = |name: &str| of(&metrics, name)[i];
            assert!((at("reward_chosen") - at("reward_rejected") - at("margin")).abs() < 1e-9);
        }
    }
}

#[test]
fn a_pair_that_was_held_out_changes_no_bit_of_the_model() {
    let bench = Bench::new();
    let all = data(&bench);
    let lines: Vec<Value> =
        std::fs::read_to_string(&all).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept: Vec<Value> = lines.into_iter().filter(|line| line["held_out"] == false).collect();
    let without = bench.lines("without.jsonl", &kept);
    for (name, path) in [("all", &all), ("without", &without)] {
        bench.run("dpo", &params(), &[("model", &bench::model()), ("pairs", path)], name, u64::MAX).unwrap();
    }
    let read = |name: &str| std::fs::read(bench.path(&format!("{name}/model/model.safetensors"))).unwrap();
    assert!(read("all") == read("without"));
    assert!(read("all") != std::fs::read(bench::model().join("model.safetensors")).unwrap());
}

#[test]
fn dpo_that_was_stopped_goes_on_to_the_same_bytes_with_and_without_adapters() {
    let bench = Bench::new();
    let inputs = [("model", &*bench::model()), ("pairs", &*data(&bench))];
    for (name, lora) in [("plain", Value::Null), ("lora", json!({ "rank": 4, "alpha": 8, "targets": ["all"] }))] {
        let mut params = params();
        if !lora.is_null() {
            params["lora"] = lora;
        }
        let whole = bench.run("dpo", &params, &inputs, &format!("{name}-whole"), u64::MAX).unwrap();
        assert_eq!(of(&whole, "margin")[0], 0.0, "{name}: the reference is the model without its adapters");
        let parts = format!("{name}-parts");
        let mut stops = 0;
        let metrics = loop {
            match bench.run("dpo", &params, &inputs, &parts, 3) {
                Ok(metrics) => break metrics,
                Err(OpError::Interrupted) => stops += 1,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(stops, 2);
        assert_eq!(metrics, whole, "{name}");
        let read = |run: &str| std::fs::read(bench.path(&format!("{run}/model/model.safetensors"))).unwrap();
        assert!(read(&format!("{name}-whole")) == read(&parts), "{name}");
    }
}

#[test]
fn the_reference_is_the_model_that_training_starts_from() {
    let pairs = pairs();
    let some: Vec<&Preferred> = pairs.iter().collect();
    let mut model = load();
    let reference = score(&model, &some, 64).unwrap();
    for (pair, logps) in pairs.iter().zip(&reference) {
        let chosen = alone(&mut model, &pair.prompt, &pair.chosen, None);
        let rejected = alone(&mut model, &pair.prompt, &pair.rejected, None);
        assert!((logps.chosen - chosen).abs() < 2e-5 && (logps.rejected - rejected).abs() < 2e-5);
    }
    let sums = accumulate(&mut model, &some, &reference, &settings(Preference::Sigmoid, 0.0, 0.0, 64)).unwrap();
    assert_eq!((sums.right, sums.reward_chosen, sums.reward_rejected), (0.0, 0.0, 0.0));
}

#[test]
fn what_dpo_cannot_do_is_refused_before_anything_runs() {
    let bench = Bench::new();
    for (params, path, says) in [
        (json!({ "loss": "ipo", "label_smoothing": 0.1 }), "label_smoothing", "sigmoid loss alone"),
        (json!({ "on_long": "truncate" }), "on_long", "another answer"),
        (json!({ "prompt": { "style": "tagged" } }), "prompt.thinking", "pairs have none"),
        (json!({ "lora": { "dropout": 0.1 } }), "lora.dropout", "the second pass"),
        (json!({ "epochs": 2, "updates": 3 }), "updates", "expected one of them"),
    ] {
        let problems = bench.problems("dpo", &params);
        assert!(problems.len() == 1 && problems[0].0 == path && problems[0].1.contains(says), "{params}: {problems:?}");
    }
    assert!(bench.problems("dpo", &json!({})).is_empty());
    let path = bench.lines("held.jsonl", &[pair("a", "b", "c", true)]);
    let (message, help) =
        failure(bench.run("dpo", &json!({}), &[("model", &bench::model()), ("pairs", &path)], "held", u64::MAX));
    assert!(message.contains("1 are held out") && help.contains("held_out"), "{message}");
    let long = bench.lines("long.jsonl", &[pair("a", "b", "c", false), pair("a", &"very ".repeat(40), "c", false)]);
    let run = |params: Value, name: &str| {
        bench.run("dpo", &params, &[("model", &bench::model()), ("pairs", &long)], name, u64::MAX)
    };
    let (message, _) = failure(run(json!({ "max_length": 60 }), "long"));
    assert!(message.contains("line 2 of") && message.contains("expected at most 60"), "{message}");
    let metrics = run(json!({ "max_length": 60, "on_long": "drop" }), "dropped").unwrap();
    assert_eq!((of(&metrics, "pairs"), of(&metrics, "dropped_pairs")), (vec![1.0], vec![1.0]));
}
