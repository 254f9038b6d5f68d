//! What the store is told by the configuration; `config/default.toml` comments each key.

use std::time::Duration;

use crate::store::compression::Compression;

/// Settings of the store.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of Redis, `redis://[user:password@]host:port[/db]`.
    pub redis: String,
    /// First part of every key.
    pub namespace: String,
    /// N, used when the namespace is new; afterwards the stored topology counts.
    pub shards: u16,
    /// Longest span of due times within one pack.
    pub pack_window: Duration,
    /// Size up to which a pack is filled, in bytes.
    pub pack_bytes: usize,
    /// How packs are stored.
    pub pack_compression: Compression,
    /// Longest wait of an insert for more messages, when they come densely; zero: none.
    pub pack_linger: Duration,
    /// Most bytes that one insert carries.
    pub insert_bytes_max: usize,
    /// Most bytes that wait for an insert; more is refused at once.
    pub queue_bytes_max: usize,
    /// How long Redis may take to answer before the outcome counts as unknown.
    pub request_timeout: Duration,
    /// Life of a claim without renewal.
    pub claim_ttl: Duration,
    /// How long a member that is silent still counts as live.
    pub instance_ttl: Duration,
    /// How long an id is remembered after its message is gone.
    pub dedupe_window: Duration,
    /// Most dead letters of one shard.
    pub dead_letters_max: u64,
    /// Whether to refuse to start when Redis has no persistence.
    pub require_persistence: bool,
}
