//! Settles what a recipe means: names, variables, the matrix, typed parameters and ports.
//!
//! 1. define: variables, the matrix, every step with its op and its own axes;
//! 2. order: which step can refer to which, cycles named;
//! 3. multiply: in that order, the variants of each step and what feeds them;
//! 4. check: parameters against the op's schema, inputs against its ports;
//! 5. build the graph.
//!
//! How steps multiply. A step's own `each` axes multiply it always. An axis of the matrix multiplies it where its keys
//! mention the axis, directly or through a variable. Inputs pass their axes on: a step has one variant for each
//! combination of input variants that agree on the axes they share (matched label by label, not crossed). Where some
//! values of an axis bring in another axis and others do not, only the former are multiplied by it. A label that only
//! one of two inputs has drops out; a step, or a value of its own axis, for which nothing is left is an error.
//! `"@x[axis=label]"` fixes an axis, and it is not passed on; `"@x[axis=*]"` collects one, `"@x[*]"` all of them.
//!
//! Invariants: every finding of the whole recipe is reported in one go, in the order of the text; a mistake in one step
//! does not make its followers look wrong; the cost is linear in variants and edges, apart from sorting.

mod axis;
mod check;
mod define;
mod describe;
mod finish;
mod multiply;
mod order;
mod params;
mod path;
pub(crate) mod reference;
mod scope;
mod template;

use std::collections::HashMap;
use std::rc::Rc;

use petgraph::graph::{DiGraph, NodeIndex};

use self::define::StepDef;
pub(crate) use self::describe::{describe, lookup};
use self::multiply::{Done, Pick};
use self::scope::World;
use crate::diagnostic::{Diagnostic, Diagnostics, Findings};
use crate::graph::{Graph, Input, Node, Outside, Source, Span};
use crate::op::Registry;
use crate::recipe::Recipe;

/// Keys of a step that are no parameter and no input.
pub const RESERVED: [&str; 6] = ["op", "seed", "each", "pin_device", "resources", "about"];

/// Name of the output that every step has.
pub const METRICS: &str = "metrics";

/// More variants than this are taken for a mistake.
pub const MOST_VARIANTS: usize = 100_000;
/// More artifacts fed into steps than this are taken for a mistake.
const MOST_EDGES: usize = 4_000_000;

/// Resolves a recipe against the ops there are.
///
/// # Errors
/// Everything that is wrong with the recipe.
pub fn resolve(recipe: &Recipe, registry: &Registry) -> Result<Graph, Diagnostics> {
    let mut findings = Findings::default();
    recipe.overrides.iter().for_each(|d| findings.push(d.clone()));
    let graph = attempt(recipe, registry, &mut findings);
    for profile in &recipe.unchosen {
        let mut found = Findings::default();
        let copy = Recipe {
            sources: recipe.sources.clone(),
            path: recipe.path.clone(),
            root: profile.root.clone(),
            overrides: Vec::new(),
            numbers: Vec::new(),
            unchosen: Vec::new(),
        };
        attempt(&copy, registry, &mut found);
        // Whatever is wrong elsewhere is wrong without the profile too, or depends on what else is chosen.
        let own = |span: &Span| profile.places.iter().any(|place| span.within(place));
        let own = found.into_found().into_iter().filter(|d| d.primary.as_ref().is_some_and(|(span, _)| own(span)));
        own.for_each(|d| findings.push(d));
    }
    findings.blame(&recipe.numbers);
    match graph {
        Some(graph) if findings.is_empty() => Ok(graph),
        _ => Err(findings.finish(recipe.sources.clone())),
    }
}

/// The graph, or `None` with findings.
fn attempt(recipe: &Recipe, registry: &Registry, findings: &mut Findings) -> Option<Graph> {
    let heading = define::heading(recipe, findings);
    let mut world = define::world(recipe, findings);
    let steps = define::steps(recipe, registry, &mut world, findings);
    define::check_vars(&world, &steps, findings);
    let order = order::order(&world, &steps, findings);
    let mut resolver = Resolver {
        by_name: steps.iter().enumerate().map(|(i, step)| (step.name, i)).collect(),
        done: steps.iter().map(|_| None).collect(),
        world: &world,
        steps: &steps,
        findings,
        variants: 0,
        edges: 0,
        exploded: false,
    };
    for step in order {
        resolver.step(step);
        if resolver.exploded {
            return None;
        }
    }
    let done = resolver.done;
    findings.is_empty().then(|| build(heading, &world, &steps, &done))
}

/// What steps 3 and 4 work on.
struct Resolver<'r, 'a> {
    world: &'r World<'a>,
    steps: &'r [StepDef<'a>],
    by_name: HashMap<&'a str, usize>,
    /// By step; `None` while it is not its turn, and for ever within a cycle.
    done: Vec<Option<Done>>,
    findings: &'r mut Findings,
    variants: usize,
    edges: usize,
    exploded: bool,
}

impl Resolver<'_, '_> {
    fn report(&mut self, d: Diagnostic) {
        self.findings.push(d);
    }

    /// Gives up: the recipe asks for more than anybody wants.
    fn explode(&mut self, step: usize) {
        let step = &self.steps[step];
        self.exploded = true;
        self.findings.push(
            Diagnostic::new(
                "too-many",
                format!("step `{}` makes the recipe larger than {MOST_VARIANTS} variants", step.name),
            )
            .at(&step.key.span, "multiplied by every axis it uses")
            .help("fix an axis of its inputs, `\"@step[axis=label]\"`, or collect it, `\"@step[axis=*]\"`"),
        );
    }
}

fn build(heading: define::Heading, world: &World<'_>, steps: &[StepDef<'_>], done: &[Option<Done>]) -> Graph {
    let mut nodes: DiGraph<Node, &'static str> = DiGraph::new();
    // Nodes in the recipe's order, so a variant's index is its step's first plus its own.
    let mut first = Vec::with_capacity(steps.len());
    let mut next = 0;
    for done in done {
        first.push(next);
        next += done.as_ref().map_or(0, |d| d.variants.len());
    }
    let index = |step: usize, variant: usize| NodeIndex::new(first[step] + variant);
    let mut edges = Vec::new();
    for (i, (step, done)) in steps.iter().zip(done).enumerate() {
        let Some(done) = done else { panic!("BUG: step `{}` was never resolved", step.name) };
        for (j, variant) in done.variants.iter().enumerate() {
            let (Some(typed), Some(op)) = (&variant.typed, &step.op) else {
                panic!("BUG: step `{}` has no parameters and nothing was reported", step.name)
            };
            let settled = || panic!("BUG: step `{}` has no ports and nothing was reported", step.name);
            let (params, ports) = typed.settled().unwrap_or_else(settled);
            let mut inputs = Vec::with_capacity(ports.inputs.len());
            for port in &ports.inputs {
                let Some(fed) = variant.fed.iter().find(|fed| step.inputs[fed.key].0.text == port.name) else {
                    continue;
                };
                let sources: Vec<Source> = fed
                    .picks
                    .iter()
                    .flat_map(|picks| picks.iter())
                    .map(|pick| match pick {
                        Pick::Step { step, variant, output } => {
                            Source::Step { node: index(*step, *variant), output: output.to_string() }
                        }
                        Pick::Outside(outside) => Source::Outside(Outside::clone(outside)),
                    })
                    .collect();
                edges.extend(sources.iter().filter_map(|source| Some((source.node()?, index(i, j), port.name))));
                inputs.push(Input { port: port.clone(), sources });
            }
            nodes.add_node(Node {
                step: step.name.to_owned(),
                labels: world.axes.labels(&variant.point),
                op: op.op.clone(),
                params: params.clone(),
                seed: variant.seed,
                pin_device: variant.pin_device,
                resources: variant.needs(op, params),
                inputs,
                outputs: ports.outputs.clone(),
                span: step.key.span.clone(),
            });
        }
    }
    for (from, to, port) in edges {
        nodes.add_edge(from, to, port);
    }
    Graph { name: heading.name, about: heading.about, nodes }
}

/// Shared, because a recipe has many steps and few ops.
type Shared<T> = Rc<T>;
