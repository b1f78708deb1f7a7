//! Makes a catalogue's folder.
//!
//! 1. [`Builder::add`]: each product is written down, and its text goes to the indexing threads.
//! 2. [`Builder::finish`]: asins are sorted, which numbers the products for the index: products of equal score come in
//!    the order of their asins, as Anserini's do. Runs are merged into the index.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};

use camino::{Utf8Path, Utf8PathBuf};
use flate2::Crc;
use serde::Serialize;

use super::format::{self, Header, Part, VERSION};
use crate::env::EnvError;
use crate::env::webshop::goals::{GoalSource, Goals};
use crate::env::webshop::product::{self, Files, Product};
use crate::env::webshop::search::postings;
use crate::env::webshop::search::runs::Runs;
use crate::env::webshop::search::score::{Worth, encode_length};

/// A file of the folder being written.
struct Out {
    name: &'static str,
    file: BufWriter<fs_err::File>,
    bytes: u64,
    crc: Crc,
}

impl Out {
    fn new(folder: &Utf8Path, name: &'static str) -> Result<Out, EnvError> {
        let file = BufWriter::with_capacity(1 << 18, fs_err::File::create(folder.join(name))?);
        Ok(Out { name, file, bytes: 0, crc: Crc::new() })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), EnvError> {
        self.file.write_all(bytes)?;
        self.crc.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Ends the file; `checked` where opening compares its checksum.
    fn end(self, parts: &mut BTreeMap<String, Part>, checked: bool) -> Result<(), EnvError> {
        self.file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        let part = Part { bytes: self.bytes, crc32: checked.then(|| self.crc.sum()) };
        parts.insert(self.name.to_owned(), part);
        Ok(())
    }
}

/// A catalogue on its way to the disk.
pub struct Builder {
    folder: Utf8PathBuf,
    products: Out,
    index: Out,
    asins: Vec<Box<str>>,
    runs: Runs,
    line: Vec<u8>,
}

/// What was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Built {
    pub products: u64,
    pub goals: u64,
    /// Words of all products, with repeats.
    pub words: u64,
    /// Different words.
    pub terms: u64,
}

impl Builder {
    /// Begins a catalogue in `folder`, which is there. Sorted runs are kept in `scratch` until they are merged.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(folder: &Utf8Path, scratch: &Utf8Path, threads: usize) -> Result<Builder, EnvError> {
        Ok(Builder {
            folder: folder.to_owned(),
            products: Out::new(folder, format::PRODUCTS)?,
            index: Out::new(folder, format::PRODUCTS_INDEX)?,
            asins: Vec::new(),
            runs: Runs::new(scratch, threads)?,
            line: Vec::new(),
        })
    }

    /// How many products there are so far.
    pub fn len(&self) -> usize {
        self.asins.len()
    }

    /// Whether there are none yet.
    pub fn is_empty(&self) -> bool {
        self.asins.is_empty()
    }

    /// Adds the next product.
    ///
    /// # Errors
    /// The file system's; a product of more than 4 GiB.
    pub fn add(&mut self, product: &Product) -> Result<(), EnvError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, product).map_err(std::io::Error::from)?;
        let length = u32::try_from(self.line.len())
            .map_err(|_| EnvError::unusable(format!("the product `{}` has more than 4 GiB", product.asin)))?;
        self.index.put(&self.products.bytes.to_le_bytes())?;
        self.index.put(&length.to_le_bytes())?;
        self.index.put(&format::crc(&self.line).to_le_bytes())?;
        self.line.push(b'\n');
        self.products.put(&self.line)?;
        self.asins.push(product.asin.as_str().into());
        self.runs.add(product.contents())
    }

    /// Writes the rest. `going` is asked now and then, and a `false` ends the work.
    ///
    /// # Errors
    /// The file system's; an asin that is there twice; [`std::io::ErrorKind::Interrupted`] when `going` says so.
    pub fn finish<G: Serialize>(self, goals: &[G], mut going: impl FnMut(u64) -> bool) -> Result<Built, EnvError> {
        let Builder { folder, products, index, asins, runs, .. } = self;
        let mut parts = BTreeMap::new();
        products.end(&mut parts, false)?;
        index.end(&mut parts, true)?;
        let mut out = Out::new(&folder, format::GOALS)?;
        for goal in goals {
            let mut line = serde_json::to_vec(goal).map_err(std::io::Error::from)?;
            line.push(b'\n');
            out.put(&line)?;
        }
        out.end(&mut parts, true)?;

        let sorted = runs.finish()?;
        let order = write_asins(&folder, &asins, &mut parts)?;
        drop(asins);
        // product -> number in the index
        let mut ranks = vec![0u32; order.len()];
        for (rank, product) in (0..).zip(&order) {
            ranks[*product as usize] = rank;
        }
        let lengths: Vec<u8> = order.iter().map(|product| encode_length(sorted.lengths[*product as usize])).collect();
        let texts = sorted.lengths.iter().filter(|length| **length > 0).count() as u64;
        let words = sorted.lengths.iter().map(|length| u64::from(*length)).sum();
        let mut out = Out::new(&folder, format::LENGTHS)?;
        out.put(&lengths)?;
        out.end(&mut parts, true)?;

        let worth = Worth::new(texts, words);
        let mut table = Out::new(&folder, format::TERMS_INDEX)?;
        let mut text = Out::new(&folder, format::TERMS)?;
        let mut blocks = Out::new(&folder, format::BLOCKS)?;
        let mut all = Out::new(&folder, format::POSTINGS)?;
        let mut terms = 0u64;
        let (mut bytes, mut entries) = (Vec::new(), Vec::new());
        sorted.merge(|word, list| {
            if terms.is_multiple_of(4096) && !going(terms) {
                return Err(EnvError::Io(std::io::ErrorKind::Interrupted.into()));
            }
            for (product, _) in list.iter_mut() {
                *product = ranks[*product as usize];
            }
            list.sort_unstable();
            bytes.clear();
            entries.clear();
            let best = postings::write(list, &lengths, &worth, &mut bytes, &mut entries);
            let block = u32::try_from(blocks.bytes / postings::ENTRY as u64)
                .map_err(|_| EnvError::unusable("the index has more than 2^32 blocks"))?;
            table.put(&text.bytes.to_le_bytes())?;
            table.put(&all.bytes.to_le_bytes())?;
            table.put(&(word.len() as u32).to_le_bytes())?;
            table.put(&(list.len() as u32).to_le_bytes())?;
            table.put(&block.to_le_bytes())?;
            table.put(&best.to_le_bytes())?;
            text.put(word)?;
            blocks.put(&entries)?;
            all.put(&bytes)?;
            terms += 1;
            Ok(())
        })?;
        table.end(&mut parts, true)?;
        text.end(&mut parts, true)?;
        blocks.end(&mut parts, true)?;
        all.end(&mut parts, false)?;
        let built = Built { products: order.len() as u64, goals: goals.len() as u64, words, terms };
        let Built { products, goals, .. } = built;
        Header { v: VERSION, products, goals, texts, words, terms, parts }.write(&folder)?;
        Ok(built)
    }
}

/// Makes a catalogue of the original's files in `folder`, which is there. `going` hears how many products are in, then how
/// many words; a `false` ends the work.
///
/// # Errors
/// Files that cannot be read, or hold something else; the file system's; [`std::io::ErrorKind::Interrupted`] when
/// `going` says so.
pub fn stock(
    files: &Files,
    source: GoalSource,
    folder: &Utf8Path,
    scratch: &Utf8Path,
    threads: usize,
    mut going: impl FnMut(Doing, u64) -> bool,
) -> Result<Built, EnvError> {
    let mut builder = Builder::new(folder, scratch, threads)?;
    let mut goals = Goals::new(source, files.prices);
    product::read(files, &mut |product| {
        if builder.len().is_multiple_of(1024) && !going(Doing::Products, builder.len() as u64) {
            return Err(EnvError::Io(std::io::ErrorKind::Interrupted.into()));
        }
        goals.push(&product)?;
        builder.add(&product)
    })?;
    builder.finish(&goals.finish(), |words| going(Doing::Words, words))
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Products,
    Words,
}

/// Writes the asins in order; gives the products in that order.
fn write_asins(
    folder: &Utf8Path,
    asins: &[Box<str>],
    parts: &mut BTreeMap<String, Part>,
) -> Result<Vec<u32>, EnvError> {
    let mut order: Vec<u32> = (0..asins.len() as u32).collect();
    order.sort_unstable_by_key(|product| &asins[*product as usize]);
    let mut table = Out::new(folder, format::ASINS_INDEX)?;
    let mut text = Out::new(folder, format::ASINS)?;
    let mut last: Option<&str> = None;
    for product in &order {
        let asin = &*asins[*product as usize];
        if last == Some(asin) {
            return Err(EnvError::unusable(format!("the asin `{asin}` is there twice, expected one product of each")));
        }
        last = Some(asin);
        text.put(asin.as_bytes())?;
        let end = u32::try_from(text.bytes).map_err(|_| EnvError::unusable("the asins have more than 4 GiB"))?;
        table.put(&product.to_le_bytes())?;
        table.put(&end.to_le_bytes())?;
    }
    table.end(parts, true)?;
    text.end(parts, true)?;
    Ok(order)
}
