//! One step from its key to its record in the store.
//!
//! 1. Check inputs out, read-only, into a stage; what lies outside the store is read where it is.
//! 2. Let the executor run the op; outputs go to the stage, checkpoints and metrics to the key's scratch folder.
//! 3. See that every declared output is there, put them into the store, write the record last, clear the scratch.
//!
//! Invariant: whatever goes wrong before the record is written leaves the store as it was, but for garbage.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use actloom_cache::{ACTION_VERSION, Action, Artifact, Store, StoreError};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use petgraph::graph::NodeIndex;
use serde_json::{Map, Value, json};
use tracing::info_span;

use crate::event::{Level, OpEvent};
use crate::executor::{Executor, Failure, Job};
use crate::graph::{Graph, Source};
use crate::key::{self, Key};
use crate::metrics::MetricLog;
use crate::op::{DeviceRequest, InputArtifact, OpSink};
use crate::stop::Stop;

/// The output that every step has.
pub(crate) const METRICS: &str = "metrics";
/// The op's own folder in the scratch folder of its key; what is in it is a checkpoint.
pub(crate) const OP_SCRATCH: &str = "op";
/// A progress report may come this often; more are for nobody.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// Everything one step needs.
pub(crate) struct StepRun<'a> {
    pub graph: &'a Graph,
    pub node: NodeIndex,
    pub key: Key,
    /// What feeds every input, by port, in order.
    pub artifacts: Vec<Vec<Artifact>>,
    pub device: DeviceRequest,
    pub forced: bool,
    pub run: &'a str,
    pub program: &'a str,
    pub store: &'a Store,
    pub executor: &'a dyn Executor,
    pub stop: &'a Stop,
}

/// What came of it.
pub(crate) enum Outcome {
    Published { action: Box<Action>, took: Duration },
    Failed { message: String, help: Option<String> },
    Interrupted,
}

impl From<StoreError> for Outcome {
    fn from(error: StoreError) -> Self {
        Outcome::Failed { message: error.to_string(), help: None }
    }
}

impl From<std::io::Error> for Outcome {
    fn from(error: std::io::Error) -> Self {
        Outcome::Failed { message: error.to_string(), help: None }
    }
}

/// Takes a step's reports: metrics to the file, notes and messages to the provenance, everything to the scheduler.
struct Sink<'a> {
    forward: &'a (dyn Fn(OpEvent) + Sync),
    inner: Mutex<Recorded>,
}

struct Recorded {
    metrics: Option<MetricLog>,
    notes: Map<String, Value>,
    messages: Vec<Value>,
    resumed_from: Option<u64>,
    not_finite: bool,
    last_progress: Option<Instant>,
}

impl Sink<'_> {
    fn with<T>(&self, act: impl FnOnce(&mut Recorded) -> T) -> T {
        // A panic while the lock was held leaves whole values behind.
        act(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn say(&self, level: Level, text: String) {
        self.event(OpEvent::Message { level, text });
    }
}

impl OpSink for Sink<'_> {
    fn event(&self, event: OpEvent) {
        let mut warning = None;
        let pass = self.with(|recorded| match &event {
            OpEvent::Metric { step, name, value } => {
                if !value.is_finite() && !std::mem::replace(&mut recorded.not_finite, true) {
                    warning = Some(format!("metric `{name}` at step {step} is {value}, recorded as null"));
                }
                if let Some(metrics) = &mut recorded.metrics {
                    metrics.record(*step, name, *value);
                }
                true
            }
            OpEvent::Progress(progress) => {
                let now = Instant::now();
                let due = recorded.last_progress.is_none_or(|last| now - last >= PROGRESS_EVERY);
                let pass = due || progress.done == progress.total;
                if pass {
                    recorded.last_progress = Some(now);
                }
                pass
            }
            OpEvent::Note { name, value } => {
                recorded.notes.insert(name.clone(), value.clone());
                true
            }
            OpEvent::Message { .. } => {
                if let Ok(mut message) = serde_json::to_value(&event) {
                    if let Some(message) = message.as_object_mut() {
                        message.remove("event");
                    }
                    recorded.messages.push(message);
                }
                true
            }
        });
        if pass {
            (self.forward)(event);
        }
        if let Some(text) = warning {
            self.say(Level::Warning, text);
        }
    }

    fn sync_metrics(&self) -> std::io::Result<()> {
        self.with(|recorded| recorded.metrics.as_mut().map_or(Ok(()), MetricLog::sync))
    }

    fn resume_metrics(&self, step: u64) -> std::io::Result<()> {
        self.with(|recorded| {
            recorded.resumed_from = Some(step);
            recorded.metrics.as_mut().map_or(Ok(()), |metrics| metrics.resume(step))
        })
    }
}

impl StepRun<'_> {
    /// Runs the step and publishes its result. The caller holds the lock of the key.
    pub(crate) fn perform(&self, forward: &(dyn Fn(OpEvent) + Sync)) -> Outcome {
        let name = self.graph.nodes[self.node].display();
        let _span = info_span!("step", node = %name, op = self.graph.nodes[self.node].op.name()).entered();
        self.try_perform(name, forward).unwrap_or_else(|outcome| outcome)
    }

    fn try_perform(&self, name: String, forward: &(dyn Fn(OpEvent) + Sync)) -> Result<Outcome, Outcome> {
        let clock = Instant::now();
        let started = Timestamp::now();
        let node = &self.graph.nodes[self.node];
        let key = &self.key.key;

        // 1. Inputs in, outputs announced.
        self.check_outside()?;
        let stage = self.store.stage(key)?;
        let inputs = self.check_out(&stage.path().join("in"))?;
        let out = stage.path().join("out");
        fs_err::create_dir(&out)?;
        let outputs: BTreeMap<String, Utf8PathBuf> =
            node.outputs.iter().map(|port| (port.name.to_owned(), out.join(port.name))).collect();
        if self.forced {
            self.store.clear_scratch(key)?;
        }
        let scratch = self.store.scratch(key)?;
        let op_scratch = scratch.join(OP_SCRATCH);
        fs_err::create_dir_all(&op_scratch)?;

        // 2. The op.
        let sink = Sink {
            forward,
            inner: Mutex::new(Recorded {
                metrics: Some(MetricLog::new(scratch.join("metrics.jsonl"))),
                notes: Map::new(),
                messages: Vec::new(),
                resumed_from: None,
                not_finite: false,
                last_progress: None,
            }),
        };
        let job = Job {
            node: name.clone(),
            op: node.op.clone(),
            params: node.params.clone(),
            inputs,
            outputs: outputs.clone(),
            scratch: op_scratch,
            seed: node.seed,
            device: self.device,
            lineage: if key::reads_names(self.graph, self.node) {
                key::lineage(self.graph, self.node)
            } else {
                Vec::new()
            },
        };
        self.executor.execute(job, &sink, self.stop).map_err(|failure| match failure {
            Failure::Interrupted => Outcome::Interrupted,
            Failure::Failed { message, help } => Outcome::Failed { message, help },
        })?;

        // 3. Its outputs, if it has read what the key says.
        self.check_outside()?;
        let metrics = out.join(METRICS);
        if let Some(log) = sink.with(|recorded| recorded.metrics.take()) {
            log.finish(&metrics)?;
        }
        for (name, path) in &outputs {
            if !path.exists() {
                return Err(Outcome::Failed {
                    message: format!("op `{}` made no output `{name}`, which it declares", node.op.name()),
                    help: Some("this is a bug in the op".to_owned()),
                });
            }
        }
        let mut artifacts = BTreeMap::new();
        for (name, path) in outputs.into_iter().chain([(METRICS.to_owned(), metrics)]) {
            let _span = info_span!("put", output = %name).entered();
            artifacts.insert(name, self.store.put(&path)?);
        }
        if self.forced {
            self.compare(&artifacts, &sink)?;
        }
        let provenance = self.provenance(&name, started, clock.elapsed(), &sink);
        let action = Action {
            v: ACTION_VERSION,
            key: *key,
            outputs: artifacts,
            manifest: self.key.manifest.clone(),
            provenance,
        };
        self.store.publish(&action)?;
        self.store.clear_scratch(key)?;
        Ok(Outcome::Published { action: Box::new(action), took: clock.elapsed() })
    }

    fn check_out(&self, dir: &Utf8Path) -> Result<BTreeMap<String, Vec<InputArtifact>>, Outcome> {
        fs_err::create_dir(dir)?;
        let node = &self.graph.nodes[self.node];
        let mut inputs = BTreeMap::new();
        for (input, artifacts) in node.inputs.iter().zip(&self.artifacts) {
            let mut checked_out = Vec::new();
            for (index, (source, artifact)) in input.sources.iter().zip(artifacts).enumerate() {
                let _span = info_span!("checkout", input = input.port.name, index).entered();
                checked_out.push(match source {
                    Source::Step { node, .. } => {
                        let path = dir.join(format!("{}-{index}", input.port.name));
                        self.store.checkout(artifact, &path)?;
                        let from = &self.graph.nodes[*node];
                        // What the key does not know, the op must not see.
                        InputArtifact {
                            path,
                            step: if input.port.named { from.step.clone() } else { String::new() },
                            labels: if input.port.labelled { from.labels.clone() } else { BTreeMap::new() },
                        }
                    }
                    // It is read where it is: a copy of a model may be larger than the disk.
                    Source::Outside(outside) => {
                        let (step, labels) = (String::new(), BTreeMap::new());
                        InputArtifact { path: outside.path.clone(), step, labels }
                    }
                });
            }
            inputs.insert(input.port.name.to_owned(), checked_out);
        }
        Ok(inputs)
    }

    /// Sees that what lies outside the store is still what the key says.
    fn check_outside(&self) -> Result<(), Outcome> {
        let inputs = &self.graph.nodes[self.node].inputs;
        let pairs =
            inputs.iter().zip(&self.artifacts).flat_map(|(input, artifacts)| input.sources.iter().zip(artifacts));
        for (source, artifact) in pairs {
            let Source::Outside(outside) = source else { continue };
            let now = self.store.identify(&outside.path)?;
            if now != *artifact {
                let (was, is) = (artifact.id.short(), now.id.short());
                return Err(Outcome::Failed {
                    message: format!("`{}` changed since the run was planned: {was} -> {is}", outside.written),
                    help: Some("run again, with what it holds now; nothing was kept of this step".to_owned()),
                });
            }
        }
        Ok(())
    }

    /// Where inputs lie that no step made, by port.
    fn outside(&self) -> BTreeMap<&'static str, Vec<&Utf8Path>> {
        let mut paths: BTreeMap<&'static str, Vec<&Utf8Path>> = BTreeMap::new();
        for input in &self.graph.nodes[self.node].inputs {
            for source in &input.sources {
                if let Source::Outside(outside) = source {
                    paths.entry(input.port.name).or_default().push(&outside.path);
                }
            }
        }
        paths
    }

    /// A forced step that makes other bytes than before is not a function of its key; say so.
    fn compare(&self, artifacts: &BTreeMap<String, Artifact>, sink: &Sink<'_>) -> Result<(), StoreError> {
        let Some(before) = self.store.action(&self.key.key)? else { return Ok(()) };
        for (name, artifact) in artifacts {
            if let Some(old) = before.outputs.get(name).filter(|old| old.id != artifact.id) {
                let text = format!(
                    "output `{name}` has other bytes than last time, under the same key: {} -> {}",
                    old.id, artifact.id
                );
                sink.say(Level::Warning, text);
            }
        }
        Ok(())
    }

    fn provenance(&self, name: &str, started: Timestamp, took: Duration, sink: &Sink<'_>) -> Value {
        let node = &self.graph.nodes[self.node];
        sink.with(|recorded| {
            json!({
                "recipe": self.graph.name,
                "node": name,
                "step": node.step,
                "labels": node.labels,
                "paths": self.outside(),
                "run": self.run,
                "program": self.program,
                "started": started,
                "finished": Timestamp::now(),
                "seconds": took.as_secs_f64(),
                "device": self.device,
                "host": {
                    "os": std::env::consts::OS,
                    "arch": std::env::consts::ARCH,
                    "threads": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                },
                "peak_process_bytes": peak_process_bytes(),
                "resumed_from": recorded.resumed_from,
                "notes": std::mem::take(&mut recorded.notes),
                "messages": std::mem::take(&mut recorded.messages),
            })
        })
    }
}

/// The most memory this whole process ever held; `None` where the system does not say.
pub(crate) fn peak_process_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Size of everything an action points to.
pub(crate) fn bytes(action: &Action) -> u64 {
    action.outputs.values().map(|artifact| artifact.bytes).sum()
}

/// The artifacts that feed a node, by port.
pub(crate) fn artifacts<'a>(
    graph: &Graph,
    node: NodeIndex,
    paths: &BTreeMap<Utf8PathBuf, Artifact>,
    result: impl Fn(usize) -> Option<&'a Action>,
) -> Vec<Vec<Artifact>> {
    let inputs = &graph.nodes[node].inputs;
    let artifact = |source: &Source| match source {
        Source::Step { node, output } => match result(node.index()).and_then(|action| action.outputs.get(output)) {
            Some(artifact) => artifact.clone(),
            None => panic!("BUG: `{}` has no output `{output}` yet", graph.nodes[*node].display()),
        },
        Source::Outside(outside) => match paths.get(&outside.path) {
            Some(artifact) => artifact.clone(),
            None => panic!("BUG: the plan does not know what `{}` holds", outside.path),
        },
    };
    inputs.iter().map(|input| input.sources.iter().map(artifact).collect()).collect()
}
