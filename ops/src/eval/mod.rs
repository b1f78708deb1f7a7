//! From episodes to numbers, and from numbers to a table: statistics only, no drawing.
//!
//! 1. `taxonomy`: what the turns of one episode add up to, and why it failed. `counts`: numbers over episodes.
//! 2. `scores`: the file of one policy's numbers; `first` reads its first version. `items`: of questions that are put and
//!    not played. `paired`: against another policy.
//! 3. `table`: many scores by their labels; `compare` holds its rows against each other.
//!
//! Invariant: everything here is a function of its arguments; chance comes from a seed that the caller gives.

pub mod compare;
mod counts;
mod first;
pub mod items;
pub mod paired;
pub mod questions;
pub mod scores;
pub mod stats;
pub mod table;
pub mod taxonomy;

pub use counts::Counting;
