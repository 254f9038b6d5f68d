//! The names of keys. Pure.
//!
//! A key begins with its only brace pair, so that one shard is one slot of a Redis Cluster and the
//! shards spread over it: `{<namespace>:<generation>.<shard>}:<noun>`. Global keys carry the bare
//! namespace: `{<namespace>}:topology`.

use crate::shard::ShardId;

/// The keys of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Namespace(String);

impl Namespace {
    pub(super) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// string: "generation shards", set once when the namespace is new.
    pub(super) fn topology(&self) -> String {
        format!("{{{}}}:topology", self.0)
    }

    /// hash: topic that is paused -> since when, Unix ms.
    pub(super) fn paused(&self) -> String {
        format!("{{{}}}:paused", self.0)
    }

    /// pub/sub channel: a topic was paused or resumed.
    pub(super) fn pauses(&self) -> String {
        format!("{{{}}}:pauses", self.0)
    }

    /// zset: instance -> its last heartbeat, Unix ms.
    pub(super) fn members(&self) -> String {
        format!("{{{}}}:members", self.0)
    }

    /// string: 16 random bytes, the key of the ids' checksums, set once.
    pub(super) fn secret(&self) -> String {
        format!("{{{}}}:secret", self.0)
    }

    /// The keys of one shard.
    pub(super) fn shard(&self, shard: ShardId) -> ShardKeys {
        ShardKeys {
            prefix: format!("{{{}:{shard}}}:", self.0),
        }
    }
}

/// The keys of one shard.
#[derive(Debug, Clone)]
pub(super) struct ShardKeys {
    prefix: String,
}

impl ShardKeys {
    fn key(&self, noun: &str) -> String {
        format!("{}{noun}", self.prefix)
    }

    /// zset: pack -> score, `due_ms * 2048 + k`, unique.
    pub(super) fn due(&self) -> String {
        self.key("due")
    }

    /// string: the owner's token, PX `claim_ttl`.
    pub(super) fn claim(&self) -> String {
        self.key("claim")
    }

    /// hash: `handed`, `settled`, `opened` in Unix ms; `below`, `marked`, `tidied`, counts; `closed` if the generation is.
    /// No TTL.
    pub(super) fn horizon(&self) -> String {
        self.key("horizon")
    }

    /// zset: mark of a record that is not to be delivered from its place -> its due, Unix ms; half a
    /// ms less while it has not been counted.
    pub(super) fn cancelled(&self) -> String {
        self.key("cancelled")
    }

    /// hash: score and nonce of a pack, as marks begin -> its tally: what of it is gone.
    pub(super) fn tallies(&self) -> String {
        self.key("tallies")
    }

    /// hash: id -> entry, for clients' ids and for whatever was moved, parked or died.
    pub(super) fn ids(&self) -> String {
        self.key("ids")
    }

    /// zset: id with an entry -> the due time that S must pass before the entry may age, Unix ms.
    pub(super) fn live(&self) -> String {
        self.key("live")
    }

    /// zset: id with an entry whose message is gone -> when the entry goes, Unix ms.
    pub(super) fn gone(&self) -> String {
        self.key("gone")
    }

    /// list: what lay at the scores of packs that are refused. Exists only within one MULTI.
    pub(super) fn refused(&self) -> String {
        self.key("refused")
    }

    /// hash: topic -> messages pending.
    pub(super) fn pending(&self) -> String {
        self.key("pending")
    }

    /// hash: topic -> bytes of the bodies in the packs of `due`, until the packs go.
    pub(super) fn bytes(&self) -> String {
        self.key("bytes")
    }

    /// zset: pack of a paused topic -> score, unique there.
    pub(super) fn held(&self, topic: &str) -> String {
        self.key(&format!("held:{topic}"))
    }

    /// hash: topic -> packs held.
    pub(super) fn holds(&self) -> String {
        self.key("holds")
    }

    /// hash: id -> dead letter.
    pub(super) fn dead(&self) -> String {
        self.key("dead")
    }

    /// pub/sub channel: the due time of an insert that the owner has to know of.
    pub(super) fn wake(&self) -> String {
        self.key("wake")
    }
}
