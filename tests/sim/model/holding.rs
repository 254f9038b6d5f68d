//! Paused topics, answered by the model.

use std::collections::BTreeSet;

use bytes::Bytes;
use nsqdelayd::id::{Place, Score};
use nsqdelayd::message::{Due, TopicName, UnixMs};
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{Cancel, Error, ErrorKind, Pack, Record, Wake};

use super::packing::measured;
use super::shard::{Entry, Kind, PlaceReply, Shard};
use super::{ModelStore, Request};

/// How often a place is sought for a pack.
const ATTEMPTS_MAX: u32 = 20;

/// Those of a pack's messages that are still held there.
pub(super) fn still_there(keys: &Shard, pack: &Pack) -> Vec<(Record, String, Entry)> {
    let still = pack.records.iter().filter_map(|record| {
        let id = String::from_utf8(record.id.clone()?.to_vec()).unwrap();
        let entry = *keys.ids.get(&id)?;
        let place = Place {
            score: pack.score,
            nonce: pack.nonce,
            position: record.position,
        };
        (entry.kind == Kind::Held && entry.place == place).then(|| (record.clone(), id, entry))
    });
    still.collect()
}

impl Shard {
    /// The record of an entry that is held.
    pub(crate) fn held_at(&self, place: Place) -> Option<&Record> {
        let packs = self
            .held
            .values()
            .filter_map(|packs| packs.get(&place.score));
        let mut packs = packs.filter(|pack| pack.nonce == place.nonce);
        packs.find_map(|pack| pack.records.iter().find(|r| r.position == place.position))
    }

    pub(super) fn cancel_held(
        &mut self,
        now: UnixMs,
        window_ms: u64,
        id: &str,
        entry: Entry,
    ) -> Cancel {
        if entry.maybe {
            return Cancel::InFlight;
        }
        if let Some(topic) = self.held_at(entry.place).map(|r| r.topic.clone()) {
            self.count(&topic, -1);
        }
        let kind = Kind::Cancelled;
        self.ids.insert(id.to_owned(), Entry { kind, ..entry });
        self.live.remove(id);
        self.gone.insert(id.to_owned(), now.plus_ms(window_ms));
        Cancel::Cancelled
    }

    /// `resume.lua`. Without a pack nothing is left of it.
    pub(crate) fn resume(
        &mut self,
        now: UnixMs,
        topic: &TopicName,
        from: Score,
        to: Option<&Pack>,
        messages: &[(String, Entry, Entry)],
    ) -> PlaceReply {
        let Some(old) = self.held.get(topic).and_then(|packs| packs.get(&from)) else {
            return PlaceReply::Gone;
        };
        let old = old.clone();
        if messages
            .iter()
            .any(|(id, read, _)| self.ids.get(id) != Some(read))
        {
            return PlaceReply::Changed;
        }
        if let Some(pack) = to {
            let due = pack.score.due();
            if due <= self.handed {
                return PlaceReply::Late(now.max(self.handed));
            }
            if self.has(pack.score) {
                return PlaceReply::Taken;
            }
            self.add(pack.clone());
            for (id, _, new) in messages {
                self.ids.insert(id.clone(), *new);
                self.live_until(id, due);
            }
            self.appear(due);
        }
        self.count_bytes(&old, -1);
        let packs = self.held.get_mut(topic).unwrap();
        packs.remove(&from);
        if packs.is_empty() {
            self.held.remove(topic);
        }
        PlaceReply::Ok
    }
}

impl ModelStore {
    pub(super) async fn pause_topic(&self, topic: TopicName, paused: bool) -> Result<bool, Error> {
        let changed = self.link.send(&self.server, Request::Ask, move |server| {
            let mut contents = server.contents();
            let changed = if paused {
                contents.paused.insert(topic.clone())
            } else {
                contents.paused.remove(&topic)
            };
            for listener in contents.listeners.values() {
                let _heard = listener.sender.send(Wake::Pauses);
            }
            changed
        });
        changed.await
    }

    pub(super) async fn paused_topics(&self) -> Result<BTreeSet<TopicName>, Error> {
        let topics = self.link.send(&self.server, Request::Ask, |server| {
            server.contents().paused.clone()
        });
        topics.await
    }

    pub(super) async fn resume_some(
        &self,
        shard: ShardId,
        paused: BTreeSet<TopicName>,
    ) -> Result<bool, Error> {
        let found = self.link.send(&self.server, Request::Ask, move |server| {
            server.run(shard, |keys, _| {
                let mut held = keys
                    .held
                    .iter()
                    .filter(|(topic, _)| !paused.contains(topic));
                let (topic, packs) = held.next()?;
                Some((topic.clone(), packs.values().next()?.clone()))
            })
        });
        let Some((topic, pack)) = found.await? else {
            return Ok(false);
        };
        let mut floor = UnixMs(0);
        for _ in 0..ATTEMPTS_MAX {
            let asked = pack.clone();
            let still = self.link.send(&self.server, Request::Ask, move |server| {
                server.run(shard, |keys, _| still_there(keys, &asked))
            });
            let (to, messages) = self.resumed(still.await?, floor);
            let (topic, from) = (topic.clone(), pack.score);
            let reply = self.link.send(&self.server, Request::Ask, move |server| {
                server.run(shard, |keys, now| {
                    keys.resume(now, &topic, from, to.as_ref(), &messages)
                })
            });
            match reply.await? {
                PlaceReply::Ok | PlaceReply::Gone => return Ok(true),
                PlaceReply::Late(limit) => floor = limit.plus_ms(2),
                _ => {}
            }
        }
        Err(Error::new(ErrorKind::Unavailable))
    }

    fn resumed(
        &self,
        still: Vec<(Record, String, Entry)>,
        floor: UnixMs,
    ) -> (Option<Pack>, Vec<(String, Entry, Entry)>) {
        let due = still.iter().map(|(record, ..)| record.due).max();
        let Some(due) = due.map(|due| due.max(self.stamp(Due::At(UnixMs(0)), floor))) else {
            return (None, Vec::new());
        };
        let first = self.next_place(due);
        let (mut records, mut messages) = (Vec::new(), Vec::new());
        for (position, (record, id, entry)) in (0_u16..).zip(still) {
            let place = Place { position, ..first };
            let new = Entry {
                kind: Kind::Stored,
                place,
                due,
                ..entry
            };
            records.push(Record {
                position,
                due,
                id: Some(Bytes::copy_from_slice(id.as_bytes())),
                ..record
            });
            messages.push((id, entry, new));
        }
        let pack = measured(first.pack(), records);
        (Some(pack), messages)
    }
}
