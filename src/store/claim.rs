//! What dispatch asks of the store: turns under a claim. See `lua/turn.lua` for the effect of each.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::id::{Place, Score};
use crate::message::{TopicName, UnixMs};
use crate::shard::{InstanceId, ShardId, Topology};
use crate::store::Error;
use crate::store::pack::{BadPack, Pack, Record};

/// One connection to one server. What an owner remembers of a shard is true only within it (R5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// Names one owner's claim: a settle under another token changes nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClaimToken(pub String);

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimToken({})", self.0)
    }
}

/// A pack whose records are all delivered, cancelled, parked or dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its address.
    pub score: Score,
    /// What it held, each topic once.
    pub topics: Vec<TopicShare>,
    /// Records that were cancelled and, when their marks were read, not counted off yet.
    pub uncounted: Vec<(Place, TopicName)>,
}

/// What of one topic a pack has, had, or has less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicShare {
    /// The topic.
    pub topic: TopicName,
    /// How many records: in a finished pack, those that nsqd has taken.
    pub messages: u64,
    /// The bytes of all bodies.
    pub bytes: u64,
}

impl TopicShare {
    /// Adds to the share of a topic.
    pub fn add(shares: &mut Vec<Self>, topic: &TopicName, messages: u64, bytes: u64) {
        if let Some(share) = shares.iter_mut().find(|share| share.topic == *topic) {
            share.messages += messages;
            share.bytes += bytes;
        } else {
            shares.push(Self {
                topic: topic.clone(),
                messages,
                bytes,
            });
        }
    }
}

/// Which packs to read: in order of score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// From the one after this score.
    pub after: Score,
    /// To those that begin at this moment.
    pub to: UnixMs,
    /// At most so many.
    pub limit: usize,
}

/// Which marks to read: of records due in `(after, to]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadMarks {
    /// Exclusive.
    pub after: UnixMs,
    /// Inclusive.
    pub to: UnixMs,
}

/// One round trip of a shard's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Whose claim.
    pub token: ClaimToken,
    /// The claim lives for `claim_ttl` from now on. Otherwise it is only taken if it is free.
    pub extend: bool,
    /// S: all that is due at or before is done. 0: as it is.
    pub settle_to: UnixMs,
    /// Packs to remove.
    pub finished: Vec<Finished>,
    /// H: hand out what is due up to here, and up to Redis's now. 0: as it is.
    pub hand_out_to: UnixMs,
    /// An insert due at or before this moment must wake the owner.
    pub open_to: UnixMs,
    /// Release the claim, and be woken by any insert due before this moment or the head's.
    pub idle_until: Option<UnixMs>,
    /// Packs to read after the effect of the above.
    pub read: Option<Read>,
    /// Marks to read after that.
    pub marks: Option<ReadMarks>,
}

/// A record that is not to be delivered from its place: cancelled, moved or parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Where it lies.
    pub place: Place,
    /// Whether what is pending has been counted without it.
    pub counted: bool,
}

/// A pack as a turn found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadPack {
    /// One that we read.
    Pack(Pack),
    /// One that we do not: it stays untouched.
    Unreadable(Score, BadPack),
}

impl ReadPack {
    /// Its address.
    pub fn score(&self) -> Score {
        match self {
            Self::Pack(pack) => pack.score,
            Self::Unreadable(score, _) => *score,
        }
    }
}

/// What a turn under our claim found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Redis's clock.
    pub now: UnixMs,
    /// H before the turn.
    pub handed_before: UnixMs,
    /// H after the turn.
    pub handed: UnixMs,
    /// S after the turn.
    pub settled: UnixMs,
    /// How many inserts have come at or below `opened`, ever.
    pub below: u64,
    /// The claim was free: whatever was remembered may be stale.
    pub fresh: bool,
    /// When the first pack begins that the owner has to come back for: of a shard gone idle, its first
    /// pack; otherwise the first beyond `open_to`.
    pub head: Option<UnixMs>,
    /// The packs that were read, by score.
    pub packs: Vec<ReadPack>,
    /// The marks that were read.
    pub marks: Vec<Mark>,
}

/// The answer to a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnReply {
    /// Done.
    Held(Held),
    /// Another owner has the claim for so long; nothing was written.
    Busy(Duration),
}

/// A message to take out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Where it lies.
    pub from: Place,
    /// Records in its pack when that was made: its id says it.
    pub stored: u16,
    /// The message; `maybe` says whether an earlier send may have arrived.
    pub record: Record,
}

/// Where parked messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParkTo {
    /// To a later time.
    Later(UnixMs),
    /// To the dead letters; why, in nsqd's words.
    DeadLetters(String),
    /// To what is held of this topic, of which all are, until it is resumed. They must be due within a
    /// pack's window.
    Held(TopicName),
}

/// The answer to a park.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParkReply {
    /// All of them lie elsewhere now.
    Parked,
    /// These had been cancelled or moved: drop them and ask again for the others.
    Marked(Vec<Place>),
    /// The dead letters are full; nothing was written.
    Full,
    /// The claim is not ours any more.
    Fenced,
}

/// News from the store that a sleeping owner must hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Something due at this moment was inserted below what the owner had opened.
    Earlier(ShardId, UnixMs),
    /// Wakes may have been lost: look at every shard.
    Lost,
    /// A topic was paused or resumed.
    Pauses,
}

/// What a sweep finds of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Which.
    pub shard: ShardId,
    /// When its owner must come: each wake that was published has set it, heard or not. 0: nobody has looked at
    /// the shard yet.
    pub watch: UnixMs,
    /// Packs of paused topics that are held there.
    pub held: u64,
}

/// Redis's clock, from both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NowBounds {
    /// It is at least this, in microseconds.
    pub at_least_us: u64,
    /// It is at most this.
    pub at_most: UnixMs,
    /// Reading of the monotonic clock at which both hold.
    pub at: Duration,
}

/// Who is live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// All of them, the asker included unless it leaves.
    pub live: Vec<InstanceId>,
    /// When the first of the others expires if it stays silent.
    pub next_expiry: Option<Duration>,
}

/// What dispatch asks of the store.
pub trait ClaimStore: Send + Sync + fmt::Debug + 'static {
    /// The current connection; `None` while there is none.
    fn session(&self) -> Option<Session>;

    /// Completes when there is a session other than `known`.
    fn new_session(&self, known: Option<Session>) -> BoxFuture<'_, Session>;

    /// The shards that there are.
    fn topology(&self) -> Topology;

    /// One turn. `SessionLost`: it may or may not have taken effect; forget everything.
    fn turn(
        &self,
        session: Session,
        shard: ShardId,
        turn: Turn,
    ) -> BoxFuture<'_, Result<TurnReply, Error>>;

    /// Takes messages out of the way. All go to one place, at most [`PARK_MAX`] of them.
    fn park(
        &self,
        session: Session,
        shard: ShardId,
        token: ClaimToken,
        messages: Vec<Parked>,
        to: ParkTo,
    ) -> BoxFuture<'_, Result<ParkReply, Error>>;

    /// What owners of these shards may have missed.
    fn sweep(&self, shards: Vec<ShardId>) -> BoxFuture<'_, Result<Vec<Swept>, Error>>;

    /// Lets the entries of messages that are gone age. `true`: there are more.
    fn trim(&self, shard: ShardId) -> BoxFuture<'_, Result<bool, Error>>;

    /// The topics that are paused.
    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>>;

    /// Gives some of what is held of topics that are not in `paused` back to the queue, due now.
    /// `true`: there is more.
    fn resume_held(
        &self,
        shard: ShardId,
        paused: BTreeSet<TopicName>,
    ) -> BoxFuture<'_, Result<bool, Error>>;

    /// One heartbeat, or a farewell; answers who is live.
    fn beat(&self, me: InstanceId, leave: bool) -> BoxFuture<'_, Result<Members, Error>>;

    /// Listens for wakes of these shards instead of those before. Dropping the stream ends it.
    fn wakes(&self) -> BoxStream<'static, Wake>;

    /// Sets the shards whose wakes are listened for.
    fn listen(&self, shards: Vec<ShardId>);

    /// Redis's clock.
    fn now_bounds(&self) -> NowBounds;
}

/// Most messages of one park.
pub const PARK_MAX: usize = 256;
