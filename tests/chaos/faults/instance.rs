//! What befalls instances, and their way to Redis.

use std::time::Duration;

use rustix::process::Signal;

use super::{Hit, come_back, last, last_from_hit};
use crate::cluster::{Cluster, Instance};
use crate::schedule::Step;

/// Answers that one swallowing fault takes.
const SWALLOWED: u64 = 3;

fn target<'a>(cluster: &'a Cluster, step: &Step) -> &'a Instance {
    &cluster.instances[step.target]
}

pub(super) fn kill(cluster: &Cluster, step: &Step) -> Hit {
    let instance = target(cluster, step);
    let ran = instance.program.kill();
    last(step);
    instance.program.start();
    come_back(|| instance.answers());
    Hit::once(ran)
}

pub(super) fn kill_all(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster
        .instances
        .iter()
        .filter(|i| i.program.kill())
        .count();
    last(step);
    for instance in &cluster.instances {
        instance.program.start();
    }
    come_back(|| cluster.instances.iter().all(Instance::answers));
    Hit::of(ran as u64)
}

/// Its claims end while it stands still; what it believes when it goes on must do no harm.
pub(super) fn stop(cluster: &Cluster, step: &Step) -> Hit {
    let program = &target(cluster, step).program;
    let ran = program.signal(Signal::STOP);
    last(step);
    program.signal(Signal::CONT);
    Hit::once(ran)
}

pub(super) fn terminate(cluster: &Cluster, step: &Step) -> Hit {
    let instance = target(cluster, step);
    let ran = instance.program.terminate();
    last(step);
    instance.program.start();
    come_back(|| instance.answers());
    Hit::once(ran)
}

pub(super) fn cut(cluster: &Cluster, step: &Step, reset: bool) -> Hit {
    let hits = target(cluster, step).redis.cut(reset);
    last(step);
    Hit::of(hits)
}

/// Every piece takes longer, up to a third of what a request may take.
pub(super) fn delay(cluster: &Cluster, step: &Step) -> Hit {
    let proxy = &target(cluster, step).redis;
    proxy.set(|rules| rules.delay = Duration::from_millis(50 + step.seed % 950));
    last_from_hit(step, || proxy.hits());
    proxy.heal();
    Hit::of(proxy.hits())
}

/// Bytes go one way only, for longer than a request may take. Half of the time the connections are cut in the
/// end, else what was held arrives late.
pub(super) fn hold(cluster: &Cluster, step: &Step, requests: bool) -> Hit {
    let proxy = &target(cluster, step).redis;
    proxy.set(|rules| {
        rules.hold_requests = requests;
        rules.hold_answers = !requests;
    });
    last_from_hit(step, || proxy.hits());
    let hits = proxy.hits();
    if step.seed.is_multiple_of(2) {
        proxy.cut(true);
    }
    proxy.heal();
    Hit::of(hits)
}

/// Redis does what it was asked, and nobody hears of it.
pub(super) fn swallow(cluster: &Cluster, step: &Step) -> Hit {
    let proxy = &target(cluster, step).redis;
    proxy.swallow(SWALLOWED);
    last_from_hit(step, || proxy.hits());
    let hits = proxy.hits();
    proxy.swallow(0);
    Hit::of(hits)
}
