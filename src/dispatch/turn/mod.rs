//! The owner's memory of one shard, and what it makes of each turn. Pure: it is told the time, the
//! replies and what became of messages; it answers with the next turn and with what to send.
//!
//! Rules of the protocol that live here (the others are in the scripts):
//! - R3: if `below` changed since the previous reply, packs may have appeared where we have read. The
//!   next turn reads again from the H of that reply, and S stays at or below it until then.
//! - R4: S stays below the first unread pack and below the first message that is not done.
//! - R5: one memory belongs to one claim. A claim found free in mid-session ends it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::id::{Place, Score};
use crate::message::{TopicName, UnixMs};
use crate::store::{
    ClaimToken, Finished, Held, Pack, Read, ReadMarks, ReadPack, Record, TopicShare, Turn,
};

/// How far H may go beyond what has been read, in ms of due time: bounds the marks of one turn.
const STEP_MS: u64 = 1_000;
/// Packs of one read, at most.
const PACKS_MAX: usize = 128;
/// What a record takes beside its share of the pack's bytes while it is open, about.
const RECORD_OVERHEAD: usize = 400;
/// Bytes that one read aims at.
const READ_BYTES: usize = 512 * 1024;
/// What a pack is taken to weigh before the first is seen.
const PACK_BYTES_GUESS: usize = 32 * 1024;

/// A message's number within a shard: due first, so that they sort by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// When it is due.
    pub due: UnixMs,
    /// Where it lies.
    pub place: Place,
}

/// A message to send now.
#[derive(Debug, Clone)]
pub(super) struct ToSend {
    /// Its number.
    pub key: Key,
    /// The message. Shared: what is moved about for each message is small.
    pub record: Arc<Record>,
    /// An earlier owner may have sent it: it had been handed out before this session.
    pub again: bool,
}

/// An open pack: some of its records are not done.
#[derive(Debug)]
struct OpenPack {
    stored: u16,
    open: usize,
    bytes: usize,
    /// What will be said of it when all are done.
    finished: Finished,
}

/// What the turn in progress was asked.
#[derive(Debug, Clone, Copy)]
struct Asked {
    read: Option<Read>,
    marks_to: Option<UnixMs>,
    handed_before: UnixMs,
}

/// What a reply means.
#[derive(Debug)]
pub(super) enum Reply {
    /// These are to be sent.
    Send(Vec<ToSend>),
    /// The claim had lapsed: forget everything and begin anew.
    Stale,
}

/// The owner's memory of one shard under one claim.
#[derive(Debug)]
pub(super) struct Memory {
    token: ClaimToken,
    /// `None` before the first reply.
    handed: Option<UnixMs>,
    settled: UnixMs,
    /// H at the first reply: what is due at or before may have been sent by an earlier owner.
    handed_at_start: UnixMs,
    below: u64,
    /// Where the backlog begins, as far as is known.
    head: UnixMs,
    /// The last pack read.
    cursor: Score,
    /// All packs that begin at or before have been read, but for those that `below` announces.
    known_to: UnixMs,
    /// The last read was full: more packs wait.
    limited: bool,
    /// When the first pack begins that lies beyond the last read.
    next_read: Option<UnixMs>,
    /// R3: read again from here.
    reread_from: Option<UnixMs>,
    packs: BTreeMap<Score, OpenPack>,
    /// Records that are not done.
    open: BTreeMap<Key, Arc<Record>>,
    /// Those of `open` that are not handed out yet.
    waiting: BinaryHeap<Reverse<Key>>,
    /// What is not to be delivered, and whether it had been counted off when that was read.
    marks: HashMap<Place, bool>,
    /// Marks of what is due at or before are all known, and no more can come.
    marks_to: UnixMs,
    /// Redis's clock at the last reply: only what is due by it is sent.
    now: UnixMs,
    /// Packs that this version cannot read: S stays below the first.
    unreadable: BTreeSet<Score>,
    finished: Vec<Finished>,
    /// Messages done above S, by due.
    done_above: BTreeMap<UnixMs, usize>,
    done_above_count: usize,
    open_bytes: usize,
    pack_bytes: usize,
    asked: Option<Asked>,
}

impl Memory {
    /// Knows nothing but where the backlog is said to begin.
    pub(super) fn new(token: ClaimToken, head: UnixMs) -> Self {
        Self {
            token,
            handed: None,
            settled: UnixMs(0),
            handed_at_start: UnixMs(0),
            below: 0,
            head,
            cursor: Score(0),
            known_to: UnixMs(0),
            limited: false,
            next_read: None,
            reread_from: None,
            packs: BTreeMap::new(),
            open: BTreeMap::new(),
            waiting: BinaryHeap::new(),
            marks: HashMap::new(),
            marks_to: UnixMs(0),
            now: UnixMs(0),
            unreadable: BTreeSet::new(),
            finished: Vec::new(),
            done_above: BTreeMap::new(),
            done_above_count: 0,
            open_bytes: 0,
            pack_bytes: PACK_BYTES_GUESS,
            asked: None,
        }
    }

    /// Whose claim this memory belongs to.
    pub(super) fn token(&self) -> &ClaimToken {
        &self.token
    }

    /// Bytes of the packs that are held.
    pub(super) fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Messages that are not done.
    pub(super) fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Messages handed out and not done, or done above S: what a crash now would send again.
    pub(super) fn unsettled(&self) -> usize {
        self.open.len() - self.waiting.len() + self.done_above_count
    }

    /// Messages done above S.
    pub(super) fn done_count(&self) -> usize {
        self.done_above_count
    }

    /// When the first message is due that is not handed out yet.
    pub(super) fn next_due(&self) -> Option<UnixMs> {
        self.waiting.peek().map(|Reverse(key)| key.due)
    }

    /// When the first pack begins that has not been read.
    pub(super) fn next_read(&self) -> Option<UnixMs> {
        self.next_read
    }

    /// The first message that is not done.
    pub(super) fn oldest(&self) -> Option<UnixMs> {
        self.open.first_key_value().map(|(key, _)| key.due)
    }

    /// Whether packs wait to be read, or to be read again.
    pub(super) fn wants_read(&self) -> bool {
        self.limited || self.reread_from.is_some() || self.handed.is_none()
    }

    /// Whether a turn would remove or settle something.
    pub(super) fn wants_settle(&self) -> bool {
        // S alone is not worth a turn: it follows H with each one anyway.
        !self.finished.is_empty() || (self.done_above_count > 0 && self.settle_to() > self.settled)
    }

    /// Whether S stays below messages that are done only because something has not been read.
    pub(super) fn reading_holds_settle(&self) -> bool {
        let settle_to = self.settle_to();
        let first_open = self.open.first_key_value().map(|(key, _)| key.due);
        let unread = self
            .done_above
            .range((Bound::Excluded(settle_to), Bound::Unbounded))
            .next();
        unread.is_some_and(|(due, _)| first_open.is_none_or(|open| *due < open))
    }

    /// Whether there is nothing to remember but what the next turn settles.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && !self.wants_read() && self.unreadable.is_empty()
    }

    /// The next turn. `now` is at least Redis's clock; `hand_out`: nsqd takes messages;
    /// `room`: bytes that may be read; `look`: something earlier than is known may be there.
    pub(super) fn plan(
        &mut self,
        now: UnixMs,
        read_ahead_ms: u64,
        hand_out: bool,
        room: usize,
        look: bool,
    ) -> Turn {
        debug_assert!(self.asked.is_none());
        let handed = self.handed.unwrap_or_default();
        let read_to = now.plus_ms(read_ahead_ms);
        let read = if look || self.reads_now(now) {
            self.plan_read(handed, read_to, room)
        } else {
            None
        };
        // H may run ahead of what has been read: one ms may hold more than there is room for. Not
        // far, or a long backlog's marks would have to be read at once.
        let reach = match read {
            Some(_) if !self.limited => self.known_to.max(self.head).plus_ms(STEP_MS),
            _ => self
                .next_due()
                .map_or(self.known_to, |due| due.max(self.known_to)),
        };
        let hand_out_to = if hand_out { now.min(reach) } else { UnixMs(0) };
        // A new session does not know H: what was handed out before lies at or before now, unless
        // Redis's clock stepped back; then the next turn reads the rest.
        let marks_to = match self.handed {
            None => now.plus_ms(STEP_MS),
            Some(handed) => hand_out_to.max(handed),
        };
        let marks = (marks_to > self.marks_to).then_some(ReadMarks {
            after: self.marks_to,
            to: marks_to,
        });
        let marks_to = marks.map(|marks| marks.to);
        self.asked = Some(Asked {
            read,
            marks_to,
            handed_before: handed,
        });
        Turn {
            token: self.token.clone(),
            extend: true,
            settle_to: self.settle_to(),
            finished: std::mem::take(&mut self.finished),
            hand_out_to,
            open_to: read.map_or(UnixMs(0), |read| read.to),
            idle_until: None,
            read,
            marks,
        }
    }

    /// The last turn of this memory: settles, releases the claim, sleeps until `idle_until` at most.
    pub(super) fn plan_idle(&mut self, idle_until: UnixMs) -> Turn {
        let handed_before = self.handed.unwrap_or_default();
        self.asked = Some(Asked {
            read: None,
            marks_to: None,
            handed_before,
        });
        Turn {
            token: self.token.clone(),
            extend: true,
            settle_to: self.settle_to(),
            finished: std::mem::take(&mut self.finished),
            hand_out_to: UnixMs(0),
            open_to: UnixMs(0),
            idle_until: Some(idle_until),
            read: None,
            marks: None,
        }
    }

    /// Whether the next turn reads. Not each does: what appears where it has been read announces itself, and looking
    /// for the pack behind is most of what a turn costs.
    fn reads_now(&self, now: UnixMs) -> bool {
        self.wants_read()
            || now >= self.known_to
            || self.next_read.is_some_and(|due| due <= now)
            || self.reading_holds_settle()
    }

    fn plan_read(&self, handed: UnixMs, to: UnixMs, room: usize) -> Option<Read> {
        if room == 0 && !self.packs.is_empty() {
            return None;
        }
        // Never short of what counts as read: the clock, or its estimate, may have stepped back, and what
        // `below` announces lies anywhere up to there.
        let to = to.max(self.known_to).max(self.cursor.due());
        let limit = (READ_BYTES.min(room.max(1)) / self.pack_bytes.max(1)).clamp(1, PACKS_MAX);
        let after_handed = Score::new(handed, Score::PER_MS - 1);
        let after = match self.reread_from {
            // Not beyond the cursor: H may have run ahead of a read that was full.
            Some(from) => Score::new(from, Score::PER_MS - 1).min(self.cursor),
            // Nothing is held: reading from H costs nothing, and misses nothing that `below` counts.
            None if self.open.is_empty() && !self.limited && self.handed.is_some() => {
                after_handed.min(self.cursor)
            }
            None => self.cursor,
        };
        // After a step back, the limit must reach beyond the packs that are held already.
        let held = self
            .packs
            .range((Bound::Excluded(after), Bound::Unbounded))
            .count();
        Some(Read {
            after,
            to,
            limit: limit + held,
        })
    }

    /// R4: how far S may follow.
    fn settle_to(&self) -> UnixMs {
        let Some(handed) = self.handed else {
            return UnixMs(0);
        };
        let mut bound = handed;
        if let Some((key, _)) = self.open.first_key_value() {
            bound = bound.min(key.due.minus_ms(1));
        }
        // Also when the last read was not full: after a step back of Redis's clock, H may lie beyond it.
        bound = bound.min(self.known_to);
        if let Some(from) = self.reread_from {
            bound = bound.min(from);
        }
        if let Some(score) = self.unreadable.first() {
            bound = bound.min(score.due().minus_ms(1));
        }
        bound.max(self.settled)
    }

    /// Takes in a turn's reply.
    pub(super) fn reply(&mut self, held: Held) -> Reply {
        let Some(asked) = self.asked.take() else {
            return Reply::Stale;
        };
        let first = self.handed.is_none();
        if held.fresh && !first {
            return Reply::Stale;
        }
        debug_assert!(held.settled <= held.handed);
        if first {
            self.handed_at_start = held.handed_before;
            self.below = held.below;
        }
        self.handed = Some(held.handed);
        self.now = held.now;
        let marks = held.marks.iter().map(|mark| (mark.place, mark.counted));
        self.marks.extend(marks);
        if let Some(to) = asked.marks_to {
            self.marks_to = self.marks_to.max(to.min(held.handed));
        }
        self.settle(held.settled);
        if let Some(read) = asked.read {
            self.next_read = held.head;
            self.take_packs(held.packs, read);
        }
        self.note_below(held.below, asked);
        Reply::Send(self.hand_out())
    }

    fn settle(&mut self, settled: UnixMs) {
        self.settled = settled;
        while let Some(entry) = self.done_above.first_entry()
            && *entry.key() <= settled
        {
            self.done_above_count -= entry.remove();
        }
        let settled_score = Score::new(settled.minus_ms(4_096), 0);
        self.marks.retain(|place, _| place.score >= settled_score);
    }

    fn take_packs(&mut self, packs: Vec<ReadPack>, read: Read) {
        self.reread_from = None;
        self.limited = packs.len() >= read.limit;
        let last = packs.last().map(ReadPack::score);
        let (mut bytes, mut count) = (0, 0);
        for pack in packs {
            match pack {
                ReadPack::Pack(pack) => {
                    bytes += cost(&pack);
                    count += 1;
                    self.take_pack(pack);
                }
                ReadPack::Unreadable(score, _) => {
                    self.unreadable.insert(score);
                }
            }
        }
        if let Some(mean) = usize::checked_div(bytes, count) {
            self.pack_bytes = mean.max(64);
        }
        if self.limited {
            // A read that began behind the cursor and was full has read no further than its last.
            self.cursor = last.unwrap_or(read.after);
            self.known_to = self.cursor.due().minus_ms(1);
        } else {
            self.cursor = self.cursor.max(last.unwrap_or(read.after));
            self.known_to = self.known_to.max(read.to);
        }
    }

    fn take_pack(&mut self, pack: Pack) {
        if self.packs.contains_key(&pack.score) {
            return;
        }
        let mut held = OpenPack {
            stored: pack.stored,
            open: 0,
            bytes: cost(&pack),
            finished: Finished {
                score: pack.score,
                topics: Vec::new(),
                uncounted: Vec::new(),
            },
        };
        for record in pack.records {
            let place = Place {
                score: pack.score,
                nonce: pack.nonce,
                position: record.position,
            };
            // Done in an earlier session; its mark, if any, is still there (trimmed later than S).
            let is_done = record.due <= self.settled;
            let mark = is_done.then(|| self.marks.get(&place)).flatten();
            let delivered = u64::from(is_done && mark.is_none());
            let bytes = record.body.len() as u64;
            TopicShare::add(&mut held.finished.topics, &record.topic, delivered, bytes);
            if is_done {
                note_uncounted(&mut held.finished, mark, place, &record.topic);
                continue;
            }
            let key = Key {
                due: record.due,
                place,
            };
            held.open += 1;
            self.open.insert(key, Arc::new(record));
            self.waiting.push(Reverse(key));
        }
        if held.open == 0 {
            self.finished.push(held.finished);
        } else {
            self.open_bytes += held.bytes;
            self.packs.insert(pack.score, held);
        }
    }

    /// R3.
    fn note_below(&mut self, below: u64, asked: Asked) {
        let changed = below != self.below;
        self.below = below;
        let read_from_there = asked
            .read
            .is_some_and(|read| read.after <= Score::new(asked.handed_before, Score::PER_MS - 1));
        if changed && !read_from_there {
            let from = asked.handed_before;
            self.reread_from = Some(self.reread_from.map_or(from, |earlier| earlier.min(from)));
        }
    }

    fn hand_out(&mut self) -> Vec<ToSend> {
        // D3: by the clock of this very turn, also when H is ahead of it because the clock stepped back.
        let handed = self
            .handed
            .unwrap_or_default()
            .min(self.now)
            .min(self.marks_to);
        let mut to_send = Vec::new();
        while let Some(Reverse(key)) = self.waiting.peek().copied()
            && key.due <= handed
        {
            self.waiting.pop();
            if self.marks.contains_key(&key.place) {
                self.close(key, false);
            } else if let Some(record) = self.open.get_mut(&key) {
                let again = key.due <= self.handed_at_start;
                if again {
                    // R8: an earlier owner may have sent it.
                    Arc::make_mut(record).maybe = true;
                }
                to_send.push(ToSend {
                    key,
                    record: Arc::clone(record),
                    again,
                });
            }
        }
        to_send
    }

    /// nsqd has it.
    pub(super) fn delivered(&mut self, key: Key) {
        self.close(key, true);
    }

    /// It lies elsewhere now, or was found cancelled.
    pub(super) fn removed(&mut self, key: Key) {
        self.close(key, false);
    }

    /// The record of a message that is not done, to park it, and how many records its pack had.
    pub(super) fn record(&self, key: Key) -> Option<(&Arc<Record>, u16)> {
        let stored = self.packs.get(&key.place.score)?.stored;
        self.open.get(&key).map(|record| (record, stored))
    }

    /// A send may have arrived: cancel and move must refuse it wherever it goes.
    pub(super) fn maybe_sent(&mut self, key: Key) {
        if let Some(record) = self.open.get_mut(&key) {
            Arc::make_mut(record).maybe = true;
        }
    }

    /// Only for what H has passed: a pack that were finished above H could leave its score to another
    /// one, and a late turn would remove that.
    fn close(&mut self, key: Key, delivered: bool) {
        debug_assert!(Some(key.due) <= self.handed);
        let Some(record) = self.open.remove(&key) else {
            return;
        };
        if key.due > self.settled {
            *self.done_above.entry(key.due).or_default() += 1;
            self.done_above_count += 1;
        }
        let score = key.place.score;
        let Some(pack) = self.packs.get_mut(&score) else {
            return;
        };
        if delivered {
            TopicShare::add(&mut pack.finished.topics, &record.topic, 1, 0);
        } else {
            let mark = self.marks.get(&key.place);
            note_uncounted(&mut pack.finished, mark, key.place, &record.topic);
        }
        pack.open -= 1;
        if pack.open == 0
            && let Some(pack) = self.packs.remove(&score)
        {
            self.open_bytes -= pack.bytes;
            self.finished.push(pack.finished);
        }
    }
}

/// Bytes that a pack takes while it is open.
fn cost(pack: &Pack) -> usize {
    pack.len + pack.records.len() * RECORD_OVERHEAD
}

/// A cancelled record that nobody has counted off yet is, when its pack is removed.
fn note_uncounted(finished: &mut Finished, mark: Option<&bool>, place: Place, topic: &TopicName) {
    if mark == Some(&false) {
        finished.uncounted.push((place, topic.clone()));
    }
}

#[cfg(test)]
mod tests;
