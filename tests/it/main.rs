//! The integration tests: the real binary, a real Redis, a real nsqd, each started by its test.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking and prints its figures"
)]

mod cli;
mod forward;
mod support;
mod tidy;
