//! Facts become decisions, and decisions take effect: what nsqd took is done, what failed is sent again,
//! parked or buried.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::dispatch::poller::Poller;
use crate::dispatch::retry::{self, Attempts, Outcome};
use crate::dispatch::tenure::{Ended, Failing, Tenure};
use crate::dispatch::turn::{Key, ToSend};
use crate::forward;
use crate::store::{PARK_MAX, ParkReply, ParkTo, Parked, Record};

/// How long a message that nsqd refused for good is put aside when the dead letters are full.
const FULL_PARK: Duration = Duration::from_mins(1);

impl Poller {
    /// Whether a message is too late to be sent.
    pub(super) fn is_too_late(&self, spared: &HashSet<Key>, message: &ToSend, now_ms: u64) -> bool {
        let limit = self.shared.config.expire_if_later_than;
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        !limit.is_zero()
            && message.key.due.0.saturating_add(limit_ms) < now_ms
            && !spared.contains(&message.key)
    }

    /// Makes dead letters of what came too late. `Some`: the tenure is over.
    pub(super) async fn bury_late(&self, tenure: &mut Tenure) -> Option<Ended> {
        for message in std::mem::take(&mut tenure.late) {
            let now_ms = self.shared.now_bounds().at_least_us / 1_000;
            let late_ms = now_ms.saturating_sub(message.key.due.0);
            let reason = format!("expired: {late_ms} ms late, over expire_if_later_than");
            let to = ParkTo::DeadLetters(reason);
            match self.park(tenure, &[message.key], to).await {
                Ok(true) => {
                    self.shared.metrics.expired.inc();
                }
                // No room among the dead letters: late is better than never.
                Ok(false) => {
                    tenure.spared.insert(message.key);
                    tenure.ready.push(message);
                }
                Err(ended) => return Some(ended),
            }
        }
        None
    }

    /// Takes in what became of one send. `Some`: the tenure is over.
    pub(super) async fn take_facts(
        &self,
        tenure: &mut Tenure,
        keys: Vec<Key>,
        facts: Vec<Result<(), forward::Error>>,
    ) -> Option<Ended> {
        debug_assert_eq!(keys.len(), facts.len());
        tenure.in_flight -= keys.len();
        let now_us = self.shared.now_bounds().at_least_us;
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
                if !tenure.failing.is_empty() {
                    tenure.failing.remove(&key);
                }
                if !tenure.spared.is_empty() {
                    tenure.spared.remove(&key);
                }
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
        mut parked: Vec<(Key, bool, Duration)>,
        rejected: Vec<(Key, String)>,
    ) -> Option<Ended> {
        for (key, reason) in rejected {
            info!(shard = %self.shard, %reason, "nsqd refused a message for good");
            match self.park(tenure, &[key], ParkTo::DeadLetters(reason)).await {
                Ok(true) => {
                    self.shared.metrics.dead.inc();
                }
                // No room among the dead letters: nothing is dropped. It must not hold up S either.
                Ok(false) => parked.push((key, false, FULL_PARK)),
                Err(ended) => return Some(ended),
            }
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
            let now = self.shared.now_bounds().at_most;
            let until = now.plus_ms(u64::try_from(after.as_millis()).unwrap_or(0));
            match self.park(tenure, &keys, ParkTo::Later(until)).await {
                Ok(_) => {
                    self.shared.metrics.parked.inc_by(keys.len() as u64);
                }
                Err(ended) => return Some(ended),
            }
        }
        None
    }

    /// Puts messages elsewhere. `false`: there is no room for them.
    pub(super) async fn park(
        &self,
        tenure: &mut Tenure,
        keys: &[Key],
        to: ParkTo,
    ) -> Result<bool, Ended> {
        let mut keys = keys.to_vec();
        loop {
            let messages = keys.iter().filter_map(|key| {
                let (record, stored) = tenure.memory.record(*key)?;
                Some(Parked {
                    from: key.place,
                    stored,
                    record: Record::clone(record),
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
}
