//! Frames, nsqd's half of the wire: int32 size (of what follows), int32 type, bytes; big endian.
//! Pure.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FrameType {
    /// The answer to a command, or a heartbeat.
    Response,
    /// `E_CODE description`.
    Error,
    /// A message for a consumer.
    Message,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameType,
    /// Its bytes, without the header.
    pub body: Bytes,
}

/// What came is not a frame. The stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The size is under that of the type, or over the reader's limit.
    #[error("frame of invalid size {0}")]
    Size(i32),
    /// Neither response, error nor message.
    #[error("frame of unknown type {0}")]
    Type(i32),
}

/// The response `OK`, whole.
pub const OK: &[u8] = b"\0\0\0\x06\0\0\0\0OK";
/// The heartbeat, whole.
pub const HEARTBEAT: &[u8] = b"\0\0\0\x0f\0\0\0\0_heartbeat_";
/// Body of a heartbeat.
pub const HEARTBEAT_BODY: &[u8] = b"_heartbeat_";
/// Body of the response to an accepted command.
pub const OK_BODY: &[u8] = b"OK";

/// Bytes of size and type.
const HEADER_LEN: usize = 8;
/// Bytes of the type, which the size counts.
const TYPE_LEN: usize = 4;

impl Frame {
    /// Whether this is nsqd's sign of life, to be answered with NOP.
    pub fn is_heartbeat(&self) -> bool {
        self.kind == FrameType::Response && self.body.as_ref() == HEARTBEAT_BODY
    }

    /// Takes the next frame off the front of `buffer`; `None` until all of it has arrived.
    pub fn decode(buffer: &mut BytesMut, body_len_max: usize) -> Result<Option<Self>, BadFrame> {
        let Some((size, rest)) = buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let size = i32::from_be_bytes(*size);
        let len = usize::try_from(size).map_err(|_negative| BadFrame::Size(size))?;
        let body_len = len.checked_sub(TYPE_LEN).ok_or(BadFrame::Size(size))?;
        if body_len > body_len_max {
            return Err(BadFrame::Size(size));
        }
        let Some((kind, body)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let kind = match i32::from_be_bytes(*kind) {
            0 => FrameType::Response,
            1 => FrameType::Error,
            2 => FrameType::Message,
            unknown => return Err(BadFrame::Type(unknown)),
        };
        if body.len() < body_len {
            return Ok(None);
        }
        buffer.advance(HEADER_LEN);
        let body = buffer.split_to(body_len).freeze();
        Ok(Some(Self { kind, body }))
    }

    /// Appends this frame to `buffer`.
    pub fn encode(&self, buffer: &mut BytesMut) {
        encode(self.kind, &self.body, buffer);
    }
}

/// Appends one frame to `buffer`.
///
/// # Panics
/// If `body` is longer than 4 GiB, which no limit on sizes allows.
pub fn encode(kind: FrameType, body: &[u8], buffer: &mut BytesMut) {
    let size = u32::try_from(body.len().saturating_add(TYPE_LEN))
        .expect("bodies are bounded far below 4 GiB");
    buffer.reserve(HEADER_LEN + body.len());
    buffer.put_u32(size);
    buffer.put_i32(match kind {
        FrameType::Response => 0,
        FrameType::Error => 1,
        FrameType::Message => 2,
    });
    buffer.put_slice(body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: FrameType, body: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        encode(kind, body, &mut buffer);
        buffer
    }

    #[test]
    fn the_constants_are_what_encode_makes() {
        assert_eq!(encoded(FrameType::Response, OK_BODY), OK);
        assert_eq!(encoded(FrameType::Response, HEARTBEAT_BODY), HEARTBEAT);
    }

    #[test]
    fn bad_headers_are_told_before_the_body_arrives() {
        let decode = |bytes: &[u8]| Frame::decode(&mut BytesMut::from(bytes), 10);
        assert_eq!(decode(b"\0\0\0\x03"), Err(BadFrame::Size(3)));
        assert_eq!(decode(b"\xff\xff\xff\xff"), Err(BadFrame::Size(-1)));
        assert_eq!(decode(b"\0\0\0\x0e"), Ok(None));
        assert_eq!(decode(b"\0\0\0\x0f"), Err(BadFrame::Size(15)));
        assert_eq!(decode(b"\0\0\0\x0e\0\0\0\x03"), Err(BadFrame::Type(3)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5),
            cut in 1..20_usize,
        ) {
            let mut wire = BytesMut::new();
            for body in &bodies {
                encode(FrameType::Message, body, &mut wire);
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer, 50).unwrap() {
                    prop_assert_eq!(frame.kind, FrameType::Message);
                    seen.push(frame.body.to_vec());
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(seen, bodies);
        }
    }
}
