//! From the answer to IDENTIFY to what it promised: TLS, then a compression, with an `OK` in each, in
//! nsqd's order. Knows nothing of commands.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

use super::conversation::Conversation;
use super::tell_last;
use crate::ingest::Transports;
use crate::nsq::error_code::{ErrorCode, Refusal};
use crate::nsq::frame;
use crate::nsq::identify::Upgrades;
use crate::transport::tls::Peer;
use crate::transport::{self, Compression, Incoming, Outgoing};

/// nsqd's limit on a handshake, and ours on the `OK` after it.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Types of TLS records that may come first.
const ALERT: u8 = 0x15;
const HANDSHAKE: u8 = 0x16;

/// Upgrades a connection on which all is sent. `None`: it has ended.
pub(super) async fn upgrade(
    door: &Transports,
    mut incoming: Incoming,
    mut outgoing: Outgoing,
    upgrades: Upgrades,
    conversation: &mut Conversation,
) -> Option<(Incoming, Outgoing)> {
    let compression = match upgrades.deflate_level {
        Some(level) => Some(Compression::Deflate(level)),
        None => upgrades.snappy.then_some(Compression::Snappy),
    };
    if upgrades.tls {
        let config = Arc::clone(door.tls.as_ref()?);
        // A second time over the first is not TLS.
        let stream = transport::unite(incoming, outgoing)?;
        let stream = handshake(config, stream).await?;
        conversation.is_in_tls(Peer::of(stream.get_ref().1));
        (incoming, outgoing) = transport::in_tls(stream.into());
        if compression.is_some() {
            let ok = async {
                outgoing.write_all(frame::OK).await?;
                outgoing.flush().await
            };
            timeout(HANDSHAKE_MAX, ok).await.ok()?.ok()?;
        }
    }
    if let Some(compression) = compression {
        incoming.compressed(compression);
        outgoing.compressed(compression);
    }
    conversation.go_on(compression);
    Some((incoming, outgoing))
}

/// The server's side of it. When it fails, nsqd says why, in plain, and so do we.
async fn handshake(config: Arc<ServerConfig>, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let end = Instant::now() + HANDSHAKE_MAX;
    let (fault, stream) = match timeout_at(end, begins(&stream)).await {
        Ok(Ok(())) => {
            let accept = TlsAcceptor::from(config).accept(stream).into_fallible();
            match timeout_at(end, accept).await {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err((error, stream))) => (format!("tls: {error}"), stream),
                // The socket is in the middle of TLS: there is no way to say anything.
                Err(_elapsed) => return None,
            }
        }
        Ok(Err(fault)) => (fault, stream),
        Err(_elapsed) => (timed_out(&stream), stream),
    };
    debug!(%fault, "no TLS");
    let (mut incoming, mut outgoing) = transport::plain(stream);
    let text = format!("IDENTIFY failed {fault}");
    let refusal = Refusal::new(ErrorCode::IdentifyFailed, text);
    tell_last(&mut incoming, &mut outgoing, &refusal).await;
    None
}

/// Waits for the first byte, which shows what is no TLS at all. In Go's words, as clients and people
/// know them from nsqd.
async fn begins(stream: &TcpStream) -> Result<(), String> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => Err("EOF".to_owned()),
        Ok(_) if matches!(first, [HANDSHAKE | ALERT]) => Ok(()),
        Ok(_) => Err("tls: first record does not look like a TLS handshake".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn timed_out(stream: &TcpStream) -> String {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => format!("read tcp {local}->{peer}: i/o timeout"),
        _ => "i/o timeout".to_owned(),
    }
}
