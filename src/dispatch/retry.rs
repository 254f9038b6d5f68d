//! Turns the facts that forward reports into decisions. Pure.

use std::time::Duration;

use crate::dispatch::settings::Config;
use crate::forward::Error;

/// What is to happen with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// nsqd has it.
    Accepted,
    /// Send it again after this pause. `maybe`: the last send may have arrived.
    Released {
        /// The pause.
        after: Duration,
        /// Whether it may have arrived.
        maybe: bool,
    },
    /// Others go through and this one does not: out of the way with it, for so long.
    Parked {
        /// How long.
        after: Duration,
        /// Whether it may have arrived.
        maybe: bool,
    },
    /// nsqd will never take it.
    Rejected(String),
}

/// What is known of a message's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// Sends that failed.
    pub failed: u32,
    /// Time since the first of them.
    pub failing_for: Duration,
    /// Whether nsqd took other messages meanwhile.
    pub others_go_through: bool,
}

/// Decides from one fact and what came before it.
pub fn decide(
    config: &Config,
    fact: Result<(), Error>,
    attempts: Attempts,
    jitter: f64,
) -> Outcome {
    let maybe = match fact {
        Ok(()) => return Outcome::Accepted,
        Err(Error::Refused(reason)) => return Outcome::Rejected(reason),
        Err(Error::NotSent) => false,
        Err(Error::Unknown) => true,
    };
    if attempts.failing_for >= config.park_after && attempts.others_go_through {
        return Outcome::Parked {
            after: config.retry_max,
            maybe,
        };
    }
    let doubled = config
        .retry_min
        .saturating_mul(1 << attempts.failed.min(16));
    let after = doubled
        .min(config.retry_max)
        .mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
    Outcome::Released { after, maybe }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dispatch::settings::tests::config;

    fn attempts(failed: u32, failing_ms: u64, others_go_through: bool) -> Attempts {
        Attempts {
            failed,
            failing_for: Duration::from_millis(failing_ms),
            others_go_through,
        }
    }

    #[test]
    fn facts_become_outcomes() {
        let refused = Err(Error::Refused("E_BAD_TOPIC".into()));
        let decide = |fact, attempts| decide(&config(), fact, attempts, 0.0);
        assert_eq!(decide(Ok(()), attempts(3, 9_000, true)), Outcome::Accepted);
        assert_eq!(
            decide(refused, attempts(0, 0, false)),
            Outcome::Rejected("E_BAD_TOPIC".into())
        );
        let parked = decide(Err(Error::NotSent), attempts(9, 2_000, true));
        assert!(matches!(parked, Outcome::Parked { maybe: false, .. }));
        let held = decide(Err(Error::Unknown), attempts(9, 2_000, false));
        assert!(matches!(held, Outcome::Released { maybe: true, .. }));
    }

    proptest! {
        #[test]
        fn pauses_stay_within_bounds(failed: u32, failing_ms in 0_u64..1_999, jitter in 0.0..1.0) {
            let config = config();
            let outcome = decide(&config, Err(Error::NotSent), attempts(failed, failing_ms, true), jitter);
            let Outcome::Released { after, .. } = outcome else { panic!("{outcome:?}") };
            prop_assert!(after >= config.retry_min / 2 && after <= config.retry_max);
        }
    }
}
