//! What is seen of a message from outside, and what is done to all shards of both sides.

use std::collections::{BTreeMap, BTreeSet};

use nsqdelayd::id::{Place, Score};
use nsqdelayd::message::UnixMs;
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{Pack, Record, State, Stored};

use super::{HOUR_MS, Pair};
use crate::support::unix_ms;

/// An owner of all shards, as simple as can be.
#[derive(Debug, Default)]
pub(super) struct Owner {
    pub(super) packs: BTreeMap<(ShardId, Score), Pack>,
    /// Whether each had been counted off when it was read.
    pub(super) marks: BTreeMap<(ShardId, Place), bool>,
    pub(super) done: BTreeSet<(ShardId, Place)>,
    pub(super) handed: UnixMs,
    pub(super) settled: UnixMs,
}

impl Owner {
    /// What is handed out and neither settled nor marked: shard, place, records its pack began with, record.
    pub(super) fn open(&self) -> impl Iterator<Item = (ShardId, Place, u16, &Record)> {
        self.packs.iter().flat_map(move |((shard, _), pack)| {
            pack.records.iter().filter_map(move |record| {
                let place = Place {
                    score: pack.score,
                    nonce: pack.nonce,
                    position: record.position,
                };
                let open = record.due <= self.handed
                    && record.due > self.settled
                    && !self.marks.contains_key(&(*shard, place));
                open.then_some((*shard, place, pack.stored, record))
            })
        })
    }
}

pub(super) fn far(due: UnixMs) -> Option<UnixMs> {
    (due.0 > unix_ms() + HOUR_MS / 2).then_some(due)
}

pub(super) fn line(stored: &Stored) -> String {
    let due = if stored.state == State::Dead {
        None
    } else {
        far(stored.due)
    };
    let Stored {
        topic,
        body,
        state,
        reason,
        ..
    } = stored;
    format!("{body:?} {topic} {due:?} {state:?} {reason:?}")
}

impl Pair {
    /// What is held goes back.
    pub(super) async fn resume(&mut self) {
        for shard in self.real.store.topology().all() {
            for side in [&self.real, &self.model] {
                let nothing = BTreeSet::new;
                while side.store.resume_held(shard, nothing()).await.unwrap() {
                    self.given_back += 1;
                }
            }
        }
        self.trace.push("resume".to_owned());
    }
}
