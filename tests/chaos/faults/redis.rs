//! What befalls Redis.
//!
//! Nothing here takes from Redis what it has promised to keep, so nothing that was acknowledged may be missing:
//!
//! - a kill of the process alone loses nothing that was written to the append-only file, whatever `appendfsync`
//!   says: the system still has it. With `everysec` Redis may answer before it writes while an fsync is slow,
//!   so there the kill waits for the moment at which nothing is unwritten;
//! - the torn end is what a crash in the middle of a write leaves: a part of a command that nobody was
//!   answered, appended after the kill. Cutting bytes off would take acknowledged ones with them;
//! - a full disk is a limit on the size of files that the process meets (`RLIMIT_FSIZE`, which needs neither root nor a
//!   file system of its own): with `always` Redis ends rather than answer what it cannot write.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use fastrand::Rng;
use redis::{Connection, FromRedisValue, RedisResult, cmd};
use rustix::process::{Resource, Rlimit, Signal, prlimit};

use super::{Hit, POLL, come_back, last, last_from_hit};
use crate::cluster::Cluster;
use crate::schedule::Step;
use crate::support::wait;

/// Memory of a Redis that takes no more inserts.
const MAXMEMORY: &str = "1mb";
/// Bytes that still fit on a full disk.
const DISK_LEFT: u64 = 300;
/// How long a kill waits for the moment at which nothing is unwritten.
const UNWRITTEN_LIMIT: Duration = Duration::from_secs(4);

fn ask<T: FromRedisValue>(connection: &mut Connection, words: &[&str]) -> RedisResult<T> {
    let mut command = cmd(words[0]);
    for word in &words[1..] {
        command.arg(*word);
    }
    command.query(connection)
}

/// A number of `INFO`; 0 if it is not there.
fn info(connection: &mut Connection, key: &str) -> u64 {
    let text: String = ask(connection, &["INFO", "everything"]).unwrap_or_default();
    let value = |line: &str| {
        let rest = line.strip_prefix(key)?.strip_prefix(':')?;
        rest.trim_start_matches("count=").trim().parse().ok()
    };
    text.lines().find_map(value).unwrap_or(0)
}

/// Repairs: what a slow machine does not answer in time is asked again.
fn insist(connection: &mut Connection, words: &[&str]) {
    wait::until("redis to be repaired", || {
        ask::<()>(connection, words).is_ok()
    });
}

fn restart(cluster: &Cluster) {
    cluster.redis.program.start();
    come_back(|| cluster.redis.answers());
}

pub(super) fn terminate(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster.redis.program.terminate();
    last(step);
    restart(cluster);
    Hit::once(ran)
}

pub(super) fn kill(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster.redis.program.kill();
    last(step);
    restart(cluster);
    Hit::once(ran)
}

/// `everysec` for a while, then the kill, at a moment at which all that was answered is written.
pub(super) fn kill_everysec(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let set: RedisResult<()> = ask(
        &mut connection,
        &["CONFIG", "SET", "appendfsync", "everysec"],
    );
    last(step);
    let paused: RedisResult<()> = ask(&mut connection, &["CLIENT", "PAUSE", "6000", "WRITE"]);
    let mut left = UNWRITTEN_LIMIT;
    while info(&mut connection, "aof_buffer_length") > 0 && !left.is_zero() {
        wait::pause(POLL);
        left = left.saturating_sub(POLL);
    }
    if left.is_zero() || set.is_err() || paused.is_err() {
        // The ordinary end keeps what was answered.
        cluster.redis.program.terminate();
        restart(cluster);
        return Hit {
            hits: 0,
            unavailable: Some("the disk is too slow".to_owned()),
        };
    }
    let ran = cluster.redis.program.kill();
    restart(cluster);
    Hit::once(ran)
}

pub(super) fn stop(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster.redis.program.signal(Signal::STOP);
    last(step);
    cluster.redis.program.signal(Signal::CONT);
    Hit::once(ran)
}

/// The file that Redis appends to.
fn appended(cluster: &Cluster) -> Option<PathBuf> {
    let files = fs::read_dir(cluster.redis.dir.join("appendonlydir")).ok()?;
    let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    files.retain(|file| file.to_string_lossy().ends_with(".incr.aof"));
    files.sort();
    files.pop()
}

pub(super) fn torn_tail(cluster: &Cluster, step: &Step) -> Hit {
    let ran = cluster.redis.program.kill();
    let mut random = Rng::with_seed(step.seed);
    // What an insert looks like in the file: a transaction, here without its end.
    let mut whole =
        b"*1\r\n$5\r\nMULTI\r\n*4\r\n$4\r\nZADD\r\n$20\r\n{nsqdelayd:1.3}:due\xff\r\n".to_vec();
    whole.extend(b"$16\r\n3580000000000000\r\n$500\r\n");
    whole.resize(140, b'x');
    let torn = whole.get(..random.usize(1..=100)).unwrap_or_default();
    let appended = appended(cluster).and_then(|file| {
        let mut file = File::options().append(true).open(file).ok()?;
        file.write_all(torn).ok()
    });
    last(step);
    restart(cluster);
    Hit::once(ran && appended.is_some())
}

/// Inserts are refused; cancels, moves that free memory, and deliveries go on.
pub(super) fn maxmemory(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let before = info(&mut connection, "errorstat_OOM");
    let set: RedisResult<()> = ask(&mut connection, &["CONFIG", "SET", "maxmemory", MAXMEMORY]);
    last_from_hit(step, || {
        info(&mut connection, "errorstat_OOM").saturating_sub(before)
    });
    let hits = info(&mut connection, "errorstat_OOM").saturating_sub(before);
    insist(&mut connection, &["CONFIG", "SET", "maxmemory", "0"]);
    Hit::of(if set.is_ok() { hits } else { 0 })
}

pub(super) fn disk_full(cluster: &Cluster, step: &Step) -> Hit {
    let (Some(pid), Some(file)) = (cluster.redis.program.pid(), appended(cluster)) else {
        return Hit::of(0);
    };
    let size = fs::metadata(file).map_or(0, |file| file.len());
    let limit = Rlimit {
        current: Some(size + DISK_LEFT),
        maximum: None,
    };
    cluster.redis.program.expect_end();
    if let Err(error) = prlimit(Some(pid), Resource::Fsize, limit) {
        cluster.redis.program.start();
        return Hit {
            hits: 0,
            unavailable: Some(format!("prlimit: {error}")),
        };
    }
    last_from_hit(step, || u64::from(cluster.redis.program.pid().is_none()));
    let ended = cluster.redis.program.pid().is_none();
    // It has still written nothing: no limit for it, then.
    if !ended {
        cluster.redis.program.terminate();
    }
    restart(cluster);
    Hit::once(ended)
}

pub(super) fn script_flush(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let scripts = info(&mut connection, "number_of_cached_scripts");
    let flushed: RedisResult<()> = ask(&mut connection, &["SCRIPT", "FLUSH"]);
    last(step);
    Hit::of(if flushed.is_ok() { scripts } else { 0 })
}

pub(super) fn client_pause(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let span = step.lasts_ms.to_string();
    let paused: RedisResult<()> = ask(&mut connection, &["CLIENT", "PAUSE", &span, "ALL"]);
    last(step);
    Hit::once(paused.is_ok())
}

pub(super) fn debug_sleep(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let limit = Duration::from_millis(step.lasts_ms) + Duration::from_secs(5);
    if connection.set_read_timeout(Some(limit)).is_err() {
        return Hit::of(0);
    }
    let span = format!("{}.{:03}", step.lasts_ms / 1_000, step.lasts_ms % 1_000);
    let slept: RedisResult<()> = ask(&mut connection, &["DEBUG", "SLEEP", &span]);
    Hit::once(slept.is_ok())
}

/// Nobody is let in again who was sent away.
pub(super) fn maxclients(cluster: &Cluster, step: &Step) -> Hit {
    let Some(mut connection) = cluster.redis.connect() else {
        return Hit::of(0);
    };
    let before = info(&mut connection, "rejected_connections");
    let set: RedisResult<()> = ask(&mut connection, &["CONFIG", "SET", "maxclients", "1"]);
    for kind in ["normal", "pubsub"] {
        let killed: RedisResult<u64> = ask(
            &mut connection,
            &["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"],
        );
        drop(killed);
    }
    last_from_hit(step, || {
        info(&mut connection, "rejected_connections").saturating_sub(before)
    });
    let hits = info(&mut connection, "rejected_connections").saturating_sub(before);
    insist(&mut connection, &["CONFIG", "SET", "maxclients", "10000"]);
    Hit::of(if set.is_ok() { hits } else { 0 })
}
