//! Recipes to graphs: which variants there are and what feeds them.

mod common;

use std::collections::BTreeMap;

use actloom_engine::graph::Graph;
use actloom_engine::recipe::{Overrides, parse_text};
use actloom_engine::resolve::resolve;
use camino::Utf8Path;

fn graph(text: &str, overrides: &Overrides) -> Graph {
    let recipe = parse_text(Utf8Path::new("recipe.toml"), text, overrides).unwrap_or_else(|d| panic!("{:#?}", d.found));
    resolve(&recipe, &common::registry()).unwrap_or_else(|d| panic!("{:#?}", d.located()))
}

/// Step -> number of variants.
fn counts(graph: &Graph) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for node in graph.nodes.node_weights() {
        *counts.entry(node.step.as_str()).or_default() += 1;
    }
    counts
}

/// `port <- node.output`, for the node of this display name.
fn fed_by(graph: &Graph, name: &str) -> Vec<String> {
    let node = graph.nodes.node_weights().find(|n| n.display() == name);
    let node = node.unwrap_or_else(|| {
        let names: Vec<String> = graph.nodes.node_weights().map(|n| n.display()).collect();
        panic!("no node {name} in {names:#?}")
    });
    let sources = node.inputs.iter().flat_map(|input| {
        input.sources.iter().map(|s| format!("{} <- {}.{}", input.port.name, graph.nodes[s.node].display(), s.output))
    });
    sources.collect()
}

const TABLE1: &str = include_str!("fixtures/table1.toml");

#[test]
fn the_papers_table_has_the_right_variants() {
    let graph = graph(TABLE1, &Overrides::default());
    let expected = [
        ("act", 5),
        ("alternatives", 5),
        ("base", 1),
        ("demos", 5),
        ("early_experience", 5),
        ("il", 10),
        ("initial", 5),
        ("pairs", 5),
        ("play", 70),
        ("reflections", 5),
        ("report", 1),
        ("rl", 10),
        ("score", 70),
        ("table", 1),
    ];
    assert_eq!(counts(&graph), expected.into_iter().collect());
}

#[test]
fn the_papers_table_has_the_right_edges() {
    let graph = graph(TABLE1, &Overrides::default());
    assert_eq!(fed_by(&graph, "initial[seed=3]"), ["model <- base.model", "data <- demos[seed=3].episodes"]);
    assert_eq!(
        fed_by(&graph, "il[seed=2,start=act]"),
        ["model <- act[seed=2].model", "data <- demos[seed=2].episodes"]
    );
    assert_eq!(fed_by(&graph, "play[row=IL w/ ACT,seed=1,split=ood]"), ["policy <- il[seed=1,start=act].model"]);
    assert_eq!(fed_by(&graph, "table").len(), 70);
    assert_eq!(fed_by(&graph, "report").len(), 1 + 70 + 5);
    let node = graph.nodes.node_weights().find(|n| n.display() == "play[row=RL,seed=4,split=id]").unwrap();
    assert_eq!(node.params["split"], "id");
    assert_eq!(node.params["tasks"], 500);
    assert_eq!(node.seed, 4);
}
