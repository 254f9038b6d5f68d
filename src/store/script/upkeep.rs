//! What owners do beside turns: let entries age (`lua/trim.lua`), beat (`lua/members.lua`).

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::shard::InstanceId;
use crate::store::claim::Members;
use crate::store::keys::ShardKeys;
use crate::store::script::{MEMBERS, Parts, TRIM, evalsha, millis, run};

/// Most entries of each kind that one trim touches.
const TRIM_MAX: u64 = 500;

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

/// `lua/members.lua`.
pub(in crate::store) async fn members(
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
