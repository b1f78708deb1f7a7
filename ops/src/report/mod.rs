//! What people read: tables as text and one page of HTML.
//!
//! Invariants: no number is made here, only shown; what is written is a function of what was read, so no time and no
//! path stands in it; text from outside never becomes markup.

pub mod block;
mod chart;
pub mod curves;
pub mod dots;
mod graph;
mod html;
mod layout;
pub mod number;
pub mod page;
pub mod play;
mod scale;
mod tally;
pub mod text;
