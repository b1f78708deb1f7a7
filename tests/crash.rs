//! Runs that are killed, stopped, or share a store: nothing is lost but work, and the same bytes come out.

use serde_json::Value;

use crate::support::{Place, Ran, Running, smoke};

/// Where the kills fall; every machine meets the same ones.
const SEED: u64 = 7;

/// Kills of one run.
const KILLS: usize = 3;

/// SplitMix64 (Steele, Lea & Flood 2014): a number in `[0, 1)`.
fn draw(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn start(place: &Place, steps: &[&str]) -> Running {
    let args = [&["run", "quickstart.toml", "--profile", "smoke", "--json"], steps].concat();
    Running::start(place.command(&args))
}

/// Whether the event is progress of this step, at least so far.
fn is_at(event: &Value, step: &str, done: u64) -> bool {
    let node = event["node"].as_str().unwrap_or("");
    let report = &event["report"];
    node.split('[').next() == Some(step) && report["event"] == "progress" && report["done"].as_u64() >= Some(done)
}

fn same_as_uninterrupted(place: &Place) {
    assert_eq!(place.ids(), smoke().ids());
    for file in ["table.json", "table.csv", "table.md"] {
        let name = format!("out/quickstart-smoke/table/{file}");
        assert_eq!(place.read(&name), smoke().read(&name), "{file}");
    }
}

#[test]
fn a_killed_run_leaves_a_sound_store_and_the_next_one_ends_as_if_nothing_had_been() {
    let place = Place::new();
    let mut seed = SEED;
    // Kills are placed by events, not by seconds, so that they fall into the same work on every machine.
    let events = smoke().events().len() as f64;
    for kill in 0..KILLS {
        let after = ((0.02 + 0.25 * draw(&mut seed)) * events) as usize;
        let pause = std::time::Duration::from_micros((draw(&mut seed) * 40_000.0) as u64);
        let mut run = start(&place, &[]);
        let mut seen = 0;
        let reached = run.wait_for(|_| {
            seen += 1;
            seen > after
        });
        assert!(reached, "kill {kill}: the run ended after {seen} events, expected more than {after}");
        std::thread::sleep(pause);
        run.signal("KILL");
        assert_eq!(run.finish().code, None, "kill {kill} came too late");
        place.verify_is_clean();
    }
    place.ok(&["run", "quickstart.toml", "--profile", "smoke"]);
    place.verify_is_clean();
    same_as_uninterrupted(&place);
    let runs = place.json(&["runs"]);
    let endings: Vec<&Value> = runs.as_array().unwrap().iter().map(|run| &run["ending"]).collect();
    assert_eq!(endings, ["killed", "killed", "killed", "finished"]);
}

/// Lets a run get to some progress of a step, sends it a signal, and returns what it left.
fn stop(place: &Place, step: &str, done: u64, signal: &str) -> Ran {
    let mut run = start(place, &[]);
    let mut from = None;
    let reached = run.wait_for(|event| {
        if from.is_none() && is_at(event, step, 0) {
            from = event["report"]["done"].as_u64();
        }
        is_at(event, step, done)
    });
    if !reached {
        panic!("`{step}` never got to {done}:\n{}", run.finish().stderr);
    }
    run.signal(signal);
    let ran = run.finish();
    place.verify_is_clean();
    Ran { began_at: from, ..ran }
}

#[test]
fn an_interrupted_run_continues_where_it_was_to_the_same_bytes() {
    let place = Place::new();
    let ran = stop(&place, "base", 15, "INT");
    assert_eq!((ran.code, ran.began_at), (Some(130), Some(1)), "{}", ran.stderr);
    assert!(ran.stderr.contains("leave a checkpoint"), "{}", ran.stderr);
    let ran = stop(&place, "base", 40, "TERM");
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert!(ran.began_at > Some(15), "`base` began anew at {:?}", ran.began_at);
    // What a killed run did after its checkpoint is forgotten, metrics too.
    let ran = stop(&place, "base", 50, "KILL");
    assert_eq!(ran.code, None);
    assert!(ran.began_at > Some(40), "`base` began anew at {:?}", ran.began_at);
    // Whatever an op does, a stop in it is no loss.
    for step in ["initial", "alternatives", "act", "exam_alternatives", "il", "rl", "play", "judge"] {
        let ran = stop(&place, step, 1, if step == "rl" { "USR1" } else { "INT" });
        assert_eq!(ran.code, Some(130), "interrupted in `{step}`:\n{}", ran.stderr);
    }
    place.ok(&["run", "quickstart.toml", "--profile", "smoke"]);
    same_as_uninterrupted(&place);
    assert!(place.times_published().values().all(|times| *times == 1), "a step ran twice");
    // Nothing is kept of steps that are done.
    let usage = place.json(&["cache", "du"]);
    assert_eq!(usage["usage"]["scratch"]["count"], 0, "{usage}");
}

#[test]
fn a_second_ctrl_c_ends_the_run_at_once_and_costs_no_result() {
    let place = Place::new();
    let mut run = start(&place, &["base"]);
    assert!(run.wait_for(|event| is_at(event, "base", 3)));
    run.signal("INT");
    run.signal("INT");
    assert_eq!(run.finish().code, Some(130));
    place.verify_is_clean();
    start(&place, &["base"]).finish();
    let ids = place.ids();
    assert_eq!(ids.keys().collect::<Vec<_>>(), ["base", "model"]);
    assert!(ids.iter().all(|(step, ids)| ids == &smoke().ids()[step]));
}

#[test]
fn two_runs_over_one_store_both_succeed_and_train_every_step_once() {
    let place = Place::new();
    let goal = ["act", "judge[method=ACT]", "il[seed=0]", "exam"];
    let both = [start(&place, &goal), start(&place, &goal)];
    for ran in both.map(Running::finish) {
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
    let times = place.times_published();
    assert!(times.values().all(|times| *times == 1), "a step ran twice: {times:?}");
    let whole = smoke().ids();
    let ours = place.ids();
    assert_eq!(ours.keys().collect::<Vec<_>>(), times.keys().collect::<Vec<_>>());
    for (step, ids) in &ours {
        assert_eq!(ids, &whole[step], "`{step}` made other bytes beside another run");
    }
    place.verify_is_clean();
    let runs = place.json(&["runs"]);
    assert!(runs.as_array().unwrap().iter().all(|run| run["ending"] == "finished"), "{runs:#}");
}
