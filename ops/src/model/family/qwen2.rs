//! Qwen2 and Qwen2.5, dense: biases on queries, keys and values, none elsewhere; no norms of queries and keys.

use actloom_engine::op::OpError;
use serde_json::{Value, json};

use super::super::config::{Config, Fields};
use super::qwen3;

pub fn read(f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    f.only("attention_bias", &[json!(true)])?;
    f.only("mlp_bias", &[json!(false)])?;
    config.qkv_bias = true;
    qwen3::windows(f, config)
}

pub fn write(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    qwen3::write_windows(config, put);
}
