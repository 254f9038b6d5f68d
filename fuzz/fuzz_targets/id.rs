//! Ids as producers give them: one that is minted is one that this key has made, letter by letter; one
//! that a client chose is one that no key has made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nsqdelayd::id::{IdKey, MessageId, MintedId, PACK_WINDOW_MS_MAX, Place, Score};
use nsqdelayd::message::{UnixMs, looks_minted};
use nsqdelayd::shard::{Generation, ShardId};

const KEY: IdKey = IdKey([7; 16]);
/// Numbers that make up an id, at the front of what comes.
const NUMBERS: usize = 24;

fuzz_target!(|bytes: &[u8]| {
    match KEY.parse(bytes) {
        Ok(MessageId::Minted(id)) => assert_eq!(KEY.mint(&id).as_bytes(), bytes),
        Ok(MessageId::Client(id)) => {
            assert_eq!(id.as_str().as_bytes(), bytes);
            assert!(!looks_minted(bytes));
        }
        Err(_) => {}
    }
    if let Some((numbers, rest)) = bytes.split_first_chunk::<NUMBERS>() {
        minted(numbers, rest);
    }
});

/// Any id that is minted comes back, and with a letter changed it is nobody's.
fn minted(numbers: &[u8; NUMBERS], change: &[u8]) {
    let number = |at: usize, len: usize| {
        numbers[at..at + len]
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let small = |at: usize| number(at, 2) as u16;
    let base = number(0, 8) % (UnixMs::MAX.0 - PACK_WINDOW_MS_MAX);
    let id = MintedId {
        due: UnixMs(base + number(8, 2) % (PACK_WINDOW_MS_MAX + 1)),
        shard: ShardId {
            generation: Generation(small(10)),
            index: small(12),
        },
        place: Place {
            score: Score::new(UnixMs(base), number(14, 2)),
            nonce: number(16, 4) as u32,
            position: small(20) % 1024,
        },
        count: small(22) % 1024 + 1,
    };
    let mut text = KEY.mint(&id).into_bytes();
    assert_eq!(KEY.parse(&text), Ok(MessageId::Minted(id)));
    if let [at, letter, ..] = change {
        let at = usize::from(*at) % text.len();
        if text[at] != *letter {
            text[at] = *letter;
            assert!(!matches!(KEY.parse(&text), Ok(MessageId::Minted(_))));
        }
    }
}
