//! What follows from marks, pack by pack: the messages are counted off, and what is gone leaves its pack. The packs are
//! read, what is to be done is found out here, and one script does it if they are still as they were read.

use bytes::Bytes;
use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::Score;
use crate::shard::ShardId;
use crate::store::core::Core;
use crate::store::keys::ShardKeys;
use crate::store::lookup::{asked, link};
use crate::store::pack::Pack;
use crate::store::script::{self, Tidying};
use crate::store::tally;

/// How often a pack that changes meanwhile is read.
const ATTEMPTS_MAX: u32 = 3;

/// Tidies packs of a shard, by score and nonce. If it fails, or dies, what was cancelled is counted when its pack is removed.
pub(super) async fn tidy(core: &Core, shard: ShardId, packs: Vec<(Score, u32)>) {
    let Ok(mut link) = link(core) else {
        return;
    };
    let keys = core.keys.shard(shard);
    let mut left = packs;
    for _ in 0..ATTEMPTS_MAX {
        if left.is_empty() {
            return;
        }
        match attempt(&mut link.connection, &keys, &left).await {
            Ok(changed_meanwhile) => left = changed_meanwhile,
            Err(error) => {
                let error = asked(core, &link, error);
                tracing::debug!(%error, "what was cancelled is counted when it is due");
                return;
            }
        }
    }
}

/// Returns the packs that were changed meanwhile.
async fn attempt(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    packs: &[(Score, u32)],
) -> Result<Vec<(Score, u32)>, RedisError> {
    let (opened, seen) = script::tallies_and_packs(connection, keys, packs).await?;
    let there: Vec<Tidying> = packs
        .iter()
        .zip(seen)
        .filter_map(|((score, nonce), (tally, values))| {
            let decoded = values
                .into_iter()
                .filter_map(|value| Pack::decode(*score, Bytes::from(value)).ok());
            // Its turn has removed it, or one that cannot be read lies there.
            let pack = decoded.into_iter().find(|pack| pack.nonce == *nonce)?;
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
        .map(|((tidying, _), _)| (tidying.pack.score, tidying.pack.nonce))
        .collect())
}
