//! Several instances on one Redis: they share the shards and take over from each other.

use std::time::Duration;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::ledger::Ledger;
use crate::support::load::Load;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::wait;

const TOPIC: &str = "orders";
const QUIET: Duration = Duration::from_secs(1);

struct Pair {
    _redis: Redis,
    _nsqd: Nsqd,
    consumer: Consumer,
    first: App,
    second: App,
}

fn pair() -> Pair {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let build = || App::builder().redis(&redis).nsqd(&nsqd).start();
    let (first, second) = (build(), build());
    Pair {
        consumer: Consumer::start(&nsqd.tcp, TOPIC),
        _redis: redis,
        _nsqd: nsqd,
        first,
        second,
    }
}

impl Pair {
    /// Sends half to each.
    fn send(&self, count: usize, delay_ms: fn(usize, &Load<'_>) -> u64) -> Ledger {
        let load = Load {
            topic: TOPIC,
            count,
            connections: 4,
            delay_ms,
            due_ms: 0,
        };
        let mut ledger = load.send(&self.first.tcp);
        // The same numbers would be duplicates: the second half is numbered from `count`.
        ledger.merge(load.send_from(&self.second.tcp, count));
        assert_eq!(ledger.acknowledged.len(), 2 * count);
        ledger
    }
}

#[test]
fn two_instances_share_the_work_without_duplicates() {
    let pair = pair();
    let ledger = pair.send(5_000, |number, _| 500 + (number % 3000) as u64);
    pair.consumer.wait_distinct(10_000);
    pair.consumer.wait_quiet(QUIET);
    ledger.check(&pair.consumer.deliveries()).assert_exact();
    for app in [&pair.first, &pair.second] {
        let delivered = app.metric("messages_forwarded_total", "accepted");
        assert!(
            delivered > 0.0,
            "one instance did all the work:\n{}",
            app.get("/metrics").text()
        );
    }
}

#[test]
fn what_a_killed_instance_owned_is_delivered_by_the_other() {
    let mut pair = pair();
    let ledger = pair.send(5_000, |number, _| 500 + (number % 4000) as u64);
    pair.consumer.wait_distinct(1_000);
    pair.first.kill9();
    pair.consumer.wait_distinct(10_000);
    pair.consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&pair.consumer.deliveries());
    eprintln!("one of two killed: {verdict}");
    verdict.assert_kept();
}

#[test]
fn an_instance_that_stops_hands_over_without_duplicates() {
    let mut pair = pair();
    let ledger = pair.send(5_000, |number, _| 500 + (number % 4000) as u64);
    pair.consumer.wait_distinct(1_000);
    assert!(pair.first.sigterm_and_wait().success());
    pair.consumer.wait_distinct(10_000);
    pair.consumer.wait_quiet(QUIET);
    ledger.check(&pair.consumer.deliveries()).assert_exact();
}

#[test]
fn a_message_accepted_by_one_is_found_and_cancelled_at_the_other() {
    let pair = pair();
    let created = pair.first.post_json(
        "/v1/messages",
        &serde_json::json!({"topic": TOPIC, "body": "x", "delay_ms": 60_000}),
    );
    assert_eq!(created.status, 201, "{}", created.text());
    let path = format!("/v1/messages/{}", created.json()["id"].as_str().unwrap());
    wait::until("the other instance to find it", || {
        pair.second.get(&path).status == 200
    });
    assert_eq!(pair.second.delete(&path).status, 200);
    assert_eq!(pair.first.get(&path).status, 404);
}
