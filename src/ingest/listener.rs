//! Accepts TCP connections, up to a limit, and gives each a session of its own. Knows nothing of
//! what is said on them.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::ingest::Intake;
use crate::ingest::clients::Clients;
use crate::ingest::metrics::{Door, DoorLabel, Metrics};
use crate::ingest::session::{self, Desk};

/// Pause after the first failed accept, doubled with each further one.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause after a failed accept.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Serves nsqd's TCP protocol on `listener` until `drain`; then nothing new is accepted, and the
/// sessions, which run on `tracker`, answer what they have read and end.
pub async fn serve(
    listener: TcpListener,
    intake: Intake,
    clients: Clients,
    metrics: Metrics,
    tracker: TaskTracker,
    drain: CancellationToken,
) {
    let label = DoorLabel { door: Door::Tcp };
    let refused = metrics.connections_refused.get_or_create(&label).clone();
    let connections = metrics.connections.get_or_create(&label).clone();
    let places = Arc::new(Semaphore::new(
        intake.config.max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let desk = Desk::new(intake, clients, metrics);
    let mut number = 0_u64;
    let mut pause = ACCEPT_PAUSE_MIN;
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly out of file descriptors: they come back when clients leave.
                warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                continue;
            }
        };
        pause = ACCEPT_PAUSE_MIN;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refused.inc();
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            // The peer is gone already; its session will find out.
            debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        number += 1;
        let session = session::run(stream, peer, number, desk.clone(), drain.clone());
        let connections = connections.clone();
        tracker.spawn(async move {
            connections.inc();
            session.await;
            connections.dec();
            drop(place);
        });
    }
}
