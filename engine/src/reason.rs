//! Why a step has to run: typed differences between two manifests.
//!
//! Invariant: differences are read off the manifests that the keys were made of, so two unequal keys always have at
//! least one difference, and an explanation cannot disagree with the key.

use actloom_cache::ActionKey;
use serde::Serialize;
use serde_json::{Map, Value};

/// One reason. `old` is what the last run of the step had, `new` what it would have now; `None` where there is nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// No run of this recipe finished this step.
    NeverRan,
    /// The step ran before, but the record of its result was removed from the store.
    Collected {
        key: ActionKey,
    },
    /// The record is there; these outputs are not.
    OutputLost {
        outputs: Vec<String>,
    },
    /// Dotted path below the step's table: `reward.correct`.
    ParamChanged {
        path: String,
        old: Option<Value>,
        new: Option<Value>,
    },
    /// `input` is the port, with an index where it takes several artifacts; `from` is the step, or the path as
    /// written, that feeds it now. The
    /// values are the artifact's entry in the manifest: `id`, and `labels` and `step` where the op reads them.
    InputChanged {
        input: String,
        from: Option<String>,
        old: Option<Value>,
        new: Option<Value>,
    },
    /// The op reads which steps came before it, and they changed.
    LineageChanged,
    OpChanged {
        old: Value,
        new: Value,
    },
    OpVersion {
        old: Value,
        new: Value,
    },
    SeedChanged {
        old: Value,
        new: Value,
    },
    /// The step pins its device.
    DeviceChanged {
        old: Option<Value>,
        new: Option<Value>,
    },
    /// This program makes keys in another way than the one that recorded the last run.
    KeyVersion {
        old: Value,
        new: Value,
    },
    /// A run of this very step was stopped or killed, and left a checkpoint.
    Interrupted,
    /// Asked for on the command line.
    Forced,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::NeverRan => f.write_str("never ran"),
            Reason::Collected { .. } => f.write_str("its recorded result was removed from the store"),
            Reason::OutputLost { outputs } => {
                let names: Vec<String> = outputs.iter().map(|name| format!("`{name}`")).collect();
                write!(f, "output {} is no longer in the store", names.join(", "))
            }
            Reason::ParamChanged { path, old, new } => write!(f, "`{path}` {}", change(old.as_ref(), new.as_ref())),
            Reason::InputChanged { input, from, old, new } => {
                write!(f, "input `{input}`")?;
                if let Some(from) = from {
                    write!(f, " from `{from}`")?;
                }
                write!(f, " {}", artifact_change(old.as_ref(), new.as_ref()))
            }
            Reason::LineageChanged => f.write_str("the steps before it changed"),
            Reason::OpChanged { old, new } => write!(f, "op {}", change(Some(old), Some(new))),
            Reason::OpVersion { old, new } => write!(f, "version of the op {}", change(Some(old), Some(new))),
            Reason::SeedChanged { old, new } => write!(f, "seed {}", change(Some(old), Some(new))),
            Reason::DeviceChanged { old, new } => write!(f, "pinned device {}", change(old.as_ref(), new.as_ref())),
            Reason::KeyVersion { old, new } => write!(f, "version of the key format {}", change(Some(old), Some(new))),
            Reason::Interrupted => f.write_str("interrupted; continues from its checkpoint"),
            Reason::Forced => f.write_str("forced"),
        }
    }
}

fn change(old: Option<&Value>, new: Option<&Value>) -> String {
    match (old, new) {
        (Some(old), Some(new)) => format!("{old} -> {new}"),
        (None, Some(new)) => format!("is new: {new}"),
        (Some(old), None) => format!("is gone, was {old}"),
        (None, None) => "changed".to_owned(),
    }
}

fn artifact_change(old: Option<&Value>, new: Option<&Value>) -> String {
    let id = |value: &Value| value["id"].as_str().map_or("?".to_owned(), |id| id.chars().take(12).collect());
    match (old, new) {
        (Some(old), Some(new)) if old["id"] == new["id"] => {
            let whole = |value: &Value| format!("{} {}", value["step"].as_str().unwrap_or(""), value["labels"]);
            format!("is called otherwise: {} -> {}", whole(old).trim(), whole(new).trim())
        }
        (Some(old), Some(new)) => format!("changed: {} -> {}", id(old), id(new)),
        (None, Some(new)) => format!("is new: {}", id(new)),
        (Some(old), None) => format!("is gone, was {}", id(old)),
        (None, None) => "changed".to_owned(),
    }
}

/// What differs between two manifests, in the order of importance to a reader: the op, its parameters, the seed, the
/// inputs, the rest. Inputs whose new content is not known yet (`id` is null) count as equal.
pub fn differences(old: &Value, new: &Value) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let pair = |name: &str| (old[name].clone(), new[name].clone());
    let differ = |name: &str| old[name] != new[name];
    if differ("v") {
        let (old, new) = pair("v");
        reasons.push(Reason::KeyVersion { old, new });
    }
    if differ("op") {
        let (old, new) = pair("op");
        reasons.push(Reason::OpChanged { old, new });
    }
    if differ("version") {
        let (old, new) = pair("version");
        reasons.push(Reason::OpVersion { old, new });
    }
    params(&mut Vec::new(), old.get("params"), new.get("params"), &mut reasons);
    if differ("seed") {
        let (old, new) = pair("seed");
        reasons.push(Reason::SeedChanged { old, new });
    }
    inputs(&old["inputs"], &new["inputs"], &mut reasons);
    if differ("lineage") {
        reasons.push(Reason::LineageChanged);
    }
    if differ("device") {
        reasons.push(Reason::DeviceChanged { old: old.get("device").cloned(), new: new.get("device").cloned() });
    }
    reasons
}

fn params(path: &mut Vec<String>, old: Option<&Value>, new: Option<&Value>, reasons: &mut Vec<Reason>) {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for name in union(old, new) {
                path.push(name.to_owned());
                params(path, old.get(name), new.get(name), reasons);
                path.pop();
            }
        }
        (old, new) if same(old, new) => {}
        (old, new) => {
            reasons.push(Reason::ParamChanged { path: path.join("."), old: old.cloned(), new: new.cloned() });
        }
    }
}

/// `1` and `1.0` are equal to serde_json's users, not to the key.
fn same(old: Option<&Value>, new: Option<&Value>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old == new && old.is_f64() == new.is_f64(),
        (old, new) => old == new,
    }
}

fn inputs(old: &Value, new: &Value, reasons: &mut Vec<Reason>) {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    for port in union(old, new) {
        let artifacts = |of: &Map<String, Value>| of.get(port).and_then(Value::as_array).cloned().unwrap_or_default();
        let (before, after) = (artifacts(old), artifacts(new));
        let several = before.len() > 1 || after.len() > 1;
        for index in 0..before.len().max(after.len()) {
            let (was, is) = (before.get(index), after.get(index));
            let unknown = is.is_some_and(|artifact| artifact["id"].is_null());
            if was != is && !(unknown && was.is_some()) {
                let input = if several { format!("{port}[{index}]") } else { port.to_owned() };
                reasons.push(Reason::InputChanged { input, from: None, old: was.cloned(), new: is.cloned() });
            }
        }
    }
}

/// The keys of both, those of `new` first, each in its own order.
fn union<'a>(old: &'a Map<String, Value>, new: &'a Map<String, Value>) -> Vec<&'a str> {
    let gone = old.keys().filter(|name| !new.contains_key(*name));
    new.keys().chain(gone).map(String::as_str).collect()
}
