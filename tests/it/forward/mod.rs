//! Forward against real nsqds, and against a scripted one for what a real one does not do on demand.
//! Each test looks at the facts that were reported and at what the nsqd got. Here: the pool under
//! test.

mod depth;
mod lookup;
mod real;
mod scripted;
mod upgraded;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nsqdelayd::forward::metrics::{Metrics, NsqdLabel, Outcome, OutcomeLabel};
use nsqdelayd::forward::{Carriage, Config, Deadline, DueMessage, Error, Forward, NsqdPool};
use nsqdelayd::message::TopicName;
use rustix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::support::wait;

/// A pool and what it was started with. Stops when dropped.
struct Pool {
    forward: Arc<NsqdPool>,
    metrics: Metrics,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn config(addresses: &[&str]) -> Config {
    Config {
        nsqd_tcp_addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        nsqd_http_addresses: Vec::new(),
        nsqd_depth_max: 5_000,
        lookupd_http_addresses: Vec::new(),
        lookupd_poll_interval: Duration::from_millis(100),
        connections_per_nsqd: 1,
        dial_timeout: Duration::from_secs(5),
        forward_timeout: Duration::from_secs(20),
        heartbeat_interval: Duration::from_secs(30),
        unanswered_bytes_max: 4 << 20,
        mpub_messages_max: 200,
        mpub_bytes_max: 1 << 20,
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(100),
        carriage: Carriage::default(),
    }
}

/// Starts a pool and waits until every connection is made.
async fn start(config: Config) -> Pool {
    let pool = start_later(config.clone());
    for address in &config.nsqd_tcp_addresses {
        pool.connected(address, config.connections_per_nsqd).await;
    }
    pool
}

fn start_later(config: Config) -> Pool {
    let (metrics, tracker) = (Metrics::default(), TaskTracker::new());
    let stop = CancellationToken::new();
    let forward = NsqdPool::start(config, metrics.clone(), &tracker, stop.clone());
    tracker.close();
    Pool {
        forward,
        metrics,
        tracker,
        stop,
    }
}

impl Pool {
    async fn publish(&self, messages: Vec<DueMessage>) -> Vec<Result<(), Error>> {
        self.forward.publish(messages, far()).await
    }

    fn connections(&self, address: &str) -> i64 {
        let nsqd = address.to_owned();
        let label = NsqdLabel { nsqd };
        self.metrics.connections.get_or_create(&label).get()
    }

    async fn connected(&self, address: &str, count: usize) {
        let what = format!("{count} connections to {address}");
        wait::until_async(&what, || async {
            self.connections(address) == i64::try_from(count).unwrap()
        })
        .await;
    }

    fn counted(&self, outcome: Outcome) -> u64 {
        let label = OutcomeLabel { outcome };
        self.metrics.forwarded.get_or_create(&label).get()
    }
}

fn clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap(),
        now.tv_nsec.try_into().unwrap(),
    )
}

/// A deadline that no test reaches.
fn far() -> Deadline {
    Deadline {
        at: clock() + Duration::from_hours(1),
        clock,
    }
}

fn due(topic: &str, body: impl Into<Bytes>) -> DueMessage {
    DueMessage {
        topic: TopicName::parse(topic.as_bytes()).unwrap(),
        body: body.into(),
    }
}

fn numbered(topic: &str, count: usize) -> Vec<DueMessage> {
    (0..count)
        .map(|n| due(topic, format!("{topic} {n}")))
        .collect()
}
