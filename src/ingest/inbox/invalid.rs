//! PURE. How a message that is not valid is published to the topic beside.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::ingest::problem::{At, Problem};
use crate::nsq::consumption::Delivery;

/// A longer body is published as it is: with the reason around it, it might be too long for nsqd.
const WRAPPED_BYTES_MAX: usize = 256 * 1024;

/// How much nsqd lets us say. Each step is taken when it has refused the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Manner {
    /// The reason as JSON, the body in it.
    #[default]
    Wrapped,
    /// The body as it came.
    Plain,
    /// Nothing can be published: the message stays in the inbox.
    Kept,
}

impl Manner {
    /// The next step, after nsqd has answered `text`.
    pub(super) fn after(self, text: &str) -> Self {
        match (self, text.split(' ').next().unwrap_or_default()) {
            (Self::Wrapped, "E_BAD_MESSAGE") => Self::Plain,
            (_, "E_BAD_MESSAGE" | "E_BAD_TOPIC" | "E_UNAUTHORIZED" | "E_INVALID") => Self::Kept,
            // Anything else says nothing about the message.
            (same, _) => same,
        }
    }
}

/// What is published for `delivery`; `None`: nothing.
pub(super) fn body(manner: Manner, delivery: &Delivery, problem: &Problem) -> Option<Bytes> {
    match manner {
        Manner::Wrapped if delivery.body.len() <= WRAPPED_BYTES_MAX => {
            Some(wrapped(delivery, problem))
        }
        Manner::Wrapped | Manner::Plain => Some(delivery.body.clone()),
        Manner::Kept => None,
    }
}

fn wrapped(delivery: &Delivery, problem: &Problem) -> Bytes {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    put("code", problem.code.as_str().into());
    put("detail", problem.detail.as_str().into());
    if let At::Field(field) = &problem.at {
        put("field", field.as_str().into());
    }
    put("message_id", delivery.id.to_string().into());
    put("timestamp_ns", delivery.timestamp_ns.into());
    match str::from_utf8(&delivery.body) {
        Ok(text) => put("body", text.into()),
        Err(_binary) => put("body_base64", BASE64_STANDARD.encode(&delivery.body).into()),
    };
    Bytes::from(Value::Object(object).to_string())
}

#[cfg(test)]
mod tests {
    use crate::ingest::problem::Code;
    use crate::nsq::consumption::DeliveryId;

    use super::*;

    fn delivery(body: &[u8]) -> Delivery {
        Delivery {
            timestamp_ns: 5,
            attempts: 1,
            id: DeliveryId(*b"0123456789abcdef"),
            body: Bytes::copy_from_slice(body),
        }
    }

    #[test]
    fn the_reason_stands_around_the_body() {
        let problem = Problem::field(Code::InvalidTopic, "topic", "No.");
        let published = |body: &[u8]| {
            let body = super::body(Manner::Wrapped, &delivery(body), &problem).unwrap();
            serde_json::from_slice::<Value>(&body).unwrap()
        };
        let text = published(b"{}");
        assert_eq!(text["code"], "invalid_topic");
        assert_eq!(text["field"], "topic");
        assert_eq!(text["message_id"], "0123456789abcdef");
        assert_eq!(text["body"], "{}");
        assert_eq!(published(b"\xff")["body_base64"], "/w==");
    }

    #[test]
    fn a_long_body_is_left_as_it_is() {
        let long = vec![b'x'; WRAPPED_BYTES_MAX + 1];
        let problem = Problem::new(Code::InvalidJson, "No.");
        let body = body(Manner::Wrapped, &delivery(&long), &problem).unwrap();
        assert_eq!(&body[..], &long[..]);
    }

    #[test]
    fn what_nsqd_refuses_is_tried_in_another_manner() {
        let too_big = "E_BAD_MESSAGE PUB message too big 9 > 8";
        assert_eq!(Manner::Wrapped.after(too_big), Manner::Plain);
        assert_eq!(Manner::Plain.after(too_big), Manner::Kept);
        let denied = "E_UNAUTHORIZED AUTH failed for PUB on \"x.invalid\" \"\"";
        assert_eq!(Manner::Wrapped.after(denied), Manner::Kept);
        assert_eq!(
            Manner::Wrapped.after("E_PUB_FAILED PUB failed exiting"),
            Manner::Wrapped
        );
    }
}
