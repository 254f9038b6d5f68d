//! Gives what is held back to the queue: `lua/resume.lua`.

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use crate::id::Score;
use crate::store::keys::ShardKeys;
use crate::store::script::{PlaceReply, RESUME, evalsha, place_reply, run};

/// One pack that is given back.
#[derive(Debug)]
pub(in crate::store) struct Resume<'a> {
    pub(in crate::store) topic: &'a str,
    pub(in crate::store) from: Score,
    /// Where its messages go; `None`: all were cancelled or moved.
    pub(in crate::store) to: Option<(Score, &'a [u8])>,
    pub(in crate::store) bytes_less: usize,
    /// Id, entry that was read, new entry.
    pub(in crate::store) messages: &'a [(String, Vec<u8>, String)],
}

/// `lua/resume.lua`.
pub(in crate::store) async fn resume(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    change: &Resume<'_>,
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.held(change.topic),
        keys.holds(),
        keys.bytes(),
    ];
    let mut cmd = evalsha(&RESUME, &names);
    cmd.arg(keys.wake()).arg(change.topic).arg(change.from.0);
    match change.to {
        Some((score, pack)) => cmd.arg(score.0).arg(score.due().0).arg(pack),
        None => cmd.arg("").arg(0).arg(""),
    };
    cmd.arg(change.bytes_less);
    for (id, read, new) in change.messages {
        cmd.arg(id).arg(&read[..]).arg(new);
    }
    place_reply("resume", run(connection, &cmd).await?)
}
