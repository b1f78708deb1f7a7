//! Runs ops on small files: inputs and outputs below one temporary folder, metrics kept across starts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use actloom_engine::event::OpEvent;
use actloom_engine::op::{DeviceRequest, InputArtifact, OpContext, OpError, OpSink};
use actloom_engine::stop::Stop;
use actloom_ops::artifact::Task;
use actloom_ops::registry::registry;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;

/// (update, name, value).
pub type Metrics = Vec<(u64, String, f64)>;

/// Keeps metrics as the engine does, and asks for a stop after so many progress reports.
struct Sink {
    earlier: Mutex<Metrics>,
    metrics: Mutex<Metrics>,
    left: AtomicU64,
    stop: Stop,
}

impl OpSink for Sink {
    fn event(&self, event: OpEvent) {
        match event {
            OpEvent::Metric { step, name, value } => self.metrics.lock().unwrap().push((step, name, value)),
            OpEvent::Progress(_) if self.left.fetch_sub(1, Ordering::SeqCst) == 1 => self.stop.set(),
            _ => {}
        }
    }

    fn resume_metrics(&self, step: u64) -> std::io::Result<()> {
        let earlier = std::mem::take(&mut *self.earlier.lock().unwrap());
        self.metrics.lock().unwrap().extend(earlier.into_iter().take_while(|m| m.0 <= step));
        Ok(())
    }
}

pub struct Bench {
    folder: tempfile::TempDir,
    /// Metrics that an interrupted start left, by the step's name.
    left: Mutex<BTreeMap<String, Metrics>>,
}

impl Bench {
    pub fn new() -> Self {
        Bench { folder: tempfile::tempdir().unwrap(), left: Mutex::default() }
    }

    pub fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join(name)).unwrap()
    }

    /// A file of JSON lines.
    pub fn lines(&self, name: &str, lines: &[Value]) -> Utf8PathBuf {
        let path = self.path(name);
        std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        path
    }

    /// Runs an op; its outputs go below `name`. A port that is named twice takes both.
    pub fn run(
        &self,
        op: &str,
        params: &Value,
        inputs: &[(&str, &Utf8Path)],
        name: &str,
        stop_after: u64,
    ) -> Result<Metrics, OpError> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let params = op.canonical(params).unwrap();
        let (out, scratch) = (self.path(name), self.path(&format!("{name}-scratch")));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&scratch).unwrap();
        let mut given: BTreeMap<String, Vec<InputArtifact>> = BTreeMap::new();
        for (port, path) in inputs {
            let artifact = InputArtifact { path: (*path).to_owned(), step: String::new(), labels: BTreeMap::new() };
            given.entry((*port).to_owned()).or_default().push(artifact);
        }
        let outputs = op.ports(&params).outputs.iter().map(|o| (o.name.to_owned(), out.join(o.name))).collect();
        let stop = Stop::new();
        let earlier = self.left.lock().unwrap().remove(name).unwrap_or_default();
        let sink = Sink {
            earlier: Mutex::new(earlier),
            metrics: Mutex::default(),
            left: AtomicU64::new(stop_after),
            stop: stop.clone(),
        };
        let mut ctx = OpContext::new(given, outputs, scratch, 7, DeviceRequest::Cpu, Vec::new(), &sink, &stop);
        let done = op.run(&params, &mut ctx);
        let metrics = sink.metrics.into_inner().unwrap();
        if done.is_err() {
            self.left.lock().unwrap().insert(name.to_owned(), metrics.clone());
        }
        done.map(|()| metrics)
    }

    /// Paths and messages of what an op finds wrong in its parameters.
    pub fn problems(&self, op: &str, params: &Value) -> Vec<(String, String)> {
        let registry = registry();
        let op = registry.get(op).unwrap();
        let problems = op.check(&op.canonical(params).unwrap());
        problems.into_iter().map(|p| (p.path.join("."), p.message)).collect()
    }
}

/// The tiny model with its tokenizer.
pub fn model() -> Utf8PathBuf {
    Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model")
}

pub fn failure(result: Result<Metrics, OpError>) -> (String, String) {
    match result {
        Err(OpError::Failed { message, help }) => (message, help.unwrap_or_default()),
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// Values of a metric, in order.
pub fn of(metrics: &Metrics, name: &str) -> Vec<f64> {
    metrics.iter().filter(|m| m.1 == name).map(|m| m.2).collect()
}

pub fn task() -> Task {
    let text = |s: &str| s.to_owned();
    Task {
        env: text("household"),
        id: text("id/0"),
        split: text("train"),
        kind: text("k"),
        goal: text("g"),
        seed: None,
    }
}
