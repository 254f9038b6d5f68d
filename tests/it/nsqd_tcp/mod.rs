//! The TCP door over a store in memory, and a raw client of it.

mod as_nsqd;
mod auth;
mod hostile;
mod own;
mod random;
mod upgraded;
mod upgrades;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use nsqdelayd::ingest::access::Hosts;
use nsqdelayd::ingest::clients::{ClientStats, Clients};
use nsqdelayd::ingest::metrics::Metrics;
use nsqdelayd::ingest::{Config, Intake, Limits, Transports, listener};
use nsqdelayd::message::Delay;
use nsqdelayd::nsq::frame::{Frame, FrameType};
use nsqdelayd::store::ScheduleStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support::memory_store::MemoryStore;
use crate::support::wait;

const MAX_MSG_SIZE: usize = 1000;
const MAX_BODY_SIZE: usize = 5000;
const MAX_DELAY: Delay = Delay(3_600_000);

/// Our listener over a store in memory.
struct Door {
    address: SocketAddr,
    store: Arc<MemoryStore>,
    clients: Clients,
    metrics: Metrics,
    tracker: TaskTracker,
    drain: CancellationToken,
}

impl Door {
    async fn open() -> Self {
        Self::open_with(|_config| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            max_msg_size: MAX_MSG_SIZE,
            max_body_size: MAX_BODY_SIZE,
            max_delay: MAX_DELAY,
            heartbeat_interval: Duration::from_secs(30),
            max_heartbeat_interval: Duration::from_mins(1),
            max_connections: 100,
            handshake_timeout: Duration::from_secs(5),
            connection_in_flight_bytes_max: 1024 * 1024,
            transports: Transports {
                max_deflate_level: 6,
                ..Transports::default()
            },
            access: None,
            hosts: Hosts::default(),
            in_flight_bytes_max: 256 * 1024 * 1024,
            limits: Limits::default(),
        };
        change(&mut config);
        let store = Arc::new(MemoryStore::new());
        let dyn_store: Arc<dyn ScheduleStore> = Arc::<MemoryStore>::clone(&store);
        let intake = Intake::new(dyn_store, config, None);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = Self {
            address: socket.local_addr().unwrap(),
            store,
            clients: Clients::default(),
            metrics: Metrics::default(),
            tracker: TaskTracker::new(),
            drain: CancellationToken::new(),
        };
        door.tracker.spawn(listener::serve(
            socket,
            intake,
            door.clients.clone(),
            door.metrics.clone(),
            door.tracker.clone(),
            door.drain.clone(),
        ));
        door
    }

    async fn client(&self) -> Client {
        let mut client = Client::connect(self.address).await;
        client.send(b"  V2").await;
        client
    }

    fn only_client(&self) -> Option<ClientStats> {
        self.clients.snapshot().into_iter().next()
    }
}

/// A raw connection.
struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            buffer: BytesMut::new(),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn close_writing(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next frame: a response as it is, an error behind `!`. `None`: closed.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, 1 << 20).unwrap() {
                let sign = match frame.kind {
                    FrameType::Response => "",
                    FrameType::Error => "!",
                    FrameType::Message => "message ",
                };
                return Some(format!("{sign}{}", show(&frame.body)));
            }
            let read = tokio::time::timeout(wait::LIMIT, self.stream.read_buf(&mut self.buffer));
            // A reset, which nsqd may send after its last frame, is a close too.
            if read.await.expect("a frame or a close").unwrap_or(0) == 0 {
                assert!(self.buffer.is_empty(), "half a frame");
                return None;
            }
        }
    }

    async fn expect(&mut self, frame: &str) {
        assert_eq!(self.next().await.as_deref(), Some(frame));
    }

    async fn expect_closed(&mut self) {
        assert_eq!(self.next().await, None);
    }

    async fn all(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// Printable ASCII as it is, other bytes as `\xNN`.
fn show(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").unwrap(),
        }
    }
    text
}

/// Whether the client closes its half after sending.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It says that there is no more.
    Closes,
    /// It says nothing: the server closes.
    Waits,
}

async fn transcript(address: SocketAddr, bytes: &[u8], then: Then) -> Vec<String> {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    if then == Then::Closes {
        client.close_writing().await;
    }
    client.all().await
}

fn sized(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// `V2`, then the parts.
fn v2(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"  V2".to_vec();
    bytes.extend(parts.concat());
    bytes
}

fn identify(json: &str) -> Vec<u8> {
    [b"IDENTIFY\n".as_slice(), &sized(json.as_bytes())].concat()
}

fn mpub_body(bodies: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(bodies.len()).unwrap();
    let mut body = count.to_be_bytes().to_vec();
    body.extend(bodies.iter().flat_map(|body| sized(body)));
    sized(&body)
}

/// A sized body.
const HI: &[u8] = b"\0\0\0\x02hi";
