//! What every part of the Redis store shares: connections, names, the clock, the next free scores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use deadpool_redis::Pool;
use redis::RedisError;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::id::{IdKey, MessageId, Score};
use crate::message::UnixMs;
use crate::shard::{ShardId, Topology};
use crate::store::claim::Session;
use crate::store::clock::Clock;
use crate::store::connect::{Connected, Link, is_broken, was_refused};
use crate::store::keys::Namespace;
use crate::store::metrics::Metrics;
use crate::store::packing::{PackLimits, Scores};
use crate::store::settings::Config;
use crate::store::{Error, ErrorKind};

/// Half of the 2048 scores of a ms are for packs whose one body is over the pack size, so that a
/// score tells whether reading its pack may be dear.
const BIG: u64 = Score::PER_MS / 2;

/// A message that is due at once is stamped so far ahead of the estimate, in ms: its insert takes a
/// moment to arrive, and nothing may appear at or under H.
pub(super) const AHEAD_MS: u64 = 2;

/// What the parts of the store share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) keys: Namespace,
    pub(super) topology: Topology,
    pub(super) id_key: IdKey,
    pub(super) clock: Clock,
    /// Inserts.
    pub(super) hot: Arc<Link>,
    /// Turns, parks and heartbeats: its connection is the session.
    pub(super) turns: Arc<Link>,
    /// Short questions: get, cancel, move.
    pub(super) ask: Arc<Link>,
    /// Large answers: listings and counts.
    pub(super) pool: Pool,
    pub(super) pack_limits: PackLimits,
    pub(super) metrics: Metrics,
    pub(super) tracker: TaskTracker,
    pub(super) next_k: Vec<AtomicU32>,
    /// Held by the one that tidies what others have left.
    pub(super) catching_up: Mutex<()>,
}

impl Core {
    /// Whether the pack at this score may be larger than the pack size.
    pub(super) fn is_big(score: Score) -> bool {
        score.0 % Score::PER_MS >= BIG
    }

    /// The next scores of a shard.
    pub(super) fn scores(&self, shard: ShardId) -> ShardScores<'_> {
        ShardScores {
            next_k: self.next_k.get(usize::from(shard.index)),
        }
    }

    /// The turn's failure, as the owner must take it: the session ends unless Redis refused.
    pub(super) fn turn_failed(&self, link: &Connected, error: RedisError) -> Error {
        if was_refused(&error) && !is_broken(&error) {
            return Error::caused(ErrorKind::Refused, error);
        }
        self.turns.give_up(link.number);
        Error::caused(ErrorKind::SessionLost, error)
    }

    /// The connection of `session`, if that has not ended.
    pub(super) fn session_link(&self, session: Session) -> Result<Connected, Error> {
        let current = self.turns.current();
        let of_session = current.filter(|link| link.number == session.0);
        of_session.ok_or_else(|| Error::new(ErrorKind::SessionLost))
    }

    /// Where a message with this id is, or would be.
    pub(super) fn shard_of(&self, id: &MessageId) -> ShardId {
        match id {
            MessageId::Minted(minted) => minted.shard,
            MessageId::Client(client) => self.topology.shard_of(client),
        }
    }
}

/// Hands out scores: k counts up per shard, so that one instance meets itself only after 1024 packs
/// of one ms; other instances start elsewhere.
#[derive(Debug)]
pub(super) struct ShardScores<'a> {
    next_k: Option<&'a AtomicU32>,
}

impl Scores for ShardScores<'_> {
    fn next(&mut self, due: UnixMs, big: bool) -> Score {
        let k = self.next_k.map_or_else(
            || fastrand::u32(..),
            |next_k| next_k.fetch_add(1, Ordering::Relaxed),
        );
        Score::new(due, u64::from(k) % BIG + if big { BIG } else { 0 })
    }

    fn nonce(&mut self) -> u32 {
        fastrand::u32(..)
    }
}
