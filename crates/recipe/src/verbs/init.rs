//! `recipe init DIR`: a folder with a commented recipe that runs offline on a CPU, and the schema that
//! editors check it by.

use crate::args::InitArgs;
use crate::fail::Fail;
use crate::output;
use std::path::Path;

const RECIPE: &str = include_str!("init/recipe.toml");
/// The recipe's first line names it.
const SCHEMA: &str = "recipe.schema.json";

pub fn run(args: InitArgs) -> Result<u8, Fail> {
    let dir = &args.dir;
    let file = dir.join("recipe.toml");
    if file.exists() {
        return Err(Fail::usage(
            format!("'{}' exists", file.display()),
            "name another folder; nothing was changed",
        ));
    }
    std::fs::create_dir_all(dir).map_err(|e| Fail::io("make", dir, &e))?;
    write(&file, RECIPE)?;
    let schema = super::schema::schema();
    write(&dir.join(SCHEMA), &format!("{schema:#}\n"))?;
    let ignore = dir.join(".gitignore");
    if !ignore.exists() {
        write(&ignore, ".recipe/\n")?;
    }
    output::line(format!(
        "wrote {}\n\nnow: recipe run {}",
        file.display(),
        file.display()
    ));
    Ok(0)
}

fn write(path: &Path, text: &str) -> Result<(), Fail> {
    std::fs::write(path, text).map_err(|e| Fail::io("write", path, &e))
}
