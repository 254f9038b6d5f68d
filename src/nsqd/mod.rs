//! A conversation with one nsqd for those who ask it questions or consume from it: connect, IDENTIFY,
//! then bytes out and frames in. Does not reconnect, publishes nothing by itself, and knows no store.
//! What is due goes to nsqd over `forward`'s connections, not over these.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::nsq::MAGIC;
use crate::nsq::command::encode_identify;
use crate::nsq::frame::{BadFrame, Frame, FrameType, OK_BODY};

/// Longest frame that nsqd may send: a message far over its default limit of 1 MiB.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// Room for reading, in bytes.
const READ_BYTES: usize = 64 * 1024;

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
    #[error("nsqd requires AUTH")]
    AuthRequired,
}

/// What IDENTIFY asks for.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// How connecting and IDENTIFY together may take.
    pub dial_timeout: Duration,
    /// nsqd's sign of life, 1 s to 60 s.
    pub heartbeat_interval: Duration,
    /// How long nsqd waits for FIN before it pushes a message again; `None` is nsqd's own.
    pub msg_timeout: Option<Duration>,
}

/// What nsqd says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Identity {
    /// Its version.
    #[serde(default)]
    pub version: String,
    /// Most messages that a consumer may have unanswered.
    #[serde(default)]
    pub max_rdy_count: usize,
    /// Whether it takes no command without AUTH.
    #[serde(default)]
    pub auth_required: bool,
    /// How long it waits for FIN, in ms.
    #[serde(default)]
    pub msg_timeout: u64,
}

/// What nsqd sends.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Reader {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    input: BytesMut,
}

/// What is sent to nsqd.
#[expect(missing_debug_implementations, reason = "a stream has nothing to show")]
pub struct Writer {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    /// Not yet written. Commands are appended here.
    pub output: BytesMut,
}

/// Connects and identifies. Without output buffering on nsqd's side, which would add up to 250 ms.
/// Cancel safe: a connection that is half made is closed.
pub async fn dial(address: &str, wishes: &Wishes) -> Result<(Reader, Writer, Identity), Fault> {
    let limit = wishes.dial_timeout;
    timeout(limit, identify(address, wishes))
        .await
        .unwrap_or(Err(Fault::Silent(limit)))
}

/// Connects and sends the magic. Cancel safe.
pub async fn connect(address: &str, limit: Duration) -> Result<(Reader, Writer), Fault> {
    timeout(limit, open(address))
        .await
        .unwrap_or(Err(Fault::Silent(limit)))
}

async fn open(address: &str) -> Result<(Reader, Writer), Fault> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let reader = Reader {
        stream: Box::new(reader),
        input: BytesMut::with_capacity(READ_BYTES),
    };
    let mut writer = Writer {
        stream: Box::new(writer),
        output: BytesMut::from(&MAGIC[..]),
    };
    writer.flush().await?;
    Ok((reader, writer))
}

async fn identify(address: &str, wishes: &Wishes) -> Result<(Reader, Writer, Identity), Fault> {
    let (mut reader, mut writer) = open(address).await?;
    encode_identify(identity(wishes).as_bytes(), &mut writer.output);
    writer.flush().await?;
    let answer = reader.answer().await?;
    let identity: Identity = if answer == OK_BODY {
        Identity::default()
    } else {
        let said = serde_json::from_slice(&answer);
        said.map_err(|_not_json| Fault::Unexpected(text(&answer)))?
    };
    Ok((reader, writer, identity))
}

/// The body of IDENTIFY.
fn identity(wishes: &Wishes) -> String {
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    serde_json::json!({
        "client_id": hostname.split('.').next().unwrap_or_default(),
        "hostname": hostname,
        "user_agent": concat!("nsqdelayd/", env!("CARGO_PKG_VERSION")),
        "feature_negotiation": true,
        "heartbeat_interval": wishes.heartbeat_interval.as_millis(),
        // 0 is nsqd's own.
        "msg_timeout": wishes.msg_timeout.map_or(0, |t| t.as_millis()),
        "output_buffer_size": -1,
        "output_buffer_timeout": -1,
    })
    .to_string()
}

impl Reader {
    /// The next frame, heartbeats included. Cancel safe.
    pub async fn next(&mut self) -> Result<Frame, Fault> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.input, FRAME_BYTES_MAX)? {
                return Ok(frame);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Fault::Closed);
            }
        }
    }

    /// The answer to a command; an error frame is a fault. Heartbeats are passed over: use it for
    /// exchanges that are shorter than two of their intervals. Cancel safe.
    pub async fn answer(&mut self) -> Result<Bytes, Fault> {
        loop {
            let frame = self.next().await?;
            match frame.kind {
                FrameType::Response if frame.is_heartbeat() => {}
                FrameType::Response => return Ok(frame.body),
                FrameType::Error => return Err(Fault::Refused(text(&frame.body))),
                FrameType::Message => return Err(Fault::Unexpected(text(&frame.body))),
            }
        }
    }
}

impl Writer {
    /// Writes all of `output`. Cancel safe: what is not written yet stays in it.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.stream.flush().await
    }
}

/// The text of a frame.
pub fn text(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}
