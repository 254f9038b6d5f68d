//! An nsqd's HTTP API, as far as the doctor needs it: options, and deleting its own topics.

use std::time::Duration;

use serde_json::Value;

use crate::http_client::{Answer, Bounds, HttpClient, NoAnswer};

const BOUNDS: Bounds = Bounds {
    connect: Duration::from_secs(2),
    request: Duration::from_secs(5),
    body_bytes_max: 4 * 1024 * 1024,
};
const ANYTHING: &str = "*/*";

/// The HTTP API of one nsqd.
#[derive(Debug, Clone)]
pub(super) struct Http {
    /// `host:port`.
    pub(super) address: String,
    client: HttpClient,
}

impl Http {
    /// At an address that was given.
    pub(super) fn at(address: &str) -> Result<Self, NoAnswer> {
        Ok(Self {
            address: address.to_owned(),
            client: HttpClient::new(BOUNDS, None)?,
        })
    }

    /// At the port after the TCP port, where nsqd has it by default, if the same nsqd answers there.
    pub(super) async fn beside(tcp_address: &str) -> Option<Self> {
        let (host, port) = tcp_address.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let http = Self::at(&format!("{host}:{}", port.checked_add(1)?)).ok()?;
        let said = http.get("/info").await.ok()?;
        (said.get("tcp_port")?.as_u64()? == u64::from(port)).then_some(http)
    }

    /// An option of nsqd by its name in nsqd's configuration.
    pub(super) async fn option(&self, name: &str) -> Option<Value> {
        self.get(&format!("/config/{name}")).await.ok()
    }

    /// Deletes a topic with all its channels.
    pub(super) async fn delete_topic(&self, topic: &str) -> Result<(), String> {
        let url = format!("http://{}/topic/delete", self.address);
        let answer = self.client.post(&url, &[("topic", topic)]).await;
        let done = answer.and_then(Answer::success).map(drop);
        done.map_err(|error| error.to_string())
    }

    async fn get(&self, path: &str) -> Result<Value, String> {
        let url = format!("http://{}{path}", self.address);
        let answer = self.client.get(&url, &[], ANYTHING).await;
        let body = answer.and_then(Answer::success);
        let body = body.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body).map_err(|error| error.to_string())
    }

    /// What `/ping` says: nsqd's own opinion of its health.
    pub(super) async fn ping(&self) -> Result<String, NoAnswer> {
        let url = format!("http://{}/ping", self.address);
        let answer = self.client.get(&url, &[], ANYTHING).await?;
        Ok(String::from_utf8_lossy(&answer.body).into_owned())
    }
}
