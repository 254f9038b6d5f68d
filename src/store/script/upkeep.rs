//! What owners do beside turns: let entries age (`lua/trim.lua`), beat (`lua/members.lua`, or without it).

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::message::UnixMs;
use crate::shard::InstanceId;
use crate::store::claim::Members;
use crate::store::connect::is_broken;
use crate::store::keys::ShardKeys;
use crate::store::script::{MEMBERS, Parts, TRIM, evalsha, millis, run};

/// Most entries of each kind that one trim touches.
const TRIM_MAX: u64 = 500;

/// A heartbeat may differ so much from Redis's own time.
const BEAT_SLACK_MS: u64 = 1_000;

/// `lua/trim.lua`. `true`: there is more to trim.
pub(in crate::store) async fn trim(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
) -> Result<bool, RedisError> {
    let names = [keys.horizon(), keys.ids(), keys.live(), keys.gone()];
    let mut cmd = evalsha(&TRIM, &names);
    cmd.arg(millis(dedupe_window)).arg(TRIM_MAX);
    let touched: u64 = redis::from_redis_value(run(connection, &cmd).await?)?;
    Ok(touched >= TRIM_MAX)
}

/// A heartbeat, or the last one. `now`: Redis's clock, as far as it is known.
pub(in crate::store) async fn beat(
    connection: &mut MultiplexedConnection,
    key: &str,
    instance: &str,
    instance_ttl: Duration,
    now: UnixMs,
    leave: bool,
) -> Result<(u64, Members), RedisError> {
    if !leave
        && now > UnixMs(0)
        && let Some(told) = plain_beat(connection, key, instance, instance_ttl, now).await?
    {
        return Ok(told);
    }
    members(connection, key, instance, instance_ttl, leave).await
}

/// `lua/members.lua`.
async fn members(
    connection: &mut MultiplexedConnection,
    key: &str,
    instance: &str,
    instance_ttl: Duration,
    leave: bool,
) -> Result<(u64, Members), RedisError> {
    let mut cmd = evalsha(&MEMBERS, &[key.to_owned()]);
    cmd.arg(instance)
        .arg(millis(instance_ttl))
        .arg(u8::from(leave));
    let mut parts = Parts::of("members", run(connection, &cmd).await?)?;
    let now_us = parts.number()?;
    let next_expiry = parts.word()?.parse().ok().map(Duration::from_millis);
    let mut live = Vec::new();
    while parts.rest.len() > 0 {
        live.push(InstanceId(parts.word()?));
    }
    Ok((now_us, Members { live, next_expiry }))
}

/// A heartbeat as most are, in three commands instead of a script and what it calls: the others are live, and Redis's
/// clock is where it was. `None`: it is one for the script, which also writes when memory is full.
async fn plain_beat(
    connection: &mut MultiplexedConnection,
    key: &str,
    instance: &str,
    instance_ttl: Duration,
    now: UnixMs,
) -> Result<Option<(u64, Members)>, RedisError> {
    let mut beat = redis::pipe();
    beat.zadd(key, instance, now.0).ignore();
    beat.cmd("TIME");
    beat.zrange_withscores(key, 0, -1);
    let (time, beats): ((u64, u64), Vec<(String, u64)>) = match beat.query_async(connection).await {
        // A server that refuses says why to the script too.
        Err(error) if !is_broken(&error) => return Ok(None),
        reply => reply?,
    };
    let now_us = time.0 * 1_000_000 + time.1;
    let (told, ttl) = (now_us / 1_000, millis(instance_ttl));
    if told.abs_diff(now.0) > BEAT_SLACK_MS.min(ttl / 4) {
        return Ok(None);
    }
    let (mut live, mut next_expiry) = (Vec::with_capacity(beats.len()), None);
    for (name, beat) in beats {
        let is_plain = beat + ttl > told && beat <= told + ttl;
        if !is_plain {
            return Ok(None);
        }
        if name != instance {
            let left = Duration::from_millis(beat + ttl - told);
            next_expiry = Some(next_expiry.map_or(left, |soonest: Duration| soonest.min(left)));
        }
        live.push(InstanceId(name));
    }
    Ok(Some((now_us, Members { live, next_expiry })))
}
