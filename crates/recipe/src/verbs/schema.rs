//! `recipe schema`: the JSON Schema of the recipe file.

use crate::fail::Fail;
use crate::output;

pub fn run() -> Result<u8, Fail> {
    output::json(&spec::schema::recipe());
    Ok(0)
}
