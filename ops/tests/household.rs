//! The household world against transcripts of the original engine, exactly.

use actloom_ops::env::household::{HouseholdTask, read_problem};
use actloom_ops::env::{Env, Observation};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    cmd: Option<String>,
    obs: String,
    score: f64,
    done: bool,
    won: bool,
    admissible: Vec<String>,
}

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/alfworld/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read `{path}`: {e}"))
}

fn problem(game: &str) -> HouseholdTask {
    read_problem(&fixture(&format!("{game}.initial_state.pddl")), "test").unwrap()
}

/// Replays a transcript and gives the number of its rows.
fn replay(game: &str, kind: &str) -> usize {
    let mut world = problem(game).play();
    let text = fixture(&format!("{game}.{kind}.jsonl"));
    for (index, line) in text.lines().enumerate() {
        let row: Row = serde_json::from_str(line).unwrap();
        let observed = match &row.cmd {
            None => world.reset(),
            Some(command) => world.step(command),
        };
        let expected = Observation { text: row.obs, score: row.score, done: row.done, won: row.won };
        let at = format!("{game}.{kind} row {} after {:?}", index + 1, row.cmd);
        assert_eq!(observed, expected, "{at}");
        assert_eq!(world.admissible(), row.admissible, "{at}");
    }
    text.lines().count()
}

#[test]
fn every_captured_row_is_reproduced_exactly() {
    let games = ["g1_place", "g3_heat", "g5_two", "g6_light"];
    let mut rows = 0;
    for game in games {
        for kind in ["planner", "random", "expert"] {
            rows += replay(game, kind);
        }
        if game != "g5_two" {
            rows += replay(game, "probes");
        }
    }
    assert_eq!(rows, 432);
}
