//! The searches: each scenario with all rules, where every promise must hold, and without each rule
//! that it shows to be needed, where one must break.
//!
//! `MODEL_BOUND=1` lets each plan's clock run a millisecond longer, and so on.

use crate::generations::Generations;
use crate::plan::Plan;
use crate::rules::{Off, Rule};
use crate::scenarios::{
    AHEAD, CALM, CLIENT_RULES, CLOCK, DEAD, EMPTY, FAILOVER, IDLE, IDS, LAPSED, LATE, MINTED_RULES,
    MIXED, MIXED_IDS, MIXED_REPLICAS, MOVED, OUTLIVED, OWNERS, PACKED, PARKED, PIPELINED,
    PRODUCERS, REPLICAS, RETURNED, REUSED, REWRITTEN, SCORES, SLOW, Scenario, THREE, TRIMMED,
    TWICE, WAKES, WANDERING,
};
use crate::search::{Bound, Model, search};
use crate::shard::World;

/// One state in so many is followed to its end without faults.
const HEAL_ONE_IN: u64 = 8;
/// More states than any search of the default bound has.
const STATES_MAX: usize = 2_000_000;
/// The same, of the larger bounds.
const STATES_MAX_LONG: usize = 200_000_000;

/// How many ms longer the clocks run.
fn longer() -> u8 {
    std::env::var("MODEL_BOUND").map_or(0, |text| text.parse().expect("MODEL_BOUND is a number"))
}

fn check((plan, needed): &Scenario) {
    let plan = Plan {
        clock_end: (plan.clock_end + longer()).min(Plan::CLOCK_END_MAX),
        ..*plan
    };
    holds(
        plan.name,
        &World {
            plan: &plan,
            off: Off::NONE,
        },
    );
    for rule in *needed {
        breaks(
            plan.name,
            *rule,
            &World {
                plan: &plan,
                off: Off::without(*rule),
            },
        );
    }
}

/// Every promise holds in every state.
fn holds(name: &str, model: &impl Model) {
    let states_max = if longer() == 0 {
        STATES_MAX
    } else {
        STATES_MAX_LONG
    };
    let outcome = search(
        model,
        Bound {
            states_max,
            heal_one_in: HEAL_ONE_IN,
        },
    );
    if let Some((promise, trace)) = outcome.violation {
        panic!("{name}: {promise}:\n  {}", trace.join("\n  "));
    }
    assert!(outcome.complete, "{name}: more than {states_max} states");
    println!(
        "{name}: {} states, {} steps deep, every promise holds",
        outcome.states, outcome.depth
    );
}

/// Some promise breaks; the shortest way to it is printed.
fn breaks(name: &str, rule: Rule, model: &impl Model) {
    let outcome = search(
        model,
        Bound {
            states_max: STATES_MAX,
            heal_one_in: u64::MAX,
        },
    );
    let Some((promise, trace)) = outcome.violation else {
        panic!(
            "{name}: nothing breaks without {rule:?} in {} states",
            outcome.states
        );
    };
    println!(
        "{name} without {rule:?}: {promise} in {} steps",
        trace.len()
    );
    println!("  {}", trace.join("\n  "));
}

macro_rules! searches {
    ($($test:ident: $scenario:ident,)*) => {
        $(
            #[test]
            fn $test() {
                check(&$scenario);
            }
        )*

        /// Every scenario.
        const SCENARIOS: &[&Scenario] = &[$(&$scenario),*];
    };
}

searches! {
    owners_come_and_go: OWNERS,
    three_messages_are_read_one_by_one: THREE,
    packs_of_several_are_settled_record_by_record: PACKED,
    two_packs_never_share_a_score: SCORES,
    inserts_are_lost_repeated_and_late: PRODUCERS,
    rewritten_packs_stay_cancelled: REWRITTEN,
    moves_leave_nothing_behind: MOVED,
    parks_keep_what_may_have_arrived: PARKED,
    late_parks_find_a_stranger: PIPELINED,
    dead_letters_are_given_back: DEAD,
    lapsed_claims_are_noticed: LAPSED,
    late_turns_change_nothing_that_is_not_so: LATE,
    failover_loses_only_what_was_not_copied: FAILOVER,
    awaited_replicas_lose_nothing: REPLICAS,
    clock_steps_lose_nothing: CLOCK,
    only_redis_says_what_is_due: AHEAD,
    turns_take_time: SLOW,
    scores_are_used_again_only_when_free: REUSED,
    idle_owners_release_the_claim: IDLE,
    sleepers_wake_for_what_comes_earlier: WAKES,
    nothing_arrives_twice_without_a_fault: CALM,
    client_ids_are_created_once: IDS,
    trimmed_ids_may_be_used_again: TRIMMED,
    memories_may_be_empty: EMPTY,
    everything_at_once: MIXED,
    everything_with_replicas: MIXED_REPLICAS,
    everything_with_client_ids: MIXED_IDS,
    marks_of_two_moves_are_explained: TWICE,
    marks_of_returned_letters_are_explained: RETURNED,
    moved_and_parked_messages_are_found: WANDERING,
    marks_outlive_the_entries_that_explain_them: OUTLIVED,
}

#[test]
fn generations_change_while_messages_come() {
    for (minted, needed) in [(true, MINTED_RULES), (false, CLIENT_RULES)] {
        let name = if minted {
            "generations, minted id"
        } else {
            "generations, client id"
        };
        holds(
            name,
            &Generations {
                minted,
                off: Off::NONE,
            },
        );
        for rule in needed {
            breaks(
                name,
                *rule,
                &Generations {
                    minted,
                    off: Off::without(*rule),
                },
            );
        }
    }
}

#[test]
fn every_rule_is_shown_to_be_needed() {
    for rule in Rule::ALL {
        let shown = SCENARIOS.iter().any(|(_, needed)| needed.contains(&rule))
            || MINTED_RULES.contains(&rule)
            || CLIENT_RULES.contains(&rule);
        assert!(shown, "no scenario breaks without {rule:?}");
    }
}
