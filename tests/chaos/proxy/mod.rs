//! The harness's own TCP proxy, between an instance and one of the servers behind it: delays, holds, cuts,
//! resets, lets bytes go one way only, swallows an answer and cuts. Reads nothing but NSQ's frames, and those
//! only to say what was handed over (`nsqd.rs`).

mod nsqd;
mod redis;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::recorder::Recorder;

const CHUNK: usize = 64 * 1024;

/// What the proxy does to its connections now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Connections that are older than this are cut.
    cuts: u64,
    /// With a reset instead of an orderly end.
    pub(crate) reset: bool,
    /// Each piece waits this long.
    pub(crate) delay: Duration,
    /// Requests do not arrive.
    pub(crate) hold_requests: bool,
    /// Answers do not come back.
    pub(crate) hold_answers: bool,
    /// This error answers every publish (to `error_topic` alone, if there is one), which is not passed on.
    pub(crate) error: Option<&'static str>,
    pub(crate) error_topic: Option<&'static str>,
    /// A defect, to see that the checker finds it.
    pub(crate) plant: Option<Plant>,
}

/// A defect that a proxy can show on behalf of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    /// A publish to nsqd is now and then answered OK and not passed on: settled before nsqd's OK.
    SettleBeforeOk,
    /// A publish to nsqd is now and then passed on twice.
    SendTwice,
    /// One byte of a message is changed.
    AlterBody,
    /// An insert is now and then answered "ok" and not passed on to Redis: the reply before the write.
    ReplyBeforeWrite,
}

/// What is behind a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behind {
    Redis,
    Nsqd(usize),
}

/// A listening proxy. Ends with its runtime.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where the instance connects.
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    instance: usize,
    behind: Behind,
    upstream: SocketAddr,
    rules: watch::Sender<Rules>,
    recorder: Arc<Recorder>,
    tracker: TaskTracker,
    /// Connections now.
    live: AtomicUsize,
    /// Answers that are still to be swallowed.
    swallow: AtomicU64,
    /// What the current rules have hit.
    hits: AtomicU64,
}

/// Why a pump ended.
type Ended = std::io::Result<()>;

impl Proxy {
    /// Listens on a free port.
    pub(crate) fn start(
        runtime: &Handle,
        recorder: &Arc<Recorder>,
        instance: usize,
        behind: Behind,
        upstream: SocketAddr,
    ) -> Self {
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .unwrap();
        let shared = Arc::new(Shared {
            instance,
            behind,
            upstream,
            rules: watch::Sender::new(Rules::default()),
            recorder: Arc::clone(recorder),
            tracker: TaskTracker::new(),
            live: AtomicUsize::new(0),
            swallow: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        });
        let address = listener.local_addr().unwrap();
        shared
            .tracker
            .spawn_on(Arc::clone(&shared).accept(listener), runtime);
        Self { address, shared }
    }

    /// Changes the rules, and begins to count hits anew.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Rules)) {
        self.shared.hits.store(0, Ordering::SeqCst);
        self.shared.rules.send_modify(change);
    }

    /// Everything as it should be. Connections stay.
    pub(crate) fn heal(&self) {
        self.shared.swallow.store(0, Ordering::SeqCst);
        self.shared.rules.send_modify(|rules| {
            *rules = Rules {
                cuts: rules.cuts,
                plant: rules.plant,
                ..Rules::default()
            };
        });
    }

    /// Ends every connection; says how many there were.
    pub(crate) fn cut(&self, reset: bool) -> u64 {
        let live = self.shared.live.load(Ordering::SeqCst);
        self.shared.rules.send_modify(|rules| {
            rules.cuts += 1;
            rules.reset = reset;
        });
        live as u64
    }

    /// The next `count` answers are swallowed, and their connections cut.
    pub(crate) fn swallow(&self, count: u64) {
        self.shared.hits.store(0, Ordering::SeqCst);
        self.shared.swallow.store(count, Ordering::SeqCst);
    }

    /// What the rules have hit since they were set.
    pub(crate) fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub(crate) fn live(&self) -> u64 {
        self.shared.live.load(Ordering::SeqCst) as u64
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((client, _)) = listener.accept().await {
            self.tracker.spawn(Arc::clone(&self).carry(client));
        }
    }

    async fn carry(self: Arc<Self>, client: TcpStream) {
        let mut rules = self.rules.subscribe();
        let born = rules.borrow().cuts;
        // As a server that is not there: the client sees its connection end.
        let Ok(server) = TcpStream::connect(self.upstream).await else {
            return;
        };
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        self.live.fetch_add(1, Ordering::SeqCst);
        let (mut client, mut server) = (client, server);
        let ended = {
            let cut = async {
                // The rules live as long as the proxy, which outlives its connections.
                drop(rules.wait_for(|rules| rules.cuts > born).await);
            };
            let pumps = self.pump(&mut client, &mut server);
            tokio::select! {
                ended = pumps => ended,
                () = cut => Ok(()),
            }
        };
        drop(ended);
        if self.rules.borrow().reset {
            drop(client.set_zero_linger());
            drop(server.set_zero_linger());
        }
        self.live.fetch_sub(1, Ordering::SeqCst);
    }

    /// Carries bytes both ways until one side ends.
    async fn pump(&self, client: &mut TcpStream, server: &mut TcpStream) -> Ended {
        match self.behind {
            Behind::Nsqd(nsqd) => nsqd::pump(self, nsqd, client, server).await,
            Behind::Redis if self.rules.borrow().plant == Some(Plant::ReplyBeforeWrite) => {
                redis::pump(self, client, server).await
            }
            Behind::Redis => {
                let (from_client, to_client) = client.split();
                let (from_server, to_server) = server.split();
                tokio::select! {
                    ended = self.requests(from_client, to_server) => ended,
                    ended = self.answers(from_server, to_client) => ended,
                }
            }
        }
    }

    async fn requests(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
    ) -> Ended {
        let mut chunk = vec![0; CHUNK];
        loop {
            let size = from.read(&mut chunk).await?;
            if size == 0 {
                return Ok(());
            }
            self.gate(|rules| rules.hold_requests).await;
            to.write_all(&chunk[..size]).await?;
        }
    }

    async fn answers(
        &self,
        mut from: impl tokio::io::AsyncRead + Unpin,
        mut to: impl tokio::io::AsyncWrite + Unpin,
    ) -> Ended {
        let mut chunk = vec![0; CHUNK];
        loop {
            let size = from.read(&mut chunk).await?;
            if size == 0 || self.swallows() {
                return Ok(());
            }
            self.gate(|rules| rules.hold_answers).await;
            to.write_all(&chunk[..size]).await?;
        }
    }

    /// Waits as the rules say. Bytes that were held arrive late, as after a network's recovery.
    async fn gate(&self, held: impl Fn(&Rules) -> bool) {
        let mut rules = self.rules.subscribe();
        let delay = rules.borrow().delay;
        if !delay.is_zero() {
            self.hits.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(delay).await;
        }
        if held(&rules.borrow()) {
            self.hits.fetch_add(1, Ordering::SeqCst);
            drop(rules.wait_for(|rules| !held(rules)).await);
        }
    }

    /// Takes one of the answers to be swallowed.
    fn swallows(&self) -> bool {
        let taken = self
            .swallow
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if taken.is_ok() {
            self.hits.fetch_add(1, Ordering::SeqCst);
        }
        taken.is_ok()
    }
}
