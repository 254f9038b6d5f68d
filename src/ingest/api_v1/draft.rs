//! A message as a client describes it, in JSON or as a raw body with a query, until it is checked.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use crate::ingest::problem::{At, Code, Problem};
use crate::message::{ClientId, Delay, Due, Message};

use super::envelope::Headers;
use super::json::{Fields, Node, Spot};
use super::moment::{Given, Limits};
use super::{Params, sentence, topic};

const FIELDS: [&str; 9] = [
    "id",
    "topic",
    "body",
    "body_base64",
    "delay",
    "delay_ms",
    "deliver_at",
    "envelope",
    "headers",
];
const PARAMS: [&str; 6] = ["id", "topic", "delay", "delay_ms", "defer", "deliver_at"];
/// Strict: no white space; padding may be left out, as many encoders do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads the message of a JSON object; `spot` is where it is in the request, whose bytes a body without
/// escapes shares.
pub(super) fn of_json(
    node: Node<'_>,
    spot: Spot,
    request: &Bytes,
    limits: Limits,
    size_max: usize,
) -> Result<Message, Problem> {
    let mut fields = Fields::of(node, spot, &FIELDS)?;
    let field =
        |fields: &Fields<'_>, name: &str, problem: Problem| problem.at(At::Field(fields.at(name)));
    let id = match fields.text("id")? {
        Some(id) => Some(client_id(id.as_bytes()).map_err(|p| field(&fields, "id", p))?),
        None => None,
    };
    let name = fields
        .text("topic")?
        .ok_or_else(|| fields.missing("topic"))?;
    let topic = topic(name.as_bytes()).map_err(|p| field(&fields, "topic", p))?;
    let plain = fields.text("body")?;
    let encoded = fields.text("body_base64")?;
    let (name, body) = match (plain, encoded) {
        (Some(Cow::Borrowed(text)), None) => ("body", request.slice_ref(text.as_bytes())),
        (Some(Cow::Owned(text)), None) => ("body", Bytes::from(text)),
        (None, Some(text)) => {
            let body = BASE64.decode(&*text).map_err(|bad| {
                let at = fields.at("body_base64");
                Problem::field(Code::InvalidBase64, at, sentence(&bad))
            })?;
            ("body_base64", Bytes::from(body))
        }
        (Some(_), Some(_)) => {
            return Err(Problem::field(
                Code::ConflictingFields,
                fields.at("body_base64"),
                "Give body or body_base64, not both.",
            ));
        }
        (None, None) => return Err(fields.missing("body")),
    };
    sized(&body, size_max).map_err(|p| field(&fields, name, p))?;
    let body = match Headers::take(&mut fields)? {
        None => body,
        Some(headers) => {
            let document = headers.around(&body, id.as_ref());
            sized(&document, size_max).map_err(|p| field(&fields, "envelope", p))?;
            document
        }
    };
    let due = due_of_json(&mut fields, limits)?.unwrap_or(Due::After(Delay(0)));
    Ok(Message {
        topic,
        body,
        due,
        id,
    })
}

/// When, of the fields `delay`, `delay_ms` and `deliver_at`; `None` if there is none of them.
pub(super) fn due_of_json(fields: &mut Fields<'_>, limits: Limits) -> Result<Option<Due>, Problem> {
    let given = [
        ("delay", fields.given("delay", Code::InvalidDelay)?),
        ("delay_ms", fields.given("delay_ms", Code::InvalidDelay)?),
        ("deliver_at", fields.given("deliver_at", Code::InvalidTime)?),
    ];
    due(given, limits, |name| At::Field(fields.at(name)))
}

/// Reads the query of a raw body; the body itself comes later.
pub(super) fn of_query(params: &Params, limits: Limits) -> Result<Message, Problem> {
    let id = match params.bytes("id") {
        Some(id) => Some(client_id(id).map_err(|p| p.at(At::Param("id".to_owned())))?),
        None => None,
    };
    let topic = params.topic()?.ok_or_else(|| {
        Problem::param(
            Code::MissingParameter,
            "topic",
            "The parameter topic is required.",
        )
    })?;
    let given = |name| {
        params
            .text(name)
            .map(|text| (name, text.map(Given::of_query)))
    };
    let given = [
        given("delay")?,
        given("delay_ms")?,
        given("defer")?,
        given("deliver_at")?,
    ];
    let due = due(given, limits, |name| At::Param(name.to_owned()))?;
    Ok(Message {
        topic,
        body: Bytes::new(),
        due: due.unwrap_or(Due::After(Delay(0))),
        id,
    })
}

/// The parameters of a raw body.
pub(super) fn raw_params(uri: &axum::http::Uri) -> Result<Params, Problem> {
    Params::of(uri, &PARAMS)
}

/// nsqd's own limits of a message: at least a byte, at most `max_msg_size`.
pub(super) fn sized(body: &Bytes, size_max: usize) -> Result<(), Problem> {
    if body.is_empty() {
        let detail = "A message has at least one byte.";
        return Err(Problem::new(Code::MessageEmpty, detail));
    }
    if body.len() > size_max {
        let detail = format!(
            "The message has {} bytes; the limit is {size_max}.",
            body.len()
        );
        return Err(Problem::new(Code::MessageTooBig, detail));
    }
    Ok(())
}

fn client_id(text: &[u8]) -> Result<ClientId, Problem> {
    ClientId::parse(text).map_err(|bad| Problem::new(Code::InvalidId, sentence(&bad)))
}

/// At most one of the ways to say when.
fn due<const N: usize>(
    given: [(&'static str, Option<Given>); N],
    limits: Limits,
    at: impl Fn(&str) -> At,
) -> Result<Option<Due>, Problem> {
    let mut found: Option<(&'static str, Given)> = None;
    for (name, value) in given {
        let Some(value) = value else { continue };
        if let Some((first, _)) = &found {
            let detail = format!("Give {first} or {name}, not both.");
            return Err(Problem::new(Code::ConflictingFields, detail).at(at(name)));
        }
        found = Some((name, value));
    }
    let Some((name, value)) = found else {
        return Ok(None);
    };
    let due = match name {
        "deliver_at" => value.moment().map(Due::At),
        _ => value.delay().map(Due::After),
    };
    due.and_then(|due| limits.check(due))
        .map(Some)
        .map_err(|problem| match problem.code {
            Code::StoreUnavailable => problem,
            _ => problem.at(at(name)),
        })
}
