//! One connection of nsqd's TCP protocol: magic, commands in, frames out, heartbeats, and an end of
//! which the client learns why. One task owns the socket. Knows neither Redis nor nsqd's whereabouts.

mod clock;
mod conversation;
mod flight;
mod upgrade;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use conversation::{Conversation, End, Pause};
use upgrade::upgrade;

use crate::ingest::Intake;
use crate::ingest::clients::{ClientStats, Clients};
use crate::ingest::metrics::{Door, DoorLabel, Metrics};
use crate::nsq::MAGIC;
use crate::nsq::error_code::{ErrorCode, Refusal};
use crate::transport::{self, Incoming, Outgoing};

/// What all sessions share. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    intake: Intake,
    clients: Clients,
    metrics: Metrics,
}

/// How long what a client still sends is read and discarded after the last frame, so that no reset
/// overtakes that frame.
const LINGER: Duration = Duration::from_secs(5);
/// The same while we are stopping.
const LINGER_DRAINING: Duration = Duration::from_secs(1);
/// Bytes discarded at a time.
const DISCARD_LEN: usize = 16 * 1024;
const MS_PER_S: u64 = 1000;

impl Desk {
    pub(super) fn new(intake: Intake, clients: Clients, metrics: Metrics) -> Self {
        Self {
            intake,
            clients,
            metrics,
        }
    }

    fn label() -> DoorLabel {
        DoorLabel { door: Door::Tcp }
    }
}

/// Serves one connection to its end.
pub(super) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    number: u64,
    desk: Desk,
    drain: CancellationToken,
) {
    let (mut incoming, mut outgoing) = transport::plain(stream);
    let wait = desk.intake.config.handshake_timeout;
    let magic = tokio::select! {
        biased;
        () = drain.cancelled() => return,
        magic = timeout(wait, read_magic(&mut incoming)) => magic,
    };
    match magic {
        Ok(Ok(magic)) if &magic == MAGIC => {}
        Ok(Ok(_)) => {
            let refusal = Refusal::new(ErrorCode::BadProtocol, Vec::new());
            tell_last(&mut incoming, &mut outgoing, &refusal).await;
            return;
        }
        Ok(Err(error)) => {
            debug!(%peer, %error, "closed before the magic");
            return;
        }
        Err(_elapsed) => {
            debug!(%peer, "no magic came");
            return;
        }
    }
    desk.clients.put(number, stats(&desk, peer));
    let mut conversation = Conversation::new(number, desk.clone(), peer.ip());
    let end = loop {
        match conversation.run(&mut incoming, &mut outgoing, &drain).await {
            Pause::Ended(end) => break end,
            Pause::Upgrade(upgrades) => {
                let door = &desk.intake.config.transports;
                match upgrade(door, incoming, outgoing, upgrades, &mut conversation).await {
                    Some(halves) => (incoming, outgoing) = halves,
                    None => return desk.clients.remove(number),
                }
            }
        }
    };
    desk.clients.remove(number);
    debug!(%peer, ?end, "connection ended");
    match end {
        End::Closed => {}
        End::Told if drain.is_cancelled() => {
            linger(&mut incoming, &mut outgoing, LINGER_DRAINING).await;
        }
        End::Told => linger(&mut incoming, &mut outgoing, LINGER).await,
    }
}

/// A client that has said nothing yet.
fn stats(desk: &Desk, peer: SocketAddr) -> ClientStats {
    let host = peer.ip().to_string();
    ClientStats {
        client_id: host.clone(),
        hostname: host,
        user_agent: String::new(),
        remote_address: peer,
        connect_ts: desk.intake.store.now().0 / MS_PER_S,
        message_count: 0,
        pub_counts: std::collections::BTreeMap::new(),
        sample_rate: 0,
        tls: None,
        compression: None,
        identity: None,
    }
}

/// Sends a refusal and ends the connection.
async fn tell_last(incoming: &mut Incoming, outgoing: &mut Outgoing, refusal: &Refusal) {
    let mut frame = BytesMut::new();
    refusal.encode(&mut frame);
    if outgoing.write_all(&frame).await.is_ok() {
        linger(incoming, outgoing, LINGER).await;
    }
}

async fn read_magic(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<[u8; MAGIC.len()]> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic).await?;
    Ok(magic)
}

/// Closes the writing side, then reads and discards until the client closes too, at most for `wait`.
async fn linger(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    wait: Duration,
) {
    let discard = async {
        writer.shutdown().await?;
        let mut bytes = BytesMut::with_capacity(DISCARD_LEN);
        while reader.read_buf(&mut bytes).await? > 0 {
            bytes.clear();
        }
        Ok::<(), std::io::Error>(())
    };
    match timeout(wait, discard).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => debug!(%error, "connection was reset after its last frame"),
    }
}
