//! Forward and gradients of whole models against candle's autograd in float64: a decoder written in plain operations,
//! one sequence at a time, so that it knows neither packing nor shared prefixes.
//!
//! It uses none of candle's fused operations, which drop gradients without a word. The tape itself is judged by the
//! stored logits of transformers and by finite differences.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

mod small;

use std::collections::BTreeMap;

use actloom_ops::model::{self, Model, Target};
use actloom_ops::nn::Packing;
use actloom_ops::rng::Rng;
use actloom_ops::train::batch::Row;
use camino::Utf8PathBuf;
use candle_core::{D, DType, Device, Result, Tensor, Var};
use serde_json::Value;

/// A model on the tape, in float64; reads `config.json` by itself.
struct Tape {
    config: Value,
    weights: BTreeMap<String, Var>,
}

impl Tape {
    fn new<'a>(config: &Value, weights: impl Iterator<Item = (String, &'a Tensor)>) -> Tape {
        let wide = |(name, t): (String, &Tensor)| (name, Var::from_tensor(&t.to_dtype(DType::F64).unwrap()).unwrap());
        Tape { config: config.clone(), weights: weights.map(wide).collect() }
    }

    fn of(config: &Value, model: &Model) -> Tape {
        Tape::new(config, model.params().into_iter().map(|p| (p.name.clone(), &p.value)))
    }

    fn size(&self, field: &str) -> usize {
        self.config[field].as_u64().unwrap() as usize
    }

    fn family(&self) -> &str {
        self.config["model_type"].as_str().unwrap()
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights.get(name).unwrap_or_else(|| panic!("the tape has no `{name}`"))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let y = x.matmul(&self.weight(&format!("{name}.weight")).t()?)?;
        match self.weights.get(&format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Over the last dimension, which is the weight's.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let eps = self.config["rms_norm_eps"].as_f64().unwrap();
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        x.broadcast_div(&rms)?.broadcast_mul(self.weight(&format!("{name}.weight")))
    }

    fn head_dim(&self) -> usize {
        match self.config["head_dim"].as_u64() {
            Some(d) => d as usize,
            None => self.size("hidden_size") / self.size("num_attention_heads"),
        }
    }

    /// Cosines and sines, (t, d/2). Frequencies and angles are float32, as in transformers.
    fn rotation(&self, t: usize, sliding: bool) -> Result<(Tensor, Tensor)> {
        let d = self.head_dim();
        let theta = self.config["rope_theta"].as_f64().unwrap();
        let mut frequencies: Vec<f32> = (0..d / 2).map(|i| theta.powf(-2.0 * i as f64 / d as f64) as f32).collect();
        let scaling = &self.config["rope_scaling"];
        let number = |field: &str| scaling[field].as_f64().unwrap();
        let mut factor = 1.0;
        match scaling["rope_type"].as_str() {
            Some("llama3") => frequencies.iter_mut().for_each(|f| *f = llama3(*f, &number)),
            // Olmo 3 stretches only the layers that see everything
            Some("yarn") if !sliding => {
                let edge = |turns: f64| {
                    let length = number("original_max_position_embeddings");
                    d as f64 * (length / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
                };
                let low = edge(number("beta_fast")).floor().max(0.0);
                let high = edge(number("beta_slow")).ceil().min(d as f64 - 1.0);
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let wide = f64::from(*f);
                    *f = (wide / number("factor") * ramp + wide * (1.0 - ramp)) as f32;
                }
                factor = number("attention_factor");
            }
            None | Some("yarn") => {}
            Some(other) => panic!("the tape knows no rope type `{other}`"),
        }
        let angles: Vec<f64> = (0..t).flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f))).collect();
        let angles = Tensor::from_vec(angles, (1, t, d / 2), &Device::Cpu)?;
        Ok(((angles.cos()? * factor)?, (angles.sin()? * factor)?))
    }

    /// x (t, hidden) -> (t, hidden)
    fn attention(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let (t, d) = (x.dim(0)?, self.head_dim());
        let (h, hk) = (self.size("num_attention_heads"), self.size("num_key_value_heads"));
        let sliding = self.config["layer_types"][layer] == "sliding_attention";
        let at = |name: &str| format!("model.layers.{layer}.self_attn.{name}");
        let mut q = self.linear(x, &at("q_proj"))?;
        let mut k = self.linear(x, &at("k_proj"))?;
        let v = self.linear(x, &at("v_proj"))?;
        if self.family() == "olmo3" {
            (q, k) = (self.norm(&q, &at("q_norm"))?, self.norm(&k, &at("k_norm"))?);
        }
        let (mut q, mut k) = (q.reshape((t, h, d))?, k.reshape((t, hk, d))?);
        if self.family() == "qwen3" {
            (q, k) = (self.norm(&q, &at("q_norm"))?, self.norm(&k, &at("k_norm"))?);
        }
        let (cos, sin) = self.rotation(t, sliding)?;
        let turn = |x: &Tensor| -> Result<Tensor> {
            let x = x.transpose(0, 1)?.contiguous()?; // (heads, t, d)
            let (a, b) = (x.narrow(2, 0, d / 2)?, x.narrow(2, d / 2, d / 2)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Tensor::cat(&[first, second], 2)
        };
        let (q, k, v) = (turn(&q)?, turn(&k)?, v.reshape((t, hk, d))?.transpose(0, 1)?.contiguous()?);
        let window = if sliding { self.size("sliding_window") } else { t };
        let mask: Vec<f64> = (0..t)
            .flat_map(|i| (0..t).map(move |j| if j <= i && i - j < window { 0.0 } else { f64::NEG_INFINITY }))
            .collect();
        let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
        let mut outs = Vec::new();
        for head in 0..h {
            let shared = head / (h / hk);
            let scores = (q.get(head)?.matmul(&k.get(shared)?.t()?)? / (d as f64).sqrt())?;
            let scores = scores.broadcast_add(&mask)?;
            let e = scores.broadcast_sub(&scores.detach().max_keepdim(1)?)?.exp()?;
            let p = e.broadcast_div(&e.sum_keepdim(1)?)?;
            outs.push(p.matmul(&v.get(shared)?)?);
        }
        self.linear(&Tensor::cat(&outs, 1)?, &at("o_proj"))
    }

    fn mlp(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let at = |name: &str| format!("model.layers.{layer}.mlp.{name}");
        let gate = self.linear(x, &at("gate_proj"))?;
        let silu = (&gate / (gate.neg()?.exp()? + 1.0)?)?;
        self.linear(&(silu * self.linear(x, &at("up_proj"))?)?, &at("down_proj"))
    }

    /// Logits (t, v) of one sequence.
    fn logits(&self, ids: &[u32]) -> Result<Tensor> {
        let embedding = self.weight("model.embed_tokens.weight");
        let mut x = embedding.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        for layer in 0..self.size("num_hidden_layers") {
            let norm = |x: &Tensor, name: &str| self.norm(x, &format!("model.layers.{layer}.{name}"));
            if self.family() == "olmo3" {
                x = (&x + norm(&self.attention(&x, layer)?, "post_attention_layernorm")?)?;
                x = (&x + norm(&self.mlp(&x, layer)?, "post_feedforward_layernorm")?)?;
            } else {
                x = (&x + self.attention(&norm(&x, "input_layernorm")?, layer)?)?;
                x = (&x + self.mlp(&norm(&x, "post_attention_layernorm")?, layer)?)?;
            }
        }
        let head = self.weights.get("lm_head.weight").map_or(embedding, |w| w.as_tensor());
        self.norm(&x, "model.norm")?.matmul(&head.t()?)
    }

    /// Log-probabilities of `ids[from..]`, each predicted by the token before it.
    fn logps(&self, ids: &[u32], from: usize, temperature: f64) -> Result<Tensor> {
        let z = (self.logits(&ids[..ids.len() - 1])?.narrow(0, from - 1, ids.len() - from)? / temperature)?;
        let z = z.broadcast_sub(&z.detach().max_keepdim(1)?)?;
        let log = z.broadcast_sub(&z.exp()?.sum_keepdim(1)?.log()?)?;
        log.gather(&Tensor::new(&ids[from..], &Device::Cpu)?.unsqueeze(1)?, 1)?.squeeze(1)
    }
}

/// One factor of llama 3's scaling: short waves stay, long ones are stretched, between them it is gradual.
fn llama3(frequency: f32, number: &dyn Fn(&str) -> f64) -> f32 {
    let (factor, low, high) = (number("factor"), number("low_freq_factor"), number("high_freq_factor"));
    let wide = f64::from(frequency);
    let turns = number("original_max_position_embeddings") * wide / std::f64::consts::TAU;
    let stay = ((turns - low) / (high - low)).clamp(0.0, 1.0);
    (wide / factor * (1.0 - stay) + wide * stay) as f32
}

/// A piece of a row: its parent among the pieces before it, its tokens, and whether they are learned.
type Piece = (Option<usize>, Vec<u32>, bool);

/// The tokens from the root to the end of a piece.
fn path(pieces: &[Piece], index: usize) -> Vec<u32> {
    let (parent, ids, _) = &pieces[index];
    let mut whole = parent.map_or(Vec::new(), |parent| path(pieces, parent));
    whole.extend(ids);
    whole
}

fn coefficient(i: usize) -> f32 {
    ((i * 37) % 11) as f32 * 0.1 - 0.45
}

/// Trains one packed row with our model, and each path of it alone on the tape: log-probabilities and the gradient of
/// every parameter must be the same.
fn compare(config: &Value, pieces: &[Piece], what: &str) {
    let temperature = 0.7f32;
    let mut model = small::random(config, 3);
    let mut row = Row::default();
    let mut segments = Vec::new();
    for (parent, ids, learn) in pieces {
        let parent = parent.map(|parent| segments[parent]);
        segments.push(row.add(0, parent, ids, |_| *learn));
    }
    let stats = model.train(&row.ids, &row.packing, &row.targets, temperature, |i, _| coefficient(i)).unwrap();

    let tape = Tape::of(config, &model);
    let mut logps = Vec::new();
    let mut loss = Tensor::new(0f64, &Device::Cpu).unwrap();
    for (index, (parent, ids, learn)) in pieces.iter().enumerate() {
        if !learn {
            continue;
        }
        let whole = path(pieces, index);
        let from = if parent.is_some() { whole.len() - ids.len() } else { 1 };
        let piece = tape.logps(&whole, from, f64::from(temperature)).unwrap();
        let c: Vec<f64> = (0..whole.len() - from).map(|i| f64::from(coefficient(logps.len() + i))).collect();
        let c = Tensor::from_vec(c, whole.len() - from, &Device::Cpu).unwrap();
        loss = (loss + (&piece * c).unwrap().sum_all().unwrap()).unwrap();
        logps.extend(piece.to_vec1::<f64>().unwrap());
    }
    assert_eq!(stats.len(), logps.len(), "{what}");
    for (i, (got, want)) in stats.iter().zip(&logps).enumerate() {
        let off = (f64::from(got.logp) - want).abs();
        assert!(off < 2e-5, "{what}: target {i} has log-probability {}, expected {want}", got.logp);
    }
    let grads = loss.backward().unwrap();
    for p in model.params() {
        let want = grads.get(tape.weight(&p.name)).unwrap_or_else(|| panic!("the tape dropped `{}`", p.name));
        let got = p.grad.as_ref().unwrap().to_dtype(DType::F64).unwrap();
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let (off, size) = (norm(&(got - want).unwrap()), norm(want));
        assert!(size.is_finite() && size > 1e-4, "{what}: the gradient of `{}` has norm {size}", p.name);
        assert!(off < 2e-5 * size, "{what}: gradient of `{}` is off by {}", p.name, off / size);
    }
}

fn one_family(config: &Value) {
    let family = config["model_type"].as_str().unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    let mut rng = Rng::new(17, 0);
    let mut piece = |parent: Option<usize>, n: usize, learn: bool| (parent, small::ids(&mut rng, n, vocabulary), learn);
    compare(config, &[piece(None, 23, true)], &format!("{family}, one sequence"));
    let packed = [piece(None, 9, true), piece(None, 2, true), piece(None, 40, true), piece(None, 7, true)];
    compare(config, &packed, &format!("{family}, packed"));
    let group = [
        piece(None, 11, false),
        piece(Some(0), 6, true),
        piece(Some(0), 1, true),
        piece(Some(0), 13, true),
        piece(None, 5, true),
    ];
    compare(config, &group, &format!("{family}, a shared prompt"));
    let nested = [
        piece(None, 4, true),
        piece(Some(0), 8, false),
        piece(Some(1), 5, true),
        piece(Some(1), 7, true),
        piece(Some(0), 3, true),
    ];
    compare(config, &nested, &format!("{family}, prompts within prompts"));
}

#[test]
fn qwen3_has_the_log_probabilities_and_gradients_of_the_tape() {
    one_family(&small::qwen3());
}

#[test]
fn qwen2_has_the_log_probabilities_and_gradients_of_the_tape() {
    one_family(&small::qwen2());
}

#[test]
fn layers_that_slide_and_layers_that_do_not_have_the_gradients_of_the_tape() {
    let mut config = small::qwen2();
    config["use_sliding_window"] = Value::from(true);
    config["sliding_window"] = Value::from(4);
    config["layer_types"] = Value::from(vec!["full_attention", "sliding_attention", "full_attention"]);
    one_family(&config);
}

#[test]
fn llama_has_the_log_probabilities_and_gradients_of_the_tape() {
    one_family(&small::llama());
}

#[test]
fn olmo3_has_the_log_probabilities_and_gradients_of_the_tape() {
    one_family(&small::olmo3());
}

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

/// A folder of the fixtures on the tape.
fn stored(folder: &str) -> Tape {
    let folder = fixtures().join(folder);
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let weights = model::load_tensors(&folder).unwrap();
    Tape::new(&config, weights.iter().map(|(name, t)| (name.clone(), t)))
}

#[test]
fn the_parity_model_has_the_gradients_of_the_tape_in_a_packed_row_with_a_shared_prompt() {
    let tape = stored("model");
    let pieces: [Piece; 4] = [
        (None, vec![5, 9, 300, 2, 17, 316], false),
        (Some(0), vec![44, 45, 46, 317], true),
        (Some(0), vec![7, 317], true),
        (None, vec![1, 2, 3, 4, 5, 6], true),
    ];
    let mut model = model::load(&fixtures().join("model"), &Device::Cpu).unwrap();
    let mut row = Row::default();
    let root = row.add(0, None, &pieces[0].1, |_| false);
    row.add(1, Some(root), &pieces[1].1, |_| true);
    row.add(2, Some(root), &pieces[2].1, |_| true);
    row.add(3, None, &pieces[3].1, |_| true);
    model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -1.0).unwrap();
    let sum = |index: usize, from: usize| tape.logps(&path(&pieces, index), from, 1.0).unwrap().sum_all().unwrap();
    let loss = (((sum(1, 6) + sum(2, 6)).unwrap() + sum(3, 1)).unwrap()).neg().unwrap();
    let grads = loss.backward().unwrap();
    for p in model.params() {
        let want = grads.get(tape.weight(&p.name)).unwrap();
        let got = p.grad.as_ref().unwrap().to_dtype(DType::F64).unwrap();
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
        let (off, size) = (norm(&(got - want).unwrap()), norm(want));
        assert!(size > 0.0 && off < 2e-5 * size, "gradient of `{}` is off by {}", p.name, off / size);
    }
}

#[test]
fn the_tape_has_the_stored_logits_of_transformers() {
    let all = candle_core::safetensors::load(fixtures().join("other_models.safetensors"), &Device::Cpu).unwrap();
    for folder in ["model-untied", "model-qwen2", "model-llama"] {
        let tape = stored(folder);
        for i in 0..2 {
            let ids = all[&format!("{folder}.ids.{i}")].to_dtype(DType::U32).unwrap().to_vec1::<u32>().unwrap();
            let want = all[&format!("{folder}.logits.{i}")].to_dtype(DType::F64).unwrap();
            let off = (tape.logits(&ids).unwrap() - want).unwrap().abs().unwrap();
            let worst: f64 = off.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            assert!(worst < 2e-5, "{folder} {i}: off by {worst}");
        }
    }
}

#[test]
fn the_gradients_of_the_tape_are_those_of_finite_differences() {
    for config in [small::qwen3(), small::qwen2(), small::llama(), small::olmo3()] {
        let family = config["model_type"].as_str().unwrap().to_owned();
        let tape = synthetic(&config, 5);
        let mut rng = Rng::new(23, 0);
        let ids = small::ids(&mut rng, 14, tape.size("vocab_size"));
        let loss = |tape: &Tape| tape.logps(&ids, 1, 1.0).unwrap().sum_all().unwrap();
        let grads = loss(&tape).backward().unwrap();
        for (name, weight) in &tape.weights {
            let gradient = grads.get(weight).unwrap_or_else(|| panic!("{family}: the tape dropped `{name}`"));
            let direction: Vec<f64> = (0..weight.elem_count()).map(|_| rng.normal()).collect();
            let direction = Tensor::from_vec(direction, weight.shape(), &Device::Cpu).unwrap();
            let step = 1e-6;
            let start = weight.as_tensor().copy().unwrap();
            let moved = |by: f64| {
                weight.set(&(&start + (&direction * by).unwrap()).unwrap()).unwrap();
                let value = loss(&tape).to_scalar::<f64>().unwrap();
                weight.set(&start).unwrap();
                value
            };
            let slope = (moved(step) - moved(-step)) / (2.0 * step);
            let want = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
            assert!((slope - want).abs() < 1e-5 * (1.0 + want.abs()), "{family} `{name}`: {slope} and {want}");
        }
    }
}

/// A tape with random weights, its shapes taken from the config alone.
fn synthetic(config: &Value, seed: u64) -> Tape {
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (d, m, v) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let family = config["model_type"].as_str().unwrap();
    let mut tape = Tape { config: config.clone(), weights: BTreeMap::new() };
    let (q, kv) = (size("num_attention_heads") * tape.head_dim(), size("num_key_value_heads") * tape.head_dim());
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![v, d])];
    for layer in 0..size("num_hidden_layers") {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for (name, shape) in [("q", [q, d]), ("k", [kv, d]), ("v", [kv, d]), ("o", [d, q])] {
            add(&format!("self_attn.{name}_proj.weight"), &shape);
            if family == "qwen2" && name != "o" {
                add(&format!("self_attn.{name}_proj.bias"), &shape[..1]);
            }
        }
        match family {
            "qwen3" => ["q", "k"].iter().for_each(|n| add(&format!("self_attn.{n}_norm.weight"), &[tape.head_dim()])),
            "olmo3" => {
                add("self_attn.q_norm.weight", &[q]);
                add("self_attn.k_norm.weight", &[kv]);
            }
            _ => {}
        }
        for (name, shape) in [("gate", [m, d]), ("up", [m, d]), ("down", [d, m])] {
            add(&format!("mlp.{name}_proj.weight"), &shape);
        }
        add("post_attention_layernorm.weight", &[d]);
        add(if family == "olmo3" { "post_feedforward_layernorm.weight" } else { "input_layernorm.weight" }, &[d]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![d]));
    if config["tie_word_embeddings"] == false {
        shapes.push(("lm_head.weight".to_owned(), vec![v, d]));
    }
    for (i, (name, shape)) in shapes.into_iter().enumerate() {
        let mut rng = Rng::at(seed, &[i as u64]);
        let mean = if name.contains("norm") { 1.0 } else { 0.0 };
        let data: Vec<f64> = (0..shape.iter().product()).map(|_| mean + 0.15 * rng.normal()).collect();
        let tensor = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
        tape.weights.insert(name, Var::from_tensor(&tensor).unwrap());
    }
    tape
}

#[test]
fn a_row_of_targets_in_any_order_has_the_gradient_of_the_row_in_order() {
    let config = small::qwen3();
    let mut rng = Rng::new(29, 0);
    let ids = small::ids(&mut rng, 12, 67);
    let targets: Vec<Target> = (0..11).map(|t| Target { row: t, id: ids[t as usize + 1] }).collect();
    let run = |targets: &[Target]| {
        let mut model = small::random(&config, 3);
        model.train(&ids, &Packing::single(12), targets, 1.0, |_, s| s.logp).unwrap();
        let grads = model.params().iter().map(|p| p.grad.clone().unwrap()).collect::<Vec<Tensor>>();
        grads
    };
    let reversed: Vec<Target> = targets.iter().rev().copied().collect();
    for (a, b) in run(&targets).iter().zip(run(&reversed)) {
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        assert!(norm(&(a - b).unwrap()) < 1e-5 * norm(a));
    }
}
