//! Tokenizers: directories, small ones made here, errors.

use data::tokenizer::{Make, Tokenizer, make};
use data::{Message, chat::TrainOn, dataset::Extra};
use std::path::Path;

fn made(how: &Make, texts: &[&str]) -> (tempfile::TempDir, data::Result<Tokenizer>) {
    let dir = tempfile::tempdir().unwrap();
    let mut texts = texts.iter().map(|t| Ok(t.to_string()));
    let tokenizer = make(how, &mut texts, dir.path());
    (dir, tokenizer)
}

const TEXTS: [&str; 3] = [
    "the quick brown fox jumps over the lazy dog the quick brown fox",
    "12 + 34 = 46 and 120 + 340 = 460",
    "Grüße, 你好 🙂 the the the",
];

#[test]
fn characters_are_tokens() {
    let alphabet = "0123456789+-=".to_string();
    let (_dir, tokenizer) = made(&Make::Chars { alphabet }, &[]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.vocab_size(), 7 + 13);
    let ids = tokenizer.encode("12+34=", false).unwrap();
    assert_eq!(ids.len(), 6);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "12+34=");
    let unknown = tokenizer.encode("1x", false).unwrap();
    assert_eq!(tokenizer.id_to_token(unknown[1]).unwrap(), "<|unk|>");
    let chat = tokenizer
        .chat(
            &[Message::user("12+34="), Message::assistant("46")],
            &Extra::default(),
            TrainOn::Assistant,
        )
        .unwrap();
    assert_eq!(
        tokenizer.decode(&chat.tokens, false).unwrap(),
        "<|user|>12+34=<|end|><|assistant|>46<|end|>"
    );
    let trained: Vec<u32> = (chat.tokens.iter().zip(&chat.mask))
        .filter_map(|(t, m)| m.then_some(*t))
        .collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "46<|end|>");
    assert_eq!(
        tokenizer.eos_ids(),
        [tokenizer.token_to_id("<|end|>").unwrap()]
    );
    let prompt = tokenizer.chat_prompt(&[Message::user("12+34=")], &Extra::default());
    assert_eq!(chat.tokens[..9], prompt.unwrap());
}

#[test]
fn an_empty_alphabet_comes_from_the_texts() {
    let empty = || Make::Chars {
        alphabet: String::new(),
    };
    let (_dir, tokenizer) = made(&empty(), &["ba", "c\n🙂"]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.vocab_size(), 7 + 5);
    let ids = tokenizer.encode("c\n🙂a", false).unwrap();
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "c\n🙂a");
    assert!(
        made(&empty(), &[])
            .1
            .unwrap_err()
            .to_string()
            .contains("alphabet")
    );
}

#[test]
fn bytes_cover_all_text() {
    let (_dir, tokenizer) = made(&Make::Bytes, &[]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!(tokenizer.vocab_size(), 7 + 256);
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn a_bpe_trains_to_its_size_and_the_same_each_time() {
    let how = Make::Bpe { vocab_size: 300 };
    let (first, tokenizer) = made(&how, &TEXTS);
    let (second, _) = made(&how, &TEXTS);
    let tokenizer = tokenizer.unwrap();
    assert!(tokenizer.vocab_size() > 263 && tokenizer.vocab_size() <= 300);
    for text in TEXTS {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert!(tokenizer.encode("the quick", false).unwrap().len() < 6);
    // Digits stay apart, so that numbers are read digit by digit.
    assert_eq!(tokenizer.encode("340", false).unwrap().len(), 3);
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_eq!(read(first.path()), read(second.path()), "{name}");
    }
    let small = made(&Make::Bpe { vocab_size: 100 }, &TEXTS).1.unwrap_err();
    assert!(small.to_string().contains("at least 263"), "{small}");
    assert!(
        made(&how, &[])
            .1
            .unwrap_err()
            .to_string()
            .contains("got none")
    );
}

#[test]
fn an_unreadable_text_is_reported_by_a_bpe() {
    let dir = tempfile::tempdir().unwrap();
    let bad = data::Error::Tokenizer("the disk is gone".into());
    let mut texts = vec![Ok("a".to_string()), Err(bad)].into_iter();
    let error = make(&Make::Bpe { vocab_size: 300 }, &mut texts, dir.path()).unwrap_err();
    assert!(error.to_string().contains("the disk is gone"));
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let (_dir, tokenizer) = made(&Make::Bytes, &[]);
    let tokenizer = tokenizer.unwrap();
    assert!(tokenizer.check_fits(263).is_ok());
    assert!(tokenizer.check_fits(300).is_ok());
    let error = tokenizer.check_fits(262).unwrap_err().to_string();
    assert!(
        error.contains("263 tokens") && error.contains("vocab_size is 262"),
        "{error}"
    );
    let error = tokenizer.decode(&[5, 263], false).unwrap_err().to_string();
    assert!(error.contains("token id 263"), "{error}");
}

#[test]
fn broken_directories_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let error = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();
    assert!(error(dir.path()).contains("no tokenizer.json"));
    std::fs::write(dir.path().join("tokenizer.model"), "x").unwrap();
    assert!(error(dir.path()).contains("save_pretrained"));
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": ").unwrap();
    assert!(error(dir.path()).contains("tokenizer.json: not a tokenizer"));
    let (dir, _) = made(&Make::Bytes, &[]);
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    put("chat_template.jinja", "{% for %}");
    assert!(error(dir.path()).contains("does not compile"));
    put("chat_template.jinja", "{{ raise_exception('never') }}");
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let refused = tokenizer.chat_prompt(&[Message::user("a")], &Extra::default());
    assert!(refused.unwrap_err().to_string().contains("never (line 1"));
    put("generation_config.json", "{\"eos_token_id\": \"no\"}");
    assert!(error(dir.path()).contains("eos_token_id must be token ids, got \"no\""));
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    put("generation_config.json", "{\"eos_token_id\": [3, 1]}");
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.eos_ids(), [1, 3]);
    let error = tokenizer.template().unwrap_err().to_string();
    assert!(error.contains("add chat_template.jinja"), "{error}");
}

#[test]
fn named_templates_and_token_objects_are_understood() {
    let (dir, _) = made(&Make::Bytes, &[]);
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    std::fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": {"content": "<|end|>", "special": true}, "bos_token": null,
            "added_tokens_decoder": {"263": {"content": "<|new|>", "special": true}},
            "chat_template": [{"name": "default", "template": "plain{{ eos_token }}"},
                              {"name": "tool_use", "template": "tools {{ tools | length }}"}]}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.token_to_id("<|new|>"), Some(263));
    assert!(tokenizer.is_special(263) && !tokenizer.is_special(100));
    assert_eq!((tokenizer.eos(), tokenizer.bos()), (Some(1), None));
    let template = tokenizer.template().unwrap();
    let mut extra = Extra::default();
    let messages = [Message::user("a")];
    assert_eq!(
        template.render(&messages, &extra, false).unwrap(),
        "plain<|end|>"
    );
    extra.tools = Some(serde_json::json!([{}, {}]));
    assert_eq!(
        template.render(&messages, &extra, false).unwrap(),
        "tools 2"
    );
}

#[test]
fn files_are_carried_through_untouched() {
    let (from, tokenizer) = made(&Make::Bytes, &[]);
    let odd = b"{\"kept\":   \"as it is\"}\n\n";
    std::fs::write(from.path().join("added_tokens.json"), odd).unwrap();
    std::fs::write(from.path().join("model.safetensors"), "weights").unwrap();
    let to = tempfile::tempdir().unwrap();
    tokenizer
        .unwrap()
        .copy_files(&to.path().join("out"))
        .unwrap();
    let mut names: Vec<_> = std::fs::read_dir(to.path().join("out"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "added_tokens.json",
            "chat_template.jinja",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    for name in names {
        let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
        assert_eq!(read(from.path()), read(&to.path().join("out")));
    }
}

#[test]
fn special_tokens_in_text_are_tokens_as_in_transformers() {
    let (_dir, tokenizer) = made(&Make::Bytes, &[]);
    let tokenizer = tokenizer.unwrap();
    let (ids, offsets) = tokenizer.encode_offsets("a<|end|>é", false).unwrap();
    assert_eq!(ids.len(), 4);
    assert_eq!(offsets[..2], [(0, 1), (1, 8)]);
    // Both bytes of a character cover the character.
    assert_eq!(offsets[2..], [(8, 10), (8, 10)]);
}

/// `tests/golden/chat/made`: written by the example `make_tokenizers`, shown to transformers by
/// `ci/fixtures/chat.py`.
#[test]
fn transformers_agrees_with_the_tokenizers_made_here() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat");
    let text = std::fs::read_to_string(golden.join("made.json")).unwrap();
    let made: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(made.len(), 3);
    for case in made {
        let name = case["name"].as_str().unwrap();
        let tokenizer = Tokenizer::from_dir(&golden.join("made").join(name)).unwrap();
        assert_eq!(tokenizer.vocab_size(), case["vocab"], "{name}");
        assert_eq!(tokenizer.eos().unwrap(), case["eos"]);
        assert_eq!(tokenizer.pad().unwrap(), case["pad"]);
        for (i, text) in case["texts"].as_array().unwrap().iter().enumerate() {
            let ids = tokenizer.encode(text.as_str().unwrap(), false).unwrap();
            assert_eq!(serde_json::json!(ids), case["ids"][i], "{name}: {text}");
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(decoded, case["decoded"][i], "{name}: {text}");
        }
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let extra = Extra::default();
        let chat = tokenizer
            .chat(&messages, &extra, TrainOn::Assistant)
            .unwrap();
        let mask: Vec<u8> = chat.mask.iter().map(|&m| u8::from(m)).collect();
        assert_eq!(serde_json::json!(chat.tokens), case["tokens"], "{name}");
        assert_eq!(serde_json::json!(mask), case["mask"], "{name}");
        let prompt = tokenizer
            .template()
            .unwrap()
            .render(&messages[..1], &extra, true);
        assert_eq!(prompt.unwrap(), case["prompt"]);
    }
}
