//! The store's tests in one binary, which also serves as the other process where one is needed.

mod suite {
    mod behind;
    mod collecting;
    pub mod common;
    mod corruption;
    mod damage;
    mod faults;
    mod hashes;
    mod pins;
    mod power;
    mod processes;
    mod protocol;
    mod speed;
    mod trees;
    mod views;
}
