//! What befalls nsqds, and the way there.

use std::time::Duration;

use rustix::process::Signal;

use super::{Hit, come_back, last, last_from_hit};
use crate::cluster::{Cluster, Nsqd};
use crate::producers::TOPICS;
use crate::proxy::{Proxy, Rules};
use crate::schedule::Step;

/// Answers that one swallowing fault takes of each instance.
const SWALLOWED: u64 = 2;
/// A limit below the largest bodies.
const SMALL: &str = "--max-msg-size=4096";

fn target<'a>(cluster: &'a Cluster, step: &Step) -> &'a Nsqd {
    &cluster.nsqds[step.target]
}

/// The ways of all instances to the nsqd.
fn ways<'a>(cluster: &'a Cluster, step: &'a Step) -> impl Iterator<Item = &'a Proxy> {
    let nsqd = step.target;
    cluster.instances.iter().map(move |i| &i.nsqds[nsqd])
}

fn back(cluster: &Cluster, step: &Step) {
    come_back(|| ways(cluster, step).all(|way| way.live() > 0));
}

pub(super) fn kill(cluster: &Cluster, step: &Step) -> Hit {
    let program = &target(cluster, step).program;
    let ran = program.kill();
    last(step);
    program.start();
    back(cluster, step);
    Hit::once(ran)
}

pub(super) fn kill_all(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster.nsqds.iter().filter(|n| n.program.kill()).count();
    last(step);
    for nsqd in &cluster.nsqds {
        nsqd.program.start();
    }
    back(cluster, step);
    Hit::of(ran as u64)
}

pub(super) fn terminate(cluster: &Cluster, step: &Step) -> Hit {
    let program = &target(cluster, step).program;
    let ran = program.terminate();
    last(step);
    program.start();
    back(cluster, step);
    Hit::once(ran)
}

pub(super) fn stop(cluster: &Cluster, step: &Step) -> Hit {
    let program = &target(cluster, step).program;
    let ran = program.signal(Signal::STOP);
    last(step);
    program.signal(Signal::CONT);
    Hit::once(ran)
}

/// It comes back with a limit that some messages exceed; what it refuses goes to another, or becomes a dead
/// letter.
pub(super) fn small(cluster: &Cluster, step: &Step) -> Hit {
    let program = &target(cluster, step).program;
    program.terminate();
    program.set_extra(&[SMALL]);
    ways(cluster, step).for_each(|way| way.set(|_| ()));
    program.start();
    back(cluster, step);
    let hits = || ways(cluster, step).map(Proxy::hits).sum();
    last_from_hit(step, hits);
    let hits = hits();
    program.terminate();
    program.set_extra(&[]);
    program.start();
    back(cluster, step);
    Hit::of(hits)
}

pub(super) fn cut(cluster: &Cluster, step: &Step, reset: bool) -> Hit {
    let hits = ways(cluster, step).map(|way| way.cut(reset)).sum();
    last(step);
    Hit::of(hits)
}

/// Breaks all ways by `rules` for a while.
fn ruled(cluster: &Cluster, step: &Step, rules: impl Fn(&mut Rules)) -> Hit {
    ways(cluster, step).for_each(|way| way.set(&rules));
    let hits = || ways(cluster, step).map(Proxy::hits).sum();
    last_from_hit(step, hits);
    let hits = hits();
    if step.seed.is_multiple_of(2) {
        ways(cluster, step).for_each(|way| {
            way.cut(true);
        });
    }
    ways(cluster, step).for_each(Proxy::heal);
    Hit::of(hits)
}

pub(super) fn delay(cluster: &Cluster, step: &Step) -> Hit {
    let delay = Duration::from_millis(50 + step.seed % 700);
    ruled(cluster, step, |rules| rules.delay = delay)
}

pub(super) fn hold(cluster: &Cluster, step: &Step, requests: bool) -> Hit {
    ruled(cluster, step, |rules| {
        rules.hold_requests = requests;
        rules.hold_answers = !requests;
    })
}

/// nsqd has the messages, and the instance does not learn it.
pub(super) fn swallow(cluster: &Cluster, step: &Step) -> Hit {
    ways(cluster, step).for_each(|way| way.swallow(SWALLOWED));
    let hits = || ways(cluster, step).map(Proxy::hits).sum();
    last_from_hit(step, hits);
    let hits = hits();
    ways(cluster, step).for_each(|way| way.swallow(0));
    Hit::of(hits)
}

/// As an nsqd whose topic is closing: nothing is certain for whoever hears it.
pub(super) fn refuse(cluster: &Cluster, step: &Step) -> Hit {
    ruled(cluster, step, |rules| {
        rules.error = Some("E_MPUB_FAILED MPUB failed exiting");
    })
}

/// All nsqds refuse one topic: its messages become dead letters.
pub(super) fn bad_topic(cluster: &Cluster, step: &Step) -> Hit {
    let ways = || cluster.instances.iter().flat_map(|i| &i.nsqds);
    for way in ways() {
        way.set(|rules| {
            rules.error = Some("E_BAD_TOPIC MPUB topic name \"chaos-refused\" is not valid");
            rules.error_topic = Some(TOPICS[1]);
        });
    }
    let hits = || ways().map(Proxy::hits).sum();
    last_from_hit(step, hits);
    let hits = hits();
    ways().for_each(Proxy::heal);
    Hit::of(hits)
}
