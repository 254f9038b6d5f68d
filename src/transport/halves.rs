//! The two halves of a connection: the socket's, plain or in TLS, and over it a compression or none.
//! What is written is certain to be seen by the other side only after a flush.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;
use tokio_util::io::poll_read_buf;

use super::Compression;
use super::deflate::{DeflateReader, DeflateWriter, Inflated};
use super::snappy::{SnappyReader, SnappyWriter};

/// Room for one read of compressed bytes.
const RAW_LEN: usize = 8 * 1024;

/// What the other side sends.
#[derive(Debug)]
pub struct Incoming {
    wire: WireReader,
    unpacker: Option<Unpacker>,
    /// Read and not unpacked.
    raw: BytesMut,
}

/// What we send.
#[derive(Debug)]
pub struct Outgoing {
    wire: WireWriter,
    packer: Option<Packer>,
    /// Packed, and written up to `written`.
    raw: Vec<u8>,
    written: usize,
}

#[derive(Debug)]
enum WireReader {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

#[derive(Debug)]
enum WireWriter {
    Plain(OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

/// Boxed: most connections have none.
#[derive(Debug)]
enum Unpacker {
    Snappy(Box<SnappyReader>),
    Deflate(Box<DeflateReader>),
}

#[derive(Debug)]
enum Packer {
    Snappy(Box<SnappyWriter>),
    Deflate(Box<DeflateWriter>),
}

/// Both halves of a socket.
pub fn plain(stream: TcpStream) -> (Incoming, Outgoing) {
    let (reader, writer) = stream.into_split();
    halves(WireReader::Plain(reader), WireWriter::Plain(writer))
}

/// Both halves of a connection in TLS.
pub fn tls(stream: TlsStream<TcpStream>) -> (Incoming, Outgoing) {
    let (reader, writer) = tokio::io::split(stream);
    halves(WireReader::Tls(reader), WireWriter::Tls(writer))
}

fn halves(reader: WireReader, writer: WireWriter) -> (Incoming, Outgoing) {
    let incoming = Incoming {
        wire: reader,
        unpacker: None,
        raw: BytesMut::new(),
    };
    let outgoing = Outgoing {
        wire: writer,
        packer: None,
        raw: Vec::new(),
        written: 0,
    };
    (incoming, outgoing)
}

/// The socket, if it carries no TLS. What was read and not unpacked is lost, as in nsqd.
pub fn unite(incoming: Incoming, outgoing: Outgoing) -> Option<TcpStream> {
    match (incoming.wire, outgoing.wire) {
        (WireReader::Plain(reader), WireWriter::Plain(writer)) => reader.reunite(writer).ok(),
        _ => None,
    }
}

impl Incoming {
    /// From the next byte on, what comes is compressed. What was read and not unpacked is lost.
    pub fn compressed(&mut self, compression: Compression) {
        self.compressed_from(compression, BytesMut::new());
    }

    /// The same, where `read` was read beyond the last byte that is not compressed.
    pub fn compressed_from(&mut self, compression: Compression, read: BytesMut) {
        self.raw = read;
        self.unpacker = Some(match compression {
            Compression::Snappy => Unpacker::Snappy(Box::new(SnappyReader::new())),
            Compression::Deflate(_level) => Unpacker::Deflate(Box::new(DeflateReader::new())),
        });
    }
}

impl Outgoing {
    /// From the next byte on, what goes is compressed. Flush first.
    pub fn compressed(&mut self, compression: Compression) {
        self.packer = Some(match compression {
            Compression::Snappy => Packer::Snappy(Box::new(SnappyWriter::new())),
            Compression::Deflate(level) => Packer::Deflate(Box::new(DeflateWriter::new(level))),
        });
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.raw.get(self.written..) {
            let len = ready!(Pin::new(&mut self.wire).poll_write(cx, rest))?;
            if len == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += len;
        }
        self.raw.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Incoming {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(unpacker) = &mut this.unpacker else {
            return Pin::new(&mut this.wire).poll_read(cx, buf);
        };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let out = buf.initialize_unfilled();
            let (len, wanted) = match unpacker {
                Unpacker::Snappy(reader) => reader.read(&mut this.raw, out)?,
                Unpacker::Deflate(reader) => match reader.read(&mut this.raw, out)? {
                    Inflated::Bytes(len) => (len, 0),
                    Inflated::NeedsMore => (0, RAW_LEN),
                    Inflated::End => return Poll::Ready(Ok(())),
                },
            };
            if len > 0 {
                buf.advance(len);
                return Poll::Ready(Ok(()));
            }
            this.raw
                .reserve(wanted.saturating_sub(this.raw.len()).max(RAW_LEN));
            if ready!(poll_read_buf(Pin::new(&mut this.wire), cx, &mut this.raw))? == 0 {
                // An end is an end, also in the middle of a chunk: what was said before it counts.
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.packer.is_none() {
            return Pin::new(&mut this.wire).poll_write(cx, buf);
        }
        // At most one write's worth is kept.
        ready!(this.poll_drain(cx))?;
        Poll::Ready(match &mut this.packer {
            None => Ok(0),
            Some(Packer::Snappy(writer)) => writer.write(buf, &mut this.raw),
            Some(Packer::Deflate(writer)) => writer.write(buf, &mut this.raw).map(|()| buf.len()),
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(Packer::Deflate(writer)) = &mut this.packer {
            writer.flush(&mut this.raw)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(Packer::Deflate(mut writer)) = this.packer.take() {
            // nsqd breaks off, which some clients take for an error.
            writer.finish(&mut this.raw)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.wire).poll_shutdown(cx)
    }
}

impl AsyncRead for WireReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(reader) => Pin::new(reader).poll_read(cx, buf),
            Self::Tls(reader) => Pin::new(reader).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for WireWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(writer) => Pin::new(writer).poll_write(cx, buf),
            Self::Tls(writer) => Pin::new(writer).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(writer) => Pin::new(writer).poll_flush(cx),
            Self::Tls(writer) => Pin::new(writer).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(writer) => Pin::new(writer).poll_shutdown(cx),
            Self::Tls(writer) => Pin::new(writer).poll_shutdown(cx),
        }
    }
}
