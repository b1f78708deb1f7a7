//! Questions in JSON: an object a line, or an array of objects.
//!
//! Invariant: values that are not wanted are passed over and never kept.

use std::fmt;
use std::io::{BufRead, BufReader, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{CELL, Column, Table};

/// Longest line: a record of wanted cells and others.
const LINE: u64 = 32 << 20;
/// Column names that are remembered.
const NAMES: usize = 1000;

/// Reads an object a line; empty lines are passed over, and counted.
pub fn lines(file: impl Read, wanted: &[Column<'_>]) -> Result<Table, String> {
    let mut table = Table::new("row");
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1usize.. {
        line.clear();
        let read = reader.by_ref().take(LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(|e| format!("line {number}: {e}"))? == 0 {
            break;
        }
        if line.len() as u64 > LINE {
            return Err(format!("line {number} is longer than {} MiB", LINE >> 20));
        }
        let text = line.strip_prefix(b"\xEF\xBB\xBF").filter(|_| number == 1).unwrap_or(&line);
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let mut json = serde_json::Deserializer::from_slice(text);
        let row = Row { wanted, table: &mut table }
            .deserialize(&mut json)
            .and_then(|row| json.end().map(|()| row))
            // a line is line 1 of itself
            .map_err(|e| format!("line {number}: {}", told(&e)))?;
        table.push(row).map_err(|what| format!("line {number}: the file {what}"))?;
    }
    Ok(table)
}

fn told(e: &serde_json::Error) -> String {
    let text = e.to_string();
    match (text.find(" at line "), e.column()) {
        (Some(at), column) if column > 0 => format!("{} at column {column}", &text[..at]),
        _ => text,
    }
}

/// Reads an array of objects.
pub fn array(file: impl Read, wanted: &[Column<'_>]) -> Result<Table, String> {
    let mut reader = BufReader::new(file);
    let start = reader.fill_buf().map_err(|e| e.to_string())?;
    if start.starts_with(b"\xEF\xBB\xBF") {
        reader.consume(3);
    }
    let mut table = Table::new("item");
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = Rows { wanted, table: &mut table }.deserialize(&mut json).and_then(|()| json.end());
    match read {
        Ok(()) => Ok(table),
        Err(e) if e.is_data() || e.is_syntax() || e.is_eof() => Err(format!("{}: {e}", table.place(table.rows.len()))),
        Err(e) => Err(e.to_string()),
    }
}

struct Rows<'a, 'w> {
    wanted: &'a [Column<'w>],
    table: &'a mut Table,
}

impl<'de> DeserializeSeed<'de> for Rows<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(row) = items.next_element_seed(Row { wanted: self.wanted, table: self.table })? {
            self.table.push(row).map_err(|what| serde::de::Error::custom(format!("the file {what}")))?;
        }
        Ok(())
    }
}

/// One object. The names of its columns go to the table when they are new.
struct Row<'a, 'w> {
    wanted: &'a [Column<'w>],
    table: &'a mut Table,
}

impl<'de> DeserializeSeed<'de> for Row<'_, '_> {
    type Value = Vec<Option<String>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Row<'_, '_> {
    type Value = Vec<Option<String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        use serde::de::Error;
        // the name by which each cell was found: an earlier name of the column wins
        let mut cells: Vec<Option<(usize, Option<String>)>> = vec![None; self.wanted.len()];
        while let Some(name) = map.next_key::<String>()? {
            let takers: Vec<(usize, usize)> = self
                .wanted
                .iter()
                .enumerate()
                .filter_map(|(i, w)| Some((i, w.names.iter().position(|n| *n == name)?)))
                .collect();
            if takers.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                let cell = map.next_value_seed(Cell(&name))?;
                for (column, rank) in takers {
                    match &cells[column] {
                        Some((before, _)) if *before == rank => {
                            return Err(A::Error::custom(format!("the column `{name}` is there twice")));
                        }
                        Some((before, _)) if *before < rank => {}
                        _ => cells[column] = Some((rank, cell.clone())),
                    }
                }
            }
            if self.table.columns.len() < NAMES && !self.table.columns.contains(&name) {
                self.table.columns.push(super::short(&name));
            }
        }
        Ok(cells.into_iter().map(|cell| cell.and_then(|(_, value)| value)).collect())
    }
}

/// A value that is a text or can be written as one.
struct Cell<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Cell<'_> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Cell<'_> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text or a number in the column `{}`", super::short(self.0))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
        if text.len() > CELL {
            let name = super::short(self.0);
            return Err(E::custom(format!("a text of the column `{name}` is longer than {} MiB", CELL >> 20)));
        }
        Ok(Some(text))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(Some(value.to_string()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        // an integer beyond 64 bits arrives rounded, and a rounded answer is another answer
        if value.fract() == 0.0 && value.abs() >= 2f64.powi(53) {
            let name = super::short(self.0);
            return Err(E::custom(format!("a number of the column `{name}` is too large, expected it as a text")));
        }
        Ok(Some(Value::from(value).to_string()))
    }
}
