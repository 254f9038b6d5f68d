//! The composition root: builds store → forward → dispatch → doors, opens them, and ends them in
//! the opposite order so that nothing acknowledged is left half done. Decides nothing about messages.

mod address_file;
mod inbox;
mod limits;
mod parts;
mod passthrough;
mod signals;
mod stage;

pub use inbox::Inbox;
pub use signals::Signals;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::app::parts::Parts;
use crate::config::Config;
use crate::phase::Phase;
use crate::store;

/// Of the time that a stop may take, the doors get this part; what follows must settle and release.
const DOORS_SHARE: u32 = 2;

/// Why nsqdelayd did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Bind {
        /// The key that names it.
        key: &'static str,
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file of the bound addresses cannot be written.
    AddressFile(io::Error),
    /// Redis is not there, or not fit.
    Store(store::StartError),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind {
                key,
                address,
                source,
            } => write!(
                f,
                "{key}: cannot listen on {address}: {source}; free the port or choose another \
                 (port 0 takes any)"
            ),
            Self::AddressFile(source) => {
                write!(f, "address_file: cannot be written: {source}")
            }
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { source, .. } | Self::AddressFile(source) => Some(source),
            Self::Store(error) => Some(error),
        }
    }
}

/// A running instance.
#[derive(Debug)]
pub struct App {
    /// Where nsqd's TCP protocol is spoken.
    pub tcp_address: SocketAddr,
    /// Where HTTP is spoken.
    pub http_address: SocketAddr,
    /// Where HTTPS is spoken, if it is.
    pub https_address: Option<SocketAddr>,
    phase: watch::Sender<Phase>,
    parts: Parts,
    drain_timeout: Duration,
}

/// The two doors, bound and not yet served: a client that connects early waits in the backlog.
#[derive(Debug)]
struct Doors {
    tcp: TcpListener,
    tcp_address: SocketAddr,
    http: TcpListener,
    http_address: SocketAddr,
    https: Option<TcpListener>,
    https_address: Option<SocketAddr>,
}

impl App {
    /// Starts everything. When this returns, both doors answer.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        limits::raise_open_files(config.ingest.max_connections);
        if let Some(path) = &config.address_file {
            address_file::remove(path)
                .await
                .map_err(StartError::AddressFile)?;
        }
        // Ports first: of all that can go wrong it is the cheapest to find out.
        let doors = bind(&config).await?;
        let (tcp_address, http_address) = (doors.tcp_address, doors.http_address);
        let encrypted = doors.https_address;
        let (phase, phases) = watch::channel(Phase::Starting);
        let drain_timeout = config.drain_timeout;
        let address_file = config.address_file.clone();
        let parts = Box::pin(Parts::start(config, doors, phases)).await?;
        let app = Self {
            tcp_address,
            http_address,
            https_address: encrypted,
            phase,
            parts,
            drain_timeout,
        };
        app.phase.send_replace(Phase::Serving);
        info!(%tcp_address, %http_address, https_address = encrypted.map(display), "serving");
        if let Some(path) = &address_file
            && let Err(error) =
                address_file::write(path, tcp_address, http_address, encrypted).await
        {
            app.drain().await;
            return Err(StartError::AddressFile(error));
        }
        Ok(app)
    }

    /// Ends everything: stop accepting → answer what was read → stop handing out → finish what is on
    /// its way to nsqd → settle → release the claims → close. Answers whether all of it was done in
    /// time; what was not is repeated by the next owner of the claims.
    pub async fn drain(self) -> bool {
        self.phase.send_replace(Phase::Draining);
        info!(timeout = ?self.drain_timeout, "draining");
        let end = Instant::now() + self.drain_timeout;
        let doors_end = Instant::now() + self.drain_timeout / DOORS_SHARE;
        let mut complete = true;
        for (stage, end) in [
            (&self.parts.doors, doors_end),
            (&self.parts.dispatch, end),
            (&self.parts.forward, end),
            (&self.parts.store, end),
        ] {
            let ended = stage.end(end).await;
            if !ended {
                warn!(stage = stage.name, "did not end in time");
            }
            complete &= ended;
        }
        self.phase.send_replace(Phase::Stopped);
        info!(complete, "stopped");
        complete
    }
}

async fn bind(config: &Config) -> Result<Doors, StartError> {
    let (tcp, tcp_address) = listen("tcp_address", &config.tcp_address).await?;
    let (http, http_address) = listen("http_address", &config.http_address).await?;
    let address = match &config.https_address {
        Some(address) if config.ingest.transports.tls.is_some() => Some(address),
        _ => None,
    };
    let (https, encrypted) = match address {
        Some(address) => Some(listen("https_address", address).await?).unzip(),
        None => (None, None),
    };
    Ok(Doors {
        tcp,
        tcp_address,
        http,
        http_address,
        https,
        https_address: encrypted,
    })
}

async fn listen(key: &'static str, address: &str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind {
        key,
        address: address.to_owned(),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
