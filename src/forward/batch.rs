//! PURE. Which messages share a command: `split` cuts one call into batches of one topic, `Queue`
//! merges the batches of several calls. Knows the limits of an MPUB, not how it is written.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use crate::forward::DueMessage;
use crate::message::TopicName;

/// Bytes of an MPUB's body before the first message: the count.
const COUNT_LEN: usize = 4;
/// Bytes of an MPUB's body before each message: its size.
const SIZE_LEN: usize = 4;

/// What one MPUB may carry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most messages.
    pub(super) messages_max: usize,
    /// Longest body, count and sizes included. A single message may exceed it.
    pub(super) bytes_max: usize,
}

/// Messages of one topic that travel in one command. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) topic: TopicName,
    /// Where each message stood in its call, in the order of `bodies`.
    pub(super) indexes: Vec<usize>,
    pub(super) bodies: Vec<Bytes>,
    /// Length of `bodies` as part of an MPUB's body.
    pub(super) bytes: usize,
}

impl Batch {
    fn of(topic: TopicName) -> Self {
        Self {
            topic,
            indexes: Vec::new(),
            bodies: Vec::new(),
            bytes: 0,
        }
    }

    fn push(&mut self, index: usize, body: Bytes) {
        self.bytes += SIZE_LEN + body.len();
        self.indexes.push(index);
        self.bodies.push(body);
    }

    /// Number of messages.
    pub(super) fn len(&self) -> usize {
        self.bodies.len()
    }

    /// The part of this batch at `range`, clipped to what is there. Bodies are shared, not copied.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        let mut part = Self::of(self.topic.clone());
        let all = self.indexes.iter().zip(&self.bodies);
        for (index, body) in all.take(range.end).skip(range.start) {
            part.push(*index, body.clone());
        }
        part
    }
}

/// Cuts the messages of one call into batches of one topic each under `limits`. Order within a topic
/// is kept.
pub(super) fn split(messages: Vec<DueMessage>, limits: Limits) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::with_capacity(1);
    // For each topic the batch that still has room. Not built while there is one topic only.
    let mut open: HashMap<TopicName, usize> = HashMap::new();
    for (index, DueMessage { topic, body }) in messages.into_iter().enumerate() {
        let last = batches.len().saturating_sub(1);
        let found = match batches.last() {
            Some(batch) if batch.topic == topic => Some(last),
            _ => open.get(&topic).copied(),
        };
        let room = found
            .and_then(|at| batches.get_mut(at))
            .filter(|batch| fits(batch.len(), batch.bytes, 1, SIZE_LEN + body.len(), limits));
        if let Some(batch) = room {
            batch.push(index, body);
            continue;
        }
        if let Some(batch) = batches.last() {
            open.insert(batch.topic.clone(), last);
            open.insert(topic.clone(), batches.len());
        }
        let mut batch = Batch::of(topic);
        batch.push(index, body);
        batches.push(batch);
    }
    batches
}

/// Whether `more` fits to what is there.
fn fits(messages: usize, bytes: usize, more: usize, more_bytes: usize, limits: Limits) -> bool {
    messages + more <= limits.messages_max && COUNT_LEN + bytes + more_bytes <= limits.bytes_max
}

/// What waits to be written carries a batch.
pub(super) trait Carrier {
    /// The batch.
    fn batch(&self) -> &Batch;
}

/// Batches that wait for the socket, by topic. Topics take turns, so that the backlog of one does
/// not starve another.
#[derive(Debug)]
pub(super) struct Queue<C> {
    topics: HashMap<TopicName, VecDeque<C>>,
    /// Each topic of `topics` once, next one first.
    turns: VecDeque<TopicName>,
}

impl<C: Carrier> Queue<C> {
    /// With nothing in it.
    pub(super) fn new() -> Self {
        Self {
            topics: HashMap::new(),
            turns: VecDeque::new(),
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Adds one that waits.
    pub(super) fn push(&mut self, carrier: C) {
        let topic = carrier.batch().topic.clone();
        match self.topics.entry(topic) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push_back(carrier),
            Entry::Vacant(place) => {
                self.turns.push_back(place.key().clone());
                place.insert(VecDeque::from([carrier]));
            }
        }
    }

    /// Takes what goes into the next command: batches of the topic whose turn it is, as many as
    /// `limits` allow and at least one. Empty if nothing waits.
    pub(super) fn next(&mut self, limits: Limits) -> Vec<C> {
        let mut taken = Vec::new();
        let Some(topic) = self.turns.pop_front() else {
            return taken;
        };
        let Some(waiting) = self.topics.get_mut(&topic) else {
            return taken;
        };
        let (mut messages, mut bytes) = (0, 0);
        while let Some(first) = waiting.front() {
            let batch = first.batch();
            if !taken.is_empty() && !fits(messages, bytes, batch.len(), batch.bytes, limits) {
                break;
            }
            messages += batch.len();
            bytes += batch.bytes;
            taken.extend(waiting.pop_front());
        }
        if waiting.is_empty() {
            self.topics.remove(&topic);
        } else {
            self.turns.push_back(topic);
        }
        taken
    }

    /// Takes everything.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = C> {
        self.turns.clear();
        self.topics.drain().flat_map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl Carrier for Batch {
        fn batch(&self) -> &Batch {
            self
        }
    }

    const LIMITS: Limits = Limits {
        messages_max: 3,
        bytes_max: 64,
    };

    fn due(topic: &str, len: usize) -> DueMessage {
        DueMessage {
            topic: TopicName::parse(topic.as_bytes()).unwrap(),
            body: Bytes::from(vec![b'x'; len]),
        }
    }

    fn check(messages: &[(&str, usize)], expected: &[&[usize]]) {
        let messages = messages.iter().map(|(t, len)| due(t, *len)).collect();
        let batches = split(messages, LIMITS);
        let indexes: Vec<&[usize]> = batches.iter().map(|b| b.indexes.as_slice()).collect();
        assert_eq!(indexes, expected);
    }

    #[test]
    fn calls_are_cut_by_topic_count_and_bytes() {
        check(&[], &[]);
        check(&[("a", 1)], &[&[0]]);
        check(&[("a", 1), ("b", 1), ("a", 1)], &[&[0, 2], &[1]]);
        check(
            &[("a", 1), ("a", 1), ("a", 1), ("a", 1)],
            &[&[0, 1, 2], &[3]],
        );
        // 4 + (4 + 26) * 2 = 64: just fits.
        check(&[("a", 26), ("a", 26)], &[&[0, 1]]);
        check(&[("a", 26), ("a", 27)], &[&[0], &[1]]);
        check(&[("a", 1), ("a", 1000), ("a", 1)], &[&[0], &[1], &[2]]);
    }

    #[test]
    fn topics_take_turns() {
        let mut queue = Queue::new();
        for topic in ["a", "a", "a", "a", "b"] {
            for batch in split(vec![due(topic, 1)], LIMITS) {
                queue.push(batch);
            }
        }
        let mut order = Vec::new();
        while !queue.is_empty() {
            let command = queue.next(LIMITS);
            order.push((command[0].topic.as_str().to_owned(), command.len()));
        }
        assert_eq!(order, [("a".into(), 3), ("b".into(), 1), ("a".into(), 1)]);
        assert!(queue.next(LIMITS).is_empty());
    }

    #[test]
    fn parts_keep_their_places() {
        let batch = split(vec![due("a", 1), due("a", 2), due("a", 3)], LIMITS).remove(0);
        let part = batch.part(1..9);
        assert_eq!(part.indexes, [1, 2]);
        assert_eq!(part.bytes, 4 + 2 + 4 + 3);
    }

    proptest! {
        /// Every message of a call is in exactly one batch of its own topic, in order, under the
        /// limits; merging loses nothing and keeps the limits too.
        #[test]
        fn nothing_is_lost_or_doubled(calls in vec(vec((0..4_usize, 0..80_usize), 0..20), 0..6)) {
            let mut queue = Queue::new();
            let mut sent = 0;
            for call in &calls {
                let names = ["a", "b", "c", "d"];
                let messages: Vec<_> = call.iter().map(|(t, len)| due(names[*t], *len)).collect();
                let mut seen = vec![0; messages.len()];
                for batch in split(messages.clone(), LIMITS) {
                    prop_assert!(batch.indexes.is_sorted());
                    for (index, body) in batch.indexes.iter().zip(&batch.bodies) {
                        seen[*index] += 1;
                        prop_assert_eq!(&messages[*index].topic, &batch.topic);
                        prop_assert_eq!(&messages[*index].body, body);
                    }
                    prop_assert!(batch.len() == 1 || COUNT_LEN + batch.bytes <= LIMITS.bytes_max);
                    prop_assert!(batch.len() <= LIMITS.messages_max);
                    queue.push(batch);
                }
                prop_assert!(seen.iter().all(|times| *times == 1));
                sent += messages.len();
            }
            while !queue.is_empty() {
                let command = queue.next(LIMITS);
                prop_assert!(!command.is_empty());
                let messages: usize = command.iter().map(Batch::len).sum();
                let bytes: usize = command.iter().map(|batch| batch.bytes).sum();
                prop_assert!(command.iter().all(|batch| batch.topic == command[0].topic));
                prop_assert!(messages <= LIMITS.messages_max);
                prop_assert!(messages == 1 || COUNT_LEN + bytes <= LIMITS.bytes_max);
                sent -= messages;
            }
            prop_assert_eq!(sent, 0);
        }
    }
}
