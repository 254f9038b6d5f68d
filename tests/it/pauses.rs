//! Pausing a topic over /v1: what is due of it is held, can be seen, cancelled and moved, survives a crash
//! and a restart, and comes when the topic is resumed. Others go on.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::{App, Builder};
use crate::support::consumer::Consumer;
use crate::support::http::Http;
use crate::support::load::Load;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{sized, wait};

const TOPIC: &str = "orders";
const OTHER: &str = "other";
const QUIET: Duration = Duration::from_millis(700);

fn builder(redis: &Redis, nsqd: &Nsqd) -> Builder {
    App::builder()
        .redis(redis)
        .nsqd(nsqd)
        .flag("--shards", "4")
        .flag("--instance-heartbeat", "200ms")
        .flag("--instance-ttl", "1s")
        .flag("--claim-ttl", "5s")
}

fn set(app: &App, verb: &str) -> Value {
    let answer = app.post(&format!("/v1/topics/{TOPIC}/{verb}"), b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn publish(app: &App, topic: &str, id: &str) {
    let message = json!({"topic": topic, "body": id, "id": id});
    let answer = app.post_json("/v1/messages", &message);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

fn held(redis: &Redis) -> usize {
    let mut connection = redis.connection();
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*:held:*")
        .query(&mut connection)
        .unwrap();
    let cards = keys.iter().map(|key| {
        let cmd = redis::cmd("ZCARD").arg(key).query::<usize>(&mut connection);
        cmd.unwrap()
    });
    cards.sum()
}

/// Pauses the topic and waits until the instance knows.
fn pause(app: &App, redis: &Redis) {
    assert_eq!(set(app, "pause"), json!({"topic": TOPIC, "paused": true}));
    let known = || app.log().contains("paused topics changed");
    wait::until("the instance to know", known);
    assert_eq!(held(redis), 0);
}

#[test]
fn what_is_due_of_a_paused_topic_waits_until_it_is_resumed() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = builder(&redis, &nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let other = Consumer::start(&nsqd.tcp, OTHER);
    pause(&app, &redis);
    for id in ["a", "b", "c", "d"] {
        publish(&app, TOPIC, id);
    }
    publish(&app, OTHER, "through");
    other.wait_distinct(1);
    wait::until("all to be held", || {
        app.metric("messages_held_total", "") >= 4.0
    });
    let topics = app.get("/v1/topics").json();
    assert_eq!(
        topics,
        json!({"topics": [{"topic": TOPIC, "pending": 4, "paused": true}]})
    );
    // Seen, cancelled, moved to later and to now: now is held again.
    let seen = app.get("/v1/messages/a").json();
    assert_eq!(
        (&seen["state"], &seen["topic"]),
        (&json!("scheduled"), &json!(TOPIC))
    );
    assert_eq!(app.delete("/v1/messages/b").status, 200);
    assert_eq!(app.delete("/v1/messages/b").status, 200);
    let mut connection = Http::connect(&app.http).unwrap();
    let later = connection.json("PATCH", "/v1/messages/c", &json!({"delay": "1h"}));
    let later = later.unwrap();
    assert_eq!(later.status, 200, "{}", later.text());
    assert_eq!(app.post("/v1/messages/d/deliver", b"").status, 200);
    wait::until("it to be held again", || {
        app.metric("messages_held_total", "") >= 5.0
    });
    // The same create again is recognised.
    let message = json!({"topic": TOPIC, "body": "a", "id": "a"});
    assert_eq!(app.post_json("/v1/messages", &message).status, 200);
    app.restart();
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), 0);
    assert_eq!(
        set(&app, "resume"),
        json!({"topic": TOPIC, "paused": false})
    );
    consumer.wait_distinct(2);
    consumer.wait_quiet(QUIET);
    let copies = consumer.copies();
    assert_eq!((copies.len(), consumer.count()), (2, 2));
    assert!(copies.contains_key(&b"a"[..]) && copies.contains_key(&b"d"[..]));
    wait::until("nothing to be held", || held(&redis) == 0);
    let topics = || app.get("/v1/topics").json();
    wait::until("the count of what was moved to remain", || {
        topics() == json!({"topics": [{"topic": TOPIC, "pending": 1, "paused": false}]})
    });
    assert_eq!(app.delete("/v1/messages/c").status, 200);
    assert!(!app.log().contains("was not given back"));
}

#[test]
fn a_backlog_of_a_paused_topic_survives_kills_while_it_is_held_and_resumed() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = builder(&redis, &nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    pause(&app, &redis);
    let load = Load {
        topic: TOPIC,
        count: sized(20_000, 200_000),
        connections: 4,
        delay_ms: |number, _| (number % 1_000) as u64,
        due_ms: 0,
    };
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    wait::until("some to be held", || held(&redis) > 5);
    app.kill9();
    app.restart();
    let pending = || app.get("/v1/stats").json()["pending"].as_u64().unwrap();
    wait::until("the rest to be held", || {
        app.metric("messages_overdue", "") == 0.0 && held(&redis) > 5
    });
    assert_eq!(pending(), load.count as u64);
    assert_eq!(consumer.count(), 0);
    set(&app, "resume");
    wait::until("some to come", || consumer.distinct() > 100);
    app.kill9();
    app.restart();
    consumer.wait_distinct(load.count);
    let verdict = ledger.check(&consumer.deliveries());
    assert_eq!(
        (verdict.lost, verdict.early, verdict.resurrected),
        (0, 0, 0),
        "{verdict}"
    );
    wait::until("nothing to be held", || held(&redis) == 0);
}

#[test]
fn a_topic_that_is_none_is_refused() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    for path in ["/v1/topics/a%20b/pause", "/v1/topics/a%2Fb/resume"] {
        let answer = app.post(path, b"");
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &json!("invalid_topic"))
        );
        assert_eq!(answer.json()["param"], "topic");
    }
    assert_eq!(app.get("/v1/topics/t/pause").status, 405);
}
