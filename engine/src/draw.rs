//! The graph as text for Graphviz and for Mermaid, a box for each step or for each variant, and one for each path that
//! feeds them.
//!
//! Invariants: the same graph gives the same text; names are escaped, so no label breaks the drawing. Ids of boxes are
//! numbers in the recipe's order, since labels may hold anything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use camino::Utf8Path;
use petgraph::visit::EdgeRef;

use crate::graph::{Graph, Source};

/// Boxes and arrows, before any syntax.
struct Drawing {
    /// Name and op.
    boxes: Vec<(String, String)>,
    /// From, to: the ports.
    arrows: BTreeMap<(usize, usize), BTreeSet<&'static str>>,
}

/// A digraph for Graphviz. One box a step, `il ×6`, or one for each variant when `expanded`.
pub fn to_dot(graph: &Graph, expanded: bool) -> String {
    let drawing = drawing(graph, expanded);
    let mut out = String::new();
    let _ = writeln!(out, "digraph {} {{", dot(&graph.name));
    out.push_str("  rankdir = LR\n  node [shape = box, fontname = \"sans-serif\"]\n");
    for (i, (name, op)) in drawing.boxes.iter().enumerate() {
        let label = dot(&format!("{name}\n{op}"));
        let _ = writeln!(out, "  n{i} [label = {label}]");
    }
    for ((from, to), ports) in &drawing.arrows {
        let _ = writeln!(out, "  n{from} -> n{to} [label = {}]", dot(&joined(ports)));
    }
    out.push_str("}\n");
    out
}

/// A flowchart for Mermaid. One box a step, `il ×6`, or one for each variant when `expanded`.
pub fn to_mermaid(graph: &Graph, expanded: bool) -> String {
    let drawing = drawing(graph, expanded);
    let mut out = String::from("flowchart LR\n");
    for (i, (name, op)) in drawing.boxes.iter().enumerate() {
        let _ = writeln!(out, "  n{i}[\"{}<br/>{}\"]", mermaid(name), mermaid(op));
    }
    for ((from, to), ports) in &drawing.arrows {
        let _ = writeln!(out, "  n{from} -- \"{}\" --> n{to}", mermaid(&joined(ports)));
    }
    out
}

fn drawing(graph: &Graph, expanded: bool) -> Drawing {
    let mut boxes: Vec<(String, String)> = Vec::new();
    let mut box_of = Vec::with_capacity(graph.nodes.node_count());
    if expanded {
        boxes.extend(graph.nodes.node_weights().map(|node| (node.display(), node.op.name().to_owned())));
        box_of.extend(0..boxes.len());
    } else {
        let mut of_step: HashMap<&str, usize> = HashMap::new();
        let mut variants: Vec<usize> = Vec::new();
        for node in graph.nodes.node_weights() {
            let i = *of_step.entry(&node.step).or_insert_with(|| {
                boxes.push((node.step.clone(), node.op.name().to_owned()));
                variants.push(0);
                boxes.len() - 1
            });
            variants[i] += 1;
            box_of.push(i);
        }
        for ((name, _), count) in boxes.iter_mut().zip(variants) {
            if count > 1 {
                let _ = write!(name, " ×{count}");
            }
        }
    }
    let mut arrows: BTreeMap<(usize, usize), BTreeSet<&'static str>> = BTreeMap::new();
    for edge in graph.nodes.edge_references() {
        let ends = (box_of[edge.source().index()], box_of[edge.target().index()]);
        arrows.entry(ends).or_default().insert(edge.weight());
    }
    // A box for each file or folder.
    let mut outside: BTreeMap<&Utf8Path, usize> = BTreeMap::new();
    for (node, to) in graph.nodes.node_weights().zip(&box_of) {
        for (input, source) in node.inputs.iter().flat_map(|input| input.sources.iter().map(move |s| (input, s))) {
            if let Source::Outside(path) = source {
                let from = *outside.entry(&path.path).or_insert_with(|| {
                    boxes.push((path.written.clone(), "path".to_owned()));
                    boxes.len() - 1
                });
                arrows.entry((from, *to)).or_default().insert(input.port.name);
            }
        }
    }
    Drawing { boxes, arrows }
}

fn joined(ports: &BTreeSet<&'static str>) -> String {
    ports.iter().copied().collect::<Vec<_>>().join(", ")
}

fn dot(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn mermaid(text: &str) -> String {
    // Mermaid takes `#name;` for characters that would end a label.
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '#' => out.push_str("#35;"),
            '"' => out.push_str("#quot;"),
            '<' => out.push_str("#lt;"),
            '>' => out.push_str("#gt;"),
            c => out.push(c),
        }
    }
    out
}
