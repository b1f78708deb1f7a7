//! The roots of a pending step: what has to run before it for a reason of its own.
//!
//! Invariant: every pending step has at least one root, because a chain of pending steps begins with one that has to
//! run.

use std::collections::BTreeSet;

use petgraph::graph::NodeIndex;
use serde::Serialize;

use crate::graph::Graph;
use crate::key;
use crate::plan::{Plan, Planned, Verdict};
use crate::reason::Reason;
use crate::schedule;

/// Steps that have the same reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Root {
    /// Display names, in the recipe's order.
    pub steps: Vec<String>,
    pub reasons: Vec<Reason>,
}

/// What a step waits for in the end: those before it that have to run for a reason of their own, equal reasons
/// together, in the recipe's order.
///
/// `dependencies` are those of [`key::graph_dependencies`].
pub fn roots(dependencies: &[Vec<usize>], plan: &Plan, node: NodeIndex) -> Vec<Root> {
    let before = schedule::ancestors(dependencies, [node.index()]);
    let mut roots: Vec<(String, Root)> = Vec::new();
    for step in plan.steps.iter().filter(|step| step.node != node && before[step.node.index()]) {
        let reasons = own_reasons(step);
        if reasons.is_empty() {
            continue;
        }
        // Two reasons that read alike are one to a reader, though they may name two keys.
        let text = sentence(&reasons);
        match roots.iter_mut().find(|(same, _)| *same == text) {
            Some((_, root)) => root.steps.push(step.name.clone()),
            None => roots.push((text, Root { steps: vec![step.name.clone()], reasons })),
        }
    }
    roots.into_iter().map(|(_, root)| root).collect()
}

/// By node: the steps that its roots are variants of, in the recipe's order.
pub fn root_steps<'p>(graph: &Graph, plan: &'p Plan) -> Vec<Vec<&'p str>> {
    let dependencies = key::graph_dependencies(graph);
    let mut planned: Vec<Option<&Planned>> = vec![None; dependencies.len()];
    let mut names: Vec<&str> = Vec::new();
    let mut numbers = vec![0; dependencies.len()];
    for step in &plan.steps {
        // Variants of one step stand together.
        if names.last() != Some(&step.step.as_str()) {
            names.push(&step.step);
        }
        planned[step.node.index()] = Some(step);
        numbers[step.node.index()] = names.len() - 1;
    }
    let own = |node: usize| planned[node].is_some_and(|step| !own_reasons(step).is_empty());
    let mut roots: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); dependencies.len()];
    for node in schedule::topological(&dependencies) {
        let mut found = BTreeSet::new();
        for &source in &dependencies[node] {
            found.extend(&roots[source]);
            if own(source) {
                found.insert(numbers[source]);
            }
        }
        roots[node] = found;
    }
    roots.into_iter().map(|found| found.into_iter().map(|number| names[number]).collect()).collect()
}

fn sentence(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

/// Reasons that do not come from what a step waits for. That it never ran is none for a pending step: it says no more
/// than that it waits.
fn own_reasons(step: &Planned) -> Vec<Reason> {
    match &step.verdict {
        Verdict::Reuse { .. } => Vec::new(),
        Verdict::Run { reasons, .. } => reasons.clone(),
        Verdict::Pending { reasons, .. } => {
            reasons.iter().filter(|reason| **reason != Reason::NeverRan).cloned().collect()
        }
    }
}
