//! Files to rows: formats, row kinds, and errors that name the place.

use crate::file;
use data::dataset::{Content, Row, open};
use data::{Error, Message};
use serde_json::json;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn first(line: &str) -> data::Result<Row> {
    let (_dir, path) = file("rows.jsonl", line);
    open(&[path])?.row(0)
}

#[test]
fn json_lines_skip_blank_lines_and_count_them() {
    let (_dir, path) = file(
        "rows.jsonl",
        "\u{feff}{\"text\": \"a\"}\r\n\n  \n{\"text\": \"b\"}\n{\"text\": 5}",
    );
    let data = open(&[&path]).unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(data.row(0).unwrap(), Row::Text("a".into()));
    assert_eq!(data.row(1).unwrap(), Row::Text("b".into()));
    let error = data.row(2).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{}:5: text must be a string, got 5", path.display())
    );
}

#[test]
fn broken_lines_name_file_line_and_what_is_wanted() {
    let (_dir, path) = file("rows.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n[1]\n");
    let data = open(&[&path]).unwrap();
    let error = data.row(1).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("{}:2: not valid JSON", path.display())),
        "{error}"
    );
    assert!(error.contains("{\"text\": \"b\""), "{error}");
    let error = data.row(2).unwrap_err().to_string();
    assert!(error.contains(":3: a row must be a JSON object"), "{error}");
}

#[test]
fn no_rows_is_an_error() {
    for text in ["", "\n \n"] {
        let (_dir, path) = file("rows.jsonl", text);
        let error = open(&[&path]).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl: no rows"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("readme.md"), "no data").unwrap();
    let error = open(&[dir.path()]).unwrap_err().to_string();
    assert!(error.contains("no .jsonl"), "{error}");
    let error = open(&[fixture("empty.parquet")]).unwrap_err().to_string();
    assert!(error.contains("no rows"), "{error}");
    assert!(matches!(
        open(&[dir.path().join("absent.jsonl")]),
        Err(Error::Io { .. })
    ));
}

#[test]
fn directories_are_read_in_sorted_order() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("b.jsonl", "{\"text\": \"3\"}\n{\"text\": \"4\"}");
    put("a/z.ndjson", "{\"text\": \"2\"}");
    put("a/b.json", "{\"text\": \"1\"}");
    put("readme.md", "not data");
    put(".hidden.jsonl", "{\"text\": \"no\"}");
    std::fs::copy(fixture("tokens.parquet"), dir.path().join("c.parquet")).unwrap();
    let data = open(&[dir.path()]).unwrap();
    let rows: Vec<String> = (0..data.len())
        .map(|i| match data.row(i).unwrap() {
            Row::Text(text) => text,
            Row::Tokens { tokens, .. } => format!("{tokens:?}"),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(rows, ["1", "2", "3", "4", "[1, 2, 3]", "[4, 5]"]);
    assert_eq!(data.paths().count(), 4);
}

#[test]
fn parquet_gives_the_rows_that_were_written() {
    for codec in ["snappy", "zstd", "gzip", "lz4", "brotli", "none"] {
        let path = fixture(&format!("messages.{codec}.parquet"));
        let data = open(&[&path]).unwrap();
        assert_eq!(data.len(), 7);
        for i in [6, 0, 3, 1] {
            let record = data.record(i).unwrap();
            // Null fields are left out: Parquet gives every struct the union of all fields.
            let mut answer = json!({"role": "assistant", "content": format!("{} ✓", 2 * i)});
            if i % 2 == 1 {
                answer["tool_calls"] = json!([{"n": [i, i], "name": "add"}]);
            }
            let tags: Vec<String> = (0..i).map(|k| format!("t{k}")).collect();
            let mut want = json!({
                "messages": [{"role": "user", "content": format!("{i} + {i}?")}, answer],
                "source": format!("s{i}"),
                "score": i as f64 / 4.0,
                "meta": {"ok": i % 2 == 0, "tags": tags},
            });
            if i == 3 {
                want.as_object_mut().unwrap().remove("source");
            }
            assert_eq!(
                serde_json::Value::Object(record.value.clone()),
                want,
                "{codec}"
            );
            assert_eq!(record.place, format!("{}:row {}", path.display(), i + 1));
            assert!(matches!(record.parse().unwrap(), Row::Messages { .. }));
        }
    }
}

#[test]
fn parquet_types_become_json() {
    let data = open(&[fixture("kinds.parquet")]).unwrap();
    let want = json!({
        "text": "a", "i8": -8, "u32": 4294967295u64, "u64": 18446744073709551615u64, "f32": 0.5,
        "f16": 1.5, "dict": "x", "large": "big", "map": {"k": 1}, "nested": [[1], [], [2, 3]],
    });
    assert_eq!(
        serde_json::Value::Object(data.record(0).unwrap().value),
        want
    );
    let data = open(&[fixture("tokens.parquet")]).unwrap();
    assert_eq!(
        data.row(1).unwrap(),
        Row::Tokens {
            tokens: vec![4, 5],
            mask: Some(vec![false, true])
        }
    );
}

#[test]
fn corrupt_parquet_is_an_error_and_not_a_panic() {
    let good = std::fs::read(fixture("messages.none.parquet")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.parquet");
    for cut in [0, 3, 4, 100, good.len() - 9, good.len() - 1] {
        std::fs::write(&path, &good[..cut]).unwrap();
        assert!(
            matches!(open(&[&path]), Err(Error::File { .. })),
            "cut at {cut}"
        );
    }
    // Flipped bytes may go unnoticed (there is no checksum) but never end the process.
    for at in (4..good.len()).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        std::fs::write(&path, &bad).unwrap();
        if let Err(error) = open(&[&path]) {
            assert!(error.to_string().contains("bad.parquet"), "{error}");
        }
    }
}

#[test]
fn a_file_without_a_telling_name_is_sniffed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    std::fs::copy(fixture("tokens.parquet"), &path).unwrap();
    assert_eq!(open(&[&path]).unwrap().len(), 2);
    std::fs::write(&path, "{\"text\": \"a\"}").unwrap();
    assert_eq!(open(&[&path]).unwrap().len(), 1);
}

fn text(text: &str) -> Content {
    Content::Text(text.into())
}

fn said(messages: &[(&str, &str)]) -> Content {
    Content::Messages(messages.iter().map(|(r, c)| Message::new(r, *c)).collect())
}

#[test]
fn row_kinds_are_told_by_their_fields() {
    let kind = |line: &str| first(line).unwrap();
    assert!(matches!(
        kind(r#"{"messages": [{"role": "user", "content": "a"}], "text": "ignored"}"#),
        Row::Messages { messages, .. } if messages == [Message::user("a")]
    ));
    assert!(matches!(
        kind(r#"{"prompt": "a", "completion": "b"}"#),
        Row::PromptCompletion { prompt, completion, .. } if prompt == text("a") && completion == text("b")
    ));
    assert!(matches!(
        kind(r#"{"question": "a", "answer": "b"}"#),
        Row::PromptCompletion { prompt, completion, .. }
            if prompt == said(&[("user", "a")]) && completion == said(&[("assistant", "b")])
    ));
    assert_eq!(kind(r#"{"text": "a"}"#), Row::Text("a".into()));
    assert_eq!(
        kind(r#"{"tokens": [1, 2], "mask": [0, 1]}"#),
        Row::Tokens {
            tokens: vec![1, 2],
            mask: Some(vec![false, true])
        }
    );
    assert!(matches!(
        kind(r#"{"prompt": "a", "completion": null}"#),
        Row::Prompt { .. }
    ));
    let Row::Messages { extra, .. } = kind(
        r#"{"messages": [{"role": "user", "content": "a"}], "tools": "[{\"a\": 1}]", "chat_template_kwargs": {"x": 1}}"#,
    ) else {
        panic!()
    };
    assert_eq!(extra.tools, Some(json!([{"a": 1}])));
    assert_eq!(extra.template["x"], 1);
}

#[test]
fn preference_rows_come_in_every_common_form() {
    let pair = |line: &str| match first(line).unwrap() {
        Row::Preference {
            prompt,
            chosen,
            rejected,
            ..
        } => (prompt, chosen, rejected),
        other => panic!("{other:?}"),
    };
    let chat = (
        said(&[("user", "q")]),
        said(&[("assistant", "y")]),
        said(&[("assistant", "n")]),
    );
    let plain = r#"{"prompt": "q", "chosen": "y", "rejected": "n"}"#;
    assert_eq!(pair(plain), (text("q"), text("y"), text("n")));
    assert_eq!(
        pair(r#"{"question": "q", "chosen": "y", "rejected": "n"}"#),
        chat
    );
    let (q, y, n) = (
        r#"{"role": "user", "content": "q"}"#,
        r#"{"role": "assistant", "content": "y"}"#,
        r#"{"role": "assistant", "content": "n"}"#,
    );
    for row in [
        format!(r#"{{"prompt": [{q}], "chosen": [{y}], "rejected": [{n}]}}"#),
        format!(r#"{{"prompt": [{q}], "chosen": [{q}, {y}], "rejected": [{q}, {n}]}}"#),
        format!(r#"{{"prompt": "q", "chosen": [{q}, {y}], "rejected": [{q}, {n}]}}"#),
        format!(r#"{{"chosen": [{q}, {y}], "rejected": [{q}, {n}]}}"#),
    ] {
        assert_eq!(pair(&row), chat, "{row}");
    }
    assert_eq!(
        pair(r#"{"chosen": "Human: hi\nBot: hello you", "rejected": "Human: hi\nBot: help"}"#),
        (text("Human: hi\nBot:"), text(" hello you"), text(" help"))
    );
}

#[test]
fn bad_rows_say_what_and_why() {
    for (line, want) in [
        (
            r#"{"promt": "a"}"#,
            "no kind of row has these fields: [promt]",
        ),
        (r#"{"messages": []}"#, "messages is empty"),
        (r#"{"messages": "a"}"#, "messages must be a list"),
        (
            r#"{"messages": [{"content": "a"}]}"#,
            "messages[0] has no role",
        ),
        (
            r#"{"messages": [{"role": 1}]}"#,
            "messages[0].role must be a role",
        ),
        (
            r#"{"messages": [{"role": "user", "content": 5}]}"#,
            "messages[0].content must be a string, got 5",
        ),
        (
            r#"{"prompt": "a", "completion": [{"role": "assistant"}]}"#,
            "must both be text",
        ),
        (r#"{"prompt": "a", "chosen": "b"}"#, "rejected is missing"),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
            "chosen and rejected are equal",
        ),
        (r#"{"tokens": []}"#, "tokens is empty"),
        (r#"{"tokens": [1, -2]}"#, "token ids from 0 up, got -2"),
        (
            r#"{"tokens": [1, 2], "mask": [1]}"#,
            "mask has 1 entries for 2 tokens",
        ),
        (r#"{"text": null}"#, "no kind of row"),
        (
            r#"{"prompt": 7}"#,
            "prompt must be a string or a list of messages, got 7",
        ),
        (
            r#"{"prompt": "a", "tools": 3}"#,
            "tools must be a list of JSON schemas, got 3",
        ),
    ] {
        let error = first(line).unwrap_err().to_string();
        assert!(
            error.contains(want) && error.contains("rows.jsonl:1: "),
            "{line}: {error}"
        );
    }
}
