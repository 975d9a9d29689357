//! Values that several kinds' configurations share.

use super::{Invalid, check};
use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Compute precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    Fp32,
    /// bf16 compute; training keeps fp32 master weights and moments.
    Bf16,
}

/// Precision in which tensors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreDtype {
    /// As they came.
    Keep,
    Fp32,
    Fp16,
    Bf16,
}

/// Which tokens of a conversation train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TrainOn {
    /// Every assistant turn (the completion, for prompt/completion rows; all, for plain text).
    Assistant,
    /// The last assistant turn only.
    Last,
    /// Every token.
    All,
}

/// What happens to an example longer than `max_length`; counted in the metrics either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Cut at the end.
    Truncate,
    /// Left out.
    Drop,
}

/// One environment of a mix.
#[derive(Clone, Debug, PartialEq)]
pub struct EnvironmentChoice {
    pub name: String,
    /// Share of the prompts, relative to the other entries.
    pub weight: f64,
    /// The environment's own settings, checked by its registry.
    pub options: Map<String, Value>,
}

/// `environment`: a name, a table `{ name, weight, ..options }`, or a list of either.
/// Serialised as a list of tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Environments(pub Vec<EnvironmentChoice>);

impl Environments {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn check(&self) -> Result<(), Invalid> {
        for (i, choice) in self.0.iter().enumerate() {
            check::positive(&format!("environment[{i}].weight"), choice.weight)?;
        }
        Ok(())
    }
}

impl Serialize for EnvironmentChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2 + self.options.len()))?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("weight", &self.weight)?;
        for (key, value) in &self.options {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for EnvironmentChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = EnvironmentChoice;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an environment: a name, or a table with `name`, `weight` and options")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<EnvironmentChoice, E> {
                Ok(EnvironmentChoice {
                    name: name.to_owned(),
                    weight: 1.0,
                    options: Map::new(),
                })
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<EnvironmentChoice, A::Error> {
                let (mut name, mut weight, mut options) = (None, 1.0, Map::new());
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "name" => name = Some(map.next_value::<String>()?),
                        "weight" => weight = map.next_value()?,
                        _ => {
                            options.insert(key, map.next_value()?);
                        }
                    }
                }
                let name = name.ok_or_else(|| de::Error::missing_field("name"))?;
                Ok(EnvironmentChoice {
                    name,
                    weight,
                    options,
                })
            }
        }
        deserializer.deserialize_any(One)
    }
}

impl Serialize for Environments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Environments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Environments;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an environment's name, a table with `name`, or a list of these")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Environments, E> {
                EnvironmentChoice::deserialize(de::value::StrDeserializer::new(name))
                    .map(|c| Environments(vec![c]))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Environments, A::Error> {
                let one =
                    EnvironmentChoice::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Environments(vec![one]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Environments, A::Error> {
                let mut all = Vec::new();
                while let Some(choice) = seq.next_element()? {
                    all.push(choice);
                }
                Ok(Environments(all))
            }
        }
        deserializer.deserialize_any(All)
    }
}

impl JsonSchema for Environments {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Environments".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let table = serde_json::json!({
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string" },
                "weight": { "type": "number", "exclusiveMinimum": 0, "default": 1.0 }
            }
        });
        schemars::json_schema!({
            "anyOf": [
                { "type": "string" },
                table,
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, table] } }
            ]
        })
    }
}
