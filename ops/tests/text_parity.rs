//! Tokenizer and chat template against tokenizers 0.23.3 and transformers 5.23.0; see fixtures/parity/README.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its fixtures should stop")]

use actloom_ops::text::{Message, Role, Text};
use camino::Utf8PathBuf;
use serde_json::Value;

fn fixtures() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity")
}

fn cases(kind: &str) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&std::fs::read(fixtures().join("text_cases.json")).unwrap()).unwrap();
    json[kind].as_array().unwrap().clone()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

#[test]
fn texts_encode_and_decode_as_in_the_reference() {
    let text = Text::load(&fixtures().join("model"), &[317, 315]).unwrap();
    for case in cases("tokenizer") {
        let source = case["text"].as_str().unwrap();
        assert_eq!(text.encode(source).unwrap(), ids(&case["ids"]), "{source:?}");
        assert_eq!(text.decode(&ids(&case["ids"])).unwrap(), case["decoded"].as_str().unwrap(), "{source:?}");
    }
}

#[test]
fn conversations_render_and_encode_as_in_the_reference_also_turn_by_turn() {
    let text = Text::load(&fixtures().join("model"), &[317, 315]).unwrap();
    for case in cases("chat") {
        let name = case["name"].as_str().unwrap();
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message {
                role: match m["role"].as_str().unwrap() {
                    "system" => Role::System,
                    "assistant" => Role::Assistant,
                    _ => Role::User,
                },
                content: m["content"].as_str().unwrap().to_owned(),
            })
            .collect();
        let prompt = case["add_generation_prompt"] == true;
        let whole = text.render(&messages, prompt).unwrap();
        assert_eq!(whole, case["text"].as_str().unwrap(), "{name}");
        assert_eq!(text.encode(&whole).unwrap(), ids(&case["ids"]), "{name}");
        let mut parts = String::new();
        for i in 0..messages.len() {
            parts += &text.render_from(&messages[..=i], i, prompt && i + 1 == messages.len()).unwrap();
        }
        assert_eq!(parts, whole, "{name}");
    }
}
