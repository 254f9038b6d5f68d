//! Turns messages that go to one shard in one write into packs. Pure: the caller has stamped the due
//! times and gives scores.

use std::collections::HashSet;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::id::{MintedId, PACK_RECORDS_MAX, PackName, Score};
use crate::message::{Due, Message, TopicName, UnixMs};
use crate::shard::ShardId;
use crate::store::TopicShare;
use crate::store::compression::Compression;
use crate::store::entry::{Entry, Kind};
use crate::store::pack::{Pack, RECORD_OVERHEAD_MAX, Record};
use crate::store::script::NewPack;

/// Most topics of one pack: its directory numbers them with a byte.
const TOPICS_MAX: usize = 200;

/// Most packs of one write that begin at one ms: it has places for twice as many, and others need some.
const PACKS_A_MS: usize = 512;

/// A message with its due time.
#[derive(Debug, Clone)]
pub(super) struct Stamped {
    pub(super) due: UnixMs,
    pub(super) message: Message,
}

/// Bounds of one pack, and how it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackLimits {
    pub(super) window_ms: u64,
    pub(super) bytes: usize,
    pub(super) compression: Compression,
}

/// Packs, and where each message went, in the order given.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) packs: Vec<NewPack>,
    pub(super) minted: Vec<MintedId>,
}

/// Where a shard's next packs may go.
pub(super) trait Scores {
    /// A score for a pack that begins at `due`. `big`: its one body is over the pack size.
    fn next(&mut self, due: UnixMs, big: bool) -> Score;
    /// A nonce.
    fn nonce(&mut self) -> u32;
}

/// Groups messages by due time into packs within `limits`.
pub(super) fn pack(
    shard: ShardId,
    messages: &[Stamped],
    limits: PackLimits,
    scores: &mut impl Scores,
) -> Packed {
    let mut order: Vec<usize> = (0..messages.len()).collect();
    order.sort_by_key(|index| messages.get(*index).map(|m| m.due));
    let mut packed = Packed {
        packs: Vec::new(),
        minted: Vec::new(),
    };
    let mut places: Vec<Option<MintedId>> = vec![None; messages.len()];
    let mut group: Vec<Grouped<'_>> = Vec::new();
    let mut topics: HashSet<&TopicName> = HashSet::new();
    let mut bytes = 0;
    let mut crowd = Crowd::default();
    for index in order {
        let Some(stamped) = messages.get(index) else {
            continue;
        };
        let size = stamped.message.body.len() + RECORD_OVERHEAD_MAX;
        let fits = group.first().is_none_or(|first| {
            stamped.due.ms_since(first.due) <= limits.window_ms
                && bytes + size <= limits.bytes
                && group.len() < usize::from(PACK_RECORDS_MAX)
                && (topics.len() < TOPICS_MAX || topics.contains(&stamped.message.topic))
        });
        if !fits {
            crowd.closed(group.first().map(|first| first.due));
            close(
                shard,
                &mut group,
                limits,
                scores,
                &mut packed.packs,
                &mut places,
            );
            bytes = 0;
            topics.clear();
        }
        bytes += size;
        // Neighbours mostly share their topic.
        let neighbour = group.last().map(|grouped| &grouped.message.topic);
        if neighbour != Some(&stamped.message.topic) {
            topics.insert(&stamped.message.topic);
        }
        group.push(Grouped {
            index,
            due: stamped.due.max(crowd.floor),
            message: &stamped.message,
        });
    }
    close(
        shard,
        &mut group,
        limits,
        scores,
        &mut packed.packs,
        &mut places,
    );
    packed.minted = places.into_iter().flatten().collect();
    debug_assert_eq!(packed.minted.len(), messages.len());
    packed
}

/// Where the last packs of a write began.
#[derive(Default)]
struct Crowd {
    at: UnixMs,
    packs: usize,
    /// Where the next may begin.
    floor: UnixMs,
}

impl Crowd {
    /// Takes note of where a pack begins.
    fn closed(&mut self, first: Option<UnixMs>) {
        let Some(first) = first else {
            return;
        };
        self.packs = if first == self.at { self.packs + 1 } else { 1 };
        self.at = first;
        if self.packs == PACKS_A_MS {
            self.floor = first.plus_ms(1);
        }
    }
}

/// A message of the pack that is being filled.
struct Grouped<'a> {
    index: usize,
    due: UnixMs,
    message: &'a Message,
}

/// Makes a pack of `group`, and empties it.
fn close(
    shard: ShardId,
    group: &mut Vec<Grouped<'_>>,
    limits: PackLimits,
    scores: &mut impl Scores,
    packs: &mut Vec<NewPack>,
    places: &mut [Option<MintedId>],
) {
    let Some(first) = group.first() else {
        return;
    };
    let big = first.message.body.len() + RECORD_OVERHEAD_MAX > limits.bytes;
    let name = PackName {
        score: scores.next(first.due, big),
        nonce: scores.nonce(),
    };
    let count = u16::try_from(group.len()).unwrap_or(PACK_RECORDS_MAX);
    let mut ids = Vec::new();
    let mut topics: Vec<TopicShare> = Vec::new();
    let mut records = Vec::with_capacity(group.len());
    for (position, grouped) in (0_u16..).zip(group.drain(..)) {
        let Grouped {
            index,
            due,
            message,
        } = grouped;
        let place = name.record(position);
        if let Some(slot) = places.get_mut(index) {
            *slot = Some(MintedId {
                due,
                shard,
                place,
                count,
            });
        }
        TopicShare::add(&mut topics, &message.topic, 1, message.body.len() as u64);
        let id = message.id.as_ref().map(|id| {
            let digest = digest_of(message);
            let entry = Entry {
                kind: Kind::Stored,
                place,
                due,
                maybe: false,
                digest,
            };
            ids.push((id.as_str().to_owned(), entry.to_text(), due));
            Bytes::copy_from_slice(id.as_str().as_bytes())
        });
        let (topic, body) = (message.topic.clone(), message.body.clone());
        records.push(Record {
            position,
            due,
            topic,
            maybe: false,
            id,
            body,
        });
    }
    let value = Pack::new(name, records, limits.compression).encode();
    packs.push(NewPack {
        score: name.score,
        value,
        topics,
        ids,
    });
}

/// What a client gave for an id: topic, body, and the delay or time as it gave it, so that a retried
/// relative delay is the same message.
pub(super) fn digest_of(message: &Message) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(message.topic.as_str().as_bytes());
    let (kind, value) = match message.due {
        Due::After(delay) => (b"+", delay.0),
        Due::At(at) => (b"@", at.0),
    };
    hash.update(kind);
    hash.update(&value.to_be_bytes());
    hash.update(&message.body);
    // 0 means that there is no digest.
    hash.digest().max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{ClientId, Delay};
    use crate::shard::Generation;

    struct Counting(u64);

    impl Scores for Counting {
        fn next(&mut self, due: UnixMs, _big: bool) -> Score {
            self.0 += 1;
            Score::new(due, self.0)
        }
        fn nonce(&mut self) -> u32 {
            7
        }
    }

    const SHARD: ShardId = ShardId {
        generation: Generation(1),
        index: 2,
    };

    fn stamped(due: u64, len: usize, topic: u8, id: Option<String>) -> Stamped {
        Stamped {
            due: UnixMs(due),
            message: Message {
                topic: TopicName::parse(format!("t{topic}").as_bytes()).unwrap(),
                body: Bytes::from(vec![b'x'; len]),
                due: Due::After(Delay(5)),
                id: id.map(|id| ClientId::parse(id.as_bytes()).unwrap()),
            },
        }
    }

    proptest! {
        #[test]
        fn every_message_is_where_its_id_says(
            given in proptest::collection::vec((1_000_u64..6_000, 1_usize..400, 0_u8..3), 1..80),
            window_ms in 0_u64..2_000, bytes in 100_usize..2_000, compresses: bool,
        ) {
            let messages: Vec<_> =
                given.iter().map(|(due, len, topic)| stamped(*due, *len, *topic, None)).collect();
            let compression = if compresses { Compression::Zstd } else { Compression::None };
            let limits = PackLimits { window_ms, bytes, compression };
            let packed = pack(SHARD, &messages, limits, &mut Counting(0));
            let decoded: Vec<_> = packed.packs.iter()
                .map(|p| Pack::decode(p.score, Bytes::from(p.value.clone())).unwrap()).collect();
            for (message, id) in messages.iter().zip(&packed.minted) {
                let pack = decoded.iter().find(|p| p.score == id.place.score).unwrap();
                let record = &pack.records[usize::from(id.place.position)];
                prop_assert_eq!(record.due, message.due);
                prop_assert_eq!(&record.topic, &message.message.topic);
                prop_assert_eq!(&record.body, &message.message.body);
            }
            for pack in &decoded {
                let last = pack.records.iter().map(|r| r.due).max().unwrap();
                prop_assert!(last.ms_since(pack.score.due()) <= window_ms);
                let body_bytes: usize = pack.records.iter().map(|r| r.body.len()).sum();
                prop_assert!(pack.records.len() == 1 || body_bytes <= bytes);
            }
        }
    }

    #[test]
    fn the_same_message_given_again_has_the_same_digest() {
        let digest = |m: &Stamped| digest_of(&m.message);
        let first = stamped(1_000, 5, 0, Some("a".into()));
        assert_eq!(
            digest(&first),
            digest(&stamped(9_000, 5, 0, Some("a".into())))
        );
        assert_ne!(
            digest(&first),
            digest(&stamped(1_000, 6, 0, Some("a".into())))
        );
        assert_ne!(
            digest(&first),
            digest(&stamped(1_000, 5, 1, Some("a".into())))
        );
    }
}
