//! The protocol under a seeded simulation: production `dispatch` over a model of Redis and of nsqd, in
//! virtual time; and that model held against a real Redis.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints its trace"
)]

mod check;
mod model;
mod run;
mod seeds;
mod world;
