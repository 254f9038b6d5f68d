//! Delays and times as the JSON API takes and gives them: durations as Go writes them, moments after
//! RFC 3339, integers of milliseconds for both. Pure. What is finer than a millisecond is rounded
//! up, so that nothing is early.

use crate::ingest::problem::{Code, Problem, quoted};
use crate::message::{Delay, Due, UnixMs};

const NS_PER_MS: u128 = 1_000_000;
const MS_PER_S: u64 = 1_000;
/// More digits of a fraction than matter for whole nanoseconds of an hour.
const FRACTION_DIGITS_MAX: usize = 18;

/// A time or a delay as it was given: a JSON number or digits of a query, or a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    /// Milliseconds.
    Ms(u64),
    /// Something to read.
    Text(String),
}

impl Given {
    /// Of a query: digits only are milliseconds. Digits that overflow are as far away as can be.
    pub(super) fn of_query(text: String) -> Self {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            Self::Ms(text.parse().unwrap_or(u64::MAX))
        } else {
            Self::Text(text)
        }
    }

    /// As a delay.
    pub(super) fn delay(&self) -> Result<Delay, Problem> {
        match self {
            Self::Ms(ms) => Ok(Delay(*ms)),
            Self::Text(text) => go_duration(text),
        }
    }

    /// As a moment.
    pub(super) fn moment(&self) -> Result<UnixMs, Problem> {
        match self {
            Self::Ms(ms) => Ok(UnixMs(*ms)),
            Self::Text(text) => rfc3339(text),
        }
    }
}

/// What may be asked for at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Longest delay.
    pub(super) delay_max: Delay,
    /// Redis's clock; the epoch while it is not known.
    pub(super) now: UnixMs,
}

impl Limits {
    /// Refuses what is over `max_delay`. A moment in the past is now.
    pub(super) fn check(self, due: Due) -> Result<Due, Problem> {
        let fits = match due {
            Due::After(delay) => delay <= self.delay_max,
            Due::At(_) if self.now == UnixMs::default() => {
                return Err(Problem::new(
                    Code::StoreUnavailable,
                    "Redis has not answered yet, so the time is not known.",
                ));
            }
            Due::At(at) => at <= self.now.after(self.delay_max),
        };
        if fits {
            return Ok(due);
        }
        let max = self.delay_max.0;
        Err(Problem::new(
            Code::DelayOutOfRange,
            format!("The longest delay is {max} ms."),
        ))
    }
}

/// Reads a duration as Go's `time.ParseDuration` does, without negative ones.
pub(super) fn go_duration(text: &str) -> Result<Delay, Problem> {
    let invalid = || {
        Problem::new(
            Code::InvalidDelay,
            format!(
                "{} is not a duration such as 250ms, 1.5h or 1m30s, nor a whole number of ms.",
                quoted(text)
            ),
        )
    };
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    if unsigned == "0" || text == "-0" {
        return Ok(Delay(0));
    }
    let mut rest = unsigned;
    let mut total_ns: u128 = 0;
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let (ns, after) = duration_part(rest).ok_or_else(invalid)?;
        total_ns = total_ns.saturating_add(ns);
        rest = after;
    }
    let ms = total_ns.div_ceil(NS_PER_MS);
    // What no `u64` holds is over any `max_delay`, and is told so.
    Ok(Delay(u64::try_from(ms).unwrap_or(u64::MAX)))
}

/// One number with its unit, in ns, and what follows it.
fn duration_part(text: &str) -> Option<(u128, &str)> {
    let split = |text: &'_ str| {
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len())
    };
    let (whole, mut rest) = text.split_at(split(text));
    let mut fraction = "";
    if let Some(after) = rest.strip_prefix('.') {
        (fraction, rest) = after.split_at(split(after));
    }
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let end = rest.find(|c: char| c.is_ascii_digit() || c == '.');
    let (unit, rest) = rest.split_at(end.unwrap_or(rest.len()));
    let unit_ns: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => NS_PER_MS,
        "s" => 1_000 * NS_PER_MS,
        "m" => 60_000 * NS_PER_MS,
        "h" => 3_600_000 * NS_PER_MS,
        _ => return None,
    };
    // Digits that overflow saturate: out of range, not malformed.
    let whole: u128 = if whole.is_empty() {
        0
    } else {
        u128::from(whole.parse::<u64>().unwrap_or(u64::MAX))
    };
    let fraction = fraction.get(..FRACTION_DIGITS_MAX).unwrap_or(fraction);
    let mut fraction_ns = 0;
    if !fraction.is_empty() {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        fraction_ns = (fraction.parse::<u128>().ok()? * unit_ns).div_ceil(scale);
    }
    Some((whole.saturating_mul(unit_ns) + fraction_ns, rest))
}

/// Reads `2026-01-31T12:00:00.5+02:00`, strictly: jiff's own parser takes more, and takes a leap
/// second for the one before.
pub(super) fn rfc3339(text: &str) -> Result<UnixMs, Problem> {
    let invalid = |why: &str| {
        Problem::new(
            Code::InvalidTime,
            format!(
                "{} is not a time such as 2026-01-31T12:00:00Z, nor Unix milliseconds: {why}.",
                quoted(text)
            ),
        )
    };
    let parts = Parts::read(text.as_bytes()).ok_or_else(|| invalid("it is not RFC 3339"))?;
    if parts.second == 60 {
        return Err(invalid("leap seconds are not supported"));
    }
    let moment = parts
        .moment()
        .ok_or_else(|| invalid("there is no such date or time"))?;
    Ok(moment)
}

#[derive(Debug)]
struct Parts {
    year: i16,
    month: i8,
    day: i8,
    hour: i8,
    minute: i8,
    second: i8,
    /// The fraction of the second, rounded up.
    ms: u64,
    offset_s: i32,
}

impl Parts {
    fn read(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(19)?;
        let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
        if marks.iter().any(|(at, mark)| head.get(*at) != Some(mark)) {
            return None;
        }
        if !matches!(head.get(10), Some(b'T' | b't')) {
            return None;
        }
        let (ms, rest) = match rest.strip_prefix(b".") {
            Some(rest) => fraction_ms(rest)?,
            None => (0, rest),
        };
        Some(Self {
            year: i16::try_from(digits(head.get(..4)?)?).ok()?,
            month: small(head.get(5..7)?)?,
            day: small(head.get(8..10)?)?,
            hour: small(head.get(11..13)?)?,
            minute: small(head.get(14..16)?)?,
            second: small(head.get(17..19)?)?,
            ms,
            offset_s: offset_s(rest)?,
        })
    }

    fn moment(&self) -> Option<UnixMs> {
        let date = jiff::civil::Date::new(self.year, self.month, self.day).ok()?;
        let time = jiff::civil::Time::new(self.hour, self.minute, self.second, 0).ok()?;
        // Not by way of jiff's own timestamps, which end a day before the year 9999 does.
        let epoch = jiff::civil::date(1970, 1, 1).to_datetime(jiff::civil::Time::midnight());
        let local_s = date.to_datetime(time).duration_since(epoch).as_secs();
        let moment_s = local_s - i64::from(self.offset_s);
        // Before the epoch is in the past, which means now.
        let whole_ms = u64::try_from(moment_s).map_or(0, |s| s * MS_PER_S);
        Some(UnixMs(whole_ms + self.ms))
    }
}

/// Only digits.
fn digits(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

fn small(text: &[u8]) -> Option<i8> {
    i8::try_from(digits(text)?).ok()
}

/// The fraction in ms, rounded up, and what follows it.
fn fraction_ms(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|b| !b.is_ascii_digit());
    let (fraction, rest) = text.split_at(end.unwrap_or(text.len()));
    if fraction.is_empty() {
        return None;
    }
    let digit = |at: usize| fraction.get(at).map_or(0, |b| u64::from(b - b'0'));
    let ms = 100 * digit(0) + 10 * digit(1) + digit(2);
    let finer = fraction.iter().skip(3).any(|b| *b != b'0');
    Some((ms + u64::from(finer), rest))
}

fn offset_s(text: &[u8]) -> Option<i32> {
    let (sign, clock) = match text {
        b"Z" | b"z" => return Some(0),
        [b'+', clock @ ..] => (1, clock),
        [b'-', clock @ ..] => (-1, clock),
        _ => return None,
    };
    if clock.len() != 5 || clock.get(2) != Some(&b':') {
        return None;
    }
    let hours = i32::from(small(clock.get(..2)?)?);
    let minutes = i32::from(small(clock.get(3..)?)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Writes a moment: `2026-01-31T12:00:00.500Z`.
pub(super) fn text_of(moment: UnixMs) -> String {
    let ms = i64::try_from(moment.0.min(UnixMs::MAX.0)).unwrap_or_default();
    let moment = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
    format!("{moment:.3}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let bad = Err(Code::InvalidDelay);
        for (text, want) in [
            ("1h", Ok(3_600_000)),
            ("250ms", Ok(250)),
            ("1.5h", Ok(5_400_000)),
            ("1m30s", Ok(90_000)),
            (".5s", Ok(500)),
            ("1.s", Ok(1_000)),
            ("+1s", Ok(1_000)),
            ("0", Ok(0)),
            ("0s", Ok(0)),
            ("1ns", Ok(1)),
            ("1000us", Ok(1)),
            ("1001µs", Ok(2)),
            ("1μs", Ok(1)),
            ("0.0000000000000000000000001h", Ok(0)),
            ("99999999999999999999h", Ok(u64::MAX)),
            ("", bad),
            ("5", bad),
            ("-0", Ok(0)),
            ("+-0", bad),
            ("-1s", bad),
            ("1 s", bad),
            (" 1s", bad),
            ("s", bad),
            (".s", bad),
            (".", bad),
            ("1d", bad),
            ("1S", bad),
            ("1e3ms", bad),
            ("1h1", bad),
            ("NaN", bad),
            ("\u{0}", bad),
        ] {
            let got = go_duration(text).map(|d| d.0).map_err(|p| p.code);
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[test]
    fn times_are_read_after_rfc_3339() {
        let bad = Err(Code::InvalidTime);
        for (text, want) in [
            ("1970-01-01T00:00:00Z", Ok(0)),
            ("1970-01-01T00:00:01.5Z", Ok(1_500)),
            ("1970-01-01T00:00:01.0001Z", Ok(1_001)),
            ("1970-01-01t00:00:01z", Ok(1_000)),
            ("1970-01-01T02:00:01+02:00", Ok(1_000)),
            ("1970-01-01T05:45:00+05:45", Ok(0)),
            ("1969-12-31T23:00:01-01:00", Ok(1_000)),
            ("1900-01-01T00:00:00Z", Ok(0)),
            ("0000-01-01T00:00:00-23:59", Ok(0)),
            ("9999-12-31T23:59:59Z", Ok(253_402_300_799_000)),
            ("9999-12-31T23:59:59-23:59", Ok(253_402_387_139_000)),
            ("2024-02-29T00:00:00Z", Ok(1_709_164_800_000)),
            ("2023-02-29T00:00:00Z", bad),
            ("2016-12-31T23:59:60Z", bad),
            ("2016-12-31T24:00:00Z", bad),
            ("2016-12-31T23:59:59", bad),
            ("2016-12-31", bad),
            ("2016-12-31 23:59:59Z", bad),
            ("2016-12-31T23:59:59.Z", bad),
            ("2016-12-31T23:59:59+25:00", bad),
            ("2016-12-31T23:59:59+0100", bad),
            ("2016-12-31T23:59:59Z[UTC]", bad),
            ("+02016-12-31T23:59:59Z", bad),
            ("1000000000-01-01T00:00:00Z", bad),
            ("", bad),
            ("2016-12-31T23:59:5é", bad),
            ("now", bad),
        ] {
            let got = rfc3339(text).map(|t| t.0).map_err(|p| p.code);
            assert_eq!(got, want, "{text:?}");
        }
    }

    #[test]
    fn digits_of_a_query_are_milliseconds() {
        assert_eq!(Given::of_query("250".to_owned()), Given::Ms(250));
        assert_eq!(Given::of_query("9".repeat(30)), Given::Ms(u64::MAX));
        assert_eq!(
            Given::of_query("-1".to_owned()),
            Given::Text("-1".to_owned())
        );
    }

    #[test]
    fn limits_hold_at_the_maximum_and_not_above() {
        let limits = Limits {
            delay_max: Delay(10),
            now: UnixMs(1_000),
        };
        for (due, fits) in [
            (Due::After(Delay(10)), true),
            (Due::After(Delay(11)), false),
            (Due::At(UnixMs(1_010)), true),
            (Due::At(UnixMs(1_011)), false),
            (Due::At(UnixMs(0)), true),
        ] {
            assert_eq!(limits.check(due).is_ok(), fits, "{due:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms in 0..=UnixMs::MAX.0) {
            prop_assert_eq!(rfc3339(&text_of(UnixMs(ms))), Ok(UnixMs(ms)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            prop_assert!(go_duration(&text).is_ok() || go_duration(&text).is_err());
            prop_assert!(rfc3339(&text).is_ok() || rfc3339(&text).is_err());
        }
    }
}
