//! Limits on what is pending, altogether and by topic: whether a publish may go to the store. Redis is
//! asked how much there is while messages are taken, once a second or so, never for each of them; what
//! this instance has taken since is added. So several instances together may exceed a limit by what
//! they take within that time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::message::{Message, TopicName};
use crate::store::{Error, ErrorKind, Pending, ScheduleStore};

/// How old a count may become while messages are taken.
const COUNT_AGE_MAX: Duration = Duration::from_secs(1);
/// Counting takes at most one part in so many of the time: with many shards and topics it is not cheap.
const COUNT_SHARE: u32 = 20;

/// The limits; 0: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_field_names,
    reason = "they are called as their settings are"
)]
pub struct Limits {
    /// Messages pending.
    pub pending_messages_max: u64,
    /// Bytes of their bodies.
    pub pending_bytes_max: u64,
    /// Messages pending of one topic.
    pub topic_pending_messages_max: u64,
    /// Bytes of their bodies.
    pub topic_pending_bytes_max: u64,
}

/// Messages and the bytes of their bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    messages: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// Whether it fits beside `more`.
    fn fits(mut self, more: Self, messages_max: u64, bytes_max: u64) -> bool {
        self.add(more);
        (messages_max == 0 || self.messages <= messages_max)
            && (bytes_max == 0 || self.bytes <= bytes_max)
    }
}

/// What is pending, as far as is known.
#[derive(Debug, Default)]
struct Known {
    all: Amount,
    by_topic: HashMap<TopicName, Amount>,
    /// When it is to be counted again; `None`: at once.
    count_at: Option<Instant>,
    counting: bool,
}

/// Whether messages may be taken.
#[derive(Debug)]
pub(super) struct Quota {
    /// Not as one caller may see it: what all have there counts.
    store: Arc<dyn ScheduleStore>,
    limits: Limits,
    known: Mutex<Known>,
}

impl Quota {
    pub(super) fn new(store: Arc<dyn ScheduleStore>, limits: Limits) -> Self {
        Self {
            store,
            limits,
            known: Mutex::default(),
        }
    }

    /// Takes `messages` into account, or refuses all of them.
    pub(super) async fn admit(&self, messages: &[Message]) -> Result<(), Error> {
        if self.limits == Limits::default() {
            return Ok(());
        }
        self.count_if_due().await;
        let asked = amounts(messages);
        self.lock().take(self.limits, &asked)
    }

    /// One request does it for all; the others go on with what is known, unless nothing is.
    async fn count_if_due(&self) {
        let now = Instant::now();
        {
            let mut known = self.lock();
            if known.counting || known.count_at.is_some_and(|at| now < at) {
                return;
            }
            known.counting = true;
        }
        let counting = Counting(self);
        match self.store.pending().await {
            Ok(pending) => {
                let age = COUNT_AGE_MAX.max(now.elapsed() * COUNT_SHARE);
                let mut known = self.lock();
                known.learn(pending);
                known.count_at = Some(Instant::now() + age);
            }
            Err(error) => {
                // The store will say so itself when it is given the messages.
                warn!(%error, "what is pending cannot be counted");
                self.lock().count_at = Some(Instant::now() + COUNT_AGE_MAX);
            }
        }
        drop(counting);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody counts, until this is dropped.
struct Counting<'a>(&'a Quota);

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.0.lock().counting = false;
    }
}

impl Known {
    /// Takes `asked` into account, or refuses all of it.
    fn take(&mut self, limits: Limits, asked: &HashMap<&TopicName, Amount>) -> Result<(), Error> {
        let mut sum = Amount::default();
        for (topic, more) in asked {
            sum.add(*more);
            let there = self.by_topic.get(*topic).copied().unwrap_or_default();
            let (messages_max, bytes_max) = (
                limits.topic_pending_messages_max,
                limits.topic_pending_bytes_max,
            );
            if !there.fits(*more, messages_max, bytes_max) {
                return Err(Error::new(ErrorKind::TopicFull));
            }
        }
        if !self
            .all
            .fits(sum, limits.pending_messages_max, limits.pending_bytes_max)
        {
            return Err(Error::new(ErrorKind::Full));
        }
        self.all.add(sum);
        for (topic, more) in asked {
            let there = self.by_topic.entry(TopicName::clone(topic)).or_default();
            there.add(*more);
        }
        Ok(())
    }

    fn learn(&mut self, pending: Pending) {
        let mut by_topic: HashMap<TopicName, Amount> = HashMap::new();
        for (topic, messages) in pending.by_topic {
            by_topic.entry(topic).or_default().messages = messages;
        }
        for (topic, bytes) in pending.bytes_by_topic {
            by_topic.entry(topic).or_default().bytes = bytes;
        }
        self.all = Amount::default();
        for amount in by_topic.values() {
            self.all.add(*amount);
        }
        self.by_topic = by_topic;
    }
}

fn amounts(messages: &[Message]) -> HashMap<&TopicName, Amount> {
    let mut amounts: HashMap<&TopicName, Amount> = HashMap::new();
    for message in messages {
        amounts.entry(&message.topic).or_default().add(Amount {
            messages: 1,
            bytes: message.body.len() as u64,
        });
    }
    amounts
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Delay, Due};

    fn messages(topic: &str, count: usize, len: usize) -> Vec<Message> {
        let message = Message {
            topic: TopicName::parse(topic.as_bytes()).unwrap(),
            body: Bytes::from(vec![b'x'; len]),
            due: Due::After(Delay(0)),
            id: None,
        };
        vec![message; count]
    }

    fn known(pending: &[(&str, u64, u64)]) -> Known {
        let mut known = Known::default();
        let mut counted = Pending::default();
        for (topic, messages, bytes) in pending {
            let topic = TopicName::parse(topic.as_bytes()).unwrap();
            counted.by_topic.insert(topic.clone(), *messages);
            counted.bytes_by_topic.insert(topic, *bytes);
        }
        known.learn(counted);
        known
    }

    fn take(known: &mut Known, limits: Limits, messages: &[Message]) -> Option<ErrorKind> {
        let taken = known.take(limits, &amounts(messages));
        taken.err().map(|error| error.kind)
    }

    #[test]
    fn each_limit_is_reached_exactly() {
        let none = Limits::default();
        let (full, topic_full) = (Some(ErrorKind::Full), Some(ErrorKind::TopicFull));
        let cases = [
            (
                Limits {
                    pending_messages_max: 10,
                    ..none
                },
                2,
                1,
                full,
            ),
            (
                Limits {
                    pending_bytes_max: 104,
                    ..none
                },
                2,
                2,
                full,
            ),
            (
                Limits {
                    topic_pending_messages_max: 5,
                    ..none
                },
                2,
                1,
                topic_full,
            ),
            (
                Limits {
                    topic_pending_bytes_max: 34,
                    ..none
                },
                2,
                2,
                topic_full,
            ),
        ];
        for (limits, count, len, refusal) in cases {
            let mut known = known(&[("a", 3, 30), ("b", 5, 70)]);
            assert_eq!(
                take(&mut known, limits, &messages("a", count, len)),
                None,
                "{limits:?}"
            );
            assert_eq!(
                take(&mut known, limits, &messages("a", 1, 1)),
                refusal,
                "{limits:?}"
            );
        }
    }

    #[test]
    fn all_or_none_is_taken_into_account() {
        let limits = Limits {
            topic_pending_messages_max: 3,
            ..Limits::default()
        };
        let mut known = known(&[]);
        let mut mixed = messages("a", 4, 1);
        mixed.extend(messages("b", 1, 1));
        assert_eq!(take(&mut known, limits, &mixed), Some(ErrorKind::TopicFull));
        assert_eq!(take(&mut known, limits, &messages("b", 3, 1)), None);
        assert_eq!(take(&mut known, limits, &messages("a", 3, 1)), None);
    }
}
