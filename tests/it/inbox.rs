//! The inbox: JSON published to a real nsqd is scheduled, once, whatever happens in between.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::app::{App, Builder};
use crate::support::certificates::{Certificates, Whose};
use crate::support::child::Running;
use crate::support::consumer::Consumer;
use crate::support::http;
use crate::support::nsqd::{Nsqd, Nsqlookupd};
use crate::support::redis::Redis;
use crate::support::{unix_ms, wait};

const INBOX: &str = "schedule";
const TOPIC: &str = "orders";
const CHANNEL: &str = "nsqdelayd";
/// Long enough for what should not come to come.
const QUIET: Duration = Duration::from_millis(700);

fn with_inbox(redis: &Redis, nsqd: &Nsqd) -> Builder {
    App::builder()
        .redis(redis)
        .nsqd(nsqd)
        .flag("--inbox-topic", INBOX)
}

/// Publishes to the inbox as a service does that knows only nsqd.
#[track_caller]
fn publish(nsqd: &Nsqd, body: &[u8]) {
    let answer = http::post(&nsqd.http, &format!("/pub?topic={INBOX}"), body);
    assert_eq!(answer.text(), "OK");
}

#[track_caller]
fn publish_json(nsqd: &Nsqd, message: &Value) {
    publish(nsqd, message.to_string().as_bytes());
}

/// Many at once.
#[track_caller]
fn publish_many(nsqd: &Nsqd, messages: impl Iterator<Item = Value>) {
    let lines: Vec<String> = messages.map(|message| message.to_string()).collect();
    let path = format!("/mpub?topic={INBOX}");
    let answer = http::post(&nsqd.http, &path, lines.join("\n").as_bytes());
    assert_eq!(answer.text(), "OK");
}

/// What nsqd says of the inbox's channel.
fn channel(nsqd: &Nsqd) -> HashMap<String, u64> {
    let stats = nsqd.stats();
    let topics = stats["topics"].as_array().cloned().unwrap_or_default();
    let topic = topics.iter().find(|topic| topic["topic_name"] == INBOX);
    let channels = topic.and_then(|topic| topic["channels"].as_array().cloned());
    let channels = channels.unwrap_or_default();
    let found = channels.iter().find(|c| c["channel_name"] == CHANNEL);
    let keys = [
        "depth",
        "in_flight_count",
        "deferred_count",
        "requeue_count",
        "message_count",
    ];
    keys.iter()
        .map(|key| {
            let number = found.and_then(|channel| channel[*key].as_u64());
            ((*key).to_owned(), number.unwrap_or(0))
        })
        .collect()
}

/// Waits until `count` messages have gone through the inbox and none is left in it.
#[track_caller]
fn wait_empty(nsqd: &Nsqd, count: u64) {
    wait::until("the inbox to be empty", || {
        let channel = channel(nsqd);
        let left = channel["depth"] + channel["in_flight_count"] + channel["deferred_count"];
        channel["message_count"] >= count && left == 0
    });
}

#[test]
fn json_from_nsqd_is_delivered_when_due() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    // What was published before the first start is not missed.
    let binary = [0_u8, 255, 10];
    publish_json(
        &nsqd,
        &json!({"topic": TOPIC, "body_base64": BASE64_STANDARD.encode(binary)}),
    );
    let app = with_inbox(&redis, &nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let at = unix_ms() + 1_500;
    publish_json(
        &nsqd,
        &json!({"topic": TOPIC, "body": "at", "deliver_at": at}),
    );
    publish_json(
        &nsqd,
        &json!({"topic": TOPIC, "body": "cancelled", "deliver_at": at, "id": "order-1"}),
    );
    let sent = unix_ms();
    publish_json(
        &nsqd,
        &json!({"topic": TOPIC, "body": "after", "delay_ms": 900}),
    );
    wait::until("the message with an id to be known", || {
        app.get("/v1/messages/order-1").status == 200
    });
    assert_eq!(app.delete("/v1/messages/order-1").status, 200);
    consumer.wait_distinct(3);
    consumer.wait_quiet(QUIET);
    for (body, due) in [(&b"at"[..], at), (b"after", sent + 900), (&binary, 0)] {
        let came: Vec<_> = consumer.deliveries();
        let came: Vec<_> = came.iter().filter(|d| d.body == body).collect();
        assert_eq!(came.len(), 1);
        assert!(came[0].published_us >= due * 1_000, "{came:?}");
    }
    assert_eq!(consumer.count(), 3);
    assert!((app.metric("messages_accepted_total", "inbox") - 4.0).abs() < 0.5);
}

#[test]
fn what_is_not_valid_goes_to_a_topic_beside_with_the_reason() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = with_inbox(&redis, &nsqd).start();
    let beside = Consumer::start(&nsqd.tcp, "schedule.invalid");
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let long = format!("[{}", "x".repeat(300 * 1024));
    let bad: [&[u8]; 5] = [
        b"not JSON",
        b"\xff\xfe",
        br#"{"topic": "no good", "body": "x"}"#,
        br#"{"topic": "orders", "body": "x", "delay_ms": -1}"#,
        long.as_bytes(),
    ];
    for body in bad {
        publish(&nsqd, body);
    }
    publish_json(&nsqd, &json!({"topic": TOPIC, "body": "good"}));
    consumer.wait_distinct(1);
    beside.wait_distinct(bad.len());
    wait_empty(&nsqd, 6);
    // With a reason around it a long one might be too long.
    assert_eq!(beside.copies_of(long.as_bytes()), 1);
    let deliveries = beside.deliveries();
    let reasons: Vec<Value> = deliveries
        .iter()
        .filter_map(|delivery| serde_json::from_slice(&delivery.body).ok())
        .collect();
    let of = |code: &str| {
        let found = reasons.iter().filter(|reason| reason["code"] == code);
        found.cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("invalid_json").len(), 2, "{reasons:#?}");
    assert_eq!(of("invalid_topic")[0]["field"], "topic");
    let delay = &of("invalid_delay")[0];
    assert_eq!(delay["field"], "delay_ms");
    assert_eq!(delay["body"], str::from_utf8(bad[3]).unwrap());
    assert!(reasons.iter().any(|reason| reason["body_base64"] == "//4="));
    let refused = app.metric("messages_refused_total", r#"door="inbox",reason="invalid""#);
    assert!((refused - 5.0).abs() < 0.5);
}

#[test]
fn an_nsqd_that_takes_no_longer_message_gets_the_invalid_one_as_it_was() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start_with(&["--max-msg-size=200"]));
    let _app = with_inbox(&redis, &nsqd).start();
    let beside = Consumer::start(&nsqd.tcp, "schedule.invalid");
    let body = "no JSON, and with the reason longer than 200 bytes ".repeat(3);
    publish(&nsqd, body.as_bytes());
    beside.wait_distinct(1);
    assert_eq!(beside.copies_of(body.as_bytes()), 1);
    wait_empty(&nsqd, 1);
}

#[test]
fn killed_in_the_middle_it_loses_and_doubles_nothing() {
    const COUNT: usize = 4_000;
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut app = with_inbox(&redis, &nsqd)
        // Slow, so that there is a middle.
        .flag("--inbox-max-in-flight", "8")
        .start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    // None is due before the last kill: what dispatch repeats after one is not what is tested.
    let due = unix_ms() + 20_000;
    let message = |number| json!({"topic": TOPIC, "body": format!("m{number}"), "deliver_at": due});
    publish_many(&nsqd, (0..COUNT).map(message));
    for kills in 1..4 {
        let enough = f64::from(kills * 200);
        wait::until("some to be scheduled", || {
            let pending = app.get("/v1/stats").json();
            pending["pending"].as_f64().unwrap_or(0.0) >= enough
        });
        app.kill9();
        assert!(channel(&nsqd)["depth"] > 0, "killed too late");
        app.restart();
    }
    consumer.wait_distinct(COUNT);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), COUNT);
    wait_empty(&nsqd, COUNT as u64);
}

#[test]
fn while_redis_is_away_messages_wait_in_nsqd() {
    const COUNT: usize = 500;
    let (mut redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = with_inbox(&redis, &nsqd).start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    redis.kill();
    let message = |number| json!({"topic": TOPIC, "body": format!("m{number}")});
    publish_many(&nsqd, (0..COUNT).map(message));
    wait::until("nsqd to be asked for one again", || {
        channel(&nsqd)["requeue_count"] > 0
    });
    redis.restart();
    consumer.wait_distinct(COUNT);
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), COUNT);
    wait_empty(&nsqd, COUNT as u64);
    assert!(app.metric("messages_refused_total", r#"door="inbox""#) > 0.0);
}

#[test]
fn an_nsqd_that_wants_tls_is_consumed_from_and_examined_in_tls() {
    let (redis, certificates) = (Redis::start(), Certificates::make());
    let mut flags = certificates.flags();
    flags.extend(
        [
            "--tls-required=tcp-https",
            "--tls-client-auth-policy=require-verify",
        ]
        .map(String::from),
    );
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let nsqd = Nsqd::start_with(&flags);
    let [ca, certificate, key] = [
        certificates.ca(),
        certificates.certificate(Whose::Client),
        certificates.key(Whose::Client),
    ]
    .map(|path| path.display().to_string());
    let tls = [
        ("NSQDELAYD_NSQD_TLS", "true"),
        ("NSQDELAYD_NSQD_SNAPPY", "true"),
        ("NSQDELAYD_NSQD_TLS_ROOT_CA_FILE", &ca),
        ("NSQDELAYD_NSQD_TLS_CERT", &certificate),
        ("NSQDELAYD_NSQD_TLS_KEY", &key),
    ];
    let mut builder = with_inbox(&redis, &nsqd);
    for (name, value) in tls {
        builder = builder.env(name, value);
    }
    let _app = builder.start();
    for number in 0..300 {
        publish_json(
            &nsqd,
            &json!({"topic": TOPIC, "body": format!("m{number}")}),
        );
    }
    wait::until("the messages to be delivered", || {
        nsqd.message_count(TOPIC) == 300
    });
    wait_empty(&nsqd, 300);
    let examine = |variables: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_nsqdelayd"))
            .args(["doctor", "--redis", &redis.url()])
            .args(["--nsqd-tcp-address", &nsqd.tcp])
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let (sound, text) = examine(&tls);
    assert!(
        sound && text.contains("--max-msg-size is 1048576"),
        "{text}"
    );
    let (sound, text) = examine(&[]);
    assert!(!sound && text.contains("-> set `nsqd_tls`"), "{text}");
}

#[test]
fn alone_it_finds_nsqds_by_lookup_and_ends_in_order() {
    const COUNT: usize = 300;
    let (redis, lookupd) = (Redis::start(), Nsqlookupd::start());
    let flag = format!("--lookupd-tcp-address={}", lookupd.tcp);
    let nsqds = [Nsqd::start_with(&[&flag]), Nsqd::start_with(&[&flag])];
    for nsqd in &nsqds {
        nsqd.create_topic(INBOX);
    }
    wait::until("both nsqds to be registered", || {
        let found = http::get(&lookupd.http, &format!("/lookup?topic={INBOX}"));
        let producers = found.status == 200 && found.json()["producers"].is_array();
        producers && found.json()["producers"].as_array().unwrap().len() == 2
    });
    let app = App::start(&redis, &nsqds[0]);
    let consumer = Consumer::start(&nsqds[0].tcp, TOPIC);
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nsqdelayd"));
    command
        .args(["inbox", "--topic", INBOX, "--redis", &redis.url()])
        .args(["--lookupd", &lookupd.http]);
    let mut inbox = Running::start("inbox", &mut command, &dir.path().join("log"));
    for (part, nsqd) in nsqds.iter().enumerate() {
        let message = |number| json!({"topic": TOPIC, "body": format!("{part}.{number}")});
        publish_many(nsqd, (0..COUNT).map(message));
    }
    consumer.wait_distinct(2 * COUNT);
    for nsqd in &nsqds {
        wait_empty(nsqd, COUNT as u64);
    }
    let status = inbox.sigterm_and_wait();
    assert!(status.success(), "{status}: {}", inbox.log());
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), 2 * COUNT);
    assert!(app.metric("messages_accepted_total", "inbox") < 0.5);
}
