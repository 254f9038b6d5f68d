//! What follows from marks, pack by pack: the messages are counted off, and what is gone leaves its pack. The packs are
//! read, what is to be done is found out here, and one script does it if they are still as they were read.

use std::sync::Arc;

use bytes::Bytes;
use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::PackName;
use crate::shard::ShardId;
use crate::store::Error;
use crate::store::core::Core;
use crate::store::entry::place_of;
use crate::store::keys::ShardKeys;
use crate::store::lookup::{asked, link};
use crate::store::pack::Pack;
use crate::store::script::{self, Tidying};
use crate::store::tally;
use crate::store::untidy::Untidy;

/// How often a pack that changes meanwhile is read.
const ATTEMPTS_MAX: u32 = 3;

/// Marks of one look for those that nobody tidied.
const MARKS_PER_LOOK: usize = 500;

/// Tidies packs of a shard. `false`: not all; a sweep finds them, or their turn.
pub(super) async fn tidy(core: &Core, shard: ShardId, packs: Vec<PackName>) -> bool {
    let Ok(mut link) = link(core) else {
        return false;
    };
    let keys = core.keys.shard(shard);
    let mut left = packs;
    for _ in 0..ATTEMPTS_MAX {
        if left.is_empty() {
            return true;
        }
        match attempt(&mut link.connection, &keys, &left).await {
            Ok(changed_meanwhile) => left = changed_meanwhile,
            Err(error) => {
                let error = asked(core, &link, error);
                tracing::debug!(%error, "what was cancelled is counted later");
                return false;
            }
        }
    }
    left.is_empty()
}

/// Tidies what is left of instances that died between a cancel and its tidying, in shards that a sweep found, each with
/// the cancels that had been counted there. One sweep's shards at a time.
pub(super) async fn catch_up(core: Arc<Core>, shards: Vec<(ShardId, u64)>) {
    let Ok(_alone) = core.catching_up.try_lock() else {
        return;
    };
    for (shard, marked) in shards {
        if let Err(error) = catch_up_shard(&core, shard, marked).await {
            tracing::debug!(%error, %shard, "the next sweep looks again");
        }
    }
}

async fn catch_up_shard(core: &Core, shard: ShardId, marked: u64) -> Result<(), Error> {
    let mut link = link(core)?;
    let keys = core.keys.shard(shard);
    let (mut untidy, mut cursor) = (Untidy::default(), 0_u64);
    loop {
        let mut cmd = redis::cmd("ZSCAN");
        cmd.arg(keys.cancelled()).arg(cursor);
        cmd.arg("COUNT").arg(MARKS_PER_LOOK);
        let (next, marks): (u64, Vec<(Vec<u8>, f64)>) = cmd
            .query_async(&mut link.connection)
            .await
            .map_err(|error| asked(core, &link, error))?;
        let uncounted = marks.iter().filter(|(_, due)| due.fract() != 0.0);
        for place in uncounted.filter_map(|(mark, _)| place_of(mark)) {
            untidy.add(shard, place.pack());
        }
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    while let Some((_, packs)) = untidy.take() {
        if !tidy(core, shard, packs).await {
            return Ok(());
        }
    }
    // What was marked since is found by the next sweep.
    let mut done = redis::cmd("HSET");
    done.arg(keys.horizon()).arg("tidied").arg(marked);
    let done = done.exec_async(&mut link.connection).await;
    done.map_err(|error| asked(core, &link, error))
}

/// Returns the packs that were changed meanwhile.
async fn attempt(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[PackName],
) -> Result<Vec<PackName>, RedisError> {
    let (opened, seen) = script::tallies_and_packs(connection, keys, packs).await?;
    let there: Vec<Tidying> = packs
        .iter()
        .zip(seen)
        .filter_map(|(name, (tally, values))| {
            let decoded = values
                .into_iter()
                .filter_map(|value| Pack::decode(name.score, Bytes::from(value)).ok());
            // Its turn has removed it, or one that cannot be read lies there.
            let pack = decoded.into_iter().find(|pack| pack.name() == *name)?;
            let tally = tally.unwrap_or_default();
            Some(Tidying { pack, tally })
        })
        .collect();
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let marks = script::marks_of_records(connection, keys, &there).await?;
    let changes: Vec<_> = there
        .iter()
        .zip(marks)
        .filter_map(|(tidying, marks)| {
            let is_opened = tidying.pack.score.due() <= opened;
            let change = tally::change(&tidying.pack, &tidying.tally, &marks, is_opened)?;
            Some((tidying, change))
        })
        .collect();
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let were_same = script::tidy(connection, keys, &changes).await?;
    let others = changes.iter().zip(were_same).filter(|(_, same)| !same);
    Ok(others
        .map(|((tidying, _), _)| tidying.pack.name())
        .collect())
}
