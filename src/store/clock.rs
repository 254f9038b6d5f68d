//! What time it is by Redis: an estimate from its replies, bounded from both sides.
//!
//! Redis read its clock after the request was sent and before the reply came. So its clock now is at
//! most what it said plus the time since the request was sent, and at least what it said plus the
//! time since the reply came. The upper bound makes due times: never early. The lower one sets
//! timers: when it has passed, Redis will agree.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::message::UnixMs;
use crate::store::claim::NowBounds;

#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    redis_us: u64,
    sent: Duration,
    received: Duration,
}

/// The estimate. Shared by everything that talks to one Redis.
#[derive(Debug)]
pub(super) struct Clock {
    latest: Mutex<Reading>,
    monotonic: fn() -> Duration,
}

impl Clock {
    pub(super) fn new(monotonic: fn() -> Duration) -> Self {
        Self {
            latest: Mutex::new(Reading::default()),
            monotonic,
        }
    }

    /// The monotonic clock that the estimate runs on; take it before a request is sent.
    pub(super) fn monotonic(&self) -> Duration {
        (self.monotonic)()
    }

    /// Learns from a reply to a request that was sent at `sent`. An older request's reply says
    /// nothing new.
    pub(super) fn learn(&self, redis_us: u64, sent: Duration) {
        let received = self.monotonic();
        let mut latest = self.lock();
        if sent >= latest.sent {
            *latest = Reading {
                redis_us,
                sent,
                received,
            };
        }
    }

    /// Redis's clock is at most this, rounded up to a whole ms. The epoch before the first reply.
    pub(super) fn upper(&self) -> UnixMs {
        self.bounds().at_most
    }

    /// Redis's clock from both sides, now. The epoch before the first reply.
    pub(super) fn bounds(&self) -> NowBounds {
        let latest = *self.lock();
        let at = self.monotonic();
        let since = |then: Duration| match latest.redis_us {
            0 => 0,
            us => us + micros(at.saturating_sub(then)),
        };
        NowBounds {
            at_least_us: since(latest.received),
            at_most: UnixMs(since(latest.sent).div_ceil(1_000)),
            at,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reading> {
        // A reading is replaced whole: a panic elsewhere cannot have left half of one.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_reply_it_knows_nothing() {
        let clock = Clock::new(|| Duration::from_secs(9));
        assert_eq!((clock.upper(), clock.bounds().at_least_us), (UnixMs(0), 0));
    }

    #[test]
    fn the_bounds_enclose_the_reply() {
        let clock = Clock::new(|| Duration::from_millis(10));
        clock.learn(1_000_000_400, Duration::from_millis(4));
        assert_eq!(clock.upper(), UnixMs(1_000_007));
        assert_eq!(clock.bounds().at_least_us, 1_000_000_400);
    }

    #[test]
    fn an_older_requests_reply_is_not_taken() {
        let clock = Clock::new(|| Duration::from_millis(10));
        clock.learn(5_000_000, Duration::from_millis(8));
        clock.learn(9_000_000, Duration::from_millis(7));
        assert_eq!(clock.bounds().at_least_us, 5_000_000);
    }
}
