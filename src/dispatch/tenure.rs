//! One claim's worth of work: what is remembered, under way and waiting between claim and release.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::dispatch::gate::Leave;
use crate::dispatch::ready::Ready;
use crate::dispatch::turn::{Key, Memory, ToSend};
use crate::forward;
use crate::message::UnixMs;
use crate::store::Session;

/// Attempts of a message that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failing {
    pub(super) since: Instant,
    pub(super) failed: u32,
    pub(super) accepted_then: u64,
}

/// What a send tells: its messages, and the fact of each.
pub(super) type Sent = (Vec<Key>, Vec<Result<(), forward::Error>>);

/// One claim's worth of work.
pub(super) struct Tenure {
    pub(super) session: Session,
    pub(super) memory: Memory,
    pub(super) ready: Ready,
    /// What is waited for to send some of `ready`.
    pub(super) leave: Option<BoxFuture<'static, Leave>>,
    /// Due of a paused topic.
    pub(super) held: Vec<ToSend>,
    /// Too late to be sent.
    pub(super) late: Vec<ToSend>,
    /// Too late, and sent all the same: there is no room among the dead letters.
    pub(super) spared: HashSet<Key>,
    pub(super) in_flight: usize,
    pub(super) sends: FuturesUnordered<BoxFuture<'static, Sent>>,
    /// What the sends told that ended while a turn was under way.
    pub(super) sent: Vec<Sent>,
    pub(super) failing: HashMap<Key, Failing>,
    /// Messages that wait to be sent again.
    pub(super) retries: Vec<(Instant, Key)>,
    pub(super) claimed_at: Duration,
    /// From here on a turn extends the claim too.
    pub(super) extend_at: Instant,
    /// Here a turn is made to extend it.
    pub(super) renew_at: Instant,
    /// No turn before this moment only because something is due: others will be, and share it.
    pub(super) paced_until: Instant,
    /// Something earlier than what is known may be there, due at this moment.
    pub(super) hint: Option<UnixMs>,
    pub(super) reported_bytes: usize,
}

/// How a tenure ended.
pub(super) enum Ended {
    /// Released; the backlog begins at this moment.
    Idle(Option<UnixMs>),
    /// Another owner has the claim for so long.
    Busy(Duration),
    /// The session or the claim is gone: begin anew.
    Lost,
}

impl Tenure {
    /// Nothing is under way yet.
    pub(super) fn new(session: Session, memory: Memory) -> Self {
        Self {
            session,
            memory,
            ready: Ready::default(),
            leave: None,
            held: Vec::new(),
            late: Vec::new(),
            spared: HashSet::new(),
            in_flight: 0,
            sends: FuturesUnordered::new(),
            sent: Vec::new(),
            failing: HashMap::new(),
            retries: Vec::new(),
            claimed_at: Duration::ZERO,
            extend_at: Instant::now(),
            renew_at: Instant::now(),
            paced_until: Instant::now(),
            hint: None,
            reported_bytes: 0,
        }
    }

    /// It lies elsewhere now, or was found cancelled.
    pub(super) fn done_elsewhere(&mut self, key: Key) {
        self.failing.remove(&key);
        self.memory.removed(key);
    }

    /// Makes ready what has waited long enough.
    pub(super) fn take_retries(&mut self, now: Instant) {
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
                    record: Arc::clone(record),
                    again: record.maybe,
                });
            }
        }
    }
}
