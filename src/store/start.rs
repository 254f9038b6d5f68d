//! What a store does once, when it starts: waits for Redis, learns or sets the namespace's names, reads
//! the clock.

use std::time::Duration;

use redis::Client;
use redis::aio::MultiplexedConnection;

use crate::id::IdKey;
use crate::shard::{Generation, Topology};
use crate::store::checks::StartError;
use crate::store::core::Core;
use crate::store::keys::Namespace;
use crate::store::settings::Config;

/// How long Redis may be away at start.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// Connects, with patience: servers of a machine that boots come up in any order.
pub(super) async fn first_connection(
    client: &Client,
    url: &str,
    request_timeout: Duration,
) -> Result<MultiplexedConnection, StartError> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(request_timeout));
    let mut why = String::new();
    let connect = async {
        loop {
            match client
                .get_multiplexed_async_connection_with_config(&config)
                .await
            {
                Ok(connection) => return connection,
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let connected = tokio::time::timeout(START_PATIENCE, connect).await;
    connected.map_err(|_elapsed| StartError::Away {
        url: url.to_owned(),
        why,
    })
}

/// The topology and the ids' key: whoever comes first sets them, all others read them.
pub(super) async fn settle_names(
    connection: &mut MultiplexedConnection,
    keys: &Namespace,
    config: &Config,
    url: &str,
) -> Result<(Topology, IdKey), StartError> {
    let away = |error: redis::RedisError| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    };
    let mut pipeline = redis::Pipeline::new();
    let secret: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    pipeline
        .cmd("SET")
        .arg(keys.topology())
        .arg(format!("1 {}", config.shards))
        .arg("NX")
        .ignore();
    pipeline
        .cmd("SET")
        .arg(keys.secret())
        .arg(&secret[..])
        .arg("NX")
        .ignore();
    pipeline.cmd("GET").arg(keys.topology());
    pipeline.cmd("GET").arg(keys.secret());
    let (topology, secret): (String, Vec<u8>) =
        pipeline.query_async(connection).await.map_err(away)?;
    let foreign = |key| move || StartError::Foreign { key };
    let parse = || {
        let (generation, shards) = topology.split_once(' ')?;
        let generation = Generation(generation.parse().ok()?);
        Some(Topology {
            generation,
            shards: shards.parse().ok().filter(|n| *n > 0)?,
        })
    };
    let topology = parse().ok_or_else(foreign(keys.topology()))?;
    let secret = <[u8; 16]>::try_from(secret)
        .ok()
        .ok_or_else(foreign(keys.secret()))?;
    if topology.shards != config.shards {
        tracing::warn!(
            stored = topology.shards,
            configured = config.shards,
            "the namespace has another number of shards than `shards` says; the stored one counts"
        );
    }
    Ok((topology, IdKey(secret)))
}

/// The first reading of Redis's clock.
pub(super) async fn learn_time(core: &Core, connection: &mut MultiplexedConnection) {
    let sent = core.clock.monotonic();
    let time: Result<(u64, u64), _> = redis::cmd("TIME").query_async(connection).await;
    if let Ok((seconds, micros)) = time {
        core.clock.learn(seconds * 1_000_000 + micros, sent);
    }
}

/// The address without its password.
pub(super) fn masked(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}
