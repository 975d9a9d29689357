//! Two safetensors files held against each other, tensor by tensor.
//!
//! The format (huggingface/safetensors): 8 bytes with the length of a JSON header, little-endian; the header, a table of
//! `{"dtype", "shape", "data_offsets"}` by name; the data, in which the offsets count.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The first tensor that differs, in the order of the file.
#[derive(Debug, PartialEq)]
pub struct Differs {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<u64>,
    /// What differs beside values: one side lacks it, or has another shape or type.
    pub form: Option<String>,
    /// Elements that are not equal.
    pub unequal: u64,
    /// The greatest difference of two elements; infinite where one of them is not finite. None for types that have none.
    pub greatest: Option<f64>,
    /// How many of the file's tensors differ.
    pub tensors: u64,
}

#[derive(Deserialize, Clone, PartialEq)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A file and its header.
struct Tensors {
    file: File,
    data: u64,
    /// In the order of the data.
    entries: Vec<(String, Entry)>,
}

/// Longest header that is read: as the format's own reader.
const LONGEST: u64 = 100_000_000;

impl Tensors {
    fn open(path: &Path) -> Result<Tensors, String> {
        let wrong = |why: String| format!("'{}': {why}", path.display());
        let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
        let mut length = [0u8; 8];
        file.read_exact_at(&mut length, 0)
            .map_err(|e| wrong(e.to_string()))?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST {
            return Err(wrong(format!("a header of {length} bytes")));
        }
        let mut header = vec![0u8; length as usize];
        file.read_exact_at(&mut header, 8)
            .map_err(|e| wrong(e.to_string()))?;
        let mut all: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| wrong(e.to_string()))?;
        all.remove("__metadata__");
        let entry = |(name, value): (String, serde_json::Value)| {
            let entry: Entry = serde_json::from_value(value)
                .map_err(|e| wrong(format!("tensor '{name}': {e}")))?;
            Ok((name, entry))
        };
        let mut entries = all
            .into_iter()
            .map(entry)
            .collect::<Result<Vec<_>, String>>()?;
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        Ok(Tensors {
            file,
            data: 8 + length,
            entries,
        })
    }

    fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, e)| e)
    }

    fn bytes(&self, entry: &Entry) -> Result<Vec<u8>, String> {
        let [from, to] = entry.data_offsets;
        let mut bytes = vec![0u8; to.saturating_sub(from) as usize];
        let read = self.file.read_exact_at(&mut bytes, self.data + from);
        read.map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}

/// The first tensor that differs between two files; none where all are equal (the headers' metadata may not be).
///
/// # Errors
/// Where one of them is no safetensors file, in words.
pub fn first_apart(a: &Path, b: &Path) -> Result<Option<Differs>, String> {
    let (a, b) = (Tensors::open(a)?, Tensors::open(b)?);
    let mut first: Option<Differs> = None;
    let mut tensors = 0;
    for (name, left) in &a.entries {
        let form = match b.get(name) {
            None => Some("the other has no such tensor".to_owned()),
            Some(right) if (&right.dtype, &right.shape) != (&left.dtype, &left.shape) => {
                Some(format!("the other is {} {:?}", right.dtype, right.shape))
            }
            Some(_) => None,
        };
        let mut found = Differs {
            name: name.clone(),
            dtype: left.dtype.clone(),
            shape: left.shape.clone(),
            form,
            unequal: 0,
            greatest: None,
            tensors: 0,
        };
        if let (None, Some(right)) = (&found.form, b.get(name)) {
            let (x, y) = (a.bytes(left)?, b.bytes(right)?);
            if x == y {
                continue;
            }
            if first.is_none() {
                (found.unequal, found.greatest) = apart(&x, &y, &left.dtype);
            }
        }
        tensors += 1;
        first.get_or_insert(found);
    }
    for (name, entry) in b.entries.iter().filter(|(name, _)| a.get(name).is_none()) {
        tensors += 1;
        first.get_or_insert_with(|| Differs {
            name: name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
            form: Some("only the other has this tensor".to_owned()),
            unequal: 0,
            greatest: None,
            tensors: 0,
        });
    }
    Ok(first.map(|found| Differs { tensors, ..found }))
}

/// Elements that are not equal in their bits, and the greatest difference.
fn apart(a: &[u8], b: &[u8], dtype: &str) -> (u64, Option<f64>) {
    let Some((size, value)) = reader(dtype) else {
        let unequal = a.iter().zip(b).filter(|(x, y)| x != y).count();
        return (unequal as u64, None);
    };
    let (mut unequal, mut greatest) = (0, 0.0f64);
    for (x, y) in a.chunks_exact(size).zip(b.chunks_exact(size)) {
        if x != y {
            unequal += 1;
            let by = (value(x) - value(y)).abs();
            greatest = greatest.max(if by.is_nan() { f64::INFINITY } else { by });
        }
    }
    (unequal, Some(greatest))
}

/// Bytes of an element, and its value.
type Reader = (usize, fn(&[u8]) -> f64);

fn reader(dtype: &str) -> Option<Reader> {
    fn bits<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().unwrap_or([0; N])
    }
    Some(match dtype {
        "F64" => (8, |b| f64::from_le_bytes(bits(b))),
        "F32" => (4, |b| f64::from(f32::from_le_bytes(bits(b)))),
        "BF16" => (2, |b| {
            f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bits(b))) << 16))
        }),
        "F16" => (2, |b| half(u16::from_le_bytes(bits(b)))),
        "I64" => (8, |b| i64::from_le_bytes(bits(b)) as f64),
        "I32" => (4, |b| f64::from(i32::from_le_bytes(bits(b)))),
        "U8" | "BOOL" => (1, |b| f64::from(b[0])),
        _ => return None,
    })
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(dir: &Path, name: &str, tensors: &[(&str, &[f32])]) -> std::path::PathBuf {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        for (name, values) in tensors {
            let from = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let entry = json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [from, data.len()]});
            header.insert((*name).to_owned(), entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_first_tensor_that_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let one = file(
            dir.path(),
            "a",
            &[("z", &[1.0, 2.0]), ("a", &[3.0, 4.0, 5.0])],
        );
        let same = file(
            dir.path(),
            "b",
            &[("z", &[1.0, 2.0]), ("a", &[3.0, 4.0, 5.0])],
        );
        assert_eq!(first_apart(&one, &same), Ok(None));
        let other = file(
            dir.path(),
            "c",
            &[("z", &[1.0, 2.0]), ("a", &[3.0, 4.5, 4.75])],
        );
        let found = first_apart(&one, &other).unwrap().unwrap();
        assert_eq!(
            (
                found.name.as_str(),
                found.unequal,
                found.greatest,
                found.tensors
            ),
            ("a", 2, Some(0.5), 1)
        );
        let lacks = file(dir.path(), "d", &[("a", &[3.0, 4.0])]);
        let found = first_apart(&one, &lacks).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.tensors), ("z", 2));
        assert!(found.form.is_some());
        std::fs::write(dir.path().join("e"), b"no tensors at all").unwrap();
        assert!(first_apart(&one, &dir.path().join("e")).is_err());
    }

    #[test]
    fn small_floats_are_read() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 2f64.powi(-24)),
            (0x7bff, 65504.0),
        ] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7c00).is_infinite() && half(0x7e00).is_nan());
    }
}
