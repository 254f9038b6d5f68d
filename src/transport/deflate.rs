//! Raw deflate, bytes in and bytes out, with a sync flush wherever the other side is to see all that was
//! written. What a few bytes become is made piece by piece, as there is room for it. Pure.

use std::io;

use bytes::{Buf as _, BytesMut};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

/// Room made for what is written, at a time.
const ROOM: usize = 4 * 1024;

/// Reads a raw deflate stream.
#[derive(Debug)]
pub(super) struct DeflateReader {
    stream: Decompress,
    /// The last read filled its room, so that more may come out without more going in.
    full: bool,
    ended: bool,
}

/// What reading gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inflated {
    /// So many bytes.
    Bytes(usize),
    /// None: more must come in.
    NeedsMore,
    /// The stream has ended.
    End,
}

impl DeflateReader {
    pub(super) fn new() -> Self {
        Self {
            stream: Decompress::new(false),
            full: false,
            ended: false,
        }
    }

    /// Fills `out` from `raw` as far as both go.
    pub(super) fn read(&mut self, raw: &mut BytesMut, out: &mut [u8]) -> io::Result<Inflated> {
        while !self.ended && (self.full || !raw.is_empty()) {
            let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
            let status = self
                .stream
                .decompress(raw, out, FlushDecompress::None)
                .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, fault))?;
            let taken = length(self.stream.total_in() - before_in);
            let made = length(self.stream.total_out() - before_out);
            raw.advance(taken);
            self.full = made == out.len();
            self.ended = status == Status::StreamEnd;
            if made > 0 {
                return Ok(Inflated::Bytes(made));
            }
            if taken == 0 {
                break;
            }
        }
        Ok(if self.ended {
            Inflated::End
        } else {
            Inflated::NeedsMore
        })
    }
}

/// Of one call, which is bounded by the slices that it was given.
fn length(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Writes a raw deflate stream.
#[derive(Debug)]
pub(super) struct DeflateWriter {
    stream: Compress,
    /// Something was written since the last flush.
    dirty: bool,
}

impl DeflateWriter {
    /// `level` is 1 to 9.
    pub(super) fn new(level: u32) -> Self {
        Self {
            stream: Compress::new(flate2::Compression::new(level), false),
            dirty: false,
        }
    }

    /// Appends to `raw` what is already certain of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8], raw: &mut Vec<u8>) -> io::Result<()> {
        self.dirty = true;
        self.run(bytes, FlushCompress::None, raw)
    }

    /// Appends all that is missing for the other side to read everything written so far.
    pub(super) fn flush(&mut self, raw: &mut Vec<u8>) -> io::Result<()> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(());
        }
        self.run(&[], FlushCompress::Sync, raw)
    }

    /// Ends the stream, so that a reader sees an end and not a break.
    pub(super) fn finish(&mut self, raw: &mut Vec<u8>) -> io::Result<()> {
        self.dirty = false;
        self.run(&[], FlushCompress::Finish, raw)
    }

    fn run(&mut self, mut bytes: &[u8], flush: FlushCompress, raw: &mut Vec<u8>) -> io::Result<()> {
        loop {
            raw.reserve(ROOM);
            let before = self.stream.total_in();
            let status = self.stream.compress_vec(bytes, raw, flush)?;
            let taken = length(self.stream.total_in() - before);
            bytes = bytes.get(taken..).unwrap_or_default();
            // Room that is left means that nothing more came.
            let complete = bytes.is_empty() && raw.len() < raw.capacity();
            if complete || status == Status::StreamEnd {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(wire: &[u8], cut: usize, room: usize) -> (Vec<u8>, Inflated) {
        let mut reader = DeflateReader::new();
        let (mut raw, mut seen) = (BytesMut::new(), Vec::new());
        let mut last = Inflated::NeedsMore;
        for piece in wire.chunks(cut) {
            raw.extend_from_slice(piece);
            loop {
                let mut out = vec![0; room];
                last = reader.read(&mut raw, &mut out).unwrap();
                let Inflated::Bytes(len) = last else { break };
                seen.extend_from_slice(&out[..len]);
            }
        }
        (seen, last)
    }

    proptest! {
        #[test]
        fn what_was_flushed_is_read_at_once_however_it_is_cut(
            pieces in proptest::collection::vec(proptest::collection::vec(0..4_u8, 0..3000), 0..5),
            level in 1..10_u32,
            cut in 1..500_usize,
            room in 1..300_usize,
        ) {
            let mut writer = DeflateWriter::new(level);
            let mut wire = Vec::new();
            for piece in &pieces {
                writer.write(piece, &mut wire).unwrap();
                writer.flush(&mut wire).unwrap();
            }
            let (seen, last) = read(&wire, cut, room);
            prop_assert_eq!(seen, pieces.concat());
            prop_assert_eq!(last, Inflated::NeedsMore);
            writer.finish(&mut wire).unwrap();
            prop_assert_eq!(read(&wire, cut, room), (pieces.concat(), Inflated::End));
        }
    }

    #[test]
    fn a_flush_of_nothing_writes_nothing() {
        let mut writer = DeflateWriter::new(6);
        let mut wire = Vec::new();
        writer.write(b"abc", &mut wire).unwrap();
        writer.flush(&mut wire).unwrap();
        let len = wire.len();
        writer.flush(&mut wire).unwrap();
        assert_eq!(wire.len(), len);
    }

    #[test]
    fn a_bomb_is_made_piece_by_piece() {
        let mut writer = DeflateWriter::new(9);
        let mut wire = Vec::new();
        let zeros = vec![0; 1 << 20];
        for _ in 0..100 {
            writer.write(&zeros, &mut wire).unwrap();
        }
        writer.finish(&mut wire).unwrap();
        assert!(wire.len() < 1 << 20);
        let (mut raw, mut out, mut made) = (BytesMut::from(wire.as_slice()), [0; 4096], 0);
        let mut reader = DeflateReader::new();
        while let Inflated::Bytes(len) = reader.read(&mut raw, &mut out).unwrap() {
            made += len;
        }
        assert_eq!(made, 100 << 20);
    }

    #[test]
    fn garbage_is_refused() {
        let mut raw = BytesMut::from(b"\xff\xff\xff\xff".as_slice());
        let read = DeflateReader::new().read(&mut raw, &mut [0; 9]);
        read.unwrap_err();
    }
}
