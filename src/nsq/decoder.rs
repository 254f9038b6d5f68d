//! Reads commands as they arrive, and refuses what nsqd refuses, when nsqd does: each check is made
//! as soon as its bytes are there, in nsqd's order, so that a client is told of a bad topic before it
//! has sent the body. Pure: the caller reads the socket and owns the buffer.

use bytes::{Buf as _, Bytes, BytesMut};

use super::command::Command;
use super::delay;
use super::error_code::{ErrorCode, Refusal};
use super::mpub::{Many, Part, SIZE_LEN, int_at};
use super::quote::quote;
use crate::message::{ClientId, Delay, TopicName};

/// What the decoder holds a client to.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_field_names,
    reason = "they are called as their settings are"
)]
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
    /// Nothing but IDENTIFY is taken, as the connection is not in TLS yet.
    tls_missing: bool,
    /// The line of an MPUB is told before its body is read.
    announcing: bool,
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
            tls_missing: false,
            announcing: false,
        }
    }

    /// Whether [`Command::Ahead`] comes before each MPUB and MDPUB.
    pub fn set_announcing(&mut self, announcing: bool) {
        self.announcing = announcing;
    }

    /// Whether nothing but IDENTIFY is taken, until the connection is in TLS.
    pub fn set_tls_missing(&mut self, missing: bool) {
        self.tls_missing = missing;
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
                        return if *searched < LINE_LEN_MAX {
                            Ok(None)
                        } else {
                            Err(Stop::LineTooLong)
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
                        Line::Many(head) => {
                            let ahead = self.announcing.then(|| Command::Ahead {
                                name: head.name(),
                                topic: head.topic.clone(),
                            });
                            let next = Part::BodySize;
                            self.state = State::Many { head, next };
                            if ahead.is_some() {
                                return Ok(ahead);
                            }
                            continue;
                        }
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
            State::Many { head, next } => Some(head.interrupted(*next)),
        }
    }

    /// The command whose body is being read, if one is.
    pub fn reads_body_of(&self) -> Option<&'static str> {
        match &self.state {
            State::Line { .. } => None,
            State::Single { head, .. } => Some(head.name()),
            State::Many { head, .. } => Some(head.name()),
        }
    }

    /// Whether the bytes so far, `buffer` being what [`Self::decode`] has left, are the beginning of
    /// an IDENTIFY.
    pub fn identify_has_begun(&self, buffer: &[u8]) -> bool {
        self.has_begun(b"IDENTIFY", buffer, |head| matches!(head, Single::Identify))
    }

    /// The same of an AUTH.
    pub fn auth_has_begun(&self, buffer: &[u8]) -> bool {
        self.has_begun(b"AUTH", buffer, |head| matches!(head, Single::Auth))
    }

    fn has_begun(&self, name: &[u8], buffer: &[u8], is: fn(&Single) -> bool) -> bool {
        match &self.state {
            State::Line { .. } => {
                !buffer.is_empty() && (name.starts_with(buffer) || buffer.starts_with(name))
            }
            State::Single { head, .. } => is(head),
            State::Many { .. } => false,
        }
    }

    fn read_line(&mut self, line: &[u8]) -> Result<Line, Refusal> {
        let invalid = |text: &[u8]| Refusal::new(ErrorCode::Invalid, text);
        let mut params = line.split(|byte| *byte == b' ');
        let name = params.next().unwrap_or_default();
        if self.tls_missing && name != b"IDENTIFY" {
            let text = [b"cannot ", name, b" in current state (TLS required)"].concat();
            return Err(invalid(&text));
        }
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
                let delay = delay::parse("DPUB", ms, self.limits.max_delay)?;
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
                let delay = Some(delay::parse("MDPUB", ms, self.limits.max_delay)?);
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
        let len = if let Some(len) = *size {
            len
        } else {
            let Some(declared) = int_at(buffer, 0) else {
                return Ok(None);
            };
            let len = self.check(declared, limits)?;
            buffer.advance(SIZE_LEN);
            *size = Some(len);
            len
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

fn insufficient(name: &str) -> Refusal {
    let text = format!("{name} insufficient number of parameters");
    Refusal::new(ErrorCode::Invalid, text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::command::{
        encode_auth, encode_cancel, encode_dpub, encode_identify, encode_mdpub, encode_mpub,
        encode_nop, encode_pub,
    };
    use super::*;

    const LIMITS: Limits = Limits {
        max_msg_size: 100,
        max_body_size: 1000,
        max_delay: Delay(1000),
    };

    /// What a client may write, in the terms of the encoder.
    #[derive(Debug, Clone)]
    enum Said {
        Identify(Vec<u8>),
        Auth(Vec<u8>),
        Pub(Vec<u8>),
        Dpub(u64, bool, Vec<u8>),
        Mpub(Vec<Vec<u8>>),
        Mdpub(u64, Vec<Vec<u8>>),
        Cancel,
        Nop,
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 1..100)
    }

    fn said() -> impl Strategy<Value = Said> {
        let bodies = || proptest::collection::vec(body(), 1..8);
        prop_oneof![
            body().prop_map(Said::Identify),
            body().prop_map(Said::Auth),
            body().prop_map(Said::Pub),
            (0..=1000_u64, any::<bool>(), body()).prop_map(|(ms, id, b)| Said::Dpub(ms, id, b)),
            bodies().prop_map(Said::Mpub),
            (0..=1000_u64, bodies()).prop_map(|(ms, bodies)| Said::Mdpub(ms, bodies)),
            Just(Said::Cancel),
            Just(Said::Nop),
        ]
    }

    fn topic() -> TopicName {
        TopicName::parse(b"t#ephemeral").unwrap()
    }

    impl Said {
        fn encode(&self, wire: &mut BytesMut) {
            let id = ClientId::parse(b"order:1").unwrap();
            match self {
                Self::Identify(json) => encode_identify(json, wire),
                Self::Auth(secret) => encode_auth(secret, wire),
                Self::Pub(body) => encode_pub(&topic(), body, wire),
                Self::Dpub(ms, with_id, body) => {
                    let id = with_id.then_some(&id);
                    encode_dpub(&topic(), Delay(*ms), id, body, wire);
                }
                Self::Mpub(bodies) => encode_mpub(&topic(), bodies, wire),
                Self::Mdpub(ms, bodies) => encode_mdpub(&topic(), Delay(*ms), bodies, wire),
                Self::Cancel => encode_cancel(b"x", wire),
                Self::Nop => encode_nop(wire),
            }
        }

        fn is(&self, command: &Command) -> bool {
            let same = |theirs: &[Vec<u8>], ours: &super::super::command::Bodies| {
                ours.count() == theirs.len() && ours.iter().eq(theirs.iter().cloned())
            };
            match (self, command) {
                (Self::Identify(a), Command::Identify(b)) | (Self::Auth(a), Command::Auth(b)) => {
                    a == b
                }
                (Self::Pub(a), Command::Pub { body, .. }) => a == body,
                (
                    Self::Dpub(ms, with_id, a),
                    Command::Dpub {
                        delay, id, body, ..
                    },
                ) => *ms == delay.0 && *with_id == id.is_some() && a == body,
                (Self::Mpub(a), Command::Mpub { bodies, .. }) => same(a, bodies),
                (Self::Mdpub(ms, a), Command::Mdpub { delay, bodies, .. }) => {
                    *ms == delay.0 && same(a, bodies)
                }
                (Self::Cancel, Command::Cancel(id)) => id.as_ref() == b"x",
                (Self::Nop, Command::Nop) => true,
                _ => false,
            }
        }
    }

    fn decode_in_pieces(wire: &[u8], cut: usize) -> (Vec<Command>, Option<Stop>) {
        let mut decoder = Decoder::new(LIMITS);
        let mut buffer = BytesMut::new();
        let mut commands = Vec::new();
        for piece in wire.chunks(cut) {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(command)) => commands.push(command),
                    Ok(None) => break,
                    Err(stop) => return (commands, Some(stop)),
                }
            }
        }
        (commands, None)
    }

    proptest! {
        #[test]
        fn what_a_client_says_is_read_however_it_is_cut(
            conversation in proptest::collection::vec(said(), 0..6),
            cut in 1..200_usize,
        ) {
            let mut wire = BytesMut::new();
            for said in &conversation {
                said.encode(&mut wire);
            }
            let (commands, stop) = decode_in_pieces(&wire, cut);
            prop_assert_eq!(stop, None);
            prop_assert_eq!(commands.len(), conversation.len());
            for (said, command) in conversation.iter().zip(&commands) {
                prop_assert!(said.is(command), "{said:?} was read as {command:?}");
            }
        }

        #[test]
        fn a_bent_conversation_is_read_the_same_however_it_is_cut(
            conversation in proptest::collection::vec(said(), 1..6),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in 1..50_usize,
        ) {
            let mut wire = BytesMut::new();
            for said in &conversation {
                said.encode(&mut wire);
            }
            let at = at.index(wire.len());
            wire[at] = byte;
            prop_assert_eq!(decode_in_pieces(&wire, cut), decode_in_pieces(&wire, wire.len()));
        }
    }

    #[test]
    fn bad_things_are_refused_before_their_bodies_come() {
        for (wire, refused) in [
            (
                b"PUB a!\n".as_slice(),
                "E_BAD_TOPIC PUB topic name \"a!\" is not valid",
            ),
            (
                b"PUB t\n\0\0\0\x65",
                "E_BAD_MESSAGE PUB message too big 101 > 100",
            ),
            (
                b"MPUB t\n\0\0\0\x64\0\0\0\xc8",
                "E_BAD_BODY MPUB invalid message count 200",
            ),
            (
                b"MPUB t\n\0\0\0\x64\0\0\0\xc7\0\0\0\0",
                "E_BAD_MESSAGE MPUB invalid message(0) body size 0",
            ),
        ] {
            let (commands, stop) = decode_in_pieces(wire, 1);
            assert!(commands.is_empty());
            let Some(Stop::Refused(refusal)) = stop else {
                panic!("{wire:?} is not refused")
            };
            assert_eq!(format!("{refusal:?}"), refused);
        }
    }

    #[test]
    fn the_beginning_of_an_identify_is_known() {
        let begun = |wire: &[u8]| {
            let mut decoder = Decoder::new(LIMITS);
            let mut buffer = BytesMut::from(wire);
            assert_eq!(decoder.decode(&mut buffer), Ok(None));
            decoder.identify_has_begun(&buffer)
        };
        assert!(!begun(b""));
        assert!(begun(b"I"));
        assert!(begun(b"IDENTIFY"));
        assert!(begun(b"IDENTIFY\r"));
        assert!(begun(b"IDENTIFY\n\0\0"));
        assert!(begun(b"IDENTIFY\n\0\0\0\x09{"));
        assert!(!begun(b"PUB t\n\0"));
        assert!(!begun(b"P"));
    }
}
