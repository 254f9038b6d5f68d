//! Three doors, one intake: what a producer asks, checked once, given to the store. Knows neither
//! Redis nor nsqd's whereabouts: Redis is the only thing between ingest and dispatch.

use std::sync::Arc;
use std::time::Duration;

mod api_v1;
mod budget;
pub mod clients;
pub mod http;
pub mod listener;
pub mod metrics;
mod nsqd_http;
mod openapi;
mod ops_http;
mod problem;
mod quota;
pub mod reply;
mod session;

pub use quota::Limits;

use crate::ingest::budget::Budget;
use crate::ingest::quota::Quota;
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
    /// Most bytes of all requests that are read and not yet answered, with what each message takes
    /// beside its body.
    pub in_flight_bytes_max: usize,
    /// Limits on what is pending.
    pub limits: Limits,
}

/// The way of every message into the store.
#[derive(Debug, Clone)]
pub struct Intake {
    /// Where messages go.
    pub store: Arc<dyn ScheduleStore>,
    /// What the doors are told.
    pub config: Arc<Config>,
    /// Memory for what is under way.
    budget: Arc<Budget>,
    quota: Arc<Quota>,
}

impl Intake {
    /// The way into `store`.
    pub fn new(store: Arc<dyn ScheduleStore>, config: Config) -> Self {
        Self {
            store,
            budget: Budget::new(config.in_flight_bytes_max),
            quota: Arc::new(Quota::new(config.limits)),
            config: Arc::new(config),
        }
    }

    /// Stores all of `messages` or none. Topic, size and delay have been checked by the door.
    pub async fn accept(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        self.quota.admit(&*self.store, &messages).await?;
        self.store.schedule(messages).await
    }

    /// The latest moment that may be asked for now.
    pub fn due_max(&self) -> Due {
        Due::At(self.store.now().after(self.config.max_delay))
    }
}
