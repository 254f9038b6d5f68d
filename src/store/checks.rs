//! What must be true of a Redis before it is trusted with messages. Each finding says what to change.
//! The start refuses at an error and logs a warning; `doctor` prints all of them.

use redis::aio::MultiplexedConnection;
use tracing::{info, warn};

use crate::finding::{Finding, Level};
use crate::store::settings::Config;

/// Oldest Redis with every command that the scripts use.
const VERSION_MIN: (u64, u64) = (6, 2);
/// So much of `maxmemory` in use is worth a warning.
const MEMORY_PERCENT_WARNED: u64 = 80;

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
    /// It is not fit: too old, it may drop what we store, it keeps nothing.
    #[error("redis: {}: {}; {}", .0.what, .0.why, .0.remedy)]
    Unfit(Box<Finding>),
    /// The namespace holds something else.
    #[error("redis: key `{key}` holds what nsqdelayd did not write; choose another `namespace`")]
    Foreign {
        /// The key.
        key: String,
    },
}

/// The facts of INFO and CONFIG that count. What the server does not say is `None`.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an answer of its own; none follows from another"
)]
pub(super) struct Facts {
    version: String,
    valkey: Option<String>,
    policy: Option<String>,
    aof: Option<bool>,
    appendfsync: Option<String>,
    saves: Option<bool>,
    /// Whether CONFIG answers.
    config_readable: bool,
    replica: bool,
    replicas: u64,
    cluster: bool,
    loading: bool,
    aof_write_fails: bool,
    snapshot_fails: bool,
    used_memory: u64,
    maxmemory: u64,
    machine_memory: u64,
}

/// Looks at the server; refuses or warns. A server without CONFIG is judged by INFO alone.
pub(super) async fn check(
    connection: &mut MultiplexedConnection,
    config: &Config,
    url: &str,
) -> Result<(), StartError> {
    let facts = ask(connection).await.map_err(|error| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    })?;
    for finding in judge(&facts, config.require_persistence) {
        let Finding { what, why, .. } = &finding;
        match finding.level {
            Level::Ok => {}
            Level::Remark => info!(what, why, "redis"),
            Level::Warning => warn!(what, why, remedy = finding.remedy, "redis"),
            Level::Error => return Err(StartError::Unfit(Box::new(finding))),
        }
    }
    Ok(())
}

/// Reads the facts.
pub(super) async fn ask(connection: &mut MultiplexedConnection) -> redis::RedisResult<Facts> {
    let info: String = redis::cmd("INFO").query_async(connection).await?;
    let mut facts = read_info(&info);
    let policy = config_get(connection, "maxmemory-policy").await;
    facts.config_readable = policy.is_some();
    facts.policy = policy.or(facts.policy);
    let save = config_get(connection, "save").await;
    facts.saves = save.map(|save| !save.is_empty());
    facts.appendfsync = config_get(connection, "appendfsync").await;
    Ok(facts)
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
        let number = || value.parse().unwrap_or(0);
        match key {
            // Valkey says what Redis it is compatible with under redis_version.
            "redis_version" => value.clone_into(&mut facts.version),
            "valkey_version" => facts.valkey = Some(value.to_owned()),
            "maxmemory_policy" => facts.policy = Some(value.to_owned()),
            "aof_enabled" => facts.aof = Some(value == "1"),
            "role" => facts.replica = value == "slave",
            "connected_slaves" => facts.replicas = number(),
            "cluster_enabled" => facts.cluster = value == "1",
            "loading" => facts.loading = value == "1",
            "aof_last_write_status" => facts.aof_write_fails = value != "ok",
            "rdb_last_bgsave_status" => facts.snapshot_fails = value != "ok",
            "used_memory" => facts.used_memory = number(),
            "maxmemory" => facts.maxmemory = number(),
            "total_system_memory" => facts.machine_memory = number(),
            _ => {}
        }
    }
    facts
}

/// What follows from the facts.
pub(super) fn judge(facts: &Facts, require_persistence: bool) -> Vec<Finding> {
    let mut findings = vec![version(facts)];
    findings.extend(role(facts));
    findings.push(eviction(facts));
    findings.push(persistence(facts, require_persistence));
    findings.extend(fsync(facts));
    findings.extend(failures(facts));
    findings.push(memory(facts));
    findings
}

fn version(facts: &Facts) -> Finding {
    let mut numbers = facts
        .version
        .split('.')
        .map(|n| n.parse::<u64>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < VERSION_MIN {
        return Finding::new(
            Level::Error,
            "version",
            format!("version {} is too old", facts.version),
            "the scripts use commands that it does not have",
            "6.2 or newer, or Valkey, is needed",
        );
    }
    Finding::ok(
        "version",
        match &facts.valkey {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", facts.version),
        },
    )
}

fn role(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.loading {
        findings.push(Finding::new(
            Level::Error,
            "loading",
            "it is still reading its files",
            "it answers nothing until it has",
            "wait, then start again",
        ));
    }
    if facts.replica {
        findings.push(Finding::new(
            Level::Error,
            "role",
            "this is a replica",
            "nothing can be written to it",
            "set `redis` to the address of the master",
        ));
    }
    if facts.cluster {
        findings.push(Finding::new(
            Level::Warning,
            "cluster",
            "it runs in cluster mode",
            "only one that holds all slots alone works",
            "use a single server, `cluster-enabled no`",
        ));
    }
    if facts.replicas > 0 {
        findings.push(
            Finding::new(
                Level::Remark,
                "replicas",
                format!("replicas that copy it: {}", facts.replicas),
                "copying is asynchronous: a failover loses what had not been copied",
                "",
            )
            .number("replicas", facts.replicas),
        );
    }
    findings
}

fn eviction(facts: &Facts) -> Finding {
    const CHECK: &str = "maxmemory_policy";
    match facts.policy.as_deref() {
        Some("noeviction") => Finding::ok(CHECK, "maxmemory-policy is `noeviction`"),
        Some(found) => Finding::new(
            Level::Error,
            CHECK,
            format!("maxmemory-policy is `{found}`"),
            "it lets redis drop messages that were acknowledged",
            "set it to `noeviction`: redis-cli CONFIG SET maxmemory-policy noeviction, and in redis.conf",
        ),
        None => Finding::new(
            Level::Warning,
            CHECK,
            "maxmemory-policy cannot be read",
            "with another policy than `noeviction` redis drops messages that were acknowledged",
            "look yourself, or permit CONFIG GET",
        ),
    }
}

fn persistence(facts: &Facts, required: bool) -> Finding {
    const CHECK: &str = "persistence";
    let without_aof = if required {
        Level::Error
    } else {
        Level::Warning
    };
    match (facts.aof, facts.saves) {
        (Some(true), _) => Finding::ok(CHECK, "the append-only file is on"),
        (Some(false), Some(true)) => Finding::new(
            without_aof,
            CHECK,
            "persistence is off but for snapshots",
            "a restart of redis loses what came since the last snapshot",
            APPENDONLY,
        ),
        (Some(false), _) => Finding::new(
            without_aof,
            CHECK,
            "persistence is off",
            "a restart of redis loses every message",
            APPENDONLY,
        ),
        (None, _) => Finding::new(
            Level::Warning,
            CHECK,
            "INFO does not say whether the append-only file is on",
            "without it a restart of redis loses messages",
            "look yourself, or permit INFO",
        ),
    }
}

const APPENDONLY: &str = "set `appendonly yes`: redis-cli CONFIG SET appendonly yes, and in redis.conf \
                          (or `require_persistence = false` here, if losing them is acceptable)";

fn fsync(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "appendfsync";
    if facts.aof != Some(true) {
        return None;
    }
    let always = "redis-cli CONFIG SET appendfsync always, and in redis.conf";
    Some(match facts.appendfsync.as_deref()? {
        "always" => Finding::ok(CHECK, "appendfsync is `always`"),
        "everysec" => Finding::new(
            Level::Remark,
            CHECK,
            "appendfsync is `everysec`",
            "a power failure loses what was acknowledged in about the last second",
            always,
        ),
        other => Finding::new(
            Level::Warning,
            CHECK,
            format!("appendfsync is `{other}`"),
            "a power failure loses what the system had not written",
            always,
        ),
    })
}

fn failures(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.aof_write_fails {
        findings.push(Finding::new(
            Level::Error,
            "aof_write",
            "its last write to the append-only file failed",
            "it refuses every write until one succeeds",
            "make room on its disk, and read its log",
        ));
    }
    if facts.snapshot_fails {
        findings.push(Finding::new(
            Level::Warning,
            "snapshot",
            "its last snapshot failed",
            "unless `stop-writes-on-bgsave-error` is `no` it refuses every write",
            "make room on its disk and in memory, and read its log; or turn snapshots off: \
             redis-cli CONFIG SET save \"\"",
        ));
    }
    if !facts.config_readable {
        findings.push(Finding::new(
            Level::Remark,
            "config",
            "redis does not let us read CONFIG",
            "it is judged by INFO alone",
            "permit CONFIG GET to this user",
        ));
    }
    findings
}

fn memory(facts: &Facts) -> Finding {
    const CHECK: &str = "memory";
    let mib = |bytes: u64| bytes >> 20;
    let used = mib(facts.used_memory);
    let percent = facts
        .used_memory
        .saturating_mul(100)
        .checked_div(facts.maxmemory);
    let limit = mib(facts.maxmemory);
    let finding = match percent {
        None => Finding::new(
            Level::Remark,
            CHECK,
            format!(
                "{used} MiB in use, no maxmemory; the machine has {} MiB",
                mib(facts.machine_memory)
            ),
            "when the machine's memory ends the system kills redis, instead of redis refusing what is new",
            "set `maxmemory` below the machine's memory, with room for the rewrite of the append-only file",
        ),
        Some(percent) if percent < MEMORY_PERCENT_WARNED => {
            Finding::ok(CHECK, format!("{used} of {limit} MiB in use ({percent} %)"))
        }
        Some(percent) => Finding::new(
            Level::Warning,
            CHECK,
            format!("{used} of {limit} MiB in use ({percent} %)"),
            "at `maxmemory` redis refuses new messages; delivering and cancelling go on",
            "raise `maxmemory`, or give redis a larger machine",
        ),
    };
    finding
        .number("used_bytes", facts.used_memory)
        .number("maxmemory_bytes", facts.maxmemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(info: &str, require: bool) -> Finding {
        let findings = judge(&read_info(info), require);
        let worst = findings
            .into_iter()
            .max_by_key(|f| (f.level, f.check != "config"));
        worst.unwrap()
    }

    fn refusal(info: &str, require: bool) -> Option<String> {
        let worst = worst(info, require);
        (worst.level == Level::Error).then(|| StartError::Unfit(Box::new(worst)).to_string())
    }

    const FINE: &str = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n";

    #[test]
    fn refusals_name_the_remedy() {
        assert_eq!(refusal(FINE, true), None);
        let old = refusal("redis_version:6.0.16\r\n", false).unwrap();
        assert!(
            old.contains("redis: version 6.0.16 is too old") && old.contains("6.2"),
            "{old}"
        );
        let evicts = refusal(
            "redis_version:7.2.4\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n",
            false,
        )
        .unwrap();
        assert!(
            evicts.contains("redis: maxmemory-policy is `allkeys-lru`")
                && evicts.contains("noeviction"),
            "{evicts}"
        );
        let forgets = "redis_version:7.2.4\r\nmaxmemory_policy:noeviction\r\naof_enabled:0\r\n";
        assert_eq!(refusal(forgets, false), None);
        let forgets = refusal(forgets, true).unwrap();
        assert!(
            forgets.contains("redis: persistence is off") && forgets.contains("appendonly yes"),
            "{forgets}"
        );
        let replica = refusal(&format!("{FINE}role:slave\r\n"), false).unwrap();
        assert!(replica.contains("master"), "{replica}");
        let disk = refusal(&format!("{FINE}aof_last_write_status:err\r\n"), false).unwrap();
        assert!(disk.contains("disk"), "{disk}");
    }

    #[test]
    fn memory_is_measured_against_maxmemory() {
        let check = |used: u64, max: u64| {
            let info = format!("{FINE}used_memory:{used}\r\nmaxmemory:{max}\r\n");
            let findings = judge(&read_info(&info), false);
            findings
                .iter()
                .find(|f| f.check == "memory")
                .unwrap()
                .clone()
        };
        assert_eq!(check(79 << 20, 100 << 20).level, Level::Ok);
        assert_eq!(check(80 << 20, 100 << 20).level, Level::Warning);
        assert_eq!(check(80 << 20, 0).level, Level::Remark);
    }
}
