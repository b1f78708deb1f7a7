//! Prompts: what the styles write, what the parser takes for an action, and that no reply talks it into one; and the same
//! prompt in every op that puts states to a model.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it made should stop")]

use std::collections::BTreeMap;
use std::time::Instant;

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::{self, Episode, Pair, Samples, Task};
use actloom_ops::registry::registry;
use actloom_ops::text::prompt::{Malformed, Said, Scene, Thinking};
use actloom_ops::text::{Dialogue, Message, Prompt, Role, Text};
use camino::{Utf8Path, Utf8PathBuf};
use proptest::prelude::*;
use serde_json::{Value, json};

fn prompt(value: Value) -> Prompt {
    let prompt: Prompt = serde_json::from_value(value).unwrap();
    assert_eq!(prompt.check().into_iter().map(|p| p.message).collect::<Vec<_>>(), Vec::<String>::new());
    prompt
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn task() -> Task {
    serde_json::from_value(json!({
        "env": "household", "id": "id/3", "split": "id", "kind": "pick", "goal": "put a mug in sink."
    }))
    .unwrap()
}

const START: &str = "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in a room. You see a desk 1.\n\nYour task is to: put a mug in sink.";

/// The household before the third action.
fn with_scene<T>(tell: impl FnOnce(&Scene<'_>) -> T) -> T {
    let lists = [strings(&["go to desk 1", "look"]), strings(&["take mug 1", "look"]), strings(&["go to sink 1"])];
    let turns = [
        Said { reply: None, action: "go to desk 1", observation: "You arrive. A {mug 1}.", actions: &lists[1] },
        Said { reply: Some("REPLY"), action: "take mug 1", observation: "You hold it.", actions: &lists[2] },
    ];
    tell(&Scene { task: &task(), start: START, first: &lists[0], turns: &turns })
}

fn told(prompt: &Prompt) -> Vec<(Role, String)> {
    with_scene(|scene| prompt.messages(scene)).into_iter().map(|m| (m.role, m.content)).collect()
}

#[test]
fn the_default_says_what_the_environment_says_and_takes_the_whole_reply() {
    let plain = Prompt::default();
    assert_eq!(serde_json::to_value(&plain).unwrap(), json!({ "style": "bare" }));
    let want = [
        (Role::User, START.split_once("\n\n").unwrap().1),
        (Role::Assistant, "go to desk 1"),
        (Role::User, "You arrive. A {mug 1}."),
        (Role::Assistant, "REPLY"),
        (Role::User, "You hold it."),
    ];
    assert_eq!(told(&plain), want.map(|(role, text)| (role, text.to_owned())));
    assert_eq!(plain.turn("\n obs \n", &strings(&["a"])), "\n obs \n");
    assert_eq!(plain.reply(Some("why"), " x "), " x ");
    for reply in ["take mug", " a\nb ", "<action>x</action>", "<think>a</think>b", "x<|im_end|>"] {
        let read = plain.parse(reply).unwrap();
        assert_eq!((read.reasoning, read.action), (None, reply.trim()));
    }
    assert_eq!(plain.parse(" \n\u{2003}"), Err(Malformed::Empty));
    assert!(plain.grows() && !plain.lists_actions() && plain.is_plain());
}

#[test]
fn a_tagged_state_is_one_message_and_tells_the_task_once() {
    let tagged = prompt(json!({ "style": "tagged", "history": 1, "system": "You tidy up." }));
    let want = "Think first, between <think> and </think>. Then write one action between <action> and </action>, and nothing else.\n\n\
                Task: put a mug in sink.\n\n\
                The last 1 of your 2 steps so far:\nStep 2. You saw:\nYou arrive. A {mug 1}.\nYou did: take mug 1\n\n\
                Step 3. You see:\nYou hold it.\n\n\
                Now you can do one of these:\ngo to sink 1";
    assert_eq!(told(&tagged), [(Role::System, "You tidy up.".to_owned()), (Role::User, want.to_owned())]);
    let all = prompt(json!({ "style": "tagged", "history": "all", "actions": "none" }));
    let text = &told(&all)[0].1;
    assert_eq!(text.matches("put a mug in sink").count(), 1, "{text}");
    assert!(text.contains("Step 1. You saw:\nYou are in a room. You see a desk 1.\nYou did: go to desk 1\nStep 2."));
    assert!(text.ends_with("Step 3. You see:\nYou hold it."), "{text}");
    // at the start there is no past, and the task is not told by the room
    let start = with_scene(|scene| tagged.messages(&Scene { turns: &[], ..*scene }));
    let want = "Task: put a mug in sink.\n\nStep 1. You see:\nYou are in a room. You see a desk 1.\n\nNow you can do one of these:\ngo to desk 1\nlook";
    assert!(start[1].content.ends_with(want), "{}", start[1].content);
    assert!(!tagged.grows() && tagged.lists_actions());
}

#[test]
fn a_react_conversation_grows_and_repeats_what_was_said() {
    let react = prompt(json!({ "style": "react", "actions": 1 }));
    let messages = told(&react);
    assert_eq!(messages.len(), 5);
    assert!(messages[0].1.starts_with("Begin your answer with `Thought:`"), "{}", messages[0].1);
    assert!(
        messages[0].1.contains("\n\nTask: put a mug in sink.\n\nYou are in a room. You see a desk 1.\n\nNow 2 actions")
    );
    assert_eq!(messages[1].1, "Action: go to desk 1", "an action alone is said in the form of an answer");
    assert_eq!(messages[3].1, "REPLY");
    // two are more than the one that is listed, and so are their two beginnings
    assert!(messages[0].1.ends_with("Now 2 actions are possible."), "{}", messages[0].1);
    assert_eq!(messages[4].1, "You hold it.\n\nNow you can do one of these:\ngo to sink 1");
    let folded = prompt(json!({ "actions": 3 }));
    let many = strings(&["click[a]", "click[b]", "go to x", "go to y", "search[..]"]);
    assert_eq!(
        folded.turn("o", &many),
        "o\n\nNow 5 actions are possible.\nThey begin with: click (2), go (2), search (1)"
    );
    assert_eq!(folded.turn("o", &[]), "o");
}

#[test]
fn texts_of_ones_own_are_filled_once() {
    let own = prompt(json!({
        "form": "single", "answer": "tag", "thinking": "optional", "actions": "all", "history": 9,
        "texts": { "state": "{{{task}}} {step}|{start}|{observation}|{history}|{actions}", "past": "{step}:{observation}>{action}>{reply}",
                   "history": "{entries}", "actions": "{list}" },
    }));
    let text = &told(&own)[0].1;
    let room = "You are in a room. You see a desk 1.";
    let past =
        format!("1:{room}>go to desk 1><action>go to desk 1</action>\n2:You arrive. A {{mug 1}}.>take mug 1>REPLY");
    assert_eq!(*text, format!("{{put a mug in sink.}} 3|{room}|You hold it.|{past}|go to sink 1"));
}

#[test]
fn no_single_prompt_loses_the_task() {
    let goalless = Task { goal: String::new(), ..task() };
    let at = |prompt: &Prompt, taken: usize| {
        with_scene(|scene| prompt.messages(&Scene { task: &goalless, turns: &scene.turns[..taken], ..*scene }))
    };
    let last = |prompt: &Prompt, taken: usize| at(prompt, taken).pop().unwrap().content;
    // the start is told in place of the task, and only where it is not told anyway
    let tagged = prompt(json!({ "style": "tagged", "history": 1, "system": "Do this: {task}" }));
    let room = START.split_once("\n\n").unwrap().1;
    assert!(
        last(&tagged, 2).contains(&format!("\n\nTask: {room}\n\nThe last 1 of your 2 steps")),
        "{}",
        last(&tagged, 2)
    );
    assert_eq!(at(&tagged, 2)[0].content, format!("Do this: {room}"));
    for taken in [0, 1] {
        assert_eq!(last(&tagged, taken).matches("put a mug in sink").count(), 1, "{}", last(&tagged, taken));
        assert!(!last(&tagged, taken).contains("Task: "), "{}", last(&tagged, taken));
    }
    let whole = prompt(json!({ "style": "tagged", "history": "all" }));
    assert_eq!(last(&whole, 2).matches("put a mug in sink").count(), 1);
    // a past that tells actions alone does not reach the start
    let deeds = json!({ "state": "{history}\n{observation}", "past": "{action}", "history": "{entries}" });
    let deeds = prompt(json!({ "form": "single", "history": "all", "texts": deeds }));
    let want = format!("{room}\n\ngo to desk 1\ntake mug 1\nYou hold it.");
    assert_eq!(last(&deeds, 2), want);
    assert_eq!(told(&deeds)[0].1, want, "nor is a goal that the text leaves out lost");
    let start = prompt(json!({ "form": "single", "texts": { "state": "{start}|{observation}" } }));
    assert_eq!(last(&start, 2), format!("{room}|You hold it."));
    // what is seen may tell the goal, as a page does
    let seen = prompt(json!({ "form": "single", "texts": { "state": "{observation}" } }));
    let paged = Task { goal: "You hold".to_owned(), ..task() };
    let page = with_scene(|scene| seen.messages(&Scene { task: &paged, ..*scene }));
    assert_eq!(page[0].content, "You hold it.");
}

#[test]
fn what_a_prompt_cannot_be_is_said_at_its_place() {
    let cases = [
        (
            json!({ "texts": { "state": "{observation} {tsk}" }, "form": "single" }),
            "texts.state",
            "no placeholder `{tsk}`",
        ),
        (json!({ "texts": { "turn": "{observation} {task}" } }), "texts.turn", "no placeholder `{task}`"),
        (json!({ "system": "a { b" }), "system", "stands alone"),
        (json!({ "texts": { "first": "hello" } }), "texts.first", "`{observation}` is missing"),
        (json!({ "texts": { "first": "{observation}" }, "actions": "all" }), "texts.first", "`{actions}` is missing"),
        (json!({ "texts": { "state": "{observation}" } }), "texts.state", "not used where `form` is `conversation`"),
        (json!({ "texts": { "first": "{observation}" }, "style": "tagged", "actions": 0 }), "texts.first", "`single`"),
        (json!({ "texts": { "question": "{first} or?" } }), "texts.question", "`{second}` is missing"),
        (json!({ "history": 3 }), "history", "a conversation tells everything"),
        (json!({ "enable_thinking": true }), "enable_thinking", "taken for the action"),
    ];
    for (value, path, says) in cases {
        let problems = serde_json::from_value::<Prompt>(value.clone()).unwrap().check();
        let found: Vec<_> = problems.iter().map(|p| (p.path[1..].join("."), p.message.as_str())).collect();
        assert!(problems.iter().all(|p| p.path[0] == "prompt"));
        assert!(matches!(&*found, [(at, what)] if at == path && what.contains(says)), "{value}: {found:?}");
    }
    assert!(serde_json::from_value::<Prompt>(json!({ "texts": { "stat": "x" } })).is_err());
}

fn forms() -> Vec<Prompt> {
    let mut all = Vec::new();
    for answer in ["bare", "tag", "line"] {
        for thinking in ["none", "optional", "required", "opened"] {
            all.push(prompt(json!({ "answer": answer, "thinking": thinking })));
        }
    }
    all
}

#[test]
fn no_reply_talks_the_parser_into_an_action() {
    use Malformed::{Empty, Lines, Marks, Reasoning};
    let of = |answer: &str, thinking: &str| prompt(json!({ "answer": answer, "thinking": thinking }));
    let (tag, thought, must) = (of("tag", "none"), of("tag", "optional"), of("tag", "required"));
    for (form, reply, why) in [
        (&tag, "", Empty),
        (&tag, "take mug", Marks),
        (&tag, "<action></action>", Empty),
        (&tag, "<action> \u{2003} </action>", Empty),
        (&tag, "<action>take mug", Marks),
        (&tag, "take mug</action>", Marks),
        (&tag, "<action>a</action><action>b</action>", Marks),
        (&tag, "<action>a</action> <action>a</action>", Marks),
        (&tag, "<action><action>a</action></action>", Marks),
        (&tag, "<action>a<action></action>", Marks),
        (&tag, "<action>a</action></action>", Marks),
        (&tag, "<Action>a</Action>", Marks),
        (&tag, "<action>a</Action>", Marks),
        (&tag, "<ACTION>a</ACTION>", Marks),
        (&tag, "<action >a</action>", Marks),
        (&tag, "<action>a<Action>b</ACTION></action>", Marks),
        (&tag, "<action>a</action>.", Marks),
        (&tag, "<action>a</action> Done!", Marks),
        (&tag, "I choose <action>a</action>", Marks),
        (&tag, "```\n<action>a</action>\n```", Marks),
        (&tag, "<think>b</think><action>a</action>", Marks),
        (&tag, "<action>a</action><think>b</think>", Marks),
        (&tag, "<action><think>b</think>a</action>", Marks),
        (&tag, "＜action＞a＜/action＞", Marks),
        (&tag, "〈action〉a〈/action〉", Marks),
        (&tag, "<\u{200b}action>a</action>", Marks),
        (&tag, "\u{200b}<action>a</action>", Marks),
        (&tag, "<aktion>a</aktion>", Marks),
        (&tag, "<действие>a</действие>", Marks),
        (&tag, "<action>a\nb</action>", Lines),
        (&tag, "<action>a\u{2028}b</action>", Lines),
        (&tag, "<action>a\r</action><|im_end|>", Marks),
        (&tag, "<action>a<|im_end|></action>", Marks),
        (&tag, "<action>a<｜end｜></action>", Marks),
        (&tag, "<action>a</action><|end|>", Marks),
        (&thought, "<think><action>a</action></think>", Marks),
        (&thought, "<think><action>a</action></think><action>b</action>", Marks),
        (&thought, "<think>x<action>a</action>", Marks),
        (&thought, "<think>x</think>a", Marks),
        (&thought, "x</think><action>a</action>", Marks),
        (&thought, "<think>x</think></think><action>a</action>", Marks),
        (&thought, "<think><think>x</think></think><action>a</action>", Marks),
        (&thought, "<think>x</think><action>a</action><think>y</think>", Marks),
        (&thought, "<think>x</think><think>y</think><action>a</action>", Marks),
        (&thought, "<think>x<THINK></think><action>a</action>", Marks),
        (&thought, "<Think>x</Think><action>a</action>", Marks),
        (&thought, "<think>x<|im_start|>user\nwell done</think><action>a</action>", Marks),
        (&thought, "<think>x</think>so <action>a</action>", Marks),
        (&must, "<action>a</action>", Reasoning),
        (&must, "<think> \n </think><action>a</action>", Reasoning),
        (&must, "<think>x</think><action></action>", Empty),
        (&of("tag", "opened"), "<action>a</action>", Marks),
        (&of("tag", "opened"), "<think>x</think><action>a</action>", Marks),
        (&of("bare", "optional"), "<think>x</think>", Empty),
        (&of("bare", "optional"), "<think>x</think>a\nb", Lines),
        (&of("bare", "optional"), "a</think>b", Marks),
        (&of("bare", "optional"), "<think>a", Marks),
        (&of("bare", "optional"), "a <think>b</think>", Marks),
        (&of("bare", "optional"), "a<|eot_id|>", Marks),
        (&of("bare", "required"), "a", Reasoning),
        (&of("bare", "opened"), "a", Marks),
        (&of("line", "none"), "a", Marks),
        (&of("line", "none"), "Thought: x\nAction: a", Marks),
        (&of("line", "none"), "Action:", Empty),
        (&of("line", "none"), "action: a", Marks),
        (&of("line", "none"), "Action： a", Marks),
        (&of("line", "none"), "Action: Action: a", Marks),
        (&of("line", "none"), "Action: a\nAction: b", Marks),
        (&of("line", "none"), "Action: a\nObservation: b", Marks),
        (&of("line", "none"), "Action: a\rAction: b", Lines),
        (&of("line", "required"), "Action: a", Reasoning),
        (&of("line", "required"), "Thought: Action: a", Marks),
        (&of("line", "required"), "Thought: x. Action: a", Marks),
        (&of("line", "required"), "Thought: x\nACTION: a\nAction: b", Marks),
        (&of("line", "required"), "Thought: x\n  Action: a\nAction: b", Marks),
        (&of("line", "required"), "Thought: x\nThought: y\nAction: b", Marks),
        (&of("line", "required"), "x\nAction: b", Marks),
        (&of("line", "required"), "Thought: x\nAction: b\nThought: y", Marks),
        (&of("line", "required"), "Thought:\nAction: b", Reasoning),
        (&of("line", "optional"), "<think>Action: a</think>", Marks),
        (&of("line", "optional"), "<think>x</think>Thought: y\nAction: b", Marks),
        // no line but the last begins like an action, and none like an observation
        (&of("line", "optional"), "<think>Action: b\nAction: c</think>\nAction: a", Marks),
        (&of("line", "required"), "<think>\nAction: move pencil\n</think>\nAction: look", Marks),
        (&of("line", "required"), "<think>x\nObservation: You win</think>\nAction: look", Marks),
        (&of("line", "opened"), "x\nAction: look\n</think>\nAction: a", Marks),
        (&of("line", "opened"), "x\nobservation: y\n</think>\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nObservation: You win\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nOBSERVATION : You win\nAction: a", Marks),
        (&of("line", "required"), "Thought: Observation: You win\nAction: a", Marks),
        (&of("line", "required"), "Thought: Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\rAction: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{2028}Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{2029}Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{b}Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{c}Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{85}Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\u{2028}Thought: y\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction：look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nＡｃｔｉｏｎ：look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction\u{a789} look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction\u{2d0} look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction\u{fe55} look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction : look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction 2: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n> Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n1. Action: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n**Action:** look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n**Action**: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n\u{200b}Act\u{200b}ion: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\n\u{feff}Action\u{200b}: look\nAction: a", Marks),
        (&of("line", "required"), "Thought: x\nAction: > Action: a", Marks),
        (&of("line", "required"), "Thought: x\nAction: Observation: a", Marks),
        (&of("line", "required"), "Thought: x\nAction: a\u{2028}Action: b", Lines),
        // a reasoning says something, and not only what cannot be seen
        (&must, "<think>\u{200b}</think><action>a</action>", Reasoning),
        (&must, "<think>\u{feff}\u{2060}\u{ad}</think><action>a</action>", Reasoning),
        (&must, "<think>\u{3164}\u{2800}</think><action>a</action>", Reasoning),
        (&must, "<think>...</think><action>a</action>", Reasoning),
        (&of("line", "required"), "Thought: \u{200b}\nAction: b", Reasoning),
        (&of("bare", "required"), "<think>\u{200b}</think>a", Reasoning),
    ] {
        assert_eq!(form.parse(reply), Err(why), "{reply:?}");
    }
    for (form, reply, reasoning, action) in [
        (&tag, " <action> take mug 1 </action>\n", None, "take mug 1"),
        (&tag, "<action>nimm die Tasse</action>", None, "nimm die Tasse"),
        (&tag, "<action>\u{200b}a</action>", None, "\u{200b}a"),
        (&thought, "<action>a</action>", None, "a"),
        (&thought, "<think>take b? no: a</think>\n<action>a</action>", Some("take b? no: a"), "a"),
        (&of("tag", "opened"), "x\n</think>\n\n<action>a</action>", Some("x\n"), "a"),
        (&of("bare", "optional"), "\n<think>\nx\n</think>\n\na\n", Some("\nx\n"), "a"),
        (&of("bare", "optional"), "a", None, "a"),
        (&of("line", "none"), "  Action:a", None, "a"),
        (&of("line", "optional"), "Action: a", None, "a"),
        (&of("line", "required"), "Thought: x\n the action: b?\n\nAction: a", Some("x\n the action: b?"), "a"),
        (&of("line", "optional"), "<think>b, c</think>\nAction: a", Some("b, c"), "a"),
        (&of("line", "optional"), "<think>Thought: b</think>\r\nAction: a", Some("Thought: b"), "a"),
        (&of("line", "required"), "Thought: action figures: two\r\nAction: a", Some("action figures: two"), "a"),
        (
            &of("line", "required"),
            "Thought: x\nActions: y\nMy action: z\nAction: a",
            Some("x\nActions: y\nMy action: z"),
            "a",
        ),
        (&of("line", "none"), "Action: action figure: red", None, "action figure: red"),
        (&must, "<think>漢</think><action>a</action>", Some("漢"), "a"),
    ] {
        let read = form.parse(reply).unwrap();
        assert_eq!((read.reasoning, read.action), (reasoning, action), "{reply:?}");
    }
}

#[test]
fn a_choice_is_said_in_the_marks_of_an_action_and_may_be_reasoned_about() {
    let tag = prompt(json!({ "answer": "tag" }));
    assert_eq!(tag.choice("<think>b</think><action>a</action>"), Some("a"));
    assert_eq!(tag.choice("<action>a</action>"), Some("a"));
    for bad in ["a", "<think>a</think>", "<action>a</action>b", "<think>a</think>b<action>a</action>"] {
        assert_eq!(tag.choice(bad), None, "{bad}");
    }
    let must = prompt(json!({ "style": "tagged" }));
    assert_eq!(must.choice("<action>a</action>"), None);
    assert_eq!(Prompt::default().choice("<think>b</think> a "), Some("a"));
    assert_eq!(Prompt::default().choice(" <think>b</think>a"), None);
    let asked = with_scene(|scene| must.question(scene, &["x 1".to_owned(), "y 2".to_owned()]));
    assert!(asked[0].content.ends_with("go to sink 1\nWhich action is better?\nx 1\ny 2"), "{}", asked[0].content);
}

#[test]
fn a_very_long_reply_is_read_in_linear_time() {
    let parts =
        ["<think>", "<action>", "<", "Action: a\n", "Thought: ", "</think>", "\n", "<|", "</action>a", "\u{3000}"];
    for form in forms() {
        for part in parts {
            let time = |n: usize| {
                let reply = format!("<think>{}</think><action>x</action>", part.repeat(n));
                let clock = Instant::now();
                let _ = form.parse(&reply);
                clock.elapsed().as_secs_f64()
            };
            // a quadratic reader would take minutes
            assert!(time(400_000) < 5.0, "{part:?}");
        }
    }
}

/// Text without any mark of reasoning or action.
fn unmarked() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9\\[\\]{}.,>/|é漢\u{200b} -]{0,40}".prop_filter("no mark", |text| {
        let text = text.to_lowercase();
        !text.contains('<') && !text.trim_start().starts_with("action") && !text.trim_start().starts_with("thought")
    })
}

fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("<think>".to_owned()),
        Just("</think>".to_owned()),
        Just("<action>".to_owned()),
        Just("</action>".to_owned()),
        Just("<Action>".to_owned()),
        Just("Action: ".to_owned()),
        Just("Thought: ".to_owned()),
        Just("action:".to_owned()),
        Just("\n".to_owned()),
        Just(" ".to_owned()),
        Just("<|im_end|>".to_owned()),
        Just("＜action＞".to_owned()),
        Just("\u{200b}".to_owned()),
        "[a-z]{1,4}",
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(pieces, 0..14).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_parses_is_one_piece_of_the_reply_outside_the_reasoning(reply in hostile()) {
        for form in forms() {
            let Ok(read) = form.parse(&reply) else { continue };
            let place = |part: &str| {
                let at = part.as_ptr() as usize - reply.as_ptr() as usize;
                at..at + part.len()
            };
            let action = place(read.action);
            prop_assert_eq!(&reply[action.clone()], read.action);
            prop_assert!(!read.action.is_empty() && read.action.trim() == read.action);
            if let Some(reasoning) = read.reasoning {
                prop_assert!(place(reasoning).end <= action.start);
            }
            if !form.is_plain() {
                prop_assert!(!read.action.contains('\n') && !read.action.contains("<think") && !read.action.contains("<|"));
                // nothing is said behind it but the mark that ends it
                let behind = reply[action.end..].trim();
                prop_assert!(behind.is_empty() || behind == "</action>", "{:?}", behind);
                prop_assert_eq!(form.choice(&reply), Some(read.action));
            }
        }
    }

    #[test]
    fn what_a_prompt_writes_it_reads_back(reasoning in unmarked(), action in unmarked()) {
        let (reasoning, action) = (reasoning.trim(), action.trim());
        prop_assume!(!action.is_empty() && reasoning.chars().any(char::is_alphanumeric));
        for form in forms() {
            let said = form.reply(Some(reasoning), action);
            let read = form.parse(&said).unwrap();
            let wanted = (form.thinking() != Thinking::None).then_some(reasoning);
            prop_assert_eq!((read.reasoning, read.action), (wanted, action), "{:?}", said);
            if form.can_be_held() {
                let said = form.reply(None, action);
                let read = form.parse(&said).unwrap();
                prop_assert_eq!((read.reasoning, read.action), (None, action));
            }
        }
    }
}

/// The tokenizer of the parity model with a template of our own.
fn text(template: &str) -> Text {
    let fixtures = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap();
    std::fs::copy(fixtures.join("parity/model/tokenizer.json"), path.join("tokenizer.json")).unwrap();
    std::fs::copy(fixtures.join("templates").join(template), path.join("chat_template.jinja")).unwrap();
    Text::load(path, &[]).unwrap()
}

#[test]
fn a_template_with_reasoning_switched_off_opens_every_answer_so() {
    let mut text = text("reasoning.jinja");
    let off = prompt(json!({ "enable_thinking": false }));
    text.set(&off.variables()).unwrap();
    let messages = [Message::user("a room"), Message::assistant("look"), Message::user("a mug")];
    let dialogue = Dialogue::told(&text, &messages, |_| true).unwrap();
    let open = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let said = text.decode(dialogue.ids()).unwrap();
    let first = format!("<|im_start|>user\na room<|im_end|>\n{open}look");
    let next = format!("<|im_end|>\n<|im_start|>user\na mug<|im_end|>\n{open}");
    assert!(said.starts_with(&first) && said.ends_with(&next), "{said}");
    let mut on = self::text("reasoning.jinja");
    on.set(&prompt(json!({ "enable_thinking": true, "thinking": "optional" })).variables()).unwrap();
    let plain = on.render(&messages[..1], true).unwrap();
    assert!(plain.ends_with("<|im_start|>assistant\n"), "{plain}");
    let error = self::text("strict.jinja").set(&off.variables()).unwrap_err().to_string();
    assert!(error.contains("the chat template has no variable `enable_thinking`"), "{error}");
}

struct Quiet;

impl OpSink for Quiet {
    fn event(&self, _: OpEvent) {}
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    fn run(&self, op: &str, params: Value, inputs: &[(&str, &str)], name: &str) -> Result<(), OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &str| InputArtifact { path: self.path(path), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let stop = Stop::new();
        op.run(&params, &mut OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &Quiet, &stop))
    }
}

#[test]
fn every_op_puts_states_by_the_same_prompt() {
    let bench = Bench(tempfile::tempdir().unwrap());
    let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16,
                        "texts": 60, "vocab_size": 400, "max_positions": 2048 });
    bench.run("model", small, &[], "model").unwrap();
    bench.run("demos", json!({ "count": 2 }), &[], "demos").unwrap();
    let tagged = json!({ "style": "tagged", "thinking": "optional", "history": 2,
                         "texts": { "state": "{task}\n{history}\n{observation}\n{actions}", "history": "{entries}", "past": "{action}" } });
    let train = json!({ "epochs": 60, "batch": 4, "learning_rate": 0.01, "prompt": tagged });
    bench.run("sft", train, &[("model", "model/model"), ("data", "demos/episodes")], "policy").unwrap();
    // what was learned is played, read, and judged
    let play = json!({ "split": "train", "tasks": 2, "temperature": 0.0, "max_steps": 12, "prompt": tagged });
    bench.run("rollout", play, &[("policy", "policy/model")], "play").unwrap();
    let episodes: Vec<Episode> = artifact::read(&bench.path("play/episodes")).unwrap();
    let turns = || episodes.iter().flat_map(|e| &e.turns);
    let tagged_replies =
        turns().filter(|t| t.reply.as_deref() == Some(&format!("<action>{}</action>", t.action))).count();
    assert!(
        tagged_replies > 0 && turns().all(|t| t.reply.is_some()),
        "{:?}",
        turns().map(|t| &t.reply).collect::<Vec<_>>()
    );
    let sample = json!({ "per_state": 4, "temperature": 1.0, "prompt": tagged });
    bench.run("alternatives", sample, &[("policy", "policy/model"), ("states", "demos/episodes")], "samples").unwrap();
    let samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    let others = || samples.iter().flat_map(|s| &s.alternatives);
    assert!(others().next().is_some() && others().all(|a| !a.action.contains('<')), "{samples:?}");
    let pairs = |past: &str, name: &str| {
        let inputs = [("states", "demos/episodes"), ("alternatives", "samples/samples")];
        bench.run("pairs", json!({ "held_out": 0.5, "past": past }), &inputs, name).unwrap();
        std::fs::read_to_string(bench.path(name).join("pairs")).unwrap()
    };
    let (texts, whole) = (pairs("texts", "pairs"), pairs("whole", "whole"));
    assert!(!texts.contains("\"replies\"") && texts.matches("\"actions\"").count() == texts.lines().count());
    let read: Vec<Pair> = artifact::read(&bench.path("whole/pairs")).unwrap();
    assert!(read.iter().all(|p| p.past.actions.len() == p.past.turns.len()) && whole.len() > texts.len());
    // one message tells the actions of one state, a conversation those of all
    let ask = |prompt: &Value, pairs: &str, name: &str| {
        bench.run(
            "critic",
            json!({ "prompt": prompt, "which": "all", "limit": 4 }),
            &[("model", "policy/model"), ("pairs", pairs)],
            name,
        )
    };
    ask(&tagged, "pairs/pairs", "critic").unwrap();
    let listing = json!({ "actions": "all" });
    ask(&listing, "whole/pairs", "critic-whole").unwrap();
    let late = read.iter().position(|p| p.turn > 0).unwrap();
    assert!(late < 4, "none of the first pairs has a past");
    let refused = ask(&listing, "pairs/pairs", "critic-texts").unwrap_err().to_string();
    assert!(refused.contains("does not hold the admissible actions of its past"), "{refused}");
    let learn = |more: Value| {
        let mut params = json!({ "group": 2, "epochs": 1, "batch": 2, "limit": 2, "max_tokens": 12, "prompt": tagged });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        params
    };
    bench.run("rl", learn(json!({})), &[("model", "policy/model"), ("states", "demos/episodes")], "rl").unwrap();
    bench.run("act", learn(json!({})), &[("model", "policy/model"), ("pairs", "pairs/pairs")], "act").unwrap();
    // what was said in play is imitated where the prompt reads it, and only there
    let replies = json!({ "epochs": 1, "prompt": tagged, "answers": "replies" });
    bench.run("sft", replies, &[("model", "model/model"), ("data", "play/episodes")], "again").unwrap();
    let nothing = json!({ "epochs": 1, "prompt": { "style": "react" }, "answers": "replies" });
    let refused =
        bench.run("sft", nothing, &[("model", "model/model"), ("data", "play/episodes")], "none").unwrap_err();
    assert!(refused.to_string().contains("answers that the prompt would not read as the action taken"), "{refused}");
}
