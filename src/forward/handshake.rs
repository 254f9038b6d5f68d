//! Makes a connection to nsqd that can publish: connects, identifies, takes up TLS and compression, and
//! says the secret. In nsqd's order: IDENTIFY in plain, TLS, compression, AUTH. Publishes nothing.

use std::sync::Arc;

use bytes::BytesMut;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsConnector, TlsStream};

use crate::forward::connection::Fault;
use crate::forward::settings::{Carriage, Config};
use crate::nsq::MAGIC;
use crate::nsq::command::{encode_auth, encode_identify};
use crate::nsq::frame::{Frame, FrameType, OK_BODY};
use crate::transport::{Compression, Incoming, Outgoing, in_tls, plain};

/// Longest frame that nsqd may send: its answer to IDENTIFY is some hundred bytes.
pub(super) const FRAME_LEN_MAX: usize = 64 * 1024;
/// Room for reading, in bytes; an OK takes 10.
pub(super) const READ_BYTES: usize = 16 * 1024;

/// A connection on which commands may be sent.
#[derive(Debug)]
pub(super) struct Greeted {
    pub(super) reader: Incoming,
    pub(super) writer: Outgoing,
    /// Read and not decoded.
    pub(super) input: BytesMut,
}

/// What of nsqd's answer to IDENTIFY matters to us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "nsqd's own fields")]
struct Identified {
    auth_required: bool,
    tls_v1: bool,
    snappy: bool,
    deflate: bool,
}

/// Connects to the nsqd at `address`. Cancel safe: a connection that is half made is closed.
pub(super) async fn greet(address: &str, config: &Config) -> Result<Greeted, Fault> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut output = BytesMut::new();
    output.extend_from_slice(MAGIC);
    encode_identify(identity(config).as_bytes(), &mut output);
    stream.write_all_buf(&mut output).await?;
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let identified = identified(&answer(&mut stream, &mut input).await?)?;
    let (mut reader, mut writer) = match &config.carriage.tls {
        // Never in plain what was to be secret.
        Some(_) if !identified.tls_v1 => return Err(Fault::NoTls),
        Some(tls) => {
            let (mut reader, writer) = in_tls(handshake(address, Arc::clone(tls), stream).await?);
            expect_ok(&mut reader, &mut input).await?;
            (reader, writer)
        }
        None => plain(stream),
    };
    let compression = config.carriage.compression;
    let agreed = compression.filter(|wanted| match wanted {
        Compression::Snappy => identified.snappy,
        Compression::Deflate(_) => identified.deflate,
    });
    if let Some(compression) = agreed {
        reader.compressed(compression);
        writer.compressed(compression);
        expect_ok(&mut reader, &mut input).await?;
    }
    if identified.auth_required {
        authenticate(&config.carriage, &mut reader, &mut writer, &mut input).await?;
    }
    Ok(Greeted {
        reader,
        writer,
        input,
    })
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

async fn authenticate(
    carriage: &Carriage,
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    input: &mut BytesMut,
) -> Result<(), Fault> {
    let secret = carriage.auth_secret.as_ref().ok_or(Fault::AuthRequired)?;
    let mut output = BytesMut::new();
    encode_auth(secret.0.as_bytes(), &mut output);
    writer.write_all_buf(&mut output).await?;
    writer.flush().await?;
    let frame = answer(reader, input).await?;
    match frame.kind {
        FrameType::Response => Ok(()),
        FrameType::Error | FrameType::Message => Err(refused(&frame)),
    }
}

async fn expect_ok(
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<(), Fault> {
    let frame = answer(reader, input).await?;
    match frame.kind {
        FrameType::Response if frame.body == OK_BODY => Ok(()),
        FrameType::Response => Err(unexpected(&frame)),
        FrameType::Error | FrameType::Message => Err(refused(&frame)),
    }
}

/// The next frame that is no heartbeat.
async fn answer(
    reader: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Result<Frame, Fault> {
    loop {
        match Frame::decode(input, FRAME_LEN_MAX)? {
            Some(frame) if frame.is_heartbeat() => {}
            Some(frame) => return Ok(frame),
            None if reader.read_buf(input).await? == 0 => return Err(Fault::Closed),
            None => {}
        }
    }
}

/// The body of IDENTIFY.
fn identity(config: &Config) -> String {
    let hostname = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let compression = config.carriage.compression;
    serde_json::json!({
        "client_id": hostname.split('.').next().unwrap_or_default(),
        "hostname": hostname,
        "user_agent": concat!("nsqdelayd/", env!("CARGO_PKG_VERSION")),
        "feature_negotiation": true,
        "heartbeat_interval": config.heartbeat_interval.as_millis(),
        "tls_v1": config.carriage.tls.is_some(),
        "snappy": compression == Some(Compression::Snappy),
        "deflate": matches!(compression, Some(Compression::Deflate(_))),
        "deflate_level": match compression {
            Some(Compression::Deflate(level)) => level,
            // nsqd takes it for its default.
            _ => 0,
        },
    })
    .to_string()
}

fn identified(frame: &Frame) -> Result<Identified, Fault> {
    match frame.kind {
        FrameType::Response if frame.body == OK_BODY => Ok(Identified::default()),
        FrameType::Response => {
            serde_json::from_slice(&frame.body).map_err(|_not_json| unexpected(frame))
        }
        FrameType::Error => Err(refused(frame)),
        FrameType::Message => Err(unexpected(frame)),
    }
}

fn refused(frame: &Frame) -> Fault {
    Fault::Unusable(String::from_utf8_lossy(&frame.body).into_owned())
}

/// A frame that nobody asked for.
pub(super) fn unexpected(frame: &Frame) -> Fault {
    Fault::Unexpected(String::from_utf8_lossy(&frame.body).into_owned())
}
