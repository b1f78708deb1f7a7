//! Training: what every method shares (optimizer, schedule, checkpoint, batches) and one file per method.

pub mod batch;
pub mod chat;
pub mod checkpoint;
pub mod collect;
pub mod dpo;
pub mod draw;
pub mod episodes;
pub mod forest;
pub mod grpo;
pub mod objective;
pub mod optimizer;
pub mod schedule;
pub mod sft;
pub mod shape;
pub mod update;
pub mod validation;
pub mod watch;
