//! `recipe-worker`: one rank of one attempt.
fn main() {}
