//! Hugging Face folders: `config.json`, `model.safetensors` (or shards with an index), tokenizer files beside them.
//!
//! Invariant: equal models write equal bytes (tensors in checkpoint order, no times).

use std::collections::{BTreeMap, HashMap};

use actloom_engine::op::OpError;
use camino::Utf8Path;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::{Config, Model, failed};
use crate::nn::kernel::view;

/// The tokenizer's file, of the `tokenizers` library.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Files that travel with a model unchanged when its weights are trained.
const TEXT_FILES: [&str; 4] =
    [TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// Every tensor of a folder, by name, on the processor.
///
/// # Errors
/// Names the file that cannot be read.
pub fn load_tensors(folder: &Utf8Path) -> Result<BTreeMap<String, Tensor>, OpError> {
    let index = folder.join("model.safetensors.index.json");
    let files: Vec<String> = if index.exists() {
        let json: serde_json::Value = serde_json::from_slice(&fs_err::read(&index)?)
            .map_err(|e| OpError::failed(format!("cannot read `{index}`: {e}")))?;
        let Some(map) = json["weight_map"].as_object() else {
            return Err(OpError::failed(format!("`{index}` has no `weight_map`")));
        };
        let mut files: Vec<String> = map.values().filter_map(|v| v.as_str().map(str::to_owned)).collect();
        files.sort();
        files.dedup();
        files
    } else {
        vec!["model.safetensors".to_owned()]
    };
    let mut tensors = BTreeMap::new();
    for file in files {
        let path = folder.join(&file);
        if !path.exists() {
            return Err(OpError::failed(format!("`{folder}` holds no model: `{path}` does not exist")));
        }
        let loaded = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
        tensors.extend(loaded);
    }
    Ok(tensors)
}

/// Loads a model folder.
///
/// # Errors
/// Names what is missing or not supported.
pub fn load(folder: &Utf8Path, device: &Device) -> Result<Model, OpError> {
    let path = folder.join("config.json");
    let json: serde_json::Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    Model::new(Config::from_json(&json)?, load_tensors(folder)?, device)
}

/// Writes float32 tensors in the order given.
///
/// # Errors
/// The file system's.
pub fn save_tensors(path: &Utf8Path, tensors: &[(String, &Tensor)]) -> Result<(), OpError> {
    let mut bytes = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let host = tensor.to_device(&Device::Cpu).map_err(failed)?;
        let data: Vec<u8> = view(&host).map_err(failed)?.iter().flat_map(|x| x.to_le_bytes()).collect();
        bytes.push((name.clone(), tensor.dims().to_vec(), data));
    }
    let mut views = Vec::with_capacity(bytes.len());
    for (name, shape, data) in &bytes {
        let view = TensorView::new(Dtype::F32, shape.clone(), data)
            .map_err(|e| OpError::failed(format!("cannot write tensor `{name}`: {e}")))?;
        views.push((name.as_str(), view));
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let data = safetensors::serialize(views, Some(metadata))
        .map_err(|e| OpError::failed(format!("cannot write `{path}`: {e}")))?;
    fs_err::write(path, data)?;
    Ok(())
}

/// Writes `config.json` and `model.safetensors`, adapters merged, into a folder, which is made if need be.
///
/// # Errors
/// The file system's.
pub fn save(model: &Model, folder: &Utf8Path) -> Result<(), OpError> {
    fs_err::create_dir_all(folder)?;
    let mut config = serde_json::to_string_pretty(&model.config.to_json()).map_err(std::io::Error::from)?;
    config.push('\n');
    fs_err::write(folder.join("config.json"), config)?;
    let weights = model.weights().map_err(failed)?;
    let tensors: Vec<(String, &Tensor)> = weights.iter().map(|(name, value)| (name.clone(), value)).collect();
    save_tensors(&folder.join("model.safetensors"), &tensors)
}

/// Copies tokenizer, template and generation settings from one model folder to another.
///
/// # Errors
/// The file system's.
pub fn copy_text_files(from: &Utf8Path, to: &Utf8Path) -> Result<(), OpError> {
    fs_err::create_dir_all(to)?;
    for name in TEXT_FILES {
        let source = from.join(name);
        if source.exists() {
            // bytes, not permissions: what the store holds is read-only
            fs_err::write(to.join(name), fs_err::read(&source)?)?;
        }
    }
    Ok(())
}
