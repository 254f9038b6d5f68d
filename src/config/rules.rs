//! The range of every setting, and the rules between settings. The only place that says what is
//! sound.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::config::access;
use crate::config::carriage;
use crate::config::reader::Reader;
use crate::config::tls;
use crate::config::units::Written;
use crate::dispatch;
use crate::forward;
use crate::id::PACK_WINDOW_MS_MAX;
use crate::ingest;
use crate::message::{Delay, TopicName};
use crate::nsq::consumption::ChannelName;
use crate::shard::Topology;
use crate::store;
use crate::telemetry;

/// What a claim must outlive beside two publishes: the turns before and after them.
const SETTLE_MARGIN: Duration = Duration::from_secs(1);
/// What nsqd gives the inbox for a message beside two requests to Redis.
const INBOX_MARGIN: Duration = Duration::from_secs(5);
/// Longest delay: fifty times 365 days, so that a due time stays below 2109, the last that a score
/// can express.
const MAX_DELAY_MAX: Duration = Duration::from_hours(50 * 365 * 24);
/// nsqd's own bound of a heartbeat interval below.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
/// nsqd's own bound of a heartbeat interval above.
const HEARTBEAT_MAX: Duration = Duration::from_mins(1);
/// Largest message that makes sense in a pack: Redis's own limit of a value is 512 MiB.
const MSG_SIZE_MAX: usize = 256 << 20;
/// Largest memory budget: what a pointer can address of a machine that runs this.
const BYTES_MAX: usize = 1 << 40;
/// Largest limit on what is pending: what Redis counts.
const COUNT_MAX: u64 = 1 << 53;
/// What MPUB's body holds beside one message: the number of messages and the message's size.
const MPUB_OVERHEAD: usize = 8;

/// Reads every setting and checks them together.
pub(super) fn config(reader: &mut Reader<'_>) -> Config {
    let address_file = reader.text("address_file");
    let store = store(reader);
    let forward = forward(reader);
    // Only the commands use it; here its name is as known as any.
    reader.text("token");
    let config = Config {
        tcp_address: reader.address("tcp_address"),
        http_address: reader.address("http_address"),
        https_address: reader.optional_address("https_address"),
        address_file: Some(PathBuf::from(address_file)).filter(|path| !path.as_os_str().is_empty()),
        drain_timeout: reader.duration("drain_timeout", s(1)..=s(3600)),
        log: log(reader),
        dispatch: dispatch(reader, &forward),
        passthrough: reader.switch("passthrough"),
        inbox: inbox(reader, &forward, store.request_timeout),
        store,
        forward,
        ingest: ingest(reader),
    };
    if reader.sound() {
        times_agree(&config, reader);
        sizes_agree(&config, reader);
    }
    config
}

fn log(reader: &mut Reader<'_>) -> telemetry::LogConfig {
    telemetry::LogConfig {
        level: reader.parsed(
            "log_level",
            "must be error, warn, info, debug, trace, off, or directives such as info,nsqdelayd::store=debug",
            |text| telemetry::level_is_valid(text).then(|| text.to_owned()),
        ),
        format: reader.parsed("log_format", "must be text or json", telemetry::Format::parse),
    }
}

fn store(reader: &mut Reader<'_>) -> store::Config {
    store::Config {
        redis: reader.parsed(
            "redis",
            "must be redis://[user:password@]host:port[/db], such as redis://127.0.0.1:6379",
            redis_url,
        ),
        namespace: reader.parsed("namespace", "must be 1 to 32 of [a-z0-9_-]", namespace),
        shards: reader.number("shards", 1..=Topology::SHARDS_MAX),
        pack_window: reader.duration("pack_window", ms(0)..=ms(PACK_WINDOW_MS_MAX)),
        pack_bytes: reader.number("pack_bytes", 256..=MSG_SIZE_MAX),
        pack_compression: reader.parsed(
            "pack_compression",
            "must be none or zstd",
            store::Compression::parse,
        ),
        pack_linger: reader.duration("pack_linger", ms(0)..=ms(100)),
        insert_bytes_max: reader.number("insert_bytes_max", 1024..=MSG_SIZE_MAX),
        queue_bytes_max: reader.number("queue_bytes_max", 1024..=BYTES_MAX),
        request_timeout: reader.duration("request_timeout", ms(10)..=s(60)),
        claim_ttl: reader.duration("claim_ttl", ms(500)..=s(300)),
        instance_ttl: reader.duration("instance_ttl", ms(500)..=s(300)),
        dedupe_window: reader.duration("dedupe_window", ms(0)..=s(30 * 24 * 3600)),
        dead_letters_max: reader.number("dead_letters_max", 1..=100_000_000),
        require_persistence: reader.switch("require_persistence"),
    }
}

fn dispatch(reader: &mut Reader<'_>, forward: &forward::Config) -> dispatch::Config {
    let nsqd_rate_max = reader.number("nsqd_rate_max", 0..=1_000_000_000);
    let all_are_asked = forward.nsqd_depth_max > 0
        && !forward.nsqd_http_addresses.is_empty()
        && forward.lookupd_http_addresses.is_empty();
    dispatch::Config {
        pollers: reader.number("pollers", 1..=1024),
        claim_ttl: reader.duration("claim_ttl", ms(500)..=s(300)),
        heartbeat: reader.duration("instance_heartbeat", ms(50)..=s(100)),
        read_ahead: reader.duration("read_ahead", ms(0)..=s(10)),
        sweep: reader.duration("sweep", ms(100)..=s(3600)),
        sending_bytes_max: reader.number("unanswered_bytes_max", 1024..=BYTES_MAX),
        forward_rate_max: reader.number("forward_rate_max", 0..=1_000_000_000),
        nsqd_rate_max: if all_are_asked { 0 } else { nsqd_rate_max },
        expire_if_later_than: reader
            .duration("expire_if_later_than", ms(0)..=s(10 * 365 * 24 * 3600)),
        clock_step_hold: reader.duration("clock_step_hold", ms(0)..=s(3600)),
        open_bytes_max: reader.number("open_bytes_max", 65_536..=BYTES_MAX),
        unsettled_max: reader.number("unsettled_max", 1..=10_000_000),
        batch_messages_max: reader.number("batch_messages_max", 1..=100_000),
        park_after: reader.duration("park_after", ms(10)..=s(3600)),
        retry_min: reader.duration("retry_min", ms(1)..=s(3600)),
        retry_max: reader.duration("retry_max", ms(1)..=s(24 * 3600)),
    }
}

fn forward(reader: &mut Reader<'_>) -> forward::Config {
    let nsqd_tcp_addresses = reader.addresses("nsqd_tcp_address");
    let nsqd_http_addresses = reader.addresses("nsqd_http_address");
    let is_each = nsqd_http_addresses.len() == nsqd_tcp_addresses.len();
    if reader.sound() && !nsqd_http_addresses.is_empty() && !is_each {
        reader.fault(
            "nsqd_http_address",
            "must be as many as nsqd_tcp_address, in its order; those that an nsqlookupd knows have none",
        );
    }
    let lookupd_http_addresses = reader.addresses("lookupd_http_address");
    if reader.sound() && nsqd_tcp_addresses.is_empty() && lookupd_http_addresses.is_empty() {
        reader.fault(
            "nsqd_tcp_address",
            "must be one or more host:port, such as 127.0.0.1:4150; repeat the flag for several, or name an \
             nsqlookupd with lookupd_http_address",
        );
    }
    forward::Config {
        nsqd_tcp_addresses,
        nsqd_http_addresses,
        nsqd_depth_max: reader.number("nsqd_depth_max", 0..=1_000_000_000),
        lookupd_http_addresses,
        lookupd_poll_interval: reader.duration("lookupd_poll_interval", ms(100)..=s(3600)),
        connections_per_nsqd: reader.number("connections_per_nsqd", 1..=64),
        dial_timeout: reader.duration("dial_timeout", ms(10)..=s(60)),
        forward_timeout: reader.duration("forward_timeout", ms(10)..=s(120)),
        heartbeat_interval: reader
            .duration("nsqd_heartbeat_interval", HEARTBEAT_MIN..=HEARTBEAT_MAX),
        unanswered_bytes_max: reader.number("unanswered_bytes_max", 1024..=BYTES_MAX),
        mpub_messages_max: reader.number("mpub_messages_max", 1..=100_000),
        mpub_bytes_max: reader.number("mpub_bytes_max", 1024..=MSG_SIZE_MAX),
        backoff_min: reader.duration("backoff_min", ms(1)..=s(3600)),
        backoff_max: reader.duration("backoff_max", ms(1)..=s(3600)),
        carriage: carriage::carriage(reader),
    }
}

fn ingest(reader: &mut Reader<'_>) -> ingest::Config {
    let max_delay = reader.duration("max_delay", ms(1)..=MAX_DELAY_MAX);
    let heartbeat_interval = reader.duration("heartbeat_interval", HEARTBEAT_MIN..=HEARTBEAT_MAX);
    let max_heartbeat_interval =
        reader.duration("max_heartbeat_interval", HEARTBEAT_MIN..=HEARTBEAT_MAX);
    ingest::Config {
        max_msg_size: reader.number("max_msg_size", 1..=MSG_SIZE_MAX),
        max_body_size: reader.number("max_body_size", 1..=MSG_SIZE_MAX),
        max_delay: Delay(u64::try_from(max_delay.as_millis()).unwrap_or(0)),
        heartbeat_interval: if reader.is_default("heartbeat_interval") {
            heartbeat_interval.min(max_heartbeat_interval)
        } else {
            heartbeat_interval
        },
        max_heartbeat_interval,
        max_connections: reader.number("max_connections", 1..=1_000_000),
        handshake_timeout: reader.duration("handshake_timeout", ms(10)..=s(300)),
        connection_in_flight_bytes_max: reader
            .number("connection_in_flight_bytes_max", 1024..=BYTES_MAX),
        transports: tls::transports(reader),
        access: access::access(reader),
        hosts: access::hosts(reader),
        in_flight_bytes_max: reader.number("in_flight_bytes_max", 1024..=BYTES_MAX),
        limits: ingest::Limits {
            pending_messages_max: reader.number("pending_messages_max", 0..=COUNT_MAX),
            pending_bytes_max: reader.number("pending_bytes_max", 0..=COUNT_MAX),
            topic_pending_messages_max: reader.number("topic_pending_messages_max", 0..=COUNT_MAX),
            topic_pending_bytes_max: reader.number("topic_pending_bytes_max", 0..=COUNT_MAX),
        },
    }
}

/// The inbox, if a topic is named. What is not its own it has in common with the connections to nsqd.
fn inbox(
    reader: &mut Reader<'_>,
    forward: &forward::Config,
    request_timeout: Duration,
) -> Option<ingest::inbox::Config> {
    let topic = reader.parsed(
        "inbox_topic",
        "must be 1 to 56 of [.a-zA-Z0-9_-], optionally followed by #ephemeral, so that .invalid can be appended",
        |name| {
            if name.is_empty() {
                return Some(None);
            }
            let topic = TopicName::parse(name.as_bytes()).ok()?;
            let beside = ingest::inbox::invalid_topic(&topic).ok()?;
            Some(Some((topic, beside)))
        },
    );
    let channel = reader.parsed(
        "inbox_channel",
        "must be 1 to 64 of [.a-zA-Z0-9_-], optionally ending in #ephemeral",
        |name| ChannelName::parse(name.as_bytes()).ok().map(Some),
    );
    let mut nsqd_tcp_addresses = reader.addresses("inbox_nsqd_tcp_address");
    let mut lookupd_http_addresses = reader.addresses("inbox_lookupd_http_address");
    if nsqd_tcp_addresses.is_empty() && lookupd_http_addresses.is_empty() {
        nsqd_tcp_addresses.clone_from(&forward.nsqd_tcp_addresses);
        lookupd_http_addresses.clone_from(&forward.lookupd_http_addresses);
    }
    let in_flight_max = reader.number("inbox_max_in_flight", 1..=100_000);
    let (topic, invalid_topic) = topic?;
    Some(ingest::inbox::Config {
        topic,
        channel: channel?,
        invalid_topic,
        nsqd_tcp_addresses,
        lookupd_http_addresses,
        in_flight_max,
        msg_timeout: request_timeout * 2 + INBOX_MARGIN,
        dial_timeout: forward.dial_timeout,
        heartbeat_interval: forward.heartbeat_interval,
        carriage: forward.carriage.clone(),
        backoff_min: forward.backoff_min,
        backoff_max: forward.backoff_max,
    })
}

/// Durations that must agree.
fn times_agree(config: &Config, reader: &mut Reader<'_>) {
    let claim_min = config.forward.forward_timeout * 2 + SETTLE_MARGIN;
    if config.store.claim_ttl < claim_min {
        reader.fault(
            "claim_ttl",
            format!(
                "must be at least {}, twice forward_timeout ({}) and {}; raise claim_ttl or lower forward_timeout",
                Written(claim_min),
                Written(config.forward.forward_timeout),
                Written(SETTLE_MARGIN),
            ),
        );
    }
    if config.dispatch.heartbeat * 2 >= config.store.instance_ttl {
        reader.fault(
            "instance_ttl",
            format!(
                "must be over twice instance_heartbeat ({}); raise instance_ttl or lower instance_heartbeat",
                Written(config.dispatch.heartbeat),
            ),
        );
    }
    let ordered: [(Duration, Duration, &'static str, &'static str); 3] = [
        (
            config.dispatch.retry_min,
            config.dispatch.retry_max,
            "retry_min",
            "retry_max",
        ),
        (
            config.forward.backoff_min,
            config.forward.backoff_max,
            "backoff_min",
            "backoff_max",
        ),
        (
            config.ingest.heartbeat_interval,
            config.ingest.max_heartbeat_interval,
            "heartbeat_interval",
            "max_heartbeat_interval",
        ),
    ];
    for (small, large, name, other) in ordered {
        if small > large {
            let bound = Written(large);
            reader.fault(
                name,
                format!("must be at most {other} ({bound}); lower {name} or raise {other}"),
            );
        }
    }
}

/// Sizes that must agree.
fn sizes_agree(config: &Config, reader: &mut Reader<'_>) {
    let message = config.ingest.max_msg_size + MPUB_OVERHEAD;
    let body = config.ingest.max_body_size;
    let at_least: [(usize, &'static str, usize, &'static str); 7] = [
        (
            body,
            "max_body_size",
            config.ingest.max_msg_size,
            "max_msg_size",
        ),
        (
            config.ingest.connection_in_flight_bytes_max,
            "connection_in_flight_bytes_max",
            body,
            "max_body_size",
        ),
        (
            config.ingest.in_flight_bytes_max,
            "in_flight_bytes_max",
            body,
            "max_body_size",
        ),
        (
            config.store.queue_bytes_max,
            "queue_bytes_max",
            body,
            "max_body_size",
        ),
        (
            config.store.insert_bytes_max,
            "insert_bytes_max",
            config.store.pack_bytes,
            "pack_bytes",
        ),
        (
            config.dispatch.open_bytes_max,
            "open_bytes_max",
            message,
            "max_msg_size and 8 bytes",
        ),
        (
            config.forward.unanswered_bytes_max,
            "unanswered_bytes_max",
            message.max(config.forward.mpub_bytes_max),
            "mpub_bytes_max and than max_msg_size and 8 bytes",
        ),
    ];
    for (value, name, bound, other) in at_least {
        if value < bound {
            reader.fault(
                name,
                format!("must not be less than {other} ({bound}); raise {name} or lower the other"),
            );
        }
    }
}

fn namespace(text: &str) -> Option<String> {
    const LEN: RangeInclusive<usize> = 1..=32;
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    (LEN.contains(&text.len()) && text.bytes().all(legal)).then(|| text.to_owned())
}

/// Only the shape: the store's crate reads the rest, and says what it does not like.
fn redis_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("redis://")?;
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let (address, db) = host.split_once('/').unwrap_or((host, ""));
    let db_is_number = db.is_empty() || db.parse::<u16>().is_ok();
    let port_is_number = match address.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse::<u16>().is_ok(),
        _ => true,
    };
    let sound = !address.is_empty() && !address.starts_with(':') && db_is_number && port_is_number;
    sound.then(|| text.to_owned())
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
