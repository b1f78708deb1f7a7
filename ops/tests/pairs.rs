//! Pairs: both orders, what is taken, and that nothing that is tested on is trained on.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it made should stop")]

mod trial;

use std::collections::{BTreeMap, BTreeSet};

use actloom_ops::artifact::{self, Episode, Pair, Samples};
use serde_json::{Value, json};
use trial::{Bench, Metrics};

const INPUTS: [(&str, &str); 2] = [("states", "demos/episodes"), ("alternatives", "samples/samples")];

/// Demonstrations, and three alternatives at each of their states.
fn bench() -> Bench {
    let bench = Bench::new();
    let world = json!({ "env": "household", "size": "tiny" });
    bench.run("demos", json!({ "world": world, "count": 6 }), &[], "demos");
    let params = json!({ "source": "uniform", "per_state": 3, "refill": 1 });
    bench.run("alternatives", params, &INPUTS[..1], "samples");
    bench
}

fn pair(bench: &Bench, params: Value, name: &str) -> (Vec<Pair>, Metrics) {
    let metrics = bench.run("pairs", params, &INPUTS, name);
    (artifact::read(&bench.path(&format!("{name}/pairs"))).unwrap(), metrics)
}

/// What is asked, whatever the order.
fn asked(pair: &Pair) -> (usize, usize, BTreeSet<String>, String) {
    (pair.episode, pair.turn, pair.shown.iter().cloned().collect(), pair.shown[pair.expert].clone())
}

#[test]
fn pairs_in_both_orders_are_the_same_pairs_twice() {
    let bench = bench();
    let (one, _) = pair(&bench, json!({ "per_state": 2, "held_out": 0.34 }), "one");
    let (both, metrics) = pair(&bench, json!({ "per_state": 2, "held_out": 0.34, "both_orders": true }), "both");
    assert_eq!(both.len(), 2 * one.len());
    for (copies, single) in both.chunks(2).zip(&one) {
        assert_eq!(copies[0], copies[1].swapped());
        assert!(copies.contains(single), "what is there without copies is there with them");
        assert_eq!(asked(&copies[0]), asked(single));
    }
    let firsts =
        |held_out: bool, expert: usize| both.iter().filter(|p| p.held_out == held_out && p.expert == expert).count();
    assert_eq!((firsts(false, 0), firsts(true, 0)), (firsts(false, 1), firsts(true, 1)));
    assert_eq!(metrics["pairs"], 2.0 * firsts(false, 0) as f64);
    // which order stands first is a matter of chance and not of the pair
    let second: usize = both.iter().step_by(2).map(|p| p.expert).sum();
    assert!(second > 0 && second < both.len() / 2);
}

#[test]
fn the_limit_counts_lines_and_is_exact() {
    let bench = bench();
    for (limit, both) in [(1, false), (7, false), (8, true), (100_000, true)] {
        let (pairs, metrics) = pair(&bench, json!({ "limit": limit, "both_orders": both, "per_state": 3 }), "limited");
        let training = pairs.iter().filter(|p| !p.held_out).count();
        assert_eq!(metrics["pairs"], training as f64);
        assert!(training == limit || (limit == 100_000 && training > 8), "{training} of {limit}");
        let second = pairs.iter().filter(|p| !p.held_out && p.expert == 1).count();
        assert_eq!(second, training / 2);
    }
    assert!(Bench::problems("pairs", json!({ "limit": 7, "both_orders": true }))[0].contains("an even number"));
}

#[test]
fn no_state_has_more_pairs_than_it_may_and_every_pair_is_of_an_alternative() {
    let bench = bench();
    let samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    for per_state in [1, 2, 3] {
        let (pairs, _) = pair(&bench, json!({ "per_state": per_state }), "some");
        let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
        for pair in &pairs {
            *counts.entry((pair.episode, pair.turn)).or_default() += 1;
        }
        for line in &samples {
            let want = line.alternatives.len().min(per_state);
            assert_eq!(counts.get(&(line.episode, line.turn)).copied().unwrap_or(0), want);
        }
    }
}

#[test]
fn pairs_hold_texts_and_no_token() {
    let bench = bench();
    let (_, _) = pair(&bench, json!({ "past": "whole" }), "pairs");
    let text = std::fs::read_to_string(bench.path("pairs/pairs")).unwrap();
    fn numbers(value: &Value, at: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Number(_) => drop(found.insert(at.to_owned())),
            Value::Array(list) => list.iter().for_each(|v| numbers(v, at, found)),
            Value::Object(map) => map.iter().for_each(|(k, v)| numbers(v, k, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    text.lines().for_each(|line| numbers(&serde_json::from_str(line).unwrap(), "", &mut found));
    let known: BTreeSet<String> = ["v", "seed", "episode", "turn", "expert"].map(str::to_owned).into();
    assert_eq!(found, known, "the only numbers say which line, turn and order");
}

#[test]
fn what_is_equal_or_not_admissible_makes_no_pair_where_it_is_not_wanted() {
    let bench = bench();
    let mut samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    let before = pair(&bench, json!({ "per_state": 3 }), "before").0.len();
    for line in &mut samples {
        line.alternatives[0].action.clone_from(&line.expert);
        line.alternatives[1].admissible = false;
    }
    artifact::write(&bench.path("samples/samples"), &samples).unwrap();
    let (all, metrics) = pair(&bench, json!({ "per_state": 3 }), "all");
    assert_eq!((all.len(), metrics["equal_left_out"]), (before - samples.len(), samples.len() as f64));
    let (admissible, _) = pair(&bench, json!({ "per_state": 3, "only": "admissible" }), "admissible");
    assert_eq!(admissible.len(), before - 2 * samples.len());
    samples.iter_mut().flat_map(|line| &mut line.alternatives).for_each(|a| a.admissible = false);
    artifact::write(&bench.path("samples/samples"), &samples).unwrap();
    let none = bench.attempt("pairs", json!({ "only": "admissible" }), &INPUTS, "none").unwrap_err().to_string();
    let all: usize = samples.iter().map(|line| line.alternatives.len()).sum();
    let told = format!(
        "there is no pair: the samples are of {0} states and hold {all} alternatives, {0} equal to the expert's action, {1} \
         not admissible",
        samples.len(),
        all - samples.len()
    );
    assert!(none.contains(&told), "{none}");
}

#[test]
fn samples_without_an_alternative_are_not_said_to_hold_the_experts_action() {
    let bench = bench();
    let mut samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    samples.iter_mut().for_each(|line| line.alternatives.clear());
    artifact::write(&bench.path("samples/samples"), &samples).unwrap();
    let none = bench.attempt("pairs", json!({}), &INPUTS, "none").unwrap_err().to_string();
    assert!(none.contains(&format!("of {} states and hold 0 alternatives", samples.len())), "{none}");
    assert!(!none.contains("equal to the expert's action"), "{none}");
}

#[test]
fn a_test_among_the_training_episodes_is_refused_and_named() {
    let bench = bench();
    let demos: Vec<Episode> = artifact::read(&bench.path("demos/episodes")).unwrap();
    let attempt = |tests: &[Episode], held_out: f64| {
        artifact::write(&bench.path("tests.jsonl"), tests).unwrap();
        artifact::write::<Episode>(&bench.path("none.jsonl"), &[]).unwrap();
        let inputs = [INPUTS[0], INPUTS[1], ("tests", "none.jsonl"), ("tests", "tests.jsonl")];
        bench.attempt("pairs", json!({ "held_out": held_out }), &inputs, "pairs").map(|_| ())
    };
    let said = attempt(&demos[4..5], 0.0).unwrap_err().to_string();
    assert!(said.starts_with(&format!("episode 4 (`household {}`) would be trained on", demos[4].task.id)), "{said}");
    // another file of the same episodes, under other names
    let mut renamed = demos[2].clone();
    (renamed.task.id, renamed.task.seed) = ("other/1".to_owned(), None);
    let said = attempt(&[renamed.clone()], 0.0).unwrap_err().to_string();
    assert!(said.contains("episode 2 ") && said.contains("the same from its start to its end"), "{said}");
    // another task that begins alike and has the same goal: its objects lie elsewhere, as is seen on the way
    for change in 0..3 {
        let mut other = renamed.clone();
        let last = other.turns.last_mut().unwrap();
        match change {
            0 => last.observation.push('!'),
            1 => last.action.push('!'),
            _ => drop(other.turns.pop()),
        }
        attempt(&[other], 0.0).unwrap();
    }
    // another goal in the same room
    renamed.task.goal.push_str(" Twice.");
    attempt(&[renamed], 0.0).unwrap();
    // what is held out is a test itself
    attempt(&demos, 1.0).unwrap();
    // the same id of another seed is another task
    let mut reseeded = demos[0].clone();
    reseeded.task.seed = reseeded.task.seed.map(|seed| seed ^ 1);
    reseeded.start.push('!');
    attempt(&[reseeded], 0.0).unwrap();
}

#[test]
fn training_episodes_that_are_tests_give_no_pair_where_they_are_dropped() {
    let bench = bench();
    let demos: Vec<Episode> = artifact::read(&bench.path("demos/episodes")).unwrap();
    let mut tests = vec![demos[1].clone(), demos[4].clone()];
    (tests[1].task.id, tests[1].task.seed) = ("other/1".to_owned(), None);
    let inputs = [INPUTS[0], INPUTS[1], ("tests", "tests.jsonl")];
    let drop = |tests: &[Episode], held_out: f64| {
        artifact::write(&bench.path("tests.jsonl"), tests).unwrap();
        bench.attempt("pairs", json!({ "held_out": held_out, "on_leak": "drop" }), &inputs, "dropped")
    };
    let metrics = drop(&tests, 0.0).unwrap();
    let (all, _) = pair(&bench, json!({ "held_out": 0.0 }), "all");
    let left: Vec<Pair> = artifact::read(&bench.path("dropped/pairs")).unwrap();
    let asked = |pairs: &[Pair], keep: &dyn Fn(usize) -> bool| {
        pairs.iter().filter(|p| keep(p.episode)).map(asked).collect::<Vec<_>>()
    };
    assert_eq!(asked(&left, &|_| true), asked(&all, &|episode| episode != 1 && episode != 4));
    assert!(left.len() < all.len());
    assert_eq!(metrics["leaked"], 2.0);
    assert_eq!(left.iter().filter(|p| p.expert == 1).count(), left.len() / 2, "what is left is balanced");
    // what is held out is not trained on, and stays
    assert_eq!(drop(&demos, 1.0).unwrap()["leaked"], 0.0);
    let none = drop(&demos, 0.0).unwrap_err().to_string();
    assert!(none.contains(&format!("of {} episodes that are among the tests", demos.len())), "{none}");
}
