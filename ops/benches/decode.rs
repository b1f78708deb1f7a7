//! Speed of sampling by processor time: user and system, all threads, so that a busy machine can still tell.
//!
//! Run with `cargo bench -p actloom-ops --bench decode`; throughput is sampled tokens per second of processor time.

use std::hint::black_box;

use actloom_engine::op::OpError;
use actloom_ops::infer::{Request, Sampling, Tokens, complete};
use actloom_ops::model::{Config, Model};
use actloom_ops::rng::Rng;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seconds of processor time of this process, as Linux counts them: in hundredths.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux's /proc");
    // the second field, the name, may hold anything but ends with the last `)`
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number of ticks")).sum::<f64>() / 100.0
}

/// Measures processor time instead of wall time.
struct ProcessorTime;

impl Measurement for ProcessorTime {
    type Intermediate = f64;
    type Value = f64;

    fn start(&self) -> f64 {
        processor_seconds()
    }

    fn end(&self, start: f64) -> f64 {
        // a tick at least: criterion divides by it
        (processor_seconds() - start).max(0.01)
    }

    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, seconds: &f64) -> f64 {
        seconds * 1e9
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// A tokenizer that never ends an answer.
struct Endless;

impl Tokens for Endless {
    fn eos(&self) -> &[u32] {
        &[]
    }

    fn decode(&self, _: &[u32]) -> Result<String, OpError> {
        Ok(String::new())
    }
}

/// The yardstick's model A: 3.7M parameters.
fn model() -> Model {
    let config = serde_json::json!({
        "model_type": "qwen3", "hidden_act": "silu", "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "eos_token_id": 0,
    });
    Model::random(Config::from_json(&config).expect("a config"), 1).expect("a model")
}

struct Job {
    name: &'static str,
    prompts: usize,
    /// Requests for each prompt.
    group: usize,
    prompt: usize,
    new: usize,
    sampling: Sampling,
}

fn main() {
    let model = model();
    let hot = Sampling::plain(1.0, 128);
    let cut = Sampling { temperature: 0.6, top_k: 20, top_p: 0.95, ..hot.clone() };
    let greedy = Sampling { temperature: 0.0, ..hot.clone() };
    let job = |name, prompts, group, prompt, new, sampling: &Sampling| {
        let sampling = Sampling { max_tokens: new, ..sampling.clone() };
        Job { name, prompts, group, prompt, new, sampling }
    };
    let jobs = [
        job("32 x (256 + 128)", 32, 1, 256, 128, &hot),
        job("32 x (256 + 128), top-k and top-p", 32, 1, 256, 128, &cut),
        job("1 x (32 + 128)", 1, 1, 32, 128, &greedy),
        job("4 groups of 8 x (512 + 64)", 4, 8, 512, 64, &hot),
    ];
    let mut criterion = Criterion::default().with_measurement(ProcessorTime).configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    for job in jobs {
        let mut rng = Rng::new(3, 3);
        let prompts: Vec<Vec<u32>> =
            (0..job.prompts).map(|_| (0..job.prompt).map(|_| rng.below(2048) as u32).collect()).collect();
        let n = job.prompts * job.group;
        group.throughput(Throughput::Elements((n * job.new) as u64));
        group.bench_function(job.name, |bench| {
            bench.iter(|| {
                let request = |i: usize| {
                    let prompt = prompts[i / job.group].as_slice();
                    Request::new(prompt, job.sampling.clone(), Rng::at(3, &[i as u64]))
                };
                let out = complete(&model, &Endless, (0..n).map(request).collect(), &|| false).expect("completions");
                assert!(out.iter().all(|c| c.ids.len() == job.new));
                black_box(out)
            });
        });
    }
    group.finish();
    criterion.final_summary();
}
