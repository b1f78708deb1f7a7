//! Recipe language, planner and scheduler of actloom.
//!
//! Four verbs: [`recipe::parse`] reads text, [`resolve::resolve`] settles names, types and the matrix, [`plan::plan`]
//! compares with the store, [`run::run`] does what the plan says. This crate knows no op, no tensor and no terminal.

pub mod diagnostic;
pub mod draw;
pub mod event;
pub mod graph;
pub mod op;
pub mod recipe;
pub mod resolve;
pub mod schema;
pub mod source;
pub mod stop;
