//! Every op of actloom and what ops stand on. The only crate that knows candle.

pub mod artifact;
pub mod env;
pub mod eval;
pub mod op;
pub mod report;
