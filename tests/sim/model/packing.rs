//! How a model client stamps and packs what it is given.

use bytes::Bytes;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use nsqdelayd::id::{MintedId, PackName, Place, Score};
use nsqdelayd::message::{Due, Message, TopicName, UnixMs};
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{Compression, Pack, Record};

use super::shard::{Entry, Kind, NewPack};
use super::{Bug, ModelStore};

/// Directory entry, offset, flags and length of a record, at most.
const RECORD_OVERHEAD_MAX: usize = 11;

/// A pack with the length that its stored value has.
pub(super) fn measured(name: PackName, records: Vec<Record>) -> Pack {
    let mut pack = Pack::new(name, records, Compression::None);
    pack.len = pack.encode().len();
    pack
}

/// What tells whether the same message was given again.
pub(super) fn digest_of(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.topic.hash(&mut hasher);
    message.due.hash(&mut hasher);
    message.body.hash(&mut hasher);
    hasher.finish().max(1)
}

impl ModelStore {
    /// A score and a nonce that are probably free.
    pub(super) fn next_place(&self, due: UnixMs) -> Place {
        let mut k = self.next_k.lock().unwrap();
        *k = k.wrapping_add(1);
        let k = if self.server.settings.bug == Some(Bug::SharedScores) {
            0
        } else {
            *k % 1_024
        };
        Place {
            score: Score::new(due, k),
            nonce: fastrand::u32(..),
            position: 0,
        }
    }

    /// Packs messages of one shard, stamped, and says where each went.
    pub(super) fn pack(
        &self,
        shard: ShardId,
        messages: &[(UnixMs, Message)],
    ) -> (Vec<NewPack>, Vec<MintedId>) {
        let settings = &self.server.settings;
        let mut order: Vec<usize> = (0..messages.len()).collect();
        order.sort_by_key(|index| messages[*index].0);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut bytes = 0;
        for index in order {
            let (due, message) = &messages[index];
            let size = message.body.len() + RECORD_OVERHEAD_MAX;
            let fits = |group: &&mut Vec<usize>| {
                due.ms_since(messages[group[0]].0) <= settings.pack_window_ms
                    && bytes + size <= settings.pack_bytes
            };
            if let Some(group) = groups.last_mut().filter(fits) {
                group.push(index);
                bytes += size;
            } else {
                groups.push(vec![index]);
                bytes = size;
            }
        }
        let mut places = vec![None; messages.len()];
        let packs = groups
            .iter()
            .map(|group| self.pack_group(shard, messages, group, &mut places))
            .collect();
        (packs, places.into_iter().flatten().collect())
    }

    fn pack_group(
        &self,
        shard: ShardId,
        messages: &[(UnixMs, Message)],
        group: &[usize],
        places: &mut [Option<MintedId>],
    ) -> NewPack {
        let first = self.next_place(messages[group[0]].0);
        let count = u16::try_from(group.len()).unwrap();
        let (mut ids, mut records) = (Vec::new(), Vec::new());
        for (position, index) in (0_u16..).zip(group) {
            let (due, message) = &messages[*index];
            let place = Place { position, ..first };
            places[*index] = Some(MintedId {
                due: *due,
                shard,
                place,
                count,
            });
            if let Some(id) = &message.id {
                let entry = Entry {
                    kind: Kind::Stored,
                    place,
                    due: *due,
                    maybe: false,
                    digest: digest_of(message),
                };
                ids.push((id.as_str().to_owned(), entry));
            }
            let id = message.id.as_ref();
            records.push(Record {
                position,
                due: *due,
                topic: message.topic.clone(),
                maybe: false,
                id: id.map(|id| Bytes::copy_from_slice(id.as_str().as_bytes())),
                body: message.body.clone(),
            });
        }
        let pack = measured(first.pack(), records);
        NewPack { pack, ids }
    }

    /// A pack of one at a new place, for a message that keeps its id.
    pub(super) fn pack_of_one(
        &self,
        record: &Record,
        id: &str,
        due: UnixMs,
        maybe: bool,
        digest: u64,
    ) -> (Pack, Entry) {
        let place = self.next_place(due);
        let record = Record {
            position: 0,
            due,
            maybe,
            id: Some(Bytes::copy_from_slice(id.as_bytes())),
            topic: TopicName::clone(&record.topic),
            body: record.body.clone(),
        };
        let pack = measured(place.pack(), vec![record]);
        let kind = Kind::Stored;
        (
            pack,
            Entry {
                kind,
                place,
                due,
                maybe,
                digest,
            },
        )
    }

    /// The due time asked for, by the estimate of Redis's clock; as a store must, a little ahead.
    pub(super) fn stamp(&self, due: Due, floor: UnixMs) -> UnixMs {
        const AHEAD_MS: u64 = 2;
        let rounded_down = self.server.settings.bug == Some(Bug::DueRoundedDown);
        let now = if rounded_down {
            self.link.upper_down()
        } else {
            self.link.upper()
        };
        let asked = match due {
            Due::After(delay) => now.after(delay),
            Due::At(at) => at,
        };
        let ahead = if rounded_down { 0 } else { AHEAD_MS };
        asked.max(now.plus_ms(ahead)).max(floor)
    }
}
