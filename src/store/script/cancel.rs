//! Cancels messages of one shard: `lua/cancel.lua`, after a look at where they lie.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError};

use crate::id::{Place, Score};
use crate::message::{TopicName, UnixMs};
use crate::store::core::Core;
use crate::store::entry::mark_of;
use crate::store::keys::ShardKeys;
use crate::store::pack::Pack;
use crate::store::script::{CANCEL, Parts, evalsha, millis, misshapen, run};

/// What a cancel knows of a message.
#[derive(Debug)]
pub(in crate::store) struct Named {
    pub(in crate::store) id: String,
    /// Of a minted id: its place and due, and how many records were stored there.
    pub(in crate::store) place: Option<(Place, UnixMs, u16)>,
}

/// What lies at some scores of a shard.
type Packs = BTreeMap<Score, Vec<Bytes>>;

/// Reads the packs that the ids name. What a record's topic is, it will be for ever, so that the script need
/// not look at the pack: Lua reads each of its bytes. Large ones are left to it nevertheless, a few at a time.
async fn packs_of(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    messages: &[Named],
) -> Result<Packs, RedisError> {
    let mut packs = Packs::new();
    for (place, ..) in messages.iter().filter_map(|message| message.place) {
        if !Core::is_big(place.score) {
            packs.entry(place.score).or_default();
        }
    }
    if packs.is_empty() {
        return Ok(packs);
    }
    let due = keys.due();
    let mut reads = Pipeline::with_capacity(packs.len());
    for score in packs.keys() {
        let range = reads.cmd("ZRANGEBYSCORE");
        range.arg(&due).arg(score.0).arg(score.0);
    }
    let found: Vec<Vec<Vec<u8>>> = reads.query_async(connection).await?;
    for (at_score, found) in packs.values_mut().zip(found) {
        *at_score = found.into_iter().map(Bytes::from).collect();
    }
    Ok(packs)
}

fn topic_of(packs: &Packs, place: Place) -> Option<(TopicName, u16)> {
    let at_score = packs.get(&place.score)?;
    at_score
        .iter()
        .find_map(|pack| Pack::topic_in(pack.clone(), place.nonce, place.position))
}

/// The answer to one cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum CancelReply {
    Cancelled,
    InFlight,
    Gone,
    Dead,
}

/// `lua/cancel.lua`.
pub(in crate::store) async fn cancel(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
    messages: &[Named],
) -> Result<Vec<CancelReply>, RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
        keys.gone(),
        keys.pending(),
        keys.bytes(),
    ];
    let packs = packs_of(connection, keys, messages).await?;
    let mut cmd = evalsha(&CANCEL, &names);
    cmd.arg(millis(dedupe_window));
    for message in messages {
        cmd.arg(&message.id);
        let Some((place, due, stored)) = message.place else {
            cmd.arg("").arg(0).arg(0).arg(0).arg("");
            cmd.arg("").arg(0).arg(0);
            continue;
        };
        cmd.arg(place.score.0)
            .arg(place.nonce)
            .arg(place.position)
            .arg(due.0);
        cmd.arg(&mark_of(place)[..]);
        match topic_of(&packs, place) {
            Some((topic, count)) => cmd.arg(topic.as_str()).arg(stored).arg(count),
            None => cmd.arg("").arg(0).arg(0),
        };
    }
    let mut parts = Parts::of("cancel", run(connection, &cmd).await?)?;
    let mut replies = Vec::with_capacity(messages.len());
    while parts.rest.len() > 0 {
        replies.push(match parts.word()?.as_str() {
            "cancelled" => CancelReply::Cancelled,
            "in_flight" => CancelReply::InFlight,
            "gone" => CancelReply::Gone,
            "dead" => CancelReply::Dead,
            _ => return Err(misshapen("cancel")),
        });
    }
    if replies.len() == messages.len() {
        Ok(replies)
    } else {
        Err(misshapen("cancel"))
    }
}
