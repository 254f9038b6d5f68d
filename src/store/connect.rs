//! Connections to Redis that do not reconnect underneath: a new connection is a new session, and
//! whoever remembers something of the old one forgets it (R5).

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::store::names::Names;
use crate::store::script::Scripts;

/// First pause before connecting again; doubles up to [`RECONNECT_MAX`], with jitter.
const RECONNECT_MIN: Duration = Duration::from_millis(20);
/// Longest pause: recovery after an outage waits at most so long.
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where all links of a store lead.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) client: Client,
    pub(super) request_timeout: Duration,
    /// What must lie there.
    pub(super) names: Names,
    /// Rung when any link of the store has failed: the others look whether they still live.
    pub(super) suspect: Arc<Notify>,
}

/// A multiplexed connection that is replaced, visibly, when it fails.
#[derive(Debug)]
pub(super) struct Link {
    purpose: &'static str,
    server: Server,
    current: watch::Sender<Option<Connected>>,
    /// 1 while there is a connection.
    up: Option<Gauge>,
}

/// One connection and its number.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) number: u64,
    pub(super) connection: MultiplexedConnection,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connected({})", self.number)
    }
}

impl Link {
    /// Begins to connect, and to connect again after each failure, until `stop`.
    pub(super) fn start(
        purpose: &'static str,
        server: Server,
        up: Option<Gauge>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let (current, _) = watch::channel(None);
        let link = Arc::new(Self {
            purpose,
            server,
            current,
            up,
        });
        let keeper = Arc::clone(&link);
        tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = keeper.keep() => {}
            }
        });
        link
    }

    /// The connection, if there is one.
    pub(super) fn current(&self) -> Option<Connected> {
        self.current.borrow().clone()
    }

    /// Waits for a connection other than number `known`.
    pub(super) async fn wait(&self, known: Option<u64>) -> Connected {
        let mut changes = self.current.subscribe();
        loop {
            let found = changes.borrow_and_update().clone();
            if let Some(connected) = found
                && Some(connected.number) != known
            {
                return connected;
            }
            if changes.changed().await.is_err() {
                // The sender lives as long as `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Gives up connection `number`, if it is still the current one.
    pub(super) fn give_up(&self, number: u64) {
        let gave_up = self.current.send_if_modified(|current| {
            let is_current = current.as_ref().is_some_and(|c| c.number == number);
            if is_current {
                *current = None;
            }
            is_current
        });
        if gave_up {
            self.server.suspect.notify_waiters();
        }
    }

    fn count_up(&self, up: i64) {
        if let Some(gauge) = &self.up {
            gauge.set(up);
        }
    }

    async fn keep(&self) {
        let mut number = 0;
        loop {
            number += 1;
            let connection = self.connect().await;
            info!(purpose = self.purpose, number, "connected to redis");
            self.count_up(1);
            self.current.send_replace(Some(Connected {
                number,
                connection: connection.clone(),
            }));
            self.hold(number, connection).await;
            self.count_up(0);
            warn!(
                purpose = self.purpose,
                number, "connection to redis given up"
            );
        }
    }

    /// Returns when connection `number` has been given up. What is remembered is the number and not that
    /// something failed: a failure of the connection before it must not end this one.
    async fn hold(&self, number: u64, connection: MultiplexedConnection) {
        let mut changes = self.current.subscribe();
        let mut given_up = pin!(async move {
            // Fails only without `self`.
            drop(changes.wait_for(Option::is_none).await);
        });
        loop {
            tokio::select! {
                biased;
                () = &mut given_up => return,
                () = self.server.suspect.notified() => {}
            }
            let mut probe = connection.clone();
            let answers = async move {
                redis::cmd("PING")
                    .query_async::<()>(&mut probe)
                    .await
                    .is_ok()
            };
            tokio::select! {
                biased;
                () = &mut given_up => return,
                alive = answers => if !alive {
                    self.give_up(number);
                },
            }
        }
    }

    async fn connect(&self) -> MultiplexedConnection {
        let mut pause = RECONNECT_MIN;
        loop {
            match self.try_connect().await {
                Ok(connection) => return connection,
                Err(error) => {
                    warn!(purpose = self.purpose, %error, "cannot connect to redis");
                }
            }
            // Full jitter: instances that lost the same Redis do not come back in step.
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn try_connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.server.request_timeout));
        let mut connection = self
            .server
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        self.server.names.confirm(&mut connection).await?;
        Scripts::load(&mut connection).await?;
        Ok(connection)
    }
}

/// Whether Redis certainly did nothing: it answered, and the answer was a refusal.
pub(super) fn was_refused(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        redis::ErrorKind::Server(_) | redis::ErrorKind::Extension
    )
}

/// Whether the connection is of no more use: lost, or to a server that is not (any longer) the master.
pub(super) fn is_broken(error: &RedisError) -> bool {
    use redis::ServerErrorKind::{MasterDown, Moved, ReadOnly};
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            redis::ErrorKind::Server(ReadOnly | Moved | MasterDown)
        )
        // Redis 6.2 wraps what a script met.
        || error.detail().is_some_and(|detail| detail.contains("READONLY"))
}
