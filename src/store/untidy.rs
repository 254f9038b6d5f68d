//! Packs of which something was cancelled and not counted off yet. Memory only: what is forgotten is counted when its
//! pack is removed. Pure.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::id::{Place, Score};
use crate::shard::ShardId;
use crate::store::core::Core;
use crate::store::script::UntidyPack;

/// Small packs of one script: each may be read and rewritten, the bytes pass through Lua, and no call may take 5 ms.
const PACKS_MAX: usize = 16;
/// One that may be large counts as so many.
const BIG_WEIGHT: usize = 4;

/// What is marked and not tidied.
#[derive(Debug, Default)]
pub(super) struct Untidy {
    /// Positions by shard, score and nonce.
    shards: BTreeMap<ShardId, BTreeMap<(Score, u32), Vec<u16>>>,
    marks: usize,
    /// The shard that was served last.
    last: Option<ShardId>,
}

impl Untidy {
    pub(super) fn add(&mut self, shard: ShardId, place: Place) {
        let packs = self.shards.entry(shard).or_default();
        let positions = packs.entry((place.score, place.nonce)).or_default();
        // Cancelled twice, it is counted once.
        if !positions.contains(&place.position) {
            positions.push(place.position);
            self.marks += 1;
        }
    }

    /// How many marks.
    pub(super) fn len(&self) -> usize {
        self.marks
    }

    /// The packs for one script. Shards take turns.
    pub(super) fn take(&mut self) -> Option<(ShardId, Vec<UntidyPack>)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.shards.range((behind, Bound::Unbounded)).next();
        let shard = *next.or_else(|| self.shards.first_key_value())?.0;
        self.last = Some(shard);
        let packs = self.shards.get_mut(&shard)?;
        let (mut taken, mut weight) = (Vec::new(), 0);
        while weight < PACKS_MAX
            && let Some(((score, nonce), positions)) = packs.pop_first()
        {
            weight += if Core::is_big(score) { BIG_WEIGHT } else { 1 };
            self.marks -= positions.len();
            taken.push(UntidyPack {
                score,
                nonce,
                positions,
            });
        }
        if packs.is_empty() {
            self.shards.remove(&shard);
        }
        Some((shard, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::UnixMs;
    use crate::shard::Generation;

    const LATER: UnixMs = UnixMs(1_800_000_000_000);

    fn place(k: u64, position: u16) -> Place {
        Place {
            score: Score::new(LATER, k),
            nonce: 7,
            position,
        }
    }

    fn shard(index: u16) -> ShardId {
        ShardId {
            generation: Generation(1),
            index,
        }
    }

    #[test]
    fn shards_take_turns_and_packs_come_whole() {
        let mut untidy = Untidy::default();
        for k in 0..20 {
            for position in [3, 1, 3] {
                untidy.add(shard(5), place(k, position));
            }
        }
        untidy.add(shard(2), place(0, 0));
        assert_eq!(untidy.len(), 41);
        let mut seen = Vec::new();
        while let Some((of, packs)) = untidy.take() {
            assert!(packs.iter().all(|p| of.index == 2 || p.positions == [3, 1]));
            seen.push((of.index, packs.len()));
        }
        assert_eq!(seen, [(2, 1), (5, 16), (5, 4)]);
        assert_eq!(untidy.len(), 0);
    }

    #[test]
    fn few_packs_that_may_be_large_go_together() {
        let mut untidy = Untidy::default();
        for k in 0..6 {
            untidy.add(shard(0), place(Score::PER_MS / 2 + k, 0));
        }
        let taken = untidy.take().map(|(_, packs)| packs.len());
        assert_eq!(taken, Some(4));
    }
}
