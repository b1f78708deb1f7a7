//! Sessions without a terminal: what a person types and sees, and a policy against `rollout`.
//!
//! Invariant: the world is the smallest of the household's, and the model the tiny one of the parity vectors.

use std::collections::VecDeque;

use actloom_engine::op::DeviceRequest;
use camino::Utf8PathBuf;

use super::*;
use crate::artifact;
use crate::op::rollout::Rollout;
use crate::op::table::tests::Bench;

/// Says these lines and remembers what happened.
struct Script {
    lines: VecDeque<String>,
    patient: bool,
    seen: Vec<Event>,
    /// Steps after which a watcher has had enough.
    enough: usize,
}

impl Script {
    fn new(lines: &[&str], patient: bool) -> Script {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Script { lines, patient, seen: Vec::new(), enough: usize::MAX }
    }

    fn texts(&self) -> Vec<&str> {
        let text = |event: &'_ Event| match event {
            Event::Start { .. } => "start",
            Event::Step { .. } => "step",
            Event::Undone { .. } => "undone",
            Event::Mistake { .. } => "mistake",
            Event::Actions { .. } => "actions",
            Event::Hint { .. } => "hint",
            Event::Over { .. } => "over",
            Event::Reply { .. } => "reply",
            Event::Help => "help",
        };
        self.seen.iter().map(text).collect()
    }
}

impl Face for Script {
    fn line(&mut self) -> Result<Option<String>, OpError> {
        // `hint!` does what the last hint said
        Ok(self.lines.pop_front().map(|line| match self.seen.last() {
            Some(Event::Hint { action: Some(action) }) if line == "hint!" => action.clone(),
            _ => line,
        }))
    }

    fn show(&mut self, event: &Event) {
        self.seen.push(event.clone());
    }

    fn wait(&mut self) -> Result<bool, OpError> {
        self.enough = self.enough.saturating_sub(1);
        Ok(self.enough > 0)
    }

    fn stopping(&self) -> bool {
        false
    }

    fn patient(&self) -> bool {
        self.patient
    }
}

fn household(task: &str) -> Asked {
    Asked {
        env: "household".to_owned(),
        task: task.to_owned(),
        split: Some("id".to_owned()),
        data: None,
        seed: 5,
        set: Vec::new(),
        max_steps: None,
        model: None,
    }
}

fn open(asked: &Asked) -> Opened {
    asked.open().unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

fn refused(asked: &Asked) -> (String, String) {
    match asked.open() {
        Err(Wrong::Asked { message, help }) => (message, help.unwrap_or_default()),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was opened"),
    }
}

fn play(lines: &[&str], patient: bool) -> (Episode, Option<String>, Script) {
    let mut script = Script::new(lines, patient);
    let (episode, mistake) = person(open(&household("3")), &mut script).unwrap();
    (episode, mistake, script)
}

#[test]
fn the_experts_hints_win_the_game() {
    let lines = ["/hint", "hint!"].repeat(60);
    let (episode, mistake, script) = play(&lines, false);
    assert!(episode.success && mistake.is_none());
    assert_eq!((episode.end, episode.actor), (End::Done, Actor::Expert));
    assert!(matches!(script.seen.last(), Some(Event::Over { won: true, .. })));
    assert!(episode.turns.iter().all(|turn| turn.admissible == Some(true) && !turn.actions.is_empty()));
    assert_eq!(script.lines.len() + 2 * episode.turns.len(), 120, "a game that is over reads no more");
}

#[test]
fn an_action_is_said_in_words_or_by_its_number_in_the_list() {
    let (by_number, _, script) = play(&["/actions", "1", "2"], false);
    let Event::Actions { actions: Some(listed), .. } = &script.seen[1] else { panic!("{:?}", script.seen[1]) };
    assert_eq!(by_number.turns[0].action, listed[0].1);
    assert_eq!(by_number.turns[0].actions.len(), listed.len());
    let (by_word, ..) = play(&[&by_number.turns[0].action, &by_number.turns[1].action], false);
    assert_eq!(by_word, by_number);
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let (plain, ..) = play(&["look", "inventory"], true);
    let (undone, mistake, script) =
        play(&["look", "1", "/undo", "fly", "/undo", "inventory", "/undo", "/undo", "/undo"], true);
    assert!(undone.turns.is_empty() && mistake.is_none());
    assert_eq!(
        script.texts()[1..],
        ["step", "step", "undone", "step", "undone", "step", "undone", "undone", "mistake"]
    );
    let (again, ..) = play(&["look", "1", "/undo", "inventory"], true);
    assert_eq!(again, plain);
    let (restarted, _, script) = play(&["1", "2", "3", "/restart", "look", "inventory"], true);
    assert_eq!(restarted, plain);
    assert_eq!(script.seen[0], script.seen[4]);
}

#[test]
fn the_patient_forgive_mistakes_and_others_end_with_the_first() {
    let lines = ["/fly", "9999", "/actions fly away", "/actions 7", "look"];
    let (episode, mistake, script) = play(&lines, true);
    assert_eq!((episode.turns.len(), mistake), (1, None));
    assert_eq!(script.texts()[1..], ["mistake", "mistake", "actions", "mistake", "step"]);
    let (episode, mistake, _) = play(&lines, false);
    assert_eq!(episode.turns.len(), 0);
    assert_eq!(mistake.unwrap(), "`/fly` is no command; `/help` lists them, `/do TEXT` says anything");
}

#[test]
fn a_game_ends_at_its_step_limit_and_can_be_taken_up_again_by_the_patient() {
    let mut asked = household("3");
    asked.max_steps = Some(2);
    let mut script = Script::new(&["look", "look", "look", "/undo", "inventory"], true);
    let (episode, _) = person(open(&asked), &mut script).unwrap();
    assert_eq!(script.texts()[1..], ["step", "step", "over", "mistake", "undone", "step", "over"]);
    assert_eq!((episode.turns.len(), episode.end), (2, End::Limit));
}

#[test]
fn a_task_is_the_one_that_a_step_with_this_seed_plays() {
    let bench = Bench::new();
    let params = serde_json::json!({"split": "id", "count": 4});
    let params = serde_json::from_value(params).unwrap();
    fs_err::create_dir(bench.path("scratch")).unwrap();
    bench.run(&crate::op::demos::Demos, &params, [], "episodes").unwrap();
    let demos: Vec<Episode> = artifact::read(&bench.path("episodes")).unwrap();
    let (episode, ..) = play(&[], false);
    assert_eq!((&episode.task, &episode.start), (&demos[3].task, &demos[3].start));
    for id in ["id/3", "tiny/id/3"] {
        assert_eq!(person(open(&household(id)), &mut Script::new(&[], false)).unwrap().0.task, episode.task);
    }
    assert_eq!(refused(&household("small/id/3")).0, "the split `id` of `household` has no task `small/id/3`");
    let mut elsewhere = household("ood/3");
    elsewhere.split = None;
    assert_eq!(person(open(&elsewhere), &mut Script::new(&[], false)).unwrap().0.task.split, "ood");
}

#[test]
fn settings_are_those_of_recipes_and_mistakes_name_the_nearest() {
    let with = |set: &str| Asked { set: vec![set.to_owned()], ..household("0") };
    let small = open(&with("size=small"));
    assert_ne!(small.env.task(), open(&household("0")).env.task());
    let (message, help) = refused(&with("siez=small"));
    assert!(message.contains("`siez`") && help.contains("`size`"), "{message} / {help}");
    let (message, _) = refused(&with("size=huge"));
    assert!(message.contains("huge"), "{message}");
    let (message, _) = refused(&with("layouts=0"));
    assert!(message.contains("layouts"), "{message}");
    assert_eq!(refused(&with("size")).0, "`size` has no `=`");
    let (message, help) = refused(&Asked { split: Some("tets".to_owned()), ..household("0") });
    assert!(message.contains("tets") && help.contains("`id`"), "{message} / {help}");
    let (message, _) = refused(&Asked { data: Some("/no/such/games".into()), ..household("0") });
    assert!(message.contains("/no/such/games"), "{message}");
    let (message, help) = refused(&household("mug"));
    assert_eq!(message, "the split `id` of `household` has no task `mug`");
    assert!(help.contains("`tiny/id/0`"), "{help}");
}

fn watched(set: &[&str], enough: usize) -> (Episode, bool, Script) {
    let mut asked = household("0");
    asked.max_steps = Some(4);
    let path = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
    asked.model = Some(Model {
        path,
        device: DeviceRequest::Cpu,
        prompt: set.iter().map(|s| (*s).to_owned()).collect(),
        temperature: None,
        max_tokens: Some(8),
        decoding: Some("admissible".to_owned()),
    });
    let mut script = Script::new(&[], false);
    script.enough = enough;
    let (episode, stopped) = watch(open(&asked), &mut script).unwrap();
    (episode, stopped, script)
}

#[test]
fn a_policy_plays_as_in_a_rollout_with_the_same_seed() {
    let (episode, stopped, script) = watched(&[], usize::MAX);
    assert!(!stopped);
    let bench = Bench::new();
    let params = serde_json::json!({
        "split": "id", "tasks": 1, "max_steps": 4, "max_tokens": 8, "decoding": "admissible",
    });
    let params = serde_json::from_value(params).unwrap();
    let mut input = bench.input("model", "base", &[]);
    input.path = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
    fs_err::create_dir(bench.path("scratch")).unwrap();
    bench.run(&Rollout, &params, [("policy", vec![input])], "episodes").unwrap();
    assert_eq!(artifact::read::<Episode>(&bench.path("episodes")).unwrap(), std::slice::from_ref(&episode));
    let steps = episode.turns.len();
    assert_eq!(script.texts(), [vec!["start"], ["reply", "step"].repeat(steps), vec!["over"]].concat());
}

#[test]
fn watching_can_be_ended_between_two_steps() {
    let (episode, stopped, script) = watched(&[], 3);
    assert!(stopped);
    assert_eq!((episode.turns.len(), episode.end), (2, End::Limit));
    assert_eq!(script.texts(), ["start", "reply", "step", "reply", "step"]);
}

#[test]
fn thoughts_are_set_apart_from_the_action_and_refusals_say_why() {
    let prompt: crate::text::Prompt = serde_json::from_value(serde_json::json!({"style": "react"})).unwrap();
    let answer = |text: &str, finish| policy::Answer { text: text.to_owned(), ids: None, logps: None, finish };
    let said = reply(&prompt, &answer("Thought: a mug is hot\nAction: take mug", Finish::End));
    let Event::Reply { reasoning, refused, .. } = said else { panic!("{said:?}") };
    assert_eq!((reasoning.as_deref(), refused), (Some("a mug is hot"), None));
    let refused = |text: &str, finish| match reply(&prompt, &answer(text, finish)) {
        Event::Reply { refused, .. } => refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("take mug", Finish::End).as_deref(), Some("marks"));
    assert_eq!(refused("Thought: x\nAction: take mug", Finish::Length).as_deref(), Some("cut"));
}

#[test]
fn episodes_are_added_line_by_line_and_a_torn_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("mine.jsonl")).unwrap();
    let (first, ..) = play(&["look"], false);
    let (second, ..) = play(&["inventory", "look"], false);
    append(&path, &first).unwrap();
    append(&path, &second).unwrap();
    assert_eq!(artifact::read::<Episode>(&path).unwrap(), [first.clone(), second]);
    fs_err::write(&path, "{\"v\":1").unwrap();
    assert!(
        append(&path, &first).unwrap_err().to_string().ends_with("does not end with a whole line, expected episodes")
    );
    assert_eq!(fs_err::read_to_string(&path).unwrap(), "{\"v\":1");
}
