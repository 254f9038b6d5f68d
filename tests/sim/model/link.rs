//! A connection to the model server and what can befall it: latency, lost replies, requests that arrive
//! late, twice or never, a frozen owner, a crash.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nsqdelayd::message::UnixMs;
use nsqdelayd::store::{Error, ErrorKind, Session, Wake};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::Server;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Insert,
    Ask,
    Turn,
    Park,
    Beat,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered {
        out: Duration,
        back: Duration,
    },
    /// It takes effect, and its reply is lost.
    ReplyLost {
        out: Duration,
    },
    /// It takes effect when its sender has long given it up.
    Late {
        after: Duration,
    },
    /// It takes effect, its reply is lost, and it arrives once more.
    Doubled {
        again: Duration,
    },
    /// It is lost on its way; the sender cannot know.
    Lost,
}

/// Decides the fate of requests.
pub(crate) trait Wire: Send + Sync + fmt::Debug {
    fn fate(&self, request: Request) -> Fate;
    /// How long a connection is away after a failure.
    fn reconnect(&self) -> Duration;
    /// Whether a published wake does not arrive.
    fn loses_wake(&self) -> bool;
}

#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    redis_us: u64,
    sent: Duration,
    received: Duration,
}

/// One sender's connections, and its estimate of Redis's clock.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: u64,
    wire: Arc<dyn Wire>,
    clock: fn() -> Duration,
    reading: Mutex<Reading>,
    session: Mutex<Option<u64>>,
    frozen_until: Mutex<Option<Instant>>,
    dead: AtomicBool,
    tracker: TaskTracker,
}

/// Longest that a sender waits for a reply.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

impl Link {
    pub(crate) fn new(
        number: u64,
        wire: Arc<dyn Wire>,
        clock: fn() -> Duration,
        tracker: &TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            wire,
            clock,
            reading: Mutex::new(Reading::default()),
            session: Mutex::new(Some(1)),
            frozen_until: Mutex::new(None),
            dead: AtomicBool::new(false),
            tracker: tracker.clone(),
        })
    }

    /// The owner has crashed: nothing that it waits for ever happens.
    pub(crate) fn crash(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// The owner stands still for so long, as after SIGSTOP.
    pub(crate) fn freeze(&self, length: Duration) {
        *self.frozen_until.lock().unwrap() = Some(Instant::now() + length);
    }

    /// Passes while the owner runs.
    pub(crate) async fn gate(&self) {
        loop {
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
            let until = *self.frozen_until.lock().unwrap();
            match until {
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return,
            }
        }
    }

    pub(crate) fn session(&self) -> Option<Session> {
        self.session.lock().unwrap().map(Session)
    }

    pub(crate) async fn new_session(&self, known: Option<Session>) -> Session {
        loop {
            match self.session() {
                Some(session) if Some(session) != known => return session,
                // Polled: what wakes several at once does so in no fixed order.
                _ => sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// The connection breaks, and is there again after a while as another one.
    pub(crate) fn break_session(self: &Arc<Self>) {
        let Some(number) = self.session.lock().unwrap().take() else {
            return;
        };
        let link = Arc::clone(self);
        self.tracker.spawn(async move {
            pause(link.wire.reconnect()).await;
            *link.session.lock().unwrap() = Some(number + 1);
        });
    }

    fn learn(&self, redis_us: u64, sent: Duration) {
        let received = (self.clock)();
        let mut latest = self.reading.lock().unwrap();
        if sent >= latest.sent {
            *latest = Reading {
                redis_us,
                sent,
                received,
            };
        }
    }

    fn upper_us(&self) -> u64 {
        let latest = *self.reading.lock().unwrap();
        latest.redis_us + micros((self.clock)().saturating_sub(latest.sent))
    }

    /// Redis's clock is at most this.
    pub(crate) fn upper(&self) -> UnixMs {
        UnixMs(self.upper_us().div_ceil(1_000))
    }

    /// The same, rounded to the wrong side, to 10 ms.
    pub(crate) fn upper_down(&self) -> UnixMs {
        UnixMs(self.upper_us() / 10_000 * 10)
    }

    /// Redis's clock is at least this, in µs.
    pub(crate) fn lower_us(&self) -> u64 {
        let latest = *self.reading.lock().unwrap();
        latest.redis_us + micros((self.clock)().saturating_sub(latest.received))
    }

    /// The clock that the estimate runs on.
    pub(crate) fn monotonic(&self) -> Duration {
        (self.clock)()
    }

    /// Whether Redis's time is known.
    pub(crate) fn knows_time(&self) -> bool {
        self.reading.lock().unwrap().redis_us > 0
    }

    /// Whether this piece of news gets through.
    pub(crate) fn brings(&self, wake: Wake) -> bool {
        !matches!(wake, Wake::Earlier(..)) || !self.wire.loses_wake()
    }

    /// Sends one request. An error says that the outcome is unknown.
    pub(crate) async fn send<R: Send + 'static>(
        self: &Arc<Self>,
        server: &Arc<Server>,
        request: Request,
        script: impl Fn(&Server) -> R + Send + Sync + 'static,
    ) -> Result<R, Error> {
        self.gate().await;
        let sent = (self.clock)();
        let outcome = match self.wire.fate(request) {
            Fate::Answered { out, back } => {
                pause(out).await;
                let redis_us = server.now_us();
                let result = script(server);
                pause(back).await;
                Some((redis_us, result))
            }
            Fate::ReplyLost { out } => {
                pause(out).await;
                drop(script(server));
                None
            }
            Fate::Late { after } => {
                self.later(server, after, script);
                None
            }
            Fate::Doubled { again } => {
                drop(script(server));
                self.later(server, again, script);
                None
            }
            Fate::Lost => None,
        };
        if outcome.is_none() {
            pause(REQUEST_TIMEOUT).await;
        }
        self.gate().await;
        let Some((redis_us, result)) = outcome else {
            if matches!(request, Request::Turn | Request::Park | Request::Beat) {
                self.break_session();
                return Err(Error::new(ErrorKind::SessionLost));
            }
            return Err(Error::new(ErrorKind::Unknown));
        };
        self.learn(redis_us, sent);
        Ok(result)
    }

    pub(crate) fn later<R: Send + 'static>(
        &self,
        server: &Arc<Server>,
        after: Duration,
        script: impl Fn(&Server) -> R + Send + Sync + 'static,
    ) {
        let server = Arc::clone(server);
        self.tracker.spawn(async move {
            pause(after).await;
            drop(script(&server));
        });
    }
}

async fn pause(length: Duration) {
    if length > Duration::ZERO {
        sleep(length).await;
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}
