//! What the store answers to owners of shards: turns, parks, heartbeats, wakes. All of them but the
//! trim go through the connection that is the session (R5).

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use crate::message::{TopicName, UnixMs};
use crate::shard::{InstanceId, ShardId, Topology};
use crate::store::claim::{
    ClaimStore, ClaimToken, Members, NowBounds, ParkReply, ParkTo, Parked, Session, Swept, Turn,
    TurnReply, Wake,
};
use crate::store::holding;
use crate::store::lookup;
use crate::store::parking;
use crate::store::redis::RedisStore;
use crate::store::script;
use crate::store::tidying;
use crate::store::{Error, ErrorKind};

impl ClaimStore for RedisStore {
    fn session(&self) -> Option<Session> {
        self.core.turns.current().map(|link| Session(link.number))
    }

    fn new_session(&self, known: Option<Session>) -> BoxFuture<'_, Session> {
        Box::pin(async move {
            Session(
                self.core
                    .turns
                    .wait(known.map(|session| session.0))
                    .await
                    .number,
            )
        })
    }

    fn topology(&self) -> Topology {
        self.core.topology
    }

    fn turn(
        &self,
        session: Session,
        shard: ShardId,
        turn: Turn,
    ) -> BoxFuture<'_, Result<TurnReply, Error>> {
        Box::pin(async move {
            let mut link = self.core.session_link(session)?;
            let keys = self.core.keys.shard(shard);
            let sent = self.core.clock.monotonic();
            let ttl = self.core.config.claim_ttl;
            let result = script::turn(&mut link.connection, &keys, ttl, &turn).await;
            let (now_us, reply) = result.map_err(|error| self.core.turn_failed(&link, error))?;
            self.core.clock.learn(now_us, sent);
            Ok(reply)
        })
    }

    fn park(
        &self,
        session: Session,
        shard: ShardId,
        token: ClaimToken,
        messages: Vec<Parked>,
        to: ParkTo,
    ) -> BoxFuture<'_, Result<ParkReply, Error>> {
        Box::pin(
            async move { parking::park(&self.core, session, shard, &token, &messages, to).await },
        )
    }

    fn sweep(&self, shards: Vec<ShardId>) -> BoxFuture<'_, Result<Vec<Swept>, Error>> {
        Box::pin(async move {
            if shards.is_empty() {
                return Ok(Vec::new());
            }
            let mut link = lookup::link(&self.core)?;
            let mut pipeline = redis::Pipeline::with_capacity(shards.len());
            for shard in &shards {
                let key = self.core.keys.shard(*shard).horizon();
                pipeline.cmd("HMGET").arg(key).arg("watch").arg("held");
                pipeline.arg("marked").arg("tidied");
            }
            let found: Vec<[Option<i64>; 4]> = pipeline
                .query_async(&mut link.connection)
                .await
                .map_err(|error| lookup::asked(&self.core, &link, error))?;
            // Below 0 if what is held is older than its count.
            let whole = |number: Option<i64>| number.unwrap_or(0).max(0).unsigned_abs();
            let mut untidy = Vec::new();
            let swept = |(shard, found): (ShardId, [Option<i64>; 4])| {
                let [watch, held, marked, tidied] = found;
                if marked != tidied {
                    untidy.push((shard, whole(marked)));
                }
                Swept {
                    shard,
                    watch: UnixMs(whole(watch)),
                    held: whole(held),
                }
            };
            let swept = shards.into_iter().zip(found).map(swept).collect();
            if !untidy.is_empty() {
                let catching_up = tidying::catch_up(Arc::clone(&self.core), untidy);
                self.core.tracker.spawn(catching_up);
            }
            Ok(swept)
        })
    }

    fn trim(&self, shard: ShardId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move {
            let mut link = lookup::link(&self.core)?;
            let keys = self.core.keys.shard(shard);
            let window = self.core.config.dedupe_window;
            let more = script::trim(&mut link.connection, &keys, window).await;
            more.map_err(|error| lookup::asked(&self.core, &link, error))
        })
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        Box::pin(holding::paused(&self.core))
    }

    fn resume_held(
        &self,
        shard: ShardId,
        paused: BTreeSet<TopicName>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move { holding::resume(&self.core, shard, &paused).await })
    }

    fn beat(&self, me: InstanceId, leave: bool) -> BoxFuture<'_, Result<Members, Error>> {
        Box::pin(async move {
            let mut link = self
                .core
                .turns
                .current()
                .ok_or_else(|| Error::new(ErrorKind::Unavailable))?;
            let (key, ttl) = (self.core.keys.members(), self.core.config.instance_ttl);
            let now = UnixMs(self.core.clock.bounds().at_least_us / 1_000);
            let sent = self.core.clock.monotonic();
            let result = script::beat(&mut link.connection, &key, &me.0, ttl, now, leave).await;
            let (now_us, members) = result.map_err(|error| self.core.turn_failed(&link, error))?;
            self.core.clock.learn(now_us, sent);
            Ok(members)
        })
    }

    fn wakes(&self) -> BoxStream<'static, Wake> {
        let receiver = self.wakes.receiver();
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|wake| (wake, receiver))
        })
        .boxed()
    }

    fn listen(&self, shards: Vec<ShardId>) {
        self.wakes.listen(shards);
    }

    fn now_bounds(&self) -> NowBounds {
        self.core.clock.bounds()
    }
}
