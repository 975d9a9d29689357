//! Makes the data of the addition recipes, the same bytes every time:
//!
//! ```text
//! cargo run --release -p data --example make_addition -- recipes/data
//! ```

use data::env::{Addition, Split};
use data::synth::{Rows, demonstrations, preferences};
use std::path::PathBuf;

fn main() -> data::Result<()> {
    let to = PathBuf::from(std::env::args().nth(1).unwrap_or("recipes/data".into()));
    let addition = Addition::new(2);
    let train = Rows {
        rows: 5000,
        split: Split::Train,
        // A third of the answers are wrong: what reinforcement learning then has to put right.
        noise: 1.0 / 3.0,
        seed: 1,
    };
    demonstrations(&addition, &train, &to.join("addition.jsonl"))?;
    let clean = Rows {
        rows: 3750,
        noise: 0.0,
        seed: 2,
        ..train
    };
    preferences(&addition, &clean, &to.join("addition-preferences.jsonl"))?;
    let held_out = Rows {
        rows: 400,
        split: Split::Test,
        seed: 3,
        ..clean
    };
    preferences(
        &addition,
        &held_out,
        &to.join("addition-preferences-heldout.jsonl"),
    )
}
