//! The entry of an id in a shard's index: where its message is now. Pure.
//!
//! Text, because scripts read it: `S score nonce position due maybe digest mark`, the mark in hex.
//! `S`: stored at that place; `C`: cancelled, the rest says where it was; `D`: among the dead letters;
//! `H`: held at that place while its topic is paused, and the topic comes last.

use std::fmt::Write as _;

use crate::id::{Place, Score};
use crate::message::UnixMs;

/// What became of the message of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// At the entry's place.
    Stored,
    /// Cancelled; remembered for `dedupe_window`.
    Cancelled,
    /// Among the dead letters.
    Dead,
    /// At the entry's place among what is held of its topic.
    Held,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) place: Place,
    pub(super) due: UnixMs,
    /// An earlier send may have reached nsqd: cancel and move refuse it.
    pub(super) maybe: bool,
    /// Of what the client gave, to recognise a retried create; 0 for minted ids.
    pub(super) digest: u64,
}

/// The member of the `cancelled` zset that keeps a record from being delivered.
pub(super) fn mark_of(place: Place) -> [u8; 14] {
    let mut mark = [0; 14];
    let (score, rest) = mark.split_at_mut(8);
    score.copy_from_slice(&place.score.0.to_be_bytes());
    let (nonce, position) = rest.split_at_mut(4);
    nonce.copy_from_slice(&place.nonce.to_be_bytes());
    position.copy_from_slice(&place.position.to_be_bytes());
    mark
}

/// Reads a mark; `None` if it is not one of ours.
pub(super) fn place_of(mark: &[u8]) -> Option<Place> {
    let (score, rest) = mark.split_first_chunk::<8>()?;
    let (nonce, rest) = rest.split_first_chunk::<4>()?;
    let position: [u8; 2] = rest.try_into().ok()?;
    Some(Place {
        score: Score(u64::from_be_bytes(*score)),
        nonce: u32::from_be_bytes(*nonce),
        position: u16::from_be_bytes(position),
    })
}

impl Entry {
    pub(super) fn to_text(self) -> String {
        let kind = match self.kind {
            Kind::Stored => 'S',
            Kind::Cancelled => 'C',
            Kind::Dead => 'D',
            Kind::Held => 'H',
        };
        let Place {
            score,
            nonce,
            position,
        } = self.place;
        let maybe = u8::from(self.maybe);
        let mut text = format!(
            "{kind} {score} {nonce} {position} {} {maybe} {:x} ",
            self.due, self.digest
        );
        for byte in mark_of(self.place) {
            // Writing to a String cannot fail.
            let written = write!(text, "{byte:02x}");
            debug_assert!(written.is_ok());
        }
        text
    }

    /// The text of one that is held: where depends on the topic.
    pub(super) fn held_text(self, topic: &str) -> String {
        format!("{} {topic}", self.to_text())
    }

    /// The topic of an entry that is held.
    pub(super) fn held_topic(text: &[u8]) -> Option<&str> {
        let text = str::from_utf8(text.strip_prefix(b"H ")?).ok()?;
        text.rsplit(' ').next()
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(text).ok()?.split(' ');
        let kind = match words.next()? {
            "S" => Kind::Stored,
            "C" => Kind::Cancelled,
            "D" => Kind::Dead,
            "H" => Kind::Held,
            _ => return None,
        };
        let score = Score(words.next()?.parse().ok()?);
        let nonce = words.next()?.parse().ok()?;
        let position = words.next()?.parse().ok()?;
        let due = UnixMs(words.next()?.parse().ok()?);
        let maybe = words.next()? == "1";
        let digest = u64::from_str_radix(words.next()?, 16).ok()?;
        Some(Self {
            kind,
            place: Place {
                score,
                nonce,
                position,
            },
            due,
            maybe,
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_come_back_as_they_were(
            score: u64, nonce: u32, position: u16, due: u64, maybe: bool, digest: u64, kind in 0..4,
        ) {
            let kind = [Kind::Stored, Kind::Cancelled, Kind::Dead, Kind::Held][usize::try_from(kind).unwrap()];
            let place = Place { score: Score(score), nonce, position };
            let entry = Entry { kind, place, due: UnixMs(due), maybe, digest };
            prop_assert_eq!(Entry::parse(entry.to_text().as_bytes()), Some(entry));
            let held = Entry { kind: Kind::Held, ..entry }.held_text("t");
            prop_assert_eq!(Entry::parse(held.as_bytes()), Some(Entry { kind: Kind::Held, ..entry }));
            prop_assert_eq!(Entry::held_topic(held.as_bytes()), Some("t"));
            prop_assert_eq!(place_of(&mark_of(place)), Some(place));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _entry = Entry::parse(&bytes);
            prop_assert!(bytes.len() == 14 || place_of(&bytes).is_none());
        }
    }
}
