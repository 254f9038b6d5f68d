//! Joins what the doors ask of an nsqd to the connections that there are: the one place where ingest
//! meets forward.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::forward::{Deadline, DueMessage, Error, Forward};
use crate::ingest::passthrough::{Handover, Publisher};
use crate::message::Message;
use crate::monotonic::boottime;

/// Publishes over the same connections as dispatch.
#[derive(Debug)]
pub(super) struct ByForward {
    pub(super) forward: Arc<dyn Forward>,
    /// How long a message may wait before it is written; nsqd's answer has its own time-out.
    pub(super) patience: Duration,
}

impl Publisher for ByForward {
    fn available(&self) -> bool {
        self.forward.available()
    }

    fn publish<'a>(&'a self, messages: &[Message]) -> BoxFuture<'a, Vec<Handover>> {
        let due = messages.iter().map(|message| DueMessage {
            topic: message.topic.clone(),
            body: message.body.clone(),
        });
        let due: Vec<DueMessage> = due.collect();
        // No claim ends here: what is late can still be stored.
        let deadline = Deadline {
            at: boottime() + self.patience,
            clock: boottime,
        };
        Box::pin(async move {
            let facts = self.forward.publish(due, deadline).await;
            facts.iter().map(handover).collect()
        })
    }
}

/// What nsqd refuses is stored too: it becomes a dead letter with nsqd's words.
fn handover(fact: &Result<(), Error>) -> Handover {
    match fact {
        Ok(()) => Handover::Taken,
        Err(Error::NotSent | Error::Refused(_)) => Handover::NotTaken,
        Err(Error::Unknown) => Handover::Maybe,
    }
}
