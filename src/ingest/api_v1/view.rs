//! What the JSON API says of messages: the shapes of its answers.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema as _, ToSchema};

use crate::ingest::problem::ProblemDetails;
use crate::message::{TopicName, UnixMs};
use crate::store::{ScheduleStore, State, Stored};

use super::moment::text_of;

/// Where a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StateName {
    /// Waiting.
    Scheduled,
    /// Handed, or being handed, to nsqd.
    InFlight,
    /// Refused by nsqd.
    Dead,
    /// Handed to nsqd; the id is still remembered.
    Delivered,
}

impl From<State> for StateName {
    fn from(state: State) -> Self {
        match state {
            State::Scheduled => Self::Scheduled,
            State::InFlight => Self::InFlight,
            State::Dead => Self::Dead,
        }
    }
}

/// An accepted message.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    /// To get, move or cancel it by.
    pub(super) id: String,
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = String)]
    pub(super) topic: TopicName,
    /// Unix milliseconds on Redis's clock.
    pub(super) due_ms: u64,
    /// The same, after RFC 3339. Shared: what is accepted together is mostly due together.
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = String, format = DateTime)]
    pub(super) due: Arc<str>,
    pub(super) state: StateName,
}

impl Accepted {
    pub(super) fn new(id: String, topic: TopicName, due: UnixMs, state: StateName) -> Self {
        Self {
            id,
            topic,
            due_ms: due.0,
            due: text_of(due).into(),
            state,
        }
    }
}

fn as_text<S: Serializer>(text: &impl AsRef<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text.as_ref())
}

/// A message that was moved.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Moved {
    pub(super) id: String,
    /// Unix milliseconds on Redis's clock.
    pub(super) due_ms: u64,
    /// The same, after RFC 3339.
    #[schema(format = DateTime)]
    pub(super) due: String,
    pub(super) state: StateName,
}

/// A message with its body: `body` if that is UTF-8, else `body_base64`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Message {
    #[serde(flatten)]
    pub(super) summary: Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) body_base64: Option<String>,
}

impl Message {
    pub(super) fn of(stored: &Stored, store: &dyn ScheduleStore) -> Self {
        let text = str::from_utf8(&stored.body).ok();
        // Messages are never empty: this one's body is not for who asks.
        let hidden = stored.body.is_empty();
        Self {
            summary: Summary::of(stored, store),
            body: text.filter(|_| !hidden).map(str::to_owned),
            body_base64: text.is_none().then(|| STANDARD.encode(&stored.body)),
        }
    }
}

/// A message without its body.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Summary {
    id: String,
    topic: String,
    /// Unix milliseconds on Redis's clock; of a dead letter, when it was due.
    due_ms: u64,
    /// The same, after RFC 3339.
    #[schema(format = DateTime)]
    due: String,
    state: StateName,
    /// Of the body.
    size_bytes: usize,
    /// Of a dead letter: what nsqd said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

impl Summary {
    pub(super) fn of(stored: &Stored, store: &dyn ScheduleStore) -> Self {
        Self {
            id: store.id_text(&stored.id),
            topic: stored.topic.as_str().to_owned(),
            due_ms: stored.due.0,
            due: text_of(stored.due),
            state: stored.state.into(),
            size_bytes: stored.body.len(),
            reason: stored.reason.clone(),
        }
    }
}

/// A page of messages, by due time. It may be short, even empty, and still have a next one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MessagePage {
    pub(super) messages: Vec<Summary>,
    /// Ask with this as `page_token` for what follows; not there on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next_page_token: Option<String>,
}

/// What became of one message.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Outcome {
    pub(super) id: String,
    pub(super) result: OutcomeName,
}

/// What a request did to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OutcomeName {
    /// It will not be delivered.
    Cancelled,
    /// Too late.
    InFlight,
    /// Delivered, or never there.
    NotFound,
    /// It is a dead letter.
    DeadLetter,
    /// It is no id.
    InvalidId,
    /// A dead letter, gone for ever.
    Dropped,
}

/// What became of each item of a batch, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BatchResult {
    pub(super) successful: usize,
    pub(super) failed: usize,
    pub(super) results: Vec<ItemResult>,
}

/// What became of one item: `message`, or `problem`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ItemResult {
    /// 201, 200 if the same message was there already, or the problem's.
    #[schema(minimum = 200, maximum = 599)]
    pub(super) status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) message: Option<Accepted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) problem: Option<ProblemDetails>,
}

/// What a cancel of many did.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct CancelResult {
    pub(super) cancelled: usize,
    pub(super) in_flight: usize,
    pub(super) not_found: usize,
    pub(super) dead_letters: usize,
    pub(super) invalid_ids: usize,
    /// By a filter: whether there is more to look at; ask again with `next_page_token`.
    pub(super) more: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) next_page_token: Option<String>,
    /// By ids: what became of each, in order.
    pub(super) results: Vec<Outcome>,
}

/// What is pending by topic.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Topics {
    pub(super) topics: Vec<TopicCount>,
}

/// What is pending of one topic.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicCount {
    pub(super) topic: String,
    pub(super) pending: u64,
    /// Whether what is due of it is held.
    pub(super) paused: bool,
}

/// A topic that was paused or resumed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TopicState {
    pub(super) topic: String,
    pub(super) paused: bool,
}

/// What is pending at all.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Stats {
    pub(super) version: String,
    /// Unix seconds.
    pub(super) start_time: u64,
    /// Redis's clock, Unix milliseconds.
    pub(super) now_ms: u64,
    pub(super) topics: usize,
    pub(super) pending: u64,
    pub(super) dead_letters: u64,
    /// Clients connected to this instance over TCP.
    pub(super) clients: usize,
}

/// The schemas of all answers, by name.
pub(in crate::ingest) fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut all = Vec::new();
    macro_rules! add {
        ($($shape:ty),* $(,)?) => {
            $(all.push((<$shape as ToSchema>::name().into_owned(), <$shape>::schema()));)*
        };
    }
    add!(
        StateName,
        Accepted,
        Moved,
        Message,
        Summary,
        MessagePage,
        Outcome,
        OutcomeName,
        BatchResult,
        ItemResult,
        CancelResult,
        Topics,
        TopicCount,
        TopicState,
        Stats,
        ProblemDetails,
    );
    all
}
