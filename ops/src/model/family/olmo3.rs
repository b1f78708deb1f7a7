//! Olmo 3: norms after attention and MLP, norms over all queries and all keys, three sliding layers before each full
//! one. Only full layers scale their rotary frequencies.

use actloom_engine::op::OpError;
use serde_json::{Value, json};

use super::super::config::{Config, Fields};

pub fn read(f: &Fields<'_>, config: &mut Config) -> Result<(), OpError> {
    config.rms_norm_eps = f.number_or("rms_norm_eps", 1e-5)?;
    let bias = f.flag_or("attention_bias", false)?;
    (config.qkv_bias, config.o_bias) = (bias, bias);
    f.only("mlp_bias", &[json!(false)])?;
    f.only("use_sliding_window", &[json!(true)])?;
    let default = || (0..config.layers).map(|i| (i + 1) % 4 != 0).collect();
    config.sliding = f.layer_types(config.layers)?.unwrap_or_else(default);
    if config.sliding.contains(&true) {
        config.window = Some(f.whole_or("sliding_window", 4096)?);
    }
    Ok(())
}

pub fn write(config: &Config, put: &mut dyn FnMut(&str, Value) -> Option<Value>) {
    put("attention_bias", json!(config.qkv_bias));
    put("sliding_window", json!(config.window));
    put("layer_types", super::layer_types(config));
}
