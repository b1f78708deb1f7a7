//! Memory laws, by what Linux says of the process: training and sampling do not leak, and the head never holds a matrix
//! of tokens by vocabulary.
//!
//! Everything is one test: memory is the process's, so nothing may run beside it.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]
#![expect(clippy::print_stderr, reason = "what was measured is for the reader of a test's output")]

mod small;

use actloom_engine::op::OpError;
use actloom_ops::infer::{Request, Sampling, Tokens, complete};
use actloom_ops::model::Model;
use actloom_ops::nn::kernel::Kernels;
use actloom_ops::nn::layer::{self, Param};
use actloom_ops::rng::Rng;
use actloom_ops::train::batch::Row;
use actloom_ops::train::optimizer::{AdamW, Optimizer};
use candle_core::{Device, Tensor};

const MIB: f64 = (1 << 20) as f64;

/// A line of /proc/self/status, in bytes.
fn status(field: &str) -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}

/// What the process held at most while `f` ran, above what it held before.
fn peak(f: impl FnOnce()) -> f64 {
    // 5 sets the high-water mark back to what is held now
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    f();
    status("VmHWM") - before
}

fn train_step(model: &mut Model, optimizer: &mut Optimizer, rng: &mut Rng) {
    let mut row = Row::default();
    for member in 0..3 {
        let length = rng.between(5, 60);
        row.add(member, None, &small::ids(rng, length, 67), |_| true);
    }
    let scale = -1.0 / row.targets.len() as f32;
    model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| scale).unwrap();
    optimizer.step(model, 1e-3).unwrap();
}

/// Token 1 ends an answer.
struct OneEnds;

impl Tokens for OneEnds {
    fn eos(&self) -> &[u32] {
        &[1]
    }

    fn decode(&self, ids: &[u32]) -> Result<String, OpError> {
        Ok("x".repeat(ids.len()))
    }
}

fn sample_round(model: &Model, rng: &mut Rng, round: u64) {
    let length = rng.between(5, 40);
    let prompt = small::ids(rng, length, 67);
    let requests =
        (0..6).map(|i| Request::new(prompt.as_slice(), Sampling::plain(1.0, 20), Rng::at(round, &[i]))).collect();
    assert_eq!(complete(model, &OneEnds, requests, &|| false).unwrap().len(), 6);
}

/// Forward and backward of a head over `n` tokens.
fn head(n: usize, vocabulary: usize) {
    let mut rng = Rng::new(1, 0);
    let d = 16;
    let mut tensor = |rows: usize| {
        let data: Vec<f32> = (0..rows * d).map(|_| (rng.uniform() - 0.5) as f32).collect();
        Tensor::from_vec(data, (rows, d), &Device::Cpu).unwrap()
    };
    let (x, mut head) = (tensor(n), Param::new("head", tensor(vocabulary)));
    let targets: Vec<u32> = (0..n).map(|i| (i * 31 % vocabulary) as u32).collect();
    let (stats, _) = layer::score_backward(Kernels::Cpu, &x, &mut head, &targets, 1.0, |_, _| -1.0).unwrap();
    assert_eq!(layer::score(Kernels::Cpu, &x, &head, &targets, 1.0).unwrap(), stats);
}

#[test]
fn memory_neither_grows_with_steps_nor_holds_tokens_by_vocabulary() {
    for config in [small::qwen3(), small::qwen2(), small::llama(), small::olmo3()] {
        let family = config["model_type"].as_str().unwrap();
        let mut rng = Rng::new(67, 0);
        let mut model = small::random(&config, 1);
        let mut optimizer = Optimizer::new(AdamW::default());
        // 1. training
        (0..50).for_each(|_| train_step(&mut model, &mut optimizer, &mut rng));
        let before = status("VmRSS");
        (0..200).for_each(|_| train_step(&mut model, &mut optimizer, &mut rng));
        let grown = status("VmRSS") - before;
        assert!(grown < 2.0 * MIB, "{family}: 200 training steps left {:.1} MiB behind", grown / MIB);
        // 2. sampling
        (0..50).for_each(|round| sample_round(&model, &mut rng, round));
        let before = status("VmRSS");
        (0..200).for_each(|round| sample_round(&model, &mut rng, round));
        let grown = status("VmRSS") - before;
        assert!(grown < 2.0 * MIB, "{family}: 200 rounds of sampling left {:.1} MiB behind", grown / MIB);
    }

    // 3. the head: 2048 x 65536 float32 would be 512 MiB, and so would its gradient
    head(128, 512);
    let small = peak(|| head(2048, 2048));
    let few = peak(|| head(256, 65_536));
    let large = peak(|| head(2048, 65_536));
    eprintln!(
        "peaks of the head in MiB: 2048 x 2048 {:.0}, 256 x 65536 {:.0}, 2048 x 65536 {:.0}",
        small / MIB,
        few / MIB,
        large / MIB
    );
    assert!(large - few < 24.0 * MIB, "eight times the tokens cost {:.0} MiB more", (large - few) / MIB);
    assert!(large < 160.0 * MIB, "the head over 65536 entries holds {:.0} MiB", large / MIB);
}
