//! Asks auth servers as nsqd does: one at random, the next when it fails. Each question has a connection
//! of its own; the answers are what is kept.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Uri, uri::Scheme};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::ClientConfig;
use tracing::warn;

use super::go_regexp;
use super::{Denied, Grant, Grants, Role, Secret, Visitor};
use crate::http_client::{Bounds, HttpClient, NoAnswer};

/// nsqd's defaults of `--http-client-connect-timeout` and `--http-client-request-timeout`.
const BOUNDS: Bounds = Bounds {
    connect: Duration::from_secs(2),
    request: Duration::from_secs(5),
    body_bytes_max: 1024 * 1024,
};
/// As nsqd asks.
const ACCEPT: &str = "application/vnd.nsq; version=1.0";
/// Go's client follows as many redirects.
const REDIRECTS_MAX: usize = 10;
/// Most questions at once, so that guessing secrets does not turn into an attack on the servers.
const QUESTIONS_MAX: usize = 64;
/// Longest time for which an answer is good.
const TTL_S_MAX: u64 = 100 * 365 * 24 * 3600;

/// Where an auth server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthServer {
    url: String,
}

/// The address of an auth server cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAuthServer;

impl AuthServer {
    /// Reads `host:port`, of which `/auth` is asked over HTTP, or a whole URL.
    pub fn parse(text: &str) -> Result<Self, BadAuthServer> {
        let url = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}/auth")
        };
        let uri: Uri = url.parse().map_err(|_not_a_uri| BadAuthServer)?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        let named = uri.host().is_some_and(|host| !host.is_empty());
        if known && named {
            Ok(Self { url })
        } else {
            Err(BadAuthServer)
        }
    }

    /// Whether it is asked over TLS.
    pub fn is_https(&self) -> bool {
        self.url.starts_with("https://")
    }
}

impl fmt::Display for AuthServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// The auth servers.
#[derive(Debug)]
pub struct Authd {
    servers: Vec<AuthServer>,
    client: HttpClient,
    questions: Semaphore,
}

impl Authd {
    /// Asks these; `tls` is for those that are asked over it.
    pub fn new(
        servers: Vec<AuthServer>,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, NoAnswer> {
        Ok(Self {
            servers,
            client: HttpClient::new(BOUNDS, tls.map(Arc::as_ref))?,
            questions: Semaphore::new(QUESTIONS_MAX),
        })
    }

    /// The first answer that can be used.
    pub(super) async fn query(&self, secret: &Secret, visitor: &Visitor) -> Result<Grants, Denied> {
        let Ok(_place) = self.questions.acquire().await else {
            return Err(Denied::Unavailable("stopping".to_owned()));
        };
        let parameters = parameters(secret, visitor);
        let start = fastrand::usize(..self.servers.len());
        let order = self.servers.iter().cycle().skip(start);
        let mut denied = Denied::Unavailable("no auth server".to_owned());
        for server in order.take(self.servers.len()) {
            let question = self.ask(format!("{server}?{parameters}"));
            let answer = match timeout(BOUNDS.request, question).await {
                Ok(answer) => answer.and_then(|body| grants(&body).map_err(Denied::Unavailable)),
                Err(_elapsed) => Err(Denied::Unavailable("it took too long".to_owned())),
            };
            match answer {
                Ok(grants) => return Ok(grants),
                Err(why) => {
                    // The parameters hold the secret: only the server is named.
                    warn!(%server, %why, "no usable answer from the auth server");
                    if matches!(denied, Denied::Unavailable(_)) {
                        denied = why;
                    }
                }
            }
        }
        Err(denied)
    }

    /// The body of the answer, through redirects, and through the 403 with which a server that wants
    /// TLS names its port.
    async fn ask(&self, mut url: String) -> Result<Bytes, Denied> {
        let unavailable = |why: &str| Denied::Unavailable(why.to_owned());
        for _ in 0..=REDIRECTS_MAX {
            let uri: Uri = url.parse().map_err(|_bad| unavailable("not a URL"))?;
            let answer = self.client.get(&url, &[], ACCEPT).await;
            let answer = answer.map_err(|error| unavailable(&error.to_string()))?;
            let next = match answer.status {
                200 => return Ok(answer.body),
                403 if uri.scheme() == Some(&Scheme::HTTP) => https_of(&uri, &answer.body),
                300..400 => answer.location.map(|location| resolve(&uri, &location)),
                _ => None,
            };
            url = next.ok_or_else(|| Denied::Refused(format!("it answered {}", answer.status)))?;
        }
        Err(unavailable("too many redirects"))
    }
}

fn https_of(uri: &Uri, body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let port = body.get("https_port")?.as_u64()?;
    let target = uri.path_and_query()?;
    Some(format!("https://{}:{port}{target}", uri.host()?))
}

fn resolve(uri: &Uri, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{scheme}://{authority}{location}")
}

/// In the order in which Go's `url.Values` writes them.
fn parameters(secret: &Secret, visitor: &Visitor) -> String {
    let ip = visitor.remote_ip.to_string();
    let tls = if visitor.tls { "true" } else { "false" };
    [
        ("common_name", visitor.common_name.as_bytes()),
        ("remote_ip", ip.as_bytes()),
        ("secret", &secret.0),
        ("tls", tls.as_bytes()),
    ]
    .map(|(name, value)| format!("{name}={}", escaped(value)))
    .join("&")
}

/// As Go's `url.QueryEscape`.
fn escaped(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(*byte));
            }
            b' ' => text.push('+'),
            other => {
                text.push('%');
                for digit in [other >> 4, other & 15] {
                    let digit = char::from_digit(u32::from(digit), 16);
                    text.push(digit.unwrap_or('0').to_ascii_uppercase());
                }
            }
        }
    }
    text
}

/// Reads an answer as nsqd's JSON library would, and refuses what nsqd refuses.
fn grants(body: &[u8]) -> Result<Grants, String> {
    // Go reads what is no UTF-8 as U+FFFD.
    let body = String::from_utf8_lossy(body);
    let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    let ttl = match field(&answer, "ttl")? {
        None => 0,
        Some(ttl) => ttl.as_i64().ok_or("ttl is no integer")?,
    };
    let mut granted = Vec::new();
    let authorizations = list(&answer, "authorizations")?;
    for authorization in &authorizations {
        granted.extend(grant(authorization)?);
    }
    let ttl = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0);
    let ttl = ttl.ok_or("the ttl must be over 0")?.min(TTL_S_MAX);
    Ok(Grants {
        identity: text(&answer, "identity")?,
        identity_url: text(&answer, "identity_url")?,
        count: authorizations.len(),
        rules: granted,
        expires: Some(Instant::now() + Duration::from_secs(ttl)),
    })
}

/// `publish` is for topics without a channel, so that one of the channels must match the empty name. Who
/// may publish may take back; who may subscribe sees the messages anyway.
fn grant(authorization: &Value) -> Result<Option<Grant>, String> {
    let topics = go_regexp::compile(&text(authorization, "topic")?)?;
    let mut empty_channel = false;
    for channel in texts(authorization, "channels")? {
        empty_channel |= go_regexp::compile(&channel)?.is_match("");
    }
    let mut roles = Vec::new();
    for permission in texts(authorization, "permissions")? {
        match permission.as_str() {
            "publish" if empty_channel => roles.extend([Role::Publish, Role::Cancel]),
            "publish" => {}
            "subscribe" => roles.push(Role::ReadBodies),
            other => return Err(format!("unknown permission {other:?}")),
        }
    }
    let topics = Some(topics);
    Ok((!roles.is_empty()).then_some(Grant { roles, topics }))
}

/// A field whatever the case of its name, the last one; `null` is none, and so is a `null` around it.
fn field<'a>(object: &'a Value, name: &str) -> Result<Option<&'a Value>, String> {
    let object = match object {
        Value::Null => return Ok(None),
        Value::Object(object) => object,
        _ => return Err(format!("what holds {name} is no object")),
    };
    let found = object
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
    Ok(found
        .map(|(_, value)| value)
        .rfind(|value| !value.is_null()))
}

fn text(object: &Value, name: &str) -> Result<String, String> {
    match field(object, name)? {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("{name} is no text")),
    }
}

fn list(object: &Value, name: &str) -> Result<Vec<Value>, String> {
    match field(object, name)? {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items.clone()),
        Some(_) => Err(format!("{name} is no list")),
    }
}

fn texts(object: &Value, name: &str) -> Result<Vec<String>, String> {
    let one = |item: Value| match item {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        _ => Err(format!("{name} holds what is no text")),
    };
    list(object, name)?.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TopicName;

    #[test]
    fn a_question_is_written_as_by_go() {
        let visitor = Visitor {
            remote_ip: "127.0.0.1".parse().unwrap(),
            tls: true,
            common_name: "a b/c".to_owned(),
        };
        assert_eq!(
            parameters(&Secret(b"s&=+\xff~".to_vec()), &visitor),
            "common_name=a+b%2Fc&remote_ip=127.0.0.1&secret=s%26%3D%2B%FF~&tls=true"
        );
    }

    #[test]
    fn servers_are_addresses_or_urls() {
        let url = |text| AuthServer::parse(text).map(|server| server.to_string());
        assert_eq!(url("a:1").as_deref(), Ok("http://a:1/auth"));
        assert_eq!(url("https://a/x").as_deref(), Ok("https://a/x"));
        for bad in ["", "a b", "ftp://a/x", "http://"] {
            assert_eq!(url(bad), Err(BadAuthServer), "{bad}");
        }
    }

    #[test]
    fn answers_grant_what_nsqd_would_grant() {
        let may = |authorizations: &str, role, topic: &str| {
            let body = format!(r#"{{"ttl":1,"authorizations":{authorizations}}}"#);
            let topic = TopicName::parse(topic.as_bytes()).unwrap();
            grants(body.as_bytes()).map(|grants| grants.may(role, &topic))
        };
        let one = |topic: &str, channels: &str, permission: &str| {
            format!(
                r#"[{{"topic":"{topic}","channels":[{channels}],"permissions":["{permission}"]}}]"#
            )
        };
        assert_eq!(
            may(&one("^t$", r#"".*""#, "publish"), Role::Publish, "t"),
            Ok(true)
        );
        assert_eq!(
            may(&one("t", r#""""#, "publish"), Role::Cancel, "xtx"),
            Ok(true)
        );
        assert_eq!(
            may(&one("^t$", r#"".*""#, "publish"), Role::Publish, "tt"),
            Ok(false)
        );
        assert_eq!(
            may(&one(".*", "", "publish"), Role::Publish, "t"),
            Ok(false)
        );
        assert_eq!(
            may(&one(".*", r#"".+""#, "publish"), Role::Publish, "t"),
            Ok(false)
        );
        assert_eq!(
            may(&one(".*", r#"".*""#, "subscribe"), Role::Publish, "t"),
            Ok(false)
        );
        assert_eq!(
            may(&one(".*", "", "subscribe"), Role::ReadBodies, "t"),
            Ok(true)
        );
        assert_eq!(may("[]", Role::Publish, "t"), Ok(false));
        assert_eq!(may("[null]", Role::Publish, "t"), Ok(false));
        may(&one("(", r#""""#, "publish"), Role::Publish, "t").unwrap_err();
        may(&one("t", r#""(""#, "publish"), Role::Publish, "t").unwrap_err();
        may(&one("t", r#""""#, "admin"), Role::Publish, "t").unwrap_err();
    }

    #[test]
    fn answers_are_refused_as_by_nsqd() {
        for body in [
            "",
            "x",
            "[]",
            "{}",
            r#"{"ttl":0}"#,
            r#"{"ttl":-1}"#,
            r#"{"ttl":1.5}"#,
            r#"{"ttl":"1"}"#,
            r#"{"ttl":1,"identity":5}"#,
            r#"{"ttl":1,"authorizations":{}}"#,
            "null",
        ] {
            assert!(grants(body.as_bytes()).is_err(), "{body}");
        }
        for body in [r#"{"TTL":1}"#, r#"{"ttl":1,"authorizations":null,"x":{}}"#] {
            assert!(grants(body.as_bytes()).is_ok(), "{body}");
        }
    }
}
