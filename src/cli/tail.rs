//! `nsqdelayd tail`: a consumer of one topic on one nsqd, to see messages arrive.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};

use crate::cli::Failure;
use crate::cli::output;
use crate::message::TopicName;
use crate::nsq::MAGIC;
use crate::nsq::frame::{Frame, FrameType};

pub(super) const EXAMPLES: &str = "\
Examples:
  nsqdelayd tail --topic orders
  nsqdelayd tail --topic orders --count 1 --nsqd-tcp-address 10.0.0.7:4150

Each message is confirmed to nsqd once it is printed. The channel is its own and goes away with it.";

/// Goes away with its last consumer, so that trying things leaves nothing behind.
const CHANNEL: &str = "nsqdelayd_tail#ephemeral";
/// Timestamp, attempts and id stand before a message's body.
const TIMESTAMP_LEN: usize = 8;
const ATTEMPTS_LEN: usize = 2;
const ID_LEN: usize = 16;
/// Longest frame that is read: far over nsqd's default of 1 MiB.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// nsqd sends a heartbeat each 30 s; silence of twice as long means that it is gone.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// What to consume.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The topic.
    #[arg(long)]
    topic: String,
    /// TCP address of the nsqd.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:4150")]
    nsqd_tcp_address: String,
    /// Ends after so many messages.
    #[arg(long)]
    count: Option<u64>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let topic = TopicName::parse(args.topic.as_bytes())
        .map_err(|bad| Failure::Usage(format!("--topic {}: {bad}", args.topic)))?;
    let address = &args.nsqd_tcp_address;
    let mut nsqd = Consumer::connect(address).map_err(|error| {
        Failure::Failed(format!(
            "no nsqd answers at {address}: {error}; name it with --nsqd-tcp-address"
        ))
    })?;
    nsqd.send(format!("SUB {topic} {CHANNEL}\nRDY 1\n").as_bytes())?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let frame = nsqd.next()?;
        match frame.kind {
            FrameType::Response if frame.is_heartbeat() => nsqd.send(b"NOP\n")?,
            FrameType::Response => {}
            FrameType::Error => {
                let text = String::from_utf8_lossy(&frame.body);
                return Err(Failure::Failed(format!("nsqd refused: {text}")));
            }
            FrameType::Message => {
                nsqd.show(frame)?;
                left -= 1;
            }
        }
    }
    Ok(())
}

/// A connection to nsqd that consumes.
#[derive(Debug)]
struct Consumer {
    stream: TcpStream,
    unread: BytesMut,
}

impl Consumer {
    fn connect(address: &str) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.write_all(MAGIC)?;
        Ok(Self {
            stream,
            unread: BytesMut::new(),
        })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).map_err(lost)
    }

    fn next(&mut self) -> Result<Frame, Failure> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let frame = Frame::decode(&mut self.unread, FRAME_BYTES_MAX);
            if let Some(frame) = frame.map_err(Failure::because)? {
                return Ok(frame);
            }
            let read = self.stream.read(&mut chunk).map_err(lost)?;
            match chunk.get(..read) {
                Some(bytes) if read > 0 => self.unread.extend_from_slice(bytes),
                _ => return Err(Failure::Failed("nsqd closed the connection".to_owned())),
            }
        }
    }

    /// Prints a message's body and then confirms it.
    fn show(&mut self, frame: Frame) -> Result<(), Failure> {
        let mut body = frame.body;
        if body.len() < TIMESTAMP_LEN + ATTEMPTS_LEN + ID_LEN {
            return Err(Failure::Failed(
                "nsqd sent a message without a head".to_owned(),
            ));
        }
        body.advance(TIMESTAMP_LEN + ATTEMPTS_LEN);
        let id = body.split_to(ID_LEN);
        let mut line = body.to_vec();
        line.push(b'\n');
        output::raw(&line)?;
        let confirmation = [b"FIN ", id.as_ref(), b"\n"].concat();
        self.send(&confirmation)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives it by value")]
fn lost(error: std::io::Error) -> Failure {
    Failure::Failed(format!("the connection to nsqd is lost: {error}"))
}
