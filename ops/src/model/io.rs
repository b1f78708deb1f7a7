//! Hugging Face folders: `config.json`, `model.safetensors` (or shards with an index), tokenizer files beside them.
//!
//! Invariants: equal models write equal bytes (a fixed order of tensors, no times); numbers are rounded to the nearest,
//! ties to even, and a number that a type cannot hold is refused, never written as infinite.

mod file;

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

pub use file::{Entry, Stored, TensorWriter, list_file, list_tensors};

use super::{Config, Model, failed, gpu};

/// The tokenizer's file, of the `tokenizers` library.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Files that travel with a model unchanged when its weights are trained.
const TEXT_FILES: [&str; 4] =
    [TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// How numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatType {
    #[default]
    Float32,
    Bfloat16,
    Float16,
}

impl FloatType {
    pub const ALL: [FloatType; 3] = [FloatType::Float32, FloatType::Bfloat16, FloatType::Float16];

    /// As `config.json` spells it.
    pub fn name(self) -> &'static str {
        match self {
            FloatType::Float32 => "float32",
            FloatType::Bfloat16 => "bfloat16",
            FloatType::Float16 => "float16",
        }
    }

    fn candle(self) -> DType {
        match self {
            FloatType::Float32 => DType::F32,
            FloatType::Bfloat16 => DType::BF16,
            FloatType::Float16 => DType::F16,
        }
    }

    /// As safetensors files spell it.
    pub fn stored(self) -> Dtype {
        match self {
            FloatType::Float32 => Dtype::F32,
            FloatType::Bfloat16 => Dtype::BF16,
            FloatType::Float16 => Dtype::F16,
        }
    }
}

/// How a model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub dtype: FloatType,
    /// Largest file of weights, in bytes.
    pub shard_bytes: u64,
}

impl Default for Format {
    /// float32, one file.
    fn default() -> Self {
        Format { dtype: FloatType::Float32, shard_bytes: u64::MAX }
    }
}

/// The type that most numbers of a folder are stored in: what to write a model back in.
///
/// # Errors
/// As [`list_tensors`], and a folder without one of the three types.
pub fn stored_type(folder: &Utf8Path) -> Result<FloatType, OpError> {
    let tensors = list_tensors(folder)?;
    let share = |dtype: FloatType| -> usize {
        tensors.values().filter(|t| t.dtype == dtype.stored()).map(Stored::elements).sum()
    };
    let most = FloatType::ALL.into_iter().max_by_key(|dtype| share(*dtype));
    most.filter(|dtype| share(*dtype) > 0)
        .ok_or_else(|| OpError::failed(format!("`{folder}` has no tensor in float32, bfloat16 or float16")))
}

/// Every tensor of a folder, by name, on the processor.
///
/// # Errors
/// Names the file that cannot be read.
pub fn load_tensors(folder: &Utf8Path) -> Result<BTreeMap<String, Tensor>, OpError> {
    list_tensors(folder)?.into_iter().map(|(name, stored)| Ok((name, stored.read()?))).collect()
}

/// A folder's `config.json`.
///
/// # Errors
/// The file that is missing or no JSON.
pub fn read_config(folder: &Utf8Path) -> Result<Value, OpError> {
    let path = folder.join("config.json");
    serde_json::from_slice(&fs_err::read(&path)?).map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))
}

/// Loads a model folder.
///
/// # Errors
/// Names what is missing or not supported.
pub fn load(folder: &Utf8Path, device: &Device) -> Result<Model, OpError> {
    crate::policy::refuse_training(folder)?;
    let config = Config::from_json(&read_config(folder)?)?;
    // one tensor after the other becomes float32: never all of them in both types
    let wide = |(name, stored): (String, Stored)| Ok((name, stored.read()?.to_dtype(DType::F32).map_err(failed)?));
    let tensors = list_tensors(folder)?.into_iter().map(wide).collect::<Result<_, OpError>>()?;
    match gpu::of(device) {
        None => Model::new(config, tensors, device),
        Some(gpu) => {
            let mut model = Model::new(config, tensors, &Device::Cpu)?;
            model.set_gpu(gpu);
            Ok(model)
        }
    }
}

/// Loads a model that is never trained, to score what `other` is trained on: where that one is.
///
/// # Errors
/// As [`load`].
pub fn load_beside(folder: &Utf8Path, other: &Model) -> Result<Model, OpError> {
    let mut model = load(folder, &other.device)?;
    model.freeze();
    model.score_beside(other);
    Ok(model)
}

/// A tensor's values in the type asked for, as bytes, rounded to the nearest (ties to even).
///
/// # Errors
/// A number that the type cannot hold.
pub fn encode(name: &str, tensor: &Tensor, dtype: FloatType) -> Result<Vec<u8>, OpError> {
    let host = tensor.to_device(&Device::Cpu).and_then(|t| t.contiguous()).map_err(failed)?;
    let wide = |t: &Tensor| t.to_dtype(DType::F32).and_then(|t| t.flatten_all()).and_then(|t| t.to_vec1::<f32>());
    let cast = host.to_dtype(dtype.candle()).map_err(failed)?;
    if dtype != FloatType::Float32 && host.dtype() != cast.dtype() {
        let (before, after) = (wide(&host).map_err(failed)?, wide(&cast).map_err(failed)?);
        if let Some((lost, _)) = before.iter().zip(&after).find(|(b, a)| b.is_finite() && !a.is_finite()) {
            return Err(OpError::failed(format!(
                "tensor `{name}` has the value {lost}, which {} cannot hold",
                dtype.name()
            )));
        }
    }
    let mut bytes = Vec::with_capacity(host.elem_count() * dtype.candle().size_in_bytes());
    cast.write_bytes(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Writes float32 tensors into one file.
///
/// # Errors
/// The file system's.
pub fn save_tensors(path: &Utf8Path, tensors: &[(String, &Tensor)]) -> Result<(), OpError> {
    let entry = |(name, tensor): &(String, &Tensor)| Entry {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: tensor.dims().to_vec(),
    };
    let mut writer = TensorWriter::create(path, tensors.iter().map(entry).collect())?;
    for (name, tensor) in tensors {
        writer.write(name, &encode(name, tensor, FloatType::Float32)?)?;
    }
    writer.finish()
}

/// Writes named tensors as `model.safetensors`, or as shards of at most `shard_bytes` with their index, filled in the
/// order given as transformers fills them; a larger tensor has a shard of its own. `data` gives a tensor's bytes.
///
/// # Errors
/// The file system's, and those of `data`.
pub fn write_shards(
    folder: &Utf8Path,
    tensors: Vec<Entry>,
    shard_bytes: u64,
    mut data: impl FnMut(&Entry) -> Result<Vec<u8>, OpError>,
) -> Result<(), OpError> {
    let size = |entry: &Entry| (entry.shape.iter().product::<usize>() * entry.dtype.bitsize() / 8) as u64;
    let total: u64 = tensors.iter().map(size).sum();
    let parameters: usize = tensors.iter().map(|entry| entry.shape.iter().product::<usize>()).sum();
    let mut shards: Vec<(u64, Vec<Entry>)> = Vec::new();
    for entry in tensors {
        let bytes = size(&entry);
        match shards.last_mut() {
            Some((filled, shard)) if *filled + bytes <= shard_bytes => {
                *filled += bytes;
                shard.push(entry);
            }
            _ => shards.push((bytes, vec![entry])),
        }
    }
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    for (number, (_, shard)) in shards.into_iter().enumerate() {
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let mut writer = TensorWriter::create(&folder.join(&name), shard.clone())?;
        for entry in shard {
            writer.write(&entry.name, &data(&entry)?)?;
            weight_map.insert(entry.name, name.clone());
        }
        writer.finish()?;
    }
    if count > 1 {
        let index = json!({
            "metadata": { "total_parameters": parameters, "total_size": total },
            "weight_map": weight_map,
        });
        write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

/// Writes JSON as people read it.
///
/// # Errors
/// The file system's.
pub fn write_json(path: &Utf8Path, json: &Value) -> Result<(), OpError> {
    let mut text = serde_json::to_string_pretty(json).map_err(std::io::Error::from)?;
    text.push('\n');
    Ok(fs_err::write(path, text)?)
}

/// A config that names the type its weights are stored in, in the spellings it has; transformers 5 reads `dtype`,
/// transformers 4 `torch_dtype`.
pub fn with_dtype(mut config: Value, dtype: FloatType) -> Value {
    if let Some(fields) = config.as_object_mut() {
        if !fields.contains_key("torch_dtype") && !fields.contains_key("dtype") {
            fields.insert("dtype".to_owned(), Value::Null);
        }
        for (_, value) in fields.iter_mut().filter(|(name, _)| ["torch_dtype", "dtype"].contains(&name.as_str())) {
            *value = json!(dtype.name());
        }
    }
    config
}

/// Writes `config.json` and float32 weights in one file, adapters merged, into a folder, which is made if need be.
///
/// # Errors
/// The file system's.
pub fn save(model: &Model, folder: &Utf8Path) -> Result<(), OpError> {
    save_as(model, folder, Format::default())
}

/// Writes `config.json` and the weights, adapters merged, into a folder, which is made if need be.
///
/// # Errors
/// The file system's, and a weight that the type cannot hold.
pub fn save_as(model: &Model, folder: &Utf8Path, format: Format) -> Result<(), OpError> {
    fs_err::create_dir_all(folder)?;
    write_json(&folder.join("config.json"), &with_dtype(model.config.to_json(), format.dtype))?;
    let entry = |(name, shape)| Entry { name, dtype: format.dtype.stored(), shape };
    let entries = model.config.shapes().into_iter().map(entry).collect();
    write_shards(folder, entries, format.shard_bytes, |entry| {
        encode(&entry.name, &model.weight(&entry.name).map_err(failed)?, format.dtype)
    })
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
