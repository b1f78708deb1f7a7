//! Runs one op at a time in a folder of its own, with the seed 7.

use std::collections::BTreeMap;
use std::sync::Mutex;

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::registry::registry;
use camino::Utf8PathBuf;
use serde_json::Value;

/// Last value of each metric.
pub type Metrics = BTreeMap<String, f64>;

#[derive(Default)]
struct Sink(Mutex<Metrics>);

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        if let OpEvent::Metric { name, value, .. } = event {
            self.0.lock().unwrap().insert(name, value);
        }
    }
}

pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Bench {
        Bench(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.0.path().join(name)).unwrap()
    }

    /// Runs an op; its outputs lie in the folder `name`.
    pub fn attempt(&self, op: &str, params: Value, inputs: &[(&str, &str)], name: &str) -> Result<Metrics, OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(&params).unwrap();
        let problems = op.check(&params);
        assert!(problems.is_empty(), "{problems:?}");
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let artifact =
            |path: &str| InputArtifact { path: self.path(path), step: String::new(), labels: BTreeMap::new() };
        let mut given: BTreeMap<String, Vec<InputArtifact>> = BTreeMap::new();
        for (port, path) in inputs {
            given.entry((*port).to_owned()).or_default().push(artifact(path));
        }
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let (sink, stop) = (Sink::default(), Stop::new());
        op.run(&params, &mut OpContext::new(given, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop))?;
        Ok(sink.0.into_inner().unwrap())
    }

    /// As `attempt`, for what must not fail.
    pub fn run(&self, op: &str, params: Value, inputs: &[(&str, &str)], name: &str) -> Metrics {
        self.attempt(op, params, inputs, name).unwrap()
    }

    /// What is wrong with parameters, as a recipe would be told.
    pub fn problems(op: &str, params: Value) -> Vec<String> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        op.check(&op.canonical(&params).unwrap()).into_iter().map(|p| p.message).collect()
    }
}
