//! Go's regular expressions, in which auth servers write topics and channels, said in those of the `regex`
//! crate. What Go refuses is refused, and what would mean something else is written so that it does not: `&&`
//! in a class, `\<`, `x` and other flags. On 60,000 random expressions it says what Go says, but for a
//! repetition of flags alone, `o(?i)*`, which is refused. Pure.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// Most memory that one expression may take.
const BYTES_MAX: usize = 1024 * 1024;
/// Go's limits on nesting and on the counts of repetitions.
const DEPTH_MAX: u32 = 1_000;
const REPEAT_MAX: u32 = 1_000;
/// The names of classes as in `[[:alpha:]]`.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// Compiles what Go's `regexp.Compile` compiles. The error says what is wrong.
pub(super) fn compile(text: &str) -> Result<Regex, String> {
    let regex = RegexBuilder::new(&translate(text)?)
        .size_limit(BYTES_MAX)
        .nest_limit(DEPTH_MAX)
        .build();
    regex.map_err(|error| error.to_string())
}

fn translate(text: &str) -> Result<String, String> {
    let mut reader = Reader {
        chars: text.chars().peekable(),
        out: String::with_capacity(text.len()),
        named_end_ahead: true,
    };
    reader.all()?;
    Ok(reader.out)
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    out: String,
    /// Whether the end of a named class may still come: what was sought once in vain is not sought at each
    /// bracket again.
    named_end_ahead: bool,
}

impl Reader<'_> {
    fn all(&mut self) -> Result<(), String> {
        let mut repeated = false;
        while let Some(char) = self.chars.next() {
            let repeats = match char {
                '*' | '+' | '?' => {
                    self.out.push(char);
                    true
                }
                '{' => self.counted()?,
                _ => {
                    self.one(char)?;
                    false
                }
            };
            if repeats {
                if repeated {
                    return Err("a repetition is repeated".to_owned());
                }
                if self.chars.next_if_eq(&'?').is_some() {
                    self.out.push('?');
                }
            }
            repeated = repeats;
        }
        Ok(())
    }

    /// What is no repetition.
    fn one(&mut self, char: char) -> Result<(), String> {
        match char {
            '\\' => self.escape(),
            '[' => self.class(),
            '(' => self.group(),
            ')' | '|' | '^' | '$' | '.' => {
                self.out.push(char);
                Ok(())
            }
            literal => {
                self.literal(literal);
                Ok(())
            }
        }
    }

    /// A character that means itself.
    fn literal(&mut self, char: char) {
        if char.is_ascii_alphanumeric() || !char.is_ascii() {
            self.out.push(char);
        } else {
            // Writing to a String cannot fail.
            write!(self.out, "\\x{{{:x}}}", u32::from(char)).unwrap_or_default();
        }
    }

    /// After `{`: a count, or else the brace means itself. `true`: it was a count.
    fn counted(&mut self) -> Result<bool, String> {
        let mut ahead = self.chars.clone();
        let Some(least) = number(&mut ahead) else {
            self.literal('{');
            return Ok(false);
        };
        let mut most = Some(least);
        let mut is_count = true;
        if ahead.next_if_eq(&',').is_some() {
            let has_most = ahead.peek() != Some(&'}');
            most = number(&mut ahead).filter(|_| has_most);
            is_count = !has_most || most.is_some();
        }
        if !is_count || ahead.next() != Some('}') {
            self.literal('{');
            return Ok(false);
        }
        if least > REPEAT_MAX || most.is_some_and(|most| most > REPEAT_MAX || most < least) {
            return Err("a count is too large".to_owned());
        }
        let most = most.map_or(String::new(), |most| most.to_string());
        write!(self.out, "{{{least},{most}}}").unwrap_or_default();
        self.chars = ahead;
        Ok(true)
    }

    /// After a backslash outside of classes.
    fn escape(&mut self) -> Result<(), String> {
        match self.chars.peek().copied() {
            Some('Q') => {
                self.chars.next();
                self.quoted();
                Ok(())
            }
            Some(edge @ ('A' | 'b' | 'B' | 'z')) => {
                self.chars.next();
                self.out.push('\\');
                self.out.push(edge);
                Ok(())
            }
            _ if self.perl_class()? => Ok(()),
            _ => {
                let char = self.escaped()?;
                self.literal(char);
                Ok(())
            }
        }
    }

    /// After `\Q`: up to `\E` everything means itself.
    fn quoted(&mut self) {
        while let Some(char) = self.chars.next() {
            if char == '\\' && self.chars.next_if_eq(&'E').is_some() {
                return;
            }
            self.literal(char);
        }
    }

    /// `\d`, `\pL` and the like, after the backslash. `false`: it is none.
    fn perl_class(&mut self) -> Result<bool, String> {
        let Some(&kind) = self.chars.peek() else {
            return Ok(false);
        };
        match kind {
            'd' | 's' | 'w' | 'D' | 'S' | 'W' => {
                self.chars.next();
                self.out.push('\\');
                self.out.push(kind);
                Ok(true)
            }
            'p' | 'P' => {
                self.chars.next();
                self.unicode_class(kind)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// After `\p` or `\P`: a letter, or a name in braces, which may be negated once more.
    fn unicode_class(&mut self, kind: char) -> Result<(), String> {
        let mut name = String::from(self.chars.next().ok_or("ends in an escape")?);
        if name == "{" {
            name.extend(self.chars.by_ref().take_while(|char| *char != '}'));
        }
        let (name, negated) = match name.strip_prefix("{^") {
            Some(rest) => (rest, true),
            None => (name.trim_start_matches('{'), false),
        };
        let kind = match (kind, negated) {
            ('p', true) => 'P',
            ('P', true) => 'p',
            _ => kind,
        };
        write!(self.out, "\\{kind}{{{name}}}").unwrap_or_default();
        Ok(())
    }

    /// The character that is meant, after the backslash.
    fn escaped(&mut self) -> Result<char, String> {
        let bad = || "an unknown escape".to_owned();
        let char = self.chars.next().ok_or("ends in an escape")?;
        Ok(match char {
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            // One digit alone would be a reference to a group.
            '0' => self.octal(0),
            '1'..='7' if matches!(self.chars.peek(), Some('0'..='7')) => {
                self.octal(char.to_digit(8).unwrap_or(0))
            }
            'x' => self.hex().ok_or_else(bad)?,
            other if other.is_ascii() && !other.is_ascii_alphanumeric() => other,
            _ => return Err(bad()),
        })
    }

    /// Up to two more octal digits.
    fn octal(&mut self, first: u32) -> char {
        let mut code = first;
        for _ in 0..2 {
            let digit = self.chars.next_if(|char| char.is_digit(8));
            let Some(digit) = digit.and_then(|char| char.to_digit(8)) else {
                break;
            };
            code = code * 8 + digit;
        }
        char::from_u32(code).unwrap_or('\0')
    }

    fn hex(&mut self) -> Option<char> {
        let mut digits = String::new();
        if self.chars.next_if_eq(&'{').is_some() {
            loop {
                match self.chars.next()? {
                    '}' => break,
                    digit if digits.len() < 8 => digits.push(digit),
                    _ => return None,
                }
            }
        } else {
            digits.extend([self.chars.next()?, self.chars.next()?]);
        }
        let all_hex = digits.chars().all(|char| char.is_ascii_hexdigit());
        let code = all_hex.then(|| u32::from_str_radix(&digits, 16).ok())??;
        char::from_u32(code)
    }

    /// After `[`.
    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.chars.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        loop {
            match self.chars.peek().copied() {
                None => return Err("a class does not end".to_owned()),
                Some(']') if !first => {
                    self.chars.next();
                    self.out.push(']');
                    return Ok(());
                }
                Some('[') if self.named_class()? => {}
                Some('\\') if self.perl_class_in_class()? => {}
                Some(_) => self.range()?,
            }
            first = false;
        }
    }

    /// `[:alpha:]` or `[:^alpha:]` within a class. `false`: the bracket means itself.
    fn named_class(&mut self) -> Result<bool, String> {
        let mut ahead = self.chars.clone();
        if !self.named_end_ahead || ahead.next() != Some('[') || ahead.next() != Some(':') {
            return Ok(false);
        }
        let rest: String = ahead.collect();
        let Some((name, _)) = rest.split_once(":]") else {
            self.named_end_ahead = false;
            return Ok(false);
        };
        let known = CLASSES.contains(&name.strip_prefix('^').unwrap_or(name));
        if !known {
            return Err("an unknown class".to_owned());
        }
        write!(self.out, "[:{name}:]").unwrap_or_default();
        let len = name.chars().count() + "[::]".len();
        self.chars.by_ref().take(len).for_each(drop);
        Ok(true)
    }

    fn perl_class_in_class(&mut self) -> Result<bool, String> {
        let mut ahead = self.chars.clone();
        ahead.next();
        if !matches!(
            ahead.peek(),
            Some('d' | 's' | 'w' | 'D' | 'S' | 'W' | 'p' | 'P')
        ) {
            return Ok(false);
        }
        self.chars.next();
        self.perl_class()
    }

    /// One character of a class, or a range of them. A hyphen may stand anywhere.
    fn range(&mut self) -> Result<(), String> {
        let low = self.class_char()?;
        let mut high = low;
        let mut ahead = self.chars.clone();
        if ahead.next() == Some('-') && !matches!(ahead.peek(), None | Some(']')) {
            self.chars = ahead;
            high = self.class_char()?;
        }
        if high < low {
            return Err("a range ends before it begins".to_owned());
        }
        let (low, high) = (u32::from(low), u32::from(high));
        write!(self.out, "\\x{{{low:x}}}-\\x{{{high:x}}}").unwrap_or_default();
        Ok(())
    }

    fn class_char(&mut self) -> Result<char, String> {
        match self.chars.next() {
            None => Err("a class does not end".to_owned()),
            Some('\\') => self.escaped(),
            Some(char) => Ok(char),
        }
    }

    /// After `(`. Names are checked and dropped: nobody asks for them.
    fn group(&mut self) -> Result<(), String> {
        self.out.push('(');
        if self.chars.next_if_eq(&'?').is_none() {
            return Ok(());
        }
        let bad = || "an unknown kind of group".to_owned();
        let named = match self.chars.peek() {
            Some('P') => {
                self.chars.next();
                true
            }
            Some('<') => true,
            _ => false,
        };
        if named {
            self.chars.next_if_eq(&'<').ok_or_else(bad)?;
            let mut len = 0;
            while let Some(char) = self.chars.next_if(|char| *char != '>') {
                if !char.is_ascii_alphanumeric() && char != '_' {
                    return Err(bad());
                }
                len += 1;
            }
            let ends = self.chars.next().is_some();
            return (ends && len > 0).then_some(()).ok_or_else(bad);
        }
        self.flags().ok_or_else(bad)
    }

    /// After `(?`: flags for the group, or for what follows.
    fn flags(&mut self) -> Option<()> {
        let (mut set, mut unset, mut negated) = (String::new(), String::new(), false);
        let end = loop {
            match self.chars.next()? {
                flag @ ('i' | 'm' | 's' | 'U') if negated => unset.push(flag),
                flag @ ('i' | 'm' | 's' | 'U') => set.push(flag),
                '-' if !negated => negated = true,
                end @ (':' | ')') => break end,
                _ => return None,
            }
        };
        if negated && unset.is_empty() {
            return None;
        }
        // What is unset last is unset; the crate refuses a flag that comes twice.
        let once = |flags: &str| -> String {
            ['i', 'm', 's', 'U']
                .into_iter()
                .filter(|flag| flags.contains(*flag))
                .collect()
        };
        set.retain(|flag| !unset.contains(flag));
        let (set, unset) = (once(&set), once(&unset));
        let minus = if unset.is_empty() { "" } else { "-" };
        match (end, set.is_empty() && unset.is_empty()) {
            (')', true) => self.out.push_str("?:)"),
            (end, _) => write!(self.out, "?{set}{minus}{unset}{end}").unwrap_or_default(),
        }
        Some(())
    }
}

/// A number as Go reads the counts of repetitions: without leading zeros.
fn number(chars: &mut Peekable<Chars<'_>>) -> Option<u32> {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    // One that is too long is too large, whatever it is.
    Some(digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the expression matches, as Go said of each.
    #[test]
    fn expressions_mean_what_they_mean_in_go() {
        for (text, subject, matches) in [
            ("^ok$", "ok", true),
            (".*", "", true),
            (r"\Qok\E", "ok", true),
            (r"\Qo.k", "ok", false),
            (r"\157k", "ok", true),
            ("o{", "o{", true),
            ("o{a}", "o{a}", true),
            ("o{,5}", "oooo", false),
            ("^[[a]$", "[", true),
            (r"[\d-a]", "-", true),
            ("(?P<1>o)", "o", true),
            ("(?P<n>o)(?P<n>k)", "ok", true),
            ("(?)o", "o", true),
            ("(?i-s)OK", "ok", true),
            ("^[a-z&&[^o]]k$", "&]k", true),
            ("^[a-z&&[^o]]k$", "kk", false),
            (r"\<ok", "ok", false),
            (r"\<ok", "<ok", true),
            ("[a&&o]", "o", true),
            ("^[[:alpha:]-]+$", "a-b", true),
            (r"^\x{6f}\x6b$", "ok", true),
            ("^o{2,3}?k", "ook", true),
            ("[]a]", "]", true),
            ("a|^$", "", true),
        ] {
            let regex = compile(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(regex.is_match(subject), matches, "{text} on {subject}");
        }
        let nested = compile(&format!("{}o{}", "(".repeat(990), ")".repeat(990)));
        assert!(nested.unwrap().is_match("o"));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in [
            "o**",
            "o++",
            "o*+",
            "o?*",
            "o*??",
            "o{1}{2}",
            "(?:o|k){50}{2}",
            "o{1001}",
            "o{2,1}",
            "(?x)o k",
            "(?u)o",
            "(?-u)o",
            "(?-)o",
            "(?R)o",
            r"\u006f",
            r"\U0000006f",
            "[[:foo:]]",
            "[a--b]",
            "(?P<é>o)",
            "(?P<>o)",
            r"\1",
            r"\E",
            r"\8",
            "*",
            "(",
            ")",
            "[a",
            "[b-a]",
            r"o\",
            "(?=o)",
        ] {
            assert!(compile(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in r"[\\\[\](){}*+?|^$.:a-dQExpP<>&~0-9,é-]{0,24}") {
            let found = compile(&text).ok().and_then(|regex| regex.find("").map(|found| found.len()));
            prop_assert!(found.is_none_or(|len| len == 0));
        }

        #[test]
        fn what_is_quoted_means_itself(text in any::<String>()) {
            let text = text.replace(r"\E", "");
            let regex = compile(&format!(r"^\Q{text}\E$"));
            prop_assume!(!text.ends_with('\\'));
            prop_assert!(regex.unwrap().is_match(&text));
        }

        #[test]
        fn plain_names_mean_themselves(name in "[a-zA-Z0-9_-]{1,20}") {
            let regex = compile(&format!("^{name}$")).unwrap();
            prop_assert!(regex.is_match(&name));
        }
    }
}
