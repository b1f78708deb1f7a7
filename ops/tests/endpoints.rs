//! Servers as policies, against a stand-in on this machine: bounds, retries, deadlines, the key, and what is recorded.

#![expect(clippy::unwrap_used, reason = "a test whose server breaks should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::recipe::{Overrides, parse};
use actloom_engine::resolve::resolve;
use actloom_engine::stop::Stop;
use actloom_ops::artifact::{self, Episode, Samples};
use actloom_ops::policy::{Answer, Api, Ask, Choices, Endpoint, Finish, Policy, Sampling, Settings};
use actloom_ops::registry::registry;
use actloom_ops::rng::Rng;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

/// A request as the stand-in saw it.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    head: String,
    body: Value,
}

/// What it answers: status, more header lines, body.
type Reply = (u16, String, String);

/// A server on this machine that answers as it is told and remembers what it was asked.
struct StandIn {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Most requests that were being answered at once.
    most: Arc<AtomicUsize>,
}

impl StandIn {
    fn new(answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (seen, most) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (answer, now) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let (seen_too, most_too) = (seen.clone(), most.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, seen, most, now) = (answer.clone(), seen_too.clone(), most_too.clone(), now.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(request) = read(&stream) else { return };
                    let index = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.clone());
                        seen.iter().filter(|r| r.path == request.path).count() - 1
                    };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let (status, head, body) = answer(&request, index);
                    now.fetch_sub(1, Ordering::SeqCst);
                    let length = body.len();
                    let text = format!(
                        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n{body}"
                    );
                    // whoever asked may have given up
                    drop(stream.write_all(text.as_bytes()));
                });
            }
        });
        StandIn { url, seen, most }
    }

    fn settings(&self) -> Settings {
        serde_json::from_value(json!({ "url": self.url, "model": "m" })).unwrap()
    }

    fn seen(&self, path: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|r| r.path == path).cloned().collect()
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut line) = (String::new(), String::new());
    while reader.read_line(&mut line).ok()? > 2 {
        head += &line;
        line.clear();
    }
    let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let path = head.split(' ').nth(1)?.to_owned();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Some(Seen { path, head, body })
}

const CHAT: &str = "/v1/chat/completions";

fn ok(body: Value) -> Reply {
    (200, String::new(), body.to_string())
}

fn models(ids: &[&str]) -> Reply {
    ok(json!({ "object": "list", "data": ids.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>() }))
}

fn said(text: &str) -> Reply {
    ok(json!({
        "model": "org/m-2026", "usage": { "prompt_tokens": 10, "completion_tokens": 3 },
        "choices": [{ "finish_reason": "stop", "message": { "role": "assistant", "content": text },
                      "logprobs": { "content": [{ "logprob": -0.5 }, { "logprob": -0.25 }] } }],
    }))
}

fn last(seen: &Seen) -> String {
    seen.body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned()
}

/// Asks one question for each text, all at once.
fn ask(policy: &mut Endpoint, texts: &[&str], allowed: &[String]) -> Result<Vec<Answer>, OpError> {
    let sampling = Sampling::plain(1.0, 8);
    let mut asks = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let session = policy.open();
        policy.user(session, text).unwrap();
        asks.push(Ask { session, allowed, sampling: &sampling, rng: Rng::at(1, &[i as u64]), keep: true });
    }
    policy.answer(&asks, &|| false)
}

fn failure(policy: &mut Endpoint) -> String {
    format!("{:?}", ask(policy, &["x"], &[]).unwrap_err())
}

#[test]
fn answers_come_in_the_order_of_the_asks_and_never_more_requests_than_allowed_are_under_way() {
    let server = StandIn::new(|seen, index| {
        if seen.path == "/v1/models" {
            return models(&["m", "other"]);
        }
        // the first ones come back last
        std::thread::sleep(Duration::from_millis(60 - 5 * index.min(11) as u64));
        said(&format!("re {}", last(seen)))
    });
    let mut policy = Endpoint::new(Settings { concurrency: 3, ..server.settings() }, None).unwrap();
    let texts: Vec<String> = (0..12).map(|i| format!("question {i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let answers = ask(&mut policy, &texts, &[]).unwrap();
    for (text, answer) in texts.iter().zip(&answers) {
        assert_eq!(answer.text, format!("re {text}"));
        assert_eq!((answer.finish, answer.ids.clone()), (Finish::End, None));
        assert_eq!(answer.logps, Some(vec![-0.5, -0.25]));
    }
    assert_eq!(server.most.load(Ordering::SeqCst), 3);
    let who = policy.identity();
    assert_eq!((who.served, who.listed), (vec!["org/m-2026".to_owned()], vec!["m".to_owned(), "other".to_owned()]));
    assert!(!who.reproducible);
    let cost = policy.cost();
    assert_eq!((cost.answers, cost.read, cost.sampled, cost.retries), (12, 120, 36, 0));
}

#[test]
fn a_request_carries_the_conversation_the_sampling_and_a_seed_of_its_own() {
    let server = StandIn::new(|seen, _| if seen.path == "/v1/models" { models(&["m"]) } else { said("go on") });
    let settings = Settings { extra: BTreeMap::from([("top_n_sigma".into(), json!(1.5))]), ..server.settings() };
    let sampling = Sampling { top_k: 5, top_p: 0.5, min_p: 0.25, stop: vec!["\n".into()], ..Sampling::plain(0.5, 8) };
    let bodies = |settings: Settings| {
        let mut policy = Endpoint::new(settings, None).unwrap();
        let session = policy.open();
        for turn in 0..2u64 {
            policy.user(session, "-= Welcome to TextWorld, ALFRED! =-\n\nlook").unwrap();
            let ask = Ask { session, allowed: &[], sampling: &sampling, rng: Rng::at(1, &[turn]), keep: true };
            let answer = policy.answer(&[ask], &|| false).unwrap().pop().unwrap();
            assert_eq!(answer.logps, None, "the server's numbers are not those of the distribution drawn from");
        }
        server.seen(CHAT).into_iter().map(|s| s.body).collect::<Vec<_>>()
    };
    let first = bodies(settings.clone());
    let all = bodies(settings);
    assert_eq!(first[..], all[2..], "the same again, seeds included");
    assert_ne!(all[0]["seed"], all[1]["seed"]);
    let mut body = all[1].clone();
    assert!(body.as_object_mut().unwrap().remove("seed").unwrap().is_u64());
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let messages = json!([turn("user", "look"), turn("assistant", "go on"), turn("user", "look")]);
    assert_eq!(
        body,
        json!({ "model": "m", "messages": messages, "max_tokens": 8, "temperature": 0.5, "top_p": 0.5, "top_k": 5,
                "min_p": 0.25, "stop": ["\n"], "logprobs": true, "top_n_sigma": 1.5 })
    );
}

#[test]
fn what_may_pass_is_tried_again_after_the_wait_that_the_server_asks_for() {
    let server = StandIn::new(|seen, index| match (seen.path.as_str(), index) {
        ("/v1/models", 0) => (503, String::new(), "starting".into()),
        // a gateway without the list
        ("/v1/models", _) => (404, String::new(), "no such page".into()),
        (_, 0) => (500, String::new(), "oops".into()),
        (_, 1) => (429, "retry-after: 2\r\n".into(), "slow down".into()),
        _ => said("here"),
    });
    let mut policy = Endpoint::new(server.settings(), None).unwrap();
    let start = Instant::now();
    assert_eq!(ask(&mut policy, &["x"], &[]).unwrap()[0].text, "here");
    assert!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(policy.cost().retries, 3);
    let seeds: BTreeSet<u64> = server.seen(CHAT).iter().map(|s| s.body["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds.len(), 1, "a request that is made again is the same request");
}

#[test]
fn a_server_that_stays_broken_or_is_not_there_is_named_with_what_it_said_last() {
    let server = StandIn::new(|_, _| (500, String::new(), "out of memory".into()));
    let mut policy = Endpoint::new(Settings { retries: 1, ..server.settings() }, None).unwrap();
    let error = failure(&mut policy);
    for part in [&server.url, "2 times", "status 500", "out of memory", "`retries`"] {
        assert!(error.contains(part), "{error}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Settings { url: format!("http://{gone}/v1"), retries: 0, ..server.settings() };
    let error = failure(&mut Endpoint::new(settings, None).unwrap());
    assert!(error.contains(&format!("http://{gone}/v1/models")) && error.contains("asked once"), "{error}");
}

#[test]
fn a_reasoning_that_comes_apart_is_joined_where_it_is_asked_for_and_odd_ends_are_no_failures() {
    let server = StandIn::new(|seen, _| {
        if seen.path == "/v1/models" {
            return models(&["m"]);
        }
        let (reason, message) = match last(seen).as_str() {
            "thinks" => ("stop", json!({ "reasoning_content": "hm", "content": "look" })),
            "silent" => ("stop", json!({ "reasoning_content": "hm", "content": null })),
            "filtered" => ("content_filter", json!({ "content": "lo" })),
            _ => ("abort", json!({ "content": null })),
        };
        ok(json!({ "choices": [{ "finish_reason": reason, "message": message }] }))
    });
    let mut policy = Endpoint::new(server.settings(), None).unwrap();
    let texts = ["thinks", "silent", "filtered", "aborted"];
    let told = |answers: Vec<Answer>| answers.into_iter().map(|a| (a.text, a.finish)).collect::<Vec<_>>();
    let say = |text: &str, finish| (text.to_owned(), finish);
    let apart = [say("look", Finish::End), say("", Finish::End), say("lo", Finish::Length), say("", Finish::Length)];
    assert_eq!(told(ask(&mut policy, &texts, &[]).unwrap()), apart);
    policy.join_reasoning(true);
    let joined = told(ask(&mut policy, &texts[..2], &[]).unwrap());
    assert_eq!(joined, [say("<think>hm</think>look", Finish::End), say("<think>hm</think>", Finish::End)]);
}

#[test]
fn deadlines_are_errors_that_name_themselves() {
    let server = StandIn::new(|seen, _| {
        if seen.path == CHAT {
            std::thread::sleep(Duration::from_secs(20));
        }
        models(&["m"])
    });
    let start = Instant::now();
    let mut policy = Endpoint::new(Settings { deadline: 0.3, ..server.settings() }, None).unwrap();
    let error = failure(&mut policy);
    assert!(error.contains(CHAT) && error.contains("within 0.3 s (`deadline`)"), "{error}");
    let mut policy = Endpoint::new(Settings { overall: 0.4, ..server.settings() }, None).unwrap();
    let error = failure(&mut policy);
    assert!(error.contains(CHAT) && error.contains("within 0.4 s (`overall`)"), "{error}");
    let broken = StandIn::new(|_, _| (503, "retry-after: 30\r\n".into(), "busy".into()));
    let mut policy = Endpoint::new(Settings { overall: 2.0, ..broken.settings() }, None).unwrap();
    let error = failure(&mut policy);
    assert!(error.contains("ran out (`overall`)") && error.contains("busy"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_stop_does_not_wait_for_requests_under_way() {
    let server = StandIn::new(|seen, _| {
        if seen.path == CHAT {
            std::thread::sleep(Duration::from_secs(20));
        }
        models(&["m"])
    });
    let mut policy = Endpoint::new(server.settings(), None).unwrap();
    let sampling = Sampling::plain(1.0, 8);
    let session = policy.open();
    policy.user(session, "x").unwrap();
    let ask = Ask { session, allowed: &[], sampling: &sampling, rng: Rng::new(0, 0), keep: true };
    let start = Instant::now();
    let stopped = policy.answer(&[ask], &|| !server.seen(CHAT).is_empty());
    assert!(matches!(stopped, Err(OpError::Interrupted)));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn answers_that_are_not_what_was_agreed_name_the_address_and_what_was_expected() {
    let cases: [(&str, &str); 5] = [
        ("<html>hello</html>", "expected a JSON object"),
        ("{}", "expected an object with the list `choices`"),
        (r#"{"choices":[{"message":{"content":"x"}}]}"#, "`choices[0].finish_reason` to be `stop`, `length` or"),
        (r#"{"choices":[{"finish_reason":"because"}]}"#, "to be `stop`, `length` or"),
        (r#"{"choices":[{"finish_reason":"stop","message":{}}]}"#, "expected the answer's text to be a string"),
    ];
    for (body, expected) in cases {
        let server =
            StandIn::new(
                move |seen, _| {
                    if seen.path == "/v1/models" { models(&["m"]) } else { (200, String::new(), body.into()) }
                },
            );
        let error = failure(&mut Endpoint::new(server.settings(), None).unwrap());
        let place = format!("{}/chat/completions", server.url);
        assert!(error.contains(&place) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_conversation_that_is_too_long_is_an_answer_without_room_and_other_refusals_are_errors() {
    let vllm = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens";
    let server = StandIn::new(move |seen, _| match seen.path.as_str() {
        "/v1/models" => models(&["m"]),
        _ if last(seen) == "long" => (400, String::new(), json!({ "message": vllm }).to_string()),
        _ => (400, String::new(), "temperature is out of range".into()),
    });
    let mut policy = Endpoint::new(server.settings(), None).unwrap();
    assert_eq!(ask(&mut policy, &["long"], &[]).unwrap()[0].finish, Finish::Room);
    let error = failure(&mut policy);
    assert!(error.contains("status 400") && error.contains("temperature is out of range"), "{error}");
}

#[test]
fn a_model_that_is_left_out_is_the_one_that_is_served() {
    let server = StandIn::new(|seen, _| if seen.path == "/v1/models" { models(&["only"]) } else { said("x") });
    let settings = Settings { model: None, ..server.settings() };
    ask(&mut Endpoint::new(settings, None).unwrap(), &["x"], &[]).unwrap();
    assert_eq!(server.seen(CHAT)[0].body["model"], "only");
    let server = StandIn::new(|_, _| models(&["a", "b"]));
    let settings = Settings { model: None, ..server.settings() };
    let error = failure(&mut Endpoint::new(settings, None).unwrap());
    assert!(error.contains("lists 2 models") && error.contains("`a`, `b`"), "{error}");
}

#[test]
fn a_server_is_held_to_a_list_only_where_it_is_said_that_it_can_be_and_is_checked() {
    let server = StandIn::new(|seen, _| match seen.path.as_str() {
        "/v1/models" => models(&["m"]),
        _ if last(seen) == "stray" => said("sing"),
        _ => said("look"),
    });
    let allowed = ["look".to_owned(), "go".to_owned()];
    let mut policy = Endpoint::new(server.settings(), None).unwrap();
    let error = format!("{:?}", ask(&mut policy, &["x"], &allowed).unwrap_err());
    assert!(error.contains("`choices = \\\"structured_outputs\\\"`"), "{error}");
    for (choices, field) in
        [(Choices::StructuredOutputs, "/structured_outputs/choice"), (Choices::GuidedChoice, "/guided_choice")]
    {
        let mut policy = Endpoint::new(Settings { choices, ..server.settings() }, None).unwrap();
        assert_eq!(ask(&mut policy, &["x"], &allowed).unwrap()[0].text, "look");
        assert_eq!(server.seen(CHAT).last().unwrap().body.pointer(field), Some(&json!(["look", "go"])));
        let error = ask(&mut policy, &["stray"], &allowed).unwrap_err().to_string();
        assert!(error.contains("answered `sing`, expected one of the answers"), "{error}");
    }
}

#[test]
fn plain_completions_get_the_text_of_the_template() {
    let server = StandIn::new(|seen, _| match seen.path.as_str() {
        "/v1/models" => models(&["m"]),
        _ => ok(json!({ "model": "m", "choices": [{ "finish_reason": "length", "text": " go",
                        "logprobs": { "token_logprobs": [-1.5] } }] })),
    });
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
    let settings = Settings { api: Api::Completions, template: Some(template.into()), ..server.settings() };
    let mut policy = Endpoint::new(settings, None).unwrap();
    let answer = ask(&mut policy, &["look"], &[]).unwrap().pop().unwrap();
    assert_eq!((answer.text.as_str(), answer.finish, answer.logps), (" go", Finish::Length, Some(vec![-1.5])));
    let body = &server.seen("/v1/completions")[0].body;
    assert_eq!((&body["prompt"], &body["logprobs"]), (&json!("<user>look<assistant>"), &json!(1)));
}

/// Everything an op says while it runs, as text.
#[derive(Default)]
struct Sink(Mutex<Vec<OpEvent>>);

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        self.0.lock().unwrap().push(event);
    }
}

impl Sink {
    fn note(&self, of: &str) -> Value {
        let events = self.0.lock().unwrap();
        let note = events.iter().rev().find_map(|e| match e {
            OpEvent::Note { name, value } if name == of => Some(value.clone()),
            _ => None,
        });
        note.unwrap()
    }
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    /// Runs an op; its output is `NAME/PORT`.
    fn run(
        &self,
        op: &str,
        params: Value,
        inputs: &[(&str, &Utf8Path)],
        name: &str,
        sink: &Sink,
    ) -> Result<(), OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        assert_eq!(op.check(&params), []);
        for folder in [self.path(name), self.path(&format!("{name}-scratch"))] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let ports = op.ports(&params).outputs;
        let outputs = ports.iter().map(|o| (o.name.to_owned(), self.path(name).join(o.name))).collect();
        let artifact =
            |path: &Utf8Path| InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(port, path)| ((*port).to_owned(), vec![artifact(path)])).collect();
        let stop = Stop::default();
        let scratch = self.path(&format!("{name}-scratch"));
        op.run(&params, &mut OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), sink, &stop))
    }
}

fn files(folder: &std::path::Path, found: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found)
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()))
        }
    }
}

#[test]
fn steps_played_by_a_server_say_so_and_the_key_is_in_the_header_and_nowhere_else() {
    // any variable that is set will do as a key
    const VARIABLE: &str = "CARGO_MANIFEST_DIR";
    let key = std::env::var(VARIABLE).unwrap();
    let echoed = key.clone();
    let server = StandIn::new(move |seen, index| match seen.path.as_str() {
        "/v1/models" => models(&["m"]),
        // a server that repeats the key, in an error and in an answer
        _ if index == 0 => (500, String::new(), format!("bad luck, {echoed}")),
        _ if index % 3 == 1 => said(&format!("say {echoed}")),
        _ => said("look"),
    });
    let bench = Bench(tempfile::tempdir().unwrap());
    let sink = Sink::default();
    let params = json!({ "url": server.url, "model": "m", "key_env": VARIABLE, "concurrency": 2 });
    bench.run("endpoint", params, &[], "who", &sink).unwrap();
    assert!(server.seen.lock().unwrap().is_empty(), "naming a server contacts nobody");
    let policy = bench.path("who/policy");
    let world = json!({ "env": "household", "layouts": 2 });
    bench.run("demos", json!({ "count": 2, "world": world }), &[], "demos", &sink).unwrap();
    let play = json!({ "split": "id", "tasks": 3, "max_steps": 4, "world": world });
    bench.run("rollout", play, &[("policy", &policy)], "play", &sink).unwrap();
    assert_eq!(sink.note("reproducible"), false);
    let note = sink.note("policy");
    assert_eq!((&note["who"]["make"], &note["who"]["served"]), (&json!("endpoint"), &json!(["org/m-2026"])));
    assert_eq!((&note["who"]["at"], &note["cost"]["retries"]), (&json!(server.url), &json!(1)));
    let episodes: Vec<Episode> = artifact::read(&bench.path("play/episodes")).unwrap();
    assert_eq!(episodes.iter().map(|e| e.turns.len()).collect::<Vec<_>>(), [4, 4, 4]);

    let sink_too = Sink::default();
    let inputs = [("policy", policy.as_path()), ("states", &bench.path("demos/episodes"))];
    bench.run("alternatives", json!({ "per_state": 2 }), &inputs, "samples", &sink_too).unwrap();
    assert_eq!(sink_too.note("reproducible"), false);
    let samples: Vec<Samples> = artifact::read(&bench.path("samples/samples")).unwrap();
    let kept = samples.iter().flat_map(|s| &s.alternatives).collect::<Vec<_>>();
    assert!(!kept.is_empty() && kept.iter().all(|a| a.logp == Some(-0.75)), "{kept:?}");

    let asked = server.seen.lock().unwrap().clone();
    assert!(asked.iter().all(|s| s.head.contains(&format!("authorization: Bearer {key}\r\n"))));
    let hidden = |what: &str, bytes: &[u8]| {
        assert!(!bytes.windows(key.len()).any(|w| w == key.as_bytes()), "the key is in {what}");
    };
    let mut found = Vec::new();
    files(bench.0.path(), &mut found);
    assert!(found.len() >= 4);
    found.iter().for_each(|(name, bytes)| hidden(name, bytes));
    for sink in [&sink, &sink_too] {
        hidden("an event", format!("{:?}", sink.0.lock().unwrap()).as_bytes());
    }
    let broken = StandIn::new({
        let key = key.clone();
        move |_, _| (400, String::new(), format!("no, {key}"))
    });
    let error = failure(&mut Endpoint::new(broken.settings(), Some(key.clone())).unwrap());
    assert!(error.contains("no, [key]"), "{error}");
}

#[test]
fn a_key_that_is_not_set_is_named_before_anything_is_asked() {
    let server = StandIn::new(|_, _| models(&["m"]));
    let bench = Bench(tempfile::tempdir().unwrap());
    let params = json!({ "url": server.url, "key_env": "ACTLOOM_TEST_KEY_THAT_IS_NOT_SET" });
    bench.run("endpoint", params, &[], "who", &Sink::default()).unwrap();
    let play = json!({ "split": "id", "tasks": 1 });
    let error =
        bench.run("rollout", play, &[("policy", &bench.path("who/policy"))], "play", &Sink::default()).unwrap_err();
    assert!(error.to_string().contains("`ACTLOOM_TEST_KEY_THAT_IS_NOT_SET` is not set"), "{error}");
    assert!(server.seen.lock().unwrap().is_empty());
}

#[test]
fn recipes_let_a_server_act_and_not_be_trained() {
    let recipe = |more: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("recipe.toml")).unwrap();
        let head = "name = \"x\"\n[step.who]\nop = \"endpoint\"\nurl = \"http://localhost:8000/v1\"\n[step.demos]\nop = \"demos\"\ncount = 2\n";
        std::fs::write(&path, format!("{head}{more}")).unwrap();
        let recipe = parse(&path, &Overrides::default()).unwrap();
        resolve(&recipe, &registry()).map(drop).map_err(|wrong| format!("{:?}", wrong.located()))
    };
    recipe("[step.play]\nop = \"rollout\"\npolicy = \"@who\"\nsplit = \"id\"\ntasks = 2\n").unwrap();
    recipe("[step.alt]\nop = \"alternatives\"\npolicy = \"@who\"\nstates = \"@demos\"\n").unwrap();
    let error = recipe("[step.sft]\nop = \"sft\"\nmodel = \"@who\"\ndata = \"@demos\"\n").unwrap_err();
    assert!(error.contains("takes model, and `@who` makes policy"), "{error}");
    assert!(error.contains("its weights are not here to be trained"), "{error}");
    let wrong = |line: &str, said: &str| {
        let error = recipe(&format!("[step.b]\nop = \"endpoint\"\n{line}\n")).unwrap_err();
        assert!(error.contains(said), "{error}");
    };
    wrong("url = \"localhost:8000\"", "is no address");
    wrong("url = \"http://me:secret@host/v1\"", "the address holds a user or a password");
    wrong("url = \"http://host/v1?key=1\"", "goes on after the path");
    wrong("url = \"http://host/v1\"\nkey_env = \"sk-123\"", "is not the name of an environment variable");
    wrong("url = \"http://host/v1\"\napi = \"completions\"", "nothing says how a conversation becomes one");
    wrong("url = \"http://host/v1\"\nextra = { stream = true }", "`stream` of the request is set by the step");
}

#[test]
fn a_server_is_told_the_variables_of_its_chat_template() {
    let server = StandIn::new(|seen, _| if seen.path == "/v1/models" { models(&["m"]) } else { said("x") });
    let off = json!({ "enable_thinking": false }).as_object().unwrap().clone();
    let extra = |value: Value| [("chat_template_kwargs".to_owned(), value)].into_iter().collect();
    let settings = Settings { extra: extra(json!({ "custom": 1 })), ..server.settings() };
    let mut policy = Endpoint::new(settings, None).unwrap();
    policy.set(&off).unwrap();
    ask(&mut policy, &["q"], &[]).unwrap();
    assert_eq!(server.seen(CHAT)[0].body["chat_template_kwargs"], json!({ "custom": 1, "enable_thinking": false }));
    let settings = Settings { extra: extra(json!({ "enable_thinking": true })), ..server.settings() };
    let error = Endpoint::new(settings, None).unwrap().set(&off).unwrap_err().to_string();
    assert!(error.contains("`enable_thinking` is `false` in the prompt and `true` in `extra."), "{error}");
}
