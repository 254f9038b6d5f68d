//! A conversation with one nsqd: connect, IDENTIFY, TLS, compression, AUTH, then bytes out and frames in.
//! Does not reconnect, publishes nothing by itself, and knows no store. What is due travels over such
//! conversations too, but which, when and what then is `forward`'s to say.

mod carriage;
mod greeting;

pub use carriage::{Carriage, Secret};

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::nsq::frame::{BadFrame, Frame, FrameType};
use crate::transport::{Incoming, Outgoing};

/// Longest frame that nsqd may send: a message far over its default limit of 1 MiB.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// Room for reading, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// Why there is no conversation, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Connecting, reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// nsqd closed it.
    #[error("closed by nsqd")]
    Closed,
    /// What came is not nsqd's protocol.
    #[error("this is not nsqd's protocol: {0}")]
    BadFrame(#[from] BadFrame),
    /// nsqd answered with an error.
    #[error("nsqd answers {0:?}")]
    Refused(String),
    /// What came is not the answer to what was asked.
    #[error("unexpected answer {0:?}")]
    Unexpected(String),
    /// nsqd wants AUTH.
    #[error("nsqd requires AUTH; set nsqd_auth_secret")]
    AuthRequired,
    /// nsqd has no TLS.
    #[error("nsqd has no TLS, which nsqd_tls asks for")]
    NoTls,
    /// The handshake of TLS failed.
    #[error("TLS: {0}")]
    Tls(String),
}

/// What IDENTIFY asks for.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// How long it may take until commands can be sent.
    pub dial_timeout: Duration,
    /// nsqd's sign of life, 1 s to 60 s.
    pub heartbeat_interval: Duration,
    /// How long nsqd waits for FIN before it pushes a message again; `None` is nsqd's own.
    pub msg_timeout: Option<Duration>,
    /// Whether nsqd is to push messages at once, instead of up to 250 ms later.
    pub unbuffered: bool,
    /// What it is carried in.
    pub carriage: Carriage,
}

/// What nsqd says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields are nsqd's, and each is an answer of its own"
)]
pub struct Identity {
    /// Its version.
    pub version: String,
    /// Most messages that a consumer may have unanswered.
    pub max_rdy_count: usize,
    auth_required: bool,
    tls_v1: bool,
    snappy: bool,
    deflate: bool,
}

/// What nsqd sends.
#[derive(Debug)]
pub struct Reader {
    stream: Incoming,
    /// Read and not decoded.
    input: BytesMut,
}

/// What is sent to nsqd.
#[derive(Debug)]
pub struct Writer {
    stream: Outgoing,
    /// Not yet written. Commands are appended here.
    pub output: BytesMut,
    /// Whether what was written may still be on this side.
    unflushed: bool,
}

/// Connects until commands can be sent. Cancel safe: a connection that is half made is closed.
pub async fn dial(address: &str, wishes: &Wishes) -> Result<(Reader, Writer, Identity), Fault> {
    let limit = wishes.dial_timeout;
    timeout(limit, greeting::greet(address, wishes))
        .await
        .unwrap_or(Err(Fault::Silent(limit)))
}

impl Reader {
    fn new(stream: Incoming, input: BytesMut) -> Self {
        Self { stream, input }
    }

    /// The next frame, heartbeats included. Cancel safe.
    pub async fn next(&mut self) -> Result<Frame, Fault> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.input, FRAME_BYTES_MAX)? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// The answer to a command; an error frame is a fault. Heartbeats are passed over: use it for
    /// exchanges that are shorter than two of their intervals. Cancel safe.
    pub async fn answer(&mut self) -> Result<Bytes, Fault> {
        loop {
            if let Some(answer) = next_answer(&mut self.input)? {
                return Ok(answer);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), Fault> {
        self.input.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Fault::Closed),
            _ => Ok(()),
        }
    }

    /// The stream, and what was read of it and not decoded.
    pub fn into_parts(self) -> (Incoming, BytesMut) {
        (self.stream, self.input)
    }
}

impl Writer {
    fn new(stream: Outgoing) -> Self {
        Self {
            stream,
            output: BytesMut::new(),
            unflushed: false,
        }
    }

    /// Whether there is something to flush.
    pub fn is_pending(&self) -> bool {
        self.unflushed || !self.output.is_empty()
    }

    /// Writes all of `output`. Cancel safe: what is not written yet stays in it.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            self.unflushed = true;
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.stream.flush().await?;
        self.unflushed = false;
        Ok(())
    }

    /// The stream; everything must have been flushed.
    pub fn into_stream(self) -> Outgoing {
        self.stream
    }
}

/// Takes the next answer off `input`; heartbeats are passed over.
fn next_answer(input: &mut BytesMut) -> Result<Option<Bytes>, Fault> {
    while let Some(frame) = Frame::decode(input, FRAME_BYTES_MAX)? {
        match frame.kind {
            FrameType::Response if frame.is_heartbeat() => {}
            FrameType::Response => return Ok(Some(frame.body)),
            FrameType::Error => return Err(Fault::Refused(text(&frame.body))),
            FrameType::Message => return Err(Fault::Unexpected(text(&frame.body))),
        }
    }
    Ok(None)
}

/// The text of a frame.
pub fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
