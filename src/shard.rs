//! Shards, generations, and which instance owns which shard. Pure.

use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::message::ClientId;

/// A numbering of the shards. Changing the number of shards starts a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u16);

/// One shard of one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// The numbering that `index` belongs to.
    pub generation: Generation,
    /// 0 to N - 1.
    pub index: u16,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation.0, self.index)
    }
}

/// One running instance, named anew at each start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub String);

/// The current generation and its number of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The generation that takes inserts.
    pub generation: Generation,
    /// N, at least 1.
    pub shards: u16,
}

impl Topology {
    /// Most shards of a generation: `opened`, claims and sweeps are per shard.
    pub const SHARDS_MAX: u16 = 16_384;

    /// The shard of a client's id: `xxh3_64(id) % N`.
    pub fn shard_of(self, id: &ClientId) -> ShardId {
        let hash = xxh3_64(id.as_str().as_bytes()) % u64::from(self.shards.max(1));
        self.shard(u16::try_from(hash).unwrap_or(0))
    }

    /// The shard with this index.
    pub fn shard(self, index: u16) -> ShardId {
        ShardId {
            generation: self.generation,
            index,
        }
    }

    /// All shards of the generation.
    pub fn all(self) -> impl Iterator<Item = ShardId> + use<> {
        let generation = self.generation;
        (0..self.shards).map(move |index| ShardId { generation, index })
    }
}

/// The live instance that owns `shard`: the one with the highest hash (rendezvous hashing), so that
/// a change of members moves only the shards of those that came or went.
pub fn owner_of(shard: ShardId, live: &[InstanceId]) -> Option<&InstanceId> {
    let seed = (u64::from(shard.generation.0) << 16) | u64::from(shard.index);
    live.iter()
        .max_by_key(|i| (xxh3_64_with_seed(i.0.as_bytes(), seed), *i))
}
