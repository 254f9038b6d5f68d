//! A blocking connection to a door: bytes out, replies in. Knows frames and HTTP, not what is asked.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::nsq::MAGIC;
use crate::nsq::frame::{HEARTBEAT_BODY, OK_BODY};

/// A server that is silent for so long is given up.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// Bytes that are read at once, at most.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of a frame's size and type.
const FRAME_HEAD: usize = 8;
/// Type of a frame that is an error.
const FRAME_ERROR: u32 = 1;

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// NSQ's V2.
    Nsq,
    /// HTTP/1.1, one response for each request.
    Http,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// Done, with what came with it.
    Done(&'a [u8]),
    /// Not done, and why.
    Refused(&'a [u8]),
}

/// The reading half.
#[derive(Debug)]
pub(super) struct Replies {
    stream: TcpStream,
    speech: Speech,
    buffer: Buffer,
}

/// Connects, and says which protocol follows.
pub(super) fn connect(address: &str, speech: Speech) -> io::Result<(TcpStream, Replies)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    if speech == Speech::Nsq {
        stream.write_all(MAGIC)?;
    }
    let replies = Replies {
        stream: stream.try_clone()?,
        speech,
        buffer: Buffer::new(),
    };
    Ok((stream, replies))
}

impl Replies {
    /// Reads once, and gives each answer that is complete to `take`.
    pub(super) fn read(&mut self, mut take: impl FnMut(Answer<'_>)) -> io::Result<()> {
        self.buffer.read(&mut self.stream)?;
        loop {
            let reply = match self.speech {
                Speech::Nsq => nsq(self.buffer.unread())?,
                Speech::Http => http(self.buffer.unread())?,
            };
            let Some((reply, len)) = reply else {
                return Ok(());
            };
            match reply {
                Some(answer) => take(answer),
                None => self.stream.write_all(b"NOP\n")?,
            }
            self.buffer.advance(len);
        }
    }
}

/// An answer, or a heartbeat as `None`, and its length; `None`: not all of it is here.
type Parsed<'a> = Option<(Option<Answer<'a>>, usize)>;

fn nsq(bytes: &[u8]) -> io::Result<Parsed<'_>> {
    let Some((kind, body, len)) = frame(bytes)? else {
        return Ok(None);
    };
    let answer = match body {
        HEARTBEAT_BODY => None,
        _ if kind == FRAME_ERROR => Some(Answer::Refused(body)),
        OK_BODY => Some(Answer::Done(&[])),
        _ => Some(Answer::Done(body)),
    };
    Ok(Some((answer, len)))
}

/// Type, body and whole length of the first frame.
pub(super) fn frame(bytes: &[u8]) -> io::Result<Option<(u32, &[u8], usize)>> {
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() else {
        return Ok(None);
    };
    let [a, b, c, d, kind @ ..] = *head;
    let size = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let body_len = size
        .checked_sub(4)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame without a type"))?;
    let body = rest.get(..body_len);
    Ok(body.map(|body| (u32::from_be_bytes(kind), body, FRAME_HEAD + body_len)))
}

fn http(bytes: &[u8]) -> io::Result<Parsed<'_>> {
    const END: &[u8] = b"\r\n\r\n";
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let Some(at) = bytes.windows(END.len()).position(|four| four == END) else {
        return Ok(None);
    };
    let head = bytes.get(..at).and_then(|head| str::from_utf8(head).ok());
    let head = head.ok_or_else(|| bad("a head that is no text"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let len = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_len = name.eq_ignore_ascii_case("content-length");
        is_len.then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let len = len.ok_or_else(|| bad("a response without a length"))?;
    let begin = at + END.len();
    let Some(body) = bytes.get(begin..begin + len) else {
        return Ok(None);
    };
    let done = status.is_some_and(|status| status.starts_with('2'));
    let answer = if done {
        Answer::Done(body)
    } else {
        Answer::Refused(body)
    };
    Ok(Some((Some(answer), begin + len)))
}

/// Bytes that were read and not yet understood. Grows with the longest frame.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; READ_BYTES],
            begin: 0,
            end: 0,
        }
    }

    pub(super) fn unread(&self) -> &[u8] {
        self.bytes.get(self.begin..self.end).unwrap_or_default()
    }

    pub(super) fn advance(&mut self, len: usize) {
        self.begin += len;
    }

    /// Reads once from `source`; its end is an error.
    pub(super) fn read(&mut self, source: &mut TcpStream) -> io::Result<()> {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        } else if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        if self.end == self.bytes.len() {
            self.bytes.resize(self.bytes.len() * 2, 0);
        }
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        match source.read(room)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_understood_when_they_are_whole() {
        let ok = b"\0\0\0\x06\0\0\0\0OKrest";
        assert_eq!(nsq(ok).unwrap(), Some((Some(Answer::Done(b"")), 10)));
        assert_eq!(nsq(&ok[..9]).unwrap(), None);
        let heartbeat = crate::nsq::frame::HEARTBEAT;
        assert_eq!(nsq(heartbeat).unwrap(), Some((None, heartbeat.len())));
        let error = b"\0\0\0\x07\0\0\0\x01E_X";
        let refused = Some((Some(Answer::Refused(b"E_X")), 11));
        assert_eq!(nsq(error).unwrap(), refused);
        nsq(&[0; 8]).unwrap_err();
    }

    #[test]
    fn responses_are_understood_when_they_are_whole() {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOKrest";
        assert_eq!(http(ok).unwrap(), Some((Some(Answer::Done(b"OK")), 40)));
        assert_eq!(http(&ok[..39]).unwrap(), None);
        assert_eq!(http(&ok[..20]).unwrap(), None);
        let full = b"HTTP/1.1 503 Busy\r\nContent-Length: 1\r\n\r\nx";
        let refused = http(full).unwrap().unwrap().0;
        assert_eq!(refused, Some(Answer::Refused(b"x")));
        http(b"HTTP/1.1 200 OK\r\n\r\n").unwrap_err();
    }
}
