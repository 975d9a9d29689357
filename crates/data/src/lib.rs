//! Data for post-training, without libtorch: seeded draws, datasets, tokenizers, chat templates,
//! examples, packing, order, environments and graders.

pub mod chat;
pub mod dataset;
pub mod env;
mod error;
pub mod example;
pub mod grade;
mod message;
pub mod order;
pub mod pack;
pub mod rng;
pub mod synth;
pub mod tokenizer;

pub use error::{Error, Result};
pub use message::Message;
pub use tokenizer::Tokenizer;
