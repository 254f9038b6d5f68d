//! Cancels messages of one shard: `lua/cancel.lua`, and what follows from it: `lua/tidy.lua`.

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::{Place, Score};
use crate::message::UnixMs;
use crate::store::entry::{head_field, mark_of, place_of};
use crate::store::keys::ShardKeys;
use crate::store::script::{CANCEL, Parts, TIDY, evalsha, millis, misshapen, run};

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

/// `lua/cancel.lua`. Answers each message, and says what was marked where an entry said.
pub(in crate::store) async fn cancel(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
    messages: impl ExactSizeIterator<Item = &Named>,
) -> Result<(Vec<CancelReply>, Vec<Place>), RedisError> {
    let names = [
        keys.cancelled(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.gone(),
        keys.pending(),
        keys.heads(),
    ];
    let mut cmd = evalsha(&CANCEL, &names);
    cmd.arg(millis(dedupe_window));
    let count = messages.len();
    for message in messages {
        cmd.arg(&message.id);
        match message.place {
            Some((place, due)) => {
                cmd.arg(format!("{}.5", due.minus_ms(1)));
                cmd.arg(&mark_of(place)[..]);
            }
            None => {
                cmd.arg("").arg("");
            }
        }
    }
    let mut parts = Parts::of("cancel", run(connection, &cmd).await?)?;
    let answers = parts.bytes()?;
    let replies = answers.into_iter().map(|letter| match letter {
        b'c' => Ok(CancelReply::Cancelled),
        b'i' => Ok(CancelReply::InFlight),
        b'g' => Ok(CancelReply::Gone),
        b'd' => Ok(CancelReply::Dead),
        _ => Err(misshapen("cancel")),
    });
    let replies: Vec<CancelReply> = replies.collect::<Result<_, _>>()?;
    if replies.len() != count {
        return Err(misshapen("cancel"));
    }
    let mut found = Vec::new();
    while parts.rest.len() > 0 {
        found.push(place_of(&parts.bytes()?).ok_or_else(|| misshapen("cancel"))?);
    }
    Ok((replies, found))
}

/// Marks of one pack that were not counted when they were set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct UntidyPack {
    pub(in crate::store) score: Score,
    pub(in crate::store) nonce: u32,
    pub(in crate::store) positions: Vec<u16>,
}

/// `lua/tidy.lua`.
pub(in crate::store) async fn tidy(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[UntidyPack],
) -> Result<(), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.cancelled(),
        keys.pending(),
        keys.bytes(),
        keys.heads(),
    ];
    let mut cmd = evalsha(&TIDY, &names);
    for pack in packs {
        let first = Place {
            score: pack.score,
            nonce: pack.nonce,
            position: 0,
        };
        let positions: Vec<u8> = pack
            .positions
            .iter()
            .flat_map(|p| p.to_be_bytes())
            .collect();
        cmd.arg(pack.score.0)
            .arg(&head_field(first)[..])
            .arg(positions);
    }
    run(connection, &cmd).await?;
    Ok(())
}
