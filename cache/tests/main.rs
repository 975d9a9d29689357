//! The store's tests in one binary, which also serves as the other process where one is needed.

mod suite {
    pub mod common;
    mod corruption;
    mod faults;
    mod hashes;
    mod processes;
    mod protocol;
    mod speed;
    mod trees;
    mod views;
}
