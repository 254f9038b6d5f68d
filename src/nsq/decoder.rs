//! Reads commands as they arrive, and refuses what nsqd refuses, when nsqd does: each check is made
//! as soon as its bytes are there, in nsqd's order, so that a client is told of a bad topic before it
//! has sent the body. Pure: the caller reads the socket and owns the buffer.

use bytes::{Buf as _, Bytes, BytesMut};

use super::command::{Bodies, Command, MPUB_OVERHEAD, MPUB_OVERHEAD_PER_MESSAGE};
use super::error_code::{ErrorCode, Refusal};
use super::quote::quote;
use crate::message::{ClientId, Delay, TopicName};

/// What the decoder holds a client to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest message, in bytes.
    pub max_msg_size: usize,
    /// Longest body of IDENTIFY, AUTH and MPUB, in bytes.
    pub max_body_size: usize,
    /// Longest delay.
    pub max_delay: Delay,
}

/// Why there is no further command on this connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// To be told to the client.
    Refused(Refusal),
    /// A line that does not fit nsqd's read buffer: closed without a word.
    LineTooLong,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The reader of one connection's commands.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    /// A producer mostly stays with one topic: its name is checked and allocated once.
    last_topic: Option<TopicName>,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A line; so many bytes have been searched for its end.
    Line { searched: usize },
    /// The size (`None`), then the body, of a command with one body.
    Single { head: Single, size: Option<usize> },
    /// The parts of an MPUB.
    Many { head: Many, next: Part },
}

/// A command with one body, as its line gave it.
#[derive(Debug, Clone)]
enum Single {
    Identify,
    Auth,
    Pub {
        topic: TopicName,
    },
    Dpub {
        topic: TopicName,
        delay: Delay,
        id: Option<ClientId>,
    },
}

/// MPUB, or with a delay MDPUB, as its line gave it.
#[derive(Debug, Clone)]
struct Many {
    topic: TopicName,
    delay: Option<Delay>,
}

/// What of an MPUB comes next.
#[derive(Debug, Clone, Copy)]
enum Part {
    BodySize,
    Count,
    /// Message number `index` of `count`. The messages before it are the first `seen` bytes of the
    /// buffer, where they stay until all have come. `size` is `None` until it has come.
    Message {
        count: usize,
        index: usize,
        seen: usize,
        size: Option<usize>,
    },
}

/// What a line asks.
enum Line {
    Whole(Command),
    Single(Single),
    Many(Many),
}

/// nsqd's read buffer, which a line with its end has to fit.
pub const LINE_LEN_MAX: usize = 16 * 1024;

const AT_LINE: State = State::Line { searched: 0 };

impl Decoder {
    /// A reader that expects a line; the magic has been taken off.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: AT_LINE,
            last_topic: None,
        }
    }

    /// Takes the next command off the front of `buffer`; `None`: more bytes are needed. After an
    /// error there is no next command.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Command>, Stop> {
        loop {
            match &mut self.state {
                State::Line { searched } => {
                    let fresh = buffer.get(*searched..).unwrap_or_default();
                    let Some(end) = fresh.iter().position(|byte| *byte == b'\n') else {
                        *searched = buffer.len();
                        return match *searched < LINE_LEN_MAX {
                            true => Ok(None),
                            false => Err(Stop::LineTooLong),
                        };
                    };
                    let end = *searched + end;
                    if end >= LINE_LEN_MAX {
                        return Err(Stop::LineTooLong);
                    }
                    let line = buffer.get(..end).unwrap_or_default();
                    let line = line.strip_suffix(b"\r").unwrap_or(line);
                    let asked = self.read_line(line)?;
                    buffer.advance(end + 1);
                    self.state = match asked {
                        Line::Whole(command) => {
                            self.state = AT_LINE;
                            return Ok(Some(command));
                        }
                        Line::Single(head) => State::Single { head, size: None },
                        Line::Many(head) => State::Many {
                            head,
                            next: Part::BodySize,
                        },
                    };
                }
                State::Single { head, size } => {
                    let Some(command) = head.read(size, &self.limits, buffer)? else {
                        return Ok(None);
                    };
                    self.state = AT_LINE;
                    return Ok(Some(command));
                }
                State::Many { head, next } => {
                    let Some(command) = head.read(next, &self.limits, buffer)? else {
                        return Ok(None);
                    };
                    self.state = AT_LINE;
                    return Ok(Some(command));
                }
            }
        }
    }

    /// What nsqd says when no more bytes come, because the client has closed or was too slow. `None`:
    /// nothing, it waited for a line.
    pub fn interrupted(&self) -> Option<Refusal> {
        match &self.state {
            State::Line { .. } => None,
            State::Single { head, size } => {
                let (code, what) = head.body_is();
                let size = if size.is_some() { "" } else { " size" };
                let text = format!("{} failed to read {what}{size}", head.name());
                Some(Refusal::new(code, text))
            }
            State::Many { head, next } => {
                let (code, what) = match next {
                    Part::BodySize => (ErrorCode::BadBody, "body size".to_owned()),
                    Part::Count => (ErrorCode::BadBody, "message count".to_owned()),
                    Part::Message { index, size, .. } => match size {
                        None => (ErrorCode::BadMessage, format!("message({index}) body size")),
                        Some(_) => (ErrorCode::BadMessage, "message body".to_owned()),
                    },
                };
                let text = format!("{} failed to read {what}", head.name());
                Some(Refusal::new(code, text))
            }
        }
    }

    /// Whether the bytes so far, `buffer` being what [`Self::decode`] has left, are the beginning of
    /// an IDENTIFY.
    pub fn identify_has_begun(&self, buffer: &[u8]) -> bool {
        match &self.state {
            State::Line { .. } => !buffer.is_empty() && b"IDENTIFY".starts_with(buffer),
            State::Single { head, .. } => matches!(head, Single::Identify),
            State::Many { .. } => false,
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<Line, Refusal> {
        let invalid = |text: &[u8]| Refusal::new(ErrorCode::Invalid, text);
        let mut params = line.split(|byte| *byte == b' ');
        let name = params.next().unwrap_or_default();
        match name {
            b"PUB" => {
                let topic = params.next().ok_or_else(|| insufficient("PUB"))?;
                let topic = self.topic("PUB", topic)?;
                Ok(Line::Single(Single::Pub { topic }))
            }
            b"DPUB" => {
                let (Some(topic), Some(ms)) = (params.next(), params.next()) else {
                    return Err(insufficient("DPUB"));
                };
                let topic = self.topic("DPUB", topic)?;
                let delay = self.delay("DPUB", ms)?;
                let id = match params.next() {
                    // nsqd ignores what follows the delay, an empty parameter included.
                    None | Some(b"") => None,
                    Some(id) => Some(ClientId::parse(id).map_err(|bad| {
                        let text = format!("DPUB id {} is not valid: {bad}", quote(id));
                        Refusal::new(ErrorCode::Invalid, text)
                    })?),
                };
                Ok(Line::Single(Single::Dpub { topic, delay, id }))
            }
            b"MPUB" => {
                let topic = params.next().ok_or_else(|| insufficient("MPUB"))?;
                // nsqd writes the code twice here.
                let topic = self.topic("E_BAD_TOPIC MPUB", topic)?;
                Ok(Line::Many(Many { topic, delay: None }))
            }
            b"MDPUB" => {
                let (Some(topic), Some(ms)) = (params.next(), params.next()) else {
                    return Err(insufficient("MDPUB"));
                };
                let topic = self.topic("MDPUB", topic)?;
                let delay = Some(self.delay("MDPUB", ms)?);
                Ok(Line::Many(Many { topic, delay }))
            }
            b"CANCEL" => {
                let id = params.next().ok_or_else(|| insufficient("CANCEL"))?;
                Ok(Line::Whole(Command::Cancel(Bytes::copy_from_slice(id))))
            }
            b"NOP" => Ok(Line::Whole(Command::Nop)),
            b"IDENTIFY" => Ok(Line::Single(Single::Identify)),
            b"AUTH" => match params.next() {
                None => Ok(Line::Single(Single::Auth)),
                Some(_) => Err(invalid(b"AUTH invalid number of parameters")),
            },
            b"SUB" => Err(invalid(
                b"cannot SUB here: nsqdelayd only takes messages, consume from nsqd",
            )),
            // Whatever their parameters: nsqd looks first at whether the client has subscribed.
            b"CLS" | b"RDY" | b"FIN" | b"REQ" | b"TOUCH" => {
                Err(invalid(&[b"cannot ", name, b" in current state"].concat()))
            }
            _ => Err(invalid(&[b"invalid command ", name].concat())),
        }
    }

    fn topic(&mut self, prefix: &str, name: &[u8]) -> Result<TopicName, Refusal> {
        if let Some(last) = &self.last_topic
            && last.as_str().as_bytes() == name
        {
            return Ok(last.clone());
        }
        let topic = TopicName::parse(name).map_err(|_bad| {
            let text = format!("{prefix} topic name {} is not valid", quote(name));
            Refusal::new(ErrorCode::BadTopic, text)
        })?;
        self.last_topic = Some(topic.clone());
        Ok(topic)
    }

    /// Reads decimal digits, none being 0. What overflows, which nsqd lets wrap, is out of range.
    fn delay(&self, name: &str, digits: &[u8]) -> Result<Delay, Refusal> {
        if !digits.iter().all(u8::is_ascii_digit) {
            let mut text = format!("{name} could not parse timeout ").into_bytes();
            text.extend_from_slice(digits);
            return Err(Refusal::new(ErrorCode::Invalid, text));
        }
        let ms = digits.iter().try_fold(0_u64, |ms, digit| {
            ms.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        });
        let max = self.limits.max_delay;
        match ms {
            Some(ms) if ms <= max.0 => Ok(Delay(ms)),
            _ => {
                let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
                let number = String::from_utf8_lossy(digits.get(zeros..).unwrap_or_default());
                let text = format!("{name} timeout {number} out of range 0-{}", max.0);
                Err(Refusal::new(ErrorCode::Invalid, text))
            }
        }
    }
}

impl Single {
    fn name(&self) -> &'static str {
        match self {
            Self::Identify => "IDENTIFY",
            Self::Auth => "AUTH",
            Self::Pub { .. } => "PUB",
            Self::Dpub { .. } => "DPUB",
        }
    }

    /// The code for errors of its body, and what nsqd calls it.
    fn body_is(&self) -> (ErrorCode, &'static str) {
        match self {
            Self::Identify | Self::Auth => (ErrorCode::BadBody, "body"),
            Self::Pub { .. } | Self::Dpub { .. } => (ErrorCode::BadMessage, "message body"),
        }
    }

    fn check(&self, size: i32, limits: &Limits) -> Result<usize, Refusal> {
        let (code, what) = self.body_is();
        let name = self.name();
        let (too_big, max) = match self {
            Self::Identify | Self::Auth => ("body", limits.max_body_size),
            Self::Pub { .. } | Self::Dpub { .. } => ("message", limits.max_msg_size),
        };
        match usize::try_from(size) {
            Ok(len) if len > max => {
                let text = format!("{name} {too_big} too big {size} > {max}");
                Err(Refusal::too_big(code, text))
            }
            Ok(len) if len > 0 => Ok(len),
            _ => Err(Refusal::new(
                code,
                format!("{name} invalid {what} size {size}"),
            )),
        }
    }

    fn read(
        &self,
        size: &mut Option<usize>,
        limits: &Limits,
        buffer: &mut BytesMut,
    ) -> Result<Option<Command>, Refusal> {
        let len = match *size {
            Some(len) => len,
            None => {
                let Some(declared) = int_at(buffer, 0) else {
                    return Ok(None);
                };
                let len = self.check(declared, limits)?;
                buffer.advance(SIZE_LEN);
                *size = Some(len);
                len
            }
        };
        if buffer.len() < len {
            return Ok(None);
        }
        let body = buffer.split_to(len).freeze();
        Ok(Some(match self {
            Self::Identify => Command::Identify(body),
            Self::Auth => Command::Auth(body),
            Self::Pub { topic } => Command::Pub {
                topic: topic.clone(),
                body,
            },
            Self::Dpub { topic, delay, id } => Command::Dpub {
                topic: topic.clone(),
                delay: *delay,
                id: id.clone(),
                body,
            },
        }))
    }
}

impl Many {
    fn name(&self) -> &'static str {
        match self.delay {
            None => "MPUB",
            Some(_) => "MDPUB",
        }
    }

    fn read(
        &self,
        next: &mut Part,
        limits: &Limits,
        buffer: &mut BytesMut,
    ) -> Result<Option<Command>, Refusal> {
        loop {
            match *next {
                Part::BodySize => {
                    let Some(size) = int_at(buffer, 0) else {
                        return Ok(None);
                    };
                    self.check_body(size, limits)?;
                    buffer.advance(SIZE_LEN);
                    *next = Part::Count;
                }
                Part::Count => {
                    let Some(count) = int_at(buffer, 0) else {
                        return Ok(None);
                    };
                    let count = self.check_count(count, limits)?;
                    buffer.advance(SIZE_LEN);
                    *next = Part::Message {
                        count,
                        index: 0,
                        seen: 0,
                        size: None,
                    };
                }
                Part::Message {
                    count,
                    index,
                    seen,
                    size: None,
                } => {
                    if index == count {
                        let raw = buffer.split_to(seen).freeze();
                        return Ok(Some(self.command(Bodies::new(raw, count))));
                    }
                    let Some(size) = int_at(buffer, seen) else {
                        return Ok(None);
                    };
                    let size = Some(self.check_message(size, index, seen, limits)?);
                    let seen = seen + SIZE_LEN;
                    *next = Part::Message {
                        count,
                        index,
                        seen,
                        size,
                    };
                }
                Part::Message {
                    count,
                    index,
                    seen,
                    size: Some(size),
                } => {
                    if buffer.len() - seen < size {
                        return Ok(None);
                    }
                    *next = Part::Message {
                        count,
                        index: index + 1,
                        seen: seen + size,
                        size: None,
                    };
                }
            }
        }
    }

    fn command(&self, bodies: Bodies) -> Command {
        let topic = self.topic.clone();
        match self.delay {
            None => Command::Mpub { topic, bodies },
            Some(delay) => Command::Mdpub {
                topic,
                delay,
                bodies,
            },
        }
    }

    fn check_body(&self, size: i32, limits: &Limits) -> Result<(), Refusal> {
        let (name, max) = (self.name(), limits.max_body_size);
        match usize::try_from(size) {
            Ok(len) if len > max => Err(Refusal::too_big(
                ErrorCode::BadBody,
                format!("{name} body too big {size} > {max}"),
            )),
            Ok(len) if len > 0 => Ok(()),
            _ => Err(Refusal::new(
                ErrorCode::BadBody,
                format!("{name} invalid body size {size}"),
            )),
        }
    }

    fn check_count(&self, count: i32, limits: &Limits) -> Result<usize, Refusal> {
        let shortest_message = MPUB_OVERHEAD_PER_MESSAGE + 1;
        let max = limits.max_body_size.saturating_sub(MPUB_OVERHEAD) / shortest_message;
        match usize::try_from(count) {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            _ => Err(Refusal::new(
                ErrorCode::BadBody,
                format!("{} invalid message count {count}", self.name()),
            )),
        }
    }

    fn check_message(
        &self,
        size: i32,
        index: usize,
        seen: usize,
        limits: &Limits,
    ) -> Result<usize, Refusal> {
        let (name, max) = (self.name(), limits.max_msg_size);
        let len = match usize::try_from(size) {
            Ok(len) if len > max => {
                return Err(Refusal::too_big(
                    ErrorCode::BadMessage,
                    format!("{name} message too big {size} > {max}"),
                ));
            }
            Ok(len) if len > 0 => len,
            _ => {
                return Err(Refusal::new(
                    ErrorCode::BadMessage,
                    format!("{name} invalid message({index}) body size {size}"),
                ));
            }
        };
        // nsqd never holds the messages against the declared body size, and so reads on without an
        // end. We let the declaration be wrong, but not the body be longer than bodies may be.
        let total = MPUB_OVERHEAD + seen + MPUB_OVERHEAD_PER_MESSAGE + len;
        if total > limits.max_body_size {
            return Err(Refusal::too_big(
                ErrorCode::BadBody,
                format!("{name} body too big {total} > {}", limits.max_body_size),
            ));
        }
        Ok(len)
    }
}

/// Bytes of a size.
const SIZE_LEN: usize = 4;

/// The int32 at `at`, if it has come.
fn int_at(buffer: &[u8], at: usize) -> Option<i32> {
    let (bytes, _) = buffer.get(at..)?.split_first_chunk::<SIZE_LEN>()?;
    Some(i32::from_be_bytes(*bytes))
}

fn insufficient(name: &str) -> Refusal {
    let text = format!("{name} insufficient number of parameters");
    Refusal::new(ErrorCode::Invalid, text)
}
