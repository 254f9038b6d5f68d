//! Messages without a delay go to nsqd at once, and only what nsqd does not take goes to the store.
//! Knows of nsqd nothing but that it takes messages, or does not.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::Semaphore;

use crate::ingest::access::may_publish;
use crate::ingest::metrics::{Handed, HandedLabel, Metrics};
use crate::message::{Delay, Due, Message};

/// What became of a message that was handed to nsqd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// nsqd has it.
    Taken,
    /// nsqd does not have it.
    NotTaken,
    /// nsqd may have it.
    Maybe,
}

/// Whoever publishes to nsqd.
pub trait Publisher: Send + Sync + fmt::Debug + 'static {
    /// Whether an nsqd can be expected to take a message now.
    fn available(&self) -> bool;

    /// Publishes each of `messages` and says what became of it, in order, within a bounded time.
    fn publish<'a>(&'a self, messages: &[Message]) -> BoxFuture<'a, Vec<Handover>>;
}

/// The way past the store.
#[derive(Debug)]
pub struct Passthrough {
    publisher: Arc<dyn Publisher>,
    /// Bytes that may wait for nsqd's answer. What finds no room is stored: the store has its own
    /// bound, and refuses beyond it.
    room: Arc<Semaphore>,
    handed: Family<HandedLabel, Counter>,
    /// Whether these may be handed over; what may not is for the store to refuse.
    admits: fn(&[Message]) -> bool,
}

impl Passthrough {
    /// Over `publisher`, with at most `bytes_max` bytes of bodies waiting for it.
    pub fn new(publisher: Arc<dyn Publisher>, bytes_max: usize, metrics: &Metrics) -> Self {
        Self {
            publisher,
            room: Arc::new(Semaphore::new(bytes_max.min(Semaphore::MAX_PERMITS))),
            handed: metrics.handed.clone(),
            admits: |_all| true,
        }
    }

    /// The same way, only for those whom the guarded store would let publish.
    pub(super) fn guarded(&self) -> Self {
        Self {
            publisher: Arc::clone(&self.publisher),
            room: Arc::clone(&self.room),
            handed: self.handed.clone(),
            admits: may_publish,
        }
    }

    /// Whether `message` may go past the store: nobody is to find it again by an id.
    pub(super) fn suits(message: &Message) -> bool {
        message.id.is_none() && message.due == Due::After(Delay(0))
    }

    /// Hands `messages` to nsqd, and answers those that must be stored. What nsqd may have is among
    /// them: it may come twice, but not never.
    pub(super) async fn hand_over(&self, messages: Vec<Message>) -> Vec<Message> {
        if !(self.admits)(&messages) {
            return messages;
        }
        let bytes: usize = messages.iter().map(|message| message.body.len()).sum();
        let room = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.room.try_acquire_many(bytes).ok());
        if room.is_none() || !self.publisher.available() {
            self.count(Handed::NotTaken, messages.len());
            return messages;
        }
        let mut handovers = self.publisher.publish(&messages).await;
        // One without a fact may have gone.
        handovers.resize(messages.len(), Handover::Maybe);
        let (mut taken, mut maybe) = (0, 0);
        let mut left = Vec::new();
        for (message, handover) in messages.into_iter().zip(handovers) {
            match handover {
                Handover::Taken => {
                    taken += 1;
                    continue;
                }
                Handover::NotTaken => {}
                Handover::Maybe => maybe += 1,
            }
            left.push(message);
        }
        self.count(Handed::Taken, taken);
        self.count(Handed::Maybe, maybe);
        self.count(Handed::NotTaken, left.len() - maybe);
        left
    }

    fn count(&self, result: Handed, messages: usize) {
        if messages > 0 {
            let count = u64::try_from(messages).unwrap_or(u64::MAX);
            let label = HandedLabel { result };
            self.handed.get_or_create(&label).inc_by(count);
        }
    }
}
