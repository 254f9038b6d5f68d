//! A Redis as `doctor` looks at it: what the start checks, and what only time shows. Writes nothing.

use std::time::Duration;

use jiff::Timestamp;
use redis::Client;
use redis::aio::MultiplexedConnection;
use tokio::time::Instant;

use crate::finding::{Finding, Level};
use crate::store::checks;
use crate::store::keys::Namespace;
use crate::store::settings::Config;
use crate::store::start::{first_connection, masked};

/// Round trips that are measured.
const ROUND_TRIPS: usize = 50;
/// A round trip that takes longer delays each message by several times as much.
const ROUND_TRIP_WARNED: Duration = Duration::from_millis(10);
/// Clocks that differ by less are taken for equal.
const OFFSET_MS_REMARKED: i64 = 1_000;

/// Looks at the Redis of `config`; answers its address without a password, and what was found.
pub async fn examine(config: &Config) -> (String, Vec<Finding>) {
    let url = masked(&config.redis);
    let mut connection = match connect(config, &url).await {
        Ok(connection) => connection,
        Err(finding) => return (url, vec![*finding]),
    };
    let mut findings = vec![Finding::ok("reachable", "it answers")];
    match checks::ask(&mut connection).await {
        Ok(facts) => findings.extend(checks::judge(&facts, config.require_persistence)),
        Err(error) => findings.push(away(&error.to_string())),
    }
    findings.push(round_trip(&mut connection).await);
    findings.push(clock(&mut connection).await);
    findings.push(namespace(&mut connection, config).await);
    (url, findings)
}

async fn connect(config: &Config, url: &str) -> Result<MultiplexedConnection, Box<Finding>> {
    let client = Client::open(config.redis.as_str()).map_err(|error| {
        Box::new(Finding::new(
            Level::Error,
            "reachable",
            format!("{url} is not an address: {error}"),
            "nothing can be stored",
            "write redis://[user:password@]host:port[/db]",
        ))
    })?;
    let connection = first_connection(&client, url, config.request_timeout).await;
    connection.map_err(|error| Box::new(away(&error.to_string())))
}

fn away(why: &str) -> Finding {
    Finding::new(
        Level::Error,
        "reachable",
        why.trim_start_matches("redis: ")
            .split("; start it")
            .next()
            .unwrap_or_default(),
        "without Redis nothing is accepted and nothing is delivered",
        "start it, or set `redis` to where it is, with its password if it wants one",
    )
}

async fn round_trip(connection: &mut MultiplexedConnection) -> Finding {
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let sent = Instant::now();
        let pong: redis::RedisResult<()> = redis::cmd("PING").query_async(connection).await;
        if let Err(error) = pong {
            return away(&error.to_string());
        }
        times.push(sent.elapsed());
    }
    times.sort();
    let median = times.get(ROUND_TRIPS / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let what = format!(
        "a round trip takes {:.2} ms (median of {ROUND_TRIPS}), {:.2} ms at most",
        ms(median),
        ms(longest)
    );
    let finding = if median < ROUND_TRIP_WARNED {
        Finding::ok("round_trip", what)
    } else {
        Finding::new(
            Level::Warning,
            "round_trip",
            what,
            "every publish waits for one, every delivery for two",
            "run nsqdelayd near its Redis; look at redis-cli --latency and SLOWLOG GET",
        )
    };
    finding
        .number("median_ms", ms(median))
        .number("max_ms", ms(longest))
}

async fn clock(connection: &mut MultiplexedConnection) -> Finding {
    let sent = Timestamp::now().as_millisecond();
    let time: redis::RedisResult<(i64, i64)> = redis::cmd("TIME").query_async(connection).await;
    let received = Timestamp::now().as_millisecond();
    let (seconds, micros) = match time {
        Ok(time) => time,
        Err(error) => {
            return Finding::new(
                Level::Error,
                "clock",
                format!("TIME cannot be read: {error}"),
                "only Redis's clock decides what is due",
                "permit TIME to this user",
            );
        }
    };
    let offset = seconds * 1_000 + micros / 1_000 - i64::midpoint(sent, received);
    let what = format!("its clock is {offset} ms ahead of this machine's");
    let finding = if offset.abs() < OFFSET_MS_REMARKED {
        Finding::ok("clock", what)
    } else {
        Finding::new(
            Level::Remark,
            "clock",
            what,
            "only Redis's clock decides what is due: a moment in time (deliver_at) means that clock's",
            "set both clocks by NTP",
        )
    };
    finding.number("offset_ms", offset)
}

/// What the namespace holds, without making one.
async fn namespace(connection: &mut MultiplexedConnection, config: &Config) -> Finding {
    const CHECK: &str = "namespace";
    let key = Namespace::new(&config.namespace).topology();
    let stored: redis::RedisResult<Option<String>> =
        redis::cmd("GET").arg(&key).query_async(connection).await;
    let name = &config.namespace;
    let stored = match stored {
        Ok(None) => {
            return Finding::ok(
                CHECK,
                format!(
                    "namespace `{name}` is not there yet; the first start makes it with {} shards",
                    config.shards
                ),
            );
        }
        Ok(Some(stored)) => stored,
        Err(error) => format!("{error}"),
    };
    let shards = stored
        .split_once(' ')
        .and_then(|(_, n)| n.parse::<u16>().ok());
    match shards {
        Some(shards) if shards == config.shards => {
            Finding::ok(CHECK, format!("namespace `{name}` has {shards} shards"))
        }
        Some(shards) => Finding::new(
            Level::Remark,
            CHECK,
            format!(
                "namespace `{name}` has {shards} shards, `shards` says {}",
                config.shards
            ),
            "the stored number counts",
            format!("set `shards = {shards}`"),
        ),
        None => Finding::new(
            Level::Error,
            CHECK,
            format!("key `{key}` holds what nsqdelayd did not write: {stored:?}"),
            "nsqdelayd does not start with it",
            "choose another `namespace`",
        ),
    }
}
