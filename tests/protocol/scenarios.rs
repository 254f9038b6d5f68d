//! The searches: each plan with all rules, where every promise must hold, and without each rule that
//! it shows to be needed, where one must break.
//!
//! `MODEL_BOUND=1` lets each plan's clock run a millisecond longer, and so on.

use crate::generations::Generations;
use crate::plan::{Fault, Plan, Replicas, insert, moves, parks, requeues};
use crate::rules::{Off, Rule};
use crate::search::{Bound, Model, search};
use crate::shard::World;

/// A plan, and the rules without which it breaks.
type Scenario = (Plan, &'static [Rule]);

/// Two owners, cancels, crashes, claims that end, nsqd that does not answer.
const OWNERS: Scenario = (
    Plan {
        name: "owners",
        packs: &[insert(&[(0, 0)], &[2, 3]), insert(&[(1, 0)], &[2])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[
            (Fault::Crash, 1),
            (Fault::Expire, 1),
            (Fault::PublishUnknown, 1),
        ],
        ..Plan::CALM
    },
    &[
        Rule::Late,
        Rule::InsertCounts,
        Rule::ReadsAgain,
        Rule::SecondReadHoldsSettled,
        Rule::BytesStayBelowOpened,
        Rule::CancelAboveHorizon,
        Rule::TurnFenced,
        Rule::SettleAfterOk,
    ],
);

/// Three messages, one of them cancelled, two owners.
const THREE: Scenario = (
    Plan {
        name: "three messages",
        packs: &[
            insert(&[(0, 0)], &[2]),
            insert(&[(1, 0)], &[2]),
            insert(&[(2, 0)], &[3]),
        ],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        limit: 1,
        faults: &[(Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[Rule::UnreadHoldsSettled],
);

/// A pack of two whose records are due at different times, beside one of one.
const PACKED: Scenario = (
    Plan {
        name: "packs",
        packs: &[
            insert(&[(0, 0), (1, 1)], &[2]),
            insert(&[(2, 0)], &[2, 3]).numbered(1),
        ],
        cancels: 2,
        instances: 2,
        clock_end: 4,
        limit: 1,
        rewrites: true,
        faults: &[(Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[
        Rule::UnreadHoldsSettled,
        Rule::ScoreFloor,
        Rule::ReadsAgain,
        Rule::InsertCounts,
    ],
);

/// Two writers that choose the same score.
const SCORES: Scenario = (
    Plan {
        name: "scores",
        packs: &[insert(&[(0, 0), (1, 1)], &[2]), insert(&[(2, 0)], &[2, 3])],
        cancels: 2,
        limit: 1,
        ..Plan::CALM
    },
    &[Rule::Taken],
);

/// Inserts whose reply is lost, or that arrive late.
const PRODUCERS: Scenario = (
    Plan {
        name: "producers",
        packs: &[insert(&[(0, 0)], &[3]), insert(&[(1, 0)], &[3])],
        cancels: 3,
        clock_end: 3,
        faults: &[
            (Fault::InsertReplyLost, 1),
            (Fault::InsertLate, 1),
            (Fault::Crash, 1),
        ],
        ..Plan::CALM
    },
    &[
        Rule::MarkOutlivesBytes,
        Rule::MarkNamesNonce,
        Rule::UnknownStaysUnknown,
    ],
);

/// A pack that loses its records one by one, and is inserted again.
const REWRITTEN: Scenario = (
    Plan {
        name: "rewritten packs",
        packs: &[insert(&[(0, 0), (1, 1)], &[3])],
        cancels: 3,
        rewrites: true,
        faults: &[(Fault::InsertLate, 1)],
        ..Plan::CALM
    },
    &[Rule::RewriteKeepsMarks],
);

/// Moves earlier and later, and cancels of what was moved.
const MOVED: Scenario = (
    Plan {
        name: "moves",
        packs: &[
            insert(&[(0, 0)], &[2]),
            moves(&[(0, 0)], &[2, 3]),
            insert(&[(1, 0)], &[3]),
        ],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::Crash, 1), (Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[
        Rule::MoveCounts,
        Rule::IndexFirst,
        Rule::MoveSetsMark,
        Rule::MoveAboveHorizon,
    ],
);

/// Parks with lost replies, unanswered sends and two owners.
const PARKED: Scenario = (
    Plan {
        name: "parks",
        packs: &[insert(&[(0, 0)], &[2]), parks(&[(0, 0)], &[3, 4])],
        cancels: 1,
        instances: 2,
        faults: &[
            (Fault::Park, 2),
            (Fault::Expire, 1),
            (Fault::PublishUnknown, 1),
            (Fault::ReplyLost, 1),
            (Fault::Crash, 1),
            (Fault::PublishRefused, 1),
        ],
        ..Plan::CALM
    },
    &[
        Rule::ParkCounts,
        Rule::ParkFenced,
        Rule::ParkKeepsMaybe,
        Rule::ParkRepeated,
        Rule::ParkStopsAtMark,
    ],
);

/// A park that is sent behind a turn, and both arrive late.
const PIPELINED: Scenario = (
    Plan {
        name: "pipelined parks",
        packs: &[insert(&[(0, 0)], &[2]), parks(&[(0, 0)], &[3, 4])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::TurnLate, 1), (Fault::Expire, 2), (Fault::Park, 1)],
        ..Plan::CALM
    },
    &[Rule::ParkSentAlone],
);

/// A message that nsqd refuses, given back.
const DEAD: Scenario = (
    Plan {
        name: "dead letters",
        packs: &[insert(&[(0, 0)], &[2]), requeues(&[(0, 0)], &[3, 4])],
        cancels: 1,
        instances: 2,
        faults: &[
            (Fault::PublishRefused, 1),
            (Fault::PublishUnknown, 1),
            (Fault::Expire, 1),
        ],
        ..Plan::CALM
    },
    &[Rule::RequeueKeepsMaybe],
);

/// An owner that sleeps through the end of its claim, and another that comes and goes meanwhile.
const LAPSED: Scenario = (
    Plan {
        name: "lapsed claims",
        packs: &[insert(&[(0, 0)], &[2]), insert(&[(1, 0)], &[3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::Crash, 1), (Fault::Expire, 2)],
        ..Plan::CALM
    },
    &[Rule::LapseForgets],
);

/// Turns whose reply is lost, and that arrive when their session is forgotten.
const LATE: Scenario = (
    Plan {
        name: "late turns",
        packs: &[insert(&[(0, 0)], &[2, 3]), insert(&[(1, 0)], &[2])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[
            (Fault::TurnLate, 1),
            (Fault::ReplyLost, 1),
            (Fault::Expire, 1),
        ],
        ..Plan::CALM
    },
    &[],
);

/// A failover to a replica that lacks the last writes; what it lacks is forgiven, nothing else.
const FAILOVER: Scenario = (
    Plan {
        name: "failover",
        packs: &[insert(&[(0, 0)], &[2]), insert(&[(1, 0)], &[2, 3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        replicas: Replicas::Follow,
        faults: &[(Fault::Failover, 1), (Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[Rule::ReconnectForgets],
);

/// The same with `replicas:N`: nothing is forgiven.
const REPLICAS: Scenario = (
    Plan {
        name: "replicas",
        packs: &[insert(&[(0, 0)], &[2]), moves(&[(0, 0)], &[3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        replicas: Replicas::Awaited,
        faults: &[
            (Fault::Failover, 1),
            (Fault::Expire, 1),
            (Fault::ReplyLost, 1),
        ],
        ..Plan::CALM
    },
    &[Rule::TurnWaits, Rule::FirstTurnWaits, Rule::CancelWaits],
);

/// Redis's clock steps, forward and back.
const CLOCK: Scenario = (
    Plan {
        name: "clock steps",
        packs: &[insert(&[(0, 0)], &[2]), insert(&[(1, 0)], &[3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::Forward, 1), (Fault::Back, 1), (Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[
        Rule::OneTransaction,
        Rule::FirstMarksCoverHorizon,
        Rule::ReadsBelowOpened,
    ],
);

/// An instance that takes the time to be later than Redis does.
const AHEAD: Scenario = (
    Plan {
        name: "clocks ahead",
        packs: &[insert(&[(0, 0)], &[4])],
        cancels: 1,
        instances: 2,
        faults: &[(Fault::Back, 1), (Fault::Crash, 1)],
        ..Plan::CALM
    },
    &[Rule::OnlyRedisClock],
);

/// Two owners whose turns take their time.
const SLOW: Scenario = (
    Plan {
        name: "slow turns",
        packs: &[insert(&[(0, 0)], &[2]), insert(&[(1, 0)], &[2])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        turns_take_time: true,
        faults: &[(Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[],
);

/// A pack all of whose records are cancelled while its owner takes the time to be later than it is.
const REUSED: Scenario = (
    Plan {
        name: "reused scores",
        packs: &[insert(&[(0, 0)], &[3]), insert(&[(1, 0)], &[3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::Back, 1), (Fault::Expire, 2)],
        ..Plan::CALM
    },
    &[Rule::FinishedBelowHorizon],
);

/// Owners that release the claim, and turns that hand out nothing because no nsqd is there.
const IDLE: Scenario = (
    Plan {
        name: "idle owners",
        packs: &[insert(&[(0, 0)], &[2, 3]), insert(&[(1, 0)], &[3])],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        releases: true,
        holds: true,
        faults: &[(Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[],
);

/// One owner that sleeps, and wakes for what comes below the end of its sleep; no sweep.
const WAKES: Scenario = (
    Plan {
        name: "wakes",
        packs: &[
            insert(&[(0, 0)], &[2, 4, 5]),
            insert(&[(1, 0)], &[3, 5]),
            moves(&[(0, 0)], &[2, 3, 6]),
        ],
        cancels: 1,
        clock_end: 5,
        releases: true,
        sleeps: true,
        ..Plan::CALM
    },
    &[Rule::SleepBelowOpened, Rule::InsertCounts, Rule::MoveCounts],
);

/// Without a fault nothing arrives twice, also when turns take their time.
const CALM: Scenario = (
    Plan {
        name: "calm",
        packs: &[insert(&[(0, 0), (1, 1)], &[2]), insert(&[(2, 0)], &[2, 3])],
        cancels: 1,
        turns_take_time: true,
        once: true,
        limit: 1,
        ..Plan::CALM
    },
    &[Rule::FinishedRemembered],
);

/// Creates with client ids, retried, alone and in a pack.
const IDS: Scenario = (
    Plan {
        name: "client ids",
        packs: &[
            insert(&[(0, 0)], &[2]),
            insert(&[(0, 0), (1, 0)], &[3]),
            insert(&[(1, 0)], &[3]),
        ],
        cancels: 3,
        client_ids: true,
        faults: &[(Fault::InsertReplyLost, 1), (Fault::Crash, 1)],
        ..Plan::CALM
    },
    &[Rule::Tombstone, Rule::PackRefusedWhole],
);

/// Entries of ids that age.
const TRIMMED: Scenario = (
    Plan {
        name: "trimmed ids",
        packs: &[
            insert(&[(0, 0)], &[2]),
            moves(&[(0, 0)], &[3]),
            insert(&[(0, 0)], &[4]),
        ],
        cancels: 1,
        client_ids: true,
        ids_age: true,
        ..Plan::CALM
    },
    &[Rule::IdsTrimmedBySettled],
);

/// Entries that age before the marks that they explain.
const OUTLIVED: Scenario = (
    Plan {
        name: "outlived entries",
        packs: &[insert(&[(0, 0)], &[2]), moves(&[(0, 0)], &[3])],
        cancels: 1,
        ids_age: true,
        mark_lag: 2,
        ..Plan::CALM
    },
    &[Rule::GoneBeforeMark],
);

/// What the model of two generations shows to be needed: with minted ids, and with a client's.
const MINTED_RULES: &[Rule] = &[Rule::RedoOnlyAnswered, Rule::ClosedForEver];
const CLIENT_RULES: &[Rule] = &[
    Rule::ClosedForEver,
    Rule::LookUpCloses,
    Rule::TombstonesCount,
];

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
