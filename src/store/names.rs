//! What all instances of a namespace must agree on: its topology and the key of its ids. Whoever comes
//! first sets them, all others read them; a server that has lost them gets them back.

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError};

use crate::id::IdKey;
use crate::shard::{Generation, Topology};
use crate::store::checks::StartError;
use crate::store::keys::Namespace;

/// The two values as they lie in Redis.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Names {
    keys: Namespace,
    topology: String,
    secret: Vec<u8>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Names({}, secret not shown)", self.topology)
    }
}

impl Names {
    /// Reads them, or sets them for a new namespace of so many shards.
    pub(super) async fn settle(
        connection: &mut MultiplexedConnection,
        keys: &Namespace,
        shards: u16,
    ) -> Result<Self, RedisError> {
        let secret: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
        let new = Self {
            keys: keys.clone(),
            topology: format!("1 {shards}"),
            secret: secret.to_vec(),
        };
        new.read_or_write(connection).await
    }

    /// Whether the server at the end of a new connection has the same. One that has lost its data gets
    /// them again: ids given out before stay authentic. One with others is another namespace's, and
    /// nothing may be written there that only we can read.
    pub(super) async fn confirm(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), RedisError> {
        if self.read_or_write(connection).await? == *self {
            return Ok(());
        }
        Err(RedisError::from((
            ErrorKind::Client,
            "the namespace was set up anew while we were away; restart nsqdelayd to join it",
        )))
    }

    async fn read_or_write(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Self, RedisError> {
        // Read first: a server at `maxmemory` refuses a SET, also one that would change nothing.
        if let Some(found) = self.read(connection).await? {
            return Ok(found);
        }
        let mut set = redis::pipe();
        for (key, value) in [
            (self.keys.topology(), self.topology.as_bytes()),
            (self.keys.secret(), &self.secret),
        ] {
            set.cmd("SET").arg(key).arg(value).arg("NX").ignore();
        }
        set.query_async::<()>(connection).await?;
        let found = self.read(connection).await?;
        found.ok_or_else(|| {
            RedisError::from((ErrorKind::Client, "what was just written is not there"))
        })
    }

    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Self>, RedisError> {
        let mut get = redis::cmd("MGET");
        get.arg(self.keys.topology()).arg(self.keys.secret());
        let found: (Option<String>, Option<Vec<u8>>) = get.query_async(connection).await?;
        let (Some(topology), Some(secret)) = found else {
            return Ok(None);
        };
        Ok(Some(Self {
            keys: self.keys.clone(),
            topology,
            secret,
        }))
    }

    /// What they mean; refuses what we did not write.
    pub(super) fn parse(&self) -> Result<(Topology, IdKey), StartError> {
        let foreign = |key| move || StartError::Foreign { key };
        let parse = || {
            let (generation, shards) = self.topology.split_once(' ')?;
            let generation = Generation(generation.parse().ok()?);
            Some(Topology {
                generation,
                shards: shards.parse().ok().filter(|n| *n > 0)?,
            })
        };
        let topology = parse().ok_or_else(foreign(self.keys.topology()))?;
        let secret = <[u8; 16]>::try_from(self.secret.as_slice())
            .ok()
            .ok_or_else(foreign(self.keys.secret()))?;
        Ok((topology, IdKey(secret)))
    }
}
