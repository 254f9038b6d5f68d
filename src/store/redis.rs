//! The store on one Redis: starts the connections, and answers the doors with them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use deadpool_redis::{Config as PoolConfig, Pool, Runtime};
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use redis::Client;
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::id::{BadId, MessageId};
use crate::message::{Due, Message, TopicName, UnixMs};
use crate::monotonic::boottime;
use crate::store::canceller::Canceller;
use crate::store::checks::{self, StartError};
use crate::store::clock::Clock;
use crate::store::connect::{Link, Server};
use crate::store::core::Core;
use crate::store::dead;
use crate::store::holding;
use crate::store::keys::Namespace;
use crate::store::listing;
use crate::store::lookup;
use crate::store::metrics::Metrics;
use crate::store::packing::PackLimits;
use crate::store::settings::Config;
use crate::store::start::{first_connection, learn_time, masked, settle_names};
use crate::store::wake::Wakes;
use crate::store::writer::Writer;
use crate::store::{
    Cancel, Error, ErrorKind, Page, Pending, Query, Receipt, Reschedule, ScheduleStore, Stored,
};

/// Connections for listings and counts.
const POOL_SIZE: usize = 4;
/// How long a listing waits for one of them, in ms.
const POOL_WAIT_MS: u64 = 2_000;

/// The store on Redis.
#[derive(Debug)]
pub struct RedisStore {
    pub(super) core: Arc<Core>,
    writer: Writer,
    canceller: Canceller,
    pub(super) wakes: Arc<Wakes>,
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
        let (names, topology, id_key) = settle_names(&mut setup, &keys, &config, &url).await?;
        let metrics = Metrics::register(registry);
        let server = Server {
            client: client.clone(),
            request_timeout: config.request_timeout,
            names,
            suspect: Arc::new(Notify::new()),
        };
        let link = |purpose, up| Link::start(purpose, server.clone(), up, tracker, stop.clone());
        let core = Arc::new(Core {
            keys: keys.clone(),
            topology,
            id_key,
            clock: Clock::new(boottime),
            hot: link("inserts", Some(metrics.up.clone())),
            turns: link("turns", None),
            ask: link("questions", None),
            pool: pool(&config, &url)?,
            pack_limits: PackLimits {
                window_ms: u64::try_from(config.pack_window.as_millis()).unwrap_or(0),
                bytes: config.pack_bytes,
                compression: config.pack_compression,
            },
            metrics,
            tracker: tracker.clone(),
            next_k: (0..topology.shards)
                .map(|_| AtomicU32::new(fastrand::u32(..)))
                .collect(),
            catching_up: Mutex::new(()),
            config,
        });
        for link in [&core.hot, &core.turns, &core.ask] {
            link.wait(None).await;
        }
        learn_time(&core, &mut setup).await;
        let writer = Writer::start(&core, stop.clone());
        let canceller = Canceller::start(&core, stop.clone());
        let wakes = Wakes::new(
            client,
            core.config.request_timeout,
            Arc::clone(&core.turns),
            keys,
        );
        let wakes = Arc::new(wakes);
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
            canceller,
            wakes,
        }))
    }
}

fn pool(config: &Config, url: &str) -> Result<Pool, StartError> {
    let mut pool = PoolConfig::from_url(config.redis.as_str());
    pool.pool = Some(deadpool_redis::PoolConfig {
        max_size: POOL_SIZE,
        timeouts: deadpool_redis::Timeouts::wait_millis(POOL_WAIT_MS),
        ..deadpool_redis::PoolConfig::default()
    });
    let created = pool.create_pool(Some(Runtime::Tokio1));
    created.map_err(|error| StartError::Away {
        url: url.to_owned(),
        why: error.to_string(),
    })
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
        Box::pin(self.canceller.cancel(ids))
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

    fn set_paused(&self, topic: TopicName, paused: bool) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move { holding::set_paused(&self.core, &topic, paused).await })
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        Box::pin(holding::paused(&self.core))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            // Ready means for everything, not only for this question.
            for link in [&self.core.hot, &self.core.turns] {
                link.current()
                    .ok_or_else(|| Error::new(ErrorKind::Unavailable))?;
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
