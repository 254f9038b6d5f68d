//! What the doors ask, answered by the model.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::BoxFuture;
use nsqdelayd::id::{BadId, MessageId, MintedId, Place};
use nsqdelayd::message::{Due, Message, TopicName, UnixMs};
use nsqdelayd::shard::ShardId;
use nsqdelayd::store::{
    Cancel, Error, ErrorKind, Page, Pending, Query, Receipt, Record, Reschedule, ScheduleStore,
    State, Stored,
};

use super::packing::digest_of;
use super::shard::{DeadLetter, Entry, InsertReply, Kind, Move, Named, PlaceReply, Shard, Verdict};
use super::{Bug, ModelStore, Request};

/// How often a place is sought, or a message that moves is looked at again.
const ATTEMPTS_MAX: u32 = 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Scheduled,
    InFlight,
    Cancelled,
    Dead,
    Gone,
}

/// A message, where it is and how it stands.
#[derive(Debug, Clone)]
struct Found {
    entry: Option<Entry>,
    place: Place,
    due: UnixMs,
    standing: Standing,
    records: usize,
    record: Option<Record>,
    dead: Option<DeadLetter>,
}

fn find(keys: &Shard, id: &str, minted: Option<(Place, UnixMs)>) -> Option<Found> {
    let entry = keys.ids.get(id).copied();
    let (place, due, maybe) = match (entry, minted) {
        (Some(entry), _) => (entry.place, entry.due, entry.maybe),
        (None, Some((place, due))) => (place, due, false),
        (None, None) => return None,
    };
    let kind = entry.map_or(Kind::Stored, |entry| entry.kind);
    let standing = match kind {
        Kind::Dead => Standing::Dead,
        Kind::Cancelled => Standing::Cancelled,
        Kind::Held if maybe => Standing::InFlight,
        Kind::Stored if due <= keys.settled => Standing::Gone,
        Kind::Stored if keys.is_marked(place) => Standing::Cancelled,
        Kind::Stored if due <= keys.handed || maybe => Standing::InFlight,
        Kind::Stored | Kind::Held => Standing::Scheduled,
    };
    let (records, record) = match kind {
        Kind::Held => (1, keys.held_at(place)),
        _ => keys.record_at(place),
    };
    let (record, dead) = (record.cloned(), keys.dead.get(id).cloned());
    Some(Found {
        entry,
        place,
        due,
        standing,
        records,
        record,
        dead,
    })
}

fn existing(message: &Message, id: MessageId, entry: Entry) -> Result<Receipt, Error> {
    match entry.kind {
        Kind::Cancelled => Err(Error::new(ErrorKind::Cancelled)),
        Kind::Stored | Kind::Held | Kind::Dead if entry.digest == digest_of(message) => {
            Ok(Receipt {
                id,
                due: entry.due,
                created: false,
            })
        }
        Kind::Stored | Kind::Held | Kind::Dead => Err(Error::new(ErrorKind::Conflict)),
    }
}

impl ModelStore {
    fn shard_of(&self, id: &MessageId) -> ShardId {
        match id {
            MessageId::Minted(minted) => minted.shard,
            MessageId::Client(client) => self.server.topology().shard_of(client),
        }
    }

    fn named(&self, id: &MessageId) -> Named {
        let place = match id {
            MessageId::Minted(minted) => Some((minted.place, minted.due)),
            MessageId::Client(_) => None,
        };
        let id = self.server.id_key.text(id);
        Named { id, place }
    }

    async fn find(&self, id: &MessageId) -> Result<Option<Found>, Error> {
        let (shard, named) = (self.shard_of(id), self.named(id));
        let found = self.link.send(&self.server, Request::Ask, move |server| {
            server.run(shard, |keys, _| find(keys, &named.id, named.place))
        });
        found.await
    }

    /// Makes the estimate of Redis's clock current.
    pub(crate) async fn learn_time(&self) -> Result<(), Error> {
        self.link.send(&self.server, Request::Ask, |_| ()).await
    }

    async fn insert(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        if !self.link.knows_time() {
            self.learn_time().await?;
        }
        let topology = self.server.topology();
        let client_id = messages.first().and_then(|m| m.id.clone());
        let shard = client_id.as_ref().map_or_else(
            || {
                let mut next = self.next_shard.lock().unwrap();
                *next = next.wrapping_add(1);
                topology.shard(*next % topology.shards)
            },
            |id| topology.shard_of(id),
        );
        let mut floor = UnixMs(0);
        for attempt in 0..ATTEMPTS_MAX {
            let crowded = u64::from(attempt.saturating_sub(3));
            let stamp = |m: &Message| (self.stamp(m.due, floor).plus_ms(crowded), m.clone());
            let stamped: Vec<_> = messages.iter().map(stamp).collect();
            let (packs, minted) = self.pack(shard, &stamped);
            let script = move |server: &super::Server| {
                server.run(shard, |keys, now| keys.insert(now, &packs))
            };
            if self.server.settings.bug == Some(Bug::ReplyBeforeWrite) {
                if fastrand::u8(..) >= 32 {
                    self.link
                        .later(&self.server, Duration::from_millis(5), script);
                }
                return Ok(receipts(&messages, &minted));
            }
            match self
                .link
                .send(&self.server, Request::Insert, script)
                .await?
            {
                InsertReply::Ok => return Ok(receipts(&messages, &minted)),
                InsertReply::Closed => return Err(Error::new(ErrorKind::Refused)),
                InsertReply::Refused { limit, verdicts } => {
                    if verdicts.contains(&Verdict::Late) {
                        floor = floor.max(limit.plus_ms(2));
                    }
                    let taken = |verdict| match verdict {
                        Verdict::IdsTaken(ids) => ids.first().map(|(_, entry)| *entry),
                        _ => None,
                    };
                    if let Some(entry) = verdicts.into_iter().find_map(taken) {
                        let id = MessageId::Client(client_id.unwrap());
                        return existing(&messages[0], id, entry).map(|receipt| vec![receipt]);
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::Refused))
    }

    async fn shift(&self, id: MessageId, due: Due) -> Result<Reschedule, Error> {
        let mut floor = UnixMs(0);
        for _ in 0..ATTEMPTS_MAX {
            let Some(found) = self.find(&id).await? else {
                return Ok(Reschedule::NotFound);
            };
            match found.standing {
                Standing::Scheduled => {}
                Standing::InFlight => return Ok(Reschedule::InFlight),
                Standing::Cancelled => return Ok(Reschedule::Cancelled),
                Standing::Dead => return Ok(Reschedule::Dead),
                Standing::Gone => return Ok(Reschedule::NotFound),
            }
            let Some(record) = &found.record else {
                return Ok(Reschedule::NotFound);
            };
            let to_due = self.stamp(due, floor);
            let named = self.named(&id);
            let digest = found.entry.map_or(0, |entry| entry.digest);
            let (pack, entry) = self.pack_of_one(record, &named.id, to_due, false, digest);
            let change = Move {
                id: named.id,
                entry_read: found.entry,
                from: found.place,
                from_due: found.due,
                from_records: found.records,
                pack,
                entry,
            };
            let shard = self.shard_of(&id);
            let reply = self.link.send(&self.server, Request::Ask, move |server| {
                server.run(shard, |keys, now| keys.shift(now, &change))
            });
            match reply.await? {
                PlaceReply::Ok => return Ok(Reschedule::Moved(to_due)),
                PlaceReply::InFlight => return Ok(Reschedule::InFlight),
                PlaceReply::Gone => return Ok(Reschedule::NotFound),
                PlaceReply::Cancelled => return Ok(Reschedule::Cancelled),
                PlaceReply::Closed => return Err(Error::new(ErrorKind::Refused)),
                PlaceReply::Late(limit) => floor = limit.plus_ms(2),
                _ => {}
            }
        }
        Err(Error::new(ErrorKind::Unavailable))
    }

    async fn give_back(&self, id: MessageId) -> Result<Reschedule, Error> {
        let mut floor = UnixMs(0);
        for _ in 0..ATTEMPTS_MAX {
            let Some(found) = self.find(&id).await? else {
                return Ok(Reschedule::NotFound);
            };
            let Some(dead) = found.dead else {
                return Ok(Reschedule::NotFound);
            };
            let to_due = self.stamp(Due::At(UnixMs(0)), floor);
            let named = self.named(&id);
            let digest = found.entry.map_or(0, |entry| entry.digest);
            let maybe = dead.record.maybe;
            let to = self.pack_of_one(&dead.record, &named.id, to_due, maybe, digest);
            match self.change_dead(&id, dead, Some(to)).await? {
                PlaceReply::Ok => return Ok(Reschedule::Moved(to_due)),
                PlaceReply::Late(limit) => floor = limit.plus_ms(2),
                _ => {}
            }
        }
        Err(Error::new(ErrorKind::Unavailable))
    }

    async fn change_dead(
        &self,
        id: &MessageId,
        dead: DeadLetter,
        to: Option<(nsqdelayd::store::Pack, Entry)>,
    ) -> Result<PlaceReply, Error> {
        let (shard, named) = (self.shard_of(id), self.named(id));
        let window = self.server.settings.dedupe_window_ms;
        let reply = self.link.send(&self.server, Request::Ask, move |server| {
            server.run(shard, |keys, now| {
                keys.requeue(now, window, &named.id, &dead, to.as_ref())
            })
        });
        reply.await
    }

    /// All that is pending, by due.
    fn all_pending(&self) -> Vec<Stored> {
        let contents = self.server.contents();
        let mut all = Vec::new();
        for (index, keys) in (0_u16..).zip(&contents.shards) {
            let shard = self.server.topology().shard(index);
            for pack in keys.due.values().flatten() {
                for record in &pack.records {
                    let (score, nonce) = (pack.score, pack.nonce);
                    let place = Place {
                        score,
                        nonce,
                        position: record.position,
                    };
                    if record.due <= keys.settled || keys.cancelled.contains_key(&place) {
                        continue;
                    }
                    let (due, count) = (record.due, pack.stored);
                    let minted = MessageId::Minted(MintedId {
                        due,
                        shard,
                        place,
                        count,
                    });
                    let named = record.id.as_ref().and_then(|id| self.parse_id(id).ok());
                    let in_flight = record.due <= keys.handed || record.maybe;
                    let state = if in_flight {
                        State::InFlight
                    } else {
                        State::Scheduled
                    };
                    all.push(stored(named.unwrap_or(minted), record, state, None));
                }
            }
        }
        all.sort_by_key(|stored| stored.due);
        all
    }
}

fn receipts(messages: &[Message], minted: &[MintedId]) -> Vec<Receipt> {
    let receipt = |(message, at): (&Message, &MintedId)| Receipt {
        id: message
            .id
            .clone()
            .map_or(MessageId::Minted(*at), MessageId::Client),
        due: at.due,
        created: true,
    };
    messages.iter().zip(minted).map(receipt).collect()
}

fn stored(id: MessageId, record: &Record, state: State, reason: Option<String>) -> Stored {
    Stored {
        id,
        topic: record.topic.clone(),
        body: record.body.clone(),
        due: record.due,
        state,
        reason,
    }
}

impl ScheduleStore for ModelStore {
    fn schedule(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<Vec<Receipt>, Error>> {
        Box::pin(self.insert(messages))
    }

    fn get(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Stored>, Error>> {
        Box::pin(async move {
            let Some(found) = self.find(&id).await? else {
                return Ok(None);
            };
            let state = match found.standing {
                Standing::Scheduled => State::Scheduled,
                Standing::InFlight => State::InFlight,
                Standing::Dead => {
                    let dead = found.dead;
                    return Ok(dead.map(|d| stored(id, &d.record, State::Dead, Some(d.reason))));
                }
                Standing::Cancelled | Standing::Gone => return Ok(None),
            };
            Ok(found.record.map(|record| stored(id, &record, state, None)))
        })
    }

    fn cancel(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Cancel>, Error>> {
        Box::pin(async move {
            let window = self.server.settings.dedupe_window_ms;
            let mut answers = Vec::with_capacity(ids.len());
            let mut packs = BTreeMap::new();
            for id in ids {
                let (shard, named) = (self.shard_of(&id), self.named(&id));
                let minted = named.place.map(|(place, _)| place);
                let answer = self.link.send(&self.server, Request::Ask, move |server| {
                    server.run(shard, |keys, now| {
                        let answer = keys.cancel(now, window, &named);
                        (answer, keys.untidy_at(&named))
                    })
                });
                let (answer, untidy) = answer.await?;
                answers.push(answer);
                if answer == Cancel::Cancelled && self.server.settings.tidies {
                    let places = untidy.into_iter().chain(minted);
                    packs.extend(places.map(|place| ((shard, place.score, place.nonce), place)));
                }
            }
            for ((shard, ..), place) in packs {
                // The message is cancelled, whatever becomes of this.
                let tidied = self.link.send(&self.server, Request::Ask, move |server| {
                    server.run(shard, |keys, _| keys.tidy(place));
                });
                let _best_effort = tidied.await;
            }
            Ok(answers)
        })
    }

    fn reschedule(&self, id: MessageId, due: Due) -> BoxFuture<'_, Result<Reschedule, Error>> {
        Box::pin(self.shift(id, due))
    }

    /// One page: the whole.
    fn list(
        &self,
        query: Query,
        _page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(async move {
            let mut messages = self.all_pending();
            let wanted = |topic: &TopicName| query.topic.as_ref().is_none_or(|t| t == topic);
            messages.retain(|m| {
                wanted(&m.topic)
                    && query.due_from.is_none_or(|from| m.due >= from)
                    && query.due_to.is_none_or(|to| m.due < to)
            });
            assert!(messages.len() <= page_size, "the model gives one page");
            let next_page_token = None;
            Ok(Page {
                messages,
                next_page_token,
            })
        })
    }

    fn dead_letters(
        &self,
        _page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        Box::pin(async move {
            let contents = self.server.contents();
            let all = contents.shards.iter().flat_map(|keys| &keys.dead);
            let letter = |(id, dead): (&String, &DeadLetter)| {
                let id = self.parse_id(id.as_bytes()).unwrap();
                stored(id, &dead.record, State::Dead, Some(dead.reason.clone()))
            };
            let messages: Vec<Stored> = all.map(letter).collect();
            assert!(messages.len() <= page_size, "the model gives one page");
            let next_page_token = None;
            Ok(Page {
                messages,
                next_page_token,
            })
        })
    }

    fn requeue(&self, id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>> {
        Box::pin(self.give_back(id))
    }

    fn drop_dead(&self, id: MessageId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move {
            let dead = self.find(&id).await?.and_then(|found| found.dead);
            let Some(dead) = dead else {
                return Ok(false);
            };
            Ok(self.change_dead(&id, dead, None).await? == PlaceReply::Ok)
        })
    }

    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>> {
        Box::pin(async move {
            let contents = self.server.contents();
            let mut pending = Pending::default();
            for keys in &contents.shards {
                pending.dead += keys.dead.len() as u64;
                for (topic, count) in &keys.pending {
                    let count = u64::try_from(*count).unwrap();
                    *pending.by_topic.entry(topic.clone()).or_default() += count;
                }
                for (topic, bytes) in &keys.bytes {
                    let bytes = u64::try_from(*bytes).unwrap();
                    *pending.bytes_by_topic.entry(topic.clone()).or_default() += bytes;
                }
            }
            Ok(pending)
        })
    }

    fn set_paused(&self, topic: TopicName, paused: bool) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(self.pause_topic(topic, paused))
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        Box::pin(self.paused_topics())
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.learn_time())
    }

    fn now(&self) -> UnixMs {
        self.link.upper()
    }

    fn parse_id(&self, text: &[u8]) -> Result<MessageId, BadId> {
        self.server.id_key.parse(text)
    }

    fn id_text(&self, id: &MessageId) -> String {
        self.server.id_key.text(id)
    }
}
