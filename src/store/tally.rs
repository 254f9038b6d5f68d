//! What of a pack is gone, and what is left to do when more of it is: count off, rewrite, remove. Pure.
//!
//! A **tally** tells, of a pack of several that something was cancelled of, how many records it has now (u16, big endian),
//! then a bit for each position: gone. It stands for the marks of what has left the pack, and each change of the
//! pack changes it.

use bytes::Bytes;

use crate::id::{PACK_RECORDS_MAX, PackName};
use crate::message::UnixMs;
use crate::store::claim::TopicShare;
use crate::store::entry::mark_of;
use crate::store::pack::{Pack, Record};

/// How a mark of any record of the pack begins: the field of the pack's tally.
pub(super) fn tally_field(pack: PackName) -> [u8; 12] {
    let mark = mark_of(pack.record(0));
    mark.first_chunk().copied().unwrap_or_default()
}

/// Bytes before the bits.
const LYING_LEN: usize = 2;

/// Whether a pack's tally says that a record is gone: its mark may have gone with its bytes.
pub(super) fn is_gone(tally: &[u8], position: u16) -> bool {
    let byte = tally.get(LYING_LEN + usize::from(position / 8));
    byte.is_some_and(|byte| byte >> (position % 8) & 1 == 1)
}

/// What becomes of the stored pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Then {
    Stays,
    Removed,
    Replaced(Vec<u8>),
}

/// What is to be done about one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The new tally. A pack of one has none.
    pub(super) tally: Option<Vec<u8>>,
    pub(super) then: Then,
    /// Marks that say from now on that they are counted.
    pub(super) counted: Vec<(u16, UnixMs)>,
    /// Positions whose marks go with their bytes.
    pub(super) unmarked: Vec<u16>,
    pub(super) shares: Vec<TopicShare>,
}

/// What follows from the marks of a pack's records: of each none, or whether it is counted. `None`: nothing.
pub(super) fn change(
    pack: &Pack,
    tally: &[u8],
    marks: &[Option<bool>],
    is_opened: bool,
) -> Option<Change> {
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    for (record, mark) in pack.records.iter().zip(marks) {
        match mark {
            Some(counted) => gone.push((record, *counted)),
            None => left.push(record),
        }
    }
    let uncounted = || gone.iter().filter(|(_, counted)| !counted);
    let mut shares = Vec::new();
    for (record, _) in uncounted() {
        TopicShare::add(&mut shares, &record.topic, 1, 0);
    }
    let mut change = Change {
        tally: None,
        then: Then::Stays,
        counted: uncounted()
            .map(|(record, _)| (record.position, record.due))
            .collect(),
        unmarked: Vec::new(),
        shares,
    };
    if !is_opened {
        leave(pack, &gone, &left, &mut change);
    }
    if change.then == Then::Stays && change.counted.is_empty() {
        return None;
    }
    if pack.stored > 1 {
        let lying = match &change.then {
            Then::Replaced(_) => left.len().max(1),
            Then::Stays | Then::Removed => pack.records.len(),
        };
        let positions = gone.iter().map(|(record, _)| record.position);
        change.tally = Some(tally_of(tally, pack.stored, lying, positions));
    }
    Some(change)
}

/// What is gone leaves the pack, once it is two thirds of it: each rewrite leaves a third or less, so all of a pack
/// together copy half of what storing it did. The last record stays without its body: a score that is free again could be
/// given the same pack by an insert that arrives twice. Of a pack of one the mark says everything.
fn leave(pack: &Pack, gone: &[(&Record, bool)], left: &[&Record], change: &mut Change) {
    let Some((last, last_counted)) = gone.iter().max_by_key(|(r, _)| (r.due, r.position)) else {
        return;
    };
    if pack.stored == 1 {
        // A mark that is counted would not tell whether it is still that pack.
        if *last_counted {
            return;
        }
        change.then = Then::Removed;
    } else if gone.len() * 3 >= pack.records.len() * 2 {
        let records = if left.is_empty() {
            if gone.len() == 1 && last.body.is_empty() {
                return;
            }
            let body = Bytes::new();
            vec![Record {
                body,
                ..Record::clone(last)
            }]
        } else {
            left.iter().copied().cloned().collect()
        };
        let rewritten = Pack { records, ..*pack };
        change.then = Then::Replaced(rewritten.encode());
        // The mark that stays tells when the tally may go.
        let others = gone.iter().map(|(record, _)| record.position);
        change.unmarked = others.filter(|p| *p != last.position).collect();
        change.counted.clear();
        if !last_counted {
            change.counted.push((last.position, last.due));
        }
    } else {
        return;
    }
    for (record, _) in gone {
        TopicShare::add(
            &mut change.shares,
            &record.topic,
            0,
            record.body.len() as u64,
        );
    }
}

fn tally_of(before: &[u8], stored: u16, lying: usize, gone: impl Iterator<Item = u16>) -> Vec<u8> {
    let lying = u16::try_from(lying).unwrap_or(PACK_RECORDS_MAX);
    let mut tally = lying.to_be_bytes().to_vec();
    tally.extend(before.iter().skip(LYING_LEN));
    tally.resize(LYING_LEN + usize::from(stored.div_ceil(8)), 0);
    for position in gone {
        if let Some(byte) = tally.get_mut(LYING_LEN + usize::from(position / 8)) {
            *byte |= 1 << (position % 8);
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Score;
    use crate::message::TopicName;
    use crate::store::compression::Compression;

    const DUE: UnixMs = UnixMs(1_800_000_000_000);

    fn pack(topics: &[&str]) -> Pack {
        let record = |(position, topic): (u16, &&str)| Record {
            position,
            due: DUE.plus_ms(u64::from(position)),
            topic: TopicName::parse(topic.as_bytes()).unwrap(),
            maybe: false,
            id: None,
            body: Bytes::from_static(b"body"),
        };
        Pack {
            score: Score::new(DUE, 3),
            nonce: 7,
            stored: u16::try_from(topics.len()).unwrap(),
            records: (0..).zip(topics).map(record).collect(),
            compression: Compression::None,
            len: 0,
        }
    }

    fn share(topic: &str, messages: u64, bytes: u64) -> TopicShare {
        TopicShare {
            topic: TopicName::parse(topic.as_bytes()).unwrap(),
            messages,
            bytes,
        }
    }

    fn left_of(change: &Change) -> Vec<(u16, usize)> {
        let Then::Replaced(value) = &change.then else {
            panic!("{:?}", change.then);
        };
        let pack = Pack::decode(Score::new(DUE, 3), Bytes::from(value.clone())).unwrap();
        assert_eq!((pack.nonce, pack.stored), (7, 3));
        let left = pack.records.iter();
        left.map(|record| (record.position, record.body.len()))
            .collect()
    }

    #[test]
    fn less_than_two_thirds_are_only_counted() {
        let pack = pack(&["a", "b", "a"]);
        let marks = [None, Some(false), None];
        let done = change(&pack, &[], &marks, false).unwrap();
        assert_eq!(done.then, Then::Stays);
        assert_eq!(done.tally.as_deref(), Some(&[0, 3, 0b010][..]));
        assert_eq!(
            (&done.counted[..], &done.unmarked[..]),
            (&[(1, DUE.plus_ms(1))][..], &[][..])
        );
        assert_eq!(done.shares, [share("b", 1, 0)]);
        // Again, when it is counted: nothing is left to do.
        assert_eq!(
            change(&pack, &[0, 3, 2], &[None, Some(true), None], false),
            None
        );
    }

    #[test]
    fn two_thirds_leave_and_their_marks_but_the_last() {
        let pack = pack(&["a", "b", "a"]);
        let marks = [Some(false), Some(true), None];
        let done = change(&pack, &[0, 3, 0b010], &marks, false).unwrap();
        assert_eq!(left_of(&done), [(2, 4)]);
        assert_eq!(done.tally.as_deref(), Some(&[0, 1, 0b011][..]));
        assert_eq!((&done.counted[..], &done.unmarked[..]), (&[][..], &[0][..]));
        assert_eq!(done.shares, [share("a", 1, 4), share("b", 0, 4)]);
        // An owner has opened it: the bytes stay.
        let opened = change(&pack, &[0, 3, 0b010], &marks, true).unwrap();
        assert_eq!((opened.then, opened.counted), (Then::Stays, vec![(0, DUE)]));
    }

    #[test]
    fn the_last_record_stays_without_its_body() {
        let mut pack = pack(&["a", "b", "a"]);
        let done = change(&pack, &[], &[Some(false); 3], false).unwrap();
        assert_eq!(left_of(&done), [(2, 0)]);
        assert_eq!(done.tally.as_deref(), Some(&[0, 1, 0b111][..]));
        assert_eq!(
            (&done.counted[..], &done.unmarked[..]),
            (&[(2, DUE.plus_ms(2))][..], &[0, 1][..])
        );
        pack.records.drain(..2);
        pack.records[0].body = Bytes::new();
        assert_eq!(change(&pack, &[0, 1, 7], &[Some(true)], false), None);
    }

    #[test]
    fn a_pack_of_one_is_removed_and_has_no_tally() {
        let pack = pack(&["a"]);
        let done = change(&pack, &[], &[Some(false)], false).unwrap();
        assert_eq!((done.then, done.tally), (Then::Removed, None));
        assert_eq!(
            (done.counted, done.shares),
            (vec![(0, DUE)], vec![share("a", 1, 4)])
        );
    }

    #[test]
    fn a_tally_says_what_is_gone() {
        let tally = tally_of(&[], 1_024, 1_000, [0, 9, 1_023].into_iter());
        let gone: Vec<u16> = (0..2_000).filter(|p| is_gone(&tally, *p)).collect();
        assert_eq!(gone, [0, 9, 1_023]);
        let more = tally_of(&tally, 1_024, 10, [8].into_iter());
        let gone: Vec<u16> = (0..2_000).filter(|p| is_gone(&more, *p)).collect();
        assert_eq!(gone, [0, 8, 9, 1_023]);
    }
}
