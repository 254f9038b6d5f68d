//! PURE. How long an insert waits for company. Messages that come one by one, thousands a second, would
//! each be a pack, and each pack costs an insert and a turn: then a wait of a ms or two pays. Who waits
//! for its answer before it sends more must not wait for company that cannot come, nor need it wait whose
//! packs are full anyway: after two waits that nothing more came for, or that were not needed, none is tried for
//! a while, and for a longer one if the next is no better. One may be chance: on a busy machine senders halt for a
//! moment.

use std::time::Duration;

use tokio::time::Instant;

/// A wait pays from so many messages on.
const WORTH: usize = 4;
/// When a wait is looked at first.
const FIRST_LOOK: Duration = Duration::from_micros(100);
/// How often it is looked at after that.
const LOOK: Duration = Duration::from_micros(300);
/// So many looks that show nothing new end it.
const QUIET_LOOKS: u32 = 2;
/// How long nobody waits after the second wait in a row that did not pay; twice as long after each more.
const REST_MIN: Duration = Duration::from_millis(10);
/// From so many on it stays at 80 ms.
const FAILURES_MAX: u32 = 5;
/// Over which time messages are counted.
const WINDOW: Duration = Duration::from_millis(8);

/// Says when the next insert may begin.
#[derive(Debug)]
pub(super) struct Linger {
    max: Duration,
    wait: Option<Wait>,
    /// What is gathered next was waited for, and whether that seemed to pay.
    waited: Option<bool>,
    /// Waits that did not pay, since the last that did.
    failures: u32,
    rest_until: Option<Instant>,
    window_began: Instant,
    in_window: usize,
    /// Messages of the window before.
    before: usize,
}

#[derive(Debug, Clone, Copy)]
struct Wait {
    until: Instant,
    look_at: Instant,
    /// Messages at the last look; none: there was no look yet.
    seen: Option<usize>,
    /// Looks that showed nothing new, one after the other.
    quiet: u32,
    enough: usize,
}

impl Linger {
    /// Waits of at most `max`; zero: none.
    pub(super) fn new(max: Duration, now: Instant) -> Self {
        Self {
            max,
            wait: None,
            waited: None,
            failures: 0,
            rest_until: None,
            window_began: now,
            in_window: 0,
            before: 0,
        }
    }

    /// When to look again; `None`: the next insert may begin as soon as there is something for it.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.wait.map(|wait| wait.look_at)
    }

    /// An insert of so many messages has begun, of which `enough` fill a pack: whether the next one waits.
    pub(super) fn begun(&mut self, messages: usize, enough: usize, now: Instant) {
        if self.max.is_zero() {
            return;
        }
        if let Some(paid) = self.waited.take() {
            if paid && messages >= WORTH.min(enough) {
                self.failures = 0;
            } else {
                self.failures = (self.failures + 1).min(FAILURES_MAX);
                self.rest_until = match self.failures {
                    1 => None,
                    more => Some(now + REST_MIN * (1 << (more - 2))),
                };
            }
        }
        self.count(messages, now);
        let rests = self.rest_until.is_some_and(|until| now < until);
        if self.is_dense() && !rests {
            self.wait = Some(Wait {
                until: now + self.max,
                look_at: now + FIRST_LOOK.min(self.max),
                seen: None,
                quiet: 0,
                enough,
            });
        }
    }

    /// So many messages wait now.
    pub(super) fn look(&mut self, queued: usize, now: Instant) {
        let Some(wait) = &mut self.wait else {
            return;
        };
        wait.quiet = if wait.seen == Some(queued) {
            wait.quiet + 1
        } else {
            0
        };
        let nothing_comes = wait.quiet == QUIET_LOOKS;
        // A whole pack at a stroke.
        let not_needed = queued - wait.seen.unwrap_or(0).min(queued) >= wait.enough;
        if nothing_comes || queued >= wait.enough || now >= wait.until {
            self.wait = None;
            self.waited = Some(!nothing_comes && !not_needed);
        } else {
            wait.seen = Some(queued);
            wait.look_at = (now + LOOK).min(wait.until);
        }
    }

    fn count(&mut self, messages: usize, now: Instant) {
        let passed = now.saturating_duration_since(self.window_began);
        if passed >= WINDOW {
            // Of a window that was left behind long ago nothing is known.
            self.before = if passed < WINDOW * 2 {
                self.in_window
            } else {
                0
            };
            self.in_window = 0;
            self.window_began = now;
        }
        self.in_window += messages;
    }

    /// Whether so many come that a whole wait would pay.
    fn is_dense(&self) -> bool {
        let in_wait = self.before as u128 * self.max.as_micros() / WINDOW.as_micros();
        in_wait >= WORTH as u128
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(2);
    const ENOUGH: usize = 26;

    struct Played {
        messages: usize,
        inserts: usize,
        /// The longest that a message waited.
        longest: Duration,
    }

    fn play(per_ms: u64) -> Played {
        play_with(MAX, per_ms, usize::MAX, |_ms| false)
    }

    /// Plays messages that come evenly, `per_ms`, for 200 ms, but for the ms in which senders halt, while not too many
    /// are unanswered; an insert takes 150 µs.
    fn play_with(
        max: Duration,
        per_ms: u64,
        outstanding_max: usize,
        halts: impl Fn(u32) -> bool,
    ) -> Played {
        let start = Instant::now();
        let step = Duration::from_micros(50);
        let mut linger = Linger::new(max, start);
        let (mut messages, mut inserts, mut longest) = (0, 0, Duration::ZERO);
        let mut queue: Vec<Instant> = Vec::new();
        let mut answered_at: Option<(Instant, usize)> = None;
        let mut owed_micros = 0;
        for n in 0..4_000_u32 {
            let now = start + step * n;
            owed_micros += if halts(n / 20) { 0 } else { per_ms * 50 };
            if let Some((at, _)) = answered_at
                && now >= at
            {
                answered_at = None;
            }
            let under_way = answered_at.map_or(0, |(_, messages)| messages);
            // Who may not send does not make up for it later.
            owed_micros = owed_micros.min(per_ms * 100);
            while owed_micros >= 1_000 {
                owed_micros -= 1_000;
                if queue.len() + under_way < outstanding_max {
                    queue.push(now);
                }
            }
            if linger.look_at().is_some_and(|at| now >= at) {
                linger.look(queue.len(), now);
            }
            if linger.look_at().is_none() && answered_at.is_none() && !queue.is_empty() {
                let oldest = queue.iter().min().copied().unwrap_or(now);
                longest = longest.max(now - oldest);
                linger.begun(queue.len(), ENOUGH, now);
                answered_at = Some((now + step * 3, queue.len()));
                messages += queue.len();
                queue.clear();
                inserts += 1;
            }
        }
        Played {
            messages,
            inserts,
            longest,
        }
    }

    #[test]
    fn what_comes_densely_is_gathered_and_waits_at_most_so_long() {
        let Played {
            inserts, longest, ..
        } = play(30);
        // 6,000 messages: without a wait, six an insert.
        assert!(inserts < 6_000 / 20, "{inserts}");
        assert!(longest <= MAX + LOOK, "{longest:?}");
    }

    #[test]
    fn senders_that_halt_for_a_moment_are_waited_for_again() {
        let Played {
            messages, inserts, ..
        } = play_with(MAX, 10, usize::MAX, |ms| ms % 20 == 7);
        // With a rest of 100 ms after each halt it was less than 2.
        assert!(messages / inserts >= 6, "{messages} in {inserts}");
    }

    #[test]
    fn what_comes_now_and_then_does_not_wait() {
        let longest = play(2).longest;
        assert!(longest <= Duration::from_micros(150), "{longest:?}");
    }

    #[test]
    fn who_waits_for_answers_is_not_held_up() {
        for outstanding in [4, 11, 12, 16, 25, 26, 32, 64] {
            let answered = |max| play_with(max, 1_000, outstanding, |_ms| false).messages;
            let (with, without) = (answered(MAX), answered(Duration::ZERO));
            assert!(
                with * 100 >= without * 95,
                "{outstanding}: {with} of {without}"
            );
        }
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let now = Instant::now();
        let mut linger = Linger::new(Duration::ZERO, now);
        for n in 0..1_000 {
            linger.begun(1_000, ENOUGH, now + WINDOW * n);
            assert_eq!(linger.look_at(), None);
        }
    }
}
