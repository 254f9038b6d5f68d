//! The checker is checked: short histories, each with one promise broken, or nearly. Named after the defect that
//! would write such a history.

use crate::checker::{Bound, Checker, Verdict};
use crate::event::{Asked, Event, Number, Op, Outcome};

const MS: u64 = 1_000;
const SECOND: u64 = 1_000 * MS;

/// An answered request that took 1 ms.
fn asked(op: Asked, ids: &[Number], start: u64, delay_ms: u64, outcome: Outcome) -> Event {
    Event::Op(Op {
        asked: op,
        ids: ids.to_vec(),
        topic: "t".to_owned(),
        delay_ms,
        t_start: start,
        t_end: start + MS,
        outcome,
        door: "json",
        instance: 0,
        connection: 0,
        words: String::new(),
    })
}

fn publish(id: Number, start: u64, delay_ms: u64, outcome: Outcome) -> Event {
    asked(Asked::Publish, &[id], start, delay_ms, outcome)
}

fn offered(id: Number, t: u64) -> Event {
    Event::Offered {
        id,
        t,
        nsqd: 0,
        instance: 0,
        intact: true,
    }
}

fn taken(id: Number, t: u64) -> Event {
    Event::Taken { id, t, nsqd: 0 }
}

fn came(id: Number, t: u64, copy: &str) -> Event {
    Event::Delivered {
        id,
        t,
        nsqd: 0,
        copy: copy.to_owned(),
        attempts: 1,
        intact: true,
    }
}

/// Sent, taken and received at once.
fn delivered(id: Number, t: u64, copy: &str) -> Vec<Event> {
    vec![offered(id, t), taken(id, t), came(id, t, copy)]
}

fn fault(number: usize, from: u64, to: u64, kills_nsqd: Option<usize>) -> Vec<Event> {
    let start = Event::FaultStart {
        fault: number,
        kind: "a fault",
        words: String::new(),
        t: from,
        kills_nsqd,
    };
    let stop = Event::FaultStop {
        fault: number,
        t: to,
        hits: 1,
        unavailable: None,
    };
    vec![start, stop]
}

fn judge(events: impl IntoIterator<Item = Event>) -> Verdict {
    let mut checker = Checker::default();
    for event in events {
        checker.apply(&event);
    }
    checker.verdict(Bound {
        in_flight: 100,
        acknowledged_min: 0,
    })
}

#[track_caller]
fn kept(events: impl IntoIterator<Item = Event>) -> Verdict {
    let verdict = judge(events);
    assert!(verdict.broken.is_empty(), "{:?}", verdict.broken);
    assert!(verdict.invalid.is_empty(), "{:?}", verdict.invalid);
    verdict
}

#[track_caller]
fn broken(promise: &str, events: impl IntoIterator<Item = Event>) {
    let verdict = judge(events);
    let names: Vec<&str> = verdict.broken.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, [promise], "{:?}", verdict.broken);
}

/// Acknowledged at 1 ms, due at 100 ms.
fn acknowledged() -> Event {
    publish(1, 0, 100, Outcome::Ok)
}

fn with(events: &[&[Event]]) -> Vec<Event> {
    events.concat()
}

#[test]
fn what_is_delivered_when_it_is_due_keeps_every_promise() {
    let verdict = kept(with(&[&[acknowledged()], &delivered(1, 100 * MS, "a")]));
    assert_eq!((verdict.acknowledged, verdict.delivered), (1, 1));
    assert_eq!(
        verdict
            .lateness_ms
            .values()
            .flatten()
            .copied()
            .collect::<Vec<_>>(),
        [0]
    );
}

#[test]
fn a_reply_before_the_write_loses_the_message() {
    broken("lost", [acknowledged()]);
}

#[test]
fn a_settle_before_ok_loses_the_message() {
    broken("lost", [acknowledged(), offered(1, 100 * MS)]);
}

#[test]
fn two_packs_with_one_score_lose_the_first() {
    let second = delivered(2, 100 * MS, "b");
    broken(
        "lost",
        with(&[&[acknowledged(), publish(2, 0, 100, Outcome::Ok)], &second]),
    );
}

#[test]
fn an_uncounted_insert_is_stuck_and_then_lost() {
    let stuck = Event::Drained {
        t: SECOND,
        owed: 1,
        took_ms: 900,
    };
    let verdict = judge([acknowledged(), stuck]);
    assert_eq!((verdict.count("stuck"), verdict.count("lost")), (1, 1));
}

#[test]
fn a_message_that_is_due_is_owed_until_it_comes() {
    let mut checker = Checker::default();
    checker.apply(&acknowledged());
    assert_eq!((checker.owed(50 * MS), checker.owed(200 * MS)), (0, 1));
    for event in delivered(1, 100 * MS, "a") {
        checker.apply(&event);
    }
    assert_eq!(checker.owed(200 * MS), 0);
}

#[test]
fn what_an_nsqd_lost_is_ours_only_if_it_was_not_killed_afterwards() {
    let at_nsqd = [acknowledged(), offered(1, 100 * MS), taken(1, 101 * MS)];
    broken("lost", at_nsqd.clone());
    let after = fault(0, 150 * MS, 200 * MS, Some(0));
    let heard = publish(2, 160 * MS, 0, Outcome::Fail);
    let verdict = kept(with(&[&at_nsqd, &after, &[heard]]));
    assert_eq!(verdict.lost_by_nsqd, 1);
    let before = fault(0, 0, 50 * MS, Some(0));
    broken("lost", with(&[&at_nsqd, &before]));
    let other = fault(0, 0, 200 * MS, Some(1));
    broken("lost", with(&[&at_nsqd, &other]));
}

#[test]
fn a_due_time_that_is_rounded_down_is_early() {
    broken(
        "early",
        with(&[&[acknowledged()], &delivered(1, 100 * MS - 1, "a")]),
    );
}

#[test]
fn a_cancel_that_ignores_what_was_handed_out_is_seen() {
    let cancel = asked(Asked::Cancel, &[1], 150 * MS, 0, Outcome::Ok);
    broken(
        "resurrected",
        with(&[&[acknowledged()], &delivered(1, 100 * MS, "a"), &[cancel]]),
    );
}

#[test]
fn marks_that_a_rewritten_pack_drops_are_seen() {
    let cancel = asked(Asked::Cancel, &[1], 50 * MS, 0, Outcome::Ok);
    let sent = with(&[
        &[acknowledged(), cancel.clone()],
        &delivered(1, 100 * MS, "a"),
    ]);
    broken("resurrected", sent);
    // Also if nsqd has not taken it: it was sent after the cancel.
    broken(
        "resurrected",
        [acknowledged(), cancel.clone(), offered(1, 100 * MS)],
    );
    let verdict = kept([acknowledged(), cancel]);
    assert_eq!(verdict.cancelled, 1);
}

#[test]
fn what_nsqd_refused_for_certain_may_be_cancelled_afterwards() {
    let cancel = asked(Asked::Cancel, &[1], 150 * MS, 0, Outcome::Ok);
    kept([acknowledged(), offered(1, 100 * MS), cancel]);
}

#[test]
fn a_cancel_without_an_answer_allows_both() {
    let cancel = asked(Asked::Cancel, &[1], 50 * MS, 0, Outcome::Unknown);
    let verdict = kept([acknowledged(), cancel.clone()]);
    assert_eq!((verdict.cancelled, verdict.cancelled_unheard), (0, 1));
    kept(with(&[
        &[acknowledged(), cancel],
        &delivered(1, 100 * MS, "a"),
    ]));
}

#[test]
fn a_moved_message_must_not_come_at_its_old_time() {
    let later = asked(Asked::Move, &[1], 50 * MS, 200, Outcome::Ok);
    let sent = with(&[
        &[acknowledged(), later.clone()],
        &delivered(1, 100 * MS, "a"),
    ]);
    broken("resurrected", sent);
    kept(with(&[
        &[acknowledged(), later.clone()],
        &delivered(1, 250 * MS, "a"),
    ]));
    broken("lost", [acknowledged(), later]);
    // One that nobody heard of allows both places.
    let unheard = asked(Asked::Move, &[1], 50 * MS, 200, Outcome::Unknown);
    kept(with(&[
        &[acknowledged(), unheard.clone()],
        &delivered(1, 100 * MS, "a"),
    ]));
    kept(with(&[
        &[acknowledged(), unheard],
        &delivered(1, 250 * MS, "a"),
    ]));
}

#[test]
fn a_message_may_be_moved_to_an_earlier_time() {
    let far = publish(1, 0, 3_600_000, Outcome::Ok);
    let nearer = asked(Asked::Move, &[1], 50 * MS, 200, Outcome::Ok);
    kept(with(&[
        &[far.clone(), nearer.clone()],
        &delivered(1, 250 * MS, "a"),
    ]));
    broken(
        "early",
        with(&[&[far, nearer], &delivered(1, 249 * MS, "a")]),
    );
}

#[test]
fn what_was_refused_must_not_come() {
    let refused = publish(1, 0, 100, Outcome::Fail);
    kept([refused.clone()]);
    broken(
        "refused",
        with(&[std::slice::from_ref(&refused), &delivered(1, 100 * MS, "a")]),
    );
    broken("refused", [refused, Event::IsPending { id: 1 }]);
}

#[test]
fn what_has_an_unknown_outcome_may_come_or_not() {
    let unknown = publish(1, 0, 100, Outcome::Unknown);
    let verdict = kept([unknown.clone()]);
    assert_eq!((verdict.unknown, verdict.unknown_took_effect), (1, 0));
    let verdict = kept(with(&[&[unknown], &delivered(1, 100 * MS, "a")]));
    assert_eq!((verdict.unknown, verdict.unknown_took_effect), (1, 1));
}

#[test]
fn a_publish_that_is_tried_again_counts_from_its_first_try_that_may_have_worked() {
    let tries = [
        publish(1, 0, 100, Outcome::Fail),
        publish(1, 10 * MS, 100, Outcome::Unknown),
        publish(1, 20 * MS, 100, Outcome::Ok),
    ];
    kept(with(&[&tries, &delivered(1, 110 * MS, "a")]));
    broken("early", with(&[&tries, &delivered(1, 109 * MS, "a")]));
}

#[test]
fn other_bytes_are_seen() {
    let altered = Event::Offered {
        id: 1,
        t: 100 * MS,
        nsqd: 0,
        instance: 0,
        intact: false,
    };
    broken(
        "altered",
        with(&[&[acknowledged(), altered], &delivered(1, 100 * MS, "a")]),
    );
}

#[test]
fn half_of_a_batch_is_seen() {
    let batch = |outcome| asked(Asked::Publish, &[1, 2], 0, 100, outcome);
    let first = delivered(1, 100 * MS, "a");
    broken("torn", with(&[&[batch(Outcome::Unknown)], &first]));
    kept(with(&[
        &[batch(Outcome::Unknown)],
        &first,
        &delivered(2, 100 * MS, "b"),
    ]));
    broken("lost", with(&[&[batch(Outcome::Ok)], &first]));
}

#[test]
fn gone_before_it_was_delivered_is_seen() {
    let gone = |t| asked(Asked::Cancel, &[1], t, 0, Outcome::Gone);
    broken(
        "gone",
        with(&[
            &[acknowledged(), gone(50 * MS)],
            &delivered(1, 100 * MS, "a"),
        ]),
    );
    kept(with(&[
        &[acknowledged()],
        &delivered(1, 100 * MS, "a"),
        &[gone(150 * MS)],
    ]));
}

#[test]
fn a_claim_without_its_token_makes_duplicates() {
    let twice = with(&[
        &[acknowledged()],
        &delivered(1, 100 * MS, "a"),
        &delivered(1, 120 * MS, "b"),
    ]);
    broken("duplicate", twice.clone());
    // A fault that was over long before explains nothing.
    let old = publish(2, 0, 0, Outcome::Fail);
    let late = with(&[
        &[publish(1, 10 * SECOND, 100, Outcome::Ok), old],
        &delivered(1, 11 * SECOND, "a"),
        &delivered(1, 12 * SECOND, "b"),
        &fault(0, 0, SECOND, None),
    ]);
    broken("duplicate", late);
    kept(with(&[&twice, &fault(0, 90 * MS, 130 * MS, None)]));
}

#[test]
fn one_short_fault_explains_one_more_copy_and_a_long_one_explains_more() {
    let thrice = |step: u64| {
        with(&[
            &[acknowledged()],
            &delivered(1, 100 * MS, "a"),
            &delivered(1, 100 * MS + step, "b"),
            &delivered(1, 100 * MS + 2 * step, "c"),
        ])
    };
    broken(
        "duplicate",
        with(&[&thrice(50 * MS), &fault(0, 0, 200 * MS, None)]),
    );
    kept(with(&[&thrice(2 * SECOND), &fault(0, 0, 5 * SECOND, None)]));
}

#[test]
fn all_faults_together_explain_no_more_than_was_in_flight() {
    let mut events = fault(0, 0, SECOND, None);
    for id in 0..101 {
        events.push(publish(id, 0, 100, Outcome::Ok));
        events.extend(delivered(id, 100 * MS, "a"));
        events.extend(delivered(id, 200 * MS, "b"));
    }
    broken("duplicate", events);
}

#[test]
fn what_nsqd_itself_repeats_is_no_duplicate() {
    let again = came(1, SECOND, "a");
    kept(with(&[
        &[acknowledged()],
        &delivered(1, 100 * MS, "a"),
        &[again],
    ]));
}

#[test]
fn what_nobody_published_is_seen() {
    broken("unexpected", [Event::Alien { t: 0, nsqd: 0 }]);
    broken("unexpected", delivered(1, 100 * MS, "a"));
    broken("unexpected", [publish(1, 0, 0, Outcome::Odd)]);
}

#[test]
fn what_is_dead_or_pending_is_accounted_for() {
    let verdict = kept([acknowledged(), Event::IsDead { id: 1 }]);
    assert_eq!(verdict.dead, 1);
    let verdict = kept([
        publish(1, 0, 3_600_000, Outcome::Ok),
        Event::IsPending { id: 1 },
    ]);
    assert_eq!(verdict.pending, 1);
    let both = with(&[
        &[acknowledged()],
        &delivered(1, 100 * MS, "a"),
        &[Event::IsPending { id: 1 }],
    ]);
    broken("unexpected", both);
}

#[test]
fn a_requeued_dead_letter_must_come_after_all() {
    let back = [
        acknowledged(),
        Event::IsDead { id: 1 },
        Event::Requeued { id: 1 },
    ];
    broken("lost", back.clone());
    kept(with(&[&back, &delivered(1, SECOND, "a")]));
}

#[test]
fn a_run_that_proves_nothing_is_invalid() {
    let fault = |hits, unavailable| {
        let start = fault(0, 0, MS, None).swap_remove(0);
        let stop = Event::FaultStop {
            fault: 0,
            t: MS,
            hits,
            unavailable,
        };
        [start, stop, publish(1, 0, 0, Outcome::Fail)]
    };
    assert_eq!(judge(fault(1, None)).invalid.len(), 0);
    assert_eq!(judge(fault(0, None)).invalid.len(), 1);
    assert_eq!(
        judge(fault(0, Some("no permission".to_owned())))
            .invalid
            .len(),
        0
    );
    // Nobody was answered, and nothing came: it hit a run that stood still.
    assert_eq!(judge(fault(1, None).into_iter().take(2)).invalid.len(), 1);
    let few = Checker::default().verdict(Bound {
        in_flight: 1,
        acknowledged_min: 1,
    });
    assert_eq!(few.invalid.len(), 1);
}
