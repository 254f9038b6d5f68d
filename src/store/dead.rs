//! Dead letters: what nsqd refused for good, with the reason. Bounded; nothing is dropped by itself.
//!
//! A dead letter is `reason len u16 | reason | score u64 | pack of one`, in a hash of its shard.

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::id::{MessageId, PackName, Score};
use crate::message::{Delay, Due};
use crate::store::compression::Compression;
use crate::store::core::{AHEAD_MS, Core};
use crate::store::lookup::{Placed, asked, find, link, stamp};
use crate::store::pack::{Pack, Record};
use crate::store::script::{self, PlaceReply, Requeue};
use crate::store::{Error, ErrorKind, Reschedule, State, Stored};

/// Longest reason kept, in bytes.
const REASON_MAX: usize = 512;
/// How often a place is sought for a requeued message.
const ATTEMPTS_MAX: u32 = 20;

/// Writes a dead letter.
pub(super) fn encode(reason: &str, score: Score, record: &Record, id: &str) -> Vec<u8> {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = reason.get(..end).unwrap_or_default();
    let id = Some(Bytes::copy_from_slice(id.as_bytes()));
    let record = Record {
        position: 0,
        id,
        ..record.clone()
    };
    let name = PackName { score, nonce: 0 };
    let pack = Pack::new(name, vec![record], Compression::None);
    let mut out = Vec::new();
    out.put_u16(u16::try_from(reason.len()).unwrap_or(0));
    out.put_slice(reason.as_bytes());
    out.put_u64(score.0);
    out.put_slice(&pack.encode());
    out
}

/// Reads a dead letter: the reason and the record.
pub(super) fn decode(mut value: Bytes) -> Option<(String, Record)> {
    let len = usize::from(value.try_get_u16().ok()?);
    if value.len() < len {
        return None;
    }
    let reason = String::from_utf8_lossy(&value.split_to(len)).into_owned();
    let score = Score(value.try_get_u64().ok()?);
    let record = Pack::decode(score, value).ok()?.records.pop()?;
    Some((reason, record))
}

/// A dead letter as the doors see it.
pub(super) fn stored(id: MessageId, value: Vec<u8>) -> Option<Stored> {
    let (reason, record) = decode(Bytes::from(value))?;
    let Record {
        topic, body, due, ..
    } = record;
    Some(Stored {
        id,
        topic,
        body,
        due,
        state: State::Dead,
        reason: Some(reason),
    })
}

async fn read(core: &Core, id: &MessageId) -> Result<Option<Vec<u8>>, Error> {
    let mut link = link(core)?;
    let keys = core.keys.shard(core.shard_of(id));
    let mut cmd = redis::cmd("HGET");
    cmd.arg(keys.dead()).arg(core.id_key.text(id));
    cmd.query_async(&mut link.connection)
        .await
        .map_err(|error| asked(core, &link, error))
}

/// Finds one dead letter.
pub(super) async fn get(core: &Core, id: MessageId) -> Result<Option<Stored>, Error> {
    let value = read(core, &id).await?;
    Ok(value.and_then(|value| stored(id, value)))
}

/// Gives a dead letter back to the queue, due now.
pub(super) async fn requeue(core: &Core, id: &MessageId) -> Result<Reschedule, Error> {
    let mut due = Due::After(Delay(0));
    for _ in 0..ATTEMPTS_MAX {
        let Some(value) = read(core, id).await? else {
            return Ok(Reschedule::NotFound);
        };
        let Some((_, record)) = decode(Bytes::from(value.clone())) else {
            return Err(Error::new(ErrorKind::Corrupt));
        };
        let (shard, text) = (core.shard_of(id), core.id_key.text(id));
        // The digest goes along, so that a retried create is still recognised.
        let digest = find(core, id).await?.map_or(0, |found| found.digest);
        let to_due = stamp(core, due)?;
        let new = Placed::new(core, shard, &record, &text, to_due, record.maybe, digest);
        let to = Some((new.place.score, &new.value[..], &new.entry[..]));
        match change(core, id, &text, &value, to, Some(&record)).await? {
            PlaceReply::Ok => return Ok(Reschedule::Moved(to_due)),
            PlaceReply::Late(limit) => due = Due::At(limit.plus_ms(AHEAD_MS)),
            // Another k, or the dead letter has changed: look again.
            _ => {}
        }
    }
    Err(Error::caused(
        ErrorKind::Unavailable,
        "no place found for the dead letter",
    ))
}

/// Drops a dead letter for ever.
pub(super) async fn drop_dead(core: &Core, id: &MessageId) -> Result<bool, Error> {
    let Some(value) = read(core, id).await? else {
        return Ok(false);
    };
    let text = core.id_key.text(id);
    let reply = change(core, id, &text, &value, None, None).await?;
    Ok(reply == PlaceReply::Ok)
}

async fn change(
    core: &Core,
    id: &MessageId,
    text: &str,
    dead_letter: &[u8],
    to: Option<(Score, &[u8], &str)>,
    record: Option<&Record>,
) -> Result<PlaceReply, Error> {
    let mut link = link(core)?;
    let keys = core.keys.shard(core.shard_of(id));
    let dedupe_window = core.config.dedupe_window;
    let change = Requeue {
        id: text,
        dead_letter,
        to,
        topic: record.map_or("", |record| record.topic.as_str()),
        body_len: record.map_or(0, |record| record.body.len()),
        dedupe_window,
    };
    let sent = core.clock.monotonic();
    let (now_us, reply) = script::requeue(&mut link.connection, &keys, &change)
        .await
        .map_err(|error| asked(core, &link, error))?;
    core.clock.learn(now_us, sent);
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{TopicName, UnixMs};

    proptest! {
        #[test]
        fn dead_letters_come_back_as_they_were(
            reason in ".{0,300}", maybe: bool, body in proptest::collection::vec(any::<u8>(), 1..50),
        ) {
            let score = Score::new(UnixMs(5_000), 3);
            let topic = TopicName::parse(b"t").unwrap();
            let record = Record {
                position: 4, due: UnixMs(5_004), topic, maybe, id: None, body: Bytes::from(body),
            };
            let (got_reason, got) = decode(Bytes::from(encode(&reason, score, &record, "x"))).unwrap();
            prop_assert!(reason.starts_with(&got_reason) && (got_reason == reason || reason.len() > REASON_MAX));
            prop_assert_eq!((got.due, got.maybe, got.body), (record.due, maybe, record.body));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(decode(Bytes::from(bytes)).is_none());
        }
    }
}
