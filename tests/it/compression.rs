//! Packs that are stored compressed: what is in them comes back as it was, whoever reads them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::app::App;
use crate::support::consumer::Consumer;
use crate::support::ledger::Stamp;
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::wait;

const TOPIC: &str = "orders";
/// What an owner has not opened yet when it is looked at.
const DELAY_MS: u64 = 10_000;
const COUNT: usize = 200;

/// What services send: much the same, but for numbers.
fn bodies(first: usize) -> Vec<String> {
    let body = |number| {
        let stamp = String::from_utf8(Stamp::now(number, DELAY_MS).body(0)).unwrap();
        let body = json!({
            "stamp": stamp,
            "type": "order.reminder",
            "customer": {"email": format!("user{number}@example.com"), "locale": "en-GB"},
            "items": [{"sku": format!("SKU-{number:06}"), "quantity": number % 7, "gift": false}],
        });
        body.to_string()
    };
    (first..first + COUNT).map(body).collect()
}

fn len(bodies: &[String]) -> usize {
    bodies.iter().map(String::len).sum()
}

#[test]
fn what_is_compressed_is_small_and_stays_so_and_is_read_by_all() {
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let builder = || {
        let builder = App::builder().redis(&redis).nsqd(&nsqd);
        builder.flag("--shards", "2")
    };
    let consumer = Consumer::start(&nsqd.tcp, TOPIC);
    let mut compressing = builder().flag("--pack-compression", "zstd").start();
    let plain = builder().start();
    let small = bodies(0);
    let ids = compressing.create_all(TOPIC, DELAY_MS, &small);
    let stored = redis.pack_bytes();
    assert!(stored * 2 < len(&small), "{stored} of {}", len(&small));

    // Most of them are cancelled: what is left of their packs is compressed too.
    let is_cancelled = |number: usize| !number.is_multiple_of(9);
    let cancelled: Vec<&Value> = (0..COUNT)
        .filter(|number| is_cancelled(*number))
        .map(|number| &ids[number])
        .collect();
    let answer = compressing.post_json("/v1/messages:cancel", &json!({"ids": cancelled}));
    assert_eq!(answer.json()["cancelled"], cancelled.len());
    let left = redis.pack_bytes();
    assert!(left * 2 < stored, "{left} of {stored} bytes are left");

    let long = bodies(COUNT);
    plain.create_all(TOPIC, DELAY_MS, &long);
    let both = redis.pack_bytes();
    assert!(
        both > left + len(&long),
        "{both} with {left}, {}",
        len(&long)
    );
    let found = plain.get(&format!("/v1/messages/{}", ids[0].as_str().unwrap()));
    assert_eq!(found.json()["body"], small[0].as_str());
    assert!(compressing.sigterm_and_wait().success());

    let kept = (0..COUNT).filter(|number| !is_cancelled(*number)).count();
    consumer.wait_distinct(kept + COUNT);
    wait::until("the packs are gone", || redis.packs() == 0);
    consumer.wait_quiet(Duration::from_secs(1));
    for (number, body) in small.iter().chain(&long).enumerate() {
        let wanted = usize::from(number >= COUNT || !is_cancelled(number));
        assert_eq!(consumer.copies_of(body.as_bytes()), wanted, "{number}");
    }
}
