//! Gives messages another place: moves (`lua/move.lua`), parks and holds (`lua/park.lua`), requeues and drops dead
//! letters (`lua/requeue.lua`). They share the shape of their replies.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

use crate::id::{Place, Score};
use crate::message::UnixMs;
use crate::store::claim::ClaimToken;
use crate::store::entry::mark_of;
use crate::store::keys::ShardKeys;
use crate::store::script::{MOVE, PARK, Parts, REQUEUE, evalsha, millis, misshapen, run};

/// What a move changes.
#[derive(Debug)]
pub(in crate::store) struct Move<'a> {
    pub(in crate::store) id: &'a str,
    pub(in crate::store) entry_read: &'a [u8],
    pub(in crate::store) from: Place,
    pub(in crate::store) from_due: UnixMs,
    pub(in crate::store) from_records: usize,
    pub(in crate::store) to: Score,
    pub(in crate::store) pack: &'a [u8],
    pub(in crate::store) entry: &'a str,
    pub(in crate::store) topic: &'a str,
    pub(in crate::store) body_len: usize,
}

/// The answer to a move, a park or a requeue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) enum PlaceReply {
    Ok,
    Changed,
    Closed,
    InFlight,
    Gone,
    Cancelled,
    Fenced,
    Full,
    /// Choose a later ms, or another k: nothing at or under this limit will be taken.
    Late(UnixMs),
    Taken,
    /// Ids that are marked.
    Marked(Vec<String>),
}

/// `lua/move.lua`.
pub(in crate::store) async fn shift(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    change: &Move<'_>,
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
        keys.bytes(),
        keys.tallies(),
    ];
    let mut cmd = evalsha(&MOVE, &names);
    cmd.arg(keys.wake()).arg(change.id).arg(change.entry_read);
    cmd.arg(change.from.score.0)
        .arg(change.from_due.0)
        .arg(&mark_of(change.from)[..]);
    cmd.arg(change.from_records);
    cmd.arg(change.to.0)
        .arg(change.to.due().0)
        .arg(change.pack)
        .arg(change.entry)
        .arg(change.topic)
        .arg(change.body_len);
    place_reply("move", run(connection, &cmd).await?)
}

/// One message of a park.
#[derive(Debug)]
pub(in crate::store) struct ParkedMessage {
    pub(in crate::store) id: String,
    pub(in crate::store) from: Place,
    pub(in crate::store) from_due: UnixMs,
    pub(in crate::store) entry: String,
    pub(in crate::store) to_due: UnixMs,
    pub(in crate::store) topic: String,
    pub(in crate::store) dead_letter: Vec<u8>,
    pub(in crate::store) body_len: usize,
}

/// Where a park puts its messages.
#[derive(Debug)]
pub(in crate::store) enum ParkPlace<'a> {
    Pack {
        score: Score,
        value: &'a [u8],
    },
    DeadLetters {
        max: u64,
    },
    /// Among what is held of a topic.
    Held {
        score: Score,
        value: &'a [u8],
        topic: &'a str,
    },
}

/// `lua/park.lua`.
pub(in crate::store) async fn park(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    token: &ClaimToken,
    place: &ParkPlace<'_>,
    messages: &[ParkedMessage],
) -> Result<(u64, PlaceReply), RedisError> {
    let home = match place {
        ParkPlace::Held { topic, .. } => keys.held(topic),
        ParkPlace::Pack { .. } | ParkPlace::DeadLetters { .. } => keys.due(),
    };
    let names = [
        home,
        keys.claim(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
        keys.pending(),
        keys.dead(),
        keys.bytes(),
        keys.holds(),
    ];
    let mut cmd = evalsha(&PARK, &names);
    cmd.arg(keys.wake()).arg(&token.0);
    match place {
        ParkPlace::Pack { score, value } => cmd.arg(score.0).arg(score.due().0).arg(*value),
        ParkPlace::Held { score, value, .. } => cmd.arg(score.0).arg("held").arg(*value),
        ParkPlace::DeadLetters { max } => cmd.arg("").arg(*max).arg(""),
    };
    for message in messages {
        cmd.arg(&message.id)
            .arg(&mark_of(message.from)[..])
            .arg(message.from_due.0);
        cmd.arg(&message.entry)
            .arg(message.to_due.0)
            .arg(&message.topic);
        cmd.arg(&message.dead_letter[..]).arg(message.body_len);
    }
    place_reply("park", run(connection, &cmd).await?)
}

/// What a requeue changes; without a pack the dead letter is dropped.
#[derive(Debug)]
pub(in crate::store) struct Requeue<'a> {
    pub(in crate::store) id: &'a str,
    pub(in crate::store) dead_letter: &'a [u8],
    pub(in crate::store) to: Option<(Score, &'a [u8], &'a str)>,
    pub(in crate::store) topic: &'a str,
    pub(in crate::store) body_len: usize,
    pub(in crate::store) dedupe_window: Duration,
}

/// `lua/requeue.lua`.
pub(in crate::store) async fn requeue(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    change: &Requeue<'_>,
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.gone(),
        keys.pending(),
        keys.dead(),
        keys.bytes(),
    ];
    let mut cmd = evalsha(&REQUEUE, &names);
    cmd.arg(keys.wake()).arg(change.id).arg(change.dead_letter);
    match change.to {
        Some((score, pack, entry)) => cmd
            .arg(score.0)
            .arg(score.due().0)
            .arg(pack)
            .arg(entry)
            .arg(change.topic),
        None => cmd
            .arg("")
            .arg(millis(change.dedupe_window))
            .arg("")
            .arg("")
            .arg(change.topic),
    };
    cmd.arg(change.body_len);
    place_reply("requeue", run(connection, &cmd).await?)
}

pub(in crate::store) fn place_reply(
    what: &'static str,
    value: Value,
) -> Result<(u64, PlaceReply), RedisError> {
    let mut parts = Parts::of(what, value)?;
    let word = parts.word()?;
    let now_us = parts.number()?;
    let reply = match word.as_str() {
        "ok" => PlaceReply::Ok,
        "changed" => PlaceReply::Changed,
        "closed" => PlaceReply::Closed,
        "in_flight" => PlaceReply::InFlight,
        "gone" => PlaceReply::Gone,
        "cancelled" => PlaceReply::Cancelled,
        "fenced" => PlaceReply::Fenced,
        "full" => PlaceReply::Full,
        "late" => PlaceReply::Late(UnixMs(parts.number()?)),
        "taken" => PlaceReply::Taken,
        "marked" => {
            let mut ids = Vec::new();
            while parts.rest.len() > 0 {
                ids.push(parts.word()?);
            }
            PlaceReply::Marked(ids)
        }
        _ => return Err(misshapen(what)),
    };
    Ok((now_us, reply))
}
