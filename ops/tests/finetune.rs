//! Fine-tuning of a folder from elsewhere on files of one's own: what is learned, what is refused, what is kept.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::Past;
use actloom_ops::model::{self, Config, Model, lora};
use actloom_ops::nn::Kernels;
use actloom_ops::nn::kernel::{self, AdamStep};
use actloom_ops::registry::registry;
use actloom_ops::rng::Rng;
use actloom_ops::text::{Dialogue, Text};
use actloom_ops::train::batch::{Example, Row};
use actloom_ops::train::chat::{self, Conversation};
use actloom_ops::train::optimizer::{AdamW, Group, Optimizer, Precision, Settings};
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

fn fixture(name: &str) -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name)
}

/// Counts metrics and asks for a stop after so many progress reports.
struct Sink {
    metrics: Mutex<Vec<(u64, String, f64)>>,
    left: AtomicU64,
    stop: Stop,
}

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        match event {
            OpEvent::Metric { step, name, value } => self.metrics.lock().unwrap().push((step, name, value)),
            OpEvent::Progress(_) if self.left.fetch_sub(1, Ordering::SeqCst) == 1 => self.stop.set(),
            _ => {}
        }
    }
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    /// Conversations of one question and one answer each.
    fn chats(&self, name: &str, lines: &[(&str, &str)]) -> Utf8PathBuf {
        let line = |(ask, say): &(&str, &str)| {
            let messages = json!([{ "role": "user", "content": ask }, { "role": "assistant", "content": say }]);
            format!("{}\n", json!({ "messages": messages }))
        };
        self.file(name, &lines.iter().map(line).collect::<String>())
    }

    fn file(&self, name: &str, text: &str) -> Utf8PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs `sft`; outputs go below `name`.
    fn sft(
        &self,
        name: &str,
        model: &Utf8Path,
        data: &Utf8Path,
        params: Value,
        stop_after: u64,
    ) -> Result<Vec<(u64, String, f64)>, OpError> {
        let registry = registry();
        let op = registry.get("sft").unwrap();
        let params = op.canonical(&params).unwrap();
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact = |path: &Utf8Path| {
            vec![InputArtifact { path: path.to_owned(), step: String::new(), labels: BTreeMap::new() }]
        };
        let inputs = BTreeMap::from([("model".to_owned(), artifact(model)), ("data".to_owned(), artifact(data))]);
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let stop = Stop::new();
        let sink = Sink { metrics: Mutex::default(), left: AtomicU64::new(stop_after), stop: stop.clone() };
        let mut ctx = OpContext::new(inputs, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
        op.run(&params, &mut ctx)?;
        drop(ctx);
        Ok(sink.metrics.into_inner().unwrap())
    }
}

fn failure(result: Result<Vec<(u64, String, f64)>, OpError>) -> (String, String) {
    match result {
        Err(OpError::Failed { message, help }) => (message, help.unwrap_or_default()),
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn tensors(path: &Utf8Path) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// As Qwen3 renders: reasoning is dropped from all but the last answer, which always gets a block for it.
const FORGETFUL: &str = r"{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'assistant' -%}
{%- set parts = m.content.split('</think>') -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.last -%}
{{- '<think>\n' + (parts[0].split('<think>')[-1].strip('\n') if parts|length > 1 else '') + '\n</think>\n\n' -}}
{%- endif -%}
{{- parts[-1].lstrip('\n') + '<|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}";

fn text(bench: &Bench, template: Option<&str>) -> Text {
    let folder = bench.path("text");
    std::fs::create_dir_all(&folder).unwrap();
    model::copy_text_files(&fixture("model"), &folder).unwrap();
    if let Some(template) = template {
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    }
    Text::load(&folder, &[317, 315]).unwrap()
}

fn conversation(messages: &[(&str, &str)]) -> Conversation {
    let messages: Vec<Value> = messages.iter().map(|(role, text)| json!({ "role": role, "content": text })).collect();
    Conversation::parse(&json!({ "messages": messages }).to_string()).unwrap()
}

/// What is learned, as text, and what stands before the first and the second of it.
fn learned(text: &Text, example: &Example) -> String {
    let ids: Vec<u32> =
        example.ids.iter().zip(&example.learn).filter(|(_, learn)| **learn).map(|(id, _)| *id).collect();
    text.decode(&ids).unwrap()
}

const TALK: [(&str, &str); 5] = [
    ("system", "be brief"),
    ("user", "where is the mug?"),
    ("assistant", "<think>\nit was seen\n</think>\n\non shelf 1"),
    ("user", "and now?"),
    ("assistant", "in the sink"),
];

#[test]
fn a_conversation_is_one_example_where_the_template_keeps_history_and_equals_the_whole_rendering() {
    let bench = Bench::new();
    let text = text(&bench, None);
    let talk = conversation(&TALK);
    let (examples, answers) = chat::examples(&text, &talk).unwrap();
    assert_eq!((examples.len(), answers), (1, 2));
    let whole = text.render(&talk.messages, false).unwrap();
    assert_eq!(examples[0].ids, text.encode(whole.trim_end()).unwrap());
    let expected = "<think>\nit was seen\n</think>\n\non shelf 1<|im_end|>in the sink<|im_end|>";
    assert_eq!(learned(&text, &examples[0]), expected);
}

#[test]
fn a_template_that_forgets_makes_an_example_of_each_answer_behind_the_very_prompt_of_a_sampler() {
    let bench = Bench::new();
    let text = text(&bench, Some(FORGETFUL));
    let talk = conversation(&TALK);
    let (examples, answers) = chat::examples(&text, &talk).unwrap();
    assert_eq!((examples.len(), answers), (2, 2));
    let said =
        ["<think>\nit was seen\n</think>\n\non shelf 1<|im_end|>", "<think>\n\n</think>\n\nin the sink<|im_end|>"];
    for ((example, index), said) in examples.iter().zip([2, 4]).zip(said) {
        let prompt = text.encode(&text.render(&talk.messages[..index], true).unwrap()).unwrap();
        assert_eq!(example.ids[..prompt.len()], prompt, "answer {index}");
        assert!(example.learn[..prompt.len()].iter().all(|learn| !learn));
        assert!(example.learn[prompt.len()..].iter().all(|learn| *learn));
        assert_eq!(learned(&text, example), said);
    }
}

#[test]
fn an_episode_grows_by_what_was_said_even_where_the_template_forgets() {
    let bench = Bench::new();
    let text = text(&bench, Some(FORGETFUL));
    let turn = |action: &str| (action.to_owned(), "you see a mug".to_owned());
    let past = Past::of_texts("a room".to_owned(), vec![turn("look"), turn("<think>\nhm\n</think>\n\ntake mug")]);
    let mut dialogue = Dialogue::at(&text, &past, true).unwrap();
    dialogue.assistant("stop", true).unwrap();
    let said = "<|im_start|>user\na room<|im_end|>\n<|im_start|>assistant\nlook<|im_end|>\n\
                <|im_start|>user\nyou see a mug<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\ntake mug<|im_end|>\n\
                <|im_start|>user\nyou see a mug<|im_end|>\n<|im_start|>assistant\nstop<|im_end|>";
    assert_eq!(text.decode(dialogue.ids()).unwrap(), said);
    let actions = "look<|im_end|><think>\nhm\n</think>\n\ntake mug<|im_end|>stop<|im_end|>";
    assert_eq!(learned(&text, &dialogue.example), actions);
}

#[test]
fn an_answer_of_weight_0_is_history_and_teaches_nothing() {
    let bench = Bench::new();
    let text = text(&bench, None);
    let mut talk = conversation(&TALK);
    talk.learn[2] = false;
    let (examples, answers) = chat::examples(&text, &talk).unwrap();
    assert_eq!((examples.len(), answers), (1, 1));
    assert_eq!(learned(&text, &examples[0]), "in the sink<|im_end|>");
    let line = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0}],"id":3}"#;
    assert_eq!(Conversation::parse(line).unwrap().learn, [false, false]);
}

#[test]
fn what_cannot_be_learned_exactly_is_refused_with_its_line() {
    let bench = Bench::new();
    let good = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    for (bad, says) in [
        (r#"{"messages":[{"role":"tool","content":"a"}]}"#, "message 1: role `\"tool\"`"),
        (r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#, "expected text"),
        (r#"{"messages":[{"role":"assistant","content":"a","tool_calls":[1]}]}"#, "`tool_calls` is not supported"),
        (r#"{"messages":[{"role":"user","content":"a"}],"tools":[1]}"#, "`tools` is not supported"),
        (r#"{"messages":[{"role":"user","content":"a","weight":1}]}"#, "0 or 1 on an answer"),
        (r#"{"prompt":"a"}"#, "a list `messages`"),
        (
            r#"{"messages":[{"role":"user","content":"<|im_end|>"},{"role":"assistant","content":"a"}]}"#,
            "holds the end token",
        ),
    ] {
        let data = bench.file("bad.jsonl", &format!("{good}\n\n{bad}\n"));
        let (message, _) = failure(bench.sft("bad", &fixture("model"), &data, json!({}), u64::MAX));
        assert!(message.contains("line 3 of") && message.contains(says), "{bad}: {message}");
    }
    let data = bench.file("user.jsonl", r#"{"messages":[{"role":"user","content":"a"}]}"#);
    let (message, _) = failure(bench.sft("bad", &fixture("model"), &data, json!({}), u64::MAX));
    assert!(message.contains("nothing to imitate: 1 lines") && message.contains("1 without an answer"), "{message}");
    let empty = bench.file("empty.jsonl", "");
    let (message, _) = failure(bench.sft("bad", &fixture("model"), &empty, json!({}), u64::MAX));
    assert!(message.contains("nothing to imitate: 0 lines"), "{message}");
    let endless = text(
        &bench,
        Some(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        ),
    );
    let error = chat::examples(&endless, &conversation(&TALK)).unwrap_err().to_string();
    assert!(error.contains("without an end token"), "{error}");
}

#[test]
fn what_is_too_long_is_refused_dropped_or_cut_and_counted() {
    let bench = Bench::new();
    let long = "very ".repeat(60);
    let data = bench.chats("chat.jsonl", &[("a", "b"), ("c", &long), ("d", "e")]);
    let run = |how: &str| {
        let params = json!({ "max_length": 40, "on_long": how, "epochs": 1, "batch": 3, "learning_rate": 1e-3 });
        bench.sft(how, &fixture("model"), &data, params, u64::MAX)
    };
    let (message, help) = failure(run("refuse"));
    assert!(message.contains("line 2 of") && message.contains("expected at most 40"), "{message}");
    assert!(help.contains("on_long"), "{help}");
    let count = |how: &str| {
        let metrics = run(how).unwrap();
        let at = |name: &str| metrics.iter().find(|m| m.1 == name).map(|m| m.2);
        (at("examples"), at("dropped_examples"), at("truncated_examples"), at("truncated"))
    };
    assert_eq!(count("drop"), (Some(2.0), Some(1.0), Some(0.0), None));
    assert_eq!(count("truncate"), (Some(3.0), Some(0.0), Some(1.0), Some(1.0)));
}

fn group(pattern: &str) -> Group {
    Group { pattern: pattern.to_owned(), learning_rate_scale: 1.0, weight_decay: None, frozen: false }
}

/// Gradients of one short sequence.
fn backward(model: &mut Model) {
    let mut row = Row::default();
    row.add(0, None, &[5, 9, 2, 7, 7, 1], |_| true);
    model.train(&row.ids, &row.packing, &row.targets, 1.0, |_, _| -0.2).unwrap();
}

#[test]
fn only_what_is_trained_has_gradients_and_state() {
    let frozen = Group { frozen: true, ..group("model.layers.[0]*") };
    assert!(
        Settings { groups: vec![frozen], ..Settings::default() }
            .apply(&mut model::load(&fixture("model"), &Device::Cpu).unwrap())
            .unwrap_err()
            .to_string()
            .contains("`model.layers.[0]*` of the optimizer fits no parameter"),
        "brackets are no pattern"
    );
    let groups = vec![Group { frozen: true, ..group("model.layers.0.*") }, Group { frozen: true, ..group("*norm*") }];
    let settings = Settings { groups, ..Settings::default() };
    let mut model = model::load(&fixture("model"), &Device::Cpu).unwrap();
    settings.apply(&mut model).unwrap();
    let before: Vec<Vec<f32>> = model.params().iter().map(|p| flat(&p.value)).collect();
    backward(&mut model);
    let mut optimizer = Optimizer::new(settings);
    let with_grad: BTreeSet<String> =
        model.params().iter().filter(|p| p.grad.is_some()).map(|p| p.name.clone()).collect();
    let trainable: BTreeSet<String> = model.params().iter().filter(|p| p.trainable).map(|p| p.name.clone()).collect();
    assert_eq!(with_grad, trainable);
    assert_eq!(trainable.len(), 1 + 2 * 7, "the embedding, and seven matrices in each of two layers");
    optimizer.step(&mut model, 1e-2).unwrap();
    assert_eq!(optimizer.tensors(&model).unwrap().len(), 2 * trainable.len(), "two moments each");
    for (p, before) in model.params().iter().zip(before) {
        assert_eq!(flat(&p.value) != before, p.trainable, "{}", p.name);
    }
}

#[test]
fn the_first_group_that_fits_sets_rate_and_decay() {
    let step = |groups: Vec<Group>| {
        let adamw = AdamW { weight_decay: 0.5, ..AdamW::default() };
        let settings = Settings { adamw, groups, ..Settings::default() };
        let mut model = model::load(&fixture("model"), &Device::Cpu).unwrap();
        settings.apply(&mut model).unwrap();
        backward(&mut model);
        Optimizer::new(settings).step(&mut model, 1e-2).unwrap();
        let name = |p: &&actloom_ops::nn::layer::Param| p.name == "model.norm.weight";
        flat(&model.params().into_iter().find(name).unwrap().value)[0]
    };
    let start = flat(&tensors(&fixture("model").join("model.safetensors"))["model.norm.weight"])[0];
    let plain = step(Vec::new());
    let kept = step(vec![Group { weight_decay: Some(0.0), ..group("*norm*") }, group("model.layers*")]);
    assert!((plain - kept + 0.01 * 0.5 * start).abs() < 1e-6, "decay is rate x decay x weight: {plain} {kept} {start}");
    let slow =
        step(vec![Group { weight_decay: Some(0.0), learning_rate_scale: 0.5, ..group("model.norm*") }, group("*")]);
    assert!(((slow - start) * 2.0 - (kept - start)).abs() < 1e-6, "{slow} {kept} {start}");
    let shadowed = Settings { groups: vec![group("*"), group("*norm*")], ..Settings::default() };
    let mut model = model::load(&fixture("model"), &Device::Cpu).unwrap();
    assert!(shadowed.apply(&mut model).unwrap_err().to_string().contains("is left no parameter"));
    let all = Settings { groups: vec![Group { frozen: true, ..group("*") }], ..Settings::default() };
    assert!(all.apply(&mut model).unwrap_err().to_string().contains("every parameter is frozen"));
}

const LESSONS: [(&str, &str); 5] = [
    ("where is the mug?", "on shelf 1"),
    ("and the fork?", "in drawer 2"),
    ("open the fridge", "it is open"),
    ("what do you see?", "an egg and a cup"),
    ("take the egg", "you have the egg"),
];

fn lora_params() -> Value {
    json!({
        "epochs": 3, "batch": 2, "learning_rate": 0.01, "row_tokens": 64,
        "lora": { "rank": 4, "alpha": 8, "targets": ["q_proj", "down_proj"], "dropout": 0.1 },
    })
}

#[test]
fn lora_trains_only_its_matrices_and_its_two_outputs_agree() {
    let bench = Bench::new();
    let (base, data) = (fixture("model"), bench.chats("chat.jsonl", &LESSONS));
    let metrics = bench.sft("tuned", &base, &data, lora_params(), u64::MAX).unwrap();
    let losses: Vec<f64> = metrics.iter().filter(|m| m.1 == "loss").map(|m| m.2).collect();
    assert!(losses[losses.len() - 1] < losses[0], "{losses:?}");
    let (before, after) =
        (tensors(&base.join("model.safetensors")), tensors(&bench.path("tuned/model/model.safetensors")));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, value) in &before {
        let target = name.contains("q_proj") || name.contains("down_proj");
        assert_eq!(flat(value) != flat(&after[name]), target, "{name}");
    }
    // The adapter alone, on the base, is the merged model.
    let mut model = model::load(&base, &Device::Cpu).unwrap();
    lora::load_adapter(&mut model, &bench.path("tuned/adapter")).unwrap();
    for (name, value) in &after {
        assert_eq!(flat(&model.weight(name).unwrap()), flat(value), "{name}");
    }
}

#[test]
fn lora_that_was_stopped_goes_on_to_the_same_bytes_from_a_checkpoint_of_its_matrices_alone() {
    let bench = Bench::new();
    let (base, data) = (fixture("model"), bench.chats("chat.jsonl", &LESSONS));
    bench.sft("whole", &base, &data, lora_params(), u64::MAX).unwrap();
    let mut stops = 0;
    while let Err(error) = bench.sft("parts", &base, &data, lora_params(), 2) {
        assert!(matches!(error, OpError::Interrupted), "{error}");
        stops += 1;
        let saved = tensors(&bench.path(&format!("parts-scratch/at-{}/weights.safetensors", 2 * stops)));
        assert_eq!(saved.len(), 2 * 2 * 3, "A and B of two targets in three layers");
        assert!(saved.keys().all(|name| name.contains("lora_")));
    }
    assert!(stops >= 2, "stopped {stops} times only");
    for file in ["model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"] {
        let read = |name: &str| std::fs::read(bench.path(&format!("{name}/{file}"))).unwrap();
        assert_eq!(read("whole"), read("parts"), "{file}");
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(bench.path("whole/adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(4), &json!(8)));
    let mut more = lora_params();
    more["recompute"] = json!(true);
    bench.sft("recomputed", &base, &data, more, u64::MAX).unwrap();
    let read = |name: &str| std::fs::read(bench.path(&format!("{name}/model/model.safetensors"))).unwrap();
    assert_eq!(read("whole"), read("recomputed"), "recomputing changes no bit");
}

#[test]
fn what_is_not_finite_stops_with_a_name_and_the_checkpoint_to_go_on_from() {
    let bench = Bench::new();
    // The row of one token is broken, and only one of the conversations has that token. It is frozen: a trained one would
    // be found broken at the first checkpoint.
    let text = Text::load(&fixture("model"), &[317, 315]).unwrap();
    let broken = bench.path("broken");
    model::copy_text_files(&fixture("model"), &broken).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(fixture("model-untied/config.json")).unwrap()).unwrap();
    model::save(&Model::random(Config::from_json(&config).unwrap(), 3).unwrap(), &broken).unwrap();
    let token = text.encode("~").unwrap()[0] as usize;
    let mut all = tensors(&broken.join("model.safetensors"));
    let embed = all.get_mut("model.embed_tokens.weight").unwrap();
    let mut values = flat(embed);
    let width = embed.dim(1).unwrap();
    values[token * width..(token + 1) * width].fill(f32::INFINITY);
    *embed = Tensor::from_vec(values, embed.dims().to_vec(), &Device::Cpu).unwrap();
    let list: Vec<(String, &Tensor)> = all.iter().map(|(name, value)| (name.clone(), value)).collect();
    model::save_tensors(&broken.join("model.safetensors"), &list).unwrap();
    let mut lessons = LESSONS.to_vec();
    lessons.push(("~", "no"));
    let data = bench.chats("chat.jsonl", &lessons);
    let params = json!({ "epochs": 1, "batch": 1, "checkpoint_every": 1, "learning_rate": 1e-3, "optimizer": { "groups": [{ "match": "*embed*", "frozen": true }] } });
    let first = failure(bench.sft("run", &broken, &data, params.clone(), u64::MAX));
    let (message, help) = &first;
    assert!(message.contains("is not finite at update ") && message.contains("gradient of `"), "{message}");
    let update: u64 = message.split("update ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(update > 1, "the broken token came first; nothing was tested");
    let folder = bench.path(&format!("run-scratch/at-{}", update - 1));
    assert!(help.contains(folder.as_str()) && folder.exists(), "{help}");
    // It goes on from there, and meets the same again.
    assert_eq!(failure(bench.sft("run", &broken, &data, params, u64::MAX)), first);
}

#[test]
fn moments_in_bfloat16_train_like_those_in_float32() {
    let tensor = |x: Vec<f32>| Tensor::from_vec(x, 4096, &Device::Cpu).unwrap();
    // slow decays, in which rounding to the nearest would lose every gradient
    let adamw = AdamW { beta1: 0.99, beta2: 0.999, clip: 0.0, weight_decay: 0.0, ..AdamW::default() };
    let moments = |moments: Precision| {
        let mut rng = Rng::new(3, 1);
        let (mut m, mut v) = (tensor(vec![0.0; 4096]), tensor(vec![0.0; 4096]));
        let mut p = tensor(vec![0.0; 4096]);
        for t in 1..=300u64 {
            let g = tensor((0..4096).map(|_| 1.0 + rng.normal() as f32).collect());
            let correction = [adamw.beta1, adamw.beta2].map(|beta| (1.0 - beta.powi(t as i32)) as f32);
            let step = AdamStep {
                lr: 1e-3,
                beta1: adamw.beta1 as f32,
                beta2: adamw.beta2 as f32,
                eps: 1e-8,
                weight_decay: 0.0,
                scale: 1.0,
                correction,
            };
            kernel::adamw(Kernels::Cpu, &mut p, &g, &mut m, &mut v, step).unwrap();
            if moments == Precision::Bfloat16 {
                kernel::round_at_random(Kernels::Cpu, &mut m, (7, t, 0)).unwrap();
                kernel::round_at_random(Kernels::Plain, &mut v, (7, t, 1)).unwrap();
            }
        }
        [m, v, p].map(|t| t.to_vec1::<f32>().unwrap())
    };
    let (exact, rounded) = (moments(Precision::Float32), moments(Precision::Bfloat16));
    let mean = |x: &[f32]| x.iter().map(|x| f64::from(*x)).sum::<f64>() / x.len() as f64;
    for (what, (a, b)) in ["m", "v", "p"].iter().zip(exact.iter().zip(&rounded)) {
        assert_ne!(a, b);
        let off = (mean(b) / mean(a) - 1.0).abs();
        assert!(off < 2e-3, "{what} is {off} off on average");
    }
    assert!(rounded[..2].iter().flatten().all(|x| x.to_bits() & 0xffff == 0));
}
