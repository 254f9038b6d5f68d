//! What follows from marks, pack by pack: the reads, and `lua/tidy.lua`.

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError};

use crate::id::PackName;
use crate::message::UnixMs;
use crate::store::entry::mark_of;
use crate::store::keys::ShardKeys;
use crate::store::pack::Pack;
use crate::store::script::{Parts, TIDY, add_shares, evalsha, misshapen, run};
use crate::store::tally::{Change, Then, tally_field};

/// A pack that is tidied, and what was read of it.
#[derive(Debug)]
pub(in crate::store) struct Tidying {
    pub(in crate::store) pack: Pack,
    /// Empty: it has none.
    pub(in crate::store) tally: Vec<u8>,
}

/// One pack's tally, and what lies at its score.
type Seen = (Option<Vec<u8>>, Vec<Vec<u8>>);

/// Up to where an owner has read, and of each pack what there is.
pub(in crate::store) async fn tallies_and_packs(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[PackName],
) -> Result<(UnixMs, Vec<Seen>), RedisError> {
    let (tallies, due) = (keys.tallies(), keys.due());
    let mut pipeline = Pipeline::with_capacity(1 + 2 * packs.len());
    pipeline.cmd("HGET").arg(keys.horizon()).arg("opened");
    for pack in packs {
        pipeline
            .cmd("HGET")
            .arg(&tallies)
            .arg(&tally_field(*pack)[..]);
        pipeline
            .cmd("ZRANGEBYSCORE")
            .arg(&due)
            .arg(pack.score.0)
            .arg(pack.score.0);
    }
    let mut replies = Parts::of("tidy", pipeline.query_async(connection).await?)?;
    let opened: Option<u64> = redis::from_redis_value(replies.value()?)?;
    let mut seen = Vec::with_capacity(packs.len());
    for _ in packs {
        let tally = redis::from_redis_value(replies.value()?)?;
        seen.push((tally, redis::from_redis_value(replies.value()?)?));
    }
    Ok((UnixMs(opened.unwrap_or(0)), seen))
}

/// Of each pack, of each record: no mark, or whether it is counted.
pub(in crate::store) async fn marks_of_records(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[Tidying],
) -> Result<Vec<Vec<Option<bool>>>, RedisError> {
    let cancelled = keys.cancelled();
    let mut pipeline = Pipeline::with_capacity(packs.len());
    for Tidying { pack, .. } in packs {
        let cmd = pipeline.cmd("ZMSCORE").arg(&cancelled);
        for record in &pack.records {
            cmd.arg(&mark_of(pack.name().record(record.position))[..]);
        }
    }
    let scores: Vec<Vec<Option<f64>>> = pipeline.query_async(connection).await?;
    let counted = |due: Option<f64>| due.map(|due| due.fract() == 0.0);
    let of_pack = |scores: Vec<Option<f64>>| scores.into_iter().map(counted).collect();
    Ok(scores.into_iter().map(of_pack).collect())
}

/// `lua/tidy.lua`. Whether each pack was as it had been read.
pub(in crate::store) async fn tidy(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    changes: &[(&Tidying, Change)],
) -> Result<Vec<bool>, RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.cancelled(),
        keys.pending(),
        keys.bytes(),
        keys.tallies(),
    ];
    let mut cmd = evalsha(&TIDY, &names);
    for (Tidying { pack, tally }, change) in changes {
        cmd.arg(pack.score.0)
            .arg(&tally_field(pack.name())[..])
            .arg(&tally[..])
            .arg(change.tally.as_deref().unwrap_or_default());
        match &change.then {
            Then::Stays => cmd.arg(""),
            Then::Removed => cmd.arg("-"),
            Then::Replaced(value) => cmd.arg(&value[..]),
        };
        cmd.arg(change.counted.len())
            .arg(change.unmarked.len())
            .arg(change.shares.len());
        for (position, due) in &change.counted {
            cmd.arg(due.0)
                .arg(&mark_of(pack.name().record(*position))[..]);
        }
        for position in &change.unmarked {
            cmd.arg(&mark_of(pack.name().record(*position))[..]);
        }
        add_shares(&mut cmd, &change.shares);
    }
    let mut replies = Parts::of("tidy", run(connection, &cmd).await?)?;
    let mut were_same = Vec::with_capacity(changes.len());
    while replies.rest.len() > 0 {
        were_same.push(replies.word()? == "1");
    }
    if were_same.len() == changes.len() {
        Ok(were_same)
    } else {
        Err(misshapen("tidy"))
    }
}
