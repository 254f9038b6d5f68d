//! A small HTTP client for asking the servers of NSQ's world: one request at a time, bounded in time and
//! size. Uses no proxy; those of [`HttpClient`] follow no redirect. Knows nothing of what is asked.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::RequestBuilder;
use reqwest::header::{ACCEPT, LOCATION};
use reqwest::redirect::Policy;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::transport::tls::{self, MinVersion};

const USER_AGENT: &str = concat!("nsqdelayd/", env!("CARGO_PKG_VERSION"));

/// Bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long connecting may take.
    pub connect: Duration,
    /// How long all of it may take.
    pub request: Duration,
    /// Longest body of an answer, in bytes.
    pub body_bytes_max: usize,
}

/// Asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    body_bytes_max: usize,
}

/// A whole answer, of any status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Where a redirect leads, as it was written.
    pub location: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body, of an answer of status 200; otherwise what the status was.
    pub fn success(self) -> Result<Bytes, NoAnswer> {
        if self.status == 200 {
            Ok(self.body)
        } else {
            Err(NoAnswer(format!("status {}", self.status)))
        }
    }
}

/// Why there is no answer: a sentence for the log.
#[derive(Debug)]
pub struct NoAnswer(String);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoAnswer {}

/// What every client of ours begins with: the server is named, so that a proxy set for browsing must not
/// come between; without `tls` no certificate is good.
pub fn builder(
    bounds: Bounds,
    tls: Option<&ClientConfig>,
) -> Result<reqwest::ClientBuilder, NoAnswer> {
    let trusting_none = || tls::client(RootCertStore::empty(), MinVersion::default());
    let tls = match tls {
        Some(tls) => tls.clone(),
        None => trusting_none()
            .map(Arc::unwrap_or_clone)
            .map_err(|fault| NoAnswer(fault.to_string()))?,
    };
    Ok(reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(bounds.connect)
        .timeout(bounds.request)
        .no_proxy()
        .tls_backend_preconfigured(tls))
}

impl HttpClient {
    /// A client with these bounds that keeps no connection; `tls` is for servers that are asked over it.
    pub fn new(bounds: Bounds, tls: Option<&ClientConfig>) -> Result<Self, NoAnswer> {
        Self::keeping(0, bounds, tls)
    }

    /// One that keeps so many connections to each server, for those that are asked again and again.
    pub fn keeping(
        connections: usize,
        bounds: Bounds,
        tls: Option<&ClientConfig>,
    ) -> Result<Self, NoAnswer> {
        let client = builder(bounds, tls)?
            .redirect(Policy::none())
            .pool_max_idle_per_host(connections)
            .build()
            .map_err(|error| no_answer(&error))?;
        Ok(Self {
            client,
            body_bytes_max: bounds.body_bytes_max,
        })
    }

    /// GET of `url` with `query` appended. Cancel safe: dropping it closes the connection.
    pub async fn get(
        &self,
        url: &str,
        query: &[(&str, &str)],
        accept: &'static str,
    ) -> Result<Answer, NoAnswer> {
        let request = self.client.get(url).query(query).header(ACCEPT, accept);
        self.ask(request).await
    }

    /// POST of nothing to `url` with `query` appended. Cancel safe, but it may have taken effect.
    pub async fn post(&self, url: &str, query: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        self.ask(self.client.post(url).query(query)).await
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Answer, NoAnswer> {
        let mut response = request.send().await.map_err(|error| no_answer(&error))?;
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| no_answer(&error))? {
            if body.len() + chunk.len() > self.body_bytes_max {
                return Err(NoAnswer(format!("over {} bytes", self.body_bytes_max)));
            }
            body.extend_from_slice(&chunk);
        }
        let location = response.headers().get(LOCATION);
        Ok(Answer {
            status: response.status().as_u16(),
            location: location.map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned()),
            body: body.freeze(),
        })
    }
}

/// The innermost cause says the most; the outer ones only that a request failed. A query may hold a
/// secret, so that the address is left out.
pub fn no_answer(error: &reqwest::Error) -> NoAnswer {
    if error.is_timeout() {
        return NoAnswer("no answer in time".to_owned());
    }
    let mut cause = error.source();
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    NoAnswer(cause.map_or_else(|| "no answer".to_owned(), ToString::to_string))
}
