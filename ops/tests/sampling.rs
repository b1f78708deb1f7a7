//! Laws of sampling: an answer depends on its prompt, settings and random stream, and on nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

#[expect(dead_code, reason = "other tests use more of it")]
mod small;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actloom_engine::op::OpError;
use actloom_ops::infer::{
    BATCH, Choice, Completion, Finish, Limits, Request, Sampling, Tokens, complete, complete_within,
};
use actloom_ops::model::{Config, Model, load};
use actloom_ops::nn::Packing;
use actloom_ops::rng::Rng;
use actloom_ops::text::Text;
use actloom_ops::train::batch::Row;
use candle_core::Device;

/// Token i is the i-th letter; 0 ends.
struct Letters {
    eos: Vec<u32>,
}

impl Tokens for Letters {
    fn eos(&self) -> &[u32] {
        &self.eos
    }

    fn decode(&self, ids: &[u32]) -> Result<String, OpError> {
        Ok(ids.iter().map(|id| char::from_u32(0x100 + id).unwrap()).collect())
    }
}

const LETTERS: Letters = Letters { eos: Vec::new() };

fn model(layers: usize, positions: usize) -> Model {
    let config = serde_json::json!({
        "model_type": "qwen3", "hidden_act": "silu", "vocab_size": 90, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 20,
        "max_position_embeddings": positions, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "eos_token_id": 0,
    });
    let mut model = Model::random(Config::from_json(&config).unwrap(), 5).unwrap();
    for param in model.params_mut() {
        // far enough from uniform that tokens differ in likelihood
        if param.value.dims().len() == 2 {
            param.value = (&param.value * 6.0).unwrap();
            param.changed();
        }
    }
    model
}

/// Prompts of many lengths, several of which begin alike.
fn prompts() -> Vec<Vec<u32>> {
    let mut rng = Rng::new(8, 8);
    let mut random = |n: usize| -> Vec<u32> { (0..n).map(|_| rng.below(67) as u32).collect() };
    let (system, long) = (random(40), random(150));
    let mut prompts = vec![random(1), random(5), long.clone(), long.clone(), long[..100].to_vec(), system.clone()];
    for n in [1, 3, 30, 70] {
        let mut prompt = system.clone();
        prompt.extend(random(n));
        prompts.push(prompt.clone());
        prompt.extend(random(20));
        prompts.push(prompt);
    }
    prompts
}

fn sampling(i: usize) -> Sampling {
    let plain = Sampling::plain(0.8, 12 + i % 7);
    match i % 4 {
        0 => Sampling { top_p: 0.9, ..plain },
        1 => Sampling { top_k: 9, min_p: 0.05, ..plain },
        2 => Sampling { temperature: 0.0, ..plain },
        _ => plain,
    }
}

fn requests(order: &[usize]) -> Vec<Request> {
    let prompts = prompts();
    order
        .iter()
        .map(|i| Request::new(prompts[i % prompts.len()].as_slice(), sampling(*i), Rng::at(2, &[*i as u64])))
        .collect()
}

type Bits = (Vec<u32>, Vec<u32>, Vec<u32>, String, Finish);

fn bits(c: &Completion) -> Bits {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
    (c.ids.clone(), bits(&c.logps), bits(&c.full_logps), c.text.clone(), c.finish)
}

fn run(model: &Model, order: &[usize], limits: &Limits) -> Vec<Bits> {
    let out = complete_within(model, &LETTERS, requests(order), limits, &|| false).unwrap();
    assert_eq!(out.len(), order.len());
    out.iter().map(bits).collect()
}

#[test]
fn an_answer_is_the_same_alone_in_any_batch_order_threads_sharing_and_chunks() {
    // sliding windows, norms behind, biases: whatever a family has
    for config in [small::qwen3(), small::qwen2(), small::llama(), small::olmo3()] {
        same_answers(&small::random(&config, 3));
    }
    same_answers(&model(2, 400));
}

fn same_answers(model: &Model) {
    let family = model.config.family;
    let all: Vec<usize> = (0..30).collect();
    let alone: Vec<Bits> = all.iter().map(|i| run(model, &[*i], &Limits::default()).remove(0)).collect();
    assert!(alone.iter().any(|a| a.0 != alone[0].0), "every request said the same");
    let d = Limits::default;
    let mut backwards = all.clone();
    backwards.reverse();
    let cases = [
        ("together", d(), &all),
        ("backwards", d(), &backwards),
        ("one row", Limits { rows: 1, ..d() }, &all),
        ("no sharing", Limits { share: None, ..d() }, &all),
        ("everything shared", Limits { share: Some(1), workers: Some(3), ..d() }, &all),
        ("chunks of 1", Limits { chunk: 1, ..d() }, &all),
        ("chunks of 50, one worker", Limits { chunk: 50, workers: Some(1), rows: 7, ..d() }, &all),
        ("two workers", Limits { workers: Some(2), ..d() }, &backwards),
        ("five workers, no memory", Limits { workers: Some(5), memory: 0, ..d() }, &all),
        ("a little memory", Limits { workers: Some(2), memory: 400 << 10, ..d() }, &all),
    ];
    for (name, limits, order) in cases {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| run(model, order, &limits));
            for (i, got) in order.iter().zip(&got) {
                assert_eq!(*got, alone[*i], "{family:?}, {name}, {threads} threads, request {i}");
            }
        }
    }
}

#[test]
fn the_trainer_gives_every_token_the_log_probabilities_that_the_sampler_gave_it() {
    let model = model(2, 400);
    for temperature in [1.0, 0.7] {
        let order: Vec<usize> = (0..14).collect();
        let mut requests = requests(&order);
        requests.iter_mut().for_each(|r| r.sampling = Sampling::plain(temperature, 20));
        let prompts: Vec<Vec<u32>> = requests.iter().map(|r| r.prompt.clone()).collect();
        let out = complete(&model, &LETTERS, requests, &|| false).unwrap();
        let mut row = Row::default();
        for (i, (prompt, c)) in prompts.iter().zip(&out).enumerate() {
            let root = row.add(i, None, prompt, |_| false);
            row.add(i, Some(root), &c.ids, |_| true);
        }
        type Of = fn(&Completion) -> &[f32];
        let both: [(f32, Of); 2] = [(temperature as f32, |c| &c.logps), (1.0, |c| &c.full_logps)];
        for (temperature, of) in both {
            let stats = model.score(&row.ids, &row.packing, &row.targets, temperature).unwrap();
            let trainer: Vec<f32> = stats.iter().map(|s| s.logp).collect();
            let sampler: Vec<f32> = out.iter().flat_map(of).copied().collect();
            assert_eq!(trainer, sampler, "temperature {temperature}");
        }
    }
}

#[test]
fn greedy_answers_are_those_of_the_reference() {
    let folder = camino::Utf8PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("model.json")).unwrap()).unwrap();
    let model = load(&folder.join("model"), &Device::Cpu).unwrap();
    let text = Text::load(&folder.join("model"), &[]).unwrap();
    let ids = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
    };
    let cases = json["greedy"]["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    let requests =
        cases.iter().map(|c| Request::new(ids(&c["prompt"]), Sampling::plain(0.0, 20), Rng::new(0, 0))).collect();
    for (c, case) in complete(&model, &text, requests, &|| false).unwrap().iter().zip(cases) {
        assert_eq!(c.ids, ids(&case["new"]));
        assert_eq!((c.finish, &c.text), (Finish::Length, &text.decode(&c.ids).unwrap()));
    }
}

#[test]
fn a_conversation_goes_on_from_its_sequence_with_the_bits_of_a_fresh_start() {
    let model = model(2, 400);
    let first = complete(&model, &LETTERS, requests(&[9]), &|| false).unwrap().remove(0);
    let mut prompt = prompts()[9].clone();
    prompt.extend(&first.ids);
    prompt.extend([3, 4, 5]);
    let answer = |prompt: &[u32], from| {
        let request = Request { from, ..Request::new(prompt, Sampling::plain(1.0, 9), Rng::new(1, 1)) };
        bits(&complete(&model, &LETTERS, vec![request], &|| false).unwrap()[0])
    };
    let fresh = answer(&prompt, None);
    assert_eq!(answer(&prompt, Some(first.sequence.clone())), fresh);
    // a beginning that was told otherwise is forgotten as far as it differs
    let mut other = prompt.clone();
    other[30] = (other[30] + 1) % 90;
    assert_eq!(answer(&other, Some(first.sequence.clone())), answer(&other, None));
    assert_eq!(answer(&prompt[..20], Some(first.sequence.clone())), answer(&prompt[..20], None));
    assert_eq!(answer(&prompt, Some(first.sequence)), fresh);
}

#[test]
fn an_answer_ends_for_the_reason_it_names() {
    let model = model(1, 60);
    let free = Request::new([7, 8], Sampling::plain(1.0, 30), Rng::new(1, 2));
    let whole = complete(&model, &LETTERS, vec![free], &|| false).unwrap().remove(0);
    assert_eq!((whole.finish, whole.ids.len()), (Finish::Length, 30));
    let at = (10..30).find(|i| !whole.ids[..*i].contains(&whole.ids[*i])).expect("a token that is new");
    let (head, end) = (&whole.ids[..at], whole.ids[at]);
    let request = |sampling: Sampling| Request::new([7, 8], sampling, Rng::new(1, 2));
    let one =
        |tokens: &Letters, sampling| complete(&model, tokens, vec![request(sampling)], &|| false).unwrap().remove(0);
    let text = LETTERS.decode(head).unwrap();
    // an end token of the model, and one of the request
    let several = Letters { eos: vec![89, end] };
    let asked = Sampling { stop_ids: vec![end], ..Sampling::plain(1.0, 30) };
    for c in [one(&several, Sampling::plain(1.0, 30)), one(&LETTERS, asked)] {
        assert_eq!((c.finish, &c.ids[..], &c.text), (Finish::End, &whole.ids[..=at], &text));
        assert_eq!(c.logps, whole.logps[..=at]);
    }
    // a text that ends with that token, and begins with the one before
    let stop = LETTERS.decode(&whole.ids[at - 1..=at]).unwrap();
    let c = one(&LETTERS, Sampling { stop: vec!["nowhere".into(), stop], ..Sampling::plain(1.0, 30) });
    assert_eq!((c.finish, &c.ids[..]), (Finish::StopString, &whole.ids[..=at]));
    assert_eq!(c.text, LETTERS.decode(&whole.ids[..at - 1]).unwrap());
    // the model's last position
    let c = one(&LETTERS, Sampling::plain(1.0, 500));
    assert_eq!((c.finish, c.ids.len() + 2), (Finish::Context, 60));
}

#[test]
fn an_answer_held_to_a_list_is_one_of_it_with_its_probability_among_them() {
    let model = model(1, 60);
    let answers = vec![vec![1, 2], vec![1], vec![1, 2, 3], vec![4, 5], vec![1, 2]];
    let choice = Arc::new(Choice::new(answers.clone(), 0).unwrap());
    let request = |i: u64| Request {
        choice: Some(choice.clone()),
        ..Request::new([7, 8], Sampling::plain(1.3, 30), Rng::at(1, &[i]))
    };
    let tokens = Letters { eos: vec![0] };
    let out = complete(&model, &tokens, (0..300).map(request).collect(), &|| false).unwrap();
    let mut sums = std::collections::BTreeMap::new();
    for c in &out {
        let (end, answer) = c.ids.split_last().unwrap();
        assert!(*end == 0 && c.ended() && answers.contains(&answer.to_vec()), "{:?}", c.ids);
        assert!(c.logps.iter().zip(&c.full_logps).all(|(held, full)| full < held));
        sums.insert(answer.to_vec(), c.logps.iter().map(|l| f64::from(*l)).sum::<f64>().exp());
    }
    // all four were said, and their probabilities are those of a distribution
    assert_eq!(sums.len(), 4, "{sums:?}");
    assert!((sums.values().sum::<f64>() - 1.0).abs() < 1e-5, "{sums:?}");
}

#[test]
fn the_logits_of_a_step_are_asked_for_and_given_by_sequence() {
    let model = model(3, 100);
    let ids: Vec<u32> = (0..50).collect();
    let whole = model.logits(&ids, &Packing::single(50)).unwrap().to_vec2::<f32>().unwrap();
    let (mut a, mut b, mut c) = (model.sequence(), model.sequence(), model.sequence());
    let steps = [(&mut a, 30, true), (&mut b, 20, false), (&mut c, 1, true)];
    let steps = steps.map(|(sequence, n, logits)| actloom_ops::model::Step { sequence, new: &ids[..n], logits });
    let z = model.advance(steps.into()).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(z, [whole[29].clone(), whole[0].clone()]);
    // nobody asks: the sequence grows all the same
    let none = actloom_ops::model::Step { sequence: &mut a, new: &ids[30..40], logits: false };
    assert_eq!(model.advance(vec![none]).unwrap().dims(), [0, 90]);
    let mut fork = a.clone();
    assert_eq!(fork.ids(), &ids[..40]);
    let z = model.extend(&mut [(&mut fork, &ids[40..50]), (&mut b, &ids[20..21])]).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(z, [whole[49].clone(), whole[20].clone()]);
}

#[test]
fn a_stop_is_heeded_and_what_cannot_be_answered_is_refused() {
    let model = model(1, 60);
    for workers in [1, 3] {
        let calls = AtomicUsize::new(0);
        let stopping = || calls.fetch_add(1, Ordering::Relaxed) >= 1;
        let many = (0..2 * BATCH as u64).map(|i| Request::new([7, 8], Sampling::plain(1.0, 50), Rng::at(1, &[i])));
        let limits = Limits { workers: Some(workers), rows: 3, chunk: 8, ..Limits::default() };
        let stopped = complete_within(&model, &LETTERS, many.collect(), &limits, &stopping);
        assert!(matches!(stopped, Err(OpError::Interrupted)), "{workers} workers");
    }
    let refuse = |request: Request, what: &str| {
        let good = Request::new([7, 8], Sampling::plain(1.0, 5), Rng::new(1, 2));
        for workers in [1, 2] {
            let limits = Limits { workers: Some(workers), ..Limits::default() };
            let all = vec![
                Request {
                    from: None,
                    prompt: good.prompt.clone(),
                    sampling: good.sampling.clone(),
                    choice: None,
                    rng: good.rng.clone(),
                },
                Request {
                    from: None,
                    prompt: request.prompt.clone(),
                    sampling: request.sampling.clone(),
                    choice: request.choice.clone(),
                    rng: good.rng.clone(),
                },
            ];
            let error = complete_within(&model, &LETTERS, all, &limits, &|| false).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    };
    let rng = || Rng::new(1, 2);
    refuse(Request::new([], Sampling::default(), rng()), "the prompt has no token");
    refuse(Request::new([1], Sampling::plain(-1.0, 5), rng()), "`temperature` is -1");
    refuse(Request::new([1, 90], Sampling::default(), rng()), "token id 90");
    refuse(Request::new(vec![1; 61], Sampling::default(), rng()), "a sequence of 61 tokens");
    let choice = Some(Arc::new(Choice::new([vec![90]], 0).unwrap()));
    refuse(Request { choice, ..Request::new([1], Sampling::default(), rng()) }, "token id 90");
}
