//! Many messages: batches, cancels, listings, dead letters.
#![expect(clippy::too_many_lines, reason = "a table of cases is one thing")]

use nsqdelayd::store::Cancel;
use serde_json::{Value, json};

use super::{created_id, expect_problem};
use crate::support::http_door::{HttpDoor, request};
use crate::support::memory_store::NOW;

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
    assert_eq!(
        topics,
        json!({"topics": [{"topic": "t", "pending": 1, "paused": false}]})
    );
}
