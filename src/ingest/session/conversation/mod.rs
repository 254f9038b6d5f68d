//! What is said on one connection between magic and end: reads, decodes, asks, answers, beats. Cut
//! into reading and writing halves it is generic, so that an upgraded transport can take their place.

mod admission;
mod answers;

use std::net::IpAddr;

use bytes::{Buf as _, BytesMut};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use admission::{Admission, Permit};

use super::Desk;
use super::clock::Clock;
use super::flight::{Flight, Outcome, cost, messages};
use crate::ingest::TlsRequired;
use crate::ingest::budget::Share;
use crate::ingest::clients::ClientStats;
use crate::ingest::metrics::Reason;
use crate::ingest::reply::{self, Asked};
use crate::message::{Delay, Due, Message, TopicName};
use crate::nsq::command::Command;
use crate::nsq::decoder::{Decoder, Limits, Stop};
use crate::nsq::error_code::Refusal;
use crate::nsq::frame;
use crate::nsq::identify::{Identify, Negotiated, Upgrades};
use crate::store::ErrorKind;
use crate::transport::Compression;
use crate::transport::tls::Peer;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The client has closed, or is gone, or was idle: there is nobody to wait for.
    Closed,
    /// We end it, and the client may be sending still.
    Told,
}

/// Why nothing more is read or written for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// It is over.
    Ended(End),
    /// All has been sent; the conversation goes on when the connection is upgraded.
    Upgrade(Upgrades),
}

/// What becomes of further bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// They are read.
    Open,
    /// The client sends no more; what has been read is still decoded.
    Ended,
    /// We are stopping: no more are read; what has been read is still decoded.
    Draining,
    /// Nothing is decoded any more.
    Closed,
}

/// What the client has said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Not one whole command.
    Nothing,
    /// Commands, but no IDENTIFY.
    Something,
    /// An IDENTIFY.
    WhoItIs,
}

/// One connection's state.
#[derive(Debug)]
pub(super) struct Conversation {
    number: u64,
    desk: Desk,
    accepted: Counter,
    decoder: Decoder,
    flight: Flight,
    /// Memory for what is read and not answered.
    share: Share,
    negotiated: Negotiated,
    input: Input,
    end: End,
    /// Read and not decoded.
    buffer: BytesMut,
    read_len: usize,
    /// Encoded and not written.
    out: BytesMut,
    /// Decoded, and waiting for what must be answered before it may be asked.
    held: Option<Command>,
    /// Nobody reads what we write; what was read is still carried out.
    deaf: bool,
    said: Said,
    clock: Clock,
    admission: Admission,
    beats_without_progress: u32,
    /// Written, and perhaps not sent.
    unflushed: bool,
    /// What the connection is to go on in, once the answer to IDENTIFY is sent.
    upgrades: Option<Upgrades>,
    published: Vec<(TopicName, u64)>,
}

/// Room for one read: it grows while reads fill it, and is given back by an idle connection.
const READ_LEN_MIN: usize = 4 * 1024;
const READ_LEN_MAX: usize = 64 * 1024;
/// With so many bytes to write, nothing more is answered and so, soon, nothing more is read.
const OUT_LEN_MAX: usize = 256 * 1024;
/// A client that takes nothing for so many heartbeats is gone.
const BEATS_WITHOUT_PROGRESS_MAX: u32 = 2;
/// Most bytes that are kept of a client's name, host and agent each.
const SELF_DESCRIPTION_LEN_MAX: usize = 1024;

impl Conversation {
    pub(super) fn new(number: u64, desk: Desk, remote_ip: IpAddr) -> Self {
        let config = &desk.intake.config;
        let limits = Limits {
            max_msg_size: config.max_msg_size,
            max_body_size: config.max_body_size,
            max_delay: config.max_delay,
        };
        let mut decoder = Decoder::new(limits);
        decoder.set_tls_missing(config.transports.tls_required != TlsRequired::Nobody);
        let admission = Admission::new(config.access.clone(), remote_ip);
        decoder.set_announcing(admission.is_required());
        let interval = config.heartbeat_interval;
        let accepted = desk.metrics.accepted.get_or_create(&Desk::label()).clone();
        Self {
            number,
            accepted,
            decoder,
            flight: Flight::new(desk.intake.clone()),
            share: desk.intake.budget.share(),
            negotiated: Negotiated::new(interval, config.max_heartbeat_interval),
            input: Input::Open,
            end: End::Told,
            buffer: BytesMut::new(),
            read_len: READ_LEN_MIN,
            out: BytesMut::new(),
            held: None,
            deaf: false,
            said: Said::Nothing,
            clock: Clock::new(interval),
            admission,
            beats_without_progress: 0,
            unflushed: false,
            upgrades: None,
            published: Vec::new(),
            desk,
        }
    }

    /// Until the last frame has been sent, or the last before an upgrade. `drain` ends it as soon as what
    /// was read is answered.
    pub(super) async fn run(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
        drain: &CancellationToken,
    ) -> Pause {
        let drained = drain.cancelled();
        tokio::pin!(drained);
        let timer = sleep_until(self.clock.next_deadline());
        tokio::pin!(timer);
        loop {
            self.take_commands();
            if let Some(pause) = self.pause() {
                return pause;
            }
            if let Some(deadline) = self.clock.moved() {
                timer.as_mut().reset(deadline);
            }
            let reads = self.input == Input::Open && self.has_room();
            if reads {
                self.make_read_room();
            }
            let answers = !self.flight.is_empty() && self.out.len() < OUT_LEN_MAX;
            // Each branch may be dropped at its await. The clock goes first, so that a client that
            // never pauses still gets its heartbeats, and reading last, so that what frees memory
            // goes before what takes it.
            tokio::select! {
                biased;
                () = timer.as_mut() => self.tick(Instant::now()),
                () = &mut drained, if self.input == Input::Open => self.input = Input::Draining,
                answer = self.flight.next(), if answers => self.take_answers(answer),
                sent = send(writer, &self.out), if !self.out.is_empty() || self.unflushed => {
                    self.has_sent(sent);
                }
                read = reader.read_buf(&mut self.buffer), if reads => match read {
                    Ok(1..) => self.adapt_read_len(),
                    Ok(0) => self.input = Input::Ended,
                    Err(error) => {
                        debug!(%error, "cannot read");
                        self.input = Input::Ended;
                    }
                },
            }
        }
    }

    fn has_sent(&mut self, sent: std::io::Result<Sent>) {
        match sent {
            Ok(Sent::Written(len @ 1..)) => {
                self.out.advance(len);
                self.unflushed = true;
                self.beats_without_progress = 0;
            }
            Ok(Sent::Written(0)) => self.peer_is_gone(),
            Ok(Sent::All) => self.unflushed = false,
            Err(error) => {
                debug!(%error, "cannot write");
                self.peer_is_gone();
            }
        }
    }

    /// Whether all is sent and there is nothing more to do here.
    fn pause(&mut self) -> Option<Pause> {
        if !self.flight.is_empty() || !self.out.is_empty() || self.unflushed {
            return None;
        }
        match (self.input, self.upgrades) {
            (Input::Closed, _) => Some(Pause::Ended(self.end)),
            (Input::Draining, Some(_)) => Some(Pause::Ended(End::Told)),
            (Input::Open | Input::Ended, Some(_)) => self.upgrades.take().map(Pause::Upgrade),
            (Input::Open | Input::Ended | Input::Draining, None) => None,
        }
    }

    /// The connection has been upgraded; the client waits for `OK`. What it sent before is lost, as in
    /// nsqd.
    pub(super) fn go_on(&mut self, compression: Option<Compression>) {
        self.buffer.clear();
        self.out.extend_from_slice(frame::OK);
        self.desk.clients.update(self.number, |stats| {
            stats.compression = compression.or(stats.compression);
        });
        self.restart_read_deadline();
        self.clock.move_timer();
    }

    /// The connection is in TLS from here on.
    pub(super) fn is_in_tls(&mut self, peer: Peer) {
        self.decoder.set_tls_missing(false);
        self.admission.set_tls(peer.common_name.clone());
        let shown = |stats: &mut ClientStats| stats.tls = Some(peer);
        self.desk.clients.update(self.number, shown);
    }

    /// Whether another command may be asked.
    fn has_room(&self) -> bool {
        self.held.is_none()
            && self.upgrades.is_none()
            && self.flight.admits()
            && self.out.len() < OUT_LEN_MAX
    }

    /// Bodies are slices of the buffer, so that room made is often memory allocated: not for little.
    fn make_read_room(&mut self) {
        if self.buffer.capacity() - self.buffer.len() < self.read_len / 4 {
            self.buffer.reserve(self.read_len);
        }
    }

    /// A read that fills the room makes the next room larger.
    fn adapt_read_len(&mut self) {
        if self.buffer.len() == self.buffer.capacity() {
            self.read_len = (self.read_len * 2).min(READ_LEN_MAX);
        }
    }

    /// Decodes and starts all that has arrived and may start.
    fn take_commands(&mut self) {
        let mut any = false;
        while self.input != Input::Closed && self.upgrades.is_none() {
            let command = match self.held.take() {
                Some(command) => command,
                None if !self.has_room() => break,
                None => match self.decoder.decode(&mut self.buffer) {
                    Ok(Some(command)) => {
                        if let Some((asked, messages, bytes)) = cost(&command)
                            && !self.charge(bytes)
                        {
                            self.refuse_overloaded(asked, messages);
                            break;
                        }
                        command
                    }
                    Ok(None) => {
                        self.check_charge();
                        self.out_of_bytes();
                        break;
                    }
                    Err(stop) => {
                        self.stop(stop);
                        break;
                    }
                },
            };
            any = true;
            let permit = if self.may_start(&command) {
                self.permit(&command)
            } else {
                Permit::Wait
            };
            match permit {
                Permit::Yes => {}
                Permit::Wait => {
                    self.held = Some(command);
                    break;
                }
                Permit::No(refusal) => {
                    self.refuse(refusal);
                    break;
                }
            }
            if self.said == Said::Nothing {
                self.said = Said::Something;
            }
            self.start(command);
        }
        self.flight.submit();
        if any {
            self.restart_read_deadline();
        }
    }

    /// Holds memory for what is in flight, what was read, and so much more. `false`: there is none.
    fn charge(&mut self, more: usize) -> bool {
        let bytes = self.flight.bytes() + self.buffer.len() + more;
        self.share.resize(bytes).is_ok()
    }

    /// Half a body counts too: many clients that send one slowly take as much as a few that are fast.
    fn check_charge(&mut self) {
        if self.charge(0) {
            return;
        }
        match self.decoder.reads_body_of().map(Asked::of_name) {
            Some(Some(asked)) => self.refuse_overloaded(asked, 1),
            Some(None) => {
                if let Some(refusal) = self.decoder.interrupted() {
                    self.refuse(refusal);
                }
            }
            // A line is short.
            None => {}
        }
    }

    fn refuse_overloaded(&mut self, asked: Asked, messages: usize) {
        let kind = ErrorKind::Overloaded;
        self.flight.respond(Outcome::NotAccepted {
            kind,
            messages,
            refusal: reply::refusal(asked, kind),
        });
        self.close_input();
    }

    fn may_start(&self, command: &Command) -> bool {
        match command {
            Command::Cancel(id) => self.flight.admits_cancel(id),
            Command::Dpub { id: Some(_), .. } => self.flight.admits_id(),
            Command::Dpub { id: None, .. }
            | Command::Pub { .. }
            | Command::Mpub { .. }
            | Command::Mdpub { .. }
            | Command::Ahead { .. }
            | Command::Identify(_)
            | Command::Auth(_)
            | Command::Nop => true,
        }
    }

    fn out_of_bytes(&mut self) {
        match self.input {
            Input::Open | Input::Closed => {}
            Input::Ended => {
                self.input = Input::Closed;
                self.end = End::Closed;
                if let Some(refusal) = self.decoder.interrupted() {
                    self.refuse(refusal);
                }
            }
            // Nothing is said of half a command: the client is to see a close, not an error.
            Input::Draining => self.input = Input::Closed,
        }
    }

    fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Refused(refusal) => self.refuse(refusal),
            Stop::LineTooLong => {
                self.count_refused(Reason::TooBig, 1);
                self.close_input();
            }
        }
    }

    /// Ends the connection with an error, after the answers to what was asked before.
    fn refuse(&mut self, refusal: Refusal) {
        self.flight.respond(Outcome::Refused(refusal));
        self.close_input();
    }

    fn close_input(&mut self) {
        self.input = Input::Closed;
        self.held = None;
        self.buffer = BytesMut::new();
    }

    fn start(&mut self, command: Command) {
        let now = Due::After(Delay(0));
        match command {
            Command::Nop | Command::Ahead { .. } => {}
            Command::Identify(json) => self.identify(&json),
            Command::Auth(secret) => self.auth(&secret),
            Command::Pub { topic, body } => {
                self.flight.publish_one(
                    Asked::Pub,
                    Message {
                        topic,
                        body,
                        due: now,
                        id: None,
                    },
                );
            }
            Command::Dpub {
                topic,
                delay,
                id,
                body,
            } => {
                let with_id = id.is_some();
                let message = Message {
                    topic,
                    body,
                    due: Due::After(delay),
                    id,
                };
                if with_id {
                    self.flight.publish_many(Asked::Dpub, vec![message]);
                } else {
                    self.flight.publish_one(Asked::Dpub, message);
                }
            }
            Command::Mpub { topic, bodies } => {
                let messages = messages(&topic, now, &bodies);
                self.flight.publish_many(Asked::Mpub, messages);
            }
            Command::Mdpub {
                topic,
                delay,
                bodies,
            } => {
                let messages = messages(&topic, Due::After(delay), &bodies);
                self.flight.publish_many(Asked::Mdpub, messages);
            }
            Command::Cancel(id) => self.flight.cancel(&id, self.admission.grants()),
        }
    }

    fn identify(&mut self, json: &[u8]) {
        let asked = match Identify::decode(json) {
            Ok(asked) => asked,
            Err(refusal) => return self.refuse(refusal),
        };
        if let Err(refusal) = self.negotiated.apply(&asked) {
            return self.refuse(refusal);
        }
        let offers = self
            .desk
            .intake
            .config
            .transports
            .offers(self.admission.is_required());
        let (response, upgrades) = match self.negotiated.response(&asked, offers) {
            Ok(answer) => answer,
            Err(refusal) => return self.refuse(refusal),
        };
        self.flight.respond(Outcome::Response(response));
        self.upgrades = Some(upgrades).filter(|upgrades| *upgrades != Upgrades::default());
        if self.said != Said::WhoItIs {
            self.said = Said::WhoItIs;
            self.clock.set_heartbeat(self.negotiated.heartbeat_interval);
        }
        self.clock.move_timer();
        self.desk.clients.update(self.number, |stats| {
            stats.client_id = shorten(asked.client_id);
            stats.hostname = shorten(asked.hostname);
            stats.user_agent = shorten(asked.user_agent);
            stats.sample_rate = self.negotiated.sample_rate;
        });
    }

    fn peer_is_gone(&mut self) {
        self.deaf = true;
        self.unflushed = false;
        self.out.clear();
        self.end = End::Closed;
        self.close_input();
    }

    fn restart_read_deadline(&mut self) {
        let interval = self.negotiated.heartbeat_interval;
        self.clock.restart_read(interval);
    }

    /// Silence is looked at first: an idle client is closed without a heartbeat before it.
    fn tick(&mut self, now: Instant) {
        self.clock.move_timer();
        if self.clock.read_is_over(now) {
            let waits_for_us = !self.flight.is_empty() || !self.out.is_empty() || self.unflushed;
            if self.input != Input::Open || waits_for_us {
                self.restart_read_deadline();
            } else if let Some(refusal) = self.decoder.interrupted() {
                return self.refuse(refusal);
            } else {
                self.end = End::Closed;
                return self.close_input();
            }
        }
        if self.clock.beat_is_due(now) {
            self.beat();
        }
    }

    fn beat(&mut self) {
        if self.out.is_empty() && !self.unflushed {
            self.beats_without_progress = 0;
        } else {
            self.beats_without_progress += 1;
            if self.beats_without_progress >= BEATS_WITHOUT_PROGRESS_MAX {
                debug!("the client takes nothing");
                self.flight.clear();
                return self.peer_is_gone();
            }
        }
        // A client that began with IDENTIFY takes the first frame for its answer.
        let identifies =
            self.said == Said::Nothing && self.decoder.identify_has_begun(&self.buffer);
        let begins = self.decoder.auth_has_begun(&self.buffer);
        let identifies = identifies || self.admission.holds_beat(begins);
        let ending = self.input == Input::Closed && self.flight.is_empty();
        if !identifies && !ending && !self.deaf && self.out.len() < OUT_LEN_MAX {
            self.out.extend_from_slice(frame::HEARTBEAT);
        }
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.read_len = READ_LEN_MIN;
        }
        if self.out.is_empty() {
            self.out = BytesMut::new();
        }
    }
}

/// What one step of sending did.
enum Sent {
    /// So many bytes were taken.
    Written(usize),
    /// All that was taken is on its way.
    All,
}

/// Writes, or when there is nothing to write, flushes: what is compressed or in TLS waits for that. May
/// be dropped at its await.
async fn send(writer: &mut (impl AsyncWrite + Unpin), out: &[u8]) -> std::io::Result<Sent> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(Sent::All);
    }
    writer.write(out).await.map(Sent::Written)
}

/// What a client says of itself is kept as long as it stays, and shown: not by the megabyte.
fn shorten(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(SELF_DESCRIPTION_LEN_MAX));
    text.shrink_to_fit();
    text
}
