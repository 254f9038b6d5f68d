//! The store on one Redis: starts the connections and answers both traits with them.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use bytes::Bytes;
use deadpool_redis::{Config as PoolConfig, Pool, Runtime};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use prometheus_client::registry::Registry;
use redis::Client;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::id::{BadId, IdKey, MessageId, MintedId, Place};
use crate::message::{Due, Message, UnixMs};
use crate::monotonic::boottime;
use crate::shard::{Generation, InstanceId, ShardId, Topology};
use crate::store::checks::{self, StartError};
use crate::store::claim::{
    ClaimStore, ClaimToken, NowBounds, ParkReply, ParkTo, Parked, Session, Turn, TurnReply, Wake,
};
use crate::store::clock::Clock;
use crate::store::connect::{Connected, Link, is_broken, was_refused};
use crate::store::core::Core;
use crate::store::dead;
use crate::store::entry::{Entry, Kind};
use crate::store::keys::Namespace;
use crate::store::listing;
use crate::store::lookup;
use crate::store::metrics::Metrics;
use crate::store::pack::{Pack, Record};
use crate::store::packing::{PackLimits, Scores as _};
use crate::store::script::{self, ParkPlace, ParkedMessage, PlaceReply};
use crate::store::settings::Config;
use crate::store::wake::Wakes;
use crate::store::writer::Writer;
use crate::store::{
    Cancel, Error, ErrorKind, Page, Pending, Query, Receipt, Reschedule, ScheduleStore, Stored,
};

/// How long Redis may be away at start.
const START_PATIENCE: Duration = Duration::from_secs(5);
/// Connections for listings and counts.
const POOL_SIZE: usize = 4;
/// How often a place is sought for parked messages.
const PARK_ATTEMPTS_MAX: u32 = 10;

/// The store on Redis.
#[derive(Debug)]
pub struct RedisStore {
    core: Arc<Core>,
    writer: Writer,
    wakes: Arc<Wakes>,
}

impl RedisStore {
    /// Connects, checks the server, learns the topology, and starts what runs in the background.
    pub async fn start(
        config: Config,
        registry: &mut Registry,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StartError> {
        let url = masked(&config.redis);
        let address = |source| StartError::Address {
            url: url.clone(),
            source: Box::new(source),
        };
        let client = Client::open(config.redis.as_str()).map_err(address)?;
        let keys = Namespace::new(&config.namespace);
        let mut setup = first_connection(&client, &url, config.request_timeout).await?;
        checks::check(&mut setup, &config, &url).await?;
        let (topology, id_key) = settle_names(&mut setup, &keys, &config, &url).await?;
        let suspect = Arc::new(Notify::new());
        let link = |purpose| {
            let (client, suspect) = (client.clone(), Arc::clone(&suspect));
            Link::start(
                purpose,
                client,
                config.request_timeout,
                suspect,
                tracker,
                stop.clone(),
            )
        };
        let mut pool = PoolConfig::from_url(config.redis.as_str());
        pool.pool = Some(deadpool_redis::PoolConfig {
            max_size: POOL_SIZE,
            timeouts: deadpool_redis::Timeouts::wait_millis(2_000),
            ..deadpool_redis::PoolConfig::default()
        });
        let pool: Pool =
            pool.create_pool(Some(Runtime::Tokio1))
                .map_err(|error| StartError::Away {
                    url: url.clone(),
                    why: error.to_string(),
                })?;
        let pack_limits = PackLimits {
            window_ms: u64::try_from(config.pack_window.as_millis()).unwrap_or(0),
            bytes: config.pack_bytes,
        };
        let core = Arc::new(Core {
            keys: keys.clone(),
            topology,
            id_key,
            clock: Clock::new(boottime),
            hot: link("inserts"),
            turns: link("turns"),
            ask: link("questions"),
            pool,
            pack_limits,
            metrics: Metrics::register(registry),
            tracker: tracker.clone(),
            next_k: (0..topology.shards)
                .map(|_| AtomicU32::new(fastrand::u32(..)))
                .collect(),
            config,
        });
        for link in [&core.hot, &core.turns, &core.ask] {
            link.wait(None).await;
        }
        learn_time(&core, &mut setup).await;
        let writer = Writer::start(&core, stop.clone());
        let wakes = Arc::new(Wakes::new(client, keys));
        let subscription = Arc::clone(&wakes);
        tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = subscription.run() => {}
            }
        });
        Ok(Arc::new(Self {
            core,
            writer,
            wakes,
        }))
    }

    /// The turn's failure, as the owner must take it: the session ends unless Redis refused.
    fn turn_failed(&self, link: &Connected, error: redis::RedisError) -> Error {
        if was_refused(&error) && !is_broken(&error) {
            return Error::caused(ErrorKind::Refused, error);
        }
        self.core.turns.give_up(link.number);
        Error::caused(ErrorKind::SessionLost, error)
    }

    fn session_link(&self, session: Session) -> Result<Connected, Error> {
        let current = self
            .core
            .turns
            .current()
            .filter(|link| link.number == session.0);
        current.ok_or_else(|| Error::new(ErrorKind::SessionLost))
    }

    async fn park_once(
        &self,
        session: Session,
        shard: ShardId,
        token: &ClaimToken,
        messages: &[Parked],
        to: &ParkTo,
    ) -> Result<PlaceReply, Error> {
        let core = &self.core;
        let mut link = self.session_link(session)?;
        let keys = core.keys.shard(shard);
        let ids: Vec<String> = messages.iter().map(|m| id_text(core, shard, m)).collect();
        let digests = digests(&mut link.connection, &keys.ids(), &ids).await;
        let digests = digests.map_err(|error| self.turn_failed(&link, error))?;
        let pack = new_home(core, shard, messages, &digests, to);
        let parked: Vec<ParkedMessage> = messages
            .iter()
            .zip(&pack.entries)
            .map(|(message, entry)| parked_message(core, shard, message, entry, to))
            .collect();
        let place = match to {
            ParkTo::Later(_) => ParkPlace::Pack {
                score: pack.score,
                value: &pack.value,
            },
            ParkTo::DeadLetters(_) => ParkPlace::DeadLetters {
                max: core.config.dead_letters_max,
            },
        };
        let sent = core.clock.monotonic();
        let result = script::park(&mut link.connection, &keys, token, &place, &parked).await;
        let (now_us, reply) = result.map_err(|error| self.turn_failed(&link, error))?;
        core.clock.learn(now_us, sent);
        Ok(reply)
    }
}

/// Where parked messages go together.
struct NewHome {
    score: crate::id::Score,
    value: Vec<u8>,
    entries: Vec<Entry>,
}

/// The digests that the ids' entries have, so that a retried create is recognised after a park too.
async fn digests(
    connection: &mut MultiplexedConnection,
    key: &str,
    ids: &[String],
) -> Result<Vec<u64>, redis::RedisError> {
    let entries: Vec<Option<Vec<u8>>> = redis::cmd("HMGET")
        .arg(key)
        .arg(ids)
        .query_async(connection)
        .await?;
    let digest = |entry: Option<Vec<u8>>| {
        entry
            .and_then(|text| Entry::parse(&text))
            .map_or(0, |entry| entry.digest)
    };
    Ok(entries.into_iter().map(digest).collect())
}

fn new_home(
    core: &Core,
    shard: ShardId,
    messages: &[Parked],
    digests: &[u64],
    to: &ParkTo,
) -> NewHome {
    let due = match to {
        ParkTo::Later(due) => *due,
        ParkTo::DeadLetters(_) => UnixMs(0),
    };
    let mut scores = core.scores(shard);
    let big = messages
        .iter()
        .any(|m| m.record.body.len() > core.config.pack_bytes);
    let (score, nonce) = (scores.next(due, big), scores.nonce());
    let mut records = Vec::with_capacity(messages.len());
    let mut entries = Vec::with_capacity(messages.len());
    for ((position, message), digest) in (0_u16..).zip(messages).zip(digests) {
        let id = Some(Bytes::from(id_text(core, shard, message)));
        records.push(Record {
            position,
            due,
            id,
            ..message.record.clone()
        });
        let (kind, place, due) = match to {
            ParkTo::Later(_) => (
                Kind::Stored,
                Place {
                    score,
                    nonce,
                    position,
                },
                due,
            ),
            ParkTo::DeadLetters(_) => (Kind::Dead, message.from, message.record.due),
        };
        let maybe = message.record.maybe;
        entries.push(Entry {
            kind,
            place,
            due,
            maybe,
            digest: *digest,
        });
    }
    let stored = u16::try_from(records.len()).unwrap_or(u16::MAX);
    let value = Pack {
        score,
        nonce,
        stored,
        records,
        len: 0,
    }
    .encode();
    NewHome {
        score,
        value,
        entries,
    }
}

fn parked_message(
    core: &Core,
    shard: ShardId,
    message: &Parked,
    entry: &Entry,
    to: &ParkTo,
) -> ParkedMessage {
    let id = id_text(core, shard, message);
    let dead_letter = match to {
        ParkTo::Later(_) => Vec::new(),
        ParkTo::DeadLetters(reason) => {
            dead::encode(reason, message.from.score, &message.record, &id)
        }
    };
    ParkedMessage {
        from: message.from,
        from_due: message.record.due,
        entry: entry.to_text(),
        to_due: entry.due,
        topic: message.record.topic.as_str().to_owned(),
        dead_letter,
        id,
    }
}

/// The id that the message's producer knows it by.
fn id_text(core: &Core, shard: ShardId, message: &Parked) -> String {
    if let Some(id) = &message.record.id {
        return String::from_utf8_lossy(id).into_owned();
    }
    let (place, due, count) = (message.from, message.record.due, message.stored);
    core.id_key.mint(&MintedId {
        due,
        shard,
        place,
        count,
    })
}

async fn first_connection(
    client: &Client,
    url: &str,
    request_timeout: Duration,
) -> Result<MultiplexedConnection, StartError> {
    let config = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(request_timeout));
    let mut why = String::new();
    let connect = async {
        loop {
            match client
                .get_multiplexed_async_connection_with_config(&config)
                .await
            {
                Ok(connection) => return connection,
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let connected = tokio::time::timeout(START_PATIENCE, connect).await;
    connected.map_err(|_elapsed| StartError::Away {
        url: url.to_owned(),
        why,
    })
}

/// The topology and the ids' key: whoever comes first sets them, all others read them.
async fn settle_names(
    connection: &mut MultiplexedConnection,
    keys: &Namespace,
    config: &Config,
    url: &str,
) -> Result<(Topology, IdKey), StartError> {
    let away = |error: redis::RedisError| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    };
    let mut pipeline = redis::Pipeline::new();
    let secret: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    pipeline
        .cmd("SET")
        .arg(keys.topology())
        .arg(format!("1 {}", config.shards))
        .arg("NX")
        .ignore();
    pipeline
        .cmd("SET")
        .arg(keys.secret())
        .arg(&secret[..])
        .arg("NX")
        .ignore();
    pipeline.cmd("GET").arg(keys.topology());
    pipeline.cmd("GET").arg(keys.secret());
    let (topology, secret): (String, Vec<u8>) =
        pipeline.query_async(connection).await.map_err(away)?;
    let foreign = |key| move || StartError::Foreign { key };
    let parse = || {
        let (generation, shards) = topology.split_once(' ')?;
        let generation = Generation(generation.parse().ok()?);
        Some(Topology {
            generation,
            shards: shards.parse().ok().filter(|n| *n > 0)?,
        })
    };
    let topology = parse().ok_or_else(foreign(keys.topology()))?;
    let secret = <[u8; 16]>::try_from(secret)
        .ok()
        .ok_or_else(foreign(keys.secret()))?;
    if topology.shards != config.shards {
        tracing::warn!(
            stored = topology.shards,
            configured = config.shards,
            "the namespace has another number of shards than `shards` says; the stored one counts"
        );
    }
    Ok((topology, IdKey(secret)))
}

async fn learn_time(core: &Core, connection: &mut MultiplexedConnection) {
    let sent = core.clock.monotonic();
    let time: Result<(u64, u64), _> = redis::cmd("TIME").query_async(connection).await;
    if let Ok((seconds, micros)) = time {
        core.clock.learn(seconds * 1_000_000 + micros, sent);
    }
}

/// The address without its password.
fn masked(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

impl ScheduleStore for RedisStore {
    fn schedule(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<Vec<Receipt>, Error>> {
        Box::pin(self.writer.store(messages))
    }

    fn get(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Stored>, Error>> {
        Box::pin(async move {
            let Some(found) = lookup::find(&self.core, &id).await? else {
                return Ok(None);
            };
            if found.standing == lookup::Standing::Dead {
                return dead::get(&self.core, id).await;
            }
            Ok(lookup::stored(id, found))
        })
    }

    fn cancel(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Cancel>, Error>> {
        Box::pin(async move { lookup::cancel(&self.core, &ids).await })
    }

    fn reschedule(&self, id: MessageId, due: Due) -> BoxFuture<'_, Result<Reschedule, Error>> {
        Box::pin(async move { lookup::reschedule(&self.core, &id, due).await })
    }

    fn list(
        &self,
        query: Query,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(async move {
            listing::list(&self.core, &query, page_token.as_deref(), page_size).await
        })
    }

    fn dead_letters(
        &self,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(async move {
            listing::dead_letters(&self.core, page_token.as_deref(), page_size).await
        })
    }

    fn requeue(&self, id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>> {
        Box::pin(async move { dead::requeue(&self.core, &id).await })
    }

    fn drop_dead(&self, id: MessageId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move { dead::drop_dead(&self.core, &id).await })
    }

    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>> {
        Box::pin(listing::pending(&self.core))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            // Ready means for everything, not only for this question.
            for link in [&self.core.hot, &self.core.turns] {
                link.current().ok_or_else(|| Error::new(ErrorKind::Unavailable))?;
            }
            let mut link = lookup::link(&self.core)?;
            let pong = redis::cmd("PING").query_async(&mut link.connection).await;
            pong.map_err(|error| lookup::asked(&self.core, &link, error))
        })
    }

    fn now(&self) -> UnixMs {
        self.core.clock.upper()
    }

    fn parse_id(&self, text: &[u8]) -> Result<MessageId, BadId> {
        self.core.id_key.parse(text)
    }

    fn id_text(&self, id: &MessageId) -> String {
        self.core.id_key.text(id)
    }
}

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
            let mut link = self.session_link(session)?;
            let keys = self.core.keys.shard(shard);
            let sent = self.core.clock.monotonic();
            let ttl = self.core.config.claim_ttl;
            let result = script::turn(&mut link.connection, &keys, ttl, &turn).await;
            let (now_us, reply) = result.map_err(|error| self.turn_failed(&link, error))?;
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
        Box::pin(async move {
            let mut to = to;
            for _ in 0..PARK_ATTEMPTS_MAX {
                match self
                    .park_once(session, shard, &token, &messages, &to)
                    .await?
                {
                    PlaceReply::Ok => return Ok(ParkReply::Parked),
                    PlaceReply::Full => return Ok(ParkReply::Full),
                    PlaceReply::Fenced => return Ok(ParkReply::Fenced),
                    PlaceReply::Late(limit) => to = ParkTo::Later(limit.plus_ms(1)),
                    PlaceReply::Marked(ids) => {
                        let is_marked = |m: &&Parked| ids.contains(&id_text(&self.core, shard, m));
                        let marked = messages.iter().filter(is_marked).map(|m| m.from).collect();
                        return Ok(ParkReply::Marked(marked));
                    }
                    _ => {}
                }
            }
            Err(Error::caused(
                ErrorKind::Refused,
                "no place found for parked messages",
            ))
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

    fn beat(&self, me: InstanceId, leave: bool) -> BoxFuture<'_, Result<Vec<InstanceId>, Error>> {
        Box::pin(async move {
            let mut link = self
                .core
                .turns
                .current()
                .ok_or_else(|| Error::new(ErrorKind::Unavailable))?;
            let (key, ttl) = (self.core.keys.members(), self.core.config.instance_ttl);
            let sent = self.core.clock.monotonic();
            let result = script::members(&mut link.connection, &key, &me.0, ttl, leave).await;
            let (now_us, live) = result.map_err(|error| self.turn_failed(&link, error))?;
            self.core.clock.learn(now_us, sent);
            Ok(live.into_iter().map(InstanceId).collect())
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
        let clock = &self.core.clock;
        NowBounds {
            at_least_us: clock.lower_us(),
            at_most: clock.upper(),
        }
    }
}
