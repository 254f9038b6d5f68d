//! One round of cancels: marks, shard by shard, and what follows from them, pack by pack: before the answer, or left for
//! later.

use std::collections::BTreeMap;
use std::iter;
use std::sync::Arc;

use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};

use crate::id::{MessageId, PackName};
use crate::shard::ShardId;
use crate::store::core::Core;
use crate::store::lookup::{asked, link};
use crate::store::script::{self, Named};
use crate::store::tidying;
use crate::store::untidy::Untidy;
use crate::store::{Cancel, Error};

/// Most messages of one script: each takes some µs, and no call may take 5 ms.
const MESSAGES_MAX: usize = 500;
/// Scripts under way that tidy one round before its answer: others' questions come between.
const TIDYING_MAX: usize = 2;

/// What one round came to.
#[derive(Debug)]
pub(super) struct Round {
    /// An answer for each id. What fails of one script says nothing of the others.
    pub(super) answers: Vec<Result<Cancel, Arc<Error>>>,
    /// Packs that were not tidied.
    pub(super) untidy: Vec<(ShardId, PackName)>,
}

/// Cancels each of `ids`. `at_once`: leaves nothing untidy, so that what is counted is right when this is answered.
pub(super) async fn cancel(core: &Core, ids: &[MessageId], at_once: bool) -> Round {
    let mut round = mark(core, ids).await;
    if at_once {
        let mut untidy = Untidy::default();
        for (shard, pack) in round.untidy.drain(..) {
            untidy.add(shard, pack);
        }
        let scripts = stream::iter(iter::from_fn(|| untidy.take()));
        let all =
            scripts.map(|(shard, packs)| async move { tidying::tidy(core, shard, packs).await });
        all.buffer_unordered(TIDYING_MAX)
            .for_each(async |_| {})
            .await;
    }
    round
}

/// Sets the marks, one script per shard and chunk, all under way together.
async fn mark(core: &Core, ids: &[MessageId]) -> Round {
    let mut answers: Vec<Result<Cancel, Arc<Error>>> = vec![Ok(Cancel::NotFound); ids.len()];
    let mut untidy = Vec::new();
    let link = match link(core) {
        Ok(link) => link,
        Err(error) => {
            answers.fill(Err(Arc::new(error)));
            return Round { answers, untidy };
        }
    };
    let shards = by_shard(core, ids);
    let chunks = shards.iter().flat_map(|(shard, (indexes, named))| {
        let chunks = indexes.chunks(MESSAGES_MAX).zip(named.chunks(MESSAGES_MAX));
        chunks.map(move |(indexes, named)| (*shard, indexes, named))
    });
    let asking = chunks.map(|(shard, indexes, named)| {
        let mut connection = link.connection.clone();
        async move {
            let keys = core.keys.shard(shard);
            let window = core.config.dedupe_window;
            let replies = script::cancel(&mut connection, &keys, window, named).await;
            (shard, indexes, named, replies)
        }
    });
    for (shard, indexes, named, replies) in join_all(asking).await {
        match replies {
            Ok((replies, found)) => {
                for ((index, named), reply) in indexes.iter().zip(named).zip(replies) {
                    if let Some(answer) = answers.get_mut(*index) {
                        *answer = Ok(reply);
                    }
                    if let (Cancel::Cancelled, Some((place, _))) = (reply, named.place) {
                        untidy.push((shard, place.pack()));
                    }
                }
                untidy.extend(found.iter().map(|place| (shard, place.pack())));
            }
            Err(error) => {
                let error = Arc::new(asked(core, &link, error));
                for index in indexes {
                    if let Some(answer) = answers.get_mut(*index) {
                        *answer = Err(Arc::clone(&error));
                    }
                }
            }
        }
    }
    Round { answers, untidy }
}

/// Of each shard the places in the answer, and the messages. An id of a shard that is not there names nothing.
fn by_shard(core: &Core, ids: &[MessageId]) -> BTreeMap<ShardId, (Vec<usize>, Vec<Named>)> {
    let mut shards: BTreeMap<ShardId, (Vec<usize>, Vec<Named>)> = BTreeMap::new();
    for (index, id) in ids.iter().enumerate() {
        let shard = core.shard_of(id);
        if shard.generation != core.topology.generation || shard.index >= core.topology.shards {
            continue;
        }
        let place = match id {
            MessageId::Minted(minted) => Some((minted.place, minted.due)),
            MessageId::Client(_) => None,
        };
        let id = core.id_key.text(id);
        let (indexes, named) = shards.entry(shard).or_default();
        indexes.push(index);
        named.push(Named { id, place });
    }
    shards
}
