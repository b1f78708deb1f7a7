//! What happens during a run, as values: from ops (`OpEvent`) and from the scheduler (`Event`).
//!
//! Invariant: events are for people and provenance; no result depends on whether anybody listens.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

/// How far an op is. `total` is 0 where it is not known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    /// `tokens`, `episodes`, `steps`...
    pub unit: String,
    /// What it does just now: `loss 1.23`.
    pub note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warning,
}

/// What an op reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum OpEvent {
    Metric { step: u64, name: String, value: f64 },
    Progress(Progress),
    Message { level: Level, text: String },
    Note { name: String, value: Value },
}

/// What the scheduler reports. `node` is the display name of a step's variant: `il[start=act,seed=0]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    RunStarted {
        run: String,
        recipe: String,
        steps: usize,
        reused: usize,
        to_run: usize,
    },
    /// Ready and waiting for resources or for another process that holds the key's lock.
    Queued {
        node: String,
        why: String,
    },
    Started {
        node: String,
        op: String,
    },
    Op {
        node: String,
        report: OpEvent,
    },
    Reused {
        node: String,
    },
    Published {
        node: String,
        #[serde(serialize_with = "seconds")]
        took: Duration,
        bytes: u64,
    },
    Failed {
        node: String,
        message: String,
        help: Option<String>,
    },
    Interrupted {
        node: String,
    },
    /// Not run because `cause` did not finish.
    Skipped {
        node: String,
        cause: String,
    },
    RunFinished {
        published: usize,
        reused: usize,
        failed: usize,
        skipped: usize,
        interrupted: usize,
        #[serde(serialize_with = "seconds")]
        took: Duration,
    },
}

fn seconds<S: serde::Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(d.as_secs_f64())
}

/// Whoever wants to hear about a run: a terminal, a JSON stream, a test.
pub trait Reporter: Send {
    fn event(&mut self, event: &Event);
}

/// Hears nothing.
pub struct Silent;

impl Reporter for Silent {
    fn event(&mut self, _event: &Event) {}
}
