//! What Redis keeps of the shard, and the scripts that change it. One function per script, named as
//! the script is; each is one atomic step, as a script is. Knows nothing of what clients or owners
//! believe.
//!
//! A place is a pack's number times [`RECORDS`] plus the record's position. A score is
//! `due * PER_MS + k`. The bytes of a pack are the bits of its records in `live`; a mark is the bit of
//! its record's place in `marks` (so it names the nonce, as the real one does).

use crate::plan::{END, MESSAGES, PACKS, PER_MS, RECORDS, Role};
use crate::rules::Rule;
use crate::shard::{World, alike};

/// No entry in the index.
pub(crate) const NO_ENTRY: u8 = 0;
/// The entry of a cancelled id.
pub(crate) const TOMBSTONE: u8 = 100;

/// The keys of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Redis {
    /// H.
    pub(crate) handed: u8,
    /// S.
    pub(crate) settled: u8,
    /// Up to where packs have been read: below it, inserts count.
    pub(crate) opened: u8,
    /// When the owner that sleeps comes back by itself, or is told to; 0: it does not sleep.
    pub(crate) watch: u8,
    /// Whose claim: 0 nobody's, 1 and 2 the instances' sessions, 3 one that is forgotten.
    pub(crate) claim: u8,
    /// For each instance, whether `below` is other than in the reply that it has: the counter itself
    /// would only make states differ.
    pub(crate) below: u8,
    /// Records whose bytes are there.
    pub(crate) live: u16,
    /// Marks.
    pub(crate) marks: u16,
    /// Packs whose copy may have been delivered before, a bit each.
    pub(crate) maybe: u8,
    /// Messages among the dead letters.
    pub(crate) dead: u8,
    /// Those of them that may have been delivered before.
    pub(crate) dead_maybe: u8,
    /// Where a message is now, plus one; only for client ids and what was moved or parked.
    pub(crate) index: [u8; MESSAGES],
    /// What S must have passed before that entry may age.
    pub(crate) ages: [u8; MESSAGES],
}

/// The answer to an insert or to the inserting half of a move or park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is there.
    Ok,
    /// Its due is at or below H.
    Late,
    /// Another pack has the score.
    Taken,
    /// Its client id is known: these messages exist.
    Exists(u8),
}

/// The answer to a cancel or a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done.
    Ok,
    /// 409: it is or may be on its way.
    InFlight,
    /// 404.
    Gone,
    /// 409, and nothing was done: dead, cancelled, or the new time is not possible.
    Refused,
}

/// What a turn asks: the arguments of turn.lua and of the reads in its MULTI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Turn {
    /// The first of its session.
    pub(crate) first: bool,
    /// S, as far as the owner knows.
    pub(crate) settle_to: u8,
    /// Finished packs, a bit each.
    pub(crate) finished: u8,
    /// H, as far as the owner wants.
    pub(crate) hand_out_to: u8,
    /// Up to where packs are read, and no insert may go unnoticed.
    pub(crate) open_to: u8,
    /// Release the claim and sleep until then; 0: keep it.
    pub(crate) idle_until: u8,
    /// Packs are read.
    pub(crate) reads: bool,
    /// Read packs with a higher score than this.
    pub(crate) read_after: u8,
    /// Read marks of records due after this...
    pub(crate) marks_after: u8,
    /// ...and not after this.
    pub(crate) marks_to: u8,
}

/// What a turn answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// The claim was free.
    pub(crate) taken: bool,
    /// H before the turn.
    pub(crate) handed_before: u8,
    /// The records of the packs that were read.
    pub(crate) records: u16,
    /// The highest score that was read, if the limit was met.
    pub(crate) stopped_at: Option<u8>,
    /// The marks that were read.
    pub(crate) marks: u16,
    /// Of a shard that goes idle: when its owner wakes.
    pub(crate) idle_until: u8,
}

/// The pack of a place.
pub(crate) fn pack_of(place: usize) -> usize {
    place / RECORDS
}

/// The bits of a pack's records.
pub(crate) fn records_of(pack: usize) -> u16 {
    ((1 << RECORDS) - 1) << (pack * RECORDS)
}

impl Redis {
    /// Whether the pack is in the zset.
    pub(crate) fn has(&self, pack: usize) -> bool {
        self.live & records_of(pack) != 0
    }

    fn taken(&self, world: &World<'_>, stamps: [u8; PACKS], pack: usize) -> bool {
        world.keeps(Rule::Taken)
            && (0..PACKS)
                .any(|other| other != pack && self.has(other) && stamps[other] == stamps[pack])
    }

    fn late(&self, world: &World<'_>, score: u8) -> bool {
        if !world.keeps(Rule::Late) {
            false
        } else if world.keeps(Rule::ScoreFloor) {
            score / PER_MS <= self.handed
        } else {
            score <= self.handed * PER_MS
        }
    }

    /// The bytes of a pack come, and are counted if an owner may have read past them: the last part of
    /// insert.lua, move.lua and park.lua.
    fn store(&mut self, world: &World<'_>, stamps: [u8; PACKS], pack: usize) {
        let plan = &world.plan.packs[pack];
        for position in 0..plan.records.len() {
            self.live |= 1 << (pack * RECORDS + position);
        }
        let counts = world.keeps(match plan.role {
            Role::Insert => Rule::InsertCounts,
            Role::Move => Rule::MoveCounts,
            Role::Park | Role::Requeue => Rule::ParkCounts,
        });
        let due = stamps[pack] / PER_MS;
        if counts && due <= self.opened {
            self.below = 3;
        }
        if due < self.watch && world.keeps(Rule::WakesBeforeWatch) {
            self.watch = due;
        }
    }

    /// insert.lua: late, taken or identical, then the ids, then the write.
    pub(crate) fn insert(&mut self, world: &World<'_>, stamps: [u8; PACKS], pack: usize) -> Stored {
        let records = world.plan.packs[pack].records;
        let whole = ((1_u16 << records.len()) - 1) << (pack * RECORDS);
        if self.live & records_of(pack) == whole {
            return Stored::Ok;
        }
        if self.late(world, stamps[pack]) {
            return Stored::Late;
        }
        // A pack that was rewritten has the score, and is not identical.
        if self.has(pack) || self.taken(world, stamps, pack) {
            return Stored::Taken;
        }
        if world.plan.client_ids {
            let known = records
                .iter()
                .filter(|(message, _)| self.known(world, *message));
            let known = known.fold(0, |bits, (message, _)| bits | 1_u8 << message);
            let whole_pack = records.len() as u32 == known.count_ones();
            if known != 0 && (whole_pack || world.keeps(Rule::PackRefusedWhole)) {
                return Stored::Exists(known);
            }
            for (position, (message, _)) in records.iter().enumerate() {
                let place = pack * RECORDS + position;
                self.index[*message as usize] = place as u8 + 1;
                self.ages[*message as usize] = world.due(stamps, place);
            }
        }
        self.store(world, stamps, pack);
        Stored::Ok
    }

    fn known(&self, world: &World<'_>, message: u8) -> bool {
        let entry = self.index[message as usize];
        entry != NO_ENTRY && (entry != TOMBSTONE || world.keeps(Rule::Tombstone))
    }

    /// turn.lua up to its reply: claim, settle, hand out, release. `None` is `busy`.
    pub(crate) fn turn(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        now: u8,
        token: u8,
        turn: &Turn,
    ) -> Option<Held> {
        // turn.lua, from the top: busy, and nothing is written.
        let holder = self.claim;
        if holder != 0 && holder != token && world.keeps(Rule::TurnFenced) {
            return None;
        }
        // `-- settle`: S, the marks that it passes, the finished packs.
        if turn.settle_to > self.settled {
            self.settled = turn.settle_to.min(self.handed);
            let passed = self.settled.saturating_sub(world.plan.mark_lag);
            self.marks &= !world.due_in(stamps, 0, passed);
        }
        for pack in (0..PACKS).filter(|pack| turn.finished & (1 << pack) != 0) {
            // ZREMRANGEBYSCORE score score: whatever has the score.
            for other in (0..PACKS).filter(|other| stamps[*other] == stamps[pack]) {
                self.live &= !records_of(other);
            }
        }
        // `-- hand out`: H, `opened`, the claim kept or released.
        let handed_before = self.handed;
        let up_to = if world.keeps(Rule::OnlyRedisClock) {
            turn.hand_out_to.min(now)
        } else {
            turn.hand_out_to
        };
        self.handed = self.handed.max(up_to);
        let opened = if world.keeps(Rule::ReadsBelowOpened) || !turn.reads {
            turn.open_to
        } else {
            (now + world.plan.ahead).min(END)
        };
        // A shard that goes idle sleeps until its head is due.
        let head = (0..PACKS)
            .filter(|pack| self.has(*pack))
            .map(|pack| stamps[pack] / PER_MS)
            .min();
        let idle_until = turn.idle_until.min(head.unwrap_or(END));
        self.opened = self.opened.max(opened);
        self.watch = match turn.idle_until {
            0 => 0,
            _ if world.plan.sleeps && world.keeps(Rule::SleepLeavesWatch) => idle_until,
            _ => 0,
        };
        self.claim = if turn.idle_until > 0 { 0 } else { token };
        // The reads behind the script, in the same MULTI: packs, then marks.
        let (records, stopped_at) = self.read_packs(world, stamps, turn);
        Some(Held {
            taken: holder == 0,
            handed_before,
            records,
            stopped_at,
            marks: self.read_marks(world, stamps, turn.marks_after, turn.marks_to),
            idle_until,
        })
    }

    /// The ZRANGEBYSCORE of packs in the turn's MULTI, with its LIMIT.
    fn read_packs(&self, world: &World<'_>, stamps: [u8; PACKS], turn: &Turn) -> (u16, Option<u8>) {
        let (mut records, mut count, mut last) = (0, 0, turn.read_after);
        if !turn.reads {
            return (0, None);
        }
        while count < world.plan.limit {
            // One pack after the other: of two with one score (only without R2) the first is read,
            // and the second is behind the cursor.
            let next = (0..PACKS)
                .filter(|pack| self.has(*pack))
                .filter(|pack| stamps[*pack] > last && stamps[*pack] / PER_MS <= turn.open_to)
                .min_by_key(|pack| stamps[*pack]);
            let Some(pack) = next else {
                return (records, None);
            };
            records |= self.live & records_of(pack);
            last = stamps[pack];
            count += 1;
        }
        (records, Some(last))
    }

    /// The ZRANGEBYSCORE of marks, last in the turn's MULTI.
    pub(crate) fn read_marks(
        &self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        after: u8,
        to: u8,
    ) -> u16 {
        self.marks & world.due_in(stamps, after, to)
    }

    /// Whether the record is marked: cancelled, moved or parked from there.
    pub(crate) fn marked(&self, world: &World<'_>, stamps: [u8; PACKS], place: usize) -> bool {
        if world.keeps(Rule::MarkNamesNonce) {
            return self.marks & (1 << place) != 0;
        }
        alike(stamps, place) & self.marks != 0
    }

    /// cancel.lua, for a message that the client takes to be at `minted`.
    pub(crate) fn cancel(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        message: usize,
        minted: Option<usize>,
    ) -> Answer {
        // The entry first: `C` cancelled, `D` dead, `S` where it is now.
        let entry = self.index[message];
        if entry == TOMBSTONE {
            return Answer::Ok;
        }
        if self.dead & (1 << message) != 0 && world.keeps(Rule::IndexFirst) {
            return Answer::Refused;
        }
        let Some(place) = self.place(world, message, minted) else {
            return Answer::Gone;
        };
        let due = world.due(stamps, place);
        if world.keeps(Rule::GoneBeforeMark) && due <= self.settled {
            return Answer::Gone;
        }
        if self.marks & (1 << place) != 0 {
            return Answer::Ok;
        }
        if due <= self.settled {
            return Answer::Gone;
        }
        let maybe = self.maybe & (1 << pack_of(place)) != 0;
        if maybe || (due <= self.handed && world.keeps(Rule::CancelAboveHorizon)) {
            return Answer::InFlight;
        }
        // ZADD the mark; what follows is tidy.lua's.
        self.marks |= 1 << place;
        if entry != NO_ENTRY {
            self.index[message] = if world.keeps(Rule::Tombstone) {
                TOMBSTONE
            } else {
                NO_ENTRY
            };
        }
        Answer::Ok
    }

    fn place(&self, world: &World<'_>, message: usize, minted: Option<usize>) -> Option<usize> {
        match self.index[message] {
            NO_ENTRY => minted,
            _ if !world.keeps(Rule::IndexFirst) => minted,
            entry => Some(usize::from(entry) - 1),
        }
    }

    /// tidy.lua, for a record that is marked: its place, and what is left.
    pub(crate) fn tidied(
        &self,
        world: &World<'_>,
        stamps: [u8; PACKS],
    ) -> impl Iterator<Item = (usize, Self)> {
        let marked = self.marks & self.live;
        let marked = (0..PACKS * RECORDS).filter(move |place| marked & (1 << place) != 0);
        marked.filter_map(move |place| {
            let mut after = *self;
            after.mark(world, stamps, place);
            (after != *self).then_some((place, after))
        })
    }

    /// The mark comes, and the bytes go if no owner can have read them: the middle of tidy.lua and
    /// move.lua. A pack of several is rewritten without the record only where the plan says so: the
    /// design allows it, the scripts leave such a pack alone.
    fn mark(&mut self, world: &World<'_>, stamps: [u8; PACKS], place: usize) {
        let pack = pack_of(place);
        self.marks |= 1 << place;
        let alone = world.plan.packs[pack].records.len() == 1;
        let beyond = stamps[pack] / PER_MS > self.opened && (alone || world.plan.rewrites);
        let unmarked = if !beyond {
            !world.keeps(Rule::BytesStayBelowOpened)
        } else if alone {
            !world.keeps(Rule::MarkOutlivesBytes)
        } else {
            !world.keeps(Rule::RewriteKeepsMarks)
        };
        if beyond || unmarked {
            self.live &= !(1 << place);
        }
        if unmarked {
            self.marks &= !(1 << place);
        }
    }

    /// move.lua.
    pub(crate) fn move_to(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        pack: usize,
        minted: Option<usize>,
    ) -> (Answer, Option<usize>) {
        let message = usize::from(world.plan.packs[pack].records[0].0);
        if self.index[message] == TOMBSTONE || self.dead & (1 << message) != 0 {
            return (Answer::Refused, None);
        }
        let Some(old) = self.place(world, message, minted) else {
            return (Answer::Gone, None);
        };
        let due = world.due(stamps, old);
        if self.maybe & (1 << pack_of(old)) != 0 {
            return (Answer::InFlight, None);
        }
        if self.marks & (1 << old) != 0 && world.keeps(Rule::MoveSetsMark) {
            return (Answer::Refused, None);
        }
        if due <= self.settled {
            return (Answer::Gone, None);
        }
        if due <= self.handed && world.keeps(Rule::MoveAboveHorizon) {
            return (Answer::InFlight, None);
        }
        if self.late(world, stamps[pack]) || self.taken(world, stamps, pack) {
            return (Answer::Refused, None);
        }
        // The writes: mark, pack, entry, age, and what is beyond `opened` goes.
        self.mark(world, stamps, old);
        self.store(world, stamps, pack);
        self.point(world, stamps, message, pack, due);
        (Answer::Ok, Some(old))
    }

    /// park.lua, to a later time: `pack` takes the record at `old`. `None` is `fenced`.
    pub(crate) fn park(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        token: u8,
        old: usize,
        pack: usize,
        maybe: bool,
    ) -> Option<Stored> {
        if self.claim != token && world.keeps(Rule::ParkFenced) {
            return None;
        }
        if self.marks & (1 << old) != 0 && world.keeps(Rule::ParkStopsAtMark) {
            return Some(Stored::Ok);
        }
        if self.late(world, stamps[pack]) {
            return Some(Stored::Late);
        }
        if self.taken(world, stamps, pack) {
            return Some(Stored::Taken);
        }
        let message = world.message(old);
        self.marks |= 1 << old;
        if maybe && world.keeps(Rule::ParkKeepsMaybe) {
            self.maybe |= 1 << pack;
        }
        self.store(world, stamps, pack);
        self.point(world, stamps, message, pack, world.due(stamps, old));
        Some(Stored::Ok)
    }

    /// park.lua, to the dead letters. `false` is `fenced`.
    pub(crate) fn bury(&mut self, world: &World<'_>, token: u8, old: usize, maybe: bool) -> bool {
        if self.claim != token {
            return false;
        }
        if self.marks & (1 << old) == 0 {
            let message = 1 << world.message(old);
            self.marks |= 1 << old;
            self.dead |= message;
            if maybe {
                self.dead_maybe |= message;
            }
        }
        true
    }

    /// requeue.lua. `false`: not a dead letter, `late` or `taken`.
    pub(crate) fn requeue(&mut self, world: &World<'_>, stamps: [u8; PACKS], pack: usize) -> bool {
        let message = usize::from(world.plan.packs[pack].records[0].0);
        let dead = self.dead & (1 << message) != 0;
        if !dead || self.late(world, stamps[pack]) || self.taken(world, stamps, pack) {
            return false;
        }
        if self.dead_maybe & (1 << message) != 0 && world.keeps(Rule::RequeueKeepsMaybe) {
            self.maybe |= 1 << pack;
        }
        self.store(world, stamps, pack);
        self.dead &= !(1 << message);
        self.dead_maybe &= !(1 << message);
        self.point(world, stamps, message, pack, 0);
        true
    }

    /// The index says where the message is now: the end of move.lua, park.lua and requeue.lua.
    fn point(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        message: usize,
        pack: usize,
        old_due: u8,
    ) {
        self.index[message] = (pack * RECORDS) as u8 + 1;
        let mut age = stamps[pack] / PER_MS;
        if world.keeps(Rule::EntryOutlivesOldPlace) {
            age = age.max(old_due);
        }
        if world.keeps(Rule::EntryAgeOnlyGrows) {
            age = age.max(self.ages[message]);
        }
        self.ages[message] = age;
    }

    /// trim.lua, with no `dedupe_window`.
    pub(crate) fn trim(&mut self, world: &World<'_>, now: u8) {
        let passed = if world.keeps(Rule::IdsTrimmedBySettled) {
            self.settled
        } else {
            now
        };
        for message in 0..MESSAGES {
            let entry = self.index[message];
            let dead = self.dead & (1 << message) != 0;
            let stays = entry == NO_ENTRY || entry == TOMBSTONE || dead;
            if !stays && self.ages[message] <= passed {
                self.index[message] = NO_ENTRY;
                self.ages[message] = 0;
            }
        }
    }
}
