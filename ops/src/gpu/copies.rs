//! Copies between host and device that nobody waits for, through memory of the host that the device reaches by itself.
//!
//! Invariant: such memory is used again when the copy before is over.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};

use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, result, sys};

use super::cuda::{Turns, failed, lock};
use super::driver::{Address, Ticket};

/// Bytes of a copy to the device that goes through pinned memory, at most.
pub(super) const MOST: usize = 1 << 20;
/// Copies to the device that are on their way, at most.
const LEAVING: usize = 8;

/// Memory of the host that the device reaches by itself, and an event behind the last copy.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
    event: sys::CUevent,
}

// SAFETY: memory like other memory, and an event that one thread at a time uses
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(bytes: usize) -> Result<Pinned> {
        let what = || format!("{bytes} bytes of pinned memory");
        let event = failed(what, result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        // SAFETY: freed with `Pinned`
        match failed(what, unsafe { result::malloc_host(bytes, 0) }) {
            Ok(at) => Ok(Pinned { at, bytes, event }),
            Err(error) => {
                // SAFETY: just made
                let _ = unsafe { result::event::destroy(event) };
                Err(error)
            }
        }
    }

    /// # Safety
    /// No copy may be on its way.
    unsafe fn as_slice(&self, bytes: usize) -> &[u8] {
        // SAFETY: as long as was reserved
        unsafe { std::slice::from_raw_parts(self.at.cast::<u8>(), bytes.min(self.bytes)) }
    }

    /// # Safety
    /// As [`Pinned::as_slice`].
    unsafe fn as_mut_slice(&mut self, bytes: usize) -> &mut [u8] {
        // SAFETY: as long as was reserved
        unsafe { std::slice::from_raw_parts_mut(self.at.cast::<u8>(), bytes.min(self.bytes)) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the copy is over after the event
        unsafe {
            let _ = result::event::synchronize(self.event);
            let _ = result::event::destroy(self.event);
            let _ = result::free_host(self.at);
        }
    }
}

#[derive(Default)]
struct Memory {
    free: Vec<Pinned>,
    /// Copied to the device, perhaps not yet, in this order.
    leaving: VecDeque<Pinned>,
}

/// Copies on one stream.
pub(super) struct Copies {
    stream: Arc<CudaStream>,
    memory: Mutex<Memory>,
}

impl Copies {
    pub(super) fn new(stream: Arc<CudaStream>) -> Arc<Copies> {
        Arc::new(Copies { stream, memory: Mutex::default() })
    }

    /// Pinned memory that nothing is copied from or into.
    fn take(&self, bytes: usize) -> Result<Pinned> {
        let mut memory = lock(&self.memory);
        while let Some(first) = memory.leaving.front() {
            // SAFETY: the event is there as long as its memory
            let over = unsafe { result::event::query(first.event) }.is_ok();
            if !over {
                if memory.leaving.len() < LEAVING {
                    break;
                }
                // SAFETY: as above
                failed(|| "waiting for a copy".to_owned(), unsafe { result::event::synchronize(first.event) })?;
            }
            let first = memory.leaving.pop_front();
            memory.free.extend(first);
        }
        match memory.free.iter().position(|p| p.bytes >= bytes) {
            Some(at) => Ok(memory.free.swap_remove(at)),
            None => Pinned::new(bytes.next_power_of_two().max(4096)),
        }
    }

    /// Bytes to the device; the host's may be used again at once.
    ///
    /// # Safety
    /// There is so much memory at `to`, and nobody records.
    pub(super) unsafe fn write(&self, to: Address, from: &[u8]) -> Result<()> {
        let what = || format!("writing {} bytes to the device", from.len());
        let mut pinned = self.take(from.len())?;
        // SAFETY: nothing is copied from it; the caller's promise
        unsafe {
            let staged = pinned.as_mut_slice(from.len());
            staged.copy_from_slice(from);
            failed(what, result::memcpy_htod_async(to.0, staged, self.stream.cu_stream()))?;
            failed(what, result::event::record(pinned.event, self.stream.cu_stream()))?;
        }
        lock(&self.memory).leaving.push_back(pinned);
        Ok(())
    }

    /// Bytes to the host.
    ///
    /// # Safety
    /// As [`Copies::write`].
    pub(super) unsafe fn read(self: &Arc<Self>, from: Address, bytes: usize, turns: Turns) -> Result<Box<dyn Ticket>> {
        let what = || format!("reading {bytes} bytes from the device");
        let pinned = self.take(bytes)?;
        let mut ticket = Box::new(Later { copies: self.clone(), turns, memory: ManuallyDrop::new(pinned), bytes });
        // SAFETY: nothing is copied into it, and the ticket owns it until the event; the caller's promise
        unsafe {
            let event = ticket.memory.event;
            let to = ticket.memory.as_mut_slice(bytes);
            failed(what, result::memcpy_dtoh_async(to, from.0, self.stream.cu_stream()))?;
            failed(what, result::event::record(event, self.stream.cu_stream()))?;
        }
        Ok(ticket)
    }

    /// Gives pinned memory back, once all copies are over.
    pub(super) fn clear(&self) {
        *lock(&self.memory) = Memory::default();
    }
}

struct Later {
    copies: Arc<Copies>,
    turns: Turns,
    memory: ManuallyDrop<Pinned>,
    bytes: usize,
}

impl Ticket for Later {
    fn wait(self: Box<Self>) -> Result<Vec<u8>> {
        let what = || "waiting for a copy".to_owned();
        failed(what, self.copies.stream.context().bind_to_thread())?;
        let _turn = self.turns.take();
        // SAFETY: after the event the memory holds the bytes
        unsafe {
            failed(what, result::event::synchronize(self.memory.event))?;
            Ok(self.memory.as_slice(self.bytes).to_vec())
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        let _turn = self.turns.take();
        // SAFETY: the copy is over after the event, whether or not somebody waited before; the memory is taken once
        unsafe {
            let _ = result::event::synchronize(self.memory.event);
            let memory = ManuallyDrop::take(&mut self.memory);
            lock(&self.copies.memory).free.push(memory);
        }
    }
}
