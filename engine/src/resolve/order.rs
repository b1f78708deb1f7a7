//! In which order steps are resolved: what a step can refer to comes before it.
//!
//! Invariant: every step is in the order once; the steps of a cycle too, after the cycle was reported.

use std::collections::{HashMap, VecDeque};

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

use super::axis::Point;
use super::define::StepDef;
use super::scope::{AxisDefs, Miss, Scope, World};
use crate::diagnostic::{Diagnostic, Findings};
use crate::graph::Span;

pub(super) fn order(world: &World<'_>, steps: &[StepDef<'_>], findings: &mut Findings) -> Vec<usize> {
    let by_name: HashMap<&str, usize> = steps.iter().enumerate().map(|(i, step)| (step.name, i)).collect();
    // An edge runs from a step to what it needs, and carries the place that says so.
    let mut needs: DiGraph<(), Span> = DiGraph::new();
    for _ in steps {
        needs.add_node(());
    }
    let (nothing, nowhere) = (AxisDefs::new(), Point::new());
    for (i, step) in steps.iter().enumerate() {
        let scope = Scope::new(world, &step.own, &nothing, &nowhere);
        for (_, value) in &step.inputs {
            let found = scope.heads(value, &mut |name| {
                if let Some(&needed) = by_name.get(name) {
                    needs.add_edge(NodeIndex::new(i), NodeIndex::new(needed), value.span.clone());
                }
            });
            // Unknown names and axes are reported where the points are known.
            if let Err(Miss::Bad(d)) = found {
                findings.push(*d);
            }
        }
    }
    // Components come with what they need before them.
    let components = kosaraju_scc(&needs);
    let mut order = Vec::with_capacity(steps.len());
    for mut component in components {
        component.sort();
        let head = component[0];
        if component.len() > 1 || needs.find_edge(head, head).is_some() {
            findings.push(cycle(&needs, &component, steps));
        }
        order.extend(component.into_iter().map(NodeIndex::index));
    }
    order
}

/// The shortest circle through the component's first step, step by step.
fn cycle(needs: &DiGraph<(), Span>, component: &[NodeIndex], steps: &[StepDef<'_>]) -> Diagnostic {
    let head = component[0];
    let mut came: HashMap<NodeIndex, (NodeIndex, Span)> = HashMap::new();
    let mut queue = VecDeque::from([head]);
    while let Some(node) = queue.pop_front() {
        if came.contains_key(&head) {
            break;
        }
        // petgraph lists a node's newest edge first.
        let mut edges: Vec<_> = needs.edges(node).collect();
        edges.reverse();
        for edge in edges {
            let next = edge.target();
            if component.binary_search(&next).is_ok() && !came.contains_key(&next) {
                came.insert(next, (node, edge.weight().clone()));
                queue.push_back(next);
            }
        }
    }
    let mut path = Vec::new();
    let mut node = head;
    while let Some((before, span)) = came.get(&node) {
        path.push((*before, node, span.clone()));
        node = *before;
        if node == head {
            break;
        }
    }
    path.reverse();
    let name = |node: NodeIndex| steps[node.index()].name;
    let mut names: Vec<&str> = path.iter().map(|(from, _, _)| name(*from)).collect();
    names.push(name(head));
    let message = match names.as_slice() {
        [one, _] => format!("step `{one}` needs itself"),
        _ => format!("steps need each other in a circle: {}", names.join(" -> ")),
    };
    let mut d = Diagnostic::new("cycle", message);
    for (i, (from, to, span)) in path.iter().enumerate() {
        let label = format!("`{}` needs `{}`", name(*from), name(*to));
        d = if i == 0 { d.at(span, label) } else { d.related(span, label) };
    }
    d
}
