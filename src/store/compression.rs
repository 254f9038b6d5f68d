//! PURE. Packs that are stored compressed: a pack as `pack.rs` writes it, in a frame of zstd, behind a version of its own.
//!
//! ```text
//! version u8 = 3 | flags u8 = 0 | len u32 | frame
//! ```
//!
//! `len` is the length of the pack in the frame, big endian. Knows nothing of what is in it.

use std::cell::RefCell;
use std::io;

use bytes::{Buf as _, BufMut as _, Bytes};
use zstd::bulk::{Compressor, Decompressor};

/// The format of a compressed pack.
pub(super) const VERSION_COMPRESSED: u8 = 3;

/// version, flags, len.
const HEAD_LEN: usize = 1 + 1 + 4;
/// The quickest of zstd's usual levels. On packs of JSON the next ones save nothing more.
const LEVEL: i32 = 1;
/// There is nothing to be gained from less.
const LEN_MIN: usize = 128;
/// More is not worth the memory that it takes on both sides. 256 KiB hold up other work of the thread by up to 1 ms.
const LEN_MAX: usize = 256 << 10;

/// How packs are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// Compressed with zstd, those that get shorter by an eighth or more.
    Zstd,
}

impl Compression {
    /// Reads `none` or `zstd`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::None),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The value to be stored for a pack.
    pub(super) fn apply(self, pack: Vec<u8>) -> Vec<u8> {
        match self {
            Self::None => pack,
            Self::Zstd => compressed(&pack).unwrap_or(pack),
        }
    }
}

thread_local! {
    /// Their workspaces are larger than a pack, and dear to make.
    static COMPRESSOR: RefCell<io::Result<Compressor<'static>>> = RefCell::new(Compressor::new(LEVEL));
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

/// `None`: it is better stored as it is.
fn compressed(pack: &[u8]) -> Option<Vec<u8>> {
    if !(LEN_MIN..=LEN_MAX).contains(&pack.len()) {
        return None;
    }
    let frame = COMPRESSOR.with_borrow_mut(|kept| kept.as_mut().ok()?.compress(pack).ok())?;
    if HEAD_LEN + frame.len() > pack.len() - pack.len() / 8 {
        return None;
    }
    let mut value = Vec::with_capacity(HEAD_LEN + frame.len());
    value.put_u8(VERSION_COMPRESSED);
    value.put_u8(0);
    value.put_u32(u32::try_from(pack.len()).ok()?);
    value.put_slice(&frame);
    Some(value)
}

/// The pack that is in a value of this format; `None`: it is malformed.
pub(super) fn expanded(mut value: Bytes) -> Option<Bytes> {
    let _version = value.try_get_u8().ok()?;
    let _flags = value.try_get_u8().ok()?;
    let len = usize::try_from(value.try_get_u32().ok()?).ok()?;
    if len > LEN_MAX {
        return None;
    }
    let pack = DECOMPRESSOR.with_borrow_mut(|kept| kept.decompress(&value, len));
    pack.ok().filter(|pack| pack.len() == len).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_get_shorter_is_left_as_it_is() {
        let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
            .take(1_000)
            .collect();
        for pack in [noise, vec![b'.'; LEN_MIN - 1], vec![b'.'; LEN_MAX + 1]] {
            assert_eq!(Compression::Zstd.apply(pack.clone()), pack);
        }
        let dots = vec![b'.'; LEN_MAX];
        assert_eq!(Compression::None.apply(dots.clone()), dots);
        assert!(Compression::Zstd.apply(dots).len() < 100);
    }

    #[test]
    fn a_length_that_is_not_true_is_malformed() {
        let value = Compression::Zstd.apply(vec![b'.'; 300]);
        assert!(expanded(Bytes::from(value.clone())).is_some());
        for len in [0, 299, 301, u32::MAX] {
            let mut other = value.clone();
            other[2..HEAD_LEN].copy_from_slice(&len.to_be_bytes());
            assert_eq!(expanded(Bytes::from(other)), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn packs_come_back_as_they_were(part in proptest::collection::vec(any::<u8>(), 1..300), times in 2..100_usize) {
            let pack = part.repeat(times);
            let value = Compression::Zstd.apply(pack.clone());
            if value.first() == Some(&VERSION_COMPRESSED) {
                prop_assert_eq!(expanded(Bytes::from(value)), Some(Bytes::from(pack)));
            } else {
                prop_assert_eq!(value, pack);
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let pack = expanded(Bytes::from(bytes));
            prop_assert!(pack.is_none_or(|pack| pack.len() <= LEN_MAX));
        }
    }
}
