//! What the shards of an instance share: settings, the ways to the store and to nsqd, bounds, and Redis's clock as
//! dispatch follows it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tracing::{error, warn};

use crate::dispatch::gate::Gate;
use crate::dispatch::metrics::Metrics;
use crate::dispatch::pace::Pace;
use crate::dispatch::pauses::Pauses;
use crate::dispatch::settings::Config;
use crate::dispatch::steps::{Seen, Steps};
use crate::forward::Forward;
use crate::message::UnixMs;
use crate::store::{ClaimStore, NowBounds};
use crate::timer::Clock;

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
    /// Clock of claims, and what wakes the shards.
    pub(super) clock: Clock,
    /// Messages that nsqd took, all shards together: tells whether others go through.
    pub(super) accepted: AtomicU64,
    pub(super) pauses: Pauses,
    /// How long turns of a shard keep apart.
    pub(super) pace: Pace,
    /// The way to `forward`.
    pub(super) gate: Arc<Gate>,
    pub(super) steps: Mutex<Steps>,
    /// Steps of Redis's clock that were followed after a hold.
    pub(super) follows: AtomicU64,
}

impl Shared {
    /// Redis's clock as dispatch follows it: a step forward not before its hold is over. Whoever asks
    /// has also looked whether it stepped.
    pub(super) fn now_bounds(&self) -> NowBounds {
        let bounds = self.store.now_bounds();
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        match steps.look(bounds) {
            Seen::Steady => {}
            Seen::Stepped(step) => {
                error!(
                    by = ?step.by, hold = ?self.config.clock_step_hold,
                    "redis's clock stepped forward: nothing is handed out until it is back or stays there"
                );
                self.metrics.clock_steps.inc();
                self.metrics.clock_held.set(1);
            }
            Seen::Returned => {
                warn!("redis's clock is back: messages taken meanwhile are late");
                self.metrics.clock_held.set(0);
            }
            Seen::Followed => {
                warn!("redis's clock stayed where it stepped to: it is followed from now on");
                self.metrics.clock_held.set(0);
                self.follows.fetch_add(1, Ordering::Relaxed);
            }
        }
        steps.followed(bounds)
    }

    /// For how long nothing is handed out because Redis's clock stepped forward.
    pub(super) fn held_for(&self) -> Option<Duration> {
        let at = self.now_bounds().at;
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.held_until().map(|until| until.saturating_sub(at))
    }

    /// How long until Redis's clock has certainly reached `due`.
    pub(super) fn until(&self, due: UnixMs) -> Duration {
        let now_us = self.now_bounds().at_least_us;
        Duration::from_micros((due.0.saturating_mul(1_000)).saturating_sub(now_us))
    }
}
