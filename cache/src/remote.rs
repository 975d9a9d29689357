//! A store on any object_store: `s3://`, `gs://`, `az://`, `memory://`.
//!
//! The tokio runtime is made on the first remote operation and hidden: every call blocks its own
//! thread. Credentials come from where each cloud's own tools look: environment variables,
//! `~/.aws/credentials` and `~/.aws/config`, application default credentials, instance metadata.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart};
use tokio::runtime::Runtime;
use url::Url;

use crate::backend::Backend;
use crate::error::{Error, Result};

/// Files are sent and fetched in pieces of this many bytes.
const PIECE: usize = 8 << 20;
/// Pieces of one file in flight.
const IN_FLIGHT: usize = 8;

/// An object_store as a [`Backend`].
pub struct Remote {
    url: String,
    prefix: Key,
    store: Arc<dyn ObjectStore>,
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
        let bucket = || {
            parsed
                .host_str()
                .filter(|h| !h.is_empty())
                .ok_or_else(|| bad("it names no bucket".into()))
        };
        let failed = |e: object_store::Error| bad(redact(&e.to_string()));
        let store: Arc<dyn ObjectStore> = match parsed.scheme() {
            "s3" | "s3a" => Arc::new(s3(bucket()?).build().map_err(failed)?),
            "gs" => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(bucket()?)
                    .build()
                    .map_err(failed)?,
            ),
            "az" | "azure" => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_container_name(bucket()?)
                    .build()
                    .map_err(failed)?,
            ),
            "memory" => Arc::new(InMemory::new()),
            other => return Err(bad(format!("the scheme '{other}' is unknown"))),
        };
        let prefix = Key::from_url_path(parsed.path()).map_err(|e| bad(e.to_string()))?;
        Ok(Remote::new(url.trim_end_matches('/'), store, prefix))
    }

    /// Uses `store` below `prefix`; `url` is how people name it.
    pub fn new(url: &str, store: Arc<dyn ObjectStore>, prefix: Key) -> Remote {
        Remote {
            url: url.to_owned(),
            prefix,
            store,
            runtime: OnceLock::new(),
        }
    }

    fn key(&self, path: &str) -> Key {
        Key::from(format!("{}/{path}", self.prefix))
    }

    /// Runs `future` to its end, also when the caller is itself inside a runtime.
    fn block<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let runtime = self.runtime.get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("store")
                .enable_all()
                .build()
                .expect("the system can start two threads")
        });
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
        let mut file = File::open(source).map_err(Error::io("open", source))?;
        let len = file.metadata().map_err(Error::io("stat", source))?.len();
        if len <= PIECE as u64 {
            let mut bytes = Vec::with_capacity(len as usize);
            file.read_to_end(&mut bytes)
                .map_err(Error::io("read", source))?;
            return self.put(path, &bytes);
        }
        let key = self.key(path);
        let upload = self
            .block(self.store.put_multipart(&key))
            .map_err(self.error("write", path))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PIECE);
        let mut piece = vec![0u8; PIECE];
        loop {
            let read = match file.read(&mut piece) {
                Ok(read) => read,
                Err(e) => {
                    let _ = self.block(upload.abort());
                    return Err(Error::io("read", source)(e));
                }
            };
            if read == 0 {
                break;
            }
            let sent = self.block(async {
                upload.wait_for_capacity(IN_FLIGHT).await?;
                upload.write(&piece[..read]);
                Ok::<(), object_store::Error>(())
            });
            if let Err(e) = sent {
                let _ = self.block(upload.abort());
                return Err(self.error("write", path)(e));
            }
        }
        self.block(upload.finish())
            .map_err(self.error("write", path))?;
        Ok(())
    }

    fn fetch(&self, path: &str, to: &Path) -> Result<bool> {
        let key = self.key(path);
        let Some(meta) =
            missing(self.block(self.store.head(&key))).map_err(self.error("find", path))?
        else {
            return Ok(false);
        };
        let mut file = File::create_new(to).map_err(Error::io("create", to))?;
        let mut at = 0;
        while at < meta.size {
            let window = (PIECE * IN_FLIGHT) as u64;
            let end = meta.size.min(at + window);
            let ranges: Vec<_> = (at..end)
                .step_by(PIECE)
                .map(|start| start..end.min(start + PIECE as u64))
                .collect();
            let pieces = self
                .block(self.store.get_ranges(&key, &ranges))
                .map_err(self.error("read", path))?;
            for piece in pieces {
                file.write_all(&piece).map_err(Error::io("write", to))?;
            }
            at = end;
        }
        Ok(true)
    }

    fn size(&self, path: &str) -> Result<Option<u64>> {
        let key = self.key(path);
        let found = missing(self.block(self.store.head(&key))).map_err(self.error("find", path))?;
        Ok(found.map(|meta| meta.size))
    }

    fn list(&self, prefix: &str, each: &mut dyn FnMut(&str, u64) -> Result<()>) -> Result<()> {
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
            each(&meta.location.as_ref()[strip..], meta.size)?;
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

/// S3 with what `~/.aws` says where the environment says nothing.
fn s3(bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry());
    let set = |name: &str| std::env::var_os(name).is_some();
    let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".into());
    let read = |variable: &str, name: &str| -> Option<String> {
        let path = std::env::var_os(variable)
            .map(std::path::PathBuf::from)
            .or_else(|| {
                std::env::var_os("HOME").map(|home| Path::new(&home).join(".aws").join(name))
            })?;
        std::fs::read_to_string(path).ok()
    };
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default();
    let config = read("AWS_CONFIG_FILE", "config").unwrap_or_default();
    let profiled = |key: &str| {
        ini(&credentials, &profile, key)
            .or_else(|| ini(&config, &format!("profile {profile}"), key))
            .or_else(|| ini(&config, &profile, key))
    };
    if !set("AWS_ACCESS_KEY_ID")
        && let (Some(id), Some(secret)) = (
            profiled("aws_access_key_id"),
            profiled("aws_secret_access_key"),
        )
    {
        builder = builder
            .with_access_key_id(id)
            .with_secret_access_key(secret);
        if let Some(token) = profiled("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    if !set("AWS_REGION")
        && !set("AWS_DEFAULT_REGION")
        && let Some(region) = profiled("region")
    {
        builder = builder.with_region(region);
    }
    if !set("AWS_ENDPOINT")
        && !set("AWS_ENDPOINT_URL")
        && !set("AWS_ENDPOINT_URL_S3")
        && let Some(endpoint) = profiled("endpoint_url")
    {
        builder = builder.with_endpoint(endpoint);
    }
    // an endpoint of one's own (a test server, MinIO) is often plain http
    let plain = ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .any(|endpoint| endpoint.starts_with("http://"));
    if plain {
        builder.with_allow_http(true)
    } else {
        builder
    }
}

fn retry() -> object_store::RetryConfig {
    object_store::RetryConfig {
        max_retries: 6,
        retry_timeout: Duration::from_secs(60),
        ..Default::default()
    }
}

/// `key` of `[section]` in an AWS style ini file.
fn ini(text: &str, section: &str, key: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim().to_owned());
        }
    }
    None
}

/// Takes out what may be secret: queries of URLs (signatures) and user names before an `@`.
fn redact(text: &str) -> String {
    let end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ')' | '`' | '>');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        let (address, after) = tail.split_at(tail.find(end).unwrap_or(tail.len()));
        out.push_str(head);
        let plain = address.split('?').next().unwrap_or_default();
        let host_end = plain.find('/').unwrap_or(plain.len());
        match plain[..host_end].rfind('@') {
            Some(user) => {
                out.push_str("..");
                out.push_str(&plain[user..]);
            }
            None => out.push_str(plain),
        }
        if plain.len() < address.len() {
            out.push_str("?..");
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{ini, redact};

    #[test]
    fn secrets_are_taken_out() {
        let text = "error for https://me:pw@x.blob/a?sig=abc&se=1 (https://y/b?X-Amz=1): no";
        assert_eq!(
            redact(text),
            "error for https://..@x.blob/a?.. (https://y/b?..): no"
        );
    }

    #[test]
    fn profiles_are_read() {
        let text =
            "[default]\nregion = a\n# x\n[profile b]\nregion=c\naws_access_key_id = d # no\n";
        assert_eq!(ini(text, "default", "region").as_deref(), Some("a"));
        assert_eq!(ini(text, "profile b", "region").as_deref(), Some("c"));
        assert_eq!(ini(text, "b", "region"), None);
    }
}
