//! Decides what is handed to nsqd and when; drives one state machine per shard. Knows neither Redis
//! nor NSQ, only the traits.

mod facts;
mod gate;
mod metrics;
mod pace;
mod pauses;
mod poller;
mod ready;
mod retry;
mod settings;
mod shared;
mod steps;
mod tenure;
mod turn;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use metrics::Metrics;
pub use settings::Config;

use crate::dispatch::gate::{Gate, RatesMax};
use crate::dispatch::pace::Pace;
use crate::dispatch::pauses::{Occasion, Pauses};
use crate::dispatch::poller::{News, Poller, Status};
use crate::dispatch::shared::Shared;
use crate::dispatch::steps::Steps;
use crate::forward::Forward;
use crate::shard::{InstanceId, ShardId, owner_of};
use crate::store::{ClaimStore, Swept, Wake};
use crate::timer::{Clock, Timer};

/// Time after an instance's expiry at which it is looked for.
const EXPIRY_MARGIN: Duration = Duration::from_millis(5);

/// Old ids age so much more rarely than shards are swept: nobody waits for it.
const TRIM_SWEEPS: u32 = 2;

/// Serves the shards that this instance owns among the live ones.
#[derive(Debug)]
pub struct Dispatcher {
    me: InstanceId,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    /// In order, so that what happens depends on nothing but time, replies and the random seed.
    served: BTreeMap<ShardId, Served>,
    /// Shards whose old driver still settles: they are not started again before it has ended.
    ending: Vec<JoinHandle<()>>,
    last_trim: Instant,
    /// Steps of Redis's clock of which the shards have been told.
    follows: u64,
    /// Rung when this instance is to end.
    drain: CancellationToken,
}

/// A shard that this instance serves.
#[derive(Debug)]
struct Served {
    news: mpsc::UnboundedSender<News>,
    status: Arc<Status>,
    stop: CancellationToken,
    driver: JoinHandle<()>,
}

impl Dispatcher {
    /// Begins to serve; on `drain`, hands out nothing more, finishes what is in flight, settles,
    /// releases the claims and says farewell. The task's end says that all of that is done.
    pub fn start(
        config: Config,
        store: Arc<dyn ClaimStore>,
        forward: Arc<dyn Forward>,
        metrics: Metrics,
        clock: Clock,
        tracker: &TaskTracker,
        drain: CancellationToken,
    ) -> JoinHandle<()> {
        let me = InstanceId(format!("{:016x}", fastrand::u64(..)));
        let turns = Semaphore::new(config.pollers.max(1));
        let rates_max = RatesMax {
            all: config.forward_rate_max,
            server: config.nsqd_rate_max,
        };
        let shared = Arc::new(Shared {
            steps: Mutex::new(Steps::new(config.clock_step_hold)),
            follows: AtomicU64::new(0),
            pauses: Pauses::new(),
            pace: Pace::new(Instant::now()),
            gate: Arc::new(Gate::new(config.sending_bytes_max, rates_max)),
            config,
            store,
            forward,
            metrics,
            turns,
            open_bytes: AtomicUsize::new(0),
            clock,
            accepted: AtomicU64::new(0),
        });
        let dispatcher = Self {
            me,
            shared,
            tracker: tracker.clone(),
            served: BTreeMap::new(),
            ending: Vec::new(),
            last_trim: Instant::now(),
            follows: 0,
            drain,
        };
        tracker.spawn(dispatcher.run())
    }

    async fn run(mut self) {
        let drain = self.drain.clone();
        let mut wakes = self.shared.store.wakes();
        let mut beat_at = Instant::now();
        let mut sweep_at = beat_at + self.shared.config.sweep;
        tokio::select! {
            biased;
            () = drain.cancelled() => {}
            () = pauses::learn(&self.shared) => {}
        }
        info!(instance = %self.me.0, "dispatch serves");
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                wake = wakes.next() => match wake {
                    Some(Wake::Earlier(shard, due)) => self.tell(shard, News::Earlier(due)),
                    Some(Wake::Lost) => self.tell_all(News::Look),
                    Some(Wake::Pauses) => self.look_at_pauses(Occasion::News),
                    None => break,
                },
                () = sleep_until(beat_at) => beat_at = Instant::now() + self.beat().await,
                () = sleep_until(sweep_at) => {
                    self.sweep().await;
                    sweep_at = Instant::now() + self.shared.config.sweep;
                }
            }
        }
        self.farewell().await;
    }

    /// One heartbeat and what follows from it; answers how long until the next.
    async fn beat(&mut self) -> Duration {
        let mut pause = self.shared.config.heartbeat;
        match self.shared.store.beat(self.me.clone(), false).await {
            Ok(members) => {
                self.own(&members.live);
                // Whoever has gone silent is missed at once when it expires.
                let expiry = members.next_expiry.map(|expiry| expiry + EXPIRY_MARGIN);
                pause = expiry.map_or(pause, |expiry| expiry.min(pause));
            }
            // Claims keep others from our shards; without Redis nobody can take them over anyway.
            Err(error) => warn!(%error, "heartbeat failed"),
        }
        self.ending.retain(|driver| !driver.is_finished());
        self.measure();
        self.shared.gate.serve(self.shared.forward.servers());
        if self.shared.pauses.is_asked_for() {
            self.look_at_pauses(Occasion::Beat);
        }
        let follows = self.shared.follows.load(Ordering::Relaxed);
        if follows != self.follows {
            self.follows = follows;
            // They sleep until a moment of the clock as it was.
            self.tell_all(News::Look);
        }
        pause
    }

    /// Looks for what was missed, with one small command a shard: wakes that were lost, and what was held by an
    /// instance that did not know yet that its topic was resumed.
    async fn sweep(&mut self) {
        let shards = self.served.keys().copied().collect();
        match self.shared.store.sweep(shards).await {
            Ok(swept) => {
                for Swept { shard, watch, .. } in &swept {
                    self.tell(*shard, News::Earlier(*watch));
                }
                let holding = swept.iter().filter(|shard| shard.held > 0);
                let holding = holding.map(|swept| swept.shard).collect();
                self.look_at_pauses(Occasion::Sweep(holding));
            }
            Err(error) => warn!(%error, "lost wakes were not looked for"),
        }
        if self.last_trim.elapsed() >= self.shared.config.sweep * TRIM_SWEEPS {
            self.last_trim = Instant::now();
            self.trim();
        }
    }

    /// Starts and stops shards, so that those served are those owned.
    fn own(&mut self, live: &[InstanceId]) {
        let topology = self.shared.store.topology();
        let mine = |shard: &ShardId| owner_of(*shard, live) == Some(&self.me);
        let owned: Vec<ShardId> = topology.all().filter(mine).collect();
        self.shared
            .metrics
            .members
            .set(i64::try_from(live.len()).unwrap_or(i64::MAX));
        self.shared
            .metrics
            .shards_owned
            .set(i64::try_from(owned.len()).unwrap_or(i64::MAX));
        let mut changed = false;
        let lost: Vec<ShardId> = self
            .served
            .keys()
            .filter(|shard| !owned.contains(shard))
            .copied()
            .collect();
        for shard in lost {
            if let Some(served) = self.served.remove(&shard) {
                served.stop.cancel();
                self.ending.push(served.driver);
                changed = true;
            }
        }
        for shard in &owned {
            if !self.served.contains_key(shard) {
                self.serve(*shard);
                self.shared.pauses.look_again();
                changed = true;
            }
        }
        if changed {
            info!(shards = owned.len(), members = live.len(), "shards owned");
            self.shared.store.listen(owned);
        }
    }

    fn serve(&mut self, shard: ShardId) {
        let (news, heard) = mpsc::unbounded_channel();
        let (status, stop) = (Arc::new(Status::default()), CancellationToken::new());
        let poller = Poller {
            shared: Arc::clone(&self.shared),
            shard,
            status: Arc::clone(&status),
            news: heard,
            stop: stop.clone(),
            token: None,
            timer: Timer::new(self.shared.clock.timers),
        };
        let driver = self.tracker.spawn(poller.run());
        self.served.insert(
            shard,
            Served {
                news,
                status,
                stop,
                driver,
            },
        );
    }

    fn tell(&self, shard: ShardId, news: News) {
        // A driver that has ended is replaced at the next heartbeat, and looks for itself.
        if let Some(served) = self.served.get(&shard)
            && served.news.send(news).is_err()
        {
            warn!(%shard, "the driver of a shard has ended");
        }
    }

    fn tell_all(&self, news: News) {
        for shard in self.served.keys() {
            self.tell(*shard, news);
        }
    }

    /// Sums up what the shards tell about themselves.
    fn measure(&self) {
        let now = self.shared.now_bounds().at_least_us / 1_000;
        let (mut overdue, mut oldest) = (0, now);
        for served in self.served.values() {
            overdue += served.status.open.load(Ordering::Relaxed);
            let due = served.status.oldest_due_ms.load(Ordering::Relaxed);
            if due > 0 {
                oldest = oldest.min(due);
            }
        }
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.shared.metrics.overdue.set(gauge(overdue as u64));
        self.shared
            .metrics
            .oldest_overdue_ms
            .set(gauge(now.saturating_sub(oldest)));
    }

    fn look_at_pauses(&self, occasion: Occasion) {
        let shards = self.served.keys().copied().collect();
        let looking = pauses::look(
            Arc::clone(&self.shared),
            shards,
            occasion,
            self.drain.clone(),
        );
        self.tracker.spawn(looking);
    }

    /// Lets old ids age, shard by shard, beside everything else.
    fn trim(&self) {
        let shards: Vec<ShardId> = self.served.keys().copied().collect();
        let (store, stop) = (Arc::clone(&self.shared.store), self.drain.clone());
        self.tracker.spawn(async move {
            for shard in shards {
                while !stop.is_cancelled() {
                    match store.trim(shard).await {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(error) => return warn!(%shard, %error, "old ids were not trimmed"),
                    }
                }
            }
        });
    }

    async fn farewell(mut self) {
        for served in std::mem::take(&mut self.served).into_values() {
            served.stop.cancel();
            self.ending.push(served.driver);
        }
        for driver in self.ending.drain(..) {
            if driver.await.is_err() {
                warn!("the driver of a shard ended in a panic");
            }
        }
        if let Err(error) = self.shared.store.beat(self.me.clone(), true).await {
            warn!(%error, "no farewell; the others wait until this instance expires");
        }
        info!("dispatch has settled");
    }
}
