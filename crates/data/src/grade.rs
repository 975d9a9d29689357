//! Graders: does an answer equal the reference?

/// Whether the final answer in `completion` equals `answer` as mathematics.
pub fn math(_completion: &str, _answer: &str) -> bool {
    todo!()
}
