//! Finds the messages for which nsqd refuses a command: halves it until each refused message was
//! alone. nsqd closes the connection at each refusal, so this uses connections of its own, one for
//! each question, and disturbs nobody else's messages.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::forward::batch::Batch;
use crate::forward::connection::turn_away;
use crate::forward::link::Nsqd;
use crate::forward::verdict::{Refusal, Verdict};
use crate::forward::{Deadline, Error};

/// The fact about one message, at its place in the call.
pub(super) type Fact = (usize, Result<(), Error>);

/// One search.
#[derive(Debug)]
pub(super) struct Search<'a> {
    /// The nsqd that refused.
    pub(super) nsqd: &'a Nsqd,
    /// The others that can be reached now. A limit of message size may differ between nsqds, so that
    /// what one refuses is offered to them before it counts as refused.
    pub(super) others: Vec<Arc<Nsqd>>,
    /// Whether `others` are all that there are: otherwise one that is away may take what these refuse.
    pub(super) complete: bool,
    pub(super) deadline: Deadline,
    /// Bounds the connections of all searches.
    pub(super) questions: &'a Semaphore,
    pub(super) stop: &'a CancellationToken,
}

impl Search<'_> {
    /// Delivers what can be delivered of `batch`, which was in a command that was refused. A message
    /// without a fact in the answer: unknown.
    pub(super) async fn run(&self, batch: Batch, refusal: Refusal) -> Vec<Fact> {
        let mut facts = Vec::with_capacity(batch.len());
        let known = refusal.alone || refusal.whole_topic;
        let mut suspects = vec![(batch, known.then_some(refusal))];
        while let Some((batch, refusal)) = suspects.pop() {
            let answer = match refusal {
                Some(refusal) => Some((batch, Verdict::Refused(refusal))),
                None => self.question(self.nsqd, batch).await,
            };
            let Some((batch, verdict)) = answer else {
                continue;
            };
            if let Verdict::Refused(refusal) = &verdict {
                self.nsqd.refused(&refusal.text);
            }
            let (batch, fact) = match verdict {
                Verdict::Accepted => (batch, Ok(())),
                Verdict::NotSent => (batch, Err(Error::NotSent)),
                Verdict::Unknown => (batch, Err(Error::Unknown)),
                Verdict::Refused(refusal) if refusal.whole_topic => {
                    (batch, Err(Error::Refused(refusal.text)))
                }
                Verdict::Refused(_) if batch.len() > 1 => {
                    let middle = batch.len() / 2;
                    suspects.push((batch.part(middle..batch.len()), None));
                    suspects.push((batch.part(0..middle), None));
                    continue;
                }
                Verdict::Refused(refusal) => self.elsewhere(batch, refusal.text).await,
            };
            facts.extend(batch.indexes.into_iter().map(|index| (index, fact.clone())));
        }
        facts
    }

    /// Offers a single message that one nsqd refused to the others. It is refused when all have refused
    /// it; as long as one could not be asked, it waits for that one.
    async fn elsewhere(&self, batch: Batch, text: String) -> (Batch, Result<(), Error>) {
        let (mut batch, mut text, mut all_asked) = (batch, text, self.complete);
        for nsqd in &self.others {
            let whole = batch.part(0..batch.len());
            let Some((back, verdict)) = self.question(nsqd, batch).await else {
                return (whole, Err(Error::Unknown));
            };
            match verdict {
                Verdict::Accepted => return (back, Ok(())),
                Verdict::Unknown => return (back, Err(Error::Unknown)),
                Verdict::NotSent => all_asked = false,
                Verdict::Refused(refusal) => {
                    nsqd.refused(&refusal.text);
                    text = refusal.text;
                }
            }
            batch = back;
        }
        let fact = if all_asked {
            Error::Refused(text)
        } else {
            Error::NotSent
        };
        (batch, Err(fact))
    }

    /// Publishes `batch` alone over a connection of its own. Dropping it closes that connection.
    async fn question(&self, nsqd: &Nsqd, batch: Batch) -> Option<(Batch, Verdict)> {
        let turn = timeout(self.deadline.left(), self.questions.acquire());
        let Ok(Ok(_turn)) = turn.await else {
            return Some((batch, Verdict::NotSent));
        };
        let Ok(connection) = nsqd.dial().await else {
            return Some((batch, Verdict::NotSent));
        };
        let (sender, mut parcels) = unbounded_channel();
        let ask = async move { nsqd.ask(batch, self.deadline, &sender).await };
        let answer = async {
            let ended = connection.run(&mut parcels, self.stop, || {}).await;
            ended.tell();
            turn_away(&mut parcels).await;
        };
        futures_util::future::join(ask, answer).await.0
    }
}
