//! Alternatives: who they are drawn by, what is kept of them, and what comes of them in the environment.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it made should stop")]

mod trial;

use std::collections::BTreeSet;

use actloom_ops::artifact::{self, Episode, Samples};
use actloom_ops::env::WorldSettings;
use actloom_ops::op::alternatives::canonical;
use serde_json::{Value, json};
use trial::Bench;

fn world() -> Value {
    json!({ "env": "household", "size": "tiny" })
}

/// A few demonstrations, and a tiny model that has seen them.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.run("demos", json!({ "world": world(), "count": 3 }), &[], "demos");
    bench
}

fn with_policy() -> Bench {
    let bench = bench();
    let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1,
                        "head_dim": 16, "texts": 40, "vocab_size": 400, "world": world() });
    bench.run("model", small, &[], "model");
    let params = json!({ "epochs": 60, "batch": 3, "learning_rate": 0.01 });
    bench.run("sft", params, &[("model", "model/model"), ("data", "demos/episodes")], "policy");
    bench
}

fn read(bench: &Bench, name: &str) -> Vec<Samples> {
    artifact::read(&bench.path(&format!("{name}/samples"))).unwrap()
}

fn episodes(bench: &Bench) -> Vec<Episode> {
    artifact::read(&bench.path("demos/episodes")).unwrap()
}

fn actions(line: &Samples) -> Vec<&str> {
    line.alternatives.iter().map(|a| a.action.as_str()).collect()
}

const UNIFORM: [(&str, &str); 1] = [("states", "demos/episodes")];
const POLICY: [(&str, &str); 2] = [("policy", "policy/model"), ("states", "demos/episodes")];

#[test]
fn spellings_that_a_text_world_takes_for_one_command_are_one() {
    for (text, want) in [
        ("  Go  to\tDESK 1 ", "go to desk 1"),
        ("go to desk 1", "go to desk 1"),
        ("go to desk1", "go to desk1"),
        ("go to the desk 1", "go to the desk 1"),
        ("ÉTÉ\u{a0}1", "été 1"),
        (" \n", ""),
    ] {
        assert_eq!(canonical(text), want, "{text:?}");
    }
}

#[test]
fn uniform_draws_are_admissible_and_differ_and_a_refill_takes_all_there_are() {
    let bench = bench();
    let draw = |more: Value, name: &str| {
        let mut params = json!({ "source": "uniform", "per_state": 4 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.run("alternatives", params, &UNIFORM, name)
    };
    let once = draw(json!({}), "once");
    let filled = draw(json!({ "refill": 3 }), "filled");
    let (few, many, episodes) = (read(&bench, "once"), read(&bench, "filled"), episodes(&bench));
    assert_eq!(many.len(), episodes.iter().map(|e| e.turns.len()).sum::<usize>(), "every turn is a state");
    for (few, many) in few.iter().zip(&many) {
        let turn = &episodes[many.episode].turns[many.turn];
        let found: BTreeSet<&str> = actions(many).into_iter().collect();
        assert_eq!(found.len(), many.alternatives.len(), "none twice");
        assert!(found.iter().all(|a| turn.actions.iter().any(|b| b == a) && *a != turn.action));
        assert_eq!(found.len(), 4.min(turn.actions.len() - 1), "the refill goes on until there is nothing left");
        assert!(few.alternatives.len() + few.dropped == 4.min(turn.actions.len()));
        assert!(many.alternatives.iter().all(|a| a.admissible && a.logp.is_none() && a.outcome.is_none()));
    }
    assert_eq!((once["admissible"], once["duplicates"], once["unfinished"]), (1.0, 0.0, 0.0));
    assert!(once["equal_to_expert"] > 0.0 && filled["refilled"] > 0.0 && filled["kept"] > once["kept"]);
    assert_eq!(filled["refilled"], filled["kept"] - once["kept"]);
    // nothing depends on anything but the seed
    draw(json!({ "refill": 3 }), "again");
    assert_eq!(read(&bench, "again"), many);
    let distinct: BTreeSet<Vec<&str>> = many.iter().map(actions).collect();
    assert!(distinct.len() > many.len() / 2, "states draw apart from each other");
}

#[test]
fn a_mixed_draw_begins_with_what_the_policy_alone_would_say() {
    let bench = with_policy();
    let draw = |params: Value, name: &str| bench.run("alternatives", params, &POLICY, name);
    let alone = draw(json!({ "per_state": 2, "temperature": 1.0 }), "alone");
    let mixed = draw(json!({ "per_state": 4, "source": "mixed", "temperature": 1.0 }), "mixed");
    assert_eq!((mixed["sampled"], alone["sampled"]), (2.0 * alone["sampled"], 2.0 * alone["states"]));
    assert!(alone["kept"] > 0.0, "{alone:?}");
    for (alone, mixed) in read(&bench, "alone").iter().zip(&read(&bench, "mixed")) {
        let (said, all) = (&alone.alternatives, &mixed.alternatives);
        assert_eq!(all[..said.len()], said[..]);
        assert!(all[said.len()..].iter().all(|a| a.admissible && a.logp.is_none()));
        assert!(said.iter().all(|a| a.logp.is_some()));
    }
    // what is admissible is kept, and drawn for again
    let drop = json!(["canonical", "inadmissible"]);
    let strict = draw(json!({ "per_state": 2, "temperature": 1.0, "drop": drop, "refill": 4 }), "strict");
    assert!(strict["admissible"] == 1.0 && strict["inadmissible_dropped"] > 0.0, "{strict:?}");
    assert!(strict["sampled"] > alone["sampled"] && strict["refilled"] > 0.0, "{strict:?}");
    for line in read(&bench, "strict") {
        let spelled: BTreeSet<String> = line.alternatives.iter().map(|a| canonical(&a.action)).collect();
        assert_eq!(spelled.len(), line.alternatives.len());
        assert!(line.alternatives.iter().all(|a| a.admissible) && !spelled.contains(&canonical(&line.expert)));
    }
}

#[test]
fn what_is_executed_is_what_the_environment_answers_in_that_state() {
    let bench = bench();
    let params = json!({ "source": "uniform", "per_state": 3, "execute": true, "world": world(),
                         "drop": ["exact", "same_outcome"] });
    let metrics = bench.run("alternatives", params, &UNIFORM, "samples");
    let suite = serde_json::from_value::<WorldSettings>(world()).unwrap().open(None).unwrap();
    let episodes = episodes(&bench);
    let mut tried = 0;
    for line in read(&bench, "samples") {
        let episode = &episodes[line.episode];
        for alternative in &line.alternatives {
            let mut env = suite.reopen(&episode.task).unwrap();
            env.reset().unwrap();
            for turn in &episode.turns[..line.turn] {
                assert_eq!(env.step(&turn.action).unwrap().text, turn.observation);
            }
            let now = env.step(&alternative.action).unwrap();
            let outcome = alternative.outcome.as_ref().unwrap();
            assert_eq!((&outcome.observation, outcome.reward), (&now.text, now.reward));
            assert_eq!((outcome.done, outcome.won), (now.done, now.won));
            tried += 1;
        }
    }
    assert!(tried > 20 && metrics["not_executed_states"] == 0.0, "{metrics:?}");
}

#[test]
fn another_world_than_the_episodes_were_played_in_is_refused() {
    let bench = bench();
    let run = |world: Value| {
        let params = json!({ "source": "uniform", "execute": true, "world": world });
        format!("{:?}", bench.attempt("alternatives", params, &UNIFORM, "wrong").unwrap_err())
    };
    let other = run(json!({ "env": "household", "size": "alfred" }));
    assert!(other.contains("world"), "{other}");
    // the same task that went another way
    let mut lines = episodes(&bench);
    lines[1].turns[0].observation = "A door opens.".to_owned();
    artifact::write(&bench.path("demos/episodes"), &lines).unwrap();
    let changed = run(world());
    assert!(changed.contains("episode 1 (`household ") && changed.contains("expected `A door opens.`"), "{changed}");
    assert!(changed.contains("at turn 0"), "{changed}");
}

#[test]
fn settings_that_cannot_be_met_are_refused_before_anything_is_drawn() {
    let of = |params: Value| Bench::problems("alternatives", params);
    for source in ["policy", "uniform"] {
        let said = of(json!({ "source": source, "share": 0.5 }));
        assert!(said.len() == 1 && said[0].contains("`share` is for `source = \"mixed\"`"), "{said:?}");
    }
    assert!(of(json!({ "source": "mixed", "share": 0.25, "per_state": 2 })).is_empty());
    let said = of(json!({ "source": "mixed", "share": 0.25, "per_state": 1 }));
    assert!(said.len() == 1 && said[0].contains("of 1 draws a state all are the policy's"), "{said:?}");
    assert!(of(json!({ "world": world() }))[0].contains("nothing is executed"));
    assert!(of(json!({ "execute": true }))[0].contains("needs the world"));
    assert!(of(json!({ "drop": ["same_outcome"] }))[0].contains("only of actions that are taken"));
    assert!(of(json!({ "execute": true, "world": world(), "drop": ["same_outcome"] })).is_empty());
    let bench = Bench::new();
    bench.run("demos", json!({ "world": world(), "count": 1, "actions": "needed" }), &[], "demos");
    for params in [json!({ "source": "uniform" }), json!({ "source": "uniform", "drop": ["inadmissible"] })] {
        let said = format!("{:?}", bench.attempt("alternatives", params, &UNIFORM, "none").unwrap_err());
        assert!(said.contains("episode 0 does not hold the admissible actions of turn 0"), "{said}");
    }
}
