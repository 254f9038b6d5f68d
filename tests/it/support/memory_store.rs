//! A store in memory, for tests of the doors: it keeps what it is given, delivers nothing, and fails
//! or stalls when told to.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use futures_util::future::{BoxFuture, FutureExt as _};
use nsqdelayd::id::{BadId, IdKey, MessageId, MintedId, Place, Score};
use nsqdelayd::message::{Due, Message, TopicName, UnixMs};
use nsqdelayd::shard::{Generation, ShardId};
use nsqdelayd::store::{
    Cancel, Error, ErrorKind, Page, Pending, Query, Receipt, Reschedule, ScheduleStore, State,
    Stored,
};
use tokio::sync::watch;

/// What the store does with the next calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// What it is asked.
    Well,
    /// It answers with this error.
    Failing(ErrorKind),
    /// It does not answer until its mood changes.
    Stalled,
}

/// The store.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    key: IdKey,
    mood: watch::Sender<Mood>,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// In the order of arrival, with when each is due.
    messages: Vec<(MessageId, Message, UnixMs)>,
    states: HashMap<MessageId, Cancel>,
    /// Why, of each dead letter among `messages`.
    reasons: HashMap<MessageId, String>,
    paused: BTreeSet<TopicName>,
    /// Minted so far.
    minted: u32,
    /// Calls of `schedule` that have begun.
    calls: usize,
}

/// The store's clock stands still.
pub(crate) const NOW: UnixMs = UnixMs(1_800_000_000_000);

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self {
            key: IdKey([7; 16]),
            mood: watch::Sender::new(Mood::Well),
            kept: Mutex::default(),
        }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// All that has been stored, in order.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let kept = self.kept();
        kept.messages.iter().map(|(_, m, _)| m.clone()).collect()
    }

    /// Ids as producers see them, in the order of arrival.
    pub(crate) fn ids(&self) -> Vec<String> {
        let kept = self.kept();
        let ids = kept.messages.iter().map(|(id, ..)| self.key.text(id));
        ids.collect()
    }

    /// What a cancel or a move of this message is answered, from now on.
    pub(crate) fn set_state(&self, id: &str, state: Cancel) {
        let id = self.key.parse(id.as_bytes()).unwrap();
        self.kept().states.insert(id, state);
    }

    /// Makes a dead letter of a message.
    pub(crate) fn bury(&self, id: &str, reason: &str) {
        let id = self.key.parse(id.as_bytes()).unwrap();
        let mut kept = self.kept();
        kept.states.insert(id.clone(), Cancel::Dead);
        kept.reasons.insert(id, reason.to_owned());
    }

    /// How many calls of `schedule` have begun.
    pub(crate) fn calls(&self) -> usize {
        self.kept().calls
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    async fn mood(&self) -> Result<(), Error> {
        let mut moods = self.mood.subscribe();
        let mood = *moods.wait_for(|mood| *mood != Mood::Stalled).await.unwrap();
        match mood {
            Mood::Failing(kind) => Err(Error::new(kind)),
            Mood::Well | Mood::Stalled => Ok(()),
        }
    }

    fn keep(&self, message: Message) -> Result<Receipt, Error> {
        let due = moment(message.due);
        let mut kept = self.kept();
        if let Some(client_id) = &message.id {
            let id = MessageId::Client(client_id.clone());
            if kept.states.get(&id) == Some(&Cancel::Cancelled) {
                return Err(Error::new(ErrorKind::Cancelled));
            }
            if let Some((_, there, due)) = kept.messages.iter().find(|(known, ..)| *known == id) {
                if *there != message {
                    return Err(Error::new(ErrorKind::Conflict));
                }
                return Ok(Receipt {
                    id,
                    due: *due,
                    created: false,
                });
            }
        }
        kept.minted += 1;
        let id = match &message.id {
            Some(id) => MessageId::Client(id.clone()),
            None => MessageId::Minted(MintedId {
                due,
                shard: ShardId {
                    generation: Generation(1),
                    index: 0,
                },
                place: Place {
                    score: Score::new(due, 0),
                    nonce: kept.minted,
                    position: 0,
                },
                count: 1,
            }),
        };
        kept.messages.push((id.clone(), message, due));
        Ok(Receipt {
            id,
            due,
            created: true,
        })
    }

    fn cancel_one(&self, id: &MessageId) -> Cancel {
        let mut kept = self.kept();
        if let Some(state) = kept.states.get(id) {
            return *state;
        }
        let Some(at) = kept.position(id) else {
            return Cancel::NotFound;
        };
        kept.messages.remove(at);
        kept.states.insert(id.clone(), Cancel::Cancelled);
        Cancel::Cancelled
    }

    fn move_one(&self, id: &MessageId, due: UnixMs) -> Reschedule {
        let mut kept = self.kept();
        match kept.states.get(id) {
            Some(Cancel::Cancelled) => return Reschedule::Cancelled,
            Some(Cancel::InFlight) => return Reschedule::InFlight,
            Some(Cancel::Dead) => return Reschedule::Dead,
            Some(Cancel::NotFound) | None => {}
        }
        let Some(at) = kept.position(id) else {
            return Reschedule::NotFound;
        };
        kept.messages[at].2 = due;
        Reschedule::Moved(due)
    }

    /// A page token is the number of messages to skip, in clear.
    fn page(
        &self,
        token: Option<String>,
        size: usize,
        wanted: impl Fn(&Stored) -> bool,
    ) -> Result<Page, Error> {
        let bad = |_| Error::new(ErrorKind::BadPageToken);
        let skip = token.map_or(Ok(0), |token| token.parse().map_err(bad))?;
        let kept = self.kept();
        let mut found: Vec<_> = kept.stored().filter(wanted).collect();
        found.sort_by_key(|stored| stored.due);
        let next = skip + size;
        let next_page_token = (found.len() > next).then(|| next.to_string());
        Ok(Page {
            messages: found.into_iter().skip(skip).take(size).collect(),
            next_page_token,
        })
    }
}

fn moment(due: Due) -> UnixMs {
    match due {
        Due::After(delay) => NOW.after(delay),
        Due::At(at) => at.max(NOW),
    }
}

impl Kept {
    fn position(&self, id: &MessageId) -> Option<usize> {
        self.messages.iter().position(|(known, ..)| known == id)
    }

    fn stored(&self) -> impl Iterator<Item = Stored> {
        self.messages.iter().map(|(id, message, due)| Stored {
            id: id.clone(),
            topic: message.topic.clone(),
            body: message.body.clone(),
            due: *due,
            state: match self.states.get(id) {
                Some(Cancel::InFlight) => State::InFlight,
                Some(Cancel::Dead) => State::Dead,
                _ => State::Scheduled,
            },
            reason: self.reasons.get(id).cloned(),
        })
    }
}

impl ScheduleStore for MemoryStore {
    fn schedule(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<Vec<Receipt>, Error>> {
        async move {
            self.kept().calls += 1;
            self.mood().await?;
            messages.into_iter().map(|m| self.keep(m)).collect()
        }
        .boxed()
    }

    fn get(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Stored>, Error>> {
        async move {
            self.mood().await?;
            let kept = self.kept();
            let found = kept.stored().find(|stored| stored.id == id);
            Ok(found)
        }
        .boxed()
    }

    fn cancel(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Cancel>, Error>> {
        async move {
            self.mood().await?;
            Ok(ids.iter().map(|id| self.cancel_one(id)).collect())
        }
        .boxed()
    }

    fn reschedule(&self, id: MessageId, due: Due) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async move {
            self.mood().await?;
            Ok(self.move_one(&id, moment(due)))
        }
        .boxed()
    }

    fn list(
        &self,
        query: Query,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        async move {
            self.mood().await?;
            self.page(page_token, page_size, |stored| {
                stored.state != State::Dead
                    && query.topic.as_ref().is_none_or(|t| *t == stored.topic)
                    && query.due_from.is_none_or(|from| stored.due >= from)
                    && query.due_to.is_none_or(|to| stored.due < to)
            })
        }
        .boxed()
    }

    fn dead_letters(
        &self,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        async move {
            self.mood().await?;
            self.page(page_token, page_size, |stored| stored.state == State::Dead)
        }
        .boxed()
    }

    fn requeue(&self, id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async move {
            self.mood().await?;
            if self.kept().reasons.remove(&id).is_none() {
                return Ok(Reschedule::NotFound);
            }
            self.kept().states.remove(&id);
            Ok(self.move_one(&id, NOW))
        }
        .boxed()
    }

    fn drop_dead(&self, id: MessageId) -> BoxFuture<'_, Result<bool, Error>> {
        async move {
            self.mood().await?;
            let mut kept = self.kept();
            let dead = kept.reasons.remove(&id).is_some();
            if dead && let Some(at) = kept.position(&id) {
                kept.messages.remove(at);
            }
            Ok(dead)
        }
        .boxed()
    }

    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>> {
        async move {
            self.mood().await?;
            let mut pending = Pending::default();
            for stored in self.kept().stored() {
                if stored.state == State::Dead {
                    pending.dead += 1;
                } else {
                    *pending.by_topic.entry(stored.topic).or_default() += 1;
                }
            }
            Ok(pending)
        }
        .boxed()
    }

    fn set_paused(&self, topic: TopicName, paused: bool) -> BoxFuture<'_, Result<bool, Error>> {
        async move {
            self.mood().await?;
            let mut kept = self.kept();
            Ok(if paused {
                kept.paused.insert(topic)
            } else {
                kept.paused.remove(&topic)
            })
        }
        .boxed()
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        async move {
            self.mood().await?;
            Ok(self.kept().paused.clone())
        }
        .boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.mood().boxed()
    }

    fn now(&self) -> UnixMs {
        NOW
    }

    fn parse_id(&self, text: &[u8]) -> Result<MessageId, BadId> {
        self.key.parse(text)
    }

    fn id_text(&self, id: &MessageId) -> String {
        self.key.text(id)
    }
}
