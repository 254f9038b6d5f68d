//! Asks an nsqlookupd which nsqds have a topic.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde::Deserialize;

use crate::message::TopicName;

/// How long an nsqlookupd may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks.
#[derive(Debug)]
pub(super) struct Lookup {
    client: Client,
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
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        let client = Client::builder().timeout(ANSWER_TIMEOUT).no_proxy();
        Ok(Self {
            client: client.build()?,
        })
    }

    /// TCP addresses of the nsqds that carry `topic`; none if nobody does yet.
    pub(super) async fn producers(
        &self,
        lookupd: &str,
        topic: &TopicName,
    ) -> Result<Vec<String>, reqwest::Error> {
        let url = format!("http://{lookupd}/lookup");
        let request = self.client.get(url).query(&[("topic", topic.as_str())]);
        let answer = request.send().await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(Vec::new());
        }
        let answer: Answer = answer.error_for_status()?.json().await?;
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
