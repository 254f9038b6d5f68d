//! What a store does once, when it starts: waits for Redis, learns or sets the namespace's names, reads
//! the clock.

use std::time::Duration;

use redis::Client;
use redis::aio::MultiplexedConnection;

use crate::id::IdKey;
use crate::shard::Topology;
use crate::store::checks::StartError;
use crate::store::core::Core;
use crate::store::keys::Namespace;
use crate::store::names::Names;
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
) -> Result<(Names, Topology, IdKey), StartError> {
    let settled = Names::settle(connection, keys, config.shards).await;
    let names = settled.map_err(|error| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    })?;
    let (topology, id_key) = names.parse()?;
    if topology.shards != config.shards {
        tracing::warn!(
            stored = topology.shards,
            configured = config.shards,
            "the namespace has another number of shards than `shards` says; the stored one counts"
        );
    }
    Ok((names, topology, id_key))
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
