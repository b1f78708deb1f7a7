//! What `catalogue.json` says, and how the other files are mapped and checked against it.

use std::collections::BTreeMap;
use std::ops::Deref;

use camino::Utf8Path;
use flate2::Crc;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::env::EnvError;

/// Version of the folder's layout.
pub const VERSION: u32 = 1;
/// The file that says what the others hold.
pub const HEADER: &str = "catalogue.json";
pub const PRODUCTS: &str = "products.jsonl";
pub const PRODUCTS_INDEX: &str = "products.index";
pub const ASINS: &str = "asins.text";
pub const ASINS_INDEX: &str = "asins.index";
pub const LENGTHS: &str = "lengths";
pub const TERMS: &str = "terms.text";
pub const TERMS_INDEX: &str = "terms.index";
pub const BLOCKS: &str = "blocks";
pub const POSTINGS: &str = "postings";
pub const GOALS: &str = "goals.jsonl";

/// Bytes of a row of `products.index`.
pub const PRODUCT_ROW: usize = 16;
/// Bytes of a row of `asins.index`.
pub const ASIN_ROW: usize = 8;
/// Bytes of a row of `terms.index`.
pub const TERM_ROW: usize = 32;

/// A header is small.
const LARGEST_HEADER: u64 = 1 << 16;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub bytes: u64,
    /// Left out where each row has its own, or where reading notices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crc32: Option<u32>,
}

/// The first line of `catalogue.json`. The second one is its checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub v: u32,
    pub products: u64,
    pub goals: u64,
    /// Products that have a word.
    pub texts: u64,
    /// Words of all products, with repeats.
    pub words: u64,
    /// Different ones.
    pub terms: u64,
    pub parts: BTreeMap<String, Part>,
}

/// CRC-32 of some bytes.
pub fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

impl Header {
    /// Writes the header into a catalogue's folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, folder: &Utf8Path) -> Result<(), EnvError> {
        let line = serde_json::to_string(self).map_err(std::io::Error::from)?;
        let text = format!("{line}\n{:08x}\n", crc(line.as_bytes()));
        let mut file = fs_err::File::create(folder.join(HEADER))?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        Ok(())
    }

    /// Reads the header of a catalogue's folder.
    ///
    /// # Errors
    /// Names what is missing, of another version or changed.
    pub fn read(folder: &Utf8Path) -> Result<Header, EnvError> {
        let path = folder.join(HEADER);
        let size = match fs_err::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                return Err(EnvError::with_help(
                    format!("`{folder}` has no `{HEADER}`, expected a catalogue"),
                    "the op `catalogue` makes one of WebShop's files",
                ));
            }
            Err(why) => return Err(why.into()),
        };
        if size > LARGEST_HEADER {
            return Err(EnvError::unusable(format!("`{path}` has {size} bytes, expected at most {LARGEST_HEADER}")));
        }
        let text = fs_err::read_to_string(&path)?;
        let wrong = |found: &str| EnvError::unusable(format!("`{path}` {found}, expected the header of a catalogue"));
        let (line, check) = text.split_once('\n').ok_or_else(|| wrong("has no second line"))?;
        let version = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|value| value.get("v")?.as_u64());
        match version {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) => {
                return Err(EnvError::with_help(
                    format!("`{path}` has version {v}, expected {VERSION}"),
                    "make the catalogue again with this program",
                ));
            }
            None => return Err(wrong("says no version")),
        }
        if check != format!("{:08x}\n", crc(line.as_bytes())) {
            return Err(wrong("does not have the checksum that it says"));
        }
        serde_json::from_str(line).map_err(|why| wrong(&format!("cannot be read: {why}")))
    }
}

/// A file in memory.
pub struct Map(Option<Mmap>);

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl Map {
    /// Maps a file of a catalogue.
    ///
    /// # Errors
    /// One that the header does not have, or that is not as the header says.
    pub fn open(folder: &Utf8Path, header: &Header, name: &str) -> Result<Map, EnvError> {
        let path = folder.join(name);
        let part = header
            .parts
            .get(name)
            .ok_or_else(|| EnvError::unusable(format!("`{}` does not name `{name}`", folder.join(HEADER))))?;
        let file = fs_err::File::open(&path)?;
        let size = file.metadata()?.len();
        if size != part.bytes {
            return Err(EnvError::unusable(format!("`{path}` has {size} bytes, expected {}", part.bytes)));
        }
        if size == 0 {
            return Ok(Map(None));
        }
        // SAFETY: artifacts are read-only once published, and only ever replaced as whole files; a reader sees the file it
        // opened. Nothing of a catalogue is cast: all of it is read as bytes.
        let map = unsafe { Mmap::map(file.file())? };
        Ok(Map(Some(map)))
    }

    /// The same, its checksum checked.
    ///
    /// # Errors
    /// As [`Map::open`]; a checksum that is missing or another.
    pub fn checked(folder: &Utf8Path, header: &Header, name: &str) -> Result<Map, EnvError> {
        let map = Map::open(folder, header, name)?;
        let want = header.parts.get(name).and_then(|part| part.crc32);
        let found = crc(&map);
        if want != Some(found) {
            let want = want.map_or("one".to_owned(), |want| format!("{want:08x}"));
            return Err(EnvError::unusable(format!(
                "`{}` has the checksum {found:08x}, expected {want}",
                folder.join(name)
            )));
        }
        Ok(map)
    }
}

/// The row of a table, if it is there.
pub fn row<const N: usize>(table: &[u8], at: usize) -> Option<&[u8; N]> {
    table.get(at.checked_mul(N)?..)?.first_chunk()
}

/// Four bytes of a row.
pub fn u32_at(row: &[u8], at: usize) -> u32 {
    row[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Eight bytes of a row.
pub fn u64_at(row: &[u8], at: usize) -> u64 {
    row[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Part of a file, if it is there.
pub fn slice(bytes: &[u8], begin: u64, length: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(begin).ok()?..usize::try_from(begin.checked_add(length)?).ok()?)
}
