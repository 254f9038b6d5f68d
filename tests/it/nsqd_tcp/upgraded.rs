//! A client that goes on in TLS, snappy or deflate, as the answer to its IDENTIFY says.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use nsqdelayd::nsq::frame::{Frame, FrameType};
use nsqdelayd::transport::{self, Compression, Incoming, Outgoing};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{identify, show};
use crate::support::wait;

/// Bytes that a read takes at most, so that frames come in pieces too.
const READ_LEN: usize = 700;

/// A connection after its IDENTIFY, in whatever was agreed on.
pub(super) struct Upgraded {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    buffer: BytesMut,
    seen: Vec<String>,
}

impl Upgraded {
    /// Sends `json` as IDENTIFY and does what the answer says; that answer and the `OK`s are the first
    /// of what it has seen. `Err`: what it had seen when there was nothing to go on with.
    pub(super) async fn connect(
        address: SocketAddr,
        json: &str,
        tls: Arc<ClientConfig>,
    ) -> Result<Self, Vec<String>> {
        let stream = TcpStream::connect(address).await.unwrap();
        let (incoming, outgoing) = transport::plain(stream);
        let mut client = Self::of(incoming, outgoing);
        let begin = [b"  V2".as_slice(), &identify(json)].concat();
        client.send(&begin).await;
        client.see().await?;
        let answer: Value = serde_json::from_str(&client.seen[0]).unwrap_or_default();
        let level = answer["deflate_level"].as_u64().unwrap_or_default();
        let compression = match (answer["snappy"] == true, answer["deflate"] == true) {
            (true, _) => Some(Compression::Snappy),
            (_, true) => Some(Compression::Deflate(u32::try_from(level).unwrap())),
            _ => None,
        };
        if answer["tls_v1"] == true {
            let stream = transport::unite(client.incoming, client.outgoing).unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let connected = TlsConnector::from(tls).connect(name, stream).await;
            let Ok(stream) = connected else {
                client.seen.push("no TLS".to_owned());
                return Err(client.seen);
            };
            (client.incoming, client.outgoing) = transport::in_tls(stream.into());
            if client.next().await.as_deref() != Some("OK") {
                client.seen.push("no OK in TLS".to_owned());
                return Err(client.seen);
            }
            client.seen.push("OK in TLS".to_owned());
        }
        if let Some(compression) = compression {
            client.incoming.compressed(compression);
            client.outgoing.compressed(compression);
            client.see().await?;
        }
        Ok(client)
    }

    /// Of halves that somebody else has prepared.
    pub(super) fn of(incoming: Incoming, outgoing: Outgoing) -> Self {
        Self {
            incoming,
            outgoing,
            buffer: BytesMut::new(),
            seen: Vec::new(),
        }
    }

    async fn see(&mut self) -> Result<(), Vec<String>> {
        match self.next().await {
            Some(frame) => {
                self.seen.push(frame);
                Ok(())
            }
            None => Err(std::mem::take(&mut self.seen)),
        }
    }

    /// The server may have closed already: what it said before is what counts.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        if self.outgoing.write_all(bytes).await.is_ok() {
            drop(self.outgoing.flush().await);
        }
    }

    pub(super) async fn close_writing(&mut self) {
        drop(self.outgoing.shutdown().await);
    }

    /// The next frame; `None`: closed.
    pub(super) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer, 1 << 20).unwrap() {
                let error = frame.kind == FrameType::Error;
                let sign = if error { "!" } else { "" };
                return Some(format!("{sign}{}", show(&frame.body)));
            }
            // Not a byte more than the frame: what follows may be in something else.
            let size = self.buffer.first_chunk::<4>();
            let size = size.map_or(0, |size| u32::from_be_bytes(*size));
            let missing = 4 + usize::try_from(size).unwrap() - self.buffer.len();
            let mut piece = vec![0; missing.min(READ_LEN)];
            let read = tokio::time::timeout(wait::LIMIT, self.incoming.read(&mut piece));
            match read.await.expect("a frame or a close").unwrap_or(0) {
                0 => return None,
                len => self.buffer.extend_from_slice(&piece[..len]),
            }
        }
    }

    /// Everything that it sees until the server closes, from the answer to IDENTIFY on.
    pub(super) async fn all(mut self) -> Vec<String> {
        while let Some(frame) = self.next().await {
            self.seen.push(frame);
        }
        self.seen
    }
}

/// The whole conversation: IDENTIFY, upgrades, then `sends`, and the end of ours if `closes`.
pub(super) async fn conversation(
    address: SocketAddr,
    json: &str,
    tls: Arc<ClientConfig>,
    sends: &[&[u8]],
    closes: bool,
) -> Vec<String> {
    let mut client = match Upgraded::connect(address, json, tls).await {
        Ok(client) => client,
        Err(seen) => return seen,
    };
    for piece in sends {
        client.send(piece).await;
    }
    if closes {
        client.close_writing().await;
    }
    client.all().await
}
