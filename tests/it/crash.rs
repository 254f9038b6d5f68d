//! kill -9 of the only instance: everything acknowledged arrives, and duplicates stay within what
//! was in flight.

use std::time::Duration;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::load::{Load, at_one_instant};
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{sized, unix_ms, wait};

const TOPIC: &str = "orders";
const QUIET: Duration = Duration::from_secs(1);

/// Shards of the drained instance, and how many messages of each may be under way to nsqd or delivered
/// and not yet settled: their product is the most that one crash can repeat.
const SHARDS: usize = 64;
const UNSETTLED_MAX: usize = 200;

#[test]
fn everything_acknowledged_in_a_burst_arrives_after_kill9() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let address = app.tcp.clone();
    let load = Load {
        topic: TOPIC,
        // More than can be sent before the kill.
        count: 2_000_000,
        connections: 8,
        delay_ms: |number, _| (number % 3000) as u64,
        due_ms: 0,
    };
    let ledger = std::thread::scope(|scope| {
        let sender = scope.spawn(|| load.send(&address));
        // In the middle: some of it delivered, most of it pending, more of it on its way.
        consumer.wait_distinct(2_000);
        app.kill9();
        sender.join().unwrap()
    });
    assert!(!ledger.unknown.is_empty(), "the kill hit nothing");
    app.restart();
    // What was sent without an answer may come too: it cannot be waited for.
    consumer.wait_distinct(ledger.acknowledged.len());
    loop {
        // Counted before the check: what comes in between must not be waited for again.
        let seen = consumer.distinct();
        if ledger.check(&consumer.deliveries()).lost == 0 {
            break;
        }
        consumer.wait_distinct(seen + 1);
    }
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    eprintln!("kill -9 in a burst: {verdict}");
    verdict.assert_kept();
}

#[test]
fn proof_drain_kill() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = App::builder()
        .redis(&redis)
        .nsqd(&nsqd)
        .flag("--shards", &SHARDS.to_string())
        .flag("--unsettled-max", &UNSETTLED_MAX.to_string())
        .start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: sized(50_000, 200_000),
        connections: 8,
        delay_ms: at_one_instant,
        due_ms: unix_ms() + sized(8_000, 20_000) as u64,
    };
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    // Each time a further fifth has come.
    let mut kills = 0;
    for fifth in 1..5 {
        consumer.wait_distinct(load.count * fifth / 5);
        app.kill9();
        kills += 1;
        app.restart();
    }
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    let bound = kills * SHARDS * UNSETTLED_MAX;
    eprintln!("kill -9 in a drain, {kills} times, duplicates at most {bound}: {verdict}");
    verdict.assert_kept();
    assert!(
        verdict.duplicate <= bound,
        "more duplicates than were in flight"
    );
}

#[test]
fn deliveries_resume_after_the_restart_of_the_only_instance() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    app.producer().dpub(TOPIC, 1000, b"pending at the kill");
    app.kill9();
    app.restart();
    let restarted_ms = unix_ms();
    consumer.wait_distinct(1);
    eprintln!(
        "first delivery {} ms after the restart",
        unix_ms() - restarted_ms
    );
}

/// A zombie: stopped for longer than its claims live, then continued. Its claims are fenced.
#[test]
fn an_instance_that_was_stopped_longer_than_its_claims_does_no_harm() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let build = || App::builder().redis(&redis).nsqd(&nsqd).start();
    let (zombie, successor) = (build(), build());
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: 20_000,
        connections: 4,
        delay_ms: |number, _| 1000 + (number % 12_000) as u64,
        due_ms: 0,
    };
    let ledger = load.send(&successor.tcp);
    consumer.wait_distinct(1_000);
    zombie.pause();
    // Longer than the claims' 5 s and the instance's.
    wait::pause(Duration::from_secs(7));
    zombie.cont();
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    eprintln!("stopped for 7 s and continued: {verdict}");
    verdict.assert_kept();
}
