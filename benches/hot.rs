//! The pure code that every message goes through: decoding commands, packs, ids, MPUBs. Each figure is for a
//! batch of messages, as they come under load. `benches/instructions.sh` counts instructions of the same.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box, counter::ItemsCount};
use nsqdelayd::id::{IdKey, MintedId, PackName, Place, Score};
use nsqdelayd::message::{Delay, TopicName, UnixMs};
use nsqdelayd::nsq::command::{encode_dpub, encode_mdpub, encode_mpub};
use nsqdelayd::nsq::decoder::{Decoder, Limits};
use nsqdelayd::shard::{Generation, ShardId};
use nsqdelayd::store::{Compression, Pack, Record};

const BODY: [u8; 500] = [b'x'; 500];
/// Commands, or messages of a command.
const MESSAGES: usize = 100;
/// Records that fill a pack of the default size with bodies of 500 bytes.
const RECORDS: u16 = 26;
const DUE: UnixMs = UnixMs(1_795_311_600_000);

fn main() {
    divan::main();
}

fn topic() -> TopicName {
    TopicName::parse(b"orders").unwrap()
}

fn decode(bytes: &BytesMut) -> usize {
    let mut decoder = Decoder::new(Limits {
        max_msg_size: 1 << 20,
        max_body_size: 5 << 20,
        max_delay: Delay(1 << 40),
    });
    let mut buffer = bytes.clone();
    let mut commands = 0;
    while let Some(command) = decoder.decode(&mut buffer).unwrap() {
        black_box(command);
        commands += 1;
    }
    commands
}

#[divan::bench]
fn decode_dpub(bencher: Bencher<'_, '_>) {
    let mut bytes = BytesMut::new();
    for _ in 0..MESSAGES {
        encode_dpub(&topic(), Delay(3_600_000), None, &BODY, &mut bytes);
    }
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .bench(|| assert_eq!(decode(black_box(&bytes)), MESSAGES));
}

#[divan::bench]
fn decode_mdpub(bencher: Bencher<'_, '_>) {
    let bodies = vec![Bytes::from_static(&BODY); MESSAGES];
    let mut bytes = BytesMut::new();
    encode_mdpub(&topic(), Delay(3_600_000), &bodies, &mut bytes);
    bencher
        .counter(ItemsCount::new(MESSAGES))
        .bench(|| assert_eq!(decode(black_box(&bytes)), 1));
}

#[divan::bench]
fn encode_mpub_to_nsqd(bencher: Bencher<'_, '_>) {
    let bodies = vec![Bytes::from_static(&BODY); MESSAGES];
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| {
        buffer.clear();
        encode_mpub(&topic(), black_box(&bodies), &mut buffer);
    });
}

fn pack(records: u16) -> Pack {
    let record = |position| Record {
        position,
        due: DUE.plus_ms(u64::from(position)),
        topic: topic(),
        maybe: false,
        id: None,
        body: Bytes::from_static(&BODY),
    };
    let name = PackName {
        score: Score::new(DUE, 7),
        nonce: 9,
    };
    let records = (0..records).map(record).collect();
    Pack::new(name, records, Compression::None)
}

#[divan::bench(args = [1, RECORDS])]
fn encode_pack(bencher: Bencher<'_, '_>, records: u16) {
    let pack = pack(records);
    bencher
        .counter(ItemsCount::new(records))
        .bench(|| black_box(&pack).encode());
}

#[divan::bench(args = [1, RECORDS])]
fn decode_pack(bencher: Bencher<'_, '_>, records: u16) {
    let pack = pack(records);
    let value = Bytes::from(pack.encode());
    bencher
        .counter(ItemsCount::new(records))
        .bench(|| Pack::decode(pack.score, black_box(&value).clone()).unwrap());
}

/// One of JSON, as services send it: random numbers among the same words.
fn json_pack() -> Pack {
    let mut random = fastrand::Rng::with_seed(7);
    let mut item = || {
        format!(
            "{{\"product\":\"{:032x}\",\"price_cents\":{}}},",
            random.u128(..),
            random.u16(..)
        )
    };
    let mut pack = pack(RECORDS);
    for record in &mut pack.records {
        let items: String = (0..8).map(|_| item()).collect();
        record.body = Bytes::from(items.into_bytes());
    }
    pack.compression = Compression::Zstd;
    pack
}

#[divan::bench]
fn encode_compressed_pack(bencher: Bencher<'_, '_>) {
    let pack = json_pack();
    bencher
        .counter(ItemsCount::new(RECORDS))
        .bench(|| black_box(&pack).encode());
}

#[divan::bench]
fn decode_compressed_pack(bencher: Bencher<'_, '_>) {
    let pack = json_pack();
    let value = Bytes::from(pack.encode());
    bencher
        .counter(ItemsCount::new(RECORDS))
        .bench(|| Pack::decode(pack.score, black_box(&value).clone()).unwrap());
}

fn minted() -> MintedId {
    MintedId {
        due: DUE,
        shard: ShardId {
            generation: Generation(1),
            index: 3,
        },
        place: Place {
            score: Score::new(DUE, 7),
            nonce: 9,
            position: 2,
        },
        count: RECORDS,
    }
}

#[divan::bench]
fn mint_id() -> String {
    IdKey([7; 16]).mint(black_box(&minted()))
}

#[divan::bench]
fn parse_id(bencher: Bencher<'_, '_>) {
    let key = IdKey([7; 16]);
    let text = key.mint(&minted());
    bencher.bench(|| key.parse(black_box(text.as_bytes())).unwrap());
}
