//! A walk over Thrift's compact protocol that keeps nothing: what a Parquet reader is about to be given is checked first.
//!
//! Invariants: every length that is declared is there in bytes; depth is bounded; the walk is linear in the bytes.

/// Deepest nesting of structs and lists.
const DEPTH: usize = 24;

/// Bytes being walked over.
pub struct Walk<'a> {
    bytes: &'a [u8],
    pub at: usize,
}

/// Integers of a struct's own fields, by field number.
pub type Fields = Vec<(i16, i64)>;

impl<'a> Walk<'a> {
    pub fn new(bytes: &'a [u8]) -> Walk<'a> {
        Walk { bytes, at: 0 }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, n: u64) -> Option<()> {
        let to = self.at.checked_add(usize::try_from(n).ok()?)?;
        self.at = to;
        (to <= self.bytes.len()).then_some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let n = self.varint()?;
        Some((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    /// Walks over a struct and says which integers it holds; `None` where it is malformed.
    pub fn fields(&mut self) -> Option<Fields> {
        self.walk_struct(0)
    }

    fn walk_struct(&mut self, depth: usize) -> Option<Fields> {
        if depth > DEPTH {
            return None;
        }
        let (mut fields, mut id) = (Vec::new(), 0i16);
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(fields);
            }
            id = match head >> 4 {
                0 => i16::try_from(self.zigzag()?).ok()?,
                delta => id.checked_add(i16::from(delta))?,
            };
            match head & 0x0F {
                // a boolean is in the field's head
                1 | 2 => {}
                4..=6 => {
                    let value = self.zigzag()?;
                    // only the outermost struct's are asked for
                    if depth == 0 {
                        fields.push((id, value));
                    }
                }
                kind => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            // in a list, booleans are bytes
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => {
                if depth > DEPTH {
                    return None;
                }
                let head = self.byte()?;
                let size = match head >> 4 {
                    15 => self.varint()?,
                    size => u64::from(size),
                };
                // each element takes a byte at least
                if size > (self.bytes.len() - self.at.min(self.bytes.len())) as u64 {
                    return None;
                }
                for _ in 0..size {
                    self.value(head & 0x0F, depth + 1)?;
                }
                Some(())
            }
            12 => self.walk_struct(depth + 1).map(|_| ()),
            // Parquet has no maps and no other kinds
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_struct_tells_its_integers_and_where_it_ends() {
        // field 1: i32 3; field 2: i32 -1; field 5: a struct with field 1: i32 7; stop
        let bytes = [0x15, 0x06, 0x15, 0x01, 0x3C, 0x15, 0x0E, 0x00, 0x00, 0xFF];
        let mut walk = Walk::new(&bytes);
        assert_eq!(walk.fields(), Some(vec![(1, 3), (2, -1)]));
        assert_eq!(walk.at, 9);
    }

    #[test]
    fn a_list_that_declares_more_than_there_is_and_deep_nesting_are_refused() {
        // field 1: a list of 2^34 structs
        assert_eq!(Walk::new(&[0x19, 0xFC, 0x80, 0x80, 0x80, 0x80, 0x40, 0x00, 0x00]).fields(), None);
        assert_eq!(Walk::new(&[0x1C; 100_000]).fields(), None);
        // lists of lists
        assert_eq!(Walk::new(&[[0x19].as_slice(), &[0x19; 100_000]].concat()).fields(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_over_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut walk = Walk::new(&bytes);
            if walk.fields().is_some() {
                prop_assert!(walk.at <= bytes.len());
            }
        }
    }
}
