//! Which shard may send next, and when: no more is given to `forward` at a time than nsqd has room for,
//! and no more in a second than is wished. What waits here has no deadline and has not failed. Shards
//! take turns in the order in which they asked. Knows nothing of messages.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// What the smallest message counts, as in `forward`'s own bound.
const MESSAGE_BYTES_MIN: usize = 512;
/// More servers than this have no more room: the semaphore's own bound is far away.
const SERVERS_MAX: usize = 1_000;
/// Under a rate, a shard sends at most what is due in so long at a time.
const RATE_SLICE: Duration = Duration::from_millis(100);
/// How far servers' rates may be run ahead of: what comes together by chance need not wait, and 20 ms of them are
/// far less than an nsqd holds in memory for a topic.
const SERVER_RATE_AHEAD: Duration = Duration::from_millis(20);

/// The way to `forward`.
#[derive(Debug)]
pub(super) struct Gate {
    room: Arc<Semaphore>,
    /// Of each server.
    bytes_max: u32,
    /// Of all.
    total: Mutex<usize>,
    rate: Option<Rate>,
    server_rate: Option<Rate>,
}

/// Messages per second, without bursts but for what runs ahead.
#[derive(Debug)]
struct Rate {
    /// Of each server, or of all together.
    per_second: u64,
    servers: AtomicU64,
    ahead: Duration,
    /// When the next message would be on time.
    next: Mutex<Option<Instant>>,
}

/// Most messages per second; 0: any number.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RatesMax {
    /// To all servers together.
    pub(super) all: u64,
    /// To each.
    pub(super) server: u64,
}

/// Leave to send so much, which is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Leave {
    /// At most so many messages.
    pub(super) messages: usize,
    /// About so many bytes.
    pub(super) bytes: usize,
    _room: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// Lets `bytes_max` pass at a time, for each server, and no more in a second than `rates_max`.
    pub(super) fn new(bytes_max: usize, rates_max: RatesMax) -> Self {
        let bytes_max = u32::try_from(bytes_max.max(1)).unwrap_or(u32::MAX);
        let permits = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Self {
            room: Arc::new(Semaphore::new(permits)),
            bytes_max,
            total: Mutex::new(permits),
            rate: Rate::new(rates_max.all, Duration::ZERO),
            server_rate: Rate::new(rates_max.server, SERVER_RATE_AHEAD),
        }
    }

    /// There is room for so many servers from now on. Less becomes effective as room comes back.
    pub(super) fn serve(&self, servers: usize) {
        let servers = servers.clamp(1, SERVERS_MAX);
        if let Some(rate) = &self.server_rate {
            rate.servers.store(servers as u64, Ordering::Relaxed);
        }
        let bytes_max = usize::try_from(self.bytes_max).unwrap_or(usize::MAX);
        let wanted = bytes_max.saturating_mul(servers);
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted > *total {
            self.room.add_permits(wanted - *total);
            *total = wanted;
        } else {
            *total -= self.room.forget_permits(*total - wanted);
        }
    }

    fn rates(&self) -> impl Iterator<Item = &Rate> {
        self.rate.iter().chain(&self.server_rate)
    }

    /// Waits for leave to send up to `messages` of `bytes` together. Dropping it gives the turn back.
    pub(super) fn pass(
        self: &Arc<Self>,
        messages: usize,
        bytes: usize,
    ) -> BoxFuture<'static, Leave> {
        let gate = Arc::clone(self);
        let slice = |rate: &Rate| {
            let slice = rate.per_second().saturating_mul(millis(RATE_SLICE)) / 1_000;
            usize::try_from(slice).unwrap_or(usize::MAX).max(1)
        };
        let messages = gate.rates().map(slice).fold(messages, usize::min);
        let weight = bytes.max(messages.saturating_mul(MESSAGE_BYTES_MIN));
        let weight = u32::try_from(weight)
            .unwrap_or(u32::MAX)
            .min(gate.bytes_max);
        Box::pin(async move {
            for rate in gate.rates() {
                // Not `sleep_until` now: the runtime's timers round up to whole ms.
                if let Some(at) = rate.reserve(messages) {
                    sleep_until(at).await;
                }
            }
            let room = Arc::clone(&gate.room).acquire_many_owned(weight).await;
            Leave {
                messages,
                bytes,
                // The semaphore is never closed.
                _room: room.ok(),
            }
        })
    }
}

impl Rate {
    /// `None`: any number.
    fn new(per_second: u64, ahead: Duration) -> Option<Self> {
        (per_second > 0).then_some(Self {
            per_second,
            servers: AtomicU64::new(1),
            ahead,
            next: Mutex::new(None),
        })
    }

    fn per_second(&self) -> u64 {
        let servers = self.servers.load(Ordering::Relaxed);
        self.per_second.saturating_mul(servers)
    }

    /// Until when so many wait, if they do; those that come after wait behind them.
    fn reserve(&self, messages: usize) -> Option<Instant> {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.map_or(now, |next| next.max(now));
        let nanos = 1_000_000_000_u64.saturating_mul(messages as u64) / self.per_second();
        *next = Some(at + Duration::from_nanos(nanos));
        (at > now + self.ahead).then(|| at - self.ahead)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::future::FutureExt as _;

    use super::*;

    fn of_all(all: u64) -> RatesMax {
        RatesMax { all, server: 0 }
    }

    #[tokio::test]
    async fn what_is_too_much_waits_for_what_went_before() {
        let gate = Arc::new(Gate::new(1_000_000, RatesMax::default()));
        let first = gate.pass(10, 900_000).await;
        assert_eq!((first.messages, first.bytes), (10, 900_000));
        let mut second = gate.pass(10, 900_000);
        let mut third = gate.pass(1, 1);
        assert!(second.as_mut().now_or_never().is_none());
        // Whoever came later waits, also when it would fit.
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await;
        let _third = third.await;
        drop(second);
    }

    #[tokio::test]
    async fn more_than_all_the_room_passes_alone() {
        let gate = Arc::new(Gate::new(1_000, RatesMax::default()));
        let large = gate.pass(1, 1 << 30).await;
        assert!(gate.pass(1, 1).now_or_never().is_none());
        drop(large);
        assert!(gate.pass(1, 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn each_server_has_room_of_its_own() {
        let gate = Arc::new(Gate::new(1_000, RatesMax::default()));
        gate.serve(3);
        let taken: Vec<Leave> = [
            gate.pass(1, 1_000).await,
            gate.pass(1, 1_000).await,
            gate.pass(1, 1_000).await,
        ]
        .into();
        assert!(gate.pass(1, 1_000).now_or_never().is_none());
        // Nothing is left to take away yet; it goes as it comes back.
        gate.serve(1);
        drop(taken);
        gate.serve(1);
        let _one = gate.pass(1, 1_000).await;
        assert!(gate.pass(1, 1).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_over_all_shards() {
        let gate = Arc::new(Gate::new(1 << 30, of_all(100)));
        let began = Instant::now();
        let mut passed = 0;
        while passed < 300 {
            // Never more than a tenth of a second's.
            let leave = gate.pass(200, 1).await;
            assert_eq!(leave.messages, 10);
            passed += leave.messages;
        }
        let took = began.elapsed();
        assert!(
            (Duration::from_millis(2_900)..Duration::from_secs(3)).contains(&took),
            "{took:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_saves_nothing_up() {
        let gate = Arc::new(Gate::new(1 << 30, of_all(10)));
        let _one = gate.pass(1, 1).await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        let began = Instant::now();
        for _ in 0..11 {
            let _leave = gate.pass(1, 1).await;
        }
        assert_eq!(began.elapsed().as_millis(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn each_server_has_a_rate_of_its_own_which_little_does_not_wait_for() {
        let rates = RatesMax {
            all: 0,
            server: 10_000,
        };
        let gate = Arc::new(Gate::new(1 << 30, rates));
        for servers in [1, 2] {
            gate.serve(servers);
            let began = Instant::now();
            for _ in 0..2 * servers {
                let _leave = gate.pass(100, 1).await;
            }
            assert_eq!(began.elapsed(), Duration::ZERO);
            for _ in 0..100 * servers {
                let _leave = gate.pass(100, 1).await;
            }
            let took = began.elapsed().as_millis();
            assert!((990..=1_020).contains(&took), "{servers}: {took}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
