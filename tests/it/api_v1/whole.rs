//! What all routes have in common: paths, methods, the store's refusals, the description.

use std::collections::BTreeSet;

use nsqdelayd::phase::Phase;
use nsqdelayd::store::ErrorKind;
use serde_json::json;

use super::{create, created_id, expect_problem};
use crate::support::http_door::{HttpDoor, Line};
use crate::support::memory_store::Mood;

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
