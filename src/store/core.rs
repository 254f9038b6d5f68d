//! What every part of the Redis store shares: connections, names, the clock, the next free scores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use deadpool_redis::Pool;
use tokio_util::task::TaskTracker;

use crate::id::{IdKey, Score};
use crate::message::UnixMs;
use crate::shard::{ShardId, Topology};
use crate::store::clock::Clock;
use crate::store::connect::Link;
use crate::store::keys::Namespace;
use crate::store::metrics::Metrics;
use crate::store::packing::{PackLimits, Scores};
use crate::store::settings::Config;

/// Half of the 2048 scores of a ms are for packs whose one body is over the pack size, so that a
/// score tells whether reading its pack may be dear.
const BIG: u64 = Score::PER_MS / 2;

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
