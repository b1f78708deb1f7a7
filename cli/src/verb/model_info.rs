//! `actloom model info`: what a model holds and what memory it needs, as people read it.

use std::collections::BTreeMap;

use actloom_ops::tool::info::{AdapterInfo, GgufInfo, Info, ModelInfo, Training, info};
use owo_colors::OwoColorize;
use serde_json::{Map, Value};

use crate::args::{self, Global};
use crate::exit::{Exit, Failure};
use crate::terminal::out_either;
use crate::text;

pub fn run(args: &args::ModelInfo, global: &Global) -> Result<Exit, Failure> {
    let info = info(&args.path)?;
    out_either(global.json, &info, || match &info {
        Info::Model(info) => model(info),
        Info::Adapter(info) => adapter(info),
        Info::Gguf(info) => gguf(info),
    });
    Ok(Exit::Done)
}

/// `name: value`, names padded to one width.
fn lines(rows: Vec<(&str, String)>) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("  {}  {value}\n", format!("{name:<width$}").dimmed())).collect()
}

fn model(info: &ModelInfo) -> String {
    let mut page = format!("{} {}\n", info.family.bold(), count(info.parameters));
    for refusal in &info.refused {
        page += &format!("  {}: {}\n", "refused".red().bold(), refusal.reason);
    }
    let mut rows: Vec<(&str, String)> =
        info.sizes.iter().map(|(name, size)| (name.as_str(), size.to_string())).collect();
    rows.push(("head", if info.tied { "the token table (tied)".to_owned() } else { "a matrix of its own".to_owned() }));
    rows.push(("rope", object(info.rope.as_object())));
    rows.push(("parameters", info.parameters.to_string()));
    rows.push(("of these in tables", info.embedding_parameters.to_string()));
    page += &format!("\n{}\n{}", "sizes".bold(), lines(rows));
    let ids: Vec<String> = info.eos.iter().map(ToString::to_string).collect();
    let rows = vec![
        (
            "weights",
            format!("{}, {}, {}", text::counted(info.files, "file"), text::bytes(info.bytes), types(&info.dtypes)),
        ),
        ("tokenizer", info.tokenizer.map_or("none".to_owned(), |n| format!("{n} entries"))),
        ("chat template", yes(info.chat_template)),
        ("end ids", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }),
    ];
    page += &format!("\n{}\n{}", "on disk".bold(), lines(rows));
    let Some(memory) = &info.memory else { return page };
    let training = |t: &Training| {
        let (gradients, moments) = (text::bytes(t.gradients), text::bytes(t.optimizer));
        let trained = text::count(t.trainable as f64);
        format!("{}: {trained} trained, gradients {gradients}, AdamW {moments}", text::bytes(t.total))
    };
    let rows = vec![
        ("weights", text::bytes(memory.weights)),
        ("cache per token", text::bytes(memory.kv_per_token)),
        ("training, everything", training(&memory.full)),
        ("training, LoRA r=16", training(&memory.lora)),
        ("and per 1,000 tokens", text::bytes(memory.activations_per_1000_tokens)),
    ];
    page + &format!("\n{}\n{}", "memory, in float32".bold(), lines(rows))
}

fn adapter(info: &AdapterInfo) -> String {
    let number = |x: Option<String>| x.unwrap_or_else(|| "not given".to_owned());
    let rows = vec![
        ("base", number(info.base.clone())),
        ("r", number(info.r.map(|x| x.to_string()))),
        ("alpha", number(info.alpha.map(|x| x.to_string()))),
        ("scale", number(info.scale.map(|x| x.to_string()))),
        ("dropout", info.dropout.to_string()),
        ("targets", info.targets.join(", ")),
        ("layers", info.layers.to_string()),
        ("parameters", info.parameters.to_string()),
        ("weights", format!("{}, {}", text::bytes(info.bytes), types(&info.dtypes))),
    ];
    format!("{} {}\n{}", format!("{} adapter", info.peft_type).bold(), count(info.parameters), lines(rows))
}

fn gguf(info: &GgufInfo) -> String {
    let mut page = format!("{} {}\n", format!("{} (GGUF)", info.architecture).bold(), count(info.parameters));
    let rows = info.quantization.iter().map(|q| {
        let share = 100.0 * q.parameters as f64 / info.parameters.max(1) as f64;
        vec![
            format!("  {}", q.dtype),
            text::counted(q.tensors, "tensor"),
            q.parameters.to_string(),
            format!("{share:.1} %"),
        ]
    });
    page += &lines(vec![("weights", text::bytes(info.bytes)), ("chat template", yes(info.chat_template))]);
    page += &format!("\n{}\n", "quantization".bold());
    page += text::columns(&["", "", "", ""], rows).trim_start_matches('\n');
    page + &format!(
        "\n{}\n{}",
        "metadata".bold(),
        lines(info.metadata.iter().map(|(k, v)| (k.as_str(), short(v))).collect())
    )
}

fn yes(x: bool) -> String {
    if x { "yes" } else { "no" }.to_owned()
}

/// `(1.2M parameters)`.
fn count(parameters: usize) -> String {
    format!("({} parameters)", text::count(parameters as f64))
}

/// `float32`, or how many numbers are in each type.
fn types(types: &BTreeMap<String, usize>) -> String {
    match types.len() {
        1 => types.keys().cloned().collect(),
        _ => types.iter().map(|(name, n)| format!("{n} in {name}")).collect::<Vec<_>>().join(", "),
    }
}

fn object(fields: Option<&Map<String, Value>>) -> String {
    let Some(fields) = fields.filter(|fields| !fields.is_empty()) else { return "not given".to_owned() };
    fields.iter().map(|(name, value)| format!("{name} {}", short(value))).collect::<Vec<_>>().join(", ")
}

/// One line of a value.
fn short(value: &Value) -> String {
    const LONGEST: usize = 80;
    match value {
        Value::Object(fields) if fields.contains_key("length") => format!("a list of {}", fields["length"]),
        Value::String(text) => {
            let line: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
            if text.chars().count() > LONGEST { format!("{line}...") } else { line }
        }
        other => other.to_string(),
    }
}
