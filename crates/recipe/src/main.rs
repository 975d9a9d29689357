//! The command line of `recipe`.
fn main() {}
