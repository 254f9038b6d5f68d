//! A backlog far larger than memory: an instance works it off within what its settings allow.

use std::fs;

use crate::support::app::App;
use crate::support::nsqd::Nsqd;
use crate::support::producer::mpub;
use crate::support::redis::Redis;
use crate::support::{sized, wait};

const TOPIC: &str = "backlog";
const MIB: usize = 1 << 20;
/// Settings of the instance, and what it may take beside: code, buffers, the allocator's own.
const OPEN_BYTES: usize = 32 * MIB;
const QUEUE_BYTES: usize = 16 * MIB;
const IN_FLIGHT_BYTES: usize = 32 * MIB;
const BASE_BYTES: usize = 96 * MIB;
/// Messages of one MPUB.
const BATCH: usize = 1_000;
const CONNECTIONS: usize = 4;

/// The most memory that a process has ever had, in bytes.
fn peak_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: usize = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

#[test]
fn proof_backlog_memory() {
    let redis = Redis::start_with(&[("appendfsync", "no")]);
    let mut nsqd = Nsqd::start_with(&["--mem-queue-size=1000"]);
    let app = App::builder()
        .redis(&redis)
        .nsqd(&nsqd)
        .flag("--open-bytes-max", &OPEN_BYTES.to_string())
        .flag("--queue-bytes-max", &QUEUE_BYTES.to_string())
        .flag("--in-flight-bytes-max", &IN_FLIGHT_BYTES.to_string())
        .start();
    nsqd.kill9();
    let count = sized(200_000, 10_000_000);
    std::thread::scope(|scope| {
        for first in 0..CONNECTIONS {
            let app = &app;
            scope.spawn(move || {
                let mut producer = app.producer();
                for batch in (first * BATCH..count).step_by(CONNECTIONS * BATCH) {
                    let bodies: Vec<Vec<u8>> = (batch..batch + BATCH)
                        .map(|number| format!("{number:032}").into_bytes())
                        .collect();
                    let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
                    assert!(producer.ask(&mpub(TOPIC, &bodies)).is_ok());
                }
            });
        }
    });
    let taken = peak_bytes(app.child().pid());
    nsqd.restart();
    let all = || nsqd.message_count(TOPIC) >= count as u64;
    wait::until_within(
        std::time::Duration::from_mins(30),
        "the backlog to be worked off",
        all,
    );
    let peak = peak_bytes(app.child().pid());
    let ceiling = OPEN_BYTES + QUEUE_BYTES + IN_FLIGHT_BYTES + BASE_BYTES;
    eprintln!(
        "{count} overdue messages: at most {} MiB while they were taken, {} MiB in all; the settings allow {} MiB",
        taken / MIB,
        peak / MIB,
        ceiling / MIB,
    );
    assert!(peak <= ceiling, "{peak} bytes, over {ceiling}");
}
