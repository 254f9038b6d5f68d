//! Reads the body of MPUB and MDPUB part by part, with nsqd's checks in nsqd's order. Pure.

use bytes::{Buf as _, BytesMut};

use super::command::{Bodies, Command, MPUB_OVERHEAD, MPUB_OVERHEAD_PER_MESSAGE};
use super::decoder::Limits;
use super::error_code::{ErrorCode, Refusal};
use crate::message::{Delay, TopicName};

/// Whatever `max_body_size` is, content of so many bytes is read: nsqd compares it with nothing.
const CONTENT_MIN: usize = 5 << 20;
/// Bytes of a size.
pub(super) const SIZE_LEN: usize = 4;

/// Most bytes of a batch's content, at every door.
pub fn content_max(max_body_size: usize) -> usize {
    max_body_size.max(CONTENT_MIN)
}

/// The int32 at `at`, if it has come.
pub(super) fn int_at(buffer: &[u8], at: usize) -> Option<i32> {
    let (bytes, _) = buffer.get(at..)?.split_first_chunk::<SIZE_LEN>()?;
    Some(i32::from_be_bytes(*bytes))
}

/// MPUB, or with a delay MDPUB, as its line gave it.
#[derive(Debug, Clone)]
pub(super) struct Many {
    pub(super) topic: TopicName,
    pub(super) delay: Option<Delay>,
}

/// What of an MPUB comes next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
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

impl Many {
    pub(super) fn name(&self) -> &'static str {
        match self.delay {
            None => "MPUB",
            Some(_) => "MDPUB",
        }
    }

    /// Reads on; `None`: more bytes are needed.
    pub(super) fn read(
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

    /// What nsqd says when no more bytes come.
    pub(super) fn interrupted(&self, next: Part) -> Refusal {
        let (code, what) = match next {
            Part::BodySize => (ErrorCode::BadBody, "body size".to_owned()),
            Part::Count => (ErrorCode::BadBody, "message count".to_owned()),
            Part::Message {
                index, size: None, ..
            } => (ErrorCode::BadMessage, format!("message({index}) body size")),
            Part::Message { size: Some(_), .. } => {
                (ErrorCode::BadMessage, "message body".to_owned())
            }
        };
        Refusal::new(code, format!("{} failed to read {what}", self.name()))
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
        // end. We let the declaration be wrong, but not the body take any amount of memory.
        let total = MPUB_OVERHEAD + seen + MPUB_OVERHEAD_PER_MESSAGE + len;
        let max = content_max(limits.max_body_size);
        if total > max {
            return Err(Refusal::too_big(
                ErrorCode::BadBody,
                format!("{name} body too big {total} > {max}"),
            ));
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_an_end_whatever_was_declared() {
        const MIB: i32 = 1 << 20;
        let limits = Limits {
            max_msg_size: 1 << 20,
            max_body_size: 5_000,
            max_delay: Delay(0),
        };
        let many = Many {
            topic: TopicName::parse(b"t").unwrap(),
            delay: None,
        };
        let mut next = Part::BodySize;
        let mut buffer = BytesMut::new();
        let mut read = |bytes: &[u8]| {
            buffer.extend_from_slice(bytes);
            many.read(&mut next, &limits, &mut buffer)
        };
        assert!(matches!(read(&5_i32.to_be_bytes()), Ok(None)));
        assert!(matches!(read(&6_i32.to_be_bytes()), Ok(None)));
        for _ in 0..4 {
            assert!(matches!(read(&MIB.to_be_bytes()), Ok(None)));
            assert!(matches!(read(&b"x".repeat(1 << 20)), Ok(None)));
        }
        let refused = read(&MIB.to_be_bytes()).unwrap_err();
        assert_eq!(
            format!("{refused:?}"),
            "E_BAD_BODY MPUB body too big 5242904 > 5242880"
        );
    }
}
