//! A store on any object_store: `s3://`, `gs://`, `az://`, `memory://`.
//!
//! The tokio runtime is made on the first remote operation and hidden: every call blocks its own
//! thread. Credentials come from where each cloud's own tools look: environment variables,
//! `~/.aws/credentials` and `~/.aws/config`, application default credentials, instance metadata.

mod open;
mod transfer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;
use url::Url;

use crate::backend::{Backend, Each, Listed, Observer};
use crate::error::{Error, Result};
use open::redact;

/// An object_store as a [`Backend`].
pub struct Remote {
    url: String,
    prefix: Key,
    store: Arc<dyn ObjectStore>,
    /// The same store, where uploads in parts can be told apart and gone on with.
    multipart: Option<Arc<dyn MultipartStore>>,
    transfers: Option<PathBuf>,
    /// Set once uploads that were left long ago are given up.
    idle: OnceLock<()>,
    observer: OnceLock<Observer>,
    runtime: OnceLock<Runtime>,
}

impl Remote {
    /// Opens `url`, such as `s3://bucket/prefix`.
    pub fn open(url: &str) -> Result<Remote> {
        let bad = |why: String| Error::BadUrl {
            url: redact(url),
            why,
        };
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some()
        {
            return Err(bad(
                "it holds credentials or a query; put those in the environment".into(),
            ));
        }
        let (store, multipart) = open::open(&parsed).map_err(|why| bad(redact(&why)))?;
        let prefix = Key::from_url_path(parsed.path()).map_err(|e| bad(e.to_string()))?;
        let remote = Remote::new(url.trim_end_matches('/'), store, prefix);
        Ok(remote.with_multipart(multipart))
    }

    /// Uses `store` below `prefix`; `url` is how people name it.
    pub fn new(url: &str, store: Arc<dyn ObjectStore>, prefix: Key) -> Remote {
        Remote {
            url: url.to_owned(),
            prefix,
            store,
            multipart: None,
            transfers: None,
            idle: OnceLock::new(),
            observer: OnceLock::new(),
            runtime: OnceLock::new(),
        }
    }

    /// Uses `multipart`, which is the same store, for large objects: their uploads can be gone on with.
    pub fn with_multipart(mut self, multipart: Option<Arc<dyn MultipartStore>>) -> Remote {
        self.multipart = multipart;
        self
    }

    /// Keeps in `folder` how far uploads are, so that one that was killed is gone on with.
    pub fn keeping(mut self, folder: Option<PathBuf>) -> Remote {
        self.transfers = folder;
        self
    }

    fn key(&self, path: &str) -> Key {
        Key::from(format!("{}/{path}", self.prefix))
    }

    /// The store as object_store has it, and the same for uploads in parts.
    pub fn raw(&self) -> (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>) {
        (self.store.clone(), self.multipart.clone())
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("store")
                .enable_all()
                .build()
                .expect("the system can start two threads")
        })
    }

    /// Runs `future` to its end, also when the caller is itself inside a runtime.
    fn block<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let runtime = self.runtime();
        if tokio::runtime::Handle::try_current().is_err() {
            return runtime.block_on(future);
        }
        std::thread::scope(|scope| {
            let done = scope.spawn(|| runtime.block_on(future)).join();
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn error(&self, action: &'static str, path: &str) -> impl FnOnce(object_store::Error) -> Error {
        let (path, store) = (path.to_owned(), self.url.clone());
        move |e| Error::Remote {
            action,
            path,
            store,
            message: redact(&e.to_string()),
        }
    }
}

/// A path as it was put: object_store keeps characters that some clouds refuse, such as the brackets of a cell's log, as
/// `%5B`.
fn decoded(path: &str) -> std::borrow::Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let (bytes, mut out, mut at) = (path.as_bytes(), Vec::with_capacity(path.len()), 0);
    while at < bytes.len() {
        let hex = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    match String::from_utf8(out) {
        Ok(text) => text.into(),
        Err(_) => path.into(),
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background(); // a plain drop panics inside another runtime
        }
    }
}

fn missing<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Backend for Remote {
    fn url(&self) -> &str {
        &self.url
    }

    fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let key = self.key(path);
        self.block(async {
            match missing(self.store.get(&key).await)? {
                None => Ok(None),
                Some(found) => Ok(Some(found.bytes().await?.to_vec())),
            }
        })
        .map_err(self.error("read", path))
    }

    fn put_new(&self, path: &str, bytes: &[u8], _durable: bool) -> Result<bool> {
        let key = self.key(path);
        let payload = PutPayload::from(bytes.to_vec());
        let options = PutOptions::from(PutMode::Create);
        match self.block(self.store.put_opts(&key, payload, options)) {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(false),
            Err(e) => Err(self.error("create", path)(e)),
        }
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let key = self.key(path);
        let payload = PutPayload::from(bytes.to_vec());
        self.block(self.store.put(&key, payload))
            .map_err(self.error("write", path))?;
        Ok(())
    }

    fn put_from(&self, path: &str, source: &Path) -> Result<()> {
        self.upload(path, source)
    }

    fn fetch(&self, path: &str, to: &Path) -> Result<bool> {
        self.download(path, to)
    }

    fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    fn size(&self, path: &str) -> Result<Option<u64>> {
        let key = self.key(path);
        let found = missing(self.block(self.store.head(&key))).map_err(self.error("find", path))?;
        Ok(found.map(|meta| meta.size))
    }

    fn now(&self) -> Result<SystemTime> {
        // a store's clock shows in what it stamps
        self.put("clock", b"")?;
        let key = self.key("clock");
        let meta = self
            .block(self.store.head(&key))
            .map_err(self.error("find", "clock"))?;
        Ok(meta.last_modified.into())
    }

    fn list(&self, prefix: &str, each: &mut Each) -> Result<()> {
        let key = self.key(prefix);
        let strip = if self.prefix.as_ref().is_empty() {
            0
        } else {
            self.prefix.as_ref().len() + 1
        };
        let mut stream = self.store.list(Some(&key));
        // a page at a time crosses from the runtime to the caller's thread
        while let Some(found) = self.block(std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)))
        {
            let meta = found.map_err(self.error("list", prefix))?;
            each(Listed {
                path: &decoded(&meta.location.as_ref()[strip..]),
                size: meta.size,
                modified: meta.last_modified.into(),
            })?;
        }
        Ok(())
    }

    fn children(&self, prefix: &str) -> Result<Vec<String>> {
        let key = self.key(prefix);
        let found = self
            .block(self.store.list_with_delimiter(Some(&key)))
            .map_err(self.error("list", prefix))?;
        let folders = found.common_prefixes.iter();
        let files = found.objects.iter().map(|meta| &meta.location);
        Ok(folders
            .chain(files)
            .filter_map(|p| p.filename().map(str::to_owned))
            .collect())
    }

    fn delete(&self, path: &str) -> Result<bool> {
        let there = self.size(path)?.is_some();
        if there {
            let key = self.key(path);
            missing(self.block(self.store.delete(&key))).map_err(self.error("remove", path))?;
        }
        Ok(there)
    }
}
