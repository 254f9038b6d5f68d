//! The owner's memory against a small shard: the horizons, packs and marks that `turn.lua` keeps, in
//! maps. Times are small numbers of ms.

mod random;

use bytes::Bytes;

use super::*;
use crate::store::{BadPack, Compression, Mark, Pack};

const AHEAD_MS: u64 = 50;
const ROOM: usize = 1 << 20;

/// What Redis keeps of the shard.
#[derive(Debug, Default)]
struct Shard {
    now: u64,
    handed: UnixMs,
    settled: UnixMs,
    opened: UnixMs,
    watch: UnixMs,
    below: u64,
    claimed: bool,
    packs: BTreeMap<Score, ReadPack>,
    /// With their dues, and whether they were counted off when they were set: every other is.
    marks: BTreeMap<Place, (UnixMs, bool)>,
    /// Messages that the counters beside the packs tell.
    pending: i64,
    /// Packs so far.
    nonces: u32,
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
        let mut pack = pack(score, dues, topic);
        // As in Redis: a score may come again, a nonce does not.
        self.nonces += 1;
        pack.nonce = self.nonces;
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
        let score = key.place.score;
        let alone = matches!(&self.packs[&score], ReadPack::Pack(pack) if pack.records.len() == 1);
        let goes = alone && score.due() > self.opened;
        let counted = goes || self.marks.len().is_multiple_of(2);
        self.marks.insert(key.place, (key.due, counted));
        if goes {
            self.packs.remove(&score);
        }
        self.pending -= i64::from(counted);
        true
    }

    /// As `turn.lua` does, and the reads after it.
    fn turn(&mut self, turn: &Turn) -> Held {
        for finished in &turn.finished {
            if self.packs.remove(&finished.score).is_some() {
                let delivered: u64 = finished.topics.iter().map(|share| share.messages).sum();
                self.pending -= i64::try_from(delivered).unwrap();
                for (place, _) in &finished.uncounted {
                    let (_, counted) = self.marks.get_mut(place).unwrap();
                    self.pending -= i64::from(!*counted);
                    *counted = true;
                }
            }
        }
        if turn.settle_to > self.settled {
            self.settled = turn.settle_to.min(self.handed);
            let trimmed = self.settled.minus_ms(4_096);
            self.marks.retain(|_, (due, _)| *due > trimmed);
        }
        let handed_before = self.handed;
        self.handed = self.handed.max(turn.hand_out_to.min(UnixMs(self.now)));
        self.opened = self.opened.max(turn.open_to);
        let fresh = !self.claimed;
        self.claimed = turn.idle_until.is_none();
        let beyond = if turn.idle_until.is_some() {
            UnixMs(0)
        } else {
            turn.open_to
        };
        let mut dues = self.packs.keys().map(|score| score.due());
        let mut head = dues.find(|due| *due > beyond);
        match turn.idle_until {
            Some(until) => self.watch = head.map_or(until, |head| head.min(until)),
            None if turn.read.is_some() => self.watch = head.unwrap_or(UnixMs::MAX),
            None => head = None,
        }
        let packs = turn.read.map_or_else(Vec::new, |read| self.read(read));
        let marks = turn.marks.map_or_else(Vec::new, |read| {
            let wanted = |due: &UnixMs| read.after < *due && *due <= read.to;
            let marks = self.marks.iter().filter(|(_, (due, _))| wanted(due));
            let mark = |(place, (_, counted)): (&Place, &(UnixMs, bool))| Mark {
                place: *place,
                counted: *counted,
            };
            marks.map(mark).collect()
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
        compression: Compression::None,
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
    let turn = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
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
    let planned = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
    assert!(planned.read.unwrap().after >= late.place.score);
    let Reply::Send(sent) = memory.reply(shard.turn(&planned)) else {
        panic!("stale");
    };
    let sent: Vec<Key> = sent.into_iter().map(|message| message.key).collect();
    assert_eq!(sent, [late]);
    memory.delivered(late);

    let again = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
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
    let narrow = memory.plan(UnixMs(shard.now), AHEAD_MS, true, 1, true);
    assert_eq!(narrow.read.unwrap().limit, 1);
    assert!(matches!(memory.reply(shard.turn(&narrow)), Reply::Send(sent) if sent.len() == 1));
    memory.delivered(first);
    assert!(memory.wants_read());
    let next = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
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
    let full = memory.plan(UnixMs(1_002), AHEAD_MS, true, 0, true);
    assert!(matches!(memory.reply(shard.turn(&full)), Reply::Send(sent) if sent[0].key == first));
    assert_eq!(shard.handed, second.due);
    shard.insert(0, &[1_003]);
    let blind = memory.plan(UnixMs(1_002), AHEAD_MS, false, 0, true);
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
    let lapsed = memory.plan(UnixMs(1_000), AHEAD_MS, true, ROOM, true);
    assert!(matches!(memory.reply(shard.turn(&lapsed)), Reply::Stale));
}

#[test]
fn a_reply_that_was_not_asked_for_is_stale() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    let turn = memory.plan(UnixMs(1_000), AHEAD_MS, true, ROOM, true);
    assert!(matches!(memory.reply(shard.turn(&turn)), Reply::Send(_)));
    assert!(matches!(memory.reply(shard.turn(&turn)), Reply::Stale));
}

#[test]
fn what_is_marked_is_not_sent() {
    for read_before in [true, false] {
        let (mut shard, mut memory) = (Shard::at(980), memory(980));
        let keys = shard.insert(0, &[1_000, 1_001, 1_002]);
        if read_before {
            turn(&mut memory, &mut shard);
        }
        assert!(shard.cancel(keys[0]) && shard.cancel(keys[1]));
        shard.now = 1_010;
        assert_eq!(turn(&mut memory, &mut shard), keys[2..]);
        memory.delivered(keys[2]);
        turn(&mut memory, &mut shard);
        assert!(shard.packs.is_empty());
        assert_eq!(
            shard.pending, 0,
            "the cancelled ones are not counted as delivered, nor twice"
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
    let planned = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
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
    let last = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, true);
    let of_topic = |name, delivered, bytes| TopicShare {
        topic: topic(name),
        messages: delivered,
        bytes,
    };
    let topics = vec![of_topic("a", 2, 3), of_topic("b", 1, 1)];
    let uncounted = Vec::new();
    let finished = Finished {
        score,
        topics,
        uncounted,
    };
    assert_eq!(last.finished, [finished]);
}

#[test]
fn what_a_session_before_has_settled_is_only_counted() {
    let (mut shard, mut memory) = (Shard::at(900), memory(900));
    let keys = shard.insert(0, &[1_000, 1_001, 1_002, 1_003]);
    assert!(shard.cancel(keys[1]) && shard.cancel(keys[2]));
    shard.handed = UnixMs(1_002);
    shard.settled = UnixMs(1_002);
    shard.now = 1_010;
    assert_eq!(turn(&mut memory, &mut shard), keys[3..]);
    memory.delivered(keys[3]);
    turn(&mut memory, &mut shard);
    assert_eq!(shard.pending, 0);
}

#[test]
fn without_room_nothing_more_is_read_but_an_empty_memory_reads() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    shard.insert(0, &[1_010]);
    let first = memory.plan(UnixMs(1_000), AHEAD_MS, true, 0, true);
    assert_eq!(first.read.unwrap().limit, 1);
    assert!(matches!(memory.reply(shard.turn(&first)), Reply::Send(_)));
    let second = memory.plan(UnixMs(1_000), AHEAD_MS, true, 0, true);
    assert_eq!((second.read, second.open_to), (None, UnixMs(0)));
}

#[test]
fn without_an_nsqd_the_horizon_stays() {
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    shard.insert(0, &[1_010]);
    shard.now = 1_020;
    let held_back = memory.plan(UnixMs(1_020), AHEAD_MS, false, ROOM, true);
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

#[test]
fn a_turn_reads_when_what_was_read_is_over_or_something_says_so() {
    let reads = |memory: &mut Memory, shard: &mut Shard, look| {
        let turn = memory.plan(UnixMs(shard.now), AHEAD_MS, true, ROOM, look);
        assert!(matches!(memory.reply(shard.turn(&turn)), Reply::Send(_)));
        turn.read.is_some()
    };
    let (mut shard, mut memory) = (Shard::at(1_000), memory(1_000));
    for due in [1_010, 1_020, 1_030, 1_070] {
        shard.insert(0, &[due]);
    }
    assert!(
        reads(&mut memory, &mut shard, false),
        "nothing is known yet"
    );
    shard.now = 1_020;
    assert!(!reads(&mut memory, &mut shard, false));
    assert_eq!(shard.handed, UnixMs(1_020));
    assert!(reads(&mut memory, &mut shard, true), "something came");
    shard.insert(0, &[1_025]);
    shard.now = 1_022;
    assert!(!reads(&mut memory, &mut shard, false), "it learns of it");
    assert!(reads(&mut memory, &mut shard, false), "and reads again");
    shard.now = 1_072;
    assert!(reads(&mut memory, &mut shard, false), "the read is over");
}
