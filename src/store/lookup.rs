//! Finding and moving one message by its id. The index is always asked first (R7).

use bytes::Bytes;
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tracing::warn;

use crate::id::{MessageId, Place};
use crate::message::{Due, UnixMs};
use crate::shard::ShardId;
use crate::store::connect::{Connected, is_broken, was_refused};
use crate::store::core::{AHEAD_MS, Core};
use crate::store::entry::{Entry, Kind, mark_of};
use crate::store::pack::{Pack, Record};
use crate::store::packing::Scores as _;
use crate::store::script::{self, Move, PlaceReply, Reads};
use crate::store::tally::{is_gone, tally_field};
use crate::store::{Error, ErrorKind, Reschedule, State, Stored};

/// How often a message that moves while it is looked at is looked at again.
const LOOKS_MAX: u32 = 20;

/// A message, where it is and how it stands.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) shard: ShardId,
    pub(super) id: String,
    /// The entry as it was read; empty if there is none.
    pub(super) entry_read: Vec<u8>,
    pub(super) digest: u64,
    pub(super) place: Place,
    pub(super) due: UnixMs,
    pub(super) standing: Standing,
    /// Records in its pack now.
    pub(super) records: usize,
    pub(super) record: Option<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Scheduled,
    InFlight,
    Cancelled,
    Dead,
    Gone,
}

/// Maps a failed question; the link is given up if the failure says so.
pub(super) fn asked(core: &Core, link: &Connected, error: RedisError) -> Error {
    warn!(%error, "redis did not do what was asked");
    if is_broken(&error) {
        core.ask.give_up(link.number);
    }
    let kind = if was_refused(&error) {
        ErrorKind::Refused
    } else {
        ErrorKind::Unknown
    };
    Error::caused(kind, error)
}

/// The connection for questions.
pub(super) fn link(core: &Core) -> Result<Connected, Error> {
    core.ask
        .current()
        .ok_or_else(|| Error::new(ErrorKind::Unavailable))
}

/// Looks for a message. `None`: the index does not know the client's id.
pub(super) async fn find(core: &Core, id: &MessageId) -> Result<Option<Found>, Error> {
    let mut link = link(core)?;
    let shard = core.shard_of(id);
    if shard.generation != core.topology.generation || shard.index >= core.topology.shards {
        return Ok(None);
    }
    let text = core.id_key.text(id);
    let mut at = match id {
        MessageId::Minted(minted) => Some((minted.place, minted.due, false, 0)),
        MessageId::Client(_) => None,
    };
    let mut expected = Vec::new();
    for _ in 0..LOOKS_MAX {
        let place = at.map(|(place, ..)| place);
        let held = Entry::held_topic(&expected);
        let look = look(core, &mut link.connection, shard, &text, place, held).await;
        let look = look.map_err(|error| asked(core, &link, error))?;
        let entry_read = look.entry;
        if entry_read == expected {
            let Some((place, due, maybe, digest)) = at else {
                return Ok(None);
            };
            let dead = entry_read.first() == Some(&b'D');
            let cancelled = look.marked || entry_read.first() == Some(&b'C');
            let standing = match (entry_read.first(), maybe) {
                // Neither H nor marks say anything of what is held.
                (Some(b'H'), true) => Standing::InFlight,
                (Some(b'H'), false) => Standing::Scheduled,
                _ => stand(due, look.horizons, maybe, cancelled, dead),
            };
            let (records, record) = record_at(place, look.packs)?;
            return Ok(Some(Found {
                shard,
                id: text,
                entry_read,
                digest,
                place,
                due,
                standing,
                records,
                record,
            }));
        }
        let entry = Entry::parse(&entry_read).ok_or_else(|| Error::new(ErrorKind::Corrupt))?;
        at = Some((entry.place, entry.due, entry.maybe, entry.digest));
        expected = entry_read;
        if matches!(entry.kind, Kind::Dead | Kind::Cancelled) {
            // Its place says nothing any more; one more look would only read what is gone.
            let standing = match entry.kind {
                Kind::Dead => Standing::Dead,
                Kind::Stored | Kind::Held | Kind::Cancelled => Standing::Cancelled,
            };
            return Ok(Some(Found {
                shard,
                id: text,
                entry_read: expected,
                digest: entry.digest,
                place: entry.place,
                due: entry.due,
                standing,
                records: 0,
                record: None,
            }));
        }
    }
    Err(Error::caused(
        ErrorKind::Unavailable,
        "the message moves faster than it can be found",
    ))
}

fn stand(
    due: UnixMs,
    (handed, settled): (UnixMs, UnixMs),
    maybe: bool,
    cancelled: bool,
    dead: bool,
) -> Standing {
    if dead {
        Standing::Dead
    } else if due <= settled {
        // Before the mark, which may outlive the entry that says where its message went.
        Standing::Gone
    } else if cancelled {
        Standing::Cancelled
    } else if due <= handed || maybe {
        Standing::InFlight
    } else {
        Standing::Scheduled
    }
}

/// What one look saw.
struct Look {
    /// Empty: there is none.
    entry: Vec<u8>,
    /// H and S.
    horizons: (UnixMs, UnixMs),
    /// What lies at the place's score.
    packs: Vec<Vec<u8>>,
    /// The place is marked, or its pack's tally says the same.
    marked: bool,
}

type Horizons = (Option<u64>, Option<u64>);
type LookReply = (
    Option<Vec<u8>>,
    Horizons,
    Vec<Vec<u8>>,
    Option<f64>,
    Option<Vec<u8>>,
);

/// One consistent look: the entry, the horizons, and what lies at `place`.
async fn look(
    core: &Core,
    connection: &mut MultiplexedConnection,
    shard: ShardId,
    id: &str,
    place: Option<Place>,
    held: Option<&str>,
) -> Result<Look, RedisError> {
    let keys = core.keys.shard(shard);
    let mut reads = Reads::default();
    reads.add("HGET", keys.ids(), [id.as_bytes()]);
    reads.add("HMGET", keys.horizon(), [b"handed", b"settled"]);
    let unpack =
        |(handed, settled): Horizons| (UnixMs(handed.unwrap_or(0)), UnixMs(settled.unwrap_or(0)));
    let Some(place) = place else {
        let (entry, horizons): (Option<Vec<u8>>, Horizons) = reads.query(connection).await?;
        return Ok(Look {
            entry: entry.unwrap_or_default(),
            horizons: unpack(horizons),
            packs: Vec::new(),
            marked: false,
        });
    };
    let score = place.score.0.to_string();
    let score = score.as_bytes();
    reads.add(
        "ZRANGEBYSCORE",
        held.map_or_else(|| keys.due(), |topic| keys.held(topic)),
        [score, score],
    );
    reads.add("ZSCORE", keys.cancelled(), [&mark_of(place)[..]]);
    reads.add("HGET", keys.tallies(), [&tally_field(place.pack())[..]]);
    let (entry, horizons, packs, mark, tally): LookReply = reads.query(connection).await?;
    let in_tally = tally.is_some_and(|tally| is_gone(&tally, place.position));
    Ok(Look {
        entry: entry.unwrap_or_default(),
        horizons: unpack(horizons),
        packs,
        marked: mark.is_some() || in_tally,
    })
}

fn record_at(place: Place, packs: Vec<Vec<u8>>) -> Result<(usize, Option<Record>), Error> {
    for value in packs {
        let pack = Pack::decode(place.score, Bytes::from(value))
            .map_err(|bad| Error::caused(ErrorKind::Corrupt, bad))?;
        if pack.nonce == place.nonce {
            let records = pack.records.len();
            let record = pack
                .records
                .into_iter()
                .find(|r| r.position == place.position);
            return Ok((records, record));
        }
    }
    Ok((0, None))
}

/// What GET answers, but for dead letters.
pub(super) fn stored(id: MessageId, found: Found) -> Option<Stored> {
    let state = match found.standing {
        Standing::Scheduled => State::Scheduled,
        Standing::InFlight => State::InFlight,
        Standing::Cancelled | Standing::Dead | Standing::Gone => return None,
    };
    let record = found.record?;
    Some(Stored {
        id,
        topic: record.topic,
        body: record.body,
        due: found.due,
        state,
        reason: None,
    })
}

/// Moves a message to another time.
pub(super) async fn reschedule(core: &Core, id: &MessageId, due: Due) -> Result<Reschedule, Error> {
    let mut floor = UnixMs(0);
    for _ in 0..LOOKS_MAX {
        let Some(found) = find(core, id).await? else {
            return Ok(Reschedule::NotFound);
        };
        match found.standing {
            Standing::Scheduled => {}
            Standing::InFlight => return Ok(Reschedule::InFlight),
            Standing::Cancelled => return Ok(Reschedule::Cancelled),
            Standing::Dead => return Ok(Reschedule::Dead),
            Standing::Gone => return Ok(Reschedule::NotFound),
        }
        // Only after a failover: the id is ours, and what it names was lost.
        let Some(record) = &found.record else {
            return Ok(Reschedule::NotFound);
        };
        let to_due = stamp(core, due)?.max(floor);
        let new = Placed::new(
            core,
            found.shard,
            record,
            &found.id,
            to_due,
            false,
            found.digest,
        );
        let change = Move {
            id: &found.id,
            entry_read: &found.entry_read,
            from: found.place,
            from_due: found.due,
            from_records: found.records,
            to: new.place.score,
            pack: &new.value,
            entry: &new.entry,
            topic: record.topic.as_str(),
            body_len: record.body.len(),
        };
        let mut link = link(core)?;
        let sent = core.clock.monotonic();
        let keys = core.keys.shard(found.shard);
        let (now_us, reply) = script::shift(&mut link.connection, &keys, &change)
            .await
            .map_err(|error| asked(core, &link, error))?;
        core.clock.learn(now_us, sent);
        match reply {
            PlaceReply::Ok => return Ok(Reschedule::Moved(to_due)),
            PlaceReply::InFlight => return Ok(Reschedule::InFlight),
            PlaceReply::Gone => return Ok(Reschedule::NotFound),
            PlaceReply::Cancelled => return Ok(Reschedule::Cancelled),
            PlaceReply::Late(limit) => floor = limit.plus_ms(AHEAD_MS),
            PlaceReply::Closed => {
                return Err(Error::caused(
                    ErrorKind::Refused,
                    "the shard's generation is closed",
                ));
            }
            // Another k, or another look.
            _ => {}
        }
    }
    Err(Error::caused(
        ErrorKind::Unavailable,
        "the message moves faster than it can be moved",
    ))
}

/// The due time that a move asks for, by Redis's clock.
pub(super) fn stamp(core: &Core, due: Due) -> Result<UnixMs, Error> {
    let now = core.clock.upper();
    if now == UnixMs(0) {
        return Err(Error::new(ErrorKind::Unavailable));
    }
    let asked = match due {
        Due::After(delay) => now.after(delay),
        Due::At(at) => at,
    };
    Ok(asked.max(now.plus_ms(AHEAD_MS)))
}

/// A pack of one at a new place, for a message that keeps its id.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) place: Place,
    pub(super) value: Vec<u8>,
    pub(super) entry: String,
}

impl Placed {
    pub(super) fn new(
        core: &Core,
        shard: ShardId,
        record: &Record,
        id: &str,
        due: UnixMs,
        maybe: bool,
        digest: u64,
    ) -> Self {
        let mut scores = core.scores(shard);
        let big = record.body.len() > core.config.pack_bytes;
        let place = Place {
            score: scores.next(due, big),
            nonce: scores.nonce(),
            position: 0,
        };
        let id = Some(Bytes::copy_from_slice(id.as_bytes()));
        let record = Record {
            position: 0,
            due,
            maybe,
            id,
            ..record.clone()
        };
        let pack = Pack::new(place.pack(), vec![record], core.config.pack_compression);
        let entry = Entry {
            kind: Kind::Stored,
            place,
            due,
            maybe,
            digest,
        }
        .to_text();
        Self {
            place,
            value: pack.encode(),
            entry,
        }
    }
}
