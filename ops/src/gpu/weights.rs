//! Parameters in device memory: what products and kernels read, and where gradients add up.
//!
//! Invariants: a bf16 copy is its master rounded to the nearest; a gradient is zero after an update.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use super::driver::{Address, Driver, Element, Matrix};
use super::layout::{Kind, Layout, Part, Span};
use super::memory::Arena;
use crate::train::optimizer::Precision;

/// A matrix, and its gradient where it is trained.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// bf16
    pub value: Matrix,
    /// float32
    pub grad: Option<Matrix>,
}

/// A vector of float32, and its gradient where it is trained.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    pub value: Address,
    pub grad: Option<Address>,
}

/// Flat buffers of what is trained, in the layout's order: float32 but for moments.
#[derive(Clone, Copy, Debug)]
pub struct Flat {
    pub master: Address,
    pub grad: Address,
    /// First and second moments, of their own type.
    pub m: Address,
    pub v: Address,
    pub moments: Precision,
}

impl Flat {
    /// Bytes of so many moments.
    pub fn moment_bytes(&self, count: usize) -> usize {
        count * self.moments.bytes()
    }
}

/// All parameters.
pub struct Weights {
    pub layout: Layout,
    matrices: Address,
    bases: Address,
    vectors: Address,
    pub flat: Flat,
}

impl Weights {
    /// Room for a layout's parameters, in what an arena keeps.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn reserve(layout: Layout, moments: Precision, arena: &mut Arena) -> Result<Weights> {
        let mut floats = |n: usize| arena.keep(4 * n);
        let vectors = floats(layout.vectors)?;
        let (master, grad) = (floats(layout.trained)?, floats(layout.trained)?);
        let mut moment = || arena.keep(moments.bytes() * layout.trained);
        let flat = Flat { master, grad, m: moment()?, v: moment()?, moments };
        let (matrices, bases) = (arena.keep(2 * layout.matrices)?, arena.keep(2 * layout.bases)?);
        Ok(Weights { layout, matrices, bases, vectors, flat })
    }

    /// Several matrices that stand together, by their names, as one.
    ///
    /// # Panics
    /// On names that do not stand together: a bug in the caller.
    pub fn weight(&self, names: &[String]) -> Weight {
        let parts: Vec<&Part> = names.iter().map(|name| self.layout.part(name)).collect();
        let (mut rows, mut columns) = (0, 0);
        for part in &parts {
            let Kind::Matrix(r, c) = part.kind else { panic!("BUG: `{}` is no matrix", part.name) };
            (rows, columns) = (rows + r, c);
        }
        let first = |pick: fn(&Part) -> Option<Span>| {
            let spans: Option<Vec<Span>> = parts.iter().map(|part| pick(part)).collect();
            let spans = spans?;
            assert!(spans.windows(2).all(|w| w[0].at + w[0].len == w[1].at), "BUG: {names:?} do not stand together");
            spans.first().map(|span| span.at)
        };
        let Some(at) = first(|part| part.value) else { panic!("BUG: {names:?} have no place") };
        let value = Matrix::new(self.matrices.plus(2 * at), Element::Bf16, rows, columns);
        let grad =
            first(|part| part.trained).map(|at| Matrix::new(self.flat.grad.plus(4 * at), Element::F32, rows, columns));
        Weight { value, grad }
    }

    /// Where the bf16 copy of a matrix is.
    pub fn copy(&self, part: &Part) -> Address {
        part.value.map_or(Address::NONE, |span| self.matrices.plus(2 * span.at))
    }

    /// Where a matrix stands without its addition.
    ///
    /// # Panics
    /// On one that has none: a bug in the caller.
    pub fn base(&self, name: &str) -> Address {
        match self.layout.part(name).base {
            Some(span) => self.bases.plus(2 * span.at),
            None => panic!("BUG: `{name}` has no addition"),
        }
    }

    /// Vectors that stand together, by the name of the first.
    pub fn vector(&self, name: &str) -> Vector {
        let part = self.layout.part(name);
        match (part.trained, part.value) {
            (Some(span), _) => {
                Vector { value: self.flat.master.plus(4 * span.at), grad: Some(self.flat.grad.plus(4 * span.at)) }
            }
            (None, Some(span)) => Vector { value: self.vectors.plus(4 * span.at), grad: None },
            (None, None) => panic!("BUG: `{name}` has no place"),
        }
    }

    /// As [`Weights::vector`], `None` where there is no such parameter.
    pub fn find_vector(&self, name: &str) -> Option<Vector> {
        self.layout.find(name).map(|part| self.vector(&part.name))
    }

    /// Writes a parameter: its master, and what is read of it.
    ///
    /// # Errors
    /// The device's.
    pub fn write(&self, device: &dyn Driver, name: &str, value: &Tensor) -> Result<()> {
        let part = self.layout.part(name);
        let numbers: Vec<f32> = value.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let len = match part.kind {
            Kind::Matrix(rows, columns) => rows * columns,
            Kind::Vector(n) => n,
        };
        assert_eq!(numbers.len(), len, "BUG: `{name}` has another size than its place");
        self.put(part, |at, element| {
            let bytes = match element {
                Element::F32 => bytes_of(&numbers, |x| x.to_ne_bytes()),
                Element::Bf16 => bytes_of(&numbers, |x| round(x).to_ne_bytes()),
            };
            // SAFETY: the parameter's own span
            unsafe { device.write(at, &bytes) }
        })
    }

    /// As [`Weights::write`], with the numbers of a pool over and over, which are spread on the device: for measuring.
    ///
    /// # Errors
    /// The device's.
    pub fn repeat(&self, device: &dyn Driver, name: &str, pool: &[f32]) -> Result<()> {
        let part = self.layout.part(name);
        let len = match part.kind {
            Kind::Matrix(rows, columns) => rows * columns,
            Kind::Vector(n) => n,
        };
        self.put(part, |at, element| {
            let bytes = match element {
                Element::F32 => bytes_of(pool, |x| x.to_ne_bytes()),
                Element::Bf16 => bytes_of(pool, |x| round(x).to_ne_bytes()),
            };
            // SAFETY: the parameter's own span
            unsafe { fill(device, at, &bytes, element.bytes() * len) }
        })
    }

    /// Calls `put` for each place where a parameter's numbers are written, with what they are there.
    fn put(&self, part: &Part, mut put: impl FnMut(Address, Element) -> Result<()>) -> Result<()> {
        if let Some(span) = part.trained {
            put(self.flat.master.plus(4 * span.at), Element::F32)?;
        }
        match (part.kind, part.value) {
            (Kind::Matrix(..), Some(span)) => {
                let at = part.base.map_or(self.matrices.plus(2 * span.at), |span| self.bases.plus(2 * span.at));
                put(at, Element::Bf16)
            }
            (Kind::Vector(_), Some(span)) => put(self.vectors.plus(4 * span.at), Element::F32),
            (_, None) => Ok(()),
        }
    }

    /// A parameter's gradient; `None` where it is not trained.
    ///
    /// # Errors
    /// The device's.
    pub fn gradient(&self, device: &dyn Driver, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(span) = self.layout.part(name).trained else { return Ok(None) };
        floats(device, self.flat.grad.plus(4 * span.at), span.len).map(Some)
    }

    fn trained(&self, name: &str) -> Span {
        match self.layout.part(name).trained {
            Some(span) => span,
            None => panic!("BUG: `{name}` is not trained and has no moments"),
        }
    }

    /// First and second moments of a trained parameter.
    ///
    /// # Errors
    /// The device's.
    pub fn moments(&self, device: &dyn Driver, name: &str) -> Result<(Vec<f32>, Vec<f32>)> {
        let span = self.trained(name);
        let read = |base: Address| {
            let at = base.plus(self.flat.moment_bytes(span.at));
            match self.flat.moments {
                Precision::Float32 => floats(device, at, span.len),
                Precision::Bfloat16 => halves(device, at, span.len),
            }
        };
        Ok((read(self.flat.m)?, read(self.flat.v)?))
    }

    /// As [`Weights::moments`], the other way; those that are stored as bf16 are rounded to the nearest.
    ///
    /// # Errors
    /// The device's.
    pub fn write_moments(&self, device: &dyn Driver, name: &str, m: &Tensor, v: &Tensor) -> Result<()> {
        let span = self.trained(name);
        for (base, moment) in [(self.flat.m, m), (self.flat.v, v)] {
            let numbers: Vec<f32> = moment.flatten_all()?.to_vec1()?;
            assert_eq!(numbers.len(), span.len, "BUG: a moment of `{name}` has another size");
            let bytes: Vec<u8> = match self.flat.moments {
                Precision::Float32 => numbers.iter().flat_map(|x| x.to_ne_bytes()).collect(),
                Precision::Bfloat16 => numbers.iter().flat_map(|x| round(*x).to_ne_bytes()).collect(),
            };
            // SAFETY: the span is this parameter's own
            unsafe { device.write(base.plus(self.flat.moment_bytes(span.at)), &bytes)? };
        }
        Ok(())
    }

    /// A parameter as it would be saved: its master where it is trained, else what is read of it.
    ///
    /// # Errors
    /// The device's.
    pub fn read(&self, device: &dyn Driver, name: &str) -> Result<Vec<f32>> {
        let part = self.layout.part(name);
        let floats = |at, n| floats(device, at, n);
        match (part.trained, part.value, part.kind) {
            (Some(span), ..) => floats(self.flat.master.plus(4 * span.at), span.len),
            (None, Some(span), Kind::Vector(_)) => floats(self.vectors.plus(4 * span.at), span.len),
            (None, Some(span), Kind::Matrix(..)) => {
                let at = part.base.map_or(self.matrices.plus(2 * span.at), |span| self.bases.plus(2 * span.at));
                halves(device, at, span.len)
            }
            (None, None, _) => panic!("BUG: `{name}` has no place"),
        }
    }
}

/// Numbers as a device holds them.
fn bytes_of<const N: usize>(numbers: &[f32], bytes: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut out = vec![0; N * numbers.len()];
    let (cells, _) = out.as_chunks_mut::<N>();
    cells.par_iter_mut().zip(numbers).with_min_len(1 << 16).for_each(|(cell, x)| *cell = bytes(*x));
    out
}

/// Writes bytes and doubles them until so many are full; the last copy of them may be cut.
///
/// # Errors
/// The device's.
///
/// # Safety
/// There is room for `bytes`.
pub(super) unsafe fn fill(device: &dyn Driver, at: Address, from: &[u8], bytes: usize) -> Result<()> {
    assert!(!from.is_empty(), "BUG: nothing to fill memory with");
    let mut done = from.len().min(bytes);
    // SAFETY: the caller's promise
    unsafe { device.write(at, &from[..done])? };
    while done < bytes {
        let more = done.min(bytes - done);
        // SAFETY: as above; what is copied ends where its copy begins
        unsafe { device.copy(at.plus(done), at, more)? };
        done += more;
    }
    Ok(())
}

/// Numbers of the device's memory, which must be there.
fn floats(device: &dyn Driver, at: Address, n: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; 4 * n];
    // SAFETY: the caller's spans are within the buffers
    unsafe { device.read(at, &mut bytes)? };
    Ok(bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// As [`floats`], of bf16.
fn halves(device: &dyn Driver, at: Address, n: usize) -> Result<Vec<f32>> {
    let mut bytes = vec![0; 2 * n];
    // SAFETY: as above
    unsafe { device.read(at, &mut bytes)? };
    let half = |b: &[u8]| f32::from_bits(u32::from(u16::from_ne_bytes([b[0], b[1]])) << 16);
    Ok(bytes.chunks_exact(2).map(half).collect())
}

/// The nearest bf16, ties to even.
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_to_the_nearest_half() {
        for (x, want) in [(1.0, 0x3f80), (-2.0, 0xc000), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82)] {
            assert_eq!(round(x), want, "{x}");
        }
        assert_eq!(round(f32::NAN), 0x7fff);
        assert_eq!(round(f32::INFINITY), 0x7f80);
        assert_eq!(round(f32::MAX), 0x7f80, "beyond the largest");
    }
}
