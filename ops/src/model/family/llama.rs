//! Llama 3.x, and what shares its architecture: no norms of queries and keys, biases only where the config says so.

use actloom_engine::op::OpError;
use serde_json::{Value, json};

use super::super::config::{Config, Fields};

pub fn read(f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    let bias = f.flag_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    config.mlp_bias = f.flag_or("mlp_bias", false)?;
    f.only("use_sliding_window", &[json!(false)])?;
    f.only("sliding_window", &[])?;
    f.only("pretraining_tp", &[json!(1)])?;
    if f.layer_types(config.layers)?.is_some_and(|types| types.contains(&true)) {
        return Err(OpError::failed("`layer_types` of the model's config slides, which `llama` does not"));
    }
    Ok(())
}

pub fn write(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    put("attention_bias", json!(config.qkv_bias));
    put("mlp_bias", json!(config.mlp_bias));
}
