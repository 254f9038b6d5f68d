//! Batches, pages, ids and moments that are meant to confuse, in front of a real Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::documents::{QUIET, refused, send};
use super::{AT_REST, MIB, Siege};
use crate::support::consumer::Consumer;
use crate::support::http::{Answer, Http};
use crate::support::{unix_ms, wait};

#[test]
fn batches_take_the_good_refuse_the_bad_and_know_an_id_that_comes_twice() {
    let siege = Siege::begin();
    let item = |id: &str, body: &str| json!({"topic": "t", "id": id, "body": body, "delay": "1h"});
    let bad = json!({"topic": "t", "body": "x", "delay_ms": -1});
    let mut items = vec![
        item("twice", "a"),
        item("twice", "a"),
        item("other", "b"),
        bad,
    ];
    items.extend((0..996).map(|number| item(&format!("good:{number}"), "x")));
    let body = json!({"messages": items}).to_string();
    let answer = send(&siege, "POST", "/v1/messages:batch", body.as_bytes());
    let result = answer.json();
    assert_eq!(
        (&result["successful"], &result["failed"]),
        (&json!(999), &json!(1))
    );
    let results = result["results"].as_array().unwrap();
    let mut twice = [0, 1].map(|n: usize| results[n]["status"].as_u64().unwrap());
    twice.sort_unstable();
    assert_eq!(twice, [200, 201], "the same message, once");
    assert_eq!(results[3]["problem"]["field"], "messages[3].delay_ms");
    siege.others_are_served("a batch");
    let body = json!({"messages": [item("other", "c"), item("twice", "a")]}).to_string();
    let result = send(&siege, "POST", "/v1/messages:batch", body.as_bytes()).json();
    assert_eq!(result["results"][0]["problem"]["code"], "id_conflict");
    assert_eq!(result["results"][1]["status"], 200);
    let shown = siege.app.get("/v1/messages/other").json();
    assert_eq!(shown["body"], "b");
    // Two that differ in one batch: one is taken, the other is told.
    let body = json!({"messages": [item("differ", "1"), item("differ", "2")]}).to_string();
    let result = send(&siege, "POST", "/v1/messages:batch", body.as_bytes()).json();
    let statuses: BTreeSet<_> = [0, 1]
        .map(|n: usize| result["results"][n]["status"].as_u64().unwrap())
        .into();
    assert_eq!(statuses, [201, 409].into(), "{result}");
    let stats = siege.app.get("/v1/stats").json();
    // 999 with ids, less the one that was there twice, one more, and two from each check of the others.
    let others = siege.app.get("/v1/topics").json();
    let pending = |topic: &str| {
        let topics = others["topics"].as_array().unwrap();
        topics
            .iter()
            .find(|t| t["topic"] == topic)
            .map_or(0, |t| t["pending"].as_u64().unwrap())
    };
    assert_eq!(pending("t"), 999, "{stats}");
    siege.memory_was_under(AT_REST + 16 * MIB);
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn page_tokens_and_sizes_are_not_to_be_played_with() {
    let siege = Siege::begin();
    for number in 0..30 {
        let body = json!({"topic": "pages", "body": number.to_string(), "delay": "1h"});
        assert_eq!(siege.app.post_json("/v1/messages", &body).status, 201);
    }
    let page = |siege: &Siege, query: &str| siege.app.get(&format!("/v1/messages?{query}"));
    let first = page(&siege, "topic=pages&page_size=7").json();
    let token = first["next_page_token"].as_str().unwrap().to_owned();
    let second = |siege: &Siege| {
        page(
            siege,
            &format!("topic=pages&page_size=7&page_token={token}"),
        )
        .json()
    };
    assert_eq!(second(&siege), second(&siege), "a token may be used again");
    let mut forged = vec![
        "x".to_owned(),
        "A".repeat(1_000),
        token[1..].to_owned(),
        format!("{token}A"),
    ];
    for at in [0, token.len() / 2, token.len() - 1] {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        forged.push(String::from_utf8(bytes).unwrap());
    }
    for forged in forged {
        let answer = page(&siege, &format!("topic=pages&page_token={forged}"));
        refused(
            &siege,
            &forged,
            &answer,
            (400, "invalid_page_token", "page_token"),
        );
    }
    for other in [
        "",
        "topic=other&",
        "topic=pages&due_from=0&",
        "topic=Pages&",
    ] {
        let answer = page(&siege, &format!("{other}page_token={token}"));
        refused(
            &siege,
            other,
            &answer,
            (400, "invalid_page_token", "page_token"),
        );
    }
    let answer = siege
        .app
        .get(&format!("/v1/dead-letters?page_token={token}"));
    refused(
        &siege,
        "a token of another list",
        &answer,
        (400, "invalid_page_token", "page_token"),
    );
    for size in [
        "0",
        "-1",
        "1000000000",
        "1001",
        "18446744073709551617",
        "1e2",
        "",
        "%00",
        "+5",
    ] {
        let answer = page(&siege, &format!("topic=pages&page_size={size}"));
        refused(
            &siege,
            size,
            &answer,
            (400, "invalid_parameter", "page_size"),
        );
    }
    let cancel = json!({"filter": {"topic": "other"}, "page_token": token});
    let answer = siege.app.post_json("/v1/messages:cancel", &cancel);
    refused(
        &siege,
        "a token of another filter",
        &answer,
        (400, "invalid_page_token", "page_token"),
    );
    assert_eq!(
        siege.app.get("/v1/messages?topic=pages").json()["messages"]
            .as_array()
            .unwrap()
            .len(),
        30
    );
    siege.memory_was_under(AT_REST);
}

#[test]
fn one_id_and_a_thousand_cancels_are_one_answer() {
    const THREADS: usize = 20;
    let siege = Siege::begin();
    let consumer = Consumer::start(&siege.nsqd.tcp, "once");
    for due in [3_000_u64, 3_600_000] {
        let message =
            json!({"topic": "once", "body": "x", "id": format!("once:{due}"), "delay_ms": due});
        assert_eq!(siege.app.post_json("/v1/messages", &message).status, 201);
        let path = format!("/v1/messages/once:{due}");
        let cancel = || {
            let mut http = Http::connect(&siege.app.http).unwrap();
            let each = 0..1_000 / THREADS;
            each.map(|_| http.request("DELETE", &path, &[], b"").unwrap())
                .collect::<Vec<_>>()
        };
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(cancel)).collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        assert_eq!(answers.len(), 1_000);
        let want = json!({"id": format!("once:{due}"), "result": "cancelled"});
        for answer in answers {
            assert_eq!((answer.status, answer.json()), (200, want.clone()));
        }
        siege.others_are_served("a thousand cancels");
    }
    let start = Instant::now();
    wait::until("the message to have been due", || {
        start.elapsed() > Duration::from_secs(3)
    });
    consumer.wait_quiet(QUIET);
    assert_eq!(consumer.count(), 0);
    siege.memory_was_under(AT_REST + 16 * MIB);
}

#[test]
fn a_cancel_within_a_ms_of_due_says_what_happens() {
    const MESSAGES: u64 = 150;
    let siege = Siege::begin();
    let consumer = Consumer::start(&siege.nsqd.tcp, "race");
    let mut http = Http::connect(&siege.app.http).unwrap();
    let first_due = unix_ms() + 3_000;
    for number in 0..MESSAGES {
        let due = first_due + number * 20;
        let message = json!({"topic": "race", "body": number.to_string(), "id": format!("race:{number}"), "deliver_at": due});
        assert_eq!(
            http.json("POST", "/v1/messages", &message).unwrap().status,
            201
        );
    }
    let mut statuses = Vec::new();
    for number in 0..MESSAGES {
        // From one ms before to one after.
        let at = first_due + number * 20 + number % 3 - 1;
        wait::pause(Duration::from_millis(at.saturating_sub(unix_ms())));
        let path = format!("/v1/messages/race:{number}");
        statuses.push(http.request("DELETE", &path, &[], b"").unwrap().status);
    }
    let delivered = statuses.iter().filter(|status| **status != 200).count();
    eprintln!("{delivered} of {MESSAGES} were too late");
    consumer.wait_distinct(delivered);
    consumer.wait_quiet(QUIET);
    for (number, status) in statuses.iter().enumerate() {
        let copies = consumer.copies_of(number.to_string().as_bytes());
        match status {
            200 => assert_eq!(copies, 0, "{number} was cancelled"),
            404 | 409 => assert_eq!(copies, 1, "{number}: {status}"),
            other => panic!("{number}: {other}"),
        }
    }
    siege.others_are_served("the race");
    siege.memory_was_under(AT_REST);
}

#[test]
fn a_move_into_the_past_is_a_delivery_now() {
    let siege = Siege::begin();
    let consumer = Consumer::start(&siege.nsqd.tcp, "past");
    let mut ids = Vec::new();
    for number in 0..4 {
        let message = json!({"topic": "past", "body": number.to_string(), "delay": "1h"});
        let created = siege.app.post_json("/v1/messages", &message).json();
        ids.push(created["id"].as_str().unwrap().to_owned());
    }
    let moves = [
        r#"{"deliver_at":0}"#,
        r#"{"deliver_at":"1970-01-01T00:00:00Z"}"#,
        r#"{"deliver_at":"1582-10-15T00:00:00+23:59"}"#,
        r#"{"delay_ms":0}"#,
    ];
    for (number, (id, to)) in ids.iter().zip(moves).enumerate() {
        let before = unix_ms();
        let path = format!("/v1/messages/{id}");
        let answer = send(&siege, "PATCH", &path, to.as_bytes());
        assert_eq!(answer.status, 200, "{to}: {}", answer.text());
        let due = answer.json()["due_ms"].as_u64().unwrap();
        assert!(due >= before, "{to}: due {due}, which is before {before}");
        wait::until(to, || {
            consumer.copies_of(number.to_string().as_bytes()) == 1
        });
        siege.others_are_served(to);
    }
    for (to, want) in [
        (r#"{"deliver_at":-1}"#, (400, "invalid_time", "deliver_at")),
        (r#"{"delay":"-1h"}"#, (400, "invalid_delay", "delay")),
        (
            r#"{"delay_ms":315360000001}"#,
            (400, "delay_out_of_range", "delay_ms"),
        ),
        (
            r#"{"delay_ms":1,"delay":"1s"}"#,
            (400, "conflicting_fields", "delay_ms"),
        ),
    ] {
        let answer = send(&siege, "PATCH", "/v1/messages/nobody", to.as_bytes());
        refused(&siege, to, &answer, want);
    }
    consumer.wait_quiet(QUIET);
    assert!(consumer.copies().values().all(|copies| *copies == 1));
    siege.memory_was_under(AT_REST);
}

#[test]
fn topics_that_differ_only_by_case_are_different_topics() {
    let siege = Siege::begin();
    let topics = ["orders", "Orders", "ORDERS", "orders#ephemeral"];
    for topic in topics {
        let message = json!({"topic": topic, "body": topic, "delay": "1h"});
        assert_eq!(siege.app.post_json("/v1/messages", &message).status, 201);
    }
    let counts = siege.app.get("/v1/topics").json();
    for topic in topics {
        let counted = counts["topics"].as_array().unwrap().iter();
        let counted: Vec<&Value> = counted
            .filter(|t| t["topic"] == topic)
            .map(|t| &t["pending"])
            .collect();
        assert_eq!(counted, [&json!(1)], "{topic}");
        let escaped = topic.replace('#', "%23");
        let listed = siege
            .app
            .get(&format!("/v1/messages?topic={escaped}"))
            .json();
        assert_eq!(listed["messages"].as_array().unwrap().len(), 1, "{topic}");
    }
    let cancel = json!({"filter": {"topic": "Orders"}});
    assert_eq!(
        siege.app.post_json("/v1/messages:cancel", &cancel).json()["cancelled"],
        1
    );
    let consumer = Consumer::start(&siege.nsqd.tcp, "orders");
    let shout = Consumer::start(&siege.nsqd.tcp, "ORDERS");
    let listed = siege.app.get("/v1/messages").json();
    for message in listed["messages"].as_array().unwrap() {
        if message["topic"] != "bystander" {
            let path = format!("/v1/messages/{}/deliver", message["id"].as_str().unwrap());
            assert_eq!(siege.app.post(&path, b"").status, 200);
        }
    }
    consumer.wait_distinct(1);
    shout.wait_distinct(1);
    consumer.wait_quiet(QUIET);
    assert_eq!((consumer.copies_of(b"orders"), consumer.count()), (1, 1));
    assert_eq!((shout.copies_of(b"ORDERS"), shout.count()), (1, 1));
    assert_eq!(siege.nsqd.message_count("Orders"), 0);
    siege.others_are_served("topics that differ by case");
    siege.memory_was_under(AT_REST);
}
