//! The HTTP server: connections, their limits and their end. Which door answers a request is one
//! table here; what it answers is the doors' own matter.

mod body;
mod gate;
mod query;
mod target;
mod timed;
mod unread;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::{debug, warn};

pub(super) use body::{BodyFault, BodyReader};
pub(super) use query::{Plus, Query, go_int, unescape};
pub(super) use target::Target;

use crate::ingest::access::{CALLER, Guarded, Visitor};
use crate::ingest::clients::Clients;
use crate::ingest::metrics::{Door, DoorLabel, Metrics};
use crate::ingest::{Intake, TlsRequired};
use crate::ingest::{api_v1, nsqd_http, ops_http};
use crate::phase::Phase;
use crate::transport::tls::Peer;
use gate::Gate;
use target::RawTarget;
use timed::{Progress, TimedIo};
use unread::Lent;

/// Most bytes of a request's head; hyper keeps a read buffer of this size at most.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 1_000;
/// How long a kept-alive connection may be idle. nsqd has no such limit; half-open clients need one.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// After an answer that ends the connection: how long, and how much, is still read and thrown away,
/// so that no reset eats the answer of a client that is still sending.
const LINGER_MAX: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// To a client over the connection limit.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n\
Content-Length: 34\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{\"message\":\"TOO_MANY_CONNECTIONS\"}";

/// What `/info` and `/stats` say of this instance.
#[derive(Debug, Clone)]
pub struct InstanceFacts {
    /// Of nsqdelayd.
    pub version: String,
    /// Of the machine.
    pub hostname: String,
    /// What clients are told to connect to.
    pub broadcast_address: String,
    /// Where nsqd's protocol is spoken.
    pub tcp_port: u16,
    /// Where HTTP is spoken.
    pub http_port: u16,
    /// Where HTTPS is spoken; 0 if nowhere.
    pub https_port: u16,
    /// When the instance started, in Unix seconds.
    pub start_time_unix_s: u64,
}

/// What the HTTP doors are given. Cheap to clone.
#[derive(Clone)]
pub struct HttpState {
    /// The way into the store.
    pub intake: Intake,
    /// Who is connected over TCP.
    pub clients: Clients,
    /// What the doors count.
    pub metrics: Metrics,
    /// Where the process stands.
    pub phase: watch::Receiver<Phase>,
    /// The text of `/metrics`.
    pub exposition: Arc<dyn Fn() -> String + Send + Sync>,
    /// Of this instance.
    pub start: Arc<InstanceFacts>,
    /// Why the instance is not ready, beside its phase and Redis; empty when it is.
    pub unready: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl fmt::Debug for HttpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpState")
            .field("intake", &self.intake)
            .field("phase", &*self.phase.borrow())
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// What every request shares.
#[derive(Debug)]
pub(super) struct Shared {
    /// As given to [`serve`].
    pub(super) state: HttpState,
    /// When what is pending was last counted for `/metrics`.
    pub(super) counted: Mutex<Option<Instant>>,
}

impl Shared {
    fn new(state: HttpState) -> Arc<Self> {
        Arc::new(Self {
            state,
            counted: Mutex::new(None),
        })
    }

    /// A reader of `body`, up to `limit` bytes.
    pub(super) fn reader(&self, body: Body, limit: usize) -> BodyReader {
        BodyReader::new(body, limit, self.state.intake.budget.share())
    }

    /// Where the process stands now.
    pub(super) fn phase(&self) -> Phase {
        *self.state.phase.borrow()
    }
}

/// All doors in one router.
fn router(state: HttpState) -> Router {
    let shared = Shared::new(state);
    Router::new()
        .merge(api_v1::routes())
        .merge(ops_http::routes())
        .fallback(fallback)
        .with_state(shared)
}

/// What is neither a route of ours nor under `/v1` is answered as nsqd does.
async fn fallback(
    shared: axum::extract::State<Arc<Shared>>,
    request: Request,
) -> axum::response::Response {
    let path = request.uri().path();
    if is_v1(path) {
        return api_v1::no_such_route(path);
    }
    nsqd_http::answer(&shared, request).await
}

fn is_v1(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/")
}

/// Serves HTTP on `listener` until `drain`, or HTTPS with the settings in `tls`; then no connection is
/// accepted, idle ones are closed and busy ones are answered first. Connections live on `tracker`.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    mut state: HttpState,
    tracker: TaskTracker,
    drain: CancellationToken,
) {
    let config = Arc::clone(&state.intake.config);
    let permits = Arc::new(Semaphore::new(config.max_connections));
    let closed = tls.is_none() && config.transports.tls_required == TlsRequired::Everybody;
    if config.access.is_some() {
        state.intake.store = Arc::new(Guarded::new(Arc::clone(&state.intake.store)));
        state.intake.passthrough = state.intake.passthrough.map(|way| Arc::new(way.guarded()));
    }
    let label = DoorLabel { door: Door::Http };
    let refused = state
        .metrics
        .connections_refused
        .get_or_create_owned(&label);
    let server = Server {
        head_timeout: config.handshake_timeout,
        metrics: state.metrics.clone(),
        tls_required: closed.then_some(state.start.https_port),
        gate: Gate {
            access: config.access.clone(),
            hosts: config.hosts.clone(),
        },
        router: router(state),
        drain: drain.clone(),
    };
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let accepted = tokio::select! {
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer),
            Err(error) => {
                warn!(%error, "HTTP connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => {
                let tls = acceptor.clone();
                tracker.spawn(server.clone().connection(stream, peer.ip(), tls, permit));
            }
            Err(_full) => {
                refused.inc();
                // Who speaks TLS would not understand.
                if acceptor.is_none() {
                    turn_away(&stream);
                }
            }
        }
    }
}

/// The client gets what fits its socket's empty buffer at once; nobody waits for it.
fn turn_away(stream: &TcpStream) {
    if let Err(error) = stream.try_write(FULL) {
        debug!(%error, "client over the connection limit not told");
    }
}

/// What a connection may be.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// What each connection needs.
#[derive(Debug, Clone)]
struct Server {
    router: Router,
    metrics: Metrics,
    head_timeout: Duration,
    /// Nothing is answered here but where HTTPS is spoken.
    tls_required: Option<u16>,
    gate: Gate,
    drain: CancellationToken,
}

impl Server {
    async fn connection(
        self,
        stream: TcpStream,
        remote_ip: IpAddr,
        tls: Option<TlsAcceptor>,
        _permit: OwnedSemaphorePermit,
    ) {
        let open = self
            .metrics
            .connections
            .get_or_create_owned(&DoorLabel { door: Door::Http });
        open.inc();
        // Answers are small and written whole: waiting to fill a segment only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "no TCP_NODELAY");
        }
        let mut visitor = Visitor {
            remote_ip,
            tls: tls.is_some(),
            common_name: String::new(),
        };
        match tls {
            None => self.converse(stream, visitor).await,
            Some(tls) => {
                let handshake = tls.accept(stream);
                match tokio::time::timeout(self.head_timeout, handshake).await {
                    Ok(Ok(stream)) => {
                        visitor.common_name = Peer::of(stream.get_ref().1).common_name;
                        Box::pin(self.converse(stream, visitor)).await;
                    }
                    Ok(Err(error)) => debug!(%error, "no TLS"),
                    Err(_elapsed) => debug!("the handshake of TLS took too long"),
                }
            }
        }
        open.dec();
    }

    async fn converse(&self, stream: impl Stream, visitor: Visitor) {
        if let Some(stream) = self.requests(stream, Arc::new(visitor)).await {
            linger(stream).await;
        }
    }

    /// Answers requests until the connection is to be closed. `None`: it is broken already.
    async fn requests<S: Stream>(&self, stream: S, visitor: Arc<Visitor>) -> Option<S> {
        let progress = Progress::new();
        let io = TimedIo::new(stream, self.head_timeout, progress.clone());
        let service =
            service_fn(move |request| self.answer(progress.clone(), Arc::clone(&visitor), request));
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .half_close(true)
            // As Go writes them: X-Nsq-Content-Type.
            .title_case_headers(true)
            .serve_connection(TokioIo::new(io), service);
        let mut draining = false;
        let ended = loop {
            tokio::select! {
                ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        if let Err(error) = &ended {
            debug!(%error, "HTTP connection ended");
        }
        let timed = connection.into_parts().io.into_inner();
        timed.into_usable()
    }

    fn answer(
        &self,
        progress: Progress,
        visitor: Arc<Visitor>,
        mut request: Request<Incoming>,
    ) -> BoxFuture<'static, Result<Response<Body>, Infallible>> {
        progress.head_complete();
        let mut refusal = None;
        if let Some(line) = progress.take_line() {
            match RawTarget::of(&line, request.uri()) {
                Some(_target) if is_v1(request.uri().path()) => {
                    refusal = Some(api_v1::bad_target());
                }
                Some(target) if target.is_bad() => {
                    refusal = Some(nsqd_http::refuse_connection("400 Bad Request"));
                }
                Some(target) => drop(request.extensions_mut().insert(target)),
                // Never seen: the line is of another request. Better refused than misread.
                None => refusal = Some(nsqd_http::refuse_connection("400 Bad Request")),
            }
        }
        let refusal = refusal.or_else(|| nsqd_http::bad_request(&request));
        let refusal = refusal.or_else(|| self.tls_required.map(nsqd_http::tls_required));
        let (router, gate) = (self.router.clone(), self.gate.clone());
        let (request, unread) = unread::lend(request);
        Box::pin(async move {
            let mut response = match refusal {
                Some(refusal) => refusal,
                None => route(router, &gate, &visitor, request).await,
            };
            // What still comes of the body must not be taken for the next request.
            unread.finish(&mut response).await;
            progress.answered();
            Ok(response)
        })
    }
}

/// Lets a request in, and has it answered on behalf of whoever sent it.
async fn route(
    mut router: Router,
    gate: &Gate,
    visitor: &Visitor,
    request: Request<Lent<Incoming>>,
) -> Response<Body> {
    let caller = match gate.admit(&request, visitor).await {
        Ok(caller) => caller,
        Err(refusal) => return *refusal,
    };
    let answered = CALLER.scope(caller, async { router.call(request.map(Body::new)).await });
    match answered.await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Closes our side and reads on for a while, see [`LINGER_MAX`].
async fn linger(mut stream: impl Stream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let read = async {
        let mut scrap = [0_u8; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut scrap).await {
                Ok(0) | Err(_) => return,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    };
    if tokio::time::timeout(LINGER_MAX, read).await.is_err() {
        debug!("client kept the connection open after its end");
    }
}
