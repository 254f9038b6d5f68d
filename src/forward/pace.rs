//! How many messages one nsqd is given in one command. An nsqd that writes each message to a slow disk
//! may need longer for a large command than it is waited for; sent again as large it would never be
//! answered. Knows nothing of sockets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a command that was not answered in time is divided by.
const DIVISOR: usize = 8;
/// An answer that took less than this share of the time-out lets commands grow.
const QUICK_SHARE: u32 = 4;

/// The size of commands, in messages: far smaller after one that was not answered in time, and
/// larger again as long as answers come quickly.
#[derive(Debug)]
pub(super) struct Pace {
    max: usize,
    timeout: Duration,
    now: AtomicUsize,
}

impl Pace {
    /// Up to `max` messages, with `timeout` for an answer.
    pub(super) fn new(max: usize, timeout: Duration) -> Self {
        let max = max.max(1);
        Self {
            max,
            timeout,
            now: AtomicUsize::new(max),
        }
    }

    /// Most messages of one command now.
    pub(super) fn messages(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Takes note that a command was answered after nsqd had been busy with it for `took`.
    pub(super) fn answered(&self, took: Duration) {
        let now = self.messages();
        if now < self.max && took < self.timeout / QUICK_SHARE {
            self.set(now + now / 4 + 1);
        }
    }

    /// Takes note that a command of so many messages was not answered in time.
    pub(super) fn unanswered(&self, messages: usize) {
        self.set(self.messages().min(messages) / DIVISOR);
    }

    /// Two connections that do so at once lose a step of one of them: no harm.
    fn set(&self, messages: usize) {
        self.now
            .store(messages.clamp(1, self.max), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    #[test]
    fn commands_shrink_when_unanswered_and_grow_while_answers_are_quick() {
        let pace = Pace::new(200, TIMEOUT);
        assert_eq!(pace.messages(), 200);
        pace.unanswered(160);
        assert_eq!(pace.messages(), 20);
        pace.answered(TIMEOUT / 2);
        assert_eq!(pace.messages(), 20);
        pace.answered(TIMEOUT / 5);
        assert_eq!(pace.messages(), 26);
    }

    proptest! {
        #[test]
        fn it_stays_in_bounds_and_recovers(
            max in 0..500_usize,
            events in proptest::collection::vec((any::<bool>(), 0..500_usize), 0..50),
        ) {
            let pace = Pace::new(max, TIMEOUT);
            for (answered, size) in events {
                if answered {
                    pace.answered(Duration::ZERO);
                } else {
                    pace.unanswered(size);
                }
                prop_assert!((1..=max.max(1)).contains(&pace.messages()));
            }
            for _ in 0..40 {
                pace.answered(Duration::ZERO);
            }
            prop_assert_eq!(pace.messages(), max.max(1));
        }
    }
}
