//! Who is connected over TCP, for `/stats`. Sessions write, HTTP reads.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::message::TopicName;
use crate::transport::Compression;
use crate::transport::tls::Peer;

/// What `/stats` says of one connected producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientStats {
    /// From IDENTIFY; the host part of the address before it.
    pub client_id: String,
    /// From IDENTIFY.
    pub hostname: String,
    /// From IDENTIFY.
    pub user_agent: String,
    /// The peer.
    pub remote_address: SocketAddr,
    /// When it connected, in Unix seconds.
    pub connect_ts: u64,
    /// Messages that it has published.
    pub message_count: u64,
    /// The same by topic.
    pub pub_counts: BTreeMap<TopicName, u64>,
    /// From IDENTIFY.
    pub sample_rate: i32,
    /// If it is in TLS, in which.
    pub tls: Option<Peer>,
    /// The compression that it uses.
    pub compression: Option<Compression>,
    /// Who it is, and where more is said of it, since its AUTH.
    pub identity: Option<(String, String)>,
}

impl ClientStats {
    /// Most topics that are counted for one client: a client that publishes to ever new topics must
    /// not fill our memory.
    const PUB_COUNTS_MAX: usize = 1000;

    /// Counts what the client has published.
    pub fn add_published(&mut self, topic: &TopicName, messages: u64) {
        self.message_count += messages;
        if let Some(count) = self.pub_counts.get_mut(topic) {
            *count += messages;
        } else if self.pub_counts.len() < Self::PUB_COUNTS_MAX {
            self.pub_counts.insert(topic.clone(), messages);
        }
    }
}

/// The connected producers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clients(Arc<Mutex<HashMap<u64, ClientStats>>>);

impl Clients {
    /// Adds or replaces the connection with this number.
    pub fn put(&self, connection: u64, stats: ClientStats) {
        self.lock().insert(connection, stats);
    }

    /// Changes the connection with this number, if it is there.
    pub fn update(&self, connection: u64, change: impl FnOnce(&mut ClientStats)) {
        if let Some(stats) = self.lock().get_mut(&connection) {
            change(stats);
        }
    }

    /// Forgets a closed connection.
    pub fn remove(&self, connection: u64) {
        self.lock().remove(&connection);
    }

    /// All connections, oldest first.
    pub fn snapshot(&self) -> Vec<ClientStats> {
        let mut all: Vec<_> = self.lock().iter().map(|(n, s)| (*n, s.clone())).collect();
        all.sort_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, stats)| stats).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, ClientStats>> {
        // A panic while counting leaves a count, not a broken invariant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
