//! A model whose passes run on a GPU: its tensors stay on the host, and an engine holds what the device computes with.
//!
//! Invariants: the engine is made when something is first computed, for the model as it is then, and again when what is trained in
//! it has changed; parameters that the host has changed are written before the next pass; those that the device has changed are
//! read by [`Model::read_back`], before which the host's are old.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::Model;
use crate::gpu::Driver;
#[cfg(feature = "cuda")]
use crate::gpu::cuda;
use crate::gpu::engine::Engine;
use crate::gpu::kernels::Dropped;
use crate::gpu::parts::{Purpose, Shape};
use crate::gpu::sample::Room;
use crate::nn::layer::Dropout;

/// Opens a CUDA device, or takes the one that is open: candle's device, and what it is called.
///
/// # Errors
/// What CUDA says; a build without it.
pub(super) fn open(ordinal: usize) -> Result<(Device, String)> {
    #[cfg(feature = "cuda")]
    {
        let device = cuda::open(ordinal)?;
        Ok((device.candle(), device.name()))
    }
    #[cfg(not(feature = "cuda"))]
    {
        let device = Device::new_cuda_with_stream(ordinal)?;
        Ok((device, format!("cuda:{ordinal}")))
    }
}

/// Whether there is a GPU of this number that the kernels are for.
pub(super) fn is_usable(ordinal: usize) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::is_usable(ordinal);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        false
    }
}

/// The driver of a device on which passes run, `None` for the host.
pub(super) fn of(device: &Device) -> Option<Arc<dyn Driver>> {
    #[cfg(feature = "cuda")]
    if let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() {
        return cuda::open(gpu_id).ok().map(|device| device as Arc<dyn Driver>);
    }
    let _ = device;
    None
}

/// Where a model's passes run.
pub struct Gpu {
    driver: Arc<dyn Driver>,
    /// What the engine is made for.
    purpose: Purpose,
    state: Mutex<Option<State>>,
}

pub(super) struct State {
    pub engine: Engine,
    /// (version, trained) of each parameter as the engine has it.
    known: Vec<(u64, bool)>,
    /// The device has changed what is trained.
    ahead: bool,
}

impl Gpu {
    pub fn new(driver: Arc<dyn Driver>) -> Gpu {
        Gpu { driver, purpose: Purpose::default(), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    /// Runs passes on a device from here on.
    pub fn set_gpu(&mut self, driver: Arc<dyn Driver>) {
        let mut gpu = Gpu::new(driver);
        let positions = self.config.max_positions;
        gpu.purpose = Purpose { positions, sample: Some(Room::default()), ..gpu.purpose };
        self.gpu = Some(gpu);
    }

    /// Passes run where `other`'s do, over rows as long, and nothing is sampled.
    pub(super) fn score_beside(&mut self, other: &Model) {
        if let Some(there) = &other.gpu {
            let mut gpu = Gpu::new(there.driver.clone());
            gpu.purpose = Purpose { sample: None, ..there.purpose };
            self.gpu = Some(gpu);
        }
    }

    /// Tokens are drawn where passes run.
    pub fn draws(&self) -> bool {
        self.gpu.is_some()
    }

    /// What steps of sampling may be like, `None` where passes run on the host: sequences side by side, new tokens in a step, and
    /// tokens that are in memory at once.
    ///
    /// # Errors
    /// The device's.
    pub fn sampling_room(&self) -> Result<Option<(usize, usize, usize)>> {
        let Some(gpu) = &self.gpu else { return Ok(None) };
        let Some(room) = gpu.purpose.sample else { return Ok(None) };
        let tokens = self.ask_gpu(|engine| Ok(engine.plan().tokens)).transpose()?.unwrap_or(0);
        Ok(Some((room.rows, room.chunk, tokens)))
    }

    /// Reserves the memory that passes need, if that was not done yet: what for, `None` on the host.
    ///
    /// # Errors
    /// When it does not fit, with what would.
    pub fn memory(&self) -> Result<Option<String>> {
        self.ask_gpu(|engine| Ok(engine.plan().to_string())).transpose()
    }

    /// Says what passes on a device will be like; best before the first.
    pub fn on_device_for(&mut self, change: impl FnOnce(Purpose) -> Purpose) {
        if let Some(gpu) = &mut self.gpu {
            let purpose = change(gpu.purpose);
            let state = gpu.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            if purpose != gpu.purpose && state.as_ref().is_none_or(|state| !state.ahead) {
                *state = None;
            }
            gpu.purpose = purpose;
        }
    }

    /// What adapters drop from their inputs, in the order of the linear layers that have one.
    pub fn dropped(&self) -> Vec<Option<Dropped>> {
        let adapters = self.linears().into_iter().filter_map(|(_, linear)| linear.adapter.as_ref());
        let one = |dropout: &Dropout| {
            let (seed, stream) = dropout.place();
            Dropped { rate: dropout.rate, seed, stream }
        };
        adapters.map(|adapter| adapter.dropout.as_ref().map(one)).collect()
    }

    /// Does something with the engine, `None` where passes run on the host.
    pub(super) fn on_gpu<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Option<Result<T>> {
        let gpu = self.gpu.as_ref()?;
        let mut state = gpu.lock();
        Some(self.ready(gpu, &mut state).and_then(work))
    }

    /// The engine, made or brought up to date.
    fn ready<'s>(&self, gpu: &Gpu, state: &'s mut Option<State>) -> Result<&'s mut State> {
        let params = self.params();
        let now: Vec<(u64, bool)> = params.iter().map(|p| (p.version(), p.trainable)).collect();
        let same = |s: &State| s.known.len() == now.len() && s.known.iter().zip(&now).all(|(a, b)| a.1 == b.1);
        if state.as_ref().is_some_and(|s| !same(s)) {
            *state = None; // the memory first
        }
        let state = match state {
            Some(state) => state,
            None => {
                let engine = Engine::new(gpu.driver.clone(), &Shape::of(self), gpu.purpose)?;
                state.insert(State { engine, known: vec![(u64::MAX, false); now.len()], ahead: false })
            }
        };
        let mut written = false;
        for ((p, known), now) in params.iter().zip(&mut state.known).zip(&now) {
            if known.0 != now.0 {
                state.engine.write(&p.name, &p.value)?;
                written = true;
            }
            *known = *now;
        }
        if written {
            state.engine.written()?;
        }
        Ok(state)
    }

    /// Brings parameters that the device has changed to the host.
    ///
    /// # Errors
    /// The device's.
    pub fn read_back(&mut self) -> Result<()> {
        let Some(gpu) = self.gpu.take() else { return Ok(()) };
        let done = self.read_from(&gpu);
        self.gpu = Some(gpu);
        done
    }

    fn read_from(&mut self, gpu: &Gpu) -> Result<()> {
        let mut state = gpu.lock();
        let Some(state) = state.as_mut().filter(|state| state.ahead) else { return Ok(()) };
        for (p, known) in self.params_mut().into_iter().zip(&mut state.known) {
            if p.trainable {
                p.value = Tensor::from_vec(state.engine.read(&p.name)?, p.value.shape(), &Device::Cpu)?;
                p.changed();
                known.0 = p.version();
            }
        }
        state.ahead = false;
        Ok(())
    }

    /// An update on the device; see [`Engine::update`].
    pub(crate) fn update_on_gpu<T>(&self, work: impl FnOnce(&mut Engine) -> Result<T>) -> Option<Result<T>> {
        self.on_gpu(|state| {
            state.ahead = true;
            work(&mut state.engine)
        })
    }

    /// Something that changes no parameter.
    pub(crate) fn ask_gpu<T>(&self, work: impl FnOnce(&mut Engine) -> Result<T>) -> Option<Result<T>> {
        self.on_gpu(|state| work(&mut state.engine))
    }
}
