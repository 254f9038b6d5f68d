//! One lasting place for a connection to one nsqd: dials, dials again with growing pauses, and says
//! whether it can be used. Does not choose between nsqds.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::forward::Deadline;
use crate::forward::batch::Batch;
use crate::forward::connection::{Connection, Ended, Fault, Parcel, Reason, turn_away};
use crate::forward::depth::Depth;
use crate::forward::metrics::{Metrics, NsqdLabel};
use crate::forward::pace::Pace;
use crate::forward::room::Room;
use crate::forward::settings::Config;
use crate::forward::verdict::{Verdict, msg_size_limit};

/// What an nsqd that has not named its limit takes.
const NO_LIMIT: usize = usize::MAX;

/// One nsqd.
#[derive(Debug)]
pub(super) struct Nsqd {
    pub(super) address: String,
    pub(super) config: Arc<Config>,
    pub(super) metrics: Metrics,
    pub(super) room: Arc<Room>,
    pub(super) pace: Arc<Pace>,
    /// If it can be asked.
    depth: Option<Arc<Depth>>,
    connections: Gauge,
    /// Its `--max-msg-size`, which it only tells when it refuses.
    msg_size_max: AtomicUsize,
}

impl Nsqd {
    pub(super) fn new(
        address: String,
        config: Arc<Config>,
        metrics: Metrics,
        depth: Option<Arc<Depth>>,
    ) -> Self {
        let label = NsqdLabel {
            nsqd: address.clone(),
        };
        let used = metrics.unanswered_bytes.get_or_create_owned(&label);
        let connections = metrics.connections.get_or_create_owned(&label);
        Self {
            room: Arc::new(Room::new(config.unanswered_bytes_max, used)),
            pace: Arc::new(Pace::new(config.mpub_messages_max, config.forward_timeout)),
            depth,
            address,
            config,
            metrics,
            connections,
            msg_size_max: AtomicUsize::new(NO_LIMIT),
        }
    }

    /// Whether it has not said that a message of `batch` is too long for it.
    pub(super) fn fits(&self, batch: &Batch) -> bool {
        match self.msg_size_max.load(Ordering::Relaxed) {
            NO_LIMIT => true,
            limit => batch.bodies.iter().all(|body| body.len() <= limit),
        }
    }

    /// Takes note of the limit that a refusal may name.
    pub(super) fn refused(&self, text: &str) {
        if let Some(limit) = msg_size_limit(text) {
            self.msg_size_max.store(limit, Ordering::Relaxed);
        }
    }

    /// It may come back with other limits.
    fn forget_limit(&self) {
        self.msg_size_max.store(NO_LIMIT, Ordering::Relaxed);
    }

    /// Connects to it.
    pub(super) async fn dial(&self) -> Result<Connection, Fault> {
        let (pace, commands) = (Arc::clone(&self.pace), self.metrics.commands.clone());
        Connection::dial(&self.address, &self.config, pace, commands).await
    }

    /// Waits for room and until nsqd may hold as many, gives `batch` to whoever reads `parcels` and waits for its
    /// verdict. `NotSent` if that was not in time. Without a batch in the answer: it is unknown what became of it.
    /// Dropping it leaves what was written on its way.
    pub(super) async fn ask(
        &self,
        batch: Batch,
        deadline: Deadline,
        parcels: &UnboundedSender<Parcel>,
    ) -> Option<(Batch, Verdict)> {
        let taking = async {
            let taken = self.room.take(&batch).await;
            let given = match &self.depth {
                Some(depth) => Some(depth.give(&batch.topic, batch.len()).await),
                None => None,
            };
            (taken, given)
        };
        let Ok((taken, _given)) = timeout(deadline.left(), taking).await else {
            return Some((batch, Verdict::NotSent));
        };
        let (reply, verdict) = oneshot::channel();
        let parcel = Parcel {
            batch,
            deadline,
            reply,
            taken,
        };
        if let Err(unsent) = parcels.send(parcel) {
            return Some((unsent.0.batch, Verdict::NotSent));
        }
        verdict.await.ok()
    }
}

/// Whether a link can be used: the circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Circuit {
    /// Not connected.
    Open,
    /// Connected again after it failed with commands under way: to be tried with one first.
    HalfOpen,
    /// Connected.
    Closed,
}

/// One place for a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) nsqd: Arc<Nsqd>,
    /// A `Circuit`. Written by the task of `keep` alone.
    circuit: AtomicU8,
    parcels: UnboundedSender<Parcel>,
    /// Number of links of the pool that are connected.
    ready: watch::Sender<usize>,
}

impl Link {
    /// A link and what `keep` reads from.
    pub(super) fn new(
        nsqd: Arc<Nsqd>,
        ready: watch::Sender<usize>,
    ) -> (Self, UnboundedReceiver<Parcel>) {
        // Bounded by the room that each parcel has taken.
        let (parcels, arriving) = unbounded_channel();
        let link = Self {
            nsqd,
            circuit: AtomicU8::new(Circuit::Open as u8),
            parcels,
            ready,
        };
        (link, arriving)
    }

    /// Whether it can be used now.
    pub(super) fn circuit(&self) -> Circuit {
        let circuit = self.circuit.load(Ordering::Acquire);
        [Circuit::Closed, Circuit::HalfOpen]
            .into_iter()
            .find(|known| *known as u8 == circuit)
            .unwrap_or(Circuit::Open)
    }

    /// Publishes `batch` over this link; see [`Nsqd::ask`].
    pub(super) async fn ask(&self, batch: Batch, deadline: Deadline) -> Option<(Batch, Verdict)> {
        self.nsqd.ask(batch, deadline, &self.parcels).await
    }

    fn set(&self, circuit: Circuit) {
        let before = self.circuit();
        self.circuit.store(circuit as u8, Ordering::Release);
        if before == Circuit::Open && circuit != Circuit::Open {
            self.nsqd.connections.inc();
            self.ready.send_modify(|ready| *ready += 1);
        }
        if before != Circuit::Open && circuit == Circuit::Open {
            self.nsqd.connections.dec();
            self.ready
                .send_modify(|ready| *ready = ready.saturating_sub(1));
        }
    }

    /// Keeps this link connected until `stop` is cancelled, then finishes what is under way.
    pub(super) async fn keep(
        self: Arc<Self>,
        mut parcels: UnboundedReceiver<Parcel>,
        stop: CancellationToken,
    ) {
        let config = &self.nsqd.config;
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
        let mut connected = Circuit::Closed;
        let mut told = false;
        while !stop.is_cancelled() {
            let pause = match self
                .turned_away(&mut parcels, &stop, self.nsqd.dial())
                .await
            {
                None => break,
                Some(Ok(connection)) => {
                    info!(nsqd = %self.nsqd.address, "connected to nsqd");
                    told = false;
                    let at = Instant::now();
                    self.set(connected);
                    let prove = || {
                        if self.circuit() == Circuit::HalfOpen {
                            self.set(Circuit::Closed);
                        }
                    };
                    let ended = connection.run(&mut parcels, &stop, prove).await;
                    let proved = self.circuit() == Circuit::Closed;
                    self.set(Circuit::Open);
                    if proved && at.elapsed() >= config.backoff_max {
                        backoff.reset();
                    }
                    connected = after(&ended);
                    self.conclude(ended, &mut backoff)
                }
                Some(Err(error)) => {
                    if told {
                        debug!(nsqd = %self.nsqd.address, %error, "nsqd still unreachable");
                    } else {
                        warn!(nsqd = %self.nsqd.address, %error, "nsqd unreachable");
                    }
                    told = true;
                    backoff.next()
                }
            };
            if self
                .turned_away(&mut parcels, &stop, sleep(pause))
                .await
                .is_none()
            {
                break;
            }
        }
        turn_away(&mut parcels).await;
    }

    /// Logs the end of a connection, tells the callers, and says how long to pause.
    fn conclude(&self, ended: Ended, backoff: &mut Backoff) -> Duration {
        let pause = match &ended.reason {
            Reason::Drained => Duration::ZERO,
            // nsqd is well, and has closed only because that is its way to refuse.
            Reason::Refused(text) => {
                info!(nsqd = %self.nsqd.address, text, "nsqd refused a message");
                Duration::ZERO
            }
            Reason::Lost(error) => {
                warn!(nsqd = %self.nsqd.address, %error, "connection to nsqd lost");
                self.nsqd.forget_limit();
                if let Fault::NoAnswer(messages) = error {
                    self.nsqd.pace.unanswered(*messages);
                }
                backoff.next()
            }
        };
        ended.tell();
        pause
    }

    /// Waits for `other` and meanwhile turns away what was given to this link in the moment when it
    /// broke. `None` when `stop` was cancelled. Cancel safe as far as `other` is.
    async fn turned_away<T>(
        &self,
        parcels: &mut UnboundedReceiver<Parcel>,
        stop: &CancellationToken,
        other: impl Future<Output = T>,
    ) -> Option<T> {
        let turn_away = async {
            while let Some(parcel) = parcels.recv().await {
                parcel.answer(Verdict::NotSent);
            }
            pending::<Infallible>().await
        };
        tokio::select! {
            result = other => Some(result),
            never = turn_away => match never {},
            () = stop.cancelled() => None,
        }
    }
}

/// How the next connection begins after this end: one that failed with commands under way has to
/// prove itself.
fn after(ended: &Ended) -> Circuit {
    let doubted = matches!(ended.reason, Reason::Lost(_)) && !ended.verdicts.is_empty();
    if doubted {
        Circuit::HalfOpen
    } else {
        Circuit::Closed
    }
}

/// Pauses that double from `min` to `max`, each cut by up to half at random, so that instances do
/// not dial in step.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: min,
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = self.min;
    }

    pub(super) fn next(&mut self) -> Duration {
        let full = self.next.min(self.max);
        self.next = full.saturating_mul(2);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_and_stay_in_bounds(min in 1..1000_u64, factor in 1..100_u64) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min * factor));
            let mut backoff = Backoff::new(min, max);
            let mut full = min;
            for _ in 0..20 {
                let pause = backoff.next();
                prop_assert!(pause >= full / 2 && pause <= full);
                full = (full * 2).min(max);
            }
            backoff.reset();
            prop_assert!(backoff.next() <= min);
        }
    }
}
