//! The JSON API, route by route and code by code, over a store in memory.
#![expect(clippy::too_many_lines, reason = "a table of cases is one thing")]

use std::collections::BTreeSet;

use nsqdelayd::message::{Delay, Due, UnixMs};
use nsqdelayd::phase::Phase;
use nsqdelayd::store::{Cancel, ErrorKind};
use serde_json::{Value, json};

use crate::support::http_door::{HttpDoor, Line, MAX_BODY_SIZE, MAX_MSG_SIZE, Reply, request};
use crate::support::memory_store::{Mood, NOW};

/// `NOW`, as the API writes it.
const NOW_TEXT: &str = "2027-01-15T08:00:00.000Z";

/// Checks a refusal whole: status, media type, the members of RFC 9457, code and place.
#[track_caller]
fn expect_problem(reply: &Reply, status: u16, code: &str, place: &str) {
    assert_eq!(
        reply.header("Content-Type"),
        "application/problem+json",
        "{}",
        reply.text()
    );
    let problem = reply.json();
    assert_eq!(
        (reply.status, &problem["code"]),
        (status, &json!(code)),
        "{problem}"
    );
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], format!("urn:nsqdelayd:problem:{code}"));
    assert!(
        problem["title"].is_string() && problem["detail"].is_string(),
        "{problem}"
    );
    let found = problem["field"].as_str().or(problem["param"].as_str());
    assert_eq!(found.unwrap_or_default(), place, "{problem}");
    assert_eq!(
        reply.header("Retry-After") == "1",
        status == 503,
        "{problem}"
    );
}

async fn create(door: &HttpDoor, body: &Value) -> Reply {
    door.json("POST", "/v1/messages", &body.to_string()).await
}

async fn created_id(door: &HttpDoor, body: &Value) -> String {
    let reply = create(door, body).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    reply.json()["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_message_is_created_shown_moved_and_cancelled() {
    let door = HttpDoor::open().await;
    let reply = create(
        &door,
        &json!({"topic": "t", "body": "hi", "delay_ms": 1500}),
    )
    .await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let created = reply.json();
    let id = created["id"].as_str().unwrap();
    assert_eq!(
        created,
        json!({"id": id, "topic": "t", "due_ms": NOW.0 + 1500,
            "due": "2027-01-15T08:00:01.500Z", "state": "scheduled"})
    );
    let path = format!("/v1/messages/{id}");
    assert_eq!(reply.header("Location"), path);

    let shown = door.bare("GET", &path).await.json();
    assert_eq!(
        shown,
        json!({"id": id, "topic": "t", "due_ms": NOW.0 + 1500,
            "due": "2027-01-15T08:00:01.500Z", "state": "scheduled",
            "size_bytes": 2, "body": "hi"})
    );

    let moved = door.json("PATCH", &path, r#"{"delay_ms":"1h"}"#).await;
    assert_eq!(
        moved.json()["due_ms"],
        NOW.0 + 3_600_000,
        "{}",
        moved.text()
    );
    let now = door.bare("POST", &format!("{path}/deliver")).await;
    assert_eq!(
        now.json(),
        json!({"id": id, "due_ms": NOW.0, "due": NOW_TEXT, "state": "scheduled"})
    );

    for _ in 0..2 {
        let cancelled = door.bare("DELETE", &path).await;
        assert_eq!(cancelled.status, 200);
        assert_eq!(cancelled.json(), json!({"id": id, "result": "cancelled"}));
    }
    expect_problem(&door.bare("GET", &path).await, 404, "message_not_found", "");
    let reply = door.json("PATCH", &path, r#"{"delay_ms":1}"#).await;
    expect_problem(&reply, 409, "message_cancelled", "");
}

#[tokio::test]
async fn times_and_delays_are_taken_in_every_form() {
    let door = HttpDoor::open().await;
    let after = |ms| Due::After(Delay(ms));
    let at = |ms| Due::At(UnixMs(ms));
    for (field, value, want) in [
        ("delay_ms", json!(0), after(0)),
        ("delay_ms", json!(3_600_000), after(3_600_000)),
        ("delay_ms", json!("250ms"), after(250)),
        ("delay", json!("1m30s"), after(90_000)),
        ("delay", json!(7), after(7)),
        ("deliver_at", json!(NOW.0 + 5), at(NOW.0 + 5)),
        ("deliver_at", json!("2027-01-15T09:00:00+01:00"), at(NOW.0)),
        (
            "deliver_at",
            json!("1999-01-01T00:00:00Z"),
            at(915_148_800_000),
        ),
        ("deliver_at", json!(0), at(0)),
    ] {
        let reply = create(&door, &json!({"topic": "t", "body": "x", field: value})).await;
        assert_eq!(reply.status, 201, "{field} {value}: {}", reply.text());
        assert_eq!(
            door.store.messages().last().unwrap().due,
            want,
            "{field} {value}"
        );
    }
}

#[tokio::test]
async fn each_bad_message_has_its_code_and_field() {
    let door = HttpDoor::open().await;
    let with = |rest: &str| format!(r#"{{"topic":"t","body":"x",{rest}}}"#);
    let too_big = "x".repeat(MAX_MSG_SIZE + 1);
    let long_id = "x".repeat(129);
    for (body, status, code, field) in [
        (String::new(), 400, "invalid_json", ""),
        ("nonsense".to_owned(), 400, "invalid_json", ""),
        ("[]".to_owned(), 400, "invalid_field", ""),
        ("[".repeat(2000), 400, "json_too_deep", ""),
        ("{}".to_owned(), 400, "missing_field", "topic"),
        (r#"{"topic":"t"}"#.to_owned(), 400, "missing_field", "body"),
        (with(r#""Topic":"t""#), 400, "unknown_field", "Topic"),
        (with(r#""topic":"u""#), 400, "duplicate_field", "topic"),
        (
            r#"{"topic":"!","body":"x"}"#.to_owned(),
            400,
            "invalid_topic",
            "topic",
        ),
        (
            r#"{"topic":7,"body":"x"}"#.to_owned(),
            400,
            "invalid_field",
            "topic",
        ),
        (
            r#"{"topic":"t","body":""}"#.to_owned(),
            400,
            "message_empty",
            "body",
        ),
        (
            r#"{"topic":"t","body":7}"#.to_owned(),
            400,
            "invalid_field",
            "body",
        ),
        (
            r#"{"topic":"t","body":"\ud800"}"#.to_owned(),
            400,
            "invalid_json",
            "",
        ),
        (
            format!(r#"{{"topic":"t","body":"{too_big}"}}"#),
            413,
            "message_too_big",
            "body",
        ),
        (
            with(r#""body_base64":"eA==""#),
            400,
            "conflicting_fields",
            "body_base64",
        ),
        (
            r#"{"topic":"t","body_base64":"eA= ="}"#.to_owned(),
            400,
            "invalid_base64",
            "body_base64",
        ),
        (
            r#"{"topic":"t","body_base64":"e A=="}"#.to_owned(),
            400,
            "invalid_base64",
            "body_base64",
        ),
        (
            r#"{"topic":"t","body_base64":""}"#.to_owned(),
            400,
            "message_empty",
            "body_base64",
        ),
        (with(r#""id":"""#), 400, "invalid_id", "id"),
        (with(r#""id":"{a}""#), 400, "invalid_id", "id"),
        (with(r#""id":"a\nb""#), 400, "invalid_id", "id"),
        (
            with(&format!(r#""id":"{long_id}""#)),
            400,
            "invalid_id",
            "id",
        ),
        (
            with(&format!(r#""id":"{}""#, "0".repeat(40))),
            400,
            "invalid_id",
            "id",
        ),
        (with(r#""delay_ms":-1"#), 400, "invalid_delay", "delay_ms"),
        (with(r#""delay_ms":-0"#), 400, "invalid_delay", "delay_ms"),
        (with(r#""delay_ms":1.5"#), 400, "invalid_delay", "delay_ms"),
        (with(r#""delay_ms":"5""#), 400, "invalid_delay", "delay_ms"),
        (
            with(r#""delay_ms":"-1s""#),
            400,
            "invalid_delay",
            "delay_ms",
        ),
        (with(r#""delay_ms":null"#), 400, "invalid_field", "delay_ms"),
        (with(r#""delay_ms":1e400"#), 400, "invalid_number", ""),
        (with(r#""delay_ms":NaN"#), 400, "invalid_json", ""),
        (
            with(r#""delay_ms":3600001"#),
            400,
            "delay_out_of_range",
            "delay_ms",
        ),
        (
            with(r#""delay_ms":9007199254740993"#),
            400,
            "delay_out_of_range",
            "delay_ms",
        ),
        (
            with(r#""delay_ms":"99999999999h""#),
            400,
            "delay_out_of_range",
            "delay_ms",
        ),
        (
            with(r#""delay":1,"delay_ms":1"#),
            400,
            "conflicting_fields",
            "delay_ms",
        ),
        (
            with(r#""delay":1,"deliver_at":1"#),
            400,
            "conflicting_fields",
            "deliver_at",
        ),
        (
            with(r#""deliver_at":"soon""#),
            400,
            "invalid_time",
            "deliver_at",
        ),
        (
            with(r#""deliver_at":-5"#),
            400,
            "invalid_time",
            "deliver_at",
        ),
        (
            with(r#""deliver_at":"2016-12-31T23:59:60Z""#),
            400,
            "invalid_time",
            "deliver_at",
        ),
        (
            with(r#""deliver_at":"2100-01-01T00:00:00Z""#),
            400,
            "delay_out_of_range",
            "deliver_at",
        ),
        (
            with(r#""deliver_at":18446744073709551615"#),
            400,
            "delay_out_of_range",
            "deliver_at",
        ),
        (
            format!("{{\"x\":\"{}\"}}", "y".repeat(MAX_BODY_SIZE)),
            413,
            "body_too_big",
            "",
        ),
    ] {
        let reply = door.json("POST", "/v1/messages", &body).await;
        expect_problem(&reply, status, code, field);
    }
    assert_eq!(door.store.calls(), 0);
}

#[tokio::test]
async fn bodies_that_are_not_utf8_go_in_and_out_as_base64() {
    let door = HttpDoor::open().await;
    let id = created_id(&door, &json!({"topic": "t", "body_base64": "/wA"})).await;
    let shown = door.bare("GET", &format!("/v1/messages/{id}")).await.json();
    assert_eq!(
        (&shown["body_base64"], &shown["body"]),
        (&json!("/wA="), &Value::Null)
    );
    let id = created_id(&door, &json!({"topic": "t", "body": "a\u{0}b"})).await;
    let shown = door.bare("GET", &format!("/v1/messages/{id}")).await.json();
    assert_eq!(shown["body"], "a\u{0}b");
}

#[tokio::test]
async fn a_raw_body_takes_the_rest_from_the_query() {
    let door = HttpDoor::open().await;
    let raw = |path: &str, headers: &str, body: &[u8]| request("POST", path, headers, body);
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let reply = door
        .ask(raw(
            "/v1/messages?topic=t&defer=5&id=a%2Bb",
            form,
            b"a=\xff",
        ))
        .await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(reply.header("Location"), "/v1/messages/a%2Bb");
    let kept = &door.store.messages()[0];
    assert_eq!(
        (&kept.body[..], kept.due),
        (&b"a=\xff"[..], Due::After(Delay(5)))
    );
    let big = vec![b'x'; MAX_MSG_SIZE + 1];
    let huge = vec![b'x'; MAX_BODY_SIZE + 1];
    for (path, headers, body, status, code, param) in [
        (
            "/v1/messages",
            "",
            &b"x"[..],
            400,
            "missing_parameter",
            "topic",
        ),
        (
            "/v1/messages?topic=!",
            "",
            b"x",
            400,
            "invalid_topic",
            "topic",
        ),
        (
            "/v1/messages?topic=%ff",
            "",
            b"x",
            400,
            "invalid_topic",
            "topic",
        ),
        (
            "/v1/messages?topic=t&x=1",
            "",
            b"x",
            400,
            "unknown_parameter",
            "x",
        ),
        (
            "/v1/messages?topic=t&topic=u",
            "",
            b"x",
            400,
            "duplicate_parameter",
            "topic",
        ),
        ("/v1/messages?topic=%zz", "", b"x", 400, "invalid_query", ""),
        (
            "/v1/messages?topic=t&delay=%ff",
            "",
            b"x",
            400,
            "invalid_parameter",
            "delay",
        ),
        (
            "/v1/messages?topic=t&delay=x",
            "",
            b"x",
            400,
            "invalid_delay",
            "delay",
        ),
        (
            "/v1/messages?topic=t&delay_ms=-1",
            "",
            b"x",
            400,
            "invalid_delay",
            "delay_ms",
        ),
        (
            "/v1/messages?topic=t&delay=1h1ms",
            "",
            b"x",
            400,
            "delay_out_of_range",
            "delay",
        ),
        (
            "/v1/messages?topic=t&defer=1&delay=1",
            "",
            b"x",
            400,
            "conflicting_fields",
            "defer",
        ),
        (
            "/v1/messages?topic=t&deliver_at=x",
            "",
            b"x",
            400,
            "invalid_time",
            "deliver_at",
        ),
        (
            "/v1/messages?topic=t&id=a%20b",
            "",
            b"x",
            400,
            "invalid_id",
            "id",
        ),
        ("/v1/messages?topic=t", "", b"", 400, "message_empty", ""),
        ("/v1/messages?topic=t", "", &big, 413, "message_too_big", ""),
        ("/v1/messages?topic=t", "", &huge, 413, "body_too_big", ""),
        (
            "/v1/messages?topic=t",
            "Content-Encoding: gzip\r\n",
            b"x",
            415,
            "unsupported_media_type",
            "",
        ),
        (
            "/v1/messages?topic=t",
            "Content-Type: application/json\r\n",
            b"{}",
            400,
            "unknown_parameter",
            "topic",
        ),
    ] {
        expect_problem(
            &door.ask(raw(path, headers, body)).await,
            status,
            code,
            param,
        );
    }
    assert_eq!(door.store.calls(), 1);
}

#[tokio::test]
async fn the_same_id_is_the_same_message_or_a_conflict() {
    let door = HttpDoor::open().await;
    let body = json!({"id": "a:b~c", "topic": "t", "body": "x", "delay_ms": 5});
    let first = create(&door, &body).await;
    let again = create(&door, &body).await;
    assert_eq!((first.status, again.status), (201, 200));
    assert_eq!(first.json(), again.json());
    let other = json!({"id": "a:b~c", "topic": "t", "body": "y", "delay_ms": 5});
    expect_problem(&create(&door, &other).await, 409, "id_conflict", "");
    door.store.set_state("a:b~c", Cancel::InFlight);
    assert_eq!(create(&door, &body).await.json()["state"], "in_flight");
    let id = created_id(&door, &json!({"id": "gone", "topic": "t", "body": "x"})).await;
    door.bare("DELETE", &format!("/v1/messages/{id}")).await;
    let reply = create(&door, &json!({"id": "gone", "topic": "t", "body": "x"})).await;
    expect_problem(&reply, 409, "message_cancelled", "");
}

#[tokio::test]
async fn what_cannot_be_cancelled_or_moved_says_why() {
    let door = HttpDoor::open().await;
    let id = created_id(&door, &json!({"topic": "t", "body": "x"})).await;
    let path = format!("/v1/messages/{id}");
    for (state, status, code) in [
        (Cancel::InFlight, 409, "in_flight"),
        (Cancel::Dead, 409, "dead_letter"),
    ] {
        door.store.set_state(&id, state);
        expect_problem(&door.bare("DELETE", &path).await, status, code, "");
        let reply = door.bare("POST", &format!("{path}/deliver")).await;
        expect_problem(&reply, status, code, "");
        let reply = door.json("PATCH", &path, r#"{"deliver_at":0}"#).await;
        expect_problem(&reply, status, code, "");
    }
    // Minted ids carry a checksum: one digit changed, and nobody is asked.
    let forged = format!("{}{}", &id[..39], if id.ends_with('0') { "1" } else { "0" });
    for method in ["GET", "DELETE"] {
        for (id, status, code, param) in [
            (forged.as_str(), 404, "message_not_found", ""),
            ("never-there", 404, "message_not_found", ""),
            ("a%20b", 400, "invalid_id", "id"),
            ("%7Ba%7D", 400, "invalid_id", "id"),
            ("a%2Fb", 400, "invalid_id", "id"),
            ("%ff", 400, "invalid_id", "id"),
        ] {
            let reply = door.bare(method, &format!("/v1/messages/{id}")).await;
            expect_problem(&reply, status, code, param);
        }
    }
    let reply = door.json("PATCH", &path, "{}").await;
    expect_problem(&reply, 400, "missing_field", "deliver_at");
    let reply = door.json("PATCH", &path, r#"{"topic":"u"}"#).await;
    expect_problem(&reply, 400, "unknown_field", "topic");
    let reply = door.bare("PATCH", &path).await;
    expect_problem(&reply, 415, "unsupported_media_type", "");
    let reply = door.bare("GET", &format!("{path}?x=1")).await;
    expect_problem(&reply, 400, "unknown_parameter", "x");
}

#[tokio::test]
async fn a_batch_takes_the_good_and_names_the_bad() {
    let door = HttpDoor::open().await;
    let batch = json!({"messages": [
        {"topic": "t", "body": "a", "delay_ms": 5},
        {"topic": "!", "body": "b"},
        {"topic": "t", "body": "c", "id": "mine"},
        {"topic": "t", "body": "d", "id": "mine"},
        {"topic": "t", "body": "e", "what": 1},
        7,
        {"topic": "t", "body": "c", "id": "mine"},
    ]});
    let reply = door
        .json("POST", "/v1/messages:batch", &batch.to_string())
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let result = reply.json();
    assert_eq!(
        (&result["successful"], &result["failed"]),
        (&json!(3), &json!(4))
    );
    let results = result["results"].as_array().unwrap();
    let statuses: Vec<_> = results
        .iter()
        .map(|r| r["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [201, 400, 201, 409, 400, 400, 200]);
    assert_eq!(results[0]["message"]["due_ms"], NOW.0 + 5);
    assert_eq!(results[2]["message"]["id"], "mine");
    for (number, code, field) in [
        (1, "invalid_topic", json!("messages[1].topic")),
        (3, "id_conflict", Value::Null),
        (4, "unknown_field", json!("messages[4].what")),
        (5, "invalid_field", json!("messages[5]")),
    ] {
        let problem = &results[number]["problem"];
        assert_eq!(
            (&problem["code"], &problem["field"]),
            (&json!(code), &field),
            "{problem}"
        );
    }
}

#[tokio::test]
async fn bad_batches_are_refused_whole() {
    let door = HttpDoor::open_with(|config| config.max_body_size = 1 << 20).await;
    let many = format!(r#"{{"messages":[{}7]}}"#, "7,".repeat(1000));
    let ids = format!(r#"{{"ids":[{}"x"]}}"#, r#""x","#.repeat(1000));
    let wide = format!(r#"{{"messages":[{}7]}}"#, "7,".repeat(30_000));
    for (path, body, code, field) in [
        ("/v1/messages:batch", "{}", "missing_field", "messages"),
        (
            "/v1/messages:batch",
            r#"{"messages":{}}"#,
            "invalid_field",
            "messages",
        ),
        (
            "/v1/messages:batch",
            r#"{"messages":[]}"#,
            "empty_batch",
            "messages",
        ),
        ("/v1/messages:batch", &many, "too_many_items", "messages"),
        ("/v1/messages:batch", &wide, "json_too_large", ""),
        ("/v1/messages:cancel", "{}", "missing_field", "ids"),
        ("/v1/messages:cancel", r#"{"ids":[]}"#, "empty_batch", "ids"),
        (
            "/v1/messages:cancel",
            r#"{"ids":[7]}"#,
            "invalid_field",
            "ids[0]",
        ),
        ("/v1/messages:cancel", &ids, "too_many_items", "ids"),
        (
            "/v1/messages:cancel",
            r#"{"filter":{}}"#,
            "empty_filter",
            "filter",
        ),
        (
            "/v1/messages:cancel",
            r#"{"filter":null}"#,
            "invalid_field",
            "filter",
        ),
        (
            "/v1/messages:cancel",
            r#"{"filter":{"x":1}}"#,
            "unknown_field",
            "filter.x",
        ),
        (
            "/v1/messages:cancel",
            r#"{"filter":{"topic":"!"}}"#,
            "invalid_topic",
            "filter.topic",
        ),
        (
            "/v1/messages:cancel",
            r#"{"filter":{"due_to":"x"}}"#,
            "invalid_time",
            "filter.due_to",
        ),
        (
            "/v1/messages:cancel",
            r#"{"ids":["a"],"filter":{}}"#,
            "conflicting_fields",
            "ids",
        ),
        (
            "/v1/messages:cancel",
            r#"{"ids":["a"],"page_token":"1"}"#,
            "conflicting_fields",
            "ids",
        ),
        (
            "/v1/messages:cancel",
            r#"{"filter":{"topic":"t"},"page_token":"forged"}"#,
            "invalid_page_token",
            "page_token",
        ),
    ] {
        expect_problem(&door.json("POST", path, body).await, 400, code, field);
    }
    for path in ["/v1/messages:batch", "/v1/messages:cancel"] {
        let reply = door
            .ask(request("POST", path, "Content-Type: text/json\r\n", "{}"))
            .await;
        expect_problem(&reply, 415, "unsupported_media_type", "");
    }
}

#[tokio::test]
async fn many_are_cancelled_by_their_ids() {
    let door = HttpDoor::open().await;
    let a = created_id(&door, &json!({"topic": "t", "body": "a"})).await;
    let b = created_id(&door, &json!({"topic": "t", "body": "b"})).await;
    door.store.set_state(&b, Cancel::InFlight);
    let ids = json!({"ids": [a, b, "nobody", "a b", "0".repeat(40), a]});
    let reply = door
        .json("POST", "/v1/messages:cancel", &ids.to_string())
        .await;
    let result = reply.json();
    let counts = [
        "cancelled",
        "in_flight",
        "not_found",
        "dead_letters",
        "invalid_ids",
        "more",
    ];
    let counts = counts.map(|name| result[name].clone());
    assert_eq!(json!(counts), json!([2, 1, 2, 0, 1, false]), "{result}");
    let results = result["results"].as_array().unwrap();
    let results: Vec<_> = results
        .iter()
        .map(|r| r["result"].as_str().unwrap())
        .collect();
    let want = [
        "cancelled",
        "in_flight",
        "not_found",
        "invalid_id",
        "not_found",
        "cancelled",
    ];
    assert_eq!(results, want);
}

#[tokio::test]
async fn many_are_cancelled_by_a_filter_and_no_others() {
    let door = HttpDoor::open().await;
    for (topic, delay) in [("a", 10), ("a", 20), ("b", 10), ("b", 20)] {
        created_id(
            &door,
            &json!({"topic": topic, "body": "x", "delay_ms": delay}),
        )
        .await;
    }
    let filter = json!({"filter": {"topic": "a", "due_to": NOW.0 + 20}});
    let reply = door
        .json("POST", "/v1/messages:cancel", &filter.to_string())
        .await;
    assert_eq!(reply.json()["cancelled"], 1, "{}", reply.text());
    let filter = json!({"filter": {"due_from": NOW.0 + 20}});
    let reply = door
        .json("POST", "/v1/messages:cancel", &filter.to_string())
        .await;
    assert_eq!(reply.json()["cancelled"], 2, "{}", reply.text());
    let left = door.store.messages();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].topic.as_str(), "b");
}

#[tokio::test]
async fn listings_filter_and_page() {
    let door = HttpDoor::open().await;
    for (topic, delay) in [("a", 30), ("b", 20), ("a", 10)] {
        created_id(
            &door,
            &json!({"topic": topic, "body": "x", "delay_ms": delay}),
        )
        .await;
    }
    let dues = |page: &Value| {
        let messages = page["messages"].as_array().unwrap();
        let due = |m: &Value| m["due_ms"].as_u64().unwrap() - NOW.0;
        messages.iter().map(due).collect::<Vec<_>>()
    };
    let first = door.bare("GET", "/v1/messages?page_size=2").await.json();
    assert_eq!(dues(&first), [10, 20]);
    assert_eq!(
        first["messages"][0]["body"],
        Value::Null,
        "a listing has no bodies"
    );
    let token = first["next_page_token"].as_str().unwrap();
    let path = format!("/v1/messages?page_size=2&page_token={token}");
    let second = door.bare("GET", &path).await.json();
    assert_eq!(
        (dues(&second), &second["next_page_token"]),
        (vec![30], &Value::Null)
    );
    let only = door.bare("GET", "/v1/messages?topic=a").await.json();
    assert_eq!(dues(&only), [10, 30]);
    let path = format!(
        "/v1/messages?due_from=2027-01-15T08:00:00.010Z&due_to={}",
        NOW.0 + 30
    );
    assert_eq!(dues(&door.bare("GET", &path).await.json()), [10, 20]);
    for (query, code, param) in [
        ("page_size=0", "invalid_parameter", "page_size"),
        ("page_size=-1", "invalid_parameter", "page_size"),
        ("page_size=1000000000", "invalid_parameter", "page_size"),
        ("page_size=", "invalid_parameter", "page_size"),
        ("page_size=1.0", "invalid_parameter", "page_size"),
        ("page_token=forged", "invalid_page_token", "page_token"),
        ("page_token=%ff", "invalid_page_token", "page_token"),
        ("topic=!", "invalid_topic", "topic"),
        ("due_from=x", "invalid_time", "due_from"),
        ("due_to=-1", "invalid_time", "due_to"),
        ("limit=1", "unknown_parameter", "limit"),
        ("topic=a&topic=b", "duplicate_parameter", "topic"),
        ("topic=a;b", "invalid_query", ""),
        ("topic=a#b", "invalid_query", ""),
        ("topic=é", "invalid_query", ""),
    ] {
        let reply = door.bare("GET", &format!("/v1/messages?{query}")).await;
        expect_problem(&reply, 400, code, param);
    }
}

#[tokio::test]
async fn dead_letters_are_listed_given_back_and_dropped() {
    let door = HttpDoor::open().await;
    let a = created_id(&door, &json!({"topic": "t", "body": "a"})).await;
    let b = created_id(&door, &json!({"topic": "t", "body": "b"})).await;
    door.store.bury(&a, "E_BAD_TOPIC");
    door.store.bury(&b, "E_BAD_MESSAGE");
    let page = door.bare("GET", "/v1/dead-letters").await.json();
    assert_eq!(page["messages"][0]["state"], "dead");
    assert_eq!(page["messages"][0]["reason"], "E_BAD_TOPIC");
    let stats = door.bare("GET", "/v1/stats").await.json();
    assert_eq!(
        (&stats["dead_letters"], &stats["pending"]),
        (&json!(2), &json!(0))
    );

    let again = door
        .bare("POST", &format!("/v1/dead-letters/{a}/requeue"))
        .await;
    assert_eq!(again.json()["due_ms"], NOW.0, "{}", again.text());
    let gone = door.bare("DELETE", &format!("/v1/dead-letters/{b}")).await;
    assert_eq!(gone.json(), json!({"id": b, "result": "dropped"}));
    for (method, path) in [
        ("POST", format!("/v1/dead-letters/{a}/requeue")),
        ("DELETE", format!("/v1/dead-letters/{b}")),
    ] {
        expect_problem(
            &door.bare(method, &path).await,
            404,
            "message_not_found",
            "",
        );
    }
    let topics = door.bare("GET", "/v1/topics").await.json();
    assert_eq!(topics, json!({"topics": [{"topic": "t", "pending": 1}]}));
}

#[tokio::test]
async fn paths_and_methods_that_are_none_are_problems_too() {
    let door = HttpDoor::open().await;
    for path in [
        "/v1",
        "/v1/",
        "/v1/nope",
        "/v1/messages/",
        "/v1/messages/a/b",
        "/v1/%zz",
    ] {
        let reply = door.bare("GET", path).await;
        if path.contains('%') {
            assert_eq!(reply.status, 400, "{path}");
        } else {
            expect_problem(&reply, 404, "route_not_found", "");
        }
    }
    for (method, path, allow) in [
        ("PUT", "/v1/messages", "GET,HEAD,POST"),
        ("DELETE", "/v1/messages:batch", "POST"),
        ("POST", "/v1/messages/a", "GET,HEAD,DELETE,PATCH"),
        ("OPTIONS", "/v1/stats", "GET,HEAD"),
    ] {
        let reply = door.bare(method, path).await;
        expect_problem(&reply, 405, "method_not_allowed", "");
        let sorted = |text: &str| {
            let methods = text.split(',').map(|m| m.trim().to_owned());
            methods.collect::<BTreeSet<_>>()
        };
        assert_eq!(
            sorted(reply.header("Allow")),
            sorted(allow),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn what_the_store_does_not_do_is_told_apart() {
    let door = HttpDoor::open().await;
    let id = created_id(&door, &json!({"topic": "t", "body": "x"})).await;
    let path = format!("/v1/messages/{id}");
    let message = r#"{"topic":"t","body":"x"}"#;
    for (kind, status, code) in [
        (ErrorKind::Unavailable, 503, "store_unavailable"),
        (ErrorKind::Refused, 503, "store_refused"),
        (ErrorKind::Unknown, 503, "outcome_unknown"),
        (ErrorKind::Corrupt, 500, "internal"),
    ] {
        door.store.set_mood(Mood::Failing(kind));
        for reply in [
            door.json("POST", "/v1/messages", message).await,
            door.json("POST", "/v1/messages:cancel", r#"{"ids":["a"]}"#)
                .await,
            door.json("POST", "/v1/messages:cancel", r#"{"filter":{"topic":"t"}}"#)
                .await,
            door.json("PATCH", &path, r#"{"delay":1}"#).await,
            door.bare("GET", &path).await,
            door.bare("DELETE", &path).await,
            door.bare("POST", &format!("{path}/deliver")).await,
            door.bare("GET", "/v1/messages").await,
            door.bare("GET", "/v1/dead-letters").await,
            door.bare("POST", &format!("/v1/dead-letters/{id}/requeue"))
                .await,
            door.bare("DELETE", &format!("/v1/dead-letters/{id}")).await,
            door.bare("GET", "/v1/topics").await,
            door.bare("GET", "/v1/stats").await,
        ] {
            expect_problem(&reply, status, code, "");
        }
        let batch = format!(r#"{{"messages":[{message}]}}"#);
        let result = door.json("POST", "/v1/messages:batch", &batch).await.json();
        assert_eq!(result["results"][0]["problem"]["code"], code);
    }
}

#[tokio::test]
async fn an_instance_that_does_not_serve_takes_nothing_new() {
    let door = HttpDoor::open().await;
    let id = created_id(&door, &json!({"topic": "t", "body": "x"})).await;
    for (phase, code) in [(Phase::Starting, "starting"), (Phase::Draining, "draining")] {
        door.phase.send_replace(phase);
        let reply = create(&door, &json!({"topic": "t", "body": "x"})).await;
        expect_problem(&reply, 503, code, "");
        let reply = door.bare("DELETE", &format!("/v1/messages/{id}")).await;
        expect_problem(&reply, 503, code, "");
        assert_eq!(
            door.bare("GET", &format!("/v1/messages/{id}")).await.status,
            200
        );
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_a_problem_and_ends_the_connection() {
    let door = HttpDoor::open().await;
    let mut line = Line::connect(&door.address).await;
    let head = "POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let reply = line.ask(format!("{head}zz\r\n{{}}\r\n0\r\n\r\n")).await;
    expect_problem(&reply, 400, "body_unreadable", "");
    assert!(line.is_closed().await);
}

#[tokio::test]
async fn the_description_is_served_and_covers_what_is_answered() {
    let door = HttpDoor::open().await;
    let reply = door.bare("GET", "/v1/openapi.json").await;
    assert_eq!(reply.header("Content-Type"), "application/json");
    let document = reply.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            let path = path.replace("{id}", "never-there");
            for path in [path.clone(), format!("{path}?unknown=1")] {
                let reply = door.bare(&method, &path).await;
                let status = reply.status.to_string();
                assert_ne!(status, "405", "{method} {path} is described, and not there");
                assert!(
                    operation["responses"][&status].is_object(),
                    "{method} {path}: {status}"
                );
            }
        }
    }
}

#[tokio::test]
async fn operations_endpoints_say_how_it_stands() {
    let door = HttpDoor::open().await;
    assert_eq!(door.bare("GET", "/healthz").await.status, 200);
    let reply = door.bare("GET", "/readyz").await;
    assert_eq!(
        (reply.status, reply.json()),
        (200, json!({"ready": true, "reasons": []}))
    );
    let reply = door.bare("GET", "/metrics").await;
    assert!(
        reply
            .header("Content-Type")
            .starts_with("application/openmetrics-text")
    );
    door.store.set_mood(Mood::Failing(ErrorKind::Unavailable));
    door.phase.send_replace(Phase::Draining);
    let reply = door.bare("GET", "/readyz").await;
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.json()["reasons"],
        json!(["draining", "redis is not reachable"])
    );
    assert_eq!(door.bare("GET", "/healthz").await.status, 200);
}
