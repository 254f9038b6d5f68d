//! Stored values, as Redis gives them back or as somebody else wrote them: refused, or packs that are
//! written and read again as they were.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nsqdelayd::id::{PACK_RECORDS_MAX, PACK_WINDOW_MS_MAX, Score};
use nsqdelayd::message::UnixMs;
use nsqdelayd::store::Pack;

fuzz_target!(|bytes: &[u8]| {
    let score = Score::new(UnixMs(1_800_000_000_000), 7);
    let Ok(pack) = Pack::decode(score, Bytes::copy_from_slice(bytes)) else {
        return;
    };
    assert!(pack.records.len() <= usize::from(pack.stored));
    assert!(pack.stored <= PACK_RECORDS_MAX);
    for record in &pack.records {
        assert!(record.due.ms_since(score.due()) <= PACK_WINDOW_MS_MAX);
    }
    let value = pack.encode();
    let again = Pack::decode(score, Bytes::from(value)).expect("what was written is read");
    assert_eq!(again.records, pack.records);
    assert_eq!((again.nonce, again.stored), (pack.nonce, pack.stored));
});
