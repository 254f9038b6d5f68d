//! The JSON API `/v1`: its routes in one table, and what all of them need. Each noun has its file.
//! A request is checked here whole; what is stored has been accepted.

mod batch;
mod cancel;
mod dead_letters;
mod draft;
mod envelope;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod list;
mod messages;
mod moment;
mod overview;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use bytes::Bytes;

use crate::id::{BadId, MessageId};
use crate::ingest::Intake;
use crate::ingest::budget::Share;
use crate::ingest::http::{BodyFault, BodyReader, Plus, Query, Shared, unescape};
use crate::ingest::metrics::{Door, RefusedLabel};
use crate::ingest::openapi;
use crate::ingest::problem::{Code, Problem, quoted};
use crate::message::{Message, TopicName};
use crate::phase::Phase;
use json::{Node, Spot};
use moment::Limits;

pub(super) use batch::ITEMS_MAX;
pub(super) use cancel::IDS_MAX;
pub(super) use envelope::HEADERS_MAX;
pub(super) use list::{PAGE_SIZE, PAGE_SIZE_MAX};
pub(super) use view::schemas;

/// Everything that `/v1` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    /// Schedule one message.
    Create,
    /// List what is pending.
    List,
    /// Schedule many.
    CreateBatch,
    /// Cancel many.
    CancelMany,
    /// Look at one.
    Get,
    /// Cancel one.
    Cancel,
    /// Move one to another time.
    Move,
    /// Deliver one now.
    Deliver,
    /// List dead letters.
    ListDead,
    /// Give one back to the queue.
    Requeue,
    /// Drop one.
    DropDead,
    /// What is pending by topic.
    Topics,
    /// Hold what is due of a topic.
    Pause,
    /// Let it go on.
    Resume,
    /// What is pending at all.
    Stats,
    /// This API's description.
    OpenApi,
}

impl Operation {
    /// All of them; routes and description are made from this list.
    pub(super) const ALL: [Self; 16] = [
        Self::Create,
        Self::List,
        Self::CreateBatch,
        Self::CancelMany,
        Self::Get,
        Self::Cancel,
        Self::Move,
        Self::Deliver,
        Self::ListDead,
        Self::Requeue,
        Self::DropDead,
        Self::Topics,
        Self::Pause,
        Self::Resume,
        Self::Stats,
        Self::OpenApi,
    ];

    /// Its method and path.
    pub(super) fn route(self) -> (Method, &'static str) {
        match self {
            Self::Create => (Method::POST, "/v1/messages"),
            Self::List => (Method::GET, "/v1/messages"),
            Self::CreateBatch => (Method::POST, "/v1/messages:batch"),
            Self::CancelMany => (Method::POST, "/v1/messages:cancel"),
            Self::Get => (Method::GET, "/v1/messages/{id}"),
            Self::Cancel => (Method::DELETE, "/v1/messages/{id}"),
            Self::Move => (Method::PATCH, "/v1/messages/{id}"),
            Self::Deliver => (Method::POST, "/v1/messages/{id}/deliver"),
            Self::ListDead => (Method::GET, "/v1/dead-letters"),
            Self::Requeue => (Method::POST, "/v1/dead-letters/{id}/requeue"),
            Self::DropDead => (Method::DELETE, "/v1/dead-letters/{id}"),
            Self::Topics => (Method::GET, "/v1/topics"),
            Self::Pause => (Method::POST, "/v1/topics/{topic}/pause"),
            Self::Resume => (Method::POST, "/v1/topics/{topic}/resume"),
            Self::Stats => (Method::GET, "/v1/stats"),
            Self::OpenApi => (Method::GET, "/v1/openapi.json"),
        }
    }

    fn service(self) -> MethodRouter<Arc<Shared>> {
        match self {
            Self::Create => post(messages::create),
            Self::List => get(list::list),
            Self::CreateBatch => post(batch::create),
            Self::CancelMany => post(cancel::cancel),
            Self::Get => get(messages::get),
            Self::Cancel => delete(messages::cancel),
            Self::Move => patch(messages::reschedule),
            Self::Deliver => post(messages::deliver),
            Self::ListDead => get(dead_letters::list),
            Self::Requeue => post(dead_letters::requeue),
            Self::DropDead => delete(dead_letters::drop_dead),
            Self::Topics => get(overview::topics),
            Self::Pause => post(overview::pause),
            Self::Resume => post(overview::resume),
            Self::Stats => get(overview::stats),
            Self::OpenApi => get(openapi::document),
        }
    }
}

/// The routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    let add = |router: Router<Arc<Shared>>, operation: Operation| {
        router.route(operation.route().1, operation.service())
    };
    Operation::ALL
        .into_iter()
        .fold(Router::new(), add)
        .method_not_allowed_fallback(method_not_allowed)
}

/// The answer to a path under `/v1` that is none.
pub(super) fn no_such_route(path: &str) -> Response {
    let detail = format!("{} is not a path of this API.", quoted(path));
    Problem::new(Code::RouteNotFound, detail).into_response()
}

/// The answer to a target that is not a URI: what stands for the odd bytes must not be read as theirs.
pub(super) fn bad_target() -> Response {
    let detail = "Path and query must be those of a URI: percent-encode what it may not have.";
    Problem::new(Code::InvalidQuery, detail).into_response()
}

async fn method_not_allowed(method: Method) -> Problem {
    let detail = format!("{method} is not a method of this path; the header Allow names them.");
    Problem::new(Code::MethodNotAllowed, detail)
}

/// What may be asked for now.
fn limits(shared: &Shared) -> Limits {
    limits_of(&shared.state.intake)
}

fn limits_of(intake: &Intake) -> Limits {
    Limits {
        delay_max: intake.config.max_delay,
        now: intake.store.now(),
    }
}

/// Reads a message as `POST /v1/messages` does, for whoever has no request.
pub(super) fn message_of_json(intake: &Intake, text: &Bytes) -> Result<Message, Problem> {
    let node = Node::parse(text)?;
    let size_max = intake.config.max_msg_size;
    draft::of_json(node, Spot::Top, text, limits_of(intake), size_max)
}

/// Refuses what changes anything unless the instance serves.
fn serving(shared: &Shared) -> Result<(), Problem> {
    match shared.phase() {
        Phase::Serving => Ok(()),
        Phase::Starting => Err(Problem::new(
            Code::Starting,
            "The instance is starting; try again.",
        )),
        Phase::Draining | Phase::Stopped => Err(Problem::new(
            Code::Draining,
            "The instance is stopping; try another one.",
        )),
    }
}

/// Counts a message that was not taken.
fn count_refused(shared: &Shared, problem: &Problem) {
    let label = RefusedLabel {
        door: Door::V1,
        reason: problem.code.reason(),
    };
    shared.state.metrics.refused.get_or_create(&label).inc();
}

/// Whether the body is JSON: by its media type alone.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let kind = kind.unwrap_or_default().split(|b| *b == b';').next();
    kind.unwrap_or_default()
        .trim_ascii()
        .eq_ignore_ascii_case(b"application/json")
}

/// Refuses a body that is not JSON as it is.
fn need_json(headers: &HeaderMap) -> Result<(), Problem> {
    if !is_json(headers) {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "The body must be JSON, with the header Content-Type: application/json.",
        ));
    }
    plain_encoding(headers)
}

/// A compressed body would be taken for what it is not.
fn plain_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(Problem::new(
                Code::UnsupportedMediaType,
                "The body must not be compressed.",
            ))
        }
        _ => Ok(()),
    }
}

/// Reads a JSON body of at most `max_body_size`. Its share of the memory is to be kept until all is
/// done.
async fn json_body(shared: &Shared, request: Request) -> Result<(Bytes, Share), Problem> {
    Params::none(request.uri())?;
    need_json(request.headers())?;
    let limit = shared.state.intake.config.max_body_size;
    let mut reader = reader(shared, request.into_body(), limit)?;
    let text = whole(&mut reader, Code::BodyTooBig, limit).await?;
    Ok((text, reader.into_share()))
}

/// A reader of the body; one that is declared too big is refused before anything is read.
fn reader(shared: &Shared, body: Body, limit: usize) -> Result<BodyReader, Problem> {
    let declared = axum::body::HttpBody::size_hint(&body).lower();
    if usize::try_from(declared).is_ok_and(|declared| declared <= limit) {
        Ok(shared.reader(body, limit))
    } else {
        Err(too_big(Code::BodyTooBig, limit))
    }
}

fn too_big(code: Code, limit: usize) -> Problem {
    Problem::new(code, format!("The limit is {limit} bytes."))
}

async fn whole(reader: &mut BodyReader, over: Code, limit: usize) -> Result<Bytes, Problem> {
    reader.whole().await.map_err(|fault| match fault {
        BodyFault::TooBig => too_big(over, limit),
        BodyFault::Broken => Problem::new(
            Code::BodyUnreadable,
            "The body ended early, stalled, or its chunks are malformed.",
        ),
        BodyFault::Crowded => Problem::new(
            Code::Overloaded,
            "The requests under way hold all the memory that is set aside for them; try again.",
        ),
    })
}

/// The parameters of a query, each of which exists and is there once.
#[derive(Debug)]
pub(super) struct Params(Query);

impl Params {
    fn of(uri: &Uri, allowed: &[&str]) -> Result<Self, Problem> {
        let query = Query::parse(uri.query().unwrap_or_default().as_bytes()).map_err(|_bad| {
            Problem::new(
                Code::InvalidQuery,
                "The query has a bad escape or a semicolon.",
            )
        })?;
        for (number, key) in query.keys().enumerate() {
            let name = String::from_utf8_lossy(key);
            if !allowed.contains(&&*name) {
                let quoted = quoted(&name);
                return Err(Problem::param(
                    Code::UnknownParameter,
                    quoted.trim_matches('"'),
                    format!("There is no parameter {quoted} here."),
                ));
            }
            // Few parameters can come here: the first that is not known ends the loop.
            if query.keys().take(number).any(|other| other == key) {
                return Err(Problem::param(
                    Code::DuplicateParameter,
                    name,
                    "Each parameter may be given once.",
                ));
            }
        }
        Ok(Self(query))
    }

    /// Of a request that takes none.
    pub(super) fn none(uri: &Uri) -> Result<(), Problem> {
        Self::of(uri, &[]).map(drop)
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.first(name)
    }

    fn text(&self, name: &str) -> Result<Option<String>, Problem> {
        let text = self.bytes(name).map(|value| {
            str::from_utf8(value)
                .map(str::to_owned)
                .map_err(|_not_utf8| {
                    Problem::param(Code::InvalidParameter, name, "This is not UTF-8.")
                })
        });
        text.transpose()
    }

    fn topic(&self) -> Result<Option<TopicName>, Problem> {
        let topic = self.bytes("topic").map(topic);
        topic
            .transpose()
            .map_err(|problem| problem.at(crate::ingest::problem::At::Param("topic".to_owned())))
    }
}

fn topic(name: &[u8]) -> Result<TopicName, Problem> {
    TopicName::parse(name).map_err(|bad| Problem::new(Code::InvalidTopic, sentence(&bad)))
}

/// An error's text as a sentence.
fn sentence(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut rest = text.chars();
    let first = rest.next().map(|c| c.to_ascii_uppercase());
    format!(
        "{}{}.",
        first.map(String::from).unwrap_or_default(),
        rest.as_str()
    )
}

/// Reads an id as the store knows it.
fn id_of(shared: &Shared, text: &[u8]) -> Result<MessageId, Problem> {
    shared
        .state
        .intake
        .store
        .parse_id(text)
        .map_err(|bad| match bad {
            BadId::NotAuthentic => not_found(),
            BadId::Malformed(bad) => Problem::new(Code::InvalidId, sentence(&bad)),
        })
}

/// The `{id}` of a path: its third segment.
fn path_id(shared: &Shared, uri: &Uri) -> Result<MessageId, Problem> {
    let at_id = |problem: Problem| match problem.code {
        Code::InvalidId => problem.at(crate::ingest::problem::At::Param("id".to_owned())),
        _ => problem,
    };
    let segment = uri.path().split('/').nth(3).unwrap_or_default();
    let text = unescape(segment.as_bytes(), Plus::IsPlus)
        .ok_or_else(|| at_id(Problem::new(Code::InvalidId, "The path has a bad escape.")))?;
    id_of(shared, &text).map_err(at_id)
}

/// The `{topic}` of a path: its third segment.
fn path_topic(uri: &Uri) -> Result<TopicName, Problem> {
    let segment = uri.path().split('/').nth(3).unwrap_or_default();
    let name = unescape(segment.as_bytes(), Plus::IsPlus)
        .ok_or_else(|| Problem::new(Code::InvalidTopic, "The path has a bad escape."));
    let topic = name.and_then(|name| topic(&name));
    topic.map_err(|problem| problem.at(crate::ingest::problem::At::Param("topic".to_owned())))
}

fn not_found() -> Problem {
    Problem::new(
        Code::MessageNotFound,
        "No message with this id is pending: it was delivered or cancelled, or never there.",
    )
}
