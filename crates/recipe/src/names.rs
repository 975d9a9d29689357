//! Checks of names that the recipe's parser does not know: decoder families and environments have
//! their registries in `arch` and `data`.

use crate::fail::Fail;
use serde_json::{Value, json};
use spec::{Diagnostic, Recipe, Stage, codes};

/// Refuses unknown families, unknown environments and wrong environment options.
pub fn check(recipe: &Recipe) -> Result<(), Fail> {
    for stage in recipe.stages.values() {
        family(recipe, stage)?;
        environment(recipe, stage)?;
    }
    Ok(())
}

/// Writes the names that [`check`] takes into the definitions of the recipe file's schema, so that editors
/// offer them.
pub fn list(definitions: &mut Value) {
    let families: Vec<&str> = arch::FAMILIES.iter().map(|f| f.model_type).collect();
    let environments: Vec<&str> = data::env::ENVIRONMENTS.iter().map(|e| e.name).collect();
    enumerate(&mut definitions["Init"]["properties"]["family"], &families);
    enumerate(&mut definitions["Environments"], &environments);
}

/// The first string at or below a schema, but for those that are written in a pattern, is one of `names`.
/// So is the `name` of each table below it.
fn enumerate(schema: &mut Value, names: &[&str]) {
    match schema {
        Value::Object(map) => {
            let is = |key: &str, value: &str| map.get(key).is_some_and(|v| v == value);
            if is("type", "string") && !map.contains_key("pattern") {
                let filled_in = json!({ "pattern": r"\$\{" });
                map.insert("anyOf".to_owned(), json!([{ "enum": names }, filled_in]));
                // left out, it is refused: no default to offer
                map.shift_remove("default");
                return;
            }
            for key in ["anyOf", "items"] {
                if let Some(below) = map.get_mut(key) {
                    enumerate(below, names);
                }
            }
            if let Some(name) = map.get_mut("properties").and_then(|p| p.get_mut("name")) {
                enumerate(name, names);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(|one| enumerate(one, names)),
        _ => {}
    }
}

fn family(recipe: &Recipe, stage: &Stage) -> Result<(), Fail> {
    if stage.kind.name != "init" {
        return Ok(());
    }
    let name = stage.with["family"].as_str().unwrap_or_default();
    let known = || arch::FAMILIES.iter().map(|f| f.model_type);
    if known().any(|k| k == name) {
        return Ok(());
    }
    let mut diagnostic = Diagnostic::new(
        codes::UNKNOWN_NAME,
        format!("stage '{}': there is no family '{name}'", stage.name),
    )
    .suggest(name, known());
    diagnostic.place = Some(recipe.place(&format!("stage.{}.with.family", stage.name)));
    Err(Fail::Recipe(Box::new(diagnostic)))
}

fn environment(recipe: &Recipe, stage: &Stage) -> Result<(), Fail> {
    let Some(choice) = stage
        .with
        .get("environment")
        .filter(|e| e.as_array().is_some_and(|a| !a.is_empty()))
    else {
        return Ok(());
    };
    let path = format!("stage.{}.with.environment", stage.name);
    let choices = choice.as_array().map(Vec::as_slice).unwrap_or_default();
    for (i, choice) in choices.iter().enumerate() {
        let name = choice["name"].as_str().unwrap_or_default();
        let known = || data::env::ENVIRONMENTS.iter().map(|e| e.name);
        let mut diagnostic = if known().all(|k| k != name) {
            Diagnostic::new(
                codes::UNKNOWN_NAME,
                format!("stage '{}': there is no environment '{name}'", stage.name),
            )
            .suggest(name, known())
        } else {
            match data::env::check(choice) {
                Ok(needs_data) if needs_data && !stage.inputs.contains_key("data") => {
                    Diagnostic::new(
                        codes::MISSING_INPUT,
                        format!(
                            "stage '{}': environment '{name}' takes its tasks from data",
                            stage.name
                        ),
                    )
                    .help("add an input: `in.data = \"source.NAME\"`")
                }
                Ok(_) => continue,
                Err(e) => {
                    let text = e.to_string();
                    let text = text.strip_prefix("environment: ").unwrap_or(&text);
                    // data's errors end in the fix
                    let (cause, fix) = text.rsplit_once("; ").unwrap_or((text, ""));
                    Diagnostic::new(codes::RANGE, format!("stage '{}': {cause}", stage.name))
                        .help(fix)
                }
            }
        };
        diagnostic.place = Some(recipe.place(&format!("{path}[{i}]")));
        return Err(Fail::Recipe(Box::new(diagnostic)));
    }
    Ok(())
}
