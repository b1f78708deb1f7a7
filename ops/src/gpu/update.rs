//! AdamW over the flat buffers: three launches, and the host waits for the norm alone.
//!
//! Invariants: meaning and order of every sum are those of `kernels/optimizer.cu`; nothing is changed where a gradient is not
//! finite; gradients are zero afterwards.

use candle_core::Result;

use super::driver::{Address, Arg, Driver, Launch};
use super::layout::{Kind, Layout};
use super::memory::Arena;
use super::weights::Weights;
use crate::train::optimizer::{Precision, rounding_seed};

/// Elements of a chunk.
const CHUNK: usize = 16_384;
/// No segment.
const NONE: u32 = u32::MAX;

/// A parameter, as the kernels know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Segment {
    begin: i64,
    length: i64,
    rate: f64,
    decay: f32,
    first: u32,
    weight: Address,
    /// Moments in bf16 are rounded by numbers of this seed.
    seed: u64,
}

/// What differs from step to step, as the kernels know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    rate: f64,
    number: u64,
    correction: [f32; 2],
    scale: f32,
    bad: u32,
    norm: f64,
}

/// Bytes of a value without padding.
fn bytes<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the structs above have no padding, and are read as long as they are borrowed
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Factors of the rates and decays, and AdamW's constants.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// 0: no limit.
    pub clip: f64,
}

/// The optimizer on the device.
pub struct Update {
    segments: Address,
    table: Vec<Segment>,
    names: Vec<String>,
    chunks: usize,
    partial: Address,
    step: Address,
}

impl Update {
    /// `settings(name)` is the factor of a parameter's learning rate and its weight decay.
    ///
    /// # Errors
    /// When it does not fit; the device's.
    pub fn new(
        device: &dyn Driver,
        weights: &Weights,
        arena: &mut Arena,
        settings: impl Fn(&str) -> (f64, f32),
    ) -> Result<Update> {
        let (table, names) = segments(&weights.layout, |part| weights.copy(part), settings);
        let chunks = table.last().map_or(0, |last| last.first as usize + (last.length as usize).div_ceil(CHUNK));
        let segments = arena.keep(size_of_val(table.as_slice()))?;
        let (partial, step) = (arena.keep(8 * chunks)?, arena.keep(size_of::<Step>())?);
        // SAFETY: just reserved
        unsafe { device.write(segments, bytes(&table))? };
        Ok(Update { segments, table, names, chunks, partial, step })
    }

    /// Other factors of learning rates and weight decays.
    ///
    /// # Errors
    /// The device's.
    pub fn set(&mut self, device: &dyn Driver, settings: impl Fn(&str) -> (f64, f32)) -> Result<()> {
        let mut changed = false;
        for (segment, name) in self.table.iter_mut().zip(&self.names) {
            let (rate, decay) = settings(name);
            changed |= (segment.rate, segment.decay) != (rate, decay);
            (segment.rate, segment.decay) = (rate, decay);
        }
        match changed {
            // SAFETY: the table's own place
            true => unsafe { device.write(self.segments, bytes(&self.table)) },
            false => Ok(()),
        }
    }

    /// The factors of another, of the same parameters in other places.
    ///
    /// # Errors
    /// The device's.
    pub fn take_over(&mut self, device: &dyn Driver, from: &Update) -> Result<()> {
        for (segment, old) in self.table.iter_mut().zip(&from.table) {
            (segment.rate, segment.decay) = (old.rate, old.decay);
        }
        // SAFETY: the table's own place
        unsafe { device.write(self.segments, bytes(&self.table)) }
    }

    /// One update, the `number`-th from 1. Returns the global norm before clipping, or the name of a parameter whose gradient is
    /// not finite, and then nothing was changed.
    ///
    /// # Errors
    /// The device's.
    pub fn step(
        &self,
        device: &dyn Driver,
        weights: &Weights,
        rule: &Rule,
        rate: f64,
        number: u64,
    ) -> Result<std::result::Result<f64, String>> {
        let (beta1, beta2) = (rule.beta1 as f32, rule.beta2 as f32);
        let power = |beta: f64| (1.0 - beta.powi(number as i32)) as f32;
        let correction = [power(rule.beta1), power(rule.beta2)];
        let step = Step { rate, number, correction, bad: NONE, ..Step::default() };
        let (flat, count) = (&weights.flat, Arg::int(self.names.len()));
        let mut out = [0u8; size_of::<Step>()];
        // SAFETY: the arguments are those of the kernels' source, over buffers of the layout
        unsafe {
            device.write(self.step, bytes(&[step]))?;
            let args = [self.partial.into(), flat.grad.into(), self.segments.into(), count];
            device.launch("squares", Launch::new(self.chunks, 256), &args)?;
            let args = [
                self.step.into(),
                self.partial.into(),
                self.segments.into(),
                count,
                Arg::U32(self.chunks as u32),
                Arg::F64(rule.clip),
            ];
            device.launch("clip", Launch::new(1, 1024), &args)?;
            let args = [
                flat.master.into(),
                flat.grad.into(),
                flat.m.into(),
                flat.v.into(),
                self.segments.into(),
                count,
                self.step.into(),
                beta1.into(),
                beta2.into(),
                (rule.eps as f32).into(),
            ];
            let kernel = match flat.moments {
                Precision::Float32 => "adamw_f32",
                Precision::Bfloat16 => "adamw_bf16",
            };
            device.launch(kernel, Launch::new(self.chunks, 256), &args)?;
            device.read(self.step, &mut out)?;
        }
        let word = |at: usize| [out[at], out[at + 1], out[at + 2], out[at + 3]];
        let bad = u32::from_ne_bytes(word(28));
        if bad != NONE {
            return Ok(Err(self.names[bad as usize].clone()));
        }
        let (low, high) = (word(32), word(36));
        Ok(Ok(f64::from_ne_bytes([low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]])))
    }
}

/// What is changed by updates, in the buffers' order, with its names.
fn segments(
    layout: &Layout,
    copy: impl Fn(&super::layout::Part) -> Address,
    settings: impl Fn(&str) -> (f64, f32),
) -> (Vec<Segment>, Vec<String>) {
    let mut parts: Vec<_> = layout.parts.iter().filter(|part| part.updated).collect();
    parts.sort_by_key(|part| part.trained.map(|span| span.at));
    let mut first = 0;
    let mut out = (Vec::new(), Vec::new());
    for part in parts {
        let Some(span) = part.trained else { panic!("BUG: `{}` is changed and has no master", part.name) };
        let (rate, decay) = settings(&part.name);
        let weight = match part.kind {
            Kind::Matrix(..) => copy(part),
            Kind::Vector(_) => Address::NONE,
        };
        let (begin, length) = (span.at as i64, span.len as i64);
        out.0.push(Segment {
            begin,
            length,
            rate,
            decay,
            first: first as u32,
            weight,
            seed: rounding_seed(&part.name),
        });
        out.1.push(part.name.clone());
        first += span.len.div_ceil(CHUNK);
    }
    out
}
