//! The one table of the store's errors as clients see them: nsqd's TCP codes, and HTTP statuses with
//! nsqd's way of naming. Never shows a source: that is for the log.

use axum::http::StatusCode;

use crate::ingest::metrics::Reason;
use crate::nsq::error_code::{ErrorCode, Refusal};
use crate::store::ErrorKind;

/// What was asked of the store over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// PUB.
    Pub,
    /// MPUB.
    Mpub,
    /// DPUB.
    Dpub,
    /// MDPUB.
    Mdpub,
    /// CANCEL.
    Cancel,
}

impl Asked {
    /// The command with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Pub, Self::Mpub, Self::Dpub, Self::Mdpub, Self::Cancel]
            .into_iter()
            .find(|asked| asked.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pub => "PUB",
            Self::Mpub => "MPUB",
            Self::Dpub => "DPUB",
            Self::Mdpub => "MDPUB",
            Self::Cancel => "CANCEL",
        }
    }

    /// nsqd's code for "could not store". MDPUB is a batch of DPUBs.
    fn failed(self) -> ErrorCode {
        match self {
            Self::Pub => ErrorCode::PubFailed,
            Self::Mpub => ErrorCode::MpubFailed,
            Self::Dpub | Self::Mdpub => ErrorCode::DpubFailed,
            Self::Cancel => ErrorCode::CancelFailed,
        }
    }
}

/// The error frame for what the store answered. A conflict, which only a DPUB with the producer's own
/// id can meet, is `E_CONFLICT`: fatal, as all errors of publishing are, and not `E_DPUB_FAILED`,
/// because trying again is of no use.
pub fn refusal(asked: Asked, kind: ErrorKind) -> Refusal {
    let (code, why) = match kind {
        ErrorKind::Unavailable => (
            asked.failed(),
            "redis is not reachable, nothing was stored, try again",
        ),
        ErrorKind::Unknown => (
            asked.failed(),
            "outcome unknown: redis did not answer, it may or may not have taken effect",
        ),
        ErrorKind::Refused => (asked.failed(), "redis refused the write"),
        ErrorKind::Overloaded => (
            asked.failed(),
            "too much is under way, nothing was stored, try again later",
        ),
        ErrorKind::Full => (
            asked.failed(),
            "as much is pending as may be, nothing was stored, try again later",
        ),
        ErrorKind::TopicFull => (
            asked.failed(),
            "as much of the topic is pending as may be, nothing was stored, try again later",
        ),
        ErrorKind::Conflict => (
            ErrorCode::Conflict,
            "the id is taken by a message with other content",
        ),
        ErrorKind::Cancelled => (
            ErrorCode::Conflict,
            "a message with this id was cancelled within the dedupe window",
        ),
        ErrorKind::BadPageToken
        | ErrorKind::SessionLost
        | ErrorKind::Corrupt
        | ErrorKind::Forbidden => (asked.failed(), "internal error, see the log"),
    };
    Refusal::new(code, format!("{} failed {why}", asked.name()))
}

/// Why the messages were refused, for the metrics.
pub fn reason(kind: ErrorKind) -> Reason {
    match kind {
        ErrorKind::Conflict | ErrorKind::Cancelled => Reason::Conflict,
        ErrorKind::Unknown => Reason::Unknown,
        ErrorKind::Forbidden => Reason::Unauthorized,
        ErrorKind::Overloaded => Reason::Overload,
        ErrorKind::Full => Reason::Full,
        ErrorKind::TopicFull => Reason::TopicFull,
        ErrorKind::Unavailable
        | ErrorKind::Refused
        | ErrorKind::BadPageToken
        | ErrorKind::SessionLost
        | ErrorKind::Corrupt => Reason::Store,
    }
}

/// An error of the HTTP doors: the status, and the `message` of nsqd's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpError {
    /// The status code.
    pub status: StatusCode,
    /// In capitals, as nsqd's are.
    pub message: &'static str,
}

/// The answer of nsqd's HTTP API to what the store answered. nsqd itself knows only 503 EXITING here, and
/// the words for what cannot happen to it are ours: `STORE_UNAVAILABLE`, `STORE_REFUSED`, `OVERLOADED`,
/// `PENDING_FULL` and `TOPIC_FULL` (nothing was stored), `OUTCOME_UNKNOWN` (it may have been), `ID_CONFLICT` and `ID_CANCELLED` (only with our
/// parameter `id`).
pub fn http(kind: ErrorKind) -> HttpError {
    let (status, message) = match kind {
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE"),
        ErrorKind::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "OUTCOME_UNKNOWN"),
        ErrorKind::Refused => (StatusCode::SERVICE_UNAVAILABLE, "STORE_REFUSED"),
        ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "FORBIDDEN"),
        ErrorKind::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "OVERLOADED"),
        ErrorKind::Full => (StatusCode::SERVICE_UNAVAILABLE, "PENDING_FULL"),
        ErrorKind::TopicFull => (StatusCode::TOO_MANY_REQUESTS, "TOPIC_FULL"),
        ErrorKind::Conflict => (StatusCode::CONFLICT, "ID_CONFLICT"),
        ErrorKind::Cancelled => (StatusCode::CONFLICT, "ID_CANCELLED"),
        ErrorKind::BadPageToken | ErrorKind::SessionLost | ErrorKind::Corrupt => {
            (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR")
        }
    };
    HttpError { status, message }
}
