//! Whole instances under faults: three of them, a Redis and two nsqds, all as processes, producers on all doors,
//! consumers on both nsqds. Everything is broken, by a schedule that follows from a seed, then repaired, again
//! and again; everything that was asked, answered, handed over and received is written down on one clock; and
//! the whole history is held against the promises.
//!
//! `cargo test --test chaos` plays two minutes with a seed of its own, which it prints. `make chaos SEED=7
//! MINUTES=10` plays more, and prints the schedule and a one-page report.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test fails by panicking and prints its figures"
)]

mod answers;
mod checker;
mod cluster;
mod consumers;
mod event;
mod faults;
mod histories;
mod planted;
mod producers;
mod proxy;
mod read_back;
mod recorder;
mod report;
mod run;
mod schedule;
#[path = "../it/support/mod.rs"]
mod support;

use crate::run::Size;
use crate::schedule::Schedule;
use crate::support::unix_us;

/// Minutes of a plain test run.
const MINUTES: u64 = 2;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text}")),
    )
}

#[test]
fn every_promise_holds_under_faults() {
    let minutes = variable("MINUTES").unwrap_or(MINUTES);
    let seed = variable("SEED").unwrap_or_else(|| unix_us() % 1_000_000);
    let size = Size::whole();
    let schedule = Schedule::new(seed, minutes, size.cluster.instances, size.cluster.nsqds);
    eprintln!("{schedule}");
    let dir = run::fresh_dir(&format!("chaos-{seed}"));
    let verdict = run::play(&schedule, size, &dir);
    let report = report::page(&schedule, &verdict, &dir);
    std::fs::write(dir.join("report.txt"), &report).unwrap();
    eprintln!("{report}");
    assert!(
        verdict.broken.is_empty() && verdict.invalid.is_empty(),
        "the report above says what; the same schedule again: make chaos SEED={seed} MINUTES={minutes}",
    );
    run::drop_servers_files(&dir);
}
