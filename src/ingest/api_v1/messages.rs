//! One message: create, get, cancel, move, deliver now.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};

use crate::id::MessageId;
use crate::ingest::budget::Share;
use crate::ingest::http::Shared;
use crate::ingest::metrics::{CancelLabel, Door, DoorLabel};
use crate::ingest::problem::{Code, Problem};
use crate::message::{Delay, Due, Message, TopicName, UnixMs};
use crate::store::{Cancel, Receipt, Reschedule};

use super::json::{Fields, Node, Spot};
use super::moment::text_of;
use super::view::{Accepted, Message as MessageView, Moved, Outcome, OutcomeName, StateName};
use super::{
    Params, count_refused, draft, is_json, json_body, limits, message_of_json, not_found, path_id,
    plain_encoding, reader, serving, whole,
};

/// `POST /v1/messages`
pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    let created = async {
        let (message, _share) = if is_json(request.headers()) {
            of_json(&shared, request).await?
        } else {
            of_raw(&shared, request).await?
        };
        store(&shared, message).await
    };
    let (status, accepted) = created
        .await
        .inspect_err(|problem| count_refused(&shared, problem))?;
    let location = format!("/v1/messages/{}", path_text(&accepted.id));
    let mut response = (status, Json(accepted)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn of_json(shared: &Shared, request: Request) -> Result<(Message, Share), Problem> {
    let (text, share) = json_body(shared, request).await?;
    Ok((message_of_json(&shared.state.intake, &text)?, share))
}

async fn of_raw(shared: &Shared, request: Request) -> Result<(Message, Share), Problem> {
    plain_encoding(request.headers())?;
    let params = draft::raw_params(request.uri())?;
    let draft = draft::of_query(&params, limits(shared))?;
    let config = &shared.state.intake.config;
    let mut reader = reader(shared, request.into_body(), config.max_body_size)?;
    let body = whole(&mut reader, Code::BodyTooBig, config.max_body_size).await?;
    draft::sized(&body, config.max_msg_size)?;
    Ok((Message { body, ..draft }, reader.into_share()))
}

/// Stores a message: 201, or 200 with what is known of it if the same had been accepted before.
pub(super) async fn store(
    shared: &Shared,
    message: Message,
) -> Result<(StatusCode, Accepted), Problem> {
    serving(shared)?;
    let topic = message.topic.clone();
    let receipts = shared.state.intake.accept(vec![message]).await?;
    let receipt = receipts.into_iter().next();
    let receipt: Receipt = receipt
        .ok_or_else(|| Problem::new(Code::Internal, "The log of the instance says more."))?;
    let store = &shared.state.intake.store;
    let id = store.id_text(&receipt.id);
    if receipt.created {
        let label = DoorLabel { door: Door::V1 };
        shared.state.metrics.accepted.get_or_create(&label).inc();
        let accepted = Accepted::new(id, topic, receipt.due, StateName::Scheduled);
        return Ok((StatusCode::CREATED, accepted));
    }
    // A cancelled one would have been a conflict: what is not found any more was delivered.
    let accepted = match store.get(receipt.id).await? {
        Some(stored) => Accepted::new(id, topic, stored.due, stored.state.into()),
        None => Accepted::new(id, topic, receipt.due, StateName::Delivered),
    };
    Ok((StatusCode::OK, accepted))
}

/// Stores messages without ids, all or none.
pub(super) async fn store_all(
    shared: &Shared,
    messages: Vec<Message>,
) -> Result<Vec<Accepted>, Problem> {
    serving(shared)?;
    let topics: Vec<TopicName> = messages.iter().map(|m| m.topic.clone()).collect();
    let receipts = shared.state.intake.accept(messages).await?;
    let label = DoorLabel { door: Door::V1 };
    let count = receipts.len() as u64;
    shared
        .state
        .metrics
        .accepted
        .get_or_create(&label)
        .inc_by(count);
    let store = &shared.state.intake.store;
    // What was created together is mostly due together.
    let mut last: (UnixMs, Arc<str>) = (UnixMs(0), "".into());
    let accepted = receipts.into_iter().zip(topics).map(|(receipt, topic)| {
        if last.0 != receipt.due {
            last = (receipt.due, text_of(receipt.due).into());
        }
        Accepted {
            id: store.id_text(&receipt.id),
            topic,
            due_ms: receipt.due.0,
            due: Arc::clone(&last.1),
            state: StateName::Scheduled,
        }
    });
    Ok(accepted.collect())
}

/// An id as a segment of a path. A client's id may have characters that a path may not.
fn path_text(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'@') {
            text.push(char::from(byte));
        } else {
            text.extend(['%', upper_hex(byte >> 4), upper_hex(byte & 15)]);
        }
    }
    text
}

fn upper_hex(digit: u8) -> char {
    let digit = char::from_digit(u32::from(digit), 16);
    digit.unwrap_or('0').to_ascii_uppercase()
}

/// `GET /v1/messages/{id}`
pub(super) async fn get(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<MessageView>, Problem> {
    Params::none(request.uri())?;
    let id = path_id(&shared, request.uri())?;
    let store = &shared.state.intake.store;
    let stored = store.get(id).await?.ok_or_else(not_found)?;
    Ok(Json(MessageView::of(&stored, &**store)))
}

/// `DELETE /v1/messages/{id}`
pub(super) async fn cancel(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Outcome>, Problem> {
    Params::none(request.uri())?;
    let id = path_id(&shared, request.uri())?;
    serving(&shared)?;
    let store = &shared.state.intake.store;
    let answers = store.cancel(vec![id.clone()]).await?;
    let answer = answers.first().copied().unwrap_or(Cancel::NotFound);
    count_cancel(&shared, answer);
    match answer {
        Cancel::Cancelled => Ok(Json(Outcome {
            id: store.id_text(&id),
            result: OutcomeName::Cancelled,
        })),
        Cancel::InFlight => Err(in_flight()),
        Cancel::NotFound => Err(not_found()),
        Cancel::Dead => Err(dead()),
    }
}

/// Counts the answer to a cancel.
pub(super) fn count_cancel(shared: &Shared, answer: Cancel) {
    let label = CancelLabel {
        result: answer.into(),
    };
    shared.state.metrics.cancelled.get_or_create(&label).inc();
}

/// `PATCH /v1/messages/{id}`
pub(super) async fn reschedule(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Moved>, Problem> {
    let id = path_id(&shared, request.uri())?;
    let (text, _share) = json_body(&shared, request).await?;
    let mut fields = Fields::of(
        Node::parse(&text)?,
        Spot::Top,
        &["delay", "delay_ms", "deliver_at"],
    )?;
    let due = draft::due_of_json(&mut fields, limits(&shared))?;
    let due = due.ok_or_else(|| fields.missing("deliver_at"))?;
    move_to(&shared, id, due).await
}

/// `POST /v1/messages/{id}/deliver`
pub(super) async fn deliver(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Json<Moved>, Problem> {
    Params::none(request.uri())?;
    let id = path_id(&shared, request.uri())?;
    move_to(&shared, id, Due::After(Delay(0))).await
}

async fn move_to(shared: &Shared, id: MessageId, due: Due) -> Result<Json<Moved>, Problem> {
    serving(shared)?;
    let store = &shared.state.intake.store;
    let text = store.id_text(&id);
    match store.reschedule(id, due).await? {
        Reschedule::Moved(due) => Ok(Json(moved(text, due))),
        Reschedule::InFlight => Err(in_flight()),
        Reschedule::NotFound => Err(not_found()),
        Reschedule::Cancelled => Err(cancelled()),
        Reschedule::Dead => Err(dead()),
    }
}

/// The answer to a move, and to a dead letter that was given back.
pub(super) fn moved(id: String, due: UnixMs) -> Moved {
    Moved {
        id,
        due_ms: due.0,
        due: text_of(due),
        state: StateName::Scheduled,
    }
}

/// Too late.
pub(super) fn in_flight() -> Problem {
    Problem::new(
        Code::InFlight,
        "The message is or may be on its way to nsqd: it cannot be taken back or moved.",
    )
}

/// It was cancelled.
pub(super) fn cancelled() -> Problem {
    Problem::new(Code::MessageCancelled, "The message was cancelled.")
}

fn dead() -> Problem {
    Problem::new(
        Code::DeadLetter,
        "nsqd refused the message: requeue or drop it under /v1/dead-letters.",
    )
}
