//! Cancels that race the due instant, and those long before it: whatever is answered must be true.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::http::Http;
use crate::support::ledger::Stamp;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::{sized, unix_ms, wait};

const TOPIC: &str = "orders";
const THREADS: usize = 8;
/// How far from its due instant a message is cancelled, at most.
const RACE_MS: u64 = 150;
/// How long after the start the first message is due: time to create all of them.
const LEAD_MS: u64 = 6_000;
/// A stride through the race's span that has no common factor with it: offsets come evenly mixed.
const STRIDE: usize = 37;

/// One message and what became of its cancel.
#[derive(Debug)]
struct Raced {
    body: Vec<u8>,
    path: String,
    cancel_at_ms: u64,
    status: u16,
}

/// Creates this thread's share, one due instant every `gap_ms`.
fn create(http: &mut Http, thread: usize, count: usize, start_ms: u64, gap_ms: u64) -> Vec<Raced> {
    let mut raced = Vec::new();
    for number in (thread..count).step_by(THREADS) {
        let due_ms = start_ms + LEAD_MS + number as u64 * gap_ms;
        let delay_ms = due_ms.saturating_sub(unix_ms());
        let body = Stamp::now(number, delay_ms).body(100);
        let text = String::from_utf8(body.clone()).unwrap();
        let request = json!({"topic": TOPIC, "body": text, "delay_ms": delay_ms});
        let answer = http.json("POST", "/v1/messages", &request).unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
        let offset_ms = (number * STRIDE) as u64 % (2 * RACE_MS + 1);
        raced.push(Raced {
            body,
            path: format!("/v1/messages/{}", answer.json()["id"].as_str().unwrap()),
            cancel_at_ms: due_ms - RACE_MS + offset_ms,
            status: 0,
        });
    }
    raced.sort_by_key(|message| message.cancel_at_ms);
    raced
}

fn race(address: &str, thread: usize, count: usize, start_ms: u64, gap_ms: u64) -> Vec<Raced> {
    let mut http = Http::connect(address).unwrap();
    let mut raced = create(&mut http, thread, count, start_ms, gap_ms);
    for message in &mut raced {
        let pause = message.cancel_at_ms.saturating_sub(unix_ms());
        wait::pause_until(Instant::now() + Duration::from_millis(pause));
        let answer = http.request("DELETE", &message.path, &[], b"").unwrap();
        message.status = answer.status;
    }
    raced
}

#[test]
fn proof_cancel_race() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let app = App::start(&redis, &nsqd);
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let count = sized(1_000, 5_000);
    let start_ms = unix_ms();
    let raced: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn({
                    let address = &app.http;
                    move || race(address, thread, count, start_ms, 2)
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    let with = |status: u16| raced.iter().filter(|m| m.status == status).count();
    let (cancelled, in_flight, gone) = (with(200), with(409), with(404));
    assert_eq!(cancelled + in_flight + gone, count, "other answers came");
    consumer.wait_distinct(in_flight + gone);
    consumer.wait_quiet(Duration::from_secs(1));
    eprintln!(
        "cancel race, {count} within {RACE_MS} ms of due: 200 {cancelled}, 409 {in_flight}, 404 {gone}; \
         delivered {}, copies {}",
        consumer.distinct(),
        consumer.count(),
    );
    for message in &raced {
        let copies = consumer.copies_of(&message.body);
        let wanted = usize::from(message.status != 200);
        assert_eq!(
            copies, wanted,
            "answered {}: {}",
            message.status, message.path
        );
    }
    // A race that one side always wins shows nothing.
    assert!(cancelled > 0 && in_flight + gone > 0);
}

/// Long before they are due: their packs are rewritten, some of them down to nothing.
#[test]
fn what_is_left_of_rewritten_packs_arrives_once() {
    /// What an owner has not opened yet when it is cancelled.
    const DELAY_MS: u64 = 10_000;
    const COUNT: usize = 200;
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let builder = App::builder().redis(&redis).nsqd(&nsqd);
    let app = builder.flag("--shards", "2").start();
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let bodies: Vec<String> = (0..COUNT)
        .map(|number| String::from_utf8(Stamp::now(number, DELAY_MS).body(500)).unwrap())
        .collect();
    let ids = app.create_all(TOPIC, DELAY_MS, &bodies);
    // The first half, and most of the rest.
    let asked: Vec<usize> = (0..COUNT)
        .filter(|number| *number < COUNT / 2 || number % 9 > 0)
        .collect();
    let ids: Vec<_> = asked.iter().map(|number| &ids[*number]).collect();
    let answer = app.post_json("/v1/messages:cancel", &json!({"ids": ids}));
    assert_eq!(answer.json()["cancelled"], asked.len(), "{}", answer.text());
    let left = redis.pack_bytes();
    assert!(left < COUNT * 500 / 3, "{left} bytes are left");

    consumer.wait_distinct(COUNT - asked.len());
    wait::until("the packs are gone", || redis.packs() == 0);
    consumer.wait_quiet(Duration::from_secs(1));
    for (number, body) in bodies.iter().enumerate() {
        let wanted = usize::from(!asked.contains(&number));
        assert_eq!(consumer.copies_of(body.as_bytes()), wanted, "{number}");
    }
}
