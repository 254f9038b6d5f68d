//! Each script against a real server, through the store's two traits: a test brings Redis into a state,
//! asks the store for one thing, and reads Redis back with plain commands. The same tests run on Redis
//! and on Valkey.

mod around;
mod cancel;
mod insert;
mod place;
mod shortage;
mod turn;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use nsqdelayd::id::{MessageId, MintedId, Place, Score};
use nsqdelayd::message::{ClientId, Delay, Due, Message, TopicName, UnixMs};
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{
    Cancel, ClaimStore as _, ClaimToken, Compression, Config, Error, ErrorKind, Held, Pack, Parked,
    Read, ReadPack, Receipt, RedisStore, ScheduleStore as _, Turn, TurnReply, Wake,
};
use prometheus_client::registry::Registry;
use redis::{Cmd, FromRedisValue};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::redis::Redis;
use crate::support::wait;

/// One hour in ms: far from everything that a test's own duration could reach.
const HOUR: u64 = 3_600_000;
const CLAIM_TTL_MS: u64 = 5_000;
const TOPIC: &str = "orders";

/// Makes two tests of each function: on Redis and on Valkey.
macro_rules! on_both_servers {
    ($($name:ident;)*) => {
        mod on_redis {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::support::redis::Redis::start()).await;
            })*
        }
        mod on_valkey {
            $(#[tokio::test] async fn $name() {
                super::$name(crate::support::redis::Redis::start_valkey()).await;
            })*
        }
    };
}
use on_both_servers;

/// A store of one shard, and its server.
struct Bench {
    store: Arc<RedisStore>,
    config: Config,
    tracker: TaskTracker,
    stop: CancellationToken,
    server: Redis,
}

impl Bench {
    async fn open(server: Redis) -> Self {
        Self::open_with(server, |_config| {}).await
    }

    async fn open_with(server: Redis, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            redis: server.url(),
            namespace: "t".to_owned(),
            shards: 1,
            pack_window: Duration::from_secs(1),
            pack_bytes: 14_000,
            pack_compression: Compression::None,
            pack_linger: Duration::ZERO,
            insert_bytes_max: 1 << 20,
            queue_bytes_max: 16 << 20,
            request_timeout: Duration::from_secs(10),
            claim_ttl: Duration::from_millis(CLAIM_TTL_MS),
            instance_ttl: Duration::from_secs(10),
            dedupe_window: Duration::from_millis(HOUR),
            dead_letters_max: 10,
            require_persistence: false,
        };
        change(&mut config);
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let store = another_store(&config, &tracker, &stop).await;
        Self {
            store,
            config,
            tracker,
            stop,
            server,
        }
    }

    /// Another instance's store, on the same server.
    async fn another(&self) -> Arc<RedisStore> {
        another_store(&self.config, &self.tracker, &self.stop).await
    }

    fn shard(&self) -> ShardId {
        self.store.topology().shard(0)
    }

    fn key(noun: &str) -> String {
        format!("{{t:1.0}}:{noun}")
    }

    /// A plain command; `:due` means the shard's key of that name.
    #[track_caller]
    fn ask<T: FromRedisValue>(&self, line: &str) -> T {
        let mut words = line.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        for word in words {
            match word.strip_prefix(':') {
                Some(noun) => cmd.arg(Self::key(noun)),
                None => cmd.arg(word),
            };
        }
        self.run(&cmd)
    }

    #[track_caller]
    fn run<T: FromRedisValue>(&self, cmd: &Cmd) -> T {
        cmd.query(&mut self.server.connection()).unwrap()
    }

    /// Redis's clock, in Unix ms.
    fn now(&self) -> u64 {
        let (seconds, micros): (u64, u64) = self.ask("TIME");
        seconds * 1_000 + micros / 1_000
    }

    /// What a shard's `due` holds: scores and packs.
    fn packs(&self) -> Vec<(u64, Vec<u8>)> {
        let flat: Vec<(Vec<u8>, u64)> = self.ask("ZRANGE :due 0 -1 WITHSCORES");
        flat.into_iter()
            .map(|(pack, score)| (score, pack))
            .collect()
    }

    /// Marks with the due times that they are trimmed by, counted or not.
    fn marks(&self) -> HashMap<Vec<u8>, u64> {
        let marks: HashMap<Vec<u8>, f64> = self.ask("ZRANGE :cancelled 0 -1 WITHSCORES");
        let due = |score: f64| format!("{:.0}", score.ceil()).parse().unwrap();
        marks
            .into_iter()
            .map(|(mark, score)| (mark, due(score)))
            .collect()
    }

    fn pending(&self) -> HashMap<String, u64> {
        self.ask("HGETALL :pending")
    }

    /// One number of the horizon; 0 if it is not there.
    fn horizon(&self, field: &str) -> u64 {
        let value: Option<u64> = self.ask(&format!("HGET :horizon {field}"));
        value.unwrap_or(0)
    }

    fn set_horizon(&self, field: &str, value: u64) {
        let _added: u64 = self.ask(&format!("HSET :horizon {field} {value}"));
    }

    async fn put(&self, due: u64) -> (MessageId, MintedId) {
        let receipt = self.schedule(message("body", Due::At(UnixMs(due)))).await;
        let MessageId::Minted(minted) = receipt.unwrap().id else {
            panic!("not minted");
        };
        (MessageId::Minted(minted), minted)
    }

    async fn schedule(&self, message: Message) -> Result<Receipt, Error> {
        let receipts = self.store.schedule(vec![message]).await?;
        Ok(receipts.into_iter().next().unwrap())
    }

    async fn cancel(&self, id: &MessageId) -> Cancel {
        self.store.cancel(vec![id.clone()]).await.unwrap()[0]
    }

    /// The wakes of the shard, from now on.
    async fn wakes(&self) -> BoxStream<'static, Wake> {
        let wakes = self.store.wakes();
        self.store.listen(vec![self.shard()]);
        wait::until_async("the wakes to be subscribed to", async || {
            self.ask::<(String, u64)>("PUBSUB NUMSUB :wake").1 == 1
        })
        .await;
        wakes
    }

    /// Waits for the next wake, which must be for `due`.
    async fn check_wake(&self, wakes: &mut BoxStream<'static, Wake>, due: u64) {
        // That the subscription began is news as well.
        let mut news =
            wakes.filter(|wake| std::future::ready(!matches!(wake, Wake::Lost | Wake::Pauses)));
        let wake = news.next().await;
        assert_eq!(wake, Some(Wake::Earlier(self.shard(), UnixMs(due))));
    }

    /// A turn of the owner `us`.
    async fn turn(&self, change: impl FnOnce(&mut Turn)) -> Held {
        match self.try_turn("us", change).await.unwrap() {
            TurnReply::Held(held) => held,
            TurnReply::Busy(left) => panic!("busy for {left:?}"),
        }
    }

    async fn try_turn(
        &self,
        token: &str,
        change: impl FnOnce(&mut Turn),
    ) -> Result<TurnReply, Error> {
        let mut turn = Turn {
            token: ClaimToken(token.to_owned()),
            extend: true,
            settle_to: UnixMs(0),
            finished: Vec::new(),
            hand_out_to: UnixMs(0),
            open_to: UnixMs(0),
            idle_until: None,
            read: None,
            marks: None,
        };
        change(&mut turn);
        let session = self.store.session().unwrap();
        self.store.turn(session, self.shard(), turn).await
    }

    /// Claims as `us`, and reads every pack: what an owner could park.
    async fn claim_and_read(&self) -> Vec<Parked> {
        let held = self.turn(|turn| turn.read = Some(everything())).await;
        let packs = held.packs.into_iter().map(pack);
        packs.flat_map(parkable).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn another_store(
    config: &Config,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) -> Arc<RedisStore> {
    let mut registry = Registry::default();
    let started = RedisStore::start(config.clone(), &mut registry, tracker, stop.clone());
    started.await.unwrap()
}

fn everything() -> Read {
    Read {
        after: Score(0),
        to: UnixMs::MAX,
        limit: 1_000,
    }
}

#[track_caller]
fn pack(read: ReadPack) -> Pack {
    match read {
        ReadPack::Pack(pack) => pack,
        ReadPack::Unreadable(score, bad) => panic!("{score}: {bad}"),
    }
}

fn parkable(pack: Pack) -> Vec<Parked> {
    let (score, nonce, stored) = (pack.score, pack.nonce, pack.stored);
    let records = pack.records.into_iter();
    let parked = records.map(|record| Parked {
        from: Place {
            score,
            nonce,
            position: record.position,
        },
        stored,
        record,
    });
    parked.collect()
}

fn message(body: &str, due: Due) -> Message {
    Message {
        topic: TopicName::parse(TOPIC.as_bytes()).unwrap(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        due,
        id: None,
    }
}

fn with_id(id: &str, message: Message) -> Message {
    let id = Some(ClientId::parse(id.as_bytes()).unwrap());
    Message { id, ..message }
}

fn client(id: &str) -> MessageId {
    MessageId::Client(ClientId::parse(id.as_bytes()).unwrap())
}

fn after(ms: u64) -> Due {
    Due::After(Delay(ms))
}

/// The member of `cancelled` for a place, written down a second time: score, nonce, position, big end
/// first.
fn mark_of(place: Place) -> Vec<u8> {
    let mut mark = place.score.0.to_be_bytes().to_vec();
    mark.extend(place.nonce.to_be_bytes());
    mark.extend(place.position.to_be_bytes());
    mark
}
