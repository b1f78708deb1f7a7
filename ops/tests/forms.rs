//! Forms of supervised data: mixed in one training, at an exact number of updates; and the implicit world model.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

mod bench;
#[path = "bench/pair.rs"]
mod pairs_of;

use actloom_engine::op::OpError;
use actloom_ops::artifact::{Past, SCHEMA_VERSION};
use bench::{Bench, failure, of, task};
use camino::Utf8PathBuf;
use pairs_of::pair;
use serde_json::{Value, json};

fn episode(turns: &[(&str, &str)]) -> Value {
    let turn = |(action, observation): &(&str, &str)| json!({ "action": action, "admissible": true, "observation": observation, "actions": ["look"] });
    json!({
        "v": SCHEMA_VERSION, "task": task(), "actor": "expert", "decoding": null, "start": "a room",
        "turns": turns.iter().map(turn).collect::<Vec<Value>>(), "success": true, "score": 1.0, "end": "done",
    })
}

fn episodes(bench: &Bench) -> Utf8PathBuf {
    let one = episode(&[("go to desk 1", "a mug 1"), ("take mug 1", "you have it")]);
    bench.lines("episodes.jsonl", &[one, episode(&[("open box 2", "a pen 1")]), episode(&[("go up", "a roof")])])
}

fn samples(turn: usize, expert: &str, tried: &[(&str, Option<&str>)]) -> Value {
    let alternative = |(action, observation): &(&str, Option<&str>)| {
        let mut line = json!({ "action": action, "admissible": true });
        if let Some(observation) = observation {
            line["outcome"] = json!({ "observation": observation, "reward": 0.0, "done": false, "won": false });
        }
        line
    };
    let alternatives: Vec<Value> = tried.iter().map(alternative).collect();
    json!({
        "v": SCHEMA_VERSION, "episode": 0, "turn": turn, "expert": expert, "alternatives": alternatives, "dropped": 0,
    })
}

fn reflections(bench: &Bench) -> Utf8PathBuf {
    let line = |monologue: &str| {
        json!({
            "v": SCHEMA_VERSION, "task": task(), "episode": 0, "turn": 0,
            "past": Past::of_texts("a room".to_owned(), Vec::new()), "actions": [],
            "reflection": monologue, "action": "go to desk 1",
        })
    };
    bench.lines("reflections.jsonl", &[line("a desk has mugs"), line("a </think> mark"), line("mugs stand on desks")])
}

fn pairs(bench: &Bench) -> Utf8PathBuf {
    let lines = [
        pair("a cellar", "zzz zzz", "go up", true),
        pair("a room", "go to desk 1", "open box 2", false),
        pair("a hall", "take mug 1", "look", false),
    ];
    bench.lines("pairs.jsonl", &lines)
}

fn conversations(bench: &Bench) -> Utf8PathBuf {
    let messages = json!([{ "role": "user", "content": "who are you?" }, { "role": "assistant", "content": "a tool" }]);
    bench.lines("chat.jsonl", &[json!({ "messages": messages })])
}

fn bytes(bench: &Bench, name: &str) -> Vec<u8> {
    std::fs::read(bench.path(&format!("{name}/model/model.safetensors"))).unwrap()
}

#[test]
fn all_forms_are_mixed_in_one_training_and_each_is_counted() {
    let bench = Bench::new();
    let model = bench::model();
    let all = [episodes(&bench), reflections(&bench), pairs(&bench), conversations(&bench)];
    let mut inputs = vec![("model", &*model)];
    inputs.extend(all.iter().map(|path| ("data", &**path)));
    let run = |more: Value, name: &str| {
        let mut params =
            json!({ "prompt": { "thinking": "optional" }, "batch": 4, "learning_rate": 0.003, "epochs": 6 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.run("sft", &params, &inputs, name, u64::MAX).unwrap()
    };
    let metrics = run(json!({}), "all");
    let count = |metrics: &bench::Metrics, names: &[&str]| {
        names.iter().map(|name| of(metrics, name).first().copied().unwrap_or(0.0)).collect::<Vec<f64>>()
    };
    // three episodes, two of three reflections, two of three pairs, a conversation
    let names = ["examples", "actions", "reflections", "pairs", "held_out_pairs", "unread_answers", "empty_examples"];
    assert_eq!(count(&metrics, &names), [8.0, 9.0, 3.0, 2.0, 1.0, 1.0, 1.0]);
    let loss = of(&metrics, "loss");
    assert!(loss.len() == 12 && loss[11] < loss[0] - 0.5, "{loss:?}");
    // the limit is that of each input, so that none is crowded out
    assert_eq!(count(&run(json!({ "limit": 1 }), "limited"), &["examples", "reflections", "pairs"]), [4.0, 1.0, 1.0]);
}

#[test]
fn a_pair_that_was_held_out_changes_no_bit_of_what_sft_learns() {
    let bench = Bench::new();
    let lines = [pair("a room", "go to desk 1", "open box 2", false), pair("a hall", "take mug 1", "look", false)];
    let (all, without) = (pairs(&bench), bench.lines("without.jsonl", &lines));
    for (name, path) in [("all", &all), ("without", &without)] {
        let inputs = [("model", &*bench::model()), ("data", &**path)];
        bench.run("sft", &json!({ "learning_rate": 0.003 }), &inputs, name, u64::MAX).unwrap();
    }
    assert!(bytes(&bench, "all") == bytes(&bench, "without"));
    let held = bench.lines("held.jsonl", &[pair("a cellar", "b", "c", true)]);
    let inputs = [("model", &*bench::model()), ("data", &*held)];
    let (message, _) = failure(bench.run("sft", &json!({}), &inputs, "held", u64::MAX));
    assert!(message.contains("nothing to imitate: 0 lines") && message.ends_with("1 pairs held out"), "{message}");
}

#[test]
fn a_number_of_updates_is_kept_exactly_and_equals_the_passes_that_take_as_many() {
    let bench = Bench::new();
    let (model, data) = (bench::model(), episodes(&bench));
    let inputs = [("model", &*model), ("data", &*data)];
    let run = |name: &str, more: (&str, u64)| {
        let mut params = json!({ "batch": 2, "learning_rate": 0.003 });
        params[more.0] = json!(more.1);
        of(&bench.run("sft", &params, &inputs, name, u64::MAX).unwrap(), "loss").len()
    };
    // three examples: two updates a pass
    assert_eq!((run("passes", ("epochs", 2)), run("updates", ("updates", 4)), run("odd", ("updates", 5))), (4, 4, 5));
    assert!(bytes(&bench, "passes") == bytes(&bench, "updates") && bytes(&bench, "odd") != bytes(&bench, "updates"));
    for op in ["sft", "worldmodel"] {
        let problems = bench.problems(op, &json!({ "epochs": 1, "updates": 1 }));
        assert!(problems.len() == 1 && problems[0].1.contains("`epochs` and `updates`"), "{problems:?}");
    }
}

#[test]
fn data_of_no_form_is_refused_with_what_to_do() {
    let bench = Bench::new();
    let model = bench::model();
    let run = |path: &Utf8PathBuf, params: Value| {
        failure(bench.run("sft", &params, &[("model", &model), ("data", path)], "bad", u64::MAX))
    };
    let of_samples = bench.lines("samples.jsonl", &[samples(0, "look", &[])]);
    let (message, help) = run(&of_samples, json!({}));
    assert!(message.contains("the first line of") && message.contains("`alternatives`"), "{message}");
    assert!(help.contains("`pairs` makes pairs of them"), "{help}");
    let (message, help) = run(&reflections(&bench), json!({}));
    assert!(message.starts_with("line 1 of") && message.contains("no reasoning before the action"), "{message}");
    assert!(help.contains("thinking = \"optional\""), "{help}");
    let mixed = bench.lines("mixed.jsonl", &[pair("a", "b", "c", false), samples(0, "look", &[])]);
    let (message, _) = run(&mixed, json!({}));
    assert!(message.contains("cannot read line 2 of"), "{message}");
    // a prompt that wants a reasoning reads no choice without one
    let (message, help) = run(&pairs(&bench), json!({ "prompt": { "thinking": "required" } }));
    assert!(message.contains("2 answers that the prompt would not read"), "{message}");
    assert!(help.contains("thinking = \"optional\""), "{help}");
}

#[test]
fn a_world_model_learns_what_came_of_the_experts_actions_and_of_others() {
    let bench = Bench::new();
    let (model, data) = (bench::model(), episodes(&bench));
    let tried = bench.lines(
        "tried.jsonl",
        &[
            samples(0, "go to desk 1", &[("open box 2", Some("it is shut")), ("look", Some("a desk 1 and a box 2"))]),
            samples(1, "take mug 1", &[("look", Some("a mug 1"))]),
        ],
    );
    let alone = [("model", &*model), ("states", &*data)];
    let all = [alone[0], alone[1], ("alternatives", &*tried)];
    let params = json!({ "epochs": 12, "batch": 2, "learning_rate": 0.003 });
    let names = ["examples", "expert_transitions", "alternative_transitions", "dropped_examples"];
    let count = |metrics: &bench::Metrics| names.map(|name| of(metrics, name)[0]);
    let metrics = bench.run("worldmodel", &params, &all, "all", u64::MAX).unwrap();
    assert_eq!(count(&metrics), [6.0, 4.0, 3.0, 0.0], "an episode is one example, an alternative another");
    let loss = of(&metrics, "loss");
    assert!(loss.len() == 24 && loss[23] < loss[0] - 0.5, "{loss:?}");
    let metrics = bench.run("worldmodel", &params, &alone, "alone", u64::MAX).unwrap();
    assert_eq!(count(&metrics), [3.0, 4.0, 0.0, 0.0]);
    let mut one = params.clone();
    one["per_state"] = json!(1);
    one["prompt"] = json!({ "form": "single" });
    let metrics = bench.run("worldmodel", &one, &all, "single", u64::MAX).unwrap();
    assert_eq!(count(&metrics), [6.0, 4.0, 2.0, 0.0], "each transition is an example");
    assert_eq!(of(&metrics, "loss").len(), 24, "a part is a state, and there are four");
    // stopped and gone on
    let mut stops = 0;
    while let Err(error) = bench.run("worldmodel", &params, &all, "parts", 9) {
        assert!(matches!(error, OpError::Interrupted), "{error}");
        stops += 1;
    }
    assert_eq!(stops, 2);
    assert!(bytes(&bench, "all") == bytes(&bench, "parts"));
}

#[test]
fn a_world_model_of_actions_that_nobody_executed_is_refused() {
    let bench = Bench::new();
    let (model, data) = (bench::model(), episodes(&bench));
    let run = |line: Value| {
        let tried = bench.lines("tried.jsonl", &[line]);
        let inputs = [("model", &*model), ("states", &*data), ("alternatives", &*tried)];
        failure(bench.run("worldmodel", &json!({}), &inputs, "bad", u64::MAX))
    };
    let (message, help) = run(samples(0, "go to desk 1", &[("look", None)]));
    assert!(message.contains("the alternative `look` at turn 0 of episode 0 has no outcome"), "{message}");
    assert!(help.contains("execute = true"), "{help}");
    for line in [samples(0, "go home", &[]), samples(7, "go home", &[])] {
        let (message, help) = run(line);
        assert!(message.contains("the samples"), "{message}");
        assert!(help.contains("give `states` the episodes"), "{help}");
    }
    let twice = json!({ "prompt": { "texts": { "turn": "{observation} {observation}" } } });
    let problems = bench.problems("worldmodel", &twice);
    assert!(problems.len() == 1 && problems[0].0 == "prompt.texts.turn", "{problems:?}");
}
