//! How durations and addresses are written. Pure: knows no keys and no defaults.

use std::fmt;
use std::time::Duration;

/// Longest duration that may be written: a hundred years, far below any overflow.
const DURATION_MAX: Duration = Duration::from_hours(100 * 365 * 24);

/// Reads a duration as nsqd writes it (`1h`, `1m30s`, `250ms`, `1.5s`) or a whole number of ms.
/// What is over a hundred years is none.
pub fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(ms) = text.parse::<u64>() {
        return Some(Duration::from_millis(ms)).filter(|d| *d <= DURATION_MAX);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        total = total.checked_add(scaled(number, unit_ns(unit)?)?)?;
        rest = tail;
    }
    Some(total).filter(|d| *d <= DURATION_MAX)
}

/// Nanoseconds of Go's units of time.
fn unit_ns(unit: &str) -> Option<u64> {
    match unit {
        "ns" => Some(1),
        "us" | "µs" | "μs" => Some(1_000),
        "ms" => Some(1_000_000),
        "s" => Some(1_000_000_000),
        "m" => Some(60_000_000_000),
        "h" => Some(3_600_000_000_000),
        _ => None,
    }
}

/// `number` units of `unit_ns`, in integers so that 0.1s is exactly 100 ms.
fn scaled(number: &str, unit_ns: u64) -> Option<Duration> {
    const FRACTION_DIGITS_MAX: usize = 9;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let part = |digits: &str| match digits {
        "" => Some(0_u64),
        some => some.parse().ok(),
    };
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let ns = u128::from(part(whole)?) * u128::from(unit_ns)
        + u128::from(part(fraction)?) * u128::from(unit_ns) / scale;
    Some(Duration::from_nanos(u64::try_from(ns).ok()?))
}

/// A duration in the same writing, so that what is printed can be read back.
#[derive(Debug, Clone, Copy)]
pub struct Written(pub Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0 => f.write_str("0s"),
            ms if ms % 3_600_000 == 0 => write!(f, "{}h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(f, "{}m", ms / 60_000),
            ms if ms % 1_000 == 0 => write!(f, "{}s", ms / 1_000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

/// Reads `host:port`; `:port` means every address of the machine, as for nsqd.
pub fn host_port(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let legal = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    match host {
        _ if !legal => None,
        "" => Some(format!("0.0.0.0:{port}")),
        _ => Some(text.to_owned()),
    }
}

/// An address of Redis without its password.
pub fn masked_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // The last @ ends the credentials: a password may hold one.
    let Some((credentials, host)) = rest.rsplit_once('@') else {
        return url.to_owned();
    };
    match credentials.split_once(':') {
        Some((user, _password)) => format!("{scheme}://{user}:***@{host}"),
        None => format!("{scheme}://***@{host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_nsqd_writes_them() {
        let ms = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(ms("250ms"), Some(250));
        assert_eq!(ms("1h"), Some(3_600_000));
        assert_eq!(ms("1m30s"), Some(90_000));
        assert_eq!(ms("1.5s"), Some(1500));
        assert_eq!(ms("0.1s"), Some(100));
        assert_eq!(ms("1500"), Some(1500));
        assert_eq!(ms("315360000000"), Some(315_360_000_000));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "s",
            "1x",
            "-1s",
            "1s2",
            ".s",
            "1..2s",
            "1d",
            "99999999h",
            "18446744073709551616",
            "1 s",
        ] {
            assert_eq!(duration(text), None, "{text:?}");
        }
    }

    #[test]
    fn written_durations_read_back() {
        for ms in [0, 1, 1500, 60_000, 5000, 7_200_000, 315_360_000_000] {
            let span = Duration::from_millis(ms);
            assert_eq!(duration(&Written(span).to_string()), Some(span));
        }
    }

    #[test]
    fn addresses_need_a_port() {
        assert_eq!(host_port(":4140").as_deref(), Some("0.0.0.0:4140"));
        assert_eq!(host_port("[::1]:0").as_deref(), Some("[::1]:0"));
        assert_eq!(host_port("nsqd-1:4150").as_deref(), Some("nsqd-1:4150"));
        for bad in [
            "",
            "host",
            "host:",
            "host:65536",
            "::1:80",
            "a b:1",
            "[x]:1",
        ] {
            assert_eq!(host_port(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn passwords_are_masked() {
        assert_eq!(masked_url("redis://h:1/0"), "redis://h:1/0");
        assert_eq!(masked_url("redis://u:p@x@h:1"), "redis://u:***@h:1");
        assert_eq!(masked_url("redis://:p@h"), "redis://:***@h");
        assert_eq!(masked_url("redis://p@h"), "redis://***@h");
    }
}
