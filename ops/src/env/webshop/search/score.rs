//! BM25 as Lucene 8.3 computes it, with Anserini's constants.
//!
//! Invariants: single and double precision, and the order of operations, are Lucene's, so equal collections give equal
//! bits. Robertson et al., "Okapi at TREC-3", 1994, without the factor (k1 + 1), which changes no order.

/// How fast repeats of a word saturate.
const K1: f32 = 0.9;
/// How much long texts are held back.
const B: f32 = 0.4;
/// Counts whose scores are in the table.
const COUNTS: usize = 16;
/// Lengths that keep their value in a byte before the float begins.
const EXACT: u32 = 24;

/// A text's length in one byte: exact up to 40, then a float of four bits.
pub fn encode_length(length: u32) -> u8 {
    if length < EXACT {
        return length as u8;
    }
    let rest = length.min(i32::MAX as u32) - EXACT;
    let bits = 32 - rest.leading_zeros();
    if bits < 4 {
        return (EXACT + rest) as u8;
    }
    let shift = bits - 4;
    // the highest bit is left out, as every number but the smallest has it
    (EXACT + ((rest >> shift) & 7 | (shift + 1) << 3)) as u8
}

/// The length that a byte stands for: the shortest of those it was made of.
pub fn decode_length(byte: u8) -> u64 {
    let byte = u64::from(byte);
    let Some(rest) = byte.checked_sub(u64::from(EXACT)) else { return byte };
    u64::from(EXACT) + if rest < 8 { rest } else { (rest & 7 | 8) << ((rest >> 3) - 1) }
}

/// How telling a word is that `frequency` of `texts` texts have.
pub fn idf(texts: u64, frequency: u64) -> f32 {
    (1.0 + (texts as f64 - frequency as f64 + 0.5) / (frequency as f64 + 0.5)).ln() as f32
}

/// What counts and lengths are worth in one collection.
#[derive(Clone, Debug)]
pub struct Worth {
    /// Of each byte of a length.
    norms: [f32; 256],
    /// (count, byte): of small counts.
    table: Vec<f32>,
}

impl Worth {
    /// `texts` counts those that have a word, `words` all of their words.
    pub fn new(texts: u64, words: u64) -> Worth {
        let average = if texts == 0 { 1.0 } else { (words as f64 / texts as f64) as f32 };
        let mut norms = [0.0; 256];
        for (byte, norm) in (0..=u8::MAX).zip(&mut norms) {
            *norm = K1 * ((1.0 - B) + B * decode_length(byte) as f32 / average);
        }
        let table = (0..COUNTS as u32).flat_map(|count| norms.map(|norm| saturate(count, norm))).collect();
        Worth { norms, table }
    }

    /// Between 0 and 1; more for a higher count and for a shorter text.
    pub fn of(&self, count: u32, length: u8) -> f32 {
        match self.table.get((count as usize) << 8 | usize::from(length)) {
            Some(worth) => *worth,
            None => saturate(count, self.norms[usize::from(length)]),
        }
    }
}

fn saturate(count: u32, norm: f32) -> f32 {
    let count = count as f32;
    (f64::from(count) / (f64::from(count) + f64::from(norm))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_kept_as_lucene_keeps_them() {
        for length in 0..=40 {
            assert_eq!(decode_length(encode_length(length)), u64::from(length));
        }
        // known values of `SmallFloat.intToByte4`
        for (length, byte, back) in [
            (41, 40, 40),
            (42, 41, 42),
            (56, 48, 56),
            (57, 48, 56),
            (100, 57, 96),
            (1000, 87, 984),
            (u32::MAX >> 1, 255, 2_013_265_944),
        ] {
            assert_eq!((encode_length(length), decode_length(encode_length(length))), (byte, back), "{length}");
        }
        let mut last = 0;
        for length in (0..100_000).chain((0..2000).map(|i| 100_000 + i * 1_000_000)) {
            let (byte, back) = (encode_length(length), decode_length(encode_length(length)));
            assert!(byte >= last, "{length} has a smaller byte than a shorter text");
            assert!(
                back <= u64::from(length) && (u64::from(length) - back) * 8 <= u64::from(length),
                "{length}: {back}"
            );
            last = byte;
        }
        for byte in 0..=u8::MAX {
            assert_eq!(encode_length(decode_length(byte) as u32), byte);
        }
    }

    #[test]
    fn more_repeats_are_worth_more_and_longer_texts_less() {
        let worth = Worth::new(100, 5000);
        for length in 0..255 {
            for count in 1..40 {
                assert!(worth.of(count + 1, length) > worth.of(count, length));
                assert!(worth.of(count, length + 1) <= worth.of(count, length));
                assert_eq!(worth.of(count, length), saturate(count, worth.norms[usize::from(length)]));
            }
        }
        assert!((idf(60, 1) - (1.0f64 + 59.5 / 1.5).ln() as f32).abs() < 1e-6);
        assert!(idf(10, 10) > 0.0);
    }
}
