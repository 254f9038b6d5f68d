//! PURE. How many messages of one topic one nsqd may be given: as many as it may hold for its consumers at a time. What
//! it holds at most is what it said when it was asked, what had not arrived by then, and what it was given since. Where
//! consumers do not keep up, or it does not say, nobody waits: what is due is nsqd's then, on its disk. Knows nothing of
//! how it is asked.

use std::time::Duration;

use tokio::time::Instant;

/// What was given so long ago counts as taken, unless nsqd was asked: with so few, there is nothing to ask.
const CALM: Duration = Duration::from_secs(1);
/// For how long consumers that do not keep up are not waited for.
const SLOW_REST: Duration = Duration::from_secs(5);
/// How long an nsqd that did not answer is not asked.
const SILENT_REST: Duration = Duration::from_secs(10);

/// When it is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most messages that nsqd is to hold.
    pub(super) max: u64,
    /// Consumers that take longer for as many are not waited for.
    pub(super) turnover: Duration,
}

/// What one nsqd may still be given of one topic.
#[derive(Debug)]
pub(super) struct Credit {
    bounds: Bounds,
    /// What it holds at most, and what is on its way there.
    held: u64,
    /// Of that, what it has not acknowledged.
    unanswered: u64,
    /// When it last said so, or began to be given some.
    known: Instant,
    /// With more it is asked.
    ask_above: u64,
    /// Somebody waits for an answer.
    is_awaited: bool,
    /// While it is asked: what may not be in its answer, unanswered then or given since.
    asked: Option<u64>,
    /// Since when somebody waits, and what consumers have taken since.
    waited: Option<(Instant, u64)>,
    /// Until when nobody waits.
    open_until: Option<Instant>,
}

impl Credit {
    pub(super) fn new(bounds: Bounds, now: Instant) -> Self {
        Self {
            bounds,
            held: 0,
            unanswered: 0,
            known: now,
            ask_above: bounds.max / 2,
            is_awaited: false,
            asked: None,
            waited: None,
            open_until: None,
        }
    }

    /// Whether it may be given so many more, which count as given then. More than half of what it may hold count as
    /// half, so that they too pass some time.
    pub(super) fn give(&mut self, messages: u64, now: Instant) -> bool {
        if self.is_calm(now) {
            self.held = self.unanswered;
            self.known = now;
            self.ask_above = self.bounds.max / 2;
            self.waited = None;
            self.open_until = None;
        }
        if self.asked.is_none() && now >= self.known + self.bounds.turnover {
            // Who waits, asks: nobody has for so long.
            self.waited = None;
        }
        let weight = messages.min((self.bounds.max / 2).max(1));
        if self.open_until.is_none() && self.held.saturating_add(weight) > self.bounds.max {
            self.waited.get_or_insert((now, 0));
            self.is_awaited = true;
            return false;
        }
        self.held = self.held.saturating_add(messages);
        self.unanswered = self.unanswered.saturating_add(messages);
        if let Some(missing) = &mut self.asked {
            *missing = missing.saturating_add(messages);
        }
        true
    }

    /// Takes note that so many are no longer on their way: it has them, or does not get them.
    pub(super) fn arrived(&mut self, messages: u64) {
        self.unanswered = self.unanswered.saturating_sub(messages);
    }

    /// Whether it is time to ask; if so, whoever calls this asks now. It always is for who was not given leave.
    pub(super) fn ask(&mut self) -> bool {
        let is_wanted = self.is_awaited || self.held > self.ask_above;
        let asks = is_wanted && self.asked.is_none() && self.open_until.is_none();
        if asks {
            self.asked = Some(self.unanswered);
        }
        asks
    }

    /// Takes note of how many it said it holds; `None`: it did not say.
    pub(super) fn answered(&mut self, depth: Option<u64>, now: Instant) {
        let missing = self.asked.take().unwrap_or(0);
        self.is_awaited = false;
        let Some(depth) = depth else {
            self.open_until = Some(now + SILENT_REST);
            return;
        };
        let held = depth.saturating_add(missing);
        let taken = self.held.saturating_sub(held);
        self.held = held;
        self.known = now;
        let max = self.bounds.max;
        self.ask_above = (max / 2).max(held.saturating_add(max / 4));
        // Then it is on the disk already.
        let mut is_behind = depth / 2 > max;
        if let Some((since, taken_since)) = &mut self.waited {
            *taken_since += taken;
            if now >= *since + self.bounds.turnover {
                is_behind |= held > max / 2 && *taken_since < max;
                self.waited = None;
            }
        }
        if is_behind {
            self.open_until = Some(now + SLOW_REST);
        }
    }

    /// Whether some have arrived that it has not been asked about since.
    pub(super) fn has_arrived(&self) -> bool {
        self.held > self.unanswered
    }

    /// Whether this is as good as a new one.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        self.is_calm(now) && self.unanswered == 0
    }

    fn is_calm(&self, now: Instant) -> bool {
        match self.open_until {
            Some(until) => now >= until,
            None => self.asked.is_none() && now >= self.known + CALM,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        max: 100,
        turnover: Duration::from_millis(100),
    };
    const STEP: Duration = Duration::from_millis(2);

    fn credit(now: Instant) -> Credit {
        Credit::new(BOUNDS, now)
    }

    impl Credit {
        /// Gives what arrives at once.
        fn give_at_once(&mut self, messages: u64, now: Instant) -> bool {
            let given = self.give(messages, now);
            if given {
                self.arrived(messages);
            }
            given
        }
    }

    /// One that has been given all that it may hold, and is asked.
    fn used_up(now: Instant) -> Credit {
        let mut credit = credit(now);
        assert!(credit.give_at_once(50, now) && !credit.ask());
        assert!(credit.give_at_once(50, now) && credit.ask() && !credit.ask());
        assert!(!credit.give(1, now));
        credit
    }

    /// How long it takes until one more may be given, if it says the same again and again.
    fn waits(credit: &mut Credit, depth: u64, began: Instant) -> Duration {
        let mut now = began;
        while !credit.give(1, now) {
            now += STEP;
            credit.answered(Some(depth), now);
            let _asks = credit.ask();
        }
        now - began
    }

    #[test]
    fn what_consumers_took_may_be_given_again() {
        let now = Instant::now();
        let mut credit = used_up(now);
        credit.answered(Some(40), now);
        assert!(credit.give_at_once(30, now) && credit.ask());
        assert!(!credit.give(31, now) && credit.give_at_once(30, now));
        // Given after the question: it may not be in the answer.
        credit.answered(Some(0), now);
        assert!(credit.give(50, now) && credit.ask() && !credit.give(30, now));
        // Not there yet when it was asked.
        credit.answered(Some(0), now);
        assert!(credit.give(50, now) && credit.ask());
        credit.arrived(100);
        credit.answered(Some(0), now);
        assert!(!credit.give(1, now) && credit.ask());
        credit.answered(Some(0), now);
        assert!(credit.give(1, now));
    }

    #[test]
    fn few_are_not_asked_for() {
        let mut now = Instant::now();
        let mut credit = credit(now);
        for _ in 0..10 {
            assert!(credit.give_at_once(BOUNDS.max / 2, now) && !credit.ask());
            now += CALM;
            assert!(credit.is_forgettable(now));
        }
    }

    #[test]
    fn more_than_half_passes_once_less_than_half_is_held() {
        let now = Instant::now();
        let mut credit = credit(now);
        assert!(credit.give(10, now) && credit.give(10 * BOUNDS.max, now));
        assert!(!credit.give(10 * BOUNDS.max, now) && credit.ask());
    }

    #[test]
    fn consumers_that_do_not_keep_up_are_not_waited_for() {
        let mut now = Instant::now();
        let mut credit = used_up(now);
        let waited = waits(&mut credit, BOUNDS.max, now);
        assert_eq!(waited, BOUNDS.turnover);
        now += waited;
        assert!(credit.give(10 * BOUNDS.max, now) && !credit.ask());
        credit.arrived(1 + 10 * BOUNDS.max);
        now += SLOW_REST;
        assert!(credit.give(40, now) && credit.give(40, now) && !credit.give(40, now));
    }

    #[test]
    fn what_is_on_its_disk_already_is_not_waited_for() {
        let now = Instant::now();
        let waited = waits(&mut used_up(now), 1_000 * BOUNDS.max, now);
        assert_eq!(waited, STEP);
    }

    #[test]
    fn a_wait_of_long_ago_says_nothing_of_consumers() {
        for (depth, later) in [(Some(0), CALM / 2), (Some(40), CALM), (None, SILENT_REST)] {
            let mut now = Instant::now();
            let mut credit = used_up(now);
            credit.answered(depth, now);
            now += later;
            assert!(credit.give_at_once(60, now) && credit.ask());
            credit.answered(Some(60), now);
            assert!(!credit.give(41, now));
        }
    }

    #[test]
    fn one_that_does_not_answer_is_left_in_peace() {
        let mut now = Instant::now();
        let mut credit = used_up(now);
        credit.answered(None, now);
        assert!(credit.give(10 * BOUNDS.max, now) && !credit.ask());
        credit.arrived(10 * BOUNDS.max);
        now += SILENT_REST;
        assert!(credit.give(50, now) && credit.give(50, now) && !credit.give(1, now));
    }

    proptest! {
        /// Whatever consumers take, and however long messages and answers are on their way: nsqd never holds more than it
        /// may, and who waits has an answer to wait for.
        #[test]
        fn it_never_holds_more_than_it_may(
            steps in proptest::collection::vec((0_u8..6, 1_u64..=50, 0_u64..20), 1..400),
        ) {
            let mut now = Instant::now();
            let mut credit = credit(now);
            let (mut travelling, mut holds, mut said) = (VecDeque::new(), 0, None);
            for (step, messages, later) in steps {
                now += Duration::from_millis(later);
                if credit.is_calm(now) {
                    // So few are taken within a second, as is assumed there.
                    holds = 0;
                }
                match step {
                    0 | 1 => {
                        let given = credit.give(messages, now);
                        let _asks = credit.ask();
                        if credit.open_until.is_some() {
                            break;
                        }
                        if given {
                            travelling.push_back(messages);
                        } else {
                            prop_assert!(credit.asked.is_some());
                        }
                    }
                    2 => if let Some(messages) = travelling.pop_front() {
                        holds += messages;
                        credit.arrived(messages);
                    },
                    3 => holds -= messages.min(holds),
                    4 if credit.asked.is_some() && said.is_none() => said = Some(holds),
                    5 if said.is_some() => credit.answered(said.take(), now),
                    _ => {}
                }
                let all = holds + travelling.iter().sum::<u64>();
                prop_assert!(all <= credit.held && all <= BOUNDS.max, "{all}: {credit:?}");
            }
        }
    }
}
