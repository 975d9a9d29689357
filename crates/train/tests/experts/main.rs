//! Models with experts: gradients, balance, replay, and experts on several ranks.

#[allow(dead_code)]
#[path = "../main/cases.rs"]
mod cases;
#[allow(dead_code)]
#[path = "../main/plain.rs"]
mod plain;

mod balance;
mod models;
mod ranks;
mod replay;
