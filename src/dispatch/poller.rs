//! Drives one shard: wait → turn → forward → decide → turn. One task per owned shard, asleep until
//! the head is due or something earlier is inserted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::dispatch::metrics::{Metrics, TurnLabel, TurnResult};
use crate::dispatch::retry::{self, Attempts, Outcome};
use crate::dispatch::settings::Config;
use crate::dispatch::turn::{Key, Memory, Reply, ToSend};
use crate::forward::{self, Deadline, DueMessage, Forward};
use crate::message::UnixMs;
use crate::shard::ShardId;
use crate::store::{
    ClaimStore, ClaimToken, Error, ErrorKind, PARK_MAX, ParkReply, ParkTo, Parked, Session, Turn,
    TurnReply,
};

/// A shard whose next message is due sooner than this keeps its claim, in ms: releasing and claiming
/// again costs a turn.
const STAY_MS: u64 = 3;
/// Pause after Redis refused a turn.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Messages done before a turn settles them while others are still under way.
const SETTLE_BATCH: usize = 1_000;
/// Share of a claim's life that must be left to send under it.
const DEADLINE_SHARE: f64 = 0.9;

/// What all shards of an instance share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) store: Arc<dyn ClaimStore>,
    pub(super) forward: Arc<dyn Forward>,
    pub(super) metrics: Metrics,
    /// M: turns under way at the same time.
    pub(super) turns: Semaphore,
    /// Bytes of open packs, all shards together.
    pub(super) open_bytes: AtomicUsize,
    /// Clock of claims: also runs while the machine sleeps.
    pub(super) clock: fn() -> Duration,
    /// Messages that nsqd took, all shards together: tells whether others go through.
    pub(super) accepted: AtomicU64,
}

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

/// Attempts of a message that failed.
#[derive(Debug, Clone, Copy)]
struct Failing {
    since: Instant,
    failed: u32,
    accepted_then: u64,
}

type Sent = (u64, Vec<Key>, Vec<Result<(), forward::Error>>);

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
}

/// One claim's worth of work.
struct Tenure {
    session: Session,
    memory: Memory,
    /// Tells the sends of this tenure from those of one before.
    number: u64,
    ready: Vec<ToSend>,
    in_flight: usize,
    sends: FuturesUnordered<BoxFuture<'static, Sent>>,
    failing: HashMap<Key, Failing>,
    /// Messages that wait to be sent again.
    retries: Vec<(Instant, Key)>,
    claimed_at: Duration,
    renew_at: Instant,
    /// Something earlier than what is known may be there, due at this moment.
    hint: Option<UnixMs>,
    reported_bytes: usize,
}

/// How a tenure ended.
enum Ended {
    /// Released; the backlog begins at this moment.
    Idle(Option<UnixMs>),
    /// Another owner has the claim for so long.
    Busy(Duration),
    /// The session or the claim is gone: begin anew.
    Lost,
}

impl Poller {
    /// Serves the shard until `stop`.
    pub(super) async fn run(mut self) {
        let mut head = Some(UnixMs(0));
        let mut number = 0;
        loop {
            if !self.wait_for_work(&mut head).await {
                return;
            }
            number += 1;
            head = match self.tenure(head, number).await {
                Ended::Idle(next) => next,
                Ended::Busy(left) => {
                    self.pause(left).await;
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
        let sweep = self.shared.config.sweep;
        // Spread: the shards of an instance do not sweep in step.
        let sweep_at = Instant::now() + sweep.mul_f64(0.75 + fastrand::f64() / 4.0);
        loop {
            let wait = head.map_or(sweep, |due| self.shared.until(due));
            let until = (Instant::now() + wait).min(sweep_at);
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
                () = sleep_until(until) => {
                    if until == sweep_at {
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
        let mut tenure = Tenure {
            session,
            memory,
            number,
            ready: Vec::new(),
            in_flight: 0,
            sends: FuturesUnordered::new(),
            failing: HashMap::new(),
            retries: Vec::new(),
            claimed_at: Duration::ZERO,
            renew_at: Instant::now(),
            hint: None,
            reported_bytes: 0,
        };
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
        loop {
            if let Some(ended) = self.turn(tenure).await {
                return ended;
            }
            loop {
                self.send_ready(tenure);
                self.report(tenure);
                if tenure.memory.is_done() && tenure.in_flight == 0 && !self.stays(tenure) {
                    return self.idle(tenure).await;
                }
                if self.stop.is_cancelled() && tenure.in_flight == 0 && tenure.ready.is_empty() {
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
        !self.stop.is_cancelled()
            && tenure
                .hint
                .is_some_and(|due| due <= self.shared.store.now_bounds().at_most.plus_ms(STAY_MS))
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
        self.may_read() && tenure.memory.unsettled() < self.shared.config.unsettled_max
    }

    fn turn_is_due(&self, tenure: &Tenure) -> bool {
        if Instant::now() >= tenure.renew_at {
            return true;
        }
        let memory = &tenure.memory;
        if memory.wants_settle() && (tenure.in_flight == 0 || memory.done_count() >= SETTLE_BATCH) {
            return true;
        }
        let reads = memory.wants_read()
            && (self.room() > 0 || memory.open_count() == 0)
            && tenure.ready.is_empty();
        if self.may_read() && reads {
            return true;
        }
        if !self.may_hand_out(tenure) {
            return false;
        }
        let due = |due: UnixMs| self.shared.until(due) == Duration::ZERO;
        memory.next_due().is_some_and(due) || tenure.hint.is_some_and(due)
    }

    /// One turn. `Some`: the tenure is over. What forward reports is not taken in while a turn is under
    /// way, nor is anything parked: its reply may show a pack again that a fact has just finished.
    async fn turn(&self, tenure: &mut Tenure) -> Option<Ended> {
        let hand_out = self.may_hand_out(tenure);
        let now = self.shared.store.now_bounds().at_most;
        let read_ahead = u64::try_from(self.shared.config.read_ahead.as_millis()).unwrap_or(0);
        let room = if self.may_read() { self.room() } else { 0 };
        let turn = tenure.memory.plan(now, read_ahead, hand_out, room);
        tenure.hint = None;
        let held = match self.take_turn(tenure, turn).await {
            Ok(TurnReply::Held(held)) => held,
            Ok(TurnReply::Busy(left)) => return Some(Ended::Busy(left)),
            Err(error) => return Some(self.failed(&error).await),
        };
        for pack in &held.packs {
            if let crate::store::ReadPack::Unreadable(score, bad) = pack {
                error!(shard = %self.shard, %score, %bad, "a pack cannot be read and holds up its shard");
                self.shared.metrics.unreadable.inc();
            }
        }
        match tenure.memory.reply(held) {
            Reply::Send(to_send) => {
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

    async fn take_turn(&self, tenure: &mut Tenure, turn: Turn) -> Result<TurnReply, Error> {
        let Ok(_permit) = self.shared.turns.acquire().await else {
            return Err(Error::new(ErrorKind::SessionLost));
        };
        let asked_at = (self.shared.clock)();
        let ttl = self.shared.config.claim_ttl;
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
        tenure.claimed_at = asked_at;
        tenure.renew_at = Instant::now() + ttl / 3;
        reply
    }

    async fn failed(&self, error: &Error) -> Ended {
        warn!(shard = %self.shard, %error, "turn failed");
        if error.kind != ErrorKind::SessionLost {
            self.pause(REFUSED_PAUSE).await;
        }
        Ended::Lost
    }

    /// Settles, releases the claim, and learns where the backlog begins.
    async fn idle(&self, tenure: &mut Tenure) -> Ended {
        let now = self.shared.store.now_bounds().at_most;
        let sweep = u64::try_from(self.shared.config.sweep.as_millis()).unwrap_or(0);
        let until = if self.stop.is_cancelled() {
            now
        } else {
            now.plus_ms(sweep)
        };
        let turn = tenure.memory.plan_idle(until);
        match self.take_turn(tenure, turn).await {
            Ok(TurnReply::Held(held)) => Ended::Idle(held.head),
            Ok(TurnReply::Busy(left)) => Ended::Busy(left),
            Err(error) => self.failed(&error).await,
        }
    }

    /// Gives what is ready to forward, in batches.
    fn send_ready(&self, tenure: &mut Tenure) {
        let now = Instant::now();
        tenure.take_retries(now);
        if tenure.ready.is_empty() {
            return;
        }
        let at = tenure.claimed_at + self.shared.config.claim_ttl.mul_f64(DEADLINE_SHARE);
        let deadline = Deadline {
            at,
            clock: self.shared.clock,
        };
        let ready = std::mem::take(&mut tenure.ready);
        for chunk in ready.chunks(self.shared.config.batch_messages_max.max(1)) {
            let keys: Vec<Key> = chunk.iter().map(|m| m.key).collect();
            let again = chunk.iter().filter(|m| m.again).count();
            self.shared.metrics.redelivered.inc_by(again as u64);
            let messages = chunk.iter().map(|m| DueMessage {
                topic: m.record.topic.clone(),
                body: m.record.body.clone(),
            });
            let messages: Vec<DueMessage> = messages.collect();
            let (forward, number) = (Arc::clone(&self.shared.forward), tenure.number);
            tenure.in_flight += keys.len();
            tenure.sends.push(Box::pin(async move {
                let facts = forward.publish(messages, deadline).await;
                (number, keys, facts)
            }));
        }
    }

    /// Waits for something to happen, and takes it in.
    async fn wait(&mut self, tenure: &mut Tenure) -> Option<Ended> {
        let wake_at = self.wake_at(tenure);
        let available = self.shared.forward.available();
        tokio::select! {
            biased;
            Some((_, keys, facts)) = tenure.sends.next(), if !tenure.sends.is_empty() => {
                tenure.in_flight -= keys.len();
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
            () = self.shared.forward.wait_available(), if !available => {}
            () = self.stop.cancelled(), if !self.stop.is_cancelled() => {}
            () = sleep_until(wake_at) => {}
        }
        None
    }

    fn wake_at(&self, tenure: &Tenure) -> Instant {
        let mut at = tenure.renew_at;
        let hands_out = self.may_hand_out(tenure);
        let dues = [tenure.memory.next_due(), tenure.hint];
        for due in dues.into_iter().flatten().filter(|_| hands_out) {
            at = at.min(Instant::now() + self.shared.until(due));
        }
        tenure
            .retries
            .iter()
            .fold(at, |at, (retry, _)| at.min(*retry))
    }

    async fn take_facts(
        &self,
        tenure: &mut Tenure,
        keys: Vec<Key>,
        facts: Vec<Result<(), forward::Error>>,
    ) -> Option<Ended> {
        debug_assert_eq!(keys.len(), facts.len());
        let now_us = self.shared.store.now_bounds().at_least_us;
        let accepted = facts.iter().filter(|fact| fact.is_ok()).count() as u64;
        self.shared.accepted.fetch_add(accepted, Ordering::Relaxed);
        self.shared.metrics.delivered.inc_by(accepted);
        let mut parked: Vec<(Key, bool, Duration)> = Vec::new();
        let mut rejected: Vec<(Key, String)> = Vec::new();
        for (key, fact) in keys.into_iter().zip(facts) {
            if fact.is_ok() {
                let late_us = now_us.saturating_sub(key.due.0 * 1_000);
                self.shared
                    .metrics
                    .lateness
                    .observe(Duration::from_micros(late_us).as_secs_f64());
                tenure.failing.remove(&key);
                tenure.memory.delivered(key);
                continue;
            }
            let attempts = self.attempts(tenure, key);
            match retry::decide(&self.shared.config, fact, attempts, fastrand::f64()) {
                Outcome::Accepted => {}
                Outcome::Released { after, maybe } => {
                    if maybe {
                        tenure.memory.maybe_sent(key);
                    }
                    tenure.retries.push((Instant::now() + after, key));
                }
                Outcome::Parked { after, maybe } => parked.push((key, maybe, after)),
                Outcome::Rejected(reason) => rejected.push((key, reason)),
            }
        }
        self.put_away(tenure, parked, rejected).await
    }

    fn attempts(&self, tenure: &mut Tenure, key: Key) -> Attempts {
        let accepted_then = self.shared.accepted.load(Ordering::Relaxed);
        let new = Failing {
            since: Instant::now(),
            failed: 0,
            accepted_then,
        };
        let failing = tenure.failing.entry(key).or_insert(new);
        let attempts = Attempts {
            failed: failing.failed,
            failing_for: failing.since.elapsed(),
            others_go_through: accepted_then > failing.accepted_then,
        };
        failing.failed = failing.failed.saturating_add(1);
        attempts
    }

    /// Parks and dead-letters. `Some`: the tenure is over.
    async fn put_away(
        &self,
        tenure: &mut Tenure,
        parked: Vec<(Key, bool, Duration)>,
        rejected: Vec<(Key, String)>,
    ) -> Option<Ended> {
        for (key, reason) in rejected {
            info!(shard = %self.shard, %reason, "nsqd refused a message for good");
            match self.park(tenure, &[key], ParkTo::DeadLetters(reason)).await {
                Ok(true) => {
                    self.shared.metrics.dead.inc();
                }
                // No room among the dead letters: nothing is dropped, it is tried again later.
                Ok(false) => tenure.retry_later(key, self.shared.config.retry_max),
                Err(ended) => return Some(ended),
            };
        }
        for chunk in parked.chunks(PARK_MAX) {
            let keys: Vec<Key> = chunk.iter().map(|(key, ..)| *key).collect();
            for (key, maybe, _) in chunk {
                if *maybe {
                    tenure.memory.maybe_sent(*key);
                }
            }
            let after = chunk
                .iter()
                .map(|(_, _, after)| *after)
                .max()
                .unwrap_or_default();
            let now = self.shared.store.now_bounds().at_most;
            let until = now.plus_ms(u64::try_from(after.as_millis()).unwrap_or(0));
            match self.park(tenure, &keys, ParkTo::Later(until)).await {
                Ok(_) => self.shared.metrics.parked.inc_by(keys.len() as u64),
                Err(ended) => return Some(ended),
            };
        }
        None
    }

    /// Puts messages elsewhere. `false`: there is no room for them.
    async fn park(&self, tenure: &mut Tenure, keys: &[Key], to: ParkTo) -> Result<bool, Ended> {
        let mut keys = keys.to_vec();
        loop {
            let messages = keys.iter().filter_map(|key| {
                let (record, stored) = tenure.memory.record(*key)?;
                Some(Parked {
                    from: key.place,
                    stored,
                    record: record.clone(),
                })
            });
            let messages: Vec<Parked> = messages.collect();
            let token = tenure.memory.token().clone();
            let (store, session) = (&self.shared.store, tenure.session);
            match store
                .park(session, self.shard, token, messages, to.clone())
                .await
            {
                Ok(ParkReply::Parked) => {
                    for key in keys {
                        tenure.done_elsewhere(key);
                    }
                    return Ok(true);
                }
                Ok(ParkReply::Marked(places)) => {
                    let (marked, rest): (Vec<Key>, Vec<Key>) = keys
                        .into_iter()
                        .partition(|key| places.contains(&key.place));
                    for key in &marked {
                        tenure.done_elsewhere(*key);
                    }
                    if rest.is_empty() || marked.is_empty() {
                        return Ok(true);
                    }
                    keys = rest;
                }
                Ok(ParkReply::Full) => return Ok(false),
                Ok(ParkReply::Fenced) => {
                    self.shared.metrics.claims_lost.inc();
                    return Err(Ended::Lost);
                }
                Err(error) => return Err(self.failed(&error).await),
            }
        }
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

impl Tenure {
    fn retry_later(&mut self, key: Key, after: Duration) {
        self.retries.push((Instant::now() + after, key));
    }

    fn done_elsewhere(&mut self, key: Key) {
        self.failing.remove(&key);
        self.memory.removed(key);
    }

    fn take_retries(&mut self, now: Instant) {
        let mut at = 0;
        while let Some((due, key)) = self.retries.get(at).copied() {
            if due > now {
                at += 1;
                continue;
            }
            self.retries.swap_remove(at);
            if let Some((record, _)) = self.memory.record(key) {
                self.ready.push(ToSend {
                    key,
                    record: record.clone(),
                    again: record.maybe,
                });
            }
        }
    }
}

impl Shared {
    /// How long until Redis's clock has certainly reached `due`.
    pub(super) fn until(&self, due: UnixMs) -> Duration {
        let now_us = self.store.now_bounds().at_least_us;
        Duration::from_micros((due.0.saturating_mul(1_000)).saturating_sub(now_us))
    }
}
