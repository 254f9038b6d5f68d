//! Limits: on what is pending, altogether and by topic, and on what is under way. What is over them is
//! refused early and clearly, at every door, and taken again when there is room.

use serde_json::json;

use crate::support::app::{App, Builder};
use crate::support::http::Http;
use crate::support::nsqd::Nsqd;
use crate::support::producer::{Producer, dpub, mpub, publish};
use crate::support::redis::Redis;
use crate::support::wait;

const HOUR_MS: u64 = 3_600_000;
const FULL: &str = "as much is pending as may be, nothing was stored, try again later";
const TOPIC_FULL: &str =
    "as much of the topic is pending as may be, nothing was stored, try again later";
const CROWDED: &str = "too much is under way, nothing was stored, try again later";

fn builder(redis: &Redis, nsqd: &Nsqd) -> Builder {
    App::builder().redis(redis).nsqd(nsqd)
}

fn later(app: &App, topic: &str, body: &[u8]) -> u16 {
    let path = format!("/pub?topic={topic}&defer={HOUR_MS}");
    app.post(&path, body).status
}

#[test]
fn a_topic_that_is_full_is_refused_at_every_door_and_others_are_not() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let limited = || builder(&redis, &nsqd).flag("--topic-pending-messages-max", "100");
    let (app, other) = (limited().start(), limited().start());
    for _ in 0..100 {
        assert_eq!(later(&app, "full", b"x"), 200);
    }
    let answer = app.post(&format!("/pub?topic=full&defer={HOUR_MS}"), b"x");
    assert_eq!(answer.status, 429);
    assert_eq!(answer.text(), r#"{"message":"TOPIC_FULL"}"#);
    assert_eq!(answer.header("retry-after"), Some("1"));
    let message = json!({"topic": "full", "body": "x", "delay_ms": HOUR_MS});
    let answer = app.post_json("/v1/messages", &message);
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (429, &json!("topic_full"))
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    for (command, code) in [
        (publish("full", b"x"), "E_PUB_FAILED PUB"),
        (dpub("full", HOUR_MS, b"x"), "E_DPUB_FAILED DPUB"),
        (mpub("full", &[b"x", b"y"]), "E_MPUB_FAILED MPUB"),
    ] {
        let mut producer = app.producer();
        let frame = producer.ask(&command);
        assert_eq!(frame.text(), format!("{code} failed {TOPIC_FULL}"));
        assert!(producer.is_closed());
    }
    assert_eq!(later(&app, "other", b"x"), 200);
    assert!(app.metric("messages_refused_total", "topic_full") >= 5.0);
    // The other instance learns of it when it counts.
    wait::until("the other instance to refuse", || {
        later(&other, "full", b"x") == 429
    });
    let filter = json!({"filter": {"topic": "full"}});
    let cancelled = app.post_json("/v1/messages:cancel", &filter);
    assert_eq!(cancelled.status, 200, "{}", cancelled.text());
    wait::until("room for the topic", || later(&app, "full", b"x") == 200);
}

/// Items of a batch go to the store together, and yet each is accepted or refused for itself.
#[test]
fn of_a_batch_what_fits_is_taken() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let builder = builder(&redis, &nsqd).flag("--topic-pending-messages-max", "3");
    let app = builder.start();
    let message = |topic: &str| json!({"topic": topic, "body": "x", "delay_ms": HOUR_MS});
    let with_id = |id: &str| json!({"id": id, "topic": "b", "body": "x", "delay_ms": HOUR_MS});
    let mut messages: Vec<_> = ["a", "b", "a", "a", "b", "a"].map(message).into();
    messages.extend([with_id("order:1"), with_id("order:2"), with_id("order:1")]);
    messages.push(json!({"topic": "b"}));
    let answer = app.post_json("/v1/messages:batch", &json!({"messages": messages}));
    let results = &answer.json()["results"];
    let statuses: Vec<u64> = (0..10)
        .map(|n| results[n]["status"].as_u64().unwrap())
        .collect();
    // Three of each topic. What has an id goes by itself, so which of topic b is too much is open.
    let counts = |numbers: &[usize], status| {
        let of = numbers.iter().filter(|number| statuses[**number] == status);
        of.count()
    };
    assert_eq!(counts(&[0, 2, 3, 5], 201), 3, "{statuses:?}");
    assert_eq!(counts(&[0, 2, 3, 5], 429), 1, "{statuses:?}");
    assert_eq!(counts(&[1, 4, 6, 7, 8], 201), 3, "{statuses:?}");
    assert_eq!(statuses[9], 400, "{statuses:?}");
    for topic in ["a", "b"] {
        let list = app.get(&format!("/v1/messages?topic={topic}")).json();
        assert_eq!(list["messages"].as_array().unwrap().len(), 3, "{list}");
    }
}

#[test]
fn what_is_pending_altogether_is_bounded_in_messages_and_bytes() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    for (flag, most) in [
        ("--pending-messages-max", "10"),
        ("--pending-bytes-max", "10000"),
    ] {
        let app = builder(&redis, &nsqd)
            .flag("--namespace", flag.trim_start_matches('-'))
            .flag(flag, most)
            .start();
        for number in 0..10 {
            let topic = format!("t{number}");
            assert_eq!(later(&app, &topic, &[b'x'; 1000]), 200);
        }
        let answer = app.post("/pub?topic=t", b"x");
        assert_eq!(answer.status, 503);
        assert_eq!(answer.text(), r#"{"message":"PENDING_FULL"}"#);
        assert_eq!(answer.header("retry-after"), Some("1"));
        let answer = app.post_json("/v1/messages", &json!({"topic": "t", "body": "x"}));
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (503, &json!("pending_full"))
        );
        let frame = app.producer().ask(&publish("t", b"x"));
        assert_eq!(frame.text(), format!("E_PUB_FAILED PUB failed {FULL}"));
    }
}

#[test]
fn delivered_messages_make_room_again() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = builder(&redis, &nsqd)
        .flag("--pending-bytes-max", "100000")
        .start();
    // More than the limit in all; what has been delivered does not count.
    for _ in 0..300 {
        wait::until("room", || {
            app.post("/pub?topic=t", &[b'x'; 1000]).status == 200
        });
    }
}

const SWARM: usize = 5_000;
/// Bytes of a body that never ends.
const HALF: i32 = 31_900;

/// An MPUB of many short messages: what they take here is far more than what they are.
fn swarm() -> Vec<u8> {
    let body: &[u8] = b"x";
    mpub("swarm", &vec![body; SWARM])
}

#[test]
fn what_is_under_way_is_bounded_over_all_connections() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = builder(&redis, &nsqd)
        .flag("--max-msg-size", "32768")
        .flag("--max-body-size", "65536")
        .flag("--in-flight-bytes-max", "2090000")
        .flag("--request-timeout", "60s")
        .start();
    redis.pause();
    // 5,000 times 1 and 128 bytes: three fit.
    let mut waiting: Vec<Producer> = Vec::new();
    for number in 1..=3_u32 {
        let mut producer = app.producer();
        producer.send(&swarm()).unwrap();
        waiting.push(producer);
        let held = || app.metric("in_flight_bytes", "") >= f64::from(number * 5_000 * 129);
        wait::until("the bytes to be held", held);
    }
    for _ in 0..5 {
        let mut producer = app.producer();
        producer.send(&swarm()).unwrap();
        let frame = producer.read().unwrap();
        assert_eq!(frame.text(), format!("E_MPUB_FAILED MPUB failed {CROWDED}"));
    }
    assert!(app.metric("messages_refused_total", "overload") >= 5.0);
    // HTTP's count as well, and so does half a body.
    let lines = "x\n".repeat(SWARM);
    let answer = app.post("/mpub?topic=swarm", lines.as_bytes());
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (503, r#"{"message":"OVERLOADED"}"#)
    );
    assert_eq!(answer.header("retry-after"), Some("1"));
    // The last sixteenth is for those who hold little: four halves of a body fit, a fifth does not.
    let swarms = 3 * 5_000 * 129;
    let given_back = || app.metric("in_flight_bytes", "") < f64::from(swarms + HALF);
    wait::until("what was refused to be given back", given_back);
    let mut halves: Vec<Producer> = Vec::new();
    for number in 1..=5 {
        let mut half = app.producer();
        half.send(b"PUB t\n").unwrap();
        half.send(&(HALF + 100).to_be_bytes()).unwrap();
        half.send(&vec![b'x'; usize::try_from(HALF).unwrap()])
            .unwrap();
        if number == 5 {
            let frame = half.read().unwrap();
            assert_eq!(frame.text(), format!("E_PUB_FAILED PUB failed {CROWDED}"));
        } else {
            let held = || app.metric("in_flight_bytes", "") >= f64::from(swarms + number * HALF);
            wait::until("the half to be held", held);
        }
        halves.push(half);
    }
    drop(halves);
    redis.cont();
    for mut producer in waiting {
        assert!(producer.read().unwrap().is_ok());
    }
    // Everything was given back.
    for _ in 0..5 {
        assert!(app.producer().ask(&swarm()).is_ok());
    }
    let mut http = Http::connect(&app.http).unwrap();
    for _ in 0..5 {
        let answer = http.request("POST", "/mpub?topic=swarm", &[], lines.as_bytes());
        assert_eq!(answer.unwrap().status, 200);
    }
}
