//! Cancels messages of one shard: `lua/cancel.lua`.

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::Place;
use crate::message::UnixMs;
use crate::store::entry::mark_of;
use crate::store::keys::ShardKeys;
use crate::store::script::{CANCEL, Parts, evalsha, millis, misshapen, run};

/// What a cancel knows of a message.
#[derive(Debug)]
pub(in crate::store) struct Named {
    pub(in crate::store) id: String,
    /// Of a minted id: its place and due.
    pub(in crate::store) place: Option<(Place, UnixMs)>,
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
        keys.heads(),
    ];
    let mut cmd = evalsha(&CANCEL, &names);
    cmd.arg(millis(dedupe_window));
    for message in messages {
        cmd.arg(&message.id);
        match message.place {
            Some((place, due)) => {
                cmd.arg(place.score.0).arg(place.position).arg(due.0);
                cmd.arg(&mark_of(place)[..]);
            }
            None => {
                cmd.arg("").arg(0).arg(0).arg("");
            }
        }
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
