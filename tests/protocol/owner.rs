//! What an instance believes of the shard that it owns, and what it asks for next. Knows of Redis only
//! what replies say.
//!
//! The one deviation from an implementation: nothing here looks at how long the claim still lives.
//! An instance may be paused between the look and the write, so no promise but that of few
//! duplicates may rest on it; the model shows that none does.

use crate::plan::{END, PACKS, PER_MS, RECORDS};
use crate::redis::{Held, Redis, Turn, pack_of, records_of};
use crate::rules::Rule;
use crate::shard::{World, alike};

/// No second read is due.
pub(crate) const NEVER: u8 = u8::MAX;

/// Where a record stands in its owner's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Not in memory.
    Absent,
    /// Not sent by this session.
    Pending,
    /// Sent, not answered.
    Sent,
    /// Over: accepted, parked, dead, or at or below S.
    Done,
    /// nsqd refused it, and no earlier send of this session is unanswered.
    Refused,
    /// nsqd refused it, after a send that was not answered.
    SentRefused,
    /// A park was sent, not answered.
    Parking,
}

const STATUSES: [Status; 7] = [
    Status::Absent,
    Status::Pending,
    Status::Sent,
    Status::Done,
    Status::Refused,
    Status::SentRefused,
    Status::Parking,
];

/// An instance's memory of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Instance {
    /// Its estimate of Redis's clock; 0 before the first reply. The only thing that outlives a session.
    pub(crate) clock: u8,
    /// Whether it holds, as far as it knows, the claim.
    pub(crate) session: bool,
    /// H of the last reply.
    pub(crate) handed: u8,
    /// The marks of what is due up to here have been read, and no more can come.
    pub(crate) marks_to: u8,
    /// What is due up to here may be published.
    pub(crate) out: u8,
    /// Packs up to this score have been read.
    pub(crate) cursor: u8,
    /// Whether there was no pack after the cursor, up to where was read.
    pub(crate) whole: bool,
    /// The H from which the next turn reads again, or [`NEVER`].
    pub(crate) again: u8,
    /// H when the session began: an owner before may have sent what is due up to here.
    pub(crate) found: u8,
    /// The marks that it has read.
    pub(crate) marks: u16,
    /// A [`Status`] a place, four bits each.
    pub(crate) statuses: u64,
    /// Until when it sleeps, unless a wake comes; 0: it is awake.
    pub(crate) asleep_until: u8,
    /// A turn on its way to Redis.
    pub(crate) sent: Option<Turn>,
    /// Without R6: the turn whose marks are still to be read.
    pub(crate) owed: Option<Turn>,
}

impl Instance {
    /// One that knows nothing but the time.
    pub(crate) fn new(clock: u8) -> Self {
        Self {
            clock,
            session: false,
            handed: 0,
            marks_to: 0,
            out: 0,
            cursor: 0,
            whole: false,
            again: NEVER,
            found: 0,
            marks: 0,
            statuses: 0,
            asleep_until: 0,
            sent: None,
            owed: None,
        }
    }

    /// Where the record at `place` stands.
    pub(crate) fn status(&self, place: usize) -> Status {
        STATUSES[(self.statuses >> (place * 4) & 15) as usize]
    }

    pub(crate) fn set(&mut self, place: usize, status: Status) {
        self.statuses &= !(15 << (place * 4));
        self.statuses |= (status as u64) << (place * 4);
    }

    /// Whether the record is known not to be delivered from there.
    pub(crate) fn marked(&self, place: usize) -> bool {
        self.marks & (1 << place) != 0
    }

    fn over(&self, place: usize) -> bool {
        let status = self.status(place);
        status == Status::Done || (status != Status::Absent && self.marked(place))
    }

    fn holds(&self, pack: usize) -> bool {
        (pack * RECORDS..(pack + 1) * RECORDS).any(|place| self.status(place) != Status::Absent)
    }

    fn all_over(&self, pack: usize) -> bool {
        (pack * RECORDS..(pack + 1) * RECORDS)
            .all(|place| self.status(place) == Status::Absent || self.over(place))
    }

    /// Whether the pack can be removed. A record that is marked is over before H reaches it, but
    /// above H the score may be given to another pack, if another owner removes this one.
    fn finished(&self, world: &World<'_>, stamps: [u8; PACKS], pack: usize) -> bool {
        let passed = (pack * RECORDS..(pack + 1) * RECORDS)
            .all(|place| world.due(stamps, place) <= self.handed);
        let passed = passed || !world.keeps(Rule::FinishedBelowHorizon);
        self.holds(pack) && self.all_over(pack) && passed
    }

    /// Until when it sleeps; 0: it is awake. Each change of `watch` was published to it.
    pub(crate) fn sleeps_until(&self, redis: &Redis) -> u8 {
        match redis.watch {
            0 => self.asleep_until,
            watch => self.asleep_until.min(watch),
        }
    }

    /// Whether nothing is under way, and nothing unread.
    pub(crate) fn idle(&self) -> bool {
        self.session
            && self.whole
            && self.again == NEVER
            && (0..PACKS).all(|pack| self.all_over(pack))
    }

    /// S: below all that is not over, the first unread pack, and the H of a second read that is due.
    fn settle_to(&self, world: &World<'_>, stamps: [u8; PACKS]) -> u8 {
        let mut settled = self.handed;
        for place in 0..PACKS * RECORDS {
            let status = self.status(place);
            let over =
                self.over(place) || (status == Status::Sent && !world.keeps(Rule::SettleAfterOk));
            if status != Status::Absent && !over {
                settled = settled.min(world.due(stamps, place).saturating_sub(1));
            }
        }
        let read = self.cursor / PER_MS;
        if self.whole && world.keeps(Rule::ReadEndHoldsSettled) {
            settled = settled.min(read);
        }
        // Another pack may begin in the same ms as the last one that was read.
        if !self.whole && world.keeps(Rule::UnreadHoldsSettled) {
            settled = settled.min(read.saturating_sub(1));
        }
        if world.keeps(Rule::SecondReadHoldsSettled) {
            settled = settled.min(self.again);
        }
        settled
    }

    /// The next turn. `hold`: nothing more is handed out; `release`: the claim is given back.
    pub(crate) fn turn(
        &self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        hold: bool,
        release: bool,
    ) -> Turn {
        let hand_out_to = if hold { 0 } else { self.clock };
        let reads = self.reads_now();
        let open_to = if reads {
            (self.clock + world.plan.ahead).min(END)
        } else {
            0
        };
        let idle_until = if release { END } else { 0 };
        if !self.session {
            return Turn {
                first: true,
                hand_out_to,
                open_to,
                reads,
                marks_to: hand_out_to,
                ..Turn::default()
            };
        }
        let finished = (0..PACKS).filter(|pack| self.finished(world, stamps, *pack));
        Turn {
            first: false,
            settle_to: self.settle_to(world, stamps),
            finished: finished.fold(0, |packs, pack| packs | 1 << pack),
            hand_out_to,
            open_to,
            reads,
            idle_until,
            read_after: self.read_after(world),
            marks_after: self.marks_to,
            marks_to: hand_out_to.max(self.handed),
        }
    }

    /// A turn reads when nothing is known, when more is to be read, and when the last read is over.
    fn reads_now(&self) -> bool {
        !self.session || !self.whole || self.again != NEVER || self.clock >= self.cursor / PER_MS
    }

    fn read_after(&self, world: &World<'_>) -> u8 {
        let from = match self.again {
            NEVER if world.plan.reads_from_handed && self.idle() => self.handed,
            NEVER => return self.cursor,
            handed => handed,
        };
        let from = from * PER_MS + PER_MS - 1;
        if self.again != NEVER || world.keeps(Rule::EmptyReadsOnFromCursor) {
            self.cursor.min(from)
        } else {
            from
        }
    }

    /// The reply to `turn`. `below`: the counter is not what the reply before said.
    pub(crate) fn held(
        &mut self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        turn: &Turn,
        held: &Held,
        now: (u8, u8, u8),
        below: bool,
    ) {
        let (now, handed, settled) = now;
        self.asleep_until = 0;
        if turn.first {
            self.session = true;
            self.found = held.handed_before;
        }
        // Inserts since the reply before were above its H; what this very turn read from there or
        // from below, it has seen.
        let seen = turn.reads && turn.read_after / PER_MS <= self.handed;
        let missed = !turn.first && below && !seen;
        self.again = if missed && world.keeps(Rule::ReadsAgain) {
            self.handed
        } else {
            NEVER
        };
        for pack in (0..PACKS).filter(|pack| turn.finished & (1 << pack) != 0) {
            for place in pack * RECORDS..(pack + 1) * RECORDS {
                self.set(place, Status::Absent);
            }
        }
        for pack in 0..PACKS {
            let known = if world.keeps(Rule::FinishedRemembered) {
                self.holds(pack)
            } else {
                self.holds(pack) && !self.all_over(pack)
            };
            if held.records & records_of(pack) == 0 || known {
                continue;
            }
            for place in pack * RECORDS..(pack + 1) * RECORDS {
                if held.records & (1 << place) != 0 {
                    let gone = world.due(stamps, place) <= settled;
                    self.set(place, if gone { Status::Done } else { Status::Pending });
                }
            }
        }
        if turn.reads {
            self.cursor = held
                .stopped_at
                .unwrap_or(turn.open_to * PER_MS + PER_MS - 1);
            self.whole = held.stopped_at.is_none();
        }
        self.handed = handed;
        // A mark above H may still be joined by others; none at or below it.
        self.marks_to = if world.keeps(Rule::MarksCoverHandOut) {
            self.marks_to.max(turn.marks_to.min(handed))
        } else {
            handed
        };
        self.out = self.marks_to.min(handed);
        if world.keeps(Rule::OnlyRedisClock) {
            self.out = self.out.min(now);
        }
        self.learn(world, stamps, held.marks);
        // What S has passed and memory does not hold is of no more use.
        for place in 0..PACKS * RECORDS {
            if self.status(place) == Status::Absent && world.due(stamps, place) <= settled {
                self.marks &= !(1 << place);
            }
        }
        if turn.idle_until > 0 {
            *self = Self::new(self.clock);
            self.asleep_until = if world.plan.sleeps {
                held.idle_until
            } else {
                0
            };
        }
    }

    /// The marks of a turn.
    pub(crate) fn learn(&mut self, world: &World<'_>, stamps: [u8; PACKS], marks: u16) {
        for place in (0..PACKS * RECORDS).filter(|place| marks & (1 << place) != 0) {
            self.marks |= 1 << place;
            if !world.keeps(Rule::MarkNamesNonce) {
                self.marks |= alike(stamps, place);
            }
        }
    }

    /// Whether the record may be published now.
    pub(crate) fn may_publish(&self, world: &World<'_>, stamps: [u8; PACKS], place: usize) -> bool {
        let status = self.status(place);
        (status == Status::Pending || status == Status::Sent)
            && !self.marked(place)
            && self.owed.is_none()
            && world.due(stamps, place) <= self.out
    }

    /// Whether an earlier send of the record may have arrived.
    pub(crate) fn maybe(
        &self,
        world: &World<'_>,
        stamps: [u8; PACKS],
        maybe: u8,
        place: usize,
    ) -> bool {
        matches!(self.status(place), Status::Sent | Status::SentRefused)
            || world.due(stamps, place) <= self.found
            || maybe & (1 << pack_of(place)) != 0
    }
}
