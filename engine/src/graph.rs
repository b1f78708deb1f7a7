//! The resolved recipe: a petgraph graph of step variants, every name settled and every parameter typed.
//!
//! Invariants: acyclic; node order is the recipe's (steps as written, variants in axis order), so iteration is
//! deterministic; every `Source` of a step points at an existing node and one of its outputs. Edges join nodes: a file
//! or folder that is there already feeds an input and is no node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;
use std::sync::Arc;

use camino::Utf8PathBuf;
use petgraph::Direction;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::Value;

use crate::op::{DynOp, InputPort, OutputPort, Resources};
use crate::source::SourceId;

/// Where something stands in the recipe's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub source: SourceId,
    pub bytes: Range<usize>,
}

impl Span {
    pub(crate) fn within(&self, outer: &Span) -> bool {
        self.source == outer.source && outer.bytes.start <= self.bytes.start && self.bytes.end <= outer.bytes.end
    }
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

/// One artifact on its way into a port.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// One output of one node.
    Step {
        node: NodeIndex,
        /// Name of the output; `metrics` is one of every node's.
        output: String,
    },
    /// Something that is there already.
    Outside(Outside),
}

/// A file or folder that no step made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outside {
    /// Absolute; where ops read it.
    pub path: Utf8PathBuf,
    /// As the recipe says it.
    pub written: String,
}

impl Source {
    /// The node that makes it.
    pub fn node(&self) -> Option<NodeIndex> {
        match self {
            Source::Step { node, .. } => Some(*node),
            Source::Outside(_) => None,
        }
    }
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

impl Graph {
    /// Every node after the nodes that feed it; among those that could come next, the recipe's order.
    pub fn topological(&self) -> Vec<NodeIndex> {
        let mut waiting: Vec<usize> =
            self.nodes.node_indices().map(|n| self.nodes.edges_directed(n, Direction::Incoming).count()).collect();
        let mut ready: BinaryHeap<Reverse<NodeIndex>> =
            self.nodes.node_indices().filter(|n| waiting[n.index()] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(waiting.len());
        while let Some(Reverse(node)) = ready.pop() {
            order.push(node);
            for edge in self.nodes.edges(node) {
                let left = &mut waiting[edge.target().index()];
                *left -= 1;
                if *left == 0 {
                    ready.push(Reverse(edge.target()));
                }
            }
        }
        order
    }

    /// The nodes and all that feeds them, however far up.
    pub fn ancestors(&self, of: impl IntoIterator<Item = NodeIndex>) -> BTreeSet<NodeIndex> {
        self.reach(of, Direction::Incoming)
    }

    /// The nodes and all that they feed, however far down.
    pub fn descendants(&self, of: impl IntoIterator<Item = NodeIndex>) -> BTreeSet<NodeIndex> {
        self.reach(of, Direction::Outgoing)
    }

    fn reach(&self, from: impl IntoIterator<Item = NodeIndex>, direction: Direction) -> BTreeSet<NodeIndex> {
        let mut open: Vec<NodeIndex> = from.into_iter().collect();
        let mut seen: BTreeSet<NodeIndex> = open.iter().copied().collect();
        while let Some(node) = open.pop() {
            open.extend(self.nodes.neighbors_directed(node, direction).filter(|next| seen.insert(*next)));
        }
        seen
    }

    /// Names of the steps, in the recipe's order.
    pub fn steps(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for node in self.nodes.node_weights() {
            // A step's variants stand together.
            if names.last() != Some(&node.step.as_str()) {
                names.push(&node.step);
            }
        }
        names
    }
}
