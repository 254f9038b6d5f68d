//! Takes messages out of the way under the owner's claim: to a later time, to the dead letters, or to what
//! is held of a paused topic (R8). Knows nothing of why nsqd does not take them.

use bytes::Bytes;
use redis::aio::MultiplexedConnection;

use crate::id::{MintedId, PackName, Score};
use crate::message::UnixMs;
use crate::shard::ShardId;
use crate::store::claim::{ClaimToken, ParkReply, ParkTo, Parked, Session};
use crate::store::core::Core;
use crate::store::dead;
use crate::store::entry::{Entry, Kind};
use crate::store::pack::{Pack, Record};
use crate::store::packing::Scores as _;
use crate::store::script::{self, ParkPlace, ParkedMessage, PlaceReply};
use crate::store::{Error, ErrorKind};

/// How often a place is sought for parked messages.
const PARK_ATTEMPTS_MAX: u32 = 10;

/// Puts `messages` elsewhere, all or none.
pub(super) async fn park(
    core: &Core,
    session: Session,
    shard: ShardId,
    token: &ClaimToken,
    messages: &[Parked],
    mut to: ParkTo,
) -> Result<ParkReply, Error> {
    for _ in 0..PARK_ATTEMPTS_MAX {
        match park_once(core, session, shard, token, messages, &to).await? {
            PlaceReply::Ok => return Ok(ParkReply::Parked),
            PlaceReply::Full => return Ok(ParkReply::Full),
            PlaceReply::Fenced => return Ok(ParkReply::Fenced),
            PlaceReply::Late(limit) => to = ParkTo::Later(limit.plus_ms(1)),
            PlaceReply::Marked(ids) => {
                let is_marked = |m: &&Parked| ids.contains(&id_text(core, shard, m));
                let marked = messages.iter().filter(is_marked).map(|m| m.from).collect();
                return Ok(ParkReply::Marked(marked));
            }
            // Another k.
            _ => {}
        }
    }
    Err(Error::caused(
        ErrorKind::Refused,
        "no place found for parked messages",
    ))
}

async fn park_once(
    core: &Core,
    session: Session,
    shard: ShardId,
    token: &ClaimToken,
    messages: &[Parked],
    to: &ParkTo,
) -> Result<PlaceReply, Error> {
    let mut link = core.session_link(session)?;
    let keys = core.keys.shard(shard);
    let ids: Vec<String> = messages.iter().map(|m| id_text(core, shard, m)).collect();
    let digests = digests(&mut link.connection, &keys.ids(), &ids).await;
    let digests = digests.map_err(|error| core.turn_failed(&link, error))?;
    let pack = new_home(core, shard, messages, &digests, to);
    let parked: Vec<ParkedMessage> = messages
        .iter()
        .zip(&pack.entries)
        .map(|(message, entry)| parked_message(core, shard, message, entry, to))
        .collect();
    let place = match to {
        ParkTo::Later(_) => ParkPlace::Pack {
            score: pack.score,
            value: &pack.value,
        },
        ParkTo::DeadLetters(_) => ParkPlace::DeadLetters {
            max: core.config.dead_letters_max,
        },
        ParkTo::Held(topic) => ParkPlace::Held {
            score: pack.score,
            value: &pack.value,
            topic: topic.as_str(),
        },
    };
    let sent = core.clock.monotonic();
    let result = script::park(&mut link.connection, &keys, token, &place, &parked).await;
    let (now_us, reply) = result.map_err(|error| core.turn_failed(&link, error))?;
    core.clock.learn(now_us, sent);
    Ok(reply)
}

/// Where parked messages go together.
struct NewHome {
    score: Score,
    value: Vec<u8>,
    entries: Vec<Entry>,
}

/// The digests that the ids' entries have, so that a retried create is recognised after a park too.
async fn digests(
    connection: &mut MultiplexedConnection,
    key: &str,
    ids: &[String],
) -> Result<Vec<u64>, redis::RedisError> {
    let entries: Vec<Option<Vec<u8>>> = redis::cmd("HMGET")
        .arg(key)
        .arg(ids)
        .query_async(connection)
        .await?;
    let digest = |entry: Option<Vec<u8>>| {
        entry
            .and_then(|text| Entry::parse(&text))
            .map_or(0, |entry| entry.digest)
    };
    Ok(entries.into_iter().map(digest).collect())
}

fn new_home(
    core: &Core,
    shard: ShardId,
    messages: &[Parked],
    digests: &[u64],
    to: &ParkTo,
) -> NewHome {
    let due = match to {
        ParkTo::Later(due) => *due,
        ParkTo::DeadLetters(_) => UnixMs(0),
        // Each keeps its own.
        ParkTo::Held(_) => messages
            .iter()
            .map(|m| m.record.due)
            .min()
            .unwrap_or_default(),
    };
    let mut scores = core.scores(shard);
    let big = messages
        .iter()
        .any(|m| m.record.body.len() > core.config.pack_bytes);
    let name = PackName {
        score: scores.next(due, big),
        nonce: scores.nonce(),
    };
    let mut records = Vec::with_capacity(messages.len());
    let mut entries = Vec::with_capacity(messages.len());
    for ((position, message), digest) in (0_u16..).zip(messages).zip(digests) {
        let id = Some(Bytes::from(id_text(core, shard, message)));
        let place = name.record(position);
        let (kind, place, due) = match to {
            ParkTo::Later(_) => (Kind::Stored, place, due),
            ParkTo::DeadLetters(_) => (Kind::Dead, message.from, message.record.due),
            ParkTo::Held(_) => (Kind::Held, place, message.record.due),
        };
        records.push(Record {
            position,
            due,
            id,
            ..message.record.clone()
        });
        let maybe = message.record.maybe;
        entries.push(Entry {
            kind,
            place,
            due,
            maybe,
            digest: *digest,
        });
    }
    let value = match to {
        // Each is stored by itself.
        ParkTo::DeadLetters(_) => Vec::new(),
        _ => Pack::new(name, records, core.config.pack_compression).encode(),
    };
    NewHome {
        score: name.score,
        value,
        entries,
    }
}

fn parked_message(
    core: &Core,
    shard: ShardId,
    message: &Parked,
    entry: &Entry,
    to: &ParkTo,
) -> ParkedMessage {
    let id = id_text(core, shard, message);
    let dead_letter = match to {
        ParkTo::Later(_) | ParkTo::Held(_) => Vec::new(),
        ParkTo::DeadLetters(reason) => {
            dead::encode(reason, message.from.score, &message.record, &id)
        }
    };
    ParkedMessage {
        from: message.from,
        from_due: message.record.due,
        entry: match to {
            ParkTo::Held(topic) => entry.held_text(topic.as_str()),
            ParkTo::Later(_) | ParkTo::DeadLetters(_) => entry.to_text(),
        },
        to_due: entry.due,
        topic: message.record.topic.as_str().to_owned(),
        body_len: message.record.body.len(),
        dead_letter,
        id,
    }
}

/// The id that the message's producer knows it by.
fn id_text(core: &Core, shard: ShardId, message: &Parked) -> String {
    if let Some(id) = &message.record.id {
        return String::from_utf8_lossy(id).into_owned();
    }
    let (place, due, count) = (message.from, message.record.due, message.stored);
    core.id_key.mint(&MintedId {
        due,
        shard,
        place,
        count,
    })
}
