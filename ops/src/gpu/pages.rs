//! Keys and values of sequences in pages, which sequences with a common beginning share.
//!
//! Invariants: a page is written by one sequence alone, and only behind what others that hold it have seen; a page goes back to the
//! pool when the last sequence that holds it lets go.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Result, bail};

/// Tokens of a page.
pub const PAGE: usize = 64;

/// Pages that nobody holds.
#[derive(Debug)]
pub struct Pool {
    free: Mutex<Vec<u32>>,
    all: usize,
}

impl Pool {
    /// Of so many pages.
    pub fn new(all: usize) -> Arc<Pool> {
        // the lowest first
        Arc::new(Pool { free: Mutex::new((0..all as u32).rev().collect()), all })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.lock().len()
    }

    /// Pages that somebody holds.
    pub fn held(&self) -> usize {
        self.all - self.lock().len()
    }

    fn take(self: &Arc<Self>) -> Result<Arc<Page>> {
        match self.lock().pop() {
            Some(id) => Ok(Arc::new(Page { id, pool: self.clone() })),
            None => bail!("all {} pages of keys and values are in use: sample fewer sequences at once", self.all),
        }
    }
}

/// A page that is held.
#[derive(Debug)]
struct Page {
    id: u32,
    pool: Arc<Pool>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.lock().push(self.id);
    }
}

/// The pages of one sequence.
#[derive(Clone, Debug)]
pub struct Held {
    pool: Arc<Pool>,
    pages: Vec<Arc<Page>>,
    len: usize,
}

/// A page that is to be copied before it is written: from, to.
pub type Copied = (u32, u32);

impl Held {
    pub fn new(pool: &Arc<Pool>) -> Held {
        Held { pool: pool.clone(), pages: Vec::new(), len: 0 }
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Pages that are left.
    pub fn free(&self) -> usize {
        self.pool.free()
    }

    /// Pages in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().map(|page| page.id)
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// The last page is not full, and others hold it.
    fn shares(&self) -> bool {
        !self.len.is_multiple_of(PAGE) && self.pages.last().is_some_and(|page| Arc::strong_count(page) > 1)
    }

    /// Pages that [`Held::grow`] takes from the pool.
    pub fn needs(&self, new: usize) -> usize {
        (self.len + new).div_ceil(PAGE) - self.pages.len() + usize::from(new > 0 && self.shares())
    }

    /// Room for `new` tokens more. A last page that is not full and that others hold too is replaced by one that its tokens
    /// are to be copied to.
    ///
    /// # Errors
    /// When no page is left; nothing was changed then.
    pub fn grow(&mut self, new: usize) -> Result<Option<Copied>> {
        let mut fresh = Vec::new();
        for _ in 0..self.needs(new) {
            fresh.push(self.pool.take()?);
        }
        let mut copied = None;
        if new > 0
            && self.shares()
            && let (Some(old), Some(new)) = (self.pages.pop(), fresh.first())
        {
            copied = Some((old.id, new.id));
        }
        self.pages.extend(fresh);
        self.len += new;
        Ok(copied)
    }

    /// Where a token lies: page * 64 + place in it.
    pub fn slot(&self, token: usize) -> u32 {
        self.pages[token / PAGE].id * PAGE as u32 + (token % PAGE) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_share_pages_until_one_writes() {
        let pool = Pool::new(5);
        let mut a = Held::new(&pool);
        assert_eq!(a.grow(70).unwrap(), None);
        assert_eq!((a.ids().collect::<Vec<_>>(), a.slot(69)), (vec![0, 1], 69));
        let mut b = a.clone();
        assert_eq!(pool.held(), 2);
        assert_eq!(b.grow(1).unwrap(), Some((1, 2)), "the page that is not full is copied");
        assert_eq!((b.ids().collect::<Vec<_>>(), b.slot(70)), (vec![0, 2], 2 * 64 + 6));
        assert_eq!(a.grow(1).unwrap(), None, "nobody else holds it any more");
        a.grow(57).unwrap();
        assert_eq!((a.len(), a.ids().count()), (128, 2));
        let mut c = a.clone();
        assert_eq!(c.grow(1).unwrap(), None, "full pages are shared for ever");
        assert_eq!((c.ids().collect::<Vec<_>>(), pool.held()), (vec![0, 1, 3], 4));
        c.truncate(64);
        drop((a, b));
        assert_eq!(pool.held(), 1);
        let before = c.clone();
        assert!(c.grow(64 * 5).is_err(), "there are four more");
        assert_eq!((c.len(), pool.held()), (before.len(), 1), "and nothing was taken");
    }
}
