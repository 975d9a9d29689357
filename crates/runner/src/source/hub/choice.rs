//! Which files of a repository are the source.

use std::path::Path;

use crate::error::{Class, Error};

/// Weights in other formats than the one that is read, and what only other frameworks want.
const OTHER_WEIGHTS: &[&str] = &[
    "bin", "pth", "pt", "ckpt", "msgpack", "h5", "onnx", "gguf", "tflite", "ot",
];

/// What a source takes of the hub.
#[derive(Debug, Clone)]
pub struct Repository {
    /// `owner/name`.
    pub id: String,
    pub dataset: bool,
    /// Patterns (`*`, `?`) that choose files; all of them where there are none.
    pub files: Vec<String>,
}

/// Whether a name fits a pattern: `*` stands for any characters, `/` included, `?` for one.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([], []) => true,
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|n| fits(rest, &name[n..])),
        ([b'?', rest @ ..], [_, name @ ..]) => fits(rest, name),
        ([a, rest @ ..], [b, name @ ..]) => a == b && fits(rest, name),
        _ => false,
    }
}

/// Files of a repository that are part of the source: those that fit its patterns; with safetensors there, other
/// weight formats are not.
fn wanted(names: &[String], repository: &Repository) -> Vec<String> {
    let patterns = &repository.files;
    let chosen = |n: &&String| {
        patterns.is_empty() || patterns.iter().any(|p| fits(p.as_bytes(), n.as_bytes()))
    };
    let names: Vec<&String> = names.iter().filter(chosen).collect();
    let extension = |n: &str| {
        Path::new(n)
            .extension()
            .and_then(|e| e.to_str())
            .map(str::to_ascii_lowercase)
    };
    let safe = !repository.dataset
        && names
            .iter()
            .any(|n| extension(n).as_deref() == Some("safetensors"));
    let is_wanted = |n: &&String| {
        let other = extension(n).is_some_and(|e| OTHER_WEIGHTS.contains(&e.as_str()));
        let index = n.ends_with(".bin.index.json");
        let git = n.as_str() == ".gitattributes" || n.as_str() == ".gitignore";
        !git && !(safe && (other || index))
    };
    names.into_iter().filter(is_wanted).cloned().collect()
}

/// The files of a source, at least one.
pub(super) fn chosen(
    name: &str,
    repository: &Repository,
    revision: &str,
    names: &[String],
) -> Result<Vec<String>, Error> {
    let found = wanted(names, repository);
    if !found.is_empty() {
        return Ok(found);
    }
    let (id, files) = (&repository.id, &repository.files);
    Err(Error::Source {
        name: name.into(),
        message: if files.is_empty() {
            format!("'{id}' at '{revision}' has no files")
        } else {
            let patterns = files.join("' or '");
            format!("'{id}' at '{revision}' has no file like '{patterns}'")
        },
        class: Class::Config,
        help: Some(
            "look at the repository's files on the hub, and correct the source's `files`".into(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weight_formats_go_only_beside_safetensors() {
        let names = |l: &[&str]| l.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let all = names(&[
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "a.pth",
            "pytorch_model.bin.index.json",
        ]);
        let of = |dataset, files: &[&str]| Repository {
            id: "a/b".into(),
            dataset,
            files: names(files),
        };
        assert_eq!(
            wanted(&all, &of(false, &[])),
            names(&["config.json", "model.safetensors"])
        );
        let old = names(&["config.json", "pytorch_model.bin"]);
        assert_eq!(wanted(&old, &of(false, &[])), old);
        assert_eq!(wanted(&all, &of(true, &[])), all);
        assert_eq!(
            wanted(&all, &of(true, &["*.json"])),
            names(&["config.json", "pytorch_model.bin.index.json"])
        );
        assert_eq!(
            wanted(&all, &of(true, &["?.pth", "model.*"])),
            names(&["model.safetensors", "a.pth"])
        );
        assert!(wanted(&all, &of(true, &["main/*"])).is_empty());
    }
}
