//! Game files, problems, trajectories and transcripts that are anything but: an error, never a panic, a full stack or
//! endless memory.

use actloom_ops::env::household::{self, Settings, read_game, read_problem};
use actloom_ops::tool::worlds::check;
use camino::Utf8PathBuf;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/alfworld/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read `{path}`: {e}"))
}

/// Cuts, doubles, swaps and overwrites parts of a text.
fn mutated(text: &str, changes: &[(usize, usize, u8)]) -> String {
    const BITS: [&str; 12] =
        ["(", ")", "\"", "{", "}", " - ", "exists", "\\u0000", "_bar_", "9999999999999999999", "null", "é"];
    let mut bytes = text.as_bytes().to_vec();
    for &(at, length, how) in changes {
        let at = at % bytes.len().max(1);
        let end = (at + length % 60).min(bytes.len());
        match how % 4 {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let part = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, part));
            }
            2 => bytes.truncate(at),
            _ => drop(bytes.splice(at..end, BITS[how as usize % BITS.len()].bytes())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// If it reads, it plays.
fn try_out(text: &str) {
    if let Ok(game) = read_game(text, "train") {
        let mut world = game.task.play();
        world.reset();
        for step in 0..12 {
            let actions = world.admissible();
            world.step(&actions[step * 5 % actions.len()]);
        }
        let _ = (world.deduction(), world.facts());
    }
}

fn changes() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_text_is_a_problem_or_an_error(text in "\\PC{0,300}", pieces in vec("[(); a-z?:_-]{0,12}", 0..60)) {
        try_out(&text);
        try_out(&format!("(define (problem x) (:domain alfred) {})", pieces.join(" ")));
        try_out(&format!("{{{text}"));
    }

    #[test]
    fn a_damaged_problem_is_a_problem_or_an_error(changes in changes()) {
        try_out(&mutated(&fixture("g3_heat.initial_state.pddl"), &changes));
    }

    #[test]
    fn a_damaged_game_file_is_a_game_or_an_error(inner in changes(), outer in changes(), which in 0..3usize) {
        let mut file = json!({
            "pddl_domain": "(define (domain alfred) (:action look :parameters ()))",
            "grammar": "grammar :: \"\"\"{\"task\": [{\"rhs\": \"Your task is to: x.\"}]}\"\"\";\naction look {template :: \"look\";}",
            "pddl_problem": fixture("g6_light.initial_state.pddl"),
            "solvable": true,
        });
        let field = ["pddl_domain", "grammar", "pddl_problem"][which];
        file[field] = json!(mutated(file[field].as_str().unwrap(), &inner));
        try_out(&file.to_string());
        try_out(&mutated(&file.to_string(), &outer));
    }

    #[test]
    fn a_damaged_transcript_is_replayed_or_an_error(changes in changes(), text in "\\PC{0,200}") {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        std::fs::write(dir.join("game"), fixture("g6_light.initial_state.pddl")).unwrap();
        for text in [mutated(&fixture("g6_light.planner.jsonl"), &changes), text] {
            std::fs::write(dir.join("rows"), text).unwrap();
            let _ = check(&dir.join("game"), &dir.join("rows"));
        }
    }

    #[test]
    fn a_damaged_trajectory_or_mark_is_read_or_an_error(changes in changes(), tail in changes()) {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        let trial = root.join("some/trial");
        std::fs::create_dir_all(&trial).unwrap();
        let trajectory = json!({"task_type": "look_at_obj_in_light", "turk_annotations": {"anns": [{"task_desc": "x"}]}});
        std::fs::write(trial.join("traj_data.json"), mutated(&trajectory.to_string(), &changes)).unwrap();
        std::fs::write(trial.join("game.tw-pddl"), mutated("{\"a\": \"b\", \"solvable\": true, \"walkthrough\": []}", &tail)).unwrap();
        let suite = household::open(&Settings { annotation: Some(0), ..Settings::default() }, Some(&root)).unwrap();
        if suite.count("train").is_ok_and(|count| count == Some(1)) {
            let _ = suite.open("train", 0, 0);
        }
    }
}

#[test]
fn deep_and_endless_nesting_is_an_error() {
    for depth in [65, 100_000, 3_000_000] {
        let open = "(".repeat(depth);
        let error = read_problem(&open, "test").unwrap_err().to_string();
        assert_eq!(error, "line 1: parentheses nest deeper than 64, expected at most as deep");
        let goal = format!("(define (problem x) (:goal {}{}))", "(and ".repeat(depth), ")".repeat(depth));
        assert!(read_problem(&goal, "test").is_err());
        assert!(read_game(&format!("{{\"a\": {}", "[".repeat(depth)), "test").is_err());
    }
}

#[test]
fn more_objects_than_fit_are_an_error_with_a_line_and_any_number_of_places_is_not() {
    let problem = |objects: usize, locations: usize| {
        let mut text = String::from("(define (problem x) (:domain alfred) (:objects agent1 - agent\n");
        for o in 0..objects {
            text += &format!("Mug_bar_{o:04} - object\n");
        }
        for l in 0..locations {
            text += &format!("loc_bar_{l:04} - location\n");
        }
        text += "Desk_bar_1 - receptacle MugType - otype DeskType - rtype)\n(:init (atLocation agent1 loc_bar_0000)\n";
        text += "(receptacleType Desk_bar_1 DeskType) (receptacleAtLocation Desk_bar_1 loc_bar_0001)\n";
        for o in 0..objects {
            let l = 1 + o % (locations - 1);
            text += &format!("(objectType Mug_bar_{o:04} MugType) (objectAtLocation Mug_bar_{o:04} loc_bar_{l:04})\n");
        }
        for l in 0..locations {
            text += &format!("(objectAtLocation Mug_bar_0000 loc_bar_{l:04})\n");
        }
        text + ") (:goal (exists (?r ?o) (and (objectType ?o MugType) (receptacleType ?r DeskType) (inReceptacle ?o ?r)))))"
    };
    let error = read_problem(&problem(129, 3), "test").map(|_| ()).unwrap_err().to_string();
    assert!(error.ends_with("the problem has more than 128 of kind `object`, expected at most as many"), "{error}");
    assert!(read_problem(&problem(128, 500), "test").is_ok());
}

#[test]
fn a_goal_that_cannot_be_reached_behind_many_doors_ends_the_experts() {
    let mut text = String::from(
        "(define (problem x) (:domain alfred) (:objects agent1 - agent loc_bar_0 - location MugType - otype \
         CabinetType - rtype\n",
    );
    let mut facts = String::from("(:init (atLocation agent1 loc_bar_0) (canContain CabinetType MugType)\n");
    for i in 10..34 {
        text += &format!("Mug_bar_{i} - object Cabinet_bar_{i} - receptacle loc_bar_{i} - location\n");
        facts += &format!("(objectType Mug_bar_{i} MugType) (pickupable Mug_bar_{i}) (cleanable Mug_bar_{i})\n");
        facts += &format!("(receptacleType Cabinet_bar_{i} CabinetType) (openable Cabinet_bar_{i})\n");
        facts +=
            &format!("(receptacleAtLocation Cabinet_bar_{i} loc_bar_{i}) (inReceptacle Mug_bar_{i} Cabinet_bar_{i})\n");
    }
    let goal = "(:goal (exists (?r ?o) (and (cleanable ?o) (isClean ?o) (objectType ?o MugType) (inReceptacle ?o ?r) \
                (receptacleType ?r CabinetType)))))";
    let mut world = read_problem(&format!("{text})\n{facts})\n{goal}"), "test").unwrap().play();
    world.reset();
    assert_eq!(world.plan(), None);
    // the search takes a mug and then knows no sink
    let mut steps = 0;
    while let Some(action) = world.expert() {
        world.step(&action);
        steps += 1;
        assert!(steps < 10);
    }
}
