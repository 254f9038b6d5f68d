//! PURE. What a door's answer says of a request, by docs/protocol.md.

use serde_json::Value;

use crate::event::Outcome;
use crate::support::http::Answer;
use crate::support::producer::Frame;

/// What a frame of the TCP door says of a publish.
pub(crate) fn of_frame(frame: &Frame) -> (Outcome, String) {
    if frame.is_ok() {
        return (Outcome::Ok, String::new());
    }
    let text = frame.text();
    let outcome = if text.contains("outcome unknown") {
        Outcome::Unknown
    } else if text.contains("nothing was stored") || text.contains("redis refused the write") {
        Outcome::Fail
    } else if text.starts_with("E_IN_FLIGHT") {
        Outcome::InFlight
    } else if text.contains("is a dead letter") {
        Outcome::Dead
    } else if text.starts_with("E_NOT_FOUND") {
        Outcome::Gone
    } else {
        Outcome::Odd
    };
    (outcome, text)
}

/// What an answer of the HTTP doors says.
pub(crate) fn of_answer(answer: &Answer) -> (Outcome, String) {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    of_status(answer.status, &body, &answer.text())
}

/// What a problem, or an item of a batch, says.
pub(crate) fn of_status(status: u16, body: &Value, text: &str) -> (Outcome, String) {
    if status == 200 || status == 201 {
        return (Outcome::Ok, String::new());
    }
    let code = body["code"].as_str().or(body["message"].as_str());
    let code = code.unwrap_or_default().to_ascii_lowercase();
    let outcome = match code.as_str() {
        "store_unavailable" | "store_refused" | "starting" | "draining" | "exiting"
        | "overloaded" => Outcome::Fail,
        "outcome_unknown" => Outcome::Unknown,
        "in_flight" => Outcome::InFlight,
        "dead_letter" => Outcome::Dead,
        "message_cancelled" => Outcome::Cancelled,
        "message_not_found" => Outcome::Gone,
        _ => Outcome::Odd,
    };
    (
        outcome,
        format!("{status} {}", text.chars().take(300).collect::<String>()),
    )
}

/// What one result of a batch of cancels says.
pub(crate) fn of_cancel(result: &str) -> Outcome {
    match result {
        "cancelled" => Outcome::Ok,
        "in_flight" => Outcome::InFlight,
        "not_found" => Outcome::Gone,
        "dead_letter" => Outcome::Dead,
        _ => Outcome::Odd,
    }
}
