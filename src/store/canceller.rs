//! Gathers cancels: those that came in while the last were under way go to Redis together, one script call a
//! shard. Nobody waits for company.

use std::sync::Arc;

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

/// Ids that one caller wants cancelled.
#[derive(Debug)]
struct Request {
    ids: Vec<MessageId>,
    reply: oneshot::Sender<Result<Vec<Cancel>, Error>>,
}

/// The way into the queue. What waits in it is bounded by what connections may have unanswered.
#[derive(Debug)]
pub(super) struct Canceller {
    queue: mpsc::UnboundedSender<Request>,
}

impl Canceller {
    /// Starts the gathering; it ends when `stop` is given and the queue is empty.
    pub(super) fn start(core: &Arc<Core>, stop: CancellationToken) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        core.tracker.spawn(gather(Arc::clone(core), requests, stop));
        Self { queue }
    }

    /// Cancels each of `ids`.
    pub(super) async fn cancel(&self, ids: Vec<MessageId>) -> Result<Vec<Cancel>, Error> {
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

async fn gather(
    core: Arc<Core>,
    mut requests: mpsc::UnboundedReceiver<Request>,
    stop: CancellationToken,
) {
    let mut rounds = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = rounds.next(), if !rounds.is_empty() => {}
            first = requests.recv(), if rounds.len() < ROUNDS_MAX => {
                let Some(first) = first else { break };
                let mut count = first.ids.len();
                let mut round = vec![first];
                while count < ROUND_IDS_MAX && let Ok(next) = requests.try_recv() {
                    count += next.ids.len();
                    round.push(next);
                }
                rounds.push(ask(Arc::clone(&core), round));
            }
            () = stop.cancelled(), if rounds.is_empty() && requests.is_empty() => break,
        }
    }
}

/// One round. What fails, fails for all of it.
async fn ask(core: Arc<Core>, round: Vec<Request>) {
    let ids: Vec<MessageId> = round.iter().flat_map(|r| &r.ids).cloned().collect();
    let result = lookup::cancel(&core, &ids).await;
    let mut answers = result.as_ref().map_or(&[][..], Vec::as_slice).iter();
    for Request { ids, reply } in round {
        let answer = match &result {
            Ok(_) => Ok(answers.by_ref().take(ids.len()).copied().collect()),
            Err(error) => Err(again(error)),
        };
        // Who has gone away does not hear the outcome; it is cancelled all the same.
        if reply.send(answer).is_err() {
            tracing::trace!("nobody waits for this answer");
        }
    }
}

/// The same failure for another caller.
fn again(error: &Error) -> Error {
    match &error.source {
        Some(source) => Error::caused(error.kind, source.to_string()),
        None => Error::new(error.kind),
    }
}
