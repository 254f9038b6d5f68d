//! The delay of a DPUB or MDPUB, as nsqd reads it. Pure.

use super::error_code::{ErrorCode, Refusal};
use crate::message::Delay;

/// Reads decimal digits, none being 0. What overflows, which nsqd lets wrap, is out of range.
pub(super) fn parse(name: &str, digits: &[u8], max: Delay) -> Result<Delay, Refusal> {
    if !digits.iter().all(u8::is_ascii_digit) {
        let mut text = format!("{name} could not parse timeout ").into_bytes();
        text.extend_from_slice(digits);
        return Err(Refusal::new(ErrorCode::Invalid, text));
    }
    let ms = digits.iter().try_fold(0_u64, |ms, digit| {
        ms.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    });
    match ms {
        Some(ms) if ms <= max.0 => Ok(Delay(ms)),
        _ => {
            let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
            let number = String::from_utf8_lossy(digits.get(zeros..).unwrap_or_default());
            let text = format!("{name} timeout {number} out of range 0-{}", max.0);
            Err(Refusal::new(ErrorCode::Invalid, text))
        }
    }
}
