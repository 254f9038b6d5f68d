//! Pages of pending messages by due time, of dead letters, and the counts beside them.
//!
//! A page merges the shards: each is read a few packs at a time, and what is due up to the earliest
//! moment that some shard has not been read beyond is in its final order.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use deadpool_redis::Connection;
use redis::{Pipeline, Value};

use crate::id::{IdKey, MessageId, MintedId, PACK_WINDOW_MS_MAX, Place, Score};
use crate::message::{TopicName, UnixMs};
use crate::shard::ShardId;
use crate::store::claim::ReadPack;
use crate::store::connect::was_refused;
use crate::store::core::Core;
use crate::store::dead;
use crate::store::pack::{Pack, Record};
use crate::store::script::{self, Reads};
use crate::store::{Error, ErrorKind, Page, Pending, Query, State, Stored};

/// Packs that one round reads from each shard.
const PACKS_PER_ROUND: usize = 4;
/// Rounds of one page: a rare topic may make a page short, but never a request long.
const ROUNDS_MAX: usize = 32;

/// Where a listing stands: everything up to and including this has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    due: UnixMs,
    shard: u16,
    place: Place,
}

async fn connection(core: &Core) -> Result<Connection, Error> {
    core.pool
        .get()
        .await
        .map_err(|error| Error::caused(ErrorKind::Unavailable, error))
}

fn failed(error: redis::RedisError) -> Error {
    let kind = if was_refused(&error) {
        ErrorKind::Refused
    } else {
        ErrorKind::Unavailable
    };
    Error::caused(kind, error)
}

/// The horizons and packs of one shard, as one round reads them.
type Round = ((Option<u64>, Option<u64>), Value);
/// HSCAN's next cursor, and ids with their dead letters.
type Scanned = (u64, Vec<(Vec<u8>, Vec<u8>)>);

/// One shard's part of a page.
#[derive(Debug)]
struct Reader {
    shard: ShardId,
    /// The pack that was read last.
    after: Option<Score>,
    from: UnixMs,
    done: bool,
}

/// One page of `query`, after `page_token`.
pub(super) async fn list(
    core: &Core,
    query: &Query,
    page_token: Option<&str>,
    page_size: usize,
) -> Result<Page, Error> {
    let seen = page_token
        .map(|token| parse_token(&core.id_key, query, token))
        .transpose()?;
    let from = seen.map_or(query.due_from.unwrap_or_default(), |seen| seen.due);
    // A pack that begins earlier may hold records from here on.
    let from = from.minus_ms(PACK_WINDOW_MS_MAX);
    let to = query.due_to.unwrap_or(UnixMs::MAX);
    let mut readers: Vec<Reader> = core
        .topology
        .all()
        .map(|shard| Reader {
            shard,
            after: None,
            from,
            done: false,
        })
        .collect();
    let mut connection = connection(core).await?;
    let mut found: Vec<(Seen, Stored)> = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let watermark = watermark(&readers);
        let settled = found
            .iter()
            .filter(|(at, _)| Some(at.due) < watermark || watermark.is_none());
        if watermark.is_none() || settled.count() >= page_size {
            break;
        }
        read_round(
            core,
            &mut connection,
            &mut readers,
            watermark,
            to,
            |at, record, state| {
                let wanted = seen.is_none_or(|seen| at > seen)
                    && query.due_from.is_none_or(|from| at.due >= from)
                    && at.due < to
                    && query
                        .topic
                        .as_ref()
                        .is_none_or(|topic| *topic == record.1.topic);
                if wanted {
                    found.push((at, stored(core, at, record, state)));
                }
            },
        )
        .await?;
    }
    Ok(page(core, query, page_size, found, watermark(&readers)))
}

/// The first `page_size` of what was found and is in its final order, and where the next page begins.
fn page(
    core: &Core,
    query: &Query,
    page_size: usize,
    mut found: Vec<(Seen, Stored)>,
    watermark: Option<UnixMs>,
) -> Page {
    found.sort_by_key(|(at, _)| *at);
    found.retain(|(at, _)| watermark.is_none_or(|until| at.due < until));
    let more = found.len() > page_size || watermark.is_some();
    found.truncate(page_size);
    // A short page that is not the last goes on where reading stopped.
    let stopped = watermark.map(|until| Seen {
        due: until.minus_ms(1),
        shard: u16::MAX,
        place: Place {
            score: Score(u64::MAX),
            nonce: u32::MAX,
            position: u16::MAX,
        },
    });
    let last = if found.len() == page_size {
        found.last().map(|(at, _)| *at)
    } else {
        stopped
    };
    let next_page_token = if more {
        last.map(|last| print_token(&core.id_key, query, last))
    } else {
        None
    };
    Page {
        messages: found.into_iter().map(|(_, stored)| stored).collect(),
        next_page_token,
    }
}

/// The earliest moment that some shard has not been read beyond.
fn watermark(readers: &[Reader]) -> Option<UnixMs> {
    let open = readers.iter().filter(|reader| !reader.done);
    open.map(|reader| reader.after.map_or(UnixMs(0), Score::due))
        .min()
}

/// Reads on in the shards that hold the page up.
async fn read_round(
    core: &Core,
    connection: &mut Connection,
    readers: &mut [Reader],
    watermark: Option<UnixMs>,
    to: UnixMs,
    mut found: impl FnMut(Seen, (u16, Record), State),
) -> Result<(), Error> {
    let holds_up = |r: &&mut Reader| {
        !r.done && r.after.map_or(UnixMs(0), Score::due) <= watermark.unwrap_or_default()
    };
    for reader in readers.iter_mut().filter(holds_up) {
        let keys = core.keys.shard(reader.shard);
        let from = match reader.after {
            Some(after) => format!("({}", after.0),
            None => Score::new(reader.from, 0).0.to_string(),
        };
        let (until, count) = (
            format!("({}", Score::new(to, 0).0),
            PACKS_PER_ROUND.to_string(),
        );
        let [from, until, count] = [&from, &until, &count].map(String::as_bytes);
        let range: [&[u8]; 6] = [from, until, b"WITHSCORES", b"LIMIT", b"0", count];
        let mut reads = Reads::default();
        reads.add("HMGET", keys.horizon(), [b"handed", b"settled"]);
        reads.add("ZRANGEBYSCORE", keys.due(), range);
        let ((handed, settled), packs): Round = reads.query(connection).await.map_err(failed)?;
        let (handed, settled) = (UnixMs(handed.unwrap_or(0)), UnixMs(settled.unwrap_or(0)));
        let packs = script::packs(packs).map_err(failed)?;
        reader.done = packs.len() < PACKS_PER_ROUND;
        reader.after = packs.last().map(ReadPack::score).or(reader.after);
        let marks = marks_of(connection, &keys.cancelled(), &packs).await?;
        for pack in packs {
            let ReadPack::Pack(Pack {
                score,
                nonce,
                stored,
                records,
                ..
            }) = pack
            else {
                continue;
            };
            for record in records {
                let place = Place {
                    score,
                    nonce,
                    position: record.position,
                };
                if record.due <= settled || marks.contains(&place) {
                    continue;
                }
                let in_flight = record.due <= handed || record.maybe;
                let state = if in_flight {
                    State::InFlight
                } else {
                    State::Scheduled
                };
                let at = Seen {
                    due: record.due,
                    shard: reader.shard.index,
                    place,
                };
                found(at, (stored, record), state);
            }
        }
    }
    Ok(())
}

async fn marks_of(
    connection: &mut Connection,
    key: &str,
    packs: &[ReadPack],
) -> Result<HashSet<Place>, Error> {
    let (Some(first), Some(last)) = (packs.first(), packs.last()) else {
        return Ok(HashSet::new());
    };
    let mut cmd = redis::cmd("ZRANGEBYSCORE");
    // A mark that is not counted yet lies half a ms before its due.
    cmd.arg(key)
        .arg(format!("({}", first.score().due().minus_ms(1)));
    cmd.arg(last.score().due().plus_ms(PACK_WINDOW_MS_MAX).0);
    let value: Value = cmd.query_async(connection).await.map_err(failed)?;
    Ok(script::marks(value).map_err(failed)?.into_iter().collect())
}

fn stored(core: &Core, at: Seen, (count, record): (u16, Record), state: State) -> Stored {
    let shard = core.topology.shard(at.shard);
    let minted = || {
        MessageId::Minted(MintedId {
            due: at.due,
            shard,
            place: at.place,
            count,
        })
    };
    let id = record
        .id
        .as_ref()
        .and_then(|id| core.id_key.parse(id).ok())
        .unwrap_or_else(minted);
    Stored {
        id,
        topic: record.topic,
        body: record.body,
        due: record.due,
        state,
        reason: None,
    }
}

/// A token says where the listing stands, signed together with its query: a token of another query,
/// or one made up, is refused.
fn print_token(key: &IdKey, query: &Query, seen: Seen) -> String {
    let Seen {
        due,
        shard,
        place: Place {
            score,
            nonce,
            position,
        },
    } = seen;
    let text = format!("{due} {shard} {score} {nonce} {position}");
    let signature = key.sign(format!("{query:?} {text}").as_bytes());
    URL_SAFE_NO_PAD.encode(format!("{text} {signature}"))
}

fn parse_token(key: &IdKey, query: &Query, token: &str) -> Result<Seen, Error> {
    let parse = || {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let (text, signature) = text.rsplit_once(' ')?;
        if signature.parse::<u64>().ok()? != key.sign(format!("{query:?} {text}").as_bytes()) {
            return None;
        }
        let mut words = text.split(' ');
        let due = UnixMs(words.next()?.parse().ok()?);
        let shard = words.next()?.parse().ok()?;
        let score = Score(words.next()?.parse().ok()?);
        let nonce = words.next()?.parse().ok()?;
        let position = words.next()?.parse().ok()?;
        Some(Seen {
            due,
            shard,
            place: Place {
                score,
                nonce,
                position,
            },
        })
    };
    parse().ok_or_else(|| Error::new(ErrorKind::BadPageToken))
}

/// One page of dead letters: shard by shard, in the order of HSCAN.
pub(super) async fn dead_letters(
    core: &Core,
    page_token: Option<&str>,
    page_size: usize,
) -> Result<Page, Error> {
    let query = Query::default();
    let seen = page_token
        .map(|token| parse_token(&core.id_key, &query, token))
        .transpose()?;
    let (mut shard, mut cursor) = seen.map_or((0, 0), |seen| (seen.shard, seen.place.score.0));
    let mut connection = connection(core).await?;
    let mut messages = Vec::new();
    while shard < core.topology.shards && messages.len() < page_size {
        let keys = core.keys.shard(core.topology.shard(shard));
        let mut cmd = redis::cmd("HSCAN");
        cmd.arg(keys.dead()).arg(cursor).arg("COUNT").arg(page_size);
        let (next, pairs): Scanned = cmd.query_async(&mut connection).await.map_err(failed)?;
        messages.extend(pairs.into_iter().filter_map(|(id, value)| {
            let id = core.id_key.parse(&id).ok()?;
            dead::stored(id, value)
        }));
        cursor = next;
        if cursor == 0 {
            shard += 1;
        }
    }
    let next_page_token = (shard < core.topology.shards).then(|| {
        let place = Place {
            score: Score(cursor),
            nonce: 0,
            position: 0,
        };
        print_token(
            &core.id_key,
            &query,
            Seen {
                due: UnixMs(0),
                shard,
                place,
            },
        )
    });
    Ok(Page {
        messages,
        next_page_token,
    })
}

/// Pending messages by topic, and dead letters, over all shards.
pub(super) async fn pending(core: &Core) -> Result<Pending, Error> {
    let mut connection = connection(core).await?;
    let mut pipeline = Pipeline::new();
    for shard in core.topology.all() {
        let keys = core.keys.shard(shard);
        pipeline.cmd("HGETALL").arg(keys.pending());
        pipeline.cmd("HGETALL").arg(keys.bytes());
        pipeline.cmd("HLEN").arg(keys.dead());
    }
    let values: Vec<Value> = pipeline
        .query_async(&mut connection)
        .await
        .map_err(failed)?;
    let mut pending = Pending::default();
    let mut values = values.into_iter();
    while let (Some(messages), Some(bytes), Some(dead)) =
        (values.next(), values.next(), values.next())
    {
        add_counts(&mut pending.by_topic, messages)?;
        add_counts(&mut pending.bytes_by_topic, bytes)?;
        if let Value::Int(dead) = dead {
            pending.dead += u64::try_from(dead).unwrap_or(0);
        }
    }
    Ok(pending)
}

fn add_counts(sums: &mut HashMap<TopicName, u64>, value: Value) -> Result<(), Error> {
    let counts: HashMap<Vec<u8>, i64> =
        redis::from_redis_value(value).map_err(|bad| failed(bad.into()))?;
    for (topic, count) in counts {
        if let (Ok(topic), Ok(count)) = (TopicName::parse(&topic), u64::try_from(count)) {
            *sums.entry(topic).or_default() += count;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_query() {
        let key = IdKey([3; 16]);
        let place = Place {
            score: Score(9),
            nonce: 8,
            position: 7,
        };
        let seen = Seen {
            due: UnixMs(10),
            shard: 2,
            place,
        };
        let query = Query {
            due_to: Some(UnixMs(99)),
            ..Query::default()
        };
        let token = print_token(&key, &query, seen);
        assert_eq!(parse_token(&key, &query, &token).unwrap(), seen);
        for (key, query, token) in [
            (IdKey([4; 16]), query.clone(), token.clone()),
            (key, Query::default(), token.clone()),
            (key, query.clone(), format!("{token}x")),
            (key, query, String::new()),
        ] {
            let refused = parse_token(&key, &query, &token).unwrap_err();
            assert_eq!(refused.kind, ErrorKind::BadPageToken);
        }
    }
}
