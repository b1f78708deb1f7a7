//! Kernels on the processor, over plain slices. Their twins in candle's operations are in `nn::plain`.

pub mod attention;
pub mod cache;
pub mod matmul;
pub mod packed;
pub mod rows;
pub mod simd;
