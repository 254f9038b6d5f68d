//! A message's id, and the place that a minted one names. Pure.
//!
//! A minted id is 200 bits in Crockford's base 32, 40 characters, the due time first, so that ids
//! sort by due:
//!
//! ```text
//! due 42 | generation 16 | shard 16 | offset 12 | k 11 | position 10 | count 10 | nonce 32 | checksum 51
//! ```
//!
//! `due - offset` and `k` are the score of the pack that the message was stored in, `nonce` tells
//! that pack from another that has the score later, `position` is the record in it and `count` how
//! many records it was stored with. So GET is one range read and CANCEL needs no search. The checksum is
//! keyed: an id that we did not mint is refused without asking Redis.

use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::message::{BadClientId, ClientId, MINTED_ID_LEN, UnixMs, looks_minted};
use crate::shard::{Generation, ShardId};

/// The address of a pack in its shard: `due_ms * 2048 + k`, exact in a double until 2109.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score(pub u64);

impl Score {
    /// How many packs may have their earliest message due in the same millisecond.
    pub const PER_MS: u64 = 2048;

    /// The score number `k` of a millisecond; `k` wraps within the millisecond.
    pub fn new(due: UnixMs, k: u64) -> Self {
        Self(due.0.min(UnixMs::MAX.0) * Self::PER_MS + k % Self::PER_MS)
    }

    /// The millisecond in which the pack's earliest message is due.
    pub fn due(self) -> UnixMs {
        UnixMs(self.0 / Self::PER_MS)
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One record of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The pack's address.
    pub score: Score,
    /// Tells the pack from another that had the same address before.
    pub nonce: u32,
    /// The record's number, given when the pack was made; a rewrite keeps it.
    pub position: u16,
}

/// One pack of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackName {
    /// Its address.
    pub score: Score,
    /// Tells it from another that had the same address before.
    pub nonce: u32,
}

impl Place {
    /// The pack.
    pub fn pack(self) -> PackName {
        PackName {
            score: self.score,
            nonce: self.nonce,
        }
    }
}

impl PackName {
    /// A record of it.
    pub fn record(self, position: u16) -> Place {
        Place {
            score: self.score,
            nonce: self.nonce,
            position,
        }
    }
}

/// What a minted id says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MintedId {
    /// When the message is due, as it was accepted.
    pub due: UnixMs,
    /// Where it was stored.
    pub shard: ShardId,
    /// Its record there.
    pub place: Place,
    /// Records in the pack when it was stored.
    pub count: u16,
}

/// The id of a stored message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageId {
    /// Made by us.
    Minted(MintedId),
    /// Chosen by the producer.
    Client(ClientId),
}

/// Why a text is not the id of any message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// It has the shape of a minted id, but its checksum is not ours.
    #[error("no message has this id")]
    NotAuthentic,
    /// It can be neither a minted nor a client's id.
    #[error(transparent)]
    Malformed(#[from] BadClientId),
}

/// The key of the checksums, shared by all instances of a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdKey(pub [u8; 16]);

impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(secret)")
    }
}

/// Most records of a pack: what ten bits of an id can number.
pub const PACK_RECORDS_MAX: u16 = 1 << 10;
/// Latest due of a record after its pack's earliest, in ms: what twelve bits can say.
pub const PACK_WINDOW_MS_MAX: u64 = (1 << 12) - 1;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CHECKSUM_BITS: u32 = 51;
const PAYLOAD_BITS: u32 = 149;

impl IdKey {
    /// The text of a minted id.
    pub fn mint(&self, id: &MintedId) -> String {
        let payload = Payload::pack(id);
        let checksum = self.checksum(&payload);
        payload.to_text(checksum)
    }

    /// Reads an id as a producer gave it.
    pub fn parse(&self, text: &[u8]) -> Result<MessageId, BadId> {
        if !looks_minted(text) {
            return Ok(MessageId::Client(ClientId::parse(text)?));
        }
        let (payload, checksum) = Payload::from_text(text).ok_or(BadId::NotAuthentic)?;
        if checksum != self.checksum(&payload) {
            return Err(BadId::NotAuthentic);
        }
        Ok(MessageId::Minted(payload.unpack()))
    }

    /// The id as a producer sees it.
    pub fn text(&self, id: &MessageId) -> String {
        match id {
            MessageId::Minted(minted) => self.mint(minted),
            MessageId::Client(client) => client.as_str().to_owned(),
        }
    }

    /// A keyed checksum of any bytes: page tokens use it too.
    pub fn sign(&self, bytes: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(bytes);
        hasher.finish()
    }

    fn checksum(&self, payload: &Payload) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write_u128(payload.high);
        hasher.write_u32(payload.low);
        hasher.finish() >> (64 - CHECKSUM_BITS)
    }
}

/// The 149 bits before the checksum: 117 and the nonce's 32.
struct Payload {
    high: u128,
    low: u32,
}

impl Payload {
    fn pack(id: &MintedId) -> Self {
        let offset = id.due.ms_since(id.place.score.due());
        debug_assert!(
            offset <= PACK_WINDOW_MS_MAX && id.count >= 1 && id.count <= PACK_RECORDS_MAX
        );
        let fields: [(u64, u32); 7] = [
            (id.due.0, 42),
            (u64::from(id.shard.generation.0), 16),
            (u64::from(id.shard.index), 16),
            (offset, 12),
            (id.place.score.0 % Score::PER_MS, 11),
            (u64::from(id.place.position), 10),
            (u64::from(id.count.saturating_sub(1)), 10),
        ];
        let high = fields.iter().fold(0_u128, |acc, (value, bits)| {
            (acc << bits) | u128::from(value & ((1 << bits) - 1))
        });
        Self {
            high,
            low: id.place.nonce,
        }
    }

    fn unpack(&self) -> MintedId {
        let mut rest = self.high;
        let mut take = |bits: u32| {
            let value = rest & ((1 << bits) - 1);
            rest >>= bits;
            u64::try_from(value).unwrap_or(0)
        };
        let small = |value: u64| u16::try_from(value).unwrap_or(0);
        let count = small(take(10)) + 1;
        let position = small(take(10));
        let k = take(11);
        let offset = take(12);
        let index = small(take(16));
        let generation = Generation(small(take(16)));
        let due = UnixMs(take(42));
        let score = Score::new(due.minus_ms(offset), k);
        MintedId {
            due,
            shard: ShardId { generation, index },
            place: Place {
                score,
                nonce: self.low,
                position,
            },
            count,
        }
    }

    fn to_text(&self, checksum: u64) -> String {
        // 200 bits: the upper 117 + 11 of the nonce, then its lower 21 + 51 of the checksum.
        let upper = (self.high << 11) | u128::from(self.low >> 21);
        let lower =
            (u128::from(self.low & ((1 << 21) - 1)) << CHECKSUM_BITS) | u128::from(checksum);
        let mut text = String::with_capacity(MINTED_ID_LEN);
        // 128 + 72 bits do not split on digits of 5 bits; walk from the top with a window.
        for digit in (0..40_u32).rev() {
            let low_bit = digit * 5;
            let value = if low_bit >= 72 {
                upper >> (low_bit - 72)
            } else if low_bit + 5 <= 72 {
                lower >> low_bit
            } else {
                (lower >> low_bit) | (upper << (72 - low_bit))
            };
            let index = usize::try_from(value & 31).unwrap_or(0);
            text.push(char::from(ALPHABET.get(index).copied().unwrap_or(b'0')));
        }
        text
    }

    fn from_text(text: &[u8]) -> Option<(Self, u64)> {
        debug_assert_eq!(text.len(), MINTED_ID_LEN);
        let (mut upper, mut lower) = (0_u128, 0_u128);
        for byte in text {
            let value = u128::try_from(ALPHABET.iter().position(|a| a == byte)?).ok()?;
            upper = (upper << 5) | (lower >> 67);
            lower = ((lower << 5) & ((1 << 72) - 1)) | value;
        }
        let checksum = u64::try_from(lower & ((1 << CHECKSUM_BITS) - 1)).ok()?;
        let nonce_low = u32::try_from(lower >> CHECKSUM_BITS).ok()?;
        let nonce_high = u32::try_from(upper & ((1 << 11) - 1)).ok()?;
        Some((
            Self {
                high: upper >> 11,
                low: (nonce_high << 21) | nonce_low,
            },
            checksum,
        ))
    }
}

const _: () = assert!(PAYLOAD_BITS + CHECKSUM_BITS == 200);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn any_minted()(
            base in 4096_u64..UnixMs::MAX.0 - 4096, offset in 0..=PACK_WINDOW_MS_MAX, k in 0..2048_u64,
            generation: u16, index: u16, position in 0..1024_u16, count in 1..=1024_u16, nonce: u32,
        ) -> MintedId {
            MintedId {
                due: UnixMs(base + offset),
                shard: ShardId { generation: Generation(generation), index },
                place: Place { score: Score::new(UnixMs(base), k), nonce, position },
                count,
            }
        }
    }

    proptest! {
        #[test]
        fn minted_ids_come_back_as_they_were(id in any_minted(), key: [u8; 16]) {
            let key = IdKey(key);
            let text = key.mint(&id);
            prop_assert_eq!(text.len(), MINTED_ID_LEN);
            prop_assert_eq!(key.parse(text.as_bytes()), Ok(MessageId::Minted(id)));
        }

        #[test]
        fn ids_sort_by_due(a in any_minted(), b in any_minted()) {
            let key = IdKey([7; 16]);
            if a.due < b.due {
                prop_assert!(key.mint(&a) < key.mint(&b));
            }
        }

        #[test]
        fn one_changed_character_is_not_authentic(id in any_minted(), at in 0..40_usize, to in 0..32_usize) {
            let key = IdKey([7; 16]);
            let mut text = key.mint(&id).into_bytes();
            prop_assume!(text[at] != ALPHABET[to]);
            text[at] = ALPHABET[to];
            prop_assert_eq!(key.parse(&text), Err(BadId::NotAuthentic));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let parsed = IdKey([7; 16]).parse(&bytes);
            prop_assert!(!matches!(parsed, Ok(MessageId::Minted(_))));
        }
    }

    #[test]
    fn another_namespaces_id_is_not_authentic() {
        let id = MintedId {
            due: UnixMs(1_800_000_000_000),
            shard: ShardId {
                generation: Generation(1),
                index: 3,
            },
            place: Place {
                score: Score::new(UnixMs(1_800_000_000_000), 5),
                nonce: 9,
                position: 0,
            },
            count: 1,
        };
        let text = IdKey([1; 16]).mint(&id);
        assert_eq!(
            IdKey([2; 16]).parse(text.as_bytes()),
            Err(BadId::NotAuthentic)
        );
    }

    #[test]
    fn client_ids_are_checked() {
        let parse = |id: &str| IdKey([1; 16]).parse(id.as_bytes());
        assert!(matches!(parse("order:42"), Ok(MessageId::Client(_))));
        for bad in [
            "",
            "a b",
            "a/b",
            "a{b",
            "a}b",
            "a\nb",
            "\u{e9}",
            &"x".repeat(129),
        ] {
            assert!(matches!(parse(bad), Err(BadId::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(parse(&"x".repeat(128)), Ok(MessageId::Client(_))));
    }
}
