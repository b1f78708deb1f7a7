//! ScienceWorld on a stand-in that speaks the simulator's protocol: games, questions, faults, and the pool.

#![expect(clippy::unwrap_used, reason = "a test that cannot play should stop")]

mod simulator;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use actloom_ops::env::scienceworld::{Limits, Machine, Requests, Score, Settings, open_with};
use actloom_ops::env::{Env, EnvError, Suite};
use simulator::{Fault, StandIn, World};

fn settings() -> Settings {
    Settings { machines: 2, deadline: 20.0, ..Settings::default() }
}

fn suite(settings: &Settings, world: World) -> (Box<dyn Suite>, Arc<World>) {
    let world = Arc::new(world);
    (open_with(settings, Arc::new(StandIn(Arc::clone(&world)))).unwrap(), world)
}

fn play(env: &mut dyn Env, actions: &[&str]) -> Vec<(f64, bool)> {
    actions
        .iter()
        .map(|action| {
            let seen = env.step(action).unwrap();
            (seen.score, seen.done)
        })
        .collect()
}

const PATH: [&str; 4] = ["open door to kitchen", "go to kitchen", "pick up orange (in bowl)", "focus on orange"];
const SCORES: [(f64, bool); 4] = [(0.0, false), (0.25, false), (0.5, false), (1.0, true)];

#[test]
fn a_game_begins_with_its_task_and_a_look_and_never_shows_the_last_games_score() {
    let (suite, world) = suite(&Settings { machines: 1, ..settings() }, World::default());
    let mut env = suite.open("test", 0, 0).unwrap();
    let start = env.reset().unwrap();
    assert_eq!(start.text, "Your task is to find an orange.\n\nYou are in the hallway.");
    assert_eq!((start.score, start.reward, start.done, start.won, start.valid), (0.0, 0.0, false, false, None));
    assert_eq!((env.task().id.as_str(), env.task().split.as_str()), ("boil/21", "test"));
    assert_eq!(env.task().goal, "Your task is to find an orange.");
    assert_eq!(play(&mut *env, &PATH), SCORES);
    let again = env.reset().unwrap();
    assert_eq!((again.score, again.done, again.won), (0.0, false, false));
    drop(env);
    let mut next = suite.open("test", 1, 0).unwrap();
    assert_eq!(next.reset().unwrap().score, 0.0);
    assert_eq!(world.starts.load(SeqCst), 1, "one machine plays one game after the other");
    let told = Settings { inventory: true, ..settings() };
    let (suite, _) = self::suite(&told, World::default());
    let start = suite.open("test", 0, 0).unwrap().reset().unwrap();
    assert!(start.text.ends_with("hallway.\n\nIn your inventory, you see:\n\tan orange"), "{}", start.text);
}

#[test]
fn rewards_add_up_and_a_failed_task_is_over() {
    let (suite, _) = suite(&settings(), World::default());
    let mut env = suite.open("train", 3, 0).unwrap();
    env.reset().unwrap();
    let rewards: Vec<f64> = PATH.iter().map(|action| env.step(action).unwrap().reward).collect();
    assert_eq!(rewards, [0.0, 0.25, 0.25, 0.5]);
    env.reset().unwrap();
    play(&mut *env, &PATH[..2]);
    let failed = env.step("focus on agent").unwrap();
    assert_eq!((failed.score, failed.reward, failed.done, failed.won), (0.0, -0.25, true, false));
    let (suite, _) = self::suite(&Settings { score: Score::Best, ..settings() }, World::default());
    let mut env = suite.open("train", 3, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &PATH[..2]);
    let failed = env.step("focus on agent").unwrap();
    assert_eq!((failed.score, failed.reward, failed.done, failed.won), (0.25, 0.0, true, false));
}

#[test]
fn an_unknown_input_is_not_valid_and_a_refused_one_is() {
    let (suite, _) = suite(&settings(), World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    let valid = |env: &mut dyn Env, action: &str| env.step(action).unwrap().valid;
    assert_eq!(valid(&mut *env, "go to kitchen"), Some(true));
    assert_eq!(valid(&mut *env, "fly"), Some(false));
    assert_eq!(valid(&mut *env, ""), Some(false));
}

#[test]
fn an_episode_ends_after_so_many_moves_of_the_simulator() {
    let (suite, _) = suite(&Settings { moves: 12, ..settings() }, World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    assert_eq!(play(&mut *env, &["wait", "look around", "fly", "go to kitchen", "wait"]).last(), Some(&(0.0, true)));
    env.reset().unwrap();
    assert!(play(&mut *env, &["wait", "go to kitchen"]).iter().all(|(_, done)| !done));
}

#[test]
fn a_question_is_answered_by_number_in_words_or_put_aside() {
    let (suite, world) = suite(&settings(), World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &["open door to kitchen", "go to kitchen"]);
    let asked = env.step("pick up orange").unwrap();
    assert!(asked.text.contains("1:\tpick up orange (in bowl)") && asked.valid == Some(true), "{}", asked.text);
    assert_eq!(env.admissible().unwrap().unwrap(), ["0", "1"]);
    assert_eq!(env.step(" 1 ").unwrap().score, 0.5);
    // in words, in a load with the other order
    env.reset().unwrap();
    play(&mut *env, &["open door to kitchen", "go to kitchen", "pick up orange"]);
    assert_eq!(env.step("Pick up orange (in bowl)").unwrap().score, 0.5);
    // another action is not lost
    env.reset().unwrap();
    play(&mut *env, &["open door to kitchen", "go to kitchen", "pick up orange"]);
    let look = env.step("look around").unwrap();
    assert_eq!((look.text.as_str(), look.valid), ("You are in the kitchen.", Some(true)));
    assert_eq!(world.inputs.lock().unwrap().last_chunk::<2>().unwrap(), &["".to_owned(), "look around".to_owned()]);
    // as in the original, it is
    let (suite, _) = self::suite(&Settings { requests: Requests::Original, ..settings() }, World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &["open door to kitchen", "go to kitchen", "pick up orange"]);
    let lost = env.step("focus on orange").unwrap();
    assert!(lost.text.starts_with("Unknown action.") && lost.valid == Some(false), "{}", lost.text);
}

#[test]
fn admissible_actions_are_sorted_and_can_be_left_out() {
    let (suite, _) = suite(&settings(), World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    assert_eq!(env.admissible().unwrap().unwrap(), ["focus on agent", "go to kitchen", "open door to kitchen"]);
    let (suite, _) = self::suite(&Settings { valid_actions: false, ..settings() }, World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    assert_eq!(env.admissible().unwrap(), None);
}

#[test]
fn the_expert_follows_its_path_until_somebody_leaves_it() {
    let (suite, world) = suite(&settings(), World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    for (action, (score, done)) in PATH.iter().zip(SCORES) {
        assert_eq!(env.expert().unwrap().as_deref(), Some(*action));
        let seen = env.step(action).unwrap();
        assert_eq!((seen.score, seen.done), (score, done));
    }
    assert_eq!(env.expert().unwrap(), None);
    env.reset().unwrap();
    env.step("fly").unwrap();
    assert_eq!(env.expert().unwrap(), None);
    assert_eq!(world.golds.load(SeqCst), 1, "a path is made once");
    assert_eq!(world.starts.load(SeqCst), 2, "and on a machine of its own");
    assert_eq!(world.lists.load(SeqCst), 0, "lists are released");
}

#[test]
fn a_state_is_gone_back_to_and_forward_from() {
    let (suite, world) = suite(&settings(), World::default());
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &["open door to kitchen", "go to kitchen", "pick up orange"]);
    let open = env.snapshot();
    // the number stands for the bowl in this load, and for the other orange in the next
    env.step("1").unwrap();
    let taken = env.snapshot();
    assert_eq!(play(&mut *env, &["focus on orange"]), [(1.0, true)]);
    env.restore(&taken).unwrap();
    assert_eq!(world.inputs.lock().unwrap().last().unwrap(), "0");
    assert_eq!(play(&mut *env, &["focus on orange"]), [(1.0, true)]);
    env.restore(&open).unwrap();
    assert_eq!(env.admissible().unwrap().unwrap(), ["0", "1"], "the question is open again");
    let loads = world.loads.load(SeqCst);
    env.restore(&taken).unwrap();
    assert_eq!(world.loads.load(SeqCst), loads, "what lies ahead needs no new load");
    assert_eq!(play(&mut *env, &["focus on orange"]), [(1.0, true)]);
    let mut other = suite.reopen(env.task()).unwrap();
    other.restore(&taken).unwrap();
    assert_eq!(play(&mut *other, &["focus on orange"]), [(1.0, true)]);
    let mut stranger = suite.open("train", 1, 0).unwrap();
    drop(other);
    assert!(stranger.restore(&taken).unwrap_err().to_string().contains("is not one of the task"));
}

#[test]
fn a_game_goes_on_after_its_machine_ended_whatever_ended_it() {
    for fault in [Fault::Crash, Fault::Garbage, Fault::Huge, Fault::Throw, Fault::Twice] {
        // the first call of `step` is the look, so this is the third action
        let (suite, world) = suite(&settings(), World { faults: vec![(4, fault)], ..World::default() });
        let mut env = suite.open("train", 0, 0).unwrap();
        env.reset().unwrap();
        assert_eq!(play(&mut *env, &PATH), SCORES, "{fault:?}");
        assert_eq!(world.starts.load(SeqCst), 2, "{fault:?}");
        drop(env);
        drop(suite);
        assert_eq!(world.live.load(SeqCst), 0, "{fault:?}: a machine is left");
    }
}

#[test]
fn a_machine_that_ends_again_and_again_is_given_up() {
    let faults = (2..200).map(|at| (at, Fault::Crash)).collect();
    let (suite, world) = suite(&settings(), World { faults, ..World::default() });
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    let error = env.step("wait").unwrap_err();
    assert!(matches!(&error, EnvError::Ended { call, .. } if call == "step"), "{error}");
    assert_eq!(world.starts.load(SeqCst), 3);
}

#[test]
fn a_start_that_fails_is_tried_again() {
    let (suite, world) = suite(&settings(), World { stillborn: vec![1], ..World::default() });
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    assert_eq!(play(&mut *env, &PATH), SCORES);
    assert_eq!(world.starts.load(SeqCst), 2);
    let (suite, _) = self::suite(&settings(), World { stillborn: vec![1, 2, 3], ..World::default() });
    let error = suite.open("train", 0, 0).unwrap().reset().unwrap_err();
    assert_eq!(error.to_string(), "the environment `scienceworld` ended during `start`: it fell over");
}

#[test]
fn a_replay_that_leads_elsewhere_is_an_error() {
    let world = World { faults: vec![(4, Fault::Crash)], wanders: true, ..World::default() };
    let (suite, _) = suite(&settings(), world);
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &PATH[..2]);
    let error = env.step(PATH[2]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "variation 0 of `boil` does not lead where it led: 2 inputs done again 5 times reach score 0.125, \
         before score 0.25"
    );
}

#[test]
fn a_call_that_hangs_ends_at_its_deadline_and_the_game_can_go_on() {
    let world = World { faults: vec![(3, Fault::Hang)], ..World::default() };
    let (suite, world) = suite(&Settings { deadline: 1.0, ..settings() }, world);
    let mut env = suite.open("train", 0, 0).unwrap();
    env.reset().unwrap();
    play(&mut *env, &PATH[..1]);
    let clock = Instant::now();
    let error = env.step(PATH[1]).unwrap_err();
    assert_eq!(error.to_string(), "the environment `scienceworld` did not answer `step` within 1 s");
    assert!(clock.elapsed() < Duration::from_secs(15));
    assert_eq!(world.live.load(SeqCst), 0, "the machine is killed");
    assert_eq!(play(&mut *env, &PATH[1..]), SCORES[1..]);
}

#[test]
fn a_machine_may_take_its_time_to_listen_but_not_for_ever() {
    let slow = Duration::from_millis(400);
    let (suite, _) = suite(&settings(), World { slow, ..World::default() });
    assert!(suite.open("train", 0, 0).unwrap().reset().is_ok());
    let world = Arc::new(World { slow: Duration::from_secs(4), ..World::default() });
    let limits = Limits { deadline: Duration::from_millis(300), ..Limits::default() };
    let error = Machine::start(&StandIn(Arc::clone(&world)), limits).err().unwrap();
    assert_eq!(error.to_string(), "the environment `scienceworld` did not answer `start` within 0.3 s");
    assert_eq!(world.live.load(SeqCst), 0);
}

#[test]
fn a_simulator_with_other_tasks_is_refused() {
    let (suite, _) = suite(&settings(), World { other: true, ..World::default() });
    let error = suite.open("train", 0, 0).unwrap().reset().unwrap_err();
    assert_eq!(error.to_string(), "the simulator has 31 variations of `boil`, expected 30 as in version 1.2.3");
}

#[test]
fn games_wait_for_a_machine_and_there_are_never_more_than_said() {
    let (suite, world) = suite(&settings(), World::default());
    assert_eq!(suite.together(), 2);
    let suite = &*suite;
    std::thread::scope(|scope| {
        for i in 0..8 {
            scope.spawn(move || {
                let mut env = suite.open("train", i, 0).unwrap();
                env.reset().unwrap();
                assert_eq!(play(&mut *env, &PATH), SCORES);
            });
        }
    });
    assert!(world.most.load(SeqCst) <= 2);
    assert_eq!(world.starts.load(SeqCst), world.most.load(SeqCst), "machines are used again");
}

#[test]
fn more_games_than_machines_in_which_nothing_happens_are_an_error() {
    let (suite, _) = suite(&Settings { machines: 1, deadline: 1.0, ..settings() }, World::default());
    let mut first = suite.open("train", 0, 0).unwrap();
    first.reset().unwrap();
    let error = suite.open("train", 1, 0).unwrap().reset().unwrap_err();
    assert!(error.to_string().starts_with("all 1 machines of the environment `scienceworld` are held"), "{error}");
    assert_eq!(play(&mut *first, &PATH), SCORES, "the first is not disturbed");
}

#[test]
fn tasks_are_listed_without_a_machine_and_opened_by_name() {
    let named = Settings { tasks: vec!["1-2".to_owned(), "task-1-boil".to_owned()], variations: 2, ..settings() };
    let (suite, world) = suite(&named, World::default());
    assert_eq!(suite.count("dev").unwrap(), Some(4));
    let ids: Vec<String> = (0..4).map(|i| suite.open("dev", i, 0).unwrap().task().id.clone()).collect();
    assert_eq!(ids, ["melt/14", "boil/14", "melt/15", "boil/15"]);
    assert_eq!(world.starts.load(SeqCst), 0);
    assert!(suite.open("dev", 4, 0).is_err());
    assert_eq!(
        suite.count("id").unwrap_err().to_string(),
        "the environment `scienceworld` has no split `id`, expected one of `train`, `dev`, `test`"
    );
    let mut task = suite.open("dev", 1, 0).unwrap().task().clone();
    task.goal = "Your task is to find a banana.".to_owned();
    let error = suite.reopen(&task).unwrap().reset().unwrap_err();
    assert_eq!(error.to_string(), "the task `boil/14` is another one here: `Your task is to find an orange.`");
    task.id = "boil/16".to_owned();
    assert_eq!(suite.reopen(&task).err().unwrap().to_string(), "the split `dev` has no task `boil/16`");
    task.id = "boil".to_owned();
    assert!(suite.reopen(&task).is_err());
}

#[test]
fn settings_that_cannot_be_are_named_all_of_them() {
    let settings: Settings = serde_json::from_value(serde_json::json!({
        "tasks": ["boil", "boyl", "1-1", "power-component"],
        "simplifications": ["openDoors", "noElectricalAction"],
        "deadline": 0.5,
    }))
    .unwrap();
    let problems: Vec<String> =
        settings.check().iter().map(|p| format!("{}: {}", p.path.join("."), p.message)).collect();
    assert_eq!(
        problems,
        [
            "world.tasks.1: `boyl` is no task of ScienceWorld",
            "world.tasks.2: the task `boil` is named twice",
            "world.simplifications: the task `power-component` cannot be done with `noElectricalAction`",
            "world.deadline: `deadline` is 0.5, expected 1 to 86400 seconds",
        ]
    );
    assert_eq!(settings.check()[0].help.as_deref(), Some("did you mean `boil`?"));
    assert!(Settings::default().check().is_empty());
}
