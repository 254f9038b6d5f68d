//! Cancels of the model, and what follows from marks.

use std::collections::BTreeMap;

use bytes::Bytes;
use nsqdelayd::id::Place;
use nsqdelayd::message::{TopicName, UnixMs};
use nsqdelayd::store::{Cancel, Record};

use super::Bug;
use super::holding::still_there;
use super::shard::{Entry, Kind, Named, Shard};

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

    /// What `tally.rs` finds out and `tidy.lua` does, for the pack of a mark.
    pub(crate) fn tidy(&mut self, place: Place) {
        let mut packs = self.due.get(&place.score).into_iter().flatten();
        let Some(mut pack) = packs.find(|p| p.nonce == place.nonce).cloned() else {
            return;
        };
        let at = |record: &Record| Place {
            position: record.position,
            ..place
        };
        let (gone, mut left): (Vec<Record>, Vec<Record>) = pack
            .records
            .drain(..)
            .partition(|record| self.cancelled.contains_key(&at(record)));
        let uncounted = gone.iter().filter(|r| self.uncounted.contains(&at(r)));
        let uncounted: Vec<Record> = uncounted.cloned().collect();
        for record in &uncounted {
            self.uncounted.remove(&at(record));
            self.count(&record.topic, -1);
        }
        let lying = gone.len() + left.len();
        let Some(last) = gone.iter().max_by_key(|r| (r.due, r.position)) else {
            return;
        };
        if place.score.due() <= self.opened {
            return;
        }
        if pack.stored == 1 {
            if !uncounted.is_empty() {
                self.remove(place.score);
            }
        } else if gone.len() * 3 >= lying * 2 && (lying > 1 || !last.body.is_empty()) {
            // The last record stays without its body, and one mark as long as others of its pack may be asked for.
            if left.is_empty() {
                let body = Bytes::new();
                left.push(Record {
                    body,
                    ..last.clone()
                });
            }
            for record in &gone {
                if record.position != last.position {
                    self.cancelled.remove(&at(record));
                }
                let left_it = self.left.entry((place.score, place.nonce)).or_default();
                left_it.insert(record.position);
            }
            self.remove(place.score);
            pack.records = left;
            self.add(pack);
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

    /// Whether a record is not to be delivered from there, by its mark or because it has left its pack.
    pub(crate) fn is_marked(&self, place: Place) -> bool {
        let left_it = self.left.get(&(place.score, place.nonce));
        let has_left = left_it.is_some_and(|positions| positions.contains(&place.position));
        self.cancelled.contains_key(&place) || has_left
    }
}
