//! Commands, a client's half of the wire: a line, for some then an int32 size and a body. Here: what
//! they say and how they are written. Reading them is the decoder's. Pure.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::message::{ClientId, Delay, TopicName};

/// What a client asks. Everything but ids of CANCEL and the contents of IDENTIFY and AUTH has been
/// checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Negotiation; the JSON as it came.
    Identify(Bytes),
    /// The secret as it came.
    Auth(Bytes),
    /// Publish now.
    Pub {
        /// Where to.
        topic: TopicName,
        /// 1 byte to `max_msg_size`.
        body: Bytes,
    },
    /// Publish after a delay.
    Dpub {
        /// Where to.
        topic: TopicName,
        /// At most `max_delay`.
        delay: Delay,
        /// Our extension: the producer's own id.
        id: Option<ClientId>,
        /// 1 byte to `max_msg_size`.
        body: Bytes,
    },
    /// Publish several now, all or none.
    Mpub {
        /// Where to.
        topic: TopicName,
        /// What.
        bodies: Bodies,
    },
    /// Our extension: publish several after a delay, all or none.
    Mdpub {
        /// Where to.
        topic: TopicName,
        /// At most `max_delay`.
        delay: Delay,
        /// What.
        bodies: Bodies,
    },
    /// The line of an MPUB or MDPUB has come, its body not yet; only where that is asked for.
    Ahead {
        /// Which of them.
        name: &'static str,
        /// Where to.
        topic: TopicName,
    },
    /// Our extension: do not deliver the message with this id, as the client gave it.
    Cancel(Bytes),
    /// A sign of life. Has no answer.
    Nop,
}

/// The bodies of an MPUB: its count and then (size, bytes) of each, as they came, so that a million
/// one-byte messages cost what they cost on the wire. Sizes and count have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bodies {
    raw: Bytes,
    count: usize,
}

impl Bodies {
    /// `raw` holds exactly `count` times (int32 size, bytes).
    pub(super) fn new(raw: Bytes, count: usize) -> Self {
        Self { raw, count }
    }

    /// How many messages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes with the sizes.
    pub fn wire_len(&self) -> usize {
        self.raw.len()
    }

    /// Each body, sharing the buffer that it came in.
    pub fn iter(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut at = 0_usize;
        std::iter::from_fn(move || {
            let (size, _) = self.raw.get(at..)?.split_first_chunk::<4>()?;
            let start = at + SIZE_LEN;
            let end = start.checked_add(usize::try_from(i32::from_be_bytes(*size)).ok()?)?;
            at = end;
            (end <= self.raw.len()).then(|| self.raw.slice(start..end))
        })
    }
}

/// Bytes of a size.
const SIZE_LEN: usize = 4;

/// Bytes that one message of an MPUB takes beside its body.
pub const MPUB_OVERHEAD_PER_MESSAGE: usize = SIZE_LEN;
/// Bytes of an MPUB's body beside its messages: the count.
pub const MPUB_OVERHEAD: usize = SIZE_LEN;

/// Writes IDENTIFY.
pub fn encode_identify(json: &[u8], buffer: &mut BytesMut) {
    buffer.put_slice(b"IDENTIFY\n");
    put_sized(json, buffer);
}

/// Writes AUTH.
pub fn encode_auth(secret: &[u8], buffer: &mut BytesMut) {
    buffer.put_slice(b"AUTH\n");
    put_sized(secret, buffer);
}

/// Writes PUB.
pub fn encode_pub(topic: &TopicName, body: &[u8], buffer: &mut BytesMut) {
    put_line(&[b"PUB", topic.as_str().as_bytes()], buffer);
    put_sized(body, buffer);
}

/// Writes DPUB, with our extension if there is an id.
pub fn encode_dpub(
    topic: &TopicName,
    delay: Delay,
    id: Option<&ClientId>,
    body: &[u8],
    buffer: &mut BytesMut,
) {
    let ms = delay.0.to_string();
    let topic = topic.as_str().as_bytes();
    match id {
        None => put_line(&[b"DPUB", topic, ms.as_bytes()], buffer),
        Some(id) => put_line(
            &[b"DPUB", topic, ms.as_bytes(), id.as_str().as_bytes()],
            buffer,
        ),
    }
    put_sized(body, buffer);
}

/// Writes MPUB. The caller keeps [`mpub_body_len`] within nsqd's `max-body-size`.
pub fn encode_mpub<B: AsRef<[u8]>>(topic: &TopicName, bodies: &[B], buffer: &mut BytesMut) {
    put_line(&[b"MPUB", topic.as_str().as_bytes()], buffer);
    put_bodies(bodies, buffer);
}

/// Writes our MDPUB.
pub fn encode_mdpub<B: AsRef<[u8]>>(
    topic: &TopicName,
    delay: Delay,
    bodies: &[B],
    buffer: &mut BytesMut,
) {
    let ms = delay.0.to_string();
    put_line(
        &[b"MDPUB", topic.as_str().as_bytes(), ms.as_bytes()],
        buffer,
    );
    put_bodies(bodies, buffer);
}

/// Writes our CANCEL.
pub fn encode_cancel(id: &[u8], buffer: &mut BytesMut) {
    put_line(&[b"CANCEL", id], buffer);
}

/// Writes NOP, the answer to a heartbeat.
pub fn encode_nop(buffer: &mut BytesMut) {
    buffer.put_slice(b"NOP\n");
}

/// What an MPUB of these bodies declares as its body size.
pub fn mpub_body_len<B: AsRef<[u8]>>(bodies: &[B]) -> usize {
    bodies.iter().fold(MPUB_OVERHEAD, |sum, body| {
        sum + MPUB_OVERHEAD_PER_MESSAGE + body.as_ref().len()
    })
}

fn put_line(parts: &[&[u8]], buffer: &mut BytesMut) {
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            buffer.put_u8(b' ');
        }
        buffer.put_slice(part);
    }
    buffer.put_u8(b'\n');
}

fn put_bodies<B: AsRef<[u8]>>(bodies: &[B], buffer: &mut BytesMut) {
    let len = mpub_body_len(bodies);
    buffer.reserve(len + SIZE_LEN);
    buffer.put_u32(size(len));
    buffer.put_u32(size(bodies.len()));
    for body in bodies {
        put_sized(body.as_ref(), buffer);
    }
}

fn put_sized(body: &[u8], buffer: &mut BytesMut) {
    buffer.put_u32(size(body.len()));
    buffer.put_slice(body);
}

fn size(len: usize) -> u32 {
    u32::try_from(len).expect("bodies are bounded far below 4 GiB")
}
