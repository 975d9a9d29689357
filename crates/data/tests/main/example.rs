//! Rows to examples: what enters the loss, lengths, pairs.

use data::chat::TrainOn;
use data::dataset::Record;
use data::example::{Counts, Example, Limits, Overlong, Pair, preference, prompt, sft};
use data::tokenizer::{Make, Tokenizer, make};

fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    make(&Make::Bytes, &mut std::iter::empty(), dir.path()).unwrap()
}

fn record(json: &str) -> Record {
    Record {
        value: serde_json::from_str(json).unwrap(),
        place: "data.jsonl:7".into(),
    }
}

const WIDE: Limits = Limits {
    max_length: 1000,
    overlong: Overlong::Error,
};

/// The text with what enters the loss in brackets.
fn shown(tokenizer: &Tokenizer, example: &Example) -> String {
    let mut out = String::new();
    let mut inside = false;
    for (token, &mask) in example.tokens.iter().zip(&example.mask) {
        if mask != inside {
            out.push(if mask { '[' } else { ']' });
            inside = mask;
        }
        out += &tokenizer.decode(&[*token], false).unwrap();
    }
    if inside {
        out.push(']');
    }
    out
}

fn one(json: &str, train_on: TrainOn) -> String {
    let tokenizer = tokenizer();
    let mut counts = Counts::default();
    let examples = sft(&record(json), &tokenizer, train_on, &WIDE, &mut counts).unwrap();
    assert_eq!((examples.len(), counts.kept), (1, 1));
    assert!(!examples[0].mask[0]);
    shown(&tokenizer, &examples[0])
}

const CHAT: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"#;

#[test]
fn each_row_kind_trains_on_the_right_tokens() {
    let (user, bot, end) = ("<|user|>", "<|assistant|>", "<|end|>");
    assert_eq!(
        one(CHAT, TrainOn::Assistant),
        format!("{user}a{end}{bot}[b{end}]{user}c{end}{bot}[d{end}]")
    );
    assert_eq!(
        one(CHAT, TrainOn::Last),
        format!("{user}a{end}{bot}b{end}{user}c{end}{bot}[d{end}]")
    );
    assert_eq!(
        one(CHAT, TrainOn::All),
        format!("{user}[a{end}{bot}b{end}{user}c{end}{bot}d{end}]")
    );
    assert_eq!(
        one(r#"{"question": "a", "answer": "b"}"#, TrainOn::Assistant),
        format!("{user}a{end}{bot}[b{end}]")
    );
    // Only the completion, though the prompt has an assistant's turn too.
    let split = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
    assert_eq!(
        one(split, TrainOn::Assistant),
        format!("{user}a{end}{bot}b{end}{user}c{end}{bot}[d{end}]")
    );
    let plain = r#"{"prompt": "1+1=", "completion": "2"}"#;
    assert_eq!(one(plain, TrainOn::Assistant), format!("1+1=[2{end}]"));
    assert_eq!(one(plain, TrainOn::All), format!("1[+1=2{end}]"));
    assert_eq!(
        one(r#"{"text": "abc"}"#, TrainOn::Assistant),
        format!("a[bc{end}]")
    );
    assert_eq!(
        one(r#"{"tokens": [100, 101, 102]}"#, TrainOn::Assistant)
            .matches('[')
            .count(),
        1
    );
    assert_eq!(
        one(
            r#"{"tokens": [4, 3, 2], "mask": [1, 0, 1]}"#,
            TrainOn::Assistant
        ),
        "<|user|><|system|>[<|unk|>]"
    );
}

#[test]
fn overlong_examples_are_refused_cut_or_dropped_and_counted() {
    let tokenizer = tokenizer();
    let row = record(r#"{"prompt": "1234", "completion": "5678"}"#);
    let run = |max_length, overlong| {
        let mut counts = Counts::default();
        let limits = Limits {
            max_length,
            overlong,
        };
        let out = sft(&row, &tokenizer, TrainOn::Assistant, &limits, &mut counts);
        (out, counts)
    };
    let (out, counts) = run(9, Overlong::Error);
    assert_eq!((out.unwrap()[0].tokens.len(), counts.truncated), (9, 0));
    let error = run(8, Overlong::Error).0.unwrap_err().to_string();
    assert!(
        error.contains("data.jsonl:7: the example has 9 tokens, more than max_length = 8"),
        "{error}"
    );
    let (out, counts) = run(8, Overlong::Truncate);
    assert_eq!(shown(&tokenizer, &out.unwrap()[0]), "1234[5678]");
    assert_eq!(
        counts,
        Counts {
            kept: 1,
            truncated: 1,
            dropped: 0
        }
    );
    let (out, counts) = run(8, Overlong::Drop);
    assert!(out.unwrap().is_empty());
    assert_eq!(
        counts,
        Counts {
            kept: 0,
            truncated: 0,
            dropped: 1
        }
    );
    // Cut down to its prompt, nothing is left to train on.
    let (out, counts) = run(4, Overlong::Truncate);
    assert!(out.unwrap().is_empty());
    assert_eq!(
        counts,
        Counts {
            kept: 0,
            truncated: 0,
            dropped: 1
        }
    );
}

#[test]
fn long_text_is_cut_into_chunks_without_loss() {
    let tokenizer = tokenizer();
    let mut counts = Counts::default();
    let limits = Limits {
        max_length: 4,
        overlong: Overlong::Error,
    };
    let row = record(r#"{"text": "abcdefghij"}"#);
    let chunks = sft(&row, &tokenizer, TrainOn::Assistant, &limits, &mut counts).unwrap();
    let shown: Vec<String> = chunks.iter().map(|c| shown(&tokenizer, c)).collect();
    assert_eq!(shown, ["a[bcd]", "e[fgh]", "i[j<|end|>]"]);
    assert_eq!(counts.kept, 3);
}

#[test]
fn rows_that_cannot_be_trained_on_say_so() {
    let tokenizer = tokenizer();
    let error = |json: &str| {
        let mut counts = Counts::default();
        sft(
            &record(json),
            &tokenizer,
            TrainOn::Assistant,
            &WIDE,
            &mut counts,
        )
        .unwrap_err()
        .to_string()
    };
    for (json, want) in [
        (
            r#"{"prompt": "a"}"#,
            "a prompt without completion cannot be trained on",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            "no assistant turn",
        ),
        (
            r#"{"messages": [{"role": "judge", "content": "a"}]}"#,
            "unknown role: judge",
        ),
        (
            r#"{"tokens": [5, 999]}"#,
            "token 999 is not in the vocabulary of 263 tokens",
        ),
        (
            r#"{"tokens": [5, 6], "mask": [0, 0]}"#,
            "no token of this row enters the loss",
        ),
        (r#"{"text": ""}"#, "the text is empty"),
    ] {
        let got = error(json);
        assert!(
            got.starts_with("data.jsonl:7: ") && got.contains(want),
            "{json}: {got}"
        );
    }
}

fn pair(json: &str) -> (Tokenizer, Pair) {
    let tokenizer = tokenizer();
    let mut counts = Counts::default();
    let pair = preference(&record(json), &tokenizer, &WIDE, &mut counts);
    (tokenizer, pair.unwrap().unwrap())
}

#[test]
fn pairs_share_their_prompt_and_no_more() {
    // The answers begin alike: what they share there still belongs to each.
    let (tokenizer, pair) = pair(r#"{"question": "q", "chosen": "same y", "rejected": "same n"}"#);
    assert_eq!(
        tokenizer.decode(&pair.prefix, false).unwrap(),
        "<|user|>q<|end|><|assistant|>"
    );
    assert_eq!(shown(&tokenizer, &pair.chosen), "[same y<|end|>]");
    assert_eq!(shown(&tokenizer, &pair.rejected), "[same n<|end|>]");
}

#[test]
fn plain_pairs_are_tokenised_whole() {
    let (tokenizer, pair) = pair(r#"{"prompt": "é", "chosen": "y", "rejected": "n"}"#);
    assert_eq!(tokenizer.decode(&pair.prefix, false).unwrap(), "é");
    assert_eq!(shown(&tokenizer, &pair.chosen), "[y<|end|>]");
    // Nothing to share: the first token of each branch has nothing before it.
    let (tokenizer, pair) = self::pair(r#"{"prompt": "", "chosen": "ab", "rejected": "cd"}"#);
    assert!(pair.prefix.is_empty());
    assert_eq!(shown(&tokenizer, &pair.chosen), "a[b<|end|>]");
}

#[test]
fn overlong_pairs_are_refused_cut_or_dropped_and_counted() {
    let tokenizer = tokenizer();
    let row = record(r#"{"prompt": "1234", "chosen": "567", "rejected": "56789"}"#);
    let run = |max_length, overlong| {
        let mut counts = Counts::default();
        let limits = Limits {
            max_length,
            overlong,
        };
        (preference(&row, &tokenizer, &limits, &mut counts), counts)
    };
    assert!(
        run(9, Overlong::Error)
            .0
            .unwrap_err()
            .to_string()
            .contains("10 tokens")
    );
    let (out, counts) = run(9, Overlong::Truncate);
    assert_eq!(
        shown(&tokenizer, &out.unwrap().unwrap().rejected),
        "[56789]"
    );
    assert_eq!(
        counts,
        Counts {
            kept: 1,
            truncated: 1,
            dropped: 0
        }
    );
    // Cut to where both are equal, a pair prefers nothing.
    for (length, overlong) in [
        (6, Overlong::Truncate),
        (3, Overlong::Truncate),
        (9, Overlong::Drop),
    ] {
        let (out, counts) = run(length, overlong);
        assert!(out.unwrap().is_none());
        assert_eq!(
            counts,
            Counts {
                kept: 0,
                truncated: 0,
                dropped: 1
            }
        );
    }
}

#[test]
fn prompts_to_continue() {
    let tokenizer = tokenizer();
    let text = |json: &str| {
        let tokens = prompt(&record(json), &tokenizer).unwrap();
        tokenizer.decode(&tokens, false).unwrap()
    };
    assert_eq!(text(r#"{"prompt": "ab"}"#), "ab");
    let asked = "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>";
    assert_eq!(text(CHAT), asked);
    assert_eq!(
        text(r#"{"question": "a", "answer": "b"}"#),
        "<|user|>a<|end|><|assistant|>"
    );
    assert_eq!(text(r#"{"tokens": [4]}"#), "<|user|>");
    assert!(prompt(&record(r#"{"prompt": ""}"#), &tokenizer).is_err());
}
