//! All connections to nsqd as one `Forward`: chooses a connection for each batch, tries another when
//! it certainly was not sent, and collects the facts. Sends nothing again that may have arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::forward::batch::{Batch, Limits, split};
use crate::forward::bisect::{Fact, Search};
use crate::forward::link::{Circuit, Link, Nsqd};
use crate::forward::metrics::Metrics;
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

/// Connections to the configured nsqds.
#[derive(Debug)]
pub struct NsqdPool {
    links: Vec<Arc<Link>>,
    limits: Limits,
    metrics: Metrics,
    /// Number of links that are connected.
    ready: watch::Receiver<usize>,
    /// Where the next choice begins to look, so that equals take turns.
    turn: AtomicUsize,
    questions: Semaphore,
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
    /// Starts dialing every nsqd of `config`, in tasks of `tracker`, until `stop` is cancelled. What
    /// is under way then is finished within `forward_timeout`; nothing more is taken, so callers
    /// stop first.
    pub fn start(
        config: Config,
        metrics: Metrics,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let config = Arc::new(config);
        let (ready_sender, ready) = watch::channel(0);
        let mut links = Vec::new();
        for address in &config.nsqd_tcp_addresses {
            let nsqd = Nsqd::new(address.clone(), Arc::clone(&config), metrics.clone());
            let nsqd = Arc::new(nsqd);
            for _ in 0..config.connections_per_nsqd.max(1) {
                let (link, parcels) = Link::new(Arc::clone(&nsqd), ready_sender.clone());
                let link = Arc::new(link);
                tracker.spawn(Arc::clone(&link).keep(parcels, stop.clone()));
                links.push(link);
            }
        }
        Arc::new(Self {
            links,
            limits: Limits {
                messages_max: config.mpub_messages_max,
                bytes_max: config.mpub_bytes_max,
            },
            metrics,
            ready,
            turn: AtomicUsize::new(0),
            questions: Semaphore::new(QUESTIONS_MAX),
            stop,
        })
    }

    /// The usable link whose nsqd has the fewest bytes unanswered. One that has to prove itself gets
    /// one batch at a time, unless there is no other.
    fn choose(&self) -> Option<&Link> {
        let count = self.links.len();
        let first = self
            .turn
            .fetch_add(1, Ordering::Relaxed)
            .checked_rem(count)?;
        let in_turn = self.links.iter().cycle().skip(first).take(count);
        in_turn
            .filter_map(|link| {
                let used = link.nsqd.room.used();
                match link.circuit() {
                    Circuit::Open => None,
                    Circuit::HalfOpen => Some((used > 0, used, link)),
                    Circuit::Closed => Some((false, used, link)),
                }
            })
            .min_by_key(|(on_trial, used, _)| (*on_trial, *used))
            .map(|(_, _, link)| link.as_ref())
    }

    async fn choose_or_wait(&self, deadline: Deadline) -> Option<&Link> {
        let wait = deadline.left().min(REDIAL_WAIT);
        let choice = async {
            loop {
                // A link may break between the two.
                if let Some(link) = self.choose() {
                    return link;
                }
                self.wait_ready().await;
            }
        };
        if self.links.is_empty() || self.stop.is_cancelled() {
            return None;
        }
        timeout(wait, choice).await.ok()
    }

    /// Completes when some link is connected. Cancel safe.
    async fn wait_ready(&self) {
        let mut ready = self.ready.clone();
        if ready.wait_for(|count| *count > 0).await.is_err() {
            // All links have stopped for good.
            std::future::pending::<()>().await;
        }
    }

    async fn deliver(&self, batch: Batch, deadline: Deadline) -> Fate {
        let mut batch = batch;
        for _ in 0..ATTEMPTS_MAX {
            if deadline.passed() {
                break;
            }
            let Some(link) = self.choose_or_wait(deadline).await else {
                break;
            };
            let Some((back, verdict)) = link.ask(batch, deadline).await else {
                return Fate::Each(Vec::new());
            };
            match verdict {
                Verdict::Accepted => return Fate::Same(back.indexes, Ok(())),
                Verdict::Unknown => return Fate::Same(back.indexes, Err(Error::Unknown)),
                Verdict::NotSent => batch = back,
                Verdict::Refused(refusal) => {
                    let search = self.search(&link.nsqd, deadline, back, refusal);
                    return Fate::Each(Box::pin(search).await);
                }
            }
        }
        Fate::Same(batch.indexes, Err(Error::NotSent))
    }

    async fn search(
        &self,
        nsqd: &Nsqd,
        deadline: Deadline,
        batch: Batch,
        refusal: Refusal,
    ) -> Vec<Fact> {
        let mut others: Vec<Arc<Nsqd>> = Vec::new();
        for link in &self.links {
            let known = others.iter().any(|other| Arc::ptr_eq(other, &link.nsqd));
            let same = std::ptr::eq(nsqd, link.nsqd.as_ref());
            if !known && !same && link.circuit() != Circuit::Open {
                others.push(Arc::clone(&link.nsqd));
            }
        }
        let search = Search {
            nsqd,
            others,
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

    /// Cancel safe.
    fn wait_available(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.wait_ready())
    }
}
