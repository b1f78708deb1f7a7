//! Which device a run has, where that matters before anything runs.
//!
//! Invariants: a GPU that is demanded and cannot be had ends a run before it does anything, and no other verb, which may
//! look at a GPU's results where there is none; `auto` touches none before a step has to run, unless some step pins its
//! device.

use actloom_engine::graph::Graph;
use actloom_engine::op::DeviceRequest;
use actloom_ops::model::open_device;

use crate::exit::Failure;

/// A device that can be had.
pub struct Found {
    pub is_gpu: bool,
    /// Which one it became and why.
    pub why: String,
}

/// Opens the device once, to see that it can be had.
pub fn open(request: DeviceRequest) -> Result<Found, Failure> {
    let (device, why) = open_device(request)?;
    Ok(Found { is_gpu: device.is_cuda(), why })
}

/// Settles `auto` where a key depends on it.
pub fn settle(request: DeviceRequest, graph: &Graph) -> DeviceRequest {
    let matters = graph.nodes.node_weights().any(|node| node.pin_device);
    if request != DeviceRequest::Auto || !matters {
        return request;
    }
    if !cfg!(feature = "cuda") {
        return DeviceRequest::Cpu;
    }
    match open_device(DeviceRequest::Auto) {
        Ok((device, _)) if device.is_cuda() => DeviceRequest::Cuda(0),
        _ => DeviceRequest::Cpu,
    }
}
