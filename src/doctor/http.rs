//! An nsqd's HTTP API, as far as the doctor needs it: options, and deleting its own topics.

use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The HTTP API of one nsqd.
#[derive(Debug, Clone)]
pub(super) struct Http {
    /// `host:port`.
    pub(super) address: String,
    client: reqwest::Client,
}

impl Http {
    /// At an address that was given.
    pub(super) fn at(address: &str) -> Result<Self, reqwest::Error> {
        Ok(Self {
            address: address.to_owned(),
            client: reqwest::Client::builder()
                .timeout(ANSWER_TIMEOUT)
                // The server is named; a proxy set for browsing must not come between.
                .no_proxy()
                .build()?,
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
    pub(super) async fn delete_topic(&self, topic: &str) -> Result<(), reqwest::Error> {
        let url = format!("http://{}/topic/delete", self.address);
        let request = self.client.post(url).query(&[("topic", topic)]);
        request.send().await?.error_for_status().map(drop)
    }

    async fn get(&self, path: &str) -> Result<Value, reqwest::Error> {
        let url = format!("http://{}{path}", self.address);
        let answer = self.client.get(url).send().await?;
        answer.error_for_status()?.json().await
    }

    /// What `/ping` says: nsqd's own opinion of its health.
    pub(super) async fn ping(&self) -> Result<String, reqwest::Error> {
        let url = format!("http://{}/ping", self.address);
        self.client.get(url).send().await?.text().await
    }
}
