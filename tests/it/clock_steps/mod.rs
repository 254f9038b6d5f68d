//! Redis's clock steps by an hour, both ways: a transient delivers nothing early, and no step loses a
//! message or leaves a claim hanging. A real redis-server, whose clock a preloaded library moves.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::app::{App, Builder};
use crate::support::consumer::Consumer;
use crate::support::load::Load;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{checkout, wait};

const TOPIC: &str = "orders";
const HOUR_US: i64 = 3_600_000_000;
const CLAIM_TTL_MS: i64 = 5_000;
const QUIET: Duration = Duration::from_secs(1);

/// A Redis whose clock can be stepped.
struct Stepped {
    redis: Redis,
    offset: File,
    _dir: TempDir,
}

impl Stepped {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let library = shim(dir.path());
        let path = dir.path().join("offset");
        std::fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let environment = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("CLOCK_OFFSET_FILE", path.to_str().unwrap()),
        ];
        Self {
            redis: Redis::start_in(&environment),
            offset: File::options().write(true).open(&path).unwrap(),
            _dir: dir,
        }
    }

    /// From now on its clock is so far from the machine's.
    fn step_to(&self, offset_us: i64) {
        self.offset
            .write_all_at(&offset_us.to_ne_bytes(), 0)
            .unwrap();
    }

    fn time_us(&self) -> i64 {
        let mut connection = self.redis.connection();
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query(&mut connection).unwrap();
        seconds * 1_000_000 + micros
    }

    /// Each claim that is held, and for how long yet, in ms.
    fn claims(&self) -> Vec<(String, i64)> {
        let mut connection = self.redis.connection();
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*:claim")
            .query(&mut connection)
            .unwrap();
        let mut claims = Vec::new();
        for key in keys {
            let mut pipeline = redis::pipe();
            pipeline.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
            let (token, left): (Option<String>, i64) = pipeline.query(&mut connection).unwrap();
            claims.extend(token.map(|token| (token, left)));
        }
        claims
    }
}

/// Builds the library.
fn shim(dir: &Path) -> PathBuf {
    let library = dir.join("shim.so");
    let source = checkout().join("tests/it/clock_steps/shim.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .status();
    assert!(status.unwrap().success(), "the shim does not compile");
    library
}

fn instance(stepped: &Stepped, nsqd: &Nsqd, hold: &str) -> Builder {
    App::builder()
        .redis(&stepped.redis)
        .nsqd(nsqd)
        .flag("--shards", "8")
        .flag("--instance-heartbeat", "200ms")
        .flag("--instance-ttl", "1s")
        .flag("--clock-step-hold", hold)
}

fn wait_held(apps: &[&App], held: u32) {
    let is_so = |app: &&App| format!("{}", app.metric("clock_held", "")) == held.to_string();
    let all = || apps.iter().all(is_so);
    wait::until("all instances to notice", all);
}

const LOAD: Load<'_> = Load {
    topic: TOPIC,
    count: 2_000,
    connections: 2,
    delay_ms: |number, _| 3_000 + (number as u64 * 7) % 4_000,
    due_ms: 0,
};

#[test]
fn a_clock_that_runs_ahead_for_a_while_makes_nothing_early() {
    let (stepped, nsqd) = (Stepped::start(), Nsqd::start());
    let one = instance(&stepped, &nsqd, "1h").start();
    let other = instance(&stepped, &nsqd, "1h").start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let ledger = LOAD.send(&one.tcp);
    let before = stepped.time_us();
    stepped.step_to(HOUR_US);
    assert!(stepped.time_us() - before >= HOUR_US);
    wait_held(&[&one, &other], 1);
    // Cancels and inserts go on: it is Redis that takes them.
    one.producer().dpub(TOPIC, 0, b"meanwhile");
    stepped.step_to(0);
    wait_held(&[&one, &other], 0);
    consumer.wait_distinct(LOAD.count);
    consumer.wait_quiet(QUIET);
    ledger.check(&consumer.deliveries()).assert_exact();
    assert!(one.log().contains("stepped forward"), "{}", one.log());
    assert!(one.metric("clock_steps_total", "") >= 1.0);
}

#[test]
fn steps_of_an_hour_lose_nothing_and_leave_no_claim_hanging() {
    let (stepped, nsqd) = (Stepped::start(), Nsqd::start());
    let mut one = instance(&stepped, &nsqd, "300ms").start();
    let other = instance(&stepped, &nsqd, "300ms").start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut ledger = LOAD.send(&one.tcp);
    // Followed after the hold: what was due within the hour comes at once.
    stepped.step_to(HOUR_US);
    consumer.wait_distinct(LOAD.count);
    // Due a little after the clock as it was: claims are held for what comes.
    nsqd.pause();
    let second = Load {
        delay_ms: |_, _| 0,
        ..LOAD
    };
    ledger.merge(second.send_from(&one.tcp, LOAD.count));
    wait::until("claims to be held", || !stepped.claims().is_empty());
    stepped.step_to(0);
    one.kill9();
    let bounded = || {
        let claims = stepped.claims();
        claims.iter().all(|(_, left)| *left <= CLAIM_TTL_MS)
    };
    wait::until("no claim to outlive its time", bounded);
    nsqd.cont();
    // Refused as late until the clock has passed H again, but taken all the same.
    ledger.merge(second.send_from(&other.tcp, LOAD.count * 2));
    stepped.step_to(2 * HOUR_US);
    consumer.wait_distinct(LOAD.count * 3);
    let verdict = ledger.check(&consumer.deliveries());
    assert_eq!(verdict.lost, 0, "{verdict}");
    assert_eq!(ledger.acknowledged.len(), LOAD.count * 3);
}
