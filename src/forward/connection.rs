//! One connection to one nsqd once it is made: commands and answers, first in, first out. One
//! task owns the socket; what is to be published comes over a channel. Does not reconnect and does
//! not decide what is sent again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::forward::Deadline;
use crate::forward::batch::{Batch, Carrier, Limits, Queue};
use crate::forward::pace::Pace;
use crate::forward::room::Taken;
use crate::forward::settings::Config;
use crate::forward::verdict::{Meaning, Refusal, Verdict, meaning};
use crate::nsq::command::{encode_mpub, encode_nop, encode_pub};
use crate::nsq::frame::{BadFrame, Frame, FrameType, OK_BODY};
use crate::nsqd::{self, Wishes};
use crate::transport::{Incoming, Outgoing};

/// Longest frame that nsqd may send: an answer has some hundred bytes.
const FRAME_LEN_MAX: usize = 64 * 1024;
/// Room for reading, in bytes; an OK takes 10.
const READ_BYTES: usize = 16 * 1024;
/// Less room than this is made [`READ_BYTES`] again.
const READ_BYTES_MIN: usize = 4 * 1024;
/// No command is added to a write that is as long as this. Small, because the deadline is asked when
/// a command is added.
const WRITE_BYTES: usize = 64 * 1024;
/// Most batches that are taken from the channel at once. What it holds is bounded by `Room`.
const ARRIVED_MAX: usize = 1024;
/// So many heartbeat intervals without a byte from nsqd, and it is gone.
const SILENT_HEARTBEATS: u32 = 2;

/// A batch on its way, with the address for its verdict.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) batch: Batch,
    pub(super) deadline: Deadline,
    /// Gets the batch back too, so that it can be sent again. Dropped without an answer: unknown.
    pub(super) reply: oneshot::Sender<(Batch, Verdict)>,
    pub(super) taken: Taken,
}

impl Parcel {
    /// Tells the caller. One that is gone does not need to know.
    pub(super) fn answer(self, verdict: Verdict) {
        drop(self.taken);
        drop(self.reply.send((self.batch, verdict)));
    }

    /// Whether it must not be written any more: the claim may have ended, or nobody would learn what
    /// became of it.
    fn stale(&self) -> bool {
        self.reply.is_closed() || self.deadline.passed()
    }
}

impl Carrier for Parcel {
    fn batch(&self) -> &Batch {
        &self.batch
    }
}

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Connecting, reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// nsqd closed it.
    #[error("closed by nsqd")]
    Closed,
    /// Nothing came for two heartbeat intervals.
    #[error("silent for two heartbeat intervals")]
    Silent,
    /// Nothing was answered within `forward_timeout`, though a command of so many messages waited.
    #[error("no answer within the forward time-out")]
    NoAnswer(usize),
    /// What came is not nsqd's protocol.
    #[error(transparent)]
    BadFrame(#[from] BadFrame),
    /// What came is not the answer to anything.
    #[error("unexpected frame {0:?}")]
    Unexpected(String),
    /// nsqd does not take commands from us, for a reason that is not in them.
    #[error("nsqd answers {0:?}")]
    Unusable(String),
    /// It did not come so far that commands could be sent.
    #[error(transparent)]
    Greeting(#[from] nsqd::Fault),
}

/// Why a connection ended.
#[derive(Debug)]
pub(super) enum Reason {
    /// Nothing more was to be sent and all was answered.
    Drained,
    /// nsqd refused a message and closed, as it does. It is in good health.
    Refused(String),
    /// It broke.
    Lost(Fault),
}

/// The end of a connection. Whoever chooses connections has to know of it before the callers are
/// told, else they would choose this one again: hence verdicts that are still to be given.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) reason: Reason,
    pub(super) verdicts: Vec<(Parcel, Verdict)>,
}

impl Ended {
    /// Tells the callers.
    pub(super) fn tell(self) {
        for (parcel, verdict) in self.verdicts {
            parcel.answer(verdict);
        }
    }
}

/// Closes `parcels` and answers what was given to it too late.
pub(super) async fn turn_away(parcels: &mut UnboundedReceiver<Parcel>) {
    parcels.close();
    while let Some(parcel) = parcels.recv().await {
        parcel.answer(Verdict::NotSent);
    }
}

/// A command that nsqd has not answered.
#[derive(Debug)]
struct Sent {
    /// Where in the stream of bytes it begins.
    start: u64,
    at: Instant,
    parcels: Vec<Parcel>,
}

/// A connection that has identified itself.
#[derive(Debug)]
pub(super) struct Connection {
    reader: Incoming,
    writer: Outgoing,
    input: BytesMut,
    output: BytesMut,
    /// Bytes of commands that the kernel has taken, or TLS or a compression for it.
    written: u64,
    /// Something was written and nothing has been flushed since.
    unflushed: bool,
    /// Whether writing still works. When it does not, what nsqd sent before is still read.
    writable: bool,
    /// When the last byte came.
    heard: Instant,
    /// When the last answer came. What is behind it has had nsqd to itself since then.
    answered: Instant,
    queue: Queue<Parcel>,
    unanswered: VecDeque<Sent>,
    /// Verdicts that the end will tell.
    verdicts: Vec<(Parcel, Verdict)>,
    limits: Limits,
    pace: Arc<Pace>,
    forward_timeout: Duration,
    silence_max: Duration,
    commands: Counter,
}

impl Connection {
    /// Connects and identifies. Cancel safe: a connection that is half made is closed.
    pub(super) async fn dial(
        address: &str,
        config: &Config,
        pace: Arc<Pace>,
        commands: Counter,
    ) -> Result<Self, Fault> {
        let wishes = Wishes {
            dial_timeout: config.dial_timeout,
            heartbeat_interval: config.heartbeat_interval,
            msg_timeout: None,
            unbuffered: false,
            carriage: config.carriage.clone(),
        };
        let (reader, writer, _) = nsqd::dial(address, &wishes).await?;
        let (reader, input) = reader.into_parts();
        let writer = writer.into_stream();
        Ok(Self {
            reader,
            writer,
            input,
            output: BytesMut::with_capacity(WRITE_BYTES),
            written: 0,
            unflushed: false,
            writable: true,
            heard: Instant::now(),
            answered: Instant::now(),
            queue: Queue::new(),
            unanswered: VecDeque::new(),
            verdicts: Vec::new(),
            limits: Limits {
                messages_max: config.mpub_messages_max,
                bytes_max: config.mpub_bytes_max,
            },
            pace,
            forward_timeout: config.forward_timeout,
            silence_max: config.heartbeat_interval * SILENT_HEARTBEATS,
            commands,
        })
    }

    /// Publishes what comes over `parcels` until the connection breaks, or until that channel is
    /// closed or `stop` is cancelled: then what has come is still published and answered. Calls `accepted` at each OK.
    ///
    /// Not cancel safe: dropping it drops what is under way, which callers read as unknown.
    pub(super) async fn run(
        mut self,
        parcels: &mut UnboundedReceiver<Parcel>,
        stop: &CancellationToken,
        accepted: impl Fn(),
    ) -> Ended {
        let mut arrived = Vec::new();
        let mut open = true;
        let cancelled = stop.cancelled();
        tokio::pin!(cancelled);
        let timer = sleep_until(self.expiry());
        tokio::pin!(timer);
        loop {
            self.fill();
            if !open && self.unanswered.is_empty() && self.is_written() {
                return self.end(Reason::Drained);
            }
            // Put back only when it fires, so that an answer costs no timer.
            let check_at = self.expiry();
            if check_at < timer.deadline() {
                timer.as_mut().reset(check_at);
            }
            if self.input.capacity() - self.input.len() < READ_BYTES_MIN {
                self.input.reserve(READ_BYTES);
            }
            // Every branch is cancel safe: read_buf, write_buf and recv_many have done nothing when
            // another branch is taken, and flush goes on where it was. Answers first: they make room.
            let outcome = tokio::select! {
                biased;
                read = self.reader.read_buf(&mut self.input) => self.hear(read, &accepted),
                written = push(&mut self.writer, &mut self.output),
                    if self.writable && !self.is_written() => self.wrote(written),
                count = parcels.recv_many(&mut arrived, ARRIVED_MAX), if open => {
                    open = count > 0;
                    arrived.drain(..).for_each(|parcel| self.queue.push(parcel));
                    Ok(())
                }
                () = &mut cancelled, if open && !parcels.is_closed() => {
                    parcels.close();
                    Ok(())
                }
                () = &mut timer => {
                    let checked = self.check();
                    timer.as_mut().reset(self.expiry());
                    checked
                }
            };
            if let Err(reason) = outcome {
                return self.end(reason);
            }
        }
    }

    /// Adds what waits to the output, once all of it has gone: what comes in the meantime shares
    /// commands. The deadline is asked here, right before the write.
    fn fill(&mut self) {
        if !self.output.is_empty() || !self.writable || self.queue.is_empty() {
            return;
        }
        let at = Instant::now();
        let mut commands = 0;
        let limits = Limits {
            messages_max: self.limits.messages_max.min(self.pace.messages()),
            ..self.limits
        };
        while self.output.len() < WRITE_BYTES && !self.queue.is_empty() {
            let mut parcels = self.queue.next(limits);
            for stale in parcels.extract_if(.., |parcel| parcel.stale()) {
                stale.answer(Verdict::NotSent);
            }
            let start = self.written + len(self.output.len());
            if encode(&parcels, &mut self.output) {
                self.unanswered.push_back(Sent { start, at, parcels });
                commands += 1;
            }
        }
        self.commands.inc_by(commands);
    }

    /// Whether all that is to be sent is on its way.
    fn is_written(&self) -> bool {
        self.output.is_empty() && !self.unflushed
    }

    /// Takes note of a write, or of a flush, which is one of nothing. When it failed, nsqd has closed: the reason may still be on its way
    /// here, and the end comes from reading, or from the time-out.
    fn wrote(&mut self, wrote: io::Result<usize>) -> Result<(), Reason> {
        match wrote {
            Ok(count) => {
                self.written += len(count);
                self.unflushed = count > 0;
            }
            Err(error) if self.unanswered.is_empty() => return Err(Reason::Lost(error.into())),
            Err(_end) => self.writable = false,
        }
        Ok(())
    }

    fn hear(&mut self, read: io::Result<usize>, accepted: &impl Fn()) -> Result<(), Reason> {
        match read {
            Ok(0) => return Err(Reason::Lost(Fault::Closed)),
            Ok(_) => self.heard = Instant::now(),
            Err(error) => return Err(Reason::Lost(error.into())),
        }
        loop {
            let frame = Frame::decode(&mut self.input, FRAME_LEN_MAX);
            match frame.map_err(|bad| Reason::Lost(bad.into()))? {
                None => return Ok(()),
                Some(frame) if frame.is_heartbeat() => encode_nop(&mut self.output),
                Some(frame) if frame.kind == FrameType::Error => {
                    let text = String::from_utf8_lossy(&frame.body).into_owned();
                    return Err(self.refused(text));
                }
                Some(frame) => {
                    let ok = frame.kind == FrameType::Response && frame.body == OK_BODY;
                    let sent = if ok {
                        self.unanswered.pop_front()
                    } else {
                        None
                    };
                    let sent = sent.ok_or_else(|| Reason::Lost(unexpected(&frame)))?;
                    accepted();
                    self.pace.answered(self.heard - sent.at.max(self.answered));
                    self.answered = self.heard;
                    for parcel in sent.parcels {
                        parcel.answer(Verdict::Accepted);
                    }
                }
            }
        }
    }

    /// Gives the verdict on the command that an error frame answers, and on those behind it, which
    /// nsqd does not execute.
    fn refused(&mut self, text: String) -> Reason {
        let Some(sent) = self.unanswered.pop_front() else {
            return Reason::Lost(Fault::Unusable(text));
        };
        let meaning = meaning(&text);
        let verdict = match meaning {
            Meaning::Message | Meaning::Topic => Verdict::Refused(Refusal {
                text: text.clone(),
                whole_topic: meaning == Meaning::Topic,
                alone: sent.parcels.len() == 1,
            }),
            Meaning::Unusable => Verdict::NotSent,
            Meaning::Doubtful => Verdict::Unknown,
        };
        let refused = sent.parcels.into_iter();
        self.verdicts
            .extend(refused.map(|parcel| (parcel, verdict.clone())));
        let behind = self.unanswered.drain(..).flat_map(|sent| sent.parcels);
        self.verdicts
            .extend(behind.map(|parcel| (parcel, Verdict::NotSent)));
        match meaning {
            Meaning::Message | Meaning::Topic => Reason::Refused(text),
            Meaning::Unusable | Meaning::Doubtful => Reason::Lost(Fault::Unusable(text)),
        }
    }

    /// When there is something to check at the latest.
    fn expiry(&self) -> Instant {
        let silent = self.heard + self.silence_max;
        self.unanswered_until()
            .map_or(silent, |until| until.min(silent))
    }

    /// When the first command, which is the next to be answered, has waited too long. What waits behind
    /// others that are answered waits for a slow nsqd, not for a dead one: sending it again elsewhere
    /// would only double it.
    fn unanswered_until(&self) -> Option<Instant> {
        let first = self.unanswered.front()?;
        Some(first.at.max(self.answered) + self.forward_timeout)
    }

    fn check(&self) -> Result<(), Reason> {
        let now = Instant::now();
        if self.unanswered_until().is_some_and(|until| now >= until) {
            let first = self.unanswered.front();
            let messages =
                first.map_or(0, |first| first.parcels.iter().map(|p| p.batch.len()).sum());
            return Err(Reason::Lost(Fault::NoAnswer(messages)));
        }
        if now >= self.heard + self.silence_max {
            return Err(Reason::Lost(Fault::Silent));
        }
        Ok(())
    }

    /// Closes, and says what became of what was not answered: a command of which any byte was
    /// written may have arrived, the others have not.
    ///
    /// No CLS is sent: nsqd answers it with an error to a connection that does not consume.
    fn end(mut self, reason: Reason) -> Ended {
        let mut verdicts = self.verdicts;
        for sent in self.unanswered {
            let verdict = if sent.start < self.written {
                Verdict::Unknown
            } else {
                Verdict::NotSent
            };
            let parcels = sent.parcels.into_iter();
            verdicts.extend(parcels.map(|parcel| (parcel, verdict.clone())));
        }
        let waiting = self.queue.drain();
        verdicts.extend(waiting.map(|parcel| (parcel, Verdict::NotSent)));
        Ended { reason, verdicts }
    }
}

/// Appends the PUB or MPUB of `parcels`, which share a topic. `false` if there is nothing to send.
fn encode(parcels: &[Parcel], output: &mut BytesMut) -> bool {
    let Some(Parcel { batch, .. }) = parcels.first() else {
        return false;
    };
    match (parcels, batch.bodies.as_slice()) {
        ([_], [body]) => encode_pub(&batch.topic, body, output),
        ([_], bodies) => encode_mpub(&batch.topic, bodies, output),
        _ => {
            let bodies = parcels.iter().flat_map(|parcel| &parcel.batch.bodies);
            let bodies: Vec<&[u8]> = bodies.map(AsRef::as_ref).collect();
            encode_mpub(&batch.topic, &bodies, output);
        }
    }
    true
}

/// Writes something of `output`; when nothing is left of it, flushes, which TLS and compressions need.
/// Cancel safe.
async fn push(writer: &mut Outgoing, output: &mut BytesMut) -> io::Result<usize> {
    if output.is_empty() {
        writer.flush().await.map(|()| 0)
    } else {
        writer.write_buf(output).await
    }
}

/// A length in memory as a length of the stream.
fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a usize has at most 64 bits")
}

/// A frame that nobody asked for.
fn unexpected(frame: &Frame) -> Fault {
    Fault::Unexpected(String::from_utf8_lossy(&frame.body).into_owned())
}
