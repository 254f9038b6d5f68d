//! One typed function per Lua script: the order of KEYS and ARGV and the shape of replies live only
//! here and in the scripts' own headers.

mod cancel;
mod insert;
mod place;
mod reads;
mod resume;
mod tidy;
mod turn;
mod upkeep;

pub(super) use cancel::{Named, cancel};
pub(super) use insert::{InsertReply, NewPack, Verdict, insert};
pub(super) use place::{
    Move, ParkPlace, ParkedMessage, PlaceReply, Requeue, park, place_reply, requeue, shift,
};
pub(super) use reads::Reads;
pub(super) use resume::{Resume, resume};
pub(super) use tidy::{Tidying, marks_of_records, tallies_and_packs, tidy};
pub(super) use turn::{marks, packs, turn};
pub(super) use upkeep::{beat, trim};

use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisError, Script, ServerErrorKind, Value};

use crate::store::TopicShare;

static INSERT: LazyLock<Script> = LazyLock::new(|| storing(include_str!("../lua/insert.lua")));
/// Sent whole: inside of a MULTI one that the server does not know would be an answer among others.
static ADMIT: LazyLock<String> =
    LazyLock::new(|| without_comments(include_str!("../lua/admit.lua")));
/// Likewise.
static ENTER: LazyLock<String> = LazyLock::new(|| {
    let (appear, enter) = (
        include_str!("../lua/appear.lua"),
        include_str!("../lua/enter.lua"),
    );
    without_comments(&format!("{appear}{enter}"))
});
static TURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/turn.lua")));
/// The same and its reads, for a server without memory.
static TURN_AND_READ: LazyLock<Script> = LazyLock::new(|| {
    let (turn, read) = (
        include_str!("../lua/turn.lua"),
        include_str!("../lua/read.lua"),
    );
    Script::new(&format!("local function turn()\n{turn}end\n{read}"))
});
static CANCEL: LazyLock<Script> = LazyLock::new(|| marking(include_str!("../lua/cancel.lua")));
static TIDY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/tidy.lua")));
static MOVE: LazyLock<Script> = LazyLock::new(|| {
    let (marked, shift) = (
        include_str!("../lua/marked.lua"),
        include_str!("../lua/move.lua"),
    );
    storing(&format!("{marked}{shift}"))
});
static PARK: LazyLock<Script> = LazyLock::new(|| storing(include_str!("../lua/park.lua")));
static REQUEUE: LazyLock<Script> = LazyLock::new(|| storing(include_str!("../lua/requeue.lua")));
static RESUME: LazyLock<Script> = LazyLock::new(|| storing(include_str!("../lua/resume.lua")));
static TRIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/trim.lua")));
static READS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("../lua/reads.lua")));
static MEMBERS: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../lua/members.lua")));

/// Of a script that is sent whole, what the server needs: it hashes all of it each time.
fn without_comments(script: &str) -> String {
    let is_code = |line: &&str| !line.starts_with("--");
    let lines = script.lines().map(str::trim_start).filter(is_code);
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// A script that asks for marks.
fn marking(script: &str) -> Script {
    Script::new(&format!("{}{script}", include_str!("../lua/marked.lua")))
}

/// A script that puts something into the queue.
fn storing(script: &str) -> Script {
    Script::new(&format!("{}{script}", include_str!("../lua/appear.lua")))
}

/// All scripts, to be loaded into a new connection's server.
#[derive(Debug)]
pub(super) struct Scripts;

impl Scripts {
    /// Loads every script: a pipeline cannot recover from NOSCRIPT by itself.
    pub(super) async fn load(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        for script in [
            &INSERT,
            &TURN,
            &TURN_AND_READ,
            &CANCEL,
            &TIDY,
            &MOVE,
            &PARK,
            &REQUEUE,
            &RESUME,
            &TRIM,
            &READS,
            &MEMBERS,
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

fn eval(script: &str, keys: &[String]) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script).arg(keys.len()).arg(keys);
    cmd
}

fn evalsha(script: &Script, keys: &[String]) -> Cmd {
    let mut cmd = redis::cmd("EVALSHA");
    cmd.arg(script.get_hash()).arg(keys.len()).arg(keys);
    cmd
}

/// Adds topic, messages, bytes of each.
fn add_shares(cmd: &mut Cmd, shares: &[TopicShare]) {
    for share in shares {
        cmd.arg(share.topic.as_str())
            .arg(share.messages)
            .arg(share.bytes);
    }
}

/// A transaction was refused whole.
fn is_aborted(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::ExecAbort)
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
