//! One shard as the scripts see it: one function per script, in the script's order. Knows no client.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nsqdelayd::id::{Place, Score};
use nsqdelayd::message::{TopicName, UnixMs};
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{
    ClaimToken, Held, Mark, Pack, ReadMarks, ReadPack, Record, Swept, Turn, TurnReply,
};

use super::Bug;

/// What became of the message of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Stored,
    Cancelled,
    Dead,
    Held,
}

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    pub(crate) due: UnixMs,
    pub(crate) maybe: bool,
    pub(crate) digest: u64,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    pub(crate) reason: String,
    pub(crate) record: Record,
}

/// A pack on its way in, with what the script counts and indexes.
#[derive(Debug, Clone)]
pub(crate) struct NewPack {
    pub(crate) pack: Pack,
    pub(crate) ids: Vec<(String, Entry)>,
}

/// Why one pack was not inserted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fine,
    Late,
    Taken,
    IdsTaken(Vec<(String, Entry)>),
}

/// The answer to an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InsertReply {
    Ok,
    Closed,
    Refused {
        limit: UnixMs,
        verdicts: Vec<Verdict>,
    },
}

/// The answer to a move, a park or a requeue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PlaceReply {
    Ok,
    Changed,
    Closed,
    InFlight,
    Gone,
    Cancelled,
    Fenced,
    Full,
    Late(UnixMs),
    Taken,
    Marked(Vec<String>),
}

/// What a cancel knows of a message.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) id: String,
    pub(crate) place: Option<(Place, UnixMs)>,
}

/// What a move changes.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    pub(crate) id: String,
    pub(crate) entry_read: Option<Entry>,
    pub(crate) from: Place,
    pub(crate) from_due: UnixMs,
    pub(crate) from_records: usize,
    pub(crate) pack: Pack,
    pub(crate) entry: Entry,
}

/// One message of a park.
#[derive(Debug, Clone)]
pub(crate) struct ParkedMessage {
    pub(crate) id: String,
    pub(crate) from: Place,
    pub(crate) from_due: UnixMs,
    pub(crate) entry: Entry,
    pub(crate) topic: TopicName,
    pub(crate) dead_letter: Option<DeadLetter>,
}

/// The keys of one shard.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) due: BTreeMap<Score, Vec<Pack>>,
    pub(crate) claim: Option<(ClaimToken, UnixMs)>,
    pub(crate) handed: UnixMs,
    pub(crate) settled: UnixMs,
    pub(crate) opened: UnixMs,
    pub(crate) watch: UnixMs,
    pub(crate) below: u64,
    pub(crate) closed: bool,
    pub(crate) cancelled: BTreeMap<Place, UnixMs>,
    /// Those of the marks that have not been counted off.
    pub(crate) uncounted: BTreeSet<Place>,
    /// By score and nonce of a pack of several: positions of what has left it.
    pub(crate) left: BTreeMap<(Score, u32), BTreeSet<u16>>,
    pub(crate) ids: BTreeMap<String, Entry>,
    pub(crate) live: BTreeMap<String, UnixMs>,
    pub(crate) gone: BTreeMap<String, UnixMs>,
    pub(crate) pending: BTreeMap<TopicName, i64>,
    pub(crate) bytes: BTreeMap<TopicName, i64>,
    pub(crate) dead: BTreeMap<String, DeadLetter>,
    pub(crate) held: BTreeMap<TopicName, BTreeMap<Score, Pack>>,
    /// What was published on the wake channel and not yet carried to its listeners.
    pub(crate) published: Vec<UnixMs>,
    pub(crate) bug: Option<Bug>,
}

impl Shard {
    pub(super) fn count(&mut self, topic: &TopicName, change: i64) {
        let count = self.pending.entry(topic.clone()).or_default();
        *count += change;
        if *count <= 0 {
            self.pending.remove(topic);
        }
    }

    pub(super) fn has(&self, score: Score) -> bool {
        self.bug != Some(Bug::SharedScores) && self.due.get(&score).is_some_and(|p| !p.is_empty())
    }

    pub(super) fn count_bytes(&mut self, pack: &Pack, sign: i64) {
        for record in &pack.records {
            let bytes = self.bytes.entry(record.topic.clone()).or_default();
            *bytes += sign * i64::try_from(record.body.len()).unwrap();
            if *bytes <= 0 {
                self.bytes.remove(&record.topic);
            }
        }
    }

    pub(super) fn remove(&mut self, score: Score) -> usize {
        let packs = self.due.remove(&score).unwrap_or_default();
        for pack in &packs {
            self.count_bytes(pack, -1);
        }
        packs.len()
    }

    pub(super) fn add(&mut self, pack: Pack) {
        self.count_bytes(&pack, 1);
        if self.bug == Some(Bug::SharedScores) {
            // What a store keyed by score would do: the newer pack takes the place.
            self.due.insert(pack.score, vec![pack]);
        } else {
            self.due.entry(pack.score).or_default().push(pack);
        }
    }

    /// `appear.lua`
    pub(super) fn appear(&mut self, due: UnixMs) {
        self.count_below(due);
        self.wake(due);
    }

    /// R3: what appears at or below `opened` is counted.
    fn count_below(&mut self, due: UnixMs) {
        if due <= self.opened && self.bug != Some(Bug::BelowNotCounted) {
            self.below += 1;
        }
    }

    /// What appears at or below `opened`, or before `watch`, is published.
    fn wake(&mut self, due: UnixMs) {
        if due <= self.opened || due < self.watch {
            self.published.push(due);
        }
        self.watch = self.watch.min(due);
    }

    /// What a sweep finds.
    pub(super) fn sweep(&self, shard: ShardId) -> Swept {
        if self.bug == Some(Bug::BlindSweep) {
            let (watch, held) = (UnixMs::MAX, 0);
            return Swept { shard, watch, held };
        }
        Swept {
            shard,
            watch: self.watch,
            held: self.held.values().map(|packs| packs.len() as u64).sum(),
        }
    }

    pub(super) fn live_until(&mut self, id: &str, due: UnixMs) {
        let until = self.live.entry(id.to_owned()).or_default();
        *until = due.max(*until);
    }

    /// `insert.lua`
    pub(crate) fn insert(&mut self, now: UnixMs, packs: &[NewPack]) -> InsertReply {
        if self.closed {
            return InsertReply::Closed;
        }
        let mut done = vec![false; packs.len()];
        let mut verdicts = Vec::with_capacity(packs.len());
        for (new, done) in packs.iter().zip(&mut done) {
            let mut verdict = Verdict::Fine;
            if new.pack.score.due() <= self.handed && self.bug != Some(Bug::LateInserts) {
                verdict = Verdict::Late;
            } else if self.has(new.pack.score) {
                if self.due[&new.pack.score].contains(&new.pack) {
                    *done = true;
                } else {
                    verdict = Verdict::Taken;
                }
            }
            if verdict == Verdict::Fine && !*done {
                let entry = |(id, _): &(String, Entry)| Some((id.clone(), *self.ids.get(id)?));
                let taken: Vec<_> = new.ids.iter().filter_map(entry).collect();
                if !taken.is_empty() {
                    verdict = Verdict::IdsTaken(taken);
                }
            }
            verdicts.push(verdict);
        }
        if verdicts.iter().any(|verdict| *verdict != Verdict::Fine) {
            let limit = now.max(self.handed);
            return InsertReply::Refused { limit, verdicts };
        }
        let mut earliest: Option<UnixMs> = None;
        for (new, _) in packs.iter().zip(done).filter(|(_, done)| !done) {
            for record in &new.pack.records {
                self.count(&record.topic, 1);
            }
            for (id, entry) in &new.ids {
                self.ids.insert(id.clone(), *entry);
                self.live.insert(id.clone(), entry.due);
            }
            self.add(new.pack.clone());
            let due = new.pack.score.due();
            self.count_below(due);
            earliest = Some(earliest.map_or(due, |e| e.min(due)));
        }
        if let Some(due) = earliest {
            self.wake(due);
        }
        InsertReply::Ok
    }

    /// `turn.lua` and the reads behind it.
    pub(crate) fn turn(&mut self, now: UnixMs, ttl: Duration, turn: &Turn) -> TurnReply {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
        self.claim = self.claim.take().filter(|(_, until)| *until > now);
        let fresh = self.claim.is_none();
        if let Some((holder, until)) = &mut self.claim
            && *holder != turn.token
            && self.bug != Some(Bug::ClaimWithoutToken)
        {
            if until.ms_since(now) > ttl_ms {
                *until = now.plus_ms(ttl_ms);
            }
            return TurnReply::Busy(Duration::from_millis(until.ms_since(now)));
        }
        self.settle(turn);
        let handed_before = self.handed;
        self.handed = self.handed.max(turn.hand_out_to.min(now));
        self.opened = self.opened.max(turn.open_to);
        let mut head = None;
        if let Some(until) = turn.idle_until {
            head = self.due.first_key_value().map(|(score, _)| score.due());
            self.watch = head.map_or(until, |head| head.min(until));
            self.claim = None;
        } else {
            if turn.open_to > UnixMs(0) {
                let beyond = Score::new(turn.open_to, Score::PER_MS - 1);
                head = self
                    .due
                    .keys()
                    .find(|score| **score > beyond)
                    .map(|score| score.due());
                let watch = turn.open_to.plus_ms(ttl_ms);
                self.watch = head.map_or(watch, |head| head.min(watch));
            }
            if turn.extend || self.claim.is_none() {
                self.claim = Some((turn.token.clone(), now.plus_ms(ttl_ms)));
            }
        }
        TurnReply::Held(Held {
            now,
            handed_before,
            handed: self.handed,
            settled: self.settled,
            below: self.below,
            fresh,
            head,
            packs: self.read(turn),
            marks: turn.marks.map(|m| self.marks(m)).unwrap_or_default(),
        })
    }

    fn settle(&mut self, turn: &Turn) {
        for finished in &turn.finished {
            let removed = self.remove(finished.score);
            if removed == 1 {
                for share in &finished.topics {
                    self.count(&share.topic, -i64::try_from(share.messages).unwrap());
                }
                for (place, topic) in &finished.uncounted {
                    if self.uncounted.remove(place) && self.bug != Some(Bug::UntidyNotCounted) {
                        self.count(topic, -1);
                    }
                }
            }
        }
        if turn.settle_to > self.settled {
            self.settled = turn.settle_to.min(self.handed);
            let trimmed = self.settled.minus_ms(4_096);
            for (place, due) in &self.cancelled {
                if *due <= trimmed {
                    self.left.remove(&(place.score, place.nonce));
                }
            }
            self.cancelled.retain(|_, due| *due > trimmed);
            self.uncounted
                .retain(|place| self.cancelled.contains_key(place));
        }
    }

    fn read(&self, turn: &Turn) -> Vec<ReadPack> {
        let Some(read) = turn.read else {
            return Vec::new();
        };
        let last = Score::new(read.to, Score::PER_MS - 1);
        if read.after >= last {
            return Vec::new();
        }
        let packs = self.due.range(Score(read.after.0 + 1)..=last);
        packs
            .flat_map(|(_, packs)| packs)
            .take(read.limit)
            .map(|pack| ReadPack::Pack(pack.clone()))
            .collect()
    }

    fn marks(&self, read: ReadMarks) -> Vec<Mark> {
        if self.bug == Some(Bug::MarksDropped) {
            return Vec::new();
        }
        let within = |(_, due): &(&Place, &UnixMs)| **due > read.after && **due <= read.to;
        self.cancelled
            .iter()
            .filter(within)
            .map(|(place, _)| Mark {
                place: *place,
                counted: !self.uncounted.contains(place),
            })
            .collect()
    }

    /// The record at a place, and how many its pack has.
    pub(crate) fn record_at(&self, place: Place) -> (usize, Option<&Record>) {
        let packs = self.due.get(&place.score).into_iter().flatten();
        let mut packs = packs.filter(|pack| pack.nonce == place.nonce);
        packs.next().map_or((0, None), |pack| {
            let record = pack.records.iter().find(|r| r.position == place.position);
            (pack.records.len(), record)
        })
    }

    /// `move.lua`
    pub(crate) fn shift(&mut self, now: UnixMs, change: &Move) -> PlaceReply {
        let limit = now.max(self.handed);
        let entry = self.ids.get(&change.id).copied();
        if entry == Some(change.entry) {
            return PlaceReply::Ok;
        }
        if entry != change.entry_read {
            return PlaceReply::Changed;
        }
        if self.closed {
            return PlaceReply::Closed;
        }
        let (old_due, new_due) = (change.from_due, change.entry.due);
        let held = entry.is_some_and(|entry| entry.kind == Kind::Held);
        if !held {
            if old_due <= self.settled {
                return PlaceReply::Gone;
            }
            if self.is_marked(change.from) {
                return PlaceReply::Cancelled;
            }
            if old_due <= self.handed {
                return PlaceReply::InFlight;
            }
        }
        if new_due <= self.handed {
            return PlaceReply::Late(limit);
        }
        if self.has(change.pack.score) {
            return PlaceReply::Taken;
        }
        if !held {
            self.cancelled.insert(change.from, old_due);
        }
        self.add(change.pack.clone());
        self.ids.insert(change.id.clone(), change.entry);
        self.live_until(&change.id, old_due.max(new_due));
        let others = self
            .left
            .contains_key(&(change.from.score, change.from.nonce));
        if !held && !others && change.from_records == 1 && change.from.score.due() > self.opened {
            self.remove(change.from.score);
        }
        self.appear(new_due);
        PlaceReply::Ok
    }

    /// `park.lua`. `pack`: where they go; none for the dead letters. `held`: among what is held of it.
    pub(crate) fn park(
        &mut self,
        now: UnixMs,
        token: &ClaimToken,
        pack: Option<&Pack>,
        held: Option<&TopicName>,
        dead_max: usize,
        messages: &[ParkedMessage],
    ) -> PlaceReply {
        self.claim = self.claim.take().filter(|(_, until)| *until > now);
        let ours = self
            .claim
            .as_ref()
            .is_some_and(|(holder, _)| holder == token);
        if !ours && self.bug != Some(Bug::ClaimWithoutToken) {
            return PlaceReply::Fenced;
        }
        let limit = now.max(self.handed);
        let (mut marked, mut done) = (Vec::new(), 0);
        for message in messages {
            if self.cancelled.contains_key(&message.from) {
                if self.ids.get(&message.id) == Some(&message.entry) {
                    done += 1;
                } else {
                    marked.push(message.id.clone());
                }
            }
        }
        if done == messages.len() {
            return PlaceReply::Ok;
        }
        if !marked.is_empty() {
            return PlaceReply::Marked(marked);
        }
        if let (Some(pack), Some(topic)) = (pack, held) {
            if self
                .held
                .get(topic)
                .is_some_and(|packs| packs.contains_key(&pack.score))
            {
                return PlaceReply::Taken;
            }
            self.count_bytes(pack, 1);
            let packs = self.held.entry(topic.clone()).or_default();
            packs.insert(pack.score, pack.clone());
        } else if let Some(pack) = pack {
            if pack.score.due() <= self.handed {
                return PlaceReply::Late(limit);
            }
            if self.has(pack.score) {
                return PlaceReply::Taken;
            }
            self.add(pack.clone());
        } else if self.dead.len() + messages.len() > dead_max {
            return PlaceReply::Full;
        }
        for message in messages {
            self.cancelled.insert(message.from, message.from_due);
            self.ids.insert(message.id.clone(), message.entry);
            if let Some(dead_letter) = &message.dead_letter {
                self.dead.insert(message.id.clone(), dead_letter.clone());
                self.count(&message.topic, -1);
            } else if held.is_none() {
                self.live_until(&message.id, message.from_due.max(message.entry.due));
            }
        }
        if let Some(pack) = pack
            && held.is_none()
        {
            self.appear(pack.score.due());
        }
        PlaceReply::Ok
    }

    /// `requeue.lua`. Without a pack the dead letter is dropped.
    pub(crate) fn requeue(
        &mut self,
        now: UnixMs,
        window_ms: u64,
        id: &str,
        read: &DeadLetter,
        to: Option<&(Pack, Entry)>,
    ) -> PlaceReply {
        let limit = now.max(self.handed);
        if self.dead.get(id) != Some(read) {
            return PlaceReply::Gone;
        }
        let Some((pack, entry)) = to else {
            self.dead.remove(id);
            if let Some(entry) = self.ids.get_mut(id) {
                entry.kind = Kind::Cancelled;
            }
            self.live.remove(id);
            self.gone.insert(id.to_owned(), now.plus_ms(window_ms));
            return PlaceReply::Ok;
        };
        let due = pack.score.due();
        if due <= self.handed {
            return PlaceReply::Late(limit);
        }
        if self.has(pack.score) {
            return PlaceReply::Taken;
        }
        self.add(pack.clone());
        self.ids.insert(id.to_owned(), *entry);
        self.live_until(id, due);
        self.dead.remove(id);
        self.count(&read.record.topic, 1);
        self.appear(due);
        PlaceReply::Ok
    }

    /// `trim.lua`
    pub(crate) fn trim(&mut self, now: UnixMs, window_ms: u64, max: usize) -> bool {
        let settled = self.settled;
        let passed = self.live.iter().filter(|(_, due)| **due <= settled);
        let passed: Vec<String> = passed.map(|(id, _)| id.clone()).take(max).collect();
        for id in &passed {
            self.live.remove(id);
            let kind = self.ids.get(id).map_or(Kind::Dead, |entry| entry.kind);
            if !matches!(kind, Kind::Dead | Kind::Held) {
                self.gone.insert(id.clone(), now.plus_ms(window_ms));
            }
        }
        let old = self.gone.iter().filter(|(_, due)| **due <= now);
        let old: Vec<String> = old.map(|(id, _)| id.clone()).take(max).collect();
        for id in &old {
            self.gone.remove(id);
            self.ids.remove(id);
        }
        passed.len().max(old.len()) >= max
    }
}
