//! This module's metric families. Labels are closed sets, but for the addresses of nsqds, of which
//! those that are gone are dropped.

use std::fmt::{self, Write as _};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::forward::Error;

/// What became of a message, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// nsqd answered OK.
    Accepted,
    /// It certainly did not reach any nsqd.
    NotSent,
    /// Sent, and no answer came.
    Unknown,
    /// nsqd refused this very message.
    Refused,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Accepted => "accepted",
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
        })
    }
}

/// Label of an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// The outcome.
    pub outcome: Outcome,
}

/// Label of one nsqd.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NsqdLabel {
    /// Its address, as configured or as nsqlookupd says.
    pub nsqd: String,
}

/// What came of a question to an nsqlookupd or nsqd, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PollResult {
    /// It said what it was asked for.
    Answered,
    /// No answer, or none that makes sense.
    Failed,
}

impl EncodeLabelValue for PollResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
        })
    }
}

/// Label of a question.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PollLabel {
    /// The result.
    pub result: PollResult,
}

/// What forward counts. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Facts reported, one for each message of each call.
    pub forwarded: Family<OutcomeLabel, Counter>,
    /// PUBs and MPUBs written. Accepted messages over commands is how well batching works.
    pub commands: Counter,
    /// Connections that are ready, by nsqd. 0 means that the circuit to it is open.
    pub connections: Family<NsqdLabel, Gauge>,
    /// Bytes given to an nsqd and not answered, small messages counted as 512 bytes.
    pub unanswered_bytes: Family<NsqdLabel, Gauge>,
    /// nsqds that are known, reachable or not.
    pub known: Gauge,
    /// Questions to nsqlookupds.
    pub polls: Family<PollLabel, Counter>,
    /// Questions to nsqds, how many messages of a topic they hold.
    pub depth_polls: Family<PollLabel, Counter>,
}

impl Metrics {
    /// Makes the families known to `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "messages_forwarded",
            "Messages handed to nsqd, by outcome; a message that is sent again counts again",
            metrics.forwarded.clone(),
        );
        registry.register(
            "nsqd_commands",
            "PUB and MPUB commands written to nsqd",
            metrics.commands.clone(),
        );
        registry.register(
            "nsqd_connections",
            "Connections to nsqd that are ready, by nsqd",
            metrics.connections.clone(),
        );
        registry.register(
            "nsqd_unanswered_bytes",
            "Bytes given to nsqd and not answered, by nsqd",
            metrics.unanswered_bytes.clone(),
        );
        registry.register(
            "nsqds",
            "nsqds that are configured or known from nsqlookupd, reachable or not",
            metrics.known.clone(),
        );
        registry.register(
            "lookupd_polls",
            "Questions to nsqlookupds, by result",
            metrics.polls.clone(),
        );
        registry.register(
            "nsqd_depth_polls",
            "Questions to nsqds how many messages of a topic they hold, by result",
            metrics.depth_polls.clone(),
        );
        metrics
    }

    /// Drops the series of an nsqd that is gone.
    pub(super) fn forget(&self, nsqd: &str) {
        let label = NsqdLabel {
            nsqd: nsqd.to_owned(),
        };
        self.connections.remove(&label);
        self.unanswered_bytes.remove(&label);
    }

    /// Counts one question to an nsqlookupd.
    pub(super) fn polled(&self, result: PollResult) {
        self.polls.get_or_create(&PollLabel { result }).inc();
    }

    /// Counts one question to an nsqd.
    pub(super) fn depth_polled(&self, result: PollResult) {
        self.depth_polls.get_or_create(&PollLabel { result }).inc();
    }

    /// Counts the facts of one call, one bump for each outcome that occurs.
    pub(super) fn count(&self, facts: &[Result<(), Error>]) {
        let (mut accepted, mut not_sent, mut unknown, mut refused) = (0, 0, 0, 0);
        for fact in facts {
            match fact {
                Ok(()) => accepted += 1,
                Err(Error::NotSent) => not_sent += 1,
                Err(Error::Unknown) => unknown += 1,
                Err(Error::Refused(_)) => refused += 1,
            }
        }
        for (outcome, number) in [
            (Outcome::Accepted, accepted),
            (Outcome::NotSent, not_sent),
            (Outcome::Unknown, unknown),
            (Outcome::Refused, refused),
        ] {
            if number > 0 {
                self.forwarded
                    .get_or_create(&OutcomeLabel { outcome })
                    .inc_by(number);
            }
        }
    }
}
