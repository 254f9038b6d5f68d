//! Reads JSON requests strictly: no unknown field, none twice, no value of another type, each fault
//! with its own code and the field's name. Bounded: depth by `serde_json`, number of values here.
//! Texts without escapes stay where they lie, and nothing is named before it is at fault: a batch has
//! thousands of fields. Pure; knows no field by name.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::{self, Display};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::ingest::problem::{Code, Problem, quoted};

use super::moment::Given;

/// Most values of one request: 1,000 messages of a batch with all their fields, and some.
const VALUES_MAX: usize = 20_000;
const TOO_MANY: &str = "too many values";

/// A JSON value. Objects keep repeated keys, so that they can be refused by name.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool,
    /// An integer from 0.
    Whole(u64),
    /// Any other number: negative, with a fraction or an exponent, or over 64 bits.
    Number(f64),
    /// A string.
    Text(Cow<'a, str>),
    /// An array.
    List(Vec<Node<'a>>),
    /// An object.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl<'a> Node<'a> {
    /// Reads a whole document.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, Problem> {
        let left = Cell::new(VALUES_MAX);
        let mut parser = serde_json::Deserializer::from_slice(text);
        let parsed = Seed(&left).deserialize(&mut parser);
        parsed
            .and_then(|node| parser.end().map(|()| node))
            .map_err(|error| refusal(&error))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null; leave the field out instead",
            Self::Bool => "a boolean",
            Self::Whole(_) | Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    fn is_not(&self, wanted: &str, at: impl Display) -> Problem {
        let detail = format!("This must be {wanted}, and is {}.", self.kind());
        let at = at.to_string();
        if at.is_empty() {
            Problem::new(Code::InvalidField, detail)
        } else {
            Problem::field(Code::InvalidField, at, detail)
        }
    }

    /// As an array.
    pub(super) fn into_list(self, at: impl Display) -> Result<Vec<Self>, Problem> {
        match self {
            Self::List(list) => Ok(list),
            other => Err(other.is_not("an array", at)),
        }
    }

    /// As an object.
    pub(super) fn into_object(
        self,
        at: impl Display,
    ) -> Result<Vec<(Cow<'a, str>, Self)>, Problem> {
        match self {
            Self::Object(fields) => Ok(fields),
            other => Err(other.is_not("an object", at)),
        }
    }

    /// As a string.
    pub(super) fn into_text(self, at: impl Display) -> Result<Cow<'a, str>, Problem> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.is_not("a string", at)),
        }
    }

    /// As a delay or a time; `code` is the refusal of a number that can be neither.
    fn into_given(self, at: impl Display, code: Code) -> Result<Given, Problem> {
        match self {
            Self::Whole(ms) => Ok(Given::Ms(ms)),
            Self::Text(text) => Ok(Given::Text(text.into_owned())),
            Self::Number(number) => Err(Problem::field(
                code,
                at.to_string(),
                format!(
                    "{number:e} is not a whole number of milliseconds from 0, written without sign, \
                     fraction and exponent."
                ),
            )),
            other => Err(other.is_not("a whole number or a string", at)),
        }
    }
}

/// What `serde_json` found, as a refusal. Its own text names line and column.
fn refusal(error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    let code = if text.starts_with("recursion limit exceeded") {
        Code::JsonTooDeep
    } else if text.starts_with("number out of range") {
        Code::InvalidNumber
    } else if text.starts_with(TOO_MANY) {
        Code::JsonTooLarge
    } else {
        Code::InvalidJson
    };
    Problem::new(code, format!("{text}."))
}

/// Counts values down while it reads.
#[derive(Clone, Copy)]
struct Seed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node<'de>, D::Error> {
        let left = self.0.get();
        let left = left
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(TOO_MANY))?;
        self.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Node<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node<'de>, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Node<'de>, E> {
        Ok(Node::Bool)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node<'de>, E> {
        Ok(Node::Whole(value))
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a negative number is only quoted in a refusal"
    )]
    fn visit_i64<E>(self, value: i64) -> Result<Node<'de>, E> {
        Ok(u64::try_from(value).map_or(Node::Number(value as f64), Node::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node<'de>, E> {
        Ok(Node::Number(value))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Borrowed(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node<'de>, E> {
        Ok(Node::Text(Cow::Owned(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node<'de>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node<'de>, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = entries.next_key_seed(Name)? {
            fields.push((name, entries.next_value_seed(self)?));
        }
        Ok(Node::Object(fields))
    }
}

/// The name of a field, left where it lies if it can be.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// Where an object is in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// It is the document.
    Top,
    /// This field of it.
    Field(&'static str),
    /// An item of this list: `messages[3]`.
    Item(&'static str, usize),
}

impl Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Top => Ok(()),
            Self::Field(name) => f.write_str(name),
            Self::Item(list, number) => write!(f, "{list}[{number}]"),
        }
    }
}

/// The full name of a field: `messages[3].topic`.
struct Path<'a>(Spot, &'a str);

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Spot::Top => f.write_str(self.1),
            spot => write!(f, "{spot}.{}", self.1),
        }
    }
}

/// The fields of an object, each of which exists and is there once.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    spot: Spot,
    fields: Vec<(Cow<'a, str>, Node<'a>)>,
}

impl<'a> Fields<'a> {
    /// Takes the object at `spot` apart.
    pub(super) fn of(node: Node<'a>, spot: Spot, allowed: &[&str]) -> Result<Self, Problem> {
        let fields = match node {
            Node::Object(fields) => fields,
            other => return Err(other.is_not("an object", spot)),
        };
        for (number, (name, _)) in fields.iter().enumerate() {
            if !allowed.contains(&&**name) {
                let quoted = quoted(name);
                let known = allowed.join(", ");
                return Err(Problem::field(
                    Code::UnknownField,
                    Path(spot, quoted.trim_matches('"')).to_string(),
                    format!("There is no field {quoted}; the fields are {known}."),
                ));
            }
            // Few fields can come here: the first that is not known ends the loop.
            if fields.iter().take(number).any(|(other, _)| other == name) {
                return Err(Problem::field(
                    Code::DuplicateField,
                    Path(spot, name).to_string(),
                    "Each field may be given once.",
                ));
            }
        }
        Ok(Self { spot, fields })
    }

    /// The full name of a field, for refusals.
    pub(super) fn at(&self, name: &str) -> String {
        Path(self.spot, name).to_string()
    }

    /// Takes a field out.
    pub(super) fn take(&mut self, name: &str) -> Option<Node<'a>> {
        let at = self.fields.iter().position(|(n, _)| n == name)?;
        Some(self.fields.swap_remove(at).1)
    }

    /// Takes a field out that must be there.
    pub(super) fn need(&mut self, name: &str) -> Result<Node<'a>, Problem> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    /// The refusal of an object without this field.
    pub(super) fn missing(&self, name: &str) -> Problem {
        Problem::field(
            Code::MissingField,
            self.at(name),
            format!("The field {name} is required."),
        )
    }

    /// Takes a string out.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, Problem> {
        let text = self
            .take(name)
            .map(|node| node.into_text(Path(self.spot, name)));
        text.transpose()
    }

    /// Takes a delay or a time out.
    pub(super) fn given(&mut self, name: &str, code: Code) -> Result<Option<Given>, Problem> {
        let given = self
            .take(name)
            .map(|node| node.into_given(Path(self.spot, name), code));
        given.transpose()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn delay(text: &str) -> Result<Given, (Code, crate::ingest::problem::At)> {
        let read = || {
            let mut fields = Fields::of(Node::parse(text.as_bytes())?, Spot::Top, &["d", "e"])?;
            fields.need("d")?;
            let mut fields = Fields::of(Node::parse(text.as_bytes())?, Spot::Top, &["d", "e"])?;
            Ok(fields
                .given("d", Code::InvalidDelay)?
                .unwrap_or(Given::Ms(0)))
        };
        read().map_err(|problem: Problem| (problem.code, problem.at))
    }

    #[test]
    fn each_fault_has_its_code() {
        for (text, want) in [
            ("", Code::InvalidJson),
            ("{", Code::InvalidJson),
            (r#"{"d":1}x"#, Code::InvalidJson),
            (r#"{"d":NaN}"#, Code::InvalidJson),
            (r#"{"d":01}"#, Code::InvalidJson),
            (r#"{"d":"\ud800"}"#, Code::InvalidJson),
            (r#"{"d":"\ud800\u0041"}"#, Code::InvalidJson),
            ("{\"d\":\"\n\"}", Code::InvalidJson),
            (r#"{"d":1e400}"#, Code::InvalidNumber),
            (r#"{"d":-0}"#, Code::InvalidDelay),
            (r#"{"d":-1}"#, Code::InvalidDelay),
            (r#"{"d":1.5}"#, Code::InvalidDelay),
            (r#"{"d":1e2}"#, Code::InvalidDelay),
            (r#"{"d":18446744073709551616}"#, Code::InvalidDelay),
            (r#"{"d":null}"#, Code::InvalidField),
            (r#"{"d":[]}"#, Code::InvalidField),
            (r#"{"d":1,"d":2}"#, Code::DuplicateField),
            (r#"{"d":1,"x":2}"#, Code::UnknownField),
            (r#"{"e":1}"#, Code::MissingField),
            ("[]", Code::InvalidField),
            ("null", Code::InvalidField),
        ] {
            assert_eq!(delay(text).map_err(|(code, _)| code), Err(want), "{text}");
        }
    }

    #[test]
    fn integers_and_texts_are_taken() {
        assert_eq!(
            delay(r#"{"d":9007199254740993}"#),
            Ok(Given::Ms(9_007_199_254_740_993))
        );
        assert_eq!(delay(r#"{"d":"1h"}"#), Ok(Given::Text("1h".to_owned())));
        assert_eq!(
            delay(r#"{"d":"a\u0000b"}"#),
            Ok(Given::Text("a\0b".to_owned()))
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_not_json() {
        let problem = Node::parse(b"{\"d\":\"\xff\"}").unwrap_err();
        assert_eq!(problem.code, Code::InvalidJson);
    }

    #[test]
    fn deep_and_wide_documents_are_refused() {
        let deep = "[".repeat(100_000);
        assert_eq!(
            Node::parse(deep.as_bytes()).unwrap_err().code,
            Code::JsonTooDeep
        );
        let wide = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert_eq!(
            Node::parse(wide.as_bytes()).unwrap_err().code,
            Code::JsonTooLarge
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text: Vec<u8>) {
            prop_assert!(Node::parse(&text).is_ok() || Node::parse(&text).is_err());
        }
    }
}
