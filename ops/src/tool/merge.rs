//! `actloom model merge`: a model's folder whose weights have an adapter added.
//!
//! Invariants: the sum is made in float32 and rounded once, to the type that the base is stored in unless another is asked
//! for; everything beside the weights is the base's.

use actloom_engine::op::{DeviceRequest, OpError};
use camino::Utf8Path;

use super::convert::copy_beside;
use super::{Source, StagedFolder, Written, load};
use crate::model::{FloatType, Format, save_as, stored_type};

/// Writes the merged model; returns the files written.
///
/// # Errors
/// A folder in the way, adapters that do not fit the model, values that the type cannot hold.
pub fn merge(
    base: &Utf8Path,
    adapter: &Utf8Path,
    to: &Utf8Path,
    dtype: Option<FloatType>,
    shard_bytes: u64,
) -> Result<Vec<Written>, OpError> {
    let dtype = match dtype {
        Some(dtype) => dtype,
        None => stored_type(base)?,
    };
    let source = Source { folder: base.to_owned(), adapter: Some(adapter.to_owned()), device: DeviceRequest::Cpu };
    let (model, _) = load(&source)?;
    StagedFolder::new(to)?.fill(|folder| {
        copy_beside(base, folder)?;
        save_as(&model, folder, Format { dtype, shard_bytes })
    })
}
