//! Training and sampling on a GPU: our own kernels (`ops/kernels`) and matrix products over raw device memory.
//!
//! 1. `driver` is what a device does: memory, launches, products. CUDA is one; a processor that emulates the kernels is
//!    another, for tests.
//! 2. `memory` carves one reservation into what lives long and what lives for a pass.
//! 3. `weights` holds parameters: float32 masters of what is trained, bf16 copies that products read.
//!
//! Invariants: nothing is allocated in a steady state; a kernel is launched under its own name with arguments in the order
//! of its source; rows are tokens, matrices are row-major; equal inputs give equal bits on the same device.

pub mod attention;
pub mod bench;
pub mod cached;
pub mod check;
#[cfg(feature = "cuda")]
mod copies;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod driver;
pub mod engine;
pub mod head;
pub mod kernels;
pub mod layout;
pub mod memory;
pub mod pages;
pub mod parts;
pub mod plan;
pub mod products;
pub mod reference;
pub mod sample;
pub mod tape;
pub mod tiles;
pub mod update;
pub mod weights;
mod work;

pub use driver::Driver;
