//! `recipe cache pin` and `recipe cache unpin`.

use crate::args::{RecipeArgs, StoreArgs};
use crate::fail::Fail;
use crate::{output, project};
use cache::{Digest, Store};
use runner::State;
use spec::diagnostic::suggestion;
use spec::{Plan, Selection};

/// Pins an artifact, or lists the pins.
pub fn run(
    name: Option<&str>,
    what: Option<&str>,
    wanted: Option<&str>,
    at: &StoreArgs,
) -> Result<u8, Fail> {
    let store = project::open_store(at)?;
    let Some(name) = name else {
        for (name, artifact) in store.pins()? {
            output::line(format!("{name}  {artifact}"));
        }
        return Ok(0);
    };
    let artifact = match (what, wanted) {
        (None, _) => {
            return Err(Fail::usage(
                format!("nothing is named that '{name}' should keep"),
                "name an artifact: recipe cache pin NAME DIGEST, or NAME RECIPE STAGE.OUTPUT",
            ));
        }
        (Some(digest), None) => digest.parse::<Digest>()?,
        (Some(recipe), Some(wanted)) => made_by(&store, recipe, wanted)?,
    };
    store.pin(name, &artifact)?;
    output::line(format!("{name}  {artifact}"));
    Ok(0)
}

pub fn unpin(name: &str, at: &StoreArgs) -> Result<u8, Fail> {
    let store = project::open_store(at)?;
    if !store.unpin(name)? {
        let pins = store.pins()?;
        return Err(Fail::not_stored(
            format!("there is no pin '{name}'"),
            suggestion(name, pins.iter().map(|(name, _)| name.as_str())),
        ));
    }
    Ok(0)
}

/// The artifact that a recipe has now as `STAGE.OUTPUT`.
fn made_by(store: &Store, recipe: &str, wanted: &str) -> Result<Digest, Fail> {
    let recipe = project::load(&RecipeArgs {
        recipe: recipe.into(),
        set: Vec::new(),
        profile: None,
    })?;
    let (stage, output) = project::output(&recipe, wanted)?;
    let targets = vec![stage.clone()];
    let plan = Plan::new(
        recipe,
        &Selection {
            targets,
            ..Selection::default()
        },
    )?;
    let stages = runner::resolve(&plan, &runner::Options::new(store.url()))?;
    let found = stages.iter().find(|s| s.stage == stage);
    let found = found.and_then(|s| match &s.state {
        State::Reuse(found) => found.brief.outputs.get(&output).copied(),
        _ => None,
    });
    found.ok_or_else(|| {
        Fail::not_stored(
            format!("the store has no result of stage '{stage}' as the recipe is now"),
            "compute it with `recipe run`",
        )
    })
}
