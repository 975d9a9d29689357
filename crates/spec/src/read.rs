//! Typed values from nodes through serde, with the place of every error.

use crate::codes;
use crate::diagnostic::{Diagnostic, suggestion};
use crate::kinds::Invalid;
use crate::tree::{At, Files, Node, Table, Value};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use std::fmt;

/// Why a node could not be read.
#[derive(Clone, Debug)]
pub enum Error {
    Place(Box<Placed>),
    /// Typed, but refused by its own rules.
    Invalid(Invalid),
}

/// An error of form.
#[derive(Clone, Debug)]
pub struct Placed {
    at: Option<At>,
    /// Key whose value failed.
    field: Option<String>,
    cause: Cause,
}

#[derive(Clone, Debug)]
enum Cause {
    UnknownField {
        field: String,
        known: &'static [&'static str],
    },
    UnknownVariant {
        variant: String,
        known: &'static [&'static str],
    },
    Missing(&'static str),
    Type {
        found: String,
        wanted: String,
    },
    Range {
        found: String,
        wanted: String,
    },
    Other(String),
}

/// Reads a value of any type that serde knows.
pub fn from_node<T: DeserializeOwned>(node: &Node) -> Result<T, Error> {
    T::deserialize(node).map_err(|mut e| {
        e.locate(node.at, None);
        e
    })
}

impl Error {
    fn new(cause: Cause) -> Self {
        Self::Place(Box::new(Placed {
            at: None,
            field: None,
            cause,
        }))
    }

    /// The innermost place and field win.
    fn locate(&mut self, at: At, field: Option<&str>) {
        if let Self::Place(placed) = self {
            placed.at.get_or_insert(at);
            if placed.field.is_none() {
                placed.field = field.map(str::to_owned);
            }
        }
    }

    /// The error for a person. `owner` is what the node configures (`stage 'sft'`), `node` the one
    /// that was read.
    pub fn explain(self, files: &Files, owner: &str, node: &Node) -> Diagnostic {
        match self {
            Self::Invalid(invalid) => {
                let at = if invalid.field.is_empty() {
                    node.at
                } else {
                    place_of(node, &invalid.field)
                };
                Diagnostic::new(invalid.code, format!("{owner}: {}", invalid.message))
                    .at(files, at)
                    .help(invalid.help)
            }
            Self::Place(placed) => {
                let Placed { at, field, cause } = *placed;
                let named = |what: &str| match &field {
                    Some(field) => format!("{owner}: '{field}' {what}"),
                    None => format!("{owner}: {what}"),
                };
                let diagnostic = match cause {
                    Cause::UnknownField {
                        field: wrong,
                        known,
                    } => Diagnostic::new(
                        codes::UNKNOWN_KEY,
                        match &field {
                            Some(field) => format!("{owner}: '{field}' has no key '{wrong}'"),
                            None => format!("{owner} has no key '{wrong}'"),
                        },
                    )
                    .help(suggestion(&wrong, known.iter().copied())),
                    Cause::UnknownVariant { variant, known } => Diagnostic::new(
                        codes::UNKNOWN_NAME,
                        named(&format!("cannot be '{variant}'")),
                    )
                    .help(suggestion(&variant, known.iter().copied())),
                    Cause::Missing(field) => {
                        Diagnostic::new(codes::MISSING, format!("{owner}: '{field}' is missing"))
                            .help(format!("add `{field} = ..`"))
                    }
                    Cause::Type { found, wanted } => {
                        Diagnostic::new(codes::TYPE, named(&format!("is {found}")))
                            .help(format!("it must be {wanted}"))
                    }
                    Cause::Range { found, wanted } => {
                        Diagnostic::new(codes::RANGE, named(&format!("is {found}")))
                            .help(format!("it must be {wanted}"))
                    }
                    Cause::Other(message) => Diagnostic::new(codes::TYPE, named(&message)),
                };
                diagnostic.at(files, at.unwrap_or(node.at))
            }
        }
    }
}

/// Place of a field below a node, at the value; the node itself where the field was not written.
fn place_of(node: &Node, field: &str) -> At {
    node.nearest(field).at
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(invalid) => invalid.fmt(f),
            Self::Place(placed) => write!(f, "{:?}", placed.cause),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Cause::Other(message.to_string()))
    }
    fn invalid_type(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(Cause::Type {
            found: show(found),
            wanted: wanted.to_string(),
        })
    }
    fn invalid_value(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        Self::new(Cause::Range {
            found: show(found),
            wanted: wanted.to_string(),
        })
    }
    fn invalid_length(length: usize, wanted: &dyn de::Expected) -> Self {
        Self::new(Cause::Range {
            found: format!("a list of {length}"),
            wanted: wanted.to_string(),
        })
    }
    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::new(Cause::UnknownVariant {
            variant: variant.to_owned(),
            known,
        })
    }
    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(Cause::UnknownField {
            field: field.to_owned(),
            known,
        })
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new(Cause::Missing(field))
    }
}

fn show(found: de::Unexpected<'_>) -> String {
    use de::Unexpected::{Bool, Float, Map, Seq, Signed, Str, Unsigned};
    match found {
        Bool(b) => format!("the boolean {b}"),
        Unsigned(n) => n.to_string(),
        Signed(n) => n.to_string(),
        Float(x) => format!("{x:?}"),
        Str(s) => format!("the string {s:?}"),
        Seq => "a list".to_owned(),
        Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

fn unexpected(value: &Value) -> de::Unexpected<'_> {
    match value {
        Value::Bool(b) => de::Unexpected::Bool(*b),
        Value::Int(i) => de::Unexpected::Signed(*i),
        Value::Float(f) => de::Unexpected::Float(*f),
        Value::Str(s) => de::Unexpected::Str(s),
        Value::List(_) => de::Unexpected::Seq,
        Value::Table(_) => de::Unexpected::Map,
    }
}

fn mismatch<T>(node: &Node, wanted: &str) -> Result<T, Error> {
    Err(de::Error::invalid_type(unexpected(&node.value), &wanted))
}

macro_rules! whole_number {
    ($($method:ident: $type:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.value {
                Value::Int(i) => match <$type>::try_from(i) {
                    Ok(value) => visitor.$visit(value),
                    Err(_) => {
                        let wanted = if <$type>::MIN == 0 { "a whole number, 0 or more" } else { "a smaller whole number" };
                        Err(de::Error::invalid_value(de::Unexpected::Signed(i), &wanted))
                    }
                },
                _ => mismatch(self, "a whole number"),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Int(i) => visitor.visit_i64(*i),
            Value::Float(f) => visitor.visit_f64(*f),
            Value::Str(s) => visitor.visit_borrowed_str(s),
            Value::List(items) => visitor.visit_seq(Items(items.iter())),
            Value::Table(table) => visitor.visit_map(Entries {
                entries: table.iter(),
                value: None,
            }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Bool(b) => visitor.visit_bool(*b),
            _ => mismatch(self, "true or false"),
        }
    }

    whole_number! {
        deserialize_i8: i8, visit_i8;
        deserialize_i16: i16, visit_i16;
        deserialize_i32: i32, visit_i32;
        deserialize_i64: i64, visit_i64;
        deserialize_u8: u8, visit_u8;
        deserialize_u16: u16, visit_u16;
        deserialize_u32: u32, visit_u32;
        deserialize_u64: u64, visit_u64;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            // a whole number is a number
            Value::Int(i) => visitor.visit_f64(*i as f64),
            Value::Float(f) => visitor.visit_f64(*f),
            _ => mismatch(self, "a number"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Str(s) => visitor.visit_borrowed_str(s),
            _ => mismatch(self, "a string"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::List(items) => visitor.visit_seq(Items(items.iter())),
            _ => mismatch(self, "a list"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::List(items) if items.len() == length => visitor.visit_seq(Items(items.iter())),
            Value::List(items) => Err(de::Error::invalid_length(
                items.len(),
                &format!("a list of {length}").as_str(),
            )),
            _ => mismatch(self, &format!("a list of {length}")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Table(table) => visitor.visit_map(Entries {
                entries: table.iter(),
                value: None,
            }),
            _ => mismatch(self, "a table"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::Str(s) => visitor.visit_enum(s.as_str().into_deserializer()),
            _ => mismatch(self, "a string"),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct ignored_any
    }
}

struct Items<'de>(std::slice::Iter<'de, Node>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0
            .next()
            .map(|node| {
                seed.deserialize(node).map_err(|mut e| {
                    e.locate(node.at, None);
                    e
                })
            })
            .transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Entries<'de> {
    entries: indexmap::map::Iter<'de, String, crate::tree::Entry>,
    value: Option<(&'de str, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some((key, entry)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, &entry.node));
        let deserializer: StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        seed.deserialize(deserializer).map(Some).map_err(|mut e| {
            e.locate(entry.key_at, None);
            e
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let (key, node) = self.value.take().expect("serde asks for a key first");
        seed.deserialize(node).map_err(|mut e| {
            e.locate(node.at, Some(key));
            e
        })
    }
}

/// The table of a node, or the error that it is none.
pub fn table<'a>(files: &Files, owner: &str, node: &'a Node) -> Result<&'a Table, Box<Diagnostic>> {
    node.as_table().ok_or_else(|| {
        Box::new(
            Diagnostic::new(
                codes::TYPE,
                format!("{owner} is {}", node.value.type_name()),
            )
            .at(files, node.at)
            .help("it must be a table"),
        )
    })
}

/// Refuses keys that are not in `known`.
pub fn only(
    files: &Files,
    owner: &str,
    table: &Table,
    known: &[&str],
) -> Result<(), Box<Diagnostic>> {
    match table.iter().find(|(key, _)| !known.contains(&key.as_str())) {
        Some((key, entry)) => Err(Box::new(
            Diagnostic::new(codes::UNKNOWN_KEY, format!("{owner} has no key '{key}'"))
                .at(files, entry.key_at)
                .suggest(key, known.iter().copied()),
        )),
        None => Ok(()),
    }
}
