//! This module's metric families.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::store::Cancel;

/// Which door a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Door {
    /// nsqd's TCP protocol.
    Tcp,
    /// nsqd's HTTP API.
    Http,
    /// The JSON API.
    V1,
    /// The inbox.
    Inbox,
}

impl EncodeLabelValue for Door {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::V1 => "v1",
            Self::Inbox => "inbox",
        })
    }
}

/// Why a message was refused: a closed set, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A topic, size, delay, id or body that is not valid.
    Invalid,
    /// Over a size limit.
    TooBig,
    /// The id is taken, or was cancelled.
    Conflict,
    /// Who asks may not, or has not said who it is.
    Unauthorized,
    /// Redis did not take it.
    Store,
    /// Redis did not answer: the outcome is unknown.
    Unknown,
    /// Over a limit on what is under way.
    Overload,
    /// Over a limit on what is pending.
    Full,
    /// Over a limit on what is pending of a topic.
    TopicFull,
    /// The process is stopping.
    Draining,
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Invalid => "invalid",
            Self::TooBig => "too_big",
            Self::Conflict => "conflict",
            Self::Unauthorized => "unauthorized",
            Self::Store => "store",
            Self::Unknown => "unknown",
            Self::Overload => "overload",
            Self::Full => "full",
            Self::TopicFull => "topic_full",
            Self::Draining => "draining",
        })
    }
}

/// Label of one door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DoorLabel {
    /// The door.
    pub door: Door,
}

/// Labels of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabel {
    /// The door.
    pub door: Door,
    /// Why.
    pub reason: Reason,
}

/// The answer to a cancel, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelResult {
    /// Cancelled.
    Cancelled,
    /// In flight.
    InFlight,
    /// Not found.
    NotFound,
    /// A dead letter.
    Dead,
}

impl EncodeLabelValue for CancelResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Cancelled => "cancelled",
            Self::InFlight => "in_flight",
            Self::NotFound => "not_found",
            Self::Dead => "dead",
        })
    }
}

impl From<Cancel> for CancelResult {
    fn from(answer: Cancel) -> Self {
        match answer {
            Cancel::Cancelled => Self::Cancelled,
            Cancel::InFlight => Self::InFlight,
            Cancel::NotFound => Self::NotFound,
            Cancel::Dead => Self::Dead,
        }
    }
}

/// Label of a cancel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CancelLabel {
    /// The answer.
    pub result: CancelResult,
}

/// What became of a message that was handed to nsqd at once, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Handed {
    /// nsqd took it.
    Taken,
    /// nsqd did not take it: it was stored.
    NotTaken,
    /// nsqd may have taken it: it was stored too, and may come twice.
    Maybe,
}

impl EncodeLabelValue for Handed {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Taken => "taken",
            Self::NotTaken => "not_taken",
            Self::Maybe => "maybe",
        })
    }
}

/// Label of what was handed to nsqd at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HandedLabel {
    /// The result.
    pub result: Handed,
}

/// What the doors count. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Messages acknowledged.
    pub accepted: Family<DoorLabel, Counter>,
    /// Messages refused.
    pub refused: Family<RefusedLabel, Counter>,
    /// Messages handed to nsqd at once, with `passthrough`.
    pub handed: Family<HandedLabel, Counter>,
    /// Cancels answered.
    pub cancelled: Family<CancelLabel, Counter>,
    /// Connections open now.
    pub connections: Family<DoorLabel, Gauge>,
    /// Connections closed at once, there being `max_connections` already.
    pub connections_refused: Family<DoorLabel, Counter>,
    /// Messages neither delivered nor cancelled, all instances' together.
    pub pending: Gauge,
    /// Dead letters, all instances' together.
    pub dead_letters: Gauge,
    /// Bytes of the bodies of what is pending, all instances' together.
    pub pending_bytes: Gauge,
    /// Bytes of what is read and not answered.
    pub in_flight_bytes: Gauge,
}

impl Metrics {
    /// Makes the families known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "messages_accepted",
            "Messages acknowledged, by door",
            metrics.accepted.clone(),
        );
        registry.register(
            "messages_refused",
            "Messages refused, by door and reason",
            metrics.refused.clone(),
        );
        registry.register(
            "messages_passed_through",
            "Messages without a delay, handed to nsqd at once, by result",
            metrics.handed.clone(),
        );
        registry.register(
            "messages_cancelled",
            "Cancels answered, by result",
            metrics.cancelled.clone(),
        );
        registry.register(
            "connections",
            "Client connections open now",
            metrics.connections.clone(),
        );
        registry.register(
            "connections_refused",
            "Client connections closed at once for being over max_connections",
            metrics.connections_refused.clone(),
        );
        registry.register(
            "messages_pending",
            "Messages neither delivered nor cancelled, as Redis counts them: the same from every instance",
            metrics.pending.clone(),
        );
        registry.register(
            "dead_letters",
            "Messages that nsqd refused for good, as Redis counts them: the same from every instance",
            metrics.dead_letters.clone(),
        );
        registry.register(
            "pending_bytes",
            "Bytes of the bodies of what is pending, as Redis counts them: the same from every instance",
            metrics.pending_bytes.clone(),
        );
        registry.register(
            "in_flight_bytes",
            "Bytes of requests that are read and not yet answered",
            metrics.in_flight_bytes.clone(),
        );
        metrics
    }
}
