//! Inserts packs: `lua/insert.lua`, or, around Lua, `lua/admit.lua` and `lua/enter.lua`.

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{ErrorKind, Pipeline, RedisError, Value};

use crate::id::Score;
use crate::message::UnixMs;
use crate::store::TopicShare;
use crate::store::connect::is_broken;
use crate::store::keys::ShardKeys;
use crate::store::script::{
    ADMIT, ENTER, INSERT, Parts, add_shares, eval, evalsha, is_aborted, misshapen, run,
};

/// Inserts of so many bytes go around Lua: from there on what it costs to pass them through it is more than a second
/// script is.
const AROUND_FROM: usize = 12_288;

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

/// Stores packs, all or none. Answers with Redis's time in µs beside the reply, as every function here.
pub(in crate::store) async fn insert(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[NewPack],
) -> Result<(u64, InsertReply), RedisError> {
    let bytes: usize = packs.iter().map(|pack| pack.value.len()).sum();
    if bytes >= AROUND_FROM && packs.iter().all(|pack| pack.ids.is_empty()) {
        around(connection, keys, packs).await
    } else {
        through(connection, keys, packs).await
    }
}

/// One MULTI: `lua/admit.lua`, the packs, `lua/enter.lua`.
async fn around(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[NewPack],
) -> Result<(u64, InsertReply), RedisError> {
    let mut admit = eval(&ADMIT, &[keys.due(), keys.horizon(), keys.refused()]);
    let mut add = redis::cmd("ZADD");
    add.arg(keys.due()).arg("NX");
    let names = [
        keys.due(),
        keys.horizon(),
        keys.refused(),
        keys.pending(),
        keys.bytes(),
    ];
    let mut enter = eval(&ENTER, &names);
    enter.arg(keys.wake()).arg(packs.len());
    let mut topics: Vec<TopicShare> = Vec::new();
    for pack in packs {
        let (score, due) = (pack.score.0, pack.score.due().0);
        admit.arg(score).arg(due);
        add.arg(score).arg(&pack.value[..]);
        enter.arg(score).arg(due);
        for share in &pack.topics {
            TopicShare::add(&mut topics, &share.topic, share.messages, share.bytes);
        }
    }
    add_shares(&mut enter, &topics);
    let mut transaction = Pipeline::with_capacity(3);
    transaction.atomic().add_command(admit);
    transaction.add_command(add).add_command(enter);
    // MULTI and what is queued answer before it.
    let results = connection.req_packed_commands(&transaction, 4, 1).await;
    let value = match results.map(|mut results| results.pop()) {
        // Nothing was executed, or it would have been in part. The script is told why.
        Ok(Some(Value::ServerError(_))) => return through(connection, keys, packs).await,
        Err(error) if is_aborted(&error) => {
            return match lost_master(error) {
                Some(lost) => Err(lost),
                None => through(connection, keys, packs).await,
            };
        }
        Ok(value) => value.unwrap_or(Value::Nil),
        Err(error) => return Err(error),
    };
    let mut results = Parts::of("insert", value)?;
    let (admitted, added, entered) = (results.value()?, results.value()?, results.word()?);
    let (now_us, reply) = reply(admitted)?;
    let is_all = entered == "1" && redis::from_redis_value::<usize>(added)? == packs.len();
    if is_all == (reply == InsertReply::Ok) {
        Ok((now_us, reply))
    } else {
        Err(misshapen("insert"))
    }
}

/// The error that says so, if the commands were refused because the server is not, or no longer, the master.
fn lost_master(aborted: RedisError) -> Option<RedisError> {
    let errors = aborted.into_server_errors()?;
    let mut kinds = errors.iter().filter_map(|(_, error)| error.kind());
    kinds.find_map(|kind| {
        let error = RedisError::from((ErrorKind::Server(kind), "an insert was refused"));
        is_broken(&error).then_some(error)
    })
}

/// `lua/insert.lua`.
async fn through(
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
        add_shares(&mut cmd, &pack.topics);
        cmd.arg(pack.ids.len());
        for (id, entry, due) in &pack.ids {
            cmd.arg(id).arg(entry).arg(due.0);
        }
    }
    reply(run(connection, &cmd).await?)
}

fn reply(value: Value) -> Result<(u64, InsertReply), RedisError> {
    let mut parts = Parts::of("insert", value)?;
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
