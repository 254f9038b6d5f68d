//! An instance that only fetches: the store and the inbox, no door, nothing that hands out.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::app::StartError;
use crate::app::stage::Stage;
use crate::config::Config;
use crate::ingest::{self, Intake};
use crate::store::RedisStore;
use crate::telemetry;

/// A running inbox.
#[derive(Debug)]
pub struct Inbox {
    doors: Stage,
    store: Stage,
    drain_timeout: Duration,
}

impl Inbox {
    /// Starts the store and then the inbox, if `config` has one.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let parts = Self {
            doors: Stage::new("inbox"),
            store: Stage::new("store"),
            drain_timeout: config.drain_timeout,
        };
        let mut registry = telemetry::registry();
        let stage = &parts.store;
        let started = RedisStore::start(
            config.store,
            &mut registry,
            &stage.tracker,
            stage.stop.clone(),
        );
        let store = started.await.map_err(StartError::Store)?;
        let intake = Intake::new(store, config.ingest, None);
        let metrics = ingest::metrics::Metrics::register(&mut registry);
        let stage = &parts.doors;
        if let Some(inbox) = config.inbox {
            info!(topic = %inbox.topic, channel = %inbox.channel, "inbox");
            ingest::inbox::start(inbox, intake, metrics, &stage.tracker, stage.stop.clone());
        }
        Ok(parts)
    }

    /// Stops consuming, finishes what is on its way into the store, confirms it. Answers whether all
    /// of it was done in time; nsqd pushes again what was not.
    pub async fn drain(self) -> bool {
        info!(timeout = ?self.drain_timeout, "draining");
        let end = Instant::now() + self.drain_timeout;
        let mut complete = true;
        for stage in [&self.doors, &self.store] {
            let ended = stage.end(end).await;
            if !ended {
                warn!(stage = stage.name, "did not end in time");
            }
            complete &= ended;
        }
        info!(complete, "stopped");
        complete
    }
}
