//! Objects behind a URL: `https://`, `s3://`, `gs://`, `az://` and what else object_store knows.
//!
//! A URL that ends in `/` stands for everything below it. Credentials come from the environment, where each provider's
//! own tools look for them. What was fetched is put into the store. A file over HTTP needs no more of its server than
//! GET; where the server knows ranges, a download that broke off goes on.

use std::io::Write;
use std::path::Path;

use cache::{Ingest, Store};
use object_store::{ObjectStore, ObjectStoreExt};

use super::{From, Known, files, http};
use crate::error::{Class, Error};

/// Fetches a URL into the store.
pub fn fetch(name: &str, at: &str, store: &Store, offline: bool) -> Result<Known, Error> {
    let fail = |class, message: String, help: &str| Error::Source {
        name: name.into(),
        message,
        class,
        help: Some(help.into()),
    };
    if offline {
        let message = format!("{at} is not in the store, and the network is off limits");
        return Err(fail(Class::Infra, message, "run once without --offline"));
    }
    let url = url::Url::parse(at).map_err(|e| {
        fail(
            Class::Config,
            format!("'{at}' is not a URL: {e}"),
            "write it like https://host/file or s3://bucket/key",
        )
    })?;
    let dir = tempfile::tempdir().map_err(|source| Error::System {
        what: "cannot make a temporary directory",
        source,
    })?;
    let known = |store: &Store| -> Result<Known, Error> {
        let (digest, _) = store.put_tree(dir.path(), Ingest::Copy)?;
        Ok(Known {
            digest,
            from: From::Url(at.to_owned()),
        })
    };
    if matches!(url.scheme(), "http" | "https") && !url.path().ends_with('/') {
        let to = dir.path().join(files::file_entry(Path::new(url.path())));
        let fetched = http::Client::new().and_then(|client| client.get(&url, None, &to, None));
        fetched.map_err(|e| {
            let (class, help) = match &e {
                http::Failure::Status { status: 401 | 403, .. } => (Class::Config, "the server lets nobody read it without credentials: fetch it yourself, and use `path`"),
                http::Failure::Status { status: 400..=499, .. } => (Class::Config, "check the URL"),
                _ => (Class::Infra, "check the network, and run again"),
            };
            fail(class, format!("{at}: {e}"), help)
        })?;
        return known(store);
    }
    // Object stores take their settings as lower-case names of their environment variables.
    let settings = std::env::vars()
        .filter(|(k, _)| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|p| k.starts_with(p))
        })
        .chain((url.scheme() == "http").then(|| ("allow_http".to_owned(), "true".to_owned())));
    let (remote, path) =
        object_store::parse_url_opts(&url, settings.map(|(k, v)| (k.to_ascii_lowercase(), v)))
            .map_err(|e| {
                fail(
                    Class::Config,
                    format!("'{at}' cannot be used: {e}"),
                    "check the scheme and the credentials",
                )
            })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            what: "cannot start the network runtime",
            source,
        })?;
    runtime
        .block_on(download(
            remote.as_ref(),
            &path,
            at.ends_with('/'),
            dir.path(),
        ))
        .map_err(|e| {
            let class = match &e {
                Fetch::Remote(object_store::Error::NotFound { .. }) | Fetch::Empty => Class::Config,
                _ => Class::Infra,
            };
            fail(
                class,
                format!("{at}: {e}"),
                "check the URL, the network and the credentials",
            )
        })?;
    known(store)
}

#[derive(Debug, thiserror::Error)]
enum Fetch {
    #[error("{0}")]
    Remote(#[from] object_store::Error),
    #[error("nothing lies below it")]
    Empty,
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

async fn download(
    remote: &dyn ObjectStore,
    path: &object_store::path::Path,
    prefix: bool,
    to: &Path,
) -> Result<(), Fetch> {
    if !prefix {
        let name = files::file_entry(Path::new(path.as_ref()));
        return save(remote, path, &to.join(name)).await;
    }
    let listed = remote.list_with_delimiter(Some(path)).await?;
    let mut pending = listed.common_prefixes;
    let mut objects = listed.objects;
    while let Some(folder) = pending.pop() {
        let below = remote.list_with_delimiter(Some(&folder)).await?;
        pending.extend(below.common_prefixes);
        objects.extend(below.objects);
    }
    if objects.is_empty() {
        return Err(Fetch::Empty);
    }
    for object in objects {
        let below: Vec<String> = object
            .location
            .prefix_match(path)
            .into_iter()
            .flatten()
            .map(|p| p.as_ref().to_owned())
            .collect();
        save(remote, &object.location, &to.join(below.join("/"))).await?;
    }
    Ok(())
}

async fn save(
    remote: &dyn ObjectStore,
    from: &object_store::path::Path,
    to: &Path,
) -> Result<(), Fetch> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::File::create(to)?;
    // In pieces, so that memory does not grow with the object.
    const PIECE: u64 = 16 << 20;
    let size = remote.head(from).await?.size;
    let mut at = 0;
    while at < size {
        let bytes = remote.get_range(from, at..(at + PIECE).min(size)).await?;
        file.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}
