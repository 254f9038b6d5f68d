//! What must be true of a Redis before it is trusted with messages. Each finding says what to change.

use redis::aio::MultiplexedConnection;
use tracing::warn;

use crate::store::settings::Config;

/// Oldest Redis with every command that the scripts use.
const VERSION_MIN: (u64, u64) = (6, 2);

/// Why the store does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is not one.
    #[error(
        "redis: `{url}` is not an address ({source}); write redis://[user:password@]host:port[/db]"
    )]
    Address {
        /// The address, without its password.
        url: String,
        /// Why.
        source: Box<redis::RedisError>,
    },
    /// Nothing answers there.
    #[error("redis: no answer from {url}: {why}; start it, or set `redis` to where it is")]
    Away {
        /// The address, without its password.
        url: String,
        /// What was tried.
        why: String,
    },
    /// Too old.
    #[error("redis: version {found} is too old; 6.2 or newer, or Valkey, is needed")]
    Version {
        /// What INFO says.
        found: String,
    },
    /// It may drop what we store.
    #[error(
        "redis: maxmemory-policy is `{found}`, which lets redis drop messages; set it to `noeviction`"
    )]
    Eviction {
        /// What is set.
        found: String,
    },
    /// It keeps nothing.
    #[error(
        "redis: persistence is off, a restart of redis loses every message; set `appendonly yes`, or \
         `require_persistence = false` here"
    )]
    Persistence,
    /// The namespace holds something else.
    #[error("redis: key `{key}` holds what nsqdelayd did not write; choose another `namespace`")]
    Foreign {
        /// The key.
        key: String,
    },
}

/// The facts of INFO that count.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    version: String,
    policy: Option<String>,
    aof: Option<bool>,
    saves: Option<bool>,
}

/// Looks at the server; refuses or warns. A server without CONFIG is judged by INFO alone.
pub(super) async fn check(
    connection: &mut MultiplexedConnection,
    config: &Config,
    url: &str,
) -> Result<(), StartError> {
    let info: Result<String, _> = redis::cmd("INFO").query_async(connection).await;
    let info = info.map_err(|error| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    })?;
    let mut facts = read_info(&info);
    let policy = config_get(connection, "maxmemory-policy").await;
    if policy.is_none() {
        warn!("redis does not let us read CONFIG; judging by INFO");
    }
    facts.policy = policy.or(facts.policy);
    let save = config_get(connection, "save").await;
    facts.saves = save.map(|save| !save.is_empty()).or(facts.saves);
    let appendfsync = config_get(connection, "appendfsync").await;
    judge(&facts, config)?;
    if facts.aof == Some(true) && appendfsync.as_deref() == Some("no") {
        warn!("redis: appendfsync is `no`: a power failure loses what the system had not written");
    }
    Ok(())
}

async fn config_get(connection: &mut MultiplexedConnection, key: &str) -> Option<String> {
    let reply: Vec<String> = redis::cmd("CONFIG")
        .arg("GET")
        .arg(key)
        .query_async(connection)
        .await
        .ok()?;
    reply.into_iter().nth(1)
}

fn read_info(info: &str) -> Facts {
    let mut facts = Facts::default();
    for (key, value) in info
        .lines()
        .filter_map(|line| line.trim_end().split_once(':'))
    {
        match key {
            // Valkey says what Redis it is compatible with under redis_version.
            "redis_version" => value.clone_into(&mut facts.version),
            "maxmemory_policy" => facts.policy = Some(value.to_owned()),
            "aof_enabled" => facts.aof = Some(value == "1"),
            _ => {}
        }
    }
    facts
}

fn judge(facts: &Facts, config: &Config) -> Result<(), StartError> {
    let mut numbers = facts
        .version
        .split('.')
        .map(|n| n.parse::<u64>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < VERSION_MIN {
        return Err(StartError::Version {
            found: facts.version.clone(),
        });
    }
    match facts.policy.as_deref() {
        Some("noeviction") => {}
        Some(found) => {
            return Err(StartError::Eviction {
                found: found.to_owned(),
            });
        }
        None => warn!("redis: maxmemory-policy cannot be read; it must be `noeviction`"),
    }
    if facts.aof == Some(false) {
        if config.require_persistence {
            return Err(StartError::Persistence);
        }
        let snapshots = facts.saves.unwrap_or(false);
        warn!(
            snapshots,
            "redis: no append-only file: a restart of redis loses what came since the last snapshot"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn config(require_persistence: bool) -> Config {
        Config {
            redis: String::new(),
            namespace: "n".into(),
            shards: 1,
            pack_window: Duration::from_secs(1),
            pack_bytes: 1,
            insert_bytes_max: 1,
            queue_bytes_max: 1,
            request_timeout: Duration::from_secs(1),
            claim_ttl: Duration::from_secs(1),
            instance_ttl: Duration::from_secs(1),
            dedupe_window: Duration::from_secs(1),
            dead_letters_max: 1,
            require_persistence,
        }
    }

    fn judged(info: &str, require: bool) -> Option<String> {
        judge(&read_info(info), &config(require))
            .err()
            .map(|error| error.to_string())
    }

    #[test]
    fn findings_name_the_remedy() {
        let fine = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";
        assert_eq!(judged(fine, true), None);
        let old = judged("redis_version:6.0.16\r\n", false).unwrap();
        assert!(old.contains("6.0.16") && old.contains("6.2"), "{old}");
        let evicts = judged(
            "redis_version:7.2.4\r\nmaxmemory_policy:allkeys-lru\r\n",
            false,
        )
        .unwrap();
        assert!(
            evicts.contains("allkeys-lru") && evicts.contains("noeviction"),
            "{evicts}"
        );
        let forgets = "redis_version:7.2.4\r\nmaxmemory_policy:noeviction\r\naof_enabled:0\r\n";
        assert_eq!(judged(forgets, false), None);
        assert!(judged(forgets, true).unwrap().contains("appendonly yes"));
    }
}
