//! Drives one shard: wait → turn → forward → decide → turn. One task per owned shard, asleep until
//! the head is due or something earlier is inserted.

use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::dispatch::gate::Leave;
use crate::dispatch::metrics::{TurnLabel, TurnResult};
use crate::dispatch::shared::Shared;
use crate::dispatch::tenure::{Ended, Tenure};
use crate::dispatch::turn::{Key, Memory, Reply, ToSend};
use crate::forward::{Deadline, DueMessage};
use crate::message::UnixMs;
use crate::shard::ShardId;
use crate::store::{ClaimToken, Error, ErrorKind, ReadPack, Session, Turn, TurnReply};
use crate::timer::Timer;

/// A shard whose next message is due sooner than this keeps its claim, in ms: releasing and claiming
/// again costs a turn.
const STAY_MS: u64 = 3;
/// So does one whose next pack begins sooner than this: the turn that reads it settles too, and releasing
/// and claiming again would double the turns of a shard with a few messages a second.
const STAY: Duration = Duration::from_millis(250);
/// How long an owner sleeps at most. What comes before the end wakes it, so that this costs one turn.
const SLEEP_MAX: Duration = Duration::from_hours(1);
/// Pause after Redis refused a turn.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Pauses before a claim that another owner has is asked for again. Not its whole life: an owner that
/// sees a shard go to us releases it at once, and messages wait meanwhile.
const BUSY_PAUSE_MIN: Duration = Duration::from_millis(10);
const BUSY_PAUSE_MAX: Duration = Duration::from_millis(300);
/// Messages done before a turn settles them while others are still under way.
const SETTLE_BATCH: usize = 1_000;
/// How long what is done may wait for a turn that hands out anyway.
const SETTLE_DEFER: Duration = STAY;
/// Reads of a shard that is given up, so that S can pass what was delivered.
const STOP_READS_MAX: u32 = 8;
/// Part of a claim's life after which a turn extends it: not each does, because there are many in that time.
const EXTEND_SHARE: u32 = 8;
/// Share of a claim's life that must be left to send under it.
const DEADLINE_SHARE: f64 = 0.9;

/// What a shard tells about itself.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// When the oldest message that is not done is due, or the head; 0: none known.
    pub(super) oldest_due_ms: AtomicU64,
    /// Messages that are handed out and not done.
    pub(super) open: AtomicUsize,
}

/// What a sleeping shard can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Something due at this moment was inserted.
    Earlier(UnixMs),
    /// Look, whatever you know.
    Look,
}

/// One shard's driver.
pub(super) struct Poller {
    pub(super) shared: Arc<Shared>,
    pub(super) shard: ShardId,
    pub(super) status: Arc<Status>,
    pub(super) news: mpsc::UnboundedReceiver<News>,
    /// Ends the shard: another instance owns it now, or the process stops.
    pub(super) stop: CancellationToken,
    /// The claim's token: kept as long as the session, so that our own claim never keeps us out.
    pub(super) token: Option<(Session, ClaimToken)>,
    /// Rings when the next message is due.
    pub(super) timer: Timer,
}

impl Poller {
    /// Serves the shard until `stop`.
    pub(super) async fn run(mut self) {
        let mut head = Some(UnixMs(0));
        let (mut number, mut was_busy) = (0, false);
        loop {
            if !self.wait_for_work(&mut head).await {
                return;
            }
            number += 1;
            head = match self.tenure(head, number).await {
                Ended::Idle(next) => {
                    if mem::take(&mut was_busy) {
                        // Until its end another owner may have held what it took for paused.
                        self.shared.pauses.look_again();
                    }
                    next
                }
                Ended::Busy(left) => {
                    was_busy = true;
                    self.pause(left.clamp(BUSY_PAUSE_MIN, BUSY_PAUSE_MAX)).await;
                    Some(UnixMs(0))
                }
                Ended::Lost => Some(UnixMs(0)),
            };
            self.status.open.store(0, Ordering::Relaxed);
            self.status
                .oldest_due_ms
                .store(head.map_or(0, |due| due.0), Ordering::Relaxed);
        }
    }

    async fn pause(&self, length: Duration) {
        tokio::select! {
            biased;
            () = sleep(length) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Sleeps until the head is due and nsqd takes messages. `false`: stop.
    async fn wait_for_work(&mut self, head: &mut Option<UnixMs>) -> bool {
        let end = Instant::now() + SLEEP_MAX;
        loop {
            let wait = head.map_or(SLEEP_MAX, |due| self.shared.until(due));
            let until = (Instant::now() + wait).min(end);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                news = self.news.recv() => match news {
                    Some(News::Earlier(due)) => *head = Some(head.map_or(due, |h| h.min(due))),
                    Some(News::Look) => {
                        *head = None;
                        break;
                    }
                    None => return false,
                },
                () = self.timer.sleep_until(until) => {
                    if until == end {
                        *head = None;
                    }
                    break;
                }
            }
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            () = self.shared.forward.wait_available() => true,
        }
    }

    /// Claims, drains what is due, settles, releases.
    async fn tenure(&mut self, head: Option<UnixMs>, number: u64) -> Ended {
        let Some(session) = self.shared.store.session() else {
            tokio::select! {
                biased;
                _session = self.shared.store.new_session(None) => {}
                () = self.stop.cancelled() => {}
            }
            return Ended::Lost;
        };
        let token = match self.token.take() {
            Some((of, token)) if of == session => token,
            _ => ClaimToken(format!("{:016x}{:08x}", fastrand::u64(..), number)),
        };
        self.token = Some((session, token.clone()));
        let memory = Memory::new(token, head.unwrap_or_default());
        let mut tenure = Tenure::new(session, memory);
        let ended = if head.is_none_or(|head| head == UnixMs(0)) {
            // Nothing is known: look where the backlog begins, so that H does not run ahead of it.
            self.idle(&mut tenure).await
        } else {
            self.serve(&mut tenure).await
        };
        self.shared
            .open_bytes
            .fetch_sub(tenure.reported_bytes, Ordering::Relaxed);
        ended
    }

    async fn serve(&mut self, tenure: &mut Tenure) -> Ended {
        let mut stop_reads = STOP_READS_MAX;
        loop {
            if let Some(ended) = self.turn(tenure).await {
                return ended;
            }
            for (keys, facts) in mem::take(&mut tenure.sent) {
                if let Some(ended) = self.take_facts(tenure, keys, facts).await {
                    return ended;
                }
            }
            loop {
                self.send_ready(tenure);
                if let Some(ended) = self.bury_late(tenure).await {
                    return ended;
                }
                if let Some(ended) = self.hold_paused(tenure).await {
                    return ended;
                }
                self.report(tenure);
                if tenure.memory.is_done() && tenure.in_flight == 0 && !self.stays(tenure) {
                    return self.idle(tenure).await;
                }
                if self.stop.is_cancelled() && tenure.in_flight == 0 && tenure.ready.is_empty() {
                    // The next owner would send again what S has not passed: read what holds S up.
                    if tenure.memory.reading_holds_settle() && stop_reads > 0 {
                        stop_reads -= 1;
                        break;
                    }
                    return self.idle(tenure).await;
                }
                if self.turn_is_due(tenure) {
                    break;
                }
                if let Some(ended) = self.wait(tenure).await {
                    return ended;
                }
            }
        }
    }

    /// Whether the next message comes so soon that the claim is kept.
    fn stays(&self, tenure: &Tenure) -> bool {
        let at_most = self.shared.now_bounds().at_most;
        let next_read = tenure.memory.next_read();
        // Without an nsqd there is nothing to stay for.
        let next_read = next_read.filter(|_| self.may_hand_out(tenure));
        !self.stop.is_cancelled()
            && (tenure
                .hint
                .is_some_and(|due| due <= at_most.plus_ms(STAY_MS))
                || next_read.is_some_and(|due| self.shared.until(due) <= STAY))
    }

    fn room(&self) -> usize {
        let open = self.shared.open_bytes.load(Ordering::Relaxed);
        self.shared.config.open_bytes_max.saturating_sub(open)
    }

    /// Whether packs may be read. Also while enough is unsettled: S stays below the first unread pack,
    /// so that without reading on it might never follow.
    fn may_read(&self) -> bool {
        self.shared.forward.available() && !self.stop.is_cancelled()
    }

    /// Whether more may be handed out: what a crash would send again is bounded.
    fn may_hand_out(&self, tenure: &Tenure) -> bool {
        self.may_read()
            && tenure.memory.unsettled() < self.shared.config.unsettled_max
            && self.shared.held_for().is_none()
    }

    /// Whether nothing but reading on can move S, though there is no room: nothing more may be handed
    /// out before S moves, and so no room would ever come back; or the shard is given up, and the next owner
    /// would send again what S has not passed. One pack at a time.
    fn must_read(&self, tenure: &Tenure) -> bool {
        tenure.in_flight == 0
            && tenure.ready.is_empty()
            && (self.stop.is_cancelled()
                || tenure.memory.unsettled() >= self.shared.config.unsettled_max)
            && tenure.memory.reading_holds_settle()
    }

    fn turn_is_due(&self, tenure: &Tenure) -> bool {
        if Instant::now() >= tenure.renew_at {
            return true;
        }
        let memory = &tenure.memory;
        let hands_out = self.may_hand_out(tenure);
        let must_read = self.must_read(tenure);
        let has_room = self.room() > 0 || memory.open_count() == 0 || must_read;
        let next_read = memory.next_read().filter(|_| has_room);
        if memory.wants_settle() {
            // A turn that is due soon settles too.
            let next = [memory.next_due(), next_read];
            let next = next.into_iter().flatten().min().filter(|_| hands_out);
            let soon = next.is_some_and(|due| self.shared.until(due) <= SETTLE_DEFER);
            if (tenure.in_flight == 0 && !soon) || memory.done_count() >= SETTLE_BATCH {
                return true;
            }
        }
        // Also while some wait to be sent: a topic whose turn it is may lie behind them.
        let unsettled = memory.unsettled() >= self.shared.config.unsettled_max;
        let waits = unsettled && !tenure.ready.is_empty();
        if has_room && self.may_read() && memory.wants_read() && !waits {
            return true;
        }
        if !hands_out || Instant::now() < tenure.paced_until {
            return false;
        }
        let due = |due: UnixMs| self.shared.until(due) == Duration::ZERO;
        next_read.is_some_and(due)
            || memory.next_due().is_some_and(due)
            || tenure.hint.is_some_and(|hint| has_room && due(hint))
    }

    /// One turn. `Some`: the tenure is over. What is sent goes on meanwhile, or a shard with a backlog would read all that
    /// there is room for before the first of it went out. What forward reports is not taken in while a turn is under
    /// way, nor is anything parked: its reply may show a pack again that a fact has just finished.
    async fn turn(&self, tenure: &mut Tenure) -> Option<Ended> {
        let hand_out = self.may_hand_out(tenure);
        let now = self.shared.now_bounds().at_most;
        let read_ahead = u64::try_from(self.shared.config.read_ahead.as_millis()).unwrap_or(0);
        let room = if self.may_read() || self.stop.is_cancelled() {
            self.room().max(usize::from(self.must_read(tenure)))
        } else {
            0
        };
        let turn = tenure
            .memory
            .plan(now, read_ahead, hand_out, room, tenure.hint.is_some());
        // What was told of stays to be looked for until a turn reads: it is told once.
        if turn.read.is_some() {
            tenure.hint = None;
        }
        let mut sends = mem::take(&mut tenure.sends);
        let (reply, sent) = {
            let mut taking = pin!(self.take_turn(tenure, turn));
            let mut sent = Vec::new();
            loop {
                tokio::select! {
                    biased;
                    Some(of_batch) = sends.next(), if !sends.is_empty() => sent.push(of_batch),
                    reply = &mut taking => break (reply, sent),
                }
            }
        };
        (tenure.sends, tenure.sent) = (sends, sent);
        let mut held = match reply {
            Ok(TurnReply::Held(held)) => held,
            Ok(TurnReply::Busy(left)) => return Some(Ended::Busy(left)),
            Err(error) => return Some(self.failed(&error).await),
        };
        for pack in &held.packs {
            if let ReadPack::Unreadable(score, bad) = pack {
                error!(shard = %self.shard, %score, %bad, "a pack cannot be read and holds up its shard");
                self.shared.metrics.unreadable.inc();
            }
        }
        if self.shared.held_for().is_some() {
            // Maybe this very reply shows a step of the clock: nothing is due by it.
            held.now = UnixMs(0);
        }
        match tenure.memory.reply(held) {
            Reply::Send(to_send) => {
                // A turn that only read or settled is no reason to wait.
                if !to_send.is_empty() {
                    let now = Instant::now();
                    let gap = self.shared.pace.turned(self.shard, to_send.len(), now);
                    tenure.paced_until = now + gap;
                }
                tenure.ready.extend(to_send);
                None
            }
            Reply::Stale => {
                warn!(shard = %self.shard, "the claim lapsed in use; what was open is read again");
                self.shared.metrics.claims_lost.inc();
                Some(Ended::Lost)
            }
        }
    }

    async fn take_turn(&self, tenure: &mut Tenure, mut turn: Turn) -> Result<TurnReply, Error> {
        let Ok(_permit) = self.shared.turns.acquire().await else {
            return Err(Error::new(ErrorKind::SessionLost));
        };
        let asked_at = (self.shared.clock.now)();
        let ttl = self.shared.config.claim_ttl;
        turn.extend = Instant::now() >= tenure.extend_at;
        let extends = turn.extend;
        let reply = self
            .shared
            .store
            .turn(tenure.session, self.shard, turn)
            .await;
        let result = match &reply {
            Ok(TurnReply::Held(_)) => TurnResult::Held,
            Ok(TurnReply::Busy(_)) => TurnResult::Busy,
            Err(_) => TurnResult::Failed,
        };
        self.shared
            .metrics
            .turns
            .get_or_create(&TurnLabel { result })
            .inc();
        if extends {
            tenure.claimed_at = asked_at;
            tenure.extend_at = Instant::now() + ttl / EXTEND_SHARE;
            tenure.renew_at = Instant::now() + ttl / 3;
        }
        reply
    }

    /// A turn or a park failed: the tenure is over.
    pub(super) async fn failed(&self, error: &Error) -> Ended {
        warn!(shard = %self.shard, %error, "turn failed");
        if error.kind != ErrorKind::SessionLost {
            self.pause(REFUSED_PAUSE).await;
        }
        Ended::Lost
    }

    /// Settles, releases the claim, and learns where the backlog begins.
    async fn idle(&self, tenure: &mut Tenure) -> Ended {
        let now = self.shared.now_bounds().at_most;
        let sleep_max = u64::try_from(SLEEP_MAX.as_millis()).unwrap_or(0);
        let until = if self.stop.is_cancelled() {
            now
        } else {
            now.plus_ms(sleep_max)
        };
        let turn = tenure.memory.plan_idle(until);
        match self.take_turn(tenure, turn).await {
            Ok(TurnReply::Held(held)) => Ended::Idle(held.head),
            Ok(TurnReply::Busy(left)) => Ended::Busy(left),
            Err(error) => self.failed(&error).await,
        }
    }

    /// Gives what is ready to forward, in batches, as far as there is leave.
    fn send_ready(&self, tenure: &mut Tenure) {
        tenure.take_retries(Instant::now());
        while !tenure.ready.is_empty() {
            let messages = tenure
                .ready
                .len()
                .min(self.shared.config.batch_messages_max.max(1));
            // What so many take on average: which of them it will be is not known before.
            let bytes = tenure.ready.bytes() / tenure.ready.len().max(1) * messages;
            let leave = tenure
                .leave
                .get_or_insert_with(|| self.shared.gate.pass(messages, bytes));
            let Some(leave) = leave.now_or_never() else {
                return;
            };
            tenure.leave = None;
            self.send(tenure, leave);
        }
        tenure.leave = None;
    }

    fn send(&self, tenure: &mut Tenure, leave: Leave) {
        let at = tenure.claimed_at + self.shared.config.claim_ttl.mul_f64(DEADLINE_SHARE);
        let deadline = Deadline {
            at,
            clock: self.shared.clock.now,
        };
        let now_ms = self.shared.now_bounds().at_least_us / 1_000;
        let mut batch = tenure.ready.take(leave.messages, leave.bytes);
        let paused = self.shared.pauses.topics();
        let is_paused = |message: &mut ToSend| paused.contains(&message.record.topic);
        tenure.held.extend(batch.extract_if(.., is_paused));
        let is_late = |message: &mut ToSend| self.is_too_late(&tenure.spared, message, now_ms);
        tenure.late.extend(batch.extract_if(.., is_late));
        if batch.is_empty() {
            return;
        }
        let keys: Vec<Key> = batch.iter().map(|m| m.key).collect();
        let again = batch.iter().filter(|m| m.again).count();
        self.shared.metrics.redelivered.inc_by(again as u64);
        let messages = batch.into_iter().map(|m| DueMessage {
            topic: m.record.topic.clone(),
            body: m.record.body.clone(),
        });
        let messages: Vec<DueMessage> = messages.collect();
        let forward = Arc::clone(&self.shared.forward);
        tenure.in_flight += keys.len();
        tenure.sends.push(Box::pin(async move {
            let facts = forward.publish(messages, deadline).await;
            drop(leave);
            (keys, facts)
        }));
    }

    /// Waits for something to happen, and takes it in.
    async fn wait(&mut self, tenure: &mut Tenure) -> Option<Ended> {
        let wake_at = self.wake_at(tenure);
        let available = self.shared.forward.available();
        tokio::select! {
            biased;
            Some((keys, facts)) = tenure.sends.next(), if !tenure.sends.is_empty() => {
                return self.take_facts(tenure, keys, facts).await;
            }
            // A shard that is given up has no news any more: asking again would spin until the last
            // answer of nsqd is there.
            news = self.news.recv(), if !self.stop.is_cancelled() => match news {
                Some(News::Earlier(due)) => {
                    tenure.hint = Some(tenure.hint.map_or(due, |hint| hint.min(due)));
                }
                Some(News::Look) => tenure.hint = Some(UnixMs(0)),
                // The dispatcher is gone: finish as on stop.
                None => self.stop.cancel(),
            },
            leave = next_leave(&mut tenure.leave), if tenure.leave.is_some() => {
                tenure.leave = None;
                self.send(tenure, leave);
            }
            () = self.shared.forward.wait_available(), if !available => {}
            () = self.stop.cancelled(), if !self.stop.is_cancelled() => {}
            () = self.timer.sleep_until(wake_at) => {}
        }
        None
    }

    fn wake_at(&self, tenure: &Tenure) -> Instant {
        let mut at = tenure.renew_at;
        if let Some(left) = self.shared.held_for() {
            at = at.min(Instant::now() + left);
        }
        let hands_out = self.may_hand_out(tenure);
        let has_room = self.room() > 0 || tenure.memory.open_count() == 0;
        let next_read = tenure.memory.next_read().filter(|_| has_room);
        let hint = tenure.hint.filter(|_| has_room);
        let dues = [tenure.memory.next_due(), next_read, hint];
        for due in dues.into_iter().flatten().filter(|_| hands_out) {
            let due = Instant::now() + self.shared.until(due);
            at = at.min(due.max(tenure.paced_until));
        }
        tenure
            .retries
            .iter()
            .fold(at, |at, (retry, _)| at.min(*retry))
    }

    fn report(&self, tenure: &mut Tenure) {
        let bytes = tenure.memory.open_bytes();
        if bytes >= tenure.reported_bytes {
            self.shared
                .open_bytes
                .fetch_add(bytes - tenure.reported_bytes, Ordering::Relaxed);
        } else {
            self.shared
                .open_bytes
                .fetch_sub(tenure.reported_bytes - bytes, Ordering::Relaxed);
        }
        tenure.reported_bytes = bytes;
        self.status
            .open
            .store(tenure.memory.unsettled(), Ordering::Relaxed);
        let oldest = tenure.memory.oldest().map_or(0, |due| due.0);
        self.status.oldest_due_ms.store(oldest, Ordering::Relaxed);
    }
}

/// Never, if none is waited for.
async fn next_leave(leave: &mut Option<BoxFuture<'static, Leave>>) -> Leave {
    match leave {
        Some(leave) => leave.await,
        None => std::future::pending().await,
    }
}
