//! Three doors and an inbox, one intake: what a producer asks, checked once, given to the store. Knows
//! no Redis, and nsqd only as the inbox's source: Redis is the only thing between ingest and dispatch.

use std::sync::Arc;
use std::time::Duration;

pub mod access;
mod api_v1;
mod budget;
pub mod clients;
pub mod http;
pub mod inbox;
pub mod listener;
pub mod metrics;
mod nsqd_http;
mod openapi;
mod ops_http;
pub mod passthrough;
mod problem;
mod quota;
pub mod reply;
mod session;

#[cfg(fuzzing)]
pub use api_v1::fuzzing;

use access::{Access, Hosts};
use tokio_rustls::rustls::ServerConfig;

use crate::ingest::passthrough::Passthrough;
pub use quota::Limits;

use crate::ingest::budget::Budget;
use crate::ingest::quota::Quota;
use crate::message::{Delay, Due, Message};
use crate::nsq::identify::Offers;
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
    /// What connections may be carried in beside plain TCP.
    pub transports: Transports,
    /// Who may do what. `None`: everybody everything.
    pub access: Option<Arc<Access>>,
    /// Names of this instance, for browsers.
    pub hosts: Hosts,
    /// Most bytes of all requests that are read and not yet answered, with what each message takes
    /// beside its body.
    pub in_flight_bytes_max: usize,
    /// Limits on what is pending.
    pub limits: Limits,
}

/// What connections may be carried in; by default, nothing but plain TCP.
#[derive(Debug, Clone, Default)]
pub struct Transports {
    /// TLS, if there is a certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who must use it; `Nobody` without a certificate.
    pub tls_required: TlsRequired,
    /// Whether a client may ask for snappy.
    pub snappy: bool,
    /// Whether a client may ask for deflate, and the highest level of it, 1 to 9.
    pub deflate: bool,
    /// Also told to clients that do not ask.
    pub max_deflate_level: u32,
}

/// For whom TLS is no choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsRequired {
    /// Everybody may do without.
    #[default]
    Nobody,
    /// Over TCP all must use it; HTTP without stays open.
    Tcp,
    /// The HTTP door refuses too.
    Everybody,
}

impl Transports {
    /// What IDENTIFY may ask for.
    fn offers(&self, auth_required: bool) -> Offers {
        Offers {
            tls: self.tls.is_some(),
            snappy: self.snappy,
            deflate: self.deflate,
            max_deflate_level: self.max_deflate_level,
            auth_required,
        }
    }
}

/// The way of every message into the store.
#[derive(Debug, Clone)]
pub struct Intake {
    /// Where messages go.
    pub store: Arc<dyn ScheduleStore>,
    /// What the doors are told.
    pub config: Arc<Config>,
    /// The way past the store, if there is to be one.
    pub passthrough: Option<Arc<Passthrough>>,
    /// Memory for what is under way.
    budget: Arc<Budget>,
    quota: Arc<Quota>,
}

impl Intake {
    /// The way into `store`, or past it.
    pub fn new(
        store: Arc<dyn ScheduleStore>,
        config: Config,
        passthrough: Option<Arc<Passthrough>>,
    ) -> Self {
        Self {
            quota: Arc::new(Quota::new(Arc::clone(&store), config.limits)),
            store,
            passthrough,
            budget: Budget::new(config.in_flight_bytes_max),
            config: Arc::new(config),
        }
    }

    /// Stores all of `messages` or none. Topic, size and delay have been checked by the door.
    pub async fn accept(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        self.quota.admit(&messages).await?;
        self.store.schedule(messages).await
    }

    /// Takes `messages` as nsqd would: what has no delay may go past the store, and then has no
    /// receipt. Checked as for [`Self::accept`]. When the store is needed and fails, some may have
    /// gone.
    pub async fn publish(&self, messages: Vec<Message>) -> Result<Vec<Receipt>, Error> {
        let left = match &self.passthrough {
            Some(way) if messages.iter().all(Passthrough::suits) => way.hand_over(messages).await,
            _ => messages,
        };
        if left.is_empty() {
            return Ok(Vec::new());
        }
        self.accept(left).await
    }

    /// Whether `message` would be offered to nsqd before the store.
    fn passes(&self, message: &Message) -> bool {
        self.passthrough.is_some() && Passthrough::suits(message)
    }

    /// The latest moment that may be asked for now.
    pub fn due_max(&self) -> Due {
        Due::At(self.store.now().after(self.config.max_delay))
    }
}
