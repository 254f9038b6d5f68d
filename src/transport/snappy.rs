//! Snappy's framing format, bytes in and bytes out. The crate's reader and writer block; here they are
//! given only what is there: a whole chunk to read, an empty vector to write to. Pure.

use std::fmt;
use std::io::{self, Read as _, Write as _};

use bytes::buf::Reader;
use bytes::{Buf as _, BytesMut};
use snap::read::FrameDecoder;
use snap::write::FrameEncoder;

/// Bytes of a chunk's type and length.
const HEADER_LEN: usize = 4;
/// Longest chunk that is taken, of whatever kind, as nsqd's library does: what 64 KiB become at worst
/// and a checksum. It bounds what one connection can make us keep.
const CHUNK_LEN_MAX: usize = 76_494;
/// Most bytes of a chunk before its compression.
const BLOCK_LEN_MAX: usize = 64 * 1024;
const STREAM_IDENTIFIER: u8 = 0xff;
const STREAM_IDENTIFIER_LEN: usize = 6;
const FIRST_RESERVED: u8 = 0x02;
const LAST_UNSKIPPABLE: u8 = 0x7f;

/// Reads chunks of every kind.
pub(super) struct SnappyReader {
    /// Is given one whole chunk at a time.
    frames: FrameDecoder<Reader<BytesMut>>,
    begun: bool,
    /// What the last chunk held may not have been read to its end.
    open: bool,
}

impl SnappyReader {
    pub(super) fn new() -> Self {
        Self {
            frames: FrameDecoder::new(BytesMut::new().reader()),
            begun: false,
            open: false,
        }
    }

    /// Fills `out` from `raw` as far as both go; 0: a whole chunk is needed, of which so many bytes
    /// are to be in `raw` as the second number says.
    pub(super) fn read(
        &mut self,
        raw: &mut BytesMut,
        out: &mut [u8],
    ) -> io::Result<(usize, usize)> {
        loop {
            if self.open {
                let len = self.frames.read(out)?;
                if len > 0 {
                    return Ok((len, 0));
                }
                self.open = false;
            }
            let wanted = HEADER_LEN + self.next_chunk_len(raw)?.unwrap_or(0);
            if raw.len() < wanted.max(HEADER_LEN) {
                return Ok((0, wanted));
            }
            // All of the chunk before has been read, so that nothing is overwritten here.
            *self.frames.get_mut().get_mut() = raw.split_to(wanted);
            self.begun = true;
            self.open = true;
        }
    }

    /// Refuses by its head what cannot be read, before its bytes are waited for.
    fn next_chunk_len(&self, raw: &[u8]) -> io::Result<Option<usize>> {
        let [kind, low, middle, high, ..] = *raw else {
            return Ok(None);
        };
        let len = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        let fault = if !self.begun && kind != STREAM_IDENTIFIER {
            "snappy: no stream identifier"
        } else if len > CHUNK_LEN_MAX {
            "snappy: chunk too long"
        } else if (FIRST_RESERVED..=LAST_UNSKIPPABLE).contains(&kind) {
            "snappy: reserved chunk"
        } else if kind == STREAM_IDENTIFIER && len != STREAM_IDENTIFIER_LEN {
            "snappy: bad stream identifier"
        } else {
            return Ok(Some(len));
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, fault))
    }
}

impl fmt::Debug for SnappyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnappyReader")
            .field("begun", &self.begun)
            .finish_non_exhaustive()
    }
}

/// Writes one chunk for what it is given, the stream identifier first.
pub(super) struct SnappyWriter(FrameEncoder<Vec<u8>>);

impl SnappyWriter {
    pub(super) fn new() -> Self {
        Self(FrameEncoder::new(Vec::new()))
    }

    /// Appends to `raw` what the beginning of `bytes` becomes, and answers how many were taken.
    pub(super) fn write(&mut self, bytes: &[u8], raw: &mut Vec<u8>) -> io::Result<usize> {
        let block = bytes.get(..BLOCK_LEN_MAX).unwrap_or(bytes);
        self.0.write_all(block)?;
        self.0.flush()?;
        raw.append(self.0.get_mut());
        Ok(block.len())
    }
}

impl fmt::Debug for SnappyWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnappyWriter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTIFIER: &[u8] = b"\xff\x06\0\0sNaPpY";
    const OUT_LEN: usize = 100;

    fn chunk(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        [&[kind], &len[..3], body].concat()
    }

    /// Everything that is read when `wire` comes in pieces, and the fault that ended it.
    fn read(wire: &[u8], cut: usize) -> (Vec<u8>, Option<String>) {
        let mut reader = SnappyReader::new();
        let (mut raw, mut seen) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(cut) {
            raw.extend_from_slice(piece);
            loop {
                let mut out = [0; OUT_LEN];
                match reader.read(&mut raw, &mut out) {
                    Ok((0, wanted)) => {
                        assert!(wanted > raw.len() || raw.len() < HEADER_LEN);
                        break;
                    }
                    Ok((len, _)) => seen.extend_from_slice(&out[..len]),
                    Err(fault) => return (seen, Some(fault.to_string())),
                }
            }
        }
        (seen, None)
    }

    fn written(pieces: &[Vec<u8>]) -> Vec<u8> {
        let mut writer = SnappyWriter::new();
        let mut wire = Vec::new();
        for piece in pieces {
            let mut rest = piece.as_slice();
            while !rest.is_empty() {
                let taken = writer.write(rest, &mut wire).unwrap();
                rest = &rest[taken..];
            }
        }
        wire
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_however_it_is_cut(
            pieces in proptest::collection::vec(proptest::collection::vec(0..4_u8, 0..3000), 0..5),
            cut in 1..500_usize,
        ) {
            let (seen, fault) = read(&written(&pieces), cut);
            prop_assert_eq!(fault, None);
            prop_assert_eq!(seen, pieces.concat());
        }

        #[test]
        fn bent_streams_are_read_the_same_however_they_are_cut(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..4),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            cut in 1..50_usize,
        ) {
            let mut wire = written(&pieces);
            let at = at.index(wire.len());
            wire[at] = byte;
            prop_assert_eq!(read(&wire, cut), read(&wire, wire.len()));
        }
    }

    #[test]
    fn more_than_a_block_becomes_several_chunks() {
        let long = vec![vec![7; 200_000]];
        assert_eq!(read(&written(&long), 1000), (long.concat(), None));
    }

    #[test]
    fn identifiers_padding_and_skippable_chunks_are_passed_over() {
        let data = written(&[b"abc".to_vec()]);
        let wire = [
            IDENTIFIER,
            &chunk(0xfe, &[1; 5]),
            &chunk(0x80, b""),
            &chunk(0xfd, &vec![2; CHUNK_LEN_MAX - 4]),
            &data,
            &data,
        ]
        .concat();
        assert_eq!(read(&wire, 7), (b"abcabc".to_vec(), None));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_head() {
        for (head, fault) in [
            (b"\x00\x05\0\0".as_slice(), "no stream identifier"),
            (b"\xff\x05\0\0", "bad stream identifier"),
        ] {
            let (seen, told) = read(head, 1);
            assert!(seen.is_empty() && told.unwrap().contains(fault), "{fault}");
        }
        for (head, fault) in [
            (b"\x02\0\0\0".as_slice(), "reserved"),
            (b"\x7f\xff\0\0", "reserved"),
            (b"\xfe\xff\xff\xff", "too long"),
            (b"\x00\xcf\x2a\x01", "too long"),
        ] {
            let (_, told) = read(&[IDENTIFIER, head].concat(), 1);
            assert!(told.unwrap().contains(fault), "{fault}");
        }
    }

    #[test]
    fn bad_checksums_and_lengths_are_refused() {
        let mut bent = written(&[b"abc".to_vec()]);
        let last = bent.len() - 1;
        bent[last] ^= 1;
        assert!(read(&bent, 99).1.is_some());
        for body in [b"".as_slice(), b"abc", b"abcd"] {
            let wire = [IDENTIFIER, &chunk(0x00, body)].concat();
            assert!(read(&wire, 99).1.is_some(), "{body:?}");
        }
        // Four bytes that claim to become 4 GiB.
        let bomb = chunk(0x00, b"\0\0\0\0\xff\xff\xff\xff\x0f");
        assert!(read(&[IDENTIFIER, &bomb].concat(), 99).1.is_some());
    }
}
