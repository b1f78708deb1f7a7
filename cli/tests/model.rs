//! `actloom model` and `actloom chat` as people and scripts meet them: numbers against PyTorch's, exact output, refusals.
//!
//! Invariant: the models are the tiny ones of the parity vectors; where those come from is in their README.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/tests/fixtures/parity").canonicalize().unwrap()
}

fn vectors() -> Value {
    serde_json::from_slice(&fs_err::read(fixtures().join("model.json")).unwrap()).unwrap()
}

/// A tensor as it lies in a file.
struct Raw {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Raw {
    fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, "F32");
        self.data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ids(&self) -> Vec<i64> {
        assert_eq!(self.dtype, "I64");
        self.data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// A safetensors file, read by its format's description.
fn tensors(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = fs_err::read(path).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let whole = |v: &Value| v.as_u64().unwrap() as usize;
    let entries = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    entries
        .map(|(name, info)| {
            let (from, to) = (whole(&info["data_offsets"][0]), whole(&info["data_offsets"][1]));
            let raw = Raw {
                dtype: info["dtype"].as_str().unwrap().to_owned(),
                shape: info["shape"].as_array().unwrap().iter().map(whole).collect(),
                data: bytes[8 + size + from..8 + size + to].to_vec(),
            };
            (name.clone(), raw)
        })
        .collect()
}

fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 5e-5, "{what}: off by {worst}");
}

/// An empty folder with the fixtures beside it, as `models`.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(fixtures(), dir.path().join("models")).unwrap();
        Place(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).unwrap();
    }

    fn go_with(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_actloom"));
        command.args(args).current_dir(self.0.path()).env_clear();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // whoever does not read its input closes it
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn go(&self, args: &[&str]) -> Output {
        self.go_with(args, "")
    }

    /// Code, stdout and stderr.
    fn shown(&self, args: &[&str]) -> String {
        let output = self.go(args);
        let part = |name: &str, bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            if text.is_empty() { String::new() } else { format!("--- {name}\n{text}") }
        };
        let code = output.status.code().unwrap();
        format!("code {code}\n{}{}", part("stdout", &output.stdout), part("stderr", &output.stderr))
    }

    fn stdout(&self, args: &[&str]) -> String {
        let output = self.go(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.stdout(&[args, &["--json"]].concat())).unwrap()
    }

    /// Runs `model logits` on `lists` with further arguments.
    fn logits(&self, model: &str, lists: &Value, more: &[&str]) -> BTreeMap<String, Raw> {
        self.write("tokens.json", &lists.to_string());
        let args = ["model", "logits", model, "--tokens", "tokens.json", "--out", "out.safetensors"];
        self.stdout(&[&args, more].concat());
        tensors(&self.path("out.safetensors"))
    }
}

fn row(ids: &[i64]) -> Value {
    json!(ids)
}

#[test]
fn logits_agree_with_pytorch_for_every_family_however_lists_are_batched() {
    let place = Place::new();
    for (file, models) in [
        ("other_models.safetensors", &["model-untied", "model-qwen2", "model-llama"][..]),
        ("olmo3.safetensors", &["model-olmo3"]),
    ] {
        let want = tensors(&fixtures().join(file));
        for model in models {
            let count = (0..).take_while(|i| want.contains_key(&format!("{model}.ids.{i}"))).count();
            let ids: Vec<Vec<i64>> = (0..count).map(|i| want[&format!("{model}.ids.{i}")].ids()).collect();
            let folder = format!("models/{model}");
            let got = place.logits(&folder, &json!(ids), &[]);
            assert_eq!(got.len(), count);
            for (i, list) in ids.iter().enumerate() {
                let (got, want) = (&got[&format!("logits.{i}")], &want[&format!("{model}.logits.{i}")]);
                assert_eq!(got.shape, want.shape);
                close(&got.f32(), &want.f32(), &format!("{model} {i}"));
                let alone = place.logits(&folder, &json!([row(list)]), &[]);
                assert!(alone["logits.0"].data == got.data, "{model} {i} depends on its batch");
            }
        }
    }
    let want = tensors(&fixtures().join("forward.safetensors"));
    let (ids, logits) = (want["input_ids"].ids(), want["logits"].f32());
    let got = place.logits("models/model", &json!([row(&ids[16..27]), row(&ids[..16])]), &[]);
    close(&got["logits.1"].f32(), &logits[..16 * 320], "model 0");
    close(&got["logits.0"].f32(), &logits[16 * 320..27 * 320], "model 1");
}

#[test]
fn greedy_ids_are_pytorchs_and_ignore_end_ids() {
    let place = Place::new();
    let vectors = vectors();
    let cases = vectors["greedy"]["cases"].as_array().unwrap();
    let prompts: Vec<&Value> = cases.iter().map(|case| &case["prompt"]).collect();
    let got = place.logits("models/model", &json!(prompts), &["--greedy", "20"]);
    for (i, case) in cases.iter().enumerate() {
        let greedy = &got[&format!("greedy.{i}")];
        assert_eq!((&greedy.shape, json!(greedy.ids())), (&vec![20], case["new"].clone()));
    }
    for (model, case) in vectors["other_models"].as_object().unwrap() {
        let lists = json!([[1], case["greedy"]["prompt"], [2, 3, 4]]);
        let got = place.logits(&format!("models/{model}"), &lists, &["--greedy", "12"]);
        assert_eq!(json!(got["greedy.1"].ids()), case["greedy"]["new"], "{model}");
    }
}

#[test]
fn adapters_give_pefts_logits_put_on_or_merged() {
    let place = Place::new();
    let want = tensors(&fixtures().join("lora.safetensors"));
    let lists = json!([row(&want["input_ids"].ids())]);
    for adapter in ["lora", "lora-all"] {
        let folder = format!("models/{adapter}");
        let want = want[&format!("{adapter}.merged_logits")].f32();
        let got = place.logits("models/model", &lists, &["--adapter", &folder]);
        close(&got["logits.0"].f32(), &want, adapter);
        place.stdout(&["model", "merge", "models/model", "--adapter", &folder, "--out", adapter]);
        let merged = place.logits(adapter, &lists, &[]);
        assert!(merged["logits.0"].data == got["logits.0"].data, "{adapter}: merging changed a bit");
        assert!(place.path(adapter).join("tokenizer.json").is_file());
    }
    // stored as the base is
    place.stdout(&["model", "convert", "models/model", "--dtype", "bfloat16", "--out", "base16"]);
    place.stdout(&["model", "merge", "base16", "--adapter", "models/lora", "--out", "merged16"]);
    let stored = tensors(&place.path("merged16/model.safetensors"));
    assert!(stored.values().all(|tensor| tensor.dtype == "BF16"));
}

#[test]
fn token_files_that_cannot_be_used_are_refused_with_list_and_position() {
    let place = Place::new();
    let long = json!([[1], vec![7; 600]]).to_string();
    let shown: Vec<String> =
        ["[[1, 2], [3, 320]]", "[[1], []]", "[]", "[[1, -2]]", "[1, 2]", "{\"a\": 1}", "[[1,", &long]
            .iter()
            .map(|text| {
                place.write("t.json", text);
                place.shown(&["model", "logits", "models/model-untied", "--tokens", "t.json", "--out", "o.safetensors"])
            })
            .collect();
    insta::assert_snapshot!(shown.join("\n"));
    place.write("t.json", &json!([vec![7; 500]]).to_string());
    let args = ["model", "logits", "models/model-untied", "--tokens", "t.json", "--out", "o.safetensors"];
    insta::assert_snapshot!(place.shown(&[&args[..], &["--greedy", "13"]].concat()));
    assert!(!place.path("o.safetensors").exists() && !place.path("o.safetensors.part").exists());
    assert_eq!(place.go(&[&args[..], &["--greedy", "12"]].concat()).status.code(), Some(0));
    assert_eq!(place.go(&[&args[..], &["--greedy", "0"]].concat()).status.code(), Some(2));
    assert_eq!(place.go(&["model", "logits", "nowhere", "--tokens", "t.json", "--out", "o"]).status.code(), Some(4));
    // the result takes the place of no folder and not of its own input
    let to = |out: &str| place.shown(&["model", "logits", "models/model-untied", "--tokens", "t.json", "--out", out]);
    assert!(to("models").contains("`models` is there and is no file"), "{}", to("models"));
    assert!(to("./t.json").contains("is the file of tokens"), "{}", to("./t.json"));
    assert!(!place.path("models.part").exists() && !place.path("t.json.part").exists());
}

#[test]
fn info_describes_models_and_adapters() {
    let place = Place::new();
    for name in ["model", "model-untied", "model-llama", "lora-all"] {
        insta::assert_snapshot!(name, place.shown(&["model", "info", &format!("models/{name}")]));
    }
    let info = place.json(&["model", "info", "models/model"]);
    let weights = tensors(&fixtures().join("model/model.safetensors"));
    let parameters: usize = weights.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!(info["parameters"], parameters);
    // two matrices of 3 layers, 2 heads of 16 values, 4 bytes each
    assert_eq!(info["memory"]["kv_per_token"], 2 * 3 * 2 * 16 * 4);
    assert_eq!(info["memory"]["full"]["optimizer"], 8 * parameters);
    let adapter = tensors(&fixtures().join("lora-all/adapter_model.safetensors"));
    let rank4: usize = adapter.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    assert_eq!(place.json(&["model", "info", "models/lora-all"])["parameters"], rank4);
    assert_eq!(info["memory"]["lora"]["trainable"], 4 * rank4, "rank 16 against rank 4");
}

#[test]
fn info_names_every_refused_field_and_describes_the_model_all_the_same() {
    let place = Place::new();
    let mut config: Value =
        serde_json::from_slice(&fs_err::read(fixtures().join("model/config.json")).unwrap()).unwrap();
    config["hidden_act"] = json!("gelu");
    config["logit_cap"] = json!(30.0);
    config["quantization_config"] = json!({ "bits": 4 });
    fs_err::create_dir(place.path("odd")).unwrap();
    fs_err::copy(fixtures().join("model/model.safetensors"), place.path("odd/model.safetensors")).unwrap();
    place.write("odd/config.json", &config.to_string());
    let refused = place.json(&["model", "info", "odd"])["refused"].clone();
    let mut fields: Vec<&str> = refused.as_array().unwrap().iter().map(|r| r["field"].as_str().unwrap()).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["hidden_act", "logit_cap", "quantization_config"]);
    insta::assert_snapshot!(place.shown(&["model", "info", "odd"]));

    config["model_type"] = json!("mamba");
    place.write("odd/config.json", &config.to_string());
    let shown = place.shown(&["model", "info", "odd"]);
    assert!(shown.contains("refused") && shown.contains("mamba"), "{shown}");
    assert_eq!(place.go(&["model", "info", "models"]).status.code(), Some(4));
    place.write("junk.gguf", "no gguf");
    assert_eq!(place.go(&["model", "info", "junk.gguf"]).status.code(), Some(4));
}

#[test]
fn texts_depend_on_the_seed_and_not_on_how_many_there_are() {
    let place = Place::new();
    let args = |more: &[&'static str]| {
        [&["model", "generate", "models/model", "--prompt", "open the door", "--max-tokens", "16"], more].concat()
    };
    let three = place.json(&args(&["--samples", "3", "--top-p", "0.9", "--seed", "5"]));
    let one = place.json(&args(&["--top-p", "0.9", "--seed", "5"]));
    assert_eq!(three["samples"][0], one["samples"][0]);
    assert_ne!(three["samples"][0]["ids"], three["samples"][1]["ids"]);
    assert_ne!(place.json(&args(&["--seed", "6"]))["samples"][0]["ids"], one["samples"][0]["ids"]);
    let streamed = place.stdout(&args(&["--top-p", "0.9", "--seed", "5"]));
    let text = one["samples"][0]["text"].as_str().unwrap();
    assert_eq!(streamed, if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") });

    let sample = &one["samples"][0];
    assert_eq!(sample["ids"].as_array().unwrap().len(), sample["logps"].as_array().unwrap().len());
    assert!(sample["logps"].as_array().unwrap().iter().all(|logp| logp.as_f64().unwrap() <= 0.0));
}

#[test]
fn the_likeliest_text_is_the_one_of_greedy_ids_and_stop_strings_cut_it() {
    let place = Place::new();
    let base = ["model", "generate", "models/model", "--temperature", "0", "--max-tokens", "24"];
    let raw = [&base[..], &["--raw", "--prompt", "open the door"]].concat();
    let generated = place.json(&raw);
    assert_eq!(generated["templated"], false);
    let got = place.logits("models/model", &json!([generated["prompt_ids"]]), &["--greedy", "24"]);
    assert_eq!(generated["samples"][0]["ids"], json!(got["greedy.0"].ids()), "the test's text meets no end id");
    let text = generated["samples"][0]["text"].as_str().unwrap();
    let stop = text.chars().skip(2).find(|c| !c.is_control() && *c != '\u{FFFD}').unwrap().to_string();
    let cut = place.json(&[&raw[..], &["--stop", &stop]].concat());
    assert_eq!(cut["samples"][0]["text"], text[..text.find(&stop).unwrap()]);
    assert_eq!(cut["samples"][0]["end"], "stop");

    // a message is what a conversation of one message is, from wherever it comes
    place.write("talk.json", &json!([{"role": "user", "content": "open the door"}]).to_string());
    place.write("prompt.txt", "open the door\n");
    let message = place.stdout(&[&base[..], &["--prompt", "open the door"]].concat());
    assert_eq!(place.stdout(&[&base[..], &["--chat", "talk.json"]].concat()), message);
    assert_eq!(place.stdout(&[&base[..], &["--prompt-file", "prompt.txt"]].concat()), message);
    assert_eq!(String::from_utf8(place.go_with(&base, "open the door\n").stdout).unwrap(), message);
    assert_eq!(place.go(&[&base[..], &["--prompt", "a", "--chat", "talk.json"]].concat()).status.code(), Some(2));
    place.write("talk.json", &json!([{"role": "tool", "content": "x"}]).to_string());
    insta::assert_snapshot!(place.shown(&[&base[..], &["--chat", "talk.json"]].concat()));
}

#[test]
fn a_talk_goes_on_from_what_was_said_and_begins_anew_when_asked() {
    let place = Place::new();
    let args = ["chat", "models/model", "--temperature", "0", "--max-tokens", "12"];
    let talk = |input: &str| {
        let output = place.go_with(&args, input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = talk("open the door\n");
    let answer = place.json(&[
        "model",
        "generate",
        "models/model",
        "--prompt",
        "open the door",
        "--temperature",
        "0",
        "--max-tokens",
        "12",
    ]);
    assert_eq!(first.trim_end_matches('\n'), answer["samples"][0]["text"].as_str().unwrap().trim_end_matches('\n'));
    assert!(talk("open the door\nand now?\n").starts_with(&first));
    assert_eq!(talk("open the door\n/reset\n\nopen the door\n/quit\nmore\n"), first.repeat(2));
    assert_ne!(talk("/system be brief\nopen the door\n"), first);
    let output = place.go_with(&args, "/hlep\n/help\n");
    insta::assert_snapshot!(String::from_utf8(output.stderr).unwrap());
    assert!(output.stdout.is_empty());
}

#[test]
fn a_model_without_a_template_continues_plain_text_and_says_so() {
    let place = Place::new();
    place.stdout(&["model", "convert", "models/model", "--out", "plain"]);
    fs_err::remove_file(place.path("plain/chat_template.jinja")).unwrap();
    let output = place.go_with(&["chat", "plain", "--temperature", "0", "--max-tokens", "6"], "open the door\n");
    let raw = place.stdout(&[
        "model",
        "generate",
        "plain",
        "--raw",
        "--prompt",
        "open the door",
        "--temperature",
        "0",
        "--max-tokens",
        "6",
    ]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), raw);
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("no chat template"), "{talk}");
    let shown =
        place.shown(&["model", "generate", "plain", "--prompt", "a", "--temperature", "0", "--max-tokens", "1"]);
    assert!(shown.contains("no chat template"), "{shown}");
    assert_eq!(place.go(&["chat", "plain", "--system", "be brief"]).status.code(), Some(2));
}

#[test]
fn conversion_rounds_to_the_nearest_and_shards_do_not_change_a_number() {
    let place = Place::new();
    let want = tensors(&fixtures().join("forward.safetensors"));
    let lists = json!([row(&want["input_ids"].ids()[16..27])]);
    place.stdout(&["model", "convert", "models/model", "--dtype", "bfloat16", "--out", "half"]);
    let half = place.logits("half", &lists, &[]);
    close(&half["logits.0"].f32(), &want["bf16_weights_logits"].f32(), "bfloat16 weights");
    let config = |folder: &str| -> Value {
        serde_json::from_slice(&fs_err::read(place.path(folder).join("config.json")).unwrap()).unwrap()
    };
    assert_eq!((&config("half")["dtype"], &config("half")["torch_dtype"]), (&json!("bfloat16"), &json!("bfloat16")));

    // sharded, as wide as before, and back
    place.stdout(&["model", "convert", "half", "--shard-size", "30kB", "--dtype", "float32", "--out", "shards"]);
    let index: Value =
        serde_json::from_slice(&fs_err::read(place.path("shards/model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let stored = tensors(&place.path("half/model.safetensors"));
    assert!(map.keys().eq(stored.keys()), "every tensor is in the index");
    let mut total = 0;
    let mut files: Vec<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    files.sort_unstable();
    files.dedup();
    assert!(files.len() > 2 && !place.path("shards/model.safetensors").exists());
    for (i, file) in files.iter().enumerate() {
        assert_eq!(*file, format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len()));
        let shard = tensors(&place.path("shards").join(file));
        let bytes: usize = shard.values().map(|tensor| tensor.data.len()).sum();
        assert!(bytes <= 30_000 || shard.len() == 1, "{file} has {bytes} bytes");
        assert!(shard.keys().all(|name| map[name] == **file));
        total += bytes;
    }
    assert_eq!(index["metadata"]["total_size"], total);
    assert!(place.logits("shards", &lists, &[])["logits.0"].data == half["logits.0"].data);
    place.stdout(&["model", "convert", "shards", "--dtype", "bfloat16", "--out", "back"]);
    for file in ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
    {
        let read = |folder: &str| fs_err::read(place.path(folder).join(file)).unwrap();
        assert!(read("half") == read("back"), "{file}");
    }
}

#[test]
fn folders_that_exist_are_left_alone_and_values_that_do_not_fit_are_refused() {
    let place = Place::new();
    fs_err::create_dir(place.path("there")).unwrap();
    insta::assert_snapshot!(place.shown(&["model", "convert", "models/model", "--out", "there"]));
    let merge = ["model", "merge", "models/model", "--adapter", "models/lora", "--out", "there"];
    assert_eq!(place.go(&merge).status.code(), Some(2));
    assert_eq!(fs_err::read_dir(place.path("there")).unwrap().count(), 0);

    // one weight that float16 cannot hold
    place.stdout(&["model", "convert", "models/model", "--out", "big"]);
    let path = place.path("big/model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&70_000f32.to_le_bytes());
    fs_err::write(&path, bytes).unwrap();
    insta::assert_snapshot!(place.shown(&["model", "convert", "big", "--dtype", "float16", "--out", "small"]));
    assert!(!place.path("small").exists() && !place.path("small.part").exists(), "nothing is left of a failure");
    // a file that is cut is named
    let bytes = fs_err::read(&path).unwrap();
    fs_err::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    insta::assert_snapshot!(place.shown(&["model", "convert", "big", "--out", "small"]));
}
