//! Bodies of messages: a stamp, and what else is in them. Pure.

use clap::ValueEnum;
use fastrand::Rng;
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::bench::stamp::{STAMP_LEN, Stamp, digits};

/// What stands before the stamp of a JSON body.
const JSON_HEAD: &[u8] = b"{\"bench\":\"";
/// What stands before the last field of one, and behind it.
const JSON_LAST: &[u8] = b"],\"trace\":\"";
const JSON_END: &[u8] = b"\"}";
/// Shortest JSON body: what each has.
const JSON_LEN_MIN: usize = 340;

/// What bodies are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Bodies {
    /// A stamp, and dots.
    Dots,
    /// JSON objects with random UUIDs, times and numbers, the same in each run.
    Json,
}

/// What each body of a load is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    bodies: Bodies,
    len: usize,
}

impl Shape {
    /// Of that length, or the shortest that there is.
    pub(super) fn new(bodies: Bodies, len: usize) -> Self {
        let least = match bodies {
            Bodies::Dots => STAMP_LEN,
            Bodies::Json => JSON_LEN_MIN,
        };
        Self {
            bodies,
            len: len.max(least),
        }
    }

    /// Bytes of each body.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// Writes a body to the end of `out`.
    pub(super) fn write(self, stamp: Stamp, out: &mut Vec<u8>) {
        let end = out.len() + self.len;
        match self.bodies {
            Bodies::Dots => {
                stamp.write(out);
                out.resize(end, b'.');
            }
            Bodies::Json => json(stamp, end, out),
        }
    }

    /// The same within a string of JSON.
    pub(super) fn write_quoted(self, stamp: Stamp, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(self.len);
        self.write(stamp, &mut body);
        let text = Value::from(String::from_utf8_lossy(&body));
        out.extend(text.to_string().into_bytes());
    }
}

/// The stamp of a body; `None`: it is not one of ours.
pub(super) fn stamp_of(body: &[u8]) -> Option<Stamp> {
    Stamp::parse(body.strip_prefix(JSON_HEAD).unwrap_or(body))
}

/// Appends a JSON object, up to `end`.
fn json(stamp: Stamp, end: usize, out: &mut Vec<u8>) {
    let mut random = Rng::with_seed(u64::from(stamp.number));
    out.extend(JSON_HEAD);
    stamp.write(out);
    let created_us = stamp.due_us - random.u64(..60_000_000);
    let fields = format!(
        "\",\"type\":\"order.reminder\",\"id\":\"{}\",\"created_at\":\"{}\",\"due_at\":\"{}\",\
         \"customer\":{{\"id\":\"{}\",\"email\":\"user{:06}@example.com\",\"locale\":\"en-GB\"}},\"items\":[",
        uuid(&mut random),
        time(created_us),
        time(stamp.due_us),
        uuid(&mut random),
        random.u32(..1_000_000),
    );
    out.extend(fields.into_bytes());
    let mut separator = "";
    loop {
        let item = format!(
            "{separator}{{\"sku\":\"SKU-{:06}\",\"product\":\"{}\",\"quantity\":{},\"price_cents\":{}}}",
            random.u32(..1_000_000),
            uuid(&mut random),
            random.u32(1..10),
            random.u32(99..20_000),
        );
        if out.len() + item.len() + JSON_LAST.len() + JSON_END.len() > end {
            break;
        }
        out.extend(item.into_bytes());
        separator = ",";
    }
    out.extend(JSON_LAST);
    while out.len() + JSON_END.len() < end {
        digits(random.u64(..16), 1, out);
    }
    out.extend(JSON_END);
}

/// A random one, version 4.
fn uuid(random: &mut Rng) -> String {
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        random.u32(..),
        random.u16(..),
        random.u16(..0x1000),
        random.u16(0x8000..0xc000),
        random.u64(..1 << 48)
    )
}

fn time(us: u64) -> String {
    let at = Timestamp::from_microsecond(i64::try_from(us).unwrap_or(i64::MAX)).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_as_long_as_they_should_be_and_have_their_stamps() {
        let stamp = |number| Stamp {
            run: 0xdead_beef,
            number,
            due_us: 1_795_311_600_123_456,
            lag_us: 77,
        };
        for (bodies, len) in [
            (Bodies::Dots, 38),
            (Bodies::Json, 340),
            (Bodies::Json, 5_000),
        ] {
            for number in 0..100 {
                let mut body = b"before".to_vec();
                Shape::new(bodies, len).write(stamp(number), &mut body);
                assert_eq!(body.len(), 6 + len);
                assert_eq!(stamp_of(&body[6..]), Some(stamp(number)));
                if bodies == Bodies::Json {
                    let read: Value = serde_json::from_slice(&body[6..]).unwrap();
                    assert_eq!(read["due_at"], "2026-11-22T01:40:00.123Z");
                }
                let mut quoted = Vec::new();
                Shape::new(bodies, len).write_quoted(stamp(number), &mut quoted);
                let unquoted: String = serde_json::from_slice(&quoted).unwrap();
                assert_eq!(unquoted.as_bytes(), &body[6..]);
            }
        }
        assert_eq!(Shape::new(Bodies::Dots, 1).len(), STAMP_LEN);
        assert_eq!(stamp_of(b"{\"bench\":\"something else\"}"), None);
    }
}
