//! The ops, one file each.

pub mod eval;
pub mod report;
pub mod table;
