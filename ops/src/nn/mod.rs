//! Layers with explicit forward and backward over a small set of kernels.
//!
//! - `cpu`: the kernels over slices. - `plain`: the same in candle's operations; they run on every device and are the
//!   reference in tests. - `kernel`: picks one of the two. - `layer`: parameters, and layers made of kernels. - `block`: the parts of a transformer.
//! - `packing`: how sequences share a row.
//!
//! Invariants: no tape; every backward is written out and adds to its parameters' gradients; frozen parameters get no
//! gradient memory; results do not depend on threads or on what else is in the batch.

pub mod block;
pub mod cpu;
pub mod kernel;
pub mod layer;
pub mod packing;
pub mod plain;

pub use cpu::attention::Heads;
pub use kernel::Kernels;
pub use packing::Packing;
