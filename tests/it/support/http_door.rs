//! Our HTTP server over a store in memory, in this very program, and a client that sends what the
//! test wrote and reads one answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nsqdelayd::ingest::access::Hosts;
use nsqdelayd::ingest::clients::{ClientStats, Clients};
use nsqdelayd::ingest::http::{HttpState, InstanceFacts, serve};
use nsqdelayd::ingest::metrics::Metrics;
use nsqdelayd::ingest::{Config, Intake, Limits, Transports};
use nsqdelayd::message::{Delay, TopicName};
use nsqdelayd::phase::Phase;
use nsqdelayd::store::ScheduleStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::memory_store::MemoryStore;

pub(crate) const MAX_MSG_SIZE: usize = 1000;
pub(crate) const MAX_BODY_SIZE: usize = 5000;
pub(crate) const MAX_DELAY: Delay = Delay(3_600_000);

/// The server and what is behind it.
#[derive(Debug)]
pub(crate) struct HttpDoor {
    pub(crate) address: String,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) clients: Clients,
    pub(crate) metrics: Metrics,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) tracker: TaskTracker,
    pub(crate) drain: CancellationToken,
}

impl HttpDoor {
    /// A TCP client that has published one message to each of these topics.
    pub(crate) fn put_producer(&self, remote_address: SocketAddr, topics: &[&str]) {
        let count = |name: &&str| (TopicName::parse(name.as_bytes()).unwrap(), 1);
        self.clients.put(
            1,
            ClientStats {
                client_id: "127.0.0.1".to_owned(),
                hostname: "127.0.0.1".to_owned(),
                user_agent: String::new(),
                remote_address,
                connect_ts: 1,
                message_count: 0,
                pub_counts: topics.iter().map(count).collect(),
                sample_rate: 0,
                tls: None,
                compression: None,
                identity: None,
            },
        );
    }

    pub(crate) async fn open() -> Self {
        Self::open_with(|_config| {}).await
    }

    pub(crate) async fn open_with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            max_msg_size: MAX_MSG_SIZE,
            max_body_size: MAX_BODY_SIZE,
            max_delay: MAX_DELAY,
            heartbeat_interval: Duration::from_secs(30),
            max_heartbeat_interval: Duration::from_mins(1),
            max_connections: 100,
            handshake_timeout: Duration::from_secs(30),
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(MemoryStore::new());
        let dyn_store: Arc<dyn ScheduleStore> = Arc::<MemoryStore>::clone(&store);
        let (phase, phases) = watch::channel(Phase::Serving);
        let door = Self {
            address: address.to_string(),
            store,
            clients: Clients::default(),
            metrics: Metrics::default(),
            phase,
            tracker: TaskTracker::new(),
            drain: CancellationToken::new(),
        };
        let state = HttpState {
            intake: Intake::new(dyn_store, config, None),
            clients: door.clients.clone(),
            metrics: door.metrics.clone(),
            phase: phases,
            exposition: Arc::new(|| "# EOF\n".to_owned()),
            start: Arc::new(InstanceFacts {
                version: "0.1.0".to_owned(),
                hostname: "here".to_owned(),
                broadcast_address: "127.0.0.1".to_owned(),
                tcp_port: 4140,
                http_port: address.port(),
                https_port: 0,
                start_time_unix_s: 1_800_000_000,
            }),
            unready: Arc::new(Vec::new),
        };
        let server = serve(
            listener,
            None,
            state,
            door.tracker.clone(),
            door.drain.clone(),
        );
        door.tracker.spawn(server);
        door
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> Reply {
        Line::connect(&self.address).await.ask(request).await
    }

    /// Sends a request with a JSON body.
    pub(crate) async fn json(&self, method: &str, path: &str, body: &str) -> Reply {
        let kind = "Content-Type: application/json\r\n";
        self.ask(request(method, path, kind, body)).await
    }

    /// Sends a request without a body.
    pub(crate) async fn bare(&self, method: &str, path: &str) -> Reply {
        self.ask(request(method, path, "", "")).await
    }
}

impl Drop for HttpDoor {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

/// A request with a body of known length. `headers` are whole lines.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    /// 0: the connection ended without one.
    pub(crate) status: u16,
    /// Names as they came, and values.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) stream: TcpStream,
    pending: Vec<u8>,
}

impl Line {
    pub(crate) async fn connect(address: &str) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            pending: Vec::new(),
        }
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Reply {
        let head = request.as_ref().starts_with(b"HEAD ");
        self.send(request).await;
        self.reply(!head).await
    }

    /// The server may close before all is sent: what it answered counts.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream
            .write_all(bytes.as_ref())
            .await
            .unwrap_or_default();
    }

    /// Reads an answer; `with_body`: not one to HEAD.
    pub(crate) async fn reply(&mut self, with_body: bool) -> Reply {
        let mut ended = false;
        let end = loop {
            if let Some(at) = self.pending.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            ended = ended || !self.more().await;
            if ended {
                return Reply {
                    status: 0,
                    headers: BTreeMap::new(),
                    body: std::mem::take(&mut self.pending),
                };
            }
        };
        let head = String::from_utf8_lossy(&self.pending[..end]).into_owned();
        self.pending.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let status: u16 = status.parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let length = headers.get("Content-Length").map(|l| l.parse().unwrap());
        let length = if with_body && status >= 200 {
            length
        } else {
            Some(0)
        };
        while length.is_none_or(|length: usize| self.pending.len() < length) {
            if !self.more().await {
                break;
            }
        }
        let length = length.unwrap_or(self.pending.len());
        let body = self
            .pending
            .drain(..length.min(self.pending.len()))
            .collect();
        Reply {
            status,
            headers,
            body,
        }
    }

    /// Whether the server has closed, and sent nothing more.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.pending.is_empty() && !self.more().await
    }

    async fn more(&mut self) -> bool {
        let count = self.stream.read_buf(&mut self.pending).await;
        count.is_ok_and(|count| count > 0)
    }
}
