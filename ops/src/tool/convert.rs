//! `actloom model convert`: the same weights in another type of number, or in other shards.
//!
//! Invariants: the weights are read tensor by tensor, so that memory is that of the largest one; tensors keep their names
//! and everything beside the weights is copied; of the config only the fields that name the type change; what
//! cannot be represented (a value too large for float16, packed integers) is refused by name.

use std::cmp::Ordering;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use safetensors::tensor::Dtype;

use super::{StagedFolder, Written};
use crate::model::{
    Entry, FloatType, encode, list_tensors, read_config, stored_type, with_dtype, write_json, write_shards,
};

/// Endings of files that hold weights, and are not copied.
const WEIGHTS: [&str; 9] =
    [".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5", ".msgpack"];

/// Writes a copy of a model's folder; without `dtype` numbers stay as they are. Returns the files written.
///
/// # Errors
/// A folder in the way, tensors that are no plain numbers, values that the new type cannot hold.
pub fn convert(
    from: &Utf8Path,
    to: &Utf8Path,
    dtype: Option<FloatType>,
    shard_bytes: u64,
) -> Result<Vec<Written>, OpError> {
    let config = read_config(from)?;
    if !config["quantization_config"].is_null() {
        return Err(OpError::failed(format!(
            "`{from}` is quantized (`quantization_config` in its config), expected plain numbers"
        )));
    }
    let tensors = list_tensors(from)?;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, stored) in &tensors {
        let kept = match stored.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 | Dtype::F64 => dtype.map_or(stored.dtype, FloatType::stored),
            other => {
                return Err(OpError::failed(format!(
                    "tensor `{name}` of `{}` is stored as {other}, expected F32, BF16, F16 or F64",
                    stored.file
                )));
            }
        };
        entries.push(Entry { name: name.clone(), dtype: kept, shape: stored.shape.clone() });
    }
    entries.sort_by(|a, b| natural(&a.name, &b.name));
    let named = match dtype {
        Some(dtype) => dtype,
        None => stored_type(from)?,
    };
    StagedFolder::new(to)?.fill(|folder| {
        copy_beside(from, folder)?;
        write_json(&folder.join("config.json"), &with_dtype(config, named))?;
        write_shards(folder, entries, shard_bytes, |entry| {
            let stored = &tensors[&entry.name];
            match dtype {
                Some(dtype) if stored.dtype != entry.dtype => encode(&entry.name, &stored.read()?, dtype),
                _ => stored.raw(),
            }
        })
    })
}

/// Copies what lies beside the weights and the config: tokenizer, templates, licence.
pub(super) fn copy_beside(from: &Utf8Path, to: &Utf8Path) -> Result<(), OpError> {
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let beside = name != "config.json" && !name.starts_with('.') && !WEIGHTS.iter().any(|end| name.ends_with(end));
        // a hub's cache links its files: what counts is what is linked to
        if beside && fs_err::metadata(entry.path())?.is_file() {
            // bytes, not permissions: what the store holds is read-only
            fs_err::write(to.join(&name), fs_err::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// Names in the order people count: `layers.2` before `layers.10`.
fn natural(a: &str, b: &str) -> Ordering {
    let parts = |name: &str| -> Vec<(u64, String)> {
        name.split('.').map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect()
    };
    parts(a).cmp(&parts(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_as_people_count() {
        let mut names = ["m.layers.10.w", "m.layers.2.w", "lm_head.w", "m.embed.w"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["lm_head.w", "m.embed.w", "m.layers.2.w", "m.layers.10.w"]);
    }
}
