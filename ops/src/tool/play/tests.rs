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
            Some(Event::Hint { action: Some(action), .. }) if line == "hint!" => action.clone(),
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
    let whole = serde_json::to_string(&first).unwrap();
    for torn in ["{\"v\":1", &whole, &format!("{whole}\n{{\"v\":1")] {
        fs_err::write(&path, torn).unwrap();
        let said = append(&path, &first).unwrap_err().to_string();
        assert!(said.ends_with("does not end with a whole line, expected episodes"), "{said}");
        assert_eq!(fs_err::read_to_string(&path).unwrap(), torn);
    }
}

#[test]
fn what_holds_something_else_than_episodes_is_refused_and_what_is_new_is_not_made_yet() {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(dir.path().join("mine.jsonl")).unwrap();
    fits(&path).unwrap();
    assert!(!path.exists());
    let (episode, ..) = play(&["look"], false);
    let other = serde_json::to_string(&episode).unwrap().replacen("\"v\":", "\"v\":9", 1);
    for (text, says) in [
        ("# notes\n", "holds something else than episodes"),
        ("{\"messages\":[]}\n", "holds something else than episodes"),
        ("\n", "holds something else than episodes"),
        (&format!("{other}\n"), "has schema version 9"),
    ] {
        fs_err::write(&path, text).unwrap();
        let said = fits(&path).unwrap_err().to_string();
        assert!(said.contains(says) && said.contains("mine.jsonl"), "{said}");
    }
    fs_err::write(&path, "").unwrap();
    fits(&path).unwrap();
    let folder = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    assert!(fits(&folder).unwrap_err().to_string().contains("no regular file"));
    assert!(matches!(fits(&folder.join("no/such/folder")), Err(Wrong::World(_))));
}

/// Splits of listed tasks, as WebShop's and ScienceWorld's are: ids do not name their split.
struct Listed(Box<dyn crate::env::Suite>);

impl crate::env::Suite for Listed {
    fn name(&self) -> &'static str {
        "listed"
    }

    fn splits(&self) -> Vec<String> {
        ["one", "two"].map(str::to_owned).to_vec()
    }

    fn count(&self, split: &str) -> Result<Option<usize>, crate::env::EnvError> {
        Ok(Some(if split == "one" { 2 } else { 5 }))
    }

    fn open(&self, split: &str, index: usize, seed: u64) -> Result<Box<dyn crate::env::Env>, crate::env::EnvError> {
        self.0.open(if split == "one" { "id" } else { "ood" }, index, seed)
    }

    fn reopen(&self, task: &Task) -> Result<Box<dyn crate::env::Env>, crate::env::EnvError> {
        self.0.reopen(task)
    }
}

#[test]
fn an_id_is_looked_for_in_all_splits_unless_one_is_asked_for() {
    let suite = Listed(crate::env::WorldSettings::default().open(None).unwrap());
    let find = |split, task| open::find(&suite, split, task, 5).map(|(env, index)| (env.task().id.clone(), index));
    assert_eq!(find(None, "ood/4").unwrap(), ("tiny/ood/4".to_owned(), 4));
    assert_eq!(find(Some("two"), "ood/4").unwrap().1, 4);
    assert_eq!(find(None, "1").unwrap().0, "tiny/id/1");
    let said = |split, task| find(split, task).unwrap_err().to_string();
    assert_eq!(said(Some("one"), "ood/4"), "the split `one` of `listed` has no task `ood/4`, it is in `two`");
    assert_eq!(said(None, "ood/5"), "no split of `listed` has a task `ood/5`");
    assert_eq!(said(Some("one"), "ood/5"), "the split `one` of `listed` has no task `ood/5`");
    let named = refused(&household("ood/3"));
    assert_eq!(named.0, "the split `id` of `household` has no task `ood/3`, it is in `ood`");
    assert!(named.1.contains("`--split ood`"), "{}", named.1);
}

#[test]
fn a_persons_game_has_an_end_and_remembers_so_many_steps_only() {
    let mut lines = vec!["look"; STEPS + 1];
    lines.extend(["/undo"; UNDO + 1]);
    lines.extend(["/restart", "look"]);
    let (episode, _, script) = play(&lines, true);
    let count = |name: &str| script.texts().iter().filter(|text| **text == name).count();
    assert_eq!((count("step"), count("over"), count("undone"), count("mistake")), (STEPS + 1, 1, UNDO, 2));
    assert!(matches!(&script.seen[STEPS + 1], Event::Over { end: End::Limit, steps: STEPS, .. }));
    let said = "only the last 100 actions can be taken back; `/restart` takes back all";
    assert!(script.seen.contains(&Event::Mistake { message: said.to_owned() }));
    assert_eq!(episode, play(&["look"], true).0);
}

#[test]
fn a_command_with_too_much_after_it_is_told_what_belongs_there() {
    for (line, says) in [
        ("/hint foo", "`/hint foo` cannot be, expected nothing after `/hint`"),
        ("/do", "`/do` cannot be, expected a text after `/do`"),
    ] {
        assert_eq!(play(&[line], false).1.unwrap(), says);
    }
}

#[test]
fn an_expert_that_knows_one_way_says_how_to_get_back_to_it() {
    assert!(lost("scienceworld").unwrap().contains("`/undo` or `/restart`"));
    assert_eq!((lost("household"), lost("webshop"), lost("command")), (None, None, None));
}

#[test]
fn a_catalogue_or_a_model_is_found_in_the_folder_that_export_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
    let params = serde_json::json!({"synthetic": {"products": 60, "goals": 20}});
    let bench = Bench::new();
    fs_err::create_dir(bench.path("scratch")).unwrap();
    let params = serde_json::from_value(params).unwrap();
    bench.run(&crate::op::catalogue::Catalogue, &params, [], "catalogue").unwrap();
    let shop = |data: Option<Utf8PathBuf>, task: &str| Asked {
        env: "webshop".to_owned(),
        split: None,
        data,
        ..household(task)
    };
    let made = bench.path("catalogue");
    let above = made.parent().unwrap().to_owned();
    let (episode, mistake) =
        person(open(&shop(Some(above), "goal/0")), &mut Script::new(&["1", "look"], true)).unwrap();
    assert_eq!((episode.task.id.as_str(), episode.task.split.as_str(), mistake), ("goal/0", "test", None));
    let mut script = Script::new(&["/actions", "search[<your query>]"], false);
    let (_, mistake) = person(open(&shop(Some(made), "0")), &mut script).unwrap();
    assert_eq!(mistake.unwrap(), "`<your query>` stands for words of yours: type `search[words]`");
    let (message, help) = refused(&shop(None, "0"));
    assert!(message.contains("no catalogue") && help.contains("`--data DIR`") && help.contains("`actloom export`"));
    let mut model = Model {
        path: folder.clone(),
        device: DeviceRequest::Cpu,
        prompt: Vec::new(),
        temperature: None,
        max_tokens: None,
        decoding: None,
    };
    assert_eq!(model.found(), folder);
    fs_err::create_dir(folder.join("model")).unwrap();
    fs_err::write(folder.join("model/config.json"), "{}").unwrap();
    assert_eq!(model.found(), folder.join("model"));
    model.path = folder.join("model");
    assert_eq!(model.found(), folder.join("model"));
}
