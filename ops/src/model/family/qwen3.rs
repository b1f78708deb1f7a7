//! Qwen3, dense. Norms of queries and keys over each head; no biases unless `attention_bias`; windows by `layer_types`.

use actloom_engine::op::OpError;
use serde_json::{Value, json};

use super::super::config::{Config, Fields};

pub fn read(f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    config.head_dim = f.whole_or("head_dim", 128)?;
    let bias = f.flag_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    f.only("mlp_bias", &[json!(false)])?;
    windows(f, config)
}

/// `use_sliding_window`, and which layers slide: `layer_types`, or those from `max_window_layers` on.
pub fn windows(f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    if f.flag_or("use_sliding_window", false)? && !f.get("sliding_window").is_null() {
        config.window = Some(f.whole("sliding_window")?);
        let first = match f.get("max_window_layers") {
            Value::Null => 28,
            value => value.as_u64().unwrap_or(28) as usize,
        };
        let from_first = || (0..config.layers).map(|i| i >= first).collect();
        config.sliding = f.layer_types(config.layers)?.unwrap_or_else(from_first);
    } else if f.layer_types(config.layers)?.is_some_and(|types| types.contains(&true)) {
        return Err(OpError::failed(
            "`layer_types` of the model's config slides but `use_sliding_window` is not `true`",
        ));
    }
    Ok(())
}

pub fn write(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    put("attention_bias", json!(config.qkv_bias));
    write_windows(config, put);
}

pub fn write_windows(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    put("use_sliding_window", json!(config.window.is_some()));
    put("sliding_window", json!(config.window));
    if config.window.is_some() {
        put("layer_types", super::layer_types(config));
    }
}
