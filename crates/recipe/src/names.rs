//! Checks of names that the recipe's parser does not know: decoder families and environments have
//! their registries in `arch` and `data`.

use crate::fail::Fail;
use spec::{Diagnostic, Recipe, Stage, codes};

/// Refuses unknown families, unknown environments and wrong environment options.
pub fn check(recipe: &Recipe) -> Result<(), Fail> {
    for stage in recipe.stages.values() {
        family(recipe, stage)?;
        environment(recipe, stage)?;
    }
    Ok(())
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
