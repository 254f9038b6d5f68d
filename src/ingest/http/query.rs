//! The query of a request target, read as Go's `url.ParseQuery` reads it, for all HTTP doors. Pure;
//! knows no parameter by name.

/// The query is not one that Go's `url.ParseQuery` takes: it has a bad escape or a `;`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) struct BadQuery;

/// The parameters in their order. Keys and values are bytes: an escape can name any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ingest) struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    /// Reads the part after the `?`.
    pub(in crate::ingest) fn parse(raw: &[u8]) -> Result<Self, BadQuery> {
        let mut pairs = Vec::new();
        for part in raw.split(|b| *b == b'&') {
            if part.contains(&b';') {
                return Err(BadQuery);
            }
            if part.is_empty() {
                continue;
            }
            let (key, value) = match part.iter().position(|b| *b == b'=') {
                Some(at) => {
                    let (key, value) = part.split_at(at);
                    (key, value.get(1..).unwrap_or_default())
                }
                None => (part, &[][..]),
            };
            let key = unescape(key, Plus::IsSpace).ok_or(BadQuery)?;
            let value = unescape(value, Plus::IsSpace).ok_or(BadQuery)?;
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    /// The value of `key`; the first one wins.
    pub(in crate::ingest) fn first(&self, key: &str) -> Option<&[u8]> {
        let pair = self.0.iter().find(|(k, _)| k == key.as_bytes())?;
        Some(&pair.1)
    }

    /// All keys, in the order in which they came, repeated ones too.
    pub(in crate::ingest) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(key, _)| key.as_slice())
    }
}

/// What a plus sign stands for: a space in a query, itself in a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingest) enum Plus {
    /// In a query.
    IsSpace,
    /// In a path.
    IsPlus,
}

/// Undoes percent-encoding. `None`: a `%` that is not followed by two hex digits.
pub(in crate::ingest) fn unescape(text: &[u8], plus: Plus) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        let byte = match byte {
            b'%' => 16 * hex(*rest.next()?)? + hex(*rest.next()?)?,
            b'+' if plus == Plus::IsSpace => b' ',
            other => *other,
        };
        plain.push(byte);
    }
    Some(plain)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Reads an integer as Go's `strconv.ParseInt(text, 10, 64)` does. `None`: it is none, or overflows.
pub(in crate::ingest) fn go_int(text: &[u8]) -> Option<i64> {
    let signed = text.strip_prefix(b"+").or_else(|| text.strip_prefix(b"-"));
    let digits = signed.unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(raw: &str, key: &str) -> Result<Option<String>, BadQuery> {
        let query = Query::parse(raw.as_bytes())?;
        Ok(query
            .first(key)
            .map(|v| String::from_utf8_lossy(v).into_owned()))
    }

    #[test]
    fn queries_are_read_as_go_reads_them() {
        let some = |text: &str| Ok(Some(text.to_owned()));
        for (raw, want) in [
            ("topic=a", some("a")),
            ("topic=a&topic=b", some("a")),
            ("topic=", some("")),
            ("topic", some("")),
            ("topic=a=b", some("a=b")),
            ("&&topic=a&", some("a")),
            ("=x&topic=a", some("a")),
            ("topic=a+b", some("a b")),
            ("topic=a%20b%2B", some("a b+")),
            ("%74opic=a", some("a")),
            ("Topic=a", Ok(None)),
            ("", Ok(None)),
            ("topic=a;b", Err(BadQuery)),
            ("topic=a&x;", Err(BadQuery)),
            ("topic=a%3Bb", some("a;b")),
            ("topic=%", Err(BadQuery)),
            ("topic=%2", Err(BadQuery)),
            ("topic=%zz", Err(BadQuery)),
            ("topic=a&%zz=1", Err(BadQuery)),
            ("topic=a%00", some("a\0")),
        ] {
            assert_eq!(first(raw, "topic"), want, "{raw}");
        }
    }

    #[test]
    fn an_escape_can_name_bytes_that_are_not_utf8() {
        let query = Query::parse(b"topic=%ff%FE").unwrap();
        assert_eq!(query.first("topic"), Some(&[0xff, 0xfe][..]));
    }

    #[test]
    fn a_path_keeps_its_plus() {
        assert_eq!(unescape(b"a+%2f", Plus::IsPlus), Some(b"a+/".to_vec()));
    }

    #[test]
    fn integers_are_read_as_go_reads_them() {
        for (text, want) in [
            ("0", Some(0)),
            ("+5", Some(5)),
            ("-5", Some(-5)),
            ("-0", Some(0)),
            ("007", Some(7)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775808", None),
            ("", None),
            ("+", None),
            ("-", None),
            ("+-5", None),
            ("5 ", None),
            (" 5", None),
            ("1_000", None),
            ("0x10", None),
            ("1e3", None),
            ("1.0", None),
        ] {
            assert_eq!(go_int(text.as_bytes()), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(raw: Vec<u8>) {
            if let Ok(query) = Query::parse(&raw) {
                prop_assert!(query.keys().count() <= raw.len());
            }
        }
    }
}
