//! Laws of the policy-optimisation loop: what it draws, keeps, adds to rewards, validates, and that a stop changes nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{Arity, DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::{self, Episode, Pair, Task};
use actloom_ops::model::{self, Model};
use actloom_ops::registry::registry;
use actloom_ops::reward::Outcome;
use actloom_ops::text::Text;
use actloom_ops::train::collect::{Compare, Order, Place, collect, compare, grouped, order};
use actloom_ops::train::draw::{Attempt, Drawn, How, Source, Step};
use actloom_ops::train::objective::advantage::Advantage;
use actloom_ops::train::objective::{Credit, Objective, Response, gigpo};
use actloom_ops::train::shape::Shape;
use actloom_ops::train::update::Sample;
use camino::Utf8PathBuf;
use candle_core::Device;
use proptest::prelude::*;
use serde_json::{Value, json};

type Metrics = Vec<(u64, String, f64)>;

/// Keeps metrics as the engine does, across starts, and asks for a stop after so many progress reports.
struct Sink {
    earlier: Mutex<Metrics>,
    metrics: Mutex<Metrics>,
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
        let earlier = std::mem::take(&mut *self.earlier.lock().unwrap());
        self.metrics.lock().unwrap().extend(earlier.into_iter().take_while(|m| m.0 <= step));
        Ok(())
    }
}

struct Bench {
    folder: tempfile::TempDir,
    left: Mutex<BTreeMap<String, Metrics>>,
}

impl Bench {
    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join(name)).unwrap()
    }

    fn once(
        &self,
        op: &str,
        params: Value,
        inputs: &[(&str, &str)],
        name: &str,
        stop: u64,
    ) -> Result<Metrics, OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &str| InputArtifact { path: self.path(path), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let (left, stop) = (AtomicU64::new(stop), Stop::new());
        let earlier = Mutex::new(self.left.lock().unwrap().remove(name).unwrap_or_default());
        let sink = Sink { earlier, metrics: Mutex::default(), left, stop: stop.clone() };
        let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
        let done = op.run(&params, &mut ctx);
        let metrics = sink.metrics.into_inner().unwrap();
        if done.is_err() {
            self.left.lock().unwrap().insert(name.to_owned(), metrics.clone());
        }
        done.map(|()| metrics)
    }

    fn run(&self, op: &str, params: Value, inputs: &[(&str, &str)], name: &str) -> Metrics {
        self.once(op, params, inputs, name, u64::MAX).unwrap()
    }

    /// A tiny model that has seen a few demonstrations, and pairs of which some are held out.
    fn new() -> Self {
        let bench = Bench { folder: tempfile::tempdir().unwrap(), left: Mutex::default() };
        let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "texts": 40, "vocab_size": 400 });
        bench.run("model", small, &[], "model");
        bench.run("demos", json!({ "count": 6 }), &[], "demos");
        let params = json!({ "epochs": 30, "batch": 3, "learning_rate": 0.01 });
        bench.run("sft", params, &[("model", "model/model"), ("data", "demos/episodes")], "policy");
        let states = ("states", "demos/episodes");
        let params = json!({ "per_state": 2, "temperature": 1.5 });
        bench.run("alternatives", params, &[("policy", "policy/model"), states], "samples");
        let inputs = [states, ("alternatives", "samples/samples")];
        bench.run("pairs", json!({ "per_state": 2, "held_out": 0.34 }), &inputs, "pairs");
        bench
    }

    fn act(&self, params: Value, name: &str) -> Metrics {
        self.run("act", params, &ACT, name)
    }

    fn weights(&self, folder: &str) -> Vec<u8> {
        std::fs::read(self.path(folder).join("model.safetensors")).unwrap()
    }
}

const ACT: [(&str, &str); 2] = [("model", "policy/model"), ("pairs", "pairs/pairs")];

fn of(metrics: &Metrics, name: &str) -> Vec<(u64, f64)> {
    metrics.iter().filter(|m| m.1 == name).map(|m| (m.0, m.2)).collect()
}

#[test]
fn validation_refill_and_all_that_is_added_to_rewards_survive_a_stop_to_the_byte() {
    let bench = Bench::new();
    let params = json!({
        "epochs": 2, "batch": 4, "group": 4, "updates": 2, "passes": 2, "max_tokens": 16, "learning_rate": 1e-3, "temperature": 1.5,
        "kl": 0.05, "kl_in": "reward", "refill": 3, "order": "families", "checkpoint_every": 3,
        "reward": { "composition": "sum", "format": 0.05, "length": -0.2 }, "overlong": { "penalty": 0.3, "buffer": 6 },
        "validate": { "every": 2, "limit": 6, "keep": "best" },
    });
    let whole = bench.act(params.clone(), "whole");
    for name in [
        "reward",
        "reward_correct",
        "reward_admissible",
        "reward_malformed",
        "reward_format",
        "reward_length",
        "reward_overlong",
        "reward_kl",
        "kl",
        "drawn",
        "refilled",
        "kept",
        "validation_reward",
        "validation_accuracy",
        "accuracy",
        "accuracy_first",
        "accuracy_second",
        "entropy",
        "entropy_sampled",
        "lr",
        "clip_low",
        "clip_high",
        "zero_variance",
        "truncated",
        "length",
        "grad_norm",
        "logp_gap",
    ] {
        assert!(!of(&whole, name).is_empty(), "no metric `{name}`");
    }
    assert!(whole.iter().all(|m| m.2.is_finite()));
    let mut stops = 0;
    let parts = loop {
        match bench.once("act", params.clone(), &ACT, "parts", 2) {
            Ok(metrics) => break metrics,
            Err(OpError::Interrupted) => stops += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(stops < 100, "it never ends");
    };
    assert!(stops >= 2, "stopped {stops} times only");
    assert_eq!(parts, whole, "the resumed metrics differ");
    assert_eq!(bench.weights("whole/model"), bench.weights("parts/model"), "the resumed model differs");
    // policy and reference are one model until the first update, and no longer
    let kl = of(&whole, "kl");
    assert_eq!(kl[0].1, 0.0);
    assert!(kl.iter().skip(1).any(|k| k.1 > 0.0), "{kl:?}");
}

#[test]
fn what_is_added_to_the_reward_is_the_sum_of_its_parts() {
    let bench = Bench::new();
    let params = json!({
        "epochs": 1, "batch": 6, "group": 4, "max_tokens": 12, "learning_rate": 3e-3, "kl": 0.5, "kl_in": "reward",
        "kl_estimator": "k1", "reward": { "format": 0.2, "length": -0.5 }, "overlong": { "penalty": 0.5, "buffer": 12 },
    });
    let metrics = bench.act(params, "act");
    let (rewards, parts) =
        (of(&metrics, "reward"), ["correct", "admissible", "malformed", "format", "length", "overlong"]);
    for (at, reward) in &rewards {
        let part = |name: &str| metrics.iter().find(|m| m.0 == *at && m.1 == name).map(|m| m.2).unwrap();
        let sum: f64 = parts.iter().map(|name| part(&format!("reward_{name}"))).sum();
        assert!((sum - reward).abs() < 1e-9, "batch {at}: {sum}, not {reward}");
        let length = part("length");
        assert!((part("reward_length") + 0.5 * length / 12.0).abs() < 1e-9);
        assert!((part("reward_overlong") + 0.5 * length / 12.0).abs() < 1e-9, "the buffer is all there is");
        assert!((part("reward_kl") + 0.5 * part("kl") * length).abs() < 1e-9);
    }
}

#[test]
fn a_model_that_training_makes_worse_is_not_the_one_that_is_kept() {
    let bench = Bench::new();
    let params = |keep: &str, rate: f64| {
        json!({
            "epochs": 4, "batch": 6, "group": 6, "max_tokens": 12, "learning_rate": rate, "schedule": "constant",
            "temperature": 1.5, "validate": { "every": 1, "patience": 2, "keep": keep },
        })
    };
    let ruined = bench.act(params("best", 0.5), "ruined");
    let seen = of(&ruined, "validation_reward");
    assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<u64>>(), [0, 1, 2], "{seen:?}");
    assert!(seen[1].1 <= seen[0].1 && seen[2].1 <= seen[0].1, "{seen:?}");
    assert_eq!(bench.weights("ruined/model"), bench.weights("policy/model"), "the start was the best");
    bench.act(params("last", 0.5), "last");
    assert_ne!(bench.weights("last/model"), bench.weights("policy/model"));
    // what is kept is worth on validation what was measured when it was kept
    let trained = bench.act(params("best", 3e-3), "trained");
    let best = of(&trained, "validation_reward").iter().map(|s| s.1).fold(f64::NEG_INFINITY, f64::max);
    let again = json!({ "epochs": 1, "batch": 6, "max_tokens": 12, "learning_rate": 0.0, "validate": {} });
    let inputs = [("model", "trained/model"), ACT[1]];
    let asked = of(&bench.run("act", again, &inputs, "again"), "validation_reward");
    assert_eq!(asked[0], (0, best));
}

#[test]
fn validation_changes_nothing_that_is_trained_and_takes_no_pair_that_is() {
    let bench = Bench::new();
    let params = json!({ "epochs": 1, "batch": 5, "group": 4, "max_tokens": 12, "learning_rate": 1e-3 });
    let plain = bench.act(params.clone(), "plain");
    let mut with = params;
    with["validate"] = json!({ "every": 1, "keep": "last", "temperature": 1.0 });
    let validated = bench.act(with.clone(), "validated");
    let rest: Metrics = validated.iter().filter(|m| !m.1.starts_with("validation")).cloned().collect();
    assert_eq!(rest, plain);
    assert_eq!(bench.weights("plain/model"), bench.weights("validated/model"));
    // nothing held out, and no pairs of another file
    let mut pairs: Vec<Pair> = artifact::read(&bench.path("pairs/pairs")).unwrap();
    pairs.iter_mut().for_each(|pair| pair.held_out = false);
    let lines: Vec<String> = pairs.iter().map(|pair| serde_json::to_string(pair).unwrap()).collect();
    std::fs::write(bench.path("all"), lines.join("\n") + "\n").unwrap();
    let inputs = [ACT[0], ("pairs", "all")];
    let Err(OpError::Failed { message, help }) = bench.once("act", with.clone(), &inputs, "none", u64::MAX) else {
        panic!("validated on nothing")
    };
    assert_eq!(message, "`validate` is set and there is no pair to validate on");
    assert!(help.unwrap().contains("held_out"));
    // pairs of another file: of other tasks alone
    let inputs = [ACT[0], ("pairs", "all"), ("validation", "pairs/pairs")];
    let error = bench.once("act", with.clone(), &inputs, "known", u64::MAX).unwrap_err().to_string();
    assert_eq!(error, refused(&pairs[0].task));
    let held_out = |line: &&str| line.contains(r#""held_out":true"#);
    let file = std::fs::read_to_string(bench.path("pairs/pairs")).unwrap();
    let others: Vec<&str> = file.lines().filter(held_out).collect();
    assert!(!others.is_empty());
    std::fs::write(bench.path("others"), others.join("\n") + "\n").unwrap();
    let given = [ACT[0], ACT[1], ("validation", "others")];
    let metrics = bench.once("act", with, &given, "given", u64::MAX).unwrap();
    assert_eq!(of(&metrics, "validation_reward"), of(&validated, "validation_reward"), "the same pairs were asked");
}

/// What is said of a task that is trained on and asked in validation.
fn refused(task: &Task) -> String {
    let (id, seed) = (&task.id, task.seed.unwrap());
    format!(
        "task `{id}` (seed {seed}) of `household` in the input `validation` is also trained on, expected other tasks"
    )
}

#[test]
fn states_of_tasks_that_are_trained_on_do_not_validate() {
    let bench = Bench::new();
    let all: Vec<Episode> = artifact::read(&bench.path("demos/episodes")).unwrap();
    artifact::write(&bench.path("first"), &all[..1]).unwrap();
    artifact::write(&bench.path("rest"), &all[1..]).unwrap();
    let run = |limit: usize, states: &str, validation: &str, name: &str| {
        let params = json!({
            "epochs": 1, "group": 2, "limit": limit, "max_tokens": 8, "learning_rate": 1e-4, "validate": { "limit": 2 },
        });
        let inputs = [ACT[0], ("states", states), ("validation", validation)];
        bench.once("rl", params, &inputs, name, u64::MAX).map(|_| ())
    };
    let error = run(4, "first", "demos/episodes", "known").unwrap_err().to_string();
    assert_eq!(error, refused(&all[0].task));
    run(4, "first", "rest", "apart").unwrap();
    // what `limit` leaves out is not trained on
    run(1, "demos/episodes", "rest", "limited").unwrap();
    assert!(run(0, "demos/episodes", "rest", "unlimited").is_err());
}

#[test]
fn a_second_pass_trains_on_the_same_samples_and_its_ratios_are_to_those_who_sampled_them() {
    let bench = Bench::new();
    let run = |passes: usize, name: &str| {
        let params = json!({
            "epochs": 1, "batch": 6, "group": 6, "passes": passes, "max_tokens": 12, "learning_rate": 0.003,
            "schedule": "constant", "temperature": 1.5, "clip_low": 0.001, "clip_high": 0.001,
        });
        bench.act(params, name)
    };
    let (once, twice) = (run(1, "once"), run(2, "twice"));
    assert_eq!(of(&once, "reward").len(), of(&twice, "reward").len(), "no more is sampled");
    for name in ["reward", "length", "entropy_sampled", "zero_variance"] {
        assert_eq!(of(&once, name)[0], of(&twice, name)[0], "the first batch is the same: `{name}`");
    }
    assert!(of(&once, "ratio").iter().all(|ratio| ratio.1 == 1.0), "one update meets the weights that sampled");
    assert!(of(&once, "clip_region").iter().all(|share| share.1 == 0.0));
    assert!(of(&twice, "ratio").iter().any(|ratio| ratio.1 != 1.0), "the second meets others");
    assert!(of(&twice, "clip_region").iter().any(|share| share.1 > 0.0), "and the range matters");
    assert!(of(&twice, "logp_gap").iter().all(|gap| gap.1 == 0.0), "the gap is that of the first pass");
    assert_ne!(bench.weights("once/model"), bench.weights("twice/model"));
}

#[test]
fn each_batch_has_as_many_updates_as_were_asked_for_and_the_schedule_ends_with_the_last_batch() {
    let bench = Bench::new();
    let pairs: Vec<Pair> = artifact::read(&bench.path("pairs/pairs")).unwrap();
    let training = pairs.iter().filter(|pair| !pair.held_out).count();
    let (batch, updates, peak) = (6, 4, 1e-3);
    let steps = training.div_ceil(batch);
    let params = json!({
        "epochs": 1, "batch": batch, "group": 4, "updates": updates, "max_tokens": 8, "learning_rate": peak,
        "temperature": 1.5, "schedule": "linear",
    });
    let rates = of(&bench.act(params, "act"), "lr");
    assert_eq!(rates.len(), steps);
    for (step, (_, rate)) in rates.iter().enumerate() {
        let parts = updates.min(batch.min(training - step * batch));
        let done = step as f64 + (parts - 1) as f64 / parts as f64;
        let want = peak * (1.0 - done / steps as f64);
        assert!((rate - want).abs() < 1e-12, "batch {}: {rate}, expected {want}", step + 1);
    }
}

#[test]
fn the_entropy_of_what_was_sampled_estimates_that_of_the_model_and_needs_no_variance() {
    let bench = Bench::new();
    // with a divergence in the loss, groups without variance are computed too: both are of the same tokens
    let params = json!({
        "epochs": 3, "batch": 100, "group": 8, "max_tokens": 12, "learning_rate": 0.0, "temperature": 1.2, "kl": 0.1,
    });
    let metrics = bench.act(params.clone(), "both");
    let mean = |name: &str| of(&metrics, name).iter().map(|m| m.1).sum::<f64>() / 3.0;
    let (exact, estimate) = (mean("entropy"), mean("entropy_sampled"));
    assert!((estimate / exact - 1.0).abs() < 0.1, "{estimate}, and the entropy is {exact}");
    let same = json!({ "correct": 1.0, "admissible": 1.0, "malformed": 1.0 });
    let mut flat = params;
    (flat["reward"], flat["kl"]) = (same, json!(0.0));
    let flat = bench.act(flat, "flat");
    assert!(of(&flat, "entropy").is_empty(), "nothing was trained on");
    assert_eq!(of(&flat, "entropy_sampled"), of(&metrics, "entropy_sampled"), "and the same was sampled");
}

#[test]
fn every_part_of_the_reward_has_a_range() {
    for op in ["act", "rl"] {
        let registry = registry();
        let schema = registry.get(op).unwrap().schema();
        let parts = &schema["$defs"]["Reward"]["properties"];
        for name in ["correct", "admissible", "malformed", "format"] {
            let range = (parts[name]["minimum"].as_f64(), parts[name]["maximum"].as_f64());
            assert_eq!(range, (Some(-1e6), Some(1e6)), "`{op}`, `{name}`: {parts}");
        }
    }
}

/// Attempts without a model: question `i` is varied where `varied(i)`, and what is asked is written down.
struct Fake {
    len: usize,
    varied: fn(usize) -> bool,
    asked: Vec<Vec<usize>>,
    streams: Vec<Vec<u64>>,
}

impl Source for Fake {
    fn len(&self) -> usize {
        self.len
    }

    fn families(&self) -> Vec<Vec<usize>> {
        (0..self.len).collect::<Vec<usize>>().chunks(3).map(<[usize]>::to_vec).collect()
    }

    fn draw(
        &mut self,
        _ctx: &OpContext<'_>,
        _model: &mut Model,
        _text: &Text,
        indices: &[usize],
        how: &How<'_>,
    ) -> Result<Vec<Drawn>, OpError> {
        self.asked.push(indices.to_vec());
        self.streams.push(how.stream.to_vec());
        let attempt = |index: usize, g: usize| Attempt {
            outcome: Outcome { reward: f64::from(u8::from((self.varied)(index) && g == 0)), ..Outcome::default() },
            samples: vec![Sample { ids: vec![1], sampling: vec![-1.0], ..Sample::default() }],
            ..Attempt::default()
        };
        let group =
            |index: &usize| Drawn { index: *index, attempts: (0..how.group).map(|g| attempt(*index, g)).collect() };
        Ok(indices.iter().map(group).collect())
    }
}

#[test]
fn a_refilled_batch_holds_only_groups_with_variance_and_asks_nothing_twice() {
    let bench = Bench::new();
    let folder = bench.path("model/model");
    let mut model = model::load(&folder, &Device::Cpu).unwrap();
    let text = Text::load(&folder, &model.config.eos).unwrap();
    let stop = Stop::new();
    let sink = Sink {
        earlier: Mutex::default(),
        metrics: Mutex::default(),
        left: AtomicU64::new(u64::MAX),
        stop: stop.clone(),
    };
    let scratch = bench.path("scratch");
    let ctx =
        OpContext::new(BTreeMap::new(), BTreeMap::new(), scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
    let mut batch = |len: usize, varied: fn(usize) -> bool, first: usize, want: usize, refill: u64| {
        let mut fake = Fake { len, varied, asked: Vec::new(), streams: Vec::new() };
        let order: Vec<usize> = (0..len).collect();
        let place = Place { order: &order, first, want, refill };
        let how = How { group: 3, temperature: 1.0, max_tokens: 4, seed: 1, stream: &[1, 9] };
        let rules = (&Shape::default(), &Compare::default());
        let (kept, sums) = collect(&ctx, (&mut model, &text), &mut fake, place, &how, rules).unwrap();
        let indices: Vec<usize> = kept.iter().map(|d| d.index).collect();
        (indices, sums.groups, fake)
    };
    // without a refill all stay, flat or not
    let (kept, drawn, _) = batch(12, |i| i % 2 == 0, 4, 4, 0);
    assert_eq!((kept, drawn), (vec![4, 5, 6, 7], 4));
    // the next in order come in their place, from the beginning again after the end
    let (kept, _, fake) = batch(12, |i| i % 2 == 0, 8, 4, 8);
    assert_eq!(kept, [8, 10, 0, 2]);
    assert_eq!(fake.asked, [vec![8, 9, 10, 11], vec![0, 1, 2, 3]]);
    assert_eq!(fake.streams, [vec![1, 9], vec![1, 9, 1]], "a refill has streams of its own");
    // bounded by rounds, and by the questions there are
    let (kept, drawn, _) = batch(100, |i| i == 50, 0, 4, 2);
    assert_eq!((kept, drawn), (vec![], 12));
    let (kept, drawn, fake) = batch(10, |i| i == 5, 7, 4, 99);
    assert_eq!((kept, drawn), (vec![5], 10));
    let all: Vec<usize> = fake.asked.concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a question was asked twice");
    // nothing missing, nothing drawn
    let (kept, _, fake) = batch(10, |_| true, 0, 4, 5);
    assert_eq!((kept.len(), fake.asked.len()), (4, 1));
    // never more than was wanted
    let (kept, _, _) = batch(40, |i| i > 6, 0, 8, 9);
    assert_eq!(kept, [7, 8, 9, 10, 11, 12, 13, 14]);
}

#[test]
fn families_stay_together_and_every_question_is_in_an_epoch_once() {
    let fake = Fake { len: 20, varied: |_| true, asked: Vec::new(), streams: Vec::new() };
    let families = fake.families();
    let mut orders = BTreeSet::new();
    for epoch in 0..6 {
        for kind in [Order::Shuffled, Order::Families] {
            let got = order(&fake, kind, 5, epoch);
            assert_eq!(got, order(&fake, kind, 5, epoch));
            assert_eq!(got.iter().copied().collect::<BTreeSet<_>>(), (0..20).collect());
            if kind == Order::Families {
                for family in &families {
                    let at = got.iter().position(|i| *i == family[0]).unwrap();
                    assert_eq!(&got[at..at + family.len()], family.as_slice());
                }
            }
            assert!(orders.insert(got), "an order came twice");
        }
    }
}

#[test]
fn the_critics_families_are_the_pairs_of_one_episode() {
    let bench = Bench::new();
    let pairs: Vec<Pair> = artifact::read(&bench.path("pairs/pairs")).unwrap();
    let model = model::load(&bench.path("policy/model"), &Device::Cpu).unwrap();
    let text = Text::load(&bench.path("policy/model"), &model.config.eos).unwrap();
    let params = serde_json::from_value(json!({ "max_tokens": 12 })).unwrap();
    let critics = actloom_ops::op::act::Critics::new(pairs.clone(), &text, &model, &params).unwrap();
    let families = actloom_ops::train::draw::Questions::families(&critics);
    assert_eq!(families.concat().into_iter().collect::<BTreeSet<_>>(), (0..pairs.len()).collect());
    for family in &families {
        assert!(family.iter().all(|i| pairs[*i].episode == pairs[family[0]].episode));
    }
    let episodes: BTreeSet<usize> = pairs.iter().map(|p| p.episode).collect();
    assert_eq!(families.len(), episodes.len());
}

/// Episodes of a task from (state, reward) by turn.
fn task(episodes: &[Vec<(u8, f64)>]) -> Drawn {
    let attempt = |turns: &Vec<(u8, f64)>| Attempt {
        outcome: Outcome { reward: turns.iter().map(|t| t.1).sum(), ..Outcome::default() },
        samples: vec![Sample::default(); turns.len()],
        steps: turns.iter().map(|(state, reward)| Step { state: state.to_string(), reward: *reward }).collect(),
        ..Attempt::default()
    };
    Drawn { index: 3, attempts: episodes.iter().map(attempt).collect() }
}

#[test]
fn steps_are_compared_where_episodes_are_and_questions_are_refused() {
    let episodes = [vec![(0, 0.0), (1, 1.0)], vec![(0, 0.0), (2, 0.0), (1, 0.0)]];
    let settings = gigpo::Settings::default();
    let comparison = Compare { gigpo: Some(settings), ..Compare::default() };
    let got = compare(&[task(&episodes)], &comparison).unwrap();
    assert_eq!(got, [gigpo::advantages(&episodes, settings).advantage]);
    assert!(got[0][1][1] != got[0][1][2], "a state met once gets the episode's advantage alone: {got:?}");
    // each response has the advantage of its turn
    let groups = grouped(vec![task(&episodes)], got.clone());
    let flat: Vec<f64> = groups[0].samples.iter().map(|s| s.advantage).collect();
    assert_eq!((groups[0].question, flat), (3, got[0].concat()));
    let mut question = task(&episodes);
    question.attempts.iter_mut().for_each(|a| a.steps.clear());
    let error = compare(&[question], &comparison).unwrap_err().to_string();
    assert_eq!(error, "an attempt at task 3 has 0 steps, expected 2: one for each response");
    // without it, an episode's advantage is that of all its turns
    let whole = compare(&[task(&episodes)], &Compare::default()).unwrap();
    assert!(whole[0][0].iter().all(|a| *a > 0.0) && whole[0][1].iter().all(|a| *a < 0.0), "{whole:?}");
}

proptest! {
    #[test]
    fn advantages_of_attempts_sum_to_zero_in_their_group_by_every_estimator(
        groups in proptest::collection::vec(proptest::collection::vec(-2.0..2.0f64, 2..9), 1..6),
    ) {
        let drawn: Vec<Drawn> = groups
            .iter()
            .map(|rewards| task(&rewards.iter().map(|r| vec![(0u8, *r)]).collect::<Vec<_>>()))
            .collect();
        let plain = [Advantage::Group, Advantage::Batch, Advantage::None, Advantage::Rloo];
        let mut comparisons = plain.map(|advantage| Compare { advantage, gigpo: None }).to_vec();
        for deviation in [None, gigpo::Settings::default().deviation] {
            let gigpo = Some(gigpo::Settings { deviation, ..gigpo::Settings::default() });
            comparisons.push(Compare { gigpo, ..Compare::default() });
        }
        for comparison in comparisons {
            for group in compare(&drawn, &comparison).unwrap() {
                let sum: f64 = group.iter().flatten().sum();
                prop_assert!(sum.abs() < 1e-6, "{comparison:?}: {group:?}");
            }
        }
    }

    #[test]
    fn a_clipped_loss_is_bounded_and_beyond_its_range_has_no_gradient(
        gap in -3.0..3.0f64, advantage in -3.0..3.0f64, low in 0.0..0.9f64, high in 0.0..2.0f64, more in 0.01..2.0f64,
    ) {
        let delta = 1.0 + high + more;
        for delta in [None, Some(delta)] {
            let objective = Objective { clip_low: low, clip_high: high, delta, ..Objective::default() };
            let old = [-1.0];
            let of = Response { credit: Credit::Response(advantage), old: Some(&old[..]), reference: None, mask: None, weights: None };
            let term = objective.token(0, -1.0 + gap, 1.0, &of).unwrap();
            let ratio = gap.exp();
            // a good response earns at most its advantage times the top of the range
            prop_assert!(term.loss >= -(1.0 + high) * advantage.max(0.0) - 1e-12);
            // a bad one costs at least the bottom, and with `delta` at most that
            prop_assert!(term.loss >= (1.0 - low) * -advantage.min(0.0) - (1.0 + high) * advantage.max(0.0) - 1e-12);
            if let Some(delta) = delta {
                prop_assert!(term.loss <= delta * -advantage.min(0.0) + 1e-12);
                prop_assert!(advantage >= 0.0 || ratio <= delta || term.gradient == 0.0);
            }
            if (advantage > 0.0 && ratio > 1.0 + high) || (advantage < 0.0 && ratio < 1.0 - low) {
                prop_assert_eq!(term.gradient, 0.0);
            }
        }
    }
}

#[test]
fn the_input_for_validation_is_there_where_something_is_validated_and_may_be_left_out() {
    let registry = registry();
    let act = registry.get("act").unwrap();
    let names = |params| -> Vec<(&str, Arity)> {
        let ports = act.ports(&act.canonical(&params).unwrap());
        ports.inputs.iter().map(|port| (port.name, port.arity)).collect()
    };
    let always = [("model", Arity::One), ("pairs", Arity::One)];
    assert_eq!(names(json!({})), always);
    assert_eq!(names(json!({ "validate": {} })), [&always[..], &[("validation", Arity::Optional)]].concat());
    let unknown = act.canonical(&json!({ "validate": { "evry": 3 } })).unwrap_err();
    assert!(unknown.contains("evry"), "{unknown}");
}
