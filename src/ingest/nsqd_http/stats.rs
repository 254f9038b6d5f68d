//! `/stats` as nsqd prints it, in JSON and in text: a topic's depth is what is pending in Redis, its
//! bytes are those of the packs there, the producers are this instance's TCP clients. Channels there are none.

use std::fmt::Write as _;

use axum::response::Response;
use serde::Serialize;

use crate::ingest::access::may_know;
use crate::ingest::clients::ClientStats;
use crate::ingest::http::{Query, Shared, Target};
use crate::message::TopicName;
use crate::nsq::NSQD_VERSION;
use crate::transport::Compression;

use super::{error, health, json, parameters, text};

/// What nsqd prints of a producer: only a subscription leaves the first state.
const STATE: i32 = 0;

#[derive(Debug, Serialize)]
struct Stats<'a> {
    version: &'a str,
    health: String,
    start_time: u64,
    topics: Option<Vec<Topic>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    producers: Option<Vec<Producer>>,
}

#[derive(Debug, Serialize)]
struct Topic {
    #[serde(rename = "topic_name")]
    name: String,
    channels: [(); 0],
    depth: u64,
    backend_depth: u64,
    message_count: u64,
    message_bytes: u64,
    paused: bool,
    e2e_processing_latency: Latency,
}

/// Go's empty quantile stream.
#[derive(Debug, Serialize)]
struct Latency {
    count: u64,
    percentiles: Option<()>,
}

/// Of Go's heap, which we have not; the fields are there for programs that expect them.
#[derive(Debug, Default, Serialize)]
struct Memory {
    heap_objects: u64,
    heap_idle_bytes: u64,
    heap_in_use_bytes: u64,
    heap_released_bytes: u64,
    gc_pause_usec_100: u64,
    gc_pause_usec_99: u64,
    gc_pause_usec_95: u64,
    next_gc_bytes: u64,
    gc_total_runs: u64,
}

#[derive(Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "as nsqd prints it")]
struct Producer {
    client_id: String,
    hostname: String,
    version: &'static str,
    remote_address: String,
    state: i32,
    ready_count: i64,
    in_flight_count: i64,
    message_count: u64,
    finish_count: u64,
    requeue_count: u64,
    connect_ts: u64,
    sample_rate: i32,
    deflate: bool,
    snappy: bool,
    user_agent: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    authed: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    auth_identity: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    auth_identity_url: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub_counts: Vec<PubCount>,
    tls: bool,
    tls_cipher_suite: String,
    tls_version: &'static str,
    tls_negotiated_protocol: &'static str,
    tls_negotiated_protocol_is_mutual: bool,
}

#[derive(Debug, Serialize)]
struct PubCount {
    topic: String,
    count: u64,
}

/// `GET /stats?format=&topic=&channel=&include_clients=&include_mem=`
pub(super) async fn stats(shared: &Shared, target: &Target) -> Response {
    let query = match parameters(target) {
        Ok(query) => query,
        Err((status, message)) => return error(status, message),
    };
    let wanted = query.first("topic").unwrap_or_default();
    let health = match health(shared).await {
        Ok(ok) => ok.to_owned(),
        Err(sick) => sick,
    };
    let mut clients = shared.state.clients.snapshot();
    for client in &mut clients {
        client.pub_counts.retain(|topic, _| may_know(topic));
    }
    // A client is a producer once it has published, as in nsqd.
    clients.retain(|client| !client.pub_counts.is_empty());
    let channel = !query.first("channel").unwrap_or_default().is_empty();
    let topics = topics(shared, &clients, wanted, channel).await;
    // `None` is nsqd's null, if there is none.
    let mut producers = None;
    if topics.is_some() && flag(&query, "include_clients") && !clients.is_empty() {
        let of_wanted = |client| producer(client, wanted);
        producers = Some(clients.into_iter().map(of_wanted).collect());
    }
    let facts = &shared.state.start;
    let stats = Stats {
        version: NSQD_VERSION,
        health,
        start_time: facts.start_time_unix_s,
        topics,
        memory: flag(&query, "include_mem").then(Memory::default),
        producers,
    };
    match query.first("format") {
        Some(b"json") => json(&stats),
        _ => text(print(&stats)),
    }
}

/// As nsqd's boolean parameters: true unless it says otherwise.
fn flag(query: &Query, name: &str) -> bool {
    !matches!(query.first(name), Some(b"false" | b"0"))
}

/// By name: what is pending, and what connected clients have published to. `None`, as nsqd's null: one topic
/// was asked for, and there is none. While Redis is away nothing is known to be pending; `health` says so.
async fn topics(
    shared: &Shared,
    clients: &[ClientStats],
    wanted: &[u8],
    channel: bool,
) -> Option<Vec<Topic>> {
    let mut pending = shared
        .state
        .intake
        .store
        .pending()
        .await
        .unwrap_or_default();
    for topic in clients.iter().flat_map(|client| client.pub_counts.keys()) {
        pending.by_topic.entry(topic.clone()).or_default();
    }
    let mut found: Vec<(TopicName, u64)> = pending
        .by_topic
        .into_iter()
        .filter(|(name, _)| wanted.is_empty() || name.as_str().as_bytes() == wanted)
        .collect();
    if found.is_empty() && !wanted.is_empty() {
        return None;
    }
    if channel {
        // nsqd leaves a topic out that has no such channel, and ours have none.
        return Some(Vec::new());
    }
    found.sort();
    let topic = |(name, depth): (TopicName, u64)| Topic {
        channels: [],
        depth,
        backend_depth: depth,
        message_count: depth,
        message_bytes: pending.bytes_by_topic.get(&name).copied().unwrap_or(0),
        name: name.as_str().to_owned(),
        paused: false,
        e2e_processing_latency: Latency {
            count: 0,
            percentiles: None,
        },
    };
    Some(found.into_iter().map(topic).collect())
}

fn producer(client: ClientStats, topic: &[u8]) -> Producer {
    let counts = client.pub_counts.into_iter();
    let counts = counts.filter(|(name, _)| topic.is_empty() || name.as_str().as_bytes() == topic);
    let authed = client.identity.is_some();
    let (auth_identity, auth_identity_url) = client.identity.unwrap_or_default();
    let in_tls = client.tls.is_some();
    let tls = client.tls.unwrap_or_default();
    Producer {
        client_id: client.client_id,
        hostname: client.hostname,
        version: "V2",
        remote_address: client.remote_address.to_string(),
        state: STATE,
        ready_count: 0,
        in_flight_count: 0,
        // What nsqd has sent to a client, a producer gets none.
        message_count: 0,
        finish_count: 0,
        requeue_count: 0,
        connect_ts: client.connect_ts,
        sample_rate: client.sample_rate,
        deflate: matches!(client.compression, Some(Compression::Deflate(_))),
        snappy: client.compression == Some(Compression::Snappy),
        user_agent: client.user_agent,
        authed,
        auth_identity,
        auth_identity_url,
        pub_counts: counts
            .map(|(topic, count)| PubCount {
                topic: topic.as_str().to_owned(),
                count,
            })
            .collect(),
        tls: in_tls,
        tls_cipher_suite: tls.cipher_suite,
        tls_version: tls.version,
        tls_negotiated_protocol: "",
        // What Go says of every connection in TLS.
        tls_negotiated_protocol_is_mutual: in_tls,
    }
}

/// The text form.
fn print(stats: &Stats<'_>) -> String {
    let own = env!("CARGO_PKG_VERSION");
    let mut out = format!("nsqdelayd v{own} (nsqd API {})\n", stats.version);
    let start = i64::try_from(stats.start_time).unwrap_or_default();
    let start = jiff::Timestamp::from_second(start).unwrap_or_default();
    // Writing to a `String` cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| out.write_fmt(text).unwrap_or_default();
    line(format_args!("start_time {start}\n"));
    line(format_args!("\nHealth: {}\n", stats.health));
    if let Some(memory) = &stats.memory {
        line(format_args!("\nMemory:\n"));
        for (name, value) in [
            ("heap_objects", memory.heap_objects),
            ("heap_idle_bytes", memory.heap_idle_bytes),
            ("heap_in_use_bytes", memory.heap_in_use_bytes),
            ("heap_released_bytes", memory.heap_released_bytes),
            ("gc_pause_usec_100", memory.gc_pause_usec_100),
            ("gc_pause_usec_99", memory.gc_pause_usec_99),
            ("gc_pause_usec_95", memory.gc_pause_usec_95),
            ("next_gc_bytes", memory.next_gc_bytes),
            ("gc_total_runs", memory.gc_total_runs),
        ] {
            line(format_args!("   {name:<25}\t{value}\n"));
        }
    }
    match stats.topics.as_deref() {
        None | Some([]) => line(format_args!("\nTopics: None\n")),
        Some(topics) => {
            line(format_args!("\nTopics:"));
            for topic in topics {
                line(format_args!(
                    "\n   [{:<15}] depth: {:<5} be-depth: {:<5} msgs: {:<8} e2e%: \n",
                    topic.name, topic.depth, topic.backend_depth, topic.message_count,
                ));
            }
        }
    }
    match stats.producers.as_deref() {
        None | Some([]) => line(format_args!("\nProducers: None\n")),
        Some(producers) => {
            line(format_args!("\nProducers:\n"));
            for producer in producers {
                line(format_args!("   {}\n", describe(producer)));
            }
        }
    }
    out
}

fn describe(producer: &Producer) -> String {
    let (_, port) = producer.remote_address.rsplit_once(':').unwrap_or_default();
    let id = format!("{}:{port} {}", producer.hostname, producer.user_agent);
    let total: u64 = producer.pub_counts.iter().map(|c| c.count).sum();
    let counts = producer.pub_counts.iter();
    let counts: Vec<_> = counts.map(|c| format!("{}={}", c.topic, c.count)).collect();
    let topics = counts.join(",");
    format!("[V2 {id:<21}] msgs: {total:<8} topics: {topics}")
}
