//! A producer of NSQ's V2 protocol that writes bytes: what it sends is what the test wrote.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// How long a reply may take before the test is given up.
const REPLY_LIMIT: Duration = Duration::from_mins(1);

/// Type of a frame: a reply.
pub(crate) const RESPONSE: i32 = 0;
/// Type of a frame: an error.
pub(crate) const ERROR: i32 = 1;
/// Type of a frame: a message.
pub(crate) const MESSAGE: i32 = 2;

/// One frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// [`RESPONSE`], [`ERROR`] or [`MESSAGE`].
    pub(crate) kind: i32,
    /// What follows the type.
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Whether it asks for a sign of life.
    pub(crate) fn is_heartbeat(&self) -> bool {
        self.kind == RESPONSE && self.payload == b"_heartbeat_"
    }

    /// Whether it is the reply `OK`.
    pub(crate) fn is_ok(&self) -> bool {
        self.kind == RESPONSE && self.payload == b"OK"
    }

    /// The payload as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// A connection to nsqd or nsqdelayd that speaks V2.
#[derive(Debug)]
pub(crate) struct Producer {
    stream: BufReader<TcpStream>,
}

impl Producer {
    /// Connects and sends the magic.
    #[track_caller]
    pub(crate) fn connect(address: &str) -> Self {
        Self::try_connect(address).unwrap_or_else(|error| panic!("{address}: {error}"))
    }

    /// Connects and sends the magic, if somebody listens.
    pub(crate) fn try_connect(address: &str) -> std::io::Result<Self> {
        let mut producer = Self::try_connect_raw(address)?;
        producer.send(b"  V2")?;
        Ok(producer)
    }

    /// Connects and sends nothing.
    pub(crate) fn try_connect_raw(address: &str) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Another handle on the socket, to end it from another thread.
    pub(crate) fn socket(&self) -> std::io::Result<TcpStream> {
        self.stream.get_ref().try_clone()
    }

    /// Whether everything that has been received has been read.
    pub(crate) fn is_drained(&self) -> bool {
        self.stream.buffer().is_empty()
    }

    /// Closes the sending half.
    pub(crate) fn half_close(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    /// Reads the next frame that is no heartbeat; heartbeats are answered.
    pub(crate) fn read(&mut self) -> std::io::Result<Frame> {
        loop {
            let frame = self.read_any()?;
            if !frame.is_heartbeat() {
                return Ok(frame);
            }
            self.send(b"NOP\n")?;
        }
    }

    /// Reads the next frame, whatever it is.
    pub(crate) fn read_any(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 8];
        self.stream.read_exact(&mut head)?;
        let size = i32::from_be_bytes(head[..4].try_into().unwrap());
        let kind = i32::from_be_bytes(head[4..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(size - 4).unwrap()];
        self.stream.read_exact(&mut payload)?;
        Ok(Frame { kind, payload })
    }

    /// Sends bytes and reads one reply.
    #[track_caller]
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Frame {
        self.send(bytes)
            .and_then(|()| self.read())
            .unwrap_or_else(|error| panic!("no reply: {error}"))
    }

    /// Reads one reply, which must be OK.
    #[track_caller]
    pub(crate) fn expect_ok(&mut self) {
        let frame = self.read().unwrap();
        assert!(frame.is_ok(), "expected OK, got {frame:?}");
    }

    /// Whether the server has closed; what it still sends is dropped.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }

    /// Sends one DPUB, which must be acknowledged.
    #[track_caller]
    pub(crate) fn dpub(&mut self, topic: &str, delay_ms: u64, body: &[u8]) {
        self.send(&dpub(topic, delay_ms, body)).unwrap();
        self.expect_ok();
    }

    /// Sends `commands` back to back in windows of `depth` and answers how many were acknowledged,
    /// in order, before the first failure.
    pub(crate) fn pipeline(&mut self, commands: &[Vec<u8>], depth: usize) -> usize {
        let mut acknowledged = 0;
        for window in commands.chunks(depth) {
            if self.send(&window.concat()).is_err() {
                return acknowledged;
            }
            for _ in window {
                match self.read() {
                    Ok(frame) if frame.is_ok() => acknowledged += 1,
                    _ => return acknowledged,
                }
            }
        }
        acknowledged
    }
}

/// The bytes of IDENTIFY with this JSON.
pub(crate) fn identify(json: &str) -> Vec<u8> {
    sized(b"IDENTIFY\n".to_vec(), json.as_bytes())
}

/// The bytes of PUB.
pub(crate) fn publish(topic: &str, body: &[u8]) -> Vec<u8> {
    sized(format!("PUB {topic}\n").into_bytes(), body)
}

/// The bytes of DPUB.
pub(crate) fn dpub(topic: &str, delay_ms: u64, body: &[u8]) -> Vec<u8> {
    sized(format!("DPUB {topic} {delay_ms}\n").into_bytes(), body)
}

/// The bytes of DPUB with our optional id.
pub(crate) fn dpub_with_id(topic: &str, delay_ms: u64, id: &str, body: &[u8]) -> Vec<u8> {
    sized(format!("DPUB {topic} {delay_ms} {id}\n").into_bytes(), body)
}

/// The bytes of MPUB.
pub(crate) fn mpub(topic: &str, bodies: &[&[u8]]) -> Vec<u8> {
    sized(format!("MPUB {topic}\n").into_bytes(), &batch(bodies))
}

/// The bytes of MDPUB.
pub(crate) fn mdpub(topic: &str, delay_ms: u64, bodies: &[&[u8]]) -> Vec<u8> {
    let line = format!("MDPUB {topic} {delay_ms}\n");
    sized(line.into_bytes(), &batch(bodies))
}

fn batch(bodies: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(bodies.len()).unwrap();
    let mut batch = count.to_be_bytes().to_vec();
    for body in bodies {
        batch = sized(batch, body);
    }
    batch
}

fn sized(mut head: Vec<u8>, body: &[u8]) -> Vec<u8> {
    head.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    head.extend(body);
    head
}
