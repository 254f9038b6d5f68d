//! The inbox: a door that fetches. Consumes a topic of JSON messages from nsqd and gives them to the
//! intake, so that services that can only publish to NSQ can schedule too. nsqd is told FIN only after
//! the store has taken a message. What is not valid goes to a topic beside.

mod connection;
mod fate;
mod invalid;
mod lookup;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::ingest::Intake;
use crate::ingest::metrics::Metrics;
use crate::message::{BadTopic, TopicName};
use crate::nsq::consumption::ChannelName;
use crate::nsqd::Carriage;

use connection::Source;
use lookup::Lookup;

/// How often nsqlookupds are asked, at most; at least after half of it.
const POLL: Duration = Duration::from_secs(30);
/// What the name of the topic of what is not valid ends in.
const INVALID_SUFFIX: &str = ".invalid";
const EPHEMERAL: &str = "#ephemeral";

/// What the inbox is told by the configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is consumed.
    pub topic: TopicName,
    /// As which channel.
    pub channel: ChannelName,
    /// Where what is not valid goes; of [`invalid_topic`].
    pub invalid_topic: TopicName,
    /// nsqds that are consumed from.
    pub nsqd_tcp_addresses: Vec<String>,
    /// nsqlookupds that know more of them.
    pub lookupd_http_addresses: Vec<String>,
    /// Most messages of one nsqd that are on their way into the store.
    pub in_flight_max: usize,
    /// How long nsqd waits for our answer before it pushes a message again: also how long those wait
    /// that an instance had taken when it was killed. Longer than the store takes.
    pub msg_timeout: Duration,
    /// How long connecting and IDENTIFY may take together.
    pub dial_timeout: Duration,
    /// Heartbeat interval asked of nsqd.
    pub heartbeat_interval: Duration,
    /// What connections to nsqd are carried in.
    pub carriage: Carriage,
    /// First pause after a failure; it doubles, with jitter.
    pub backoff_min: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
}

/// The topic beside `topic` for what is not valid.
pub fn invalid_topic(topic: &TopicName) -> Result<TopicName, BadTopic> {
    let name = topic.as_str();
    let (stem, ephemeral) = match name.strip_suffix(EPHEMERAL) {
        Some(stem) => (stem, EPHEMERAL),
        None => (name, ""),
    };
    TopicName::parse(format!("{stem}{INVALID_SUFFIX}{ephemeral}").as_bytes())
}

/// Begins to consume, in tasks of `tracker`, until `stop`: then what is on its way into the store is
/// finished and confirmed.
pub fn start(
    config: Config,
    intake: Intake,
    metrics: Metrics,
    tracker: &TaskTracker,
    stop: CancellationToken,
) {
    let (listed, _) = watch::channel(BTreeSet::new());
    let directory = Directory {
        config: Arc::new(config),
        intake,
        metrics,
        listed,
        tracker: tracker.clone(),
        stop,
    };
    tracker.spawn(directory.run());
}

/// Which nsqds there are, and a task for each.
#[derive(Debug)]
struct Directory {
    config: Arc<Config>,
    intake: Intake,
    metrics: Metrics,
    /// Addresses that are configured, or that nsqlookupds named last.
    listed: watch::Sender<BTreeSet<String>>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Directory {
    async fn run(self) {
        let lookup = match Lookup::new(self.config.dial_timeout) {
            Ok(lookup) => lookup,
            Err(error) => {
                warn!(%error, "inbox: nsqlookupd cannot be asked");
                return;
            }
        };
        let mut named: HashMap<String, Vec<String>> = HashMap::new();
        let mut running = HashMap::new();
        loop {
            for lookupd in &self.config.lookupd_http_addresses {
                match lookup.producers(lookupd, &self.config.topic).await {
                    Ok(producers) => {
                        debug!(lookupd, ?producers, "inbox: nsqlookupd answered");
                        named.insert(lookupd.clone(), producers);
                    }
                    // What it named before still counts.
                    Err(error) => warn!(lookupd, %error, "inbox: nsqlookupd does not answer"),
                }
            }
            let fixed = self.config.nsqd_tcp_addresses.iter();
            let listed: BTreeSet<_> = fixed.chain(named.values().flatten()).cloned().collect();
            running.retain(|_, task: &mut tokio::task::JoinHandle<()>| !task.is_finished());
            self.listed.send_replace(listed.clone());
            for address in listed {
                running.entry(address.clone()).or_insert_with(|| {
                    let source = Source {
                        address,
                        config: Arc::clone(&self.config),
                        intake: self.intake.clone(),
                        metrics: self.metrics.clone(),
                        listed: self.listed.subscribe(),
                    };
                    self.tracker.spawn(source.keep(self.stop.clone()))
                });
            }
            let pause = POLL.mul_f64(0.5 + fastrand::f64() / 2.0);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(pause) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_beside_is_as_lasting_as_the_topic() {
        let beside = |name: &str| {
            let topic = TopicName::parse(name.as_bytes()).unwrap();
            invalid_topic(&topic).map(|topic| topic.as_str().to_owned())
        };
        assert_eq!(beside("inbox").unwrap(), "inbox.invalid");
        assert_eq!(beside("in#ephemeral").unwrap(), "in.invalid#ephemeral");
        beside(&"x".repeat(57)).unwrap_err();
    }
}
