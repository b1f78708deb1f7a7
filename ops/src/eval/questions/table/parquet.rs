//! Questions in Parquet: plain columns of texts and numbers; Snappy, gzip, Zstandard or no compression.
//!
//! The crate that decodes may panic or reserve what a page declares, so a file is walked over first: the footer and every
//! page header that will be read are well-formed, no page and no sum of pages is larger than allowed; what still panics
//! is caught and told as an error. The panic's own message goes wherever the program's panics go.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use camino::Utf8Path;
use parquet::basic::{Compression, Repetition};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::{Type, TypePtr};

use super::thrift::Walk;
use super::{CELL, Column, ROWS, Table, places, short};

/// Largest footer.
const FOOTER: u64 = 8 << 20;
/// Largest page, unpacked.
const PAGE: i64 = 128 << 20;
/// Largest sum of the pages that are read, unpacked and as they are.
const PAGES: i64 = 1 << 30;

/// Reads a file that begins as Parquet does.
pub fn read(path: &Utf8Path, wanted: &[Column<'_>]) -> Result<Table, String> {
    // whatever a panic leaves behind is dropped with the reader
    catch_unwind(AssertUnwindSafe(|| guarded(path, wanted)))
        .unwrap_or_else(|_| Err("the Parquet file is malformed: its decoder gave up".to_owned()))
}

fn guarded(path: &Utf8Path, wanted: &[Column<'_>]) -> Result<Table, String> {
    let told = |e: &dyn std::fmt::Display| format!("the Parquet file is malformed: {e}");
    let mut file = fs_err::File::open(path).map_err(|e| e.to_string())?;
    check_footer(&mut file)?;
    let reader =
        SerializedFileReader::new(std::fs::File::open(path).map_err(|e| e.to_string())?).map_err(|e| told(&e))?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema_descr_ptr();
    let fields = schema.root_schema().get_fields();
    let mut table = Table::new("row");
    table.columns = fields.iter().map(|field| field.name().to_owned()).collect();
    let at = places(&table.columns, wanted);
    let mut chosen: Vec<usize> = at.iter().flatten().copied().collect();
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.is_empty() {
        table.push(vec![None; wanted.len()])?;
        return Ok(table);
    }
    let rows: i64 = metadata.row_groups().iter().map(|group| group.num_rows().max(0)).fold(0, i64::saturating_add);
    if rows > ROWS as i64 {
        return Err(format!("it holds {rows} rows, expected at most {ROWS}"));
    }
    check_columns(fields, &chosen)?;
    let length = file.metadata().map_err(|e| e.to_string())?.len();
    let mut sum = 0;
    for group in metadata.row_groups() {
        for column in group.columns() {
            let parts = column.column_path().parts();
            if chosen.iter().any(|i| parts.first().is_some_and(|name| *name == table.columns[*i])) {
                check_codec(column)?;
                check_pages(&mut file, column, length, &mut sum)?;
            }
        }
    }
    let projected: Vec<TypePtr> = chosen.iter().map(|i| fields[*i].clone()).collect();
    let projection =
        Type::group_type_builder(schema.root_schema().name()).with_fields(projected).build().map_err(|e| told(&e))?;
    for row in reader.get_row_iter(Some(projection)).map_err(|e| told(&e))? {
        let number = table.rows.len() + 1;
        let row = row.map_err(|e| format!("row {number}: {}", told(&e)))?;
        let mut cells: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for (name, field) in row.get_column_iter() {
            let value = cell(field).map_err(|what| format!("row {number}, column `{}`: {what}", short(name)))?;
            cells.insert(name, value);
        }
        let cells =
            at.iter().map(|place| place.and_then(|p| cells.get(&*table.columns[p]).cloned().flatten())).collect();
        table.push(cells).map_err(|what| format!("row {number}: the file {what}"))?;
    }
    Ok(table)
}

/// Reads the last bytes of the file: where the footer begins, and that it is well-formed.
fn check_footer(file: &mut fs_err::File) -> Result<(), String> {
    let wrong = |what: &str| format!("the Parquet file is malformed: {what}");
    let io = |e: std::io::Error| e.to_string();
    let length = file.seek(SeekFrom::End(0)).map_err(io)?;
    if length < 12 {
        return Err(wrong("it is cut off"));
    }
    file.seek(SeekFrom::End(-8)).map_err(io)?;
    let mut end = [0; 8];
    file.read_exact(&mut end).map_err(io)?;
    match &end[4..] {
        b"PAR1" => {}
        b"PARE" => return Err("the Parquet file is encrypted, expected a plain one".to_owned()),
        _ => return Err(wrong("it does not end as Parquet does, so it is cut off")),
    }
    let footer = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    if footer > FOOTER || footer + 12 > length {
        return Err(wrong(&format!("its footer would have {footer} bytes")));
    }
    file.seek(SeekFrom::End(-8 - footer as i64)).map_err(io)?;
    let mut bytes = vec![0; footer as usize];
    file.read_exact(&mut bytes).map_err(io)?;
    Walk::new(&bytes).fields().map(|_| ()).ok_or_else(|| wrong("its footer is no well-formed Thrift"))
}

/// Wanted columns are plain: no lists, no structs, each there once.
fn check_columns(fields: &[TypePtr], chosen: &[usize]) -> Result<(), String> {
    for i in chosen {
        let field: &Arc<Type> = &fields[*i];
        let name = field.name();
        let repeated =
            field.get_basic_info().has_repetition() && field.get_basic_info().repetition() == Repetition::REPEATED;
        if !field.is_primitive() || repeated {
            return Err(format!("the column `{}` holds lists or structs, expected texts or numbers", short(name)));
        }
        if fields.iter().filter(|f| f.name() == name).count() > 1 {
            return Err(format!("the column `{}` is there twice", short(name)));
        }
    }
    Ok(())
}

fn check_codec(column: &ColumnChunkMetaData) -> Result<(), String> {
    match column.compression() {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => Ok(()),
        other => Err(format!(
            "the column `{}` is compressed with {other:?}, expected Snappy, gzip, Zstandard or no compression",
            short(&column.column_path().string())
        )),
    }
}

/// Walks over the page headers of a column: whatever they declare is what the decoder will reserve.
fn check_pages(
    file: &mut fs_err::File,
    column: &ColumnChunkMetaData,
    length: u64,
    sum: &mut i64,
) -> Result<(), String> {
    let name = column.column_path().string();
    let wrong = |what: &str| format!("the Parquet file is malformed: the column `{}` {what}", short(&name));
    let offset = |offset: i64| u64::try_from(offset).map_err(|_| wrong("begins before the file"));
    let start = match column.dictionary_page_offset() {
        Some(dictionary) => offset(dictionary)?,
        None => offset(column.data_page_offset())?,
    };
    let size = offset(column.compressed_size())?;
    if start.checked_add(size).is_none_or(|end| end > length) {
        return Err(wrong("ends behind the file"));
    }
    *sum = sum.saturating_add(size as i64);
    if *sum > PAGES {
        return Err(wrong(&format!("and those before it have more than {} MiB", PAGES >> 20)));
    }
    file.seek(SeekFrom::Start(start)).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; size as usize];
    file.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    let mut at = 0;
    let mut values = 0i64;
    while at < bytes.len() && values < column.num_values() {
        let mut walk = Walk::new(&bytes[at..]);
        let fields = walk.fields().ok_or_else(|| wrong("has a page without a header"))?;
        let field = |id: i16| fields.iter().find(|f| f.0 == id).map(|f| f.1);
        let (Some(unpacked), Some(packed)) = (field(2), field(3)) else {
            return Err(wrong("has a page without a size"));
        };
        if !(0..=PAGE).contains(&unpacked) || packed < 0 {
            return Err(wrong(&format!("has a page of {unpacked} bytes")));
        }
        *sum = sum.saturating_add(unpacked);
        if *sum > PAGES {
            return Err(wrong(&format!("and those before it unpack to more than {} MiB", PAGES >> 20)));
        }
        at = at.saturating_add(walk.at).saturating_add(packed as usize);
        // one value a page is the least that a page can hold: this only bounds the walk
        values += 1;
    }
    if at > bytes.len() { Err(wrong("ends behind its last page")) } else { Ok(()) }
}

fn cell(field: &Field) -> Result<Option<String>, String> {
    let text = match field {
        Field::Null => return Ok(None),
        Field::Str(text) => text.clone(),
        Field::Bytes(bytes) => {
            std::str::from_utf8(bytes.data()).map_err(|e| format!("the text is no UTF-8: {e}"))?.to_owned()
        }
        Field::Bool(value) => value.to_string(),
        Field::Byte(value) => value.to_string(),
        Field::Short(value) => value.to_string(),
        Field::Int(value) => value.to_string(),
        Field::Long(value) => value.to_string(),
        Field::UByte(value) => value.to_string(),
        Field::UShort(value) => value.to_string(),
        Field::UInt(value) => value.to_string(),
        Field::ULong(value) => value.to_string(),
        Field::Float(value) => value.to_string(),
        Field::Double(value) => value.to_string(),
        _ => return Err("it holds neither texts nor numbers".to_owned()),
    };
    if text.len() > CELL {
        return Err(format!("a text is longer than {} MiB", CELL >> 20));
    }
    Ok(Some(text))
}
