//! One reservation for everything: what lives for a pass grows from its beginning, what lives for a layer from its end.
//!
//! Invariants: addresses are multiples of [`ALIGN`]; a request that does not fit changes nothing and says what is missing; the
//! same sequence of requests gives the same addresses.

use candle_core::{Result, bail};

use super::driver::Address;

/// Bytes to which every place is aligned: as wide as any load, and what matrix products like best.
pub const ALIGN: usize = 256;

/// How full the arena was, to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(usize);

/// A reservation that is used from both ends.
#[derive(Debug)]
pub struct Arena {
    base: Address,
    capacity: usize,
    /// Bytes in use at the beginning and at the end.
    low: usize,
    high: usize,
    /// Most bytes that were ever in use.
    peak: usize,
}

impl Arena {
    /// Of `capacity` bytes from `base`, which is aligned.
    pub fn new(base: Address, capacity: usize) -> Arena {
        Arena { base, capacity: capacity / ALIGN * ALIGN, low: 0, high: 0, peak: 0 }
    }

    /// Without an end and without memory: for finding out how much is needed.
    pub fn dry() -> Arena {
        Arena::new(Address(1 << 40), 1 << 62)
    }

    fn take(&mut self, bytes: usize) -> Result<usize> {
        let bytes = bytes.next_multiple_of(ALIGN);
        let used = self.low + self.high + bytes;
        if used > self.capacity {
            let missing = used - self.capacity;
            bail!(
                "{bytes} bytes do not fit into what was reserved on the device: {missing} of {} too many",
                self.capacity
            );
        }
        self.peak = self.peak.max(used);
        Ok(bytes)
    }

    /// Memory that lives until [`Arena::reset`] to an earlier mark.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn keep(&mut self, bytes: usize) -> Result<Address> {
        let bytes = self.take(bytes)?;
        self.low += bytes;
        Ok(self.base.plus(self.low - bytes))
    }

    /// Memory that lives until [`Arena::forget`] to an earlier mark.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn lend(&mut self, bytes: usize) -> Result<Address> {
        self.high += self.take(bytes)?;
        Ok(self.base.plus(self.capacity - self.high))
    }

    /// How much is kept.
    pub fn kept(&self) -> Mark {
        Mark(self.low)
    }

    /// Gives back what was kept since the mark.
    pub fn reset(&mut self, mark: Mark) {
        assert!(mark.0 <= self.low, "BUG: memory was given back twice");
        self.low = mark.0;
    }

    /// Leaves alone what is below the mark, which lies above all that is kept.
    pub fn raise(&mut self, mark: Mark) {
        assert!(mark.0 >= self.low, "BUG: memory in use was taken for free");
        self.low = mark.0;
        self.peak = self.peak.max(self.low + self.high);
    }

    /// How much is lent.
    pub fn lent(&self) -> Mark {
        Mark(self.high)
    }

    /// Gives back what was lent since the mark.
    pub fn forget(&mut self, mark: Mark) {
        assert!(mark.0 <= self.high, "BUG: memory was given back twice");
        self.high = mark.0;
    }

    /// Most bytes that were ever in use.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// All bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that are not in use.
    pub fn left(&self) -> usize {
        self.capacity - self.low - self.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_grow_towards_each_other_and_never_meet() {
        let mut arena = Arena::new(Address(4096), 4 * ALIGN + 100);
        let (a, b) = (arena.keep(1).unwrap(), arena.lend(ALIGN + 1).unwrap());
        assert_eq!((a, b), (Address(4096), Address(4096 + 2 * ALIGN as u64)));
        let kept = arena.kept();
        assert_eq!(arena.keep(ALIGN).unwrap(), Address(4096 + ALIGN as u64));
        let error = arena.lend(1).unwrap_err().to_string();
        assert!(error.contains("256 of 1024 too many"), "{error}");
        arena.reset(kept);
        arena.lend(ALIGN).unwrap();
        assert_eq!((arena.left(), arena.peak()), (0, 4 * ALIGN));
        arena.forget(Mark(0));
        assert_eq!(arena.left(), 3 * ALIGN);
    }

    #[test]
    #[should_panic(expected = "given back twice")]
    fn what_is_not_in_use_cannot_be_given_back() {
        let mut arena = Arena::dry();
        let empty = arena.kept();
        arena.keep(1).unwrap();
        let full = arena.kept();
        arena.reset(empty);
        arena.reset(full);
    }
}
