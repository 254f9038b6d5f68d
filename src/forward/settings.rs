//! What forward is told by the configuration; `config/default.toml` comments each key.

use std::time::Duration;

use crate::nsqd::Carriage;

/// Settings of the connections to nsqd.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` of each nsqd's TCP door. One or several; with several, any of them may get a
    /// message.
    pub nsqd_tcp_addresses: Vec<String>,
    /// `host:port` of the HTTP doors of those nsqds, in their order. With them, they are asked how many messages they
    /// hold while they get many.
    pub nsqd_http_addresses: Vec<String>,
    /// Most messages of a topic that such an nsqd is to hold for consumers that keep up; 0: any number.
    pub nsqd_depth_max: u64,
    /// `host:port` of each nsqlookupd's HTTP door. What they know is used beside the addresses above.
    pub lookupd_http_addresses: Vec<String>,
    /// Time between two questions to an nsqlookupd.
    pub lookupd_poll_interval: Duration,
    /// Connections to each nsqd. One is enough for most: commands on it are pipelined.
    pub connections_per_nsqd: usize,
    /// How long connecting and IDENTIFY may take together.
    pub dial_timeout: Duration,
    /// How long nsqd may answer nothing while a command waits, before the outcome of all that wait counts
    /// as unknown. Well below the claim's life, so that there is time left to send again under the same claim.
    pub forward_timeout: Duration,
    /// Heartbeat interval that we ask nsqd for: 1 s to 60 s. Silence of twice as long ends a
    /// connection.
    pub heartbeat_interval: Duration,
    /// Most bytes of messages that one nsqd has been given and has not answered.
    pub unanswered_bytes_max: usize,
    /// Most messages of one MPUB.
    pub mpub_messages_max: usize,
    /// Longest body of an MPUB. Below nsqd's `--max-body-size` (5 MiB by default). A longer message
    /// goes alone.
    pub mpub_bytes_max: usize,
    /// First pause before an nsqd that failed is dialed again.
    pub backoff_min: Duration,
    /// Longest such pause: also how late, at most, the return of an nsqd is noticed.
    pub backoff_max: Duration,
    /// What connections are carried in beside plain TCP.
    pub carriage: Carriage,
}

impl Config {
    /// Each nsqd that is named: `host:port` of its TCP door, and of its HTTP door if that is known.
    pub fn nsqds(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let http = self.nsqd_http_addresses.iter().map(|http| Some(&**http));
        let http = http.chain(std::iter::repeat(None));
        self.nsqd_tcp_addresses.iter().map(|tcp| &**tcp).zip(http)
    }
}
