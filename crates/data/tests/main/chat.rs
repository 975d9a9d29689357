//! Chat templates against what transformers renders, tokenises and masks
//! (`tests/golden/chat`, made by `ci/fixtures/chat.py`).

use data::chat::TrainOn;
use data::dataset::Extra;
use data::{Message, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat")
}

/// A directory with the fixtures' tokenizer and a template; `marked`: with `{% generation %}`.
fn tokenizer(template: &str, named: &Value, ends: &Value, marked: bool) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::copy(
        golden().join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    put("tokenizer_config.json", named.to_string());
    let path = golden().join(format!("templates/{template}.jinja"));
    let mut source = std::fs::read_to_string(path).unwrap();
    if !marked {
        // The same template for who does not know the tag: white space control stays.
        for (tag, plain) in [("endgeneration", "endif"), ("generation", "if true")] {
            for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%-", "-%}"), ("{%", "-%}")] {
                source = source.replace(
                    &format!("{open} {tag} {close}"),
                    &format!("{open} {plain} {close}"),
                );
            }
        }
        assert!(!source.contains(" generation "));
    }
    put("chat_template.jinja", source);
    let plain = Tokenizer::from_dir(dir.path()).unwrap();
    let ids: Vec<u32> = (ends.as_array().unwrap().iter())
        .map(|end| plain.token_to_id(end.as_str().unwrap()).unwrap())
        .collect();
    put(
        "generation_config.json",
        json!({"eos_token_id": ids}).to_string(),
    );
    Tokenizer::from_dir(dir.path()).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

struct Case {
    name: String,
    value: Map<String, Value>,
    messages: Vec<Message>,
    extra: Extra,
}

impl Case {
    fn tokenizer(&self, marked: bool) -> Tokenizer {
        let template = self.value["template"].as_str().unwrap();
        tokenizer(template, &self.value["named"], &self.value["ends"], marked)
    }
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(golden().join("cases.json")).unwrap();
    let cases: Vec<Map<String, Value>> = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 100);
    cases
        .into_iter()
        .map(|value| Case {
            name: format!("{} / {}", value["template"], value["name"]),
            messages: messages(&value["messages"]),
            extra: Extra {
                tools: (!value["tools"].is_null()).then(|| value["tools"].clone()),
                template: value["kwargs"].as_object().unwrap().clone(),
            },
            value,
        })
        .collect()
}

#[test]
fn renders_what_transformers_renders() {
    let mut wrong = Vec::new();
    for case in cases() {
        for marked in [true, false] {
            let tokenizer = case.tokenizer(marked);
            let template = tokenizer.template().unwrap();
            for (field, prompt) in [("text", false), ("prompt", true)] {
                let got = template.render(&case.messages, &case.extra, prompt);
                match (case.value.get(field), got) {
                    (Some(want), Ok(got)) if want.as_str() == Some(&got) => {}
                    (None, Err(e)) => {
                        let want = case.value["error"].as_str().unwrap();
                        assert!(e.to_string().contains(want), "{}: {e}", case.name);
                    }
                    (want, got) => wrong.push(format!(
                        "{} ({field}, marked {marked}):\n want {:?}\n got  {got:?}",
                        case.name,
                        want.and_then(Value::as_str)
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn masks_what_transformers_masks_with_and_without_generation_tags() {
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for case in cases() {
        let Some(tokens) = case.value.get("tokens") else {
            continue;
        };
        let tokens: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
        let want: Vec<u8> = serde_json::from_value(case.value["mask"].clone()).unwrap();
        let want: Vec<bool> = want.into_iter().map(|m| m == 1).collect();
        // The Python template is about rendering: it marks nothing.
        if !want.contains(&true) {
            continue;
        }
        for marked in [true, false] {
            let tokenizer = case.tokenizer(marked);
            let chat = tokenizer
                .chat(&case.messages, &case.extra, TrainOn::Assistant)
                .unwrap();
            assert_eq!(chat.tokens, tokens, "{}", case.name);
            compared += 1;
            let mut want = want.clone();
            if !marked && case.value["name"] == "no thinking, answered" {
                // With thinking switched off the prompt itself has the empty block, so the model
                // does not write it; the marks, which know no prompt, take it in.
                let think = |token: &str| {
                    let id = tokenizer.token_to_id(token);
                    tokens.iter().rposition(|&t| Some(t) == id).unwrap()
                };
                want[think("<think>")..think("</think>") + 3].fill(false);
            }
            if chat.mask != want {
                let show = |mask: &[bool]| -> String {
                    (tokens.iter().zip(mask))
                        .map(|(&t, &m)| {
                            let text = tokenizer.decode(&[t], false).unwrap();
                            if m { format!("[{text}]") } else { text }
                        })
                        .collect()
                };
                wrong.push(format!(
                    "{} (marked {marked}):\n want {:?}\n got  {:?}",
                    case.name,
                    show(&want),
                    show(&chat.mask)
                ));
            }
        }
    }
    assert!(compared > 150, "only {compared} masks compared");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The conversation that a rollout builds turn by turn (prompt, completion, observation) has the
/// tokens of the whole conversation with its generation prompt.
#[test]
fn turns_join_to_the_whole_conversation() {
    let mut joined = 0;
    for case in cases() {
        let template = case.value["template"].as_str().unwrap();
        // The other templates rewrite earlier turns or end none, or end the prompt in a space
        // that joins the answer's first token, so that the whole is another text or other
        // tokens; and there must be two questions with one answer between them.
        let plain = ["chatml", "headers", "inst", "blocks"].contains(&template);
        let roles: Vec<&str> = case.messages.iter().map(Message::role).collect();
        if !plain || !roles.starts_with(&["user", "assistant", "user"]) {
            continue;
        }
        let content = case.messages[1].text();
        if content != content.trim() || content.contains("<|im_end|>") {
            continue;
        }
        for marked in [true, false] {
            let tokenizer = case.tokenizer(marked);
            let chat = |messages: &[Message]| tokenizer.chat_prompt(messages, &case.extra).unwrap();
            let prompt = chat(&case.messages[..1]);
            let answered = tokenizer
                .chat(&case.messages[..2], &case.extra, TrainOn::Last)
                .unwrap();
            let end = answered.mask.iter().rposition(|&m| m).unwrap() + 1;
            let observation = &case.messages[2..3];
            let whole = chat(&case.messages[..3]);
            for stopped in [true, false] {
                // What was sampled: through the end token, or cut before it.
                let sampled = &answered.tokens[prompt.len()..end - usize::from(!stopped)];
                let next = tokenizer
                    .chat_observation(observation, &case.extra, stopped)
                    .unwrap();
                let all = [&prompt[..], sampled, &next[..]].concat();
                let text = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
                assert_eq!(text(&all), text(&whole), "{} stopped {stopped}", case.name);
                assert_eq!(all, whole, "{} stopped {stopped}", case.name);
                joined += 1;
            }
        }
    }
    assert!(joined > 40, "only {joined}");
}

#[test]
fn train_on_says_which_turns() {
    let case = &cases()[3];
    assert!(case.name.contains("three turns"));
    let tokenizer = case.tokenizer(false);
    let trained = |train_on| {
        let chat = tokenizer
            .chat(&case.messages, &case.extra, train_on)
            .unwrap();
        let tokens: Vec<u32> = (chat.tokens.iter().zip(&chat.mask))
            .filter_map(|(&t, &m)| m.then_some(t))
            .collect();
        (
            tokenizer.decode(&tokens, false).unwrap(),
            tokens.len(),
            chat.tokens.len(),
        )
    };
    assert_eq!(
        trained(TrainOn::Assistant).0,
        "2<|im_end|>4<|im_end|>8<|im_end|>"
    );
    assert_eq!(trained(TrainOn::Last).0, "8<|im_end|>");
    let (_, some, all) = trained(TrainOn::All);
    assert_eq!(some, all - 1);
}

#[test]
fn what_a_message_says_is_never_taken_for_a_mark() {
    let case = &cases()[0];
    for marked in [true, false] {
        let tokenizer = case.tokenizer(marked);
        for text in ["a\u{fdd0}b", "\u{fdd1}", "\u{fdd2}"] {
            let messages = [Message::user("q"), Message::assistant(text)];
            let error = tokenizer.chat(&messages, &Extra::default(), TrainOn::Assistant);
            assert!(error.unwrap_err().to_string().contains("noncharacters"));
        }
        let error = tokenizer.chat(&[], &Extra::default(), TrainOn::All);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("a conversation needs a message"), "{error}");
    }
}
