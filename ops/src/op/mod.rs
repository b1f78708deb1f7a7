//! One file per op, and what several of them share.

pub mod accuracy;
pub mod act;
pub mod alternatives;
pub mod catalogue;
pub mod common;
pub mod critic;
pub mod demos;
pub mod endpoint;
pub mod episodes;
pub mod eval;
pub mod exam;
pub mod gpqa;
pub mod import;
pub mod math;
pub mod model;
pub mod pairs;
pub mod policy_optimisation;
pub mod pretrain;
pub mod report;
pub mod rl;
pub mod rollout;
pub mod sft;
pub mod table;
pub mod training;
pub mod worlds;
