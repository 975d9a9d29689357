//! Sources over the network, from a server that speaks the hub's protocol: redirects to a CDN with signed addresses,
//! names of content, ranges, gated repositories, transfers that break off, revisions that move.

mod server;

use crate::project::{Project, Ran, run_with};
use server::{Hub, MEMBER, STRANGER, git_name, sha256};
use std::sync::Arc;

/// Weights of a size that the hub keeps at its CDN.
fn weights() -> Vec<u8> {
    (0..300_000u32)
        .flat_map(|i| (i % 251).to_le_bytes())
        .collect()
}

/// A hub with the model `org/tiny`, large and small files and another framework's weights.
fn hub() -> Arc<Hub> {
    let hub = Hub::start();
    hub.commit(
        "models/org/tiny",
        "main",
        &[
            (".gitattributes", b"* text"),
            ("config.json", b"{}"),
            ("model.safetensors", &weights()),
            ("pytorch_model.bin", b"the same weights"),
            ("tokenizer/tokenizer.json", b"{\"model\": {}}"),
        ],
    );
    hub
}

/// A stage that lists and sums up what the source is.
fn project(source: &str) -> Project {
    Project::new(&format!(
        "[recipe]\nname = \"net\"\nschema = 1\n[source.x]\n{source}\n[stage.a]\nkind = \"command\"\nin.x = \"source.x\"\n\
         cmd = [\"sh\", \"-c\", \"cd $IN_x 2>/dev/null || {{ sha256sum < $IN_x > $OUT_out; exit; }}; find -L . -type f | sort | xargs sha256sum > $OUT_out\"]\n\
         out = [\"out\"]\n"
    ))
}

/// `recipe` as somebody runs it whose hub is `hub`.
fn online(p: &Project, hub: &Hub, args: &str, env: &[(&str, &str)]) -> Ran {
    let home = p.path("hf").display().to_string();
    let mut all = vec![
        ("HF_ENDPOINT", hub.url.as_str()),
        ("HF_HOME", home.as_str()),
        ("NO_PROXY", "127.0.0.1,localhost"),
        ("no_proxy", "127.0.0.1,localhost"),
    ];
    all.extend(env);
    run_with(
        &p.path(""),
        &args.split_whitespace().collect::<Vec<_>>(),
        |command| {
            for name in [
                "HF_TOKEN",
                "HF_TOKEN_PATH",
                "HF_HUB_CACHE",
                "HUGGINGFACE_HUB_CACHE",
                "HF_HUB_OFFLINE",
                "HF_HUB_DISABLE_IMPLICIT_TOKEN",
            ] {
                command.env_remove(name);
            }
            command.envs(all);
        },
    )
}

fn status(ran: &Ran) -> String {
    ran.json()["stages"][0]["status"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn output(p: &Project, hub: &Hub) -> String {
    let _ = std::fs::remove_dir_all(p.path("got"));
    online(
        p,
        hub,
        "get recipe.toml a.out --to got",
        &[("HF_HUB_OFFLINE", "1")],
    )
    .code(0);
    p.read("got/data")
}

/// What the stage says of these files.
fn listed(files: &[(&str, &[u8])]) -> String {
    files
        .iter()
        .map(|(name, bytes)| format!("{}  ./{name}\n", sha256(bytes)))
        .collect()
}

/// Everything below a folder that is a file, and everything that was printed.
fn all_text(p: &Project, ran: &Ran) -> String {
    let mut text = format!("{}{}", ran.out, ran.err);
    let mut folders = vec![p.path("")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => text.push_str(&String::from_utf8_lossy(
                    &std::fs::read(entry.path()).unwrap_or_default(),
                )),
            }
        }
    }
    text
}

#[test]
fn files_come_whole_and_the_token_stays_with_the_hub() {
    let hub = hub();
    let p = project("hf = \"org/tiny\"");
    let first = online(&p, &hub, "run recipe.toml --json", &[("HF_TOKEN", MEMBER)]).code(0);
    let files: [(&str, &[u8]); 3] = [
        ("config.json", b"{}"),
        ("model.safetensors", &weights()),
        ("tokenizer/tokenizer.json", b"{\"model\": {}}"),
    ];
    assert_eq!(output(&p, &hub), listed(&files));
    let seen = hub.seen();
    assert!(
        seen.iter().all(|s| !s.path.contains("pytorch_model.bin")),
        "other formats are left out"
    );
    let (at_hub, at_cdn): (Vec<_>, Vec<_>) = seen.into_iter().partition(|s| s.host == "hub");
    assert!(
        at_hub.iter().all(|s| s.token.as_deref() == Some(MEMBER)),
        "{at_hub:?}"
    );
    assert_eq!(at_cdn.len(), 1, "{at_cdn:?}");
    assert!(at_cdn.iter().all(|s| s.token.is_none()), "{at_cdn:?}");
    let text = all_text(&p, &first);
    assert!(
        !text.contains(MEMBER) && !text.contains("X-Amz-Signature"),
        "a secret is told"
    );

    // laid out as the hub's other clients have it
    let blobs = p.path("hf/hub/models--org--tiny/blobs");
    for (_, bytes) in files {
        let name = if bytes.len() < 1000 {
            git_name(bytes)
        } else {
            sha256(bytes)
        };
        assert_eq!(std::fs::read(blobs.join(name)).unwrap(), bytes);
    }
    // the digest is that of the same files from anywhere
    let lock = p.read("recipe.lock");
    let digest = |text: &str| {
        text.lines()
            .find(|l| l.starts_with("digest"))
            .unwrap()
            .to_owned()
    };
    let local = project("path = \"here\"");
    for (name, bytes) in files {
        let path = local.path("here").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    online(&local, &hub, "run recipe.toml", &[]).code(0);
    assert_eq!(digest(&lock), digest(&local.read("recipe.lock")));
    assert!(
        lock.contains("hf = \"org/tiny\"") && lock.contains("revision = \"main\""),
        "{lock}"
    );

    // pinned: neither a reused stage nor one that runs again asks the network
    assert_eq!(
        status(&online(&p, &hub, "run recipe.toml --json", &[]).code(0)),
        "reused"
    );
    let forced = online(&p, &hub, "run recipe.toml --json --force --offline", &[]).code(0);
    assert_eq!((status(&forced), hub.seen().len()), ("ran".to_owned(), 0));
}

#[test]
fn a_renamed_repository_and_a_data_set_with_patterns() {
    let hub = hub();
    let rows = weights();
    hub.commit(
        "datasets/org/rows",
        "main",
        &[
            ("main/train-0.parquet", &rows),
            ("main/test-0.parquet", b"x"),
            ("README.md", b"#"),
        ],
    );
    let p = project("hf_dataset = \"org/rows\"\nfiles = [\"main/train-*.parquet\"]");
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    assert_eq!(output(&p, &hub), listed(&[("main/train-0.parquet", &rows)]));
    let none = online(
        &project("hf_dataset = \"org/rows\"\nfiles = [\"*.csv\"]"),
        &hub,
        "run recipe.toml",
        &[],
    )
    .code(2);
    assert!(none.err.contains("no file like '*.csv'"), "{}", none.err);

    let files = hub.state().repos["models/org/tiny"]
        .commits
        .values()
        .next()
        .unwrap()
        .clone();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    hub.commit("models/org/old", "main", &files);
    let p = project("hf = \"org/old\"\nfiles = [\"config.json\", \"*.safetensors\"]");
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    assert_eq!(
        output(&p, &hub),
        listed(&[("config.json", b"{}"), ("model.safetensors", &weights())])
    );
}

#[test]
fn a_transfer_that_breaks_off_goes_on() {
    let hub = hub();
    let p = project("hf = \"org/tiny\"");
    let size = weights().len();
    hub.state().cuts = vec![size / 3, size / 3];
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    let ranges: Vec<_> = hub
        .seen()
        .into_iter()
        .filter(|s| s.host == "cdn")
        .map(|s| s.range)
        .collect();
    let from = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, from(size / 3), from(size / 3 * 2)]);

    // a run that gives up keeps what came, and the next goes on there
    let p = project("hf = \"org/tiny\"");
    hub.state().cuts = vec![size / 2];
    let watch = hub.clone();
    let down = std::thread::spawn(move || {
        while !watch.state().seen.iter().any(|s| s.host == "cdn") {
            std::thread::yield_now();
        }
        watch.state().down = true;
    });
    let failed = online(&p, &hub, "run recipe.toml", &[]).code(4);
    down.join().unwrap();
    assert!(
        failed.err.contains("what came is kept") && failed.err.contains("503"),
        "{}",
        failed.err
    );
    hub.state().down = false;
    hub.seen();
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    let first = hub.seen().into_iter().find(|s| s.host == "cdn").unwrap();
    assert_eq!(first.range, from(size / 2));
    assert!(output(&p, &hub).contains(&sha256(&weights())));

    // what came before was damaged since, or the server takes no notice of ranges: all of it comes again
    for no_ranges in [false, true] {
        let p = project("hf = \"org/tiny\"");
        let blobs = p.path("hf/hub/models--org--tiny/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(
            blobs.join(format!("{}.incomplete", sha256(&weights()))),
            b"not these",
        )
        .unwrap();
        hub.state().no_ranges = no_ranges;
        online(&p, &hub, "run recipe.toml", &[]).code(0);
        assert!(output(&p, &hub).contains(&sha256(&weights())));
    }
}

#[test]
fn what_is_not_what_the_hub_says_is_refused() {
    let hub = hub();
    let p = project("hf = \"org/tiny\"");
    hub.state().damage = true;
    let damaged = online(&p, &hub, "run recipe.toml", &[]).code(5);
    assert!(
        damaged
            .err
            .contains("'model.safetensors' is not what the hub says it is"),
        "{}",
        damaged.err
    );
    assert!(!damaged.err.contains("X-Amz-Signature"), "{}", damaged.err);
    hub.state().damage = false;
    online(&p, &hub, "run recipe.toml", &[]).code(0);

    // a cache that was damaged on this machine is mended
    let blob = p
        .path("hf/hub/models--org--tiny/blobs")
        .join(git_name(b"{}"));
    std::fs::write(&blob, "{\"damaged\": 1}").unwrap();
    let offline = online(&p, &hub, "run recipe.toml --force --offline", &[]).code(5);
    assert!(offline.err.contains("recipe.lock pins"), "{}", offline.err);
    online(&p, &hub, "run recipe.toml --force", &[]).code(0);
    assert_eq!(std::fs::read(&blob).unwrap(), b"{}");

    hub.commit(
        "models/org/evil",
        "main",
        &[("../../../../evil.json", b"{}"), ("config.json", b"{}")],
    );
    let evil = online(&project("hf = \"org/evil\""), &hub, "run recipe.toml", &[]).code(2);
    assert!(
        evil.err
            .contains("'../../../../evil.json' is no name for a file"),
        "{}",
        evil.err
    );
}

#[test]
fn gated_and_private_repositories_say_what_to_do() {
    let hub = hub();
    hub.state().repos.get_mut("models/org/tiny").unwrap().gated = true;
    let p = project("hf = \"org/tiny\"");
    let nobody = online(&p, &hub, "run recipe.toml", &[]).code(2);
    assert!(
        nobody.err.contains("'org/tiny', which is gated") && nobody.err.contains("hf auth login"),
        "{}",
        nobody.err
    );
    let stranger = online(&p, &hub, "run recipe.toml", &[("HF_TOKEN", STRANGER)]).code(2);
    assert!(
        stranger.err.contains("may not read it yet"),
        "{}",
        stranger.err
    );
    assert!(
        stranger
            .err
            .contains(&format!("ask for access at {}/org/tiny", hub.url)),
        "{}",
        stranger.err
    );
    let wrong = online(&p, &hub, "run recipe.toml", &[("HF_TOKEN", "hf_wrong_9")]).code(2);
    assert!(
        wrong.err.contains("does not accept the token") && !wrong.err.contains("hf_wrong_9"),
        "{}",
        wrong.err
    );
    // where the hub's own tools leave it
    std::fs::create_dir_all(p.path("hf")).unwrap();
    std::fs::write(p.path("hf/token"), format!("{MEMBER}\n")).unwrap();
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    let absent = online(
        &project("hf = \"org/absent\""),
        &hub,
        "run recipe.toml",
        &[],
    )
    .code(2);
    assert!(
        absent
            .err
            .contains("no repository 'org/absent', or it is private"),
        "{}",
        absent.err
    );
    let revision = online(
        &project("hf = \"org/tiny\"\nrevision = \"v9\""),
        &hub,
        "run recipe.toml",
        &[("HF_TOKEN", MEMBER)],
    )
    .code(2);
    assert!(revision.err.contains("v9"), "{}", revision.err);
    let offline = online(
        &project("hf = \"org/tiny\""),
        &hub,
        "run recipe.toml",
        &[("HF_HUB_OFFLINE", "1")],
    )
    .code(4);
    assert!(
        offline.err.contains("not in the hub cache"),
        "{}",
        offline.err
    );
}

#[test]
fn a_revision_that_moves_is_taken_when_asked_to() {
    let hub = hub();
    let p = project("hf = \"org/tiny\"");
    let locked = online(&p, &hub, "run recipe.toml --locked", &[]).code(6);
    assert!(locked.err.contains("is not in it"), "{}", locked.err);
    let new = online(&p, &hub, "lock recipe.toml", &[]).code(0);
    assert!(new.out.contains("new"), "{}", new.out);
    online(&p, &hub, "run recipe.toml --locked", &[]).code(0);
    let before = p.read("recipe.lock");

    let next = hub.commit(
        "models/org/tiny",
        "main",
        &[("config.json", b"{\"next\": 1}")],
    );
    hub.seen();
    let same = online(&p, &hub, "run recipe.toml --locked --json", &[]).code(0);
    assert_eq!(
        (status(&same), hub.seen().len()),
        ("reused".to_owned(), 0),
        "a pin holds"
    );
    let check = online(&p, &hub, "lock recipe.toml --check", &[]).code(6);
    assert!(
        check.out.contains(&format!("is now {}", &next[..12])),
        "{}",
        check.out
    );
    assert!(
        check.err.contains("recipe lock recipe.toml --update x"),
        "{}",
        check.err
    );
    assert_eq!(p.read("recipe.lock"), before);
    let typo = online(&p, &hub, "lock recipe.toml --update y", &[]).code(2);
    assert!(typo.err.contains("no source 'y'"), "{}", typo.err);

    let update = online(&p, &hub, "lock recipe.toml --update x --json", &[])
        .code(0)
        .json();
    assert_eq!(update["sources"][0]["change"], "updated");
    assert_eq!(update["sources"][0]["commit"], next);
    online(&p, &hub, "lock recipe.toml --check", &[]).code(0);
    let ran = online(&p, &hub, "run recipe.toml --locked --json", &[]).code(0);
    assert_eq!(status(&ran), "ran");
    assert_eq!(
        output(&p, &hub),
        listed(&[("config.json", b"{\"next\": 1}")])
    );

    // a revision that the lock does not know
    p.write(
        "recipe.toml",
        &p.read("recipe.toml")
            .replace("hf = \"org/tiny\"", "hf = \"org/tiny\"\nrevision = \"v2\""),
    );
    let other = online(&p, &hub, "run recipe.toml --locked", &[]).code(6);
    assert!(other.err.contains("hf://org/tiny@v2"), "{}", other.err);
}

#[test]
fn locked_refuses_other_content_at_the_same_commit() {
    let hub = hub();
    let p = project("hf = \"org/tiny\"");
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    for files in hub
        .state()
        .repos
        .get_mut("models/org/tiny")
        .unwrap()
        .commits
        .values_mut()
    {
        files.insert("config.json".into(), b"{\"changed\": 1}".to_vec());
    }
    std::fs::remove_dir_all(p.path("hf")).unwrap();
    let locked = online(&p, &hub, "run recipe.toml --force --locked", &[]).code(6);
    assert!(
        locked.err.contains("but recipe.lock pins") && locked.err.contains("--update x"),
        "{}",
        locked.err
    );
    online(&p, &hub, "run recipe.toml --force", &[]).code(5);
}

#[test]
fn urls_are_fetched_once_into_the_store() {
    let hub = Hub::start();
    hub.state().files.insert("rows.jsonl".into(), weights());
    let p = project(&format!(
        "url = \"{}/elsewhere/rows.jsonl?download=1\"",
        hub.url
    ));
    hub.state().cuts = vec![1000, 0];
    online(&p, &hub, "run recipe.toml", &[]).code(0);
    assert_eq!(output(&p, &hub), format!("{}  -\n", sha256(&weights())));
    let ranges: Vec<_> = hub
        .seen()
        .into_iter()
        .filter(|s| s.host == "cdn")
        .map(|s| s.range)
        .collect();
    assert_eq!(
        ranges,
        [None, Some("bytes=1000-".into()), Some("bytes=1000-".into())]
    );
    let forced = online(&p, &hub, "run recipe.toml --force --json", &[]).code(0);
    assert_eq!(
        (status(&forced), hub.seen().len()),
        ("ran".to_owned(), 0),
        "the store has it"
    );

    // another content at the address: the pin holds as long as the store has it
    hub.state()
        .files
        .insert("rows.jsonl".into(), b"other".to_vec());
    online(&p, &hub, "lock recipe.toml --check", &[]).code(6);
    std::fs::remove_dir_all(p.path(".recipe")).unwrap();
    let locked = online(&p, &hub, "run recipe.toml --locked", &[]).code(6);
    assert!(locked.err.contains("recipe.lock pins"), "{}", locked.err);
    online(&p, &hub, "lock recipe.toml --update", &[]).code(0);
    online(&p, &hub, "run recipe.toml --locked", &[]).code(0);
    assert_eq!(output(&p, &hub), format!("{}  -\n", sha256(b"other")));

    let none = online(
        &project(&format!("url = \"{}/files/none\"", hub.url)),
        &hub,
        "run recipe.toml",
        &[],
    )
    .code(2);
    assert!(
        none.err.contains("/files/none") && none.err.contains("404"),
        "{}",
        none.err
    );
}
