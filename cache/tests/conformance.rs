//! object_store's own conformance suite on the stores that we use, opened as we open them.
//! `cargo test -p cache --features conformance --test conformance`; `ci/stores.sh` brings servers.
//!
//! Three of its tests ask for what we do not use: `put_opts` with `PutMode::Update`, which the local
//! file system refuses, copying to where nothing is, which S3 has no call for, and attributes.

use std::sync::Arc;

use cache::Remote;
use object_store::ObjectStore;
use object_store::integration::*;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;

/// A store, the same for uploads in parts, and whether it replaces an object by its version and
/// copies to where nothing is.
struct Tested {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    updates: bool,
    copy_if_absent: bool,
}

async fn conforms(
    Tested {
        store,
        multipart,
        updates,
        copy_if_absent,
    }: Tested,
) {
    put_get_delete_list(&store).await;
    get_opts(&store).await;
    put_opts(&store, updates).await;
    list_uses_directories_correctly(&store).await;
    list_with_delimiter(&store).await;
    rename_and_copy(&store).await;
    if copy_if_absent {
        copy_if_not_exists(&store).await;
    }
    stream_get(&store).await;
    list_with_offset_exclusivity(&store).await;
    if let Some(multipart) = &multipart {
        object_store::integration::multipart(&store, multipart.as_ref()).await;
    }
}

#[tokio::test]
async fn the_local_file_system_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    conforms(Tested {
        store,
        multipart: None,
        updates: false,
        copy_if_absent: true,
    })
    .await;
}

#[tokio::test]
async fn servers_conform() {
    let urls = std::env::var("RECIPE_TEST_STORES").unwrap_or_default();
    for url in urls.split_whitespace() {
        let bucket = url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
        let remote = Remote::open(&bucket).unwrap();
        println!("{bucket}");
        let (store, multipart) = remote.raw();
        conforms(Tested {
            store,
            multipart,
            updates: true,
            // S3 has none of its own; the store never copies
            copy_if_absent: !bucket.starts_with("s3://"),
        })
        .await;
    }
}
