//! All connections to nsqd as one `Forward`: chooses a connection for each batch, tries another when
//! it certainly was not sent, and collects the facts. Sends nothing again that may have arrived.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::forward::batch::{Batch, Limits, split};
use crate::forward::bisect::{Fact, Search};
use crate::forward::depth::{Depth, Patience};
use crate::forward::discovery::Discovery;
use crate::forward::link::{Link, Nsqd};
use crate::forward::metrics::Metrics;
use crate::forward::nodes::{Nodes, Topics};
use crate::forward::roster::{Member, Roster};
use crate::forward::settings::Config;
use crate::forward::verdict::{Refusal, Verdict};
use crate::forward::{Deadline, DueMessage, Error, Forward};

/// Most connections that a batch is tried on within one call.
const ATTEMPTS_MAX: usize = 8;
/// How long a call waits for a connection when there is none. nsqd closes at every refusal: dialing
/// again takes less, so that messages behind a refused one need not go back to the caller.
const REDIAL_WAIT: Duration = Duration::from_millis(100);
/// Most connections that look for refused messages at the same time.
const QUESTIONS_MAX: usize = 4;

/// Connections to all nsqds.
#[derive(Debug)]
pub struct NsqdPool {
    config: Arc<Config>,
    roster: RwLock<Arc<Roster>>,
    limits: Limits,
    pub(super) metrics: Metrics,
    /// Number of links that are connected.
    ready: watch::Sender<usize>,
    /// Where the next choice begins to look, so that equals take turns.
    turn: AtomicUsize,
    questions: Semaphore,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// What became of a batch: messages that no part of it names are unknown.
enum Fate {
    /// The same of all.
    Same(Vec<usize>, Result<(), Error>),
    /// Of each its own.
    Each(Vec<Fact>),
}

impl NsqdPool {
    /// Starts dialing every nsqd of `config`, and asking every nsqlookupd of it for more, in tasks of
    /// `tracker`, until `stop` is cancelled. What is under way then is finished within
    /// `forward_timeout`; nothing more is taken, so callers stop first.
    pub fn start(
        config: Config,
        metrics: Metrics,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let config = Arc::new(config);
        let pool = Arc::new(Self {
            roster: RwLock::default(),
            limits: Limits {
                messages_max: config.mpub_messages_max,
                bytes_max: config.mpub_bytes_max,
            },
            metrics,
            ready: watch::Sender::new(0),
            turn: AtomicUsize::new(0),
            questions: Semaphore::new(QUESTIONS_MAX),
            tracker: tracker.clone(),
            stop,
            config: Arc::clone(&config),
        });
        pool.learn(Nodes::new());
        if let Some(discovery) = Discovery::new(&config) {
            for lookupd in 0..config.lookupd_http_addresses.len() {
                let (discovery, pool) = (Arc::clone(&discovery), Arc::clone(&pool));
                let stop = pool.stop.clone();
                tracker.spawn(discovery.poll(lookupd, pool, stop));
            }
        }
        pool
    }

    /// Takes in which nsqds nsqlookupd knows now: new ones are dialed, those that are gone are closed
    /// when what is under way to them is answered.
    pub(super) fn learn(&self, mut nodes: Nodes) {
        let mut roster = self.roster.write().unwrap_or_else(PoisonError::into_inner);
        let mut wanted = Vec::new();
        for address in &self.config.nsqd_tcp_addresses {
            wanted.push((address.clone(), true, nodes.remove(address)));
        }
        let found = nodes.into_iter();
        wanted.extend(found.map(|(address, topics)| (address, false, Some(topics))));
        let mut before: HashMap<String, Member> = roster
            .members
            .iter()
            .map(|member| (member.nsqd.address.clone(), member.clone()))
            .collect();
        let mut members = Vec::with_capacity(wanted.len());
        for (address, named, topics) in wanted {
            let topics = topics.unwrap_or_default();
            let member = before.remove(&address);
            let member = member.unwrap_or_else(|| self.dial(address, named));
            members.push(Member { topics, ..member });
        }
        self.metrics
            .known
            .set(i64::try_from(members.len()).unwrap_or(i64::MAX));
        *roster = Arc::new(Roster { members });
        for (address, gone) in before {
            info!(nsqd = %address, "nsqlookupd does not know this nsqd any more");
            gone.stop.cancel();
            self.metrics.forget(&address);
        }
    }

    /// A new member, whose links begin to dial.
    fn dial(&self, address: String, named: bool) -> Member {
        if !named {
            info!(nsqd = %address, "nsqlookupd knows this nsqd");
        }
        let depth = self.depth(&address);
        let (config, metrics) = (Arc::clone(&self.config), self.metrics.clone());
        let nsqd = Nsqd::new(address, config, metrics, depth);
        let nsqd = Arc::new(nsqd);
        let stop = self.stop.child_token();
        let mut links = Vec::new();
        for _ in 0..self.config.connections_per_nsqd.max(1) {
            let (link, parcels) = Link::new(Arc::clone(&nsqd), self.ready.clone());
            let link = Arc::new(link);
            self.tracker
                .spawn(Arc::clone(&link).keep(parcels, stop.clone()));
            links.push(link);
        }
        Member {
            nsqd,
            links,
            named,
            topics: Topics::default(),
            stop,
        }
    }

    /// What asks the nsqd how much it holds, if its HTTP API is known.
    fn depth(&self, address: &str) -> Option<Arc<Depth>> {
        let (_, http) = self.config.nsqds().find(|(tcp, _)| *tcp == address)?;
        let http = http?;
        let max = self.config.nsqd_depth_max;
        if max == 0 {
            return None;
        }
        let (metrics, tracker) = (self.metrics.clone(), self.tracker.clone());
        match Depth::new(http, max, Patience::default(), metrics, tracker) {
            Ok(depth) => Some(Arc::new(depth)),
            Err(error) => {
                warn!(nsqd_http = %http, %error, "nsqd cannot be asked how much it holds");
                None
            }
        }
    }

    fn roster(&self) -> Arc<Roster> {
        let roster = self.roster.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&roster)
    }

    async fn choose_or_wait(&self, batch: &Batch, deadline: Deadline) -> Option<Arc<Link>> {
        if self.stop.is_cancelled() || self.roster().is_empty() {
            return None;
        }
        let mut ready = self.ready.subscribe();
        let choice = async {
            loop {
                let seen = *ready.borrow_and_update();
                if let Some(link) = self.roster().choose(batch, &self.turn) {
                    return link;
                }
                // None is connected, or none that would take these messages.
                if seen > 0 && ready.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                self.wait_ready().await;
            }
        };
        let wait = deadline.left().min(REDIAL_WAIT);
        timeout(wait, choice).await.ok()
    }

    /// Completes when some link is connected. Cancel safe.
    pub(super) async fn wait_ready(&self) {
        let mut ready = self.ready.subscribe();
        if ready.wait_for(|count| *count > 0).await.is_err() {
            // Cannot be: the sender is our own.
            std::future::pending::<()>().await;
        }
    }

    /// Completes when no link is connected. Cancel safe.
    pub(super) async fn wait_unavailable(&self) {
        let mut ready = self.ready.subscribe();
        if ready.wait_for(|count| *count == 0).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn deliver(&self, batch: Batch, deadline: Deadline) -> Fate {
        let mut batch = batch;
        for _ in 0..ATTEMPTS_MAX {
            if deadline.passed() {
                break;
            }
            let Some(link) = self.choose_or_wait(&batch, deadline).await else {
                break;
            };
            let pace = link.nsqd.pace.messages();
            if batch.len() > pace {
                return Box::pin(self.deliver_parts(&batch, pace, deadline)).await;
            }
            let Some((back, verdict)) = link.ask(batch, deadline).await else {
                return Fate::Each(Vec::new());
            };
            match verdict {
                Verdict::Accepted => return Fate::Same(back.indexes, Ok(())),
                Verdict::Unknown => return Fate::Same(back.indexes, Err(Error::Unknown)),
                Verdict::NotSent => batch = back,
                Verdict::Refused(refusal) => {
                    link.nsqd.refused(&refusal.text);
                    let search = self.search(&link.nsqd, deadline, back, refusal);
                    return Fate::Each(Box::pin(search).await);
                }
            }
        }
        Fate::Same(batch.indexes, Err(Error::NotSent))
    }

    /// Delivers `batch` in parts of so many messages, each wherever it suits best.
    async fn deliver_parts(&self, batch: &Batch, messages: usize, deadline: Deadline) -> Fate {
        let starts = (0..batch.len()).step_by(messages);
        let parts = starts.map(|start| batch.part(start..start + messages));
        let fates = join_all(parts.map(|part| self.deliver(part, deadline))).await;
        let facts = fates.into_iter().flat_map(|fate| match fate {
            Fate::Same(indexes, fact) => indexes
                .into_iter()
                .map(|index| (index, fact.clone()))
                .collect(),
            Fate::Each(facts) => facts,
        });
        Fate::Each(facts.collect())
    }

    async fn search(
        &self,
        nsqd: &Nsqd,
        deadline: Deadline,
        batch: Batch,
        refusal: Refusal,
    ) -> Vec<Fact> {
        let (others, complete) = self.roster().others(nsqd);
        let search = Search {
            nsqd,
            others,
            complete,
            deadline,
            questions: &self.questions,
            stop: &self.stop,
        };
        search.run(batch, refusal).await
    }

    async fn publish_all(
        &self,
        messages: Vec<DueMessage>,
        deadline: Deadline,
    ) -> Vec<Result<(), Error>> {
        let mut facts = vec![Err(Error::Unknown); messages.len()];
        let mut batches = split(messages, self.limits);
        let fates = match (batches.pop(), batches.is_empty()) {
            (None, _) => Vec::new(),
            (Some(only), true) => vec![self.deliver(only, deadline).await],
            (Some(last), false) => {
                batches.push(last);
                let all = batches
                    .into_iter()
                    .map(|batch| self.deliver(batch, deadline));
                join_all(all).await
            }
        };
        let mut put = |index: usize, fact| {
            if let Some(place) = facts.get_mut(index) {
                *place = fact;
            }
        };
        for fate in fates {
            match fate {
                Fate::Same(indexes, fact) => {
                    for index in indexes {
                        put(index, fact.clone());
                    }
                }
                Fate::Each(each) => {
                    for (index, fact) in each {
                        put(index, fact);
                    }
                }
            }
        }
        self.metrics.count(&facts);
        facts
    }
}

impl Forward for NsqdPool {
    /// Dropping it drops what was not written yet; what was is left on its way.
    fn publish(
        &self,
        messages: Vec<DueMessage>,
        deadline: Deadline,
    ) -> BoxFuture<'_, Vec<Result<(), Error>>> {
        Box::pin(self.publish_all(messages, deadline))
    }

    fn available(&self) -> bool {
        *self.ready.borrow() > 0
    }

    fn servers(&self) -> usize {
        self.roster().members.len()
    }

    /// Cancel safe.
    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.wait_ready())
    }
}
