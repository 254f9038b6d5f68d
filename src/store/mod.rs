//! What Redis keeps for us, behind two traits: [`ScheduleStore`] for the doors, [`ClaimStore`] for
//! dispatch. The only home of the `redis` crate and of key names. Knows nothing of NSQ or HTTP.

mod canceller;
mod cancelling;
mod checks;
mod claim;
mod claims;
mod clock;
mod compression;
mod connect;
mod core;
mod dead;
mod entry;
mod examine;
mod holding;
mod keys;
mod linger;
mod listing;
mod lookup;
mod metrics;
mod names;
mod pack;
mod packing;
mod parking;
mod redis;
mod rotation;
mod script;
mod settings;
mod start;
mod tally;
mod tidying;
mod untidy;
mod wake;
mod writer;

pub use checks::StartError;
pub use claim::{
    ClaimStore, ClaimToken, Finished, Held, Mark, Members, NowBounds, PARK_MAX, ParkReply, ParkTo,
    Parked, Read, ReadMarks, ReadPack, Session, Swept, TopicShare, Turn, TurnReply, Wake,
};
pub use compression::Compression;
pub use examine::examine;
pub use pack::{BadPack, Pack, Record};
pub use redis::RedisStore;
pub use settings::Config;

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::id::{BadId, MessageId};
use crate::message::{Due, Message, TopicName, UnixMs};

/// Why a store did not do what it was asked.
#[derive(Debug)]
pub struct Error {
    /// What to do about it.
    pub kind: ErrorKind,
    /// For the log, never for a client.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a caller can do about a store's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Redis is away and nothing was sent: nothing happened.
    Unavailable,
    /// Redis did not answer; the write may or may not have happened.
    Unknown,
    /// Redis refused the write (no memory, read-only, disk full): nothing happened.
    Refused,
    /// Too much is under way to Redis: nothing happened.
    Overloaded,
    /// As much is pending as may be: nothing happened.
    Full,
    /// As much of this topic is pending as may be: nothing happened.
    TopicFull,
    /// The id is taken by a message with other content: nothing happened.
    Conflict,
    /// A message with this id was cancelled within `dedupe_window`: nothing happened.
    Cancelled,
    /// Who asks may not: nothing happened. The doors' own; Redis never says so.
    Forbidden,
    /// The page token is not one of ours, or belongs to another query.
    BadPageToken,
    /// The connection that the claim was taken on is gone: forget the session, claim anew.
    SessionLost,
    /// What Redis holds is not what we wrote (an unknown format, a wrong type).
    Corrupt,
}

impl Error {
    /// An error with nothing more to say.
    pub fn new(kind: ErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// An error with its cause.
    pub fn caused(
        kind: ErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::Unavailable => "redis is not reachable",
            ErrorKind::Unknown => "redis did not answer, the outcome is unknown",
            ErrorKind::Refused => "redis refused the write",
            ErrorKind::Overloaded => "too much is under way",
            ErrorKind::Full => "as much is pending as may be",
            ErrorKind::TopicFull => "as much of the topic is pending as may be",
            ErrorKind::Conflict => "the id is taken by another message",
            ErrorKind::Cancelled => "a message with this id was cancelled",
            ErrorKind::Forbidden => "who asks may not do this",
            ErrorKind::BadPageToken => "the page token is not valid",
            ErrorKind::SessionLost => "the connection of the claim is gone",
            ErrorKind::Corrupt => "redis holds something that nsqdelayd did not write",
        };
        f.write_str(what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// The store's answer to one accepted message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The id to cancel it by.
    pub id: MessageId,
    /// When it is due, on Redis's clock.
    pub due: UnixMs,
    /// `false`: the same message with the same client id had been accepted before.
    pub created: bool,
}

/// What is known of a message that has not been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Waiting; can be cancelled and moved.
    Scheduled,
    /// Handed, or being handed, to nsqd.
    InFlight,
    /// nsqd refused it; it waits among the dead letters.
    Dead,
}

/// A message as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: MessageId,
    /// Its topic.
    pub topic: TopicName,
    /// Its body.
    pub body: Bytes,
    /// When it is due; of a dead letter, when it was.
    pub due: UnixMs,
    /// Where it stands.
    pub state: State,
    /// Of a dead letter: why.
    pub reason: Option<String>,
}

/// The answer to a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// It will not be delivered. Also when it had been cancelled before.
    Cancelled,
    /// It is or may be on its way to nsqd: too late.
    InFlight,
    /// Delivered, or never there.
    NotFound,
    /// It is a dead letter: drop it there.
    Dead,
}

/// The answer to a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reschedule {
    /// It is now due at this moment, and not at the old one.
    Moved(UnixMs),
    /// It is or may be on its way to nsqd: too late.
    InFlight,
    /// Delivered, or never there.
    NotFound,
    /// It was cancelled.
    Cancelled,
    /// It is a dead letter: requeue it there.
    Dead,
}

/// Which messages a listing is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Only this topic.
    pub topic: Option<TopicName>,
    /// Due at or after.
    pub due_from: Option<UnixMs>,
    /// Due before.
    pub due_to: Option<UnixMs>,
}

/// A page of a listing, by due time. A page may be short, even empty, and still have a next one:
/// one request reads a bounded number of packs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// At most as many as were asked for.
    pub messages: Vec<Stored>,
    /// Ask with this for what follows.
    pub next_page_token: Option<String>,
}

/// What is pending, from the counters beside the packs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pending {
    /// Messages not yet delivered nor cancelled, by topic.
    pub by_topic: HashMap<TopicName, u64>,
    /// Bytes of their bodies, by topic. A message that is cancelled, moved or delivered counts until
    /// the pack that it lay in is gone.
    pub bytes_by_topic: HashMap<TopicName, u64>,
    /// Dead letters.
    pub dead: u64,
}

/// What the doors ask of the store. Every method may be dropped at any await: what was sent may
/// still take effect.
pub trait ScheduleStore: Send + Sync + fmt::Debug + 'static {
    /// Stores all of `messages` or none, and answers only when Redis has them. With client ids, give
    /// one message a call: messages with ids go to different shards and are not atomic together.
    fn schedule(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<Vec<Receipt>, Error>>;

    /// Finds one message. `None`: delivered, cancelled, or never there.
    fn get(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Stored>, Error>>;

    /// Cancels each of `ids`; answers in the same order.
    fn cancel(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Cancel>, Error>>;

    /// Moves a message to another time.
    fn reschedule(&self, id: MessageId, due: Due) -> BoxFuture<'_, Result<Reschedule, Error>>;

    /// Lists pending messages by due time. `page_size` is at least 1.
    fn list(
        &self,
        query: Query,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>>;

    /// Lists dead letters, in no order.
    fn dead_letters(
        &self,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>>;

    /// Gives a dead letter back to the queue, due now.
    fn requeue(&self, id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>>;

    /// Drops a dead letter for ever. `false`: there is none with this id.
    fn drop_dead(&self, id: MessageId) -> BoxFuture<'_, Result<bool, Error>>;

    /// What is pending now.
    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>>;

    /// Pauses a topic, or resumes it: while it is paused, what is due of it is held. `false`: it was so
    /// already.
    fn set_paused(&self, topic: TopicName, paused: bool) -> BoxFuture<'_, Result<bool, Error>>;

    /// The topics that are paused.
    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>>;

    /// Whether Redis answers.
    fn ping(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// An upper bound of Redis's clock, from its replies; the epoch before the first one.
    fn now(&self) -> UnixMs;

    /// Reads an id as a producer gave it.
    fn parse_id(&self, text: &[u8]) -> Result<MessageId, BadId>;

    /// Writes an id as a producer sees it.
    fn id_text(&self, id: &MessageId) -> String;
}
