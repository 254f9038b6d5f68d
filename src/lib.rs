//! nsqdelayd: a persistent, cancellable, sharded delay queue for NSQ.
//!
//! # The path of a message
//! `ingest` (three doors: nsqd's TCP protocol, nsqd's HTTP API, JSON `/v1`) → `store` (Redis) →
//! `dispatch` (decides what is due) → `forward` (hands it to nsqd). Redis is the only thing between
//! ingest and dispatch: neither names the other.
//!
//! # Layout, bottom up: a module names only modules above it
//! - [`message`]: topic, body, delay, due time
//! - [`phase`], [`monotonic`], [`timer`]: the phases of the process; lengths of time; alarms
//! - [`shard`]: shards, generations, who owns what
//! - [`id`]: a message's id and the place it names
//! - [`transport`]: TLS, snappy, deflate
//! - [`nsq`]: the wire, both directions
//! - [`http_client`]: questions to servers beside the path: nsqlookupd, auth servers, nsqd's HTTP API
//! - [`nsqd`]: a conversation with one nsqd
//! - [`finding`]: what an examination finds
//! - [`store`]: Redis: packs, scripts, claims
//! - [`forward`]: connections to nsqd
//! - [`dispatch`]: one state machine per shard
//! - [`ingest`]: the doors and the inbox
//! - [`telemetry`]: logs and metrics
//! - [`config`]: the settings
//! - [`doctor`]: examines Redis and nsqd
//! - [`app`], [`cli`]: the composition
//!
//! `tests/it/tidy.rs` holds the import table against the code.

pub mod app;
pub mod cli;
pub mod config;
pub mod dispatch;
pub mod doctor;
pub mod finding;
pub mod forward;
pub mod http_client;
pub mod id;
pub mod ingest;
pub mod message;
pub mod monotonic;
pub mod nsq;
pub mod nsqd;
pub mod phase;
pub mod shard;
pub mod store;
pub mod telemetry;
pub mod timer;
pub mod transport;
