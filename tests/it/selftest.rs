//! The kit's own tests: what the other tests stand on.

use std::time::Duration;

use crate::support::consumer::Consumer;
use crate::support::nsqd::{Nsqd, Nsqlookupd};
use crate::support::producer::{Producer, mpub, publish};
use crate::support::redis::Redis;
use crate::support::{http, wait};

#[test]
fn redis_keeps_its_port_and_content_over_a_kill() {
    let mut redis = Redis::start();
    let port = redis.port;
    let set: String = redis::cmd("SET")
        .arg("k")
        .arg("v")
        .query(&mut redis.connection())
        .unwrap();
    assert_eq!(set, "OK");
    redis.kill();
    redis.restart();
    let value: String = redis::cmd("GET")
        .arg("k")
        .query(&mut redis.connection())
        .unwrap();
    assert_eq!((value.as_str(), redis.port), ("v", port));
}

#[test]
fn valkey_speaks_the_same_protocol() {
    let valkey = Redis::start_valkey();
    assert!(valkey.info("process_id") > 0);
}

#[test]
fn producer_and_consumer_meet_at_nsqd() {
    let mut nsqd = Nsqd::start();
    let consumer = Consumer::start(&nsqd.tcp, "t");
    let mut producer = Producer::connect(&nsqd.tcp);
    assert!(producer.ask(&publish("t", b"a")).is_ok());
    assert!(producer.ask(&mpub("t", &[b"b", b"c"])).is_ok());
    assert!(producer.ask(&publish("t", b"d")).is_ok());
    let many: Vec<_> = (0..5000)
        .map(|n| publish("t", format!("{n}").as_bytes()))
        .collect();
    assert_eq!(producer.pipeline(&many, 500), many.len());
    consumer.wait_distinct(5004);
    assert_eq!(consumer.count(), 5004);
    assert_eq!(nsqd.message_count("t"), 5004);
    nsqd.kill9();
    nsqd.restart();
    let mut producer = Producer::connect(&nsqd.tcp);
    assert!(producer.ask(&publish("t", b"e")).is_ok());
    consumer.wait_distinct(5005);
}

#[test]
fn nsqlookupd_hears_of_an_nsqd() {
    let lookup = Nsqlookupd::start();
    let nsqd = Nsqd::start_with(&[&format!("--lookupd-tcp-address={}", lookup.tcp)]);
    nsqd.create_topic("t");
    wait::until("nsqlookupd to know the topic", || {
        http::get(&lookup.http, "/lookup?topic=t")
            .text()
            .contains("127.0.0.1")
    });
}

#[test]
fn a_silent_topic_is_quiet() {
    let nsqd = Nsqd::start();
    let consumer = Consumer::start(&nsqd.tcp, "t");
    consumer.wait_quiet(Duration::from_millis(50));
    assert_eq!(consumer.count(), 0);
}
