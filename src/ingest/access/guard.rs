//! The store as one caller may see and change it. Every HTTP request goes to the store through this, so
//! that no route can forget to ask.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _, join_all};

use super::{Grants, Role};
use crate::id::{BadId, MessageId};
use crate::message::{Due, Message, TopicName, UnixMs};
use crate::store::{
    Cancel, Error, ErrorKind, Page, Pending, Query, Receipt, Reschedule, ScheduleStore, Stored,
};

tokio::task_local! {
    /// On whose behalf the store is asked. `None`: what serves the machinery, and reads counts only.
    pub(in crate::ingest) static CALLER: Option<Arc<Grants>>;
}

/// A store that asks [`CALLER`] first. Who is nobody may do nothing.
#[derive(Debug)]
pub(in crate::ingest) struct Guarded {
    store: Arc<dyn ScheduleStore>,
}

impl Guarded {
    pub(in crate::ingest) fn new(store: Arc<dyn ScheduleStore>) -> Self {
        Self { store }
    }

    /// What is found only by reading it: `None`, if the caller may not even know of it.
    async fn visible(&self, id: MessageId, role: Role) -> Result<Option<Stored>, Error> {
        let stored = self.store.get(id).await?;
        Ok(stored.filter(|stored| may(role, &stored.topic)))
    }
}

fn caller() -> Option<Arc<Grants>> {
    CALLER.try_with(Option::clone).ok().flatten()
}

fn may(role: Role, topic: &TopicName) -> bool {
    caller().is_some_and(|grants| grants.may(role, topic))
}

/// Whether [`CALLER`] may send all of `messages`.
pub(in crate::ingest) fn may_publish(messages: &[Message]) -> bool {
    messages.iter().all(|m| may(Role::Publish, &m.topic))
}

/// Whether [`CALLER`] may know what happens on a topic; where nobody needs a token, everybody may.
pub(in crate::ingest) fn may_know(topic: &TopicName) -> bool {
    caller().is_none_or(|grants| grants.may(Role::ReadMetadata, topic))
}

fn somewhere(role: Role) -> Result<(), Error> {
    if caller().is_some_and(|grants| grants.may_somewhere(role)) {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Forbidden))
    }
}

impl ScheduleStore for Guarded {
    fn schedule(&self, messages: Vec<Message>) -> BoxFuture<'_, Result<Vec<Receipt>, Error>> {
        if may_publish(&messages) {
            self.store.schedule(messages)
        } else {
            async { Err(Error::new(ErrorKind::Forbidden)) }.boxed()
        }
    }

    fn get(&self, id: MessageId) -> BoxFuture<'_, Result<Option<Stored>, Error>> {
        async move {
            somewhere(Role::ReadMetadata)?;
            let found = self.visible(id, Role::ReadMetadata).await?;
            Ok(found.map(|mut stored| {
                if !may(Role::ReadBodies, &stored.topic) {
                    stored.body.clear();
                }
                stored
            }))
        }
        .boxed()
    }

    fn cancel(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Cancel>, Error>> {
        async move {
            somewhere(Role::Cancel)?;
            match caller() {
                Some(grants) => cancel_as(&*self.store, &grants, ids).await,
                None => Err(Error::new(ErrorKind::Forbidden)),
            }
        }
        .boxed()
    }

    fn reschedule(&self, id: MessageId, due: Due) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async move {
            // To move a message is to take it back and to send it.
            somewhere(Role::Cancel)?;
            let found = self.visible(id.clone(), Role::Cancel).await?;
            match found {
                Some(stored) if may(Role::Publish, &stored.topic) => {
                    self.store.reschedule(id, due).await
                }
                Some(_) => Err(Error::new(ErrorKind::Forbidden)),
                None => Ok(Reschedule::NotFound),
            }
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
            somewhere(Role::ReadMetadata)?;
            if query
                .topic
                .as_ref()
                .is_some_and(|topic| !may(Role::ReadMetadata, topic))
            {
                return Err(Error::new(ErrorKind::Forbidden));
            }
            let page = self.store.list(query, page_token, page_size).await?;
            Ok(seen(page))
        }
        .boxed()
    }

    fn dead_letters(
        &self,
        page_token: Option<String>,
        page_size: usize,
    ) -> BoxFuture<'_, Result<Page, Error>> {
        async move {
            somewhere(Role::ReadMetadata)?;
            let page = self.store.dead_letters(page_token, page_size).await?;
            Ok(seen(page))
        }
        .boxed()
    }

    fn requeue(&self, id: MessageId) -> BoxFuture<'_, Result<Reschedule, Error>> {
        async move {
            somewhere(Role::Admin)?;
            match self.visible(id.clone(), Role::Admin).await? {
                Some(_) => self.store.requeue(id).await,
                None => Ok(Reschedule::NotFound),
            }
        }
        .boxed()
    }

    fn drop_dead(&self, id: MessageId) -> BoxFuture<'_, Result<bool, Error>> {
        async move {
            somewhere(Role::Admin)?;
            match self.visible(id.clone(), Role::Admin).await? {
                Some(_) => self.store.drop_dead(id).await,
                None => Ok(false),
            }
        }
        .boxed()
    }

    fn pending(&self) -> BoxFuture<'_, Result<Pending, Error>> {
        async move {
            // Counts for `/metrics` are nobody's.
            let Ok(caller) = CALLER.try_with(Option::clone) else {
                return Err(Error::new(ErrorKind::Forbidden));
            };
            let Some(grants) = caller else {
                return self.store.pending().await;
            };
            somewhere(Role::ReadMetadata)?;
            let mut pending = self.store.pending().await?;
            pending
                .by_topic
                .retain(|topic, _| grants.may(Role::ReadMetadata, topic));
            pending
                .bytes_by_topic
                .retain(|topic, _| grants.may(Role::ReadMetadata, topic));
            if !grants.may_everywhere(Role::ReadMetadata) {
                pending.dead = 0;
            }
            Ok(pending)
        }
        .boxed()
    }

    fn set_paused(&self, topic: TopicName, paused: bool) -> BoxFuture<'_, Result<bool, Error>> {
        async move {
            if !may(Role::Admin, &topic) {
                return Err(Error::new(ErrorKind::Forbidden));
            }
            self.store.set_paused(topic, paused).await
        }
        .boxed()
    }

    fn paused(&self) -> BoxFuture<'_, Result<BTreeSet<TopicName>, Error>> {
        async move {
            somewhere(Role::ReadMetadata)?;
            let mut topics = self.store.paused().await?;
            topics.retain(|topic| may(Role::ReadMetadata, topic));
            Ok(topics)
        }
        .boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), Error>> {
        self.store.ping()
    }

    fn now(&self) -> UnixMs {
        self.store.now()
    }

    fn parse_id(&self, text: &[u8]) -> Result<MessageId, BadId> {
        self.store.parse_id(text)
    }

    fn id_text(&self, id: &MessageId) -> String {
        self.store.id_text(id)
    }
}

/// A page without what the caller may not know of.
fn seen(mut page: Page) -> Page {
    page.messages.retain(|m| may(Role::ReadMetadata, &m.topic));
    page
}

/// Cancels what the grants cover; the rest is not found. A message's topic never changes, so that it
/// can be looked up before.
pub(in crate::ingest) async fn cancel_as(
    store: &dyn ScheduleStore,
    grants: &Grants,
    ids: Vec<MessageId>,
) -> Result<Vec<Cancel>, Error> {
    if grants.may_everywhere(Role::Cancel) {
        return store.cancel(ids).await;
    }
    let found = join_all(ids.iter().map(|id| store.get(id.clone()))).await;
    let mut allowed = Vec::with_capacity(ids.len());
    let mut asked = Vec::new();
    for (id, found) in ids.into_iter().zip(found) {
        // What is not there may have been cancelled before, which its producer may be told again.
        let covered = found?.is_none_or(|stored| grants.may(Role::Cancel, &stored.topic));
        allowed.push(covered);
        if covered {
            asked.push(id);
        }
    }
    let answers = if asked.is_empty() {
        Vec::new()
    } else {
        store.cancel(asked).await?
    };
    let mut answers = answers.into_iter();
    let answer = |covered: bool| {
        let answered = if covered { answers.next() } else { None };
        answered.unwrap_or(Cancel::NotFound)
    };
    Ok(allowed.into_iter().map(answer).collect())
}
