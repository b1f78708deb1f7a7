//! The recipe's graph as inline SVG: one box a step, with its op and how many variants there are.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use actloom_engine::op::LineageNode;

use super::html::{Text, clipped};
use super::layout::{Drawing, lay_out};
use super::number;

const BOX: f64 = 42.0;
const GAP: f64 = 34.0;
const MARGIN: f64 = 8.0;
/// Longest name that is shown whole.
const NAME: usize = 26;

/// Draws the ancestors of a report.
pub fn svg(lineage: &[LineageNode]) -> String {
    let at: HashMap<&str, usize> = lineage.iter().enumerate().map(|(i, node)| (node.step.as_str(), i)).collect();
    let mut edges = Vec::new();
    for (to, node) in lineage.iter().enumerate() {
        // A topological order puts producers first; anything else is not an edge that could be drawn.
        edges
            .extend(node.inputs.iter().filter_map(|step| at.get(step.as_str())).filter(|&&f| f < to).map(|&f| (f, to)));
    }
    let widths: Vec<f64> = lineage.iter().map(width).collect();
    let drawing = lay_out(&widths, &edges);
    let (w, h) = (drawing.width + 2.0 * MARGIN + 4.0, drawing.layers as f64 * (BOX + GAP) - GAP + 2.0 * MARGIN + 4.0);
    let mut out = format!(
        "<svg class=\"graph\" role=\"img\" aria-label=\"Graph of the recipe: {} and {}\" viewBox=\"0 0 {w:.0} {h:.0}\" \
         width=\"{w:.0}\" height=\"{h:.0}\">\n",
        number::counted(lineage.len(), "step"),
        number::counted(edges.len(), "edge"),
    );
    out.push_str(
        "<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path class=\"head\" d=\"M0 0.5 L8 4 L0 7.5 z\"/></marker></defs>\n",
    );
    // Edges of one source share their trunk: every piece is drawn once.
    let pieces: BTreeSet<(usize, usize)> =
        drawing.routes.iter().flat_map(|route| route.windows(2).map(|step| (step[0], step[1]))).collect();
    for (from, to) in pieces {
        let _ = writeln!(out, "{}", piece(&drawing, from, to));
    }
    for (node, place) in lineage.iter().zip(&drawing.places) {
        node_box(&mut out, node, place.x - place.width / 2.0 + MARGIN, top(place.layer), place.width);
    }
    out.push_str("</svg>\n");
    out
}

fn top(layer: usize) -> f64 {
    MARGIN + layer as f64 * (BOX + GAP)
}

fn subtitle(node: &LineageNode) -> String {
    match node.variants {
        0 | 1 => clipped(&node.op, NAME),
        n => format!("{} × {n}", clipped(&node.op, NAME)),
    }
}

/// Wide enough for its text in the page's fonts: about 7.4 units a character of the name, 6.4 of the op.
fn width(node: &LineageNode) -> f64 {
    let name = clipped(&node.step, NAME).chars().count() as f64 * 7.6;
    let below = subtitle(node).chars().count() as f64 * 6.6;
    (name.max(below) + 26.0).max(84.0)
}

fn node_box(out: &mut String, node: &LineageNode, x: f64, y: f64, width: f64) {
    let middle = x + width / 2.0;
    let _ = write!(out, "<g><title>{}: {}</title>", Text(&node.step), Text(&subtitle(node)));
    if node.variants > 1 {
        let _ = write!(
            out,
            "<rect class=\"box\" x=\"{:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{BOX}\" rx=\"6\"/>",
            x + 4.0,
            y + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<rect class=\"box\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BOX}\" rx=\"6\"/>\
         <text class=\"name\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"op\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text></g>",
        y + 18.0,
        Text(&clipped(&node.step, NAME)),
        y + 33.0,
        Text(&subtitle(node)),
    );
}

/// One piece of an edge: a curve to the next layer, and where that is a waypoint on through its row.
fn piece(drawing: &Drawing, from: usize, to: usize) -> String {
    let (from, to) = (&drawing.places[from], &drawing.places[to]);
    let (x0, x1) = (from.x + MARGIN, to.x + MARGIN);
    let (y0, y1) = (top(from.layer) + BOX, top(to.layer));
    let middle = (y0 + y1) / 2.0;
    // An arrow's point would cover the box's line.
    let (end, on) = if to.node.is_some() { (y1 - 1.0, String::new()) } else { (y1, format!(" V{:.1}", y1 + BOX)) };
    let arrow = if to.node.is_some() { " marker-end=\"url(#arrow)\"" } else { "" };
    format!(
        "<path class=\"edge\" \
         d=\"M{x0:.1} {y0:.1} C{x0:.1} {middle:.1} {x1:.1} {middle:.1} {x1:.1} {end:.1}{on}\"{arrow}/>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(step: &str, op: &str, variants: usize, inputs: &[&str]) -> LineageNode {
        LineageNode {
            step: step.to_owned(),
            op: op.to_owned(),
            variants,
            inputs: inputs.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn every_step_and_edge_is_drawn_and_names_are_text() {
        let lineage =
            [node("base", "model", 1, &[]), node("act", "act", 3, &["base"]), node("a<b", "sft", 6, &["act", "base"])];
        let svg = svg(&lineage);
        // base -> act, base -> waypoint -> a<b, act -> a<b: three arrows in four pieces.
        assert_eq!(svg.matches("class=\"edge\"").count(), 4);
        assert_eq!(svg.matches("marker-end").count(), 3);
        assert_eq!(svg.matches("class=\"name\"").count(), 3);
        assert!(svg.contains("aria-label=\"Graph of the recipe: 3 steps and 3 edges\""));
        assert!(svg.contains("sft × 6") && svg.contains(">a&lt;b<") && !svg.contains("a<b"));
    }
}
