//! `[source.*]`: where what enters comes from.

use super::{Resolver, Result};
use crate::codes;
use crate::kinds::ArtifactKind;
use crate::read;
use crate::recipe::{Source, SourceSpec, is_name};
use crate::tree::Node;
use indexmap::IndexMap;
use std::path::Path;

impl<'a> Resolver<'a> {
    pub(super) fn sources(
        &self,
        folder: &Path,
        root: &'a Node,
    ) -> Result<IndexMap<String, Source>> {
        self.section(root, "source")?
            .into_iter()
            .map(|(name, entry)| Ok((name.to_owned(), self.source(folder, name, &entry.node)?)))
            .collect()
    }

    fn source(&self, folder: &Path, name: &str, node: &Node) -> Result<Source> {
        const PLACES: [&str; 5] = ["path", "hf", "hf_dataset", "url", "adopted"];
        let owner = format!("source '{name}'");
        let table = read::table(self.files, &owner, node)?;
        read::only(
            self.files,
            &owner,
            table,
            &[&PLACES[..], &["revision", "files"]].concat(),
        )?;
        let given: Vec<_> = PLACES.iter().filter(|p| table.contains_key(**p)).collect();
        let place = match given[..] {
            [place] => *place,
            [] => {
                return Err(self.error(
                    codes::MISSING,
                    node.at,
                    format!("{owner} does not say where it comes from"),
                    "add one of `path`, `hf`, `hf_dataset`, `url`, `adopted`",
                ));
            }
            [first, second, ..] => {
                return Err(self.error(
                    codes::CONFLICT,
                    table[*second].key_at,
                    format!("{owner} has both '{first}' and '{second}'"),
                    "keep one of them",
                ));
            }
        };
        let value = &table[place].node;
        let text = match value.as_str() {
            Some(text) if !text.trim().is_empty() => text.to_owned(),
            Some(_) => {
                return Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{place}' is empty"),
                    "say where it is",
                ));
            }
            None => {
                let found = value.value.show();
                return Err(self.error(
                    codes::TYPE,
                    value.at,
                    format!("{owner}: '{place}' is {found}"),
                    "it must be a string",
                ));
            }
        };
        for key in ["revision", "files"] {
            if let Some(entry) = table.get(key)
                && !place.starts_with("hf")
            {
                return Err(self.error(
                    codes::CONFLICT,
                    entry.key_at,
                    format!("{owner}: '{key}' is for repositories of the Hugging Face hub, not for a '{place}'"),
                    "remove it: the content is pinned by digest in recipe.lock",
                ));
            }
        }
        let files: Vec<String> = match table.get("files") {
            Some(entry) => read::from_node(&entry.node).map_err(|e| {
                Box::new(e.explain(self.files, &format!("{owner}: files"), &entry.node))
            })?,
            None => Vec::new(),
        };
        let revision = match table.get("revision") {
            Some(entry) => match entry.node.as_str() {
                Some(text) if !text.is_empty() => text.to_owned(),
                _ => {
                    let found = entry.node.value.show();
                    return Err(self.error(
                        codes::TYPE,
                        entry.node.at,
                        format!("{owner}: 'revision' is {found}"),
                        "it must be a branch, tag or commit, in quotes",
                    ));
                }
            },
            None => "main".to_owned(),
        };
        let repository = |text: &str| {
            let parts: Vec<_> = text.split('/').collect();
            let valid = |p: &&str| is_name(&p.replace('.', "-"));
            if parts.len() <= 2 && parts.iter().all(valid) {
                Ok(text.to_owned())
            } else {
                Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{text}' is not a repository of the Hugging Face hub"),
                    "write it as \"owner/name\"",
                ))
            }
        };
        let (from, artifact) = match place {
            "path" => (SourceSpec::Path(folder.join(text)), ArtifactKind::Files),
            "hf" => (
                SourceSpec::Hf {
                    repo: repository(&text)?,
                    revision,
                    files,
                },
                ArtifactKind::Weights,
            ),
            "hf_dataset" => (
                SourceSpec::HfDataset {
                    repo: repository(&text)?,
                    revision,
                    files,
                },
                ArtifactKind::Dataset,
            ),
            "adopted" => {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if text.len() != 64 || !text.bytes().all(hex) {
                    return Err(self.error(
                        codes::RANGE,
                        value.at,
                        format!("{owner}: '{text}' is not a digest"),
                        "write the 64 hexadecimal digits that `recipe adopt` printed",
                    ));
                }
                (SourceSpec::Adopted(text), ArtifactKind::Files)
            }
            _ if text.contains("://") => {
                if let Some(what) = secret(&text) {
                    return Err(self.error(
                        codes::RANGE,
                        value.at,
                        format!(
                            "{owner}: the URL holds {what}, which recipe.lock would tell everyone"
                        ),
                        "put credentials in the environment, or fetch it yourself and use `path`",
                    ));
                }
                (SourceSpec::Url(text), ArtifactKind::Files)
            }
            _ => {
                return Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{text}' is not a URL"),
                    "write it like \"s3://bucket/path\", or use `path` for a local file",
                ));
            }
        };
        Ok(Source {
            name: name.to_owned(),
            from,
            artifact,
        })
    }
}

/// What of a URL is for nobody else to see.
fn secret(url: &str) -> Option<&'static str> {
    let rest = url.split_once("://")?.1;
    let host = rest.split(['/', '?', '#']).next()?;
    if host.contains('@') {
        return Some("a name or password");
    }
    const TELLING: [&str; 7] = [
        "signature",
        "token",
        "credential",
        "password",
        "secret",
        "sig",
        "key",
    ];
    let query = rest.split_once('?')?.1.to_ascii_lowercase();
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    let mut words = names.flat_map(|name| {
        name.split(['-', '_', '.'])
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    words
        .any(|word| TELLING.contains(&word.as_str()))
        .then_some("a signature, token or key")
}
