//! Where a step's code runs. In this process so far; the trait is the seam for worker processes and clusters.
//!
//! Invariants: an executor gets paths and values, never the store; it writes below the job's outputs and scratch only;
//! a panic of an op is that op's failure and nobody else's.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use camino::Utf8PathBuf;
use serde_json::Value;

use crate::op::{DeviceRequest, DynOp, InputArtifact, LineageNode, OpContext, OpError, OpSink};
use crate::stop::Stop;

/// One step, ready to run.
pub struct Job {
    /// Display name of the node, for logs.
    pub node: String,
    pub op: Arc<dyn DynOp>,
    pub params: Value,
    pub inputs: BTreeMap<String, Vec<InputArtifact>>,
    /// Paths that do not exist yet, in a folder that does.
    pub outputs: BTreeMap<String, Utf8PathBuf>,
    pub scratch: Utf8PathBuf,
    pub seed: u64,
    pub device: DeviceRequest,
    pub lineage: Vec<LineageNode>,
}

/// Why a job has no outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It left a checkpoint in its scratch folder.
    Interrupted,
    Failed {
        message: String,
        help: Option<String>,
    },
}

/// Runs jobs, several at a time.
pub trait Executor: Sync {
    /// Returns when the job is done.
    ///
    /// # Errors
    /// What went wrong, in words for the person who wrote the recipe.
    fn execute(&self, job: Job, sink: &dyn OpSink, stop: &Stop) -> Result<(), Failure>;
}

/// Runs a job on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Executor for InProcess {
    fn execute(&self, job: Job, sink: &dyn OpSink, stop: &Stop) -> Result<(), Failure> {
        let mut ctx =
            OpContext::new(job.inputs, job.outputs, job.scratch, job.seed, job.device, job.lineage, sink, stop);
        watch_panics();
        PANIC.with_borrow_mut(|watch| *watch = Some(String::new()));
        // The op's state dies with it, and the store sees its outputs only if it returns.
        let result = catch_unwind(AssertUnwindSafe(|| job.op.run(&job.params, &mut ctx)));
        let place = PANIC.with_borrow_mut(Option::take).unwrap_or_default();
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(OpError::Interrupted)) if stop.is_set() => Err(Failure::Interrupted),
            Ok(Err(OpError::Interrupted)) => Err(Failure::Failed {
                message: format!("op `{}` stopped although nobody asked it to", job.op.name()),
                help: Some("this is a bug in the op".to_owned()),
            }),
            Ok(Err(OpError::Failed { message, help })) => Err(Failure::Failed { message, help }),
            Ok(Err(OpError::Io(error))) => Err(Failure::Failed { message: error.to_string(), help: None }),
            Err(payload) => Err(Failure::Failed {
                message: format!("op `{}` panicked: {}{place}", job.op.name(), words(payload.as_ref())),
                help: Some("this is a bug in the op; other steps are not affected".to_owned()),
            }),
        }
    }
}

fn words(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}

thread_local! {
    /// `Some` while an op runs on this thread: the place of its panic goes here and not to the terminal.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Wraps the panic hook once, so that a panicking op does not write over the progress lines; all other panics go where
/// they went before.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = PANIC.with_borrow_mut(|watch| match watch {
                Some(place) => {
                    *place = info.location().map(|at| format!(" (at {at})")).unwrap_or_default();
                    true
                }
                None => false,
            });
            if !ours {
                before(info);
            }
        }));
    });
}
