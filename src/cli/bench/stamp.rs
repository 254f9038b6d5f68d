//! What a benchmark's body says of itself: whose it is, its number, when it is due. Text, so that it goes
//! through every door as it is. Pure.

/// Bytes of a stamp: run, number, due, lag.
pub(super) const STAMP_LEN: usize = 8 + 8 + 14 + 8;

/// The head of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which load: bodies of an earlier one are told apart.
    pub(super) run: u32,
    /// Which message, from 0.
    pub(super) number: u32,
    /// The moment before which it must not be delivered, Unix us: when it was encoded, and its delay.
    pub(super) due_us: u64,
    /// How much later than intended it was encoded. Lateness is counted from the intended time, so that a
    /// generator that is held up by a slow server does not hide it.
    pub(super) lag_us: u32,
}

impl Stamp {
    /// Writes the stamp to the end of `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        digits(u64::from(self.run), 8, out);
        digits(u64::from(self.number), 8, out);
        digits(self.due_us, 14, out);
        digits(u64::from(self.lag_us), 8, out);
    }

    /// Reads what begins with a stamp; `None`: it is not one of ours.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let field = |from: usize, len: usize| {
            let text = str::from_utf8(body.get(from..from + len)?).ok()?;
            u64::from_str_radix(text, 16).ok()
        };
        Some(Self {
            run: field(0, 8)?.try_into().ok()?,
            number: field(8, 8)?.try_into().ok()?,
            due_us: field(16, 14)?,
            lag_us: field(30, 8)?.try_into().ok()?,
        })
    }
}

/// Appends the last `count` digits of `value` in base 16.
pub(super) fn digits(value: u64, count: u32, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend((0..count).rev().map(|place| {
        let digit = (value >> (place * 4)) & 0xf;
        usize::try_from(digit)
            .ok()
            .and_then(|digit| DIGITS.get(digit))
            .copied()
            .unwrap_or(b'0')
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let stamp = Stamp {
            run: 0xdead_beef,
            number: u32::MAX,
            due_us: 1_795_311_600_123_456,
            lag_us: 77,
        };
        let mut body = b"before".to_vec();
        stamp.write(&mut body);
        assert_eq!(body.len(), 6 + STAMP_LEN);
        assert_eq!(Stamp::parse(&body[6..]), Some(stamp));
        assert_eq!(
            Stamp::parse(b"something else that is long enough to be one"),
            None
        );
        assert_eq!(Stamp::parse(b""), None);
    }
}
