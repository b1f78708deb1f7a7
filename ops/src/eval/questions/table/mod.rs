//! Questions out of a user's file: JSON lines, a JSON array, CSV or Parquet, told apart by content.
//!
//! Invariants: only wanted columns are kept; a file, a record and what is kept of all records are bounded, and a file
//! that passes a bound or is malformed is refused with its path, row and column; a reader never panics.

mod delimited;
mod json;
mod parquet;
mod thrift;

use std::io::Read;

use actloom_engine::op::OpError;
use camino::Utf8Path;

/// Largest file.
pub const FILE: u64 = 512 << 20;
/// Largest text of a cell.
const CELL: usize = 4 << 20;
/// What is kept of a file.
const KEPT: usize = 256 << 20;
/// Most rows.
const ROWS: usize = 1_000_000;
/// Column names that an error lists.
const NAMED: usize = 40;

/// A column that is wanted: the first of these names that the file has.
pub struct Column<'a> {
    pub names: Vec<&'a str>,
}

/// Rows of a file.
#[derive(Debug)]
pub struct Table {
    /// Columns that are there, in the file's order.
    pub columns: Vec<String>,
    /// One cell for each wanted column; `None` where the column or the value is missing.
    pub rows: Vec<Vec<Option<String>>>,
    /// Number of the first row as the file's format counts: lines of JSON lines and CSV from their first record.
    unit: &'static str,
    kept: usize,
}

impl Table {
    fn new(unit: &'static str) -> Table {
        Table { columns: Vec::new(), rows: Vec::new(), unit, kept: 0 }
    }

    /// `row 3`, from 1.
    pub fn place(&self, row: usize) -> String {
        format!("{} {}", self.unit, row + 1)
    }

    /// The columns that are there, for an error.
    pub fn there(&self) -> String {
        let names: Vec<String> = self.columns.iter().take(NAMED).map(|name| format!("`{}`", short(name))).collect();
        let more = self.columns.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if names.is_empty() { "no column".to_owned() } else { names.join(", ") + &more }
    }

    fn push(&mut self, row: Vec<Option<String>>) -> Result<(), String> {
        self.kept += row.iter().flatten().map(String::len).sum::<usize>() + 24 * row.len();
        if self.rows.len() >= ROWS {
            return Err(format!("holds more than {ROWS} rows"));
        }
        if self.kept > KEPT {
            return Err(format!("holds more than {} MiB of questions", KEPT >> 20));
        }
        self.rows.push(row);
        Ok(())
    }
}

/// A name for an error, cut where it is long.
fn short(name: &str) -> String {
    if name.chars().count() > 60 { name.chars().take(60).chain("..".chars()).collect() } else { name.to_owned() }
}

/// Where each wanted column is: the first of its names that is there.
fn places(columns: &[String], wanted: &[Column<'_>]) -> Vec<Option<usize>> {
    wanted.iter().map(|w| w.names.iter().find_map(|name| columns.iter().position(|c| c == name))).collect()
}

/// Reads the wanted columns of a file.
///
/// # Errors
/// Names the file, and row and column where they are known.
pub fn read(path: &Utf8Path, wanted: &[Column<'_>]) -> Result<Table, OpError> {
    let wrong = |what: String| OpError::failed(format!("cannot read questions from `{path}`: {what}"));
    let found = fs_err::metadata(path)?;
    if !found.is_file() {
        return Err(OpError::with_help(
            format!("cannot read questions from `{path}`: it is a folder"),
            "name the file: JSON lines, a JSON array, CSV or Parquet",
        ));
    }
    if found.len() > FILE {
        return Err(wrong(format!("it has {} MiB, expected at most {}", found.len() >> 20, FILE >> 20)));
    }
    let mut head = Vec::new();
    fs_err::File::open(path)?.take(4096).read_to_end(&mut head)?;
    let table = if head.starts_with(b"PAR1") {
        parquet::read(path, wanted)
    } else if head.starts_with(&[0x1F, 0x8B]) || head.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) || head.starts_with(b"PK")
    {
        return Err(OpError::with_help(
            format!("cannot read questions from `{path}`: it is compressed"),
            "unpack it first (gunzip, unzstd, unzip)",
        ));
    } else {
        let text = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head);
        match text.iter().find(|b| !b.is_ascii_whitespace()) {
            None => Err("it is empty, expected JSON lines, a JSON array, CSV or Parquet".to_owned()),
            Some(b'[') => json::array(fs_err::File::open(path)?, wanted),
            Some(b'{') => json::lines(fs_err::File::open(path)?, wanted),
            Some(_) if text.contains(&0) => {
                Err("it is no text, expected JSON lines, a JSON array, CSV or Parquet".to_owned())
            }
            Some(_) => delimited::read(fs_err::File::open(path)?, text, wanted),
        }
    };
    let table = table.map_err(wrong)?;
    if table.rows.is_empty() {
        return Err(wrong(format!("it holds no row, and as columns {}", table.there())));
    }
    Ok(table)
}
