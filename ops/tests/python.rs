//! What we write is loaded by transformers and peft, and what they write by us, with equal logits, ids and texts.
//!
//! External: needs a Python with torch, transformers and peft, `ACTLOOM_PYTHON` or else `python3`. It is passed over with
//! a line where there is none, unless `ACTLOOM_EXTERNAL=1` says that everything external is there. `python/models.py` is
//! the other side.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its model should stop")]

mod small;

use std::process::Command;

use actloom_ops::model::{self, Model, lora};
use actloom_ops::nn::Packing;
use actloom_ops::rng::Rng;
use actloom_ops::text::{Message, Role, Text, train_tokenizer};
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

fn tests() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// A Python that has what the other side needs.
fn python() -> Option<String> {
    let name = std::env::var("ACTLOOM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let try_out = Command::new(&name).args(["-c", "import torch, transformers, peft"]).output();
    let found = try_out.as_ref().is_ok_and(|out| out.status.success());
    let must = std::env::var("ACTLOOM_EXTERNAL").is_ok_and(|value| value == "1");
    assert!(found || !must, "ACTLOOM_EXTERNAL=1 and `{name}` has no torch, transformers and peft: {try_out:?}");
    if !found {
        eprintln!("skipped: `{name}` has no torch, transformers and peft to compare with");
    }
    found.then_some(name)
}

fn run(python: &str, what: &str, folder: &Utf8Path) {
    let ran = Command::new(python)
        .arg(tests().join("python/models.py"))
        .args([what, folder.as_str()])
        .env("HF_HUB_OFFLINE", "1")
        .env("TOKENIZERS_PARALLELISM", "false")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "models.py {what}: {said}");
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

/// The folders in a folder, sorted.
fn inside(folder: &Utf8Path) -> Vec<Utf8PathBuf> {
    let mut all: Vec<Utf8PathBuf> = folder.read_dir_utf8().unwrap().map(|e| e.unwrap().into_path()).collect();
    all.sort();
    all
}

/// Greedy continuation over the cache.
fn greedy(model: &Model, ids: &[u32], n: usize) -> Vec<i64> {
    let mut sequence = model.sequence();
    let mut new = ids.to_vec();
    let mut out = Vec::new();
    for _ in 0..n {
        let z = model.extend(&mut [(&mut sequence, &new)]).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let best = (0..z.len()).max_by(|a, b| z[*a].total_cmp(&z[*b])).unwrap();
        out.push(best as i64);
        new = vec![best as u32];
    }
    out
}

/// Our logits and continuations of a folder are those in its `theirs.safetensors`.
fn compare(folder: &Utf8Path) {
    let mut model = model::load(folder, &Device::Cpu).unwrap_or_else(|e| panic!("{folder}: {e}"));
    if folder.join("adapter").exists() {
        lora::load_adapter(&mut model, &folder.join("adapter")).unwrap_or_else(|e| panic!("{folder}: {e}"));
    }
    let theirs = candle_core::safetensors::load(folder.join("theirs.safetensors"), &Device::Cpu).unwrap();
    let all: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(folder.join("ids.json")).unwrap()).unwrap();
    let mut packing = Packing::new();
    all.iter().for_each(|ids| {
        packing.root(ids.len());
    });
    let rows = model.logits(&all.concat(), &packing).unwrap();
    let mut at = 0;
    for (i, ids) in all.iter().enumerate() {
        let want = &theirs[&format!("logits.{i}")];
        let off = (rows.narrow(0, at, ids.len()).unwrap() - want).unwrap().abs().unwrap().flatten_all().unwrap();
        let worst: f32 = off.max(0).unwrap().to_scalar().unwrap();
        assert!(worst < 5e-5, "{folder}: logits of sequence {i} are off by {worst}");
        at += ids.len();
        let lead: f32 = theirs[&format!("lead.{i}")].get(0).unwrap().to_scalar().unwrap();
        assert!(
            lead > 2e-4,
            "{folder}: sequence {i} has a near tie ({lead}), which decides nothing: take another seed"
        );
        let want: Vec<i64> = theirs[&format!("greedy.{i}")].to_vec1().unwrap();
        assert_eq!(greedy(&model, ids, want.len()), want, "{folder}: continuation of sequence {i}");
    }
}

fn ask(folder: &Utf8Path, rng: &mut Rng, vocabulary: usize) {
    let ids: Vec<Vec<u32>> = [2, 23, 70].iter().map(|n| small::ids(rng, *n, vocabulary)).collect();
    std::fs::write(folder.join("ids.json"), serde_json::to_vec(&ids).unwrap()).unwrap();
}

#[test]
fn transformers_and_peft_load_what_we_write() {
    let Some(python) = python() else { return };
    let (_keep, root) = folder();
    let mut rng = Rng::new(31, 0);
    let mut sliding = small::qwen2();
    sliding["use_sliding_window"] = json!(true);
    sliding["sliding_window"] = json!(6);
    sliding["layer_types"] = json!(["sliding_attention", "full_attention", "sliding_attention"]);
    let mut biased = small::llama();
    biased["attention_bias"] = json!(true);
    biased["mlp_bias"] = json!(true);
    let families = [small::qwen3(), small::qwen2(), small::llama(), small::olmo3(), sliding, biased];
    for (i, mut config) in families.into_iter().enumerate() {
        for (j, [hidden, heads, kv, layers]) in [[24, 4, 2, 3], [40, 2, 1, 3], [64, 8, 8, 3]].into_iter().enumerate() {
            config["hidden_size"] = json!(hidden);
            config["num_attention_heads"] = json!(heads);
            config["num_key_value_heads"] = json!(kv);
            config["num_hidden_layers"] = json!(layers);
            config["vocab_size"] = json!(67 + 40 * j);
            config["tie_word_embeddings"] = json!(j == 1);
            let mut model = small::random(&config, (10 * i + j) as u64);
            let folder = root.join(format!("{}-{i}-{j}", config["model_type"].as_str().unwrap()));
            model::save(&model, &folder).unwrap();
            ask(&folder, &mut rng, model.config.vocab_size);
            if j > 0 {
                let targets: &[&str] = if j == 1 { &["all"] } else { &["q_proj", "down_proj"] };
                let targets = targets.iter().map(|t| (*t).to_owned()).collect();
                let settings = lora::Lora { rank: 2 + j, alpha: 5.0, targets, dropout: 0.0 };
                lora::attach(&mut model, &settings, 3).unwrap();
                for p in model.params_mut().into_iter().filter(|p| p.trainable) {
                    let n = p.value.elem_count();
                    let noise: Vec<f32> = (0..n).map(|_| (rng.normal() * 0.2) as f32).collect();
                    p.value = Tensor::from_vec(noise, p.value.shape(), &Device::Cpu).unwrap();
                    p.changed();
                }
                lora::save_adapter(&model, &folder.join("adapter"), folder.as_str()).unwrap();
            }
        }
    }
    run(&python, "forward", &root);
    let folders = inside(&root);
    assert_eq!(folders.len(), 18);
    folders.iter().for_each(|folder| compare(folder));
}

#[test]
fn what_transformers_and_peft_write_is_loaded_with_their_logits() {
    let Some(python) = python() else { return };
    let (_keep, root) = folder();
    run(&python, "write", &root);
    let folders = inside(&root);
    assert_eq!(folders.len(), 16);
    folders.iter().for_each(|folder| compare(folder));
    let types: Vec<DType> = folders
        .iter()
        .filter_map(|f| candle_core::safetensors::load(f.join("model.safetensors"), &Device::Cpu).ok())
        .map(|tensors| tensors["model.norm.weight"].dtype())
        .collect();
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        assert!(types.contains(&dtype), "no model was stored in {dtype:?}");
    }
}

fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

#[test]
fn tokenizers_and_chat_templates_give_the_ids_and_texts_of_transformers() {
    let Some(python) = python() else { return };
    let (_keep, root) = folder();
    let texts = [
        "go to cabinet 1\nopen cabinet 1",
        " two  spaces, a tab\tand <think>marks</think>",
        "",
        "<|end|><|user|>Zürich — 東京 😀 e\u{301}\r\n1234567890",
    ];
    let corpus: Vec<String> =
        (0..50).map(|i| format!("go to cabinet {i}\nput mug {i} in fridge 1\n> look\n")).collect();
    // a tokenizer of our own
    let ours = root.join("ours");
    train_tokenizer(&corpus, 300, &ours).unwrap();
    let conversations = [
        vec![message(Role::User, "look")],
        vec![message(Role::System, "s"), message(Role::User, " a\n"), message(Role::Assistant, "<think>b</think>c")],
    ];
    let chats: Vec<Value> = conversations
        .iter()
        .flat_map(|messages| [false, true].map(|prompt| json!({ "messages": messages, "prompt": prompt })))
        .collect();
    let write = |folder: &Utf8Path, chats: &[Value]| {
        let ask = json!({ "texts": texts, "chats": chats });
        std::fs::write(folder.join("ask.json"), ask.to_string()).unwrap();
    };
    write(&ours, &chats);
    // the parity model's tokenizer under each of the templates of the fixtures
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(tests().join("fixtures/templates/cases.json")).unwrap()).unwrap();
    let mut names: Vec<&str> = cases.iter().map(|c| c["template"].as_str().unwrap()).collect();
    names.dedup();
    for name in &names {
        let folder = root.join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::copy(tests().join("fixtures/parity/model/tokenizer.json"), folder.join("tokenizer.json")).unwrap();
        let template = tests().join(format!("fixtures/templates/{name}.jinja"));
        std::fs::copy(template, folder.join("chat_template.jinja")).unwrap();
        let settings = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "clean_up_tokenization_spaces": false });
        std::fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let mine: Vec<Value> = cases.iter().filter(|c| c["template"] == *name).cloned().collect();
        write(&folder, &mine);
    }
    run(&python, "text", &root);
    let folders = inside(&root);
    assert_eq!(folders.len(), names.len() + 1);
    for folder in folders {
        let text = Text::load(&folder, &[]).unwrap();
        let read =
            |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
        let (ask, answer) = (read("ask.json"), read("answer.json"));
        for (i, source) in texts.iter().enumerate() {
            let ids = text.encode(source).unwrap();
            assert_eq!(json!(ids), answer["ids"][i], "{folder}: {source:?}");
            assert_eq!(json!(text.decode(&ids).unwrap()), answer["texts"][i], "{folder}: {source:?}");
        }
        for (chat, want) in ask["chats"].as_array().unwrap().iter().zip(answer["chats"].as_array().unwrap()) {
            let variables = chat["variables"].as_object().cloned().unwrap_or_else(Map::new);
            let got = text.render_with(&chat["messages"], chat["prompt"] == true, &variables);
            match want["error"].as_str() {
                Some(error) => assert!(got.unwrap_err().to_string().contains(error), "{folder}: {error}"),
                None => assert_eq!(json!(got.unwrap()), *want, "{folder}: {chat}"),
            }
        }
    }
}
