//! The owner's turn: `lua/turn.lua` and the read in the same MULTI, and how packs and marks are read.

use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, RedisError, Script, Value};

use crate::id::{Place, Score};
use crate::message::UnixMs;
use crate::store::claim::{Held, Mark, Read, ReadPack, Turn, TurnReply};
use crate::store::entry::{mark_of, place_of};
use crate::store::keys::ShardKeys;
use crate::store::pack::Pack;
use crate::store::script::{
    Parts, Scripts, TURN, TURN_AND_READ, add_shares, evalsha, is_aborted, lacks_scripts, millis,
    misshapen, run,
};

/// `lua/turn.lua` and the read after it, if there is one, in one MULTI.
pub(in crate::store) async fn turn(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    claim_ttl: Duration,
    turn: &Turn,
) -> Result<(u64, TurnReply), RedisError> {
    let names = [
        keys.due(),
        keys.claim(),
        keys.horizon(),
        keys.cancelled(),
        keys.pending(),
        keys.bytes(),
        keys.tallies(),
    ];
    let script = command(&TURN, &names, claim_ttl, turn);
    let Some(read) = turn.read else {
        let mut parts = Parts::of("turn", run(connection, &script).await?)?;
        return reply(&mut parts);
    };
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.atomic().add_command(script);
    pipeline
        .cmd("ZRANGEBYSCORE")
        .arg(keys.due())
        .arg(format!("({}", read.after.0))
        .arg(reach(read))
        .arg("WITHSCORES")
        .arg("LIMIT")
        .arg(0)
        .arg(read.limit);
    let value = match pipeline.query_async(connection).await {
        Err(error) if lacks_scripts(&error) => {
            Scripts::load(connection).await?;
            pipeline.query_async::<Value>(connection).await?
        }
        // Nothing was executed. A server without memory refuses any MULTI.
        Err(error) if is_aborted(&error) => {
            let mut cmd = command(&TURN_AND_READ, &names, claim_ttl, turn);
            cmd.arg(read.after.0).arg(reach(read)).arg(read.limit);
            run(connection, &cmd).await?
        }
        other => other?,
    };
    let mut results = Parts::of("turn", value)?;
    let mut parts = Parts::of("turn", results.value()?)?;
    let (now_us, mut reply) = reply(&mut parts)?;
    if let TurnReply::Held(held) = &mut reply {
        held.packs = packs(results.value()?)?;
    }
    Ok((now_us, reply))
}

/// What the script itself says.
fn reply(parts: &mut Parts) -> Result<(u64, TurnReply), RedisError> {
    let word = parts.word()?;
    let now_us = parts.number()?;
    match word.as_str() {
        "busy" => Ok((
            now_us,
            TurnReply::Busy(Duration::from_millis(parts.number()?)),
        )),
        "ok" => Ok((now_us, TurnReply::Held(held(now_us, parts)?))),
        _ => Err(misshapen("turn")),
    }
}

fn command(script: &Script, names: &[String], claim_ttl: Duration, turn: &Turn) -> Cmd {
    let mut cmd = evalsha(script, names);
    cmd.arg(&turn.token.0)
        .arg(millis(claim_ttl))
        .arg(u8::from(turn.extend))
        .arg(turn.settle_to.0)
        .arg(turn.hand_out_to.0)
        .arg(turn.open_to.0)
        .arg(turn.idle_until.map_or(0, |until| until.0));
    match turn.marks {
        Some(marks) => cmd.arg(marks.after.0).arg(marks.to.0),
        None => cmd.arg("").arg(""),
    };
    for finished in &turn.finished {
        let shares = finished.topics.len() + finished.uncounted.len();
        cmd.arg(finished.score.0).arg(shares);
        add_shares(&mut cmd, &finished.topics);
        for (place, topic) in &finished.uncounted {
            cmd.arg(topic.as_str()).arg(&mark_of(*place)[..]).arg("");
        }
    }
    cmd
}

/// The last score that a read may reach.
fn reach(read: Read) -> u64 {
    Score::new(read.to, Score::PER_MS - 1).0
}

fn held(now_us: u64, parts: &mut Parts) -> Result<Held, RedisError> {
    let handed = UnixMs(parts.number()?);
    let settled = UnixMs(parts.number()?);
    let below = parts.number()?;
    let fresh = parts.word()? == "1";
    let head = parts.word()?;
    let head = if head.is_empty() {
        None
    } else {
        Some(UnixMs(
            head.parse()
                .map_err(|_not_a_number| misshapen("turn head"))?,
        ))
    };
    let handed_before = UnixMs(parts.number()?);
    let marks = marks_with_scores(parts.value()?)?;
    let now = UnixMs(now_us / 1_000);
    Ok(Held {
        now,
        handed_before,
        handed,
        settled,
        below,
        fresh,
        head,
        packs: Vec::new(),
        marks,
    })
}

/// Packs with their scores, as ZRANGEBYSCORE WITHSCORES answers.
pub(in crate::store) fn packs(value: Value) -> Result<Vec<ReadPack>, RedisError> {
    let mut parts = Parts::of("packs", value)?;
    let mut packs = Vec::with_capacity(parts.rest.len() / 2);
    while parts.rest.len() > 0 {
        let value = Bytes::from(parts.bytes()?);
        let score = Score(score_of(&parts.word()?)?);
        packs.push(match Pack::decode(score, value) {
            Ok(pack) => ReadPack::Pack(pack),
            Err(error) => ReadPack::Unreadable(score, error),
        });
    }
    Ok(packs)
}

/// Scores are whole and below 2^53, and yet Redis may write them as 1.5e+15.
fn score_of(text: &str) -> Result<u64, RedisError> {
    if let Ok(whole) = text.parse() {
        return Ok(whole);
    }
    let float: f64 = text.parse().map_err(|_not_a_number| misshapen("score"))?;
    if (0.0..9_007_199_254_740_992.0).contains(&float) && float.fract() == 0.0 {
        // `{:.0}` of a whole double below 2^53 is exact.
        return format!("{float:.0}")
            .parse()
            .map_err(|_not_a_number| misshapen("score"));
    }
    Err(misshapen("score"))
}

/// Marks with their scores, as ZRANGEBYSCORE WITHSCORES answers. One that is not ours is nobody's.
fn marks_with_scores(value: Value) -> Result<Vec<Mark>, RedisError> {
    let mut parts = Parts::of("marks", value)?;
    let mut marks = Vec::with_capacity(parts.rest.len() / 2);
    while parts.rest.len() > 0 {
        let place = place_of(&parts.bytes()?);
        let due: f64 = parts
            .word()?
            .parse()
            .map_err(|_not_a_number| misshapen("marks"))?;
        let counted = due.fract() == 0.0;
        marks.extend(place.map(|place| Mark { place, counted }));
    }
    Ok(marks)
}

/// Marks, as ZRANGEBYSCORE answers. One that is not ours is nobody's.
pub(in crate::store) fn marks(value: Value) -> Result<Vec<Place>, RedisError> {
    let parts = Parts::of("marks", value)?;
    let place = |value: Value| match value {
        Value::BulkString(bytes) => place_of(&bytes),
        _ => None,
    };
    Ok(parts.rest.filter_map(place).collect())
}
