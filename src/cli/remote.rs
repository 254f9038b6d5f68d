//! A running server as the commands see it: requests to its HTTP address, and its answers or
//! problems as sentences.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::cli::Failure;
use crate::cli::settings::Settings;
use crate::config;
use crate::http_client::{self, Bounds};

const HTTP_ADDRESS_HELP: &str =
    "HTTP address of a running nsqdelayd [default: 127.0.0.1:4141] [env: NSQDELAYD_HTTP_ADDRESS]";
const ROOT_CA_HELP: &str =
    "CA of the server's certificate, in PEM [env: NSQDELAYD_TLS_ROOT_CA_FILE]";
const BOUNDS: Bounds = Bounds {
    connect: Duration::from_secs(5),
    request: Duration::from_secs(30),
    // The server is trusted not to send more than it was asked for.
    body_bytes_max: usize::MAX,
};

/// Which server to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Target {
    /// Where a running nsqdelayd serves HTTP.
    #[arg(long, value_name = "HOST:PORT", help = HTTP_ADDRESS_HELP)]
    http_address: Option<String>,
    /// Where it serves HTTPS; needs the CA of its certificate.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "http_address")]
    https_address: Option<String>,
    /// For HTTPS.
    #[arg(long, value_name = "FILE", help = ROOT_CA_HELP)]
    tls_root_ca_file: Option<String>,
    /// Prints the server's JSON instead of lines for people.
    #[arg(long)]
    pub(super) json: bool,
}

/// An answer with its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Value,
}

/// A server and the runtime to talk to it.
#[derive(Debug)]
pub(super) struct Remote {
    address: String,
    /// With the scheme.
    base: String,
    token: Option<String>,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Remote {
    pub(super) fn new(target: &Target) -> Result<Self, Failure> {
        let mut settings = Settings::default();
        let given = [
            ("http_address", &target.http_address),
            ("https_address", &target.https_address),
            ("tls_root_ca_file", &target.tls_root_ca_file),
        ];
        for (key, value) in given {
            if let Some(value) = value {
                settings.set(key, value.clone());
            }
        }
        let https = target.https_address.is_some();
        let config::Remote {
            address,
            token,
            tls,
        } = config::remote(&settings.sources(), https)?;
        let client = http_client::builder(BOUNDS, tls.as_deref())
            .map_err(Failure::because)?
            .build()
            .map_err(Failure::because)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::because)?;
        let scheme = if https { "https" } else { "http" };
        Ok(Self {
            base: format!("{scheme}://{address}"),
            address,
            token,
            client,
            runtime,
        })
    }

    /// Sends one request; `path` has its segments escaped, `body` is a message's. Any status is an answer.
    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        body: Option<Vec<u8>>,
    ) -> Result<Answer, Failure> {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, url).query(query);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(body);
        }
        self.runtime.block_on(async {
            let response = request
                .send()
                .await
                .map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let text = response
                .text()
                .await
                .map_err(|error| self.unreachable(&error))?;
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Ok(Answer { status, body })
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let address = &self.address;
        let remedy = "start one with `nsqdelayd serve` or `nsqdelayd dev`, or name it with --http-address \
             (or --https-address, and the root of its certificate with --tls-root-ca-file)";
        if error.is_connect() {
            let why = http_client::no_answer(error);
            Failure::Failed(format!(
                "no nsqdelayd answers at {address}: {why}; {remedy}"
            ))
        } else if error.is_timeout() {
            Failure::Failed(format!(
                "the server at {address} did not answer in {} s; what was asked may or may not have happened",
                BOUNDS.request.as_secs()
            ))
        } else {
            Failure::Failed(format!(
                "the server at {address} does not speak HTTP as expected: {error}; {remedy}"
            ))
        }
    }
}

impl Answer {
    /// The body of a success; otherwise the problem as a sentence.
    pub(super) fn success(self) -> Result<Value, Failure> {
        if self.status.is_success() {
            Ok(self.body)
        } else {
            Err(Failure::Failed(self.problem()))
        }
    }

    /// What went wrong, from problem details or nsqd's `{"message": …}`.
    pub(super) fn problem(&self) -> String {
        let text = |name: &str| self.body.get(name).and_then(Value::as_str);
        let what = text("detail")
            .or_else(|| text("title"))
            .or_else(|| text("message"))
            .unwrap_or("no reason given");
        match text("code") {
            Some(code) => format!("{what} ({code}, status {})", self.status.as_u16()),
            None => format!("{what} (status {})", self.status.as_u16()),
        }
    }
}

/// An id as one segment of a path.
pub(super) fn segment(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            escaped.extend([byte >> 4, byte & 15].map(hex));
        }
        escaped
    })
}

/// One digit of a number in base 16.
fn hex(digit: u8) -> char {
    char::from_digit(u32::from(digit), 16).map_or('0', |c| c.to_ascii_uppercase())
}

/// A moment of an answer, `2026-01-02T03:04:05.678Z`.
pub(super) fn moment(ms: Option<&Value>) -> String {
    ms.and_then(Value::as_i64)
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "-".to_owned(), |at| format!("{at:.3}"))
}

/// A field of an answer as text, `-` when it is not there.
pub(super) fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_escaped_in_paths() {
        assert_eq!(segment("order-17_a.b~"), "order-17_a.b~");
        assert_eq!(segment("a/b%2F?#:"), "a%2Fb%252F%3F%23%3A");
    }

    #[test]
    fn problems_become_sentences() {
        let answer = |status, body| Answer { status, body };
        let details = serde_json::json!({"title": "T", "detail": "D", "code": "c"});
        let problem = answer(StatusCode::CONFLICT, details).problem();
        assert_eq!(problem, "D (c, status 409)");
        let nsqd = serde_json::json!({"message": "E"});
        let problem = answer(StatusCode::BAD_REQUEST, nsqd).problem();
        assert_eq!(problem, "E (status 400)");
    }
}
