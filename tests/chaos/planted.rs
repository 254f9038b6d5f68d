//! Runs of a defective system, small and without faults (but one): what the whole harness must find. The
//! defects are made between the real programs, so that none of them has a line of code for it.

use std::time::Duration;

use crate::checker::Verdict;
use crate::cluster;
use crate::proxy::Plant;
use crate::run::{self, Size};
use crate::schedule::{Cycle, Kind, Schedule, Step};

/// One instance, one nsqd, few producers.
fn small(plant: Option<Plant>, persistent: bool) -> Size {
    Size {
        cluster: cluster::Size {
            instances: 1,
            nsqds: 1,
            plant,
            persistent,
        },
        producers: [1, 1, 1, 1],
        pace: Duration::from_millis(60),
        liveness: Duration::from_secs(2),
    }
}

fn play(name: &str, size: Size, steps: Vec<Step>) -> Verdict {
    let cycles = if steps.is_empty() {
        Vec::new()
    } else {
        vec![Cycle {
            lanes: [steps, Vec::new(), Vec::new()],
            slot_ms: 0,
        }]
    };
    let schedule = Schedule {
        seed: 1,
        minutes: 0,
        cycles,
    };
    let dir = run::fresh_dir(&format!("chaos-planted-{name}"));
    let verdict = run::play(&schedule, size, &dir);
    assert!(
        verdict.acknowledged > 50,
        "{} acknowledged",
        verdict.acknowledged
    );
    run::drop_servers_files(&dir);
    verdict
}

/// The defect is seen as this, and as nothing that has nothing to do with it.
#[track_caller]
fn found(verdict: &Verdict, promise: &str) {
    let count = verdict.count(promise);
    let names: Vec<&str> = verdict.broken.iter().map(|(name, _)| *name).collect();
    eprintln!("found {count} times: {promise}");
    assert!(count > 0, "not found: {promise}; instead {names:?}");
}

#[test]
fn a_system_without_a_defect_keeps_every_promise() {
    let verdict = play("none", small(None, true), Vec::new());
    assert!(verdict.broken.is_empty(), "{:?}", verdict.broken);
    assert_eq!(verdict.extra_copies, 0);
}

#[test]
fn a_reply_before_the_write_is_found() {
    let plant = Some(Plant::ReplyBeforeWrite);
    found(&play("reply", small(plant, true), Vec::new()), "lost");
}

#[test]
fn a_settle_before_ok_is_found() {
    let plant = Some(Plant::SettleBeforeOk);
    found(&play("settle", small(plant, true), Vec::new()), "lost");
}

#[test]
fn a_message_that_is_sent_twice_is_found() {
    let plant = Some(Plant::SendTwice);
    found(&play("twice", small(plant, true), Vec::new()), "duplicate");
}

#[test]
fn a_changed_body_is_found() {
    let plant = Some(Plant::AlterBody);
    found(&play("body", small(plant, true), Vec::new()), "altered");
}

/// Redis answers, and keeps nothing over a kill: what was acknowledged is lost.
#[test]
fn a_redis_that_keeps_nothing_is_found() {
    let kill = Step {
        gap_ms: 0,
        kind: Kind::RedisKillAlways,
        target: 0,
        lasts_ms: 300,
        seed: 0,
    };
    found(&play("memory", small(None, false), vec![kill]), "lost");
}
