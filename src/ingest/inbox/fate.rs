//! PURE but for the clock that it is given. What becomes of a message by what the intake said, and how
//! fast nsqd may push: all at once, not at all, or one to try.

use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::Instant;

use crate::ingest::problem::{Code, Problem};

/// Longest time that nsqd is asked to keep a message that the store did not take, in ms.
const AGAIN_MS_MAX: u64 = 60_000;
/// The same after the first attempt.
const AGAIN_MS_MIN: u64 = 500;
/// How often the time doubles at most: beyond it [`AGAIN_MS_MAX`] counts.
const DOUBLINGS_MAX: u16 = 10;

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// The store has it: FIN.
    Stored,
    /// It can be taken later, and others now: REQ.
    Later(Code),
    /// Nothing can be taken now: REQ, and a pause.
    Pause(Code),
    /// It can never be taken: to the topic beside, then FIN.
    Invalid(Problem),
}

impl Fate {
    /// Of what the intake said.
    pub(super) fn of(said: Result<(), Problem>) -> Self {
        match said {
            Ok(()) => Self::Stored,
            Err(problem) => Self::refused(problem),
        }
    }

    /// Of a refusal. What is wrong here, and not with the message, passes.
    pub(super) fn refused(problem: Problem) -> Self {
        match problem.code.status() {
            // Only its topic is full.
            StatusCode::TOO_MANY_REQUESTS => Self::Later(problem.code),
            status if status >= StatusCode::INTERNAL_SERVER_ERROR => Self::Pause(problem.code),
            _ => Self::Invalid(problem),
        }
    }
}

/// How long nsqd is to keep a message before it pushes it again, cut by up to half by `random` (0 to 1).
pub(super) fn again_ms(attempts: u16, random: f64) -> u64 {
    let doublings = attempts.saturating_sub(1).min(DOUBLINGS_MAX);
    let full = (AGAIN_MS_MIN << doublings).min(AGAIN_MS_MAX);
    let cut = Duration::from_millis(full).mul_f64(0.5 + random / 2.0);
    u64::try_from(cut.as_millis()).unwrap_or(full)
}

/// Pauses that double from `min` to `max`, each cut by up to half at random.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        let next = min;
        Self { min, max, next }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    pub(super) fn next(&mut self) -> Duration {
        let full = self.next.min(self.max);
        self.next = full.saturating_mul(2);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// How fast nsqd may push.
#[derive(Debug)]
pub(super) struct Pace {
    full: usize,
    backoff: Backoff,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Full,
    Paused(Instant),
    Trial,
}

impl Pace {
    pub(super) fn new(full: usize, backoff: Backoff) -> Self {
        Self {
            full,
            backoff,
            state: State::Full,
        }
    }

    /// What RDY says.
    pub(super) fn ready(&self) -> usize {
        match self.state {
            State::Full => self.full,
            State::Paused(_) => 0,
            State::Trial => 1,
        }
    }

    /// When a pause ends.
    pub(super) fn resume_at(&self) -> Option<Instant> {
        match self.state {
            State::Paused(until) => Some(until),
            State::Full | State::Trial => None,
        }
    }

    /// The store did not take a message. What was pushed before a pause fails with it and does not
    /// lengthen it.
    pub(super) fn failed(&mut self, now: Instant) {
        match self.state {
            State::Full | State::Trial => self.state = State::Paused(now + self.backoff.next()),
            State::Paused(_) => {}
        }
    }

    /// The store took a message.
    pub(super) fn succeeded(&mut self) {
        match self.state {
            State::Full => {}
            State::Paused(_) | State::Trial => {
                self.backoff.reset();
                self.state = State::Full;
            }
        }
    }

    /// A pause has ended: one message tries.
    pub(super) fn resume(&mut self) {
        self.state = State::Trial;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fate(code: Code) -> Fate {
        Fate::of(Err(Problem::new(code, "")))
    }

    #[test]
    fn what_is_wrong_here_passes_and_what_is_wrong_with_the_message_does_not() {
        for code in [
            Code::StoreUnavailable,
            Code::StoreRefused,
            Code::OutcomeUnknown,
            Code::Overloaded,
            Code::Internal,
        ] {
            assert_eq!(fate(code), Fate::Pause(code));
        }
        assert_eq!(fate(Code::TopicFull), Fate::Later(Code::TopicFull));
        for code in [
            Code::InvalidJson,
            Code::InvalidTopic,
            Code::IdConflict,
            Code::MessageCancelled,
            Code::MessageTooBig,
        ] {
            assert!(matches!(fate(code), Fate::Invalid(_)), "{code:?}");
        }
        assert_eq!(Fate::of(Ok(())), Fate::Stored);
    }

    #[test]
    fn a_message_comes_again_later_each_time() {
        assert_eq!(again_ms(0, 1.0), 500);
        assert_eq!(again_ms(1, 1.0), 500);
        assert_eq!(again_ms(1, 0.0), 250);
        assert_eq!(again_ms(3, 1.0), 2_000);
        assert_eq!(again_ms(u16::MAX, 1.0), AGAIN_MS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_message_tries_before_all_come() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(200, Backoff::new(second, second * 8));
        assert_eq!((pace.ready(), pace.resume_at()), (200, None));
        let now = Instant::now();
        pace.failed(now);
        let until = pace.resume_at().unwrap();
        assert!(pace.ready() == 0 && until > now && until <= now + second);
        pace.failed(now + second);
        assert_eq!(pace.resume_at(), Some(until));
        pace.resume();
        assert_eq!(pace.ready(), 1);
        pace.failed(now);
        assert!(pace.resume_at().unwrap() >= now + second);
        pace.resume();
        pace.succeeded();
        assert_eq!(pace.ready(), 200);
    }
}
