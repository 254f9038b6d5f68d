//! nsqd's own HTTP API, byte for byte: its routes with the redirects, `Allow` and errors of the
//! router that it uses, and its way of writing answers. Knows nothing of `/v1`.

mod publish;
mod stats;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse as _, Response};
use hyper::ext::ReasonPhrase;
use serde::Serialize;

use crate::ingest::http::{Plus, Query, Shared, Target, unescape};
use crate::ingest::ops_http;
use crate::nsq::NSQD_VERSION;

const NSQ_CONTENT_TYPE: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-nsq-content-type"),
    HeaderValue::from_static("nsq; version=1.0"),
);
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");

/// What nsqd's router knows and producers use.
const ROUTES: [(&str, Method); 5] = [
    ("/info", Method::GET),
    ("/mpub", Method::POST),
    ("/ping", Method::GET),
    ("/pub", Method::POST),
    ("/stats", Method::GET),
];

/// What nsqd's HTTP library refuses before any route is looked at, and hyper does not.
pub(super) fn bad_request<B>(request: &Request<B>) -> Option<Response> {
    let headers = request.headers();
    let hosts = headers.get_all(header::HOST).iter().count();
    if hosts == 0 && request.version() == Version::HTTP_11 && request.method() != Method::CONNECT {
        return Some(refuse_connection(
            "400 Bad Request: missing required Host header",
        ));
    }
    if hosts > 1 {
        return Some(refuse_connection("400 Bad Request: too many Host headers"));
    }
    if unescape(&Target::of(request).path, Plus::IsPlus).is_none() {
        return Some(refuse_connection("400 Bad Request"));
    }
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.iter().count() > 1 || !codings.iter().all(is_chunked) {
        // A body that somebody has compressed besides would be stored as it is.
        let text = "Unsupported transfer encoding";
        return Some(text_then_close(StatusCode::NOT_IMPLEMENTED, text));
    }
    let expected = headers.get(header::EXPECT)?;
    if expected.as_bytes().eq_ignore_ascii_case(b"100-continue") {
        return None;
    }
    let mut response = StatusCode::EXPECTATION_FAILED.into_response();
    close_after(&mut response);
    Some(response)
}

/// Refuses what is not HTTP, and ends the connection.
pub(super) fn refuse_connection(text: &'static str) -> Response {
    text_then_close(StatusCode::BAD_REQUEST, text)
}

fn text_then_close(status: StatusCode, text: &'static str) -> Response {
    let mut response = (status, [(header::CONTENT_TYPE, TEXT)], text).into_response();
    close_after(&mut response);
    response
}

fn close_after(response: &mut Response) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// What the plain door says to everything when TLS is required: nsqd's very bytes, a space after each
/// colon included.
pub(super) fn tls_required(https_port: u16) -> Response {
    let headers = [(header::CONTENT_TYPE, JSON), NSQ_CONTENT_TYPE];
    let text = format!("{{\"message\": \"TLS_REQUIRED\", \"https_port\": {https_port}}}");
    (StatusCode::FORBIDDEN, headers, text).into_response()
}

/// Answers as nsqd does, in the order in which its router looks: the very path, a redirect to a
/// path that differs by case, slashes or dots, another method's path, nothing.
pub(super) async fn answer(shared: &Shared, request: Request) -> Response {
    let method = request.method().clone();
    let target = Target::of(&request);
    let path = unescape(&target.path, Plus::IsPlus).unwrap_or_default();
    let find = |wanted: &[u8], method: &Method| {
        ROUTES
            .iter()
            .find(|(path, on)| path.as_bytes() == wanted && on == method)
            .map(|(path, _)| *path)
    };
    match find(&path, &method) {
        Some("/pub") => return publish::publish(shared, &target, request).await,
        Some("/mpub") => return publish::publish_many(shared, &target, request).await,
        Some("/ping") => return ping(shared).await,
        Some("/info") => return info(shared),
        Some(_stats) => return stats::stats(shared, &target).await,
        None => {}
    }
    if let Some(found) = find(&tidied(&path), &method) {
        return redirect(&method, &target, found);
    }
    if method == Method::OPTIONS && path == b"*" {
        return StatusCode::OK.into_response();
    }
    if path == b"*" {
        return not_allowed(HeaderValue::from_static("GET, OPTIONS, POST, PUT"));
    }
    let allowed = ROUTES.iter().find(|(other, _)| other.as_bytes() == path);
    let Some((_, allowed)) = allowed else {
        return error(StatusCode::NOT_FOUND, "NOT_FOUND");
    };
    let allow = match *allowed {
        Method::GET => HeaderValue::from_static("GET, OPTIONS"),
        _ => HeaderValue::from_static("OPTIONS, POST"),
    };
    if method != Method::OPTIONS {
        return not_allowed(allow);
    }
    let mut response = StatusCode::OK.into_response();
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

fn not_allowed(allow: HeaderValue) -> Response {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED");
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

/// The path that nsqd's router tries when it does not know the one asked for: without empty
/// segments, dots and a trailing slash, in lower case.
fn tidied(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|b| *b == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut tidy = Vec::with_capacity(path.len());
    for segment in segments {
        tidy.push(b'/');
        tidy.extend(segment.to_ascii_lowercase());
    }
    tidy
}

/// As Go's `http.Redirect`: 301 with a line of HTML for GET, 307 without for the rest.
fn redirect(method: &Method, asked: &Target, path: &str) -> Response {
    let mut target = [asked.origin.as_bytes(), path.as_bytes()].concat();
    if let Some(query) = &asked.query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    let mut response = if *method == Method::GET {
        let text = [
            b"<a href=\"".to_vec(),
            html(&target),
            b"\">Moved Permanently</a>.\n\n".to_vec(),
        ];
        let kind = [(header::CONTENT_TYPE, HTML)];
        (StatusCode::MOVED_PERMANENTLY, kind, text.concat()).into_response()
    } else {
        StatusCode::TEMPORARY_REDIRECT.into_response()
    };
    let mut location = String::with_capacity(target.len());
    for byte in target {
        if byte.is_ascii() {
            location.push(char::from(byte));
        } else {
            let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
            location.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// As Go's `html.EscapeString`.
fn html(text: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        match byte {
            b'&' => escaped.extend_from_slice(b"&amp;"),
            b'<' => escaped.extend_from_slice(b"&lt;"),
            b'>' => escaped.extend_from_slice(b"&gt;"),
            b'"' => escaped.extend_from_slice(b"&#34;"),
            b'\'' => escaped.extend_from_slice(b"&#39;"),
            other => escaped.push(*other),
        }
    }
    escaped
}

/// nsqd's answer to a request that it refuses.
pub(super) fn error(status: StatusCode, message: &'static str) -> Response {
    #[derive(Debug, Serialize)]
    struct Message {
        message: &'static str,
    }
    let mut response = json(&Message { message });
    *response.status_mut() = status;
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        // The name of the status before it was renamed, which Go keeps.
        let name = ReasonPhrase::from_static(b"Request Entity Too Large");
        response.extensions_mut().insert(name);
    }
    response
}

/// nsqd's answer with a JSON document.
fn json(document: &impl Serialize) -> Response {
    let text = serde_json::to_string(document).unwrap_or_default();
    let headers = [(header::CONTENT_TYPE, JSON), NSQ_CONTENT_TYPE];
    (headers, go_json(text)).into_response()
}

/// Go writes these characters as escapes; outside of strings they do not occur.
pub(super) fn go_json(text: String) -> String {
    const ESCAPES: [(char, &str); 5] = [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ];
    ESCAPES.into_iter().fold(text, |text, (plain, escaped)| {
        if text.contains(plain) {
            text.replace(plain, escaped)
        } else {
            text
        }
    })
}

/// nsqd's answer with plain text.
fn text(body: impl Into<Body>) -> Response {
    let headers = [(header::CONTENT_TYPE, TEXT), NSQ_CONTENT_TYPE];
    (HeaderMap::from_iter(headers), body.into()).into_response()
}

/// The parameters, or nsqd's refusal.
fn parameters(target: &Target) -> Result<Query, (StatusCode, &'static str)> {
    Query::parse(target.query.as_deref().unwrap_or_default())
        .map_err(|_bad| (StatusCode::BAD_REQUEST, "INVALID_REQUEST"))
}

/// In one word, and in the words of `/ping` and `/stats`.
async fn health(shared: &Shared) -> Result<&'static str, String> {
    match ops_http::redis_answers(shared).await {
        Ok(()) => Ok("OK"),
        Err(reason) => Err(format!("NOK - {reason}")),
    }
}

/// The only answer without nsqd's own content type.
async fn ping(shared: &Shared) -> Response {
    let kind = [(header::CONTENT_TYPE, TEXT)];
    match health(shared).await {
        Ok(ok) => (kind, ok).into_response(),
        Err(sick) => (StatusCode::INTERNAL_SERVER_ERROR, kind, sick).into_response(),
    }
}

/// What IDENTIFY grants at most; the buffer's limits are nsqd's defaults, durations are in ns.
#[derive(Debug, Serialize)]
struct Info<'a> {
    version: &'a str,
    broadcast_address: &'a str,
    hostname: &'a str,
    http_port: u16,
    tcp_port: u16,
    start_time: u64,
    max_heartbeat_interval: u64,
    max_output_buffer_size: u64,
    max_output_buffer_timeout: u64,
    max_deflate_level: u32,
}

fn info(shared: &Shared) -> Response {
    let facts = &shared.state.start;
    let heartbeat = shared.state.intake.config.max_heartbeat_interval;
    json(&Info {
        version: NSQD_VERSION,
        broadcast_address: &facts.broadcast_address,
        hostname: &facts.hostname,
        http_port: facts.http_port,
        tcp_port: facts.tcp_port,
        start_time: facts.start_time_unix_s,
        max_heartbeat_interval: u64::try_from(heartbeat.as_nanos()).unwrap_or(u64::MAX),
        max_output_buffer_size: 65_536,
        max_output_buffer_timeout: 30_000_000_000,
        max_deflate_level: shared.state.intake.config.transports.max_deflate_level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tidied_as_by_nsqds_router() {
        for (path, want) in [
            ("/PUB", "/pub"),
            ("/pub/", "/pub"),
            ("//pub", "/pub"),
            ("/a/../pub", "/pub"),
            ("/../pub", "/pub"),
            ("/./pub/.", "/pub"),
            ("/", ""),
            ("*", "/*"),
        ] {
            assert_eq!(tidied(path.as_bytes()), want.as_bytes(), "{path}");
        }
    }

    #[test]
    fn go_escapes_what_html_would_read() {
        assert_eq!(
            go_json("\"<a&b>\"".to_owned()),
            "\"\\u003ca\\u0026b\\u003e\""
        );
    }
}
