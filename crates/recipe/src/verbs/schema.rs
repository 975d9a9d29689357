//! `recipe schema`: the JSON Schema of the recipe file.

use crate::fail::Fail;
use crate::{names, output};
use serde_json::Value;

pub fn run() -> Result<u8, Fail> {
    output::json(&schema());
    Ok(0)
}

/// The schema, with the names that the recipe's parser does not know.
pub fn schema() -> Value {
    let mut schema = spec::schema::recipe();
    names::list(&mut schema["$defs"]);
    schema
}
