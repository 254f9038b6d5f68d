//! A clock that only goes forward, and goes on while the machine sleeps. Tells lengths of time,
//! never what time it is: that is Redis's to say.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine was started, sleep included.
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
