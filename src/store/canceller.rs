//! Gathers cancels: those that came in while the last were under way go to Redis together, shard by shard, many
//! a script call. Nobody waits for company. What follows from the marks of many requests is done when there is a pause.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::id::{MessageId, PackName};
use crate::shard::ShardId;
use crate::store::cancelling::{self, Round};
use crate::store::core::Core;
use crate::store::tidying;
use crate::store::untidy::Untidy;
use crate::store::{Cancel, Error, ErrorKind};

/// Rounds under way at once: while Redis works on one, the next gathers and is sent.
const ROUNDS_MAX: usize = 2;
/// Most ids of one round, but for those that came in one request.
const ROUND_IDS_MAX: usize = 4_096;
/// Most ids that wait: callers may go away without their requests.
const QUEUED_IDS_MAX: usize = 100_000;
/// Ids of a round of several requests that is tidied before it is answered; with more, packs wait until they have more
/// that is cancelled.
const TIDY_AT_ONCE_MAX: usize = 16;
/// Packs that may wait to be tidied; with more, cancels wait.
const UNTIDY_MAX: usize = 200_000;
/// Tidying begins when no round has ended for so long,
const TIDY_PAUSE: Duration = Duration::from_millis(20);
/// and no later than this after the first: by then most packs have several that are cancelled.
const TIDY_AFTER: Duration = Duration::from_secs(5);

/// Ids that one caller wants cancelled.
#[derive(Debug)]
struct Request {
    ids: Vec<MessageId>,
    reply: oneshot::Sender<Result<Vec<Cancel>, Error>>,
}

/// The way into the queue.
#[derive(Debug)]
pub(super) struct Canceller {
    queue: mpsc::UnboundedSender<Request>,
    queued_ids: Arc<AtomicUsize>,
}

impl Canceller {
    /// Starts the gathering; it ends when `stop` is given and the queue is empty.
    pub(super) fn start(core: &Arc<Core>, stop: CancellationToken) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let queued_ids = Arc::new(AtomicUsize::new(0));
        let gatherer = Gatherer {
            core: Arc::clone(core),
            requests,
            queued_ids: Arc::clone(&queued_ids),
            untidy: Untidy::default(),
            tidy_at: None,
            batch: Untidy::default(),
        };
        core.tracker.spawn(gatherer.run(stop));
        Self { queue, queued_ids }
    }

    /// Cancels each of `ids`. Refused at once when too many wait.
    pub(super) async fn cancel(&self, ids: Vec<MessageId>) -> Result<Vec<Cancel>, Error> {
        let count = ids.len();
        let queued = self.queued_ids.fetch_add(count, Ordering::Relaxed);
        if queued > 0 && queued + count > QUEUED_IDS_MAX {
            self.queued_ids.fetch_sub(count, Ordering::Relaxed);
            return Err(Error::caused(
                ErrorKind::Overloaded,
                "too many cancels wait for redis",
            ));
        }
        let (reply, answer) = oneshot::channel();
        if self.queue.send(Request { ids, reply }).is_err() {
            return Err(Error::caused(
                ErrorKind::Unavailable,
                "the store has stopped",
            ));
        }
        answer
            .await
            .unwrap_or_else(|_dropped| Err(Error::new(ErrorKind::Unknown)))
    }
}

struct Gatherer {
    core: Arc<Core>,
    requests: mpsc::UnboundedReceiver<Request>,
    queued_ids: Arc<AtomicUsize>,
    untidy: Untidy,
    /// While something is untidy: when tidying may begin, and when at the latest.
    tidy_at: Option<(Instant, Instant)>,
    /// What is being tidied. What comes meanwhile gathers in `untidy`, so that each pack has its share of it.
    batch: Untidy,
}

impl Gatherer {
    async fn run(mut self, stop: CancellationToken) {
        let core = Arc::clone(&self.core);
        let mut rounds = FuturesUnordered::new();
        // One at a time, so that the others' questions come between.
        let mut tidying = FuturesUnordered::new();
        loop {
            let is_full = self.untidy.len() + self.batch.len() >= UNTIDY_MAX;
            let is_quiet = rounds.is_empty();
            if self.batch.len() == 0 && (self.is_time_to_tidy() || is_full || stop.is_cancelled()) {
                self.batch = mem::take(&mut self.untidy);
                self.tidy_at = None;
            }
            if tidying.is_empty()
                && let Some((shard, packs)) = self.batch.take()
            {
                tidying.push(tidying::tidy(&core, shard, packs));
            }
            let tidy_at = self.tidy_at.map(|(at, _)| at);
            tokio::select! {
                biased;
                Some(untidy) = rounds.next(), if !is_quiet => self.note(untidy),
                Some(_) = tidying.next(), if !tidying.is_empty() => {}
                first = self.requests.recv(), if rounds.len() < ROUNDS_MAX && !is_full => {
                    let Some(first) = first else { break };
                    rounds.push(ask(Arc::clone(&core), self.gather(first)));
                }
                () = until(tidy_at), if tidying.is_empty() && tidy_at.is_some() => {}
                () = stop.cancelled(), if is_quiet && tidying.is_empty() && self.requests.is_empty() => {
                    if self.untidy.len() == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// What a round has left untidy.
    fn note(&mut self, untidy: Vec<(ShardId, PackName)>) {
        if untidy.is_empty() {
            return;
        }
        for (shard, pack) in untidy {
            self.untidy.add(shard, pack);
        }
        let now = Instant::now();
        let latest = self.tidy_at.map_or(now + TIDY_AFTER, |(_, latest)| latest);
        self.tidy_at = Some((latest.min(now + TIDY_PAUSE), latest));
    }

    fn is_time_to_tidy(&self) -> bool {
        self.tidy_at.is_some_and(|(at, _)| at <= Instant::now())
    }

    /// Takes what is ready, but for that whose caller has gone away: nothing has been sent of it.
    fn gather(&mut self, first: Request) -> Vec<Request> {
        let (mut count, mut round) = (0, Vec::new());
        let mut next = Some(first);
        while let Some(request) = next.take() {
            self.queued_ids
                .fetch_sub(request.ids.len(), Ordering::Relaxed);
            if !request.reply.is_closed() {
                count += request.ids.len();
                round.push(request);
            }
            if count < ROUND_IDS_MAX {
                next = self.requests.try_recv().ok();
            }
        }
        round
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        sleep_until(at).await;
    }
}

/// One round. What fails, fails for those whose ids were in it. Returns what it leaves untidy.
async fn ask(core: Arc<Core>, requests: Vec<Request>) -> Vec<(ShardId, PackName)> {
    let ids: Vec<MessageId> = requests.iter().flat_map(|r| &r.ids).cloned().collect();
    let at_once = requests.len() == 1 || ids.len() <= TIDY_AT_ONCE_MAX;
    let Round { answers, untidy } = cancelling::cancel(&core, &ids, at_once).await;
    let mut answers = answers.into_iter();
    for Request { ids, reply } in requests {
        let answer = together(answers.by_ref().take(ids.len()));
        // Who has gone away does not hear the outcome; it is cancelled all the same.
        if reply.send(answer).is_err() {
            tracing::trace!("nobody waits for this answer");
        }
    }
    untidy
}

/// The answer to one request. Where some of it was done and some was not, it may not say that nothing was.
fn together(
    results: impl Iterator<Item = Result<Cancel, Arc<Error>>>,
) -> Result<Vec<Cancel>, Error> {
    let (mut answers, mut failures) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(answer) => answers.push(answer),
            Err(error) => failures.push(error),
        }
    }
    let Some(first) = failures.first() else {
        return Ok(answers);
    };
    let alike = failures.iter().all(|error| error.kind == first.kind);
    let kind = if answers.is_empty() && alike {
        first.kind
    } else {
        ErrorKind::Unknown
    };
    Err(Error::caused(kind, Arc::clone(first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_in_part_is_unknown() {
        let refused = || Err(Arc::new(Error::new(ErrorKind::Refused)));
        let kind = |results: Vec<_>| together(results.into_iter()).map_err(|error| error.kind);
        assert_eq!(kind(vec![refused(), refused()]), Err(ErrorKind::Refused));
        assert_eq!(
            kind(vec![refused(), Ok(Cancel::Cancelled)]),
            Err(ErrorKind::Unknown)
        );
        let away = Err(Arc::new(Error::new(ErrorKind::Unavailable)));
        assert_eq!(kind(vec![refused(), away]), Err(ErrorKind::Unknown));
        assert_eq!(
            kind(vec![Ok(Cancel::Dead), Ok(Cancel::InFlight)]),
            Ok(vec![Cancel::Dead, Cancel::InFlight])
        );
    }
}
