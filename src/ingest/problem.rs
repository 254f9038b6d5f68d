//! Every refusal of the JSON API, as RFC 9457 problem details with a stable code, and what each
//! [`ErrorKind`] of the store becomes there. Causes are logged here and never sent.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::{debug, warn};
use utoipa::ToSchema;

use crate::ingest::metrics::Reason;
use crate::store::{Error, ErrorKind};

/// Seconds after which a client may try again.
pub(super) const RETRY_AFTER_S: &str = "1";
/// Longest piece of a client's own text that a detail repeats.
const QUOTED_CHARS_MAX: usize = 64;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal, $title:literal;)*) => {
        /// What is wrong: each has one status, one stable code and one title.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All of them.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status.
            pub(super) fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// The code on the wire; never changes.
            pub(super) fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }
        }
    };
}

codes! {
    /// Not JSON at all.
    InvalidJson = BAD_REQUEST, "invalid_json", "The body is not valid JSON";
    /// Nested deeper than the parser goes.
    JsonTooDeep = BAD_REQUEST, "json_too_deep", "The JSON is nested too deeply";
    /// More values than any request needs.
    JsonTooLarge = BAD_REQUEST, "json_too_large", "The JSON has too many values";
    /// A number that no type holds.
    InvalidNumber = BAD_REQUEST, "invalid_number", "A number is out of range";
    /// A field that does not exist.
    UnknownField = BAD_REQUEST, "unknown_field", "A field is not known";
    /// A field given twice.
    DuplicateField = BAD_REQUEST, "duplicate_field", "A field is given twice";
    /// A field that must be there.
    MissingField = BAD_REQUEST, "missing_field", "A field is missing";
    /// A field of the wrong type.
    InvalidField = BAD_REQUEST, "invalid_field", "A field has the wrong type";
    /// Fields that exclude each other.
    ConflictingFields = BAD_REQUEST, "conflicting_fields", "Fields exclude each other";
    /// Not nsqd's rule.
    InvalidTopic = BAD_REQUEST, "invalid_topic", "The topic name is not valid";
    /// Not an id.
    InvalidId = BAD_REQUEST, "invalid_id", "The id is not valid";
    /// Not a duration.
    InvalidDelay = BAD_REQUEST, "invalid_delay", "The delay is not valid";
    /// Not a moment.
    InvalidTime = BAD_REQUEST, "invalid_time", "The time is not valid";
    /// Over `max_delay`.
    DelayOutOfRange = BAD_REQUEST, "delay_out_of_range", "The delay is out of range";
    /// Not base64.
    InvalidBase64 = BAD_REQUEST, "invalid_base64", "The body is not valid base64";
    /// nsqd takes no empty message.
    MessageEmpty = BAD_REQUEST, "message_empty", "The message is empty";
    /// A batch without items, or an empty list of ids.
    EmptyBatch = BAD_REQUEST, "empty_batch", "The batch is empty";
    /// More items than one request may have.
    TooManyItems = BAD_REQUEST, "too_many_items", "The batch has too many items";
    /// A filter that would match everything.
    EmptyFilter = BAD_REQUEST, "empty_filter", "The filter is empty";
    /// The query cannot be read.
    InvalidQuery = BAD_REQUEST, "invalid_query", "The query is not valid";
    /// A parameter that does not exist.
    UnknownParameter = BAD_REQUEST, "unknown_parameter", "A parameter is not known";
    /// A parameter given twice.
    DuplicateParameter = BAD_REQUEST, "duplicate_parameter", "A parameter is given twice";
    /// A parameter that must be there.
    MissingParameter = BAD_REQUEST, "missing_parameter", "A parameter is missing";
    /// A parameter out of its range.
    InvalidParameter = BAD_REQUEST, "invalid_parameter", "A parameter is not valid";
    /// Forged, or of another query.
    InvalidPageToken = BAD_REQUEST, "invalid_page_token", "The page token is not valid";
    /// Bad chunks, a client that went away or stalled.
    BodyUnreadable = BAD_REQUEST, "body_unreadable", "The body could not be read";
    /// Nobody has said who it is, or nobody knows it.
    Unauthenticated = UNAUTHORIZED, "unauthenticated", "A token is needed";
    /// Not with these roles, or not with this topic.
    Forbidden = FORBIDDEN, "forbidden", "This is not allowed";
    /// A browser went to a name that is not ours.
    HostNotAllowed = FORBIDDEN, "host_not_allowed", "The host is not known here";
    /// A browser shows a page that is not ours.
    OriginNotAllowed = FORBIDDEN, "origin_not_allowed", "The origin is not allowed";
    /// No such path.
    RouteNotFound = NOT_FOUND, "route_not_found", "There is nothing at this path";
    /// No such message.
    MessageNotFound = NOT_FOUND, "message_not_found", "There is no such message";
    /// Another method.
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed", "The method is not allowed here";
    /// Too late to take it back.
    InFlight = CONFLICT, "in_flight", "The message is in flight";
    /// To be treated as one.
    DeadLetter = CONFLICT, "dead_letter", "The message is a dead letter";
    /// Cancelled before.
    MessageCancelled = CONFLICT, "message_cancelled", "The message was cancelled";
    /// The id is another message's.
    IdConflict = CONFLICT, "id_conflict", "The id is taken by another message";
    /// Over `max_msg_size`.
    MessageTooBig = PAYLOAD_TOO_LARGE, "message_too_big", "The message is too big";
    /// Over `max_body_size`.
    BodyTooBig = PAYLOAD_TOO_LARGE, "body_too_big", "The request is too big";
    /// Not JSON where JSON must be.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The media type is not supported";
    /// A bug, or something alien in Redis.
    Internal = INTERNAL_SERVER_ERROR, "internal", "Something went wrong here";
    /// Who it is cannot be found out now.
    AuthUnavailable = SERVICE_UNAVAILABLE, "auth_unavailable", "No auth server answers";
    /// Nothing happened.
    StoreUnavailable = SERVICE_UNAVAILABLE, "store_unavailable", "Redis is not reachable";
    /// Nothing happened.
    StoreRefused = SERVICE_UNAVAILABLE, "store_refused", "Redis refused the write";
    /// It may have happened.
    OutcomeUnknown = SERVICE_UNAVAILABLE, "outcome_unknown", "The outcome is not known";
    /// Not yet.
    Starting = SERVICE_UNAVAILABLE, "starting", "The instance is starting";
    /// No longer.
    Draining = SERVICE_UNAVAILABLE, "draining", "The instance is stopping";
    /// Too much at once.
    Overloaded = SERVICE_UNAVAILABLE, "overloaded", "The instance is overloaded";
    /// Over `pending_messages_max` or `pending_bytes_max`.
    PendingFull = SERVICE_UNAVAILABLE, "pending_full", "As much is pending as may be";
    /// Over `topic_pending_messages_max` or `topic_pending_bytes_max`.
    TopicFull = TOO_MANY_REQUESTS, "topic_full", "As much of the topic is pending as may be";
}

impl Code {
    /// As the metric of refused messages counts it.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::MessageTooBig | Self::BodyTooBig | Self::JsonTooLarge | Self::TooManyItems => {
                Reason::TooBig
            }
            Self::IdConflict | Self::MessageCancelled | Self::InFlight | Self::DeadLetter => {
                Reason::Conflict
            }
            Self::StoreUnavailable | Self::StoreRefused | Self::Internal => Reason::Store,
            Self::Unauthenticated
            | Self::Forbidden
            | Self::HostNotAllowed
            | Self::OriginNotAllowed
            | Self::AuthUnavailable => Reason::Unauthorized,
            Self::OutcomeUnknown => Reason::Unknown,
            Self::Overloaded => Reason::Overload,
            Self::PendingFull => Reason::Full,
            Self::TopicFull => Reason::TopicFull,
            Self::Starting | Self::Draining => Reason::Draining,
            _ => Reason::Invalid,
        }
    }
}

/// Where in the request the fault is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    /// Nowhere in particular.
    Request,
    /// This field of the JSON, as a path: `messages[3].topic`.
    Field(String),
    /// This parameter of the query, or the `id` of the path.
    Param(String),
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// What.
    pub(super) code: Code,
    /// In a sentence, for people.
    pub(super) detail: String,
    /// Where.
    pub(super) at: At,
}

impl Problem {
    /// A refusal of the request as such.
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self {
            code,
            detail,
            at: At::Request,
        }
    }

    /// The same, with the field at fault.
    pub(super) fn field(code: Code, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(code, detail).at(At::Field(field.into()))
    }

    /// The same, with the parameter at fault.
    pub(super) fn param(code: Code, param: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(code, detail).at(At::Param(param.into()))
    }

    /// The same refusal, elsewhere.
    #[must_use]
    pub(super) fn at(self, at: At) -> Self {
        Self { at, ..self }
    }

    /// What goes on the wire.
    pub(super) fn details(&self) -> ProblemDetails {
        let (field, param) = match &self.at {
            At::Request => (None, None),
            At::Field(name) => (Some(name.clone()), None),
            At::Param(name) => (None, Some(name.clone())),
        };
        ProblemDetails {
            kind: format!("urn:nsqdelayd:problem:{}", self.code.as_str()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            detail: self.detail.clone(),
            code: self.code.as_str(),
            field,
            param,
        }
    }
}

/// Problem details after RFC 9457.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemDetails {
    /// The code as a URI.
    #[serde(rename = "type")]
    kind: String,
    /// The code in words; the same for each occurrence.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub(super) status: u16,
    /// What is wrong this time.
    detail: String,
    /// Stable; programs may rely on it.
    code: &'static str,
    /// The field of the JSON body that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
    /// The parameter that is at fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    param: Option<String>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let text = serde_json::to_vec(&self.details()).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.code.status(), kind, text).into_response();
        if matches!(
            self.code.status(),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            let value = HeaderValue::from_static(RETRY_AFTER_S);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (code, detail) = match error.kind {
            ErrorKind::Unavailable => (
                Code::StoreUnavailable,
                "Redis is not reachable; nothing was stored or changed. Try again.",
            ),
            ErrorKind::Unknown => (
                Code::OutcomeUnknown,
                "Redis did not answer: the request may have taken effect. Trying again is safe for \
                 a message with an id of yours; without one it may be stored twice.",
            ),
            ErrorKind::Refused => (
                Code::StoreRefused,
                "Redis refused the write (no memory, read-only or disk full); nothing was changed.",
            ),
            ErrorKind::Overloaded => (
                Code::Overloaded,
                "Too much is under way to Redis; nothing was stored. Try again later.",
            ),
            ErrorKind::Full => (
                Code::PendingFull,
                "As much is pending as may be; nothing was stored. Try again later.",
            ),
            ErrorKind::TopicFull => (
                Code::TopicFull,
                "As much of the topic is pending as may be; nothing was stored. Try again later.",
            ),
            ErrorKind::Conflict => (
                Code::IdConflict,
                "A message with this id but other content was accepted before.",
            ),
            ErrorKind::Cancelled => (
                Code::MessageCancelled,
                "The message with this id was cancelled; use another id.",
            ),
            ErrorKind::Forbidden => (
                Code::Forbidden,
                "What the token grants does not cover this.",
            ),
            ErrorKind::BadPageToken => (
                Code::InvalidPageToken,
                "The page token is not one that was given for this query.",
            ),
            ErrorKind::SessionLost | ErrorKind::Corrupt => {
                (Code::Internal, "The log of the instance says more.")
            }
        };
        log(&error);
        let problem = Self::new(code, detail);
        match error.kind {
            ErrorKind::BadPageToken => problem.at(At::Param("page_token".to_owned())),
            _ => problem,
        }
    }
}

/// What a client did needs no line in the log; what Redis answered does. That it is away is told once, where
/// the connection is kept, and not for each of thousands of requests: metrics count those.
pub(super) fn log(error: &Error) {
    match error.kind {
        ErrorKind::Conflict
        | ErrorKind::Cancelled
        | ErrorKind::Forbidden
        | ErrorKind::BadPageToken
        | ErrorKind::Full
        | ErrorKind::TopicFull => {}
        ErrorKind::Unavailable
        | ErrorKind::Unknown
        | ErrorKind::Overloaded
        | ErrorKind::SessionLost => debug!(%error, "request not carried out"),
        ErrorKind::Refused | ErrorKind::Corrupt => warn!(%error, "request not carried out"),
    }
}

/// A client's own text, shortened and escaped, for a detail.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_of_errors() {
        let codes: HashSet<_> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(codes.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| c.status().as_u16() >= 400));
    }

    #[test]
    fn a_quotation_is_short_and_has_no_control_characters() {
        let text = quoted(&"\n\u{0}é".repeat(10_000));
        assert!(text.len() < 1_000, "{text}");
        assert!(!text.contains('\n'));
    }
}
