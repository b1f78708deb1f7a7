//! Policies whose weights are here: GGUF files against PyTorch's numbers, against our own models, and against candle's
//! readers of the same files; and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use std::collections::BTreeMap;
use std::io::BufReader;

use actloom_engine::op::DeviceRequest;
use actloom_ops::model::{self, load_tensors};
use actloom_ops::policy::gguf;
use actloom_ops::policy::{self, Ask, Finish, Make, Policy, Quantized, Sampling, make_of};
use actloom_ops::rng::Rng;
use actloom_ops::text::{Dialogue, Message, Text};
use camino::{Utf8Path, Utf8PathBuf};
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value as Json;

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

fn json(path: &Utf8Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn folder() -> (tempfile::TempDir, Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
    (folder, path)
}

fn text(s: &str) -> Value {
    Value::String(s.to_owned())
}

/// A checkpoint's tensor name in GGUF's spelling.
fn renamed(name: &str) -> String {
    let name = match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        name => name.strip_prefix("model.layers.").unwrap(),
    };
    let (layer, part) = name.split_once('.').unwrap();
    let mut part = part.to_owned();
    for (hf, gguf) in [
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        part = part.replace(hf, gguf);
    }
    format!("blk.{layer}.{part}")
}

/// Rows of a Llama's q or k as GGUF files hold them: the halves of each head interleaved.
fn interleaved(w: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = w.dims2().unwrap();
    let w = w.reshape((heads, 2, rows / heads / 2, cols)).unwrap();
    w.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

/// 1 / factor by which Llama 3 slows each frequency down, as transformers computes it.
fn llama3_factors(rope: &Json, theta: f64, d: usize) -> Vec<f32> {
    let n = |key: &str| rope[key].as_f64().unwrap();
    let (factor, low, high, old) =
        (n("factor"), n("low_freq_factor"), n("high_freq_factor"), n("original_max_position_embeddings"));
    (0..d / 2)
        .map(|i| {
            let wave = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / d as f64);
            let smooth = (old / wave - low) / (high - low);
            let scale = match () {
                () if wave < old / high => 1.0,
                () if wave > old / low => 1.0 / factor,
                () => (1.0 - smooth) / factor + smooth,
            };
            (1.0 / scale) as f32
        })
        .collect()
}

/// The header's tokenizer: what is in `tokenizer.json` of the fixture.
fn tokenizer_values(values: &mut BTreeMap<String, Value>) {
    let from = fixtures().join("model");
    let tokenizer = json(&from.join("tokenizer.json"));
    let mut tokens: BTreeMap<u64, (String, i32)> = BTreeMap::new();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens.insert(id.as_u64().unwrap(), (token.clone(), 1));
    }
    for added in tokenizer["added_tokens"].as_array().unwrap() {
        let kind = if added["special"] == true { 3 } else { 4 };
        tokens.insert(added["id"].as_u64().unwrap(), (added["content"].as_str().unwrap().to_owned(), kind));
    }
    assert!(tokens.keys().copied().eq(0..tokens.len() as u64));
    let merges = tokenizer["model"]["merges"].as_array().unwrap();
    let merge = |m: &Json| match m {
        Json::String(m) => text(m),
        m => text(&format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap())),
    };
    let mut set = |key: &str, value: Value| values.insert(format!("tokenizer.{key}"), value);
    set("ggml.model", text("gpt2"));
    set("ggml.pre", text("qwen2"));
    set("ggml.tokens", Value::Array(tokens.values().map(|t| text(&t.0)).collect()));
    set("ggml.token_type", Value::Array(tokens.values().map(|t| Value::I32(t.1)).collect()));
    set("ggml.merges", Value::Array(merges.iter().map(merge).collect()));
    set("ggml.eos_token_id", Value::U32(317));
    set("chat_template", text(&std::fs::read_to_string(from.join("chat_template.jinja")).unwrap()));
}

/// A Hugging Face folder as a GGUF file; `kind` quantizes matrices, `edit` changes the header and the tensors.
fn convert(
    from: &Utf8Path,
    to: &Utf8Path,
    kind: impl Fn(&str) -> GgmlDType,
    edit: impl FnOnce(&mut BTreeMap<String, Value>, &mut BTreeMap<String, QTensor>),
) {
    let config = json(&from.join("config.json"));
    let n = |key: &str| config[key].as_u64().map(|n| n as u32);
    let arch = config["model_type"].as_str().unwrap();
    let (heads, kv) = (n("num_attention_heads").unwrap(), n("num_key_value_heads").unwrap());
    let d = n("head_dim").unwrap_or_else(|| n("hidden_size").unwrap() / heads);
    let theta = config["rope_theta"].as_f64().unwrap();
    let mut values = BTreeMap::from([
        ("general.architecture".to_owned(), text(arch)),
        // candle's reader makes its table of angles in float16 without this
        ("general.dtype".to_owned(), Value::U32(0)),
    ]);
    for (key, value) in [
        ("block_count", Value::U32(n("num_hidden_layers").unwrap())),
        ("embedding_length", Value::U32(n("hidden_size").unwrap())),
        ("feed_forward_length", Value::U32(n("intermediate_size").unwrap())),
        ("context_length", Value::U32(n("max_position_embeddings").unwrap())),
        ("attention.head_count", Value::U32(heads)),
        ("attention.head_count_kv", Value::U32(kv)),
        ("attention.key_length", Value::U32(d)),
        ("rope.dimension_count", Value::U32(d)),
        ("rope.freq_base", Value::F32(theta as f32)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32)),
    ] {
        values.insert(format!("{arch}.{key}"), value);
    }
    tokenizer_values(&mut values);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in load_tensors(from).unwrap() {
        let mut tensor = tensor.to_dtype(DType::F32).unwrap();
        if arch == "llama" && name.contains("q_proj") {
            tensor = interleaved(&tensor, heads as usize);
        } else if arch == "llama" && name.contains("k_proj") {
            tensor = interleaved(&tensor, kv as usize);
        }
        let kind = if tensor.rank() == 1 { GgmlDType::F32 } else { kind(&name) };
        tensors.insert(renamed(&name), QTensor::quantize(&tensor, kind).unwrap());
    }
    if config["rope_scaling"]["rope_type"] == "llama3" {
        let factors = llama3_factors(&config["rope_scaling"], theta, d as usize);
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        tensors.insert("rope_freqs.weight".into(), QTensor::quantize(&factors, GgmlDType::F32).unwrap());
    }
    edit(&mut values, &mut tensors);
    let values: Vec<(&str, &Value)> = values.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut std::fs::File::create(to).unwrap(), &values, &tensors).unwrap();
}

fn plain(from: &str, to: &Utf8Path) {
    convert(&fixtures().join(from), to, |_| GgmlDType::F32, |_, _| ());
}

fn ids(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

fn greedy(weights: &Quantized, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut sequence = weights.sequence();
    let mut logits = weights.extend(&mut sequence, prompt).unwrap();
    let mut new = vec![likeliest(&logits)];
    while new.len() < count {
        logits = weights.extend(&mut sequence, &new[new.len() - 1..]).unwrap();
        new.push(likeliest(&logits));
    }
    new
}

fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "off by {worst}, tolerance {tolerance}");
}

#[test]
fn a_gguf_file_says_the_ids_that_pytorch_says() {
    let (_keep, at) = folder();
    let reference = json(&fixtures().join("model.json"));
    let file = at.join("qwen3.gguf");
    plain("model", &file);
    let (weights, _) = gguf::read(&file, &Device::Cpu).unwrap();
    for case in reference["greedy"]["cases"].as_array().unwrap() {
        assert_eq!(greedy(&weights, &ids(&case["prompt"]), 20), ids(&case["new"]));
    }
    for model in ["model-untied", "model-qwen2", "model-llama"] {
        let file = at.join(format!("{model}.gguf"));
        plain(model, &file);
        let (weights, _) = gguf::read(&file, &Device::Cpu).unwrap();
        let case = &reference["other_models"][model]["greedy"];
        assert_eq!(greedy(&weights, &ids(&case["prompt"]), 12), ids(&case["new"]), "{model}");
    }
}

#[test]
fn logits_are_pytorchs_and_a_llama_without_its_rope_factors_is_another_model() {
    let (_keep, at) = folder();
    let reference = candle_core::safetensors::load(fixtures().join("other_models.safetensors"), &Device::Cpu).unwrap();
    let last = |file: &Utf8Path, model: &str| {
        let (weights, _) = gguf::read(file, &Device::Cpu).unwrap();
        let prompt = reference[&format!("{model}.ids.0")].flatten_all().unwrap().to_vec1::<i64>().unwrap();
        let prompt: Vec<u32> = prompt.into_iter().map(|id| id as u32).collect();
        let want = reference[&format!("{model}.logits.0")].get(prompt.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        (weights.extend(&mut weights.sequence(), &prompt).unwrap(), want)
    };
    for model in ["model-untied", "model-qwen2", "model-llama"] {
        let file = at.join(format!("{model}.gguf"));
        plain(model, &file);
        let (got, want) = last(&file, model);
        close(&got, &want, 5e-5);
    }
    let file = at.join("no-factors.gguf");
    let forget = |_: &mut BTreeMap<String, Value>, tensors: &mut BTreeMap<String, QTensor>| {
        assert!(tensors.remove("rope_freqs.weight").is_some());
    };
    convert(&fixtures().join("model-llama"), &file, |_| GgmlDType::F32, forget);
    let (got, want) = last(&file, "model-llama");
    let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst > 1e-2, "forgetting the factors changes logits by {worst} only");
}

#[test]
fn the_tokenizer_and_template_of_the_header_are_those_of_the_folder() {
    let (_keep, at) = folder();
    let file = at.join("qwen3.gguf");
    plain("model", &file);
    let (_, side) = gguf::read(&file, &Device::Cpu).unwrap();
    let folder = Text::load(&fixtures().join("model"), &[317]).unwrap();
    assert_eq!((side.vocabulary(), side.eos.clone()), (folder.vocabulary(), vec![317]));
    let cases = json(&fixtures().join("text_cases.json"));
    for case in cases["tokenizer"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(side.encode(text).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(side.decode(&ids(&case["ids"])).unwrap(), case["decoded"].as_str().unwrap());
    }
    let talk = [Message::user("put a mug in fridge 1."), Message::assistant("go to <think>x</think> desk")];
    assert_eq!(side.render(&talk, true).unwrap(), folder.render(&talk, true).unwrap());

    // what lies beside the file comes first
    std::fs::write(at.join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    std::fs::write(at.join("generation_config.json"), r#"{"eos_token_id": [317, 315]}"#).unwrap();
    let (_, side) = gguf::read(&file, &Device::Cpu).unwrap();
    assert_eq!(side.render(&talk, true).unwrap(), "put a mug in fridge 1.");
    assert_eq!(side.eos, [317, 315]);
}

/// Plays a few turns and returns what was said, with its ids and log-probabilities.
fn talk(policy: &mut dyn Policy, temperature: f32) -> Vec<(String, Vec<u32>, Vec<f32>)> {
    let sampling = Sampling::plain(temperature.into(), 6);
    let session = policy.open();
    let mut said = Vec::new();
    for (turn, seen) in ["you are in a room", "nothing happens", "you see a mug 1"].into_iter().enumerate() {
        policy.user(session, seen).unwrap();
        let allowed = ["go to desk 1".to_owned(), "take mug 1".to_owned(), "look".to_owned()];
        let rng = Rng::at(7, &[turn as u64]);
        let allowed: &[String] = if turn == 1 { &allowed } else { &[] };
        // an answer that is not kept leaves no trace
        let aside = Ask { session, allowed: &[], sampling: &sampling, rng: Rng::at(8, &[0]), keep: false };
        policy.answer(&[aside], &|| false).unwrap();
        let ask = Ask { session, allowed, sampling: &sampling, rng, keep: true };
        let answer = policy.answer(&[ask], &|| false).unwrap().pop().unwrap();
        if turn == 1 && answer.finish == Finish::End {
            assert!(allowed.contains(&answer.text), "{:?}", answer.text);
        }
        said.push((answer.text, answer.ids.unwrap(), answer.logps.unwrap()));
    }
    policy.close(session);
    said
}

#[test]
fn a_gguf_file_and_the_folder_it_came_from_say_the_same_over_several_turns() {
    let (_keep, at) = folder();
    let file = at.join("qwen3.gguf");
    plain("model", &file);
    let mut own = policy::open(&fixtures().join("model"), DeviceRequest::Cpu).unwrap();
    let mut quantized = policy::open(&at, DeviceRequest::Cpu).unwrap();
    assert_eq!((own.identity().make, quantized.identity().make), ("own", "gguf"));
    assert!(own.identity().reproducible && quantized.identity().reproducible);
    for temperature in [0.0, 1.0] {
        let (a, b) = (talk(&mut *own, temperature), talk(&mut *quantized, temperature));
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.0, &a.1), (&b.0, &b.1));
            close(&a.2, &b.2, 1e-4);
        }
        assert_eq!(talk(&mut *quantized, temperature), b, "the same again");
    }
    let (a, b) = (own.cost(), quantized.cost());
    assert_eq!((b.answers, b.sampled), (2 * a.answers, 2 * a.sampled));
    // of an answer that is not kept, the own model keeps nothing: what it read is read again
    assert!(b.read % 2 == 0 && a.read > b.read / 2 && a.read <= b.read, "{} and {}", a.read, b.read);
}

#[test]
fn a_policy_goes_on_from_what_was_said_where_a_template_drops_earlier_reasoning() {
    let (_keep, at) = folder();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("model").join(name), at.join(name)).unwrap();
    }
    let template = fixtures().join("../templates/reasoning.jinja");
    std::fs::copy(template, at.join("chat_template.jinja")).unwrap();
    let side = Text::load(&at, &[317]).unwrap();
    let plain = [Message::user("look"), Message::assistant("go to desk 1"), Message::user("you see a mug")];
    let mut thought = plain.clone();
    thought[1].content = "<think>\nwhere?\n</think>\n\ngo to desk 1".into();
    for (messages, forgets) in [(plain, false), (thought, true)] {
        let mut dialogue = Dialogue::new(&side);
        dialogue.user(&messages[0].content).unwrap();
        dialogue.assistant(&messages[1].content, true).unwrap();
        let before = dialogue.ids().to_vec();
        dialogue.user(&messages[2].content).unwrap();
        // what was said stays as it was said, whatever the template would make of it later
        let whole = dialogue.ids().to_vec();
        assert!(whole.starts_with(&before));
        assert!(dialogue.example.learn.iter().any(|l| *l));
        assert_eq!(whole != side.encode(&side.render(&messages, true).unwrap()).unwrap(), forgets);
        // and a policy goes on from it
        let mut policy = policy::open(&at, DeviceRequest::Cpu).unwrap();
        let sampling = Sampling::plain(0.0, 5);
        let session = policy.open();
        policy.user(session, &messages[0].content).unwrap();
        let say = |policy: &mut dyn Policy, keep: bool, session| {
            let ask = Ask { session, allowed: &[], sampling: &sampling, rng: Rng::new(0, 0), keep };
            policy.answer(&[ask], &|| false).unwrap().pop().unwrap()
        };
        say(&mut *policy, false, session);
        policy.assistant(session, &messages[1].content).unwrap();
        policy.user(session, &messages[2].content).unwrap();
        assert_eq!(policy.tokens(session), Some(whole.len()));
        let answer = say(&mut *policy, true, session);
        let fresh = model::load(&at, &Device::Cpu).unwrap();
        let mut sequence = fresh.sequence();
        let logits = fresh.extend(&mut [(&mut sequence, &whole)]).unwrap().get(0).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(answer.ids.unwrap()[0], likeliest(&logits));
    }
}

/// A random Qwen3 or Llama folder whose rows are whole blocks of every quantization.
fn random_folder(at: &Utf8Path, arch: &str) -> Utf8PathBuf {
    let folder = at.join(arch);
    std::fs::create_dir_all(&folder).unwrap();
    let config = serde_json::json!({
        "model_type": arch, "vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "eos_token_id": 317, "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false,
    });
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![320, 256]), ("model.norm".into(), vec![256])];
    for i in 0..2 {
        let mut add = |part: &str, shape: &[usize]| shapes.push((format!("model.layers.{i}.{part}"), shape.to_vec()));
        add("input_layernorm", &[256]);
        add("post_attention_layernorm", &[256]);
        add("self_attn.q_proj", &[256, 256]);
        add("self_attn.k_proj", &[128, 256]);
        add("self_attn.v_proj", &[128, 256]);
        add("self_attn.o_proj", &[256, 256]);
        add("mlp.gate_proj", &[512, 256]);
        add("mlp.up_proj", &[512, 256]);
        add("mlp.down_proj", &[256, 512]);
        if arch == "qwen3" {
            add("self_attn.q_norm", &[64]);
            add("self_attn.k_norm", &[64]);
        }
    }
    let mut tensors = std::collections::HashMap::new();
    for (index, (name, shape)) in shapes.into_iter().enumerate() {
        let mut rng = Rng::at(3, &[index as u64]);
        let (mean, spread) = if shape.len() == 1 { (1.0, 0.1) } else { (0.0, 0.08) };
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| (mean + spread * rng.normal()) as f32).collect();
        tensors.insert(format!("{name}.weight"), Tensor::from_vec(data, shape, &Device::Cpu).unwrap());
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn quantized_logits_are_those_of_candles_own_readers() {
    use candle_transformers::models::{quantized_llama, quantized_qwen3};
    let (_keep, at) = folder();
    let prompt: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % 320).collect();
    let input = Tensor::new(prompt.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    for arch in ["qwen3", "llama"] {
        let from = random_folder(&at, arch);
        for kind in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K, GgmlDType::Q4_0] {
            let file = at.join(format!("{arch}-{kind:?}.gguf"));
            convert(&from, &file, |_| kind, |_, _| ());
            let mut reader = BufReader::new(std::fs::File::open(&file).unwrap());
            let content = Content::read(&mut reader).unwrap();
            let want = if arch == "qwen3" {
                let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).unwrap();
                model.forward(&input, 0).unwrap()
            } else {
                let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut reader, &Device::Cpu).unwrap();
                model.forward(&input, 0).unwrap()
            };
            let want = want.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let (weights, _) = gguf::read(&file, &Device::Cpu).unwrap();
            let got = weights.extend(&mut weights.sequence(), &prompt).unwrap();
            let spread = want.iter().fold(0f32, |a, b| a.max(b.abs()));
            // activations are rounded to 8 bits on the way: a last bit before that can move one of them a step
            close(&got, &want, 2e-2 * spread);
            let quantized = close_to_float(&at, &from, &prompt, &got);
            assert!(quantized > 1e-4, "{arch} {kind:?}: nothing was quantized, {quantized}");
        }
    }
}

/// How far logits are from those of the float model, relative to the largest.
fn close_to_float(at: &Utf8Path, from: &Utf8Path, prompt: &[u32], got: &[f32]) -> f32 {
    let file = at.join("float.gguf");
    convert(from, &file, |_| GgmlDType::F32, |_, _| ());
    let (weights, _) = gguf::read(&file, &Device::Cpu).unwrap();
    let want = weights.extend(&mut weights.sequence(), prompt).unwrap();
    let spread = want.iter().fold(0f32, |a, b| a.max(b.abs()));
    want.iter().zip(got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / spread
}

type Edit<'a> = &'a dyn Fn(&mut BTreeMap<String, Value>, &mut BTreeMap<String, QTensor>);

fn refusal(path: &Utf8Path) -> String {
    match policy::open(path, DeviceRequest::Cpu) {
        Ok(_) => panic!("`{path}` was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_file_asks_for_and_is_not_honoured_is_refused_by_name() {
    let (_keep, at) = folder();
    let from = fixtures().join("model");
    let refused = |edit: Edit<'_>| {
        let file = at.join("odd.gguf");
        convert(&from, &file, |_| GgmlDType::F32, |v, t| edit(v, t));
        refusal(&file)
    };
    let set = |key: &'static str, value: Value| {
        refused(&move |values, _| {
            values.insert(key.to_owned(), value.clone());
        })
    };
    let said = set("general.architecture", text("gemma3"));
    assert!(said.contains("`gemma3`, expected `qwen3`, `qwen2` or `llama`"), "{said}");
    let said = set("qwen3.rope.scaling.type", text("yarn"));
    assert!(said.contains("`qwen3.rope.scaling.type` = `yarn`"), "{said}");
    let said = set("qwen3.expert_count", Value::U32(8));
    assert!(said.contains("`qwen3.expert_count` = 8"), "{said}");
    let said = set("tokenizer.ggml.pre", text("tekken"));
    assert!(said.contains("the rule `tekken`, expected `qwen2` or `llama-bpe`"), "{said}");
    let said = set("tokenizer.ggml.model", text("llama"));
    assert!(said.contains("of the kind `llama`, expected `gpt2`"), "{said}");
    let said = refused(&|values, _| {
        values.remove("qwen3.block_count");
    });
    assert!(said.contains("does not say `qwen3.block_count`"), "{said}");
    let said = refused(&|_, tensors| {
        let odd = QTensor::quantize(&Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32).unwrap();
        tensors.insert("blk.0.attn_sinks.weight".into(), odd);
    });
    assert!(said.contains("tensor `blk.0.attn_sinks.weight` is not known"), "{said}");
    let said = refused(&|_, tensors| {
        tensors.remove("blk.1.ffn_up.weight");
    });
    assert!(said.contains("tensor `blk.1.ffn_up.weight` is missing"), "{said}");

    // the kind of the first tensor, overwritten by one that candle does not know
    let file = at.join("odd.gguf");
    plain("model", &file);
    let mut bytes = std::fs::read(&file).unwrap();
    let name = b"token_embd.weight";
    let place = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 2 * 8;
    bytes[place..place + 4].copy_from_slice(&23u32.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let said = refusal(&file);
    assert!(said.contains("quantized as `IQ4_XS`"), "{said}");
    std::fs::write(&file, b"GGUF and then nothing").unwrap();
    assert!(refusal(&file).contains("is no GGUF file that can be read"));
}

#[test]
fn quantized_weights_and_servers_are_not_trained_and_the_error_says_why() {
    let (_keep, at) = folder();
    let file = at.join("qwen3.gguf");
    plain("model", &file);
    for path in [&file, &at] {
        let Err(error) = model::load(path, &Device::Cpu) else { panic!("it was loaded for training") };
        let said = format!("{error:?}");
        assert!(said.contains("not be trained") && said.contains("LoRA"), "{said}");
    }
    let server = at.join("policy.json");
    std::fs::write(&server, r#"{"v":1,"endpoint":{"url":"http://localhost:1/v1"}}"#).unwrap();
    let Err(error) = model::load(&server, &Device::Cpu) else { panic!("a server was loaded for training") };
    assert!(error.to_string().contains("its weights are not here"), "{error}");
}

#[test]
fn who_acts_is_told_by_what_is_at_the_path() {
    let (_keep, at) = folder();
    let touch = |name: &str, text: &str| {
        std::fs::create_dir_all(at.join(name).parent().unwrap()).unwrap();
        std::fs::write(at.join(name), text).unwrap();
        at.join(name)
    };
    assert_eq!(make_of(&fixtures().join("model")).unwrap(), Make::Own);
    let one = touch("one/a.gguf", "GGUF");
    assert_eq!(make_of(&at.join("one")).unwrap(), Make::Gguf(one.clone()));
    assert_eq!(make_of(&one).unwrap(), Make::Gguf(one));
    let named = touch("server/policy.json", "{}");
    assert_eq!(make_of(&at.join("server")).unwrap(), Make::Endpoint(named));
    let nameless = touch("store/0123", r#"{"v":1,"endpoint":{"url":"http://localhost:1/v1"}}"#);
    assert_eq!(make_of(&nameless).unwrap(), Make::Endpoint(nameless.clone()));
    touch("two/a.gguf", "GGUF");
    touch("two/b.GGUF", "GGUF");
    let said = make_of(&at.join("two")).unwrap_err().to_string();
    assert!(said.contains("holds 2 `.gguf` files, expected one"), "{said}");
    touch("none/readme.txt", "x");
    assert!(make_of(&at.join("none")).unwrap_err().to_string().contains("holds no policy, expected a `config.json`"));
    assert!(make_of(&touch("none/x.bin", "x")).unwrap_err().to_string().contains("is no policy, expected"));
    assert!(make_of(&at.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
}
