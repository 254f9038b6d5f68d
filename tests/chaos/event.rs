//! What happened in a run, as lines of its history: what producers asked and were told, what was handed
//! to nsqd, what consumers got, what was broken when. All moments are microseconds of one monotonic clock.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who a message is. It is in the message's body, so that no server can change it.
pub(crate) type Number = u64;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Asked {
    /// One message, or a batch that is stored whole or not at all.
    Publish,
    /// Take it back.
    Cancel,
    /// Another time, or at once.
    Move,
    /// Is it there, with its body?
    Look,
}

/// What the asker knows afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Done.
    Ok,
    /// Certainly not done, and nothing was changed.
    Fail,
    /// No answer, or the answer that nobody knows.
    Unknown,
    /// Too late: it is on its way to nsqd.
    InFlight,
    /// Delivered, or never there.
    Gone,
    /// It is a dead letter.
    Dead,
    /// It was cancelled before.
    Cancelled,
    /// An answer that nothing in the run explains.
    Odd,
}

/// One request of a producer, or one item of a batch whose items are answered one by one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Op {
    #[serde(rename = "op")]
    pub(crate) asked: Asked,
    /// The messages: several share the fate of one request.
    pub(crate) ids: Vec<Number>,
    pub(crate) topic: String,
    /// From the request's start, in ms.
    pub(crate) delay_ms: u64,
    pub(crate) t_start: u64,
    pub(crate) t_end: u64,
    pub(crate) outcome: Outcome,
    /// Which door: tcp, http, json.
    pub(crate) door: &'static str,
    pub(crate) instance: usize,
    /// Which producer: each has one connection at a time.
    pub(crate) connection: usize,
    /// The words of an odd or unknown answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) words: String,
}

/// One line of the history.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A producer's request and what came of it.
    Op(Op),
    /// An instance has sent a message towards an nsqd: from here on it may be delivered.
    Offered {
        id: Number,
        t: u64,
        nsqd: usize,
        instance: usize,
        intact: bool,
    },
    /// An nsqd has said OK to it. Our part ends here.
    Taken { id: Number, t: u64, nsqd: usize },
    /// A consumer has it.
    Delivered {
        id: Number,
        t: u64,
        nsqd: usize,
        /// nsqd's own id: the same one again is nsqd's repetition.
        copy: String,
        attempts: u16,
        /// Whether the body is, byte for byte, what was published.
        intact: bool,
    },
    /// A consumer has something that is no message of this run.
    Alien { t: u64, nsqd: usize },
    /// Something is broken from now on.
    FaultStart {
        fault: usize,
        kind: &'static str,
        /// What it does to which part.
        words: String,
        t: u64,
        /// The nsqd that is killed with SIGKILL: what it holds in memory is lost with it.
        kills_nsqd: Option<usize>,
    },
    /// It is repaired.
    FaultStop {
        fault: usize,
        t: u64,
        /// What it hit: connections cut, answers swallowed, requests refused, programs ended.
        hits: u64,
        /// Why this machine does not allow it, if so.
        unavailable: Option<String>,
    },
    /// A phase begins.
    Phase { phase: Phase, t: u64 },
    /// After healing: was everything delivered in time?
    Drained { t: u64, owed: usize, took_ms: u64 },
    /// Read back: a dead letter.
    IsDead { id: Number },
    /// It was given back to the queue, and is due at once.
    Requeued { id: Number },
    /// Read back at the end: still pending.
    IsPending { id: Number },
    /// Read back at the end, and it must not be like that.
    Wrong { words: String },
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Nothing is broken, and nothing was just before.
    Healthy,
    /// Faults.
    Faults,
    /// Everything was repaired; the backlog drains.
    Healing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Faults => "faults",
            Self::Healing => "healing",
        })
    }
}

/// Bytes of a body before the part that is made from its number.
const HEAD: usize = 20;
/// After so many bytes they repeat themselves.
const PERIOD: usize = 16;
/// Bodies beyond the small ones: large enough for a pack of their own, and for an nsqd with a low limit.
const LARGE_EACH: u64 = 53;

/// The body of a message: everything in it follows from its number, so that a consumer can tell
/// whether it came whole. Even numbers are text without line ends, odd ones are any bytes; every third one repeats itself,
/// so that packs can be compressed.
pub(crate) fn body(number: Number) -> Vec<u8> {
    let mut bytes = format!("chaos {number:013} ").into_bytes();
    let mut random = fastrand::Rng::with_seed(number ^ 0x6e73_7164);
    let filling = if number.is_multiple_of(LARGE_EACH) {
        random.usize(5_000..18_000)
    } else {
        random.usize(0..400)
    };
    for at in 0..filling {
        let byte = random.u8(..);
        bytes.push(if number.is_multiple_of(3) && at >= PERIOD {
            bytes[bytes.len() - PERIOD]
        } else if number.is_multiple_of(2) {
            b' ' + byte % 95
        } else {
            byte
        });
    }
    bytes
}

/// Whose body it is, and whether it is whole. `None`: nobody's.
pub(crate) fn identify(bytes: &[u8]) -> Option<(Number, bool)> {
    let head = str::from_utf8(bytes.get(..HEAD)?).ok()?;
    let number = head.strip_prefix("chaos ")?.trim_end().parse().ok()?;
    Some((number, body(number) == bytes))
}

#[test]
fn a_body_names_its_number_and_every_other_byte_counts() {
    for number in [0, 1, 2, 52, 53, 999_999] {
        let mut bytes = body(number);
        assert_eq!(identify(&bytes), Some((number, true)));
        bytes.push(b'.');
        assert_eq!(identify(&bytes), Some((number, false)));
    }
    assert_eq!(identify(b"something else that is long enough"), None);
}
