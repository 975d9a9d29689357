//! The Hugging Face hub: a repository at a commit, kept in the hub's own cache directory.
//!
//! `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_CACHE` work as they do elsewhere; `HF_HUB_OFFLINE=1`
//! forbids the network. hf-hub asks what there is; files are downloaded by [`download`], since hf-hub 1.0 neither goes on
//! with a download nor holds a file against its name, and takes an error page of a redirect's host for the file.

mod choice;
mod download;
mod refusal;

use std::path::{Path, PathBuf};

use cache::{Digest, Manifest, Store};
use hf_hub::HFClientSync;
use hf_hub::HFRepositorySync;
use hf_hub::repository::RepoType;

use super::{Access, From, Known, changed, files, http};
use crate::error::{Class, Error};
pub use choice::Repository;
use choice::chosen;
use download::{Download, Folder};
use refusal::{explain, refused};

/// Downloads a revision and tells its commit.
pub fn fetch(
    name: &str,
    repository: &Repository,
    revision: &str,
    store: &Store,
    offline: bool,
) -> Result<(Known, Option<String>), Error> {
    let (dir, names, commit) = match self::offline(offline) {
        true => cached_snapshot(name, repository, revision)?,
        false => online_snapshot(name, repository, revision, false)?,
    };
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
    let found = cached_snapshot(name, repository, revision);
    found.ok().map(|(dir, _, _)| dir)
}

/// Links the files of a pinned commit into `to`, downloading what the hub cache lacks.
pub fn provide(
    name: &str,
    (repository, commit): (&Repository, &str),
    digest: Digest,
    store: &Store,
    to: &Path,
    access: Access,
) -> Result<PathBuf, Error> {
    // What the cache holds may be all there is to it: then no request is needed.
    let cached = cached_snapshot(name, repository, commit).and_then(|(dir, names, _)| {
        let manifest = manifest_of(name, &dir, &names, store)?;
        Ok((dir, manifest))
    });
    let (dir, manifest) = match cached {
        Ok((dir, manifest)) if manifest.digest() == digest => (dir, manifest),
        Err(e) if offline(access.offline) => return Err(e),
        Ok((_, found)) if offline(access.offline) => {
            return Err(changed(
                name,
                &repository.id,
                digest,
                found.digest(),
                access,
            ));
        }
        // some of it is missing or damaged
        _ => {
            let (dir, names, _) = online_snapshot(name, repository, commit, true)?;
            let manifest = manifest_of(name, &dir, &names, store)?;
            if manifest.digest() != digest {
                return Err(changed(
                    name,
                    &repository.id,
                    digest,
                    manifest.digest(),
                    access,
                ));
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

/// The directory of a revision in the hub cache, the files that belong to the source, and the commit; what is there of
/// it without network.
fn cached_snapshot(
    name: &str,
    repository: &Repository,
    revision: &str,
) -> Result<(PathBuf, Vec<String>, String), Error> {
    let unknown = |e| explain(name, &repository.id, revision, &e);
    let client = HFClientSync::new().map_err(unknown)?;
    let (owner, short) = hf_hub::split_id(&repository.id);
    let found = if repository.dataset {
        local(&client.dataset(owner, short), revision)
    } else {
        local(&client.model(owner, short), revision)
    };
    let absent = |_| Error::Source {
        name: name.into(),
        message: format!(
            "'{}' at '{revision}' is not in the hub cache, and the network is off limits",
            repository.id
        ),
        class: Class::Infra,
        help: Some("run once with network (without --offline and HF_HUB_OFFLINE)".into()),
    };
    let dir = found.map_err(absent)?;
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
    let names = chosen(name, repository, revision, &names)?;
    Ok((dir, names, commit))
}

fn local<T: RepoType>(handle: &HFRepositorySync<T>, revision: &str) -> hf_hub::HFResult<PathBuf> {
    let snapshot = handle.snapshot_download().revision(revision);
    snapshot.local_files_only(true).send()
}

/// The same with network: what the cache lacks is downloaded.
fn online_snapshot(
    name: &str,
    repository: &Repository,
    revision: &str,
    verify: bool,
) -> Result<(PathBuf, Vec<String>, String), Error> {
    let (names, commit) = listed(name, repository, revision)?;
    let names = chosen(name, repository, revision, &names)?;
    let client =
        hf_hub::HFClient::new().map_err(|e| explain(name, &repository.id, revision, &e))?;
    let config = |message: String| Error::Source {
        name: name.into(),
        message,
        class: Class::Config,
        help: Some("correct HF_ENDPOINT, or unset it".into()),
    };
    let folder = Folder::new(client.cache_dir(), client.endpoint(), repository)
        .map_err(|e| config(format!("'{}' is not a URL: {e}", client.endpoint())))?;
    let infra = |e: http::Failure| Error::Source {
        name: name.into(),
        message: e.to_string(),
        class: Class::Infra,
        help: None,
    };
    let token = token();
    let in_pieces = |file: &str| in_pieces(&client, repository, &commit, file);
    let http = http::Client::new().map_err(infra)?;
    let download = Download {
        folder: &folder,
        client: &http,
        token: token.as_deref(),
        commit: &commit,
        verify,
        in_pieces: &in_pieces,
    };
    download
        .all(&names)
        .and_then(|()| folder.note_revision(revision, &commit))
        .map_err(|fault| refused(name, repository, client.endpoint(), token.is_some(), fault))?;
    Ok((folder.snapshot(&commit), names, commit))
}

/// A file that the hub stores in pieces, into the hub cache.
fn in_pieces(
    client: &hf_hub::HFClient,
    repository: &Repository,
    commit: &str,
    file: &str,
) -> Result<(), String> {
    let text = |e: hf_hub::HFError| http::redact(&e.to_string());
    let client = HFClientSync::from_inner(client.clone()).map_err(text)?;
    let (owner, short) = hf_hub::split_id(&repository.id);
    let commit = commit.to_owned();
    if repository.dataset {
        let handle = client.dataset(owner, short);
        handle
            .download_file()
            .filename(file)
            .revision(commit)
            .send()
    } else {
        let handle = client.model(owner, short);
        handle
            .download_file()
            .filename(file)
            .revision(commit)
            .send()
    }
    .map(drop)
    .map_err(text)
}

/// All files of a revision, and its commit.
fn listed(
    name: &str,
    repository: &Repository,
    revision: &str,
) -> Result<(Vec<String>, String), Error> {
    let unknown = |e| explain(name, &repository.id, revision, &e);
    let client = HFClientSync::new().map_err(unknown)?;
    let (owner, short) = hf_hub::split_id(&repository.id);
    let (sha, siblings) = if repository.dataset {
        let handle = client.dataset(owner, short);
        let info = handle.info().revision(revision).send().map_err(unknown)?;
        (info.sha, info.siblings)
    } else {
        let handle = client.model(owner, short);
        let info = handle.info().revision(revision).send().map_err(unknown)?;
        (info.sha, info.siblings)
    };
    let files = siblings.unwrap_or_default().into_iter();
    let commit = sha.unwrap_or_else(|| revision.to_owned());
    Ok((files.map(|s| s.rfilename).collect(), commit))
}

/// The commit that a revision stands for now.
pub fn commit_of(name: &str, repository: &Repository, revision: &str) -> Result<String, Error> {
    listed(name, repository, revision).map(|(_, commit)| commit)
}

/// Whether the network is off limits.
fn offline(asked: bool) -> bool {
    asked
        || std::env::var("HF_HUB_OFFLINE").is_ok_and(|v| !matches!(v.as_str(), "" | "0" | "false"))
}

/// The token of whoever runs this, where the hub's own tools keep it.
fn token() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let file = |path: PathBuf| std::fs::read_to_string(path).ok();
    let token = variable("HF_TOKEN")
        .or_else(|| file(variable("HF_TOKEN_PATH")?.into()))
        .or_else(|| file(hf_hub::hf_home().join("token")))?;
    Some(token.trim().to_owned()).filter(|t| !t.is_empty())
}
