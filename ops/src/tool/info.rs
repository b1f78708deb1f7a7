//! `actloom model info`: what a model's folder, an adapter's folder or a GGUF file holds, without loading the numbers.
//!
//! Invariants: only headers and configs are read, so a folder of any size takes milliseconds; a config that this program
//! refuses is described all the same, with every field it is refused for; memory is what the arithmetic says, for
//! float32 weights, rounded up by nothing.

use std::collections::BTreeMap;

use actloom_engine::op::OpError;
use camino::Utf8Path;
use candle_core::quantized::gguf_file;
use safetensors::tensor::Dtype;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::model::{Config, Stored, TOKENIZER_FILE, list_file, list_tensors, read_config};
use crate::text::Text;

/// Rank of the adapter that the estimate is for.
const RANK: usize = 16;

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Info {
    Model(Box<ModelInfo>),
    Adapter(AdapterInfo),
    Gguf(GgufInfo),
}

/// A Hugging Face folder.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInfo {
    /// `model_type` of the config.
    pub family: String,
    /// Why this program would not load it; empty if it does.
    pub refused: Vec<Refusal>,
    /// Fields of the config that are sizes, by their names there.
    pub sizes: BTreeMap<String, u64>,
    pub parameters: usize,
    /// Of these in the token table, and in an output matrix of its own.
    pub embedding_parameters: usize,
    pub tied: bool,
    /// Numbers stored in each type.
    pub dtypes: BTreeMap<String, usize>,
    pub files: usize,
    pub bytes: u64,
    pub rope: Value,
    pub eos: Vec<u32>,
    /// Entries of the tokenizer; `None` where there is none.
    pub tokenizer: Option<usize>,
    pub chat_template: bool,
    /// `None` where the config does not say enough.
    pub memory: Option<Memory>,
}

/// Why a config is refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Refusal {
    /// The field that has to go; `None` where one is missing.
    pub field: Option<String>,
    pub reason: String,
}

/// Bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Memory {
    pub weights: u64,
    /// Keys and values of one token, all layers.
    pub kv_per_token: u64,
    /// What a forward keeps for its backward, for 1,000 tokens in one row.
    pub activations_per_1000_tokens: u64,
    pub full: Training,
    /// With an adapter of rank 16 on every linear layer.
    pub lora: Training,
}

/// What training needs beside weights and activations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Training {
    pub trainable: usize,
    pub gradients: u64,
    /// Both moments of AdamW.
    pub optimizer: u64,
    /// All of it with the weights, without activations.
    pub total: u64,
}

/// A folder of PEFT's.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterInfo {
    pub peft_type: String,
    pub base: Option<String>,
    pub r: Option<u64>,
    pub alpha: Option<f64>,
    /// What the product of both matrices is multiplied by.
    pub scale: Option<f64>,
    pub dropout: f64,
    pub targets: Vec<String>,
    /// Linear layers that it changes.
    pub layers: usize,
    pub parameters: usize,
    pub dtypes: BTreeMap<String, usize>,
    pub bytes: u64,
}

/// A GGUF file.
#[derive(Clone, Debug, Serialize)]
pub struct GgufInfo {
    pub architecture: String,
    pub parameters: usize,
    pub bytes: u64,
    pub chat_template: bool,
    pub quantization: Vec<Quantization>,
    /// Lists are given by their length.
    pub metadata: Map<String, Value>,
}

/// How much of a file is in one type.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quantization {
    pub dtype: String,
    pub tensors: usize,
    pub parameters: usize,
}

/// Looks at a folder or a GGUF file.
///
/// # Errors
/// Names the file that is missing or broken.
pub fn info(path: &Utf8Path) -> Result<Info, OpError> {
    if path.is_file() {
        return gguf(path).map(Info::Gguf);
    }
    if path.join("adapter_config.json").exists() {
        return adapter(path).map(Info::Adapter);
    }
    if !path.join("config.json").exists() {
        return Err(OpError::with_help(
            format!("`{path}` is no model: it has no `config.json` and no `adapter_config.json`"),
            "expected a Hugging Face folder, a PEFT folder or a GGUF file",
        ));
    }
    model(path).map(|info| Info::Model(Box::new(info)))
}

fn model(folder: &Utf8Path) -> Result<ModelInfo, OpError> {
    let config = read_config(folder)?;
    let tensors = list_tensors(folder)?;
    let mut files: Vec<&Utf8Path> = tensors.values().map(|t| t.file.as_path()).collect();
    files.sort();
    files.dedup();
    let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
    // some writers store the tied matrix twice
    let counted: Vec<&Stored> = tensors.values().filter(|t| !(tied && t.name == "lm_head.weight")).collect();
    let table = |t: &&&Stored| t.name.ends_with("embed_tokens.weight") || t.name == "lm_head.weight";
    let parameters = counted.iter().map(|t| t.elements()).sum();
    let text = match folder.join(TOKENIZER_FILE).exists() {
        true => Some(Text::load_plain(folder, &[])?),
        false => None,
    };
    let mut eos = ids(&config["eos_token_id"]);
    eos.extend(generation_ends(folder)?);
    let mut known = Vec::new();
    eos.retain(|id| {
        !known.contains(id) && {
            known.push(*id);
            true
        }
    });
    let bytes = files.iter().map(|file| Ok(fs_err::metadata(file)?.len())).sum::<Result<u64, OpError>>()?;
    Ok(ModelInfo {
        family: config["model_type"].as_str().unwrap_or("unknown").to_owned(),
        refused: refusals(&config),
        sizes: sizes(&config),
        parameters,
        embedding_parameters: counted.iter().filter(table).map(|t| t.elements()).sum(),
        tied,
        dtypes: dtypes(tensors.values()),
        files: files.len(),
        bytes,
        rope: rope(&config),
        eos,
        tokenizer: text.as_ref().map(Text::vocabulary),
        chat_template: text.is_some_and(|text| text.has_template()),
        memory: memory(&config, &counted, parameters),
    })
}

/// Every reason at once: a field without which the complaint changes is what it is about.
fn refusals(config: &Value) -> Vec<Refusal> {
    let mut config = config.clone();
    let mut found = Vec::new();
    if let Some(fields) = config.as_object_mut() {
        let unknown = Config::unsupported(fields).into_iter().map(|(name, value)| (name.clone(), value.clone()));
        for (name, value) in unknown.collect::<Vec<_>>() {
            let reason = format!("`{name}` = `{value}` in the model's config is not supported");
            fields.remove(&name);
            found.push(Refusal { field: Some(name), reason });
        }
    }
    while let Err(error) = Config::from_json(&config) {
        let reason = error.to_string();
        let names: Vec<String> = config.as_object().map(|fields| fields.keys().cloned().collect()).unwrap_or_default();
        let without = |name: &String| {
            let mut less = config.clone();
            less.as_object_mut().map(|fields| fields.remove(name));
            less
        };
        let guilty = names.iter().find(|name| match Config::from_json(&without(name)) {
            Ok(_) => true,
            // a field that is needed is not the complaint's cause if the next one is that it is missing
            Err(other) => other.to_string() != reason && reason.contains(&format!("`{name}`")),
        });
        let field = guilty.cloned();
        match &field {
            Some(name) if !found.iter().any(|refusal: &Refusal| refusal.field.as_ref() == Some(name)) => {
                config = without(name);
                found.push(Refusal { field, reason });
            }
            _ => {
                // what is left is missing; if that is because it was taken out above, it was named there
                if !found.iter().any(|r| r.field.as_ref().is_some_and(|name| reason.contains(&format!("`{name}`")))) {
                    found.push(Refusal { field: None, reason });
                }
                break;
            }
        }
    }
    found
}

/// The config's sizes.
fn sizes(config: &Value) -> BTreeMap<String, u64> {
    const SIZES: [&str; 9] = [
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "sliding_window",
        "vocab_size",
    ];
    SIZES.iter().filter_map(|name| config[*name].as_u64().map(|size| ((*name).to_owned(), size))).collect()
}

fn rope(config: &Value) -> Value {
    let mut rope = Map::new();
    for source in [&config["rope_scaling"], &config["rope_parameters"]] {
        rope.extend(source.as_object().cloned().unwrap_or_default());
    }
    if !config["rope_theta"].is_null() {
        rope.insert("rope_theta".to_owned(), config["rope_theta"].clone());
    }
    Value::Object(rope)
}

fn ids(value: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(list) => list.iter().filter_map(id).collect(),
        other => id(other).into_iter().collect(),
    }
}

/// End ids of `generation_config.json`, where there is one.
///
/// # Errors
/// A file that is no JSON.
pub fn generation_ends(folder: &Utf8Path) -> Result<Vec<u32>, OpError> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let json: Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    Ok(ids(&json["eos_token_id"]))
}

fn dtypes<'a>(tensors: impl Iterator<Item = &'a Stored>) -> BTreeMap<String, usize> {
    let mut dtypes = BTreeMap::new();
    for tensor in tensors {
        let name = match tensor.dtype {
            Dtype::F32 => "float32".to_owned(),
            Dtype::BF16 => "bfloat16".to_owned(),
            Dtype::F16 => "float16".to_owned(),
            other => other.to_string(),
        };
        *dtypes.entry(name).or_default() += tensor.elements();
    }
    dtypes
}

/// What the arithmetic says. Kept for a backward, in values a token and layer: the inputs of both norms, their outputs,
/// queries and keys before and after their norm, values, attention's output, and both halves of the MLP.
fn memory(config: &Value, tensors: &[&Stored], parameters: usize) -> Option<Memory> {
    let size = |name: &str| config[name].as_u64();
    let (d, m, layers) = (size("hidden_size")?, size("intermediate_size")?, size("num_hidden_layers")?);
    let heads = size("num_attention_heads")?;
    let kv_heads = size("num_key_value_heads").unwrap_or(heads);
    // The matrix says it where the config does not.
    let projected = tensors.iter().find(|t| t.name.ends_with("layers.0.self_attn.k_proj.weight"));
    let kv = projected.and_then(|t| t.shape.first()).map(|rows| *rows as u64)?;
    let q = kv.checked_div(kv_heads)? * heads;
    let linear = tensors.iter().filter(|t| t.shape.len() == 2 && t.name.ends_with("_proj.weight"));
    let adapter: usize = linear.map(|t| RANK * (t.shape[0] + t.shape[1])).sum();
    let weights = 4 * parameters as u64;
    let training = |trainable: usize, held: u64| {
        let (gradients, optimizer) = (4 * trainable as u64, 8 * trainable as u64);
        Training { trainable, gradients, optimizer, total: held + gradients + optimizer }
    };
    Some(Memory {
        weights,
        kv_per_token: 4 * 2 * kv * layers,
        activations_per_1000_tokens: 1000
            * 4
            * layers
            * (4 * d + 3 * q + 3 * kv + 2 * m + 2 * heads + heads + kv_heads + 2),
        full: training(parameters, weights),
        lora: training(adapter, weights + 4 * adapter as u64),
    })
}

fn adapter(folder: &Utf8Path) -> Result<AdapterInfo, OpError> {
    let path = folder.join("adapter_config.json");
    let config: Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|e| OpError::failed(format!("cannot read `{path}`: {e}")))?;
    let file = folder.join("adapter_model.safetensors");
    let tensors = list_file(&file)?;
    let (r, alpha) = (config["r"].as_u64(), config["lora_alpha"].as_f64());
    let root = config["use_rslora"] == true;
    let scale =
        r.zip(alpha).filter(|(r, _)| *r > 0).map(|(r, a)| if root { a / (r as f64).sqrt() } else { a / r as f64 });
    let targets = match &config["target_modules"] {
        Value::Array(names) => names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
        Value::String(pattern) => vec![pattern.clone()],
        _ => Vec::new(),
    };
    Ok(AdapterInfo {
        peft_type: config["peft_type"].as_str().unwrap_or("unknown").to_owned(),
        base: config["base_model_name_or_path"].as_str().map(str::to_owned),
        r,
        alpha,
        scale,
        dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
        targets,
        layers: tensors.iter().filter(|t| t.name.contains("lora_A")).count(),
        parameters: tensors.iter().map(Stored::elements).sum(),
        dtypes: dtypes(tensors.iter()),
        bytes: fs_err::metadata(&file)?.len(),
    })
}

fn gguf(path: &Utf8Path) -> Result<GgufInfo, OpError> {
    let mut file = std::io::BufReader::new(fs_err::File::open(path)?);
    let content = gguf_file::Content::read(&mut file)
        .map_err(|e| OpError::failed(format!("cannot read `{path}` as a GGUF file: {e}")))?;
    let mut types: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for info in content.tensor_infos.values() {
        let (tensors, parameters) = types.entry(format!("{:?}", info.ggml_dtype)).or_default();
        *tensors += 1;
        *parameters += info.shape.elem_count();
    }
    let mut quantization: Vec<Quantization> =
        types.into_iter().map(|(dtype, (tensors, parameters))| Quantization { dtype, tensors, parameters }).collect();
    quantization.sort_by(|a, b| b.parameters.cmp(&a.parameters).then_with(|| a.dtype.cmp(&b.dtype)));
    let mut metadata: Vec<(&String, Value)> = content.metadata.iter().map(|(name, v)| (name, plain(v))).collect();
    metadata.sort_by_key(|(name, _)| *name);
    let architecture = content.metadata.get("general.architecture").and_then(|v| v.to_string().ok());
    Ok(GgufInfo {
        architecture: architecture.cloned().unwrap_or_else(|| "unknown".to_owned()),
        parameters: quantization.iter().map(|q| q.parameters).sum(),
        bytes: fs_err::metadata(path)?.len(),
        chat_template: content.metadata.contains_key("tokenizer.chat_template"),
        quantization,
        metadata: metadata.into_iter().map(|(name, value)| (name.clone(), value)).collect(),
    })
}

/// GGUF's values as JSON; lists by their length, which may be that of a vocabulary.
fn plain(value: &gguf_file::Value) -> Value {
    use gguf_file::Value as V;
    match value {
        V::U8(x) => (*x).into(),
        V::I8(x) => (*x).into(),
        V::U16(x) => (*x).into(),
        V::I16(x) => (*x).into(),
        V::U32(x) => (*x).into(),
        V::I32(x) => (*x).into(),
        V::U64(x) => (*x).into(),
        V::I64(x) => (*x).into(),
        V::F32(x) => f64::from(*x).into(),
        V::F64(x) => (*x).into(),
        V::Bool(x) => (*x).into(),
        V::String(x) => x.as_str().into(),
        V::Array(list) => serde_json::json!({ "length": list.len() }),
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8PathBuf;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{DType, Device, Tensor};

    use super::*;

    #[test]
    fn a_gguf_file_is_described_by_its_metadata_and_types() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(dir.path().join("m.gguf")).unwrap();
        let ones = |rows: usize| Tensor::ones((rows, 64), DType::F32, &Device::Cpu).unwrap();
        let packed = QTensor::quantize(&ones(4), GgmlDType::Q8_0).unwrap();
        let plain = QTensor::quantize(&ones(1), GgmlDType::F32).unwrap();
        let name = gguf_file::Value::String("llama".to_owned());
        let words = gguf_file::Value::Array(vec![gguf_file::Value::U32(1), gguf_file::Value::U32(2)]);
        let metadata = [("general.architecture", &name), ("tokenizer.ggml.tokens", &words)];
        let mut file = fs_err::File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &[("a", &packed), ("b", &plain), ("c", &packed)]).unwrap();
        drop(file);
        let Info::Gguf(info) = info(&path).unwrap() else { panic!("not taken for a GGUF file") };
        assert_eq!((info.architecture.as_str(), info.parameters, info.chat_template), ("llama", 576, false));
        let types: Vec<_> = info.quantization.iter().map(|q| (q.dtype.as_str(), q.tensors, q.parameters)).collect();
        assert_eq!(types, [("Q8_0", 2, 512), ("F32", 1, 64)]);
        assert_eq!(info.metadata["tokenizer.ggml.tokens"], serde_json::json!({ "length": 2 }));
    }

    #[test]
    fn a_field_that_is_missing_is_named_and_one_that_is_malformed_once() {
        let folder = Utf8PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/model");
        let mut config = read_config(&folder).unwrap();
        assert_eq!(refusals(&config), []);
        config["hidden_size"] = serde_json::json!("wide");
        let found = refusals(&config);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].field.as_deref(), Some("hidden_size"));
        config.as_object_mut().unwrap().remove("hidden_size");
        let found = refusals(&config);
        assert!(found.len() == 1 && found[0].reason.contains("hidden_size"), "{found:?}");
    }
}
