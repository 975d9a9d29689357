//! What goes in comes out, and nothing else.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cache::{Class, Digest, Entry, Error, Ingest, Intact, Link, Manifest, Store};
use proptest::prelude::*;

use super::common::*;

fn class<T>(result: cache::Result<T>) -> Class {
    result.err().expect("an error").class()
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    for place in places() {
        let store = place.store();
        let dir = place.folder.path().join("in");
        fill(
            &dir,
            &[
                ("a", b"1"),
                ("x/y/z", b"2"),
                ("x-y", b""),
                ("run.sh", b"#!/bin/sh\n"),
            ],
        );
        let script = dir.join("run.sh");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let before = read_dir(&dir);
        let (hashed, _) = store.hash_tree(&dir).unwrap();
        let (artifact, manifest) = store.put_tree(&dir, Ingest::Copy).unwrap();
        assert_eq!(hashed, artifact, "{}", place.name);
        assert_eq!(store.manifest(&artifact).unwrap(), manifest);
        assert_eq!(manifest.digest(), artifact);
        for link in [Link::Reflink, Link::Hard] {
            let to = place.folder.path().join(format!("out-{link:?}"));
            store.materialize(&artifact, &to, link).unwrap();
            assert_eq!(read_dir(&to), before, "{}", place.name);
            let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o111;
            assert_eq!((mode("run.sh"), mode("a")), (0o111, 0), "{}", place.name);
            assert!(store.artifact_intact(&artifact).unwrap().is_yes());
            assert_eq!(class(store.materialize(&artifact, &to, link)), Class::Usage);
        }
        assert_eq!(read_dir(&dir), before);
        store.put_tree(&dir, Ingest::Move).unwrap();
        assert!(
            read_dir(&dir).is_empty(),
            "{}: moved files are gone",
            place.name
        );
        assert!(store.verify(true).unwrap().is_whole());
    }
}

#[test]
fn what_was_taken_out_can_be_written_without_reaching_the_store() {
    let place = local();
    let store = place.store();
    let dir = place.folder.path().join("in");
    fill(&dir, &[("a", b"right")]);
    let (artifact, _) = store.put_tree(&dir, Ingest::Move).unwrap();
    let to = place.folder.path().join("to");
    store.materialize(&artifact, &to, Link::Reflink).unwrap();
    std::fs::write(to.join("a"), b"wrong").unwrap();
    assert!(store.artifact_intact(&artifact).unwrap().is_yes());
    assert_eq!(store.get_bytes(&Digest::of(b"right")).unwrap(), b"right");
    let blob = place.root().join(format!(
        "blobs/{}/{}",
        &Digest::of(b"right").hex()[..2],
        Digest::of(b"right")
    ));
    assert_eq!(blob.metadata().unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn a_hard_linked_output_is_copied_not_moved() {
    let place = local();
    let store = place.store();
    let dir = place.folder.path().join("in");
    fill(&dir, &[("a", b"right")]);
    let other = place.folder.path().join("other");
    std::fs::hard_link(dir.join("a"), &other).unwrap();
    let (artifact, _) = store.put_tree(&dir, Ingest::Move).unwrap();
    std::fs::write(&other, b"wrong").unwrap();
    assert!(store.artifact_intact(&artifact).unwrap().is_yes());
}

#[test]
fn links_and_special_files_are_refused() {
    for place in [local(), memory()] {
        let store = place.store();
        let dir = place.folder.path().join("in");
        fill(&dir, &[("a", b"1")]);
        std::os::unix::fs::symlink("a", dir.join("link")).unwrap();
        let error = store.put_tree(&dir, Ingest::Copy).unwrap_err();
        assert!(matches!(error, Error::NotAFile { .. }), "{error}");
        assert_eq!(error.class(), Class::Usage);
        assert!(error.to_string().contains("symbolic link"), "{error}");
        // a source may hold links: the hub's cache is made of them
        let (_, manifest) = store.put_source(&dir).unwrap();
        assert_eq!(manifest.file("link").unwrap().blob, Digest::of(b"1"));
    }
}

#[test]
fn a_manifest_cannot_lead_outside() {
    let blob = Digest::of(b"1");
    let entry = |path: &str| Entry {
        path: path.into(),
        size: 1,
        blob,
        executable: false,
    };
    for bad in [
        "../x",
        "a/../../x",
        "/etc/x",
        "a//b",
        "./a",
        "",
        "a/",
        "a\0b",
    ] {
        assert!(Manifest::new(vec![entry(bad)]).is_err(), "{bad:?}");
        let place = local();
        let store = place.store();
        store.put_bytes(b"1").unwrap();
        let forged = Manifest {
            files: vec![entry(bad)],
        };
        let artifact = store.put_bytes(&forged.canonical()).unwrap();
        let to = place.folder.path().join("deep/to");
        let error = store
            .materialize(&artifact, &to, Link::Reflink)
            .unwrap_err();
        assert_eq!(error.class(), Class::Integrity, "{error}");
        assert!(!to.exists() && !place.folder.path().join("deep/x").exists());
        assert!(matches!(
            store.artifact_intact(&artifact).unwrap(),
            Intact::Corrupt { .. }
        ));
    }
    assert!(Manifest::new(vec![entry("a"), entry("a")]).is_err());
    assert!(Manifest::new(vec![entry("a"), entry("a-b"), entry("a/b")]).is_err());
}

#[test]
fn a_failed_materialisation_leaves_nothing() {
    for place in places() {
        let store = place.store();
        let dir = place.folder.path().join("in");
        fill(&dir, &[("a", b"1"), ("b", b"2")]);
        let (artifact, _) = store.put_tree(&dir, Ingest::Copy).unwrap();
        let hex = Digest::of(b"2").hex();
        assert!(
            place
                .backend
                .delete(&format!("blobs/{}/{hex}", &hex[..2]))
                .unwrap()
        );
        let to = place.folder.path().join("out/to");
        let error = store
            .materialize(&artifact, &to, Link::Reflink)
            .unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{error}");
        assert_eq!(
            std::fs::read_dir(place.folder.path().join("out"))
                .unwrap()
                .count(),
            0
        );
        let look = store.artifact_intact(&artifact).unwrap();
        assert_eq!(
            look,
            Intact::Missing {
                digest: Digest::of(b"2")
            }
        );
    }
}

#[test]
fn an_existing_corrupt_blob_is_replaced_by_a_put() {
    for place in [local(), memory(), files()] {
        let store = place.store();
        let hex = Digest::of(b"right").hex();
        let path = format!("blobs/{}/{hex}", &hex[..2]);
        place.backend.put(&path, b"wrong").unwrap();
        assert_eq!(
            store
                .get_bytes(&Digest::of(b"right"))
                .map_err(|e| e.class()),
            Err(Class::Integrity)
        );
        store.put_bytes(b"right").unwrap();
        assert_eq!(
            store.get_bytes(&Digest::of(b"right")).unwrap(),
            b"right",
            "{}",
            place.name
        );
    }
}

#[test]
fn large_files_go_through_every_store() {
    let bytes: Vec<u8> = (0..20_000_000u32).map(|i| ((i * i) >> 7) as u8).collect();
    for place in places() {
        let store = place.store();
        let path = place.folder.path().join("large");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(
            store.put_file(&path, Ingest::Copy).unwrap(),
            Digest::of(&bytes)
        );
        let (artifact, _) = store.put_source(&path).unwrap();
        let to = place.folder.path().join("to");
        store.materialize(&artifact, &to, Link::Reflink).unwrap();
        assert!(
            std::fs::read(to.join("large")).unwrap() == bytes,
            "{}",
            place.name
        );
        let mut opened = Vec::new();
        let mut file = store.open_blob(&Digest::of(&bytes)).unwrap();
        std::io::Read::read_to_end(&mut file, &mut opened).unwrap();
        assert!(opened == bytes);
    }
}

#[test]
fn bad_urls_are_usage_errors_and_leak_nothing() {
    for bad in [
        "",
        "ftp://x/y",
        "s3://",
        "s3://key:secret@bucket/x",
        "file://",
        "az://c/x?sig=secret",
    ] {
        let error = Store::open(bad)
            .err()
            .unwrap_or_else(|| panic!("'{bad}' was opened"));
        assert_eq!(error.class(), Class::Usage, "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    assert_eq!(class(Store::open_local(&file)), Class::Usage);
    let root = folder.path().join("new");
    fill(&root, &[("format", b"recipe-store 99\n")]);
    let error = Store::open_local(&root).err().expect("a newer format");
    assert!(error.to_string().contains("recipe-store 99"), "{error}");
}

#[test]
fn urls_of_files_and_paths_mean_the_same_store() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("s");
    let digest = Store::open(root.to_str().unwrap())
        .unwrap()
        .put_bytes(b"x")
        .unwrap();
    let store = Store::open(&format!("file://{}", root.display())).unwrap();
    assert_eq!(store.get_bytes(&digest).unwrap(), b"x");
    assert_eq!(store.local(), Some(root.as_path()));
}

/// Runs in a file system of its own that becomes read-only: see `a_read_only_store_can_be_read`.
#[test]
#[ignore = "the child of a_read_only_store_can_be_read"]
fn child_read_only() {
    let Ok(root) = std::env::var("OWN_DISK") else {
        return;
    };
    let root = Path::new(&root);
    let scratch = tempfile::tempdir().unwrap();
    let open = || Store::open_local(&root.join("store")).unwrap();
    run(&open(), 1, scratch.path()).unwrap();
    let made_read_only = std::process::Command::new("mount")
        .args(["-o", "remount,ro"])
        .arg(root)
        .status();
    assert!(made_read_only.unwrap().success());
    let store = open();
    let view = store.view("test", 1);
    let brief = view.current(&[key(1)]).unwrap().remove(0).unwrap();
    assert!(view.intact(&[brief.outputs["out"]]).unwrap()[0].is_yes());
    view.save();
    check(&store, 1, scratch.path());
    assert!(store.verify(true).unwrap().is_whole());
    store.flush().unwrap();
    for refused in [
        store.put_bytes(b"new").unwrap_err(),
        run(&store, 2, scratch.path()).unwrap_err(),
        store.gc(&cache::Gc::default()).unwrap_err(),
    ] {
        assert_eq!(refused.class(), Class::Infra, "{refused}");
        let text = refused.to_string();
        assert!(text.contains("the store must be writable"), "{text}");
    }
    println!("own disk seen");
}

#[test]
fn a_read_only_store_can_be_read() {
    on_a_disk_of_its_own("child_read_only", "8m");
}

/// Runs in a small file system of its own: see `a_full_disk_is_a_clear_error`.
#[test]
#[ignore = "the child of a_full_disk_is_a_clear_error"]
fn child_full_disk() {
    let Ok(root) = std::env::var("OWN_DISK") else {
        return;
    };
    let root = Path::new(&root);
    let store = Store::open_local(&root.join("store")).unwrap();
    store.put_bytes(b"small").unwrap();
    let large = std::env::temp_dir().join(format!("recipe-large-{}", std::process::id()));
    std::fs::write(&large, vec![7u8; 4 << 20]).unwrap();
    let error = store.put_file(&large, Ingest::Copy).unwrap_err();
    assert!(error.is_full() && error.class() == Class::Infra, "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    let error = store.put_bytes(&vec![8u8; 4 << 20]).unwrap_err();
    assert!(error.is_full(), "{error}");
    std::fs::remove_file(large).unwrap();
    assert_eq!(
        std::fs::read_dir(root.join("store/local/tmp"))
            .unwrap()
            .count(),
        0
    );
    assert!(store.verify(true).unwrap().is_whole());
    assert_eq!(store.stat().unwrap().kind("blobs").objects, 1);
    println!("own disk seen");
}

#[test]
fn a_full_disk_is_a_clear_error() {
    on_a_disk_of_its_own("child_full_disk", "1m");
}

/// Runs the test `child` in a mount namespace with a file system of `size` at `OWN_DISK`.
fn on_a_disk_of_its_own(child: &str, size: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={size} tmpfs \"$OWN_DISK\" || exit 99; exec \"$0\" \
         {child} --include-ignored --nocapture"
    );
    let out = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("OWN_DISK", folder.path())
        .output();
    match out {
        Ok(out) if out.status.success() => {
            assert!(String::from_utf8_lossy(&out.stdout).contains("own disk seen"));
        }
        Ok(out) if out.status.code() == Some(101) => {
            panic!("{}", String::from_utf8_lossy(&out.stdout));
        }
        // no namespaces here: nothing can be said
        other => eprintln!("skipped, as no file system can be mounted: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_tree_round_trips(files in prop::collection::btree_map("[a-c]{1,2}(/[a-c. ü]{3,4}){0,2}", prop::collection::vec(any::<u8>(), 0..200), 0..8)) {
        let place = local();
        let dir = place.folder.path().join("in");
        std::fs::create_dir(&dir).unwrap();
        for (path, bytes) in &files {
            let at = dir.join(path);
            // 'a' and 'a/b' cannot both be
            if std::fs::create_dir_all(at.parent().unwrap()).is_ok() && !at.is_dir() {
                let _ = std::fs::write(at, bytes);
            }
        }
        let before = read_dir(&dir);
        let store = place.store();
        let (artifact, manifest) = store.put_tree(&dir, Ingest::Copy).unwrap();
        let to = place.folder.path().join("to");
        store.materialize(&artifact, &to, Link::Reflink).unwrap();
        prop_assert_eq!(read_dir(&to), before);
        let mut shuffled = manifest.files.clone();
        shuffled.reverse();
        prop_assert_eq!(Manifest::new(shuffled).unwrap().digest(), artifact);
        prop_assert_eq!(Manifest::parse(&manifest.canonical()).unwrap(), manifest);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes);
        let place = memory();
        let store = place.store();
        for path in [format!("results/{}/1", key(0)), format!("claims/{}/1", key(0)), format!("checkpoints/{}/1/1", key(0))] {
            place.backend.put(&path, &bytes).unwrap();
        }
        prop_assert!(store.current(&key(0)).unwrap().is_none());
        prop_assert!(store.newest_checkpoint(&key(0)).unwrap().is_none());
        // the three, and that nobody marked the store
        prop_assert_eq!(store.verify(true).unwrap().problems.len(), 4);
    }
}
