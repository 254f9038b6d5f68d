//! The stored value: a pack of records, one member of a shard's `due` zset. Pure. It may be stored compressed: see
//! `compression.rs`.
//!
//! ```text
//! version u8 = 2 | flags u8 = 0 | nonce u32 | score u64 | stored u16 | count u16
//! topics u8 | topics x (len u8, name)
//! count x (position u16, topic u8)
//! count x (offset varint, flags u8, [id len u8, id], body len varint, body)
//! ```
//!
//! Integers are big endian; a varint is LEB128. `stored` is the number of records when the pack was
//! made, `count` how many it has now: a rewrite drops cancelled ones and keeps the others' positions.
//! `offset` is the record's due time less the pack's, in ms. `score` is the pack's own: no two members of a zset are the
//! same bytes, and the same messages under the same nonce at another time would only move the first. Version 1 had none.
//!
//! If you change this format: raise [`VERSION`] beyond that of compressed packs, keep reading the one before, add a vector
//! to the tests below, and say so in `docs/redis.md`. No script looks into a pack.

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::id::{PACK_RECORDS_MAX, PACK_WINDOW_MS_MAX, PackName, Score};
use crate::message::{TopicName, UnixMs};
use crate::store::compression::{Compression, VERSION_COMPRESSED, expanded};

/// The format that is written.
const VERSION: u8 = 2;
/// The one before.
const VERSION_WITHOUT_SCORE: u8 = 1;

const FLAG_MAYBE: u8 = 1;
const FLAG_ID: u8 = 2;
const TOPICS_MAX: usize = 255;
/// version, flags, nonce, score, stored, count, topics.
const HEADER_LEN: usize = 19;
/// Directory entry, offset, flags and length of a record, at most, less id and body.
pub(super) const RECORD_OVERHEAD_MAX: usize = 3 + 2 + 1 + 1 + 4;

/// One message in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number in the pack.
    pub position: u16,
    /// When it is due.
    pub due: UnixMs,
    /// Its topic.
    pub topic: TopicName,
    /// An earlier send may have reached nsqd: cancel and move refuse it.
    pub maybe: bool,
    /// A client's id, or the minted id that it had before it was moved or parked.
    pub id: Option<Bytes>,
    /// Its body.
    pub body: Bytes,
}

/// A pack as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// Its address.
    pub score: Score,
    /// Tells it from another at the same address.
    pub nonce: u32,
    /// Records when it was made.
    pub stored: u16,
    /// The records it has, by position.
    pub records: Vec<Record>,
    /// How it is stored. A pack that is rewritten stays as it was.
    pub compression: Compression,
    /// Length in memory: of the stored value, or of what was compressed in it.
    pub len: usize,
}

/// The stored value is not a pack that this version reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPack {
    /// Written by a newer version: leave it untouched.
    #[error("unknown pack format {0}")]
    UnknownVersion(u8),
    /// Not what the format says.
    #[error("malformed pack")]
    Malformed,
}

impl Pack {
    /// A pack that is made of `records`, to be encoded.
    pub fn new(name: PackName, records: Vec<Record>, compression: Compression) -> Self {
        Self {
            score: name.score,
            nonce: name.nonce,
            stored: u16::try_from(records.len()).unwrap_or(PACK_RECORDS_MAX),
            records,
            compression,
            len: 0,
        }
    }

    /// Which pack it is.
    pub fn name(&self) -> PackName {
        PackName {
            score: self.score,
            nonce: self.nonce,
        }
    }

    /// Encodes the pack. The records must be due within [`PACK_WINDOW_MS_MAX`] of its score.
    pub fn encode(&self) -> Vec<u8> {
        self.compression.apply(self.encode_plain())
    }

    fn encode_plain(&self) -> Vec<u8> {
        debug_assert!(self.records.len() <= usize::from(PACK_RECORDS_MAX));
        let bodies: usize = self.records.iter().map(|r| r.body.len()).sum();
        let mut out =
            Vec::with_capacity(HEADER_LEN + 64 + bodies + self.records.len() * RECORD_OVERHEAD_MAX);
        let mut topics: Vec<&TopicName> = Vec::new();
        let numbers: Vec<u8> = self
            .records
            .iter()
            .map(|r| number_of(&mut topics, &r.topic))
            .collect();
        out.put_u8(VERSION);
        out.put_u8(0);
        out.put_u32(self.nonce);
        out.put_u64(self.score.0);
        out.put_u16(self.stored);
        out.put_u16(u16::try_from(self.records.len()).unwrap_or(PACK_RECORDS_MAX));
        out.put_u8(u8::try_from(topics.len()).unwrap_or(u8::MAX));
        for topic in topics {
            put_short(&mut out, topic.as_str().as_bytes());
        }
        for (record, topic) in self.records.iter().zip(numbers) {
            out.put_u16(record.position);
            out.put_u8(topic);
        }
        for record in &self.records {
            let offset = record.due.ms_since(self.score.due());
            debug_assert!(offset <= PACK_WINDOW_MS_MAX && record.due >= self.score.due());
            put_varint(&mut out, offset);
            let flags = if record.maybe { FLAG_MAYBE } else { 0 };
            match &record.id {
                Some(id) => {
                    out.put_u8(flags | FLAG_ID);
                    put_short(&mut out, id);
                }
                None => out.put_u8(flags),
            }
            put_varint(&mut out, record.body.len() as u64);
            out.put_slice(&record.body);
        }
        out
    }

    /// Decodes a stored value. Bodies are slices of it, or of what was compressed in it.
    pub fn decode(score: Score, value: Bytes) -> Result<Self, BadPack> {
        if value.first() != Some(&VERSION_COMPRESSED) {
            return Self::decode_plain(score, value);
        }
        let pack = expanded(value).ok_or(BadPack::Malformed)?;
        let pack = Self::decode_plain(score, pack)?;
        Ok(Self {
            compression: Compression::Zstd,
            ..pack
        })
    }

    fn decode_plain(score: Score, mut value: Bytes) -> Result<Self, BadPack> {
        let len = value.len();
        let version = value.try_get_u8().map_err(malformed)?;
        if ![VERSION, VERSION_WITHOUT_SCORE].contains(&version) {
            return Err(BadPack::UnknownVersion(version));
        }
        let has_score = version == VERSION;
        let head = read_head(&mut value, has_score).ok_or(BadPack::Malformed)?;
        let (nonce, own_score, stored, count, topics) = head;
        if own_score.is_some_and(|own| own != score) {
            return Err(BadPack::Malformed);
        }
        let mut directory = Vec::with_capacity(count);
        for _ in 0..count {
            let position = value.try_get_u16().map_err(malformed)?;
            let number = value.try_get_u8().map_err(malformed)?;
            let topic = topics.get(usize::from(number)).ok_or(BadPack::Malformed)?;
            directory.push((position, topic.clone()));
        }
        let mut records = Vec::with_capacity(count);
        for (position, topic) in directory {
            records
                .push(read_record(&mut value, score, position, topic).ok_or(BadPack::Malformed)?);
        }
        if !value.is_empty() {
            return Err(BadPack::Malformed);
        }
        Ok(Self {
            score,
            nonce,
            stored,
            records,
            compression: Compression::None,
            len,
        })
    }
}

fn number_of<'a>(topics: &mut Vec<&'a TopicName>, topic: &'a TopicName) -> u8 {
    // Packs hold few topics, and neighbours mostly share theirs: search from the end.
    let found = topics.iter().rposition(|t| *t == topic);
    let index = found.unwrap_or_else(|| {
        debug_assert!(topics.len() < TOPICS_MAX);
        topics.push(topic);
        topics.len() - 1
    });
    u8::try_from(index).unwrap_or(u8::MAX)
}

fn malformed(_: bytes::TryGetError) -> BadPack {
    BadPack::Malformed
}

/// Nonce, score, records when it was made, records, topics.
type Head = (u32, Option<Score>, u16, usize, Vec<TopicName>);

fn read_head(value: &mut Bytes, has_score: bool) -> Option<Head> {
    let _flags = value.try_get_u8().ok()?;
    let nonce = value.try_get_u32().ok()?;
    let score = if has_score {
        Some(Score(value.try_get_u64().ok()?))
    } else {
        None
    };
    let stored = value.try_get_u16().ok()?;
    let count = value.try_get_u16().ok()?;
    let topic_count = value.try_get_u8().ok()?;
    if count > PACK_RECORDS_MAX || stored > PACK_RECORDS_MAX || count > stored {
        return None;
    }
    let mut topics = Vec::with_capacity(usize::from(topic_count));
    for _ in 0..topic_count {
        topics.push(TopicName::parse(&take_short(value)?).ok()?);
    }
    Some((nonce, score, stored, usize::from(count), topics))
}

fn read_record(value: &mut Bytes, score: Score, position: u16, topic: TopicName) -> Option<Record> {
    let offset = take_varint(value)?;
    let flags = value.try_get_u8().ok()?;
    let id = if flags & FLAG_ID == 0 {
        None
    } else {
        Some(take_short(value)?)
    };
    let body_len = usize::try_from(take_varint(value)?).ok()?;
    if value.len() < body_len || offset > PACK_WINDOW_MS_MAX {
        return None;
    }
    let body = value.split_to(body_len);
    let due = score.due().plus_ms(offset);
    Some(Record {
        position,
        due,
        topic,
        maybe: flags & FLAG_MAYBE != 0,
        id,
        body,
    })
}

fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(u8::try_from(bytes.len()).is_ok());
    out.put_u8(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.put_slice(bytes);
}

fn take_short(value: &mut Bytes) -> Option<Bytes> {
    let len = usize::from(value.try_get_u8().ok()?);
    (value.len() >= len).then(|| value.split_to(len))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

fn take_varint(value: &mut Bytes) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..35).step_by(7) {
        let byte = value.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let id = proptest::option::of(proptest::collection::vec(any::<u8>(), 1..129));
        let body = proptest::collection::vec(any::<u8>(), 1..600);
        (0..=PACK_WINDOW_MS_MAX, 0..4_u8, any::<bool>(), id, body).prop_map(
            |(offset, topic, maybe, id, body)| Record {
                position: 0,
                due: UnixMs(1_800_000_000_000 + offset),
                topic: TopicName::parse(format!("topic-{topic}").as_bytes()).unwrap(),
                maybe,
                id: id.map(Bytes::from),
                body: Bytes::from(body),
            },
        )
    }

    fn any_pack() -> impl Strategy<Value = Pack> {
        (
            any::<u32>(),
            0..2048_u64,
            proptest::collection::vec(any_record(), 1..40),
        )
            .prop_map(|(nonce, k, mut records)| {
                for (position, record) in (0..).zip(&mut records) {
                    record.position = position * 2;
                }
                let score = Score::new(UnixMs(1_800_000_000_000), k);
                Pack {
                    score,
                    nonce,
                    stored: 80,
                    records,
                    compression: Compression::None,
                    len: 0,
                }
            })
    }

    proptest! {
        #[test]
        fn packs_come_back_as_they_were(mut pack in any_pack()) {
            let value = pack.encode();
            pack.len = value.len();
            prop_assert_eq!(Pack::decode(pack.score, Bytes::from(value)), Ok(pack));
        }

        #[test]
        fn compressed_packs_come_back_and_stay_compressed(mut pack in any_pack()) {
            for record in &mut pack.records {
                record.id = None;
                record.body = Bytes::from(vec![b'.'; 200 + record.body.len() * 10]);
            }
            pack.len = pack.encode().len();
            pack.compression = Compression::Zstd;
            let value = pack.encode();
            prop_assert!(value.len() < pack.len / 2, "{} of {}", value.len(), pack.len);
            prop_assert_eq!(Pack::decode(pack.score, Bytes::from(value)), Ok(pack));
        }

        #[test]
        fn any_bytes_are_answered(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), versioned: bool) {
            let score = Score::new(UnixMs(5), 0);
            if let (true, Some(head)) = (versioned, bytes.get_mut(..14)) {
                head[0] = VERSION;
                head[6..].copy_from_slice(&score.0.to_be_bytes());
            }
            if let Ok(pack) = Pack::decode(score, Bytes::from(bytes)) {
                prop_assert!(pack.records.len() <= usize::from(pack.stored));
            }
        }

        #[test]
        fn a_cut_pack_is_malformed(pack in any_pack(), at: proptest::sample::Index) {
            let mut value = pack.encode();
            value.truncate(at.index(value.len() - 1) + 1);
            prop_assert_eq!(Pack::decode(pack.score, Bytes::from(value)), Err(BadPack::Malformed));
        }
    }

    #[test]
    fn version_1_is_read_for_ever() {
        let value = b"\x01\x00\x00\x00\x00\x07\x00\x01\x00\x01\x01\x01t\x00\x00\x00\x05\x01\x02hi";
        let score = Score::new(UnixMs(1_000), 3);
        let pack = Pack::decode(score, Bytes::from_static(value)).unwrap();
        assert_eq!(pack.nonce, 7);
        let record = &pack.records[0];
        assert_eq!(
            (record.due, record.maybe, &record.body[..]),
            (UnixMs(1_005), true, &b"hi"[..])
        );
    }

    #[test]
    fn version_2_is_written() {
        let value = b"\x02\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x1f\x40\x03\x00\x01\x00\x01\x01\x01t\x00\x00\x00\x05\x01\x02hi";
        let score = Score::new(UnixMs(1_000), 3);
        let pack = Pack::decode(score, Bytes::from_static(value)).unwrap();
        assert_eq!(pack.encode(), value);
        // Elsewhere it is another pack's, or none.
        let elsewhere = Score::new(UnixMs(1_001), 3);
        let decoded = Pack::decode(elsewhere, Bytes::from_static(value));
        assert_eq!(decoded, Err(BadPack::Malformed));
    }

    #[test]
    fn version_3_is_a_compressed_pack_and_not_one_within_another() {
        let score = Score::new(UnixMs(1_000), 3);
        let frame = |pack: Vec<u8>| {
            let value = Compression::Zstd.apply(pack);
            assert_eq!(value[0], VERSION_COMPRESSED);
            Bytes::from(value)
        };
        let filled = |version| {
            let mut pack = vec![b'.'; 300];
            pack[0] = version;
            pack
        };
        let mut nested = frame(filled(VERSION)).to_vec();
        nested.resize(300, 0);
        for (pack, bad) in [
            (filled(VERSION), BadPack::Malformed),
            (nested, BadPack::UnknownVersion(VERSION_COMPRESSED)),
            (filled(4), BadPack::UnknownVersion(4)),
        ] {
            assert_eq!(Pack::decode(score, frame(pack)), Err(bad));
        }
    }

    #[test]
    fn a_newer_version_is_told_apart() {
        let score = Score::new(UnixMs(1_000), 3);
        let newer = Bytes::from_static(b"\x04whatever");
        assert_eq!(Pack::decode(score, newer), Err(BadPack::UnknownVersion(4)));
    }
}
