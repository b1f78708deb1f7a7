//! From episodes to numbers, and from numbers to a table: statistics only, no drawing.
//!
//! Invariant: everything here is a function of its arguments; chance comes from a seed that the caller gives.

pub mod compare;
pub mod questions;
pub mod scores;
pub mod stats;
pub mod table;
