//! One message: created, shown, moved, cancelled, refused.
#![expect(clippy::too_many_lines, reason = "a table of cases is one thing")]

use nsqdelayd::message::{Delay, Due, UnixMs};
use nsqdelayd::store::Cancel;
use serde_json::{Value, json};

use super::{create, created_id, expect_problem};
use crate::support::http_door::{HttpDoor, MAX_BODY_SIZE, MAX_MSG_SIZE, request};
use crate::support::memory_store::NOW;

/// `NOW`, as the API writes it.
const NOW_TEXT: &str = "2027-01-15T08:00:00.000Z";

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
