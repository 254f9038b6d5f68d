//! Inserts packs: `lua/insert.lua`.

use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};

use crate::id::Score;
use crate::message::UnixMs;
use crate::store::TopicShare;
use crate::store::keys::ShardKeys;
use crate::store::script::{INSERT, Parts, evalsha, misshapen, run};

/// A pack on its way in.
#[derive(Debug)]
pub(in crate::store) struct NewPack {
    pub(in crate::store) score: Score,
    pub(in crate::store) value: Vec<u8>,
    pub(in crate::store) topics: Vec<TopicShare>,
    /// Client id, entry, due.
    pub(in crate::store) ids: Vec<(String, String, UnixMs)>,
}

/// Why one pack was not inserted.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum Verdict {
    /// Nothing against it.
    Fine,
    /// Its due time is at or under H.
    Late,
    /// Another pack has the score.
    Taken,
    /// These ids have entries.
    IdsTaken(Vec<(String, Vec<u8>)>),
}

/// The answer to an insert.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::store) enum InsertReply {
    Ok,
    Closed,
    Refused {
        limit: UnixMs,
        verdicts: Vec<Verdict>,
    },
}

/// `lua/insert.lua`. Answers with Redis's time in µs beside the reply, as every function here.
pub(in crate::store) async fn insert(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[NewPack],
) -> Result<(u64, InsertReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.pending(),
        keys.bytes(),
    ];
    let mut cmd = evalsha(&INSERT, &names);
    cmd.arg(keys.wake()).arg(packs.len());
    for pack in packs {
        cmd.arg(pack.score.0)
            .arg(pack.score.due().0)
            .arg(&pack.value[..]);
        cmd.arg(pack.topics.len());
        for share in &pack.topics {
            cmd.arg(share.topic.as_str());
            cmd.arg(share.messages).arg(share.bytes);
        }
        cmd.arg(pack.ids.len());
        for (id, entry, due) in &pack.ids {
            cmd.arg(id).arg(entry).arg(due.0);
        }
    }
    let mut parts = Parts::of("insert", run(connection, &cmd).await?)?;
    let word = parts.word()?;
    let now_us = parts.number()?;
    let reply = match word.as_str() {
        "ok" => InsertReply::Ok,
        "closed" => InsertReply::Closed,
        "refused" => {
            let limit = UnixMs(parts.number()?);
            let verdicts = Parts::of("insert verdicts", parts.value()?)?;
            let verdicts = verdicts.rest.map(verdict).collect::<Result<_, _>>()?;
            InsertReply::Refused { limit, verdicts }
        }
        _ => return Err(misshapen("insert")),
    };
    Ok((now_us, reply))
}

fn verdict(value: Value) -> Result<Verdict, RedisError> {
    match value {
        Value::BulkString(word) => match word.as_slice() {
            b"" => Ok(Verdict::Fine),
            b"late" => Ok(Verdict::Late),
            b"taken" => Ok(Verdict::Taken),
            _ => Err(misshapen("insert verdict")),
        },
        array => {
            let mut parts = Parts::of("insert ids", array)?;
            let mut taken = Vec::new();
            while parts.rest.len() > 0 {
                taken.push((parts.word()?, parts.bytes()?));
            }
            Ok(Verdict::IdsTaken(taken))
        }
    }
}
