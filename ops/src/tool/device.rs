//! What a device is, whether it computes what it should, and how fast.

use std::time::Duration;

use actloom_engine::op::{DeviceRequest, OpError};
use camino::Utf8Path;
use serde::Serialize;

use crate::gpu::bench::{self, Figure};
use crate::gpu::check::{self, Finding};
use crate::gpu::reference;
use crate::model::{device_driver, failed, open_device};

pub use crate::gpu::bench::{LAYERS, MODELS};

/// A device that passes run on.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub device: String,
    /// Bytes, where it has memory of its own.
    pub memory: Option<u64>,
    pub free: Option<u64>,
}

/// What a request becomes.
///
/// # Errors
/// When a GPU was demanded and none can be used.
pub fn about(request: DeviceRequest) -> Result<About, OpError> {
    let (device, why) = open_device(request)?;
    let Some(driver) = device_driver(&device) else { return Ok(About { device: why, memory: None, free: None }) };
    let (free, memory) = driver.free().map_err(failed)?;
    Ok(About { device: why, memory: Some(memory as u64), free: Some(free as u64) })
}

fn driver(request: DeviceRequest) -> Result<std::sync::Arc<dyn crate::gpu::Driver>, OpError> {
    let (device, why) = open_device(request)?;
    device_driver(&device).ok_or_else(|| {
        OpError::with_help(
            format!("there is no GPU to look at: {why}"),
            "use a build with `--features cuda` on a machine with a GPU",
        )
    })
}

/// Checks every kernel, then whole models, then a folder's numbers by PyTorch, if there is one; says whether all is well. A folder that
/// cannot hold such numbers is refused before anything is opened.
///
/// # Errors
/// Where there is no device; the device's; a folder that does not hold such numbers.
pub fn check(
    request: DeviceRequest,
    reference: Option<&Utf8Path>,
    report: &mut dyn FnMut(&Finding),
) -> Result<bool, OpError> {
    for name in ["model/config.json", "forward.safetensors", "grads.safetensors"] {
        if let Some(path) = reference.map(|folder| folder.join(name)).filter(|path| !path.is_file()) {
            return Err(OpError::with_help(
                format!("there is no file `{path}`"),
                "numbers by PyTorch are a folder like `ops/tests/fixtures/parity`",
            ));
        }
    }
    let driver = driver(request)?;
    let mut fine = true;
    let mut tell = |finding: Finding| {
        fine &= finding.fine();
        report(&finding);
    };
    // kernels one by one come first: what is wrong in one of them is wrong in every model
    check::check(&driver, &mut tell).map_err(failed)?;
    if let Some(folder) = reference {
        reference::check(&driver, folder, &mut tell)?;
    }
    Ok(fine)
}

/// Takes figures and says whether all could be taken; see [`bench::bench`].
///
/// # Errors
/// Where there is no device; a model that is not known.
pub fn measure(
    request: DeviceRequest,
    models: &[String],
    layers: Option<usize>,
    limit: Duration,
    report: &mut dyn FnMut(Figure),
    say: &mut dyn FnMut(String),
) -> Result<bool, OpError> {
    bench::bench(&driver(request)?, models, layers, limit, report, say)
}
