//! Language models: one file per family, configs that mirror `config.json`, checkpoint names for tensors.
//!
//! Invariant: one implementation trains and samples; what it cannot honour in a config is refused by name at load.

mod config;
mod decoder;
mod family;
pub mod gpu;
mod io;
pub mod lora;
pub mod rope;

pub use config::Config;
pub use decoder::{Model, Sequence, Step, Target};
pub use family::{FAMILIES, Family};
pub use io::{
    Entry, FloatType, Format, Stored, TOKENIZER_FILE, TensorWriter, copy_text_files, encode, list_file, list_tensors,
    load, load_beside, load_tensors, read_config, save, save_as, save_tensors, stored_type, with_dtype, write_json,
    write_shards,
};

use actloom_engine::op::{DeviceRequest, OpError};
use candle_core::Device;

/// Opens the device asked for and says which one it became and why.
///
/// # Errors
/// When a GPU was demanded and none can be used.
pub fn open_device(request: DeviceRequest) -> Result<(Device, String), OpError> {
    match request {
        DeviceRequest::Cpu => Ok((Device::Cpu, "cpu, as asked".into())),
        DeviceRequest::Cuda(n) => match gpu::open(n) {
            Ok((device, name)) => Ok((device, format!("{name}, as asked"))),
            Err(error) => Err(OpError::with_help(
                format!("cannot open CUDA device {n}: {}", first_line(&error)),
                "use `--device cpu` or `--device auto`, or a build with `--features cuda` on a machine with a GPU",
            )),
        },
        DeviceRequest::Auto => {
            if !candle_core::utils::cuda_is_available() {
                return Ok((Device::Cpu, "cpu: this build has no CUDA".into()));
            }
            match gpu::open(0) {
                Ok((device, name)) => Ok((device, format!("{name}, found"))),
                // a GPU that is there and cannot be used is not the same as none
                Err(error) if gpu::is_usable(0) => Err(OpError::with_help(
                    format!("cannot open CUDA device 0: {}", first_line(&error)),
                    "use `--device cpu` to do without it",
                )),
                Err(error) => {
                    Ok((Device::Cpu, format!("cpu: no CUDA device could be opened ({})", first_line(&error))))
                }
            }
        }
    }
}

/// What runs passes on an open device, `None` for the host.
pub fn device_driver(device: &Device) -> Option<std::sync::Arc<dyn crate::gpu::Driver>> {
    gpu::of(device)
}

/// What an error says, without where it came from.
pub fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or("unknown error").to_owned()
}

/// candle's errors as an op's. What is a mere message is a sentence of ours.
pub fn failed(error: candle_core::Error) -> OpError {
    let text = first_line(&error);
    let mut inner = &error;
    while let candle_core::Error::WithBacktrace { inner: next, .. } | candle_core::Error::Context { inner: next, .. } =
        inner
    {
        inner = next;
    }
    match inner {
        candle_core::Error::Msg(_) => OpError::failed(text),
        _ => OpError::failed(format!("tensor operation failed: {text}")),
    }
}
