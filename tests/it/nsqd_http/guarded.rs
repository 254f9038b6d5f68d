//! Who is let in over HTTP: TLS that is required, tokens and auth servers, browsers.

use std::path::PathBuf;
use std::sync::Arc;

use nsqdelayd::ingest::access::{Access, AuthServer as Server, Authd, Hosts, Tokens};
use nsqdelayd::ingest::{Config, TlsRequired};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::support::app::App;
use crate::support::auth_server::AuthServer;
use crate::support::certificates::Certificates;
use crate::support::child::command;
use crate::support::free_port;
use crate::support::http_door::{HttpDoor, Line, Reply, request};
use crate::support::nsqd::Nsqd;
use crate::support::redis::Redis;
use crate::support::wait;

const TOKENS: &str = r#"
[[token]]
name = "billing"
secret = "billing-0123456789"
roles = ["publish", "cancel"]
topics = ["orders.*"]

[[token]]
name = "watch"
secret = "watch-0123456789"
roles = ["read_metadata"]
topics = ["*"]

[[token]]
name = "reader"
secret = "reader-0123456789"
roles = ["read_bodies"]
topics = ["orders.*"]

[[token]]
name = "ops"
secret = "ops-0123456789ab"
roles = ["admin"]
topics = ["*"]
"#;

const BILLING: &str = "billing-0123456789";
const WATCH: &str = "watch-0123456789";
const READER: &str = "reader-0123456789";
const OPS: &str = "ops-0123456789ab";

fn with_tokens(config: &mut Config) {
    let tokens = Tokens::parse(TOKENS).unwrap();
    config.access = Access::new(None, tokens).map(Arc::new);
}

async fn ask(door: &HttpDoor, secret: &str, method: &str, path: &str, body: &str) -> Reply {
    let kind = if body.starts_with('{') {
        "Content-Type: application/json\r\n"
    } else {
        ""
    };
    let headers = format!("Authorization: Bearer {secret}\r\n{kind}");
    door.ask(request(method, path, &headers, body)).await
}

/// Status and code, or message.
fn told(reply: &Reply) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let word = body["code"]
        .as_str()
        .or(body["message"].as_str())
        .unwrap_or_default();
    (reply.status, word.to_owned())
}

#[tokio::test]
async fn the_plain_door_answers_everything_as_nsqd_when_tls_is_required() {
    let certificates = Certificates::make();
    let mut flags = certificates.flags();
    flags.pop();
    flags.extend([
        "--https-address=".to_owned(),
        "--tls-required=true".to_owned(),
    ]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let nsqd = Nsqd::start_with(&flags);
    let door = HttpDoor::open_with(|config| {
        config.transports.tls = Some(certificates.door(""));
        config.transports.tls_required = TlsRequired::Everybody;
    })
    .await;
    for (method, path) in [
        ("GET", "/ping"),
        ("POST", "/pub?topic=t"),
        ("POST", "/mpub?%zz"),
        ("GET", "/stats"),
        ("PUT", "/nope"),
        ("GET", "/v1/stats"),
        ("GET", "/metrics"),
        ("OPTIONS", "/healthz"),
    ] {
        let sends = request(method, path, "", "x");
        let mut theirs = Line::connect(&nsqd.http).await.ask(&sends).await;
        let mut ours = door.ask(&sends).await;
        theirs.headers.remove("Date");
        ours.headers.remove("Date");
        assert_eq!(ours, theirs, "{method} {path}");
        assert_eq!(
            ours.text(),
            r#"{"message": "TLS_REQUIRED", "https_port": 0}"#
        );
    }
    let open = HttpDoor::open_with(|config| {
        config.transports.tls = Some(certificates.door(""));
        config.transports.tls_required = TlsRequired::Tcp;
    });
    assert_eq!(open.await.bare("GET", "/ping").await.status, 200);
}

#[tokio::test]
async fn without_a_token_only_the_machinery_is_answered() {
    let door = HttpDoor::open_with(with_tokens).await;
    for path in [
        "/ping",
        "/info",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/openapi.json",
    ] {
        assert_eq!(door.bare("GET", path).await.status, 200, "{path}");
    }
    for (method, path) in [
        ("POST", "/pub?topic=orders.eu"),
        ("POST", "/mpub?topic=orders.eu"),
        ("GET", "/stats"),
        ("GET", "/nope"),
    ] {
        let reply = door.ask(request(method, path, "", "x")).await;
        assert_eq!(told(&reply), (401, "AUTH_REQUIRED".to_owned()), "{path}");
        assert_eq!(reply.header("Www-Authenticate"), "Bearer");
        let reply = ask(&door, "unknown-0123456789", method, path, "x").await;
        assert_eq!(told(&reply), (401, "AUTH_FAILED".to_owned()), "{path}");
    }
    for (method, path) in [
        ("GET", "/v1/messages"),
        ("POST", "/v1/messages"),
        ("DELETE", "/v1/messages/x"),
        ("GET", "/v1/topics"),
        ("GET", "/v1/nope"),
    ] {
        let reply = door
            .ask(request(method, path, "Authorization: Basic eDp5\r\n", "x"))
            .await;
        assert_eq!(told(&reply), (401, "unauthenticated".to_owned()), "{path}");
    }
    assert_eq!(door.store.calls(), 0);
}

#[tokio::test]
async fn a_token_may_do_what_its_roles_and_topics_say() {
    let door = HttpDoor::open_with(with_tokens).await;
    let allowed = |status: u16| (status, String::new());
    let forbidden = || (403, "FORBIDDEN".to_owned());
    for (secret, topic, want) in [
        (BILLING, "orders.eu", allowed(200)),
        (BILLING, "bills", forbidden()),
        (WATCH, "orders.eu", forbidden()),
        (READER, "orders.eu", forbidden()),
        (OPS, "bills", allowed(200)),
    ] {
        for path in ["/pub", "/mpub"] {
            let path = format!("{path}?topic={topic}&defer=5000");
            let reply = ask(&door, secret, "POST", &path, "x").await;
            assert_eq!(told(&reply), want, "{secret} {path}");
        }
    }
    let create = |topic: &str, id: &str| {
        json!({"topic": topic, "body": "secret text", "delay": "1h", "id": id}).to_string()
    };
    let reply = ask(
        &door,
        BILLING,
        "POST",
        "/v1/messages",
        &create("orders.eu", "a"),
    )
    .await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let reply = ask(
        &door,
        BILLING,
        "POST",
        "/v1/messages",
        &create("bills", "b"),
    )
    .await;
    assert_eq!(told(&reply), (403, "forbidden".to_owned()));
    ask(&door, OPS, "POST", "/v1/messages", &create("bills", "b")).await;
    let not_found = || (404, "message_not_found".to_owned());
    let no = || (403, "forbidden".to_owned());
    for (secret, method, path, want) in [
        (BILLING, "GET", "/v1/messages/a", allowed(200)),
        (BILLING, "GET", "/v1/messages/b", not_found()),
        (BILLING, "DELETE", "/v1/messages/b", not_found()),
        (BILLING, "POST", "/v1/messages/b/deliver", not_found()),
        (BILLING, "POST", "/v1/dead-letters/a/requeue", no()),
        (BILLING, "GET", "/v1/messages?topic=bills", no()),
        (WATCH, "GET", "/v1/messages/b", allowed(200)),
        (WATCH, "DELETE", "/v1/messages/b", no()),
        (READER, "GET", "/v1/messages/b", not_found()),
        (READER, "DELETE", "/v1/messages/a", no()),
        (BILLING, "DELETE", "/v1/messages/a", allowed(200)),
        (OPS, "DELETE", "/v1/dead-letters/a", not_found()),
    ] {
        let reply = ask(&door, secret, method, path, "").await;
        assert_eq!(told(&reply), want, "{secret} {method} {path}");
    }
}

#[tokio::test]
async fn a_token_sees_what_its_roles_and_topics_say() {
    let door = HttpDoor::open_with(with_tokens).await;
    for (topic, id) in [("orders.eu", "a"), ("bills", "b")] {
        let body = json!({"topic": topic, "body": "secret text", "delay": "1h", "id": id});
        ask(&door, OPS, "POST", "/v1/messages", &body.to_string()).await;
    }
    door.put_producer("127.0.0.1:9".parse().unwrap(), &["orders.eu", "bills"]);
    for (secret, body) in [
        (BILLING, false),
        (WATCH, false),
        (READER, true),
        (OPS, true),
    ] {
        let message = ask(&door, secret, "GET", "/v1/messages/a", "").await;
        assert_eq!(message.text().contains("secret text"), body, "{secret}");
        assert_eq!(message.json().get("body").is_some(), body, "{secret}");
    }
    for (secret, seen) in [(BILLING, 1), (WATCH, 2), (READER, 1), (OPS, 2)] {
        let list = ask(&door, secret, "GET", "/v1/messages", "").await.json();
        assert_eq!(list["messages"].as_array().unwrap().len(), seen, "{secret}");
        let topics = ask(&door, secret, "GET", "/v1/topics", "").await.json();
        assert_eq!(topics["topics"].as_array().unwrap().len(), seen, "{secret}");
        let stats = ask(&door, secret, "GET", "/stats?format=json", "")
            .await
            .json();
        assert_eq!(stats["topics"].as_array().unwrap().len(), seen, "{secret}");
        let counts = stats["producers"][0]["pub_counts"].as_array();
        assert_eq!(counts.map(Vec::len), Some(seen), "{secret}");
    }
    // What a filter finds is what may be cancelled.
    let filter = json!({"filter": {"due_from": 0}}).to_string();
    let reply = ask(&door, BILLING, "POST", "/v1/messages:cancel", &filter).await;
    assert_eq!(reply.json()["cancelled"], 1);
    let ids = json!({"ids": ["a", "b"]}).to_string();
    let reply = ask(&door, BILLING, "POST", "/v1/messages:cancel", &ids)
        .await
        .json();
    assert_eq!(
        (&reply["cancelled"], &reply["not_found"]),
        (&json!(1), &json!(1))
    );
}

#[tokio::test]
async fn auth_servers_guard_http_too() {
    let auth = AuthServer::start().await;
    let servers = vec![Server::parse(&auth.address.to_string()).unwrap()];
    let door = HttpDoor::open_with(|config| {
        let authd = Authd::new(servers, None).unwrap();
        config.access = Access::new(Some(authd), Tokens::default()).map(Arc::new);
    })
    .await;
    for (secret, topic, want) in [
        ("good", "t", (200, "")),
        ("good", "t", (200, "")),
        ("good", "x", (403, "FORBIDDEN")),
        ("subscriber", "t", (403, "FORBIDDEN")),
        ("nobody", "t", (403, "FORBIDDEN")),
        ("unknown", "t", (401, "AUTH_FAILED")),
        ("not-json", "t", (503, "AUTH_UNAVAILABLE")),
    ] {
        let path = format!("/pub?topic={topic}");
        let reply = ask(&door, secret, "POST", &path, "x").await;
        assert_eq!(
            told(&reply),
            (want.0, want.1.to_owned()),
            "{secret} {topic}"
        );
    }
    // What was answered is kept for its time.
    let asked = auth.take_asked();
    let good = asked
        .iter()
        .filter(|query| query.contains("secret=good"))
        .count();
    assert_eq!(good, 1, "{asked:?}");
    assert!(asked[0].starts_with("common_name=&remote_ip=127.0.0.1&secret=good&tls=false"));
}

#[tokio::test]
async fn an_auth_server_that_is_away_is_no_refusal() {
    let server = Server::parse(&format!("127.0.0.1:{}", free_port())).unwrap();
    let door = HttpDoor::open_with(|config| {
        let authd = Authd::new(vec![server], None).unwrap();
        config.access = Access::new(Some(authd), Tokens::default()).map(Arc::new);
    })
    .await;
    let reply = ask(&door, "good", "GET", "/v1/topics", "").await;
    assert_eq!(told(&reply), (503, "auth_unavailable".to_owned()));
    assert_eq!(door.bare("GET", "/ping").await.status, 200);
}

#[tokio::test]
async fn browsers_of_other_sites_change_nothing() {
    let door = HttpDoor::open_with(|config| {
        config.hosts = Hosts::new(["delay.example".to_owned()]);
    })
    .await;
    let post = |path: &str, host: &str, headers: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 1\r\n\r\nx")
    };
    let foreign = "Origin: http://evil.example\r\n";
    for (path, host, headers, want) in [
        ("/pub?topic=t", "anything", "", (200, "")),
        (
            "/pub?topic=t",
            "127.0.0.1:4141",
            "Origin: http://127.0.0.1:4141\r\n",
            (200, ""),
        ),
        (
            "/pub?topic=t",
            "delay.example",
            "Origin: https://delay.example\r\n",
            (200, ""),
        ),
        (
            "/pub?topic=t",
            "127.0.0.1:4141",
            foreign,
            (403, "ORIGIN_NOT_ALLOWED"),
        ),
        (
            "/pub?topic=t",
            "evil.example",
            foreign,
            (403, "HOST_NOT_ALLOWED"),
        ),
        (
            "/v1/messages?topic=t",
            "127.0.0.1:1",
            foreign,
            (403, "origin_not_allowed"),
        ),
        (
            "/v1/messages?topic=t",
            "evil.example",
            foreign,
            (403, "host_not_allowed"),
        ),
        (
            "/v1/messages?topic=t",
            "localhost",
            "Sec-Fetch-Site: cross-site\r\n",
            (403, "origin_not_allowed"),
        ),
        (
            "/v1/messages?topic=t",
            "localhost",
            "Sec-Fetch-Site: same-origin\r\n",
            (201, ""),
        ),
    ] {
        let reply = door.ask(post(path, host, headers)).await;
        let want = (want.0, want.1.to_owned());
        assert_eq!(told(&reply), want, "{path} {host} {headers}");
    }
    let get = format!("GET /v1/topics HTTP/1.1\r\nHost: evil.example\r\n{foreign}\r\n");
    let reply = door.ask(get).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("Access-Control-Allow-Origin"), "");
}

/// As PHP's curl and fopen ask: no keep-alive, HTTP/1.0, and a wait for 100.
#[tokio::test]
async fn php_style_clients_publish() {
    let door = HttpDoor::open().await;
    for headers in [
        "Connection: close\r\n",
        "Accept: */*\r\nConnection: close\r\n",
    ] {
        let mut line = Line::connect(&door.address).await;
        let sends = request("POST", "/pub?topic=t&defer=5000", headers, "hi");
        assert_eq!(line.ask(&sends).await.text(), "OK");
        assert!(line.is_closed().await);
    }
    let mut line = Line::connect(&door.address).await;
    line.send("POST /pub?topic=t HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        .await;
    assert_eq!(line.reply(true).await.text(), "OK");
    assert!(line.is_closed().await);
    let mut line = Line::connect(&door.address).await;
    line.send(
        "POST /mpub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\n",
    )
    .await;
    assert_eq!(line.reply(true).await.status, 100);
    line.send("a\nb\nc").await;
    assert_eq!(line.reply(true).await.text(), "OK");
    assert_eq!(door.store.messages().len(), 6);
}

#[tokio::test]
async fn the_https_door_serves_what_the_plain_one_refuses() {
    let certificates = Certificates::make();
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut builder = App::builder().redis(&redis).nsqd(&nsqd);
    for flag in certificates.flags() {
        let (name, value) = flag.split_once('=').unwrap();
        builder = builder.flag(name, value);
    }
    let app = builder.flag("--tls-required", "true").start();
    let https = app.https();
    let port = https.rsplit(':').next().unwrap();
    let refused = app.get("/ping");
    let told = format!(r#"{{"message": "TLS_REQUIRED", "https_port": {port}}}"#);
    assert_eq!((refused.status, refused.text()), (403, told));
    let stream = TcpStream::connect(&https).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connector = TlsConnector::from(certificates.client(None));
    let mut stream = connector.connect(name, stream).await.unwrap();
    let sends = request(
        "POST",
        "/pub?topic=t&defer=10",
        "Connection: close\r\n",
        "over tls",
    );
    stream.write_all(&sends).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("OK"),
        "{answer}"
    );
    wait::until("the message to be delivered", || {
        nsqd.message_count("t") == 1
    });
}

#[test]
fn the_commands_show_the_token_of_their_environment() {
    let tokens = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(tokens.path(), TOKENS).unwrap();
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let path = tokens.path().to_str().unwrap();
    let builder = App::builder().redis(&redis).nsqd(&nsqd);
    let app = builder.flag("--tokens-file", path).start();
    let list = |token: &str| {
        command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref())
            .args(["list", "--http-address", &app.http])
            .env("NSQDELAYD_TOKEN", token)
            .output()
            .unwrap()
    };
    assert!(list(WATCH).status.success());
    let refused = list("unknown-0123456789");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("token"),
        "{text}"
    );
    let anonymous = "everybody who can connect may publish";
    assert!(!app.log().contains(anonymous));
    assert!(App::start(&redis, &nsqd).log().contains(anonymous));
    for secret in [BILLING, WATCH, READER, OPS] {
        assert!(!app.log().contains(secret));
    }
}

#[test]
fn the_commands_speak_https_to_who_has_the_right_certificate() {
    let (certificates, others) = (Certificates::make(), Certificates::make());
    let (redis, nsqd) = (Redis::start(), Nsqd::start());
    let mut builder = App::builder().redis(&redis).nsqd(&nsqd);
    for flag in certificates.flags() {
        let (name, value) = flag.split_once('=').unwrap();
        builder = builder.flag(name, value);
    }
    let app = builder.flag("--tls-required", "true").start();
    let stats = |ca: Option<PathBuf>| {
        let mut stats = command(env!("CARGO_BIN_EXE_nsqdelayd").as_ref());
        stats.args(["stats", "--json", "--https-address", &app.https()]);
        if let Some(ca) = ca {
            stats.arg("--tls-root-ca-file").arg(ca);
        }
        let output = stats.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, stats_json, problem) = stats(Some(certificates.ca()));
    assert_eq!((code, problem.as_str()), (Some(0), ""));
    assert!(stats_json.contains(r#""health":"OK""#), "{stats_json}");
    let (code, _, problem) = stats(Some(others.ca()));
    assert_eq!(code, Some(1), "{problem}");
    assert!(problem.contains("certificate"), "{problem}");
    let (code, _, problem) = stats(None);
    assert_eq!(code, Some(64), "{problem}");
    assert!(problem.contains("tls_root_ca_file"), "{problem}");
}
