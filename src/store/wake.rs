//! "A message earlier than you have read": pub/sub from inserts to the owners of shards. A wake that
//! is lost costs lateness, never a message: whenever the subscription was away, everything is looked at.

use std::collections::HashSet;
use std::io::{Error, ErrorKind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::{Client, Msg, RedisError};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::message::UnixMs;
use crate::shard::{Generation, ShardId};
use crate::store::claim::Wake;
use crate::store::connect::Link;
use crate::store::keys::Namespace;

/// Longest pause before subscribing again, with jitter.
const RESUBSCRIBE_MAX: Duration = Duration::from_secs(1);
/// How often an idle subscription is asked whether it lives: half-open connections bring no wakes.
const PING_EVERY: Duration = Duration::from_secs(20);

/// The subscription of this instance.
#[derive(Debug)]
pub(super) struct Wakes {
    client: Client,
    /// Each answer to the subscription takes at most so long.
    answer_timeout: Duration,
    /// Where this connection leads, the subscription must lead.
    turns: Arc<Link>,
    keys: Namespace,
    shards: watch::Sender<HashSet<ShardId>>,
    listener: Mutex<Option<mpsc::UnboundedSender<Wake>>>,
}

impl Wakes {
    pub(super) fn new(
        client: Client,
        answer_timeout: Duration,
        turns: Arc<Link>,
        keys: Namespace,
    ) -> Self {
        let (shards, _) = watch::channel(HashSet::new());
        Self {
            client,
            answer_timeout,
            turns,
            keys,
            shards,
            listener: Mutex::new(None),
        }
    }

    /// Where wakes go from now on.
    pub(super) fn receiver(&self) -> mpsc::UnboundedReceiver<Wake> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Which shards' wakes are wanted.
    pub(super) fn listen(&self, shards: Vec<ShardId>) {
        self.shards.send_replace(shards.into_iter().collect());
    }

    /// Subscribes, and again after each loss. Never ends by itself.
    pub(super) async fn run(&self) {
        loop {
            let ended = self.subscribed().await;
            self.send(Wake::Lost);
            if let Err(error) = ended {
                warn!(%error, "subscription to wakes lost");
            }
            sleep(RESUBSCRIBE_MAX.mul_f64(0.1 + 0.9 * fastrand::f64())).await;
        }
    }

    fn send(&self, wake: Wake) {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(listener) = &*listener
            && listener.send(wake).is_err()
        {
            tracing::trace!("nobody listens for wakes");
        }
    }

    /// Ends when the subscription is lost, or when turns go to another connection: perhaps to another server.
    async fn subscribed(&self) -> Result<(), RedisError> {
        let session = self.turns.wait(None).await.number;
        let pubsub = self.answered(self.client.get_async_pubsub()).await?;
        let (mut sink, mut messages) = pubsub.split();
        let mut wanted = self.shards.subscribe();
        let mut have: HashSet<ShardId> = HashSet::new();
        self.answered(sink.subscribe(self.keys.pauses())).await?;
        self.send(Wake::Pauses);
        info!("subscribed to wakes");
        loop {
            let want = wanted.borrow_and_update().clone();
            for shard in have.difference(&want) {
                let channel = self.keys.shard(*shard).wake();
                self.answered(sink.unsubscribe(channel)).await?;
            }
            let new: Vec<_> = want.difference(&have).copied().collect();
            for shard in &new {
                let channel = self.keys.shard(*shard).wake();
                self.answered(sink.subscribe(channel)).await?;
            }
            if !new.is_empty() {
                // What came before the subscription was heard by nobody.
                self.send(Wake::Lost);
            }
            have = want;
            loop {
                tokio::select! {
                    changed = wanted.changed() => match changed {
                        Ok(()) => break,
                        Err(_closed) => return Ok(()),
                    },
                    message = messages.next() => match message {
                        Some(message) => self.hear(&message),
                        None => return Ok(()),
                    },
                    _replaced = self.turns.wait(Some(session)) => return Ok(()),
                    () = sleep(PING_EVERY) => self.answered(sink.ping::<()>()).await?,
                }
            }
        }
    }

    async fn answered<T>(
        &self,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        match timeout(self.answer_timeout, work).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Error::from(ErrorKind::TimedOut).into()),
        }
    }

    fn hear(&self, message: &Msg) {
        if message.get_channel_name() == self.keys.pauses() {
            return self.send(Wake::Pauses);
        }
        let due = message.get_payload::<u64>().ok();
        if let (Some(shard), Some(due)) = (shard_of(message.get_channel_name()), due) {
            self.send(Wake::Earlier(shard, UnixMs(due)));
        }
    }
}

/// The shard in a channel's name, `{<namespace>:<generation>.<shard>}:wake`.
fn shard_of(channel: &str) -> Option<ShardId> {
    let (_, rest) = channel.split_once(':')?;
    let (shard, _) = rest.split_once('}')?;
    let (generation, index) = shard.split_once('.')?;
    let generation = Generation(generation.parse().ok()?);
    Some(ShardId {
        generation,
        index: index.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_name_their_shard() {
        let shard = ShardId {
            generation: Generation(2),
            index: 17,
        };
        let channel = Namespace::new("my-ns").shard(shard).wake();
        assert_eq!(channel, "{my-ns:2.17}:wake");
        assert_eq!(shard_of(&channel), Some(shard));
        assert_eq!(shard_of("else"), None);
    }
}
