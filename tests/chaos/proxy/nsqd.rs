//! The proxy before an nsqd: reads the publishes that pass and their answers, so that the record says what was
//! handed over and what nsqd took; refuses in nsqd's name; shows planted defects.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{Ended, Plant, Shared};
use crate::event::{self, Event, Number};

/// A planted defect shows at every so many publishes.
const PLANT_EACH: u64 = 7;
/// Longest command that is believed.
const COMMAND_MAX: usize = 16 * 1024 * 1024;

/// One command as it passed.
#[derive(Debug, Default)]
struct Command {
    bytes: Vec<u8>,
    /// Where its messages are in `bytes`; empty if it is no publish.
    bodies: Vec<std::ops::Range<usize>>,
    topic: String,
    /// nsqd answers it.
    answered: bool,
}

/// What a connection knows.
struct Line<'a> {
    shared: &'a Shared,
    nsqd: usize,
    /// The messages of what was sent and is not answered.
    unanswered: Mutex<VecDeque<Vec<Number>>>,
    publishes: AtomicU64,
    /// Frames that the proxy itself says to the instance.
    own: mpsc::UnboundedSender<Vec<u8>>,
}

/// Carries one connection.
pub(super) async fn pump(
    shared: &Shared,
    nsqd: usize,
    client: &mut TcpStream,
    server: &mut TcpStream,
) -> Ended {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (own, own_frames) = mpsc::unbounded_channel();
    let line = Line {
        shared,
        nsqd,
        unanswered: Mutex::default(),
        publishes: AtomicU64::new(0),
        own,
    };
    tokio::select! {
        ended = line.requests(BufReader::new(from_client), to_server) => ended,
        ended = line.answers(BufReader::new(from_server), to_client, own_frames) => ended,
    }
}

impl Line<'_> {
    async fn requests(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Ended {
        let mut magic = [0; 4];
        from.read_exact(&mut magic).await?;
        to.write_all(&magic).await?;
        loop {
            let mut command = read_command(&mut from).await?;
            let ids = self.note(&command);
            let publish = !command.bodies.is_empty();
            if publish && let Some(error) = self.refusal(&command.topic) {
                self.shared.hits.fetch_add(1, Ordering::SeqCst);
                drop(self.own.send(frame(1, error.as_bytes())));
                // nsqd closes after an error, and executes nothing that came behind.
                return std::future::pending().await;
            }
            let plant = publish.then(|| self.plant()).flatten();
            if plant == Some(Plant::SettleBeforeOk) {
                drop(self.own.send(frame(0, b"OK")));
                continue;
            }
            if plant == Some(Plant::AlterBody)
                && let Some(last) = command
                    .bodies
                    .first()
                    .and_then(|body| command.bytes.get_mut(body.end - 1))
            {
                *last = last.wrapping_add(1);
            }
            if command.answered {
                self.unanswered.lock().unwrap().push_back(ids.clone());
            }
            self.shared.gate(|rules| rules.hold_requests).await;
            to.write_all(&command.bytes).await?;
            if plant == Some(Plant::SendTwice) {
                // Its answer would be one too many for the instance: this nsqd connection takes it alone.
                let mut again = TcpStream::connect(self.shared.upstream).await?;
                again.write_all(b"  V2").await?;
                again.write_all(&command.bytes).await?;
                again.read_exact(&mut [0; 10]).await?;
            }
        }
    }

    /// Writes down that these messages are on their way.
    fn note(&self, command: &Command) -> Vec<Number> {
        let t = self.shared.recorder.now();
        let (mut ids, mut events) = (Vec::new(), Vec::new());
        for body in &command.bodies {
            let known = command.bytes.get(body.clone()).and_then(event::identify);
            if let Some((id, intact)) = known {
                ids.push(id);
                events.push(Event::Offered {
                    id,
                    t,
                    nsqd: self.nsqd,
                    instance: self.shared.instance,
                    intact,
                });
            } else {
                let nsqd = self.nsqd;
                events.push(Event::Alien { t, nsqd });
            }
        }
        if !events.is_empty() {
            self.shared.recorder.add_all(&events);
        }
        ids
    }

    fn refusal(&self, topic: &str) -> Option<&'static str> {
        let rules = self.shared.rules.borrow();
        let meant = rules.error_topic.is_none_or(|t| t == topic);
        rules.error.filter(|_| meant)
    }

    fn plant(&self) -> Option<Plant> {
        let plant = self.shared.rules.borrow().plant?;
        let number = self.publishes.fetch_add(1, Ordering::SeqCst);
        (number % PLANT_EACH == 3).then_some(plant)
    }

    async fn answers(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut own: mpsc::UnboundedReceiver<Vec<u8>>,
    ) -> Ended {
        let mut read = Vec::new();
        loop {
            let frame = tokio::select! {
                Some(frame) = own.recv() => {
                    to.write_all(&frame).await?;
                    if frame.get(7) == Some(&1) {
                        return Ok(());
                    }
                    continue;
                }
                frame = next_frame(&mut from, &mut read) => frame?,
            };
            if self.answer(&frame) && self.shared.swallows() {
                return Ok(());
            }
            self.shared.gate(|rules| rules.hold_answers).await;
            to.write_all(&frame).await?;
        }
    }

    /// Writes down what nsqd has taken; says whether the frame answers a publish.
    fn answer(&self, frame: &[u8]) -> bool {
        let payload = frame.get(8..).unwrap_or_default();
        if payload == b"_heartbeat_" {
            return false;
        }
        let ids = self.unanswered.lock().unwrap().pop_front();
        let ids = ids.unwrap_or_default();
        if frame.get(7) == Some(&1) {
            self.shared.hits.fetch_add(1, Ordering::SeqCst);
        }
        if payload == b"OK" {
            let t = self.shared.recorder.now();
            let nsqd = self.nsqd;
            let taken = ids.iter().map(|id| Event::Taken { id: *id, t, nsqd });
            let taken: Vec<Event> = taken.collect();
            if !taken.is_empty() {
                self.shared.recorder.add_all(&taken);
            }
        }
        !ids.is_empty()
    }
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len() + 4).unwrap();
    let mut frame = size.to_be_bytes().to_vec();
    frame.extend([0, 0, 0, kind]);
    frame.extend(payload);
    frame
}

/// Reads one frame. Cancel safe: what is read of it stays in `read`.
async fn next_frame(
    from: &mut (impl AsyncRead + Unpin),
    read: &mut Vec<u8>,
) -> std::io::Result<Vec<u8>> {
    loop {
        let size = read
            .first_chunk()
            .map(|size| u32::from_be_bytes(*size) as usize + 4);
        if let Some(size) = size
            && read.len() >= size
        {
            let rest = read.split_off(size);
            return Ok(std::mem::replace(read, rest));
        }
        if from.read_buf(read).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn read_command(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Command> {
    let mut command = Command::default();
    loop {
        let byte = from.read_u8().await?;
        command.bytes.push(byte);
        if byte == b'\n' {
            break;
        }
        if command.bytes.len() > COMMAND_MAX {
            return Err(Error::other("a command without an end"));
        }
    }
    let line = String::from_utf8_lossy(&command.bytes).into_owned();
    let mut words = line.split_whitespace();
    let verb = words.next().unwrap_or_default();
    command.topic = words.next().unwrap_or_default().to_owned();
    command.answered = verb != "NOP";
    if matches!(verb, "IDENTIFY" | "PUB" | "MPUB") {
        let start = command.bytes.len() + 4;
        let size = from.read_u32().await? as usize;
        command
            .bytes
            .extend(u32::try_from(size).unwrap().to_be_bytes());
        command.bytes.resize(start + size.min(COMMAND_MAX), 0);
        from.read_exact(&mut command.bytes[start..]).await?;
        match verb {
            "PUB" => command.bodies.push(start..start + size),
            "MPUB" => command.bodies = bodies_of(&command.bytes, start),
            _ => (),
        }
    }
    Ok(command)
}

/// Where the bodies of an MPUB are, whose count is at `start`.
fn bodies_of(bytes: &[u8], start: usize) -> Vec<std::ops::Range<usize>> {
    let mut at = start + 4;
    let mut bodies = Vec::new();
    while let Some(size) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let size = u32::from_be_bytes(*size) as usize;
        bodies.push(at + 4..at + 4 + size);
        at += 4 + size;
    }
    bodies
}
