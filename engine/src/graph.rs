//! The resolved recipe: a petgraph graph of step variants, every name settled and every parameter typed.
//!
//! Invariants: acyclic; node order is the recipe's (steps as written, variants in axis order), so iteration is
//! deterministic; every `Source` points at an existing node and one of its outputs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::Value;

use crate::op::{DynOp, InputPort, OutputPort, Resources};
use crate::source::SourceId;

/// Where something stands in the recipe's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub source: SourceId,
    pub bytes: Range<usize>,
}

/// One variant of one step.
#[derive(Clone)]
pub struct Node {
    pub step: String,
    /// Axis -> label, for the axes that multiply this step.
    pub labels: BTreeMap<String, String>,
    pub op: Arc<dyn DynOp>,
    /// Canonical parameters: defaults filled in, variables replaced, inputs taken out.
    pub params: Value,
    pub seed: u64,
    /// The device enters the key.
    pub pin_device: bool,
    pub resources: Resources,
    pub inputs: Vec<Input>,
    /// The op's outputs, without the implicit `metrics`.
    pub outputs: Vec<OutputPort>,
    /// The step's header in the recipe.
    pub span: Span,
}

/// What feeds one input port.
#[derive(Clone)]
pub struct Input {
    pub port: InputPort,
    pub sources: Vec<Source>,
}

/// One output of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub node: NodeIndex,
    /// Name of the output; `metrics` is one of every node's.
    pub output: String,
}

/// The whole resolved recipe.
pub struct Graph {
    pub name: String,
    pub about: String,
    /// Edges run from producer to consumer and carry the consumer's port name.
    pub nodes: DiGraph<Node, &'static str>,
}

impl Node {
    /// `il[seed=0,start=act]`, or the step's name alone where nothing multiplies it.
    pub fn display(&self) -> String {
        if self.labels.is_empty() {
            return self.step.clone();
        }
        let labels: Vec<String> = self.labels.iter().map(|(axis, label)| format!("{axis}={label}")).collect();
        format!("{}[{}]", self.step, labels.join(","))
    }
}
