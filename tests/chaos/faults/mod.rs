//! Breaks things as the schedule says, and repairs them; says what was hit. One thread a lane.

mod instance;
mod nsqd;
mod redis;

use std::time::Duration;

use crate::cluster::Cluster;
use crate::recorder::Recorder;
use crate::schedule::{Kind, Step};
use crate::support::wait;

/// A program that was started again may take this long to answer.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// A fault that only traffic can meet waits for it so long.
const HIT_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

/// What a fault came to.
pub(crate) struct Hit {
    /// Connections cut, answers swallowed, requests refused, programs ended.
    hits: u64,
    /// Why this machine does not allow it.
    unavailable: Option<String>,
}

impl Hit {
    fn of(hits: u64) -> Self {
        Self {
            hits,
            unavailable: None,
        }
    }

    fn once(done: bool) -> Self {
        Self::of(u64::from(done))
    }
}

/// Plays one lane to its end.
pub(crate) fn play(cluster: &Cluster, recorder: &Recorder, steps: &[Step]) {
    for step in steps {
        wait::pause(Duration::from_millis(step.gap_ms));
        settle(cluster, step);
        let kills_nsqd = (step.kind == Kind::NsqdKill).then_some(step.target);
        let words = format!("[{}] for {} ms", step.target, step.lasts_ms);
        let fault = recorder.fault_starts(step.kind.name(), words, kills_nsqd);
        if step.kind == Kind::NsqdsKill {
            // One line for each nsqd, so that each is known as killed.
            for nsqd in 0..cluster.nsqds.len() {
                let words = format!("[{nsqd}], with all others");
                let each = recorder.fault_starts("nsqd: killed with all others", words, Some(nsqd));
                recorder.fault_ends(each, 1, None);
            }
        }
        let hit = perform(cluster, step);
        recorder.fault_ends(fault, hit.hits, hit.unavailable);
    }
}

/// What is to be broken must be whole first, else the fault hits nothing.
fn settle(cluster: &Cluster, step: &Step) {
    let whole = || match step.kind {
        Kind::RedisTerm
        | Kind::RedisKillAlways
        | Kind::RedisKillEverysec
        | Kind::RedisStop
        | Kind::RedisTornTail
        | Kind::RedisFull
        | Kind::DiskFull
        | Kind::ScriptFlush
        | Kind::ClientPause
        | Kind::DebugSleep
        | Kind::MaxClients => cluster.redis.answers() && cluster.instances.iter().any(linked),
        Kind::InstanceKill | Kind::InstanceTerm | Kind::InstanceStop => {
            cluster.instances[step.target].program.pid().is_some()
        }
        Kind::InstancesKill => cluster.instances.iter().all(|i| i.program.pid().is_some()),
        Kind::RedisCut
        | Kind::RedisReset
        | Kind::RedisDelay
        | Kind::RedisHoldRequests
        | Kind::RedisHoldAnswers
        | Kind::RedisSwallow => cluster.instances[step.target].redis.live() > 2,
        _ => {
            let linked = |i: &crate::cluster::Instance| i.nsqds[step.target].live() > 0;
            cluster.nsqds[step.target].program.pid().is_some()
                && cluster.instances.iter().any(linked)
        }
    };
    let mut left = BACK_LIMIT;
    while !whole() && !left.is_zero() {
        wait::pause(POLL);
        left = left.saturating_sub(POLL);
    }
}

fn linked(instance: &crate::cluster::Instance) -> bool {
    instance.redis.live() > 2
}

fn perform(cluster: &Cluster, step: &Step) -> Hit {
    match step.kind {
        Kind::RedisTerm => redis::terminate(cluster, step),
        Kind::RedisKillAlways => redis::kill(cluster, step),
        Kind::RedisKillEverysec => redis::kill_everysec(cluster, step),
        Kind::RedisStop => redis::stop(cluster, step),
        Kind::RedisTornTail => redis::torn_tail(cluster, step),
        Kind::RedisFull => redis::maxmemory(cluster, step),
        Kind::DiskFull => redis::disk_full(cluster, step),
        Kind::ScriptFlush => redis::script_flush(cluster, step),
        Kind::ClientPause => redis::client_pause(cluster, step),
        Kind::DebugSleep => redis::debug_sleep(cluster, step),
        Kind::MaxClients => redis::maxclients(cluster, step),
        Kind::InstanceKill => instance::kill(cluster, step),
        Kind::InstanceStop => instance::stop(cluster, step),
        Kind::InstanceTerm => instance::terminate(cluster, step),
        Kind::InstancesKill => instance::kill_all(cluster, step),
        Kind::RedisCut => instance::cut(cluster, step, false),
        Kind::RedisReset => instance::cut(cluster, step, true),
        Kind::RedisDelay => instance::delay(cluster, step),
        Kind::RedisHoldRequests => instance::hold(cluster, step, true),
        Kind::RedisHoldAnswers => instance::hold(cluster, step, false),
        Kind::RedisSwallow => instance::swallow(cluster, step),
        Kind::NsqdKill => nsqd::kill(cluster, step),
        Kind::NsqdTerm => nsqd::terminate(cluster, step),
        Kind::NsqdStop => nsqd::stop(cluster, step),
        Kind::NsqdSmall => nsqd::small(cluster, step),
        Kind::NsqdsKill => nsqd::kill_all(cluster, step),
        Kind::NsqdCut => nsqd::cut(cluster, step, false),
        Kind::NsqdReset => nsqd::cut(cluster, step, true),
        Kind::NsqdDelay => nsqd::delay(cluster, step),
        Kind::NsqdHoldRequests => nsqd::hold(cluster, step, true),
        Kind::NsqdHoldAnswers => nsqd::hold(cluster, step, false),
        Kind::NsqdSwallow => nsqd::swallow(cluster, step),
        Kind::NsqdRefuses => nsqd::refuse(cluster, step),
        Kind::NsqdBadTopic => nsqd::bad_topic(cluster, step),
    }
}

/// Lets the fault last.
fn last(step: &Step) {
    wait::pause(Duration::from_millis(step.lasts_ms));
}

/// Lets the fault last from its first hit on: what goes on beside it may keep everything still for a while.
fn last_from_hit(step: &Step, mut hits: impl FnMut() -> u64) {
    let mut left = HIT_LIMIT;
    while hits() == 0 && !left.is_zero() {
        wait::pause(POLL);
        left = left.saturating_sub(POLL);
    }
    last(step);
}

/// Waits until `back`, with a limit: what does not come back is seen when the run heals.
fn come_back(back: impl Fn() -> bool) {
    let mut left = BACK_LIMIT;
    while !back() && !left.is_zero() {
        wait::pause(POLL);
        left = left.saturating_sub(POLL);
    }
}
