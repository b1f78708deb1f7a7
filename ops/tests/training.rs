//! Laws of a training step: accumulation, missing and broken gradients, and how random models of every family learn.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

mod small;

use actloom_ops::model::{Model, Target};
use actloom_ops::nn::Packing;
use actloom_ops::rng::Rng;
use actloom_ops::train::batch::Row;
use actloom_ops::train::optimizer::{AdamW, Optimizer};
use serde_json::Value;

fn families() -> [Value; 4] {
    [small::qwen3(), small::qwen2(), small::llama(), small::olmo3()]
}

fn flat(t: &candle_core::Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn values(model: &Model) -> Vec<Vec<f32>> {
    model.params().iter().map(|p| flat(&p.value)).collect()
}

fn grads(model: &Model) -> Vec<(String, Vec<f32>)> {
    model.params().iter().map(|p| (p.name.clone(), flat(p.grad.as_ref().unwrap()))).collect()
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// The mean loss over `targets` of this row, with its gradients.
fn train(model: &mut Model, row: &Row, targets: usize) -> f64 {
    let scale = -1.0 / targets as f32;
    let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| scale).unwrap();
    stats.iter().map(|s| -f64::from(s.logp)).sum::<f64>() / targets as f64
}

#[test]
fn gradients_added_up_over_rows_are_those_of_one_row_with_everything() {
    for config in families() {
        let mut rng = Rng::new(41, 0);
        let sequences: Vec<Vec<u32>> = [7, 30, 2, 13].iter().map(|n| small::ids(&mut rng, *n, 67)).collect();
        let mut whole = Row::default();
        for (i, ids) in sequences.iter().enumerate() {
            whole.add(i, None, ids, |t| t % 3 != 1);
        }
        let n = whole.targets.len();
        let mut full = small::random(&config, 1);
        let loss = train(&mut full, &whole, n);
        let mut parts = small::random(&config, 1);
        let mut sum = 0.0;
        for (i, ids) in sequences.iter().enumerate() {
            let mut row = Row::default();
            row.add(i, None, ids, |t| t % 3 != 1);
            sum += train(&mut parts, &row, n);
        }
        assert!((loss - sum).abs() < 1e-6, "{loss} and {sum}");
        for ((name, a), (_, b)) in grads(&full).iter().zip(grads(&parts)) {
            let off: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
            assert!(norm(&off) < 2e-6 * norm(a), "{} `{name}`: off by {}", config["model_type"], norm(&off) / norm(a));
        }
    }
}

#[test]
fn one_parameter_without_a_gradient_stops_the_step_by_name_and_nothing_moves() {
    let mut rng = Rng::new(43, 0);
    let ids = small::ids(&mut rng, 12, 67);
    for config in families() {
        let mut row = Row::default();
        row.add(0, None, &ids, |_| true);
        let count = small::random(&config, 2).params().len();
        for index in [0, count / 2, count - 1] {
            let mut model = small::random(&config, 2);
            train(&mut model, &row, 11);
            let name = {
                let mut params = model.params_mut();
                params[index].grad = None;
                params[index].name.clone()
            };
            let before = values(&model);
            let error = Optimizer::new(AdamW::default()).step(&mut model, 1e-3).unwrap_err().to_string();
            assert_eq!(error, format!("no gradient reached the trainable parameter `{name}`"));
            assert_eq!(values(&model), before);
            // frozen, it needs none
            model.params_mut()[index].trainable = false;
            Optimizer::new(AdamW::default()).step(&mut model, 1e-3).unwrap();
            let after = values(&model);
            for (i, (a, b)) in before.iter().zip(&after).enumerate() {
                assert_eq!(a == b, i == index, "parameter {i}");
            }
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_step_by_name_and_nothing_moves() {
    let mut rng = Rng::new(47, 0);
    let mut row = Row::default();
    row.add(0, None, &small::ids(&mut rng, 12, 67), |_| true);
    for poison in [f64::NAN, f64::INFINITY] {
        let mut model = small::random(&small::qwen3(), 2);
        train(&mut model, &row, 11);
        let before = values(&model);
        let name = {
            let mut params = model.params_mut();
            let grad = params[5].grad.take().unwrap();
            params[5].grad = Some((grad * poison).unwrap());
            params[5].name.clone()
        };
        let error = Optimizer::new(AdamW::default()).step(&mut model, 1e-3).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the gradient of `{name}` is not finite at update 1")), "{error}");
        assert_eq!(values(&model), before);
    }
}

#[test]
fn a_loss_that_is_not_finite_reaches_the_guard_of_the_step() {
    let mut rng = Rng::new(53, 0);
    let mut row = Row::default();
    row.add(0, None, &small::ids(&mut rng, 12, 67), |_| true);
    let mut model = small::random(&small::qwen3(), 2);
    model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| f32::NAN).unwrap();
    let error = Optimizer::new(AdamW::default()).step(&mut model, 1e-3).unwrap_err().to_string();
    assert!(error.contains("is not finite at update 1"), "{error}");
}

#[test]
fn a_row_without_targets_gives_zero_gradients_and_a_row_with_few_gives_only_theirs() {
    let ids = small::ids(&mut Rng::new(59, 0), 9, 67);
    let mut model = small::random(&small::qwen2(), 2);
    let none: &[Target] = &[];
    let stats = model.train(&ids, &Packing::single(9), none, 1.0, |_, _| -1.0).unwrap();
    assert!(stats.is_empty());
    for p in model.params() {
        let zero = p.grad.as_ref().is_none_or(|g| flat(g).iter().all(|g| *g == 0.0));
        assert!(zero, "`{}` moved without a target", p.name);
    }
    // tokens after the last target change nothing
    let target = [Target { row: 3, id: ids[4] }];
    let run = |ids: &[u32]| {
        let mut model = small::random(&small::qwen2(), 2);
        model.train(ids, &Packing::single(ids.len()), &target, 1.0, |_, _| -1.0).unwrap();
        let embedding = grads(&model).remove(0).1;
        (grads(&model).split_off(1), embedding)
    };
    let (long, short) = (run(&ids), run(&ids[..4]));
    for ((name, a), (_, b)) in long.0.iter().zip(&short.0) {
        let off: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        assert!(norm(&off) < 1e-6 * norm(a), "`{name}`");
    }
    assert_eq!(long.1.len(), short.1.len());
}

#[test]
fn every_family_learns_a_sequence_by_heart() {
    for config in families() {
        let ids = small::ids(&mut Rng::new(61, 0), 24, 67);
        let mut row = Row::default();
        row.add(0, None, &ids, |_| true);
        let mut model = small::random(&config, 4);
        let mut optimizer = Optimizer::new(AdamW { weight_decay: 0.0, ..AdamW::default() });
        let first = train(&mut model, &row, 23);
        optimizer.step(&mut model, 1e-2).unwrap();
        let mut last = first;
        for _ in 0..80 {
            last = train(&mut model, &row, 23);
            optimizer.step(&mut model, 1e-2).unwrap();
        }
        assert!(first > 3.0 && last < 0.05, "{}: loss {first} became {last}", config["model_type"]);
    }
}
