//! The rollout engine as a whole, on tiny models.

mod agreement;
mod bits;
mod cache;
mod common;
mod episodes;
mod experts;
mod fixtures;
mod late;
mod stops;
