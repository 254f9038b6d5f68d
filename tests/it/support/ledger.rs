//! What was sent, what was answered, what came: the check of the promises, from bodies alone.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::consumer::Delivery;
use super::unix_us;

/// What a body says of itself: who it is, when its sending began on the machine's clock, its delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) number: usize,
    pub(crate) sent_us: u64,
    pub(crate) delay_ms: u64,
}

impl Stamp {
    /// A stamp of this moment.
    pub(crate) fn now(number: usize, delay_ms: u64) -> Self {
        Self {
            number,
            sent_us: unix_us(),
            delay_ms,
        }
    }

    /// The body, filled up to `size` bytes.
    pub(crate) fn body(&self, size: usize) -> Vec<u8> {
        let mut body = format!("{} {} {} ", self.number, self.sent_us, self.delay_ms).into_bytes();
        body.resize(body.len().max(size), b'.');
        body
    }

    /// Reads a body; `None`: it is not one of ours.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let text = str::from_utf8(body).ok()?;
        let mut words = text.split(' ');
        Some(Self {
            number: words.next()?.parse().ok()?,
            sent_us: words.next()?.parse().ok()?,
            delay_ms: words.next()?.parse().ok()?,
        })
    }

    /// The moment before which it must not be delivered.
    pub(crate) fn due_us(&self) -> u64 {
        self.sent_us + self.delay_ms * 1000
    }
}

/// The producers' side of the story, by the messages' numbers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Ledger {
    /// Answered with success.
    pub(crate) acknowledged: HashSet<usize>,
    /// Sent, answer lost: may come or not.
    pub(crate) unknown: HashSet<usize>,
    /// Cancelled, and told so.
    pub(crate) cancelled: HashSet<usize>,
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) cancelled: usize,
    /// Different messages that came.
    pub(crate) delivered: usize,
    /// Acknowledged, not cancelled, and did not come.
    pub(crate) lost: usize,
    /// Given to nsqd before sending began + delay.
    pub(crate) early: usize,
    /// Copies beyond the first that nsqdelayd made; nsqd's own repetitions do not count.
    pub(crate) duplicate: usize,
    /// Cancelled, but came.
    pub(crate) resurrected: usize,
    /// Came, but was never sent, or was refused.
    pub(crate) unexpected: usize,
    /// Reception after due, of first copies, in ms, sorted.
    pub(crate) lateness_ms: Vec<f64>,
}

impl Ledger {
    /// Everything that must come.
    pub(crate) fn wanted(&self) -> usize {
        self.acknowledged.difference(&self.cancelled).count()
    }

    /// Adds another producer's story.
    pub(crate) fn merge(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.unknown.extend(other.unknown);
        self.cancelled.extend(other.cancelled);
    }

    /// Holds what came against what was said.
    pub(crate) fn check(&self, deliveries: &[Delivery]) -> Verdict {
        let mut verdict = Verdict {
            acknowledged: self.acknowledged.len(),
            unknown: self.unknown.len(),
            cancelled: self.cancelled.len(),
            ..Verdict::default()
        };
        let mut copies: HashMap<usize, usize> = HashMap::new();
        for delivery in deliveries {
            let Some(stamp) = Stamp::parse(&delivery.body) else {
                verdict.unexpected += 1;
                continue;
            };
            // nsqd sends again what it got no FIN for: that is not ours to answer for.
            if delivery.attempts > 1 && copies.contains_key(&stamp.number) {
                continue;
            }
            let copies = copies.entry(stamp.number).or_default();
            *copies += 1;
            if delivery.published_us < stamp.due_us() {
                verdict.early += 1;
            }
            if *copies > 1 {
                verdict.duplicate += 1;
                continue;
            }
            verdict
                .lateness_ms
                .push(ms_between(stamp.due_us(), delivery.at_us));
            verdict.resurrected += usize::from(self.cancelled.contains(&stamp.number));
            let sent = self.acknowledged.contains(&stamp.number)
                || self.unknown.contains(&stamp.number)
                || self.cancelled.contains(&stamp.number);
            verdict.unexpected += usize::from(!sent);
        }
        let wanted = self.acknowledged.difference(&self.cancelled);
        verdict.lost = wanted.filter(|number| !copies.contains_key(number)).count();
        verdict.delivered = copies.len();
        verdict.lateness_ms.sort_by(f64::total_cmp);
        verdict
    }
}

fn ms_between(from_us: u64, to_us: u64) -> f64 {
    (to_us as f64 - from_us as f64) / 1000.0
}

impl Verdict {
    /// The smallest lateness that at least `percent` of the messages do not exceed.
    pub(crate) fn lateness_ms(&self, percent: usize) -> f64 {
        let rank = (self.lateness_ms.len() * percent).div_ceil(100);
        let value = self.lateness_ms.get(rank.saturating_sub(1));
        value.copied().unwrap_or_default()
    }

    /// Nothing lost, early, resurrected or unexpected. Duplicates are for the caller to judge.
    #[track_caller]
    pub(crate) fn assert_kept(&self) {
        let faults = self.lost + self.early + self.resurrected + self.unexpected;
        assert_eq!(faults, 0, "promises broken: {self}");
    }

    /// As [`Self::assert_kept`], and nothing came twice.
    #[track_caller]
    pub(crate) fn assert_exact(&self) {
        self.assert_kept();
        assert_eq!(self.duplicate, 0, "duplicates without a fault: {self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {}, unknown {}, cancelled {}, delivered {}, lost {}, early {}, duplicate {}, \
             cancelled but delivered {}, unexpected {}, lateness p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            self.acknowledged,
            self.unknown,
            self.cancelled,
            self.delivered,
            self.lost,
            self.early,
            self.duplicate,
            self.resurrected,
            self.unexpected,
            self.lateness_ms(50),
            self.lateness_ms(99),
            self.lateness_ms(100),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Delivery, Ledger, Stamp};

    fn delivery(number: usize, published_us: u64) -> Delivery {
        let stamp = Stamp {
            number,
            sent_us: 1000,
            delay_ms: 1,
        };
        Delivery {
            body: stamp.body(20),
            at_us: published_us + 500,
            published_us,
            attempts: 1,
        }
    }

    #[test]
    fn each_broken_promise_is_seen() {
        let ledger = Ledger {
            acknowledged: [1, 2, 3, 4].into(),
            unknown: [5].into(),
            cancelled: [4].into(),
        };
        let came = [
            delivery(1, 2000),
            delivery(1, 2000),
            delivery(2, 1999),
            delivery(4, 2000),
            delivery(5, 2000),
            delivery(6, 2000),
        ];
        let verdict = ledger.check(&came);
        assert_eq!((verdict.lost, verdict.early, verdict.duplicate), (1, 1, 1));
        assert_eq!((verdict.resurrected, verdict.unexpected), (1, 1));
        assert_eq!((verdict.delivered, ledger.wanted()), (5, 3));
    }
}
