//! Go's `%q`, with which nsqd quotes names in its errors. Pure.

/// Quotes `bytes` as Go's `strconv.Quote` does a string, valid UTF-8 or not.
pub fn quote(bytes: &[u8]) -> String {
    let mut quoted = String::with_capacity(bytes.len() + 2);
    quoted.push('"');
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            push_char(char, &mut quoted);
        }
        for byte in chunk.invalid() {
            push_hex(u32::from(*byte), 2, 'x', &mut quoted);
        }
    }
    quoted.push('"');
    quoted
}

fn push_char(char: char, quoted: &mut String) {
    match char {
        '"' | '\\' => {
            quoted.push('\\');
            quoted.push(char);
        }
        '\x07' => quoted.push_str("\\a"),
        '\x08' => quoted.push_str("\\b"),
        '\x0c' => quoted.push_str("\\f"),
        '\n' => quoted.push_str("\\n"),
        '\r' => quoted.push_str("\\r"),
        '\t' => quoted.push_str("\\t"),
        '\x0b' => quoted.push_str("\\v"),
        _ if is_print(char) => quoted.push(char),
        _ => match u32::from(char) {
            code @ (0..0x20 | 0x7f) => push_hex(code, 2, 'x', quoted),
            code @ 0..0x1_0000 => push_hex(code, 4, 'u', quoted),
            code => push_hex(code, 8, 'U', quoted),
        },
    }
}

/// Whether Go prints it: letters, marks, numbers, punctuation, symbols and the ASCII space. The
/// standard library has the same table behind `escape_debug`, which escapes a mark only at the
/// beginning of a text; hence the letter before it. (It may know a newer Unicode than Go does.)
fn is_print(char: char) -> bool {
    if char.is_ascii() {
        return char == ' ' || char.is_ascii_graphic();
    }
    let mut text = String::from("a");
    text.push(char);
    text.escape_debug().nth(1) == Some(char)
}

fn push_hex(code: u32, digits: u32, letter: char, quoted: &mut String) {
    quoted.push('\\');
    quoted.push(letter);
    for digit in (0..digits).rev() {
        let value = (code >> (digit * 4)) & 0xf;
        quoted.push(char::from_digit(value, 16).unwrap_or('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go_does() {
        // Printed by Go's fmt.Printf("%q").
        let cases: [(&[u8], &str); 14] = [
            (b"", r#""""#),
            (b"a b", r#""a b""#),
            (b"a\"b\\", r#""a\"b\\""#),
            (
                b"\x00\x01\x1f\x7f\x07\x08\x0c\n\r\t\x0b",
                r#""\x00\x01\x1f\x7f\a\b\f\n\r\t\v""#,
            ),
            (b"\xff\xfea", r#""\xff\xfea""#),
            (b"\xe2\x82", r#""\xe2\x82""#),
            ("tópico".as_bytes(), "\"tópico\""),
            ("日本".as_bytes(), "\"日本\""),
            ("e\u{301}".as_bytes(), "\"e\u{301}\""),
            ("\u{301}".as_bytes(), "\"\u{301}\""),
            (
                "\u{a0}\u{200b}\u{feff}".as_bytes(),
                r#""\u00a0\u200b\ufeff""#,
            ),
            ("\u{fffd}".as_bytes(), "\"\u{fffd}\""),
            ("\u{1f600}".as_bytes(), "\"\u{1f600}\""),
            ("\u{e0001}\u{80}".as_bytes(), r#""\U000e0001\u0080""#),
        ];
        for (bytes, expected) in cases {
            assert_eq!(quote(bytes), expected, "{bytes:?}");
        }
        // An encoded surrogate and an overlong form are no UTF-8: each byte for itself.
        assert_eq!(quote(b"\xed\xa0\x80\xc0\xaf"), r#""\xed\xa0\x80\xc0\xaf""#);
    }
}
