//! Recipe language, planner and scheduler of actloom.
//!
//! Four verbs: [`recipe::parse`] reads text, [`resolve::resolve`] settles names, types and the matrix, [`plan::plan`]
//! compares with the store, [`run::run`] does what the plan says. This crate knows no op, no tensor and no terminal.

/// The store that plans and runs stand on.
pub use actloom_cache as cache;

pub mod diagnostic;
pub mod draw;
pub mod event;
pub mod executor;
pub mod graph;
pub mod journal;
pub mod key;
mod metrics;
pub mod op;
pub mod plan;
pub mod reason;
pub mod recipe;
pub mod resolve;
pub mod root;
pub mod run;
pub mod schedule;
pub mod schema;
pub mod source;
mod step;
pub mod stop;
