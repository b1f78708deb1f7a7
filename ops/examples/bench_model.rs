//! Runs one job on a random model and prints its cost as one JSON object: what `benches/side_by_side.sh` compares.
//!
//! `bench_model JOB [--model A|B] [--batch N] [--length N] [--turns N] [--vocab N] [--row-tokens N] [--runs N] [--warm N]`
//! where JOB is `sft`, `score`, `grpo`, `gen` or `decode1`, or one of `tree`, `grouped` and `alone`: an update on an episode
//! of questions, packed in three ways. Rows hold 2048 tokens unless said. One warm-up run comes first and is left out.
//! Wall and processor seconds are of single runs; peak memory is that of the process, so a job per process.
//!
//! Invariants: the first five jobs are those of `benches/torch_side.py`: same shapes, same tokens counted, same optimizer;
//! the last three have the same sequences, targets and gradients.

use std::io::Write;
use std::time::Instant;

use actloom_engine::op::OpError;
use actloom_ops::infer::{Request, Sampling, Tokens, complete};
use actloom_ops::model::{Config, Model};
use actloom_ops::rng::Rng;
use actloom_ops::train::batch::{Example, Row};
use actloom_ops::train::forest::Forest;
use actloom_ops::train::objective::Objective;
use actloom_ops::train::optimizer::{AdamW, Optimizer};
use actloom_ops::train::update::{self, Group, Sample, Settings};
use serde_json::{Map, Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Part of mimalloc.
    fn mi_option_set(option: std::ffi::c_int, value: std::ffi::c_long);
}

const JOBS: &str = "`sft`, `score`, `grpo`, `gen`, `decode1`, `tree`, `grouped` and `alone`";

/// What the command line asks for.
struct Args {
    job: String,
    model: String,
    batch: Option<usize>,
    length: Option<usize>,
    turns: usize,
    vocab: Option<usize>,
    row_tokens: usize,
    runs: usize,
    warm: usize,
}

impl Args {
    fn read() -> Result<Args, OpError> {
        let mut words = std::env::args().skip(1).filter(|w| w != "--bench");
        let Some(job) = words.next() else {
            return Err(OpError::failed(format!("no job, expected one of {JOBS}")));
        };
        let model = "A".to_owned();
        let (batch, length, vocab) = (None, None, None);
        let mut args = Args { job, model, batch, length, turns: 10, vocab, row_tokens: 2048, runs: 5, warm: 1 };
        while let Some(flag) = words.next() {
            let Some(value) = words.next() else { return Err(OpError::failed(format!("`{flag}` has no value"))) };
            let number = || value.parse::<usize>().map_err(|_| OpError::failed(format!("`{value}` is not a number")));
            match flag.as_str() {
                "--model" => args.model = value,
                "--batch" => args.batch = Some(number()?),
                "--length" => args.length = Some(number()?),
                "--turns" => args.turns = number()?,
                "--vocab" => args.vocab = Some(number()?),
                "--row-tokens" => args.row_tokens = number()?,
                "--runs" => args.runs = number()?,
                "--warm" => args.warm = number()?,
                _ => return Err(OpError::failed(format!("unknown option `{flag}`"))),
            }
        }
        Ok(args)
    }

    /// The two shapes that all figures of `docs/performance.md` are about.
    fn config(&self) -> Result<Config, OpError> {
        let (vocab, hidden, mlp, layers, heads, kv) = match self.model.as_str() {
            "A" => (2048, 256, 768, 4, 4, 2),
            "B" => (8192, 512, 1536, 8, 8, 4),
            other => return Err(OpError::failed(format!("the model `{other}` is not known, expected `A` or `B`"))),
        };
        Config::from_json(&json!({
            "model_type": "qwen3", "vocab_size": self.vocab.unwrap_or(vocab), "hidden_size": hidden,
            "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "max_position_embeddings": 32768, "tie_word_embeddings": true, "hidden_act": "silu",
        }))
    }
}

/// Processor seconds of this process so far: user and system, in ticks of 10 ms.
fn processor() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return f64::NAN };
    let Some((_, fields)) = stat.rsplit_once(") ") else { return f64::NAN };
    let ticks: f64 = fields.split(' ').skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Largest resident size of this process, in MiB.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().split(' ').next()?.parse::<f64>().ok()).map_or(f64::NAN, |kb| kb / 1024.0)
}

fn load() -> f64 {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().and_then(|l| l.parse().ok()).unwrap_or(f64::NAN)
}

fn random_ids(n: usize, vocab: usize, stream: u64) -> Vec<u32> {
    let mut rng = Rng::new(17, stream);
    (0..n).map(|_| rng.next_u32() % vocab as u32).collect()
}

/// One run of a job, the tokens that it counts, and those that it computes where these are others.
struct Job {
    tokens: usize,
    computed: Option<usize>,
    run: Box<dyn FnMut() -> Result<(), OpError>>,
}

impl Job {
    fn new(tokens: usize, run: impl FnMut() -> Result<(), OpError> + 'static) -> Job {
        Job { tokens, computed: None, run: Box::new(run) }
    }
}

fn failed(e: candle_core::Error) -> OpError {
    OpError::failed(e.to_string())
}

/// `batch` sequences of `length` tokens that all count in the loss.
fn examples(batch: usize, length: usize, vocab: usize) -> Vec<Example> {
    (0..batch as u64)
        .map(|i| {
            let mut e = Example::default();
            e.push(&random_ids(length, vocab, i), true);
            e
        })
        .collect()
}

fn pack(examples: &[Example], row_tokens: usize) -> Vec<Row> {
    let mut forest = Forest::new(row_tokens);
    for (member, e) in examples.iter().enumerate() {
        forest.add(member, &e.ids, |token| e.learn[token]);
    }
    forest.rows()
}

fn sft(args: &Args) -> Result<Job, OpError> {
    let (batch, length) = (args.batch.unwrap_or(8), args.length.unwrap_or(512));
    let mut model = Model::random(args.config()?, 1)?;
    let mut optimizer = Optimizer::new(AdamW { clip: 0.0, ..AdamW::default() });
    let examples = examples(batch, length, model.config.vocab_size);
    let row_tokens = args.row_tokens;
    let run = move || {
        let coefficient = -1.0 / examples.iter().map(Example::targets).sum::<usize>() as f32;
        for row in pack(&examples, row_tokens) {
            model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| coefficient).map_err(failed)?;
        }
        optimizer.step(&mut model, 1e-4).map(|_| ())
    };
    Ok(Job::new(batch * length, run))
}

fn score(args: &Args) -> Result<Job, OpError> {
    let (batch, length) = (args.batch.unwrap_or(8), args.length.unwrap_or(512));
    let model = Model::random(args.config()?, 1)?;
    let examples = examples(batch, length, model.config.vocab_size);
    let row_tokens = args.row_tokens;
    let run = move || {
        for row in pack(&examples, row_tokens) {
            model.score(&row.ids, &row.packing, &row.targets, 1.0).map_err(failed)?;
        }
        Ok(())
    };
    Ok(Job::new(batch * length, run))
}

/// One update of a group of responses to one prompt. Tokens are counted as if each response carried its prompt.
fn policy(args: &Args) -> Result<Job, OpError> {
    let (group, prompt, response) = (args.batch.unwrap_or(8), args.length.unwrap_or(512), 64);
    let mut model = Model::random(args.config()?, 1)?;
    let mut optimizer = Optimizer::new(AdamW::default());
    let vocab = model.config.vocab_size;
    let asked = random_ids(prompt, vocab, 0);
    let mut rng = Rng::new(3, 0);
    let mut samples = Vec::new();
    let mut row = Row::default();
    let root = row.add(0, None, &asked, |_| false);
    for g in 0..group {
        let ids = random_ids(response, vocab, 1 + g as u64);
        row.add(g, Some(root), &ids, |_| true);
        let prompt = asked.as_slice().into();
        samples.push(Sample { prompt, ids, advantage: rng.normal(), ..Sample::default() });
    }
    // log-probabilities of a policy that is a little older
    let scored = model.score(&row.ids, &row.packing, &row.targets, 1.0).map_err(failed)?;
    for (sample, scored) in samples.iter_mut().zip(scored.chunks(response)) {
        sample.sampling = scored.iter().map(|s| s.logp + 0.01 * rng.normal() as f32).collect();
    }
    let settings = Settings {
        objective: Objective { clip_high: 0.28, ..Objective::default() },
        temperature: 1.0,
        longest: response,
        row_tokens: args.row_tokens,
    };
    let run = move || {
        let groups = [Group { question: 0, samples: samples.clone() }];
        update::accumulate(&mut model, None, &groups, &settings)?;
        optimizer.step(&mut model, 1e-4).map(|_| ())
    };
    Ok(Job::new(group * (prompt + response), run))
}

/// One update on an episode of `turns` turns of `length` tokens. At each state a question of as many tokens was asked, and
/// `batch` responses of 12 tokens to it are learned. Packed as a tree, group by group (each prompt with its responses), or
/// each sequence alone. Tokens are counted as if each response carried its prompt.
fn episode(args: &Args) -> Result<Job, OpError> {
    let (group, length, response) = (args.batch.unwrap_or(8), args.length.unwrap_or(40), 12);
    let mut model = Model::random(args.config()?, 1)?;
    let mut optimizer = Optimizer::new(AdamW::default());
    let vocab = model.config.vocab_size;
    let history = random_ids(args.turns * length, vocab, 0);
    let mut forest = Forest::new(args.row_tokens);
    let mut by_hand: Vec<Row> = Vec::new();
    let mut tokens = 0;
    let room = |rows: &mut Vec<Row>, size: usize| {
        if rows.last().is_none_or(|row| row.ids.len() + size > args.row_tokens) {
            rows.push(Row::default());
        }
    };
    for turn in 1..=args.turns {
        let question = random_ids(length, vocab, turn as u64);
        let prompt = [&history[..turn * length], &question].concat();
        let responses = (0..group).map(|g| random_ids(response, vocab, (turn * 1000 + g) as u64));
        let responses: Vec<Vec<u32>> = responses.collect();
        let mut root = None;
        if args.job == "grouped" {
            room(&mut by_hand, prompt.len() + group * response);
            root = by_hand.last_mut().map(|row| row.add(0, None, &prompt, |_| false));
        }
        for ids in responses {
            let whole = [prompt.as_slice(), &ids].concat();
            tokens += whole.len();
            match args.job.as_str() {
                "tree" => forest.add(0, &whole, |token| token >= prompt.len()),
                "grouped" => by_hand.iter_mut().last().into_iter().for_each(|row| _ = row.add(0, root, &ids, |_| true)),
                _ => {
                    room(&mut by_hand, whole.len());
                    let learn = |token: usize| token >= prompt.len();
                    by_hand.iter_mut().last().into_iter().for_each(|row| _ = row.add(0, None, &whole, learn));
                }
            }
        }
    }
    let rows = if args.job == "tree" { forest.rows() } else { by_hand };
    let computed = rows.iter().map(|row| row.ids.len()).sum();
    let coefficient = -1.0 / (args.turns * group * response) as f32;
    let run = move || {
        for row in &rows {
            let share = |target: usize| coefficient * row.owners[target].len() as f32;
            model.train(&row.ids, &row.packing, &row.targets, 1.0, |target, _| share(target)).map_err(failed)?;
        }
        optimizer.step(&mut model, 1e-4).map(|_| ())
    };
    Ok(Job { computed: Some(computed), ..Job::new(tokens, run) })
}

/// Nothing ends an answer, and no text is wanted.
struct Endless;

impl Tokens for Endless {
    fn eos(&self) -> &[u32] {
        &[]
    }

    fn decode(&self, _: &[u32]) -> Result<String, OpError> {
        Ok(String::new())
    }
}

fn generate(args: &Args) -> Result<Job, OpError> {
    let one = args.job == "decode1";
    let batch = args.batch.unwrap_or(if one { 1 } else { 32 });
    let length = args.length.unwrap_or(if one { 32 } else { 256 });
    let model = Model::random(args.config()?, 1)?;
    let vocab = model.config.vocab_size;
    let run = move || {
        let sampling = Sampling::plain(if one { 0.0 } else { 1.0 }, 128);
        let request = |i| Request::new(random_ids(length, vocab, i), sampling.clone(), Rng::new(9, i));
        let done = complete(&model, &Endless, (0..batch as u64).map(request).collect(), &|| false)?;
        let tokens: usize = done.iter().map(|c| c.ids.len()).sum();
        if tokens == batch * 128 { Ok(()) } else { Err(OpError::failed(format!("{tokens} tokens were sampled"))) }
    };
    Ok(Job::new(batch * 128, run))
}

fn summary(name: &str, values: &mut [f64], out: &mut Map<String, Value>) {
    values.sort_by(f64::total_cmp);
    out.insert(format!("{name}_best"), json!(values[0]));
    out.insert(format!("{name}_median"), json!(values[values.len() / 2]));
}

fn main() -> Result<(), OpError> {
    // as the program does: a step needs the pages of the one before it
    const PURGE_DELAY: std::ffi::c_int = 15;
    // SAFETY: a plain setter of the allocator that is linked in.
    unsafe { mi_option_set(PURGE_DELAY, -1) };
    let args = Args::read()?;
    let Job { tokens, computed, mut run } = match args.job.as_str() {
        "sft" => sft(&args)?,
        "score" => score(&args)?,
        "grpo" => policy(&args)?,
        "gen" | "decode1" => generate(&args)?,
        "tree" | "grouped" | "alone" => episode(&args)?,
        other => return Err(OpError::failed(format!("the job `{other}` is not known, expected one of {JOBS}"))),
    };
    for _ in 0..args.warm {
        run()?;
    }
    let (mut walls, mut processors) = (Vec::new(), Vec::new());
    for _ in 0..args.runs.max(1) {
        let (cpu, wall) = (processor(), Instant::now());
        run()?;
        walls.push(wall.elapsed().as_secs_f64());
        processors.push(processor() - cpu);
    }
    let total: f64 = processors.iter().sum();
    let mut out = Map::new();
    out.insert("side".into(), json!("actloom"));
    out.insert("job".into(), json!(args.job));
    out.insert("model".into(), json!(args.model));
    out.insert("tokens".into(), json!(tokens));
    if let Some(computed) = computed {
        out.insert("computed".into(), json!(computed));
    }
    out.insert("runs".into(), json!(walls.len()));
    out.insert("threads".into(), json!(rayon::current_num_threads()));
    out.insert("tokens_per_processor_second".into(), json!((tokens * walls.len()) as f64 / total));
    summary("wall", &mut walls, &mut out);
    summary("processor", &mut processors, &mut out);
    out.insert("peak_mib".into(), json!(peak()));
    out.insert("load".into(), json!(load()));
    writeln!(std::io::stdout(), "{}", Value::Object(out)).map_err(|e| OpError::failed(e.to_string()))
}
