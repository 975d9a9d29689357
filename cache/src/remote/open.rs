//! Which store a URL means, with credentials from where each cloud's own tools look.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::ClientConfigKey::Timeout;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use url::Url;

/// A store, and the same again when its uploads in parts can be gone on with.
type Opened = (Arc<dyn ObjectStore>, Option<Arc<dyn MultipartStore>>);

/// Opens the bucket of `url`; says why it cannot.
pub(super) fn open(url: &Url) -> Result<Opened, String> {
    fn both<S: ObjectStore + MultipartStore>(store: S) -> Opened {
        let store = Arc::new(store);
        (store.clone(), Some(store))
    }
    let bucket = || {
        url.host_str()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| "it names no bucket".to_owned())
    };
    let text = |e: object_store::Error| e.to_string();
    Ok(match url.scheme() {
        "s3" | "s3a" => both(s3(bucket()?).build().map_err(text)?),
        "gs" => both(
            GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket()?)
                .with_config(GoogleConfigKey::Client(Timeout), longest("GOOGLE"))
                .with_retry(retry())
                .build()
                .map_err(text)?,
        ),
        "az" | "azure" => both(
            MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket()?)
                .with_config(AzureConfigKey::Client(Timeout), longest("AZURE"))
                .with_retry(retry())
                .build()
                .map_err(text)?,
        ),
        "memory" => both(InMemory::new()),
        other => return Err(format!("the scheme '{other}' is unknown")),
    })
}

/// S3 with what `~/.aws` says where the environment says nothing.
fn s3(bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_config(AmazonS3ConfigKey::Client(Timeout), longest("AWS"))
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

/// How long one request may take, unless `<PREFIX>_TIMEOUT` says: a store that puts gigabytes of parts together answers
/// after minutes. Half a minute, object_store's own limit, would also end each piece on a slow line.
fn longest(prefix: &str) -> String {
    std::env::var(format!("{prefix}_TIMEOUT")).unwrap_or_else(|_| "5 minutes".to_owned())
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
pub(super) fn redact(text: &str) -> String {
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
