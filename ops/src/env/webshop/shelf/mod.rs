//! A catalogue on disk: products, goals and the search index, opened by memory map.
//!
//! 1. [`Builder`]: products one by one, then the goals, become a folder.
//! 2. [`Shelf`]: opens the folder; reads products, finds them by asin, searches them.
//!
//! The folder: `catalogue.json` (counts, and the size and checksum of every other file), `products.jsonl` (one product a
//! line, in the order in which they were added) and `goals.jsonl`, which anybody may read, and tables of fixed width,
//! little endian, with what they point to:
//!
//! | file             | a row                                                                                      |
//! |------------------|--------------------------------------------------------------------------------------------|
//! | `products.index` | begin u64, length u32, crc32 u32 of a line                                                 |
//! | `asins.index`    | product u32, end u32 in `asins.text`; sorted by asin. A product's row here is its number in the index |
//! | `lengths`        | words of a product, as one byte                                                            |
//! | `terms.index`    | begin u64 in `terms.text`, begin u64 in `postings`, length u32, products u32, first block u32, best f32 |
//! | `blocks`         | last product u32, end u32, best f32                                                        |
//!
//! Invariants: equal products in equal order give equal bytes; opening reads tables once for their checksums and nothing
//! else; every number of a file is checked before it is used, so a file of any content gives an error, never a panic.

mod build;
mod format;
mod open;

pub use build::{Builder, Built, Doing, stock};
pub use format::VERSION;
pub use open::{Shelf, open};

pub use super::search::analyze::words;
