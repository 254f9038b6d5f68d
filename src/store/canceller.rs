//! Gathers cancels: those that came in while the last were under way go to Redis together, shard by shard, many
//! a script call. Nobody waits for company.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::id::MessageId;
use crate::store::core::Core;
use crate::store::lookup;
use crate::store::{Cancel, Error, ErrorKind};

/// Rounds under way at once: while Redis works on one, the next gathers and is sent.
const ROUNDS_MAX: usize = 2;
/// Most ids of one round, but for those that came in one request.
const ROUND_IDS_MAX: usize = 4_096;
/// Most ids that wait: callers may go away without their requests.
const QUEUED_IDS_MAX: usize = 100_000;

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
}

impl Gatherer {
    async fn run(mut self, stop: CancellationToken) {
        let mut rounds = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = rounds.next(), if !rounds.is_empty() => {}
                first = self.requests.recv(), if rounds.len() < ROUNDS_MAX => {
                    let Some(first) = first else { break };
                    rounds.push(ask(Arc::clone(&self.core), self.gather(first)));
                }
                () = stop.cancelled(), if rounds.is_empty() && self.requests.is_empty() => break,
            }
        }
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

/// One round. What fails, fails for those whose ids were in it.
async fn ask(core: Arc<Core>, round: Vec<Request>) {
    let ids: Vec<MessageId> = round.iter().flat_map(|r| &r.ids).cloned().collect();
    let mut results = lookup::cancel(&core, &ids).await.into_iter();
    for Request { ids, reply } in round {
        let answer = together(results.by_ref().take(ids.len()));
        // Who has gone away does not hear the outcome; it is cancelled all the same.
        if reply.send(answer).is_err() {
            tracing::trace!("nobody waits for this answer");
        }
    }
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
