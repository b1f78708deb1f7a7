//! Original games: files in ALFWorld's formats, lists of them, and transcripts replayed.
//!
//! The transcripts `mixed_*` were captured from the original engine (TextWorld 1.7.0, domain and grammar of alfworld
//! 0.4.2, in both wordings) on random problems with everything that a problem can have: shared places, objects in two
//! receptacles, elsewhere than their receptacle or in hand, receptacle objects, doors open at the start, treated, sliced
//! and lit things, bare class names.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Read;

use actloom_ops::env::household::{self, Settings, TaskKind, read_game};
use actloom_ops::env::{Env, Suite};
use actloom_ops::tool::worlds::{self, check};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Game, wording.
const MIXED: [(&str, &str); 8] = [
    ("place", "move"),
    ("two", "move"),
    ("clean", "move"),
    ("heat", "move"),
    ("cool", "put"),
    ("light", "put"),
    ("clean", "put"),
    ("large", "put"),
];

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/alfworld/mixed_{name}.gz", env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::File::open(&path).unwrap_or_else(|e| panic!("cannot read `{path}`: {e}"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn problem(game: &str, wording: &str) -> String {
    fixture(&format!("{game}.{wording}.initial_state.pddl"))
}

/// A grammar in the form of game files, with the rules that are read.
fn grammar(task: &str, wording: &str) -> String {
    let (put, to, arrive) = match wording {
        "put" => ("put", "in/on", "lend"),
        _ => ("move", "to", "r"),
    };
    let one = |text: String| json!([{ "rhs": text }]);
    let rules = json!({
        "task": one(format!("Your task is to: {task}")),
        "GotoLocation.feedback": one(format!("You arrive at {{{arrive}.name}}. #examineReceptacle.feedback#")),
        "OpenObject.feedback": one("You open the {r.name}. #examineReceptacle.feedback#".into()),
        "CloseObject.feedback": one("You close the {r.name}.".into()),
        "PickupObject.feedback": one("You pick up the {o.name} from the {r.name}.".into()),
        "PutObject.feedback": one(format!("You {put} the {{o.name}} {to} the {{r.name}}.")),
        "help.feedback": one("\nWhat there is to say.\n".into()),
        "inventory.feedback": [], "examineReceptacle.feedback": [], "examineObject.feedback": [], "look.feedback": [],
    });
    let mut text =
        format!("grammar :: \"\"\"\n{}\n\"\"\";\n# a comment\n", serde_json::to_string_pretty(&rules).unwrap());
    let mut action = |name: &str, template: &str, own: Option<&str>| {
        let feedback = name[..1].to_lowercase() + &name[1..];
        let (feedback, rules) = match own {
            Some(said) => {
                let rules = json!({format!("{feedback}.feedback"): [{"condition": "x", "rhs": said}]});
                (feedback, format!("  grammar :: \"\"\"\n  # rules\n{rules}\n\"\"\";\n"))
            }
            None => (name.to_owned(), String::new()),
        };
        text += &format!(
            "action {name} {{\n  template :: \"{template}\";\n  feedback :: \"#{feedback}.feedback#\";\n{rules}}}\n"
        );
    };
    action("GotoLocation", "go to [{r.name | receptacleatlocation(r:receptacle, lend:location)}]", None);
    action("OpenObject", "open {r}", None);
    action("CloseObject", "close {r}", None);
    action("PickupObject", "take {o} from {r}", None);
    action("PutObject", &format!("{put} {{o}} {to} {{r}}"), None);
    action("PutObjectInReceptacleObject", "put {o} into {outero}", None);
    action("inventory", "inventory", None);
    action("examineReceptacle", "examine {r}", None);
    action("examineObject", "examine {o}", None);
    action("look", "look", None);
    action("help", "help", None);
    action("ToggleObject", "use {o}", Some("You turn on the {o.name}."));
    action("HeatObject", "heat {o} with {r}", Some("You heat the {o.name} using the {r.name}."));
    action("CleanObject", "clean {o} with {r}", Some("You clean the {o.name} using the {r.name}."));
    action("CoolObject", "cool {o} with {r}", Some("You cool the {o.name} using the {r.name}."));
    action("SliceObject", "slice {co} with {ko}", Some("You sliced the {co.name} with the {ko.name}."));
    text
}

/// A domain with the names of the actions.
fn domain() -> String {
    let names = "look inventory examineReceptacle examineObject GotoLocation OpenObject CloseObject PickupObject \
                 PutObject CleanObject HeatObject CoolObject ToggleObject SliceObject help";
    let actions: String = names.split_whitespace().map(|name| format!("(:action {name} :parameters ())\n")).collect();
    format!("; a comment\n(define (domain alfred) (:requirements :adl)\n{actions})")
}

fn game_file(game: &str, wording: &str, task: &str) -> Value {
    json!({
        "pddl_domain": domain(), "grammar": grammar(task, wording), "pddl_problem": problem(game, wording),
        "solvable": true, "walkthrough": ["look", "\"solvable\": false"],
    })
}

fn folder() -> (TempDir, Utf8PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    (dir, path)
}

fn write(path: &Utf8Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Rows without what the test's grammar says differently.
fn transcript(game: &str, wording: &str) -> Vec<Value> {
    let text = fixture(&format!("{game}.{wording}.jsonl"));
    let mut rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    rows.retain(|row| row["cmd"].as_str().is_none_or(|command| command.trim() != "help"));
    rows
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn task_of(rows: &[Value]) -> String {
    rows[0]["obs"].as_str().unwrap().split_once("Your task is to: ").unwrap().1.to_owned()
}

#[test]
fn captured_transcripts_in_both_wordings_come_out_again() {
    let (_guard, dir) = folder();
    let mut compared = 0;
    for (game, wording) in MIXED {
        let rows = transcript(game, wording);
        let (file, bare) = (dir.join("game.tw-pddl"), dir.join("initial_state.pddl"));
        write(&file, &game_file(game, wording, &task_of(&rows)).to_string());
        write(&bare, &problem(game, wording));
        write(&dir.join("rows.jsonl"), &lines(&rows));
        let replay = check(&file, &dir.join("rows.jsonl")).unwrap();
        assert!(replay.equal, "{game}.{wording}: {:?}", replay.difference);
        compared += replay.rows;
        // A bare problem is worded as games are today, its task is the transcript's.
        let replay = check(&bare, &dir.join("rows.jsonl")).unwrap();
        assert_eq!(replay.equal, wording == "move", "{game}.{wording}: {:?}", replay.difference);
    }
    assert!(compared > 400, "{compared}");
}

#[test]
fn the_first_difference_is_told_with_its_line_command_and_field() {
    let (_guard, dir) = folder();
    let (game, path) = (dir.join("game"), dir.join("rows.jsonl"));
    write(&game, &problem("two", "move"));
    let rows = transcript("two", "move");
    let told = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        write(&path, &lines(&rows));
        check(&game, &path).unwrap().difference
    };
    let found = told(&|rows| rows[7]["obs"] = json!("You see a unicorn.")).unwrap();
    assert_eq!((found.line, found.field), (8, "obs"));
    assert_eq!((found.command.as_deref(), &found.expected), (rows[7]["cmd"].as_str(), &json!("You see a unicorn.")));
    assert_eq!(found.found, rows[7]["obs"]);
    let found = told(&|rows| rows[0]["admissible"][0] = json!("fly")).unwrap();
    assert_eq!((found.line, found.field, found.command), (1, "admissible", None));
    assert_eq!(found.missing, ["fly"]);
    assert_eq!(found.surplus, [rows[0]["admissible"][0].as_str().unwrap()]);
    for field in ["score", "done", "won"] {
        let other = if field == "score" { json!(0.5) } else { json!(!rows[3][field].as_bool().unwrap()) };
        let found = told(&|rows| rows[3][field] = other.clone()).unwrap();
        assert_eq!((found.line, found.field), (4, field));
        // what is not there is not compared
        assert_eq!(told(&|rows| drop(rows[3].as_object_mut().unwrap().remove(field))), None);
    }
}

#[test]
fn what_is_no_transcript_is_an_error_with_its_line() {
    let (_guard, dir) = folder();
    let (game, path) = (dir.join("game"), dir.join("rows.jsonl"));
    write(&game, &problem("two", "move"));
    let first = lines(&transcript("two", "move")[..1]);
    let error = |text: &str| {
        write(&path, text);
        check(&game, &path).unwrap_err().to_string().replace(path.as_str(), "T")
    };
    assert_eq!(error(""), "the transcript `T`, line 1: found nothing, expected rows of JSON");
    assert!(
        error(&format!("{first}\n{{\"obs\": \"x\"}}")).starts_with("the transcript `T`, line 3: missing field `cmd`")
    );
    assert!(
        error(&format!("{first}{{\"cmd\": \"look\"}}")).starts_with("the transcript `T`, line 2: missing field `obs`")
    );
    assert!(error(&format!("{first}{{\"cmd\": \"lo")).starts_with("the transcript `T`, line 2: EOF"));
    assert!(error("{\"cmd\": \"look\", \"obs\": \"x\"}").contains("line 1: the first row has a command"));
    assert!(
        error("{\"cmd\": null, \"obs\": \"x\"}").contains("line 1: the observation has no line `Your task is to: ...`")
    );
    let missing = check(&dir.join("none"), &path).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read `") && missing.contains("none`: "), "{missing}");
}

#[test]
fn words_come_from_the_game_file_and_what_it_says_differently_is_refused() {
    let file = |change: &dyn Fn(&mut Value)| {
        let mut file = game_file("cool", "put", "put a cold thing somewhere.");
        change(&mut file);
        read_game(&file.to_string(), "train")
    };
    let game = file(&|_| {}).unwrap();
    assert_eq!(game.solvable, Some(true));
    assert_eq!(game.task.task().goal, "put a cold thing somewhere.");
    let mut world = game.task.play();
    assert!(world.reset().text.ends_with("\n\nYour task is to: put a cold thing somewhere."));
    assert_eq!(world.step("help").text, "What there is to say.\n");
    let mute = |file: &mut Value| file["pddl_domain"] = json!(domain().replace("(:action help :parameters ())", ""));
    let mut world = file(&mute).unwrap().task.play();
    world.reset();
    assert_eq!(world.step("help").text, "Nothing happens.");
    assert!(!world.admissible().contains(&"help".to_owned()));

    let refused = |field: &str, from: &str, to: &str| {
        let change = |file: &mut Value| {
            let text = file[field].as_str().unwrap();
            assert!(text.contains(from), "{from}");
            file[field] = json!(text.replacen(from, to, 1));
        };
        file(&change).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        refused("grammar", "template :: \"open {r}\"", "template :: \"{a.name}: open {r}\""),
        "`grammar`: the command of `openobject` is `{a.name}: open {r}`, expected `open {r}`"
    );
    assert_eq!(
        refused("grammar", "You close the", "You slam the"),
        "`grammar`: the reply to `closeobject` is `You slam the {r.name}.`, expected `You close the {r.name}.`"
    );
    assert_eq!(
        refused("grammar", "template :: \"put {o} in/on {r}\"", "template :: \"drop {o} at {r}\""),
        "`grammar`: the command of `putobject` is `drop {o} at {r}`, expected `move {o} to {r}` or `put {o} in/on {r}`"
    );
    assert!(refused("grammar", "Your task is to: put", "#task#").starts_with("`grammar`: the rule `task` has `#task#"));
    assert!(refused("grammar", "action look", "action luck").contains("the grammar has no action `look`"));
    assert!(refused("grammar", "action look", "attraction look").starts_with("`grammar`: line "));
    assert!(
        refused("pddl_domain", "(:action look", "(:action fly").contains("an action `fly` that ALFWorld's does not")
    );
    assert!(refused("pddl_domain", "(:action look :parameters ())", "").contains("the domain has no action `look`"));
    assert!(refused("pddl_problem", "(:goal", "(:gaol").starts_with("`pddl_problem`, line "));
    let task = file(&|file| drop(file.as_object_mut().unwrap().remove("grammar"))).map(|_| ()).unwrap_err();
    assert!(task.starts_with("missing field `grammar`"), "{task}");
}

const TRIAL: &str = "pick_heat_then_place_in_recep-Mug-None-Desk-301/trial_T1";

/// A small release; gives its root.
fn release(dir: &Utf8Path) -> Utf8PathBuf {
    let root = dir.join("json_2.1.1");
    let trajectory = |kind: &str| {
        let anns = ["Warm a mug.", "Heat it"].map(|text| json!({"task_desc": text, "high_descs": []}));
        json!({"task_type": kind, "turk_annotations": {"anns": anns}, "images": [], "plan": {"x": [1]}}).to_string()
    };
    let add = |id: &str, kind: &str, file: Option<Value>| {
        write(&root.join(id).join("traj_data.json"), &trajectory(kind));
        if let Some(file) = file {
            write(&root.join(id).join("game.tw-pddl"), &file.to_string());
        }
    };
    let game = |solvable: Value| {
        let mut file = game_file("heat", "move", "heat some mug and put it in desk.");
        file["solvable"] = solvable;
        Some(file)
    };
    let (heat, look) = ("pick_heat_then_place_in_recep", "look_at_obj_in_light");
    add(&format!("train/{TRIAL}"), heat, game(json!(true)));
    add(&format!("train/{heat}-Apple-None-Fridge-3/trial_T2"), heat, game(json!(true)));
    add(&format!("train/{heat}-AppleSliced-None-Fridge-3/trial_T2"), heat, game(json!(true)));
    add("train/pick_and_place_with_movable_recep-A-B-C-1/trial_T3", "pick_and_place_with_movable_recep", None);
    add("train/pick_and_bake-A-None-C-1/trial_T4", "pick_and_bake", game(json!(true)));
    add(&format!("train/{heat}-Cup-None-Fridge-3/trial_T5"), heat, None);
    add(&format!("train/{heat}-Egg-None-Fridge-3/trial_T6"), heat, game(json!(false)));
    add(&format!("train/{heat}-Egg-None-Fridge-3/trial_T7"), heat, game(json!(null)));
    add(&format!("train/{look}-Mug-None-DeskLamp-3/trial_T8"), look, game(json!(true)));
    add(&format!("valid_seen/{heat}-Mug-None-Desk-301/trial_T9"), heat, game(json!(true)));
    root
}

fn ids(suite: &dyn Suite, split: &str) -> Vec<String> {
    let count = suite.count(split).unwrap().unwrap();
    (0..count).map(|index| suite.open(split, index, 0).unwrap().task().id.clone()).collect()
}

#[test]
fn a_release_lists_the_games_that_the_original_would_in_the_order_of_their_names() {
    let (_guard, dir) = folder();
    let root = release(&dir);
    let heat = "train/pick_heat_then_place_in_recep";
    let look = "train/look_at_obj_in_light-Mug-None-DeskLamp-3/trial_T8".to_owned();
    let warm = [format!("{heat}-Apple-None-Fridge-3/trial_T2"), format!("{heat}-Mug-None-Desk-301/trial_T1")];
    // the release, and the folder that holds it
    for data in [&root, &dir] {
        let suite = household::open(&Settings::default(), Some(data)).unwrap();
        assert_eq!(suite.splits(), ["train", "id"]);
        assert_eq!(ids(suite.as_ref(), "train"), [std::slice::from_ref(&look), &warm[..]].concat());
        assert_eq!(ids(suite.as_ref(), "valid_seen"), ids(suite.as_ref(), "id"));
        assert_eq!(
            suite.passed_over("train").unwrap(),
            [
                "passed over 1 of movable receptacles",
                "passed over 1 of sliced objects",
                "passed over 1 of other kinds of task",
                "passed over 1 without `game.tw-pddl`",
                "passed over 2 not marked as solvable",
            ]
        );
        let error = suite.count("ood").unwrap_err().to_string();
        assert!(error.contains("the split `ood` has no folder `valid_unseen`"), "{error}");
        assert!(suite.open("train", 3, 0).err().unwrap().to_string().contains("has 3 games, no number 3"));
    }
    let some = Settings { tasks: vec![TaskKind::PickHeatThenPlaceInRecep], ..Settings::default() };
    assert_eq!(ids(household::open(&some, Some(&root)).unwrap().as_ref(), "train"), warm);

    // a split's folder: names begin below it, and every split is this one
    let suite = household::open(&Settings::default(), Some(&root.join("train"))).unwrap();
    assert_eq!(ids(suite.as_ref(), "ood")[2], TRIAL);
    assert_eq!(suite.open("ood", 0, 0).unwrap().task().split, "ood");
}

#[test]
fn one_game_is_a_folder_a_game_file_or_a_problem() {
    let (_guard, dir) = folder();
    let root = release(&dir);
    let trial = root.join("train").join(TRIAL);
    let bare = dir.join("bare");
    write(&bare.join("initial_state.pddl"), &problem("heat", "move"));
    for (data, goal) in [
        (trial.clone(), "heat some mug and put it in desk."),
        (trial.join("game.tw-pddl"), "heat some mug and put it in desk."),
        (bare.clone(), "put a hot "),
        (bare.join("initial_state.pddl"), "put a hot "),
    ] {
        let suite = household::open(&Settings::default(), Some(&data)).unwrap();
        assert_eq!(suite.count("train").unwrap(), Some(1));
        let task = suite.open("train", 0, 9).unwrap().task().clone();
        assert!(task.id.starts_with("plan_trial_") && task.goal.starts_with(goal), "{task:?}");
        assert_eq!(suite.reopen(&task).unwrap().task(), &task);
    }
    let empty = dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let error = household::open(&Settings::default(), Some(&empty)).unwrap().count("train").unwrap_err().to_string();
    assert!(error.starts_with("there are no games in `"), "{error}");
    assert!(household::open(&Settings::default(), Some(&dir.join("nowhere"))).is_err());
}

#[test]
fn people_can_say_the_task() {
    let (_guard, dir) = folder();
    let root = release(&dir);
    let goal = |annotation| {
        let suite = household::open(&Settings { annotation, ..Settings::default() }, Some(&root)).unwrap();
        suite.open("id", 0, 0).map(|env| env.task().goal.clone()).map_err(|e| e.to_string())
    };
    assert_eq!(goal(None).unwrap(), "heat some mug and put it in desk.");
    // the original adds its full stop to theirs
    assert_eq!(goal(Some(0)).unwrap(), "Warm a mug..");
    assert_eq!(goal(Some(1)).unwrap(), "Heat it.");
    assert!(goal(Some(2)).unwrap_err().contains("has 2 descriptions, `annotation` 2 is not there"));
}

#[test]
fn tasks_are_found_again_by_their_names_and_nothing_outside_the_data_is() {
    let (_guard, dir) = folder();
    let root = release(&dir);
    let suite = household::open(&Settings::default(), Some(&root)).unwrap();
    let task = suite.open("train", 1, 0).unwrap().task().clone();
    assert!(!task.id.contains(dir.as_str()));
    assert_eq!(suite.reopen(&task).unwrap().task(), &task);
    // the same data elsewhere
    let (_other_guard, other) = folder();
    let elsewhere = household::open(&Settings::default(), Some(&release(&other))).unwrap();
    assert_eq!(elsewhere.reopen(&task).unwrap().task(), &task);
    let mut changed = task.clone();
    changed.goal = "heat some cup.".to_owned();
    assert!(
        suite.reopen(&changed).err().unwrap().to_string().contains("its goal is `heat some mug and put it in desk.`")
    );
    for id in [
        "",
        "train",
        &format!("valid_seen/{TRIAL}"),
        &format!("train/../train/{TRIAL}"),
        &format!("train//{TRIAL}"),
        root.join("train").join(TRIAL).as_str(),
    ] {
        changed.id = id.to_owned();
        let error = suite.reopen(&changed).err().unwrap().to_string();
        assert!(error.starts_with("there is no game `"), "{id}: {error}");
    }
}

#[test]
fn from_a_state_put_back_the_same_actions_give_the_same_texts() {
    let (_guard, dir) = folder();
    let root = release(&dir);
    let suite = household::open(&Settings::default(), Some(&root)).unwrap();
    let mut env = suite.open("id", 0, 0).unwrap();
    let play = |env: &mut Box<dyn Env>, from: usize| -> Vec<Value> {
        let mut told = Vec::new();
        for step in from..from + 25 {
            let actions = env.admissible().unwrap().unwrap();
            let action = actions[(step * 7) % actions.len()].clone();
            let observed = env.step(&action).unwrap();
            told.push(json!([action, observed.text, observed.score, observed.done, env.expert().unwrap()]));
        }
        told
    };
    env.reset().unwrap();
    play(&mut env, 0);
    let kept = env.snapshot();
    let first = play(&mut env, 3);
    play(&mut env, 11);
    env.restore(&kept).unwrap();
    assert_eq!(play(&mut env, 3), first);
    // in another instance of the same task, but not of another
    let mut again = suite.reopen(env.task()).unwrap();
    again.reset().unwrap();
    again.restore(&kept).unwrap();
    assert_eq!(play(&mut again, 3), first);
    let error = suite.open("train", 0, 0).unwrap().restore(&kept).unwrap_err().to_string();
    assert!(error.starts_with("the snapshot is not of the task `train/"), "{error}");
}

#[test]
fn both_experts_win_the_captured_worlds_of_full_size() {
    for (game, wording) in [("large", "put"), ("cool", "put"), ("two", "move"), ("heat", "move")] {
        let task = read_game(&problem(game, wording), "train").unwrap().task;
        let mut world = task.play();
        world.reset();
        let plan = world.plan().unwrap();
        let mut steps = 0;
        while let Some(action) = world.expert() {
            assert!(world.admissible().contains(&action) && steps < 80, "{game}: `{action}`");
            world.step(&action);
            steps += 1;
        }
        assert!(world.won() && steps >= plan.len(), "{game}");
    }
}

#[test]
fn tasks_are_listed_with_settings_as_words() {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let settings = worlds::settings("household", &words(&["size=small", "tasks=[\"look_at_obj_in_light\"]"])).unwrap();
    let list = worlds::tasks(&settings, None, Some("id"), 3, 5).unwrap();
    assert_eq!((list.there, list.tasks.len(), list.split.as_str()), (None, 3, "id"));
    assert!(list.tasks.iter().all(|task| task.kind == "look_at_obj_in_light" && task.seed.is_some()));
    let (_guard, dir) = folder();
    let release = release(&dir);
    let settings = worlds::settings("household", &[]).unwrap();
    let list = worlds::tasks(&settings, Some(&release), None, 0, 0).unwrap();
    assert_eq!((list.there, list.tasks.len(), list.passed_over.len()), (Some(3), 3, 5));
    for (env, set, said) in [
        ("attic", &[][..], "there is no environment `attic`"),
        ("household", &["size"][..], "`size` sets nothing"),
        ("household", &["size=huge"][..], "the settings of `household` cannot be: unknown variant `huge`"),
        ("household", &["sise=small"][..], "unknown field `sise`"),
        ("household", &["size.x=1", "size=1", "size.y=2"][..], "sets a part of `size`, which is no table"),
    ] {
        let error = worlds::settings(env, &words(set)).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(worlds::tasks(&settings, None, Some("test"), 1, 0).unwrap_err().to_string().contains("`test` is no split"));
    assert!(worlds::tasks(&settings, None, None, 0, 0).is_err());
}
