//! Imports of files that are good, odd and broken.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::artifact::End;
use crate::eval::scores::tests::episode;
use crate::op::table::tests::Bench;

fn params(more: Value) -> Params {
    let mut params = json!({"env": "household"});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(params).unwrap()
}

fn one(item: Value, more: Value) -> Result<Option<Episode>, String> {
    read(item, &params(more), 0, &mut Tally::default())
}

/// A run over files of these contents.
fn run(files: &[&str], more: Value) -> Result<Vec<Episode>, String> {
    let bench = Bench::new();
    let inputs: Vec<_> = (0..files.len()).map(|i| bench.input(&format!("{i}.jsonl"), "", &[])).collect();
    for (input, text) in inputs.iter().zip(files) {
        fs_err::write(&input.path, text).unwrap();
    }
    let folder = bench.path("").to_string();
    bench
        .run(&Import, &params(more), [("data", inputs)], "episodes")
        .map_err(|e| e.to_string().replace(&folder, ""))?;
    Ok(artifact::read(&bench.path("episodes")).unwrap())
}

fn talk() -> Value {
    json!({"messages": [
        {"role": "system", "content": "you are in a house"},
        {"role": "user", "content": "a kitchen. your task is to: look"},
        {"role": "assistant", "content": "look"},
        {"role": "user", "content": "a mug"},
        {"role": "assistant", "content": " take mug "},
        {"role": "user", "content": "you take the mug"},
    ]})
}

#[test]
fn messages_become_observations_and_actions_in_turn() {
    let episode = one(talk(), json!({})).unwrap().unwrap();
    assert_eq!(episode.start, "a kitchen. your task is to: look");
    let turns: Vec<_> = episode.turns.iter().map(|t| (t.action.as_str(), t.observation.as_str())).collect();
    assert_eq!(turns, [("look", "a mug"), ("take mug", "you take the mug")]);
    assert_eq!((episode.success, episode.score, episode.end), (true, 1.0, End::Done));
    assert_eq!((episode.task.id.as_str(), episode.task.split.as_str()), ("imported/0", "train"));
}

#[test]
fn both_shapes_say_the_same() {
    let shared = json!({"conversations": [
        {"from": "human", "value": "a kitchen. your task is to: look"},
        {"from": "gpt", "value": "look"},
        {"from": "human", "value": "a mug"},
        {"from": "gpt", "value": " take mug "},
        {"from": "human", "value": "you take the mug"},
    ]});
    assert_eq!(one(shared, json!({})), one(talk(), json!({})));
}

#[test]
fn examples_at_the_beginning_are_passed_over() {
    let mut item = talk();
    let messages = item["messages"].as_array_mut().unwrap();
    messages.insert(1, json!({"role": "user", "content": "say OK"}));
    messages.insert(2, json!({"role": "assistant", "content": "OK"}));
    assert_eq!(one(item.clone(), json!({"skip": 1})), one(talk(), json!({})));
    item["messages"][2]["weight"] = 0.into();
    assert_eq!(one(item.clone(), json!({})), one(talk(), json!({})), "what is marked is passed over too");
    let why = one(item.clone(), json!({"skip": 3})).unwrap_err();
    assert_eq!(why, "it has no reply to learn from: 3 replies, of which 3 are passed over");
    item["messages"][2]["weight"] = 1.into();
    item["messages"][4]["weight"] = 0.into();
    let why = one(item, json!({})).unwrap_err();
    assert_eq!(why, "message 5: a reply that is not to be learned stands after one that is");
}

#[test]
fn texts_before_a_reply_are_one_observation_and_labels_are_taken_off() {
    let item = json!({"conversations": [
        {"from": "human", "value": "You are in a house."}, {"from": "human", "value": "Observation: a mug"},
        {"from": "gpt", "value": "look"},
    ]});
    let episode = one(item, json!({"strip": ["Observation:"]})).unwrap().unwrap();
    assert_eq!((episode.start.as_str(), episode.turns[0].observation.as_str()), ("You are in a house.\na mug", ""));
}

#[test]
fn task_and_outcome_are_taken_from_the_fields_that_there_are() {
    let with = |more: Value| {
        let mut item = talk();
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        one(item, json!({})).map(Option::unwrap)
    };
    let full = with(json!({
        "task": {"id": "id/7", "kind": "look", "seed": 3, "split": "id"}, "goal": "look.", "reward": 0.5,
    }));
    let full = full.unwrap();
    assert_eq!((full.task.id.as_str(), full.task.kind.as_str(), full.task.seed), ("id/7", "look", Some(3)));
    assert_eq!((full.task.goal.as_str(), full.task.split.as_str()), ("look.", "id"));
    assert_eq!((full.success, full.score, full.turns[1].reward, full.turns[0].reward), (false, 0.5, 0.5, 0.0));
    let lost = with(json!({"id": 12, "success": 0})).unwrap();
    assert_eq!((lost.task.id.as_str(), lost.success, lost.score), ("12", false, 0.0));
    let named = with(json!({"id": "mine", "task": "put it away"})).unwrap();
    assert_eq!((named.task.id.as_str(), named.task.goal.as_str()), ("mine", "put it away"));
    assert_eq!(with(json!({"task": "put it away"})).unwrap().task.id, "imported/0");
    assert_eq!(with(json!({"task": 7})).unwrap().task.id, "7");
    assert_eq!(with(json!({"task": 7, "id": "a"})).unwrap().task.id, "a");
    assert_eq!(with(json!({"task": "a", "goal": "b"})).unwrap().task.goal, "b");
    assert_eq!(with(json!({"score": 1.5})).unwrap_err(), "`score` is 1.5, expected 0 to 1");
    assert_eq!(with(json!({"success": "yes"})).unwrap_err(), "`success` is `\"yes\"`, expected true or false");
    assert!(with(json!({"task": {"env": "webshop"}})).unwrap_err().contains("expected `household`"));
    assert!(with(json!({"task": {"gaol": "x"}})).unwrap_err().starts_with("`task` has `gaol`"));
    assert_eq!(with(json!({"goal": ["x"]})).unwrap_err(), "`goal` is `[\"x\"]`, expected a text");
}

#[test]
fn replies_without_an_action_are_refused_dropped_or_kept() {
    let good = talk().to_string();
    let mut bad = talk();
    bad["messages"][4]["content"] = "  ".into();
    let both = format!("{good}\n\n{bad}\n");
    let error = run(&[&good, &both], json!({})).unwrap_err();
    assert_eq!(error, "cannot import line 3 of `1.jsonl`: message 5: the reply says no action (empty): `  `");
    assert_eq!(run(&[&both], json!({"on_malformed": "drop"})).unwrap().len(), 1);
    let kept = run(&[&both], json!({"on_malformed": "keep"})).unwrap();
    assert_eq!((kept.len(), kept[1].turns[1].action.as_str(), kept[1].turns.len()), (2, "", 2));
    let error = run(&[&bad.to_string()], json!({"on_malformed": "drop"})).unwrap_err();
    assert_eq!(error, "nothing was imported; 1 episodes were dropped");
}

#[test]
fn our_episodes_are_held_against_their_schema() {
    let ours = episode("id/0", "look", true, &[("look", true, "a mug")]);
    let line = serde_json::to_string(&ours).unwrap();
    assert_eq!(run(&[&line], json!({})).unwrap(), std::slice::from_ref(&ours));
    let wrong = |change: &dyn Fn(&mut Episode)| {
        let mut episode = ours.clone();
        change(&mut episode);
        one(serde_json::to_value(&episode).unwrap(), json!({})).unwrap_err()
    };
    assert_eq!(wrong(&|e| e.v = 7), "schema version is 7, expected 1");
    assert_eq!(wrong(&|e| e.score = 2.0), "`score` is 2, expected 0 to 1");
    assert_eq!(wrong(&|e| e.task.env = "webshop".to_owned()), "its task is of `webshop`, expected `household`");
    assert_eq!(wrong(&|e| e.task.id = String::new()), "its task has no `id`");
    let mut odd = serde_json::to_value(&ours).unwrap();
    odd["messages"] = json!([]);
    assert!(one(odd, json!({})).unwrap_err().starts_with("it has several of"));
}

#[test]
fn one_array_is_read_as_lines_are() {
    let array = format!("\u{feff} [\n{},\n{}\n]", talk(), talk());
    assert_eq!(run(&[&array], json!({})), run(&[&format!("{}\n{}", talk(), talk())], json!({})));
    let error = run(&["[{}, {\"messages\": 3}]"], json!({})).unwrap_err();
    assert_eq!(error, "cannot import entry 1 of `0.jsonl`: expected one of `turns`, `messages` and `conversations`");
}

#[test]
fn what_is_no_conversation_is_refused_by_message() {
    let wrong = |messages: Value| one(json!({ "messages": messages }), json!({})).unwrap_err();
    let user = json!({"role": "user", "content": "a mug"});
    let agent = json!({"role": "assistant", "content": "look"});
    assert_eq!(wrong(json!([agent])), "message 1: a reply to nothing, expected an observation");
    assert_eq!(
        wrong(json!([user, agent, agent])),
        "message 3: a second reply in a row, expected an observation after message 2"
    );
    assert_eq!(wrong(json!([user])), "it has no reply to learn from: 0 replies, of which 0 are passed over");
    let robot = json!({"role": "robot", "content": "x"});
    assert_eq!(
        wrong(json!([user, robot])),
        "message 2: `role` is `robot`, expected `system`, `user`, `assistant`, `tool`, `function`, `observation`"
    );
    let parts = |parts: Value| wrong(json!([user, {"role": "assistant", "content": parts}]));
    let image = json!([{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    assert_eq!(parts(image), "message 2: part 2 of `content` is `image_url`, expected `text`");
    assert_eq!(parts(json!(["look"])), "message 2: part 1 of `content` has no `type`, expected `text`");
    assert_eq!(parts(json!([{"type": "text"}])), "message 2: part 1 of `content` has no text, expected `text`");
    assert_eq!(wrong(json!([user, {"role": "assistant", "content": null}])), "message 2: `content` is no text");
    let call = json!({"role": "assistant", "content": "", "tool_calls": [1]});
    assert!(wrong(json!([user, call])).starts_with("message 2: `tool_calls` is not supported"));
    assert!(wrong(json!([user, agent, {"role": "system", "content": ""}])).starts_with("message 3: a system text"));
    assert!(wrong(json!({})).starts_with("expected a list of messages"));
}

#[test]
fn contents_in_parts_are_joined_and_tools_speak_for_the_environment() {
    let mut item = talk();
    item["messages"][1]["content"] =
        json!([{"type": "text", "text": "a kitchen."}, {"type": "text", "text": "your task is to: look"}]);
    let episode = one(item.clone(), json!({})).unwrap().unwrap();
    assert_eq!(episode.start, "a kitchen.\nyour task is to: look");
    for role in ["tool", "function", "observation"] {
        item["messages"][3]["role"] = role.into();
        assert_eq!(one(item.clone(), json!({})).unwrap().unwrap(), episode, "{role}");
    }
    let shared = json!({"conversations": [
        {"from": "human", "value": "a room"}, {"from": "gpt", "value": "look"}, {"from": "observation", "value": "a mug"},
    ]});
    assert_eq!(one(shared, json!({})).unwrap().unwrap().turns[0].observation, "a mug");
}

#[test]
fn the_goal_is_what_the_first_observation_tells() {
    let goal = |start: &str, more: Value| {
        let mut item = json!({"messages": [
            {"role": "user", "content": "Your task is to: say OK"}, {"role": "assistant", "content": "OK"},
            {"role": "user", "content": start}, {"role": "assistant", "content": "look"},
            {"role": "user", "content": "Your task is to: go on"}, {"role": "assistant", "content": "look"},
        ]});
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        one(item, json!({"skip": 1})).unwrap().unwrap().task.goal
    };
    let none = json!({});
    let house = "You are in a room.\n\nYour task is to: put a pencil in desk.\n\nGo.";
    assert_eq!(goal(house, none.clone()), "put a pencil in desk.");
    assert_eq!(goal(house, json!({"goal": "tidy up", "task": "pick"})), "put a pencil in desk.");
    let examples = format!("An example.\nYour task is to: heat an egg.\n\nHere is yours.\r\n {house}");
    assert_eq!(goal(&examples, none.clone()), "put a pencil in desk.", "the last one counts");
    let page = "WebShop [SEP] Instruction: [SEP] i want a red mug, below 30 dollars [SEP] Search";
    assert_eq!(goal(page, none.clone()), "i want a red mug, below 30 dollars");
    let lab = "Task description:\nYour task is to boil water. Focus first.\n\nYou are in a hall.";
    assert_eq!(goal(lab, none.clone()), "Your task is to boil water. Focus first.");
    for (start, wanted) in [("a room", ""), ("Your task is to:", ""), ("WebShop [SEP] Instruction: [SEP] a", "")] {
        assert_eq!(goal(start, none.clone()), wanted, "{start}");
        assert_eq!(goal(start, json!({"task": "tidy up"})), "tidy up", "{start}");
        assert_eq!(goal(start, json!({"task": "tidy up", "goal": "clean"})), "clean", "{start}");
        assert_eq!(goal(start, json!({"task": {"goal": "sort"}, "goal": "clean"})), "sort", "{start}");
    }
}

#[test]
fn rewards_outside_their_range_and_outcomes_that_disagree_are_refused() {
    let with = |fields: Value, scale: Value| {
        let mut item = talk();
        item.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        run(&[&item.to_string()], scale).map(|e| (e[0].success, e[0].score, e[0].turns[1].reward))
    };
    let plain = json!({});
    for reward in [json!(-1), json!(-3), json!(30), json!(1.0001), json!(-0.5)] {
        for more in [json!({"reward": reward}), json!({"reward": reward, "score": 0.5, "success": false})] {
            assert_eq!(
                with(more, plain.clone()).unwrap_err(),
                format!(
                    "cannot import line 1 of `0.jsonl`: `reward` is {reward}, expected 0 to 1; `scale` says what is \
                     earned for a perfect episode"
                )
            );
        }
    }
    let hundred = json!({"scale": 100});
    assert_eq!(with(json!({"reward": 87.5}), hundred.clone()), Ok((false, 0.875, 0.875)));
    assert_eq!(with(json!({"reward": 100}), hundred.clone()), Ok((true, 1.0, 1.0)));
    assert_eq!(with(json!({"reward": 0}), hundred.clone()), Ok((false, 0.0, 0.0)));
    assert_eq!(with(json!({"reward": 50, "score": 1}), hundred.clone()), Ok((true, 1.0, 0.5)));
    let error = with(json!({"reward": 101}), hundred.clone()).unwrap_err();
    assert!(error.ends_with(": `reward` is 101, expected 0 to 100, which is `scale`"), "{error}");
    let error = with(json!({"score": 87.5}), hundred).unwrap_err();
    assert!(error.ends_with(": `score` is 87.5, expected 0 to 1"), "{error}");
    for (fields, says) in [
        (json!({"success": true, "score": 0}), "`success` is true and `score` is 0"),
        (json!({"success": true, "reward": 0.0}), "`success` is true and `reward` is 0"),
        (json!({"success": false, "score": 1}), "`success` is false and `score` is the most there is"),
        (json!({"success": 0, "reward": 1}), "`success` is false and `reward` is the most there is"),
    ] {
        let error = with(fields, plain.clone()).unwrap_err();
        assert!(error.ends_with(&format!(": {says}, expected fields that agree")), "{error}");
    }
    assert_eq!(with(json!({"success": true, "score": 0.6}), plain.clone()), Ok((true, 0.6, 0.0)));
    assert_eq!(with(json!({"success": false}), plain.clone()), Ok((false, 0.0, 0.0)));
    assert_eq!(with(plain.clone(), plain.clone()), Ok((true, 1.0, 0.0)));
    let of = |scale: f64| Import.check(&Params { scale, ..params(json!({})) });
    assert!(of(100.0).is_empty());
    for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(of(scale)[0].path, ["scale"], "{scale}");
    }
}

#[test]
fn files_that_hold_nothing_or_are_no_utf8_are_refused_in_words_that_fit() {
    for nothing in ["", " \n\n", "[]", "\u{feff}"] {
        let error = run(&[nothing], json!({"on_malformed": "drop"})).unwrap_err();
        assert_eq!(error, "`0.jsonl` holds no item, expected JSON lines or one JSON array");
    }
    let error = run(&["", "[]"], json!({})).unwrap_err();
    assert_eq!(error, "`0.jsonl`, `1.jsonl` hold no item, expected JSON lines or one JSON array");
    let bytes = |bytes: &[u8]| {
        let bench = Bench::new();
        let input = bench.input("x", "", &[]);
        fs_err::write(&input.path, bytes).unwrap();
        let error = bench.run(&Import, &params(json!({})), [("data", vec![input])], "episodes").unwrap_err();
        error.to_string().replace(&bench.path("").to_string(), "")
    };
    let line = talk().to_string();
    let latin = [line.as_bytes(), b"\n\"caf\xe9\"\n"].concat();
    let why = "its byte 5 is `0xe9`, which is no UTF-8: it may be Latin-1, expected UTF-8";
    assert_eq!(bytes(&latin), format!("cannot import line 2 of `x`: {why}"));
    assert_eq!(bytes(b"[\n\n\"caf\xe9\"]"), format!("cannot import line 3 of `x`: {why}"));
    for (mark, wide) in
        [(true, u16::to_le_bytes as fn(u16) -> [u8; 2]), (true, u16::to_be_bytes), (false, u16::to_le_bytes)]
    {
        let text = if mark { format!("\u{feff}{line}\n") } else { format!("{line}\n") };
        let error = bytes(&text.encode_utf16().flat_map(wide).collect::<Vec<u8>>());
        assert!(
            error.starts_with("cannot import line 1 of `x`: it ") && error.contains("UTF-16, expected UTF-8")
                || error.ends_with("zero bytes, as UTF-16 does, expected UTF-8"),
            "{error}"
        );
    }
}

#[test]
fn a_line_that_nests_too_deep_is_an_error() {
    let deep = "[".repeat(100_000);
    assert!(run(&[&deep], json!({})).unwrap_err().contains("recursion limit"));
    let inside = format!("{{\"messages\": {deep}");
    assert!(run(&[&inside], json!({})).unwrap_err().contains("line 1"));
}

proptest! {
    /// Whatever a file holds, it is read or refused; bytes that are no text too.
    #[test]
    fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bench = Bench::new();
        let input = bench.input("x", "", &[]);
        fs_err::write(&input.path, bytes).unwrap();
        let run = bench.run(&Import, &params(json!({})), [("data", vec![input])], "episodes");
        prop_assert!(run.is_err());
    }

    /// A valid file, cut or with a piece exchanged.
    #[test]
    fn cut_and_changed_conversations_are_read_or_refused(
        at in 0.0..1.0f64, piece in "[\\[\\]{}\",:a0-]{0,6}", cut: bool, skip in 0..4usize,
    ) {
        let mut text = talk().to_string();
        let at = (at * text.len() as f64) as usize;
        if cut { text.truncate(at) } else { text.replace_range(at..at + 1, &piece) }
        if let Ok(episodes) = run(&[&text], json!({ "skip": skip, "on_malformed": "keep" })) {
            prop_assert!(episodes.iter().all(|e| !e.turns.is_empty()));
        }
    }

    /// No shape of a message makes a panic, and every import has as many turns as replies that were not passed over.
    #[test]
    fn any_order_of_speakers_is_read_or_refused(
        who in proptest::collection::vec((0..4usize, any::<bool>()), 0..12), skip in 0..4usize,
    ) {
        let roles = ["system", "user", "assistant", "assistant"];
        let messages: Vec<Value> = who
            .iter()
            .map(|&(who, marked)| json!({"role": roles[who], "content": "x", "weight": u8::from(!marked)}))
            .collect();
        let replies = who.iter().filter(|(who, _)| *who > 1).count();
        let mut tally = Tally::default();
        if let Ok(Some(episode)) = read(json!({ "messages": messages }), &params(json!({"skip": skip})), 0, &mut tally) {
            prop_assert_eq!(episode.turns.len() + tally.skipped, replies);
            prop_assert!(tally.skipped >= skip);
        }
    }
}
