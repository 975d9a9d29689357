//! `recipe man`: manual pages from the same definitions as the command line.

use crate::args::{Cli, ManArgs};
use crate::fail::Fail;
use crate::output;
use clap::{Command, CommandFactory};
use spec::diagnostic::suggestion;
use std::path::Path;

pub fn run(args: ManArgs) -> Result<u8, Fail> {
    let mut recipe = Cli::command();
    recipe.build();
    let pages: Vec<Command> = std::iter::once(recipe.clone().display_name("recipe"))
        .chain(verbs(&recipe, "recipe"))
        .collect();
    let title = |page: &Command| page.get_display_name().unwrap_or_default().to_owned();
    if let Some(dir) = &args.to {
        std::fs::create_dir_all(dir).map_err(|e| Fail::io("make", dir, &e))?;
        for page in &pages {
            let path = dir.join(format!("{}.1", title(page)));
            std::fs::write(&path, text(page)?).map_err(|e| Fail::io("write", &path, &e))?;
        }
        output::line(format!("wrote {} pages to {}", pages.len(), dir.display()));
        return Ok(0);
    }
    let wanted = match &args.verb {
        Some(verb) => format!("recipe-{}", verb.replace(' ', "-")),
        None => "recipe".to_owned(),
    };
    let Some(page) = pages.iter().find(|page| title(page) == wanted) else {
        let known = pages.iter().filter_map(|page| {
            let name = page.get_display_name()?;
            name.strip_prefix("recipe-")
        });
        let verb = args.verb.unwrap_or_default();
        return Err(Fail::usage(
            format!("there is no verb '{verb}'"),
            suggestion(&verb, known),
        ));
    };
    output::bytes(&text(page)?);
    Ok(0)
}

/// A page for each verb, and for each verb of a verb.
fn verbs(of: &Command, name: &str) -> Vec<Command> {
    let mut pages = Vec::new();
    for verb in of.get_subcommands().filter(|v| v.get_name() != "help") {
        let title = format!("{name}-{}", verb.get_name());
        // what a page is called and how the command is typed
        let page = verb.clone().display_name(title.clone());
        pages.push(page.bin_name(title.replace('-', " ")));
        pages.extend(verbs(verb, &title));
    }
    pages
}

fn text(page: &Command) -> Result<Vec<u8>, Fail> {
    let mut out = Vec::new();
    let title = page.get_display_name().unwrap_or_default().to_uppercase();
    let man = clap_mangen::Man::new(page.clone())
        .title(title)
        .manual("recipe");
    man.render(&mut out)
        .map_err(|e| Fail::io("write", Path::new("stdout"), &e))?;
    Ok(out)
}
