//! A JSON object, read as Go's `encoding/json` reads one into a struct: that is what nsqd does with
//! IDENTIFY, and a stricter or a laxer reader would refuse or accept other clients than nsqd does.
//! Keys match whatever their case, `null` leaves a field alone, a later key wins, lone surrogates and
//! invalid UTF-8 become U+FFFD, 10,000 levels of nesting are allowed, nothing may follow. Pure, and
//! without recursion.

/// The value of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it is written.
    Number(&'a str),
    /// A string without its quotes, still escaped.
    Text(&'a [u8]),
    /// An object or an array.
    Composite,
}

/// Not JSON, or not of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON object with fields of the expected types")]
pub(super) struct BadJson;

/// Go's own limit on nesting.
const DEPTH_MAX: usize = 10_000;

/// Reads an object and gives each key, as it is meant (unescaped), and value to `field`. A bare
/// `null` is an object without keys.
pub(super) fn read_object(
    json: &[u8],
    mut field: impl FnMut(&str, Value<'_>) -> Result<(), BadJson>,
) -> Result<(), BadJson> {
    let mut scanner = Scanner { rest: json };
    if scanner.peek() == Some(b'n') {
        scanner.word(b"null")?;
    } else {
        scanner.expect(b'{')?;
        if scanner.peek() == Some(b'}') {
            scanner.expect(b'}')?;
        } else {
            loop {
                let key = unescape(scanner.key()?);
                let value = scanner.value()?;
                field(&key, value)?;
                match scanner.next() {
                    Some(b',') => {}
                    Some(b'}') => break,
                    _ => return Err(BadJson),
                }
            }
        }
    }
    match scanner.peek() {
        None => Ok(()),
        Some(_) => Err(BadJson),
    }
}

/// Whether Go takes `key` for the field `name`, which is in lower-case ASCII.
pub(super) fn key_is(key: &str, name: &str) -> bool {
    let folded = key.chars().map(|char| match char {
        // The two characters beyond ASCII that Unicode folds to ASCII letters.
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    });
    folded.eq(name.chars())
}

/// The text that an escaped string means.
pub(super) fn unescape(raw: &[u8]) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut pieces = raw;
    while let Some(at) = pieces.iter().position(|byte| *byte == b'\\') {
        let (plain, escape) = pieces.split_at(at);
        push_lossy(plain, &mut text);
        pieces = push_escape(escape, &mut text);
    }
    push_lossy(pieces, &mut text);
    text
}

/// Go replaces each byte that does not belong to a character.
fn push_lossy(bytes: &[u8], text: &mut String) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
}

/// Reads the escape at the beginning of `bytes`, which the scanner has checked, and gives the rest.
fn push_escape<'a>(bytes: &'a [u8], text: &mut String) -> &'a [u8] {
    let Some((escape, rest)) = bytes.split_at_checked(2) else {
        return &[];
    };
    let char = match escape {
        b"\\b" => '\x08',
        b"\\f" => '\x0c',
        b"\\n" => '\n',
        b"\\r" => '\r',
        b"\\t" => '\t',
        b"\\u" => {
            let (unit, rest) = code_unit(bytes).unwrap_or((0xfffd, &[]));
            // A high surrogate counts only with a low one right behind it.
            let pair = code_unit(rest).and_then(|(low, behind)| {
                let both = [unit, low];
                let char = char::decode_utf16(both).next()?.ok()?;
                (char.len_utf16() == 2).then_some((char, behind))
            });
            return if let Some((char, behind)) = pair {
                text.push(char);
                behind
            } else {
                let char = char::from_u32(u32::from(unit));
                text.push(char.unwrap_or(char::REPLACEMENT_CHARACTER));
                rest
            };
        }
        other => char::from(other.get(1).copied().unwrap_or(b'\\')),
    };
    text.push(char);
    rest
}

/// The four digits of a `\uXXXX` at the beginning of `bytes`, and what follows.
fn code_unit(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let digits = bytes.strip_prefix(b"\\u")?;
    let (digits, rest) = digits.split_at_checked(4)?;
    let unit = u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    Some((unit, rest))
}

/// Walks over the bytes once.
struct Scanner<'a> {
    rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    /// The next byte that is not white space, left in place.
    fn peek(&mut self) -> Option<u8> {
        self.rest = trim_start(self.rest);
        self.rest.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.advance(1);
        Some(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), BadJson> {
        match self.next() {
            Some(found) if found == byte => Ok(()),
            _ => Err(BadJson),
        }
    }

    fn advance(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }

    fn word(&mut self, word: &[u8]) -> Result<(), BadJson> {
        self.rest = self.rest.strip_prefix(word).ok_or(BadJson)?;
        Ok(())
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<&'a [u8], BadJson> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    fn value(&mut self) -> Result<Value<'a>, BadJson> {
        match self.peek() {
            Some(b'{' | b'[') => {
                self.composite()?;
                Ok(Value::Composite)
            }
            _ => self.scalar(),
        }
    }

    fn scalar(&mut self) -> Result<Value<'a>, BadJson> {
        match self.peek().ok_or(BadJson)? {
            b'n' => self.word(b"null").map(|()| Value::Null),
            b't' => self.word(b"true").map(|()| Value::Bool(true)),
            b'f' => self.word(b"false").map(|()| Value::Bool(false)),
            b'"' => self.string().map(Value::Text),
            _ => self.number().map(Value::Number),
        }
    }

    /// A string, checked, without its quotes.
    fn string(&mut self) -> Result<&'a [u8], BadJson> {
        self.expect(b'"')?;
        let text = self.rest;
        let mut at = 0_usize;
        loop {
            match text.get(at).ok_or(BadJson)? {
                b'"' => break,
                b'\\' => match text.get(at + 1).ok_or(BadJson)? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                    b'u' => {
                        let digits = text.get(at + 2..at + 6).ok_or(BadJson)?;
                        if !digits.iter().all(u8::is_ascii_hexdigit) {
                            return Err(BadJson);
                        }
                        at += 6;
                    }
                    _ => return Err(BadJson),
                },
                0..0x20 => return Err(BadJson),
                _ => at += 1,
            }
        }
        self.advance(at + 1);
        text.get(..at).ok_or(BadJson)
    }

    fn number(&mut self) -> Result<&'a str, BadJson> {
        let text = self.rest;
        let negative = usize::from(text.first() == Some(&b'-'));
        self.advance(negative);
        let leading_zero = self.rest.first() == Some(&b'0');
        let digits = self.digits();
        if digits == 0 || (leading_zero && digits > 1) {
            return Err(BadJson);
        }
        if self.rest.first() == Some(&b'.') {
            self.advance(1);
            if self.digits() == 0 {
                return Err(BadJson);
            }
        }
        if let Some(b'e' | b'E') = self.rest.first() {
            self.advance(1);
            if let Some(b'+' | b'-') = self.rest.first() {
                self.advance(1);
            }
            if self.digits() == 0 {
                return Err(BadJson);
            }
        }
        let len = text.len() - self.rest.len();
        let number = text.get(..len).ok_or(BadJson)?;
        str::from_utf8(number).map_err(|_not_ascii| BadJson)
    }

    fn digits(&mut self) -> usize {
        let count = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.advance(count);
        count
    }

    /// An object or array with all that is in it.
    fn composite(&mut self) -> Result<(), BadJson> {
        // What is open, by the byte that closes it; the object around it counts too.
        let mut open = Vec::new();
        loop {
            // Here a value begins.
            match self.peek().ok_or(BadJson)? {
                bracket @ (b'{' | b'[') => {
                    self.advance(1);
                    let closer = if bracket == b'{' { b'}' } else { b']' };
                    if open.len() + 2 > DEPTH_MAX {
                        return Err(BadJson);
                    }
                    open.push(closer);
                    if self.peek() != Some(closer) {
                        if closer == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => {
                    self.scalar()?;
                }
            }
            // Here a value has ended, or what was opened is empty.
            loop {
                let Some(closer) = open.last().copied() else {
                    return Ok(());
                };
                match self.next() {
                    Some(b',') => {
                        if closer == b'}' {
                            self.key()?;
                        }
                        break;
                    }
                    Some(byte) if byte == closer => {
                        open.pop();
                    }
                    _ => return Err(BadJson),
                }
            }
        }
    }
}

fn trim_start(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &&u8| matches!(**byte, b' ' | b'\t' | b'\r' | b'\n');
    let blanks = bytes.iter().take_while(blank).count();
    bytes.get(blanks..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(json: &[u8]) -> Result<Vec<(String, String)>, BadJson> {
        let mut fields = Vec::new();
        read_object(json, |key, value| {
            fields.push((key.to_owned(), format!("{value:?}")));
            Ok(())
        })?;
        Ok(fields)
    }

    #[test]
    fn strings_mean_what_go_takes_them_for() {
        for (raw, text) in [
            (br#"a\"\\\/\b\f\n\r\tz"#.as_slice(), "a\"\\/\x08\x0c\n\r\tz"),
            (br"\u0041\u00e9", "A\u{e9}"),
            (br"\ud83d\ude00!", "\u{1f600}!"),
            (br"\ud83d\u0041", "\u{fffd}A"),
            (br"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
            (br"\ude00x", "\u{fffd}x"),
            (br"\u0041\u0042", "AB"),
            (b"\xff\xe2\x82.", "\u{fffd}\u{fffd}\u{fffd}."),
        ] {
            assert_eq!(unescape(raw), text, "{raw:?}");
        }
    }

    #[test]
    fn keys_are_folded_as_unicode_folds_them() {
        assert!(key_is("TLS_v1", "tls_v1"));
        assert!(key_is("\u{17f}nappy", "snappy"));
        assert!(!key_is("\u{131}d", "id"));
        assert!(!key_is("tls_v", "tls_v1"));
    }

    #[test]
    fn values_are_skipped_whole() {
        let json = br#"{"a":[{"b":[]},{},[1,"]"]],"c":-1.5e+3,"d":"x\"y"}"#;
        let read = fields(json).unwrap();
        let keys: Vec<_> = read.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["a", "c", "d"]);
        assert_eq!(read[1].1, "Number(\"-1.5e+3\")");
    }

    proptest! {
        #[test]
        fn what_is_json_is_told_as_by_serde(text in r#"[\[\]{}:,0-9a1e.\-" tn]{0,12}"#) {
            let json = format!("{{\"k\":{text}}}");
            let theirs = serde_json::from_str::<serde_json::Value>(&json);
            prop_assume!(!matches!(&theirs, Err(error) if error.to_string().contains("out of range")));
            prop_assert_eq!(fields(json.as_bytes()).is_ok(), theirs.is_ok(), "{}", json);
        }
    }
}
