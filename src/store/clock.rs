//! What time it is by Redis: an estimate from its replies, bounded from both sides.
//!
//! Redis read its clock after the request was sent and before the reply came. So its clock is ahead of ours by at
//! most what it said less when the request was sent, and at least by what it said less when the reply came. A quick
//! reply tells more than a slow one, and is remembered: readings narrow each other as long as they agree. The
//! upper bound makes due times: never early. The lower one sets timers: when it has passed, Redis will agree.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::message::UnixMs;
use crate::store::claim::NowBounds;

/// How far two clocks may drift apart while both are slewed as fast as the kernel does, in parts of a million.
const DRIFT_PPM: i64 = 500;

/// How far Redis's clock is ahead of the monotonic one, in ns.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    least: i64,
    most: i64,
    sent: Duration,
    received: Duration,
}

impl Ahead {
    /// What both say; of two that cannot both be true, because Redis's clock stepped, the newer.
    fn narrowed(self, before: Self) -> Self {
        let passed = nanos(self.received.saturating_sub(before.received));
        let drift = passed / 1_000_000 * DRIFT_PPM + 1;
        let least = self.least.max(before.least - drift);
        let most = self.most.min(before.most + drift);
        if least > most {
            return self;
        }
        Self {
            least,
            most,
            ..self
        }
    }
}

/// The estimate. Shared by everything that talks to one Redis.
#[derive(Debug)]
pub(super) struct Clock {
    ahead: Mutex<Option<Ahead>>,
    monotonic: fn() -> Duration,
}

impl Clock {
    pub(super) fn new(monotonic: fn() -> Duration) -> Self {
        Self {
            ahead: Mutex::new(None),
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
        let now_ns = nanos(Duration::from_micros(redis_us));
        let read = Ahead {
            least: now_ns - nanos(received),
            most: now_ns - nanos(sent),
            sent,
            received,
        };
        let mut ahead = self.lock();
        *ahead = Some(match *ahead {
            Some(before) if sent < before.sent => return,
            Some(before) => read.narrowed(before),
            None => read,
        });
    }

    /// Redis's clock is at most this, rounded up to a whole ms. The epoch before the first reply.
    pub(super) fn upper(&self) -> UnixMs {
        self.bounds().at_most
    }

    /// Redis's clock from both sides, now. The epoch before the first reply.
    pub(super) fn bounds(&self) -> NowBounds {
        let ahead = *self.lock();
        let at = self.monotonic();
        let is_ns = |ahead: i64| u64::try_from(nanos(at).saturating_add(ahead)).unwrap_or(0);
        NowBounds {
            at_least_us: ahead.map_or(0, |ahead| is_ns(ahead.least) / 1_000),
            at_most: UnixMs(ahead.map_or(0, |ahead| is_ns(ahead.most).div_ceil(1_000_000))),
            at,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Ahead>> {
        // It is replaced whole: a panic elsewhere cannot have left half of one.
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As a signed number: enough for 292 years.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
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

    /// Two readings, the first of a clock that is not ahead, and what is known after both: in ns.
    fn narrowed(first_us: u64, second_us: u64, ahead_us: i64, after_ms: u64) -> (i64, i64) {
        let read = |ahead_us: i64, sent: Duration, trip_us: u64| {
            let trip = Duration::from_micros(trip_us);
            let half = nanos(trip) / 2;
            Ahead {
                least: ahead_us * 1_000 - half,
                most: ahead_us * 1_000 + half,
                sent,
                received: sent + trip,
            }
        };
        let first = read(0, Duration::from_secs(1), first_us);
        let again_at = first.received + Duration::from_millis(after_ms);
        let second = read(ahead_us, again_at, second_us).narrowed(first);
        (second.least, second.most)
    }

    #[test]
    fn a_quick_reply_is_remembered() {
        assert_eq!(narrowed(100, 1_000, 0, 0), (-50_501, 50_501));
        // What it says grows old.
        assert_eq!(narrowed(100, 1_000, 0, 99), (-100_001, 100_001));
        assert_eq!(narrowed(100, 1_000, 0, 60_000), (-500_000, 500_000));
        assert_eq!(narrowed(1_000, 100, 0, 0), (-50_000, 50_000));
    }

    #[test]
    fn a_step_is_followed_at_once() {
        assert_eq!(narrowed(100, 1_000, 700, 0), (200_000, 1_200_000));
        assert_eq!(narrowed(100, 1_000, -700, 0), (-1_200_000, -200_000));
    }

    #[test]
    fn an_older_requests_reply_is_not_taken() {
        let clock = Clock::new(|| Duration::from_millis(10));
        clock.learn(5_000_000, Duration::from_millis(8));
        clock.learn(9_000_000, Duration::from_millis(7));
        assert_eq!(clock.bounds().at_least_us, 5_000_000);
    }
}
