//! Our model against numbers from PyTorch (transformers 5.23.0, float64 where it judges); see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::{BTreeMap, HashMap};

use actloom_ops::model::{self, Model};
use actloom_ops::nn::{Kernels, Packing};
use actloom_ops::train::batch::Row;
use actloom_ops::train::optimizer::{AdamW, Optimizer};
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

fn load(kernels: Kernels) -> Model {
    let mut model = model::load(&fixtures().join("model"), &Device::Cpu).unwrap();
    model.kernels = kernels;
    model
}

/// The two sequences of the fixture, without padding.
fn sequences() -> Vec<Vec<u32>> {
    let t = tensors("forward.safetensors");
    let ids = t["input_ids"].to_vec2::<i64>().unwrap();
    let mask = t["attention_mask"].to_vec2::<i64>().unwrap();
    ids.iter()
        .zip(&mask)
        .map(|(i, m)| i.iter().zip(m).filter(|(_, m)| **m == 1).map(|(i, _)| *i as u32).collect())
        .collect()
}

fn row(labels: &str) -> Row {
    let labels = tensors("forward.safetensors")[labels].to_vec2::<i64>().unwrap();
    let mut row = Row::default();
    for (i, ids) in sequences().iter().enumerate() {
        row.add(i, None, ids, |t| labels[i][t] != -100);
    }
    row
}

fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "{what}: off by {worst}, tolerance {tolerance}");
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn logits_agree_alone_and_packed_with_both_sets_of_kernels() {
    let want = tensors("forward.safetensors")["logits"].clone();
    let sequences = sequences();
    for kernels in [Kernels::Cpu, Kernels::Plain] {
        let model = load(kernels);
        let mut packing = Packing::new();
        sequences.iter().for_each(|s| {
            packing.root(s.len());
        });
        let packed = model.logits(&sequences.concat(), &packing).unwrap();
        let mut at = 0;
        for (i, ids) in sequences.iter().enumerate() {
            let want = flat(&want.get(i).unwrap().narrow(0, 0, ids.len()).unwrap());
            let alone = model.logits(ids, &Packing::single(ids.len())).unwrap();
            close(&flat(&alone), &want, 5e-5, "alone");
            let part = packed.narrow(0, at, ids.len()).unwrap();
            close(&flat(&part), &want, 5e-5, "packed");
            if kernels == Kernels::Cpu {
                assert_eq!(flat(&part), flat(&alone), "packing changed bits");
            }
            at += ids.len();
        }
    }
}

#[test]
fn log_probabilities_and_entropies_agree_at_both_temperatures() {
    let t = tensors("forward.safetensors");
    for (temperature, name) in [(1.0, "logps_f64"), (0.6, "logps_temp0.6_f64")] {
        let row = row("labels_all");
        let stats = load(Kernels::Cpu).score(&row.ids, &row.packing, &row.targets, temperature).unwrap();
        for member in 0..sequences().len() {
            let mine = stats.iter().zip(&row.owners).filter(|(_, owners)| owners[0].member == member);
            let (got, entropies): (Vec<f32>, Vec<f32>) = mine.map(|(s, _)| (s.logp, s.entropy)).unzip();
            let want = flat(&t[name].get(member).unwrap());
            close(&got, &want[..got.len()], 2e-5, name);
            if temperature == 1.0 {
                let want = flat(&t["entropy_f64"].get(member).unwrap());
                close(&entropies, &want[..got.len()], 2e-5, "entropy");
            }
        }
    }
}

/// Loss and gradients of the mean loss over the row's targets.
fn backward(model: &mut Model, row: &Row) -> f64 {
    let n = row.targets.len() as f32;
    let stats = model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -1.0 / n).unwrap();
    -stats.iter().map(|s| f64::from(s.logp)).sum::<f64>() / f64::from(n)
}

#[test]
fn every_parameter_gets_the_reference_gradient_under_both_masks() {
    let want = tensors("grads.safetensors");
    let json = json();
    for kernels in [Kernels::Cpu, Kernels::Plain] {
        for labels in ["part", "all"] {
            let mut model = load(kernels);
            let loss = backward(&mut model, &row(&format!("labels_{labels}")));
            let mut compared = 0;
            for p in model.params() {
                let got = flat(p.grad.as_ref().unwrap());
                let norm = got.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                assert!(norm.is_finite() && norm > 0.0, "`{}` got no gradient", p.name);
                if let Some(want) = want.get(&format!("{labels}.{}", p.name)) {
                    let want = flat(want);
                    let off = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
                    let size = want.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    assert!(off / size < 2e-5, "{kernels:?} {labels} `{}`: off by {}", p.name, off / size);
                    compared += 1;
                }
            }
            assert!(compared >= 7, "{labels}: only {compared} gradients were compared");
            let want = json["loss"][labels]["f64"].as_f64().unwrap();
            assert!((loss - want).abs() < 1e-5, "loss {loss}, expected {want}");
        }
    }
}

#[test]
fn adamw_agrees_after_one_and_after_five_clipped_steps() {
    let want = tensors("adamw.safetensors");
    for kernels in [Kernels::Cpu, Kernels::Plain] {
        for (name, steps, beta2, clip, tolerance) in
            [("one_step", 1, 0.999, 0.0, 1e-5), ("five_steps_clip", 5, 0.95, 1.0, 2e-5)]
        {
            let mut model = load(kernels);
            let before: BTreeMap<String, Vec<f32>> =
                model.params().iter().map(|p| (p.name.clone(), flat(&p.value))).collect();
            let mut optimizer = Optimizer::new(AdamW { beta1: 0.9, beta2, eps: 1e-8, weight_decay: 0.1, clip });
            for _ in 0..steps {
                backward(&mut model, &row("labels_part"));
                optimizer.step(&mut model, 1e-3).unwrap();
            }
            for p in model.params() {
                let moved = flat(&want[&format!("{name}.{}", p.name)]);
                let want: Vec<f32> = before[&p.name].iter().zip(&moved).map(|(b, m)| b + m / 1000.0).collect();
                close(&flat(&p.value), &want, tolerance, &format!("{kernels:?} {name} `{}`", p.name));
            }
        }
    }
}

#[test]
fn accumulated_micro_batches_equal_the_full_batch() {
    let full = row("labels_part");
    let n = full.targets.len() as f32;
    let mut whole = load(Kernels::Cpu);
    backward(&mut whole, &full);
    let mut parts = load(Kernels::Cpu);
    let labels = tensors("forward.safetensors")["labels_part"].to_vec2::<i64>().unwrap();
    for (i, ids) in sequences().iter().enumerate() {
        let mut row = Row::default();
        row.add(i, None, ids, |t| labels[i][t] != -100);
        parts.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -1.0 / n).unwrap();
    }
    for (a, b) in whole.params().iter().zip(parts.params()) {
        let (a, b) = (flat(a.grad.as_ref().unwrap()), flat(b.grad.as_ref().unwrap()));
        let size = a.iter().map(|x| x * x).sum::<f32>().sqrt();
        close(&a, &b, 2e-6 * size.max(1.0), "accumulation");
    }
}

#[test]
fn greedy_decoding_over_the_cache_gives_the_reference_ids_alone_and_in_a_batch() {
    let json = json();
    let ids = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    };
    let cases = json["greedy"]["cases"].as_array().unwrap();
    let prompts: Vec<Vec<u32>> = cases.iter().map(|c| ids(&c["prompt"])).collect();
    let want: Vec<Vec<u32>> = cases.iter().map(|c| ids(&c["new"])).collect();
    let model = load(Kernels::Cpu);
    let run = |prompts: &[Vec<u32>]| -> Vec<Vec<u32>> {
        let mut sequences: Vec<_> = prompts.iter().map(|_| model.sequence()).collect();
        let mut next: Vec<Vec<u32>> = prompts.to_vec();
        let mut out = vec![Vec::new(); prompts.len()];
        for _ in 0..20 {
            let mut batch: Vec<_> = sequences.iter_mut().zip(&next).map(|(s, n)| (s, n.as_slice())).collect();
            let logits = model.extend(&mut batch).unwrap().to_vec2::<f32>().unwrap();
            for (i, z) in logits.iter().enumerate() {
                let best = z.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32;
                out[i].push(best);
                next[i] = vec![best];
            }
        }
        out
    };
    assert_eq!(run(&prompts), want, "in a batch");
    for (p, w) in prompts.iter().zip(&want) {
        assert_eq!(run(std::slice::from_ref(p)), std::slice::from_ref(w), "alone");
    }
}

#[test]
fn the_cache_has_exactly_the_bits_of_the_packed_forward() {
    let model = load(Kernels::Cpu);
    let ids = sequences().remove(0);
    let whole = model.logits(&ids, &Packing::single(ids.len())).unwrap().to_vec2::<f32>().unwrap();
    let mut sequence = model.sequence();
    let first = model.extend(&mut [(&mut sequence, &ids[..5])]).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(first[0], whole[4]);
    for t in 5..ids.len() {
        let next = model.extend(&mut [(&mut sequence, &ids[t..=t])]).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(next[0], whole[t], "token {t}");
    }
}

#[test]
fn a_shared_prefix_has_the_bits_of_separate_sequences_and_their_gradients() {
    let [a, b] = [sequences().remove(0), sequences().remove(1)];
    let (prompt, tails) = (&a[..6], [&a[6..], &b[3..], &b[1..4]]);
    let mut shared = Row::default();
    let root = shared.add(0, None, prompt, |_| false);
    let mut apart = Row::default();
    for (i, tail) in tails.iter().enumerate() {
        shared.add(i, Some(root), tail, |_| true);
        let whole = [prompt, tail].concat();
        apart.add(i, None, &whole, |t| t >= prompt.len());
    }
    for kernels in [Kernels::Cpu, Kernels::Plain] {
        let (mut x, mut y) = (load(kernels), load(kernels));
        let coefficient = |i: usize, _| 0.1 * (i as f32 + 1.0);
        let sx = x.train(&shared.ids, &shared.packing, &shared.targets, 0.7, coefficient).unwrap();
        let sy = y.train(&apart.ids, &apart.packing, &apart.targets, 0.7, coefficient).unwrap();
        if kernels == Kernels::Cpu {
            assert_eq!(sx, sy);
        }
        for (p, q) in x.params().iter().zip(y.params()) {
            let (g, h) = (flat(p.grad.as_ref().unwrap()), flat(q.grad.as_ref().unwrap()));
            let size = g.iter().map(|x| x * x).sum::<f32>().sqrt();
            close(&g, &h, 1e-5 * size, &p.name);
        }
    }
}

#[test]
fn a_trainable_parameter_without_a_gradient_stops_the_optimizer_by_name() {
    let mut model = load(Kernels::Cpu);
    let error = Optimizer::new(AdamW::default()).step(&mut model, 1e-3).unwrap_err();
    assert_eq!(error.to_string(), "no gradient reached the trainable parameter `model.embed_tokens.weight`");
}

#[test]
fn gradients_agree_with_finite_differences_of_the_loss() {
    let row = row("labels_part");
    let mut model = load(Kernels::Cpu);
    backward(&mut model, &row);
    let grads: Vec<Vec<f32>> = model.params().iter().map(|p| flat(p.grad.as_ref().unwrap())).collect();
    let loss = |model: &Model| {
        let s = model.score(&row.ids, &row.packing, &row.targets, 1.0).unwrap();
        -s.iter().map(|s| f64::from(s.logp)).sum::<f64>() / s.len() as f64
    };
    // along the gradient of one parameter at a time the loss changes by the gradient's squared norm
    for index in 0..grads.len() {
        let norm = grads[index].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let h = 3e-3;
        let mut moved = [0.0; 2];
        for (m, sign) in moved.iter_mut().zip([1.0, -1.0]) {
            let mut other = load(Kernels::Cpu);
            let mut params = other.params_mut();
            let p = &mut params[index];
            let step = Tensor::from_slice(&grads[index], p.value.shape(), &Device::Cpu).unwrap();
            p.value = (&p.value + (step * (sign * h / norm)).unwrap()).unwrap();
            p.changed();
            *m = loss(&other);
        }
        let slope = (moved[0] - moved[1]) / (2.0 * h);
        assert!((slope - norm).abs() < 0.02 * norm + 2e-4, "parameter {index}: slope {slope}, gradient {norm}");
    }
}

#[test]
fn a_model_that_was_saved_loads_with_the_same_bits() {
    let model = load(Kernels::Cpu);
    let folder = tempfile::tempdir().unwrap();
    let folder = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    model::save(&model, &folder).unwrap();
    let again = model::load(&folder, &Device::Cpu).unwrap();
    assert_eq!(again.config, model.config);
    for (a, b) in model.params().iter().zip(again.params()) {
        assert_eq!((a.name.clone(), flat(&a.value)), (b.name.clone(), flat(&b.value)));
    }
}

#[test]
fn token_ids_and_lengths_that_the_model_cannot_take_are_named() {
    let model = load(Kernels::Cpu);
    let error = model.logits(&[1, 320], &Packing::single(2)).unwrap_err().to_string();
    assert!(error.contains("token id 320 is not below the vocabulary's size 320"), "{error}");
}
