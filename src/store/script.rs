//! One typed function per Lua script: the order of KEYS and ARGV and the shape of replies live only
//! here and in the scripts' own headers.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Script, ServerErrorKind, Value};

use crate::id::{Place, Score};
use crate::message::UnixMs;
use crate::store::claim::{ClaimToken, Held, ReadPack, Turn, TurnReply};
use crate::store::entry::{mark_of, place_of};
use crate::store::keys::ShardKeys;
use crate::store::pack::Pack;

static INSERT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/insert.lua")));
static TURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/turn.lua")));
static CANCEL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/cancel.lua")));
static MOVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/move.lua")));
static PARK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/park.lua")));
static REQUEUE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/requeue.lua")));
static TRIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/trim.lua")));
static MEMBERS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/members.lua")));

/// All scripts, to be loaded into a new connection's server.
#[derive(Debug)]
pub(super) struct Scripts;

impl Scripts {
    /// Loads every script: a pipeline cannot recover from NOSCRIPT by itself.
    pub(super) async fn load(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        for script in [
            &INSERT, &TURN, &CANCEL, &MOVE, &PARK, &REQUEUE, &TRIM, &MEMBERS,
        ] {
            script.load_async(connection).await?;
        }
        Ok(())
    }
}

/// A script's reply was not of the shape that its header promises.
fn misshapen(what: &'static str) -> RedisError {
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        "unexpected reply of a script",
        what.into(),
    ))
}

fn evalsha(script: &Script, keys: &[String]) -> Cmd {
    let mut cmd = redis::cmd("EVALSHA");
    cmd.arg(script.get_hash()).arg(keys.len()).arg(keys);
    cmd
}

fn lacks_scripts(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Runs one script. NOSCRIPT says that nothing was executed: load (a flush or a new server) and
/// repeat once.
async fn run(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    match cmd.query_async(connection).await {
        Err(error) if lacks_scripts(&error) => {
            Scripts::load(connection).await?;
            cmd.query_async(connection).await
        }
        other => other,
    }
}

/// The parts of an array reply, taken in order.
struct Parts {
    what: &'static str,
    rest: std::vec::IntoIter<Value>,
}

impl Parts {
    fn of(what: &'static str, value: Value) -> Result<Self, RedisError> {
        match value {
            Value::Array(parts) => Ok(Self {
                what,
                rest: parts.into_iter(),
            }),
            _ => Err(misshapen(what)),
        }
    }

    fn bytes(&mut self) -> Result<Vec<u8>, RedisError> {
        match self.rest.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes()),
            _ => Err(misshapen(self.what)),
        }
    }

    fn word(&mut self) -> Result<String, RedisError> {
        String::from_utf8(self.bytes()?).map_err(|_not_utf8| misshapen(self.what))
    }

    fn number(&mut self) -> Result<u64, RedisError> {
        self.word()?
            .parse()
            .map_err(|_not_a_number| misshapen(self.what))
    }

    fn value(&mut self) -> Result<Value, RedisError> {
        self.rest.next().ok_or_else(|| misshapen(self.what))
    }
}

/// A pack on its way in.
#[derive(Debug)]
pub(super) struct NewPack {
    pub(super) score: Score,
    pub(super) value: Vec<u8>,
    pub(super) topics: Vec<(String, u64)>,
    /// Client id, entry, due.
    pub(super) ids: Vec<(String, String, UnixMs)>,
}

/// Why one pack was not inserted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
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
pub(super) enum InsertReply {
    Ok,
    Closed,
    Refused {
        limit: UnixMs,
        verdicts: Vec<Verdict>,
    },
}

/// `lua/insert.lua`. Answers with Redis's time in µs beside the reply, as every function here.
pub(super) async fn insert(
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
    ];
    let mut cmd = evalsha(&INSERT, &names);
    cmd.arg(keys.wake()).arg(packs.len());
    for pack in packs {
        cmd.arg(pack.score.0)
            .arg(pack.score.due().0)
            .arg(&pack.value[..]);
        cmd.arg(pack.topics.len());
        for (topic, messages) in &pack.topics {
            cmd.arg(topic).arg(*messages);
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

/// `lua/turn.lua` and the reads after it, in one MULTI.
pub(super) async fn turn(
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
    ];
    let mut cmd = evalsha(&TURN, &names);
    cmd.arg(&turn.token.0)
        .arg(millis(claim_ttl))
        .arg(turn.settle_to.0)
        .arg(turn.hand_out_to.0);
    cmd.arg(turn.open_to.0)
        .arg(turn.idle_until.map_or(0, |until| until.0));
    for finished in &turn.finished {
        cmd.arg(finished.score.0).arg(finished.delivered.len());
        for (topic, messages) in &finished.delivered {
            cmd.arg(topic.as_str()).arg(*messages);
        }
    }
    let mut pipeline = Pipeline::with_capacity(3);
    pipeline.atomic().add_command(cmd);
    if let Some(read) = turn.read {
        pipeline
            .cmd("ZRANGEBYSCORE")
            .arg(keys.due())
            .arg(format!("({}", read.after.0));
        pipeline.arg(Score::new(read.to, Score::PER_MS - 1).0);
        pipeline
            .arg("WITHSCORES")
            .arg("LIMIT")
            .arg(0)
            .arg(read.limit);
    }
    if let Some(marks) = turn.marks {
        pipeline.cmd("ZRANGEBYSCORE").arg(keys.cancelled());
        pipeline.arg(format!("({}", marks.after.0)).arg(marks.to.0);
    }
    let value = match pipeline.query_async(connection).await {
        Err(error) if lacks_scripts(&error) => {
            Scripts::load(connection).await?;
            pipeline.query_async::<Value>(connection).await?
        }
        other => other?,
    };
    let mut results = Parts::of("turn", value)?;
    let mut parts = Parts::of("turn", results.value()?)?;
    let word = parts.word()?;
    let now_us = parts.number()?;
    match word.as_str() {
        "busy" => Ok((
            now_us,
            TurnReply::Busy(Duration::from_millis(parts.number()?)),
        )),
        "ok" => {
            let mut held = held(now_us, &mut parts)?;
            if turn.read.is_some() {
                held.packs = packs(results.value()?)?;
            }
            if turn.marks.is_some() {
                held.marks = marks(results.value()?)?;
            }
            Ok((now_us, TurnReply::Held(held)))
        }
        _ => Err(misshapen("turn")),
    }
}

fn held(now_us: u64, parts: &mut Parts) -> Result<Held, RedisError> {
    let handed = UnixMs(parts.number()?);
    let settled = UnixMs(parts.number()?);
    let _opened = parts.number()?;
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
        marks: Vec::new(),
    })
}

/// Packs with their scores, as ZRANGEBYSCORE WITHSCORES answers.
pub(super) fn packs(value: Value) -> Result<Vec<ReadPack>, RedisError> {
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

/// Marks, as ZRANGEBYSCORE answers. One that is not ours is nobody's.
pub(super) fn marks(value: Value) -> Result<Vec<Place>, RedisError> {
    let parts = Parts::of("marks", value)?;
    let place = |value: Value| match value {
        Value::BulkString(bytes) => place_of(&bytes),
        _ => None,
    };
    Ok(parts.rest.filter_map(place).collect())
}

/// What a cancel knows of a message.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) id: String,
    /// Of a minted id: its place and due.
    pub(super) place: Option<(Place, UnixMs)>,
}

/// The answer to one cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelReply {
    Cancelled,
    InFlight,
    Gone,
    Dead,
}

/// `lua/cancel.lua`.
pub(super) async fn cancel(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
    messages: &[Named],
) -> Result<Vec<CancelReply>, RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
        keys.gone(),
        keys.pending(),
    ];
    let mut cmd = evalsha(&CANCEL, &names);
    cmd.arg(millis(dedupe_window));
    for message in messages {
        cmd.arg(&message.id);
        match message.place {
            Some((place, due)) => {
                cmd.arg(place.score.0)
                    .arg(place.nonce)
                    .arg(place.position)
                    .arg(due.0);
                cmd.arg(&mark_of(place)[..]);
            }
            None => {
                cmd.arg("").arg(0).arg(0).arg(0).arg("");
            }
        }
    }
    let mut parts = Parts::of("cancel", run(connection, &cmd).await?)?;
    let mut replies = Vec::with_capacity(messages.len());
    while parts.rest.len() > 0 {
        replies.push(match parts.word()?.as_str() {
            "cancelled" => CancelReply::Cancelled,
            "in_flight" => CancelReply::InFlight,
            "gone" => CancelReply::Gone,
            "dead" => CancelReply::Dead,
            _ => return Err(misshapen("cancel")),
        });
    }
    if replies.len() == messages.len() {
        Ok(replies)
    } else {
        Err(misshapen("cancel"))
    }
}

/// What a move changes.
#[derive(Debug)]
pub(super) struct Move<'a> {
    pub(super) id: &'a str,
    pub(super) entry_read: &'a [u8],
    pub(super) from: Place,
    pub(super) from_due: UnixMs,
    pub(super) from_records: usize,
    pub(super) to: Score,
    pub(super) pack: &'a [u8],
    pub(super) entry: &'a str,
}

/// The answer to a move, a park or a requeue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PlaceReply {
    Ok,
    Changed,
    Closed,
    InFlight,
    Gone,
    Cancelled,
    Fenced,
    Full,
    /// Choose a later ms, or another k: nothing at or under this limit will be taken.
    Late(UnixMs),
    Taken,
    /// Ids that are marked.
    Marked(Vec<String>),
}

/// `lua/move.lua`.
pub(super) async fn shift(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    change: &Move<'_>,
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
    ];
    let mut cmd = evalsha(&MOVE, &names);
    cmd.arg(keys.wake()).arg(change.id).arg(change.entry_read);
    cmd.arg(change.from.score.0)
        .arg(change.from_due.0)
        .arg(&mark_of(change.from)[..]);
    cmd.arg(change.from_records);
    cmd.arg(change.to.0)
        .arg(change.to.due().0)
        .arg(change.pack)
        .arg(change.entry);
    place_reply("move", run(connection, &cmd).await?)
}

/// One message of a park.
#[derive(Debug)]
pub(super) struct ParkedMessage {
    pub(super) id: String,
    pub(super) from: Place,
    pub(super) from_due: UnixMs,
    pub(super) entry: String,
    pub(super) to_due: UnixMs,
    pub(super) topic: String,
    pub(super) dead_letter: Vec<u8>,
}

/// Where a park puts its messages.
#[derive(Debug)]
pub(super) enum ParkPlace<'a> {
    Pack { score: Score, value: &'a [u8] },
    DeadLetters { max: u64 },
}

/// `lua/park.lua`.
pub(super) async fn park(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    token: &ClaimToken,
    place: &ParkPlace<'_>,
    messages: &[ParkedMessage],
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.claim(),
        keys.horizon(),
        keys.ids(),
        keys.cancelled(),
        keys.live(),
        keys.pending(),
        keys.dead(),
    ];
    let mut cmd = evalsha(&PARK, &names);
    cmd.arg(keys.wake()).arg(&token.0);
    match place {
        ParkPlace::Pack { score, value } => cmd.arg(score.0).arg(score.due().0).arg(*value),
        ParkPlace::DeadLetters { max } => cmd.arg("").arg(*max).arg(""),
    };
    for message in messages {
        cmd.arg(&message.id)
            .arg(&mark_of(message.from)[..])
            .arg(message.from_due.0);
        cmd.arg(&message.entry)
            .arg(message.to_due.0)
            .arg(&message.topic);
        cmd.arg(&message.dead_letter[..]);
    }
    place_reply("park", run(connection, &cmd).await?)
}

/// What a requeue changes; without a pack the dead letter is dropped.
#[derive(Debug)]
pub(super) struct Requeue<'a> {
    pub(super) id: &'a str,
    pub(super) dead_letter: &'a [u8],
    pub(super) to: Option<(Score, &'a [u8], &'a str)>,
    pub(super) topic: &'a str,
    pub(super) dedupe_window: Duration,
}

/// `lua/requeue.lua`.
pub(super) async fn requeue(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    change: &Requeue<'_>,
) -> Result<(u64, PlaceReply), RedisError> {
    let names = [
        keys.due(),
        keys.horizon(),
        keys.ids(),
        keys.live(),
        keys.gone(),
        keys.pending(),
        keys.dead(),
    ];
    let mut cmd = evalsha(&REQUEUE, &names);
    cmd.arg(keys.wake()).arg(change.id).arg(change.dead_letter);
    match change.to {
        Some((score, pack, entry)) => cmd
            .arg(score.0)
            .arg(score.due().0)
            .arg(pack)
            .arg(entry)
            .arg(change.topic),
        None => cmd
            .arg("")
            .arg(millis(change.dedupe_window))
            .arg("")
            .arg("")
            .arg(change.topic),
    };
    place_reply("requeue", run(connection, &cmd).await?)
}

fn place_reply(what: &'static str, value: Value) -> Result<(u64, PlaceReply), RedisError> {
    let mut parts = Parts::of(what, value)?;
    let word = parts.word()?;
    let now_us = parts.number()?;
    let reply = match word.as_str() {
        "ok" => PlaceReply::Ok,
        "changed" => PlaceReply::Changed,
        "closed" => PlaceReply::Closed,
        "in_flight" => PlaceReply::InFlight,
        "gone" => PlaceReply::Gone,
        "cancelled" => PlaceReply::Cancelled,
        "fenced" => PlaceReply::Fenced,
        "full" => PlaceReply::Full,
        "late" => PlaceReply::Late(UnixMs(parts.number()?)),
        "taken" => PlaceReply::Taken,
        "marked" => {
            let mut ids = Vec::new();
            while parts.rest.len() > 0 {
                ids.push(parts.word()?);
            }
            PlaceReply::Marked(ids)
        }
        _ => return Err(misshapen(what)),
    };
    Ok((now_us, reply))
}

/// Most entries of each kind that one trim touches.
const TRIM_MAX: u64 = 500;

/// `lua/trim.lua`. `true`: there is more to trim.
pub(super) async fn trim(
    connection: &mut MultiplexedConnection,
    keys: &ShardKeys,
    dedupe_window: Duration,
) -> Result<bool, RedisError> {
    let names = [keys.horizon(), keys.ids(), keys.live(), keys.gone()];
    let mut cmd = evalsha(&TRIM, &names);
    cmd.arg(millis(dedupe_window)).arg(TRIM_MAX);
    let touched: u64 = redis::from_redis_value(run(connection, &cmd).await?)?;
    Ok(touched >= TRIM_MAX)
}

/// `lua/members.lua`.
pub(super) async fn members(
    connection: &mut MultiplexedConnection,
    key: &str,
    instance: &str,
    instance_ttl: Duration,
    leave: bool,
) -> Result<(u64, Vec<String>), RedisError> {
    let mut cmd = evalsha(&MEMBERS, &[key.to_owned()]);
    cmd.arg(instance)
        .arg(millis(instance_ttl))
        .arg(u8::from(leave));
    let mut parts = Parts::of("members", run(connection, &cmd).await?)?;
    let now_us = parts.number()?;
    let mut live = Vec::new();
    while parts.rest.len() > 0 {
        live.push(parts.word()?);
    }
    Ok((now_us, live))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
