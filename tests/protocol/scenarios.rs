//! The scenarios: which plan is searched, and which rules it shows to be needed.

use crate::plan::{Fault, Plan, Replicas, insert, moves, parks, requeues};
use crate::rules::Rule;

/// A plan, and the rules without which it breaks.
pub(crate) type Scenario = (Plan, &'static [Rule]);

/// Two owners, cancels, crashes, claims that end, nsqd that does not answer.
pub(crate) const OWNERS: Scenario = (
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
pub(crate) const THREE: Scenario = (
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
pub(crate) const PACKED: Scenario = (
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
pub(crate) const SCORES: Scenario = (
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
pub(crate) const PRODUCERS: Scenario = (
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
pub(crate) const REWRITTEN: Scenario = (
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
pub(crate) const MOVED: Scenario = (
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
pub(crate) const PARKED: Scenario = (
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
pub(crate) const PIPELINED: Scenario = (
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
pub(crate) const DEAD: Scenario = (
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
pub(crate) const LAPSED: Scenario = (
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
pub(crate) const LATE: Scenario = (
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
pub(crate) const FAILOVER: Scenario = (
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
pub(crate) const REPLICAS: Scenario = (
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
pub(crate) const CLOCK: Scenario = (
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
        Rule::MarksCoverHandOut,
        Rule::ReadsBelowOpened,
        Rule::ReadEndHoldsSettled,
    ],
);

/// An instance that takes the time to be later than Redis does.
pub(crate) const AHEAD: Scenario = (
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
pub(crate) const SLOW: Scenario = (
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
pub(crate) const REUSED: Scenario = (
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
pub(crate) const IDLE: Scenario = (
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
pub(crate) const WAKES: Scenario = (
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
    &[Rule::SleepLeavesWatch, Rule::WakesBeforeWatch],
);

/// Without a fault nothing arrives twice, also when turns take their time.
pub(crate) const CALM: Scenario = (
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
pub(crate) const IDS: Scenario = (
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
pub(crate) const TRIMMED: Scenario = (
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
pub(crate) const OUTLIVED: Scenario = (
    Plan {
        name: "outlived entries",
        packs: &[insert(&[(0, 0)], &[3]), moves(&[(0, 0)], &[2, 4])],
        cancels: 1,
        clock_end: 5,
        ids_age: true,
        mark_lag: 2,
        ..Plan::CALM
    },
    &[Rule::GoneBeforeMark, Rule::EntryOutlivesOldPlace],
);

/// The same, for a message that is moved twice, each time to an earlier moment.
pub(crate) const TWICE: Scenario = (
    Plan {
        name: "two moves",
        packs: &[
            insert(&[(0, 0)], &[5]),
            moves(&[(0, 0)], &[4]),
            moves(&[(0, 0)], &[2]),
        ],
        cancels: 1,
        clock_end: 5,
        ids_age: true,
        ..Plan::CALM
    },
    &[Rule::EntryAgeOnlyGrows],
);

/// And for one that is moved, refused and given back.
pub(crate) const RETURNED: Scenario = (
    Plan {
        name: "returned letters",
        packs: &[
            insert(&[(0, 0)], &[5]),
            moves(&[(0, 0)], &[2]),
            requeues(&[(0, 0)], &[3]),
        ],
        cancels: 1,
        clock_end: 5,
        ids_age: true,
        faults: &[(Fault::PublishRefused, 1)],
        ..Plan::CALM
    },
    &[Rule::EntryAgeOnlyGrows],
);

/// One message that is moved and parked, and cancelled in between.
pub(crate) const WANDERING: Scenario = (
    Plan {
        name: "moves and parks",
        packs: &[
            insert(&[(0, 0)], &[2]),
            moves(&[(0, 0)], &[2, 3]),
            parks(&[(0, 0)], &[3, 4]),
            moves(&[(0, 0)], &[4]),
        ],
        cancels: 1,
        instances: 2,
        mark_lag: 1,
        ids_age: true,
        faults: &[
            (Fault::Park, 1),
            (Fault::Expire, 1),
            (Fault::PublishUnknown, 1),
        ],
        ..Plan::CALM
    },
    &[],
);

/// Owners that read from H when they hold nothing, and clocks that step.
pub(crate) const EMPTY: Scenario = (
    Plan {
        name: "empty memories",
        packs: &[insert(&[(0, 0)], &[2, 3]), insert(&[(1, 0)], &[3])],
        instances: 2,
        clock_end: 3,
        reads_from_handed: true,
        faults: &[(Fault::Back, 1), (Fault::Forward, 1), (Fault::Expire, 1)],
        ..Plan::CALM
    },
    &[
        Rule::ReadEndHoldsSettled,
        Rule::EmptyReadsOnFromCursor,
        Rule::InsertCounts,
    ],
);

/// Everything that can happen to one message, beside another.
pub(crate) const MIXED: Scenario = (
    Plan {
        name: "everything at once",
        packs: &[
            insert(&[(0, 0)], &[2]),
            insert(&[(1, 0)], &[3]),
            moves(&[(0, 0)], &[2, 3]),
            parks(&[(0, 0)], &[4]),
        ],
        cancels: 3,
        instances: 2,
        clock_end: 2,
        releases: true,
        mark_lag: 1,
        ids_age: true,
        faults: &[
            (Fault::Expire, 1),
            (Fault::Park, 1),
            (Fault::PublishUnknown, 1),
        ],
        ..Plan::CALM
    },
    &[],
);

/// Parks, refusals and given back letters while a replica takes over.
pub(crate) const MIXED_REPLICAS: Scenario = (
    Plan {
        name: "everything, with replicas",
        packs: &[
            insert(&[(0, 0)], &[2]),
            parks(&[(0, 0)], &[3]),
            requeues(&[(0, 0)], &[3, 4]),
        ],
        cancels: 1,
        instances: 2,
        clock_end: 3,
        replicas: Replicas::Awaited,
        faults: &[
            (Fault::Expire, 1),
            (Fault::Park, 1),
            (Fault::PublishUnknown, 1),
            (Fault::PublishRefused, 1),
            (Fault::Failover, 1),
        ],
        ..Plan::CALM
    },
    &[],
);

/// Client ids that are created, moved, cancelled and created again, with lost and late requests.
pub(crate) const MIXED_IDS: Scenario = (
    Plan {
        name: "everything, with client ids",
        packs: &[
            insert(&[(0, 0)], &[2]),
            insert(&[(0, 0), (1, 0)], &[3]),
            moves(&[(0, 0)], &[2, 3]),
        ],
        cancels: 3,
        client_ids: true,
        instances: 2,
        clock_end: 3,
        faults: &[(Fault::Expire, 1), (Fault::InsertLate, 1)],
        ..Plan::CALM
    },
    &[],
);

/// What the model of two generations shows to be needed: with minted ids, and with a client's.
pub(crate) const MINTED_RULES: &[Rule] = &[Rule::RedoOnlyAnswered, Rule::ClosedForEver];
pub(crate) const CLIENT_RULES: &[Rule] = &[
    Rule::ClosedForEver,
    Rule::LookUpCloses,
    Rule::TombstonesCount,
];
