//! Laws of the ops, on a tiny world and model: resumed == uninterrupted, alone == in a batch, sampler == trainer.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::{self, Decoding, Episode, Pair, Samples};
use actloom_ops::infer::{Request, Sampling, complete};
use actloom_ops::model;
use actloom_ops::registry::registry;
use actloom_ops::rng::Rng;
use actloom_ops::text::Text;
use actloom_ops::train::batch::Row;
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::Device;
use serde_json::{Value, json};

/// Keeps metrics as the engine does, across starts, and asks for a stop after so many progress reports.
struct Sink {
    /// What an earlier start recorded, until it is taken up.
    earlier: Mutex<Vec<(u64, String, f64)>>,
    metrics: Mutex<Vec<(u64, String, f64)>>,
    left: AtomicU64,
    stop: Stop,
}

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        match event {
            OpEvent::Metric { step, name, value } => self.metrics.lock().unwrap().push((step, name, value)),
            OpEvent::Progress(_) if self.left.fetch_sub(1, Ordering::SeqCst) == 1 => self.stop.set(),
            _ => {}
        }
    }

    fn resume_metrics(&self, step: u64) -> std::io::Result<()> {
        let mut metrics = self.metrics.lock().unwrap();
        assert!(metrics.is_empty(), "metrics were emitted before `resume_metrics`");
        let earlier = std::mem::take(&mut *self.earlier.lock().unwrap());
        metrics.extend(earlier.into_iter().take_while(|m| m.0 <= step));
        Ok(())
    }
}

type Metrics = Vec<(u64, String, f64)>;

struct Bench {
    folder: tempfile::TempDir,
    /// Metrics that an interrupted start left, by the step's name.
    left: Mutex<BTreeMap<String, Metrics>>,
}

impl Bench {
    fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap(), left: Mutex::default() }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join(name)).unwrap()
    }

    /// Runs an op once; `stop_after` progress reports it is asked to stop.
    fn once(
        &self,
        op: &str,
        params: Value,
        inputs: &[(&str, &Utf8Path)],
        name: &str,
        stop_after: u64,
    ) -> Result<Metrics, OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        let out = self.path(name);
        let scratch = self.path(&format!("{name}-scratch"));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &Utf8Path| InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let stop = Stop::new();
        let earlier = self.left.lock().unwrap().remove(name).unwrap_or_default();
        let sink = Sink {
            earlier: Mutex::new(earlier),
            metrics: Mutex::default(),
            left: AtomicU64::new(stop_after),
            stop: stop.clone(),
        };
        let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
        let done = op.run(&params, &mut ctx);
        let metrics = sink.metrics.into_inner().unwrap();
        if done.is_err() {
            self.left.lock().unwrap().insert(name.to_owned(), metrics.clone());
        }
        done.map(|()| metrics)
    }

    fn run(&self, op: &str, params: Value, inputs: &[(&str, &Utf8Path)], name: &str) -> Metrics {
        self.once(op, params, inputs, name, u64::MAX).unwrap()
    }

    /// A tiny model, demonstrations and a policy that has seen them.
    fn policy(&self) -> (Utf8PathBuf, Utf8PathBuf) {
        let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "texts": 40, "vocab_size": 400 });
        self.run("model", small, &[], "model");
        self.run("demos", json!({ "count": 6 }), &[], "demos");
        let (model, demos) = (self.path("model/model"), self.path("demos/episodes"));
        let params = json!({ "epochs": 30, "batch": 3, "learning_rate": 0.01 });
        self.run("sft", params, &[("model", &model), ("data", &demos)], "policy");
        (self.path("policy/model"), demos)
    }
}

#[test]
fn a_step_that_was_stopped_and_resumed_ends_with_the_bytes_of_one_that_was_not() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    bench.run("alternatives", json!({ "per_state": 2 }), &[("policy", &policy), ("states", &demos)], "samples");
    let samples = bench.path("samples/samples");
    bench.run("pairs", json!({ "per_state": 2 }), &[("states", &demos), ("alternatives", &samples)], "pairs");
    let pairs = bench.path("pairs/pairs");
    let sft = json!({ "epochs": 4, "batch": 2, "learning_rate": 0.003 });
    let act = json!({ "epochs": 2, "batch": 4, "group": 4, "updates": 2, "max_tokens": 16, "learning_rate": 1e-3, "kl": 0.01 });
    type Case<'a> = (&'a str, Value, Vec<(&'a str, &'a Utf8Path)>, &'a str);
    bench.run("demos", json!({ "count": 80 }), &[], "many");
    let many = bench.path("many/episodes");
    let weights = "model/model.safetensors";
    let play = json!({ "split": "id", "tasks": 400, "max_steps": 2 });
    let ask = json!({ "which": "all", "max_tokens": 8 });
    bench.run("alternatives", json!({ "max_tokens": 8 }), &[("policy", &policy), ("states", &many)], "many-samples");
    let many_samples = bench.path("many-samples/samples");
    bench.run("pairs", json!({}), &[("states", &many), ("alternatives", &many_samples)], "many-pairs");
    let many_pairs = bench.path("many-pairs/pairs");
    let cases: [Case<'_>; 7] = [
        ("pretrain", json!({ "updates": 7, "batch": 3 }), vec![("model", &policy)], weights),
        ("sft", sft, vec![("model", &policy), ("data", &demos)], weights),
        ("act", act.clone(), vec![("model", &policy), ("pairs", &pairs)], weights),
        ("rl", act, vec![("model", &policy), ("states", &demos)], weights),
        ("rollout", play, vec![("policy", &policy)], "episodes"),
        ("alternatives", json!({ "max_tokens": 8 }), vec![("policy", &policy), ("states", &many)], "samples"),
        ("critic", ask, vec![("model", &policy), ("pairs", &many_pairs)], "scores"),
    ];
    for (op, params, inputs, output) in cases {
        let whole = bench.run(op, params.clone(), &inputs, &format!("{op}-whole"));
        let name = format!("{op}-parts");
        let mut stops = 0;
        let parts = loop {
            // each start is let further, for parts that were kept report too
            match bench.once(op, params.clone(), &inputs, &name, 2 + stops) {
                Ok(metrics) => break metrics,
                Err(OpError::Interrupted) => stops += 1,
                Err(error) => panic!("{op}: {error}"),
            }
            assert!(stops < 100, "{op} never ends");
        };
        assert!(stops >= 2, "{op} was stopped {stops} times only");
        let read = |name: &str| std::fs::read(bench.path(&format!("{name}/{output}"))).unwrap();
        assert_eq!(read(&format!("{op}-whole")), read(&name), "{op}: the resumed output differs");
        assert_eq!(parts, whole, "{op}: the resumed metrics differ");
    }
}

#[test]
fn the_same_step_twice_gives_the_same_bytes() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    for name in ["one", "two"] {
        bench.run("model", json!({ "texts": 30, "layers": 1 }), &[], &format!("{name}-model"));
        let params = json!({ "split": "ood", "tasks": 5, "max_steps": 6 });
        bench.run("rollout", params, &[("policy", &policy)], &format!("{name}-play"));
        bench.run("alternatives", json!({}), &[("policy", &policy), ("states", &demos)], &format!("{name}-samples"));
    }
    for file in ["model/model/tokenizer.json", "model/model/model.safetensors", "play/episodes", "samples/samples"] {
        let read = |name: &str| std::fs::read(bench.path(&format!("{name}-{file}"))).unwrap();
        assert_eq!(read("one"), read("two"), "{file}");
    }
}

#[test]
fn a_request_gets_the_tokens_and_bits_alone_that_it_gets_in_a_batch() {
    let bench = Bench::new();
    let (policy, _) = bench.policy();
    let model = model::load(&policy, &Device::Cpu).unwrap();
    let text = Text::load(&policy, &model.config.eos).unwrap();
    let request = |i: u64| {
        let prompt = text.encode(&format!("go to shelf {i} and look at the {}", "mug 1 ".repeat(i as usize))).unwrap();
        Request::new(prompt, Sampling::plain(1.0, 20), Rng::at(3, &[i]))
    };
    let together = complete(&model, &text, (0..40).map(request).collect(), &|| false).unwrap();
    for i in [0, 7, 39] {
        let alone = complete(&model, &text, vec![request(i)], &|| false).unwrap().remove(0);
        let other = &together[i as usize];
        assert_eq!((&alone.ids, &alone.logps), (&other.ids, &other.logps), "request {i}");
    }
}

#[test]
fn the_trainer_gives_a_sampled_token_the_log_probability_that_the_sampler_gave_it() {
    let bench = Bench::new();
    let (policy, _) = bench.policy();
    let model = model::load(&policy, &Device::Cpu).unwrap();
    let text = Text::load(&policy, &model.config.eos).unwrap();
    let prompt = text.encode("You arrive at shelf 1. On the shelf 1, you see a mug 1.").unwrap();
    for temperature in [1.0, 0.6] {
        let request = |g| Request::new(prompt.as_slice(), Sampling::plain(temperature, 24), Rng::at(11, &[g]));
        let group = complete(&model, &text, (0..6).map(request).collect(), &|| false).unwrap();
        let mut row = Row::default();
        let root = row.add(0, None, &prompt, |_| false);
        group.iter().for_each(|c| {
            row.add(1, Some(root), &c.ids, |_| true);
        });
        let stats = model.score(&row.ids, &row.packing, &row.targets, temperature as f32).unwrap();
        let trainer: Vec<f32> = stats.iter().map(|s| s.logp).collect();
        let sampler: Vec<f32> = group.iter().flat_map(|c| c.logps.clone()).collect();
        assert_eq!(trainer, sampler, "temperature {temperature}");
    }
}

#[test]
fn the_measured_gap_between_sampler_and_trainer_is_zero() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    let params = json!({ "epochs": 1, "batch": 8, "group": 4, "max_tokens": 12, "learning_rate": 1e-3 });
    let metrics = bench.run("rl", params, &[("model", &policy), ("states", &demos)], "rl");
    let gaps: Vec<f64> = metrics.iter().filter(|m| m.1 == "logp_gap").map(|m| m.2).collect();
    assert!(!gaps.is_empty(), "no update was measured");
    assert!(gaps.iter().all(|g| *g == 0.0), "{gaps:?}");
}

#[test]
fn play_held_to_admissible_actions_takes_no_other() {
    let bench = Bench::new();
    let (policy, _) = bench.policy();
    let play = |decoding: &str| -> Vec<Episode> {
        let params = json!({ "split": "id", "tasks": 8, "max_steps": 8, "temperature": 1.5, "decoding": decoding });
        bench.run("rollout", params, &[("policy", &policy)], decoding);
        artifact::read(&bench.path(&format!("{decoding}/episodes"))).unwrap()
    };
    let held = play("admissible");
    assert!(held.iter().all(|e| e.decoding == Some(Decoding::Admissible)));
    assert!(held.iter().flat_map(|e| &e.turns).all(|t| t.admissible == Some(true) && t.actions.contains(&t.action)));
    let free = play("free");
    assert!(free.iter().flat_map(|e| &e.turns).any(|t| t.admissible == Some(false)), "a hot tiny model never missed");
}

#[test]
fn pairs_are_balanced_differ_from_the_expert_and_hold_out_whole_episodes() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    let params = json!({ "per_state": 3, "temperature": 1.5 });
    bench.run("alternatives", params, &[("policy", &policy), ("states", &demos)], "samples");
    let samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    assert!(samples.iter().all(|s| s.alternatives.iter().all(|a| a.action != s.expert)));
    let inputs: [(&str, &Utf8Path); 2] = [("states", &demos), ("alternatives", &bench.path("samples/samples"))];
    bench.run("pairs", json!({ "per_state": 3, "held_out": 0.34 }), &inputs, "pairs");
    let pairs: Vec<Pair> = artifact::read(&bench.path("pairs/pairs")).unwrap();
    for held_out in [false, true] {
        let part: Vec<&Pair> = pairs.iter().filter(|p| p.held_out == held_out).collect();
        let second = part.iter().filter(|p| p.expert == 1).count();
        assert_eq!(second, part.len() / 2, "of {}", part.len());
        assert!(part.iter().all(|p| p.shown[0] != p.shown[1]));
    }
    for p in &pairs {
        assert_eq!(pairs.iter().find(|q| q.episode == p.episode).unwrap().held_out, p.held_out);
    }
    let other = bench.path("others");
    std::fs::create_dir_all(&other).unwrap();
    bench.run("demos", json!({ "count": 5, "split": "id" }), &[], "other-demos");
    let wrong: [(&str, &Utf8Path); 2] = [("states", &bench.path("other-demos/episodes")), inputs[1]];
    let error = bench.once("pairs", json!({}), &wrong, "wrong", u64::MAX).unwrap_err().to_string();
    assert!(error.contains("the samples"), "{error}");
}

#[test]
fn an_update_whose_groups_are_all_flat_changes_no_weight_and_is_reported() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    let same = json!({ "correct": 1.0, "admissible": 1.0, "malformed": 1.0 });
    let params = json!({ "epochs": 1, "batch": 8, "group": 3, "max_tokens": 6, "learning_rate": 0.1, "reward": same });
    let metrics = bench.run("rl", params, &[("model", &policy), ("states", &demos)], "flat");
    let read = |folder: &Utf8Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(read(&policy), read(&bench.path("flat/model")));
    let of = |name: &str| metrics.iter().filter(|m| m.1 == name).map(|m| m.2).collect::<Vec<f64>>();
    assert!(!of("zero_variance").is_empty() && of("zero_variance").iter().all(|v| *v == 1.0));
    assert!(of("grad_norm").iter().chain(&of("loss")).all(|v| *v == 0.0), "nothing was trained on");
    assert!(!of("grad_norm").is_empty() && of("ratio").is_empty(), "no token was trained on");
}

#[test]
fn every_named_objective_trains_with_and_without_a_correction() {
    let bench = Bench::new();
    let (policy, demos) = bench.policy();
    let (mut outputs, mut seen) = (Vec::new(), Vec::new());
    for loss in ["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"] {
        for correction in [None, Some("sequence_mask")] {
            let mut params = json!({
                "loss": loss, "epochs": 2, "batch": 32, "group": 6, "updates": 4, "max_tokens": 12, "limit": 32,
                "learning_rate": 0.005, "schedule": "constant", "temperature": 1.5, "kl": 0.01,
            });
            params["correction"] = json!(correction);
            if loss == "bnpo" {
                // the range is all that parts it from `dapo`; a narrow one is met in so few responses
                params["clip_high"] = json!(0.0001);
            }
            let name = format!("{loss}-{}", correction.unwrap_or("plain"));
            let metrics = bench.run("rl", params, &[("model", &policy), ("states", &demos)], &name);
            let of = |name: &str| metrics.iter().filter(|m| m.1 == name).map(|m| m.2).collect::<Vec<f64>>();
            assert!(metrics.iter().all(|m| m.2.is_finite()), "{name}");
            for metric in ["loss", "ratio", "kl", "clip_region", "logp_gap", "logp_gap_mean", "grad_norm", "entropy"] {
                assert!(!of(metric).is_empty(), "{name} has no `{metric}`");
            }
            assert!(of("logp_gap").iter().all(|gap| *gap == 0.0), "{name}");
            // sampler and trainer agree to the bit, so every weight is exactly 1
            let weights = of("weight_mean").into_iter().chain(of("weight_max")).collect::<Vec<f64>>();
            assert_eq!(weights.is_empty(), correction.is_none(), "{name}");
            assert!(weights.iter().all(|w| *w == 1.0), "{name}: {weights:?}");
            seen.push((name.clone(), of("ratio"), of("clip_region"), of("zero_variance")));
            outputs.push((loss, std::fs::read(bench.path(&format!("{name}/model/model.safetensors"))).unwrap()));
        }
    }
    for pair in outputs.chunks(2) {
        assert!(pair[0].1 == pair[1].1, "{}: a weight of 1 changed the result", pair[0].0);
    }
    let distinct: std::collections::BTreeSet<&[u8]> = outputs.iter().map(|o| o.1.as_slice()).collect();
    assert_eq!(distinct.len(), 6, "two objectives gave the same weights: {seen:?}");
}
