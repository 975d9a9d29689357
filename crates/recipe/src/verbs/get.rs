//! `recipe get`: an artifact out of the store, with where it came from beside it.

use crate::args::GetArgs;
use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::provenance::{self, Story};
use crate::{output, project};
use spec::{Plan, Recipe, Selection};

pub fn run(args: GetArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let (stage, output) = project::output(&recipe, &args.output)?;
    let selection = until(vec![stage.clone()]);
    let plan = Plan::new(recipe, &selection)?;
    let url = project::store(&args.store, project::folder(&args.recipe.recipe));
    let mut options = runner::Options::new(url.clone());
    options.remote = project::remote(&args.remote, &url);
    // what evaluates the model is part of its story, where that can be known
    let evaluated = evaluated(&plan.recipe, &stage, &output, &options)?;
    let (plan, stages) = match evaluated {
        Some(both) => both,
        None => {
            let stages = runner::resolve(&plan, &options)?;
            (plan, stages)
        }
    };
    let store = cache::Store::open_with(&url, options.remote.as_deref(), false)?;
    let Some(story) = Story::of(&plan, &stages, &store, &stage, &output)? else {
        return Err(Fail::not_stored(
            format!("the store has no result of stage '{stage}' as the recipe is now"),
            format!(
                "compute it: recipe run {} {stage}",
                args.recipe.recipe.display()
            ),
        ));
    };
    let link = if args.link {
        cache::Link::Hard
    } else {
        cache::Link::Reflink
    };
    let manifest = store.materialize(story.digest(), &args.to, link)?;
    story.write(&args.to, &manifest)?;
    output::line(format!(
        "{stage}.{output}: {}, {} in {}",
        plural(manifest.files.len(), "file"),
        bytes(manifest.bytes()),
        args.to.display()
    ));
    Ok(0)
}

fn until(targets: Vec<String>) -> Selection {
    Selection {
        targets,
        ..Selection::default()
    }
}

/// The recipe resolved together with the stages that evaluate an output. None where there are none, or what
/// they read is not there any more: the output can be taken out all the same.
fn evaluated(
    recipe: &Recipe,
    stage: &str,
    output: &str,
    options: &runner::Options,
) -> Result<Option<(Plan, Vec<runner::Resolved>)>, Fail> {
    let mut targets = provenance::evaluating(recipe, stage, output);
    if targets.is_empty() {
        return Ok(None);
    }
    targets.push(stage.to_owned());
    let plan = Plan::new(recipe.clone(), &until(targets))?;
    let stages = runner::resolve(&plan, options);
    Ok(stages.ok().map(|stages| (plan, stages)))
}
