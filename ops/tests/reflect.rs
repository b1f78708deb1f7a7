//! Reflections: what is asked, what is kept, what is dropped and counted, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

mod bench;

use actloom_ops::artifact::{self, Reflection, SCHEMA_VERSION};
use bench::{Bench, failure, of, task};
use camino::Utf8PathBuf;
use serde_json::{Value, json};

/// Starts of episodes whose expert goes to the desk, and what a policy says to the question at each.
const SAID: [(&str, &str); 7] = [
    ("a den", "<think>mugs stand on desks.</think>go to desk 1"),
    ("a hut", "<think>the expert goes there.</think>go to desk 1"),
    ("a bay", "<think>there i find a big red mug.</think>go to desk 1"),
    ("a pit", "<think>a box may do.</think>open box 2"),
    ("a sty", "go to desk 1"),
    (
        "a loo",
        "<think>i do not know what such a room may be for, nor who put a desk in it, nor why a mug would stand here at \
         all.</think>go to desk 1",
    ),
    ("an inn", "<think>action 2 leads to: you find a big red mug.</think>go to desk 1"),
];
/// Longer than all of these but one.
const MAX_TOKENS: usize = 46;

fn episodes(bench: &Bench) -> Utf8PathBuf {
    let line = |(start, _): &(&str, &str)| {
        let turn = json!({
            "action": "go to desk 1", "admissible": true, "observation": "you find a big red mug", "actions": ["look"],
        });
        json!({
            "v": SCHEMA_VERSION, "task": task(), "actor": "expert", "decoding": null, "start": start, "turns": [turn],
            "success": true, "score": 1.0, "end": "done",
        })
    };
    bench.lines("episodes.jsonl", &SAID.iter().map(line).collect::<Vec<Value>>())
}

fn sample(episode: usize, tried: &[(&str, Option<&str>)]) -> Value {
    let alternative = |(action, observation): &(&str, Option<&str>)| {
        let mut line = json!({ "action": action, "admissible": true });
        if let Some(observation) = observation {
            line["outcome"] = json!({ "observation": observation, "reward": 0.0, "done": false, "won": false });
        }
        line
    };
    let tried: Vec<Value> = tried.iter().map(alternative).collect();
    json!({
        "v": SCHEMA_VERSION, "episode": episode, "turn": 0, "expert": "go to desk 1", "alternatives": tried, "dropped": 0,
    })
}

fn samples(bench: &Bench) -> Utf8PathBuf {
    let all = (0..SAID.len()).map(|e| sample(e, &[("open box 2", Some("shut")), ("look", Some("a desk 1"))]));
    bench.lines("samples.jsonl", &all.collect::<Vec<Value>>())
}

/// What the op asks at the start of an episode with two alternatives and the texts below.
fn question(start: &str) -> String {
    format!("{start}\n\nnot 1 open box 2: shut\n2 look: a desk 1\nbut go to desk 1: you find a big red mug")
}

fn params() -> Value {
    json!({
        "temperature": 0.0, "max_tokens": MAX_TOKENS, "outcome_words": 4,
        "texts": {
            "question": "not {alternatives}\nbut {expert}: {outcome}", "alternative": "{number} {action}: {outcome}",
        },
    })
}

/// A model that has learned by heart what to say.
fn policy(bench: &Bench) -> Utf8PathBuf {
    let line = |(start, says): &(&str, &str)| {
        let ask = question(start);
        json!({ "messages": [{ "role": "user", "content": ask }, { "role": "assistant", "content": says }] })
    };
    let data = bench.lines("chat.jsonl", &SAID.iter().map(line).collect::<Vec<Value>>());
    let params = json!({ "updates": 150, "batch": 7, "learning_rate": 0.01, "schedule": "linear" });
    let metrics =
        bench.run("sft", &params, &[("model", &bench::model()), ("data", &data)], "policy", u64::MAX).unwrap();
    let loss = of(&metrics, "loss");
    assert!(loss[149] < 0.02, "not learned by heart: {}", loss[149]);
    bench.path("policy/model")
}

#[test]
fn a_reflection_is_kept_that_ends_in_the_experts_action_and_gives_nothing_away() {
    let bench = Bench::new();
    let (policy, episodes, samples) = (policy(&bench), episodes(&bench), samples(&bench));
    let inputs = [("policy", &*policy), ("states", &*episodes), ("alternatives", &*samples)];
    let run = |more: Value, name: &str| {
        let mut params = params();
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let metrics = bench.run("reflect", &params, &inputs, name, u64::MAX).unwrap();
        let kept: Vec<Reflection> = artifact::read(&bench.path(&format!("{name}/reflections"))).unwrap();
        (metrics, kept)
    };
    let counts = |metrics: &bench::Metrics| {
        let names = [
            "asked",
            "drawn",
            "kept",
            "unfinished",
            "malformed",
            "wrong_action",
            "leaked",
            "leaked_words",
            "leaked_outcome",
        ];
        names.map(|name| of(metrics, name)[0] as u64)
    };
    let (metrics, kept) = run(json!({}), "drop");
    assert_eq!(counts(&metrics), [7, 7, 1, 1, 1, 1, 3, 2, 2]);
    assert_eq!((kept.len(), kept[0].episode, kept[0].past.start.as_str()), (1, 0, "a den"));
    assert_eq!((kept[0].reflection.as_str(), kept[0].action.as_str()), ("mugs stand on desks.", "go to desk 1"));
    // leaks are kept where that is asked for, and counted all the same
    let (metrics, kept) = run(json!({ "leaks": "keep" }), "keep");
    assert_eq!(counts(&metrics), [7, 7, 4, 1, 1, 1, 3, 2, 2]);
    assert_eq!(kept.iter().map(|r| r.episode).collect::<Vec<_>>(), [0, 1, 2, 6]);
    // what is looked for is the recipe's
    let (metrics, _) = run(json!({ "leak_words": ["desk*"], "outcome_words": 0 }), "words");
    assert_eq!(counts(&metrics)[2..], [4, 1, 1, 1, 0, 0, 0], "the state itself names the desk");
    let (metrics, _) = run(json!({ "leak_words": ["mugs"], "outcome_words": 0 }), "mugs");
    assert_eq!(counts(&metrics)[2..], [3, 1, 1, 1, 1, 1, 0]);
    // a state whose answer was not kept is asked again, and only such a state
    let (metrics, kept) = run(json!({ "tries": 3 }), "again");
    assert_eq!((of(&metrics, "drawn")[0], kept.len()), (1.0 + 3.0 * 6.0, 1));
    // what is kept can be learned
    let data = bench.path("keep/reflections");
    let params = json!({ "prompt": { "thinking": "optional" }, "epochs": 1 });
    let metrics = bench
        .run("sft", &params, &[("model", &bench::model()), ("data", &data), ("data", &episodes)], "learned", u64::MAX)
        .unwrap();
    assert_eq!((of(&metrics, "examples")[0], of(&metrics, "reflections")[0]), (11.0, 4.0));
}

#[test]
fn only_executed_alternatives_can_be_reflected_on() {
    let bench = Bench::new();
    let (model, states) = (bench::model(), episodes(&bench));
    let run = |lines: &[Value], params: Value| {
        let samples = bench.lines("some.jsonl", lines);
        let inputs = [("policy", &*model), ("states", &*states), ("alternatives", &*samples)];
        failure(bench.run("reflect", &params, &inputs, "bad", u64::MAX))
    };
    let (message, help) = run(&[sample(0, &[("look", None)])], json!({}));
    assert!(message.contains("the alternative `look` at turn 0 of episode 0 has no outcome"), "{message}");
    assert!(help.contains("execute = true"), "{help}");
    let (message, help) = run(&[sample(0, &[]), sample(1, &[])], json!({}));
    assert!(message.contains("no state has an alternative to compare with, of 2 states"), "{message}");
    assert!(help.contains("per_state"), "{help}");
    // a model with random weights says nothing that could be kept
    let (message, help) = run(&[sample(0, &[("look", Some("a desk 1"))])], json!({ "max_tokens": 4 }));
    assert!(message.contains("no reflection is left to keep: of 1 answers"), "{message}");
    assert!(help.contains("max_tokens"), "{help}");
}

#[test]
fn settings_without_a_place_for_a_reflection_are_refused() {
    let bench = Bench::new();
    for (params, path, says) in [
        (json!({ "prompt": { "thinking": "none" } }), "prompt.thinking", "the prompt has none"),
        (json!({ "texts": { "question": "why?" } }), "texts.question", "`{expert}` is missing"),
        (json!({ "texts": { "question": "{expert} {state}" } }), "texts.question", "no placeholder `{state}`"),
        (json!({ "texts": { "alternative": "{" } }), "texts.alternative", "stands alone"),
        (json!({ "leak_words": ["expert", "a-b"] }), "leak_words", "`a-b` is no word"),
    ] {
        let problems = bench.problems("reflect", &params);
        assert!(!problems.is_empty() && problems.iter().all(|p| p.0 == path), "{params}: {problems:?}");
        assert!(problems[0].1.contains(says), "{params}: {problems:?}");
    }
    assert!(bench.problems("reflect", &json!({})).is_empty());
}
