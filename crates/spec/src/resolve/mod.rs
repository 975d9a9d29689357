//! From a merged tree to a [`Recipe`]: types, defaults, references.

mod choice;
mod link;
mod source;
mod stage;
mod until;

use crate::diagnostic::Diagnostic;
use crate::kinds::Invalid;
use crate::layers::RecipeFile;
use crate::recipe::{Recipe, is_name};
use crate::track::Track;
use crate::tree::{At, Entry, Files, Node};
use crate::{Cells, SCHEMA, codes, read};
use link::Linked;
use serde::Deserialize;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// `[recipe]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    schema: i64,
    #[serde(default)]
    #[allow(
        dead_code,
        reason = "read by the layers; here so that it is a known key"
    )]
    include: Vec<String>,
}

/// Resolves a merged recipe file; the first mistake in it is the error.
pub fn resolve(file: RecipeFile) -> Result<Recipe> {
    let RecipeFile {
        path,
        files,
        root,
        profiles,
        mut cells,
    } = file;
    let resolver = Resolver {
        files: &files,
        cells: &cells,
    };
    let head = resolver.head(&path, &root)?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let sources = resolver.sources(&folder, &root)?;
    let track = resolver.track(&root)?;
    let drafts = resolver.drafts(&root)?;
    let Linked {
        stages,
        cells: parts,
    } = resolver.link(&sources, drafts)?;
    resolver.refuse_cycles(&root, &stages)?;
    parts.into_iter().for_each(|cell| cells.add(cell));
    Ok(Recipe {
        name: head.name,
        file: path,
        folder,
        sources,
        stages,
        profiles,
        track,
        cells,
        files,
        root,
    })
}

struct Resolver<'a> {
    files: &'a Files,
    cells: &'a Cells,
}

impl<'a> Resolver<'a> {
    fn error(
        &self,
        code: &'static str,
        at: At,
        message: String,
        help: impl Into<String>,
    ) -> Box<Diagnostic> {
        Box::new(Diagnostic::new(code, message).at(self.files, at).help(help))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, owner: &str, node: &Node) -> Result<T> {
        read::from_node(node).map_err(|e| Box::new(e.explain(self.files, owner, node)))
    }

    fn invalid(&self, owner: &str, node: &Node, invalid: Invalid) -> Box<Diagnostic> {
        Box::new(read::Error::Invalid(invalid).explain(self.files, owner, node))
    }

    fn head(&self, path: &Path, root: &Node) -> Result<Head> {
        let Some(node) = root.get("recipe") else {
            return Err(Box::new(
                Diagnostic::new(
                    codes::MISSING,
                    format!("{}: '[recipe]' is missing", path.display()),
                )
                .help("begin with:\n  [recipe]\n  name = \"my-recipe\"\n  schema = 1"),
            ));
        };
        let head: Head = self.read("'recipe'", node)?;
        if !is_name(&head.name) {
            return Err(self.error(
                codes::NAME,
                node.nearest("name").at,
                format!("'{}' is not a name", head.name),
                "use letters, digits, '_' and '-'",
            ));
        }
        if head.schema != i64::from(SCHEMA) {
            return Err(self.error(
                codes::SCHEMA_VERSION,
                node.nearest("schema").at,
                format!("schema {} is not supported", head.schema),
                format!("this version reads `schema = {SCHEMA}`"),
            ));
        }
        Ok(head)
    }

    fn track(&self, root: &Node) -> Result<Track> {
        let Some(node) = root.get("track") else {
            return Ok(Track::default());
        };
        let track: Track = self.read("'track'", node)?;
        track
            .check()
            .map_err(|e| self.invalid("'track'", node, e))?;
        Ok(track)
    }

    /// Entries of a top-level table, with checked names.
    fn section(&self, root: &'a Node, section: &str) -> Result<Vec<(&'a str, &'a Entry)>> {
        let Some(node) = root.get(section) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for (name, entry) in read::table(self.files, &format!("'{section}'"), node)? {
            // cells have names of their own making
            let cell = section == "stage" && self.cells.get(name).is_some();
            if !cell && !is_name(name) {
                return Err(self.error(
                    codes::NAME,
                    entry.key_at,
                    format!("'{name}' is not a name"),
                    "use letters, digits, '_' and '-'",
                ));
            }
            all.push((name.as_str(), entry));
        }
        Ok(all)
    }
}
