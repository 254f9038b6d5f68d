//! What a shard may send now, by topic: topics take turns, so that the backlog of one does not starve
//! another. Within a topic, what was due first goes first. Pure.

use std::collections::{HashMap, VecDeque};

use crate::dispatch::turn::ToSend;
use crate::message::TopicName;

/// Messages that wait for leave to be sent.
#[derive(Debug, Default)]
pub(super) struct Ready {
    topics: HashMap<TopicName, VecDeque<ToSend>>,
    /// Each topic of `topics` once, next one first.
    turns: VecDeque<TopicName>,
    len: usize,
    bytes: usize,
}

impl Ready {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of their bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds some: neighbours mostly share their topic.
    pub(super) fn extend(&mut self, messages: impl IntoIterator<Item = ToSend>) {
        let mut messages = messages.into_iter().peekable();
        while let Some(first) = messages.next() {
            let topic = first.record.topic.clone();
            let waiting = self.topics.entry(topic.clone()).or_default();
            if waiting.is_empty() {
                self.turns.push_back(topic.clone());
            }
            let mut next = Some(first);
            while let Some(message) = next {
                self.len += 1;
                self.bytes += message.record.body.len();
                waiting.push_back(message);
                next = messages.next_if(|message| message.record.topic == topic);
            }
        }
    }

    /// Adds one.
    pub(super) fn push(&mut self, message: ToSend) {
        self.extend([message]);
    }

    /// Takes the next ones, one of each topic in turn: at most `messages`, and once `bytes` are
    /// reached no more. At least one, if there is any.
    pub(super) fn take(&mut self, messages: usize, bytes: usize) -> Vec<ToSend> {
        let (mut taken, mut taken_bytes) = (Vec::new(), 0);
        while (taken.is_empty() || (taken.len() < messages && taken_bytes < bytes))
            && let Some(topic) = self.turns.pop_front()
        {
            let Some(waiting) = self.topics.get_mut(&topic) else {
                continue;
            };
            while let Some(message) = waiting.pop_front() {
                self.len -= 1;
                taken_bytes += message.record.body.len();
                taken.push(message);
                // Nobody else's turn.
                let goes_on = self.turns.is_empty() && taken.len() < messages;
                if !(goes_on && taken_bytes < bytes) {
                    break;
                }
            }
            if waiting.is_empty() {
                self.topics.remove(&topic);
            } else {
                self.turns.push_back(topic);
            }
        }
        self.bytes -= taken_bytes;
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::dispatch::turn::Key;
    use crate::id::{Place, Score};
    use crate::message::UnixMs;
    use crate::store::Record;

    fn message(topic: &str, due: u64) -> ToSend {
        let due = UnixMs(due);
        let place = Place {
            score: Score::new(due, 0),
            nonce: 0,
            position: 0,
        };
        ToSend {
            key: Key { due, place },
            record: Arc::new(Record {
                position: 0,
                due,
                topic: TopicName::parse(topic.as_bytes()).unwrap(),
                maybe: false,
                id: None,
                body: Bytes::from_static(b"body"),
            }),
            again: false,
        }
    }

    fn told(messages: &[ToSend]) -> Vec<(String, u64)> {
        let told = messages
            .iter()
            .map(|m| (m.record.topic.to_string(), m.key.due.0));
        told.collect()
    }

    #[test]
    fn topics_take_turns_and_each_is_in_order() {
        let mut ready = Ready::default();
        for due in 1..=5 {
            ready.push(message("a", due));
        }
        ready.push(message("b", 6));
        assert_eq!((ready.len(), ready.bytes()), (6, 24));
        let first = ready.take(3, 1_000);
        assert_eq!(
            told(&first),
            [("a".into(), 1), ("b".into(), 6), ("a".into(), 2)]
        );
        ready.push(message("c", 7));
        let rest = ready.take(100, 1_000);
        assert_eq!(
            told(&rest),
            [
                ("a".into(), 3),
                ("c".into(), 7),
                ("a".into(), 4),
                ("a".into(), 5)
            ]
        );
        assert!(ready.is_empty() && ready.bytes() == 0);
    }

    #[test]
    fn bytes_bound_what_is_taken_but_for_the_first() {
        let mut ready = Ready::default();
        for due in 1..=5 {
            ready.push(message("a", due));
        }
        assert_eq!(ready.take(100, 1).len(), 1);
        assert_eq!(ready.take(100, 8).len(), 2);
        assert_eq!(ready.take(0, 0).len(), 1);
    }
}
