//! The integration tests: the real binary, a real Redis, a real nsqd, each started by its test.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking and prints its figures"
)]

mod api_v1;
mod backlog;
mod bench;
mod cancel_race;
mod cli;
mod clock_steps;
mod compression;
mod crash;
mod dev;
mod docs;
mod doctor;
mod end_to_end;
mod fairness;
mod forward;
mod hostile;
mod inbox;
mod interop;
mod limits;
mod model_oracle;
mod nsqd_http;
mod nsqd_tcp;
mod openapi;
mod outage;
mod passthrough;
mod pauses;
mod proofs;
mod scripts;
mod selftest;
mod support;
mod takeover;
mod tidy;
