//! The critic: choices by text or number, read strictly; and the intervention test, against a stand-in whose reasoning is
//! known.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it made should stop")]

mod trial;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use actloom_engine::op::DeviceRequest;
use actloom_ops::artifact::{self, Pair, Past, SCHEMA_VERSION};
use actloom_ops::eval::scores::Scores;
use actloom_ops::eval::stats::{self, Interval, Method};
use actloom_ops::eval::table::{Labelled, Layout, Spread, Table};
use actloom_ops::model;
use actloom_ops::op::act::judge;
use actloom_ops::op::critic::Answered;
use actloom_ops::op::exam::Ended;
use actloom_ops::policy::{self, Ask, Policy, Sampling};
use actloom_ops::reward::Reward;
use actloom_ops::rng::Rng;
use actloom_ops::text::{Dialogue, Prompt, Text};
use candle_core::Device;
use serde_json::{Value, json};
use trial::{Bench, Metrics};

fn prompt(value: Value) -> Prompt {
    let prompt: Prompt = serde_json::from_value(value).unwrap();
    assert!(prompt.check().is_empty(), "{:?}", prompt.check());
    prompt
}

fn shown() -> [String; 2] {
    ["open fridge 1".to_owned(), "go to desk 2".to_owned()]
}

fn pair(number: usize, right: &str, wrong: &str, expert: usize) -> Pair {
    let task = json!({ "env": "household", "id": "id/3", "split": "id", "kind": "pick", "goal": "put a mug in sink." });
    let mut shown = [right.to_owned(), wrong.to_owned()];
    if expert == 1 {
        shown.swap(0, 1);
    }
    Pair {
        v: SCHEMA_VERSION,
        task: serde_json::from_value(task).unwrap(),
        episode: number,
        turn: 0,
        past: Past::of_texts("You are in a room.".to_owned(), Vec::new()),
        actions: shown.to_vec(),
        shown,
        expert,
        held_out: true,
    }
}

#[test]
fn a_choice_by_number_is_one_number_and_nothing_else() {
    let chosen = |form: Value, answer: &str| {
        let form = prompt(form);
        form.choice(answer).and_then(|said| form.which(said, &shown()))
    };
    let bare = json!({ "choice": "index" });
    let tagged = json!({ "choice": "index", "style": "tagged", "reason": "optional" });
    let react = json!({ "choice": "index", "style": "react" });
    for (form, answer, want) in [
        (&bare, "1", 0),
        (&bare, " 2\n", 1),
        (&bare, "<think>1 is worse</think>2", 1),
        (&tagged, "<action>1</action>", 0),
        (&tagged, "<think>2?</think>\n<action> 2 </action>", 1),
        (&react, "Thought: the second\nAction: 2", 1),
        (&react, "Thought: 1 or 2\nAction:1", 0),
    ] {
        assert_eq!(chosen(form.clone(), answer), Some(want), "{answer:?}");
    }
    let bad = [
        "",
        "0",
        "3",
        "12",
        "1 or 2",
        "1, 2",
        "1 2",
        "1.",
        "1)",
        "(1)",
        "01",
        "+1",
        "1.0",
        "one",
        "Action 1",
        "action 1",
        "#1",
        "№1",
        "１",
        "¹",
        "①",
        "1\n2",
        "1\u{200b}",
        "open fridge 1",
        "1: open fridge 1",
        "first",
        "**1**",
        "\"1\"",
    ];
    for answer in bad {
        assert_eq!(chosen(bare.clone(), answer), None, "{answer:?}");
        assert_eq!(chosen(tagged.clone(), &format!("<action>{answer}</action>")), None, "{answer:?}");
        assert_eq!(chosen(react.clone(), &format!("Thought: a\nAction: {answer}")), None, "{answer:?}");
    }
    for (form, answer) in [
        (&tagged, "1"),
        (&tagged, "<action>1</action>2"),
        (&tagged, "<action>1</action><action>2</action>"),
        (&tagged, "<think><action>1</action></think>"),
        (&react, "1"),
        (&react, "Action: 1\nAction: 2"),
        (&bare, "<think>1</think>"),
        (&bare, "<think>1"),
        (&bare, "<action>1</action>"),
    ] {
        assert_eq!(chosen(form.clone(), answer), None, "{answer:?}");
    }
    // by its text, a number names nothing
    assert_eq!(chosen(json!({}), "1"), None);
    assert_eq!(chosen(json!({}), "go to desk 2"), Some(1));
    let same = ["look".to_owned(), "look".to_owned()];
    assert_eq!(prompt(bare).which("1", &same), None, "two equal actions cannot be chosen between");
}

#[test]
fn a_number_that_is_not_asked_for_is_malformed_and_a_wrong_one_is_not() {
    let pair = pair(0, "go to desk 2", "open fridge 1", 1);
    let index = prompt(json!({ "choice": "index" }));
    let of = |form: &Prompt, answer: &str| {
        let outcome = judge(&pair, form, &Reward::default(), Some(answer));
        (outcome.reward, outcome.malformed)
    };
    assert_eq!(of(&index, "2"), (1.0, false));
    assert_eq!(of(&index, "1"), (0.1, false));
    assert_eq!(of(&index, "open fridge 1"), (-0.5, true), "an admissible action is no number");
    assert_eq!(of(&index, "3"), (-0.5, true));
    assert_eq!(of(&Prompt::default(), "open fridge 1"), (0.1, false));
    assert_eq!(of(&Prompt::default(), "2"), (-0.5, true));
}

#[test]
fn a_reasoning_is_read_as_the_question_asks_for_it() {
    let reads = |form: Value, answer: &str| prompt(form).choice(answer).is_some();
    let with = "<think>because</think>look";
    for (reason, plain, thought, silent) in
        [(None, true, true, true), (Some("optional"), true, true, true), (Some("required"), false, true, false)]
    {
        let form = reason.map_or(json!({}), |reason| json!({ "reason": reason }));
        assert_eq!(reads(form.clone(), "look"), plain, "{reason:?}");
        assert_eq!(reads(form.clone(), with), thought, "{reason:?}");
        assert_eq!(reads(form, "<think> </think>look"), silent, "{reason:?}");
    }
    let none = prompt(json!({ "reason": "none" }));
    assert_eq!(none.choice("look"), Some("look"));
    let shown = ["look".to_owned(), "wait".to_owned()];
    assert_eq!(none.choice(with).and_then(|said| none.which(said, &shown)), None);
    let tagged = |reason: &str| json!({ "style": "tagged", "reason": reason });
    assert!(reads(tagged("none"), "<action>look</action>") && reads(tagged("optional"), "<action>look</action>"));
    assert!(!reads(tagged("none"), "<think>a</think><action>look</action>"));
    assert!(!reads(tagged("required"), "<action>look</action>"));
    assert!(!reads(json!({ "style": "react", "reason": "none" }), "Thought: a\nAction: look"));
    // a template that opens the reasoning leaves an empty one to the model
    let opened = |reason: &str| json!({ "style": "tagged", "thinking": "opened", "reason": reason });
    assert!(reads(opened("optional"), "</think><action>look</action>"));
    assert!(!reads(opened("required"), "</think><action>look</action>"));
    let problems = |value: Value| serde_json::from_value::<Prompt>(value).unwrap().check().len();
    assert_eq!(problems(opened("none")), 1);
    assert_eq!(problems(json!({ "style": "tagged", "enable_thinking": true, "reason": "none" })), 1);
    assert_eq!(problems(json!({ "style": "tagged", "enable_thinking": false, "reason": "none" })), 0);
}

#[test]
fn questions_say_how_they_are_answered_and_the_old_ones_are_as_they_were() {
    let bench = pair(0, "look", "wait", 0);
    let asked = |value: Value| {
        let question = actloom_ops::op::common::question(&prompt(value), &bench).unwrap();
        question.last().unwrap().content.clone()
    };
    assert_eq!(asked(json!({})), "You are in a room.\nWhich action is better?\nlook\nwait");
    assert_eq!(
        asked(json!({ "choice": "index" })),
        "You are in a room.\nWhich action is better, 1 or 2?\n1: look\n2: wait"
    );
    assert_eq!(asked(json!({ "reason": "none" })), asked(json!({})), "the bare style says nothing");
    let tagged = |more: Value| {
        let mut value = json!({ "style": "tagged", "actions": "none" });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        asked(value)
    };
    assert!(tagged(json!({})).starts_with("Think first, between <think> and </think>."));
    assert!(tagged(json!({ "reason": "none" })).starts_with("Answer with one action between <action> and </action>"));
    assert!(tagged(json!({ "reason": "optional" })).contains("You may think first"));
    let index = tagged(json!({ "choice": "index" }));
    assert!(index.ends_with("1: look\n2: wait\nWrite the number 1 or 2 in place of the action."), "{index}");
    let own = json!({ "choice": "index", "texts": { "question": "{first} (1) or {second} (2)?" } });
    assert!(asked(own).ends_with("\nlook (1) or wait (2)?"));
}

#[test]
fn what_is_begun_and_finished_reads_as_the_choice_that_it_is() {
    let shown = shown();
    for style in ["bare", "tagged", "react"] {
        for choice in ["text", "index"] {
            for thinking in ["none", "optional", "required", "opened"] {
                let form = prompt(json!({ "style": style, "choice": choice, "thinking": thinking }));
                for (reasoning, index) in [("", 0), ("the desk is near", 1)] {
                    let (begun, rest) = (form.begun(reasoning), form.finish(&shown, index));
                    let (reader, said) = (form.at_once(), form.finished(&rest).into_owned());
                    let chosen = reader.choice(&said).and_then(|said| reader.which(said, &shown));
                    assert_eq!(chosen, Some(index), "{form:?} {begun:?} {rest:?}");

                    if !reasoning.is_empty() {
                        // together they are the answer with that reasoning
                        let whole = format!("{begun}{rest}");
                        assert_eq!(whole, form.choose(Some(reasoning), &shown, index));
                        let read = form.read_choice(&whole).unwrap();
                        assert_eq!(read.reasoning.map(str::trim), Some(reasoning));
                        assert_eq!(form.which(read.action, &shown), Some(index));
                    }
                    // a second reasoning behind what was begun is no choice
                    let again = format!("<think>no</think>{rest}");
                    let again = form.finished(&again).into_owned();
                    assert_eq!(reader.choice(&again).and_then(|said| reader.which(said, &shown)), None, "{again}");
                }
            }
        }
    }
}

/// A server with the interface of plain completions. It reasons that what holds `good` is better, unless the pair is hard;
/// after a reasoning it does what that says last, and without one it takes the first. Of what holds `mute` its reasoning names nothing.
fn stand_in(asked: Arc<AtomicUsize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let answer = |prompt: &str| {
        let (state, begun) = prompt.rsplit_once("<assistant>").unwrap();
        let shown: Vec<&str> = state.lines().rev().take(2).collect();
        let (first, second) = (shown[1], shown[0]);
        match begun.strip_prefix("<think>").and_then(|rest| rest.strip_suffix("</think>")) {
            None => {
                let good = first.contains("good") != first.contains("hard");
                let (better, worse) = if good { (first, second) } else { (second, first) };
                match first.contains("mute") {
                    true => format!("<think>I know what to do</think>{better}"),
                    false => format!("<think>{worse} leads nowhere, so I take {better}</think>{better}"),
                }
            }
            Some("") => first.to_owned(),
            Some(reasoning) => {
                let last = |action: &str| reasoning.rfind(action);
                if last(first) > last(second) { first.to_owned() } else { second.to_owned() }
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).unwrap() > 2 {
                head += &line.to_lowercase();
                line.clear();
            }
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
            let mut body = vec![0; length.unwrap_or(0)];
            reader.read_exact(&mut body).unwrap();
            let reply = if head.starts_with("get") {
                json!({ "data": [{ "id": "m" }] })
            } else {
                asked.fetch_add(1, Ordering::SeqCst);
                let body: Value = serde_json::from_slice(&body).unwrap();
                let text = answer(body["prompt"].as_str().unwrap());
                json!({ "model": "m", "choices": [{ "finish_reason": "stop", "text": text }] })
            };
            let reply = reply.to_string();
            let length = reply.len();
            let text = format!("HTTP/1.1 200 x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{reply}");
            stream.write_all(text.as_bytes()).unwrap();
        }
    });
    url
}

/// Four pairs, of which one is hard; a server that knows; and one that chats.
fn exam() -> (Bench, Arc<AtomicUsize>) {
    let bench = Bench::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let url = stand_in(asked.clone());
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>";
    let plain = json!({ "v": 1, "endpoint": { "url": url, "api": "completions", "template": template } });
    std::fs::write(bench.path("policy.json"), plain.to_string()).unwrap();
    std::fs::write(bench.path("chat.json"), json!({ "v": 1, "endpoint": { "url": url } }).to_string()).unwrap();
    let pairs = [
        pair(0, "do good 1", "do bad 1", 0),
        pair(1, "do good 2", "do bad 2", 1),
        pair(2, "do good hard 3", "do bad hard 3", 0),
        pair(3, "do good 4", "do bad 4", 1),
    ];
    artifact::write(&bench.path("pairs.jsonl"), &pairs).unwrap();
    (bench, asked)
}

fn critic(bench: &Bench, params: Value, name: &str) -> Metrics {
    bench.run("critic", params, &[("model", "policy.json"), ("pairs", "pairs.jsonl")], name)
}

#[test]
fn a_model_that_reasons_is_led_by_what_is_put_in_the_place_of_its_reasoning() {
    let (bench, asked) = exam();
    let own = critic(&bench, json!({}), "own");
    assert_eq!((own["accuracy"], own["consistent"], own["malformed"]), (0.75, 0.75, 0.0));
    assert_eq!((own["reasoned"], own["questions"]), (1.0, 8.0));
    // `WORSE leads nowhere, so I take BETTER`: 5 words and those of the actions, 3 or 4 each
    assert_eq!(own["reasoning_words"], (3.0 * 11.0 + 13.0) / 4.0);
    let removed = critic(&bench, json!({ "reasoning": "removed" }), "removed");
    assert_eq!((removed["accuracy"], removed["consistent"]), (0.5, 0.0));
    assert_eq!((removed["accuracy_first"], removed["accuracy_second"]), (1.0, 0.0));
    let injected = critic(&bench, json!({ "reasoning": "injected" }), "injected");
    assert_eq!((injected["accuracy"], injected["found"]), (0.0, 1.0));
    assert_eq!(asked.load(Ordering::SeqCst), 24);
    // its own words for the wrong action, of the hard pair as they are
    let swapped = critic(&bench, json!({ "reasoning": "injected", "rationale": "swapped" }), "swapped");
    assert_eq!((swapped["accuracy"], swapped["found"]), (0.0, 1.0));
    assert_eq!(swapped["reasoning_words"], own["reasoning_words"]);
    assert_eq!(asked.load(Ordering::SeqCst), 40, "its own reasoning is asked for first");
    // of another pair: neither action is in it, so the second is taken
    let other = critic(&bench, json!({ "reasoning": "injected", "rationale": "other" }), "other");
    assert_eq!((other["accuracy_first"], other["accuracy_second"]), (0.0, 1.0));
    // a text that argues for the right action leads to it
    let right = json!({ "reasoning": "injected", "rationale": "not {wrong} but {right}" });
    assert_eq!(critic(&bench, right, "right")["accuracy"], 1.0);
}

#[test]
fn a_reasoning_that_names_no_action_cannot_be_made_a_wrong_one_whether_its_answer_was_right_or_not() {
    let (bench, asked) = exam();
    let pairs = [
        pair(0, "do good mute 1", "do bad mute 1", 0),
        pair(1, "do good mute hard 2", "do bad mute hard 2", 1),
        pair(2, "do good 3", "do bad 3", 0),
        pair(3, "do good hard 4", "do bad hard 4", 1),
    ];
    artifact::write(&bench.path("pairs.jsonl"), &pairs).unwrap();
    let swapped = critic(&bench, json!({ "reasoning": "injected", "rationale": "swapped" }), "swapped");
    assert_eq!(asked.load(Ordering::SeqCst), 8 + 4, "those of which nothing could be made are not asked");
    assert_eq!((swapped["found"], swapped["questions"], swapped["exchanged"]), (0.5, 4.0, 0.5));
    assert_eq!((swapped["accuracy"], swapped["accuracy_exchanged"], swapped["accuracy_as_it_was"]), (0.0, 0.0, 0.0));
}

/// The scores and the answers that `critic` wrote into a folder.
fn written(bench: &Bench, name: &str) -> (Scores, Vec<Answered>) {
    let scores = Scores::read(&bench.path(&format!("{name}/scores"))).unwrap();
    let answers = std::fs::read_to_string(bench.path(&format!("{name}/answers"))).unwrap();
    (scores, answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn three_reasonings_stand_in_one_table_and_are_compared_question_by_question() {
    let (bench, _) = exam();
    let variants = ["own", "removed", "injected"];
    let results = variants.map(|reasoning| {
        critic(&bench, json!({ "reasoning": reasoning }), reasoning);
        let (scores, _) = written(&bench, reasoning);
        assert_eq!(scores.conditions["reasoning"], reasoning);
        Labelled { labels: [("reasoning".to_owned(), reasoning.to_owned())].into(), scores }
    });
    // a pair is one item, with the mean over its two orders
    let own = &results[0].scores;
    let of = |scores: &Scores, metric: &str| scores.per_task.iter().map(|t| t.value(metric)).collect::<Vec<_>>();
    assert_eq!(own.per_task[2].id, "id/3 episode 2 turn 0: do bad hard 3");
    assert_eq!(of(own, "accuracy"), [Some(1.0), Some(1.0), Some(0.0), Some(1.0)]);
    assert_eq!(of(&results[1].scores, "accuracy"), [Some(0.5); 4]);
    assert_eq!(own.intervals["accuracy"].method, Method::Bootstrap);
    assert_eq!(own.intervals["consistent"].method, Method::Wilson);
    let layout = Layout {
        rows: "reasoning".to_owned(),
        columns: None,
        over: None,
        metrics: ["accuracy", "consistent", "malformed"].map(str::to_owned).to_vec(),
        compare: vec![["own", "removed"].map(str::to_owned)],
        spread: Spread::Interval,
        percent: true,
        resamples: 500,
        seed: 1,
    };
    let table = Table::build(&results, &layout).unwrap();
    assert!(table.missing.is_empty(), "{:?}", table.missing);
    assert_eq!([0, 1, 2].map(|row| table.cell(row, 0).metrics["accuracy"].mean), [Some(0.75), Some(0.5), Some(0.0)]);
    assert!(table.cell(0, 0).metrics["accuracy"].interval.is_some(), "one seed has an interval over its pairs");
    let found = &table.comparisons[0];
    assert_eq!((found.pairs, found.by_task, found.unpaired), (4, true, 0));
    assert!((found.difference.unwrap() - 0.25).abs() < 1e-12);
    let by_hand = stats::bootstrap(&[0.5, 0.5, -0.5, 0.5], 500, 1).unwrap();
    assert_eq!(found.interval, Some(Interval::new(by_hand, Method::Bootstrap)));
    // beside episodes the numbers wear a prefix, with what they were taken under
    let mut beside = Scores::of_metrics([("success".to_owned(), Some(1.0))].into());
    beside.merge("critic_", &results[2].scores);
    assert_eq!((beside.metrics["critic_accuracy"], &*beside.conditions["critic_reasoning"]), (Some(0.0), "injected"));
    assert!(beside.intervals.contains_key("critic_accuracy") && beside.per_task.is_empty());
}

#[test]
fn what_was_said_to_each_question_is_kept() {
    let (bench, _) = exam();
    critic(&bench, json!({}), "own");
    let (_, own) = written(&bench, "own");
    assert_eq!(own.len(), 8);
    let hard = &own[4];
    assert_eq!((hard.episode, hard.turn, hard.expert, hard.choice), (2, 0, 0, Some(1)));
    assert_eq!(hard.shown, ["do good hard 3", "do bad hard 3"]);
    assert_eq!(hard.reasoning.as_deref(), Some("do good hard 3 leads nowhere, so I take do bad hard 3"));
    assert_eq!(hard.text, format!("<think>{}</think>do bad hard 3", hard.reasoning.as_deref().unwrap()));
    assert_eq!((hard.begun.as_deref(), hard.finish, hard.correct, hard.malformed), (None, Ended::End, false, false));
    assert_eq!((own[5].shown[0].as_str(), own[5].expert), ("do bad hard 3", 1));
    critic(&bench, json!({ "reasoning": "injected", "rationale": "only {wrong}" }), "injected");
    let (scores, injected) = written(&bench, "injected");
    assert_eq!(injected[0].begun.as_deref(), Some("<think>only do bad 1</think>"));
    assert_eq!((&*injected[0].text, injected[0].choice, &injected[0].reasoning), ("do bad 1", Some(1), &None));
    assert_eq!(scores.conditions["rationale"], "only {wrong}");
}

#[test]
fn copies_in_the_other_order_are_asked_once() {
    let (bench, asked) = exam();
    let pairs: Vec<Pair> = artifact::read(&bench.path("pairs.jsonl")).unwrap();
    let both: Vec<Pair> = pairs.iter().flat_map(|pair| [pair.clone(), pair.swapped()]).collect();
    artifact::write(&bench.path("pairs.jsonl"), &both).unwrap();
    assert_eq!(critic(&bench, json!({}), "own")["accuracy"], 0.75);
    assert_eq!(asked.load(Ordering::SeqCst), 8);
}

#[test]
fn what_cannot_be_asked_is_refused_before_it_is() {
    let (bench, asked) = exam();
    let chat = |params: Value| {
        let inputs = [("model", "chat.json"), ("pairs", "pairs.jsonl")];
        format!("{:?}", bench.attempt("critic", params, &inputs, "chat").unwrap_err())
    };
    for params in [
        json!({ "reasoning": "removed" }),
        json!({ "reasoning": "injected" }),
        json!({ "reasoning": "injected", "rationale": "swapped" }),
    ] {
        let said = chat(params);
        assert!(said.contains("cannot be given the beginning of an answer") && said.contains("completions"), "{said}");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let of = |params: Value| Bench::problems("critic", params);
    assert!(of(json!({ "held": true }))[0].contains("cannot be held"));
    assert!(of(json!({ "reasoning": "injected", "prompt": { "reason": "none" } }))[0].contains("leaves no place"));
    assert!(of(json!({ "reasoning": "injected", "rationale": "swap" }))[0].contains("`{wrong}` is missing"));
    for reasoning in ["own", "removed"] {
        let said = of(json!({ "reasoning": reasoning, "rationale": "swapped" }));
        assert!(said.len() == 1 && said[0].contains("`rationale` is for `reasoning = \"injected\"`"), "{said:?}");
    }
}

#[test]
fn an_answer_that_is_begun_goes_on_as_it_would_have() {
    let bench = Bench::new();
    let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2, "kv_heads": 1,
                        "head_dim": 16, "texts": 40, "vocab_size": 400 });
    bench.run("model", small, &[], "model");
    let at = bench.path("model/model");
    let eos = model::load(&at, &Device::Cpu).unwrap().config.eos;
    let text = Text::load(&at, &eos).unwrap();
    let mut policy = policy::open(&at, DeviceRequest::Cpu).unwrap();
    let say = |policy: &mut dyn Policy, begun: &str, count: usize, keep: bool| {
        let session = policy.open();
        policy.user(session, "You are in a room. You see a desk 1.").unwrap();
        policy.begin(session, begun).unwrap();
        let sampling = Sampling::plain(0.0, count);
        let ask = Ask { session, allowed: &[], sampling: &sampling, rng: Rng::new(0, 0), keep };
        (session, policy.answer(&[ask], &|| false).unwrap().pop().unwrap().ids.unwrap())
    };
    assert!(policy.begins());
    let (_, whole) = say(&mut *policy, "", 10, false);
    let split = (1..whole.len()).rev().find(|n| {
        let begun = text.decode(&whole[..*n]).unwrap();
        text.encode(&begun).unwrap() == whole[..*n]
    });
    let split = split.unwrap();
    let (session, rest) = say(&mut *policy, &text.decode(&whole[..split]).unwrap(), 10 - split, true);
    assert_eq!(rest, whole[split..]);
    policy.user(session, "Nothing happens.").unwrap();
    // a conversation holds what was begun as a part of the answer
    let mut told = Dialogue::new(&text);
    let mut begun = Dialogue::new(&text);
    for dialogue in [&mut told, &mut begun] {
        dialogue.user("look").unwrap();
    }
    told.assistant("<think></think>go to desk 1", true).unwrap();
    begun.begin("<think></think>").unwrap();
    begun.assistant("go to desk 1", true).unwrap();
    for dialogue in [&mut told, &mut begun] {
        dialogue.user("You arrive.").unwrap();
    }
    assert_eq!(text.decode(begun.ids()).unwrap(), text.decode(told.ids()).unwrap());
    let learned = |d: &Dialogue<&Text>| d.example.learn.iter().filter(|l| **l).count();
    assert!(learned(&begun) > 0 && learned(&begun) < learned(&told), "what was given is not learned");
}

#[test]
fn answers_held_to_the_two_choices_are_never_malformed() {
    let (bench, _) = exam();
    let small = json!({ "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 1,
                        "head_dim": 16, "texts": 40, "vocab_size": 400 });
    bench.run("model", small, &[], "model");
    let inputs = [("model", "model/model"), ("pairs", "pairs.jsonl")];
    for (number, style) in ["bare", "tagged", "react"].into_iter().enumerate() {
        for choice in ["text", "index"] {
            let form = json!({ "style": style, "choice": choice, "actions": "none" });
            let ask = |held: bool, name: String| {
                let params = json!({ "reasoning": "removed", "held": held, "prompt": form, "temperature": 1.0 });
                bench.run("critic", params, &inputs, &name)
            };
            let held = ask(true, format!("{number}-{choice}-held"));
            assert_eq!(held["malformed"], 0.0, "{style} {choice}");
            let free = ask(false, format!("{number}-{choice}-free"));
            assert_eq!(free["malformed"], 1.0, "random weights say neither: {style} {choice}");
        }
    }
}
