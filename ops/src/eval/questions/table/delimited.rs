//! Questions in CSV, with commas, semicolons or tabs between the cells, the first record naming the columns.

use std::io::Read;

use super::{CELL, Column, Table, places};

/// Reads a file whose beginning, without a byte order mark, is `head`.
pub fn read(file: impl Read, head: &[u8], wanted: &[Column<'_>]) -> Result<Table, String> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter(head)).has_headers(false).from_reader(file);
    let mut record = csv::ByteRecord::new();
    let mut table = Table::new("row");
    let mut at = Vec::new();
    let mut named = false;
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Ok(table),
            Err(e) => return Err(wrong(&e, named)),
        }
        if !named {
            for cell in &record {
                let text = std::str::from_utf8(cell).map_err(|_| "the names of the columns are no UTF-8".to_owned())?;
                table.columns.push(text.trim_start_matches('\u{feff}').trim().to_owned());
            }
            named = true;
            at = places(&table.columns, wanted);
            if let Some(twice) = at.iter().flatten().find(|i| table.columns[**i + 1..].contains(&table.columns[**i])) {
                return Err(format!("the column `{}` is there twice", super::short(&table.columns[*twice])));
            }
            continue;
        }
        let row = table.rows.len();
        let cell = |place: &Option<usize>| -> Result<Option<String>, String> {
            let Some((place, bytes)) = place.and_then(|p| Some((p, record.get(p)?))) else { return Ok(None) };
            let of = || format!("row {}, column `{}`", row + 1, super::short(&table.columns[place]));
            if bytes.len() > CELL {
                return Err(format!("{}: a text is longer than {} MiB", of(), CELL >> 20));
            }
            let text = std::str::from_utf8(bytes).map_err(|e| format!("{}: the text is no UTF-8: {e}", of()))?;
            Ok((!text.is_empty()).then(|| text.to_owned()))
        };
        let cells = at.iter().map(cell).collect::<Result<Vec<_>, _>>()?;
        table.push(cells).map_err(|what| format!("row {}: the file {what}", row + 1))?;
    }
}

/// What stands between the names of the columns: whichever of the three there is most of outside quotes.
fn delimiter(head: &[u8]) -> u8 {
    let mut quoted = false;
    let mut counts = [(b',', 0), (b'\t', 0), (b';', 0)];
    for byte in head {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            byte if !quoted => {
                counts.iter_mut().filter(|(d, _)| d == byte).for_each(|(_, n)| *n += 1);
            }
            _ => {}
        }
    }
    counts.iter().rev().max_by_key(|(_, n)| *n).map_or(b',', |(d, _)| *d)
}

fn wrong(e: &csv::Error, named: bool) -> String {
    match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } if named => {
            let line = pos.as_ref().map_or(0, csv::Position::line);
            format!("the record at line {line} has {len} cells, expected {expected_len}")
        }
        _ => e.to_string(),
    }
}
