//! What a run would do and why: compares a graph with the store and answers with a value.
//!
//! 1. [`select`] turns names into nodes; the goal is those and their ancestors.
//! 2. In topological order every node gets its key, where all its inputs are known, and a verdict.
//! 3. What has to run is compared with the last run of the same step in the same recipe.
//!
//! Invariants: planning writes nothing but what paths outside the store hold, so that they need not be read again; a node is `Reuse` only if all it reads from is; a node with inputs that will
//! be made anew is `Pending`, because equal bytes may come out and stop the ripple.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actloom_cache::{Action, ActionKey, Artifact, Store, StoreError};
use camino::Utf8PathBuf;
use petgraph::graph::NodeIndex;
use serde::Serialize;
use serde_json::Value;
use tracing::debug_span;

use crate::diagnostic::{listed, nearest};
use crate::graph::{Graph, Node, Source};
use crate::journal::Journal;
use crate::key::{self, KeyError};
use crate::op::{DeviceRequest, has_more_than_device};
use crate::reason::{Reason, differences};
use crate::resolve::reference;
use crate::schedule;
use crate::step::OP_SCRATCH;

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Goal {
    /// `step` (every variant) or `step[axis=label]` (those variants); empty means the whole recipe.
    pub steps: Vec<String>,
    /// Steps to run although their result is known, written alike.
    pub force: Vec<String>,
    /// The device of the run. Enters keys of steps with `pin_device` only, which refuse `Auto`.
    pub device: DeviceRequest,
}

/// What will become of a node.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum Verdict {
    Reuse {
        key: ActionKey,
        #[serde(skip)]
        action: Arc<Action>,
    },
    /// Has to run; there is at least one reason.
    Run { key: ActionKey, reasons: Vec<Reason> },
    /// Whether it has to run shows when these nodes are done. `reasons` is what differs already.
    Pending { because: Vec<String>, reasons: Vec<Reason> },
}

/// One node of the goal.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    #[serde(skip)]
    pub node: NodeIndex,
    /// `il[seed=0]`.
    pub name: String,
    /// `il`.
    pub step: String,
    pub op: &'static str,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Runs even if the store has its result.
    pub forced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub steps: usize,
    pub reuse: usize,
    pub run: usize,
    pub pending: usize,
}

/// The answer: every node of the goal, in the recipe's order.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub recipe: String,
    pub device: DeviceRequest,
    pub counts: Counts,
    pub steps: Vec<Planned>,
    /// What the files and folders held that steps of the goal read, by absolute path.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub paths: BTreeMap<Utf8PathBuf, Artifact>,
}

impl Plan {
    /// The planned step of this display name.
    pub fn step(&self, name: &str) -> Option<&Planned> {
        self.steps.iter().find(|step| step.name == name)
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("recipe `{recipe}` has no step `{name}`")]
    UnknownStep { recipe: String, name: String, nearest: Option<String> },
    #[error("{message}")]
    UnknownVariant { message: String, help: String },
    #[error("step `{step}`: {error}")]
    Key { step: String, error: KeyError },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the journal of runs: {0}")]
    Journal(std::io::Error),
}

/// Compares the graph with the store.
///
/// # Errors
/// A step that does not exist, a parameter that cannot be part of a key, a store that cannot be read.
pub fn plan(graph: &Graph, goal: &Goal, store: &Store) -> Result<Plan, PlanError> {
    let _span = debug_span!("plan", recipe = %graph.name, steps = graph.nodes.node_count()).entered();
    let dependencies = key::graph_dependencies(graph);
    let wanted = match goal.steps.as_slice() {
        [] => vec![true; dependencies.len()],
        names => schedule::ancestors(&dependencies, select(graph, names)?.into_iter().map(NodeIndex::index)),
    };
    let forced = select(graph, &goal.force)?;
    let mut last = None;
    let mut actions: Vec<Option<Arc<Action>>> = vec![None; dependencies.len()];
    let mut planned: Vec<Option<Planned>> = vec![None; dependencies.len()];
    let mut paths = BTreeMap::new();
    for index in schedule::topological(&dependencies).into_iter().filter(|&index| wanted[index]) {
        let node = NodeIndex::new(index);
        let name = graph.nodes[node].display();
        let as_plan_error = |error| PlanError::Key { step: name.clone(), error };
        for source in graph.nodes[node].inputs.iter().flat_map(|input| &input.sources) {
            if let Source::Outside(outside) = source
                && !paths.contains_key(&outside.path)
            {
                paths.insert(outside.path.clone(), store.identify(&outside.path)?);
            }
        }
        let manifest = key::manifest(graph, node, goal.device, |source| match source {
            Source::Step { node, output } => {
                actions[node.index()].as_ref()?.outputs.get(output).map(|artifact| artifact.id)
            }
            Source::Outside(outside) => paths.get(&outside.path).map(|artifact| artifact.id),
        })
        .map_err(as_plan_error)?;
        let because: Vec<String> = dependencies[index]
            .iter()
            .filter(|&&source| actions[source].is_none())
            .map(|&source| graph.nodes[NodeIndex::new(source)].display())
            .collect();
        let is_forced = forced.contains(&node);
        let mut explain = || -> Result<Vec<Reason>, PlanError> {
            let last = match &last {
                Some(last) => last,
                None => last.insert(Journal::of(store).last(&graph.name).map_err(PlanError::Journal)?),
            };
            match last.get(&name) {
                None => Ok(vec![Reason::NeverRan]),
                Some(&key) => match store.action(&key)? {
                    None => Ok(vec![Reason::Collected { key }]),
                    Some(action) => Ok(name_sources(graph, node, differences(&action.manifest, &manifest))),
                },
            }
        };
        let verdict = if because.is_empty() {
            let key = key::of_manifest(&manifest).map_err(as_plan_error)?;
            match store.action(&key)? {
                _ if is_forced => Verdict::Run { key, reasons: vec![Reason::Forced] },
                None => {
                    let mut reasons = explain()?;
                    if has_checkpoint(store, &key)? {
                        reasons.retain(|reason| *reason != Reason::NeverRan);
                        reasons.insert(0, Reason::Interrupted);
                    }
                    Verdict::Run { key, reasons }
                }
                Some(action) if store.complete(&action)? => {
                    let action = Arc::new(action);
                    actions[index] = Some(Arc::clone(&action));
                    Verdict::Reuse { key, action }
                }
                Some(action) => {
                    Verdict::Run { key, reasons: vec![Reason::OutputLost { outputs: lost(store, &action)? }] }
                }
            }
        } else {
            let mut reasons = explain()?;
            if is_forced {
                reasons.insert(0, Reason::Forced);
            }
            Verdict::Pending { because, reasons }
        };
        let step = graph.nodes[node].step.clone();
        let op = graph.nodes[node].op.name();
        planned[index] = Some(Planned { node, name, step, op, verdict, forced: is_forced });
    }
    let steps: Vec<Planned> = planned.into_iter().flatten().collect();
    let count = |is: fn(&Verdict) -> bool| steps.iter().filter(|step| is(&step.verdict)).count();
    let counts = Counts {
        steps: steps.len(),
        reuse: count(|v| matches!(v, Verdict::Reuse { .. })),
        run: count(|v| matches!(v, Verdict::Run { .. })),
        pending: count(|v| matches!(v, Verdict::Pending { .. })),
    };
    Ok(Plan { recipe: graph.name.clone(), device: goal.device, counts, steps, paths })
}

/// In place of a label: every one of the axis.
const EVERY: &str = "*";

/// The nodes that names mean: `step` is every variant, `step[axis=label,...]` those with these labels, as a recipe refers to them. A
/// leading `@` is ignored.
///
/// # Errors
/// Names the first one that means nothing, with the nearest step.
pub fn select(graph: &Graph, names: &[String]) -> Result<Vec<NodeIndex>, PlanError> {
    let mut selected = Vec::new();
    for name in names {
        let wanted = reference::parse(&format!("@{}", name.trim_start_matches('@'))).ok();
        let (step, labels) = match &wanted {
            Some(wanted) if wanted.port.is_none() => {
                let all = wanted.collected.iter().map(|axis| (axis.clone(), EVERY.to_owned()));
                (wanted.step.as_str(), wanted.fixed.iter().cloned().chain(all).collect())
            }
            _ => (name.as_str(), Vec::new()),
        };
        let before = selected.len();
        selected.extend(graph.nodes.node_indices().filter(|&index| {
            let node = &graph.nodes[index];
            let fits = |has: &String, label: &String| has == label || label == EVERY;
            node.step == step
                && labels.iter().all(|(axis, label)| node.labels.get(axis).is_some_and(|has| fits(has, label)))
        }));
        if selected.len() == before && graph.nodes.node_weights().any(|node| node.step == step) {
            return Err(no_variant(graph, step, &labels));
        }
        if selected.len() == before {
            let displays: Vec<String> = graph.nodes.node_weights().map(Node::display).collect();
            let steps = graph.nodes.node_weights().map(|node| node.step.as_str());
            let nearest = nearest(name, steps.chain(displays.iter().map(String::as_str))).map(str::to_owned);
            return Err(PlanError::UnknownStep { recipe: graph.name.clone(), name: name.clone(), nearest });
        }
    }
    selected.sort();
    selected.dedup();
    Ok(selected)
}

/// Why a step that exists has no variant with these labels.
fn no_variant(graph: &Graph, step: &str, labels: &[(String, String)]) -> PlanError {
    let variants: Vec<&Node> = graph.nodes.node_weights().filter(|node| node.step == step).collect();
    let axes: BTreeSet<&str> = variants.iter().flat_map(|node| node.labels.keys().map(String::as_str)).collect();
    for (axis, label) in labels {
        if !axes.contains(axis.as_str()) {
            let help = match nearest(axis, axes.iter().copied()) {
                _ if axes.is_empty() => format!("nothing multiplies it: write `{step}`"),
                Some(near) => format!("there is an axis `{near}`"),
                None => format!("its axes are {}", listed(axes.iter().copied(), "and")),
            };
            return PlanError::UnknownVariant { message: format!("step `{step}` has no axis `{axis}`"), help };
        }
        let mut there: Vec<&str> = Vec::new();
        for has in variants.iter().filter_map(|node| node.labels.get(axis)) {
            if !there.contains(&has.as_str()) {
                there.push(has);
            }
        }
        if label != EVERY && !there.contains(&label.as_str()) {
            let message = format!("axis `{axis}` of step `{step}` has no label `{label}`");
            let help = match nearest(label, there.iter().copied()) {
                Some(near) if there.len() > 6 => format!("there is a label `{near}`"),
                _ => format!("its labels are {}", listed(there, "and")),
            };
            return PlanError::UnknownVariant { message, help };
        }
    }
    let message = format!("no variant of step `{step}` has all of these labels");
    let names: Vec<String> = variants.iter().map(|node| node.display()).collect();
    let help = format!("its variants are {}", listed(names.iter().map(String::as_str), "and"));
    PlanError::UnknownVariant { message, help }
}

/// Says for every changed input which node or path feeds it now.
fn name_sources(graph: &Graph, node: NodeIndex, mut reasons: Vec<Reason>) -> Vec<Reason> {
    for reason in &mut reasons {
        if let Reason::InputChanged { input, from, .. } = reason {
            let (port, index) = match input.strip_suffix(']').and_then(|input| input.split_once('[')) {
                Some((port, index)) => (port, index.parse().unwrap_or(0)),
                None => (input.as_str(), 0),
            };
            let feeding = graph.nodes[node].inputs.iter().find(|candidate| candidate.port.name == port);
            *from = feeding.and_then(|input| input.sources.get(index)).map(|source| match source {
                Source::Step { node, .. } => graph.nodes[*node].display(),
                Source::Outside(outside) => outside.written.clone(),
            });
        }
    }
    reasons
}

/// Whether a run that did not finish left something to continue from.
fn has_checkpoint(store: &Store, key: &ActionKey) -> Result<bool, PlanError> {
    let Some(scratch) = store.left_scratch(key)? else { return Ok(false) };
    // A folder that goes away meanwhile belongs to a step that just finished.
    Ok(has_more_than_device(&scratch.join(OP_SCRATCH)).unwrap_or(false))
}

/// The outputs of an action that the store no longer has whole.
fn lost(store: &Store, action: &Action) -> Result<Vec<String>, StoreError> {
    let mut lost = Vec::new();
    for (name, artifact) in &action.outputs {
        let alone = Action { outputs: [(name.clone(), artifact.clone())].into(), ..action.clone() };
        if !store.complete(&alone)? {
            lost.push(name.clone());
        }
    }
    Ok(lost)
}

/// The recorded action most like what a node would do, for a step that never ran under its name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nearest {
    pub key: ActionKey,
    /// Recipe and step that made it, where known.
    pub recipe: Option<String>,
    pub step: Option<String>,
    pub differs: Vec<Reason>,
}

/// Looks through every action of the same op for the one with the fewest differences; the newest of equals. Inputs
/// that are not known yet do not count.
///
/// # Errors
/// The store's, and parameters that cannot be part of a key.
pub fn nearest_action(
    graph: &Graph,
    plan: &Plan,
    node: NodeIndex,
    store: &Store,
) -> Result<Option<Nearest>, PlanError> {
    let manifest =
        manifest_of(graph, plan, node).map_err(|error| PlanError::Key { step: graph.nodes[node].display(), error })?;
    let same_op = store.actions()?.into_iter().filter(|action| action.manifest["op"] == manifest["op"]);
    let scored = same_op.map(|action| {
        let finished = action.provenance["finished"].as_str().unwrap_or("").to_owned();
        (differences(&action.manifest, &manifest), finished, action)
    });
    let best = scored.min_by(|(a, a_time, _), (b, b_time, _)| (a.len(), b_time).cmp(&(b.len(), a_time)));
    Ok(best.map(|(differs, _, action)| {
        let text = |name: &str| action.provenance[name].as_str().map(str::to_owned);
        let differs = name_sources(graph, node, differs);
        Nearest { key: action.key, recipe: text("recipe"), step: text("node"), differs }
    }))
}

/// What the key of a planned node is made of; inputs that are not known yet have the id `null`.
///
/// # Errors
/// See [`key::manifest`].
pub fn manifest_of(graph: &Graph, plan: &Plan, node: NodeIndex) -> Result<Value, KeyError> {
    key::manifest(graph, node, plan.device, |source| match source {
        Source::Step { node, output } => match &plan.steps.iter().find(|step| step.node == *node)?.verdict {
            Verdict::Reuse { action, .. } => action.outputs.get(output).map(|artifact| artifact.id),
            _ => None,
        },
        Source::Outside(outside) => plan.paths.get(&outside.path).map(|artifact| artifact.id),
    })
}
