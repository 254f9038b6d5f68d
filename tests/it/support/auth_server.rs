//! An auth server whose answer depends on the secret, and that remembers what it was asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

/// What it was asked, query by query.
type Asked = Arc<Mutex<Vec<String>>>;

/// The server; it ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct AuthServer {
    pub(crate) address: SocketAddr,
    asked: Asked,
}

impl AuthServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let router = Router::new()
            .route("/auth", axum::routing::get(answer))
            .with_state(Arc::clone(&asked));
        let tracker = TaskTracker::new();
        tracker.spawn(async move { axum::serve(listener, router).await });
        Self { address, asked }
    }

    /// The queries since the last time.
    pub(crate) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn granted(ttl: &str, authorizations: &str) -> String {
    format!(
        r#"{{"ttl":{ttl},"identity":"who <&>","identity_url":"http://id/é","authorizations":{authorizations}}}"#
    )
}

fn one(topic: &str, channels: &str, permissions: &str) -> String {
    format!(r#"[{{"topic":"{topic}","channels":[{channels}],"permissions":[{permissions}]}}]"#)
}

async fn answer(State(asked): State<Asked>, RawQuery(query): RawQuery) -> impl IntoResponse {
    let query = query.unwrap_or_default();
    let secret = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("secret="));
    let secret = secret.unwrap_or_default().to_owned();
    let times = {
        let mut asked = asked.lock().unwrap();
        asked.push(query.clone());
        asked.iter().filter(|other| **other == query).count()
    };
    let all = one("^t$", r#"".*""#, r#""publish""#);
    let body = match secret.as_str() {
        "good" => granted("3600", &all),
        "wide" => granted("3600", &one(".*", r#""x","""#, r#""subscribe","publish""#)),
        "two" => granted("3600", &all.replace("[{", &format!("[{},{{", r#"{"topic":"^a$"}"#))),
        "subscriber" => granted("3600", &one(".*", r#"".*""#, r#""subscribe""#)),
        "channel" => granted("3600", &one(".*", r#"".+""#, r#""publish""#)),
        "no-channels" => granted("3600", &one(".*", "", r#""publish""#)),
        "nobody" => granted("3600", "[]"),
        "null" => granted("3600", "null"),
        "zero" => granted("0", &all),
        "negative" => granted("-5", &all),
        "fraction" => granted("1.5", &all),
        "text" => granted("\"60\"", &all),
        "permission" => granted("60", &one(".*", r#"".*""#, r#""publish","admin""#)),
        "topic-regex" => granted("60", &one("(", r#"".*""#, r#""publish""#)),
        "channel-regex" => granted("60", &one(".*", r#""[""#, r#""publish""#)),
        "not-json" => "nonsense".to_owned(),
        "empty" => String::new(),
        "case" => r#"{"TTL":60,"Identity":"I","Authorizations":[{"Topic":"t","Channels":[""],"Permissions":["publish"]}]}"#.to_owned(),
        // Good for a second; then the answer is another.
        "changes" | "fails-later" if times == 1 => granted("1", &all),
        "changes" => granted("3600", &one("^other$", r#"".*""#, r#""publish""#)),
        _ => return (StatusCode::FORBIDDEN, "NO".to_owned()),
    };
    (StatusCode::OK, body)
}
