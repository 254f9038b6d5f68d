//! The machine's clock, and waiting by it. Redis, nsqd and the consumer are held against it, so that a
//! benchmark over several machines is as exact as their clocks agree.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Unix us.
pub(super) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000
}

/// Waits until this moment, Unix us. Blocks the thread: benchmarks have their own.
pub(super) fn wait_until(at_us: u64) {
    loop {
        let left = at_us.saturating_sub(now_us());
        if left == 0 {
            return;
        }
        std::thread::park_timeout(Duration::from_micros(left));
    }
}

/// Waits so long.
pub(super) fn wait(length: Duration) {
    wait_until(now_us() + u64::try_from(length.as_micros()).unwrap_or(u64::MAX / 2));
}

/// us as seconds.
pub(super) fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}
