//! Random runs of a shard and its owner: inserts, cancels, a clock that jumps, narrow reads, crashes.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// How long a released shard sleeps at most.
const SWEEP_MS: u64 = 1_000;

/// One thing that happens to a shard or its owner.
#[derive(Debug, Clone)]
enum Step {
    /// Redis's clock goes on.
    Wait(u64),
    /// Redis's clock jumps back.
    Back(u64),
    /// A pack appears so long after what it may not be under, with records after its first.
    Insert(u64, u64, Vec<u64>),
    /// One of the messages is cancelled, if it still can be.
    Cancel(prop::sample::Index),
    /// A turn, with so much room; nsqd takes messages or not.
    Turn(usize, bool),
    /// nsqd answers for one of those that are on their way.
    Deliver(prop::sample::Index),
    /// The owner forgets everything.
    Crash,
    /// The owner releases the claim, if it has nothing left.
    Idle,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        3 => (0..60_u64).prop_map(Step::Wait),
        1 => (0..30_u64).prop_map(Step::Back),
        4 => (1..80_u64, 0..4_u64, prop::collection::vec(0..40_u64, 0..3))
            .prop_map(|(due, k, more)| Step::Insert(due, k, more)),
        2 => index().prop_map(Step::Cancel),
        6 => (prop_oneof![Just(0), Just(1), Just(200), Just(ROOM)], prop::bool::weighted(0.9))
            .prop_map(|(room, hands_out)| Step::Turn(room, hands_out)),
        5 => index().prop_map(Step::Deliver),
        1 => Just(Step::Crash),
        1 => Just(Step::Idle),
    ]
}

/// A shard, its owner, and what an observer of both has seen.
#[derive(Debug)]
struct World {
    shard: Shard,
    /// `None`: asleep until `head`.
    memory: Option<Memory>,
    head: UnixMs,
    stored: Vec<Key>,
    cancelled: HashSet<Key>,
    delivered: BTreeMap<Key, usize>,
    on_their_way: Vec<Key>,
    /// The owner has been woken since it last read.
    hint: bool,
    /// Those sent in this session.
    sent: HashSet<Key>,
    crashes: usize,
}

impl World {
    fn new() -> Self {
        Self {
            shard: Shard::at(10_000),
            memory: None,
            head: UnixMs(10_000),
            stored: Vec::new(),
            cancelled: HashSet::new(),
            delivered: BTreeMap::new(),
            on_their_way: Vec::new(),
            hint: false,
            sent: HashSet::new(),
            crashes: 0,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Wait(ms) => self.shard.now += ms,
            Step::Back(ms) => self.shard.now -= ms,
            Step::Insert(after, k, more) => self.insert(*after, *k, more),
            Step::Cancel(index) if !self.stored.is_empty() => {
                let key = *index.get(&self.stored);
                if self.shard.cancel(key) {
                    self.cancelled.insert(key);
                }
            }
            Step::Turn(room, hands_out) => self.turn(*room, *hands_out),
            Step::Deliver(index) if !self.on_their_way.is_empty() => {
                let at = index.index(self.on_their_way.len());
                self.deliver(at);
            }
            Step::Cancel(_) | Step::Deliver(_) => {}
            Step::Crash => {
                self.crashes += 1;
                self.memory = None;
                self.on_their_way.clear();
                self.shard.claimed = false;
                self.release(memory(0));
            }
            Step::Idle => {
                if self.memory.as_ref().is_some_and(Memory::is_done)
                    && self.on_their_way.is_empty()
                    && let Some(done) = self.memory.take()
                {
                    self.release(done);
                }
            }
        }
        self.check();
    }

    fn insert(&mut self, after: u64, k: u64, more: &[u64]) {
        let first = self.shard.now.max(self.shard.handed.0) + after;
        let score = Score::new(UnixMs(first), k);
        if self.shard.packs.contains_key(&score) {
            return;
        }
        let mut dues = vec![first];
        dues.extend(more.iter().map(|offset| first + offset));
        let wakes = UnixMs(first) <= self.shard.opened || UnixMs(first) < self.shard.watch;
        self.shard.watch = self.shard.watch.min(UnixMs(first));
        self.stored.extend(self.shard.insert(k, &dues));
        if wakes {
            self.head = self.head.min(UnixMs(first));
            self.hint = true;
        }
    }

    fn turn(&mut self, room: usize, hands_out: bool) {
        if self.memory.is_none() && self.head.0 <= self.shard.now {
            self.memory = Some(memory(self.head.0));
            self.sent.clear();
            self.hint = false;
        }
        let Some(memory) = &mut self.memory else {
            return;
        };
        // An instance's estimate is an upper bound.
        let now = UnixMs(self.shard.now + 2);
        let turn = memory.plan(now, AHEAD_MS, hands_out, room, self.hint);
        self.hint &= turn.read.is_none();
        let Reply::Send(to_send) = memory.reply(self.shard.turn(&turn)) else {
            panic!("stale without a reason");
        };
        for message in to_send {
            let key = message.key;
            assert!(
                key.due <= self.shard.handed && key.due.0 <= self.shard.now,
                "early"
            );
            assert!(
                !self.cancelled.contains(&key),
                "cancelled, and sent: {key:?}"
            );
            assert!(self.sent.insert(key), "sent twice: {key:?}");
            self.on_their_way.push(key);
        }
    }

    fn deliver(&mut self, at: usize) {
        let key = self.on_their_way.swap_remove(at);
        *self.delivered.entry(key).or_default() += 1;
        if let Some(memory) = &mut self.memory {
            memory.delivered(key);
        }
    }

    /// The last turn of a session; the shard sleeps until its head.
    fn release(&mut self, mut memory: Memory) {
        let until = UnixMs(self.shard.now + SWEEP_MS);
        let held = self.shard.turn(&memory.plan_idle(until));
        self.head = held.head.map_or(until, |head| head.min(until));
    }

    fn check(&self) {
        assert!(self.shard.settled <= self.shard.handed);
        for key in self
            .stored
            .iter()
            .filter(|key| key.due <= self.shard.settled)
        {
            let done = self.delivered.contains_key(key) || self.cancelled.contains(key);
            assert!(done, "S passed {key:?}");
        }
    }

    /// Until nothing is left. Every round something must happen, or time goes on.
    fn drain(&mut self) {
        for _ in 0..2_000 {
            if self.shard.packs.is_empty() {
                return;
            }
            self.take(&Step::Turn(ROOM, true));
            while !self.on_their_way.is_empty() {
                self.deliver(0);
            }
            self.take(&Step::Wait(5));
            self.take(&Step::Idle);
        }
        panic!("never drained: {self:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1_000,
        // A seed that fails becomes a test with a name.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_message_is_delivered_once_and_none_is_passed_over(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.drain();
        for key in &world.stored {
            let times = world.delivered.get(key).copied().unwrap_or(0);
            if world.cancelled.contains(key) {
                prop_assert_eq!(times, 0);
            } else {
                prop_assert!(times >= 1, "lost: {:?}", key);
                prop_assert!(times == 1 || world.crashes > 0, "twice: {:?}", key);
            }
        }
        prop_assert_eq!(world.shard.pending, 0);
    }
}
