//! PURE. How long a shard's turns keep apart. A turn costs some hundred µs of Redis and of us, however many messages it
//! hands out: where thousands a second would be handed out one by one, messages wait some ms for each other instead
//! and share a turn. Where few are due nobody waits.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::shard::ShardId;

/// Turns a second, of all shards together, that there are about when messages are many.
const TURNS: u32 = 1_000;
/// So many messages a second are many.
const MANY: u32 = 2_000;
/// Over which time turns and messages are counted, at least.
const WINDOW: Duration = Duration::from_millis(100);
/// Longest time between two turns of a shard.
const GAP_MAX: Duration = Duration::from_millis(20);

/// What the shards of an instance did lately.
#[derive(Debug)]
pub(super) struct Pace(Mutex<Counted>);

#[derive(Debug)]
struct Counted {
    since: Instant,
    messages: usize,
    shards: HashSet<ShardId>,
    gap: Duration,
}

impl Pace {
    /// Nothing was done yet.
    pub(super) fn new(now: Instant) -> Self {
        Self(Mutex::new(Counted {
            since: now,
            messages: 0,
            shards: HashSet::new(),
            gap: Duration::ZERO,
        }))
    }

    /// A turn of `shard` has handed out so many messages: how long the next one waits, if it is only for what is due.
    pub(super) fn turned(&self, shard: ShardId, messages: usize, now: Instant) -> Duration {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(counted.since);
        if passed >= WINDOW {
            counted.gap = gap(counted.messages, counted.shards.len(), passed);
            counted.since = now;
            counted.messages = 0;
            counted.shards.clear();
        }
        counted.messages += messages;
        counted.shards.insert(shard);
        counted.gap
    }
}

fn gap(messages: usize, shards: usize, passed: Duration) -> Duration {
    let many = u128::from(MANY) * passed.as_micros() / 1_000_000;
    if (messages as u128) < many {
        return Duration::ZERO;
    }
    let shards = u32::try_from(shards).unwrap_or(u32::MAX);
    let gap = (Duration::from_secs(1) / TURNS).saturating_mul(shards);
    gap.min(GAP_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Generation;

    /// Turns of so many shards, each as soon as it may and something is due: how many there are in a second, when what
    /// comes has been seen for a while.
    fn turns(shards: u16, per_ms: usize) -> usize {
        let start = Instant::now();
        let pace = Pace::new(start);
        let mut may_turn = vec![start; usize::from(shards)];
        let mut due = vec![0; usize::from(shards)];
        let (mut next, mut turns) = (0, 0);
        for ms in 0..1_200 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..per_ms {
                due[next] += 1;
                next = (next + 1) % due.len();
            }
            for index in 0..shards {
                let at = usize::from(index);
                if due[at] > 0 && now >= may_turn[at] {
                    let generation = Generation(1);
                    let shard = ShardId { generation, index };
                    may_turn[at] = now + pace.turned(shard, due[at], now);
                    due[at] = 0;
                    turns += usize::from(ms >= 200);
                }
            }
        }
        turns
    }

    #[test]
    fn few_messages_have_turns_of_their_own() {
        assert_eq!(turns(64, 1), 1_000);
    }

    #[test]
    fn many_messages_share_turns() {
        for (shards, per_ms) in [(1, 4), (4, 4), (8, 10), (16, 40)] {
            let turns = turns(shards, per_ms);
            assert!((900..1_100).contains(&turns), "{shards}, {per_ms}: {turns}");
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_longest_gap() {
        let gap_of = |shards| gap(10_000, shards, Duration::from_secs(1));
        assert_eq!(gap_of(3), Duration::from_millis(3));
        assert_eq!(gap_of(1_000), GAP_MAX);
        assert_eq!(gap_of(usize::MAX), GAP_MAX);
    }
}
