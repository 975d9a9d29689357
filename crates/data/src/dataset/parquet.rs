//! Parquet through the record API (no Arrow), spooled as JSON lines so that rows can be taken in
//! any order.

use super::jsonl::Lines;
use crate::error::{Error, Result};
use parquet::basic::{ConvertedType, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value};
use std::io::{BufWriter, Write};
use std::path::Path;

/// Spools below this size stay in memory, in bytes.
const HELD: i64 = 16 << 20;

/// All rows of a Parquet file as JSON lines, row n on line n.
pub fn read(path: &Path) -> Result<Lines> {
    // The parquet crate asserts on malformed files in places; a broken file is bad input, not a
    // bug of ours.
    std::panic::catch_unwind(|| spool(path)).unwrap_or_else(|_| {
        Err(Error::file(
            path,
            "not a readable Parquet file: its structure is malformed; write it again",
        ))
    })
}

fn spool(path: &Path) -> Result<Lines> {
    let bad = |e: parquet::errors::ParquetError| {
        Error::file(
            path,
            format!("not a readable Parquet file: {e}; write it again"),
        )
    };
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    check_columns(path, &reader)?;
    let size: i64 = (reader.metadata().row_groups().iter())
        .map(|group| group.total_byte_size())
        .sum();
    let rows = reader.get_row_iter(None).map_err(bad)?;
    if size <= HELD {
        let mut text = Vec::new();
        for row in rows {
            write_row(&mut text, row.map_err(bad)?).map_err(Error::io(path))?;
        }
        return Ok(Lines::held(text));
    }
    // Unlinked at once: it is gone with the process, however that ends.
    let spool = tempfile::tempfile().map_err(Error::io(std::env::temp_dir()))?;
    let spooling = |e| Error::io(std::env::temp_dir())(e);
    let mut out = BufWriter::new(&spool);
    for row in rows {
        write_row(&mut out, row.map_err(bad)?).map_err(spooling)?;
    }
    out.flush().map_err(spooling)?;
    drop(out);
    Lines::map_file(&spool).map_err(spooling)
}

fn write_row(out: &mut impl Write, row: parquet::record::Row) -> std::io::Result<()> {
    let object = group(row.into_columns());
    serde_json::to_writer(&mut *out, &Value::Object(object))?;
    out.write_all(b"\n")
}

/// A struct as an object. A null field is left out: Parquet cannot tell null from absent, and
/// every struct of a column carries the union of all fields.
fn group(columns: Vec<(String, Field)>) -> Map<String, Value> {
    columns
        .into_iter()
        .filter(|(_, field)| !matches!(field, Field::Null))
        .map(|(name, field)| (name, json(field)))
        .collect()
}

fn json(field: Field) -> Value {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => b.into(),
        Field::Byte(n) => n.into(),
        Field::Short(n) => n.into(),
        Field::Int(n) => n.into(),
        Field::Long(n) => n.into(),
        Field::UByte(n) => n.into(),
        Field::UShort(n) => n.into(),
        Field::UInt(n) => n.into(),
        Field::ULong(n) => n.into(),
        Field::Float16(x) => float(x.to_f64()),
        Field::Float(x) => float(f64::from(x)),
        Field::Double(x) => float(x),
        Field::Str(text) => text.into(),
        // Strings without their annotation, as some writers leave them.
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into_owned().into(),
        Field::Group(row) => group(row.into_columns()).into(),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::MapInternal(map) => (map.entries().iter())
            .map(|(key, value)| {
                let name = match json(key.clone()) {
                    Value::String(name) => name,
                    other => other.to_string(),
                };
                (name, json(value.clone()))
            })
            .collect::<Map<_, _>>()
            .into(),
        other => other.to_string().into(),
    }
}

/// The record API panics on types it does not know: refuse them by column name first.
fn check_columns(path: &Path, reader: &SerializedFileReader<std::fs::File>) -> Result<()> {
    use ConvertedType as C;
    let schema = reader.metadata().file_metadata().schema_descr();
    for column in schema.columns() {
        let converted = column.converted_type();
        let known = match column.physical_type() {
            Physical::INT32 => matches!(
                converted,
                C::NONE
                    | C::INT_8
                    | C::INT_16
                    | C::INT_32
                    | C::UINT_8
                    | C::UINT_16
                    | C::UINT_32
                    | C::DATE
                    | C::TIME_MILLIS
                    | C::DECIMAL
            ),
            Physical::INT64 => matches!(
                converted,
                C::NONE
                    | C::INT_64
                    | C::UINT_64
                    | C::TIME_MICROS
                    | C::TIMESTAMP_MILLIS
                    | C::TIMESTAMP_MICROS
                    | C::DECIMAL
            ),
            Physical::BYTE_ARRAY => matches!(
                converted,
                C::NONE | C::UTF8 | C::ENUM | C::JSON | C::BSON | C::DECIMAL
            ),
            Physical::FIXED_LEN_BYTE_ARRAY => matches!(converted, C::NONE | C::DECIMAL),
            _ => true,
        };
        if !known {
            return Err(Error::file(
                path,
                format!(
                    "column '{}' has type {} ({converted}), which is not read here; drop the \
                     column or write it as text",
                    column.path().string(),
                    column.physical_type(),
                ),
            ));
        }
    }
    Ok(())
}
