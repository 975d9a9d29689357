//! `recipe adopt`: what was made elsewhere enters the store by its digest, with a statement of who brought
//! it, where it is from and why. A recipe names it by the digest, and what is made of it tells the statement.

use std::path::Path;

use runner::Adoption;
use serde_json::json;

use crate::args::AdoptArgs;
use crate::digests::Digests;
use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::{output, project};

pub fn run(args: AdoptArgs) -> Result<u8, Fail> {
    for (flag, text) in [
        ("--by", &args.by),
        ("--from", &args.from),
        ("--why", &args.why),
    ] {
        if text.trim().is_empty() {
            return Err(Fail::usage(
                format!("{flag} is empty"),
                "a statement says who, where from and why",
            ));
        }
    }
    if !spec::recipe::is_name(&args.name) {
        return Err(Fail::usage(
            format!("--as '{}' is no name of a source", args.name),
            "use letters, digits, '-' and '_'",
        ));
    }
    if !args.path.exists() {
        return Err(Fail::usage(
            format!("'{}' does not exist", args.path.display()),
            "name a file or a directory",
        ));
    }
    for text in &args.sha256 {
        check(&args.path, text)?;
    }
    let here = std::env::current_dir().map_err(|e| Fail::io("read", Path::new("."), &e))?;
    let url = project::store(&args.store, &here);
    project::prepare_store(&args.store, &url)?;
    let remote = project::remote(&args.remote, &url);
    let store = cache::Store::open_with(&url, remote.as_deref(), true)?;
    let adoption = Adoption::new(&args.by, &args.from, &args.why);
    let (digest, manifest) = runner::adopt(&store, &args.path, &adoption)?;
    if args.json {
        output::json(&json!({
            "version": 1, "digest": digest.hex(), "files": manifest.files.len(), "bytes": manifest.bytes(),
            "statement": adoption,
        }));
    } else {
        output::line(format!(
            "adopted {}, {}; in a recipe:\n\n[source.{}]\nadopted = \"{}\"",
            plural(manifest.files.len(), "file"),
            bytes(manifest.bytes()),
            args.name,
            digest.hex()
        ));
    }
    Ok(0)
}

/// Compares a file with the digest that its maker published: `HEX`, or `FILE=HEX` in a directory.
fn check(path: &Path, text: &str) -> Result<(), Fail> {
    let (file, wanted) = match text.split_once('=') {
        Some((file, wanted)) => (path.join(file), wanted),
        None => (path.to_owned(), text),
    };
    if wanted.len() != 64 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) || file.is_dir() {
        return Err(Fail::usage(
            format!("--sha256 {text} names no file and digest"),
            "write FILE=HEX for a file of a directory, HEX for the file itself, of 64 digits",
        ));
    }
    let found = Digests::of(&file).map_err(|e| Fail::io("read", &file, &e))?;
    if found.sha256 != wanted.to_ascii_lowercase() {
        return Err(Fail::Other {
            code: spec::codes::INTEGRITY,
            exit: 5,
            message: format!(
                "'{}' has sha256 {}, not {wanted}; nothing was adopted",
                file.display(),
                found.sha256
            ),
            help: "take it from its maker again".to_owned(),
        });
    }
    Ok(())
}
