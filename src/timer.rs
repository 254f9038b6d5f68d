//! Alarms that ring when they should. The runtime's own timers round up to the next ms and one more: at a
//! lateness of 2 ms that is half of it. The kernel's are exact to some ten µs. Knows nothing of what waits.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::monotonic::boottime;

/// What time is measured by. The simulation has its own, which runs as fast as it likes.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Reading of a clock that also runs while the machine sleeps.
    pub now: fn() -> Duration,
    /// What wakes whoever waits.
    pub timers: Timers,
}

impl Clock {
    /// The machine's clock and timers.
    #[must_use]
    pub fn of_machine() -> Self {
        Self {
            now: boottime,
            timers: Timers::Kernel,
        }
    }
}

/// Whose timers wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// A timerfd for each that waits.
    Kernel,
    /// The runtime's, which virtual time drives.
    Runtime,
}

/// Moments closer to each other than this are one: the kernel is not told of another.
const SAME: Duration = Duration::from_micros(20);

/// One alarm.
#[derive(Debug)]
pub struct Timer {
    kernel: Option<AsyncFd<OwnedFd>>,
    /// When the kernel's rings, if it has not.
    armed: Option<Instant>,
}

impl Timer {
    /// An alarm of that kind; the runtime's where the kernel gives none.
    #[must_use]
    pub fn new(timers: Timers) -> Self {
        let kernel = match timers {
            Timers::Runtime => None,
            Timers::Kernel => kernel_timer()
                .inspect_err(
                    |error| warn!(%error, "no timerfd: what is due happens up to 2 ms later"),
                )
                .ok(),
        };
        Self {
            kernel,
            armed: None,
        }
    }

    /// Returns at `at`, not before.
    pub async fn sleep_until(&mut self, at: Instant) {
        let mut rang = false;
        loop {
            let left = at.saturating_duration_since(Instant::now());
            // Armed with zero, a timerfd would never ring. When it has rung much too early, the machine has slept
            // meanwhile, which only the kernel's alarm counts.
            if left.is_zero() || (rang && left > SAME) {
                return;
            }
            match self.ring(at, left).await {
                Ok(()) => rang = true,
                Err(_unsupported) => sleep_until(at).await,
            }
        }
    }

    /// Waits for the kernel's alarm, which may be some µs early.
    async fn ring(&mut self, at: Instant, left: Duration) -> io::Result<()> {
        let Some(timer) = &self.kernel else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let is_armed =
            |armed: Instant| armed.max(at).saturating_duration_since(armed.min(at)) <= SAME;
        if !self.armed.is_some_and(is_armed) {
            self.armed = None;
            arm(timer, left)?;
            self.armed = Some(at);
        }
        loop {
            let mut guard = timer.readable().await?;
            let read = rustix::io::read(timer, &mut [0; 8]);
            // It rings once: there is nothing more to be read before it is armed again.
            guard.clear_ready();
            match read {
                // That was an alarm that nobody waited for to the end.
                Err(Errno::AGAIN) => {}
                read => {
                    self.armed = None;
                    return Ok(read.map(|_rings| ())?);
                }
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for descriptors that another may close; this one is owned"
)]
fn kernel_timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
}

/// Arms the timer. An alarm that nobody waited for to the end is forgotten.
fn arm(timer: &AsyncFd<OwnedFd>, left: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(left).map_err(io::Error::other)?,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_never_rings_early_and_can_be_armed_again() {
        for timers in [Timers::Kernel, Timers::Runtime] {
            let mut timer = Timer::new(timers);
            for micros in [0, 1, 300, 2_500, 700] {
                let at = Instant::now() + Duration::from_micros(micros);
                timer.sleep_until(at).await;
                assert!(Instant::now() >= at, "{timers:?}, {micros} µs");
            }
        }
    }

    #[tokio::test]
    async fn an_alarm_that_was_given_up_does_not_ring_for_the_next() {
        let mut timer = Timer::new(Timers::Kernel);
        let soon = Instant::now() + Duration::from_millis(1);
        tokio::select! {
            biased;
            () = timer.sleep_until(soon) => {}
            () = std::future::ready(()) => {}
        }
        sleep_until(soon + Duration::from_millis(2)).await;
        let at = Instant::now() + Duration::from_millis(5);
        timer.sleep_until(at).await;
        assert!(Instant::now() >= at);
    }
}
