//! Search as the original's: Lucene's English words, BM25 with Lucene's lossy lengths, an inverted index on disk.
//!
//! 1. [`analyze`] and [`porter`]: a text becomes words.
//! 2. [`runs`]: products in chunks become sorted runs of (word, product, count), which are merged.
//! 3. [`postings`]: a word's products, in blocks with their best score.
//! 4. [`score`] and [`query`]: the best products for some words, exactly.
//!
//! Invariants: nothing here depends on how many threads there are; scores are computed in the order and the precision in
//! which Lucene 8.3 computes them.

pub mod analyze;
pub mod porter;
pub mod postings;
pub mod query;
pub mod runs;
pub mod score;
