//! Generated households: tasks, splits, experts, random play.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use actloom_ops::env::household::{
    self, Expert, Household, HouseholdTask, Novelty, Settings, Size, Split, TaskKind, Wording,
};
use actloom_ops::rng::Rng;

const SIZES: [Size; 4] = [Size::Tiny, Size::Small, Size::Medium, Size::Alfred];
const SPLITS: [Split; 3] = [Split::Train, Split::Id, Split::Ood];

fn of_size(size: Size) -> Settings {
    Settings { size, ..Settings::default() }
}

/// Lets the expert play; gives its steps, or panics with the transcript.
fn solve(world: &mut Household, limit: usize) -> usize {
    let mut transcript = world.reset().text;
    for steps in 0..limit {
        let Some(action) = world.expert() else {
            assert!(world.won(), "the expert gave up:\n{transcript}");
            return steps;
        };
        assert!(world.admissible().contains(&action), "`{action}` is not admissible:\n{transcript}");
        let observed = world.step(&action);
        transcript.push_str(&format!("\n> {action}\n{}", observed.text));
    }
    assert!(world.won(), "not won within {limit} steps:\n{transcript}");
    limit
}

/// The names after `you see` in the first observation, without articles: `cabinet 2`.
fn receptacles(start: &str) -> Vec<String> {
    let line = start.lines().find_map(|line| line.split_once("you see ")).unwrap().1;
    names(line).collect()
}

/// `a mug 1, and a spoon 1.` to `mug 1`, `spoon 1`.
fn names(list: &str) -> impl Iterator<Item = String> {
    let items: Vec<_> = list.trim_end_matches('.').split(", ").map(str::to_owned).collect();
    items.into_iter().filter_map(|item| {
        let item = item.strip_prefix("and ").unwrap_or(&item);
        item.strip_prefix("a ").map(str::to_owned)
    })
}

fn class(name: &str) -> &str {
    name.split(' ').next().unwrap()
}

/// What an agent that looks everywhere finds: classes of objects with classes of receptacles.
fn placements(task: &HouseholdTask) -> BTreeSet<(String, String)> {
    let mut world = task.play();
    let mut found = BTreeSet::new();
    for receptacle in receptacles(&world.reset().text) {
        let mut shown = world.step(&format!("go to {receptacle}")).text;
        if shown.ends_with("is closed.") {
            shown = world.step(&format!("open {receptacle}")).text;
        } else if shown == "Nothing happens." {
            world.step(&format!("open {receptacle}"));
            shown = world.step(&format!("examine {receptacle}")).text;
        }
        let shown = shown.split_once("you see ").unwrap().1;
        found.extend(names(shown).map(|name| (class(&name).to_owned(), class(&receptacle).to_owned())));
    }
    found
}

#[test]
fn the_searching_expert_wins_every_task_and_needs_few_steps_in_tiny_rooms() {
    for size in SIZES {
        for split in SPLITS {
            let count = if size == Size::Tiny { 1500 } else { 300 };
            let tasks = household::tasks(&of_size(size), split, count, 11);
            let steps: usize = tasks.iter().map(|task| solve(&mut task.play(), 60)).sum();
            let mean = steps as f64 / count as f64;
            assert!(size != Size::Tiny || (6.0..=9.0).contains(&mean), "{split:?}: {mean} steps");
        }
    }
}

#[test]
fn every_task_has_a_plan_that_wins_in_as_many_steps_and_the_search_is_never_shorter() {
    for size in SIZES {
        for split in SPLITS {
            for task in household::tasks(&of_size(size), split, 120, 5) {
                let mut world = task.play();
                let start = world.reset();
                assert!(!start.won, "{:?} is solved at the start", task.task());
                let plan = world.plan().unwrap();
                for (index, command) in plan.iter().enumerate() {
                    assert_eq!(world.step(command).won, index + 1 == plan.len(), "{:?}: {plan:?}", task.task());
                }
                assert_eq!(world.plan(), Some(Vec::new()));
                assert!(solve(&mut task.play(), 60) >= plan.len(), "{:?}", task.task());
            }
        }
    }
}

#[test]
fn the_planning_expert_takes_exactly_the_shortest_plan() {
    let settings = Settings { expert: Expert::Plan, ..Settings::default() };
    for task in household::tasks(&settings, Split::Ood, 60, 0) {
        let mut world = task.play();
        assert_eq!(solve(&mut world, 30), task.play().plan().unwrap().len());
    }
}

#[test]
fn experts_go_on_after_anything_that_others_did() {
    for expert in [Expert::Search, Expert::Plan] {
        for size in SIZES {
            let settings = Settings { expert, ..of_size(size) };
            for (index, task) in household::tasks(&settings, Split::Train, 60, 2).iter().enumerate() {
                let mut rng = Rng::at(0, &[index as u64]);
                let mut world = task.play();
                world.reset();
                for _ in 0..index {
                    world.step(&world.admissible()[rng.below(world.admissible().len())].clone());
                }
                let mut steps = 0;
                while let Some(action) = world.expert() {
                    assert!(world.admissible().contains(&action), "{:?}: {action}", task.task());
                    world.step(&action);
                    steps += 1;
                    assert!(steps <= 70, "{:?} is not won after {index} random steps", task.task());
                }
                assert!(world.won());
            }
        }
    }
}

#[test]
fn a_split_is_the_same_each_time_and_longer_lists_start_with_shorter_ones() {
    let text = |task: &HouseholdTask| (task.task().clone(), task.play().reset().text, placements(task));
    for split in SPLITS {
        let long: Vec<_> = household::tasks(&Settings::default(), split, 50, 7).iter().map(text).collect();
        let short: Vec<_> = household::tasks(&Settings::default(), split, 20, 7).iter().map(text).collect();
        assert_eq!(long[..20], short);
        let other: Vec<_> = household::tasks(&Settings::default(), split, 20, 8).iter().map(text).collect();
        assert_ne!(short, other);
    }
}

#[test]
fn the_first_tiny_task_stays_what_it_is() {
    let task = &household::tasks(&Settings::default(), Split::Train, 1, 0)[0];
    let mut world = task.play();
    let mut transcript = format!("{}\n", world.reset().text);
    while let Some(action) = world.expert() {
        transcript.push_str(&format!("> {action}\n{}\n", world.step(&action).text));
    }
    assert_eq!((task.task().id.as_str(), transcript.as_str()), ("tiny/train/0", FIRST));
}

const FIRST: &str = "\
-= Welcome to TextWorld, ALFRED! =-

You are in the middle of a room. Looking quickly around you, you see a countertop 1, a fridge 1, a garbagecan 1, a microwave 1, and a sinkbasin 1.

Your task is to: put a cool egg in garbagecan.
> go to fridge 1
You arrive at fridge 1. The fridge 1 is closed.
> open fridge 1
You open the fridge 1. The fridge 1 is open. In it, you see a egg 1.
> take egg 1 from fridge 1
You pick up the egg 1 from the fridge 1.
> cool egg 1 with fridge 1
You cool the egg 1 using the fridge 1.
> go to garbagecan 1
You arrive at garbagecan 1. On the garbagecan 1, you see nothing.
> move egg 1 to garbagecan 1
You move the egg 1 to the garbagecan 1.
";

#[test]
fn splits_hold_equally_many_tasks_of_each_kind_asked_for() {
    let tasks =
        vec![TaskKind::PickHeatThenPlaceInRecep, TaskKind::LookAtObjInLight, TaskKind::PickHeatThenPlaceInRecep];
    let settings = Settings { tasks, ..Settings::default() };
    let kinds: Vec<TaskKind> = household::tasks(&settings, Split::Id, 40, 1).iter().map(|t| t.goal().kind).collect();
    let heat = kinds.iter().filter(|kind| **kind == TaskKind::PickHeatThenPlaceInRecep).count();
    let look = kinds.iter().filter(|kind| **kind == TaskKind::LookAtObjInLight).count();
    assert_eq!((heat, look), (20, 20));
}

#[test]
fn id_tasks_play_in_rooms_of_train_and_ood_tasks_in_no_room_of_train() {
    for size in SIZES {
        let rooms = |split, seed| -> BTreeSet<Vec<String>> {
            let tasks = household::tasks(&of_size(size), split, 600, seed);
            tasks.iter().map(|task| receptacles(&task.play().reset().text)).collect()
        };
        let train = rooms(Split::Train, 0);
        assert!(train.is_superset(&rooms(Split::Id, 1)));
        assert!(train.is_disjoint(&rooms(Split::Ood, 0)));
    }
    let settings = Settings { rooms: 1, ..Settings::default() };
    let rooms = |settings: &Settings| -> BTreeSet<Vec<String>> {
        let tasks = household::tasks(settings, Split::Train, 300, 0);
        tasks.iter().map(|task| receptacles(&task.play().reset().text)).collect()
    };
    assert_ne!(rooms(&settings), rooms(&Settings::default()));
}

#[test]
fn ood_goals_are_about_pairs_and_receptacles_that_no_training_task_has() {
    for size in SIZES {
        let mut seen_pairs = BTreeSet::new();
        let mut seen_classes = BTreeSet::new();
        for seed in 0..3 {
            for task in household::tasks(&of_size(size), Split::Train, 600, seed) {
                seen_pairs.extend(placements(&task));
                seen_pairs.insert((task.goal().object.clone(), task.goal().place.clone()));
                seen_classes.extend(receptacles(&task.play().reset().text).iter().map(|name| class(name).to_owned()));
                assert!(task.novelty().is_empty());
            }
        }
        for task in household::tasks(&of_size(size), Split::Ood, 300, 9) {
            let room = receptacles(&task.play().reset().text);
            assert!(room.iter().any(|name| !seen_classes.contains(class(name))), "{room:?}");
            let goal = (task.goal().object.clone(), task.goal().place.clone());
            let mut about: Vec<_> = placements(&task).into_iter().filter(|(object, _)| *object == goal.0).collect();
            about.push(goal);
            let new: Vec<_> = about.iter().filter(|pair| !seen_pairs.contains(*pair)).collect();
            let new_class = new.iter().any(|(_, receptacle)| !seen_classes.contains(receptacle));
            assert_eq!(new_class, task.novelty().contains(&Novelty::Receptacle), "{:?}: {about:?}", task.task());
            assert!(!new.is_empty() && !task.novelty().is_empty(), "{:?}: {about:?}", task.task());
        }
    }
}

#[test]
fn train_and_id_share_no_problem_under_any_seed() {
    let problems = |split, seed| -> BTreeSet<String> {
        let settings = Settings { tasks: vec![TaskKind::PickAndPlaceSimple], ..Settings::default() };
        let tasks = household::tasks(&settings, split, 1500, seed);
        tasks.iter().map(|task| format!("{}{:?}", task.play().reset().text, placements(task))).collect()
    };
    let train = problems(Split::Train, 0);
    assert!(train.is_disjoint(&problems(Split::Id, 0)));
    assert!(train.is_disjoint(&problems(Split::Id, 1)));
}

#[test]
fn tiny_rooms_hold_one_receptacle_of_a_class_and_use_few_words() {
    let (mut receptacle_classes, mut object_classes) = (BTreeSet::new(), BTreeSet::new());
    for split in SPLITS {
        for task in household::tasks(&Settings::default(), split, 600, 4) {
            let room = receptacles(&task.play().reset().text);
            assert!((4..=7).contains(&room.len()) && room.iter().all(|name| name.ends_with(" 1")), "{room:?}");
            receptacle_classes.extend(room.iter().map(|name| class(name).to_owned()));
            object_classes.extend(placements(&task).into_iter().map(|(object, _)| object));
        }
    }
    assert!((18..=24).contains(&receptacle_classes.len()), "{receptacle_classes:?}");
    assert!((20..=28).contains(&object_classes.len()), "{object_classes:?}");
}

#[test]
fn larger_rooms_have_numbered_receptacles_and_shared_places() {
    let tasks = household::tasks(&of_size(Size::Alfred), Split::Train, 100, 0);
    let rooms: Vec<_> = tasks.iter().map(|task| receptacles(&task.play().reset().text)).collect();
    assert!(rooms.iter().any(|room| room.len() >= 20 && room.iter().any(|name| name.ends_with(" 4"))));
    let shared = tasks.iter().any(|task| {
        let mut world = task.play();
        let room = receptacles(&world.reset().text);
        world.step(&format!("go to {}", room[0]));
        world.step(&format!("go to {}", room[1])).text == "Nothing happens."
    });
    assert!(shared);
}

#[test]
fn a_clone_is_a_snapshot_and_reset_forgets_everything() {
    for task in household::tasks(&Settings::default(), Split::Train, 30, 3) {
        let mut world = task.play();
        let start = world.reset();
        let (first, facts) = (world.deduction(), world.facts());
        let action = world.expert().unwrap();
        world.step(&action);
        let mut snapshot = world.clone();
        let after = world.facts();
        solve(&mut world, 60);
        assert_eq!(snapshot.facts(), after);
        let action = snapshot.expert().unwrap();
        assert!(snapshot.admissible().contains(&action));
        assert_eq!(world.reset(), start);
        assert_eq!((world.deduction(), world.facts()), (first, facts));
    }
}

#[test]
fn the_old_wording_is_another_wording_of_the_same_world() {
    let settings = Settings { wording: Wording::Put, ..Settings::default() };
    for task in household::tasks(&settings, Split::Train, 30, 3) {
        let mut world = task.play();
        let steps = solve(&mut world, 60);
        assert_eq!(steps, solve(&mut task.clone().worded(Wording::Move).play(), 60));
        world.reset();
        while let Some(action) = world.expert() {
            let text = world.step(&action).text;
            assert!(
                !action.starts_with("move ") && !action.starts_with("go to ") || text.starts_with("You arrive at loc ")
            );
            if action.starts_with("put ") {
                assert!(action.contains(" in/on ") && text.starts_with("You put the ") && text.contains(" in/on the "));
            }
        }
    }
}

#[test]
fn deductions_are_short_and_name_only_what_was_seen() {
    for size in SIZES {
        for split in SPLITS {
            for task in household::tasks(&of_size(size), split, 100, 6) {
                let mut world = task.play();
                let mut seen = world.reset().text;
                loop {
                    let deduction = world.deduction();
                    assert!(deduction.split(' ').count() <= 12, "{deduction}");
                    let words: Vec<&str> = deduction.split([' ', '.']).filter(|word| !word.is_empty()).collect();
                    for name in words.windows(2).filter(|pair| pair[1].parse::<usize>().is_ok()) {
                        assert!(seen.contains(&name.join(" ")), "{deduction}\nafter\n{seen}");
                    }
                    let Some(action) = world.expert() else {
                        assert_eq!(deduction, "done.");
                        break;
                    };
                    // The deduction ends in the expert's action, its object possibly as `it`.
                    let verb = action.split(' ').next().unwrap();
                    assert!(deduction.contains(&format!(" next: {verb} ")), "{deduction} but `{action}`");
                    seen.push_str(&world.step(&action).text);
                }
            }
        }
    }
}

#[test]
fn random_play_often_reaches_goals_in_hindsight_and_replays_under_them_are_won() {
    let tasks = household::tasks(&Settings::default(), Split::Train, 300, 12);
    let (mut with_goal, mut kinds) = (0, BTreeSet::new());
    for (index, task) in tasks.iter().enumerate() {
        let mut rng = Rng::at(0, &[9, index as u64]);
        let mut world = task.play();
        world.reset();
        assert_eq!(world.achieved(), Vec::new());
        let mut actions = Vec::new();
        while actions.len() < 20 && world.achieved().is_empty() {
            let action = world.random_action(&mut rng);
            assert!(world.admissible().contains(&action), "{action}");
            world.step(&action);
            actions.push(action);
        }
        with_goal += usize::from(!world.achieved().is_empty());
        for goal in world.achieved() {
            let mut again = task.with_goal(goal.clone()).play();
            let start = again.reset();
            assert!(start.text.ends_with(&format!("Your task is to: {}", goal.text())) && !start.won);
            let last = actions.iter().map(|action| again.step(action)).last().unwrap();
            assert!(!goal.held_out(), "{}", goal.text());
            assert!(last.won, "{}: {actions:?}", goal.text());
            assert_eq!(again.deduction(), "done.");
            kinds.insert(goal.kind);
        }
    }
    assert!(with_goal >= 240, "only {with_goal} of 300 reached anything");
    assert!(kinds.len() >= 5, "{kinds:?}");
}

#[test]
fn settings_are_read_strictly_with_defaults() {
    let read = |text: &str| serde_json::from_str::<Settings>(text);
    assert_eq!(read("{}").unwrap(), Settings::default());
    let given = r#"{"size": "alfred", "tasks": ["pick_two_obj_and_place"], "expert": "plan", "wording": "put"}"#;
    assert_eq!(read(given).unwrap().tasks, [TaskKind::PickTwoObjAndPlace]);
    assert!(read(r#"{"sise": "tiny"}"#).unwrap_err().to_string().contains("unknown field `sise`"));
    let schema = serde_json::to_value(schemars::schema_for!(Settings)).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["layouts"]["default"], 8);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "a measurement of optimised code")]
fn a_core_makes_200_000_steps_a_second_with_all_admissible_actions_in_a_room_of_full_size() {
    let tasks = household::tasks(&of_size(Size::Alfred), Split::Train, 400, 0);
    let room = |task: &&HouseholdTask| receptacles(&task.play().reset().text).len() >= 23;
    let task = tasks.iter().find(room).unwrap();
    let mut world = task.play();
    let mut rng = Rng::at(0, &[1]);
    world.reset();
    let script: Vec<String> = (0..1000)
        .map(|_| {
            let action = world.random_action(&mut rng);
            world.step(&action);
            action
        })
        .collect();
    // the best of many short rounds: other tests run beside this one
    let mut rate = 0f64;
    for _ in 0..20 {
        let start = std::time::Instant::now();
        let mut actions = 0;
        for _ in 0..20 {
            world.reset();
            for action in &script {
                world.step(action);
                actions += world.admissible().len();
            }
        }
        assert!(actions > 20_000, "a room of full size has few actions");
        rate = rate.max(20_000.0 / start.elapsed().as_secs_f64());
    }
    assert!(rate >= 200_000.0, "{rate:.0} steps a second");
}

#[test]
fn every_kind_of_task_fits_even_a_house_with_one_layout_a_room() {
    for size in SIZES {
        for rooms in 0..3 {
            for kind in TaskKind::ALL {
                let settings = Settings { tasks: vec![kind], layouts: 1, unseen_layouts: 1, rooms, ..of_size(size) };
                for split in SPLITS {
                    let tasks = household::tasks(&settings, split, 4, 0);
                    assert!(tasks.iter().all(|task| task.goal().kind == kind && task.play().plan().is_some()));
                }
            }
        }
    }
}
