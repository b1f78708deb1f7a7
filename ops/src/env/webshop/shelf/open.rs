//! Opens a catalogue's folder and answers from it.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::format::{self, ASIN_ROW, Header, Map, PRODUCT_ROW, TERM_ROW, row, slice, u32_at, u64_at};
use crate::env::EnvError;
use crate::env::webshop::Store;
use crate::env::webshop::goals::Goal;
use crate::env::webshop::product::Product;
use crate::env::webshop::search::analyze::words;
use crate::env::webshop::search::postings::{Cursor, ENTRY, damaged};
use crate::env::webshop::search::query::{self, Term};
use crate::env::webshop::search::score::{Worth, idf};

/// Different words of a query that count, as in Lucene, where more of them are an error.
const MOST_WORDS: usize = 1024;

/// An opened catalogue.
pub struct Shelf {
    folder: Utf8PathBuf,
    header: Header,
    products: Map,
    products_index: Map,
    asins: Map,
    asins_index: Map,
    lengths: Map,
    terms: Map,
    terms_index: Map,
    blocks: Map,
    postings: Map,
    worth: Worth,
}

/// Opens the catalogue in a folder.
///
/// # Errors
/// Names what is missing, of another version, cut off or changed.
pub fn open(folder: &Utf8Path) -> Result<Box<dyn Store>, EnvError> {
    Ok(Box::new(Shelf::open(folder)?))
}

impl Shelf {
    /// As [`open`].
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(folder: &Utf8Path) -> Result<Shelf, EnvError> {
        let header = Header::read(folder)?;
        let checked = |name: &str| Map::checked(folder, &header, name);
        let shelf = Shelf {
            folder: folder.to_owned(),
            products: Map::open(folder, &header, format::PRODUCTS)?,
            products_index: checked(format::PRODUCTS_INDEX)?,
            asins: checked(format::ASINS)?,
            asins_index: checked(format::ASINS_INDEX)?,
            lengths: checked(format::LENGTHS)?,
            terms: checked(format::TERMS)?,
            terms_index: checked(format::TERMS_INDEX)?,
            blocks: checked(format::BLOCKS)?,
            postings: Map::open(folder, &header, format::POSTINGS)?,
            worth: Worth::new(header.texts, header.words),
            header,
        };
        let (products, terms) = (shelf.header.products, shelf.header.terms);
        let tables = [
            (format::PRODUCTS_INDEX, &shelf.products_index, products, PRODUCT_ROW),
            (format::ASINS_INDEX, &shelf.asins_index, products, ASIN_ROW),
            (format::LENGTHS, &shelf.lengths, products, 1),
            (format::TERMS_INDEX, &shelf.terms_index, terms, TERM_ROW),
        ];
        for (name, table, rows, width) in tables {
            if rows.checked_mul(width as u64) != Some(table.len() as u64) {
                let path = folder.join(name);
                return Err(EnvError::unusable(format!("`{path}` has {} bytes, expected {rows} rows", table.len())));
            }
        }
        let header = &shelf.header;
        if products >= u64::from(u32::MAX) || header.texts > products || header.words < header.texts {
            return Err(shelf.wrong(format::HEADER, "counts more than there can be"));
        }
        Ok(shelf)
    }

    fn wrong(&self, name: &str, found: &str) -> EnvError {
        EnvError::with_help(
            format!("`{}` {found}", self.folder.join(name)),
            "`actloom cache verify --repair` removes what is damaged; the next run makes it again",
        )
    }

    /// Different words that are indexed.
    pub fn terms(&self) -> usize {
        self.terms_index.len() / TERM_ROW
    }

    /// The asin with this number in the order of all, and the product that has it.
    fn asin(&self, rank: usize) -> Option<(&[u8], u32)> {
        let begin = match rank.checked_sub(1) {
            Some(before) => u32_at(row::<ASIN_ROW>(&self.asins_index, before)?, 4),
            None => 0,
        };
        let row = row::<ASIN_ROW>(&self.asins_index, rank)?;
        Some((self.asins.get(begin as usize..u32_at(row, 4) as usize)?, u32_at(row, 0)))
    }

    /// The row of a word.
    fn term(&self, word: &[u8]) -> Result<Option<&[u8; TERM_ROW]>, EnvError> {
        let (mut low, mut high) = (0, self.terms());
        while low < high {
            let middle = low + (high - low) / 2;
            let row = row::<TERM_ROW>(&self.terms_index, middle).ok_or_else(damaged)?;
            let text = slice(&self.terms, u64_at(row, 0), u64::from(u32_at(row, 16))).ok_or_else(damaged)?;
            match text.cmp(word) {
                std::cmp::Ordering::Equal => return Ok(Some(row)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// The best products for some words, with their scores: highest first, of equal ones by asin.
    ///
    /// # Errors
    /// An index that contradicts itself.
    pub fn scored(&self, text: &str, hits: usize) -> Result<Vec<(usize, f32)>, EnvError> {
        let mut counts: Vec<(String, u32)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for word in words(text) {
            match places.get(&word) {
                Some(place) => counts[*place].1 += 1,
                None if counts.len() < MOST_WORDS => {
                    places.insert(word.clone(), counts.len());
                    counts.push((word, 1));
                }
                None => {}
            }
        }
        let mut terms = Vec::with_capacity(counts.len());
        for (word, count) in counts {
            let Some(row) = self.term(word.as_bytes())? else { continue };
            let frequency = u64::from(u32_at(row, 20));
            if frequency == 0 || frequency > self.header.texts {
                return Err(damaged());
            }
            let blocks = (u32_at(row, 24) as usize).checked_mul(ENTRY).ok_or_else(damaged)?;
            let cursor = Cursor::new(
                frequency as usize,
                self.header.products as u32,
                slice_from(&self.postings, u64_at(row, 8)).ok_or_else(damaged)?,
                self.blocks.get(blocks..).ok_or_else(damaged)?,
            );
            let weight = count as f32 * idf(self.header.texts, frequency);
            terms.push(Term::new(cursor.ok_or_else(damaged)?, weight));
        }
        let found = query::best(terms, &self.lengths, &self.worth, hits)?;
        let product = |(rank, score): (u32, f32)| {
            let row = row::<ASIN_ROW>(&self.asins_index, rank as usize).ok_or_else(damaged)?;
            let product = u32_at(row, 0) as usize;
            if product >= self.len() {
                return Err(damaged());
            }
            Ok((product, score))
        };
        found.into_iter().map(product).collect()
    }
}

fn slice_from(bytes: &[u8], begin: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(begin).ok()?..)
}

impl Store for Shelf {
    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn product(&self, index: usize) -> Result<Product, EnvError> {
        let row = row::<PRODUCT_ROW>(&self.products_index, index).ok_or_else(|| {
            EnvError::unusable(format!("the catalogue has {} products, there is no product {index}", self.len()))
        })?;
        let line = slice(&self.products, u64_at(row, 0), u64::from(u32_at(row, 8)))
            .ok_or_else(|| self.wrong(format::PRODUCTS, &format!("ends before product {index}")))?;
        if format::crc(line) != u32_at(row, 12) {
            return Err(self.wrong(format::PRODUCTS, &format!("was changed: product {index} has another checksum")));
        }
        serde_json::from_slice(line)
            .map_err(|why| self.wrong(format::PRODUCTS, &format!("has a product {index} that cannot be read: {why}")))
    }

    fn find(&self, asin: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, product) = self.asin(middle)?;
            match found.cmp(asin.as_bytes()) {
                std::cmp::Ordering::Equal => return Some(product as usize).filter(|product| *product < self.len()),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn search(&self, words: &str, hits: usize) -> Result<Vec<usize>, EnvError> {
        Ok(self.scored(words, hits)?.into_iter().map(|(product, _)| product).collect())
    }

    fn goals(&self) -> Result<Vec<Goal>, EnvError> {
        let map = Map::checked(&self.folder, &self.header, format::GOALS)?;
        let goals = serde_json::Deserializer::from_slice(&map).into_iter::<Goal>();
        let goals = goals
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| self.wrong(format::GOALS, &format!("cannot be read: {why}")))?;
        if goals.len() as u64 != self.header.goals {
            let found = format!("has {} goals, expected {}", goals.len(), self.header.goals);
            return Err(self.wrong(format::GOALS, &found));
        }
        Ok(goals)
    }
}
