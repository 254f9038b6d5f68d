//! After an outage: one topic's backlog does not starve another's, the rate is kept, what is too late
//! goes to the dead letters, and full dead letters hold nobody up.

use std::time::Duration;

use serde_json::json;

use crate::support::app::{App, Builder};
use crate::support::consumer::Consumer;
use crate::support::load::Load;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{sized, unix_ms, wait};

const BACKLOG: &str = "backlog";
const FRESH: &str = "fresh";
const RATE: usize = 1_000;
const QUIET: Duration = Duration::from_secs(1);

fn builder(redis: &Redis, nsqd: &Nsqd) -> Builder {
    App::builder().redis(redis).nsqd(nsqd)
}

/// Sends `count` messages that are overdue before anybody can deliver them.
fn backlog(app: &App, nsqd: &mut Nsqd, count: usize) {
    nsqd.kill9();
    let load = Load {
        topic: BACKLOG,
        count,
        connections: 4,
        delay_ms: |_, _| 0,
        due_ms: 0,
    };
    assert_eq!(load.send(&app.tcp).acknowledged.len(), count);
}

#[test]
fn a_backlog_of_one_topic_does_not_starve_another() {
    let (redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = builder(&redis, &nsqd)
        .flag("--forward-rate-max", &RATE.to_string())
        .start();
    // Minutes of it at that rate.
    let count = sized(200_000, 1_000_000);
    backlog(&app, &mut nsqd, count);
    nsqd.restart();
    let old = Consumer::start(&nsqd.tcp, BACKLOG);
    let fresh = Consumer::start(&nsqd.tcp, FRESH);
    old.wait_distinct(RATE);
    for number in 0..20 {
        let path = format!("/pub?topic={FRESH}");
        let body = format!("fresh {number}");
        assert_eq!(app.post(&path, body.as_bytes()).status, 200);
    }
    fresh.wait_distinct(20);
    assert!(old.distinct() < count / 2, "{} came before", old.distinct());
}

#[test]
fn the_rate_is_kept_while_a_backlog_is_worked_off() {
    let (redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = builder(&redis, &nsqd)
        .flag("--forward-rate-max", &RATE.to_string())
        .start();
    let count = RATE * 4;
    backlog(&app, &mut nsqd, count);
    nsqd.restart();
    let began = unix_ms();
    let consumer = Consumer::start(&nsqd.tcp, BACKLOG);
    consumer.wait_distinct(count);
    let took = unix_ms() - began;
    // The first slice of a tenth of a second passes at once.
    assert!(took >= 3_800, "{count} messages came within {took} ms");
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), count);
}

#[test]
fn what_is_too_late_becomes_a_dead_letter_and_can_be_requeued() {
    let (redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = builder(&redis, &nsqd)
        .flag("--shards", "1")
        .flag("--expire-if-later-than", "2s")
        .flag("--dead-letters-max", "3")
        .start();
    let consumer = Consumer::start_later(&nsqd.tcp, BACKLOG);
    nsqd.kill9();
    for number in 0..5 {
        let path = format!("/pub?topic={BACKLOG}");
        assert_eq!(app.post(&path, format!("{number}").as_bytes()).status, 200);
    }
    let stats = || app.get("/v1/stats").json();
    let sent = stats()["now_ms"].as_u64().unwrap();
    wait::until("the messages to be too late", || {
        stats()["now_ms"].as_u64().unwrap() > sent + 2_500
    });
    nsqd.restart();
    wait::until("dead letters", || stats()["dead_letters"] == 3);
    // There is no room for the others: late is better than never.
    consumer.wait_distinct(2);
    assert!(app.metric("messages_expired_total", "") >= 3.0);
    let letters = app.get("/v1/dead-letters").json();
    let letter = &letters["messages"][0];
    assert!(
        letter["reason"].as_str().unwrap().starts_with("expired"),
        "{letter}"
    );
    let path = format!(
        "/v1/dead-letters/{}/requeue",
        letter["id"].as_str().unwrap()
    );
    assert_eq!(app.post(&path, b"").status, 200);
    consumer.wait_distinct(3);
}

#[test]
fn full_dead_letters_hold_nobody_up() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start_with(&["--max-msg-size=1000"]));
    let app = builder(&redis, &nsqd)
        .flag("--shards", "1")
        .flag("--unsettled-max", "5")
        .flag("--dead-letters-max", "2")
        .start();
    let consumer = Consumer::start(&nsqd.tcp, FRESH);
    for _ in 0..10 {
        let too_big = json!({"topic": BACKLOG, "body": "x".repeat(2_000)});
        assert_eq!(app.post_json("/v1/messages", &too_big).status, 201);
    }
    for number in 0..20 {
        let path = format!("/pub?topic={FRESH}");
        assert_eq!(app.post(&path, format!("{number}").as_bytes()).status, 200);
    }
    consumer.wait_distinct(20);
    let parked = || app.metric("messages_parked_total", "") >= 8.0;
    wait::until("those without room to be parked", parked);
    let pending = || app.get("/v1/stats").json()["pending"] == 8;
    wait::until("S to pass what was parked", pending);
    let mut connection = redis.connection();
    let settled = || {
        let settled: u64 = redis::cmd("HGET")
            .arg("{nsqdelayd:1.0}:horizon")
            .arg("settled")
            .query(&mut connection)
            .unwrap();
        settled + 60_000 > unix_ms()
    };
    wait::until("S to be near the clock", settled);
}
