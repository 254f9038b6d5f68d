//! Asks an nsqlookupd which nsqds have a topic.

use std::time::Duration;

use serde::Deserialize;

use crate::http_client::{Bounds, HttpClient, NoAnswer};
use crate::message::TopicName;

/// How long an nsqlookupd may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer, in bytes: thousands of nsqds.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Answers without the envelope that nsqlookupds before 1.0 put around them.
const ACCEPT: &str = "application/vnd.nsq; version=1.0";
/// No nsqd has the topic yet.
const NOT_FOUND: u16 = 404;

/// Asks.
#[derive(Debug)]
pub(super) struct Lookup {
    client: HttpClient,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    producers: Vec<Producer>,
}

#[derive(Debug, Deserialize)]
struct Producer {
    broadcast_address: String,
    tcp_port: u16,
}

impl Lookup {
    pub(super) fn new(connect: Duration) -> Result<Self, NoAnswer> {
        let client = HttpClient::new(
            Bounds {
                connect,
                request: ANSWER_TIMEOUT,
                body_bytes_max: ANSWER_BYTES_MAX,
            },
            None,
        );
        Ok(Self { client: client? })
    }

    /// TCP addresses of the nsqds that carry `topic`; none if nobody does yet. Otherwise why that is
    /// not known.
    pub(super) async fn producers(
        &self,
        lookupd: &str,
        topic: &TopicName,
    ) -> Result<Vec<String>, String> {
        let url = format!("http://{lookupd}/lookup");
        let query = [("topic", topic.as_str())];
        let answer = self.client.get(&url, &query, ACCEPT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status == NOT_FOUND {
            return Ok(Vec::new());
        }
        let body = answer.success().map_err(|error| error.to_string())?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        Ok(answer.producers.iter().map(Producer::address).collect())
    }
}

impl Producer {
    fn address(&self) -> String {
        let host = &self.broadcast_address;
        if host.contains(':') {
            format!("[{host}]:{}", self.tcp_port)
        } else {
            format!("{host}:{}", self.tcp_port)
        }
    }
}
