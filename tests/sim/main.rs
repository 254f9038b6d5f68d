//! The protocol under a seeded simulation: production `dispatch` over a model of Redis and of nsqd, in
//! virtual time; and that model held against a real Redis.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::struct_excessive_bools,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking; a history is judged event by event in one place"
)]

mod backlog;
mod check;
mod model;
mod run;
mod seeds;
mod world;
