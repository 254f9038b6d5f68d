//! The description of `/v1` after `OpenAPI` 3.1, made from the same table as its routes, so that no
//! operation can be missing. Requests are described by hand: they are read by hand, too.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use utoipa::openapi::path::{
    HttpMethod, Operation as Described, OperationBuilder, Parameter, ParameterBuilder, ParameterIn,
};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::response::{Response as Answer, ResponseBuilder};
use utoipa::openapi::schema::ComponentsBuilder;
use utoipa::openapi::{
    Content, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref,
    RefOr, Required, Schema, Type,
};

use crate::ingest::api_v1::{
    HEADERS_MAX, IDS_MAX, ITEMS_MAX, Operation, PAGE_SIZE, PAGE_SIZE_MAX, Params, schemas,
};
use crate::ingest::http::Shared;
use crate::ingest::problem::{Code, Problem};
use crate::message::{ClientId, TopicName};

const TOPIC_PATTERN: &str = "^[.a-zA-Z0-9_-]+(#ephemeral)?$";
const ID_PATTERN: &str = "^[!-.0-z|~]+$";
const PROBLEM_TYPE: &str = "application/problem+json";

/// `GET /v1/openapi.json`
pub(super) async fn document(
    State(_shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    static TEXT: LazyLock<String> =
        LazyLock::new(|| serde_json::to_string(&describe()).unwrap_or_default());
    Params::none(request.uri())?;
    let kind = [(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )];
    Ok((kind, TEXT.as_str()).into_response())
}

fn describe() -> OpenApi {
    let mut components = ComponentsBuilder::new().schemas_from_iter(schemas());
    for (name, schema) in requests() {
        // Our own constants: a schema that does not parse would fail the test below.
        if let Ok(schema) = serde_json::from_value::<RefOr<Schema>>(schema) {
            components = components.schema(name, schema);
        }
    }
    let mut paths = PathsBuilder::new().build();
    for operation in Operation::ALL {
        let (method, path) = operation.route();
        paths.add_path_operation(path, vec![http_method(&method)], describe_one(operation));
    }
    let info = InfoBuilder::new()
        .title("nsqdelayd")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Delayed messages for NSQ: schedule, look at, move and cancel them. Every refusal is a \
             problem after RFC 9457 with a stable `code`.",
        ));
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

fn http_method(method: &Method) -> HttpMethod {
    match *method {
        Method::POST => HttpMethod::Post,
        Method::DELETE => HttpMethod::Delete,
        Method::PATCH => HttpMethod::Patch,
        _ => HttpMethod::Get,
    }
}

/// What is to be said of an operation beside its route.
struct Entry {
    name: &'static str,
    summary: &'static str,
    params: Vec<Parameter>,
    body: Option<RequestBody>,
    /// Statuses of success, and the schema of their bodies.
    success: &'static [StatusCode],
    schema: &'static str,
    /// What can go wrong beside what can go wrong everywhere.
    codes: Vec<Code>,
}

impl Entry {
    fn new(name: &'static str, summary: &'static str, schema: &'static str) -> Self {
        Self {
            name,
            summary,
            params: Vec::new(),
            body: None,
            success: &[StatusCode::OK],
            schema,
            codes: vec![
                Code::InvalidQuery,
                Code::UnknownParameter,
                Code::Internal,
                Code::MethodNotAllowed,
                Code::StoreUnavailable,
                Code::OutcomeUnknown,
            ],
        }
    }

    fn codes(mut self, codes: &[Code]) -> Self {
        self.codes.extend(codes);
        self
    }

    /// It changes something, so it needs an instance that serves and a Redis that takes writes.
    fn writes(self) -> Self {
        self.codes(&[Code::StoreRefused, Code::Starting, Code::Draining])
    }

    fn params(mut self, params: Vec<Parameter>) -> Self {
        self.params.extend(params);
        self.codes(&[Code::InvalidParameter, Code::DuplicateParameter])
    }

    fn of_message(self) -> Self {
        let mut entry = self.codes(&[Code::InvalidId, Code::MessageNotFound]);
        entry.params.push(path_id());
        entry
    }

    fn of_topic(self) -> Self {
        let mut entry = self.codes(&[Code::InvalidTopic]);
        entry.params.push(path_topic());
        entry
    }

    fn body(mut self, schema: &str, raw: bool) -> Self {
        let mut body = RequestBodyBuilder::new()
            .required(Some(Required::True))
            .content("application/json", content(schema));
        if raw {
            let bytes = ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some(
                    "The body of the message, as it is; the rest in the query.",
                ));
            let bytes = Content::new(Some(bytes.build()));
            body = body.content("application/octet-stream", bytes);
        }
        self.body = Some(body.build());
        self.codes(&[
            Code::InvalidJson,
            Code::JsonTooDeep,
            Code::JsonTooLarge,
            Code::InvalidNumber,
            Code::UnknownField,
            Code::DuplicateField,
            Code::MissingField,
            Code::InvalidField,
            Code::BodyUnreadable,
            Code::BodyTooBig,
            Code::UnsupportedMediaType,
            Code::Overloaded,
        ])
    }
}

/// Of those that make or change one message, or many.
fn entry(operation: Operation) -> Entry {
    match operation {
        Operation::Create => {
            let mut entry = Entry::new("createMessage", "Schedule a message", "Accepted")
                .body("CreateMessage", true)
                .params(raw_params())
                .writes()
                .codes(&draft_codes())
                .codes(&[Code::MissingParameter]);
            entry.success = &[StatusCode::CREATED, StatusCode::OK];
            entry
        }
        Operation::CreateBatch => Entry::new(
            "createMessages",
            "Schedule many messages, each for itself",
            "BatchResult",
        )
        .body("CreateBatch", false)
        .writes()
        .codes(&[Code::EmptyBatch, Code::TooManyItems]),
        Operation::Get => Entry::new("getMessage", "Look at a message", "Message").of_message(),
        Operation::Cancel => Entry::new(
            "cancelMessage",
            "Cancel a message; again is fine",
            "Outcome",
        )
        .of_message()
        .writes()
        .codes(&[Code::InFlight, Code::DeadLetter]),
        Operation::Move => Entry::new("moveMessage", "Move a message to another time", "Moved")
            .of_message()
            .body("MoveMessage", false)
            .writes()
            .codes(&[Code::InFlight, Code::DeadLetter, Code::MessageCancelled])
            .codes(&[Code::InvalidDelay, Code::InvalidTime, Code::DelayOutOfRange])
            .codes(&[Code::ConflictingFields]),
        Operation::Deliver => Entry::new("deliverMessage", "Deliver a message now", "Moved")
            .of_message()
            .writes()
            .codes(&[Code::InFlight, Code::DeadLetter, Code::MessageCancelled]),
        Operation::List
        | Operation::CancelMany
        | Operation::ListDead
        | Operation::Requeue
        | Operation::DropDead
        | Operation::Topics
        | Operation::Pause
        | Operation::Resume
        | Operation::Stats
        | Operation::OpenApi => entry_of_many(operation),
    }
}

/// Of all the others.
fn entry_of_many(operation: Operation) -> Entry {
    match operation {
        Operation::List => Entry::new("listMessages", "List pending messages", "MessagePage")
            .params(list_params())
            .codes(&[
                Code::InvalidTopic,
                Code::InvalidTime,
                Code::InvalidPageToken,
            ]),
        Operation::CancelMany => Entry::new(
            "cancelMessages",
            "Cancel by ids, or by a filter",
            "CancelResult",
        )
        .body("CancelMany", false)
        .writes()
        .codes(&[Code::EmptyBatch, Code::TooManyItems, Code::EmptyFilter])
        .codes(&[
            Code::ConflictingFields,
            Code::InvalidTopic,
            Code::InvalidTime,
        ])
        .codes(&[Code::InvalidPageToken]),
        Operation::ListDead => Entry::new("listDeadLetters", "List dead letters", "MessagePage")
            .params(paging_params())
            .codes(&[Code::InvalidPageToken]),
        Operation::Requeue => Entry::new(
            "requeueDeadLetter",
            "Give a dead letter back to the queue",
            "Moved",
        )
        .of_message()
        .writes()
        .codes(&[Code::InFlight, Code::MessageCancelled]),
        Operation::DropDead => {
            Entry::new("dropDeadLetter", "Drop a dead letter for ever", "Outcome")
                .of_message()
                .writes()
        }
        Operation::Topics => Entry::new("listTopics", "Count what is pending by topic", "Topics"),
        Operation::Pause => Entry::new("pauseTopic", "Hold what is due of a topic", "TopicState")
            .of_topic()
            .writes(),
        Operation::Resume => Entry::new("resumeTopic", "Let a topic go on", "TopicState")
            .of_topic()
            .writes(),
        Operation::Stats => Entry::new("getStats", "Count what is pending", "Stats"),
        _ => Entry::new("getOpenApi", "This description", "OpenApi"),
    }
}

fn draft_codes() -> [Code; 12] {
    [
        Code::InvalidTopic,
        Code::InvalidId,
        Code::InvalidDelay,
        Code::InvalidTime,
        Code::DelayOutOfRange,
        Code::InvalidBase64,
        Code::MessageEmpty,
        Code::MessageTooBig,
        Code::ConflictingFields,
        Code::IdConflict,
        Code::PendingFull,
        Code::TopicFull,
    ]
}

fn describe_one(operation: Operation) -> Described {
    let entry = entry(operation);
    let mut described = OperationBuilder::new()
        .operation_id(Some(entry.name))
        .summary(Some(entry.summary))
        .parameters(Some(entry.params))
        .request_body(entry.body);
    for status in entry.success {
        described = described.response(status.as_str(), success(operation, *status, entry.schema));
    }
    let mut problems: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in entry.codes {
        let codes = problems.entry(code.status().as_u16()).or_default();
        codes.push(code.as_str());
    }
    if operation == Operation::Create {
        problems
            .entry(409)
            .or_default()
            .push(Code::MessageCancelled.as_str());
    }
    for (status, codes) in problems {
        described = described.response(status.to_string(), refusal(status, &codes));
    }
    described.build()
}

fn success(operation: Operation, status: StatusCode, schema: &str) -> Answer {
    let text = match (operation, status) {
        (Operation::Create, StatusCode::OK) => "The same message had been accepted before",
        (Operation::Create, _) => "Accepted",
        _ => "Done",
    };
    let mut answer = ResponseBuilder::new()
        .description(text)
        .content("application/json", content(schema));
    if operation == Operation::Create {
        let location =
            HeaderBuilder::new().schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        let location = location.description(Some("Where the message is"));
        answer = answer.header("Location", location.build());
    }
    answer.build()
}

fn refusal(status: u16, codes: &[&str]) -> Answer {
    let mut answer = ResponseBuilder::new()
        .description(format!("code: {}", codes.join(", ")))
        .content(PROBLEM_TYPE, content("Problem"));
    let header = |text: &str, kind: Type| {
        let schema = ObjectBuilder::new().schema_type(kind);
        HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(text))
            .build()
    };
    if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
        let text = "Seconds after which to try again";
        answer = answer.header("Retry-After", header(text, Type::Integer));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let text = "The methods of this path";
        answer = answer.header("Allow", header(text, Type::String));
    }
    answer.build()
}

fn content(schema: &str) -> Content {
    Content::new(Some(Ref::from_schema_name(schema)))
}

fn parameter(name: &str, text: &str, schema: Value) -> Parameter {
    // Our own constants again, checked by the test below.
    let schema = serde_json::from_value::<RefOr<Schema>>(schema).ok();
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(text))
        .schema(schema)
        .build()
}

fn path_id() -> Parameter {
    let schema = json!({"type": "string", "minLength": 1, "maxLength": ClientId::LEN_MAX,
        "pattern": ID_PATTERN});
    let mut id = parameter("id", "A minted id, or the client's own", schema);
    id.parameter_in = ParameterIn::Path;
    id.required = Required::True;
    id
}

fn path_topic() -> Parameter {
    let schema = json!({"type": "string", "minLength": 1, "maxLength": TopicName::LEN_MAX,
        "pattern": TOPIC_PATTERN});
    let mut topic = parameter("topic", "The topic", schema);
    topic.parameter_in = ParameterIn::Path;
    topic.required = Required::True;
    topic
}

fn paging_params() -> Vec<Parameter> {
    let size = json!({"type": "integer", "minimum": 1, "maximum": PAGE_SIZE_MAX,
        "default": PAGE_SIZE});
    vec![
        parameter("page_size", "Most messages of the page", size),
        parameter(
            "page_token",
            "From the page before",
            json!({"type": "string"}),
        ),
    ]
}

fn list_params() -> Vec<Parameter> {
    let moment = "RFC 3339, or Unix milliseconds";
    let mut params = vec![
        parameter("topic", "Only this topic", topic()),
        parameter("due_from", &format!("Due at or after: {moment}"), time()),
        parameter("due_to", &format!("Due before: {moment}"), time()),
    ];
    params.extend(paging_params());
    params
}

fn raw_params() -> Vec<Parameter> {
    let only = "Only if the body is not JSON";
    vec![
        parameter("topic", &format!("{only}, and required then"), topic()),
        parameter("id", &format!("{only}: the client's own id"), id()),
        parameter("delay", &format!("{only}: how long to wait"), delay()),
        parameter("delay_ms", &format!("{only}: the same"), delay()),
        parameter(
            "defer",
            &format!("{only}: the same, as nsqd calls it"),
            delay(),
        ),
        parameter("deliver_at", &format!("{only}: when to deliver"), time()),
    ]
}

fn topic() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": TopicName::LEN_MAX,
        "pattern": TOPIC_PATTERN})
}

fn id() -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": ClientId::LEN_MAX,
        "pattern": ID_PATTERN,
        "description": "Printable ASCII without space, / and braces; not of the shape of a minted id"})
}

fn delay() -> Value {
    json!({"description": "Milliseconds, or a duration as Go writes it: 250ms, 1.5h, 1m30s. At most \
            max_delay.",
        "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string",
            "pattern": "^\\+?(0|(([0-9]+\\.?[0-9]*|\\.[0-9]+)(ns|us|µs|ms|s|m|h))+)$"}]})
}

fn time() -> Value {
    json!({"description": "Unix milliseconds, or RFC 3339. The past means now; at most max_delay ahead.",
        "oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "date-time"}]})
}

/// The schemas of the requests, and of this description.
fn requests() -> Vec<(&'static str, Value)> {
    let message = json!({"type": "object", "required": ["topic"], "additionalProperties": false,
    "description": "body or body_base64 is required, and only one of them may be given; likewise \
        at most one of delay, delay_ms and deliver_at.",
    "properties": {
        "id": id(),
        "topic": topic(),
        "body": {"type": "string", "minLength": 1, "description": "At most max_msg_size bytes"},
        "body_base64": {"type": "string", "minLength": 1, "contentEncoding": "base64",
            "description": "For bodies that are not UTF-8"},
        "delay": delay(), "delay_ms": delay(), "deliver_at": time(),
        "envelope": {"type": "string", "enum": ["json"], "description": "Consumers get a JSON document with id (if \
            given), headers, and body or body_base64"},
        "headers": {"type": "object", "maxProperties": HEADERS_MAX,
            "additionalProperties": {"type": "string"}, "description": "Only with envelope"},
    }});
    let list = |of: Value, max: usize| {
        json!({"type": "array", "minItems": 1,
        "maxItems": max, "items": of})
    };
    let by_ref = json!({"$ref": "#/components/schemas/CreateMessage"});
    vec![
        ("CreateMessage", message),
        (
            "CreateBatch",
            json!({"type": "object", "required": ["messages"],
            "additionalProperties": false,
            "properties": {"messages": list(by_ref, ITEMS_MAX)}}),
        ),
        (
            "MoveMessage",
            json!({"type": "object", "additionalProperties": false,
            "description": "Exactly one of the three.",
            "properties": {"delay": delay(), "delay_ms": delay(), "deliver_at": time()}}),
        ),
        (
            "CancelMany",
            json!({"type": "object", "additionalProperties": false,
            "description": "ids, or filter (with page_token to go on).",
            "properties": {
                "ids": list(json!({"type": "string"}), IDS_MAX),
                "filter": {"type": "object", "additionalProperties": false,
                    "description": "At least one of the three.",
                    "properties": {"topic": topic(), "due_from": time(), "due_to": time()}},
                "page_token": {"type": "string"},
            }}),
        ),
        ("OpenApi", json!({"type": "object"})),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Value {
        serde_json::to_value(describe()).unwrap()
    }

    #[test]
    fn every_operation_is_described_with_its_statuses() {
        let document = described();
        assert!(
            document["openapi"].as_str().unwrap().starts_with("3.1"),
            "{document}"
        );
        for operation in Operation::ALL {
            let (method, path) = operation.route();
            let found = &document["paths"][path][method.as_str().to_lowercase()];
            assert!(found["operationId"].is_string(), "{method} {path}");
            for status in ["400", "405", "503"] {
                assert!(
                    found["responses"][status].is_object(),
                    "{method} {path} {status}"
                );
            }
            let has_body = found["requestBody"].is_object();
            for status in ["413", "415"] {
                assert_eq!(
                    found["responses"][status].is_object(),
                    has_body,
                    "{method} {path}"
                );
            }
            let of_one = path.contains("{id}");
            assert_eq!(
                found["responses"]["404"].is_object(),
                of_one,
                "{method} {path}"
            );
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = described();
        let text = document.to_string();
        let mut count = 0;
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
            count += 1;
        }
        assert!(count > 50, "{count}");
    }

    #[test]
    fn every_schema_of_ours_is_understood() {
        for (name, schema) in requests() {
            let parsed: RefOr<Schema> = serde_json::from_value(schema).unwrap();
            let text = serde_json::to_string(&parsed).unwrap();
            assert!(text.len() > 10, "{name}");
        }
        let document = described();
        let limit = &document["components"]["schemas"]["CreateBatch"]["properties"]["messages"];
        assert_eq!(limit["maxItems"], ITEMS_MAX);
        let params = &document["paths"]["/v1/messages"]["get"]["parameters"];
        assert!(params.to_string().contains("\"maximum\":1000"), "{params}");
    }
}
