//! Cancels of the model, what follows from them, and the heads of packs of which something was cancelled.

use std::collections::BTreeMap;

use bytes::Bytes;
use nsqdelayd::id::Place;
use nsqdelayd::message::{TopicName, UnixMs};
use nsqdelayd::store::{Cancel, Record};

use super::Bug;
use super::holding::still_there;
use super::shard::{Entry, Kind, Named, Shard};

/// What is cancelled of a pack of several.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    /// Records that the pack has now.
    lying: usize,
    /// Records that are not cancelled.
    left: usize,
    /// By position.
    cancelled: Vec<bool>,
}

impl Shard {
    /// `cancel.lua`, for one message.
    pub(crate) fn cancel(&mut self, now: UnixMs, window_ms: u64, named: &Named) -> Cancel {
        let entry = self.ids.get(&named.id).copied();
        let (place, due, maybe) = match (entry, named.place) {
            (Some(entry), _) if entry.kind == Kind::Cancelled => return Cancel::Cancelled,
            (Some(entry), _) if entry.kind == Kind::Dead => return Cancel::Dead,
            (Some(entry), _) if entry.kind == Kind::Held => {
                return self.cancel_held(now, window_ms, &named.id, entry);
            }
            (Some(entry), _) => (entry.place, entry.due, entry.maybe),
            (None, Some((place, due))) => (place, due, false),
            (None, None) => return Cancel::NotFound,
        };
        if due <= self.settled {
            return Cancel::NotFound;
        }
        if self.is_marked(place) {
            return Cancel::Cancelled;
        }
        if (due <= self.handed || maybe) && self.bug != Some(Bug::CancelIgnoresHanded) {
            return Cancel::InFlight;
        }
        self.cancelled.insert(place, due);
        self.uncounted.insert(place);
        if let Some(entry) = entry {
            let kind = Kind::Cancelled;
            self.ids.insert(named.id.clone(), Entry { kind, ..entry });
            self.live.remove(&named.id);
            self.gone.insert(named.id.clone(), now.plus_ms(window_ms));
        }
        Cancel::Cancelled
    }

    /// Where a cancel of that message has set a mark that was not counted off.
    pub(crate) fn untidy_at(&self, named: &Named) -> Option<Place> {
        let entry = self.ids.get(&named.id).map(|entry| entry.place);
        let place = entry.or(named.place.map(|(place, _)| place))?;
        self.uncounted.contains(&place).then_some(place)
    }

    /// `tidy.lua`, for one mark.
    pub(crate) fn tidy(&mut self, place: Place) {
        let Some((stored, topic)) = self.stored_at(place) else {
            return;
        };
        if !self.uncounted.remove(&place) {
            return;
        }
        self.count(&topic, -1);
        let is_beyond = place.score.due() > self.opened;
        if stored > 1 {
            self.note_cancelled(place, stored);
            if is_beyond {
                self.compact(place);
            }
        } else if is_beyond {
            self.remove(place.score);
        }
    }

    /// What `pending` must say: all that lies there, but for what is cancelled and counted off, moved or parked.
    pub(crate) fn recount(&self) -> BTreeMap<TopicName, i64> {
        let mut counts: BTreeMap<TopicName, i64> = BTreeMap::new();
        for pack in self.due.values().flatten() {
            for record in &pack.records {
                let place = Place {
                    score: pack.score,
                    nonce: pack.nonce,
                    position: record.position,
                };
                if !self.is_marked(place) || self.uncounted.contains(&place) {
                    *counts.entry(record.topic.clone()).or_default() += 1;
                }
            }
        }
        for pack in self.held.values().flat_map(BTreeMap::values) {
            for (record, ..) in still_there(self, pack) {
                *counts.entry(record.topic).or_default() += 1;
            }
        }
        counts
    }

    /// Whether a record is not to be delivered from there, by its mark or by its pack's head.
    pub(crate) fn is_marked(&self, place: Place) -> bool {
        let head = self.heads.get(&(place.score, place.nonce));
        let in_head = head.and_then(|head| head.cancelled.get(usize::from(place.position)));
        self.cancelled.contains_key(&place) || in_head == Some(&true)
    }

    /// How many records were stored with the one at a place, and its topic.
    fn stored_at(&self, place: Place) -> Option<(usize, TopicName)> {
        let packs = self.due.get(&place.score)?;
        let pack = packs.iter().find(|pack| pack.nonce == place.nonce)?;
        let records = &mut pack.records.iter();
        let record = records.find(|record| record.position == place.position)?;
        Some((usize::from(pack.stored), record.topic.clone()))
    }

    fn note_cancelled(&mut self, place: Place, stored: usize) {
        let lying = self.record_at(place).0;
        let head = self.heads.entry((place.score, place.nonce));
        let head = head.or_insert_with(|| Head {
            lying,
            left: lying,
            cancelled: vec![false; stored],
        });
        head.left -= 1;
        head.cancelled[usize::from(place.position)] = true;
    }

    /// What is cancelled leaves its pack once that is two thirds of it, and takes its mark along, but for the one that was
    /// set last. The last record stays without its body.
    fn compact(&mut self, place: Place) {
        let (Some(head), Some(packs)) = (
            self.heads.get_mut(&(place.score, place.nonce)),
            self.due.get(&place.score),
        ) else {
            return;
        };
        if (head.lying - head.left) * 3 < head.lying * 2 {
            return;
        }
        let mut packs = packs.clone();
        for pack in packs.iter_mut().filter(|pack| pack.nonce == place.nonce) {
            let (gone, mut kept): (Vec<Record>, Vec<Record>) = pack
                .records
                .drain(..)
                .partition(|record| head.cancelled[usize::from(record.position)]);
            for record in gone {
                let position = record.position;
                if position != place.position {
                    self.cancelled.remove(&Place { position, ..place });
                } else if kept.is_empty() {
                    let body = Bytes::new();
                    kept.push(Record { body, ..record });
                }
            }
            head.lying = kept.len();
            pack.records = kept;
        }
        self.remove(place.score);
        for pack in packs {
            self.count_bytes(&pack, 1);
            self.due.entry(pack.score).or_default().push(pack);
        }
    }
}
