//! The host side of a GPU over a processor that emulates the kernels.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::print_stderr, reason = "what was passed over is for the reader of a test's output")]

mod machine;
mod small;

use actloom_engine::op::OpError;
use actloom_ops::gpu::check::{Finding, check};
use actloom_ops::gpu::driver::{Address, Arg, Driver, Element, Launch, Matrix, Product};
use actloom_ops::gpu::engine::Engine;
use actloom_ops::gpu::parts::{Purpose, Shape};
use actloom_ops::gpu::plan::Plan;
use actloom_ops::gpu::reference;
use actloom_ops::gpu::sample::{Feed, Room, just_drawn};
use actloom_ops::gpu::tape::Keep;
use actloom_ops::gpu::update::Rule;
use actloom_ops::infer::sampling::Draw;
use actloom_ops::infer::{Choice, Completion, Request, Sampling, Tokens, complete};
use actloom_ops::model::lora::{Lora, attach, set_dropout};
use actloom_ops::model::{Model, Sequence, Step, Target};
use actloom_ops::nn::Packing;
use actloom_ops::nn::layer::TokenStats;
use actloom_ops::rng::Rng;
use actloom_ops::train::optimizer::{AdamW, Optimizer, Precision, Settings};
use candle_core::{DType, Tensor};
use machine::Machine;
use serde_json::{Value, json};

fn bytes<T: Copy>(x: &[T]) -> &[u8] {
    // SAFETY: numbers without padding
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), size_of_val(x)) }
}

fn floats(device: &dyn Driver, at: Address, n: usize) -> Vec<f32> {
    let mut out = vec![0u8; 4 * n];
    // SAFETY: the test's own memory
    unsafe { device.read(at, &mut out).unwrap() };
    out.chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn products_of_every_form_are_those_of_the_definition() {
    let Some(device) = Machine::open() else { return };
    let at = device.reserve(4096).unwrap();
    // a = [[1, 2, 3], [4, 5, 6]] with rows four apart, b = [[1, 0, 2], [0, 1, 1]]
    let bf16 = |x: &[f32]| x.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<_>>();
    let a = bf16(&[1., 2., 3., 99., 4., 5., 6., 99.]);
    let b = bf16(&[1., 0., 2., 0., 1., 1.]);
    let (ma, mb) = (Matrix { stride: 4, ..Matrix::new(at, Element::Bf16, 2, 3) }, at.plus(256));
    // SAFETY: all within what was reserved
    unsafe {
        device.write(at, bytes(&a)).unwrap();
        device.write(mb, bytes(&b)).unwrap();
        let mb = Matrix::new(mb, Element::Bf16, 2, 3);
        let c = |rows, columns| Matrix::new(at.plus(512), Element::F32, rows, columns);
        device.product(&Product::rows(ma, mb, c(2, 2))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 4), [7., 5., 16., 11.]);
        device.product(&Product { scale: 2.0, add: true, ..Product::rows(ma, mb, c(2, 2)) }).unwrap();
        assert_eq!(floats(&device, at.plus(512), 4), [21., 15., 48., 33.]);
        device.product(&Product::back(ma.columns(0, 2), mb, c(2, 3))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 6), [1., 2., 4., 4., 5., 13.]);
        device.clear(at.plus(512), 64).unwrap();
        device.product(&Product::weight(ma, mb, c(3, 3))).unwrap();
        assert_eq!(floats(&device, at.plus(512), 9), [1., 4., 6., 2., 5., 9., 3., 6., 12.]);
    }
}

#[test]
fn a_kernel_that_is_not_there_or_takes_other_arguments_is_an_error() {
    let Some(device) = Machine::open() else { return };
    // SAFETY: neither runs
    let error =
        |kernel, args: &[Arg]| unsafe { device.launch(kernel, Launch::new(1, 32), args).unwrap_err().to_string() };
    assert!(error("rms_norms", &[]).starts_with("there is no kernel `rms_norms`"));
    assert!(error("rms_norm", &[Arg::I32(1)]).contains("does not take arguments of [4] bytes"));
}

// --- whole models ------------------------------------------------------------------------------------------------------

/// A model whose sizes the kernels take, with weights that bf16 holds.
fn model(config: &Value, d: usize, seed: u64) -> Model {
    let mut config = config.clone();
    let sizes = [("hidden_size", 64), ("intermediate_size", 88), ("head_dim", d), ("vocab_size", 67)];
    sizes.iter().for_each(|(field, size)| config[*field] = json!(size));
    if config["model_type"] == "qwen2" {
        // its head dimension is hidden / heads
        config["num_attention_heads"] = json!(64 / d);
        config["num_key_value_heads"] = json!(1);
    }
    let mut model = small::random(&config, seed);
    for p in model.params_mut() {
        p.value = p.value.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        p.changed();
    }
    model
}

fn engine(device: Machine, model: &Model, purpose: Purpose) -> Engine {
    let shape = Shape::of(model);
    let mut engine = Engine::new(std::sync::Arc::new(device), &shape, purpose).unwrap();
    model.params().into_iter().for_each(|p| engine.write(&p.name, &p.value).unwrap());
    engine.written().unwrap();
    engine
}

/// Two trees, one with branches, and targets in all of them, some from the same row.
fn row(rng: &mut Rng) -> (Vec<u32>, Packing, Vec<Target>) {
    let mut packing = Packing::new();
    let root = packing.root(20);
    let child = packing.child(root, 9);
    packing.child(child, 5);
    packing.child(root, 31);
    packing.root(72);
    let ids = small::ids(rng, packing.len(), 67);
    let mut targets: Vec<Target> =
        (0..packing.len()).filter(|row| row % 3 != 1).map(|row| Target { row: row as u32, id: ids[row / 2] }).collect();
    targets.push(Target { row: 19, id: 5 });
    (ids, packing, targets)
}

fn coefficient(i: usize, s: TokenStats) -> f32 {
    ((i as f32 * 0.7).sin() + 0.1 * s.logp) / 50.0
}

/// |a - b| / |b| in the Euclidean norm.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let (difference, size) = a.iter().zip(b).fold((0.0, 0.0), |(d, s), (a, b)| (d + square(a - b), s + square(*b)));
    if size == 0.0 { f64::sqrt(difference) } else { f64::sqrt(difference / size) }
}

#[test]
fn a_pass_over_packed_trees_is_the_processors_in_every_family() {
    for (name, config, d) in [
        ("qwen3", small::qwen3(), 32),
        ("qwen3", small::qwen3(), 24),
        ("qwen2", small::qwen2(), 32),
        ("llama", small::llama(), 64),
        ("olmo3", small::olmo3(), 16),
    ] {
        let Some(device) = Machine::open() else { return };
        let mut model = model(&config, d, 3);
        let (ids, packing, targets) = row(&mut Rng::at(1, &[d as u64]));
        let purpose = Purpose { row_tokens: 160, chunk: 40, positions: 200, ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        let want = model.train(&ids, &packing, &targets, 0.7, coefficient).unwrap();
        let got = engine.train(&ids, &packing, &targets, 0.7, coefficient).unwrap();
        let numbers = |stats: &[TokenStats]| stats.iter().flat_map(|s| [s.logp, s.entropy]).collect::<Vec<f32>>();
        let off = distance(&numbers(&got), &numbers(&want));
        assert!(off < 0.01, "{name} {d}: statistics of targets are {off:.4} off");
        let scored = engine.score(&ids, &packing, &targets, 0.7).unwrap();
        assert_eq!(scored, got, "{name} {d}: the sampler's forward is the trainer's, to the bit");
        for p in model.params() {
            let want: Vec<f32> = p.grad.as_ref().unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let got = engine.gradient(&p.name).unwrap().unwrap();
            let off = distance(&got, &want);
            assert!(off < 0.06, "{name} {d}: gradient of {} is {off:.3} off", p.name);
        }
    }
}

#[test]
fn numbers_repeated_on_a_device_are_those_that_would_be_written() {
    // matrices and vectors that are trained, and such that are not, with an addition and without
    for lora in [false, true] {
        let mut model = model(&small::qwen2(), 32, 13);
        if lora {
            let targets = vec!["q_proj".to_owned()];
            attach(&mut model, &Lora { rank: 8, alpha: 16.0, targets, dropout: 0.0 }, 3).unwrap();
        }
        let purpose = Purpose { row_tokens: 160, chunk: 64, positions: 200, ..Purpose::default() };
        let (Some(one), Some(other)) = (Machine::open(), Machine::open()) else { return };
        let (mut written, mut repeated) = (engine(one, &model, purpose), engine(other, &model, purpose));
        let mut rng = Rng::new(6, 2);
        // more numbers than a vector has, fewer than a matrix
        let pool: Vec<f32> = (0..301).map(|_| (rng.normal() * 0.1) as f32).collect();
        for p in model.params() {
            let value = pool.iter().copied().cycle().take(p.value.elem_count()).collect();
            let value = Tensor::from_vec(value, p.value.shape(), &candle_core::Device::Cpu).unwrap();
            written.write(&p.name, &value).unwrap();
            repeated.repeat(&p.name, &pool).unwrap();
        }
        let (ids, packing, _) = row(&mut Rng::at(2, &[]));
        let [want, got] = [&mut written, &mut repeated].map(|engine| {
            engine.written().unwrap();
            let read = model.params().iter().map(|p| engine.read(&p.name).unwrap()).collect::<Vec<_>>();
            (read, engine.logits(&ids, &packing).unwrap())
        });
        assert!(want == got && got.1.iter().all(|x| x.is_finite()), "with an adapter: {lora}");
    }
}

#[test]
fn what_is_kept_of_a_forward_changes_no_bit_of_the_gradients_and_less_memory_is_needed() {
    let mut before: Option<(Vec<Vec<f32>>, usize)> = None;
    for keep in [Keep::All, Keep::WithoutMlp, Keep::Inputs] {
        let Some(device) = Machine::open() else { return };
        let model = model(&small::qwen3(), 32, 5);
        let (ids, packing, targets) = row(&mut Rng::at(2, &[]));
        let purpose = Purpose { row_tokens: 160, chunk: 64, positions: 200, keep: Some(keep), ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        engine.train(&ids, &packing, &targets, 1.0, coefficient).unwrap();
        let gradients = model.params().iter().map(|p| engine.gradient(&p.name).unwrap().unwrap()).collect();
        let memory = engine.memory().1;
        if let Some((want, more)) = before.replace((gradients, memory)) {
            assert_eq!(before.as_ref().unwrap().0, want, "{keep:?}");
            assert!(memory < more, "{keep:?} needs {memory} bytes, and keeping more {more}");
        }
    }
}

#[test]
fn a_row_as_large_as_was_planned_for_needs_no_more_than_was_reserved_and_a_larger_one_gets_more() {
    let Some(device) = Machine::open() else { return };
    let model = model(&small::olmo3(), 16, 6);
    let purpose = Purpose { row_tokens: 96, chunk: 32, positions: 200, ..Purpose::default() };
    let mut engine = engine(device, &model, purpose);
    let ids = small::ids(&mut Rng::at(4, &[]), 130, 67);
    let targets: Vec<Target> = (0..96).map(|row| Target { row, id: 3 }).collect();
    engine.train(&ids[..96], &Packing::single(96), &targets, 1.0, coefficient).unwrap();
    let (used, reserved) = engine.memory();
    assert!(used <= reserved && used > reserved * 9 / 10, "{used} of {reserved}");
    // nothing is lost on the way to larger places: what was trained, gradients, moments, factors of the rates
    let rule = Rule { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: 0.0 };
    engine.set_groups(|name| if name.contains("mlp") { (0.5, 0.1) } else { (1.0, 0.0) }).unwrap();
    engine.update(&rule, 1e-3, 1).unwrap().unwrap();
    engine.train(&ids[..96], &Packing::single(96), &targets, 1.0, coefficient).unwrap();
    let all = |engine: &Engine| -> Vec<_> {
        let names = model.params().into_iter().map(|p| p.name.clone());
        let one = |name: String| (engine.read(&name), engine.gradient(&name), engine.moments(&name));
        names.map(one).map(|(p, g, m)| (p.unwrap(), g.unwrap(), m.unwrap())).collect()
    };
    let before = all(&engine);
    engine.score(&ids, &Packing::single(130), &targets, 1.0).unwrap();
    assert!(engine.memory().1 > reserved);
    assert!(all(&engine) == before, "a larger place changed what is in it");
    let mut same = self::engine(Machine::open().unwrap(), &model, purpose);
    same.set_groups(|name| if name.contains("mlp") { (0.5, 0.1) } else { (1.0, 0.0) }).unwrap();
    same.train(&ids[..96], &Packing::single(96), &targets, 1.0, coefficient).unwrap();
    same.update(&rule, 1e-3, 1).unwrap().unwrap();
    same.train(&ids[..96], &Packing::single(96), &targets, 1.0, coefficient).unwrap();
    assert!(all(&same) == before);
    for engine in [&mut engine, &mut same] {
        engine.update(&rule, 1e-3, 2).unwrap().unwrap();
    }
    assert!(all(&same) == all(&engine), "the next update is another in a larger place");
}

#[test]
fn room_for_tokens_follows_the_device_and_not_what_others_leave_of_it() {
    let Some(device) = Machine::open() else { return };
    let all = device.free().unwrap().1;
    let shape = Shape::of(&model(&small::qwen3(), 32, 1));
    let sample = Some(Room { rows: 8, ..Room::default() });
    let purpose = Purpose { positions: 200, sample, ..Purpose::default() };
    let plan = |free: usize| Plan::that_fits(&device, &shape, &purpose, free).unwrap();
    let alone = plan(all);
    assert!(alone.alone.is_none() && alone.bytes() > all / 2);
    assert_eq!(plan(all - all / 4), alone, "others use a quarter");
    let less = plan(all / 2);
    assert_eq!(less.alone, Some(alone.tokens));
    assert!(less.bytes() <= all / 2 && less.tokens < alone.tokens);
    let said = less.to_string();
    assert!(said.contains(&format!("; {} tokens if nothing else used the device", alone.tokens)), "{said}");
}

#[test]
fn tokens_one_by_one_in_chunks_and_from_a_shared_beginning_have_the_logits_of_a_whole_row() {
    for (config, d) in [(small::qwen3(), 32), (small::olmo3(), 16), (small::qwen2(), 32)] {
        let Some(device) = Machine::open() else { return };
        let model = model(&config, d, 8);
        let room = Room { rows: 4, chunk: 96, tokens: 600, reading: 160 };
        let purpose = Purpose { row_tokens: 64, positions: 200, sample: Some(room), ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        let ids = small::ids(&mut Rng::at(9, &[]), 90, 67);
        let want: Vec<Vec<f32>> = model.logits(&ids, &Packing::single(90)).unwrap().to_vec2().unwrap();
        let close = |got: &[f32], row: usize, how: &str| {
            let off = distance(got, &want[row]);
            assert!(off < 0.03, "{} {how}: logits of row {row} are {off:.4} off", config["model_type"]);
        };
        // a prompt, and another that begins alike
        let mut a = engine.sequence();
        let got = engine.advance(&mut [Feed { held: &mut a, new: &ids[..70], logits: true }]).unwrap();
        close(&got, 69, "prompt");
        let mut b = a.clone();
        // one decodes beside the other, which reads on
        for t in 70..80 {
            let mut feeds = [
                Feed { held: &mut b, new: &ids[70 + t % 2..][..1], logits: t % 2 == 0 },
                Feed { held: &mut a, new: &ids[t..t + 1], logits: true },
            ];
            let got = engine.advance(&mut feeds).unwrap();
            close(&got[got.len() - 67..], t, "decoding");
        }
        let mut feeds = [
            Feed { held: &mut a, new: &ids[80..81], logits: true },
            Feed { held: &mut b, new: &ids[3..6], logits: false },
        ];
        close(&engine.advance(&mut feeds).unwrap(), 80, "beside a chunk");
        let got = engine.advance(&mut [Feed { held: &mut a, new: &ids[81..], logits: true }]).unwrap();
        close(&got, 89, "chunk");
        // back to where both began, from memory
        a.truncate(65);
        let got = engine.advance(&mut [Feed { held: &mut a, new: &ids[65..72], logits: true }]).unwrap();
        close(&got, 71, "after going back");
        // and a step that is too large leaves everything as it was
        let (len, free) = (a.len(), a.free());
        let long = vec![1; 140];
        let error = engine.advance(&mut [Feed { held: &mut a, new: &long, logits: true }]).unwrap_err().to_string();
        assert!(error.contains("a sequence of 212 tokens, expected 200 at most"), "{error}");
        assert_eq!((a.len(), a.free()), (len, free));
        let got = engine.advance(&mut [Feed { held: &mut a, new: &ids[72..73], logits: true }]).unwrap();
        close(&got, 72, "after an error");
    }
}

#[test]
fn updates_follow_the_processors_and_an_adapter_trains_like_its() {
    for lora in [None, Some(0.0), Some(0.4)] {
        let Some(device) = Machine::open() else { return };
        let mut model = model(&small::qwen2(), 32, 11);
        if let Some(dropout) = lora {
            let targets = ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec();
            attach(&mut model, &Lora { rank: 8, alpha: 16.0, targets, dropout }, 3).unwrap();
        }
        let purpose = Purpose { row_tokens: 160, chunk: 64, positions: 200, ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        // an eps that is large beside gradients: a step in the direction of the moment, in which rounding stays small
        let rule = AdamW { clip: 0.5, weight_decay: 0.0, eps: 1.0, ..AdamW::default() };
        let mut optimizer = Optimizer::new(rule);
        let (ids, packing, targets) = row(&mut Rng::at(2, &[]));
        let before: Vec<Vec<f32>> = model.params().iter().map(|p| numbers(&p.value)).collect();
        for step in 1..=3 {
            set_dropout(&mut model, step, 7);
            engine.set_dropped(model.dropped());
            model.train(&ids, &packing, &targets, 1.0, coefficient).unwrap();
            engine.train(&ids, &packing, &targets, 1.0, coefficient).unwrap();
            let want = optimizer.step(&mut model, 0.5).unwrap();
            let on = Rule { beta1: rule.beta1, beta2: rule.beta2, eps: rule.eps, clip: rule.clip };
            let got = engine.update(&on, 0.5, step).unwrap().unwrap();
            assert!((got - want).abs() < 0.03 * want, "norm {got}, expected {want}");
        }
        for (p, before) in model.params().into_iter().zip(&before) {
            let (want, got) = (numbers(&p.value), engine.read(&p.name).unwrap());
            let moved = |x: &[f32]| x.iter().zip(before).map(|(x, b)| x - b).collect::<Vec<f32>>();
            if !p.trainable {
                assert_eq!(got, want, "{} is frozen", p.name);
                continue;
            }
            let off = distance(&moved(&got), &moved(&want));
            assert!(off < 0.08, "{} moved {off:.3} of its way elsewhere", p.name);
        }
        // what products read has followed
        let (want, got) =
            (model.score(&ids, &packing, &targets, 1.0).unwrap(), engine.score(&ids, &packing, &targets, 1.0).unwrap());
        let logps = |s: &[TokenStats]| s.iter().map(|s| s.logp).collect::<Vec<f32>>();
        assert!(distance(&logps(&got), &logps(&want)) < 0.03);
    }
}

#[test]
fn updates_from_the_same_gradients_are_the_processors_to_the_bit_and_so_are_rounded_moments() {
    let mut seen = Vec::new();
    for moments in [Precision::Float32, Precision::Bfloat16] {
        let Some(device) = Machine::open() else { return };
        let mut model = model(&small::qwen2(), 32, 11);
        let purpose = Purpose { row_tokens: 160, chunk: 64, positions: 200, moments, ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        let rule = AdamW { clip: 0.0, weight_decay: 0.1, ..AdamW::default() };
        let mut optimizer = Optimizer::new(Settings { adamw: rule, moments, ..Settings::default() });
        let (ids, packing, targets) = row(&mut Rng::at(2, &[]));
        engine.set_groups(|_| (1.0, 0.1)).unwrap();
        for step in 1..=4 {
            engine.train(&ids, &packing, &targets, 1.0, coefficient).unwrap();
            for p in model.params_mut() {
                let gradient = engine.gradient(&p.name).unwrap().unwrap();
                p.grad = Some(Tensor::from_vec(gradient, p.value.shape(), &candle_core::Device::Cpu).unwrap());
            }
            optimizer.step(&mut model, 0.02).unwrap();
            let on = Rule { beta1: rule.beta1, beta2: rule.beta2, eps: rule.eps, clip: rule.clip };
            engine.update(&on, 0.02, step).unwrap().unwrap();
            if step == 2 {
                // both go on from what a checkpoint would hold
                let kept = optimizer.tensors(&model).unwrap().into_iter().collect();
                optimizer = Optimizer::restore(
                    Settings { adamw: rule, moments, ..Settings::default() },
                    optimizer.steps(),
                    kept,
                )
                .unwrap();
                for p in model.params() {
                    let (m, v) = engine.moments(&p.name).unwrap();
                    let tensor = |x: Vec<f32>| Tensor::from_vec(x, p.value.shape(), &candle_core::Device::Cpu).unwrap();
                    engine.write_moments(&p.name, &tensor(m), &tensor(v)).unwrap();
                }
            }
        }
        let state: std::collections::BTreeMap<String, Tensor> =
            optimizer.tensors(&model).unwrap().into_iter().collect();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for p in model.params() {
            let (m, v) = engine.moments(&p.name).unwrap();
            assert_eq!(bits(&m), bits(&numbers(&state[&format!("m.{}", p.name)])), "m of {}, {moments:?}", p.name);
            assert_eq!(bits(&v), bits(&numbers(&state[&format!("v.{}", p.name)])), "v of {}, {moments:?}", p.name);
            assert_eq!(bits(&engine.read(&p.name).unwrap()), bits(&numbers(&p.value)), "{}, {moments:?}", p.name);
            let short = |x: &[f32]| x.iter().all(|x| x.to_bits() & 0xffff == 0);
            assert_eq!(short(&m) && short(&v), moments == Precision::Bfloat16);
        }
        seen.push(engine.memory().1);
    }
    assert!(seen[1] < seen[0], "moments take {} bytes, and in bfloat16 {}", seen[0], seen[1]);
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn tokens_that_a_device_draws_are_the_processors_and_a_recorded_step_draws_the_same() {
    let Some(device) = Machine::open() else { return };
    let counts = device.counts.clone();
    let mut model = model(&small::qwen3(), 32, 21);
    // sharp enough that a rounding seldom decides
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| small::ids(&mut Rng::at(i, &[]), 9 + i as usize, 67)).collect();
    let requests = || -> Vec<Request> {
        let one = |(i, prompt): (usize, &Vec<u32>)| {
            Request::new(prompt.clone(), Sampling::plain(0.3, 12), Rng::at(5, &[i as u64]))
        };
        prompts.iter().enumerate().map(one).collect()
    };
    let want = complete(&model, &NoText, requests(), &|| false).unwrap();
    model.set_gpu(std::sync::Arc::new(device));
    model.on_device_for(|_| Purpose {
        row_tokens: 64,
        positions: 128,
        sample: Some(Room { rows: 4, chunk: 64, tokens: 1024, reading: 128 }),
        ..Purpose::default()
    });
    let got = complete(&model, &NoText, requests(), &|| false).unwrap();
    let again = complete(&model, &NoText, requests(), &|| false).unwrap();
    let ids = |all: &[Completion]| all.iter().map(|c| c.ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&got), ids(&again), "eager at first, recorded later");
    let same = got.iter().zip(&want).filter(|(a, b)| a.ids == b.ids).count();
    assert!(same >= 2, "{:?}, expected {:?}", ids(&got), ids(&want));
    for (got, want) in got.iter().zip(&want).filter(|(a, b)| a.ids == b.ids) {
        assert!(distance(&got.logps, &want.logps) < 0.1, "{:?} {:?}", got.logps, want.logps);
    }
    let counts = counts.lock().unwrap();
    assert_eq!(counts.reserved, 1, "memory is reserved once");
    assert!(counts.replayed > 10, "{} steps were replayed", counts.replayed);
    // two runs of twelve tokens, of which the host looks at all but the last a step late
    assert!(counts.waited_late >= 20, "tokens were looked at late {} times", counts.waited_late);
}

/// Answers end with this token.
const END: u32 = 5;

struct Ends;

impl Tokens for Ends {
    fn eos(&self) -> &[u32] {
        &[END]
    }

    fn decode(&self, ids: &[u32]) -> Result<String, OpError> {
        Ok(format!("{ids:?}"))
    }
}

#[test]
fn a_step_that_begins_before_the_last_ones_tokens_are_seen_changes_nothing() {
    let Some(device) = Machine::open() else { return };
    let mut model = model(&small::qwen3(), 32, 21);
    model.set_gpu(std::sync::Arc::new(device));
    model.on_device_for(|_| Purpose {
        row_tokens: 64,
        positions: 40,
        sample: Some(Room { rows: 4, chunk: 64, tokens: 1024, reading: 128 }),
        ..Purpose::default()
    });
    model.config.max_positions = 40;
    // some end by themselves, some by their length, one where positions end, and one is held to a list
    let choice = std::sync::Arc::new(Choice::new([vec![7, 8, 9], vec![7, 8, 3, 2], vec![4, 4]], END).unwrap());
    let prompts: Vec<Vec<u32>> =
        (0..9).map(|i| small::ids(&mut Rng::at(i, &[]), if i == 4 { 30 } else { 4 + i as usize }, 67)).collect();
    let requests = || -> Vec<Request> {
        let one = |(i, prompt): (usize, &Vec<u32>)| {
            let sampling = Sampling::plain(1.5, if i % 3 == 0 { 6 + i } else { 40 });
            let choice = (i == 6).then(|| choice.clone());
            Request { choice, ..Request::new(prompt.clone(), sampling, Rng::at(5, &[i as u64])) }
        };
        prompts.iter().enumerate().map(one).collect()
    };
    let got = complete(&model, &Ends, requests(), &|| false).unwrap();
    let again = complete(&model, &Ends, requests(), &|| false).unwrap();
    let mut ends = std::collections::BTreeSet::new();
    for (i, ((got, again), mut request)) in got.iter().zip(&again).zip(requests()).enumerate() {
        assert_eq!((&got.ids, &got.logps), (&again.ids, &again.logps), "request {i}, the second time");
        ends.insert(format!("{:?}", got.finish));
        let seen: Vec<u32> = prompts[i].iter().chain(&got.ids[..got.ids.len() - 1]).copied().collect();
        assert_eq!(got.sequence.ids(), seen, "request {i}");
        if request.choice.is_some() {
            assert!([&[7, 8, 9, END][..], &[7, 8, 3, 2, END], &[4, 4, END]].contains(&got.ids.as_slice()));
            continue;
        }
        // alone, each step after the other
        let mut sequence = model.sequence();
        let (mut new, mut ids, mut logps) = (prompts[i].clone(), Vec::new(), Vec::new());
        loop {
            let draw = Draw { settings: request.sampling.clone(), open: None, place: request.rng.place() };
            request.rng.uniform();
            let drawn = model.draw(step(&mut sequence, &new), &[draw], None).unwrap().wait().unwrap()[0];
            ids.push(drawn.id);
            logps.push(drawn.logp);
            if drawn.id == END || ids.len() == request.sampling.max_tokens || sequence.len() + 1 == 40 {
                break;
            }
            new = vec![drawn.id];
        }
        assert_eq!(got.ids, ids, "request {i}");
        let off = distance(&got.logps, &logps);
        assert!(off < 0.02, "log-probabilities of request {i} are {off} off");
    }
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["Context", "End", "Length"]);
    // pages that a step too many took are given back: there are 20
    drop((got, again));
    for _ in 0..4 {
        complete(&model, &Ends, requests(), &|| false).unwrap();
    }
}

fn step<'a>(sequence: &'a mut Sequence, new: &'a [u32]) -> Vec<Step<'a>> {
    vec![Step { sequence, new, logits: true }]
}

#[test]
fn tokens_that_nobody_has_seen_are_found_although_others_have_drawn_since() {
    let Some(device) = Machine::open() else { return };
    let mut model = model(&small::qwen3(), 32, 21);
    model.set_gpu(std::sync::Arc::new(device));
    let sample = Some(Room { rows: 4, chunk: 64, tokens: 1024, reading: 128 });
    model.on_device_for(|_| Purpose { row_tokens: 64, positions: 64, sample, ..Purpose::default() });
    let draw = |stream: u64, position: u64| Draw {
        settings: Sampling::plain(1.0, 8),
        open: None,
        place: (9, stream, position),
    };
    let two = |between: bool| -> Vec<u32> {
        let (mut mine, mut other) = (model.sequence(), model.sequence());
        let mut first = model.draw(step(&mut mine, &[3, 1, 4]), &[draw(1, 0)], None).unwrap();
        if between {
            model.draw(step(&mut other, &[2, 7]), &[draw(2, 0)], None).unwrap();
        }
        let mut second = model.draw(step(&mut mine, &[just_drawn(0)]), &[draw(1, 1)], Some(&mut first)).unwrap();
        mine.learn(first.wait().unwrap()[0].id);
        let mut ids = mine.ids().to_vec();
        ids.push(second.wait().unwrap()[0].id);
        ids
    };
    let alone = two(false);
    assert_eq!(alone.len(), 5);
    assert_eq!(two(true), alone, "the token of somebody else was taken");
}

#[test]
fn a_model_on_a_device_has_the_logits_and_gradients_of_pytorch() {
    let Some(device) = Machine::open() else { return };
    let folder = camino::Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity");
    let device: std::sync::Arc<dyn actloom_ops::gpu::Driver> = std::sync::Arc::new(device);
    let mut found = Vec::new();
    reference::check(&device, &folder, &mut |finding| found.push(finding)).unwrap();
    let wrong: Vec<_> = found.iter().filter(|f| !f.fine()).map(|f| (&f.what, f.error)).collect();
    assert!(wrong.is_empty() && found.len() > 16, "{wrong:?} of {}", found.len());
    let error = reference::check(&device, &folder.join("model"), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("forward.safetensors"), "{error}");
}

/// Answers end nowhere and are not read.
struct NoText;

impl Tokens for NoText {
    fn eos(&self) -> &[u32] {
        &[]
    }

    fn decode(&self, _ids: &[u32]) -> Result<String, OpError> {
        Ok(String::new())
    }
}

#[test]
fn every_kernel_passes_the_checks_that_a_device_is_given() {
    let Some(device) = Machine::open() else { return };
    let device: std::sync::Arc<dyn Driver> = std::sync::Arc::new(device);
    let mut wrong = Vec::new();
    let mut fine = 0;
    check(&device, &mut |finding: Finding| match finding.fine() {
        true => fine += 1,
        false => wrong.push(finding),
    })
    .unwrap();
    assert!(wrong.is_empty() && fine > 100, "{fine} fine, {wrong:#?}");
}

#[test]
fn launches_of_a_layer_are_few_and_nothing_is_reserved_after_the_first_pass() {
    // (of a pass forward and backward, of a decoding step), kernels and products together
    let asked = |layers: usize| -> Option<(usize, usize)> {
        let device = Machine::open()?;
        let counts = device.counts.clone();
        let mut config = small::qwen3();
        config["num_hidden_layers"] = json!(layers);
        let model = model(&config, 32, 2);
        let room = Room { rows: 4, chunk: 64, tokens: 512, reading: 128 };
        let purpose = Purpose { row_tokens: 160, positions: 128, sample: Some(room), ..Purpose::default() };
        let mut engine = engine(device, &model, purpose);
        let (ids, packing, targets) = row(&mut Rng::at(2, &[]));
        let count = || {
            let counts = counts.lock().unwrap();
            assert_eq!(counts.reserved, 1);
            counts.launches.values().sum::<usize>() + counts.products
        };
        let before = count();
        engine.train(&ids, &packing, &targets, 1.0, coefficient).unwrap();
        let pass = count() - before;
        let draw = Draw { settings: Sampling::plain(1.0, 1), open: None, place: (1, 2, 3) };
        let mut held = engine.sequence();
        engine.advance(&mut [Feed { held: &mut held, new: &ids[..5], logits: false }]).unwrap();
        let before = count();
        let mut steps = Vec::new();
        for t in 0..3 {
            let mut feeds = [Feed { held: &mut held, new: &ids[t..t + 1], logits: true }];
            engine.draw(&mut feeds, std::slice::from_ref(&draw), None).unwrap().wait().unwrap();
            steps.push(count() - before);
        }
        // run, then recorded; later steps ask for nothing by themselves
        assert_eq!(steps[0], steps[2]);
        Some((pass, steps[0] / 2))
    };
    let Some((two, three)) = asked(2).zip(asked(3)) else { return };
    assert_eq!((three.0 - two.0, three.1 - two.1), (32, 9), "of a layer");
    assert!(two.0 < 2 * 32 + 16 && two.1 < 2 * 9 + 8, "{two:?} of two layers with all that is around them");
}

#[test]
fn training_waits_for_sequences_where_both_do_not_fit_and_two_hundred_updates_need_no_more_memory() {
    let Some(device) = Machine::open() else { return };
    let mut config = small::qwen2();
    config["num_hidden_layers"] = json!(1);
    let model = model(&config, 64, 2);
    let room = Room { rows: 2, chunk: 32, tokens: 256, reading: 64 };
    let purpose = Purpose { row_tokens: 64, positions: 64, chunk: 32, sample: Some(room), ..Purpose::default() };
    let mut engine = engine(device, &model, purpose);
    let ids = small::ids(&mut Rng::at(2, &[]), 12, 67);
    let targets = [Target { row: 3, id: 1 }, Target { row: 11, id: 9 }];
    let mut held = engine.sequence();
    engine.advance(&mut [Feed { held: &mut held, new: &ids, logits: true }]).unwrap();
    let error = engine.train(&ids, &Packing::single(12), &targets, 1.0, coefficient).unwrap_err().to_string();
    assert!(error.contains("1 pages of sequences are in use where a pass over rows works"), "{error}");
    drop(held);
    let rule = Rule { beta1: 0.9, beta2: 0.95, eps: 1e-8, clip: 1.0 };
    let mut losses = Vec::new();
    for step in 1..=200 {
        let stats = engine.train(&ids, &Packing::single(12), &targets, 1.0, |_, _| -0.5).unwrap();
        losses.push(-stats.iter().map(|s| s.logp).sum::<f32>());
        engine.update(&rule, 1e-3, step).unwrap().unwrap();
    }
    assert!(losses[199] < 0.1 * losses[0], "{} from {}", losses[199], losses[0]);
    let (used, reserved) = engine.memory();
    assert!(used <= reserved);
    // pages are clean again
    let mut held = engine.sequence();
    let logits = engine.advance(&mut [Feed { held: &mut held, new: &ids, logits: true }]).unwrap();
    let scored = engine_logp(&logits, 9);
    let stats = -losses[199];
    assert!(logits.iter().all(|x| x.is_finite()) && scored > stats - 0.5, "{scored} {stats}");
}

/// Log-probability of an id.
fn engine_logp(logits: &[f32], id: usize) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits[id] - top - logits.iter().map(|x| (x - top).exp()).sum::<f32>().ln()
}
