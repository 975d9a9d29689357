//! Makes the tokenizers of each sort that `ci/fixtures/chat.py` shows to transformers:
//!
//! ```text
//! cargo run --release -p data --example make_tokenizers -- tests/golden/chat/made
//! ```

use data::tokenizer::{Make, make};
use std::path::PathBuf;

fn main() -> data::Result<()> {
    let to = PathBuf::from(
        std::env::args()
            .nth(1)
            .unwrap_or("tests/golden/chat/made".into()),
    );
    let text = "the quick brown fox, the lazy dog: 12 + 34 = 46. ".repeat(3) + "Grüße 🙂";
    let alphabet = "0123456789+-*= é🙂".to_string();
    for (name, how) in [
        ("chars", Make::Chars { alphabet }),
        ("bytes", Make::Bytes),
        ("bpe", Make::Bpe { vocab_size: 290 }),
    ] {
        make(&how, &mut std::iter::once(Ok(text.clone())), &to.join(name))?;
    }
    Ok(())
}
