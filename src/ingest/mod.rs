//! Three doors and an inbox, one intake: what a producer asks, checked once, given to the store. Knows
//! no Redis, and nsqd only as the inbox's source: Redis is the only thing between ingest and dispatch.

use std::sync::Arc;
use std::time::Duration;

mod api_v1;
pub mod clients;
pub mod http;
pub mod inbox;
pub mod listener;
pub mod metrics;
mod nsqd_http;
mod openapi;
mod ops_http;
mod problem;
pub mod reply;
mod session;

use crate::message::{Delay, Due, Message};
use crate::store::{Error, Receipt, ScheduleStore};

/// What the doors are told by the configuration; see `config/default.toml` for each key.
#[derive(Debug, Clone)]
pub struct Config {
    /// Longest message body, in bytes.
    pub max_msg_size: usize,
    /// Longest body of MPUB, IDENTIFY, AUTH and of HTTP requests, in bytes.
    pub max_body_size: usize,
    /// Longest delay.
    pub max_delay: Delay,
    /// Heartbeat interval of a client that asks for none.
    pub heartbeat_interval: Duration,
    /// Longest heartbeat interval that a client may ask for.
    pub max_heartbeat_interval: Duration,
    /// Most client connections at once, TCP and HTTP each.
    pub max_connections: usize,
    /// How long a client may take for the magic or the head of an HTTP request.
    pub handshake_timeout: Duration,
    /// Most message bytes of one connection that are read and not yet answered.
    pub connection_in_flight_bytes_max: usize,
}

/// The way of every message into the store.
#[derive(Debug, Clone)]
pub struct Intake {
    /// Where messages go.
    pub store: Arc<dyn ScheduleStore>,
    /// What the doors are told.
    pub config: Arc<Config>,
}

impl Intake {
    /// Stores all of `messages` or none. Topic, size and delay have been checked by the door.
    pub async fn accept(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        self.store.schedule(messages).await
    }

    /// The latest moment that may be asked for now.
    pub fn due_max(&self) -> Due {
        Due::At(self.store.now().after(self.config.max_delay))
    }
}
