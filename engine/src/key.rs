//! The key of a step: one walk over everything its result depends on.
//!
//! 1. [`manifest`] writes down what goes in, as readable JSON; the store keeps it with the action.
//! 2. [`canonical`] turns exactly that value into bytes, and the key is their hash.
//!
//! Invariants: in go the op's name and version, its canonical parameters, the content of every input by port and order
//! (with axis labels where the op reads labels, with step names and lineage where it reads names), the seed, and the
//! device where the step pins it. Out stay step names, paths, resources, `about`, times, threads and the machine. The
//! bytes do not depend on the order of object keys, nor on how some library prints numbers. A port that nothing feeds
//! leaves no trace, so an op may grow optional ports without losing its past.

use std::collections::{BTreeMap, BTreeSet};

use actloom_cache::{ActionKey, ContentId};
use petgraph::graph::NodeIndex;
use serde_json::{Map, Value, json};

use crate::graph::{Graph, Source};
use crate::op::{DeviceRequest, LineageNode};
use crate::schedule;

/// Version of the manifest and of its bytes; part of both.
pub const KEY_VERSION: u32 = 1;

/// A key with what it was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub key: ActionKey,
    pub manifest: Value,
}

/// Something that cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("`{path}` is -0.0, which equals 0.0 and prints otherwise; expected 0.0")]
    NegativeZero { path: String },
    #[error("`{path}` is no finite number")]
    NotFinite { path: String },
    #[error("the step has `pin_device = true` and the run's device is `auto`; expected a settled one: `cpu` or `cuda`")]
    UnsettledDevice,
}

/// The key of a node whose inputs are all known.
///
/// # Errors
/// Names the parameter that cannot be part of a key.
///
/// # Panics
/// When `content` does not know a source: a bug in the caller.
pub fn key(
    graph: &Graph,
    node: NodeIndex,
    device: DeviceRequest,
    content: impl Fn(&Source) -> ContentId,
) -> Result<Key, KeyError> {
    let manifest = manifest(graph, node, device, |source| Some(content(source)))?;
    Ok(Key { key: of_manifest(&manifest)?, manifest })
}

/// The key that belongs to a manifest.
///
/// # Errors
/// See [`canonical`].
pub fn of_manifest(manifest: &Value) -> Result<ActionKey, KeyError> {
    Ok(ActionKey::of(&canonical(manifest)?))
}

/// What the key of a node is made of. A source whose content is not known yet has the id `null`.
///
/// # Errors
/// When the step pins a device that is not settled.
pub fn manifest(
    graph: &Graph,
    node: NodeIndex,
    device: DeviceRequest,
    content: impl Fn(&Source) -> Option<ContentId>,
) -> Result<Value, KeyError> {
    let step = &graph.nodes[node];
    let mut inputs = Map::new();
    for input in step.inputs.iter().filter(|input| !input.sources.is_empty()) {
        let artifacts: Vec<Value> = input
            .sources
            .iter()
            .map(|source| {
                let mut artifact = Map::new();
                artifact.insert("id".into(), content(source).map_or(Value::Null, |id| id.to_string().into()));
                // What no step made has no labels and no step's name; its own name must not enter, or moving it would count.
                let from = source.node().map(|node| &graph.nodes[node]);
                if input.port.labelled {
                    artifact.insert("labels".into(), from.map_or(json!({}), |from| json!(from.labels)));
                }
                if input.port.named {
                    artifact.insert("step".into(), from.map_or("", |from| &from.step).into());
                }
                Value::Object(artifact)
            })
            .collect();
        inputs.insert(input.port.name.into(), Value::Array(artifacts));
    }
    let mut manifest = Map::new();
    manifest.insert("v".into(), KEY_VERSION.into());
    manifest.insert("op".into(), step.op.name().into());
    manifest.insert("version".into(), step.op.version().into());
    manifest.insert("params".into(), step.params.clone());
    manifest.insert("seed".into(), step.seed.into());
    manifest.insert("inputs".into(), Value::Object(inputs));
    if reads_names(graph, node) {
        manifest.insert("lineage".into(), json!(lineage(graph, node)));
    }
    if step.pin_device {
        let name = match device {
            DeviceRequest::Auto => return Err(KeyError::UnsettledDevice),
            DeviceRequest::Cpu => "cpu",
            // Which of several equal devices it was changes no number.
            DeviceRequest::Cuda(_) => "cuda",
        };
        manifest.insert("device".into(), name.into());
    }
    Ok(Value::Object(manifest))
}

/// Whether an input of the node is `named`, so that the op sees the lineage.
pub fn reads_names(graph: &Graph, node: NodeIndex) -> bool {
    graph.nodes[node].inputs.iter().any(|input| input.port.named)
}

/// The ancestors of a node, one entry a step, in topological order.
pub fn lineage(graph: &Graph, node: NodeIndex) -> Vec<LineageNode> {
    let dependencies = graph_dependencies(graph);
    let ancestors = schedule::ancestors(&dependencies, [node.index()]);
    let mut steps: Vec<&str> = Vec::new();
    let mut members: BTreeMap<&str, (LineageNode, BTreeSet<&str>)> = BTreeMap::new();
    for index in schedule::topological(&dependencies) {
        if !ancestors[index] || index == node.index() {
            continue;
        }
        let from = &graph.nodes[NodeIndex::new(index)];
        let (entry, inputs) = members.entry(&from.step).or_insert_with(|| {
            steps.push(&from.step);
            let entry =
                LineageNode { step: from.step.clone(), op: from.op.name().to_owned(), variants: 0, inputs: Vec::new() };
            (entry, BTreeSet::new())
        });
        entry.variants += 1;
        inputs.extend(dependencies[index].iter().map(|&i| graph.nodes[NodeIndex::new(i)].step.as_str()));
    }
    steps
        .into_iter()
        .filter_map(|step| members.remove(step))
        .map(|(mut entry, inputs)| {
            entry.inputs = inputs.into_iter().map(str::to_owned).collect();
            entry
        })
        .collect()
}

/// For every node the nodes it reads from, sorted, each once.
pub fn graph_dependencies(graph: &Graph) -> Vec<Vec<usize>> {
    graph
        .nodes
        .node_weights()
        .map(|node| {
            let sources: BTreeSet<usize> = node
                .inputs
                .iter()
                .flat_map(|input| &input.sources)
                .filter_map(|source| Some(source.node()?.index()))
                .collect();
            sources.into_iter().collect()
        })
        .collect()
}

/// A JSON value as bytes: objects sorted by key, no white space, integers in decimal, floats as Rust's shortest
/// scientific notation (`1e-5`, `2.5e0`), so that `1` and `1.0` differ and equal numbers are equal bytes.
///
/// # Errors
/// Names the path of a negative zero or of a number that is not finite.
pub fn canonical(value: &Value) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::with_capacity(512);
    write(value, &mut Vec::new(), &mut bytes)?;
    Ok(bytes)
}

fn write(value: &Value, path: &mut Vec<String>, bytes: &mut Vec<u8>) -> Result<(), KeyError> {
    match value {
        Value::Null => bytes.extend(b"null"),
        Value::Bool(true) => bytes.extend(b"true"),
        Value::Bool(false) => bytes.extend(b"false"),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(n), _, _) => bytes.extend(n.to_string().bytes()),
            (None, Some(n), _) => bytes.extend(n.to_string().bytes()),
            (None, None, Some(x)) if !x.is_finite() => return Err(KeyError::NotFinite { path: path.join(".") }),
            (None, None, Some(x)) if x == 0.0 && x.is_sign_negative() => {
                return Err(KeyError::NegativeZero { path: path.join(".") });
            }
            (None, None, Some(x)) => bytes.extend(format!("{x:e}").bytes()),
            (None, None, None) => return Err(KeyError::NotFinite { path: path.join(".") }),
        },
        Value::String(text) => write_text(text, bytes),
        Value::Array(items) => {
            bytes.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                path.push(index.to_string());
                write(item, path, bytes)?;
                path.pop();
            }
            bytes.push(b']');
        }
        Value::Object(entries) => {
            bytes.push(b'{');
            let sorted: BTreeMap<&str, &Value> = entries.iter().map(|(k, v)| (k.as_str(), v)).collect();
            for (index, (name, item)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    bytes.push(b',');
                }
                write_text(name, bytes);
                bytes.push(b':');
                path.push(name.to_owned());
                write(item, path, bytes)?;
                path.pop();
            }
            bytes.push(b'}');
        }
    }
    Ok(())
}

/// The shortest escapes that JSON demands, and nothing else escaped.
fn write_text(text: &str, bytes: &mut Vec<u8>) {
    bytes.push(b'"');
    for c in text.chars() {
        match c {
            '"' => bytes.extend(b"\\\""),
            '\\' => bytes.extend(b"\\\\"),
            c if (c as u32) < 0x20 => bytes.extend(format!("\\u{:04x}", c as u32).bytes()),
            c => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes.push(b'"');
}
