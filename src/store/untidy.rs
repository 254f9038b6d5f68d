//! Packs of which something was cancelled and not counted off yet. Memory only: what is forgotten is found by a sweep, or
//! counted when its pack is removed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::id::PackName;
use crate::shard::ShardId;
use crate::store::core::Core;

/// Small packs of one script: each may be replaced, and no call may take 5 ms.
const PACKS_MAX: usize = 16;
/// One that may be large counts as so many.
const BIG_WEIGHT: usize = 4;

/// What is marked and not tidied.
#[derive(Debug, Default)]
pub(super) struct Untidy {
    shards: BTreeMap<ShardId, BTreeSet<PackName>>,
    packs: usize,
    /// The shard that was served last.
    last: Option<ShardId>,
}

impl Untidy {
    pub(super) fn add(&mut self, shard: ShardId, pack: PackName) {
        let is_new = self.shards.entry(shard).or_default().insert(pack);
        self.packs += usize::from(is_new);
    }

    /// How many packs.
    pub(super) fn len(&self) -> usize {
        self.packs
    }

    /// The packs for one script. Shards take turns.
    pub(super) fn take(&mut self) -> Option<(ShardId, Vec<PackName>)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.shards.range((behind, Bound::Unbounded)).next();
        let shard = *next.or_else(|| self.shards.first_key_value())?.0;
        self.last = Some(shard);
        let packs = self.shards.get_mut(&shard)?;
        let (mut taken, mut weight) = (Vec::new(), 0);
        while weight < PACKS_MAX
            && let Some(pack) = packs.pop_first()
        {
            weight += if Core::is_big(pack.score) {
                BIG_WEIGHT
            } else {
                1
            };
            taken.push(pack);
        }
        if packs.is_empty() {
            self.shards.remove(&shard);
        }
        self.packs -= taken.len();
        Some((shard, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Score;
    use crate::message::UnixMs;
    use crate::shard::Generation;

    const LATER: UnixMs = UnixMs(1_800_000_000_000);

    fn pack(k: u64) -> PackName {
        PackName {
            score: Score::new(LATER, k),
            nonce: 7,
        }
    }

    fn shard(index: u16) -> ShardId {
        ShardId {
            generation: Generation(1),
            index,
        }
    }

    #[test]
    fn shards_take_turns_and_packs_come_once() {
        let mut untidy = Untidy::default();
        for k in (0..20).chain(0..20) {
            untidy.add(shard(5), pack(k));
        }
        untidy.add(shard(2), pack(0));
        assert_eq!(untidy.len(), 21);
        let mut seen = Vec::new();
        while let Some((of, packs)) = untidy.take() {
            seen.push((of.index, packs.len()));
        }
        assert_eq!(seen, [(2, 1), (5, 16), (5, 4)]);
        assert_eq!(untidy.len(), 0);
    }

    #[test]
    fn few_packs_that_may_be_large_go_together() {
        let mut untidy = Untidy::default();
        for k in 0..6 {
            untidy.add(shard(0), pack(Score::PER_MS / 2 + k));
        }
        let taken = untidy.take().map(|(_, packs)| packs.len());
        assert_eq!(taken, Some(4));
    }
}
