//! The Hugging Face hub: a repository at a commit, kept in the hub's own cache directory.
//!
//! `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_CACHE` work as they do elsewhere; `HF_HUB_OFFLINE=1` forbids the
//! network.

use std::path::{Path, PathBuf};

use cache::{Digest, Manifest, Store};
use hf_hub::HFClientSync;
use hf_hub::HFRepositorySync;
use hf_hub::repository::RepoType;

use super::{From, Known, changed, files};
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

/// Downloads a revision and tells its commit.
pub fn fetch(
    name: &str,
    repository: &Repository,
    revision: &str,
    store: &Store,
    offline: bool,
) -> Result<(Known, Option<String>), Error> {
    let (dir, names, commit) = snapshot(name, repository, revision, offline)?;
    let manifest = manifest_of(name, &dir, &names, store)?;
    let from = From::Hub {
        repository: repository.clone(),
        commit: commit.clone(),
    };
    Ok((
        Known {
            digest: manifest.digest(),
            from,
        },
        Some(commit),
    ))
}

/// The folder of the hub cache that holds files of a revision, if there is one.
pub fn cached(name: &str, repository: &Repository, revision: &str) -> Option<PathBuf> {
    let found = snapshot(name, repository, revision, true);
    found.ok().map(|(dir, _, _)| dir)
}

/// Links the files of a pinned commit into `to`, downloading what the hub cache lacks.
pub fn provide(
    name: &str,
    repository: &Repository,
    commit: &str,
    digest: Digest,
    store: &Store,
    to: &Path,
    offline: bool,
) -> Result<PathBuf, Error> {
    // What the cache holds may be all there is to it: then no request is needed.
    let found = match snapshot(name, repository, commit, true) {
        Ok((dir, names, _)) => manifest_of(name, &dir, &names, store)
            .ok()
            .filter(|m| m.digest() == digest)
            .map(|m| (dir, m)),
        Err(_) => None,
    };
    let (dir, manifest) = match found {
        Some(found) => found,
        None => {
            let (dir, names, _) = snapshot(name, repository, commit, offline)?;
            let manifest = manifest_of(name, &dir, &names, store)?;
            if manifest.digest() != digest {
                return Err(changed(name, &repository.id, digest, manifest.digest()));
            }
            (dir, manifest)
        }
    };
    for file in &manifest.files {
        let link = to.join(&file.path);
        let io = |source| Error::Io {
            what: "cannot link",
            path: link.clone(),
            source,
        };
        std::fs::create_dir_all(link.parent().unwrap_or(to)).map_err(io)?;
        let target = std::fs::canonicalize(dir.join(&file.path)).map_err(io)?;
        std::os::unix::fs::symlink(target, &link).map_err(io)?;
    }
    Ok(to.to_owned())
}

fn manifest_of(name: &str, dir: &Path, names: &[String], store: &Store) -> Result<Manifest, Error> {
    let set: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    let manifest = files::manifest(store, dir, |n| set.contains(n))?;
    match names.iter().find(|n| manifest.file(n).is_none()) {
        None => Ok(manifest),
        Some(missing) => Err(Error::Source {
            name: name.into(),
            message: format!("'{missing}' could not be downloaded"),
            class: Class::Infra,
            help: Some("run again to continue the download".into()),
        }),
    }
}

/// The directory of a revision in the hub cache, the files that belong to the source, and the commit.
fn snapshot(
    name: &str,
    repository: &Repository,
    revision: &str,
    offline: bool,
) -> Result<(PathBuf, Vec<String>, String), Error> {
    let offline = offline
        || std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"));
    let client =
        HFClientSync::new().map_err(|e| explain(name, &repository.id, revision, offline, &e))?;
    let repo = repository.id.as_str();
    let (owner, short) = hf_hub::split_id(repo);
    let found = if repository.dataset {
        let handle = client.dataset(owner, short);
        let about = || {
            let info = handle.info().revision(revision).send()?;
            Ok((info.sha, info.siblings))
        };
        download(&handle, about, repository, revision, offline)
    } else {
        let handle = client.model(owner, short);
        let about = || {
            let info = handle.info().revision(revision).send()?;
            Ok((info.sha, info.siblings))
        };
        download(&handle, about, repository, revision, offline)
    }
    .map_err(|e| explain(name, repo, revision, offline, &e))?;
    if found.1.is_empty() {
        return Err(Error::Source {
            name: name.into(),
            message: if repository.files.is_empty() {
                format!("'{repo}' at '{revision}' has no files")
            } else {
                format!(
                    "'{repo}' at '{revision}' has no file like '{}'",
                    repository.files.join("' or '")
                )
            },
            class: Class::Config,
            help: Some(
                "look at the repository's files on the hub, and correct the source's `files`"
                    .into(),
            ),
        });
    }
    Ok(found)
}

type About = (Option<String>, Option<Vec<hf_hub::repository::RepoSibling>>);

fn download<T: RepoType>(
    handle: &HFRepositorySync<T>,
    about: impl Fn() -> hf_hub::HFResult<About>,
    repository: &Repository,
    revision: &str,
    offline: bool,
) -> hf_hub::HFResult<(PathBuf, Vec<String>, String)> {
    if offline {
        let dir = handle
            .snapshot_download()
            .revision(revision)
            .local_files_only(true)
            .send()?;
        let commit = dir
            .file_name()
            .map_or_else(|| revision.to_owned(), |n| n.to_string_lossy().into_owned());
        let names: Vec<String> = walkdir::WalkDir::new(&dir)
            .follow_links(true)
            .into_iter()
            .flatten()
            .filter(|e| e.file_type().is_file())
            .filter_map(|e| Some(e.path().strip_prefix(&dir).ok()?.to_str()?.to_owned()))
            .collect();
        return Ok((dir, wanted(&names, repository), commit));
    }
    let (sha, siblings) = about()?;
    let names: Vec<String> = siblings
        .unwrap_or_default()
        .into_iter()
        .map(|s| s.rfilename)
        .collect();
    let commit = sha.unwrap_or_else(|| revision.to_owned());
    let wanted = wanted(&names, repository);
    // Exact names, with what globs treat specially escaped.
    let patterns = wanted.iter().map(|n| escape(n)).collect();
    let dir = handle
        .snapshot_download()
        .revision(commit.clone())
        .allow_patterns(patterns)
        .send()?;
    Ok((dir, wanted, commit))
}

fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if "*?[]{}!\\".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn explain(name: &str, repo: &str, revision: &str, offline: bool, e: &hf_hub::HFError) -> Error {
    use hf_hub::HFError as E;
    let source = |message: String, class, help: &str| Error::Source {
        name: name.into(),
        message,
        class,
        help: Some(help.into()),
    };
    match e {
        E::RepoNotFound { .. } => source(
            format!("the hub has no repository '{repo}', or it is private"),
            Class::Config,
            "check the name; for a private or gated repository set HF_TOKEN",
        ),
        E::RevisionNotFound { .. } => source(
            format!("'{repo}' has no revision '{revision}'"),
            Class::Config,
            "check the source's `revision`",
        ),
        E::AuthRequired { .. } | E::Forbidden { .. } => source(
            format!("the hub refuses access to '{repo}'"),
            Class::Config,
            "set HF_TOKEN to a token that may read it; a gated model must be accepted on its page first",
        ),
        _ if offline => source(
            format!(
                "'{repo}' at '{revision}' is not in the hub cache, and the network is off limits"
            ),
            Class::Infra,
            "run once with network (without --offline and HF_HUB_OFFLINE)",
        ),
        other => source(
            format!("'{repo}': {other}"),
            Class::Infra,
            "check the network and HF_ENDPOINT, and run again",
        ),
    }
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
