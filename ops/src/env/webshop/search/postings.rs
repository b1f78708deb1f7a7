//! A word's products on disk: blocks of up to 128, each with its last product, its end and the best worth in it.
//!
//! Invariants: products rise strictly; a block that does not end where its entry says, or that names a product that there
//! is not, is an error; nothing is allocated by what a file says.

use super::score::Worth;
use crate::env::EnvError;

/// Products in a block.
pub const BLOCK: usize = 128;
/// Bytes of a block's entry.
pub const ENTRY: usize = 12;

/// Appends a number in groups of seven bits.
pub fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front; `None` where it is cut off or too long.
pub fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    let mut number = u64::from(first & 0x7f);
    for shift in (7..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        // the tenth byte holds one bit
        if shift == 63 && byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Appends a word's blocks to `out` and their entries to `entries`; gives the best worth of all.
///
/// # Panics
/// When products do not rise.
pub fn write(products: &[(u32, u32)], lengths: &[u8], worth: &Worth, out: &mut Vec<u8>, entries: &mut Vec<u8>) -> f32 {
    let begin = out.len();
    let mut next = 0;
    let mut best_of_all = 0f32;
    for block in products.chunks(BLOCK) {
        let mut best = 0f32;
        for &(product, count) in block {
            assert!(product >= next, "BUG: products of a word do not rise");
            put(out, u64::from(product - next) << 1 | u64::from(count == 1));
            if count != 1 {
                put(out, u64::from(count));
            }
            best = best.max(worth.of(count, lengths[product as usize]));
            next = product + 1;
        }
        entries.extend_from_slice(&(next - 1).to_le_bytes());
        entries.extend_from_slice(&((out.len() - begin) as u32).to_le_bytes());
        entries.extend_from_slice(&best.to_le_bytes());
        best_of_all = best_of_all.max(best);
    }
    best_of_all
}

/// Whether a word is so common that its counts are also kept as a list of all products, for questions about one of them:
/// reading a block for each question would be reading the whole word.
pub fn is_common(frequency: usize, products: usize) -> bool {
    products >= 64 && frequency >= products / 16
}

/// Bytes of a list of counts.
pub fn counts_size(products: usize) -> usize {
    products.div_ceil(2)
}

/// Writes a common word's counts, four bits each; 15 is 15 or more.
pub fn write_counts(list: &[(u32, u32)], products: usize, out: &mut Vec<u8>) {
    out.clear();
    out.resize(counts_size(products), 0);
    for &(product, count) in list {
        out[product as usize / 2] |= (count.min(15) as u8) << (product % 2 * 4);
    }
}

/// One block's entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub last: u32,
    end: u32,
    pub best: f32,
}

fn entry(entries: &[u8], block: usize) -> Option<Entry> {
    let bytes: &[u8; ENTRY] = entries.get(block * ENTRY..)?.first_chunk()?;
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let best = f32::from_le_bytes(word(8));
    Some(Entry { last: u32::from_le_bytes(word(0)), end: u32::from_le_bytes(word(4)), best })
}

/// Reads a word's products in order, forwards only.
pub struct Cursor<'m> {
    /// `df` of them.
    frequency: usize,
    products: u32,
    /// From the word's first block on; may reach beyond its last.
    bytes: &'m [u8],
    entries: &'m [u8],
    /// Four bits a product, of a common word.
    common: Option<&'m [u8]>,
    block: usize,
    /// The block now, if it is read.
    read: bool,
    ids: [u32; BLOCK],
    counts: [u32; BLOCK],
    held: usize,
    at: usize,
}

impl<'m> Cursor<'m> {
    /// `products` is how many there are in all; `bytes` and `entries` begin at the word's first block.
    pub fn new(frequency: usize, products: u32, bytes: &'m [u8], entries: &'m [u8]) -> Option<Cursor<'m>> {
        let blocks = frequency.div_ceil(BLOCK);
        let entries = entries.get(..blocks.checked_mul(ENTRY)?)?;
        Some(Cursor {
            frequency,
            products,
            bytes,
            entries,
            common: None,
            block: 0,
            read: false,
            ids: [0; BLOCK],
            counts: [0; BLOCK],
            held: 0,
            at: 0,
        })
    }

    /// Answers questions about one product from a list of all counts.
    pub fn with_counts(self, counts: &'m [u8]) -> Option<Cursor<'m>> {
        (counts.len() == counts_size(self.products as usize)).then_some(Cursor { common: Some(counts), ..self })
    }

    fn blocks(&self) -> usize {
        self.entries.len() / ENTRY
    }

    fn entry(&self, block: usize) -> Result<Entry, EnvError> {
        entry(self.entries, block).ok_or_else(damaged)
    }

    /// The best worth of products from `from` on and before `to`, at least; `from` never falls. Leaves the cursor at the
    /// first block that reaches `from`.
    pub fn best(&mut self, from: u32, to: u32) -> Result<f32, EnvError> {
        self.skip_blocks(from)?;
        let mut best = 0f32;
        for block in self.block..self.blocks() {
            // a block begins after the last product of the one before
            if block > self.block && self.entry(block - 1)?.last.saturating_add(1) >= to {
                break;
            }
            best = best.max(self.entry(block)?.best);
        }
        Ok(best)
    }

    fn skip_blocks(&mut self, from: u32) -> Result<(), EnvError> {
        while self.block < self.blocks() && self.entry(self.block)?.last < from {
            self.block += 1;
            self.read = false;
        }
        Ok(())
    }

    /// Reads the block now.
    fn load(&mut self) -> Result<(), EnvError> {
        let (begin, mut next) = match self.block.checked_sub(1) {
            None => (0, 0),
            Some(before) => {
                let before = self.entry(before)?;
                (before.end as usize, u64::from(before.last) + 1)
            }
        };
        let entry = self.entry(self.block)?;
        let mut bytes = self.bytes.get(begin..entry.end as usize).ok_or_else(damaged)?;
        self.held = (self.frequency - self.block * BLOCK).min(BLOCK);
        for slot in 0..self.held {
            let number = take(&mut bytes).ok_or_else(damaged)?;
            let id = next.saturating_add(number >> 1);
            if id >= u64::from(self.products) {
                return Err(damaged());
            }
            self.ids[slot] = id as u32;
            self.counts[slot] = match number & 1 {
                1 => 1,
                _ => take(&mut bytes).and_then(|count| u32::try_from(count).ok()).ok_or_else(damaged)?,
            };
            next = id + 1;
        }
        if !bytes.is_empty() || self.ids[self.held - 1] != entry.last {
            return Err(damaged());
        }
        self.at = 0;
        self.read = true;
        Ok(())
    }

    /// Gives every (product, count) from `from` on and before `to`.
    pub fn each(&mut self, from: u32, to: u32, mut each: impl FnMut(u32, u32)) -> Result<(), EnvError> {
        self.skip_blocks(from)?;
        while self.block < self.blocks() {
            if !self.read {
                self.load()?;
            }
            while self.at < self.held && self.ids[self.at] < from {
                self.at += 1;
            }
            while self.at < self.held && self.ids[self.at] < to {
                each(self.ids[self.at], self.counts[self.at]);
                self.at += 1;
            }
            if self.at < self.held {
                return Ok(());
            }
            self.block += 1;
            self.read = false;
        }
        Ok(())
    }

    /// How often product `id` has the word; `id` never falls.
    pub fn count(&mut self, id: u32) -> Result<u32, EnvError> {
        if let Some(byte) = self.common.and_then(|counts| counts.get(id as usize / 2)) {
            let count = byte >> (id % 2 * 4) & 15;
            if count < 15 {
                return Ok(u32::from(count));
            }
        }
        self.skip_blocks(id)?;
        if self.block == self.blocks() {
            return Ok(0);
        }
        if !self.read {
            self.load()?;
        }
        // a block that reaches `id` has an entry that is not below it
        while self.at < self.held && self.ids[self.at] < id {
            self.at += 1;
        }
        Ok(if self.at < self.held && self.ids[self.at] == id { self.counts[self.at] } else { 0 })
    }
}

/// What is said of an index that contradicts itself.
pub fn damaged() -> EnvError {
    EnvError::with_help(
        "the search index of the catalogue contradicts itself",
        "`actloom cache verify --repair` removes what is damaged; the next run makes it again",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn products() -> impl Strategy<Value = Vec<(u32, u32)>> {
        prop::collection::btree_map(0u32..5000, 1u32..40, 1..700).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(products in products(), cuts in prop::collection::btree_set(0u32..5000, 0..20)) {
            let worth = Worth::new(5000, 100_000);
            let lengths: Vec<u8> = (0..5000u32).map(|id| (id % 200) as u8).collect();
            let (mut bytes, mut entries) = (Vec::new(), Vec::new());
            write(&products, &lengths, &worth, &mut bytes, &mut entries);
            let cursor = || Cursor::new(products.len(), 5000, &bytes, &entries).unwrap();
            let (mut all, mut reader, mut from) = (Vec::new(), cursor(), 0);
            for to in cuts.into_iter().chain([5000]) {
                let best = reader.best(from, to).unwrap();
                reader.each(from, to, |id, count| {
                    assert!(worth.of(count, lengths[id as usize]) <= best);
                    all.push((id, count));
                }).unwrap();
                from = to;
            }
            prop_assert_eq!(&all, &products);
            let mut counts = Vec::new();
            write_counts(&products, 5000, &mut counts);
            for mut reader in [cursor(), cursor().with_counts(&counts).unwrap()] {
                for id in (0..5000).step_by(3) {
                    let want = products.iter().find(|p| p.0 == id).map_or(0, |p| p.1);
                    prop_assert_eq!(reader.count(id).unwrap(), want);
                }
            }
        }

        #[test]
        fn bytes_of_any_kind_give_products_that_there_are_or_an_error(
            frequency in 1usize..400,
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            entries in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            if let Some(mut cursor) = Cursor::new(frequency, 300, &bytes, &entries) {
                let mut last = None;
                let _ = cursor.each(0, 300, |id, _| {
                    assert!(id < 300 && last < Some(id));
                    last = Some(id);
                });
            }
        }

        #[test]
        fn numbers_come_back(number in any::<u64>()) {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            prop_assert_eq!(take(&mut &bytes[..]), Some(number));
            bytes.pop();
            prop_assert_eq!(take(&mut &bytes[..]), None);
        }
    }
}
