//! What an op is: the contract between the engine and the code a step runs.
//!
//! Invariants: an op gets paths, a seed, a device and a way to report; it reaches neither the store, the terminal nor
//! the clock. Everything an op writes into an output or a metric must be a function of its parameters, inputs and seed
//! (and of the device's arithmetic), because the store reuses it under a key made of those.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::event::{Level, OpEvent, Progress};
use crate::stop::Stop;

/// What an artifact holds. Ports of one kind may be joined; `Kind::ANY` accepts all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Kind(pub &'static str);

impl Kind {
    /// Accepts every kind (inputs only).
    pub const ANY: Kind = Kind("any");
    /// A Hugging Face folder.
    pub const MODEL: Kind = Kind("model");
    /// A PEFT folder.
    pub const ADAPTER: Kind = Kind("adapter");
    /// JSON lines, one conversation a line.
    pub const CONVERSATIONS: Kind = Kind("conversations");
    /// A JSON file that says who acts where the weights are not ours: it can be sampled, not trained.
    pub const POLICY: Kind = Kind("policy");
    /// JSON lines, one episode a line.
    pub const EPISODES: Kind = Kind("episodes");
    /// JSON lines, sampled actions at states.
    pub const SAMPLES: Kind = Kind("samples");
    /// JSON lines, pairs of actions at states.
    pub const PAIRS: Kind = Kind("pairs");
    /// Reflections on the states of expert episodes: JSON lines.
    pub const REFLECTIONS: Kind = Kind("reflections");
    /// ALFWorld's games.
    pub const GAMES: Kind = Kind("games");
    /// WebShop's files: products, their attributes, people's instructions.
    pub const PRODUCTS: Kind = Kind("products");
    /// Products, goals and a search index.
    pub const CATALOGUE: Kind = Kind("catalogue");
    /// A program, or its folder.
    pub const PROGRAM: Kind = Kind("program");
    /// Questions with their answers, as their authors published them.
    pub const QUESTIONS: Kind = Kind("questions");
    /// JSON lines, what was answered to one question a line.
    pub const ANSWERS: Kind = Kind("answers");
    /// JSON lines `{"step","name","value"}`; every step has one such output, named `metrics`.
    pub const METRICS: Kind = Kind("metrics");
    /// One JSON object of named numbers about a policy.
    pub const SCORES: Kind = Kind("scores");
    /// A folder with `table.json`, `table.csv`, `table.md`, `table.tex`.
    pub const TABLE: Kind = Kind("table");
    /// One self-contained HTML file.
    pub const REPORT: Kind = Kind("report");

    /// Whether an output of kind `from` may feed an input of kind `self`.
    pub fn accepts(self, from: Kind) -> bool {
        self == Kind::ANY || self == from
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// How many artifacts an input port takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arity {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// One or more, in the order written; `"@step[*]"` adds every variant.
    Many,
    /// None or more.
    ManyOptional,
}

/// A typed input of an op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InputPort {
    pub name: &'static str,
    /// Any of these kinds is taken.
    pub kinds: Vec<Kind>,
    pub arity: Arity,
    /// One line for `actloom ops NAME`.
    pub about: &'static str,
    /// The op reads the axis labels of what it gets (`InputArtifact::labels`), so they enter the key.
    pub labelled: bool,
    /// The op also reads step names (`InputArtifact::step`) and the lineage; both enter the key. Reports only.
    pub named: bool,
}

/// A typed output of an op. The first one listed is what `"@step"` means.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputPort {
    pub name: &'static str,
    pub kind: Kind,
    pub about: &'static str,
}

/// Inputs and outputs of an op, possibly depending on its parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ports {
    pub inputs: Vec<InputPort>,
    pub outputs: Vec<OutputPort>,
}

impl Ports {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input that takes exactly one artifact.
    pub fn input(self, name: &'static str, kind: Kind, about: &'static str) -> Self {
        self.port(name, &[kind], Arity::One, about)
    }

    /// Adds an input of the given kinds and arity.
    pub fn port(mut self, name: &'static str, kinds: &[Kind], arity: Arity, about: &'static str) -> Self {
        self.inputs.push(InputPort { name, kinds: kinds.to_vec(), arity, about, labelled: false, named: false });
        self
    }

    /// Marks the input added last as labelled.
    pub fn labelled(mut self) -> Self {
        if let Some(port) = self.inputs.last_mut() {
            port.labelled = true;
        }
        self
    }

    /// Marks the input added last as labelled and named.
    pub fn named(mut self) -> Self {
        if let Some(port) = self.inputs.last_mut() {
            port.labelled = true;
            port.named = true;
        }
        self
    }

    pub fn output(mut self, name: &'static str, kind: Kind, about: &'static str) -> Self {
        self.outputs.push(OutputPort { name, kind, about });
        self
    }
}

/// What a running step occupies. The scheduler never lets the sum pass what the run has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processor cores.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(default = "one")]
    pub cpu: u32,
    /// GPUs.
    #[schemars(range(max = 64))]
    #[serde(default)]
    pub gpu: u32,
}

fn one() -> u32 {
    1
}

impl Default for Resources {
    fn default() -> Self {
        Resources { cpu: 1, gpu: 0 }
    }
}

/// Where tensors live. `Auto` takes a GPU where there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceRequest {
    #[default]
    Auto,
    Cpu,
    /// CUDA device of this ordinal; fails where there is none.
    Cuda(usize),
}

/// A parameter that is well-typed and still cannot be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Problem {
    /// Path of keys below the step's table: `["reward", "correct"]`.
    pub path: Vec<String>,
    /// Fact first, then what was expected; lower case, no full stop.
    pub message: String,
    pub help: Option<String>,
}

impl Problem {
    pub fn new(path: &[&str], message: impl Into<String>) -> Self {
        Problem { path: path.iter().map(|s| (*s).to_owned()).collect(), message: message.into(), help: None }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The axis labels of what will arrive at the labelled ports of one variant, in the order in which it will arrive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputLabels {
    ports: BTreeMap<String, Vec<BTreeMap<String, String>>>,
}

impl InputLabels {
    /// One map of axis -> label for each artifact, by port.
    pub fn new(ports: BTreeMap<String, Vec<BTreeMap<String, String>>>) -> Self {
        InputLabels { ports }
    }

    /// What arrives at a port; nothing where it is not labelled.
    pub fn of(&self, port: &str) -> &[BTreeMap<String, String>] {
        self.ports.get(port).map_or(&[], Vec::as_slice)
    }
}

/// The file of a scratch folder that says on what its content was computed.
const DEVICE_FILE: &str = "device";

/// Whether a scratch folder holds anything to go on from.
pub(crate) fn has_more_than_device(scratch: &Utf8Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(scratch)? {
        if entry?.file_name() != DEVICE_FILE {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What [`OpContext::seed`] gives in a step of this seed.
pub fn seed_for(step: u64, purpose: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("actloom 1 seed");
    hasher.update(&step.to_le_bytes());
    hasher.update(purpose.as_bytes());
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

/// Why an op did not finish.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The op saw `OpContext::stopping` and left a checkpoint in its scratch folder.
    #[error("interrupted")]
    Interrupted,
    #[error("{message}")]
    Failed { message: String, help: Option<String> },
    /// The file system said no; the message names path and operation.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl OpError {
    pub fn failed(message: impl Into<String>) -> Self {
        OpError::Failed { message: message.into(), help: None }
    }

    pub fn with_help(message: impl Into<String>, help: impl Into<String>) -> Self {
        OpError::Failed { message: message.into(), help: Some(help.into()) }
    }
}

/// The code a step runs.
pub trait Op: Send + Sync + 'static {
    /// Typed parameters. Derive `Serialize, Deserialize, JsonSchema` with `#[serde(deny_unknown_fields)]`; doc comments
    /// become the reference, `#[serde(default)]` the defaults, `#[schemars(range(..))]` the limits.
    type Params: Serialize + DeserializeOwned + JsonSchema;

    /// What a recipe calls it.
    const NAME: &'static str;
    /// Raise it when the same inputs give other results.
    const VERSION: u32;
    /// One line.
    const ABOUT: &'static str;

    fn ports(&self, params: &Self::Params) -> Ports;

    fn resources(&self, _params: &Self::Params) -> Resources {
        Resources::default()
    }

    /// Constraints that a schema cannot say.
    fn check(&self, _params: &Self::Params) -> Vec<Problem> {
        Vec::new()
    }

    /// What the parameters say about axes and labels, held against those of the inputs; called for every variant, and
    /// only where [`Op::check`] found nothing. A problem's path may begin with the name of a port.
    fn check_inputs(&self, _params: &Self::Params, _inputs: &InputLabels) -> Vec<Problem> {
        Vec::new()
    }

    fn run(&self, params: &Self::Params, ctx: &mut OpContext<'_>) -> Result<(), OpError>;
}

/// [`Op`] with its parameter type erased; what the registry holds.
pub trait DynOp: Send + Sync {
    fn name(&self) -> &'static str;
    fn version(&self) -> u32;
    fn about(&self) -> &'static str;
    /// JSON Schema of the parameters.
    fn schema(&self) -> Value;
    /// Parameters with defaults filled in, in the schema's order. The error is serde's, with the path of the field.
    fn canonical(&self, params: &Value) -> Result<Value, String>;
    /// Ports for canonical parameters.
    fn ports(&self, params: &Value) -> Ports;
    fn resources(&self, params: &Value) -> Resources;
    fn check(&self, params: &Value) -> Vec<Problem>;
    /// What cannot be, given the labels of what will arrive.
    fn check_inputs(&self, _params: &Value, _inputs: &InputLabels) -> Vec<Problem> {
        Vec::new()
    }
    fn run(&self, params: &Value, ctx: &mut OpContext<'_>) -> Result<(), OpError>;
}

fn typed<T: Op>(params: &Value) -> T::Params {
    match serde_json::from_value(params.clone()) {
        Ok(params) => params,
        Err(error) => panic!("BUG: parameters of `{}` were not checked before use: {error}", T::NAME),
    }
}

impl<T: Op> DynOp for T {
    fn name(&self) -> &'static str {
        T::NAME
    }
    fn version(&self) -> u32 {
        T::VERSION
    }
    fn about(&self) -> &'static str {
        T::ABOUT
    }
    fn schema(&self) -> Value {
        schemars::schema_for!(T::Params).to_value()
    }
    fn canonical(&self, params: &Value) -> Result<Value, String> {
        let params: T::Params = serde_json::from_value(params.clone()).map_err(|e| e.to_string())?;
        serde_json::to_value(params).map_err(|e| e.to_string())
    }
    fn ports(&self, params: &Value) -> Ports {
        Op::ports(self, &typed::<T>(params))
    }
    fn resources(&self, params: &Value) -> Resources {
        Op::resources(self, &typed::<T>(params))
    }
    fn check(&self, params: &Value) -> Vec<Problem> {
        Op::check(self, &typed::<T>(params))
    }
    fn check_inputs(&self, params: &Value, inputs: &InputLabels) -> Vec<Problem> {
        Op::check_inputs(self, &typed::<T>(params), inputs)
    }
    fn run(&self, params: &Value, ctx: &mut OpContext<'_>) -> Result<(), OpError> {
        Op::run(self, &typed::<T>(params), ctx)
    }
}

/// Every op the program knows, by name.
#[derive(Clone, Default)]
pub struct Registry {
    ops: BTreeMap<&'static str, Arc<dyn DynOp>>,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an op.
    ///
    /// # Panics
    /// When two ops have one name.
    pub fn with(mut self, op: impl DynOp + 'static) -> Self {
        let name = op.name();
        assert!(self.ops.insert(name, Arc::new(op)).is_none(), "BUG: two ops are named `{name}`");
        self
    }

    pub fn get(&self, name: &str) -> Option<&Arc<dyn DynOp>> {
        self.ops.get(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.ops.keys().copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn DynOp>> + '_ {
        self.ops.values()
    }
}

/// One artifact that an op reads.
#[derive(Clone, Debug, PartialEq)]
pub struct InputArtifact {
    /// A file or folder, read-only.
    pub path: Utf8PathBuf,
    /// Name of the step that made it (empty unless the port is `named`).
    pub step: String,
    /// Axis -> label of the variant that made it (empty unless the port is `labelled`).
    pub labels: BTreeMap<String, String>,
}

/// One ancestor of a step, for reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LineageNode {
    pub step: String,
    pub op: String,
    /// How many variants of the step are ancestors.
    pub variants: usize,
    /// Names of the steps that feed it, sorted.
    pub inputs: Vec<String>,
}

/// Where an op reports to. The engine implements it; tests may.
pub trait OpSink: Sync {
    fn event(&self, event: OpEvent);

    /// See [`OpContext::sync_metrics`].
    ///
    /// # Errors
    /// The file system's.
    fn sync_metrics(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// See [`OpContext::resume_metrics`].
    ///
    /// # Errors
    /// The file system's.
    fn resume_metrics(&self, _step: u64) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a running op can reach.
pub struct OpContext<'a> {
    pub(crate) inputs: BTreeMap<String, Vec<InputArtifact>>,
    pub(crate) outputs: BTreeMap<String, Utf8PathBuf>,
    pub(crate) scratch: Utf8PathBuf,
    pub(crate) seed: u64,
    pub(crate) device: DeviceRequest,
    pub(crate) lineage: Vec<LineageNode>,
    pub(crate) sink: &'a dyn OpSink,
    pub(crate) stop: &'a Stop,
}

impl<'a> OpContext<'a> {
    /// A context by hand, for the engine and for tests of ops.
    pub fn new(
        inputs: BTreeMap<String, Vec<InputArtifact>>,
        outputs: BTreeMap<String, Utf8PathBuf>,
        scratch: Utf8PathBuf,
        seed: u64,
        device: DeviceRequest,
        lineage: Vec<LineageNode>,
        sink: &'a dyn OpSink,
        stop: &'a Stop,
    ) -> Self {
        OpContext { inputs, outputs, scratch, seed, device, lineage, sink, stop }
    }

    /// The artifact on a port that takes exactly one.
    ///
    /// # Panics
    /// When the op declared no such port: a bug in the op.
    pub fn input(&self, name: &str) -> &Utf8Path {
        match self.inputs(name) {
            [one] => &one.path,
            other => panic!("BUG: port `{name}` has {} artifacts, the op wants one", other.len()),
        }
    }

    /// The artifact on an optional port.
    pub fn input_opt(&self, name: &str) -> Option<&Utf8Path> {
        self.inputs(name).first().map(|artifact| artifact.path.as_path())
    }

    /// Every artifact on a port, in the recipe's order.
    pub fn inputs(&self, name: &str) -> &[InputArtifact] {
        self.inputs.get(name).map_or(&[], Vec::as_slice)
    }

    /// Where to write an output. The path does not exist yet (its parent does): create a file or a folder there.
    pub fn output(&self, name: &str) -> &Utf8Path {
        match self.outputs.get(name) {
            Some(path) => path,
            None => panic!("BUG: the op declared no output `{name}`"),
        }
    }

    /// A folder that survives a stop and belongs to this key alone.
    pub fn scratch(&self) -> &Utf8Path {
        &self.scratch
    }

    /// Says on what kind of device the step computes, `cpu` or `cuda`, before it takes up what a run before has left in
    /// [`OpContext::scratch`].
    ///
    /// # Errors
    /// Where that was computed on another kind: the result would be of neither. The file system's.
    pub fn computes_on(&self, kind: &str) -> Result<(), OpError> {
        let file = self.scratch.join(DEVICE_FILE);
        let before = match fs_err::read_to_string(&file) {
            Ok(before) => Some(before),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        match before {
            Some(before) if before != kind && has_more_than_device(&self.scratch)? => Err(OpError::with_help(
                format!(
                    "a run before has left a part of this step that was computed on `{before}`, and this run is on `{kind}`: the result \
                     would be of neither"
                ),
                format!("go on with `--device {before}`, or begin anew with `--force STEP`"),
            )),
            Some(before) if before == kind => Ok(()),
            _ => Ok(fs_err::write(&file, kind)?),
        }
    }

    /// A seed for one purpose; other purposes get unrelated ones.
    pub fn seed(&self, purpose: &str) -> u64 {
        seed_for(self.seed, purpose)
    }

    pub fn device(&self) -> DeviceRequest {
        self.device
    }

    /// Ancestors of this step, in topological order (empty unless an input port is `named`).
    pub fn lineage(&self) -> &[LineageNode] {
        &self.lineage
    }

    /// Records a number for the `metrics` output. Never times or speeds: the file is part of the results.
    pub fn metric(&self, step: u64, name: &str, value: f64) {
        self.sink.event(OpEvent::Metric { step, name: name.to_owned(), value });
    }

    /// Makes the metrics recorded so far as durable as a checkpoint: call it just before one is written.
    ///
    /// # Errors
    /// The file system's.
    pub fn sync_metrics(&self) -> std::io::Result<()> {
        self.sink.sync_metrics()
    }

    /// Takes up the metrics of an earlier, interrupted start of this step: call it after a checkpoint was read and before
    /// the first metric, with the step after whose metrics the checkpoint was written. What was recorded up to the first
    /// metric of a later step stays; the rest goes and is emitted again. An op that does not call it starts with no
    /// metrics, so an op without checkpoints needs to know nothing of this. For an op that does, steps never fall, and
    /// all metrics of a step are emitted before the checkpoint that counts it as done.
    ///
    /// # Errors
    /// The file system's.
    pub fn resume_metrics(&self, step: u64) -> std::io::Result<()> {
        self.sink.resume_metrics(step)
    }

    /// Says how far the op is.
    pub fn progress(&self, done: u64, total: u64, unit: &'static str, note: impl Into<String>) {
        self.sink.event(OpEvent::Progress(Progress { done, total, unit: unit.to_owned(), note: note.into() }));
    }

    /// A line for the person who watches.
    pub fn say(&self, level: Level, text: impl Into<String>) {
        self.sink.event(OpEvent::Message { level, text: text.into() });
    }

    /// A fact for the provenance that is no result: speed, device name, memory.
    pub fn note(&self, name: &str, value: impl Into<Value>) {
        self.sink.event(OpEvent::Note { name: name.to_owned(), value: value.into() });
    }

    /// True once the run was asked to stop: checkpoint into scratch and return [`OpError::Interrupted`].
    pub fn stopping(&self) -> bool {
        self.stop.is_set()
    }
}
