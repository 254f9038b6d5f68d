//! The parts and how they are wired: each names its constructor here and nowhere else.

use std::sync::Arc;

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{error, info};

use crate::app::passthrough::ByForward;
use crate::app::stage::Stage;
use crate::app::{Doors, StartError};
use crate::config::Config;
use crate::dispatch::{self, Dispatcher};
use crate::forward::{self, Forward, NsqdPool};
use crate::ingest::clients::Clients;
use crate::ingest::http::{HttpState, InstanceFacts};
use crate::ingest::passthrough::Passthrough;
use crate::ingest::{self, Intake};
use crate::phase::Phase;
use crate::store::{ClaimStore, RedisStore};
use crate::telemetry;
use crate::timer::Clock;

/// What runs, by the steps of a stop.
#[derive(Debug)]
pub(super) struct Parts {
    /// The TCP and HTTP doors.
    pub(super) doors: Stage,
    /// Pollers and claims.
    pub(super) dispatch: Stage,
    /// Connections to nsqd.
    pub(super) forward: Stage,
    /// Connections to Redis.
    pub(super) store: Stage,
}

impl Parts {
    /// Starts store → forward → dispatch → doors.
    pub(super) async fn start(
        config: Config,
        doors: Doors,
        phases: watch::Receiver<Phase>,
    ) -> Result<Self, StartError> {
        let parts = Self {
            doors: Stage::new("doors"),
            dispatch: Stage::new("dispatch"),
            forward: Stage::new("forward"),
            store: Stage::new("store"),
        };
        let mut registry = telemetry::registry();
        // As much as may wait for an insert.
        let passing_bytes_max = config.store.queue_bytes_max;
        let stage = &parts.store;
        let store = RedisStore::start(
            config.store,
            &mut registry,
            &stage.tracker,
            stage.stop.clone(),
        )
        .await
        .map_err(StartError::Store)?;
        let stage = &parts.forward;
        let metrics = forward::metrics::Metrics::register(&mut registry);
        let publisher = ByForward {
            patience: config.forward.forward_timeout,
            forward: NsqdPool::start(config.forward, metrics, &stage.tracker, stage.stop.clone()),
        };
        let stage = &parts.dispatch;
        start_dispatch(
            config.dispatch,
            Arc::clone(&store) as _,
            Arc::clone(&publisher.forward),
            &mut registry,
            stage,
        );
        let metrics = ingest::metrics::Metrics::register(&mut registry);
        let passthrough = config.passthrough.then(|| {
            let publisher = Arc::new(publisher);
            Arc::new(Passthrough::new(publisher, passing_bytes_max, &metrics))
        });
        let intake = Intake::new(store, config.ingest, passthrough);
        parts.open(intake, config.inbox, metrics, registry, doors, phases);
        Ok(parts)
    }

    /// Opens both doors, and the inbox if there is one.
    fn open(
        &self,
        intake: Intake,
        inbox: Option<ingest::inbox::Config>,
        metrics: ingest::metrics::Metrics,
        registry: Registry,
        doors: Doors,
        phases: watch::Receiver<Phase>,
    ) {
        let start = Arc::new(facts(&doors));
        let tls = intake.config.transports.tls.clone();
        if intake.config.access.is_none() {
            info!(
                "everybody who can connect may publish, read and cancel: neither auth_http_address nor \
                 tokens_file is set"
            );
        }
        let clients = Clients::default();
        let stage = &self.doors;
        stage.tracker.spawn(ingest::listener::serve(
            doors.tcp,
            intake.clone(),
            clients.clone(),
            metrics.clone(),
            stage.tracker.clone(),
            stage.stop.clone(),
        ));
        if let Some(inbox) = inbox {
            ingest::inbox::start(
                inbox,
                intake.clone(),
                metrics.clone(),
                &stage.tracker,
                stage.stop.clone(),
            );
        }
        let shared = HttpState {
            intake,
            clients,
            metrics,
            phase: phases,
            exposition: exposition(registry),
            start,
            // An instance without nsqd holds what it takes, and is ready to take it.
            unready: Arc::new(Vec::new),
        };
        for (listener, tls) in [(Some(doors.http), None), (doors.https, tls)] {
            let Some(listener) = listener else { continue };
            stage.tracker.spawn(ingest::http::serve(
                listener,
                tls,
                shared.clone(),
                stage.tracker.clone(),
                stage.stop.clone(),
            ));
        }
    }
}

/// Starts handing out what is due, until the stage is told to stop.
fn start_dispatch(
    config: dispatch::Config,
    claims: Arc<dyn ClaimStore>,
    forward: Arc<dyn Forward>,
    registry: &mut Registry,
    stage: &Stage,
) {
    let metrics = dispatch::Metrics::register(registry);
    let stop = stage.stop.clone();
    Dispatcher::start(
        config,
        claims,
        forward,
        metrics,
        Clock::of_machine(),
        &stage.tracker,
        stop,
    );
}

/// The text of `/metrics`, made anew for each request.
fn exposition(registry: Registry) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        telemetry::exposition(&registry).unwrap_or_else(|error| {
            error!(%error, "the metrics cannot be written");
            String::new()
        })
    })
}

/// What `/info` and `/stats` say. The time of the start is for people: no due time comes from it.
fn facts(doors: &Doors) -> InstanceFacts {
    let hostname = rustix::system::uname();
    let hostname = hostname.nodename().to_string_lossy().into_owned();
    InstanceFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        broadcast_address: hostname.clone(),
        hostname,
        tcp_port: doors.tcp_address.port(),
        http_port: doors.http_address.port(),
        https_port: doors.https_address.map_or(0, |address| address.port()),
        start_time_unix_s: u64::try_from(Timestamp::now().as_second()).unwrap_or(0),
    }
}
