//! Every op of actloom and what ops stand on. The only crate that knows candle.

pub mod artifact;
pub mod env;
pub mod eval;
pub mod gpu;
pub mod infer;
pub mod model;
pub mod nn;
pub mod op;
pub mod policy;
pub mod registry;
pub mod report;
pub mod reward;
pub mod rng;
pub mod text;
pub mod tool;
pub mod train;
