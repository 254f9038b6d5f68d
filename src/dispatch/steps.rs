//! Notices when Redis's clock steps forward, and says for how long nothing is handed out because of it.
//! A transient must not take H along: what H has passed is delivered early, and no cancel takes it back.
//! Pure: it is told the bounds of Redis's clock and when they held.

use std::time::Duration;

use crate::message::UnixMs;
use crate::store::NowBounds;

/// How far Redis's clock may run ahead of the monotonic one before that is a step, in µs. Less is
/// followed at once: it makes messages early by as much.
const STEP_US: i64 = 2_000_000;

/// A step forward that was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// How far at least.
    pub(super) by: Duration,
}

/// What a look at the clock came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// As expected.
    Steady,
    /// It has just stepped forward.
    Stepped(Step),
    /// It came back in time: what was seen was a transient.
    Returned,
    /// The hold is over and the clock has stayed there: it is followed from now on.
    Followed,
}

/// A step that is not followed yet.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Where the clock is now: Redis's less the monotonic one, in µs.
    ahead_us: i64,
    until: Duration,
}

/// Redis's clock held against the monotonic one.
#[derive(Debug)]
pub(super) struct Steps {
    hold: Duration,
    /// Redis's clock less the monotonic one, in µs, as it is trusted. `None` before the first reply.
    trusted_us: Option<i64>,
    held: Option<Held>,
}

impl Steps {
    /// Holds hand-out for `hold` after a step; with zero, every step is followed at once.
    pub(super) fn new(hold: Duration) -> Self {
        Self {
            hold,
            trusted_us: None,
            held: None,
        }
    }

    /// Until when, on the monotonic clock, nothing is handed out.
    pub(super) fn held_until(&self) -> Option<Duration> {
        self.held.map(|held| held.until)
    }

    /// Takes in a reading.
    pub(super) fn look(&mut self, bounds: NowBounds) -> Seen {
        // Before the first reply nothing is known, and nothing can be handed out.
        if bounds.at_least_us == 0 {
            return Seen::Steady;
        }
        let at_us = signed(bounds.at.as_micros());
        let least = signed(u128::from(bounds.at_least_us)) - at_us;
        let most = signed(u128::from(bounds.at_most.0) * 1_000) - at_us;
        let Some(trusted) = self.trusted_us else {
            self.trusted_us = Some(most);
            return Seen::Steady;
        };
        if self.hold.is_zero() || least <= trusted.saturating_add(STEP_US) {
            // As little change as the reading allows: drift is followed, a loose reading is not.
            self.trusted_us = Some(within(trusted, least, most));
            return match self.held.take() {
                Some(_) => Seen::Returned,
                None => Seen::Steady,
            };
        }
        match self.held {
            Some(held) if least <= held.ahead_us.saturating_add(STEP_US) => {
                let ahead_us = within(held.ahead_us, least, most);
                if bounds.at >= held.until {
                    self.trusted_us = Some(ahead_us);
                    self.held = None;
                    return Seen::Followed;
                }
                self.held = Some(Held { ahead_us, ..held });
                Seen::Steady
            }
            // Another step on top of one that is held is held as long again.
            _ => {
                self.held = Some(Held {
                    ahead_us: least,
                    until: bounds.at + self.hold,
                });
                let by = u64::try_from(least - trusted).unwrap_or(0);
                let by = Duration::from_micros(by);
                Seen::Stepped(Step { by })
            }
        }
    }

    /// The bounds to work with: while a step is held, as if it had not happened.
    pub(super) fn followed(&self, bounds: NowBounds) -> NowBounds {
        let (Some(_), Some(trusted)) = (self.held, self.trusted_us) else {
            return bounds;
        };
        let now_us = signed(bounds.at.as_micros()).saturating_add(trusted);
        let now_us = u64::try_from(now_us).unwrap_or(0);
        NowBounds {
            at_least_us: now_us,
            at_most: UnixMs(now_us.div_ceil(1_000)),
            at: bounds.at,
        }
    }
}

fn within(value: i64, least: i64, most: i64) -> i64 {
    value.min(most).max(least)
}

fn signed(value: u128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOLD: Duration = Duration::from_secs(10);
    /// Redis's clock when the monotonic one is at zero, in ms.
    const BASE_MS: u64 = 1_800_000_000_000;

    /// A reply's bounds at monotonic `at_ms`, of a clock that is `ahead_ms` beyond where it was.
    fn at(at_ms: u64, ahead_ms: i64) -> NowBounds {
        let now = (BASE_MS + at_ms).checked_add_signed(ahead_ms).unwrap();
        NowBounds {
            at_least_us: now * 1_000,
            at_most: UnixMs(now + 1),
            at: Duration::from_millis(at_ms),
        }
    }

    fn steps() -> Steps {
        let mut steps = Steps::new(HOLD);
        assert_eq!(steps.look(at(0, 0)), Seen::Steady);
        steps
    }

    fn is_step(seen: Seen, at_least_ms: u64) -> bool {
        let Seen::Stepped(step) = seen else {
            return false;
        };
        step.by + Duration::from_millis(2) >= Duration::from_millis(at_least_ms)
    }

    #[test]
    fn a_step_forward_is_held_and_then_followed() {
        let mut steps = steps();
        assert!(is_step(steps.look(at(1_000, 3_600_000)), 3_600_000));
        assert_eq!(steps.held_until(), Some(Duration::from_secs(11)));
        assert_eq!(steps.look(at(10_999, 3_600_000)), Seen::Steady);
        assert!(steps.held_until().is_some());
        assert_eq!(steps.look(at(11_000, 3_600_000)), Seen::Followed);
        assert_eq!(steps.held_until(), None);
        assert_eq!(steps.look(at(12_000, 3_600_000)), Seen::Steady);
    }

    #[test]
    fn a_transient_is_not_followed() {
        let mut steps = steps();
        assert!(is_step(steps.look(at(1_000, 3_600_000)), 3_600_000));
        let held = steps.followed(at(2_000, 3_600_000));
        assert!(held.at_most.0.abs_diff(BASE_MS + 2_000) <= 2, "{held:?}");
        assert_eq!(steps.look(at(3_000, 0)), Seen::Returned);
        assert_eq!(steps.held_until(), None);
        assert_eq!(steps.followed(at(3_000, 0)), at(3_000, 0));
    }

    #[test]
    fn small_steps_and_steps_back_are_followed_at_once() {
        let mut steps = steps();
        for (ms, ahead) in [(1_000, 1_999), (2_000, -3_600_000), (3_000, -3_600_000)] {
            assert_eq!(steps.look(at(ms, ahead)), Seen::Steady);
            assert_eq!(steps.held_until(), None);
        }
        // Back to where it was is a step forward again.
        assert!(is_step(steps.look(at(4_000, 0)), 3_600_000));
    }

    #[test]
    fn another_step_begins_the_hold_anew() {
        let mut steps = steps();
        assert!(is_step(steps.look(at(1_000, 60_000)), 60_000));
        assert!(is_step(steps.look(at(10_000, 3_600_000)), 3_600_000));
        assert_eq!(steps.look(at(19_000, 3_600_000)), Seen::Steady);
        assert_eq!(steps.look(at(20_000, 3_600_000)), Seen::Followed);
    }

    #[test]
    fn a_reply_that_took_long_is_no_step() {
        let mut steps = steps();
        let mut slow = at(60_000, 0);
        slow.at_least_us -= 50_000_000;
        assert_eq!(steps.look(slow), Seen::Steady);
        slow.at_most = slow.at_most.plus_ms(50_000);
        assert_eq!(steps.look(slow), Seen::Steady);
        // And it does not loosen what is trusted.
        assert!(is_step(steps.look(at(61_000, 3_000)), 3_000));
    }

    #[test]
    fn before_the_first_reply_there_is_no_step() {
        let mut steps = Steps::new(HOLD);
        let nothing = NowBounds {
            at_least_us: 0,
            at_most: UnixMs(0),
            at: Duration::from_secs(9),
        };
        assert_eq!(steps.look(nothing), Seen::Steady);
        assert_eq!(steps.look(at(10_000, 0)), Seen::Steady);
    }

    proptest! {
        /// The machine may sleep, and the clock drift: neither is a step.
        #[test]
        fn drift_and_sleep_are_no_steps(pauses in proptest::collection::vec(0_u64..10_000_000, 1..40), drift in -500_i64..500) {
            let mut steps = steps();
            let (mut now, mut ahead) = (0_u64, 0_i64);
            for pause in pauses {
                now += pause;
                // Parts in a million, and what NTP slews between two heartbeats at most.
                ahead += drift * i64::try_from(pause.min(3_000_000)).unwrap() / 1_000_000;
                prop_assert_eq!(steps.look(at(now, ahead)), Seen::Steady);
            }
        }
    }
}
