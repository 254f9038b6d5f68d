//! What dispatch is told by the configuration; `config/default.toml` comments each key.

use std::time::Duration;

/// Settings of dispatch.
#[derive(Debug, Clone)]
pub struct Config {
    /// M: shards of this instance whose turns are under way at the same time, at most.
    pub pollers: usize,
    /// Life of a claim without renewal; the store's `claim_ttl`.
    pub claim_ttl: Duration,
    /// Time between two heartbeats of an instance.
    pub heartbeat: Duration,
    /// How far ahead of the due time packs are read.
    pub read_ahead: Duration,
    /// How often it is looked whether a wake was lost.
    pub sweep: Duration,
    /// Most bytes given to `forward` at a time for each nsqd, by all shards: what it has room for.
    pub sending_bytes_max: usize,
    /// Most messages sent in a second; 0: any number.
    pub forward_rate_max: u64,
    /// Most messages sent to each nsqd in a second; 0: any number.
    pub nsqd_rate_max: u64,
    /// How late a message may be and still be sent; zero: however late.
    pub expire_if_later_than: Duration,
    /// How long nothing is handed out after Redis's clock stepped forward; zero: a step is followed.
    pub clock_step_hold: Duration,
    /// Most bytes of packs that are held in memory, all shards together.
    pub open_bytes_max: usize,
    /// Most messages of one shard that are under way to nsqd or delivered above S.
    pub unsettled_max: usize,
    /// Most messages given to `forward` in one call.
    pub batch_messages_max: usize,
    /// How long a message may be refused delivery, while others go through, before it is parked.
    pub park_after: Duration,
    /// First pause before a message is sent again.
    pub retry_min: Duration,
    /// Longest such pause, and the longest park.
    pub retry_max: Duration,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Settings for tests.
    pub(crate) fn config() -> Config {
        Config {
            pollers: 8,
            claim_ttl: Duration::from_secs(5),
            heartbeat: Duration::from_millis(1_500),
            read_ahead: Duration::from_millis(50),
            sweep: Duration::from_mins(1),
            sending_bytes_max: 1 << 22,
            forward_rate_max: 0,
            nsqd_rate_max: 0,
            expire_if_later_than: Duration::ZERO,
            clock_step_hold: Duration::from_secs(10),
            open_bytes_max: 1 << 26,
            unsettled_max: 4_000,
            batch_messages_max: 200,
            park_after: Duration::from_secs(2),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(2),
        }
    }
}
