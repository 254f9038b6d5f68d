//! Cancels messages of one shard: `lua/cancel.lua`.

use std::time::Duration;

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::Place;
use crate::message::UnixMs;
use crate::store::Cancel;
use crate::store::entry::{mark_of, place_of};
use crate::store::keys::ShardKeys;
use crate::store::script::{CANCEL, Parts, evalsha, millis, misshapen, run};

/// What a cancel knows of a message.
#[derive(Debug)]
pub(in crate::store) struct Named {
    pub(in crate::store) id: String,
    /// Of a minted id: its place and due.
    pub(in crate::store) place: Option<(Place, UnixMs)>,
}

/// `lua/cancel.lua`. Answers each message, and says what was marked where an entry said.
pub(in crate::store) async fn cancel(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
    messages: &[Named],
) -> Result<(Vec<Cancel>, Vec<Place>), RedisError> {
    let names = [
        keys.cancelled(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.gone(),
        keys.pending(),
        keys.tallies(),
    ];
    let mut cmd = evalsha(&CANCEL, &names);
    cmd.arg(millis(dedupe_window)).arg(messages.len());
    let dues = messages.iter().map(|m| m.place.map(|(_, due)| due));
    // Nothing is less than something.
    match dues.min().flatten() {
        Some(earliest) => cmd.arg(earliest.0),
        None => cmd.arg(""),
    };
    for message in messages {
        match message.place {
            Some((place, due)) => cmd
                .arg(format!("{}.5", due.minus_ms(1)))
                .arg(&mark_of(place)[..]),
            None => cmd.arg("").arg(""),
        };
    }
    for message in messages {
        cmd.arg(&message.id);
    }
    let mut parts = Parts::of("cancel", run(connection, &cmd).await?)?;
    let answers = parts.bytes()?;
    let replies = answers.into_iter().map(|letter| match letter {
        b'c' => Ok(Cancel::Cancelled),
        b'i' => Ok(Cancel::InFlight),
        b'g' => Ok(Cancel::NotFound),
        b'd' => Ok(Cancel::Dead),
        _ => Err(misshapen("cancel")),
    });
    let replies: Vec<Cancel> = replies.collect::<Result<_, _>>()?;
    if replies.len() != messages.len() {
        return Err(misshapen("cancel"));
    }
    let mut found = Vec::new();
    while parts.rest.len() > 0 {
        found.push(place_of(&parts.bytes()?).ok_or_else(|| misshapen("cancel"))?);
    }
    Ok((replies, found))
}
