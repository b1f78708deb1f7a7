//! `actloom graph`: the steps and what flows between them, for Graphviz and Mermaid.

use actloom_engine::draw::{to_dot, to_mermaid};
use actloom_engine::graph::{Graph as Steps, Source};
use serde_json::{Value, json};

use crate::args::{Global, Graph, GraphFormat, Words};
use crate::exit::{Exit, Failure};
use crate::load;
use crate::terminal::{out, out_json};

pub fn run(args: &Graph, global: &Global) -> Result<Exit, Failure> {
    let (path, steps) = load::words(&Words { first: args.first.clone(), rest: Vec::new() })?;
    if let Some(word) = steps.first() {
        return Err(Failure::usage(format!("`{word}` is no recipe"), "a recipe is a file whose name ends in `.toml`"));
    }
    let graph = load::recipe(path, &args.recipe)?.graph;
    if global.json {
        out_json(&as_json(&graph));
        return Ok(Exit::Done);
    }
    out(&match args.format {
        GraphFormat::Dot => to_dot(&graph, args.expand),
        GraphFormat::Mermaid => to_mermaid(&graph, args.expand),
    });
    Ok(Exit::Done)
}

/// Every variant with everything that the recipe settles about it.
fn as_json(graph: &Steps) -> Value {
    let nodes: Vec<Value> = graph
        .nodes
        .node_weights()
        .map(|node| {
            let inputs: serde_json::Map<String, Value> = node
                .inputs
                .iter()
                .map(|input| {
                    let from = |source: &Source| match source {
                        Source::Step { node, output } => {
                            json!({"step": graph.nodes[*node].display(), "output": output})
                        }
                        Source::Outside(outside) => json!({"path": outside.path}),
                    };
                    (input.port.name.to_owned(), input.sources.iter().map(from).collect())
                })
                .collect();
            json!({
                "name": node.display(), "step": node.step, "labels": node.labels, "op": node.op.name(),
                "params": node.params, "seed": node.seed, "pin_device": node.pin_device,
                "resources": node.resources, "inputs": inputs, "outputs": node.outputs,
            })
        })
        .collect();
    json!({"name": graph.name, "about": graph.about, "steps": nodes})
}
