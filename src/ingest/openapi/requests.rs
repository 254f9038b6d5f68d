//! The schemas of requests, by hand, as requests are read by hand; and what can be done with the answer
//! to a create. Knows no route.

use serde_json::{Value, json};

use crate::ingest::api_v1::{HEADERS_MAX, IDS_MAX, ITEMS_MAX};
use crate::message::{ClientId, TopicName};

const TOPIC_PATTERN: &str = "^[.a-zA-Z0-9_-]+(#ephemeral)?$";
/// Of an id that a client chose.
pub(super) const ID_PATTERN: &str = "^[!-.0-z|~]+$";
/// Padding may be left out; the bits that no byte has must be 0.
const BASE64_PATTERN: &str = "^([A-Za-z0-9+/]{4})*\
    ([A-Za-z0-9+/][AQgw](==)?|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=?)?$";

/// A topic's name.
pub(super) fn topic() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": TopicName::LEN_MAX,
        "pattern": TOPIC_PATTERN})
}

/// A client's own id.
pub(super) fn id() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": ClientId::LEN_MAX,
        "pattern": ID_PATTERN,
        "description": "Printable ASCII without space, / and braces; not of the shape of a minted id"})
}

/// How long to wait.
pub(super) fn delay() -> Value {
    json!({"description": "Milliseconds, or a duration as Go writes it: 250ms, 1.5h, 1m30s. At most \
            max_delay.",
        "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string",
            "pattern": "^\\+?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$"}]})
}

/// A moment.
pub(super) fn time() -> Value {
    json!({"description": "Unix milliseconds, or RFC 3339. The past means now; at most max_delay ahead.",
        "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "date-time"}]})
}

/// The schemas of the requests, and of this description.
pub(super) fn schemas() -> [(String, Value); 5] {
    let filter = json!({"type": "object", "additionalProperties": false, "minProperties": 1,
        "properties": {"topic": topic(), "due_from": time(), "due_to": time()}});
    let item = json!({"description": "As CreateMessage. One that is not is refused for itself.",
        "anyOf": [{"$ref": "#/components/schemas/CreateMessage"}, {}]});
    let all = [
        ("CreateMessage", create_message()),
        (
            "CreateBatch",
            json!({"type": "object", "required": ["messages"], "additionalProperties": false,
                "properties": {"messages": list(&item, ITEMS_MAX)}}),
        ),
        (
            "MoveMessage",
            json!({"type": "object", "additionalProperties": false,
                "description": "Exactly one of the three.",
                "minProperties": 1, "maxProperties": 1,
                "properties": {"delay": delay(), "delay_ms": delay(), "deliver_at": time()}}),
        ),
        (
            "CancelMany",
            json!({"description": "ids, or filter (with page_token to go on).", "oneOf": [
                {"type": "object", "additionalProperties": false, "required": ["ids"],
                    "properties": {"ids": list(&json!({"type": "string"}), IDS_MAX)}},
                {"type": "object", "additionalProperties": false, "required": ["filter"],
                    "properties": {"filter": filter, "page_token": {"type": "string"}}},
            ]}),
        ),
        ("OpenApi", json!({"type": "object"})),
    ];
    all.map(|(name, schema)| (name.to_owned(), schema))
}

fn create_message() -> Value {
    json!({"type": "object", "required": ["topic"], "additionalProperties": false,
    "description": "body or body_base64 is required, and only one of them may be given; likewise \
        at most one of delay, delay_ms and deliver_at.",
    "properties": {
        "id": id(),
        "topic": topic(),
        "body": {"type": "string", "minLength": 1, "description": "At most max_msg_size bytes"},
        "body_base64": {"type": "string", "minLength": 2, "contentEncoding": "base64",
            "pattern": BASE64_PATTERN, "description": "For bodies that are not UTF-8"},
        "delay": delay(), "delay_ms": delay(), "deliver_at": time(),
        "envelope": {"type": "string", "enum": ["json"], "description": "Consumers get a JSON document with id (if \
            given), headers, and body or body_base64"},
        "headers": {"type": "object", "maxProperties": HEADERS_MAX,
            "additionalProperties": {"type": "string"}, "description": "Only with envelope"},
    },
    "dependentRequired": {"headers": ["envelope"]},
    "oneOf": [{"required": ["body"]}, {"required": ["body_base64"]}],
    "not": {"anyOf": [
        {"required": ["delay", "delay_ms"]},
        {"required": ["delay", "deliver_at"]},
        {"required": ["delay_ms", "deliver_at"]},
    ]}})
}

fn list(of: &Value, max: usize) -> Value {
    json!({"type": "array", "minItems": 1, "maxItems": max, "items": of})
}

/// What can be asked about a message that was created.
pub(super) fn links_of_created() -> Value {
    let to = |operation: &str| json!({"operationId": operation, "parameters": {"id": "$response.body#/id"}});
    json!({"get": to("getMessage"), "cancel": to("cancelMessage"), "move": to("moveMessage"),
        "deliver": to("deliverMessage")})
}
