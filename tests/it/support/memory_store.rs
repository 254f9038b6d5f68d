//! A store in memory, for tests of the doors: it keeps what it is given, delivers nothing, and fails
//! or stalls when told to.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use futures_util::future::{BoxFuture, FutureExt as _};
use nsqdelayd::id::{BadId, IdKey, MessageId, MintedId, Place, Score};
use nsqdelayd::message::{Due, Message, UnixMs};
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
    /// In the order of arrival.
    messages: Vec<(MessageId, Message)>,
    states: HashMap<MessageId, Cancel>,
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
        kept.messages.iter().map(|(_, m)| m.clone()).collect()
    }

    /// Ids as producers see them, in the order of arrival.
    pub(crate) fn ids(&self) -> Vec<String> {
        let kept = self.kept();
        let ids = kept.messages.iter().map(|(id, _)| self.key.text(id));
        ids.collect()
    }

    /// What a cancel of this message is answered, from now on.
    pub(crate) fn set_state(&self, id: &str, state: Cancel) {
        let id = self.key.parse(id.as_bytes()).unwrap();
        self.kept().states.insert(id, state);
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
        let due = match message.due {
            Due::After(delay) => NOW.after(delay),
            Due::At(at) => at.max(NOW),
        };
        let mut kept = self.kept();
        if let Some(client_id) = &message.id {
            let id = MessageId::Client(client_id.clone());
            if let Some((_, there)) = kept.messages.iter().find(|(known, _)| *known == id) {
                return if *there == message {
                    let created = false;
                    Ok(Receipt { id, due, created })
                } else {
                    Err(Error::new(ErrorKind::Conflict))
                };
            }
        }
        let number = u32::try_from(kept.messages.len()).unwrap();
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
                    nonce: number,
                    position: 0,
                },
                count: 1,
            }),
        };
        kept.messages.push((id.clone(), message));
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
        let Some(at) = kept.messages.iter().position(|(known, _)| known == id) else {
            return Cancel::NotFound;
        };
        kept.messages.remove(at);
        kept.states.insert(id.clone(), Cancel::Cancelled);
        Cancel::Cancelled
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
            let found = kept.messages.iter().find(|(known, _)| *known == id);
            Ok(found.map(|(id, message)| Stored {
                id: id.clone(),
                topic: message.topic.clone(),
                body: message.body.clone(),
                due: NOW,
                state: State::Scheduled,
                reason: None,
            }))
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

    fn reschedule(&self, _id: MessageId, _due: Due) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async { Ok(Reschedule::NotFound) }.boxed()
    }

    fn list(
        &self,
        _query: Query,
        _page_token: Option<String>,
        _page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        async { Ok(Page::default()) }.boxed()
    }

    fn dead_letters(
        &self,
        _page_token: Option<String>,
        _page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        async { Ok(Page::default()) }.boxed()
    }

    fn requeue(&self, _id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async { Ok(Reschedule::NotFound) }.boxed()
    }

    fn drop_dead(&self, _id: MessageId) -> BoxFuture<'_, Result<bool, Error>> {
        async { Ok(false) }.boxed()
    }

    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>> {
        async { Ok(Pending::default()) }.boxed()
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
