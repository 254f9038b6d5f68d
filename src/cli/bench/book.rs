//! What was acknowledged, cancelled and received of one load, message by message: from it comes what was
//! lost, early or doubled. Shared by the threads of a load; knows no socket.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use serde::Serialize;

use crate::cli::bench::stamp::Stamp;

/// Answered with success.
const ACKNOWLEDGED: u8 = 0x80;
/// Cancelled, and told so.
const CANCELLED: u8 = 0x40;
/// How often it came; more than this are not told apart.
const COPIES: u8 = 0x3f;

/// The state of every message of one load.
#[derive(Debug)]
pub(super) struct Book {
    run: u32,
    /// nsqd's own deferred messages carry the time of their publication, so they are early by when they
    /// are received; ours by when nsqd got them.
    by_reception: bool,
    states: Vec<AtomicU8>,
    acknowledged: AtomicU32,
    cancelled: AtomicU32,
    received: AtomicU32,
    duplicate: AtomicU32,
    early: AtomicU32,
    unexpected: AtomicU32,
    /// When the last first copy came, Unix us.
    last_us: AtomicU64,
}

/// What a load came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Verdict {
    /// Messages of the load.
    pub(super) sent: u32,
    /// Answered with success.
    pub(super) acknowledged: u32,
    /// Cancelled, and told so.
    pub(super) cancelled: u32,
    /// Different messages that came.
    pub(super) received: u32,
    /// Acknowledged, not cancelled, and did not come.
    pub(super) lost: u32,
    /// Came before they were due.
    pub(super) early: u32,
    /// Copies beyond the first that are not nsqd's own repetitions.
    pub(super) duplicate: u32,
    /// Cancelled, but came.
    pub(super) resurrected: u32,
    /// Came, but are not of this load.
    pub(super) unexpected: u32,
}

/// A message as a consumer got it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) stamp: Option<Stamp>,
    /// When nsqd says that it was published, Unix us.
    pub(super) published_us: u64,
    /// When the consumer read it.
    pub(super) at_us: u64,
    /// How often nsqd has sent it.
    pub(super) attempts: u16,
}

impl Book {
    pub(super) fn new(run: u32, count: u32, by_reception: bool) -> Self {
        Self {
            run,
            by_reception,
            states: (0..count).map(|_| AtomicU8::new(0)).collect(),
            acknowledged: AtomicU32::new(0),
            cancelled: AtomicU32::new(0),
            received: AtomicU32::new(0),
            duplicate: AtomicU32::new(0),
            early: AtomicU32::new(0),
            unexpected: AtomicU32::new(0),
            last_us: AtomicU64::new(0),
        }
    }

    pub(super) fn run(&self) -> u32 {
        self.run
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.states.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(super) fn received(&self) -> u32 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn last_us(&self) -> u64 {
        self.last_us.load(Ordering::Relaxed)
    }

    /// Messages that must come.
    pub(super) fn wanted(&self) -> u32 {
        self.acknowledged() - self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn acknowledge(&self, number: u32) {
        self.mark(number, ACKNOWLEDGED, &self.acknowledged);
    }

    pub(super) fn cancel(&self, number: u32) {
        self.mark(number, CANCELLED, &self.cancelled);
    }

    fn mark(&self, number: u32, flag: u8, count: &AtomicU32) {
        if let Some(state) = self.state(number)
            && state.fetch_or(flag, Ordering::Relaxed) & flag == 0
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn state(&self, number: u32) -> Option<&AtomicU8> {
        self.states.get(usize::try_from(number).ok()?)
    }

    /// Takes in a delivery; answers how late it was by its intended time, in us, if it is a first copy.
    pub(super) fn receive(&self, delivery: Delivery) -> Option<u64> {
        let ours = delivery.stamp.filter(|stamp| stamp.run == self.run);
        let Some((stamp, state)) = ours.and_then(|s| Some((s, self.state(s.number)?))) else {
            self.unexpected.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let copies = state.load(Ordering::Relaxed) & COPIES;
        // nsqd sends again what it got no FIN for.
        if copies > 0 && delivery.attempts > 1 {
            return None;
        }
        if copies < COPIES {
            state.fetch_add(1, Ordering::Relaxed);
        }
        let handed_us = if self.by_reception {
            delivery.at_us
        } else {
            delivery.published_us
        };
        if handed_us < stamp.due_us {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        if copies > 0 {
            self.duplicate.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.received.fetch_add(1, Ordering::Relaxed);
        self.last_us.fetch_max(delivery.at_us, Ordering::Relaxed);
        let intended_us = stamp.due_us.saturating_sub(u64::from(stamp.lag_us));
        Some(delivery.at_us.saturating_sub(intended_us))
    }

    pub(super) fn verdict(&self) -> Verdict {
        let count = |holds: fn(u8) -> bool| {
            let states = self.states.iter();
            let holding = states.filter(|state| holds(state.load(Ordering::Relaxed)));
            u32::try_from(holding.count()).unwrap_or(u32::MAX)
        };
        Verdict {
            sent: self.count(),
            acknowledged: self.acknowledged(),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            received: self.received(),
            lost: count(|state| state & !COPIES == ACKNOWLEDGED && state & COPIES == 0),
            early: self.early.load(Ordering::Relaxed),
            duplicate: self.duplicate.load(Ordering::Relaxed),
            resurrected: count(|state| state & CANCELLED != 0 && state & COPIES != 0),
            unexpected: self.unexpected.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(number: u32, at_us: u64, attempts: u16) -> Delivery {
        let stamp = Stamp {
            run: 1,
            number,
            due_us: 1_000,
            lag_us: 100,
        };
        Delivery {
            stamp: Some(stamp),
            published_us: at_us,
            at_us,
            attempts,
        }
    }

    #[test]
    fn each_broken_promise_is_seen() {
        let book = Book::new(1, 5, false);
        (0..4).for_each(|number| book.acknowledge(number));
        book.cancel(3);
        assert_eq!(book.wanted(), 3);
        assert_eq!(book.receive(delivery(0, 1_500, 1)), Some(600));
        assert_eq!(book.receive(delivery(0, 1_600, 1)), None);
        // nsqd's own repetition.
        assert_eq!(book.receive(delivery(0, 1_700, 2)), None);
        assert_eq!(book.receive(delivery(1, 999, 1)), Some(99));
        book.receive(delivery(3, 1_500, 1));
        book.receive(delivery(5, 1_500, 1));
        book.receive(Delivery {
            stamp: None,
            ..delivery(0, 1, 1)
        });
        let verdict = book.verdict();
        assert_eq!((verdict.lost, verdict.early, verdict.duplicate), (1, 1, 1));
        assert_eq!((verdict.resurrected, verdict.unexpected), (1, 2));
        assert_eq!((verdict.received, verdict.acknowledged), (3, 4));
        assert_eq!(book.last_us(), 1_500);
    }
}
