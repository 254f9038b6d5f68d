//! The beginning of a conversation: connects, identifies, takes up TLS and compression, and says the
//! secret. In nsqd's order: IDENTIFY in plain, TLS, compression, AUTH.

use std::sync::Arc;

use serde::Serialize;
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::nsq::MAGIC;
use crate::nsq::command::{encode_auth, encode_identify};
use crate::nsq::frame::OK_BODY;
use crate::nsqd::{Fault, Identity, Reader, Wishes, Writer, text};
use crate::transport::{Compression, in_tls, plain};

/// Connects to the nsqd at `address`. Cancel safe: a connection that is half made is closed.
pub(super) async fn greet(
    address: &str,
    wishes: &Wishes,
) -> Result<(Reader, Writer, Identity), Fault> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut raw = Raw::new(stream);
    let identity = raw.identify(wishes).await?;
    let (mut reader, mut writer) = match &wishes.carriage.tls {
        // Never in plain what was to be secret.
        Some(_) if !identity.tls_v1 => return Err(Fault::NoTls),
        Some(tls) => {
            let stream = handshake(address, Arc::clone(tls), raw.stream).await?;
            let (incoming, outgoing) = in_tls(stream);
            let mut reader = Reader::new(incoming, raw.input);
            expect_ok(&mut reader).await?;
            (reader, Writer::new(outgoing))
        }
        None => {
            let (incoming, outgoing) = plain(raw.stream);
            (Reader::new(incoming, raw.input), Writer::new(outgoing))
        }
    };
    let agreed = wishes.carriage.compression.filter(|wanted| match wanted {
        Compression::Snappy => identity.snappy,
        Compression::Deflate(_) => identity.deflate,
    });
    if let Some(compression) = agreed {
        // The first compressed bytes may have come together with the last that are not.
        let read = std::mem::take(&mut reader.input);
        reader.stream.compressed_from(compression, read);
        writer.stream.compressed(compression);
        expect_ok(&mut reader).await?;
    }
    if identity.auth_required {
        let secret = &wishes.carriage.auth_secret;
        let secret = secret.as_ref().ok_or(Fault::AuthRequired)?;
        encode_auth(secret.0.as_bytes(), &mut writer.output);
        writer.flush().await?;
        reader.answer().await?;
    }
    Ok((reader, writer, identity))
}

/// A socket before it is known what it will carry.
struct Raw {
    stream: TcpStream,
    /// Read and not decoded.
    input: bytes::BytesMut,
}

impl Raw {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            input: bytes::BytesMut::new(),
        }
    }

    async fn identify(&mut self, wishes: &Wishes) -> Result<Identity, Fault> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut output = bytes::BytesMut::from(&MAGIC[..]);
        encode_identify(json(wishes).as_bytes(), &mut output);
        self.stream.write_all_buf(&mut output).await?;
        loop {
            if let Some(answer) = super::next_answer(&mut self.input)? {
                return if answer == OK_BODY {
                    Ok(Identity::default())
                } else {
                    let said = serde_json::from_slice(&answer);
                    said.map_err(|_not_json| Fault::Unexpected(text(&answer)))
                };
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(Fault::Closed);
            }
        }
    }
}

async fn handshake(
    address: &str,
    tls: Arc<ClientConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Fault> {
    let (host, _port) = address.rsplit_once(':').unwrap_or((address, ""));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned())
        .map_err(|_bad| Fault::Tls(format!("{host} is no name for a certificate")))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream = stream.map_err(|error| Fault::Tls(error.to_string()))?;
    Ok(TlsStream::Client(stream))
}

async fn expect_ok(reader: &mut Reader) -> Result<(), Fault> {
    let answer = reader.answer().await?;
    if answer == OK_BODY {
        return Ok(());
    }
    Err(Fault::Unexpected(text(&answer)))
}

/// The body of IDENTIFY; what is left out is nsqd's own default.
#[derive(Serialize)]
struct Wish<'a> {
    client_id: &'a str,
    hostname: &'a str,
    user_agent: &'a str,
    feature_negotiation: bool,
    heartbeat_interval: u128,
    tls_v1: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    msg_timeout: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_buffer_size: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_buffer_timeout: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snappy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deflate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deflate_level: Option<u32>,
}

/// The body of IDENTIFY.
fn json(wishes: &Wishes) -> String {
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let deflate_level = match wishes.carriage.compression {
        Some(Compression::Deflate(level)) => Some(level),
        _ => None,
    };
    let identity = Wish {
        client_id: hostname.split('.').next().unwrap_or_default(),
        hostname: &hostname,
        user_agent: concat!("nsqdelayd/", env!("CARGO_PKG_VERSION")),
        feature_negotiation: true,
        heartbeat_interval: wishes.heartbeat_interval.as_millis(),
        tls_v1: wishes.carriage.tls.is_some(),
        msg_timeout: wishes.msg_timeout.map(|timeout| timeout.as_millis()),
        output_buffer_size: wishes.unbuffered.then_some(-1),
        output_buffer_timeout: wishes.unbuffered.then_some(-1),
        snappy: (wishes.carriage.compression == Some(Compression::Snappy)).then_some(true),
        deflate: deflate_level.map(|_| true),
        deflate_level,
    };
    serde_json::to_string(&identity).unwrap_or_default()
}
