//! Whole-product tests: the real binaries in scratch projects.

mod bad_inputs;
mod clocks;
mod diamond;
mod differential;
mod experts;
mod faults;
mod full_disk;
mod golden;
mod keys;
mod kills;
mod parts;
mod provenance;
mod ranks;
mod read_only;
mod reuse;
mod roundtrip;
mod traces;
mod verify;
