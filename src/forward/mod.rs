//! Hands due messages to nsqd and reports facts: accepted, refused, not sent, unknown. The only home
//! of sockets to nsqd. Decides nothing about a message's fate: that is `dispatch`.

mod batch;
mod bisect;
mod connection;
mod credit;
mod depth;
mod discovery;
mod link;
pub mod metrics;
mod nodes;
mod pace;
mod pool;
mod room;
mod roster;
mod settings;
mod verdict;

pub use pool::NsqdPool;
pub use settings::Config;

pub use crate::nsqd::{Carriage, Secret};

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::message::TopicName;

/// A message to publish now.
#[derive(Debug, Clone)]
pub struct DueMessage {
    /// Its topic.
    pub topic: TopicName,
    /// Its body.
    pub body: Bytes,
}

/// Until when a claim certainly holds. Asked right before each write to nsqd: past it the messages
/// are another instance's.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// Reading of `clock` at which the claim may have ended.
    pub at: Duration,
    /// A clock that also runs while the machine sleeps. A function pointer, so that the simulation
    /// owns this clock too.
    pub clock: fn() -> Duration,
}

impl Deadline {
    /// Whether the claim may have ended.
    pub fn passed(&self) -> bool {
        (self.clock)() >= self.at
    }

    /// How long the claim certainly still holds.
    pub fn left(&self) -> Duration {
        self.at.saturating_sub((self.clock)())
    }
}

/// What became of a message that nsqd did not acknowledge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It certainly did not reach any nsqd: none reachable, the deadline passed before the write, or
    /// an earlier command on the connection ended it.
    NotSent,
    /// It was sent and no answer came: nsqd may or may not have it.
    Unknown,
    /// nsqd refused this very message, with its code and text (`E_BAD_TOPIC PUB topic name …`).
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent => f.write_str("not sent"),
            Self::Unknown => f.write_str("sent, no answer"),
            Self::Refused(text) => write!(f, "refused: {text}"),
        }
    }
}

impl std::error::Error for Error {}

/// Publishes to nsqd.
pub trait Forward: Send + Sync + fmt::Debug + 'static {
    /// Publishes each of `messages`, in MPUBs per topic, and reports one fact for each, in order.
    /// Dropping the future leaves what was sent on its way.
    fn publish(
        &self,
        messages: Vec<DueMessage>,
        deadline: Deadline,
    ) -> BoxFuture<'_, Vec<Result<(), Error>>>;

    /// Whether some nsqd can be expected to take a message now. While `false`, nothing is handed
    /// out, so that cancel keeps working through an outage.
    fn available(&self) -> bool;

    /// How many nsqds share what is published: each has room of its own.
    fn servers(&self) -> usize {
        1
    }

    /// Completes when [`Self::available`] is true.
    fn wait_available(&self) -> BoxFuture<'_, ()>;
}
