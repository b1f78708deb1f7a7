//! Speed of sampling, in tokens per second of processor time (user and system, all threads).
//!
//! `ACTLOOM_TABLE=1 cargo bench --bench decode` prints one line a job instead of criterion's statistics.

use actloom_ops::infer::{Request, Sampling, Tokens, complete};
use actloom_ops::model::{Config, Model};
use actloom_ops::rng::Rng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn config() -> Config {
    Config::from_json(&serde_json::json!({
        "model_type": "qwen3", "hidden_act": "silu",
        "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true, "eos_token_id": 0,
    }))
    .unwrap()
}
struct Bare;
impl Tokens for Bare {
    fn eos(&self) -> &[u32] {
        &[]
    }
    fn decode(&self, _: &[u32]) -> Result<String, actloom_engine::op::OpError> {
        Ok(String::new())
    }
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn main() {
    let model = Model::random(config(), 1).unwrap();
    let mut rng = Rng::new(3, 3);
    for (name, b, p, n, temperature, reps) in
        [("batch 32 x (256+128)", 32usize, 256usize, 128usize, 1.0f64, 3), ("batch 1 x (32+128)", 1, 32, 128, 0.0, 20)]
    {
        let prompts: Vec<Vec<u32>> = (0..b).map(|_| (0..p).map(|_| rng.below(2048) as u32).collect()).collect();
        for r in 0..3 {
            let (c0, t0) = (cpu(), std::time::Instant::now());
            for _ in 0..reps {
                let requests = prompts
                    .iter()
                    .enumerate()
                    .map(|(i, prompt)| {
                        Request::new(prompt.as_slice(), Sampling::plain(temperature, n), Rng::at(3, &[i as u64]))
                    })
                    .collect();
                let out = complete(&model, &Bare, requests, &|| false).unwrap();
                assert!(out.iter().all(|c| c.ids.len() == n));
            }
            let (c, w) = (cpu() - c0, t0.elapsed().as_secs_f64());
            println!(
                "{name} run {r}: {:.0} tok/cpu-s, {:.0} tok/s wall",
                (reps * b * n) as f64 / c,
                (reps * b * n) as f64 / w
            );
        }
    }
}
