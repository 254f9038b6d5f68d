//! The times of one connection: its heartbeats, and how long its client may be silent. Knows nothing of
//! what is said.

use std::time::Duration;

use tokio::time::Instant;

/// For a connection without any deadline.
const NEVER: Duration = Duration::from_hours(24);

/// Two intervals of silence end with the second heartbeat, give or take this: then they end first.
const TOGETHER: Duration = Duration::from_millis(5);

/// nsqd counts heartbeats by the first IDENTIFY, and the client's time to speak by the latest.
#[derive(Debug)]
pub(super) struct Clock {
    heartbeat: Option<(Instant, Duration)>,
    read_by: Option<Instant>,
    /// A deadline may have come nearer than the timer is set.
    moved: bool,
}

impl Clock {
    /// Before IDENTIFY.
    pub(super) fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            heartbeat: Some((now + interval, interval)),
            read_by: Some(now + interval * 2),
            moved: false,
        }
    }

    /// What the timer is to be set to.
    pub(super) fn next_deadline(&self) -> Instant {
        let beat = self.heartbeat.map(|(at, _)| at);
        let deadlines = [beat, self.read_by];
        let next = deadlines.into_iter().flatten().min();
        next.unwrap_or_else(|| Instant::now() + NEVER)
    }

    /// The same, if the timer is to be set anew.
    pub(super) fn moved(&mut self) -> Option<Instant> {
        std::mem::take(&mut self.moved).then(|| self.next_deadline())
    }

    /// The timer is to be set anew.
    pub(super) fn move_timer(&mut self) {
        self.moved = true;
    }

    /// The client has said how often it wants heartbeats.
    pub(super) fn set_heartbeat(&mut self, interval: Option<Duration>) {
        self.heartbeat = interval.map(|interval| (Instant::now() + interval, interval));
    }

    /// The client has spoken. The timer is not moved for it: when it goes off too early, it is set
    /// again.
    pub(super) fn restart_read(&mut self, interval: Option<Duration>) {
        self.read_by = interval.map(|interval| Instant::now() + interval * 2);
    }

    /// Whether a heartbeat is due; then the next one is an interval later.
    pub(super) fn beat_is_due(&mut self, now: Instant) -> bool {
        let Some((at, interval)) = &mut self.heartbeat else {
            return false;
        };
        let due = *at <= now;
        while *at <= now {
            *at += *interval;
        }
        due
    }

    /// Whether the client was silent too long.
    pub(super) fn read_is_over(&self, now: Instant) -> bool {
        self.read_by.is_some_and(|by| by <= now + TOGETHER)
    }
}
