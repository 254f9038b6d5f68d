//! The memory that what is under way may take, all doors and connections together: from the first byte
//! of a body to the store's answer. Knows nothing of what the bytes are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a message takes beside its body, roughly, while it is on its way.
pub(super) const MESSAGE_OVERHEAD: usize = 128;

/// Who holds no more than this may have the last sixteenth of a budget as well: clients with huge or
/// endless bodies must not keep out those with small ones.
const SMALL: usize = 64 * 1024;

/// There is no room now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowded;

/// So many bytes, shared.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// Room for `max` bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max,
        })
    }

    /// Bytes held by all.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A share of it, empty at first.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share {
            budget: Arc::clone(self),
            held: 0,
        }
    }
}

/// What one holder has of a budget, until this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    held: usize,
}

impl Share {
    /// Holds `bytes` from now on, if there is room for what that is more. Less is always granted.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), Crowded> {
        let used = &self.budget.used;
        if bytes > self.held {
            let more = bytes - self.held;
            let max = self.budget.max;
            let held = self.held;
            let grow = |used: usize| {
                used.checked_add(more).filter(|sum| {
                    *sum <= if bytes <= SMALL || used == held {
                        max
                    } else {
                        max - max / 16
                    }
                })
            };
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow)
                .map_err(|_full| Crowded)?;
        } else {
            used.fetch_sub(self.held - bytes, Ordering::Relaxed);
        }
        self.held = bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.held, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_together_and_given_back() {
        let budget = Budget::new(10);
        let (mut one, mut other) = (budget.share(), budget.share());
        assert_eq!(one.resize(6), Ok(()));
        assert_eq!(other.resize(5), Err(Crowded));
        assert_eq!(other.held, 0);
        assert_eq!(other.resize(4), Ok(()));
        assert_eq!(one.resize(7), Err(Crowded));
        assert_eq!(one.resize(2), Ok(()));
        assert_eq!(other.resize(8), Ok(()));
        drop(one);
        assert_eq!(other.resize(10), Ok(()));
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_last_sixteenth_is_for_those_who_hold_little() {
        let budget = Budget::new(16 * SMALL);
        let (mut large, mut small) = (budget.share(), budget.share());
        // Whoever is alone may have all.
        assert_eq!(large.resize(16 * SMALL), Ok(()));
        assert_eq!(large.resize(SMALL), Ok(()));
        assert_eq!(small.resize(1), Ok(()));
        assert_eq!(large.resize(15 * SMALL), Err(Crowded));
        assert_eq!(large.resize(15 * SMALL - 1), Ok(()));
        assert_eq!(small.resize(SMALL), Ok(()));
        assert_eq!(small.resize(SMALL + 1), Err(Crowded));
    }
}
