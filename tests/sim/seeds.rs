//! The seeds that a test run plays, and the planted bugs that must be found.
//!
//! `SIM_SEEDS=100000` plays more, `SIM_SEED=17` plays one and prints its trace.

use std::time::Duration;

use crate::model::Bug;
use crate::run::{Outcome, play, play_holding};

/// Seeds of a plain test run.
const SEEDS: u64 = 2_000;
/// Seeds within which a planted bug must be found.
const BUG_SEEDS: u64 = 1_000;

/// Added to a seed whose faults all hit nothing, which happens to one in ten thousand.
const SECOND_THROW: u64 = 8_000_000_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn is_calm(seed: u64) -> bool {
    seed.is_multiple_of(8)
}

fn play_and_judge(seed: u64) {
    let outcome = play(seed, None);
    if outcome.broken.is_empty() && outcome.hits == 0 && !is_calm(seed) {
        let seed = seed + SECOND_THROW;
        return judge(seed, &play(seed, None));
    }
    judge(seed, &outcome);
}

fn judge(seed: u64, outcome: &Outcome) {
    let trace = || {
        let lines = outcome.history.iter().map(|event| format!("{event:?}\n"));
        let tail: Vec<String> = lines.collect();
        tail.concat()
    };
    assert!(
        outcome.broken.is_empty(),
        "{}\n{}\nreproduce: SIM_SEED={seed} cargo test --test sim every_promise",
        trace(),
        outcome.broken.join("\n"),
    );
    assert!(
        outcome.events >= 500,
        "seed {seed} has only {} events",
        outcome.events
    );
    assert!(
        outcome.delivered >= 20,
        "seed {seed} delivers only {}",
        outcome.delivered
    );
    assert!(
        is_calm(seed) || outcome.hits > 0,
        "no fault of seed {seed} hits anything in flight"
    );
}

#[test]
fn every_promise_holds_for_all_seeds() {
    if let Some(seed) = variable("SIM_SEED") {
        return play_and_judge(seed);
    }
    let threads = 2;
    let seeds = variable("SIM_SEEDS").unwrap_or(SEEDS);
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..seeds).step_by(threads as usize) {
                    play_and_judge(seed);
                }
            });
        }
    });
}

#[test]
fn a_seed_plays_the_same_twice() {
    for seed in [1, 8, 21] {
        assert!(
            play(seed, None).history == play(seed, None).history,
            "seed {seed}"
        );
    }
}

#[test]
fn a_step_of_the_clock_that_is_followed_at_once_is_found() {
    let transients = (5..BUG_SEEDS).step_by(8);
    let broken = |seed| play_holding(seed, None, Duration::ZERO).broken;
    let early = |seed| broken(seed).iter().any(|text| text.contains("was early"));
    assert!(transients.into_iter().any(early));
}

/// The seed at which a planted bug is found.
fn found(bug: Bug) -> Option<(u64, String)> {
    let broken = |seed| play(seed, Some(bug)).broken.into_iter().next();
    (0..BUG_SEEDS).find_map(|seed| Some((seed, broken(seed)?)))
}

macro_rules! planted {
    ($($test:ident: $bug:ident,)*) => {$(
        #[test]
        fn $test() {
            let (seed, broken) = found(Bug::$bug).expect("the planted bug is not found");
            eprintln!("found with seed {seed}: {broken}");
        }
    )*};
}

planted! {
    a_reply_before_the_write_is_found: ReplyBeforeWrite,
    a_claim_without_its_token_is_found: ClaimWithoutToken,
    a_cancel_that_ignores_h_is_found: CancelIgnoresHanded,
    an_uncounted_insert_is_found: BelowNotCounted,
    dropped_marks_are_found: MarksDropped,
    two_packs_with_one_score_are_found: SharedScores,
    a_due_time_rounded_down_is_found: DueRoundedDown,
    an_insert_under_h_is_found: LateInserts,
    a_settle_before_ok_is_found: SettleBeforeOk,
    a_sweep_that_finds_nothing_is_found: BlindSweep,
    an_untidied_cancel_that_is_never_counted_is_found: UntidyNotCounted,
}
