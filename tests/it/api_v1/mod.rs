//! The JSON API, route by route and code by code, over a store in memory.

mod many;
mod messages;
mod whole;

use serde_json::{Value, json};

use crate::support::http_door::{HttpDoor, Reply};

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
