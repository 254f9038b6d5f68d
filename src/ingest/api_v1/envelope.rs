//! PURE. The envelope that a message may ask for: its headers and its body as one JSON document, made
//! when it is created. What is stored and what consumers get is that document; nobody opens it again.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::ingest::problem::{Code, Problem, quoted};
use crate::message::ClientId;

use super::json::{Fields, Node};

/// Most headers of one message.
pub(in crate::ingest) const HEADERS_MAX: usize = 64;

/// The headers that an envelope is to hold. `None`: no envelope is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Headers(Map<String, Value>);

impl Headers {
    /// Reads the fields `envelope` and `headers`.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Option<Self>, Problem> {
        let envelope = fields.text("envelope")?;
        let headers = fields.take("headers");
        match (envelope.as_deref(), headers) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(Problem::field(
                Code::ConflictingFields,
                fields.at("headers"),
                "Headers reach consumers in an envelope only: give \"envelope\": \"json\" too.",
            )),
            (Some("json"), headers) => Self::of(headers, &fields.at("headers")).map(Some),
            (Some(other), _) => Err(Problem::field(
                Code::InvalidField,
                fields.at("envelope"),
                format!("This must be \"json\", and is {}.", quoted(other)),
            )),
        }
    }

    fn of(node: Option<Node<'_>>, at: &str) -> Result<Self, Problem> {
        let mut headers = Map::new();
        let given = match node {
            None => return Ok(Self(headers)),
            Some(node) => node.into_object(at)?,
        };
        if given.len() > HEADERS_MAX {
            let detail = format!(
                "There are {} headers; the limit is {HEADERS_MAX}.",
                given.len()
            );
            return Err(Problem::field(Code::TooManyItems, at, detail));
        }
        for (name, value) in given {
            let at = format!("{at}.{}", quoted(&name).trim_matches('"'));
            let value = value.into_text(&at)?;
            if headers
                .insert(name.into_owned(), Value::String(value.into_owned()))
                .is_some()
            {
                let detail = "Each header may be given once.";
                return Err(Problem::field(Code::DuplicateField, at, detail));
            }
        }
        Ok(Self(headers))
    }

    /// The document of these headers and `body`.
    pub(super) fn around(self, body: &Bytes, id: Option<&ClientId>) -> Bytes {
        let mut document = Map::new();
        let mut put = |name: &str, value: Value| document.insert(name.to_owned(), value);
        if let Some(id) = id {
            put("id", id.as_str().into());
        }
        put("headers", Value::Object(self.0));
        match str::from_utf8(body) {
            Ok(text) => put("body", text.into()),
            Err(_binary) => put("body_base64", BASE64_STANDARD.encode(body).into()),
        };
        Bytes::from(Value::Object(document).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::api_v1::json::Spot;

    fn document(text: &str, body: &'static [u8]) -> Result<Option<Value>, (Code, String)> {
        let read = || {
            let mut fields = Fields::of(
                Node::parse(text.as_bytes())?,
                Spot::Top,
                &["headers", "envelope"],
            )?;
            let id = ClientId::parse(b"order-1").ok();
            let headers = Headers::take(&mut fields)?;
            let document = headers.map(|h| h.around(&Bytes::from_static(body), id.as_ref()));
            Ok(document.map(|document| serde_json::from_slice(&document).unwrap()))
        };
        read().map_err(|problem: Problem| {
            let field = problem.details();
            let field = serde_json::to_value(field).unwrap()["field"].clone();
            (problem.code, field.as_str().unwrap_or_default().to_owned())
        })
    }

    #[test]
    fn headers_and_body_become_one_document() {
        let asked = r#"{"envelope": "json", "headers": {"b": "2", "a": "1"}}"#;
        assert_eq!(
            document(asked, b"hi").unwrap().unwrap(),
            serde_json::json!({"id": "order-1", "headers": {"a": "1", "b": "2"}, "body": "hi"})
        );
        let binary = document(r#"{"envelope": "json"}"#, b"\xff")
            .unwrap()
            .unwrap();
        assert_eq!(
            binary,
            serde_json::json!({"id": "order-1", "headers": {}, "body_base64": "/w=="})
        );
        assert_eq!(document("{}", b"hi"), Ok(None));
    }

    #[test]
    fn headers_that_nobody_would_get_are_refused() {
        let many: Vec<String> = (0..=HEADERS_MAX).map(|n| format!(r#""{n}": """#)).collect();
        let many = format!(
            r#"{{"envelope": "json", "headers": {{{}}}}}"#,
            many.join(",")
        );
        for (text, code, field) in [
            (r#"{"headers": {}}"#, Code::ConflictingFields, "headers"),
            (r#"{"envelope": "xml"}"#, Code::InvalidField, "envelope"),
            (r#"{"envelope": 1}"#, Code::InvalidField, "envelope"),
            (
                r#"{"envelope": "json", "headers": []}"#,
                Code::InvalidField,
                "headers",
            ),
            (
                r#"{"envelope": "json", "headers": {"a": 1}}"#,
                Code::InvalidField,
                "headers.a",
            ),
            (
                r#"{"envelope": "json", "headers": {"a": "", "a": ""}}"#,
                Code::DuplicateField,
                "headers.a",
            ),
            (&many, Code::TooManyItems, "headers"),
        ] {
            assert_eq!(
                document(text, b"hi"),
                Err((code, field.to_owned())),
                "{text}"
            );
        }
    }
}
