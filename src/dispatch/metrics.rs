//! This module's metric families.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TurnResult {
    /// Under our claim.
    Held,
    /// Another owner has the claim.
    Busy,
    /// Redis did not do it.
    Failed,
}

impl EncodeLabelValue for TurnResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Held => "held",
            Self::Busy => "busy",
            Self::Failed => "failed",
        })
    }
}

/// Label of a turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TurnLabel {
    /// How it ended.
    pub result: TurnResult,
}

/// What dispatch counts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Messages that nsqd acknowledged.
    pub delivered: Counter,
    /// Messages sent again after a send that may have arrived.
    pub redelivered: Counter,
    /// Messages moved to a later time because nsqd does not take them.
    pub parked: Counter,
    /// Messages moved to the dead letters.
    pub dead: Counter,
    /// Messages moved to the dead letters because they were too late.
    pub expired: Counter,
    /// Messages put among what is held of paused topics.
    pub held: Counter,
    /// Claims that lapsed while messages were open.
    pub claims_lost: Counter,
    /// Packs that this version does not read, seen by owners.
    pub unreadable: Counter,
    /// Turns.
    pub turns: Family<TurnLabel, Counter>,
    /// From due to nsqd's OK, in seconds.
    pub lateness: Histogram,
    /// Messages open and due, in this instance's shards.
    pub overdue: Gauge,
    /// Age of the oldest of them, in ms.
    pub oldest_overdue_ms: Gauge,
    /// Shards that this instance owns.
    pub shards_owned: Gauge,
    /// Live instances.
    pub members: Gauge,
    /// Steps forward of Redis's clock.
    pub clock_steps: Counter,
    /// 1 while nothing is handed out because of one.
    pub clock_held: Gauge,
}

/// Bounds of the lateness histogram, in seconds.
const LATENESS_SECONDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0,
];

impl Metrics {
    /// Makes the families known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            delivered: Counter::default(),
            redelivered: Counter::default(),
            parked: Counter::default(),
            dead: Counter::default(),
            expired: Counter::default(),
            held: Counter::default(),
            claims_lost: Counter::default(),
            unreadable: Counter::default(),
            turns: Family::default(),
            lateness: Histogram::new(LATENESS_SECONDS),
            overdue: Gauge::default(),
            oldest_overdue_ms: Gauge::default(),
            shards_owned: Gauge::default(),
            members: Gauge::default(),
            clock_steps: Counter::default(),
            clock_held: Gauge::default(),
        };
        let m = &metrics;
        registry.register(
            "messages_delivered",
            "Messages nsqd acknowledged",
            m.delivered.clone(),
        );
        registry.register(
            "messages_redelivered",
            "Messages sent again although an earlier send may have arrived",
            m.redelivered.clone(),
        );
        registry.register(
            "messages_parked",
            "Messages moved to a later time because nsqd did not take them",
            m.parked.clone(),
        );
        registry.register(
            "messages_dead",
            "Messages moved to the dead letters",
            m.dead.clone(),
        );
        registry.register(
            "messages_expired",
            "Messages moved to the dead letters because they were later than expire_if_later_than",
            m.expired.clone(),
        );
        registry.register(
            "messages_held",
            "Messages that became due while their topic was paused",
            m.held.clone(),
        );
        registry.register(
            "claims_lost",
            "Claims that lapsed in use",
            m.claims_lost.clone(),
        );
        registry.register(
            "packs_unreadable",
            "Packs of an unknown format that hold up a shard",
            m.unreadable.clone(),
        );
        registry.register("claim_turns", "Turns, by result", m.turns.clone());
        registry.register_with_unit(
            "lateness",
            "From due to nsqd's OK",
            Unit::Seconds,
            m.lateness.clone(),
        );
        registry.register(
            "messages_overdue",
            "Messages due and not delivered in this instance's shards, as far as read",
            m.overdue.clone(),
        );
        registry.register(
            "oldest_overdue_milliseconds",
            "Age of the oldest message due and not delivered",
            m.oldest_overdue_ms.clone(),
        );
        registry.register(
            "shards_owned",
            "Shards of this instance",
            m.shards_owned.clone(),
        );
        registry.register("members", "Live instances", m.members.clone());
        registry.register(
            "clock_steps",
            "Steps forward of Redis's clock by more than 2 s",
            m.clock_steps.clone(),
        );
        registry.register(
            "clock_held",
            "1 while nothing is handed out because Redis's clock stepped forward",
            m.clock_held.clone(),
        );
        metrics
    }
}
