//! Graphs by hand, ops by closure, and a reporter that remembers: what the tests of planning and running share.
//!
//! Invariant: nothing here knows the recipe language, so these tests hold whatever it becomes.
#![cfg_attr(test, expect(dead_code, reason = "each test binary uses a part of this"))]

use std::collections::BTreeMap;
use std::sync::Arc;

use actloom_cache::{ContentId, Store};
use actloom_engine::event::{Event, Reporter};
use actloom_engine::graph::{Graph, Input, Node, Source, Span};
use actloom_engine::op::{
    Arity, DeviceRequest, DynOp, InputPort, Kind, OpContext, OpError, OutputPort, Ports, Problem, Resources,
};
use actloom_engine::plan::{Goal, Plan, plan};
use actloom_engine::run::{RunOptions, Summary, run};
use actloom_engine::source::SourceId;
use actloom_engine::stop::Stop;
use camino::Utf8PathBuf;
use petgraph::graph::{DiGraph, NodeIndex};
use serde_json::{Value, json};

type Body = dyn Fn(&Value, &mut OpContext<'_>) -> Result<(), OpError> + Send + Sync;

/// An op made of a closure, with the output `out` and the input `in`.
pub struct TestOp {
    pub name: &'static str,
    pub version: u32,
    pub body: Box<Body>,
}

pub fn op(
    name: &'static str,
    body: impl Fn(&Value, &mut OpContext<'_>) -> Result<(), OpError> + Send + Sync + 'static,
) -> Arc<dyn DynOp> {
    Arc::new(TestOp { name, version: 1, body: Box::new(body) })
}

impl DynOp for TestOp {
    fn name(&self) -> &'static str {
        self.name
    }
    fn version(&self) -> u32 {
        self.version
    }
    fn about(&self) -> &'static str {
        "a test's"
    }
    fn schema(&self) -> Value {
        json!({})
    }
    fn canonical(&self, params: &Value) -> Result<Value, String> {
        Ok(params.clone())
    }
    fn ports(&self, _params: &Value) -> Ports {
        Ports::new()
    }
    fn resources(&self, _params: &Value) -> Resources {
        Resources::default()
    }
    fn check(&self, _params: &Value) -> Vec<Problem> {
        Vec::new()
    }
    fn run(&self, params: &Value, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        (self.body)(params, ctx)
    }
}

/// Writes its parameters, its seed and everything it reads: two steps have equal bytes only if all of that is equal.
pub fn concat() -> Arc<dyn DynOp> {
    op("concat", |params, ctx| {
        let mut text = format!("{params} {}\n", ctx.seed("text"));
        for artifact in ctx.inputs("in") {
            text += &format!("{} {:?}\n", artifact.step, artifact.labels);
            text += &fs_err::read_to_string(&artifact.path)?;
        }
        ctx.metric(0, "length", text.len() as f64);
        fs_err::write(ctx.output("out"), text)?;
        Ok(())
    })
}

/// Fails.
pub fn fail() -> Arc<dyn DynOp> {
    op("fail", |_, _| Err(OpError::with_help("the disk is square", "use a round one")))
}

/// A graph under construction.
pub struct Builder {
    pub graph: Graph,
}

pub fn graph() -> Builder {
    Builder { graph: Graph { name: "test".into(), about: String::new(), nodes: DiGraph::new() } }
}

impl Builder {
    /// Adds a step that reads the first output of each of `from`.
    pub fn step(mut self, name: &str, op: &Arc<dyn DynOp>, params: Value, from: &[&str]) -> Self {
        let (step, labels) = parse(name);
        let sources: Vec<Source> =
            from.iter().map(|name| Source::Step { node: self.find(name), output: "out".into() }).collect();
        let port = InputPort {
            name: "in",
            kinds: vec![Kind::ANY],
            arity: Arity::ManyOptional,
            about: "",
            labelled: false,
            named: false,
        };
        let node = self.graph.nodes.add_node(Node {
            step,
            labels,
            op: Arc::clone(op),
            params,
            seed: 0,
            pin_device: false,
            resources: Resources::default(),
            inputs: vec![Input { port, sources: sources.clone() }],
            outputs: vec![OutputPort { name: "out", kind: Kind("text"), about: "" }],
            span: Span { source: SourceId(0), bytes: 0..0 },
        });
        for source in sources {
            self.graph.nodes.add_edge(source.node().unwrap(), node, "in");
        }
        self
    }

    /// Changes the step added last.
    pub fn with(mut self, change: impl FnOnce(&mut Node)) -> Self {
        let last = self.graph.nodes.node_count() - 1;
        change(&mut self.graph.nodes[NodeIndex::new(last)]);
        self
    }

    fn find(&self, name: &str) -> NodeIndex {
        self.graph.nodes.node_indices().find(|&n| self.graph.nodes[n].display() == name).unwrap()
    }

    pub fn done(self) -> Graph {
        self.graph
    }
}

fn parse(name: &str) -> (String, BTreeMap<String, String>) {
    let Some((step, labels)) = name.strip_suffix(']').and_then(|name| name.split_once('[')) else {
        return (name.to_owned(), BTreeMap::new());
    };
    let pairs = labels.split(',').map(|pair| pair.split_once('=').unwrap());
    (step.to_owned(), pairs.map(|(axis, label)| (axis.to_owned(), label.to_owned())).collect())
}

/// Remembers every event.
#[derive(Default)]
pub struct Memory(pub Vec<Event>);

impl Reporter for Memory {
    fn event(&mut self, event: &Event) {
        self.0.push(event.clone());
    }
}

impl Memory {
    /// Names of the nodes whose op ran, sorted.
    pub fn ran(&self) -> Vec<String> {
        let mut names: Vec<String> = self
            .0
            .iter()
            .filter_map(|event| match event {
                Event::Started { node, .. } => Some(node.clone()),
                _ => None,
            })
            .collect();
        names.sort();
        names
    }
}

/// A store in a folder that goes with it.
pub struct Home {
    pub store: Store,
    pub dir: tempfile::TempDir,
}

pub fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let root = Utf8PathBuf::from_path_buf(dir.path().join("store")).unwrap();
    Home { store: Store::open(&root).unwrap(), dir }
}

/// Everything that came of planning and running.
pub struct Ran {
    pub plan: Plan,
    pub summary: Summary,
    pub memory: Memory,
}

impl Ran {
    pub fn names(&self) -> Vec<String> {
        self.memory.ran()
    }

    /// Content ids of every output of every node, by display name and output.
    pub fn contents(&self) -> BTreeMap<(String, String), ContentId> {
        let steps = self.summary.steps.iter();
        steps
            .flat_map(|step| {
                let outputs = step.action.iter().flat_map(|action| &action.outputs);
                outputs.map(|(name, artifact)| ((step.name.clone(), name.clone()), artifact.id))
            })
            .collect()
    }
}

pub fn options() -> RunOptions {
    RunOptions { slots: Resources { cpu: 4, gpu: 0 }, keep_going: true }
}

pub fn run_all(graph: &Graph, store: &Store) -> Ran {
    run_goal(graph, store, &Goal::default(), &Stop::new(), &options())
}

pub fn run_goal(graph: &Graph, store: &Store, goal: &Goal, stop: &Stop, options: &RunOptions) -> Ran {
    let plan = plan(graph, goal, store).unwrap();
    let mut memory = Memory::default();
    let summary = run(graph, &plan, store, &mut memory, stop, options).unwrap();
    Ran { plan, summary, memory }
}

/// The text of a node's output.
pub fn text(ran: &Ran, store: &Store, node: &str, output: &str) -> String {
    let step = ran.summary.steps.iter().find(|step| step.name == node).unwrap();
    let artifact = &step.action.as_ref().unwrap().outputs[output];
    String::from_utf8(store.read_file(artifact, None).unwrap()).unwrap()
}

pub fn on(device: DeviceRequest) -> Goal {
    Goal { device, ..Goal::default() }
}
