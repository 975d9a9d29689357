//! Typed reads from a `config.json` object, with errors that name the key and the value.

use crate::Error;
use serde_json::{Map, Value};

/// A JSON object being read, with the path of keys that led to it.
pub struct Reader<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
    model_type: String,
}

impl<'a> Reader<'a> {
    /// Reads the top level of a config whose `model_type` is given.
    pub fn new(map: &'a Map<String, Value>, model_type: &str) -> Self {
        Self {
            map,
            prefix: String::new(),
            model_type: model_type.to_string(),
        }
    }

    /// The value at `key`, with `null` read as absent.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is written at all, `null` included.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The object at `key`.
    pub fn object(&self, key: &str) -> Result<Option<Reader<'a>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Reader {
                map,
                prefix: format!("{}{key}.", self.prefix),
                model_type: self.model_type.clone(),
            })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// A positive whole number.
    pub fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().or_else(|| whole(v)) {
                // 2^31 keeps every product of two sizes inside 64 bits
                Some(n) if n > 0 && n < 1 << 31 => Ok(Some(n as usize)),
                _ => Err(self.wrong(key, v, "a positive whole number")),
            },
        }
    }

    /// A positive whole number that has no default.
    pub fn need_size(&self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number of zero or more.
    pub fn count(&self, key: &str) -> Result<Option<usize>, Error> {
        match self.value(key) {
            Some(v) if v.as_u64() == Some(0) => Ok(Some(0)),
            _ => self.size(key),
        }
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(x) if x.is_finite() => Ok(Some(x)),
                _ => Err(self.wrong(key, v, "a number")),
            },
        }
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.number(key)? {
            Some(x) if x <= 0.0 => Err(self.wrong(key, &self.map[key], "a number above zero")),
            x => Ok(x),
        }
    }

    /// A finite number above zero that has no default.
    pub fn need_positive(&self, key: &str) -> Result<f64, Error> {
        self.positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(v) => Err(self.wrong(key, v, "true or false")),
        }
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(self.wrong(key, v, "a string")),
        }
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => v
                .as_array()
                .and_then(|a| a.iter().map(Value::as_str).collect())
                .map(Some)
                .ok_or_else(|| self.wrong(key, v, "a list of strings")),
        }
    }

    /// A list of whole numbers of zero or more.
    pub fn counts(&self, key: &str) -> Result<Option<Vec<usize>>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(v) => v
                .as_array()
                .and_then(|a| a.iter().map(|n| n.as_u64().map(|n| n as usize)).collect())
                .map(Some)
                .ok_or_else(|| self.wrong(key, v, "a list of whole numbers")),
        }
    }

    /// The error for a key that must be there.
    pub fn missing(&self, key: &str) -> Error {
        Error::Missing {
            key: format!("{}{key}", self.prefix),
            model_type: self.model_type.clone(),
        }
    }

    /// The error for a value of the wrong sort.
    pub fn wrong(&self, key: &str, value: &Value, want: &str) -> Error {
        Error::Value {
            key: format!("{}{key}", self.prefix),
            value: value.to_string(),
            want: want.to_string(),
        }
    }

    /// The error for a value that means something this program does not compute.
    pub fn unsupported(&self, key: &str, help: impl Into<String>) -> Error {
        Error::Unsupported {
            key: format!("{}{key}", self.prefix),
            value: self.map.get(key).unwrap_or(&Value::Null).to_string(),
            help: help.into(),
        }
    }
}

/// `4096.0` means 4096: Python writes either.
fn whole(v: &Value) -> Option<u64> {
    v.as_f64()
        .filter(|x| x.fract() == 0.0 && *x >= 0.0 && *x < 9e15)
        .map(|x| x as u64)
}
