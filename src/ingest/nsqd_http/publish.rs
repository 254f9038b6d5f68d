//! `/pub` and `/mpub`: nsqd's checks in nsqd's order, with its words. Where nsqd has a defect (a
//! delay that wraps, a `defer` that `/mpub` ignores, a chunked binary body without limit) it is
//! refused, or honoured, instead of copied.

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;

use crate::ingest::Config;
use crate::ingest::budget::MESSAGE_OVERHEAD;
use crate::ingest::http::{BodyFault, BodyReader, Query, Shared, Target, go_int};
use crate::ingest::metrics::{Door, DoorLabel, Reason, RefusedLabel};
use crate::ingest::problem::{RETRY_AFTER_S, log};
use crate::ingest::reply;
use crate::message::{ClientId, Delay, Due, Message, TopicName};
use crate::nsq::mpub::content_max;
use crate::phase::Phase;
use crate::store::Receipt;

use super::{close_after, error, parameters, text};

/// Names the id of the message that `/pub` stored.
const ID: HeaderName = HeaderName::from_static("x-nsqdelayd-id");

/// Go closes a connection rather than read so much of a refused body.
const UNREAD_BYTES_MAX: u64 = 256 * 1024;
/// So many lines of text are taken, whatever `max_body_size` is.
const LINES_MIN: usize = 1 << 20;

/// A refusal in nsqd's words, and how it is counted.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: &'static str,
    reason: Reason,
    /// Whether the connection ends with it, as nsqd's does.
    close: bool,
}

impl Refusal {
    fn invalid(message: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message,
            reason: Reason::Invalid,
            close: false,
        }
    }

    fn too_big(message: &'static str) -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            message,
            reason: Reason::TooBig,
            close: false,
        }
    }

    /// Of a body whose declared length is enough to refuse it. Go reads what is small to its end, so
    /// that the connection can go on.
    fn declared(length: u64, message: &'static str) -> Self {
        Self {
            close: length >= UNREAD_BYTES_MAX,
            ..Self::too_big(message)
        }
    }

    /// Of a body that was not read; `too_big` is what nsqd says of this one.
    fn of_body(fault: BodyFault, too_big: &'static str) -> Self {
        match fault {
            BodyFault::TooBig => Self::too_big(too_big),
            BodyFault::Broken => Self {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                message: "INTERNAL_ERROR",
                reason: Reason::Invalid,
                close: true,
            },
            BodyFault::Crowded => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                message: "OVERLOADED",
                reason: Reason::Overload,
                close: true,
            },
        }
    }
}

impl From<(StatusCode, &'static str)> for Refusal {
    fn from((status, message): (StatusCode, &'static str)) -> Self {
        Self {
            status,
            message,
            reason: Reason::Invalid,
            close: false,
        }
    }
}

/// `POST /pub?topic=&defer=&id=`
pub(super) async fn publish(shared: &Shared, target: &Target, request: Request) -> Response {
    match one(shared, target, request).await {
        Ok(None) => text("OK"),
        Ok(Some(receipt)) => {
            let mut response = text("OK");
            let id = shared.state.intake.store.id_text(&receipt.id);
            if let Ok(id) = HeaderValue::from_str(&id) {
                response.headers_mut().insert(ID, id);
            }
            response
        }
        Err(refusal) => refuse(shared, &refusal),
    }
}

/// `POST /mpub?topic=&binary=&defer=`
pub(super) async fn publish_many(shared: &Shared, target: &Target, request: Request) -> Response {
    match many(shared, target, request).await {
        Ok(()) => text("OK"),
        Err(refusal) => refuse(shared, &refusal),
    }
}

fn refuse(shared: &Shared, refusal: &Refusal) -> Response {
    let label = RefusedLabel {
        door: Door::Http,
        reason: refusal.reason,
    };
    shared.state.metrics.refused.get_or_create(&label).inc();
    let mut response = error(refusal.status, refusal.message);
    if matches!(
        refusal.status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    ) {
        let value = HeaderValue::from_static(RETRY_AFTER_S);
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    if refusal.close {
        close_after(&mut response);
    }
    response
}

/// `None`: nsqd has it already.
async fn one(
    shared: &Shared,
    target: &Target,
    request: Request,
) -> Result<Option<Receipt>, Refusal> {
    let config = &shared.state.intake.config;
    let body = request.into_body();
    if let Some(length) = declared_over(&body, config.max_msg_size) {
        return Err(Refusal::declared(length, "MSG_TOO_BIG"));
    }
    let mut reader = shared.reader(body, config.max_msg_size);
    let body = reader.whole().await;
    let body = body.map_err(|fault| Refusal::of_body(fault, "MSG_TOO_BIG"))?;
    if body.is_empty() {
        return Err(Refusal::invalid("MSG_EMPTY"));
    }
    let query = parameters(target)?;
    let topic = topic(&query)?;
    let due = due(&query, config)?;
    let id = match query.first("id") {
        Some(id) => Some(ClientId::parse(id).map_err(|_bad| Refusal::invalid("INVALID_ID"))?),
        None => None,
    };
    let message = Message {
        topic,
        body,
        due,
        id,
    };
    let receipts = accept(shared, vec![message]).await?;
    Ok(receipts.into_iter().next())
}

async fn many(shared: &Shared, target: &Target, request: Request) -> Result<(), Refusal> {
    let config = &shared.state.intake.config;
    let body = request.into_body();
    if let Some(length) = declared_over(&body, config.max_body_size) {
        return Err(Refusal::declared(length, "BODY_TOO_BIG"));
    }
    let query = parameters(target)?;
    let topic = topic(&query)?;
    let due = due(&query, config)?;
    let bodies = if is_binary(&query) {
        // As over TCP: the content of a binary body is held against no setting.
        let limit = content_max(config.max_body_size);
        binary(&mut shared.reader(body, limit), config).await?
    } else {
        lines(&mut shared.reader(body, config.max_body_size), config).await?
    };
    let message = |body| Message {
        topic: topic.clone(),
        body,
        due,
        id: None,
    };
    let messages: Vec<_> = bodies.into_iter().map(message).collect();
    accept(shared, messages).await?;
    Ok(())
}

/// The declared length of a body, if it is over `limit`.
fn declared_over(body: &Body, limit: usize) -> Option<u64> {
    let length = body.size_hint().exact()?;
    let fits = usize::try_from(length).is_ok_and(|length| length <= limit);
    (!fits).then_some(length)
}

fn topic(query: &Query) -> Result<TopicName, Refusal> {
    let name = query
        .first("topic")
        .ok_or_else(|| Refusal::invalid("MISSING_ARG_TOPIC"))?;
    TopicName::parse(name).map_err(|_bad| Refusal::invalid("INVALID_TOPIC"))
}

/// nsqd multiplies before it compares, so that some delays over the maximum wrap and pass there.
/// They are out of range here.
fn due(query: &Query, config: &Config) -> Result<Due, Refusal> {
    let Some(text) = query.first("defer") else {
        return Ok(Due::After(Delay(0)));
    };
    let ms = go_int(text).and_then(|ms| u64::try_from(ms).ok());
    match ms.map(Delay) {
        Some(delay) if delay <= config.max_delay => Ok(Due::After(delay)),
        _ => Err(Refusal::invalid("INVALID_DEFER")),
    }
}

/// nsqd takes any value that it does not know for true.
fn is_binary(query: &Query) -> bool {
    match query.first("binary") {
        None | Some(b"false" | b"0") => false,
        Some(_) => true,
    }
}

/// Text: a message is a line, empty ones are dropped, a `\r` stays.
async fn lines(reader: &mut BodyReader, config: &Config) -> Result<Vec<Bytes>, Refusal> {
    let mut bodies = Vec::new();
    loop {
        let line = reader.line().await;
        let line = line.map_err(|fault| Refusal::of_body(fault, "BODY_TOO_BIG"))?;
        match line {
            None => return Ok(bodies),
            Some(line) if line.len() > config.max_msg_size => {
                return Err(Refusal::too_big("MSG_TOO_BIG"));
            }
            // nsqd has no such bound: a message takes memory beside its bytes.
            Some(_) if bodies.len() >= messages_max(config).max(LINES_MIN) => {
                return Err(Refusal::too_big("BODY_TOO_BIG"));
            }
            Some(line) => {
                let charged = reader.charge_more(MESSAGE_OVERHEAD);
                charged.map_err(|fault| Refusal::of_body(fault, "BODY_TOO_BIG"))?;
                bodies.push(line);
            }
        }
    }
}

/// Binary: a count, then size and bytes of each; what follows the last is not looked at.
async fn binary(reader: &mut BodyReader, config: &Config) -> Result<Vec<Bytes>, Refusal> {
    let bad_body = || Refusal::too_big("BAD_BODY");
    let bad_message = || Refusal::too_big("BAD_MESSAGE");
    let count = int32(reader, "BAD_BODY").await?;
    let count = usize::try_from(count).map_err(|_negative| bad_body())?;
    if count == 0 || count > messages_max(config) {
        return Err(bad_body());
    }
    // Not `with_capacity(count)`: the count is only what a client says.
    let mut bodies = Vec::new();
    for _ in 0..count {
        let size = int32(reader, "BAD_MESSAGE").await?;
        let size = usize::try_from(size).map_err(|_negative| bad_message())?;
        if size == 0 || size > config.max_msg_size {
            return Err(bad_message());
        }
        let charged = reader.charge_more(MESSAGE_OVERHEAD);
        charged.map_err(|fault| Refusal::of_body(fault, "BODY_TOO_BIG"))?;
        bodies.push(exactly(reader, size, "BAD_MESSAGE").await?);
    }
    Ok(bodies)
}

/// Most messages of one body, as nsqd has it for binary ones: 4 bytes for the count itself, 5 for the
/// size and at least one byte of each message.
fn messages_max(config: &Config) -> usize {
    config.max_body_size.saturating_sub(4) / 5
}

async fn int32(reader: &mut BodyReader, short: &'static str) -> Result<i32, Refusal> {
    let bytes = exactly(reader, 4, short).await?;
    let bytes = <[u8; 4]>::try_from(bytes.as_ref()).map_err(|_short| Refusal::too_big(short))?;
    Ok(i32::from_be_bytes(bytes))
}

/// `short` is what nsqd says of a body that ends too soon, whatever ended it.
async fn exactly(
    reader: &mut BodyReader,
    count: usize,
    short: &'static str,
) -> Result<Bytes, Refusal> {
    match reader.exactly(count).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) | Err(BodyFault::Broken) => Err(Refusal::too_big(short)),
        Err(fault) => Err(Refusal::of_body(fault, "BODY_TOO_BIG")),
    }
}

/// Last, as in nsqd: whether the instance still takes messages, then the store.
async fn accept(shared: &Shared, messages: Vec<Message>) -> Result<Vec<Receipt>, Refusal> {
    let stopped = match shared.phase() {
        Phase::Serving => None,
        Phase::Starting => Some("STARTING"),
        Phase::Draining | Phase::Stopped => Some("EXITING"),
    };
    if let Some(message) = stopped {
        return Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            message,
            reason: Reason::Draining,
            close: false,
        });
    }
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let count = u64::try_from(messages.len()).unwrap_or(u64::MAX);
    let accepted = shared.state.intake.publish(messages).await;
    let receipts = accepted.map_err(|error| {
        log(&error);
        let answer = reply::http(error.kind);
        Refusal {
            status: answer.status,
            message: answer.message,
            reason: reply::reason(error.kind),
            close: false,
        }
    })?;
    let label = DoorLabel { door: Door::Http };
    let accepted = &shared.state.metrics.accepted;
    accepted.get_or_create(&label).inc_by(count);
    Ok(receipts)
}
