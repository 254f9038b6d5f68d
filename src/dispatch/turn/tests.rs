//! The owner's memory against a small shard: the horizons, packs and marks that `turn.lua` keeps, in
//! maps. Times are small numbers of ms.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::store::{BadPack, Pack};

const AHEAD_MS: u64 = 50;
const ROOM: usize = 1 << 20;
const SWEEP_MS: u64 = 1_000;

/// What Redis keeps of the shard.
#[derive(Debug, Default)]
struct Shard {
    now: u64,
    handed: UnixMs,
    settled: UnixMs,
    opened: UnixMs,
    below: u64,
    claimed: bool,
    packs: BTreeMap<Score, ReadPack>,
    marks: BTreeMap<Place, UnixMs>,
    /// Messages that the counters beside the packs tell.
    pending: i64,
}

impl Shard {
    fn at(now: u64) -> Self {
        Self {
            now,
            ..Self::default()
        }
    }

    /// A pack that begins at the first of `dues`; nothing appears at or under H.
    fn insert(&mut self, k: u64, dues: &[u64]) -> Vec<Key> {
        self.insert_of(k, dues, "t")
    }

    fn insert_of(&mut self, k: u64, dues: &[u64], topic: &str) -> Vec<Key> {
        let score = Score::new(UnixMs(dues[0]), k);
        assert!(score.due() > self.handed && !self.packs.contains_key(&score));
        let pack = pack(score, dues, topic);
        let keys = keys(&pack);
        self.packs.insert(score, ReadPack::Pack(pack));
        self.pending += i64::try_from(dues.len()).unwrap();
        if score.due() <= self.opened {
            self.below += 1;
        }
        keys
    }

    /// Whether the message was cancelled: only what is due after H is.
    fn cancel(&mut self, key: Key) -> bool {
        if key.due <= self.handed || self.marks.contains_key(&key.place) {
            return false;
        }
        self.marks.insert(key.place, key.due);
        self.pending -= 1;
        let score = key.place.score;
        let alone = matches!(&self.packs[&score], ReadPack::Pack(pack) if pack.records.len() == 1);
        if alone && score.due() > self.opened {
            self.packs.remove(&score);
        }
        true
    }

    /// As `turn.lua` does, and the reads after it.
    fn turn(&mut self, turn: &Turn) -> Held {
        if turn.settle_to > self.settled {
            self.settled = turn.settle_to.min(self.handed);
            let trimmed = self.settled.minus_ms(4_096);
            self.marks.retain(|_, due| *due > trimmed);
        }
        for finished in &turn.finished {
            if self.packs.remove(&finished.score).is_some() {
                let delivered: u64 = finished.delivered.iter().map(|(_, count)| count).sum();
                self.pending -= i64::try_from(delivered).unwrap();
            }
        }
        let handed_before = self.handed;
        self.handed = self.handed.max(turn.hand_out_to.min(UnixMs(self.now)));
        self.opened = self.opened.max(turn.open_to);
        let fresh = !self.claimed;
        self.claimed = turn.idle_until.is_none();
        let first = self.packs.keys().next().map(|score| score.due());
        let head = turn.idle_until.and(first);
        if let Some(until) = turn.idle_until {
            self.opened = self.opened.max(head.map_or(until, |head| head.min(until)));
        }
        let packs = turn.read.map_or_else(Vec::new, |read| self.read(read));
        let marks = turn.marks.map_or_else(Vec::new, |read| {
            let wanted = |due: &UnixMs| read.after < *due && *due <= read.to;
            let marks = self.marks.iter().filter(|(_, due)| wanted(due));
            marks.map(|(place, _)| *place).collect()
        });
        Held {
            now: UnixMs(self.now),
            handed_before,
            handed: self.handed,
            settled: self.settled,
            below: self.below,
            fresh,
            head,
            packs,
            marks,
        }
    }

    fn read(&self, read: Read) -> Vec<ReadPack> {
        let to = Score::new(read.to, Score::PER_MS - 1);
        if read.after >= to {
            return Vec::new();
        }
        let range = (Bound::Excluded(read.after), Bound::Included(to));
        let packs = self.packs.range(range).take(read.limit);
        packs.map(|(_, pack)| pack.clone()).collect()
    }
}

fn topic(name: &str) -> TopicName {
    TopicName::parse(name.as_bytes()).unwrap()
}

fn pack(score: Score, dues: &[u64], name: &str) -> Pack {
    let records: Vec<Record> = (0_u16..)
        .zip(dues)
        .map(|(position, due)| Record {
            position,
            due: UnixMs(*due),
            topic: topic(name),
            maybe: false,
            id: None,
            body: Bytes::from_static(b"x"),
        })
        .collect();
    Pack {
        score,
        nonce: 7,
        stored: u16::try_from(records.len()).unwrap(),
        len: records.len() * 40,
        records,
    }
}

fn keys(pack: &Pack) -> Vec<Key> {
    let key = |record: &Record| Key {
        due: record.due,
        place: Place {
            score: pack.score,
            nonce: pack.nonce,
            position: record.position,
        },
    };
    pack.records.iter().map(key).collect()
}

fn memory(head: u64) -> Memory {
    Memory::new(ClaimToken("us".to_owned()), UnixMs(head))
}

/// One turn with room and an nsqd: what is to be sent.
#[track_caller]
fn turn(memory: &mut Memory, shard: &mut Shard) -> Vec<Key> {
    let turn = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    match memory.reply(shard.turn(&turn)) {
        Reply::Send(to_send) => to_send.into_iter().map(|message| message.key).collect(),
        Reply::Stale => panic!("stale"),
    }
}

#[test]
fn what_is_due_is_sent_and_then_settled() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let keys = shard.insert(0, &[1_000, 1_001]);
    assert_eq!(turn(&mut memory, &mut shard), []);
    shard.now = 1_000;
    assert_eq!(turn(&mut memory, &mut shard), keys[..1]);
    shard.now = 1_010;
    assert_eq!(turn(&mut memory, &mut shard), keys[1..]);
    assert!(shard.settled < UnixMs(1_000));
    for key in keys {
        memory.delivered(key);
    }
    assert!(memory.wants_settle());
    assert_eq!(turn(&mut memory, &mut shard), []);
    assert!(shard.packs.is_empty() && shard.settled >= UnixMs(1_001));
    assert_eq!((shard.pending, memory.open_bytes()), (0, 0));
    assert!(memory.is_done() && memory.unsettled() == 0);
}

#[test]
fn the_settled_stays_below_the_first_message_that_is_not_done() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let first = shard.insert(0, &[1_000])[0];
    let second = shard.insert(0, &[1_010])[0];
    shard.now = 1_020;
    assert_eq!(turn(&mut memory, &mut shard), [first, second]);
    memory.delivered(second);
    turn(&mut memory, &mut shard);
    assert_eq!(shard.settled, UnixMs(999));
    assert_eq!((memory.done_count(), memory.unsettled()), (1, 2));
    memory.delivered(first);
    turn(&mut memory, &mut shard);
    assert!(shard.settled >= UnixMs(1_010));
    assert_eq!(memory.unsettled(), 0);
}

/// R3.
#[test]
fn an_insert_below_is_read_from_the_previous_horizon_and_holds_the_settled() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    let late = shard.insert(0, &[1_040])[0];
    turn(&mut memory, &mut shard);
    let handed = shard.handed;
    let early = shard.insert(0, &[1_005])[0];
    assert_eq!(shard.below, 1);
    // This turn reads from the cursor, beyond the new pack, and learns that there is one.
    shard.now = 1_050;
    let planned = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    assert!(planned.read.unwrap().after >= late.place.score);
    let Reply::Send(sent) = memory.reply(shard.turn(&planned)) else {
        panic!("stale");
    };
    let sent: Vec<Key> = sent.into_iter().map(|message| message.key).collect();
    assert_eq!(sent, [late]);
    memory.delivered(late);

    let again = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    assert_eq!(
        again.read.unwrap().after,
        Score::new(handed, Score::PER_MS - 1)
    );
    assert!(again.settle_to <= handed);
    let Reply::Send(sent) = memory.reply(shard.turn(&again)) else {
        panic!("stale");
    };
    assert_eq!(sent[0].key, early);
    memory.delivered(early);
    turn(&mut memory, &mut shard);
    assert!(shard.packs.is_empty() && shard.settled >= late.due);
}

/// R4.
#[test]
fn a_read_that_was_full_bounds_the_settled() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let first = shard.insert(0, &[1_000])[0];
    let second = shard.insert(0, &[1_001])[0];
    shard.now = 1_010;
    let narrow = memory.plan(UnixMs(shard.now), AHEAD_MS, true, 1);
    assert_eq!(narrow.read.unwrap().limit, 1);
    assert!(matches!(memory.reply(shard.turn(&narrow)), Reply::Send(sent) if sent.len() == 1));
    memory.delivered(first);
    assert!(memory.wants_read());
    let next = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    assert!(next.settle_to < second.due);
    assert!(matches!(memory.reply(shard.turn(&next)), Reply::Send(sent) if sent[0].key == second));
}

/// A full read leaves packs below H; an insert that is noticed without room to read must not pass them.
#[test]
fn reading_again_does_not_pass_what_a_full_read_has_left() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    let first = shard.insert(0, &[1_001])[0];
    let second = shard.insert(0, &[1_002])[0];
    shard.now = 1_002;
    let full = memory.plan(UnixMs(1_002), AHEAD_MS, true, 0);
    assert!(matches!(memory.reply(shard.turn(&full)), Reply::Send(sent) if sent[0].key == first));
    assert_eq!(shard.handed, second.due);
    shard.insert(0, &[1_003]);
    let blind = memory.plan(UnixMs(1_002), AHEAD_MS, false, 0);
    assert_eq!(blind.read, None);
    assert!(matches!(memory.reply(shard.turn(&blind)), Reply::Send(sent) if sent.is_empty()));
    assert_eq!(turn(&mut memory, &mut shard), [second]);
}

/// R5.
#[test]
fn a_claim_found_free_in_mid_session_ends_it() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    turn(&mut memory, &mut shard);
    shard.claimed = false;
    let lapsed = memory.plan(UnixMs(1_000), AHEAD_MS, true, ROOM);
    assert!(matches!(memory.reply(shard.turn(&lapsed)), Reply::Stale));
}

#[test]
fn a_reply_that_was_not_asked_for_is_stale() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    let turn = memory.plan(UnixMs(1_000), AHEAD_MS, true, ROOM);
    assert!(matches!(memory.reply(shard.turn(&turn)), Reply::Send(_)));
    assert!(matches!(memory.reply(shard.turn(&turn)), Reply::Stale));
}

#[test]
fn what_is_marked_is_not_sent() {
    for read_before in [true, false] {
        let (mut shard, mut memory) = (Shard::at(980), memory(980));
        let keys = shard.insert(0, &[1_000, 1_001]);
        if read_before {
            turn(&mut memory, &mut shard);
        }
        assert!(shard.cancel(keys[0]));
        shard.now = 1_010;
        assert_eq!(turn(&mut memory, &mut shard), keys[1..]);
        memory.delivered(keys[1]);
        turn(&mut memory, &mut shard);
        assert!(shard.packs.is_empty());
        assert_eq!(
            shard.pending, 0,
            "the cancelled one is not counted as delivered"
        );
    }
}

/// D3: H may lie ahead of the clock.
#[test]
fn a_clock_that_stepped_back_holds_what_was_handed_out() {
    let mut shard = Shard::at(900);
    let key = shard.insert(0, &[1_000])[0];
    shard.handed = UnixMs(1_100);
    let mut memory = memory(900);
    assert_eq!(turn(&mut memory, &mut shard), []);
    shard.now = 999;
    assert_eq!(turn(&mut memory, &mut shard), []);
    assert!(shard.settled < key.due);
    shard.now = 1_000;
    assert_eq!(turn(&mut memory, &mut shard), [key]);
}

#[test]
fn what_an_earlier_owner_may_have_sent_is_sent_as_such() {
    let mut shard = Shard::at(1_000);
    shard.insert(0, &[1_000]);
    shard.insert(0, &[1_010]);
    shard.handed = UnixMs(1_005);
    shard.now = 1_010;
    let mut memory = memory(1_000);
    let planned = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    let Reply::Send(sent) = memory.reply(shard.turn(&planned)) else {
        panic!("stale");
    };
    let flags: Vec<(bool, bool)> = sent.iter().map(|m| (m.again, m.record.maybe)).collect();
    assert_eq!(flags, [(true, true), (false, false)]);
}

#[test]
fn a_pack_that_cannot_be_read_holds_the_settled() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let strange = Score::new(UnixMs(1_000), 5);
    let unreadable = ReadPack::Unreadable(strange, BadPack::UnknownVersion(9));
    shard.packs.insert(strange, unreadable);
    let key = shard.insert(0, &[1_010])[0];
    shard.now = 1_020;
    assert_eq!(turn(&mut memory, &mut shard), [key]);
    memory.delivered(key);
    turn(&mut memory, &mut shard);
    turn(&mut memory, &mut shard);
    assert_eq!(shard.settled, UnixMs(999));
    assert!(shard.packs.contains_key(&strange) && !memory.is_done());
}

#[test]
fn a_finished_pack_counts_what_was_delivered_by_topic() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let score = Score::new(UnixMs(1_000), 0);
    let mut mixed = pack(score, &[1_000, 1_000, 1_001, 1_002], "a");
    mixed.records[1].topic = topic("b");
    let keys = keys(&mixed);
    shard.packs.insert(score, ReadPack::Pack(mixed));
    shard.now = 1_010;
    assert_eq!(turn(&mut memory, &mut shard).len(), 4);
    memory.removed(keys[3]);
    for key in &keys[..3] {
        memory.delivered(*key);
    }
    let last = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM);
    let delivered = vec![(topic("a"), 2), (topic("b"), 1)];
    assert_eq!(last.finished, [Finished { score, delivered }]);
}

#[test]
fn what_a_session_before_has_settled_is_only_counted() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let keys = shard.insert(0, &[1_000, 1_001, 1_002]);
    assert!(shard.cancel(keys[1]));
    shard.handed = UnixMs(1_001);
    shard.settled = UnixMs(1_001);
    shard.now = 1_010;
    assert_eq!(turn(&mut memory, &mut shard), keys[2..]);
    memory.delivered(keys[2]);
    turn(&mut memory, &mut shard);
    assert_eq!(shard.pending, 0);
}

#[test]
fn without_room_nothing_more_is_read_but_an_empty_memory_reads() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    shard.insert(0, &[1_010]);
    let first = memory.plan(UnixMs(1_000), AHEAD_MS, true, 0);
    assert_eq!(first.read.unwrap().limit, 1);
    assert!(matches!(memory.reply(shard.turn(&first)), Reply::Send(_)));
    let second = memory.plan(UnixMs(1_000), AHEAD_MS, true, 0);
    assert_eq!((second.read, second.open_to), (None, UnixMs(0)));
}

#[test]
fn without_an_nsqd_the_horizon_stays() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    shard.insert(0, &[1_010]);
    shard.now = 1_020;
    let held_back = memory.plan(UnixMs(1_020), AHEAD_MS, false, ROOM);
    assert!(matches!(memory.reply(shard.turn(&held_back)), Reply::Send(sent) if sent.is_empty()));
    assert_eq!(shard.handed, UnixMs(0));
    assert_eq!(turn(&mut memory, &mut shard).len(), 1);
}

#[test]
fn a_message_that_may_have_been_sent_is_remembered_as_such() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    let key = shard.insert(0, &[1_010])[0];
    shard.now = 1_010;
    turn(&mut memory, &mut shard);
    assert!(!memory.record(key).unwrap().0.maybe);
    memory.maybe_sent(key);
    assert!(memory.record(key).unwrap().0.maybe);
}

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
        let wakes = UnixMs(first) <= self.shard.opened;
        self.stored.extend(self.shard.insert(k, &dues));
        if wakes {
            self.head = self.head.min(UnixMs(first));
        }
    }

    fn turn(&mut self, room: usize, hands_out: bool) {
        if self.memory.is_none() && self.head.0 <= self.shard.now {
            self.memory = Some(memory(self.head.0));
            self.sent.clear();
        }
        let Some(memory) = &mut self.memory else {
            return;
        };
        // An instance's estimate is an upper bound.
        let turn = memory.plan(UnixMs(self.shard.now + 2), AHEAD_MS, hands_out, room);
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
        cases: 2_000,
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
