//! PURE. Which shard the next write of messages with minted ids goes to. A turn costs what it costs, however many
//! messages it hands out: what comes in small writes goes to a few shards, others with each second, so that what is
//! due at about the same time shares turns. Where writes fill several packs, or so much is due at one ms that there
//! is hardly a place for it in a few shards, all take turns.

use std::time::Duration;

use tokio::time::Instant;

/// Shards that the small writes of one second go to.
const FEW: u64 = 4;
/// A write of so many full packs is no small one.
const PACKS: usize = 4;
/// How long all shards are used after there was hardly a place in a few.
const SPREAD: Duration = Duration::from_secs(1);

/// Where writes go.
#[derive(Debug)]
pub(super) struct Rotation {
    /// Instances begin at shards of their own.
    first: u64,
    began: Instant,
    writes: u64,
    /// The last write was no small one.
    was_large: bool,
    spread_until: Option<Instant>,
}

impl Rotation {
    /// Begins at shard `first`.
    pub(super) fn new(first: u16, now: Instant) -> Self {
        Self {
            first: u64::from(first),
            began: now,
            writes: 0,
            was_large: false,
            spread_until: None,
        }
    }

    /// The shard of the next write, of so many.
    pub(super) fn next(&mut self, shards: u16, now: Instant) -> u16 {
        self.writes = self.writes.wrapping_add(1);
        let spreads = self.was_large || self.spread_until.is_some_and(|until| now < until);
        let at = if spreads {
            self.writes
        } else {
            let second = now.saturating_duration_since(self.began).as_secs();
            second + self.writes % FEW
        };
        let at = self.first.wrapping_add(at) % u64::from(shards.max(1));
        u16::try_from(at).unwrap_or(0)
    }

    /// So many messages were written, of which `fill_pack` fill a pack.
    pub(super) fn wrote(&mut self, messages: usize, fill_pack: usize) {
        self.was_large = messages >= fill_pack.saturating_mul(PACKS);
    }

    /// There was hardly a place for what was written.
    pub(super) fn crowded(&mut self, now: Instant) {
        self.spread_until = Some(now + SPREAD);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const SHARDS: u16 = 64;

    fn of_writes(rotation: &mut Rotation, messages: usize, now: Instant) -> HashSet<u16> {
        let next = |_| {
            let shard = rotation.next(SHARDS, now);
            rotation.wrote(messages, 26);
            shard
        };
        (0..1_000).map(next).collect()
    }

    #[test]
    fn small_writes_go_to_a_few_shards_and_in_time_to_all() {
        let start = Instant::now();
        let mut rotation = Rotation::new(u16::MAX, start);
        let mut all = HashSet::new();
        for second in 0..64 {
            let now = start + Duration::from_secs(second);
            let few = of_writes(&mut rotation, 20, now);
            assert_eq!(few.len(), 4);
            all.extend(few);
        }
        assert_eq!(all.len(), usize::from(SHARDS));
    }

    #[test]
    fn large_writes_and_those_that_find_hardly_a_place_go_to_all() {
        let start = Instant::now();
        let mut rotation = Rotation::new(7, start);
        assert_eq!(of_writes(&mut rotation, 200, start).len(), 64);
        rotation.wrote(1, 26);
        assert_eq!(of_writes(&mut rotation, 1, start).len(), 4);
        rotation.crowded(start);
        assert_eq!(of_writes(&mut rotation, 1, start).len(), 64);
        let later = start + SPREAD;
        assert_eq!(of_writes(&mut rotation, 1, later).len(), 4);
    }

    #[test]
    fn fewer_shards_are_all_used() {
        let now = Instant::now();
        let mut rotation = Rotation::new(5, now);
        for shards in 1..4 {
            let used: HashSet<u16> = (0..100).map(|_| rotation.next(shards, now)).collect();
            assert_eq!(used, (0..shards).collect());
        }
    }
}
