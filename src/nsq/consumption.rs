//! A consumer's part of the wire: SUB, RDY, FIN, REQ, CLS, and the messages that nsqd pushes. Pure.

use std::fmt;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::message::{BadTopic, TopicName};

/// Bytes before a message's body: timestamp, attempts, id.
const HEAD_LEN: usize = 8 + 2 + DeliveryId::LEN;

/// A channel's name: nsqd's rule is the same as for topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelName(TopicName);

impl ChannelName {
    /// Checks `^[.a-zA-Z0-9_-]+(#ephemeral)?$`, 1 to 64 bytes.
    pub fn parse(name: &[u8]) -> Result<Self, BadTopic> {
        TopicName::parse(name).map(Self)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What nsqd calls a message by, the same at each delivery: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryId(pub [u8; Self::LEN]);

impl DeliveryId {
    /// Length in bytes.
    pub const LEN: usize = 16;
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A message on its way from nsqd to a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// When nsqd took it, by its own clock, in Unix nanoseconds.
    pub timestamp_ns: u64,
    /// How often nsqd has pushed it, this time included.
    pub attempts: u16,
    /// What FIN and REQ name it by.
    pub id: DeliveryId,
    /// What its producer published.
    pub body: Bytes,
}

/// A message frame that is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nsqd sent a message without a head")]
pub struct BadDelivery;

impl Delivery {
    /// Reads the body of a message frame.
    pub fn decode(frame: Bytes) -> Result<Self, BadDelivery> {
        if frame.len() < HEAD_LEN {
            return Err(BadDelivery);
        }
        let mut rest = frame;
        let timestamp_ns = rest.get_u64();
        let attempts = rest.get_u16();
        let mut id = [0; DeliveryId::LEN];
        rest.copy_to_slice(&mut id);
        Ok(Self {
            timestamp_ns,
            attempts,
            id: DeliveryId(id),
            body: rest,
        })
    }
}

/// Writes SUB.
pub fn encode_sub(topic: &TopicName, channel: &ChannelName, buffer: &mut BytesMut) {
    buffer.put_slice(format!("SUB {topic} {channel}\n").as_bytes());
}

/// Writes RDY: how many more messages may be pushed before any is answered.
pub fn encode_rdy(count: usize, buffer: &mut BytesMut) {
    buffer.put_slice(format!("RDY {count}\n").as_bytes());
}

/// Writes FIN: the message is done.
pub fn encode_fin(id: DeliveryId, buffer: &mut BytesMut) {
    buffer.put_slice(b"FIN ");
    buffer.put_slice(&id.0);
    buffer.put_u8(b'\n');
}

/// Writes REQ: push the message again after so many ms.
pub fn encode_req(id: DeliveryId, delay_ms: u64, buffer: &mut BytesMut) {
    buffer.put_slice(b"REQ ");
    buffer.put_slice(&id.0);
    buffer.put_slice(format!(" {delay_ms}\n").as_bytes());
}

/// Writes CLS: push nothing more.
pub fn encode_cls(buffer: &mut BytesMut) {
    buffer.put_slice(b"CLS\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_apart() {
        let frame = b"\0\0\0\0\0\0\x03\xe8\0\x020123456789abcdefbody";
        let delivery = Delivery::decode(Bytes::from_static(frame)).unwrap();
        assert_eq!((delivery.timestamp_ns, delivery.attempts), (1000, 2));
        assert_eq!(delivery.id.to_string(), "0123456789abcdef");
        assert_eq!(&delivery.body[..], b"body");
        assert_eq!(
            Delivery::decode(Bytes::from_static(&frame[..25])),
            Err(BadDelivery)
        );
    }

    #[test]
    fn commands_are_lines() {
        let topic = TopicName::parse(b"t").unwrap();
        let channel = ChannelName::parse(b"c#ephemeral").unwrap();
        let id = DeliveryId(*b"0123456789abcdef");
        let mut wire = BytesMut::new();
        encode_sub(&topic, &channel, &mut wire);
        encode_rdy(5, &mut wire);
        encode_fin(id, &mut wire);
        encode_req(id, 250, &mut wire);
        encode_cls(&mut wire);
        assert_eq!(
            &wire[..],
            b"SUB t c#ephemeral\nRDY 5\nFIN 0123456789abcdef\nREQ 0123456789abcdef 250\nCLS\n"
        );
    }
}
