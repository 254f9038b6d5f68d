//! The path of a message, from each door to a consumer on nsqd.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::ledger::{Ledger, Stamp};
use crate::support::load::{BODY_BYTES, Load, at_one_instant};
use crate::support::nsqd::Nsqd;
use crate::support::producer::{Producer, dpub, dpub_with_id, mdpub, mpub, publish};
use crate::support::redis::Redis;
use crate::support::unix_ms;

const TOPIC: &str = "orders";

/// Long enough for what should not come to come.
const QUIET: Duration = Duration::from_millis(700);

#[test]
fn dpub_arrives_once_and_not_before_it_is_due() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: 2000,
        connections: 4,
        delay_ms: |number, _| (number as u64 * 7) % 2000,
        due_ms: 0,
    };
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    ledger.check(&consumer.deliveries()).assert_exact();
}

#[test]
fn every_command_that_publishes_arrives() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producer = app.producer();
    for command in [
        publish(TOPIC, b"pub"),
        mpub(TOPIC, &[b"mpub-1", b"mpub-2"]),
        dpub(TOPIC, 50, b"dpub"),
        dpub(TOPIC, 0, b"dpub-0"),
        dpub_with_id(TOPIC, 50, "order-1", b"dpub-id"),
        mdpub(TOPIC, 50, &[b"mdpub-1", b"mdpub-2"]),
    ] {
        producer.send(&command).unwrap();
        producer.expect_ok();
    }
    let path = format!("/pub?topic={TOPIC}");
    assert_eq!(app.post(&path, b"http-pub").text(), "OK");
    assert_eq!(
        app.post(&format!("{path}&defer=50"), b"http-defer").text(),
        "OK"
    );
    let path = format!("/mpub?topic={TOPIC}");
    assert_eq!(app.post(&path, b"http-mpub-1\nhttp-mpub-2").text(), "OK");
    let answer = app.post_json(
        "/v1/messages",
        &json!({"topic": TOPIC, "body": "json", "delay_ms": 50}),
    );
    assert_eq!(answer.status, 201, "{}", answer.text());
    consumer.wait_distinct(13);
    let answer = app.get("/metrics").text();
    assert!(answer.contains("lateness"), "{answer}");
}

#[test]
fn bodies_arrive_byte_for_byte() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let every_byte: Vec<u8> = (0..=255).collect();
    let longest: Vec<u8> = (0..1 << 20)
        .map(|n: u32| n.to_be_bytes()[2] ^ 0x5a)
        .collect();
    let mut producer = app.producer();
    for body in [&b"\n"[..], &[0], &every_byte, &longest] {
        producer.dpub(TOPIC, 30, body);
    }
    consumer.wait_distinct(4);
    for body in [&b"\n"[..], &[0], &every_byte, &longest] {
        assert_eq!(consumer.copies_of(body), 1);
    }
}

#[test]
fn headers_arrive_in_an_envelope_if_it_is_asked_for() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut message = json!({"topic": TOPIC, "body": "pay up", "id": "order-17", "delay_ms": 50,
        "envelope": "json", "headers": {"trace": "4bf9"}});
    let created = app.post_json("/v1/messages", &message);
    assert_eq!(created.status, 201, "{}", created.text());
    // Sent again, it is recognised.
    assert_eq!(app.post_json("/v1/messages", &message).status, 200);
    consumer.wait_distinct(1);
    let came: serde_json::Value = serde_json::from_slice(&consumer.deliveries()[0].body).unwrap();
    let expected = json!({"id": "order-17", "headers": {"trace": "4bf9"}, "body": "pay up"});
    assert_eq!(came, expected);
    message.as_object_mut().unwrap().remove("envelope");
    let refused = app.post_json("/v1/messages", &message);
    assert_eq!(
        (refused.status, &refused.json()["field"]),
        (400, &json!("headers"))
    );
}

#[test]
fn cancelled_messages_do_not_come() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producer = app.producer();
    producer
        .send(&dpub_with_id(TOPIC, 800, "by-tcp", b"by-tcp"))
        .unwrap();
    producer.expect_ok();
    let created = app.post_json(
        "/v1/messages",
        &json!({"topic": TOPIC, "body": "by-http", "delay_ms": 800}),
    );
    assert_eq!(created.status, 201, "{}", created.text());
    producer.dpub(TOPIC, 900, b"kept");
    producer.send(b"CANCEL by-tcp\n").unwrap();
    producer.expect_ok();
    let path = format!("/v1/messages/{}", created.json()["id"].as_str().unwrap());
    assert_eq!(app.delete(&path).status, 200);
    // A cancel that is repeated, because its answer was lost, says the same.
    assert_eq!(app.delete(&path).status, 200);
    consumer.wait_distinct(1);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.copies_of(b"kept"), 1);
    assert_eq!(consumer.count(), 1);
}

#[test]
fn port_zero_is_chosen_by_the_system_and_written_down() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::builder().redis(&redis).nsqd(&nsqd).any_port().start();
    assert!(!app.tcp.ends_with(":0") && !app.http.ends_with(":0"));
    assert!(app.log().contains(&app.tcp), "the log names {}", app.tcp);
    assert_eq!(app.get("/ping").text(), "OK");
}

#[test]
fn sigterm_ends_it_cleanly_and_keeps_what_is_pending() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: 2000,
        connections: 2,
        delay_ms: |number, _| number as u64,
        due_ms: 0,
    };
    let ledger = load.send(&app.tcp);
    consumer.wait_distinct(1);
    let status = app.sigterm_and_wait();
    assert!(status.success(), "{status}");
    app.restart();
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    ledger.check(&consumer.deliveries()).assert_exact();
}

#[test]
fn runs_on_valkey() {
    let (valkey, nsqd) = (Redis::start_valkey(), Nsqd::start());
    let app = App::start(&valkey, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producer = app.producer();
    producer.dpub(TOPIC, 100, b"on valkey");
    consumer.wait_distinct(1);
}

#[test]
fn two_hundred_thousand_at_one_instant() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let load = Load {
        topic: TOPIC,
        count: 200_000,
        connections: 8,
        delay_ms: at_one_instant,
        due_ms: unix_ms() + 15_000,
    };
    let ledger = load.send(&app.tcp);
    assert_eq!(ledger.acknowledged.len(), load.count);
    consumer.wait_distinct(load.count);
    consumer.wait_quiet(QUIET);
    let verdict = ledger.check(&consumer.deliveries());
    eprintln!("200,000 at one instant: {verdict}");
    verdict.assert_exact();
}

/// Most connections that are promised.
const CONNECTIONS: usize = 10_000;

#[test]
fn ten_thousand_connections_are_served() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    // Before our own limit is raised: the instance must raise the one it inherits by itself.
    let app = App::start(&redis, &nsqd);
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut producers: Vec<_> = (0..CONNECTIONS).map(|_| app.producer()).collect();
    let mut ledger = Ledger::default();
    for (number, producer) in producers.iter_mut().enumerate() {
        let body = Stamp::now(number, 100).body(BODY_BYTES);
        producer.send(&dpub(TOPIC, 100, &body)).unwrap();
    }
    for (number, producer) in producers.iter_mut().enumerate() {
        producer.expect_ok();
        ledger.acknowledged.insert(number);
    }
    consumer.wait_distinct(CONNECTIONS);
    ledger.check(&consumer.deliveries()).assert_exact();
    let resident = app.child().resident_bytes() >> 20;
    eprintln!("{CONNECTIONS} connections: {resident} MiB resident");
}

#[test]
fn nothing_is_asked_of_a_producer_that_an_nsqd_would_not_ask() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    // The same bytes to both; the answers must not differ.
    let mut pair = [Producer::connect(&app.tcp), Producer::connect(&nsqd.tcp)];
    let bytes = [
        publish(TOPIC, b"a"),
        b"NOP\n".to_vec(),
        dpub(TOPIC, 10, b"b"),
    ]
    .concat();
    let answers = pair.each_mut().map(|producer| {
        producer.send(&bytes).unwrap();
        [producer.read().unwrap(), producer.read().unwrap()]
    });
    assert_eq!(answers[0], answers[1]);
}
