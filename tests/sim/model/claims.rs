//! What dispatch asks, answered by the model.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use nsqdelayd::id::{MessageId, MintedId, Place};
use nsqdelayd::message::{TopicName, UnixMs};
use nsqdelayd::shard::{InstanceId, ShardId, Topology};
use nsqdelayd::store::{
    ClaimStore, ClaimToken, Error, ErrorKind, Members, NowBounds, Pack, ParkReply, ParkTo, Parked,
    Record, Session, Swept, Turn, TurnReply, Wake,
};
use tokio::sync::mpsc;

use super::packing::measured;
use super::shard::{DeadLetter, Entry, Kind, ParkedMessage, PlaceReply};
use super::{Listener, ModelStore, Request};

/// Most entries of each kind that one trim touches.
const TRIM_MAX: usize = 500;

impl ModelStore {
    fn check_session(&self, session: Session) -> Result<(), Error> {
        if self.link.session() == Some(session) {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::SessionLost))
        }
    }

    /// The id that the message's producer knows it by.
    fn parked_id(&self, shard: ShardId, message: &Parked) -> String {
        if let Some(id) = &message.record.id {
            return String::from_utf8(id.to_vec()).unwrap();
        }
        let minted = MintedId {
            due: message.record.due,
            shard,
            place: message.from,
            count: message.stored,
        };
        self.server.id_key.text(&MessageId::Minted(minted))
    }

    async fn park_once(
        &self,
        session: Session,
        shard: ShardId,
        token: &ClaimToken,
        messages: &[Parked],
        to: &ParkTo,
    ) -> Result<PlaceReply, Error> {
        self.check_session(session)?;
        let ids: Vec<String> = messages.iter().map(|m| self.parked_id(shard, m)).collect();
        let asked = ids.clone();
        let digests = self.link.send(&self.server, Request::Park, move |server| {
            let digest = |id: &String, ids: &std::collections::BTreeMap<String, Entry>| {
                ids.get(id).map_or(0, |entry| entry.digest)
            };
            server.run(shard, |keys, _| -> Vec<u64> {
                asked.iter().map(|id| digest(id, &keys.ids)).collect()
            })
        });
        let digests = digests.await?;
        let (pack, parked) = self.new_home(messages, &ids, &digests, to);
        let token = token.clone();
        let held = match to {
            ParkTo::Held(topic) => Some(topic.clone()),
            ParkTo::Later(_) | ParkTo::DeadLetters(_) => None,
        };
        let dead_max = self.server.settings.dead_letters_max;
        self.check_session(session)?;
        let reply = self.link.send(&self.server, Request::Park, move |server| {
            server.run(shard, |keys, now| {
                keys.park(now, &token, pack.as_ref(), held.as_ref(), dead_max, &parked)
            })
        });
        reply.await
    }

    fn new_home(
        &self,
        messages: &[Parked],
        ids: &[String],
        digests: &[u64],
        to: &ParkTo,
    ) -> (Option<Pack>, Vec<ParkedMessage>) {
        let home = match to {
            ParkTo::Later(due) => Some((*due, self.next_place(*due))),
            ParkTo::DeadLetters(_) => None,
            ParkTo::Held(_) => {
                let first = messages.iter().map(|m| m.record.due).min().unwrap();
                Some((first, self.next_place(first)))
            }
        };
        let (mut records, mut parked) = (Vec::new(), Vec::new());
        for (position, message) in (0_u16..).zip(messages) {
            let (id, digest) = (&ids[usize::from(position)], digests[usize::from(position)]);
            let record = Record {
                id: Some(Bytes::copy_from_slice(id.as_bytes())),
                ..message.record.clone()
            };
            let (kind, place, due) = match home {
                Some((_, first)) if matches!(to, ParkTo::Held(_)) => {
                    let place = Place { position, ..first };
                    (Kind::Held, place, message.record.due)
                }
                Some((due, first)) => (Kind::Stored, Place { position, ..first }, due),
                None => (Kind::Dead, message.from, message.record.due),
            };
            let dead_letter = match to {
                ParkTo::Later(_) | ParkTo::Held(_) => None,
                ParkTo::DeadLetters(reason) => Some(DeadLetter {
                    reason: reason.clone(),
                    record: record.clone(),
                }),
            };
            let maybe = record.maybe;
            parked.push(ParkedMessage {
                id: id.clone(),
                from: message.from,
                from_due: message.record.due,
                entry: Entry {
                    kind,
                    place,
                    due,
                    maybe,
                    digest,
                },
                topic: record.topic.clone(),
                dead_letter,
            });
            records.push(Record {
                position,
                due,
                ..record
            });
        }
        let pack = home.map(|(_, first)| measured(first.pack(), records));
        (pack, parked)
    }
}

impl ClaimStore for ModelStore {
    fn session(&self) -> Option<Session> {
        self.link.session()
    }

    fn new_session(&self, known: Option<Session>) -> BoxFuture<'_, Session> {
        Box::pin(self.link.new_session(known))
    }

    fn topology(&self) -> Topology {
        self.server.topology()
    }

    fn turn(
        &self,
        session: Session,
        shard: ShardId,
        turn: Turn,
    ) -> BoxFuture<'_, Result<TurnReply, Error>> {
        Box::pin(async move {
            self.check_session(session)?;
            let ttl = self.server.settings.claim_ttl;
            let reply = self.link.send(&self.server, Request::Turn, move |server| {
                server.run(shard, |keys, now| keys.turn(now, ttl, &turn))
            });
            reply.await
        })
    }

    fn park(
        &self,
        session: Session,
        shard: ShardId,
        token: ClaimToken,
        messages: Vec<Parked>,
        to: ParkTo,
    ) -> BoxFuture<'_, Result<ParkReply, Error>> {
        Box::pin(async move {
            let mut to = to;
            for _ in 0..10 {
                match self
                    .park_once(session, shard, &token, &messages, &to)
                    .await?
                {
                    PlaceReply::Ok => return Ok(ParkReply::Parked),
                    PlaceReply::Full => return Ok(ParkReply::Full),
                    PlaceReply::Fenced => return Ok(ParkReply::Fenced),
                    PlaceReply::Late(limit) => to = ParkTo::Later(limit.plus_ms(1)),
                    PlaceReply::Marked(ids) => {
                        let marked = |m: &&Parked| ids.contains(&self.parked_id(shard, m));
                        let places = messages.iter().filter(marked).map(|m| m.from);
                        return Ok(ParkReply::Marked(places.collect()));
                    }
                    _ => {}
                }
            }
            Err(Error::new(ErrorKind::Refused))
        })
    }

    fn sweep(&self, shards: Vec<ShardId>) -> BoxFuture<'_, Result<Vec<Swept>, Error>> {
        Box::pin(async move {
            let found = self.link.send(&self.server, Request::Ask, move |server| {
                let swept = |shard| server.run(shard, |keys, _| keys.sweep(shard));
                shards.iter().copied().map(swept).collect()
            });
            found.await
        })
    }

    fn trim(&self, shard: ShardId) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move {
            let window = self.server.settings.dedupe_window_ms;
            let more = self.link.send(&self.server, Request::Ask, move |server| {
                server.run(shard, |keys, now| keys.trim(now, window, TRIM_MAX))
            });
            more.await
        })
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        Box::pin(self.paused_topics())
    }

    fn resume_held(
        &self,
        shard: ShardId,
        paused: BTreeSet<TopicName>,
    ) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(self.resume_some(shard, paused))
    }

    fn beat(&self, me: InstanceId, leave: bool) -> BoxFuture<'_, Result<Members, Error>> {
        Box::pin(async move {
            if self.link.session().is_none() {
                return Err(Error::new(ErrorKind::Unavailable));
            }
            let live = self.link.send(&self.server, Request::Beat, move |server| {
                server.members(&me, leave)
            });
            let (live, next_expiry) = (live.await?, None);
            Ok(Members { live, next_expiry })
        })
    }

    fn wakes(&self) -> BoxStream<'static, Wake> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let shards = BTreeSet::new();
        let listener = Listener { shards, sender };
        self.server
            .contents()
            .listeners
            .insert(self.link.number, listener);
        let link = Arc::clone(&self.link);
        let next = |(mut receiver, link): (mpsc::UnboundedReceiver<Wake>, Arc<super::Link>)| async {
            loop {
                let wake = receiver.recv().await?;
                link.gate().await;
                if link.brings(wake) {
                    return Some((wake, (receiver, link)));
                }
            }
        };
        futures_util::stream::unfold((receiver, link), next).boxed()
    }

    fn listen(&self, shards: Vec<ShardId>) {
        if let Some(listener) = self.server.contents().listeners.get_mut(&self.link.number) {
            listener.shards = shards.into_iter().collect();
            // What came before the subscription was heard by nobody.
            let _heard = listener.sender.send(Wake::Lost);
        }
    }

    fn now_bounds(&self) -> NowBounds {
        let known = self.link.knows_time();
        NowBounds {
            at_least_us: if known { self.link.lower_us() } else { 0 },
            at_most: if known { self.link.upper() } else { UnixMs(0) },
            at: self.link.monotonic(),
        }
    }
}
