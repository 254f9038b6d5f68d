//! PURE. Judges a history: one small state machine a message, fed event by event, so the whole is O(n).
//! Knows no server and no clock; what it must find is tested on histories written by hand.
//!
//! What is promised, and therefore held against the history:
//!
//! - *lost*: acknowledged, not taken back, and neither handed to an nsqd that said OK, nor a dead letter,
//!   nor still pending for a time that has not come.
//! - *early*: sent towards an nsqd before the request's start + delay.
//! - *resurrected*: a cancel was answered with success, and it was sent all the same; or a move was, and
//!   it was sent before its new time.
//! - *refused*: every attempt to publish was refused, and it was sent all the same.
//! - *altered*: a body that is not, byte for byte, what was published.
//! - *torn*: a batch that is stored whole or not at all, of which some came and some did not.
//! - *gone*: said to be delivered, or never there, before it was.
//! - *duplicate*: more copies than faults explain (below).
//! - *unexpected*: what nobody published; answers that nothing explains.
//! - *stuck*: after everything was repaired, something was not delivered within the time allowed.
//!
//! **Where delivery ends.** Our part ends at nsqd's OK, which the harness reads on the wire. What an nsqd
//! took and no consumer got is *lost by nsqd* if that nsqd was killed afterwards, and *lost* if not.
//!
//! **Duplicates.** A copy is one nsqd's own id of a message; nsqd's repetitions of one id are not ours.
//! Without a fault between the first and the last sending there is one copy. A fault explains one more copy of a
//! message, and one more for each [`RETRY_EACH_US`] that it lasts: a sending that is not answered is repeated after
//! `forward_timeout`. All faults together explain at most [`Bound::in_flight`] copies each and as often: what
//! was in flight, shards x `unsettled_max`.

use std::collections::{BTreeMap, HashMap};

use crate::event::{Asked, Event, Number, Op, Outcome, Phase};

/// A sending without an answer is given up after this long (`forward_timeout`, 2 s) and repeated.
const RETRY_EACH_US: u64 = 2_000_000;
/// How long a repaired fault may still show: an answer that it held back is missed only now, and what it froze
/// believes for a moment that it goes on as before.
const AFTERMATH_US: u64 = 3_000_000;
/// A fault that is followed by silence for so long has hit a run that stood still anyway.
const REACH_US: u64 = 5_000_000;

/// What a run is held against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    /// Most messages that can be in flight: shards x `unsettled_max`.
    pub(crate) in_flight: u64,
    /// Fewer acknowledged messages make a run worthless.
    pub(crate) acknowledged_min: usize,
}

/// An attempt to publish, or a move.
#[derive(Debug, Clone, Copy)]
struct Placing {
    start: u64,
    end: u64,
    delay_us: u64,
    outcome: Outcome,
}

/// What is known of one message.
#[derive(Debug, Default)]
struct Life {
    publishes: Vec<Placing>,
    moves: Vec<Placing>,
    cancels: Vec<(u64, u64, Outcome)>,
    looks: Vec<(u64, u64, Outcome)>,
    /// First and last moment at which it was sent, or came.
    sent: Option<(u64, u64)>,
    /// The nsqds that said OK, and when.
    taken: Vec<(usize, u64)>,
    copies: Vec<(usize, String)>,
    first_delivery: u64,
    altered: bool,
    dead: bool,
    pending: bool,
}

/// One fault of the schedule.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: &'static str,
    pub(crate) words: String,
    pub(crate) start: u64,
    /// `u64::MAX`: it was never repaired.
    pub(crate) stop: u64,
    pub(crate) hits: u64,
    pub(crate) unavailable: Option<String>,
    /// Answers to producers, and deliveries, while it lasted or right after.
    pub(crate) events: u64,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What breaks a promise, by its name, with the words for a reader.
    pub(crate) broken: Vec<(&'static str, String)>,
    /// What makes the run worthless although nothing is broken.
    pub(crate) invalid: Vec<String>,
    pub(crate) published: usize,
    pub(crate) acknowledged: usize,
    pub(crate) refused: usize,
    pub(crate) unknown: usize,
    /// Of unknown outcome, and found afterwards.
    pub(crate) unknown_took_effect: usize,
    pub(crate) delivered: usize,
    pub(crate) cancelled: usize,
    /// Of those: the cancel's answer was lost, and the message did not come.
    pub(crate) cancelled_unheard: usize,
    pub(crate) moved: usize,
    pub(crate) too_late: usize,
    pub(crate) dead: usize,
    pub(crate) pending: usize,
    pub(crate) lost_by_nsqd: usize,
    pub(crate) extra_copies: u64,
    pub(crate) extra_copies_most: u64,
    /// As many as the faults explain at most.
    pub(crate) explained_copies: u64,
    /// Lateness of first deliveries in ms, sorted, by the phase of the due time.
    pub(crate) lateness_ms: BTreeMap<Phase, Vec<u64>>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) drains_ms: Vec<u64>,
}

impl Verdict {
    /// How many broke this promise.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.broken.iter().filter(|(n, _)| *n == name).count()
    }

    fn breaks(&mut self, promise: &'static str, words: String) {
        self.broken.push((promise, words));
    }
}

/// Takes events in any order of their moments; messages are judged at the end.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    lives: HashMap<Number, Life>,
    /// Batches of several messages: stored whole, or not at all.
    batches: Vec<Vec<Number>>,
    faults: Vec<Fault>,
    nsqd_kills: Vec<(usize, u64)>,
    phases: Vec<(u64, Phase)>,
    broken: Vec<(&'static str, String)>,
    drains_ms: Vec<u64>,
    /// When a producer was answered or a message came, in the order of the record.
    heartbeats: Vec<u64>,
}

impl Checker {
    /// Takes one event.
    pub(crate) fn apply(&mut self, event: &Event) {
        match event {
            Event::Op(op) => self.apply_op(op),
            Event::Offered { id, t, intact, .. } => {
                let life = self.lives.entry(*id).or_default();
                life.saw(*t);
                life.altered |= !intact;
            }
            Event::Taken { id, t, nsqd } => {
                self.lives.entry(*id).or_default().taken.push((*nsqd, *t));
            }
            Event::Delivered {
                id,
                t,
                nsqd,
                copy,
                intact,
                ..
            } => {
                self.heartbeats.push(*t);
                let life = self.lives.entry(*id).or_default();
                life.altered |= !intact;
                if !life.copies.iter().any(|(n, c)| n == nsqd && c == copy) {
                    if life.copies.is_empty() {
                        life.first_delivery = *t;
                    }
                    life.copies.push((*nsqd, copy.clone()));
                    // nsqd may keep it for a while: when it came says nothing about when it was sent, but
                    // that it was sent before.
                    if life.sent.is_none() {
                        life.saw(*t);
                    }
                }
            }
            Event::Alien { t, nsqd } => {
                let words = format!("nsqd {nsqd} delivered what nobody published, at {t} µs");
                self.broken.push(("unexpected", words));
            }
            Event::FaultStart { .. } | Event::FaultStop { .. } => self.apply_fault(event),
            Event::Phase { phase, t } => self.phases.push((*t, *phase)),
            Event::Drained { owed, took_ms, .. } => {
                self.drains_ms.push(*took_ms);
                if *owed > 0 {
                    let words = format!("{owed} messages not delivered {took_ms} ms after healing");
                    self.broken.push(("stuck", words));
                }
            }
            Event::IsDead { id } => self.lives.entry(*id).or_default().dead = true,
            Event::Requeued { id } => self.lives.entry(*id).or_default().dead = false,
            Event::IsPending { id } => self.lives.entry(*id).or_default().pending = true,
            Event::Wrong { words } => self.broken.push(("unexpected", words.clone())),
        }
    }

    fn apply_fault(&mut self, event: &Event) {
        match event {
            Event::FaultStart {
                fault,
                kind,
                words,
                t,
                kills_nsqd,
            } => {
                debug_assert_eq!(*fault, self.faults.len());
                self.faults.push(Fault {
                    kind,
                    words: words.clone(),
                    start: *t,
                    stop: u64::MAX,
                    hits: 0,
                    unavailable: None,
                    events: 0,
                });
                self.nsqd_kills.extend(kills_nsqd.map(|nsqd| (nsqd, *t)));
            }
            Event::FaultStop {
                fault,
                t,
                hits,
                unavailable,
            } => {
                if let Some(fault) = self.faults.get_mut(*fault) {
                    fault.stop = *t;
                    fault.hits = *hits;
                    fault.unavailable.clone_from(unavailable);
                }
            }
            _ => (),
        }
    }

    fn apply_op(&mut self, op: &Op) {
        self.heartbeats.push(op.t_end);
        if op.outcome == Outcome::Odd {
            let words = format!("{:?} of {:?} was answered {:?}", op.asked, op.ids, op.words);
            self.broken.push(("unexpected", words));
        }
        let placing = Placing {
            start: op.t_start,
            end: op.t_end,
            delay_us: op.delay_ms * 1_000,
            outcome: op.outcome,
        };
        for id in &op.ids {
            let life = self.lives.entry(*id).or_default();
            match op.asked {
                Asked::Publish => life.publishes.push(placing),
                Asked::Move => life.moves.push(placing),
                Asked::Cancel => life.cancels.push((op.t_start, op.t_end, op.outcome)),
                Asked::Look => life.looks.push((op.t_start, op.t_end, op.outcome)),
            }
        }
        if op.asked == Asked::Publish && op.ids.len() > 1 {
            self.batches.push(op.ids.clone());
        }
    }

    /// Messages that are due by `until` and were not delivered, as far as is known.
    pub(crate) fn owed(&self, until: u64) -> usize {
        let owed = self.lives.values().filter(|life| {
            life.is_acknowledged()
                && !life.may_be_cancelled()
                && !life.dead
                && life.copies.is_empty()
                && !self.died_with_nsqd(life)
                && life.latest_due().is_none_or(|due| due <= until)
        });
        owed.count()
    }

    /// An nsqd that said OK to it was killed afterwards.
    fn died_with_nsqd(&self, life: &Life) -> bool {
        life.taken.iter().any(|(nsqd, at)| {
            let killed = |(n, t): &(usize, u64)| n == nsqd && t >= at;
            self.nsqd_kills.iter().any(killed)
        })
    }

    /// Judges everything.
    pub(crate) fn verdict(mut self, bound: Bound) -> Verdict {
        let mut verdict = Verdict {
            broken: std::mem::take(&mut self.broken),
            drains_ms: std::mem::take(&mut self.drains_ms),
            ..Verdict::default()
        };
        self.weigh_faults(&mut verdict);
        let mut lives: Vec<_> = self.lives.iter().collect();
        lives.sort_unstable_by_key(|(id, _)| **id);
        for (id, life) in lives {
            self.judge(*id, life, &mut verdict);
        }
        self.judge_batches(&mut verdict);
        verdict.explained_copies = bound.in_flight * self.faults.len() as u64;
        let explained = verdict.explained_copies;
        // Without any fault each copy is told by itself.
        if explained > 0 && verdict.extra_copies > explained {
            let words = format!(
                "{} copies beyond the first, and at most {explained} were in flight at faults",
                verdict.extra_copies
            );
            verdict.breaks("duplicate", words);
        }
        if verdict.acknowledged < bound.acknowledged_min {
            let words = format!(
                "only {} messages were acknowledged, fewer than {}",
                verdict.acknowledged, bound.acknowledged_min
            );
            verdict.invalid.push(words);
        }
        for lateness in verdict.lateness_ms.values_mut() {
            lateness.sort_unstable();
        }
        verdict
    }

    /// A fault that hit nothing proves nothing.
    fn weigh_faults(&mut self, verdict: &mut Verdict) {
        self.heartbeats.sort_unstable();
        for fault in &mut self.faults {
            let stop = fault.stop.saturating_add(REACH_US);
            let before = |t: u64| self.heartbeats.partition_point(|at| *at < t) as u64;
            fault.events = before(stop) - before(fault.start);
            if fault.unavailable.is_none() && (fault.hits == 0 || fault.events == 0) {
                let words = format!("the fault {} ({}) hit nothing", fault.kind, fault.words);
                verdict.invalid.push(words);
            }
        }
        verdict.faults.clone_from(&self.faults);
        self.faults.retain(|fault| fault.unavailable.is_none());
    }

    /// How many further copies of one message faults explain between two moments.
    fn explained(&self, first: u64, last: u64) -> u64 {
        let overlapping = self
            .faults
            .iter()
            .filter(|f| f.start <= last && f.stop.saturating_add(AFTERMATH_US) >= first);
        overlapping
            .map(|f| {
                1 + (f.stop.saturating_add(AFTERMATH_US).min(last) - f.start.min(last))
                    / RETRY_EACH_US
            })
            .sum()
    }

    fn phase_at(&self, t: u64) -> Phase {
        let after = self.phases.partition_point(|(start, _)| *start <= t);
        let phase = after.checked_sub(1).and_then(|at| self.phases.get(at));
        phase.map_or(Phase::Healthy, |(_, phase)| *phase)
    }

    fn judge(&self, id: Number, life: &Life, verdict: &mut Verdict) {
        if life.publishes.is_empty() {
            verdict.breaks("unexpected", format!("{id} was never published"));
            return;
        }
        verdict.published += 1;
        let acknowledged = life.is_acknowledged();
        let known = acknowledged || life.publishes.iter().all(|p| p.outcome == Outcome::Fail);
        let came = life.sent.is_some() || !life.taken.is_empty();
        verdict.acknowledged += usize::from(acknowledged);
        verdict.unknown += usize::from(!known);
        verdict.unknown_took_effect +=
            usize::from(!known && (came || life.dead || life.pending || life.is_cancelled()));
        verdict.refused += usize::from(!acknowledged && known);
        verdict.moved += usize::from(life.moves.iter().any(|m| m.outcome == Outcome::Ok));
        verdict.too_late += usize::from(
            life.cancels
                .iter()
                .any(|c| c.2 == Outcome::InFlight || c.2 == Outcome::Gone),
        );
        if life.altered {
            verdict.breaks("altered", format!("{id} came with other bytes: {life:?}"));
        }
        if known && !acknowledged && (came || life.pending || life.dead) {
            verdict.breaks(
                "refused",
                format!("{id} was refused and is there: {life:?}"),
            );
        }
        self.judge_times(id, life, verdict);
        Self::judge_answers(id, life, verdict);
        self.judge_copies(id, life, verdict);
        self.judge_fate(id, life, verdict);
    }

    /// Never before the earliest time that any successful or doubtful request allows.
    fn judge_times(&self, id: Number, life: &Life, verdict: &mut Verdict) {
        let Some((first, _)) = life.sent else { return };
        let doubtful = |p: &&Placing| matches!(p.outcome, Outcome::Ok | Outcome::Unknown);
        let due = |p: &Placing| p.start + p.delay_us;
        let original = life.publishes.iter().filter(doubtful).map(due).min();
        let mut places: Vec<u64> = original.into_iter().collect();
        for step in life.moves.iter().filter(doubtful) {
            // A success voids every earlier place: the message cannot have been handed out from there.
            if step.outcome == Outcome::Ok {
                places.clear();
            }
            places.push(due(step));
        }
        let Some(earliest) = places.into_iter().min() else {
            return;
        };
        if first < earliest {
            let by = (earliest - first) / 1_000;
            if original.is_some_and(|original| first >= original) {
                let words = format!("{id} came {by} ms before its new time: {life:?}");
                verdict.breaks("resurrected", words);
            } else {
                verdict.breaks("early", format!("{id} came {by} ms early: {life:?}"));
            }
        } else if let Some(due) = life.latest_due()
            && !life.copies.is_empty()
        {
            let late = life.first_delivery.saturating_sub(due) / 1_000;
            let phase = self.phase_at(due);
            verdict.lateness_ms.entry(phase).or_default().push(late);
        }
    }

    /// What was said of it was true.
    fn judge_answers(id: Number, life: &Life, verdict: &mut Verdict) {
        // Sent before, and refused by nsqd for certain: it may still be cancelled. Never sent after it.
        let sent = |end: u64| life.sent.is_some_and(|(_, last)| last > end);
        let cancelled = life
            .cancels
            .iter()
            .filter(|c| c.2 == Outcome::Ok)
            .map(|c| c.1)
            .min();
        if let Some(end) = cancelled
            && (sent(end) || !life.taken.is_empty() || !life.copies.is_empty())
        {
            verdict.breaks(
                "resurrected",
                format!("{id} was cancelled and sent: {life:?}"),
            );
        }
        let Some(stored) = life.acknowledged_at() else {
            return;
        };
        let answers = life
            .cancels
            .iter()
            .copied()
            .chain(life.moves.iter().map(|m| (m.start, m.end, m.outcome)))
            .chain(life.looks.iter().copied());
        for (start, end, outcome) in answers {
            let delivered = life.taken.iter().any(|(_, at)| *at <= end);
            let excused = life.may_be_cancelled();
            if outcome == Outcome::Gone && stored < start && !delivered && !excused {
                let words = format!("{id} was said to be gone before nsqd had it: {life:?}");
                verdict.breaks("gone", words);
            }
            if outcome == Outcome::Cancelled && !excused {
                let words = format!("{id} was said to be cancelled, and was not: {life:?}");
                verdict.breaks("gone", words);
            }
        }
    }

    fn judge_copies(&self, id: Number, life: &Life, verdict: &mut Verdict) {
        let extra = (life.copies.len() as u64).saturating_sub(1);
        verdict.extra_copies += extra;
        verdict.extra_copies_most = verdict.extra_copies_most.max(extra);
        let Some((first, last)) = life.sent else {
            return;
        };
        if extra > 0 && extra > self.explained(first, last) {
            let words = format!(
                "{id} came {} times, faults explain {}: {life:?}",
                extra + 1,
                self.explained(first, last)
            );
            verdict.breaks("duplicate", words);
        }
    }

    /// Where it is at the end.
    fn judge_fate(&self, id: Number, life: &Life, verdict: &mut Verdict) {
        let delivered = !life.copies.is_empty();
        if delivered {
            verdict.delivered += 1;
        } else if life.is_cancelled() {
            verdict.cancelled += 1;
        } else if life.dead {
            verdict.dead += 1;
        } else if self.died_with_nsqd(life) {
            verdict.lost_by_nsqd += 1;
        } else if life.pending {
            verdict.pending += 1;
        } else if life.may_be_cancelled() && life.taken.is_empty() && life.is_acknowledged() {
            verdict.cancelled_unheard += 1;
        } else if life.is_acknowledged() {
            let words = match life.taken.first() {
                Some((nsqd, _)) => {
                    format!("{id} was taken by nsqd {nsqd}, and nobody got it: {life:?}")
                }
                None => format!("{id} was acknowledged and is nowhere: {life:?}"),
            };
            verdict.breaks("lost", words);
        }
        if life.pending && (delivered || life.is_cancelled()) {
            let words = format!("{id} is pending, though delivered or cancelled: {life:?}");
            verdict.breaks("unexpected", words);
        }
    }

    /// Whole, or not at all. A cancelled or lost message of a batch counts as there.
    fn judge_batches(&self, verdict: &mut Verdict) {
        for batch in &self.batches {
            let lives = batch.iter().filter_map(|id| self.lives.get(id));
            let there = |life: &Life| {
                life.sent.is_some() || !life.taken.is_empty() || life.dead || life.pending
            };
            let known = |life: &&Life| !life.is_acknowledged() && life.cancels.is_empty();
            let unknown: Vec<&Life> = lives.filter(known).collect();
            let found = unknown.iter().filter(|life| there(life)).count();
            if found > 0 && found < unknown.len() {
                let words = format!("of the batch {batch:?} only {found} are there");
                verdict.breaks("torn", words);
            }
        }
    }
}

impl Life {
    fn saw(&mut self, t: u64) {
        let (first, last) = self.sent.unwrap_or((t, t));
        self.sent = Some((first.min(t), last.max(t)));
    }

    fn is_acknowledged(&self) -> bool {
        self.acknowledged_at().is_some()
    }

    /// When the first success was heard.
    fn acknowledged_at(&self) -> Option<u64> {
        let done = self.publishes.iter().filter(|p| p.outcome == Outcome::Ok);
        done.map(|p| p.end).min()
    }

    /// A cancel was answered with success.
    fn is_cancelled(&self) -> bool {
        self.cancels.iter().any(|c| c.2 == Outcome::Ok)
    }

    /// A cancel succeeded, or nobody knows.
    fn may_be_cancelled(&self) -> bool {
        let doubtful = |c: &(u64, u64, Outcome)| matches!(c.2, Outcome::Ok | Outcome::Unknown);
        self.cancels.iter().any(doubtful)
    }

    /// When it is due at the latest. `None`: not acknowledged.
    fn latest_due(&self) -> Option<u64> {
        let placed = |p: &&Placing| p.outcome == Outcome::Ok;
        let due = |p: &Placing| p.end + p.delay_us;
        let published = self.publishes.iter().filter(placed).map(due).min()?;
        let Some(last) = self.moves.iter().rfind(placed) else {
            let doubtful = self.moves.iter().filter(|m| m.outcome == Outcome::Unknown);
            return Some(doubtful.map(due).fold(published, u64::max));
        };
        let later = self
            .moves
            .iter()
            .filter(|m| m.outcome == Outcome::Unknown && m.start >= last.start);
        Some(later.map(due).fold(due(last), u64::max))
    }
}
