//! Paused topics: which they are, and what is held of them when they no longer are. Messages get there by
//! a park; here they come back, pack by pack, by anybody at any time.

use std::collections::BTreeSet;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

use crate::id::{PackName, Score};
use crate::message::{Due, TopicName, UnixMs};
use crate::shard::ShardId;
use crate::store::claim::ReadPack;
use crate::store::core::{AHEAD_MS, Core};
use crate::store::entry::{Entry, Kind};
use crate::store::lookup::{asked, link, stamp};
use crate::store::pack::{Pack, Record};
use crate::store::packing::Scores as _;
use crate::store::script::{self, PlaceReply, Resume};
use crate::store::{Error, ErrorKind};

/// Packs of one step.
const PACKS_PER_STEP: usize = 8;
/// How often a place is sought for a pack, or one that changes is looked at again.
const ATTEMPTS_MAX: u32 = 20;

/// Pauses a topic, or resumes it. `false`: it was so already.
pub(super) async fn set_paused(
    core: &Core,
    topic: &TopicName,
    paused: bool,
) -> Result<bool, Error> {
    let mut link = link(core)?;
    let mut pipeline = redis::Pipeline::with_capacity(2);
    pipeline.atomic();
    if paused {
        let since = core.clock.upper().0;
        let key = core.keys.paused();
        pipeline
            .cmd("HSETNX")
            .arg(key)
            .arg(topic.as_str())
            .arg(since);
    } else {
        pipeline
            .cmd("HDEL")
            .arg(core.keys.paused())
            .arg(topic.as_str());
    }
    pipeline
        .cmd("PUBLISH")
        .arg(core.keys.pauses())
        .arg("")
        .ignore();
    let changed: Result<(u64,), RedisError> = pipeline.query_async(&mut link.connection).await;
    let (changed,) = changed.map_err(|error| asked(core, &link, error))?;
    Ok(changed > 0)
}

/// The topics that are paused.
pub(super) async fn paused(core: &Core) -> Result<BTreeSet<TopicName>, Error> {
    let mut link = link(core)?;
    let names: Result<Vec<Vec<u8>>, RedisError> = redis::cmd("HKEYS")
        .arg(core.keys.paused())
        .query_async(&mut link.connection)
        .await;
    let names = names.map_err(|error| asked(core, &link, error))?;
    let topics = names.iter().filter_map(|name| TopicName::parse(name).ok());
    Ok(topics.collect())
}

/// Gives some of what is held of topics that are not in `paused` back to the queue. `true`: there is
/// more.
pub(super) async fn resume(
    core: &Core,
    shard: ShardId,
    paused: &BTreeSet<TopicName>,
) -> Result<bool, Error> {
    let link = link(core)?;
    let keys = core.keys.shard(shard);
    let mut connection = link.connection.clone();
    let names: Result<Vec<Vec<u8>>, RedisError> = redis::cmd("HKEYS")
        .arg(keys.holds())
        .query_async(&mut connection)
        .await;
    let failed = |error| asked(core, &link, error);
    for name in names.map_err(failed)? {
        let Ok(topic) = TopicName::parse(&name) else {
            continue;
        };
        if paused.contains(&topic) {
            continue;
        }
        let packs = read(&mut connection, &keys.held(topic.as_str())).await;
        for pack in packs.map_err(failed)? {
            match pack {
                ReadPack::Pack(pack) => resume_pack(core, shard, &topic, &pack).await?,
                ReadPack::Unreadable(..) => return Err(Error::new(ErrorKind::Corrupt)),
            }
        }
        return Ok(true);
    }
    Ok(false)
}

async fn read(
    connection: &mut MultiplexedConnection,
    key: &str,
) -> Result<Vec<ReadPack>, RedisError> {
    let mut cmd = redis::cmd("ZRANGEBYSCORE");
    cmd.arg(key).arg("-inf").arg("+inf").arg("WITHSCORES");
    cmd.arg("LIMIT").arg(0).arg(PACKS_PER_STEP);
    let value: Value = cmd.query_async(connection).await?;
    script::packs(value)
}

async fn resume_pack(
    core: &Core,
    shard: ShardId,
    topic: &TopicName,
    pack: &Pack,
) -> Result<(), Error> {
    let mut floor = UnixMs(0);
    for _ in 0..ATTEMPTS_MAX {
        let mut link = link(core)?;
        let keys = core.keys.shard(shard);
        let still = still_there(&mut link.connection, &keys.ids(), pack).await;
        let still = still.map_err(|error| asked(core, &link, error))?;
        let earliest = stamp(core, Due::At(UnixMs(0)))?.max(floor);
        let due = still.iter().map(|(record, ..)| record.due).max();
        let due = due.unwrap_or_default().max(earliest);
        let new = NewPack::new(core, shard, due, &still);
        let bytes =
            |records: &mut dyn Iterator<Item = &Record>| records.map(|r| r.body.len()).sum();
        let had: usize = bytes(&mut pack.records.iter());
        let has: usize = bytes(&mut still.iter().map(|(record, ..)| record));
        let change = Resume {
            topic: topic.as_str(),
            from: pack.score,
            to: (!still.is_empty()).then_some((new.score, &new.value[..])),
            bytes_less: had - has,
            messages: &new.messages,
        };
        let sent = core.clock.monotonic();
        let (now_us, reply) = script::resume(&mut link.connection, &keys, &change)
            .await
            .map_err(|error| asked(core, &link, error))?;
        core.clock.learn(now_us, sent);
        match reply {
            PlaceReply::Ok | PlaceReply::Gone => return Ok(()),
            PlaceReply::Late(limit) => floor = limit.plus_ms(AHEAD_MS),
            // Another k, or another look.
            _ => {}
        }
    }
    Err(Error::caused(
        ErrorKind::Unavailable,
        "no place found for what is held",
    ))
}

/// Those of a pack's messages whose entries still say that they are held there, with the entries.
async fn still_there(
    connection: &mut MultiplexedConnection,
    ids: &str,
    pack: &Pack,
) -> Result<Vec<(Record, Vec<u8>, Entry)>, RedisError> {
    let id_of = |record: &Record| record.id.clone().unwrap_or_default();
    let mut cmd = redis::cmd("HMGET");
    cmd.arg(ids);
    for record in &pack.records {
        cmd.arg(&id_of(record)[..]);
    }
    let texts: Vec<Option<Vec<u8>>> = cmd.query_async(connection).await?;
    let still = pack.records.iter().zip(texts).filter_map(|(record, text)| {
        let text = text?;
        let entry = Entry::parse(&text)?;
        let place = pack.name().record(record.position);
        let is_here = entry.kind == Kind::Held && entry.place == place;
        is_here.then(|| (record.clone(), text, entry))
    });
    Ok(still.collect())
}

/// Where the messages of a pack go together.
struct NewPack {
    score: Score,
    value: Vec<u8>,
    messages: Vec<(String, Vec<u8>, String)>,
}

impl NewPack {
    fn new(core: &Core, shard: ShardId, due: UnixMs, from: &[(Record, Vec<u8>, Entry)]) -> Self {
        let mut scores = core.scores(shard);
        let big = from
            .iter()
            .any(|(record, ..)| record.body.len() > core.config.pack_bytes);
        let name = PackName {
            score: scores.next(due, big),
            nonce: scores.nonce(),
        };
        let (mut records, mut messages) = (Vec::new(), Vec::new());
        for (position, (record, text, entry)) in (0_u16..).zip(from) {
            let id: Bytes = record.id.clone().unwrap_or_default();
            let new = Entry {
                kind: Kind::Stored,
                place: name.record(position),
                due,
                ..*entry
            };
            let id = String::from_utf8_lossy(&id).into_owned();
            messages.push((id, text.clone(), new.to_text()));
            records.push(Record {
                position,
                due,
                ..record.clone()
            });
        }
        let value = Pack::new(name, records, core.config.pack_compression).encode();
        Self {
            score: name.score,
            value,
            messages,
        }
    }
}
