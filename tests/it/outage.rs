//! Redis away, nsqd away, and back: refused clearly or held, never accepted and lost.

use std::time::Duration;

use serde_json::json;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::load::Load;
use crate::support::nsqd::Nsqd;
use crate::support::producer::{ERROR, dpub};
use crate::support::redis::Redis;
use crate::support::{sized, unix_ms, wait};

const TOPIC: &str = "orders";
const QUIET: Duration = Duration::from_secs(1);

#[test]
fn redis_away_is_refused_at_once_and_recovers_without_a_restart() {
    let (mut redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    app.producer().dpub(TOPIC, 3_000, b"accepted before");
    assert_eq!(app.get("/readyz").status, 200);

    redis.kill();
    wait::until("/readyz to say 503", || app.get("/readyz").status == 503);
    assert_eq!(app.get("/healthz").status, 200);
    let answer = app.producer().ask(&dpub(TOPIC, 10, b"refused"));
    assert_eq!(answer.kind, ERROR);
    assert!(
        answer.text().starts_with("E_DPUB_FAILED"),
        "{}",
        answer.text()
    );
    let message = json!({"topic": TOPIC, "body": "refused", "delay_ms": 10});
    assert_eq!(app.post_json("/v1/messages", &message).status, 503);
    assert!(app.post(&format!("/pub?topic={TOPIC}"), b"refused").status >= 500);

    redis.restart();
    wait::until("/readyz to say 200", || app.get("/readyz").status == 200);
    app.producer().dpub(TOPIC, 10, b"accepted after");
    consumer.wait_distinct(2);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.copies_of(b"accepted before"), 1);
    assert_eq!(consumer.copies_of(b"accepted after"), 1);
    assert_eq!(consumer.copies_of(b"refused"), 0);
}

#[test]
fn a_redis_that_lost_its_data_gets_its_names_back_and_serves_old_and_new_instances() {
    let (mut redis, nsqd) = (Redis::start(), Nsqd::start());
    let old = App::start(&redis, &nsqd);
    let message = json!({"topic": TOPIC, "body": "x", "delay_ms": 60_000});
    let lost = old.post_json("/v1/messages", &message).json()["id"].clone();
    redis.lose_everything();
    wait::until("/readyz to say 200", || old.get("/readyz").status == 200);
    // What a new instance mints and what the old one mints must be one another's.
    let new = App::start(&redis, &nsqd);
    for (one, other) in [(&old, &new), (&new, &old)] {
        let id = one.post_json("/v1/messages", &message).json()["id"].clone();
        let path = format!("/v1/messages/{}", id.as_str().unwrap());
        assert_eq!(other.get(&path).json()["state"], "scheduled");
    }
    let path = format!("/v1/messages/{}", lost.as_str().unwrap());
    assert_eq!(old.get(&path).status, 404);
}

#[test]
fn an_instance_does_not_serve_a_namespace_that_was_set_up_anew_behind_its_back() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let mut connection = redis.connection();
    redis::pipe()
        .atomic()
        .cmd("FLUSHALL")
        .cmd("SET")
        .arg("{nsqdelayd}:topology")
        .arg("1 64")
        .cmd("SET")
        .arg("{nsqdelayd}:secret")
        .arg("another key here")
        .query::<()>(&mut connection)
        .unwrap();
    redis::cmd("CLIENT")
        .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
        .query::<u64>(&mut connection)
        .unwrap();
    wait::until("/readyz to say 503", || app.get("/readyz").status == 503);
    wait::until("the log to say what to do", || {
        app.log().contains("restart nsqdelayd to join it")
    });
}

#[test]
fn redis_killed_in_a_load_loses_nothing_that_was_acknowledged() {
    let (mut redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: 2_000_000,
        connections: 4,
        delay_ms: |number, _| (number % 3000) as u64,
        due_ms: 0,
    };
    let ledger = std::thread::scope(|scope| {
        let sender = scope.spawn(|| load.send(&app.tcp));
        consumer.wait_distinct(2_000);
        redis.kill();
        sender.join().unwrap()
    });
    redis.restart();
    consumer.wait_distinct(ledger.acknowledged.len());
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    eprintln!("Redis killed in a load: {verdict}");
    verdict.assert_kept();
}

#[test]
fn nsqd_away_holds_messages_which_can_still_be_cancelled() {
    let (redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    nsqd.kill9();
    let ids: Vec<String> = (0..100)
        .map(|number| {
            let message = json!({"topic": TOPIC, "body": format!("{number}"), "delay_ms": 100});
            let created = app.post_json("/v1/messages", &message);
            assert_eq!(created.status, 201, "{}", created.text());
            created.json()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let overdue_ms = unix_ms() + 200;
    wait::until("all to be overdue", || unix_ms() > overdue_ms);
    // Nothing has been handed out, so every cancel is in time.
    for id in &ids[..50] {
        assert_eq!(app.delete(&format!("/v1/messages/{id}")).status, 200);
    }
    nsqd.restart();
    consumer.wait_distinct(50);
    consumer.wait_quiet(QUIET);
    for number in 0..100 {
        let copies = consumer.copies_of(number.to_string().as_bytes());
        assert_eq!(copies, usize::from(number >= 50), "message {number}");
    }
}

#[test]
fn one_of_two_nsqds_away_the_other_gets_everything() {
    let (redis, mut dead, alive) = (Redis::start(), Nsqd::start(), Nsqd::start());
    let app = App::builder()
        .redis(&redis)
        .nsqd(&dead)
        .nsqd(&alive)
        .start();
    let consumer = Consumer::start(&alive.tcp, TOPIC);
    dead.kill9();
    let load = Load {
        topic: TOPIC,
        count: 1000,
        connections: 2,
        delay_ms: |number, _| 100 + number as u64,
        due_ms: 0,
    };
    let ledger = load.send(&app.tcp);
    consumer.wait_distinct(load.count);
    ledger.check(&consumer.deliveries()).assert_kept();
}

/// nsqd alone would deliver these early or lose them.
#[test]
fn proof_nsqd_restart() {
    let (redis, mut nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    nsqd.create_topic(TOPIC);
    let load = Load {
        topic: TOPIC,
        count: sized(2_000, 20_000),
        connections: 4,
        delay_ms: |number, _| 10_000 + (number % 3000) as u64,
        due_ms: 0,
    };
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    nsqd.sigterm_and_wait();
    nsqd.restart();
    assert_eq!(nsqd.message_count(TOPIC), 0, "the restarts came too late");
    nsqd.kill9();
    nsqd.restart();
    wait::until("all to be in nsqd", || {
        nsqd.message_count(TOPIC) >= load.count as u64
    });
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    eprintln!("nsqd restarted with SIGTERM, then killed, before due: {verdict}");
    verdict.assert_exact();
}
