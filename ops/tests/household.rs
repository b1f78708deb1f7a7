//! The household world against transcripts of the original engine, exactly.
#![expect(clippy::unwrap_used, reason = "tests")]

use actloom_ops::env::Observation;
use actloom_ops::env::household::{HouseholdTask, read_problem};
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
        let (reward, valid) = (observed.reward, observed.valid);
        let expected = Observation { text: row.obs, reward, score: row.score, done: row.done, won: row.won, valid };
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

/// Two receptacles share a place; the lower the id, the higher the number.
const SHARED: &str = "
(define (problem plan_shared) (:domain alfred) ; a comment ( that is not closed
(:objects agent1 - agent
  AppleType MugType KnifeType - otype CounterTopType CabinetType MicrowaveType FridgeType SinkBasinType - rtype
  CounterTop_bar_1 CounterTop_bar_2 Cabinet_bar_1 Microwave_bar_1 Fridge_bar_1 Sink_bar_1_bar_SinkBasin - receptacle
  Apple_bar_1 Apple_bar_2 Mug_bar_1 Knife_bar_1 Candle - object
  loc_bar_1 loc_bar_2 loc_bar_3 loc_bar_4 loc_bar_5 - location)
(:init (= (distance loc_bar_1 loc_bar_2) 3) (atLocation agent1 loc_bar_5)
  (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 loc_bar_1)
  (receptacleType CounterTop_bar_2 CounterTopType) (receptacleAtLocation CounterTop_bar_2 loc_bar_1)
  (receptacleType Cabinet_bar_1 CabinetType) (receptacleAtLocation Cabinet_bar_1 loc_bar_1) (openable Cabinet_bar_1)
  (receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 loc_bar_2)
  (openable Microwave_bar_1) (openable Fridge_bar_1)
  (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_bar_3)
  (receptacleType Sink_bar_1_bar_SinkBasin SinkBasinType) (receptacleAtLocation Sink_bar_1_bar_SinkBasin loc_bar_4)
  (objectType Apple_bar_1 AppleType) (inReceptacle Apple_bar_1 CounterTop_bar_1) (objectAtLocation Apple_bar_1 loc_bar_1)
  (objectType Apple_bar_2 AppleType) (inReceptacle Apple_bar_2 Cabinet_bar_1) (objectAtLocation Apple_bar_2 loc_bar_1)
  (objectType Mug_bar_1 MugType) (inReceptacle Mug_bar_1 CounterTop_bar_2) (objectAtLocation Mug_bar_1 loc_bar_1)
  (objectType Knife_bar_1 KnifeType) (inReceptacle Knife_bar_1 CounterTop_bar_2)
  (objectAtLocation Knife_bar_1 loc_bar_1) (inReceptacleObject Knife_bar_1 Mug_bar_1) (isReceptacleObject Mug_bar_1)
  (pickupable Apple_bar_1) (pickupable Apple_bar_2) (pickupable Mug_bar_1) (pickupable Knife_bar_1)
  (heatable Apple_bar_1) (coolable Apple_bar_1) (cleanable Apple_bar_1) (sliceable Apple_bar_1)
  (sliceable Apple_bar_2) (cleanable Mug_bar_1)
  (canContain CounterTopType AppleType) (canContain CounterTopType KnifeType) (canContain CabinetType AppleType)
  (canContain CounterTopType MugType))
(:goal (and (exists (?r - receptacle) (exists (?o - object)
  (and (inReceptacle ?o ?r) (objectType ?o MugType) (receptacleType ?r CabinetType)))))))
";

/// Plays commands on `SHARED` and gives the replies.
fn replies(commands: &[&str]) -> Vec<String> {
    let mut world = read_problem(SHARED, "test").unwrap().play();
    world.reset();
    commands.iter().map(|command| world.step(command).text).collect()
}

fn last_reply(commands: &[&str]) -> String {
    replies(commands).pop().unwrap()
}

#[test]
fn ids_are_numbered_downwards_and_basins_are_named_so() {
    let mut world = read_problem(SHARED, "test").unwrap().play();
    let start = world.reset().text;
    let room = "you see a cabinet 1, a countertop 2, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.";
    assert!(start.contains(room), "{start}");
    assert!(start.ends_with("\n\nYour task is to: put a mug in cabinet."), "{start}");
    assert_eq!((world.task().id.as_str(), world.task().kind.as_str()), ("plan_shared", "pick_and_place_simple"));
}

#[test]
fn no_one_goes_to_a_receptacle_of_the_same_place_but_reaches_into_it() {
    let shown = replies(&[
        "go to countertop 2",
        "go to countertop 1",
        "examine countertop 1",
        "take mug 1 from countertop 1",
        "move mug 1 to cabinet 1",
        "move mug 1 to countertop 2",
        "open cabinet 1",
    ]);
    assert_eq!(
        shown,
        [
            "You arrive at countertop 2. On the countertop 2, you see a apple 2.",
            "Nothing happens.",
            "On the countertop 1, you see a knife 1, and a mug 1.",
            "You pick up the mug 1 from the countertop 1.",
            "Nothing happens.",
            "You move the mug 1 to the countertop 2.",
            "You open the cabinet 1. The cabinet 1 is open. In it, you see a apple 1.",
        ]
    );
}

#[test]
fn a_look_finds_beside_receptacles_what_was_taken_from_one_and_put_into_another_of_the_same_place() {
    let facing = "You are facing the cabinet 1, countertop 2, and countertop 1. Next to it, you see";
    let moved = ["go to cabinet 1", "take apple 2 from countertop 2", "move apple 2 to countertop 1", "look"];
    assert_eq!(last_reply(&moved), format!("{facing} a apple 2."));
    assert_eq!(
        last_reply(&moved[..1].iter().copied().chain(["look"]).collect::<Vec<_>>()),
        format!("{facing} nothing.")
    );
    let held = ["go to cabinet 1", "take apple 2 from countertop 2", "look"];
    assert_eq!(last_reply(&held), format!("{facing} nothing."));
    let back = [&moved[..3], &["take apple 2 from countertop 1", "move apple 2 to countertop 2", "look"]].concat();
    // It is back where it came from, and no longer where it was in between.
    assert_eq!(last_reply(&back), format!("{facing} a apple 2."));
    let elsewhere = [&moved[..3], &["go to fridge 1", "look"]].concat();
    assert_eq!(last_reply(&elsewhere), "You are facing the fridge 1. Next to it, you see nothing.");
}

#[test]
fn an_object_in_hand_says_what_was_done_to_it() {
    let hold = ["go to countertop 1", "take apple 2 from countertop 2"];
    let after = |more: &[&str]| last_reply(&[&hold[..], more, &["examine apple 2"]].concat());
    let heat = ["go to microwave 1", "heat apple 2 with microwave 1"];
    let cool = ["go to fridge 1", "cool apple 2 with fridge 1"];
    let clean = ["go to sinkbasin 1", "clean apple 2 with sinkbasin 1"];
    assert_eq!(after(&[]), "There's nothing special about apple 2.");
    assert_eq!(after(&heat), "This is a hot apple 2.");
    assert_eq!(after(&cool), "This is a cold apple 2.");
    assert_eq!(after(&clean), "This is a clean apple 2.");
    assert_eq!(after(&[heat, clean].concat()), "This is a hot and clean apple 2.");
    assert_eq!(after(&[clean, heat, cool].concat()), "This is a cool and clean apple 2.");
    assert_eq!(after(&[cool, heat].concat()), "This is a hot apple 2.");

    let slice = ["go to countertop 1", "take knife 1 from countertop 1", "slice apple 2 with knife 1"];
    let slice = [&slice[..], &["move knife 1 to countertop 1", "take apple 2 from countertop 2"]].concat();
    let after = |more: &[&str]| last_reply(&[&slice[..], more, &["examine apple 2"]].concat());
    assert_eq!(after(&[]), "This is a sliced apple 2.");
    assert_eq!(after(&heat), "This is a hot sliced apple 2.");
    assert_eq!(after(&cool), "This is a cool sliced apple 2.");
    assert_eq!(after(&clean), "This is a clean sliced apple 2.");
    assert_eq!(after(&[heat, clean].concat()), "This is a hot and clean sliced apple 2.");
    assert_eq!(after(&[cool, clean].concat()), "This is a cool and clean sliced apple 2.");
}

#[test]
fn an_object_that_holds_others_is_normal_even_when_clean() {
    let commands = ["go to countertop 1", "take mug 1 from countertop 1", "go to sinkbasin 1"];
    let commands = [&commands[..], &["clean mug 1 with sinkbasin 1", "examine mug 1"]].concat();
    assert_eq!(last_reply(&commands), "This is a normal mug 1. In it, you see a knife 1.");
}

#[test]
fn knives_cut_what_lies_at_the_place_even_behind_a_closed_door() {
    let commands = ["go to countertop 1", "take knife 1 from countertop 1", "slice apple 1 with knife 1"];
    assert_eq!(last_reply(&commands), "You sliced the apple 1 with the knife 1.");
    assert_eq!(last_reply(&["go to countertop 1", "slice apple 2 with knife 1"]), "Nothing happens.");
}

#[test]
fn commands_are_taken_by_the_letter_but_for_space_around_them() {
    let goes = "You arrive at fridge 1. The fridge 1 is closed.";
    assert_eq!(last_reply(&[" \tgo to fridge 1\n"]), goes);
    for command in
        ["go  to fridge 1", "Go to fridge 1", "go to fridge", "go to apple 1", "look around", "help me", "take"]
    {
        assert_eq!(last_reply(&[command]), "Nothing happens.", "{command}");
    }
}

#[test]
fn what_is_no_problem_is_refused_with_its_line() {
    let change = |from: &str, to: &str| {
        assert!(SHARED.contains(from), "{from}");
        read_problem(&SHARED.replacen(from, to, 1), "test").map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(read_problem("", "test").unwrap_err().line, 1);
    assert_eq!(
        change("(:domain alfred)", "(:domain blocks)"),
        "line 2: the problem is of domain `blocks`, expected `alfred`"
    );
    assert_eq!(
        change("(openable Cabinet_bar_1)", "(opnable Cabinet_bar_1)"),
        "line 11: `opnable` is no predicate of domain `alfred`"
    );
    assert_eq!(
        change("(openable Cabinet_bar_1)", "(openable)"),
        "line 11: `openable` has 0 arguments here, expected 1"
    );
    assert_eq!(
        change("(openable Cabinet_bar_1)", "(openable Box_bar_1)"),
        "line 11: `box_bar_1` is not declared in `:objects`"
    );
    assert_eq!(
        change("(openable Cabinet_bar_1)", "(openable Mug_bar_1)"),
        "line 11: `mug_bar_1` is not declared as `receptacle`"
    );
    assert_eq!(change("(atLocation agent1 loc_bar_5)", ""), "line 8: no `atLocation` says where the agent is");
    assert_eq!(
        change("(objectType Mug_bar_1 MugType)", "(objectType Mug_bar_1 MugType) (objectType Mug_bar_1 KnifeType)"),
        "line 18: `mug_bar_1` has a second `objecttype`, expected one"
    );
    assert_eq!(
        change("(atLocation agent1 loc_bar_5)", "(atLocation agent1 loc_bar_5) (atLocation agent1 loc_bar_4)"),
        "line 8: a second `atLocation`, expected one agent in one place"
    );
    assert_eq!(
        change("(atLocation agent1 loc_bar_5)", "(atLocation agent1 loc_bar_5) (holds agent1 Mug_bar_1)"),
        "line 8: `holds` without `holdsAny`, expected both or neither"
    );
    assert_eq!(
        change("(inReceptacle ?o ?r)", "(inReceptacle ?o ?r) (isHot ?o) (isClean ?o)"),
        "line 27: the goal has a second treatment, expected one"
    );
    assert_eq!(
        change("(inReceptacle ?o ?r)", "(inReceptacle ?o ?r) (receptacleType ?r CounterTopType)"),
        "line 27: the goal has a second class of receptacles, expected one"
    );
    assert_eq!(change("(inReceptacle ?o ?r)", "(isHot ?o)"), "line 26: the goal is none of the six tasks");
    assert_eq!(change("(:goal (and", "(:goal (or"), "line 26: the goal has a `or` that none of the six tasks has");
    assert_eq!(
        change("(inReceptacle ?o ?r)", "(full ?r)"),
        "line 27: the goal uses `full` in a way that none of the six tasks does"
    );
    assert_eq!(change("(:goal", "(:gaol"), "line 26: `:gaol` is no section of a problem");
    assert_eq!(change("CabinetType)))))))", "CabinetType))))))"), "line 2: found `(` without its `)`");
}
